# SPDX-License-Identifier: Apache-2.0
"""The C++ package as its users meet it: installed, found by find_package, linked into csrc/examples/refine.cpp, run."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import random_model

ROOT = Path(__file__).resolve().parents[1]
TOOLS = {"cmake": ("cmake",), "a C++ compiler": ("c++", "g++", "clang++")}


def run(*command: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == code, f"{command}: exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


def build(source: Path, folder: Path, options: Sequence[str]) -> None:
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run("cmake", "-S", source, "-B", folder, *generator, "-DCMAKE_BUILD_TYPE=Release", *options)
    run("cmake", "--build", folder, "--parallel", "2")


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed."""
    for what, names in TOOLS.items():
        if not any(map(shutil.which, names)):
            pytest.skip(f"no {what} here: the C++ package cannot be built")
    folder = tmp_path_factory.mktemp("cpp")
    build(ROOT, folder / "build", ["-DPORT_CUDA=OFF", "-DPORT_PYTHON=OFF", "-DPORT_TESTS=OFF"])
    run("cmake", "--install", folder / "build", "--prefix", folder / "prefix")
    return folder / "prefix"


@pytest.fixture(scope="module")
def example(prefix: Path) -> Path:
    """The example, built against the installed package."""
    folder = prefix.parent / "example"
    build(ROOT / "csrc" / "examples", folder, [f"-DCMAKE_PREFIX_PATH={prefix}"])
    return folder / "refine"


def test_the_installed_header_stands_alone(prefix: Path) -> None:
    headers = [p for p in (prefix / "include").rglob("*") if p.is_file()]
    assert {p.name for p in headers} == {"port.hpp", "cuda.hpp", "engine_layer.hpp"}
    for header in headers:
        text = header.read_text("utf-8").lower()
        for foreign in ("python.h", "torch", "dlpack", "nvinfer", "cuda_runtime"):
            assert foreign not in text


def test_an_incompatible_version_is_refused(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(x LANGUAGES CXX)\nfind_package(port_deploy 99 REQUIRED)\n"
    )
    found = run("cmake", "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={prefix}", code=1)
    assert "99" in found.stderr


def test_the_graph_example_says_what_it_lacks(example: Path, tmp_path: Path) -> None:
    capture = example.with_name("capture")
    if not capture.exists():
        pytest.skip("no CUDA toolkit here: the example that captures a graph was not built")
    (tmp_path / "m.safetensors").write_bytes(random_model("soft").data)
    assert "PORT_CUDA=ON" in run(capture, tmp_path / "m.safetensors", code=2).stderr


@pytest.mark.parametrize("kind", ["soft", "paper"])
def test_the_example_agrees_with_the_oracle(example: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("torch", reason="the oracle is PyTorch in float64")
    from port_deploy.backends.torch_ import oracle

    model = random_model(kind, frame="visible")
    n = model.spec.joints
    rng = np.random.default_rng(3)
    joints = rng.uniform(20, 230, (5, n, 2)).astype(np.float32)
    confidence = rng.uniform(0.35, 1, (5, n)).astype(np.float32)
    confidence[:, ::5] = 0.1
    confidence[4] = 0.0  # too few visible joints: returned as they are
    (tmp_path / "m.safetensors").write_bytes(model.data)
    rows = np.concatenate([joints, confidence[..., None]], -1).reshape(-1, 3)
    np.savetxt(tmp_path / "poses.txt", rows, fmt="%.9g")

    printed = run(example, tmp_path / "m.safetensors", tmp_path / "poses.txt").stdout.split("\n")[:-1]
    words = [line.split() for line in printed]
    got = np.array([[float(w[4]), float(w[5])] for w in words]).reshape(5, n, 2)
    mask = np.array([w[6] == "rebuilt" for w in words]).reshape(5, n)

    want = oracle(model).compute(joints, confidence, model.spec.threshold)
    np.testing.assert_array_equal(mask, want[-1])
    assert mask[:4].any()
    assert not mask[4].any()
    np.testing.assert_allclose(got, want[0], rtol=0, atol=1e-3)


def test_errors_are_one_line_and_code_2(example: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "m.safetensors").write_bytes(random_model().data)
    (tmp_path / "poses.txt").write_text("1 2 0.5\n")
    cases = {
        "does not fit the file": ("broken.safetensors", "poses.txt"),
        "cannot open model": ("none.safetensors", "poses.txt"),
        "expected a multiple of 21": ("m.safetensors", "poses.txt"),
    }
    for part, names in cases.items():
        message = run(example, *(tmp_path / name for name in names), code=2).stderr
        assert part in message
        assert message.count("\n") == 1
