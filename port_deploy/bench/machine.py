# SPDX-License-Identifier: Apache-2.0
"""The machine, the versions and the commit that a measurement belongs to.

May use: backends (build information), errors. Test: tests/test_bench.py.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from port_deploy.backends import native
from port_deploy.errors import PortError

DEFAULT_CACHE_BYTES = 32 << 20
"""Where the system does not tell the size of its last-level cache."""

LIBRARIES = (
    "port-deploy",
    "numpy",
    "torch",
    "triton",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
)

FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "sve", "bf16")

_ZEN = {(23, 0x30): "zen2", (25, 0x00): "zen3", (25, 0x10): "zen4", (25, 0x60): "zen4", (25, 0xA0): "zen4"}


def describe_machine() -> dict[str, Any]:
    """Processor, caches, memory and system, as plain JSON values."""
    info = _cpuinfo()
    flags = (info.get("flags") or info.get("Features") or "").split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "architecture": _architecture(info),
        "processors": len(os.sched_getaffinity(0)),
        "features": [f for f in FEATURES if f in flags],
        "caches": caches(),
        "memory_gib": round(memory / 2**30, 1),
        "os": _os_name(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "virtual": "hypervisor" in flags,
    }


def slug(machine: dict[str, Any]) -> str:
    """A file name for a machine: ``amd-epyc-zen4-2core``, or for its GPU: ``nvidia-h100-80gb-hbm3``."""
    if gpu := machine.get("gpu"):
        return "-".join(re.sub(r"[^a-z0-9]+", " ", gpu["name"].lower()).split())
    text = f"{machine['cpu']} {machine['architecture']} {machine['processors']}core"
    text = re.sub(r"\((r|tm)\)|processor|cpu|@.*?ghz|\d+-core", " ", text.lower())
    words = re.sub(r"[^a-z0-9]+", " ", text).split()
    return "-".join(dict.fromkeys(words))


def caches() -> dict[str, int]:
    """Bytes of each cache that processor 0 sees: ``L1d``, ``L1i``, ``L2``, ``L3``."""
    sizes = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind = (index / "level").read_text().strip(), (index / "type").read_text().strip()
            size = (index / "size").read_text().strip()
        except OSError:
            continue
        unit = {"K": 1 << 10, "M": 1 << 20}.get(size[-1:], 1)
        name = f"L{level}" + {"Data": "d", "Instruction": "i"}.get(kind, "")
        sizes[name] = int(size.rstrip("KM")) * unit
    return sizes


def last_level_cache_bytes() -> int:
    """Size of the largest cache, the one that a cold measurement must sweep."""
    return max(caches().values(), default=DEFAULT_CACHE_BYTES)


def versions() -> dict[str, str]:
    """Versions of the libraries that take part."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def compilers() -> dict[str, str]:
    """What compiled the core, and the C++ compiler that PyTorch's compilers find here."""
    found = {}
    try:
        info = native.build_info()
        found["core"] = f"{info['compiler']}, {info['selected_isa']}"
    except PortError:
        pass
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler:
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
        found["cxx"] = (done.stdout.splitlines() or [compiler])[0]
    return found


def commit() -> dict[str, Any]:
    """``hash`` of the source tree's commit and whether it is ``dirty``: code was changed since. None outside git."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return {"hash": None, "dirty": None}
    try:
        head = _git(folder, "rev-parse", "--short=12", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", "port_deploy", "csrc", "python")
    except (OSError, subprocess.CalledProcessError):
        return {"hash": None, "dirty": None}
    return {"hash": head, "dirty": bool(changed)}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    first = text.split("\n\n")[0]
    return {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in first.splitlines())}


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


def _architecture(info: dict[str, str]) -> str:
    if info.get("vendor_id") == "AuthenticAMD":
        family, model = int(info.get("cpu family", 0)), int(info.get("model", 0))
        if family == 26:
            return "zen5"
        return _ZEN.get((family, model & 0xF0), platform.machine())
    return platform.machine()
