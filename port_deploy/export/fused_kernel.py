# SPDX-License-Identifier: Apache-2.0
"""The fused kernel as what a TensorRT plan holds of it: PTX made for one model, its launch, and its packed weights.

The PTX beside the core is compiled for any model: everything that differs between models is read from one constant,
``port_line_constants``, whose bytes the core makes (csrc/include/port/engine_layer.hpp). Nobody will ever write that
constant when TensorRT launches the kernel, so each read of it becomes the number itself: the driver's compiler then
sees sizes and offsets as literals, which saves registers (on compute capability 9.0 128 become 116, and 48 bytes of
spills go). The kernel's last argument, std, is of models with a variance; for others it becomes the number null.
May use: backends.native, weights, errors. Test: tests/test_fused_kernel.py,
csrc/tests/emulated/test_engine_layer.cpp.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from port_deploy.backends import native
from port_deploy.errors import BackendUnavailableError, ExportError, InputError
from port_deploy.sidecar import Precision
from port_deploy.weights import Model

ENTRY = "port_line"
"""The kernel's name in the PTX."""

REMEDY = "install the CUDA toolkit (nvcc), then PORT_CUDA=ON pip install ."

PTX_VERSION = "7.8"
"""Of the instruction set that the kernels need (movmatrix): drivers from CUDA 11.8 on take it, whatever compiled it."""

_CONSTANT = f"{ENTRY}_constants"
_DECLARED = re.compile(rf"^(?:\.visible )?\.const \.align \d+ \.b8 {_CONSTANT}\[(\d+)\];\n", re.MULTILINE)
_USED_BYTES = re.compile(r'^\s*\.pragma "used_bytes_mask \d+";\n', re.MULTILINE)  # of a load: PTX 8.3, a hint
_LAST_ARGUMENT = re.compile(rf",\s*\.param \.u64(?: \.ptr[^,\n]*)? ({ENTRY}_param_\d+)\s*\)")
_READ = re.compile(rf"ld\.const(?:\.v[24])?\.([usbf])(32|64)\s+(\{{[^}}]*\}}|%\w+), \[{_CONSTANT}(?:\+(\d+))?\];")


@dataclass(frozen=True)
class FusedKernel:
    """A kernel for one model, and how it is launched: a block per pose.

    Attributes:
        ptx: Its text.
        threads: Of a block.
        shared_bytes: Dynamic shared memory of a block, at most 48 KB.
        state_words: int32 words that it writes per pose; the first N are the mask.
        weights: Packed weights, a multiple of 4 bytes.
        std: It writes standard deviations, too: the last of its outputs.
    """

    ptx: str
    threads: int
    shared_bytes: int
    state_words: int
    weights: bytes
    std: bool = False


def layers_folder() -> Path:
    """Where a build with CUDA puts ``port_line_*.ptx``: beside the core."""
    return Path(native.core().__file__).parent / "layers"


def make_kernel(model: Model, precision: Precision, size: tuple[int, int] | None, capability: str) -> FusedKernel:
    """The kernel for a model.

    Args:
        model: Specification and the file's bytes.
        precision: Of the encoder's matrix products.
        size: (H, W) of the heatmaps; None: from joints and confidence.
        capability: Oldest compute capability that it shall run on, ``8.9``.

    Raises:
        BackendUnavailableError: This build has no kernels, or the network is too large for one.
        InputError: bf16 before compute capability 8.0.
    """
    module = native.core()
    height, width = size or (0, 0)
    try:
        layer = module.engine_layer(model.data, model.source, precision, height, width)
    except module.Error as error:
        raise native.translate(error) from None
    ptx = specialise(find_ptx(precision, layer["columns"], capability), layer["constants"])
    if not layer["std"]:
        ptx = drop_last_argument(ptx)
    return FusedKernel(
        ptx, layer["threads"], layer["shared_bytes"], layer["state_words"], layer["weights"], layer["std"]
    )


def find_ptx(precision: Precision, columns: int, capability: str) -> str:
    """The PTX for a precision and a number of joints (``columns`` times 8 at most), the newest that fits the GPU.

    Raises:
        BackendUnavailableError: This build has none.
        InputError: None is old enough for the GPU.
    """
    folder = layers_folder()
    found: dict[int, Path] = {}
    for path in folder.glob(f"port_line_{precision}_{columns}_sm*.ptx"):
        found[int(path.stem.rpartition("_sm")[2])] = path
    if not found:
        raise BackendUnavailableError(f"--fuse needs a build with PORT_CUDA=ON, this one has no kernels: {REMEDY}")
    major, _, minor = capability.partition(".")
    fitting = [oldest for oldest in found if oldest <= 10 * int(major) + int(minor)]
    if not fitting:
        raise InputError(
            f"{precision} kernels need compute capability {min(found) / 10} or later, this GPU has {capability}: "
            "use --precision fp16 or fp32"
        )
    return found[max(fitting)].read_text("ascii")


def specialise(ptx: str, constants: bytes) -> str:
    """PTX with the numbers of one model in the place of its constant.

    Args:
        ptx: As nvcc wrote it.
        constants: The constant's bytes.

    Raises:
        ExportError: It is not the PTX that these constants are for.
    """
    declared = _DECLARED.search(ptx)
    if declared is None or int(declared[1]) != len(constants):
        there = "none" if declared is None else f"one of {declared[1]} bytes"
        raise ExportError(
            f"expected PTX with {_CONSTANT} of {len(constants)} bytes, got {there}: core and kernels are of different "
            f"builds: {REMEDY}"
        )

    def numbers(read: re.Match[str]) -> str:
        kind, bits, registers, offset = read[1], int(read[2]), read[3].strip("{}").split(","), int(read[4] or 0)
        moves = []
        for i, register in enumerate(name.strip() for name in registers):
            at = offset + i * bits // 8
            value = int.from_bytes(constants[at : at + bits // 8], "little", signed=kind == "s")
            moves.append(_move(register, value))
        return "\n\t".join(moves)

    out = _READ.sub(numbers, _USED_BYTES.sub("", _DECLARED.sub("", ptx, count=1)))
    out, versions = re.subn(r"^\.version [\d.]+$", f".version {PTX_VERSION}", out, count=1, flags=re.MULTILINE)
    if _CONSTANT in out or versions != 1:
        raise ExportError(f"the kernel's PTX reads its constants in a way that is not known: {REMEDY}")
    return out


def drop_last_argument(ptx: str) -> str:
    """The kernel without its last argument, a pointer, which is null in its place.

    Args:
        ptx: As nvcc wrote it.

    Raises:
        ExportError: Its last argument is no pointer, or it is not only loaded.
    """
    declared = _LAST_ARGUMENT.search(ptx)
    if declared is not None:
        name = re.escape(declared[1])
        out = ptx[: declared.start()] + "\n)" + ptx[declared.end() :]
        out = re.sub(rf"ld\.param\.[usb]64\s+(%rd\d+), \[{name}\];", r"mov.b64 \1, 0;", out)
        if re.search(rf"{name}\b", out) is None:
            return out
    raise ExportError(f"the kernel's PTX has no last argument that can be left out: {REMEDY}")


def _move(register: str, value: int) -> str:
    """A number into a register; a 32-bit one goes into a wider register as the load would have extended it."""
    if register.startswith("%rd"):
        return f"mov.b64 {register}, {value};"
    if register.startswith("%r"):
        return f"mov.b32 {register}, {value};"
    if register.startswith("%f"):
        return f"mov.f32 {register}, 0f{value:08X};"
    raise ExportError(f"the kernel's PTX reads a constant into {register}: {REMEDY}")
