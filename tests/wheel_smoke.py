# SPDX-License-Identifier: Apache-2.0
"""Install the wheel of a folder into a bare environment and use it from another directory, with no compiler on PATH.

Run: python tests/wheel_smoke.py dist
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

MAX_WHEEL_BYTES = 15 << 20

USE = """
import sys, time
start = time.perf_counter()
import port_deploy
import_s = time.perf_counter() - start
assert "torch" not in sys.modules, "import port_deploy brings torch"
assert "site-packages" in port_deploy.__file__, port_deploy.__file__
import numpy as np
start = time.perf_counter()
refiner = port_deploy.Refiner.load("hand21")
joints = np.random.default_rng(0).normal(128, 40, (3, 21, 2)).astype(np.float32)
confidence = np.full((3, 21), 0.9, np.float32)
confidence[:, 5] = 0.05
out = refiner.refine(joints, confidence)
first_s = time.perf_counter() - start
assert out.mask[:, 5].all() and np.isfinite(out.joints).all()
assert (out.joints[~out.mask] == joints[~out.mask]).all()
maps = np.zeros((1, 21, 64, 64), np.float32)
maps[:, :, 20, 30] = 1
assert np.allclose(port_deploy.decode(maps).joints, [30, 20], atol=1e-3)
from pathlib import Path
from port_deploy.backends import native
kernels = list((Path(native.core().__file__).parent / "layers").glob("port_line_*.ptx"))
assert len(kernels) == (12 if native.core().cuda_info()["compiled"] else 0), kernels
assert not [m for m in ("torch", "onnx", "matplotlib", "scipy") if m in sys.modules]
print(f"{refiner.backend}; import {import_s * 1e3:.0f} ms, load and first refine {first_s * 1e3:.1f} ms")
"""


def main() -> int:
    """Exit code 0 if the newest wheel of the folder works."""
    wheels = sorted(Path(sys.argv[1]).glob("*.whl"), key=lambda p: p.stat().st_mtime)
    if not wheels:
        print(f"error: no wheel in {sys.argv[1]}: run make wheel", file=sys.stderr)
        return 2
    wheel = wheels[-1].resolve()
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size / 2**20:.1f} MiB")
    if size > MAX_WHEEL_BYTES:
        print(f"error: the wheel is larger than {MAX_WHEEL_BYTES >> 20} MiB", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        venv.create(Path(folder) / "venv", with_pip=True)
        python = Path(folder) / "venv" / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True, cwd=folder)
        bare = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        bare["PATH"] = str(python.parent)
        subprocess.run([python, "-c", USE], check=True, cwd=folder, env=bare)
        subprocess.run([python.parent / "port-info"], check=True, cwd=folder, env=bare)
    return 0


if __name__ == "__main__":
    sys.exit(main())
