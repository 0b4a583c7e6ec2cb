# SPDX-License-Identifier: Apache-2.0
"""csrc/cmake/check_resources.py and keep_log.sh: what CI holds of the compiled kernels. Needs no nvcc."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "csrc" / "cmake"
KERNEL = "_ZN4port7kernels11line_kernelINS_6device4HalfELi3ELi1ELb0ELi2EEEvNS0_10LineParamsE"


def report(registers: int, spilled: int, kernel: str = KERNEL) -> str:
    return (
        f"ptxas info    : Compiling entry function '{kernel}' for 'sm_90a'\n"
        f"ptxas info    : Function properties for {kernel}\n"
        f"    {spilled} bytes stack frame, {spilled} bytes spill stores, 0 bytes spill loads\n"
        f"ptxas info    : Used {registers} registers, used 1 barriers\n"
    )


def check(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "check_resources.py"), str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_kernel_within_its_limits_passes(tmp_path: Path) -> None:
    (tmp_path / "a.cu.o.log").write_text(report(128, 0))
    done = check(tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row == {
        "kernel": "line Half 24 joints block",
        "arch": "sm_90a",
        "registers": 128,
        "limit": 128,
        "spilled": 0,
    }


def test_spills_and_registers_beyond_the_limit_fail(tmp_path: Path) -> None:
    (tmp_path / "a.cu.o.log").write_text(report(128, 16))
    done = check(tmp_path)
    assert done.returncode == 1
    assert "line Half 24 joints block for sm_90a: expected no spills, got 16 bytes" in done.stderr
    (tmp_path / "a.cu.o.log").write_text(report(129, 0))
    assert "expected at most 128 registers, got 129" in check(tmp_path).stderr


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("_ZN4port7kernels13decode_kernelILb0EEEvNS0_12DecodeParamsE", "decode warp per map"),
        ("_ZN4port7kernels11peak_kernelENS0_10PeakParamsE", "decode peak"),
        ("_ZN4port7kernels12simcc_kernelENS0_11SimccParamsE", "decode simcc"),
    ],
)
def test_the_decodes_leave_room_for_four_blocks(tmp_path: Path, symbol: str, name: str) -> None:
    (tmp_path / "a.cu.o.log").write_text(report(128, 0) + report(129, 0, symbol))
    done = check(tmp_path)
    assert done.returncode == 1
    assert f"{name} for sm_90a: expected at most 128 registers, got 129" in done.stderr


def test_nothing_to_check_is_an_error(tmp_path: Path) -> None:
    done = check(tmp_path)
    assert done.returncode == 2
    assert "PORT_CUDA=ON" in done.stderr


def test_the_launcher_keeps_the_report_and_the_exit_code(tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'ptxas info    : Used 7 registers' >&2\necho 'a warning' >&2\nexit 3\n")
    compiler.chmod(0o755)
    command = [str(SCRIPTS / "keep_log.sh"), str(compiler), "-c", "x.cu", "-o", str(tmp_path / "x.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr == "a warning\n"
    assert "Used 7 registers" in (tmp_path / "x.o.log").read_text()
