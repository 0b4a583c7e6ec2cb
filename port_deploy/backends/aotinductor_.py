# SPDX-License-Identifier: Apache-2.0
"""The `aotinductor` backend: runs ``NAME.pt2``, machine code that PyTorch compiled ahead of time.

Such a package holds a shared library for one kind of machine: loading it runs code, as loading any library does.
May use: artefact, sidecar, errors, torch. Test: tests/test_backend_aotinductor.py.
"""

from __future__ import annotations

import platform
from pathlib import Path

from port_deploy.backends.artefact import artefact_path, first_line, library_availability, require_library
from port_deploy.backends.base import Availability
from port_deploy.backends.torchscript_ import TorchProgramBackend
from port_deploy.errors import BackendUnavailableError, InputError, ModelFileError
from port_deploy.sidecar import Sidecar, read_sidecar


def availability() -> Availability:
    """Whether PyTorch is installed."""
    return library_availability("torch", "PyTorch", "export")


def this_platform() -> dict[str, str]:
    """What a package compiled here runs on: ``machine`` (``x86_64``) and ``cpu`` (PyTorch's name of its vectors)."""
    import torch

    return {"machine": platform.machine(), "cpu": torch.backends.cpu.get_cpu_capability(), "device": "cpu"}


def load(path: str | Path, *, threads: int = 0, device: str = "cpu") -> TorchProgramBackend:
    """Load an AOTInductor package.

    Args:
        path: ``NAME.pt2``; its sidecar lies beside it.
        threads: Ignored: PyTorch has one setting for the whole process, ``torch.set_num_threads``.
        device: ``cpu``: port-export compiles for the CPU.

    Raises:
        BackendUnavailableError: PyTorch is not installed, or the package was compiled for another machine.
        ModelFileError: The sidecar does not fit, or PyTorch cannot read the file.
    """
    require_library("torch", "backend aotinductor", "export")
    import torch

    sidecar = read_sidecar(path, "pt2")
    if device != sidecar.platform.get("device", "cpu"):
        raise InputError(f"{path} was compiled for device {sidecar.platform.get('device')!r}, got {device!r}: use that")
    _check_platform(path, sidecar)
    try:
        program = torch._inductor.aoti_load_package(str(artefact_path(path)))
    except Exception as error:  # what it raises depends on the version: RuntimeError, ValueError, pickle's own
        built = sidecar.tools.get("torch", "unknown")
        raise ModelFileError(
            f"PyTorch {torch.__version__} cannot load {path}, compiled by PyTorch {built} ({first_line(error)}): "
            "export it again with this version"
        ) from error
    detail = f"AOTInductor on PyTorch {torch.__version__}, {device}, {sidecar.precision}"
    return TorchProgramBackend("aotinductor", detail, sidecar, program, device)


def _check_platform(path: str | Path, sidecar: Sidecar) -> None:
    here, built = this_platform(), sidecar.platform
    # PyTorch orders its own names by what they add: code for more than this processor has would die on it.
    order = ("DEFAULT", "AVX2", "AVX512")
    cpu = built.get("cpu", "DEFAULT")
    beyond = cpu in order and here["cpu"] in order and order.index(cpu) > order.index(here["cpu"])
    if built.get("machine") != here["machine"] or beyond:
        raise BackendUnavailableError(
            f"{path} was compiled for {built.get('machine')} {cpu}, this machine is {here['machine']} {here['cpu']}: "
            "run port-export --pt2 here"
        )
