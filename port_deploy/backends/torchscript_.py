# SPDX-License-Identifier: Apache-2.0
"""The `torchscript` backend: runs ``NAME.ts``.

May use: artefact, sidecar, errors, torch. Test: tests/test_export.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from port_deploy.backends.artefact import (
    ArtefactBackend,
    artefact_path,
    first_line,
    library_availability,
    require_library,
)
from port_deploy.backends.base import Availability, FloatArray, HostBuffers
from port_deploy.errors import BackendUnavailableError, ModelFileError
from port_deploy.sidecar import Sidecar, read_sidecar


def availability() -> Availability:
    """Whether PyTorch is installed."""
    return library_availability("torch", "PyTorch", "export")


class TorchProgramBackend(ArtefactBackend):
    """A callable of PyTorch tensors, TorchScript or AOTInductor.

    Args:
        name: The backend's name.
        detail: What it runs on and how.
        sidecar: The artefact's sidecar.
        program: Takes the two inputs and the threshold, answers what ``output_names`` says.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, name: str, detail: str, sidecar: Sidecar, program: Any, device: str) -> None:
        super().__init__(name, detail, sidecar)
        self._program = program
        self._device = device

    def _infer(self, first: NDArray[Any], second: FloatArray, threshold: FloatArray, out: HostBuffers) -> None:
        import torch

        # torch.from_numpy warns about read-only memory, which inputs may be; nothing writes into them here.
        arrays = (a if a.flags.writeable else a.copy() for a in (first, second, threshold))
        with torch.inference_mode():
            tensors = [torch.from_numpy(a).to(self._device) for a in arrays]
            for target, answer in zip(self.targets(out), self._program(*tensors), strict=True):
                target[...] = answer.cpu().numpy()


def check_torch_device(device: str) -> None:
    """Raise unless PyTorch has the device.

    Raises:
        BackendUnavailableError: A GPU was asked for and PyTorch finds none.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BackendUnavailableError(
            f"PyTorch {torch.__version__} finds no CUDA device: use device='cpu', or install a CUDA build of PyTorch"
        )


def load(path: str | Path, *, threads: int = 0, device: str = "cpu") -> TorchProgramBackend:
    """Load a TorchScript artefact.

    Args:
        path: ``NAME.ts``; its sidecar lies beside it.
        threads: Ignored: PyTorch has one setting for the whole process, ``torch.set_num_threads``.
        device: ``cpu`` or ``cuda``.

    Raises:
        BackendUnavailableError: PyTorch is not installed, or has no such device.
        ModelFileError: The sidecar does not fit, or PyTorch cannot read the file.
    """
    require_library("torch", "backend torchscript", "export")
    import torch

    sidecar = read_sidecar(path, "ts")
    check_torch_device(device)
    try:
        program = torch.jit.load(str(artefact_path(path)), map_location=device)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        built = sidecar.tools.get("torch", "unknown")
        raise ModelFileError(
            f"PyTorch {torch.__version__} cannot load {path}, written by PyTorch {built} ({first_line(error)}): "
            "export it again with this version"
        ) from error
    detail = f"TorchScript on PyTorch {torch.__version__}, {device}, {sidecar.precision}"
    return TorchProgramBackend("torchscript", detail, sidecar, program, device)
