# SPDX-License-Identifier: Apache-2.0
"""The core's CUDA path as the backend `native-cuda`: one kernel launch a call.

Arrays on the GPU are read and written where they lie, on the caller's stream; nothing is copied, allocated or waited
for. Arrays in host memory are copied over and back.
May use: native (which imports `_core`), base, device_arrays, weights, config, errors. Test: tests/test_native_cuda.py,
tests/test_cuda.py (on a GPU).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.backends import native
from port_deploy.backends.base import Availability, FloatArray, HostBuffers
from port_deploy.config import ModelSpec
from port_deploy.device_arrays import DTYPES, DeviceView, device_view, stream_of
from port_deploy.errors import BackendUnavailableError, InputError
from port_deploy.weights import Model

HEATMAP_TYPES = tuple(DTYPES)
"""What the decode reads."""


SELF_TEST_PX = {"fp32": 0.01, "fp16": 1.0, "bf16": 16.0}
"""By how much the GPU may differ from the processor when a model is loaded: several times what rounding explains
(verify.py has the bounds of that), far less than a wrong kernel errs by."""

SELF_TEST_STD = {"fp32": 0.01, "fp16": 0.1, "bf16": 0.5}
"""The same for standard deviations, relative."""


def availability() -> Availability:
    """Whether the core has CUDA code and a GPU is there."""
    state = native.availability()
    if not state.available:
        return state
    cuda = native.core().cuda_info()
    if not cuda["compiled"]:
        return Availability(
            False, "this build has no CUDA", "install the CUDA toolkit (nvcc), then PORT_CUDA=ON pip install ."
        )
    if not cuda["devices"]:
        return Availability(
            False, cuda["detail"], "run it on a machine with an NVIDIA GPU; nvidia-smi says what is wrong"
        )
    names = ", ".join(f"{d['name']} ({'.'.join(map(str, d['compute_capability']))})" for d in cuda["devices"])
    return Availability(True, names)


def device_number(device: str) -> int:
    """``cuda:1`` is 1, ``cuda`` is 0.

    Raises:
        InputError: It is no such name.
    """
    _, _, index = device.partition(":")
    if not device.startswith("cuda") or (index and not index.isdecimal()):
        raise InputError(f"expected device cuda or cuda:N, got {device!r}")
    return int(index or 0)


class CudaBackend:
    """The core's CudaRefiner. Attributes as `Backend` says.

    Standard deviations of a model with a variance are computed where there is memory for them: none is needed.

    Args:
        model: Specification and the file's bytes, which the core reads itself.
        device: Number of the GPU.
        precision: ``fp16``, ``bf16`` or ``fp32``.
        variant: ``block``, ``cluster``, ``throughput``, or None for the core's choice by batch and GPU.
    """

    name = "native-cuda"
    takes_joints = True
    takes_heatmaps = True
    takes_device = True
    needs_std = False  # nothing is allocated for standard deviations that the caller has no array for
    heatmap_types = HEATMAP_TYPES

    def __init__(self, model: Model, device: int = 0, precision: str = "fp16", variant: str | None = None) -> None:
        module = native.core()
        self.spec: ModelSpec = model.spec
        self.gives_std = model.spec.config.variance
        self.device = device
        try:
            self._native = module.CudaRefiner(
                model.data, model.source, device=device, precision=precision, variant=variant
            )
        except module.Error as error:
            raise native.translate(error) from None
        self._error: type[Exception] = module.Error
        self.weight_bytes: int = self._native.weight_bytes
        self.detail: str = self._native.description
        self._compare_with_the_processor(model, precision)

    def _compare_with_the_processor(self, model: Model, precision: str) -> None:
        """Refine a few poses on both: a GPU, a driver or a compiler that no test has seen must not answer wrongly.

        Raises:
            BackendUnavailableError: They disagree.
        """
        count, rng = self.spec.joints, np.random.default_rng(0)
        joints = rng.uniform(20, 236, (3, count, 2)).astype(np.float32)
        confidence = rng.uniform(0.5, 1, (3, count)).astype(np.float32)
        confidence[np.arange(3), np.arange(3)] = 0.2
        answers = []
        for backend in (native.NativeBackend(model, threads=1), self):
            out = HostBuffers(np.empty_like(joints), np.empty_like(confidence), np.empty((3, count), np.bool_))
            if self.gives_std:
                out.std = np.empty_like(confidence)
            backend.refine(joints, confidence, 0.5, out)
            answers.append(out)
        processor, gpu = answers
        worst = float(np.abs(processor.joints - gpu.joints).max())
        if not worst <= SELF_TEST_PX[precision] or not (processor.mask == gpu.mask).all():
            raise BackendUnavailableError(
                f"native-cuda disagrees with the processor by {worst:.3g} px on {self.detail}, where "
                f'{SELF_TEST_PX[precision]:g} are allowed: use device="cpu", and report it with port-info'
            )
        if processor.std is None or gpu.std is None:
            return
        apart = float(np.abs(gpu.std[gpu.mask] / processor.std[gpu.mask] - 1).max())
        if not apart <= SELF_TEST_STD[precision] or not np.isnan(gpu.std[~gpu.mask]).all():
            raise BackendUnavailableError(
                f"native-cuda disagrees with the processor on std by {apart:.3g} of it on {self.detail}, where "
                f'{SELF_TEST_STD[precision]:g} is allowed: use device="cpu", and report it with port-info'
            )

    def variant(self, batch: int) -> str:
        """How a batch of that size is spread over the GPU: ``block``, ``cluster`` or ``throughput``."""
        return str(self._native.variant(batch))

    def refine(self, joints: FloatArray, confidence: FloatArray, threshold: float, out: HostBuffers) -> None:
        """As `Backend` says: host arrays, copied over and back."""
        try:
            self._native.refine_host(joints, confidence, threshold, out.joints, out.confidence, out.mask, out.std)
        except self._error as error:
            raise native.translate(error) from None

    def run(self, heatmaps: NDArray[Any], affine: FloatArray | None, threshold: float, out: HostBuffers) -> None:
        """As `Backend` says: host arrays, copied over and back."""
        try:
            self._native.run_host(heatmaps, affine, threshold, out.joints, out.confidence, out.mask, out.std)
        except self._error as error:
            raise native.translate(error) from None

    def run_on_device(
        self, inputs: Sequence[Any], threshold: float, outputs: Sequence[Any], stream: Any = None
    ) -> None:
        """Run on arrays in the GPU's memory, on the caller's stream; the work is queued, nothing is waited for.

        Args:
            inputs: Joints [B, N, 2] and confidence [B, N], dense float32; or heatmaps [B, N, H, W] of any of
                HEATMAP_TYPES, whose last axis is dense, and affine [B, 2, 3] float32 (None: heatmap pixels).
            threshold: δ.
            outputs: Joints [B, N, 2], confidence [B, N], mask [B, N] and, of a model with a variance where wanted, std
                [B, N], dense; written to.
            stream: A stream or its handle; None: the current one of the library that the arrays come from.

        Raises:
            InputError: An array does not fit; nothing has been queued.
            BackendUnavailableError: CUDA refuses the launch.
        """
        count = self.spec.joints
        is_maps = len(inputs[0].shape) == 4
        if is_maps:
            first = device_view(inputs[0], "heatmaps", (None, count, None, None), HEATMAP_TYPES, dense=False)
        else:
            first = device_view(inputs[0], "joints", (None, count, 2), "<f4")
        batch = first.shape[0]
        second = None
        if inputs[1] is not None:
            shape, name = ((batch, 2, 3), "affine") if is_maps else ((batch, count), "confidence")
            second = device_view(inputs[1], name, shape, "<f4")
        written = [
            device_view(outputs[0], "out.joints", (batch, count, 2), "<f4", writable=True),
            device_view(outputs[1], "out.confidence", (batch, count), "<f4", writable=True),
            device_view(outputs[2], "out.mask", (batch, count), "|b1", writable=True),
        ]
        if len(outputs) > 3:
            written.append(device_view(outputs[3], "out.std", (batch, count), "<f4", writable=True))
        check_device((first, second, *written), self.device)
        queue = stream_of(stream, [*inputs, *outputs])
        addresses = [v.address for v in written] + [0] * (4 - len(written))
        try:
            if is_maps:
                matrix = second.address if second is not None else 0
                self._native.run(*as_arguments(first), matrix, threshold, addresses, queue)
            else:
                assert second is not None
                self._native.refine(first.address, second.address, batch, threshold, addresses, queue)
        except self._error as error:
            raise native.translate(error) from None


def check_device(views: Sequence[DeviceView | None], device: int) -> None:
    """Raise unless all arrays lie on that GPU, as far as their libraries say.

    Raises:
        InputError: One does not.
    """
    for view in views:
        if view is not None and view.device not in (None, device):
            raise InputError(
                f"expected arrays on cuda:{device}, got one on cuda:{view.device}: move it there, or load the refiner "
                f'with device="cuda:{view.device}"'
            )


def as_arguments(view: DeviceView) -> tuple[int, str, tuple[int, ...], tuple[int, ...]]:
    """Heatmaps as the core takes them: address, dtype, shape, and the strides of all axes but the last."""
    return view.address, DTYPES[view.typestr], view.shape, view.strides[:3]


def load(
    model: Model, *, threads: int = 0, device: str = "cuda", precision: str = "fp16", variant: str | None = None
) -> CudaBackend:
    """The model as a native backend on a GPU.

    Args:
        model: Specification and the file's bytes.
        threads: Not used: the host only launches.
        device: ``cuda`` or ``cuda:N``.
        precision: ``fp16``, ``bf16`` or ``fp32`` (of the network's matrix products).
        variant: ``block``, ``cluster``, ``throughput``, or None for the core's choice by batch and GPU.

    Raises:
        InputError: An option is out of range.
        ModelFileError: The core finds the bytes unusable.
        BackendUnavailableError: No CUDA in this build, no such GPU, it lacks the precision, or it disagrees with the
            processor.
    """
    return CudaBackend(model, device_number(device), precision, variant)
