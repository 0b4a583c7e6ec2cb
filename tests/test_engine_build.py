# SPDX-License-Identifier: Apache-2.0
"""port-export --trt from the command line, with real TensorRT-RTX builds of a small graph: cache, disk, two at once."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from port_deploy.cli.export import main
from port_deploy.export import engine_artefact, engine_cache, package, to_engine
from port_deploy.sidecar import read_sidecar

pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module")
def onnx(small_onnx: Path) -> Path:
    return small_onnx / "joints" / "m.onnx"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


def arguments(onnx: Path, out: Path, *more: str) -> list[str]:
    return [str(onnx), "-o", str(out), "--trt", "--tensorrt", "tensorrt-rtx", "--batch", "1,2,4", *more]


def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the real builds."""
    counted: list[int] = []
    build = to_engine._build

    def count(*given: object) -> object:
        counted.append(1)
        return build(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(to_engine, "_build", count)
    return counted


def test_the_second_time_it_comes_from_the_cache(
    onnx: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = builds(monkeypatch)
    assert main(arguments(onnx, tmp_path / "a")) == 0
    assert "taken from the engine cache" not in capsys.readouterr().out
    assert main(arguments(onnx, tmp_path / "b")) == 0
    assert "taken from the engine cache" in capsys.readouterr().out
    assert (tmp_path / "a" / "m.engine").read_bytes() == (tmp_path / "b" / "m.engine").read_bytes()
    assert len(counted) == 1
    (entry,) = cache.iterdir()
    (entry / engine_cache.ENGINE).write_bytes(b"damaged")
    assert main(arguments(onnx, tmp_path / "c")) == 0  # built again, and the entry is whole again
    assert "is damaged (its hash is another): it is built again" in capsys.readouterr().err
    assert main(arguments(onnx, tmp_path / "d")) == 0
    assert len(counted) == 2
    assert main(arguments(onnx, tmp_path / "e", "--no-cache")) == 0
    assert main(arguments(onnx, tmp_path / "f", "--workspace", "512M")) == 0  # another engine
    assert len(counted) == 4
    assert len([*cache.iterdir()]) == 2


def test_two_commands_at_once(onnx: Path, tmp_path: Path, cache: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "import sys; from port_deploy.cli.export import main; sys.exit(main(sys.argv[1:]))",
    ]
    running = [
        subprocess.Popen([*command, *arguments(onnx, tmp_path / name)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for name in "ab"
    ]
    for process in running:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    first, second = ((tmp_path / name / "m.engine").read_bytes() for name in "ab")
    assert first == second
    assert [p.name.startswith(".") for p in cache.iterdir()] == [False]


def test_a_disk_that_fills_up(
    onnx: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the cache it costs only the cache; in the output the command ends, and nothing is left."""

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(engine_cache.os, "fsync", full)
        assert main(arguments(onnx, tmp_path / "a")) == 0
    assert "the engine was not kept in" in capsys.readouterr().err
    assert read_sidecar(tmp_path / "a" / "m.engine", "engine").size_bytes > 10_000
    assert [*cache.iterdir()] == []
    write_engine = engine_artefact.write_engine

    def on_full_disk(*given: object) -> object:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", lambda self, data: full(0))
            return write_engine(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(package, "write_engine", on_full_disk)
        assert main(arguments(onnx, tmp_path / "b")) == 2
    captured = capsys.readouterr()
    assert "No space left on device: free space" in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "b").exists()
    assert len([*cache.iterdir()]) == 1  # the build itself was good, and is kept


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--workspace", "1M"], "could not build the engine: .*workspace.*: give it more with --workspace 2G"),
        (["--workspace", "much"], "argument --workspace: invalid size such as 512M or 2G value: 'much'"),
        (["--hardware-compat", "ampere+"], "has no --hardware-compat: name the GPUs with --target"),
        (["--version-compat"], "has no --version-compat: keep the ONNX beside the engine"),
        (["--timing-cache", "times"], "there is no --timing-cache"),
        (["--target", "sm_42"], "cannot build for sm_42: use sm_75"),
        (["--target", "8.9"], "expected targets as sm_89, got '8.9'"),
    ],
)
def test_what_cannot_be_built_is_one_line_and_leaves_nothing(
    onnx: Path, tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    import re

    assert main(arguments(onnx, tmp_path / "out", *more)) == 2
    (line,) = [text for text in capfd.readouterr().err.splitlines() if text.startswith("error: ")]
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()
    assert not cache.exists() or [*cache.iterdir()] == []


def test_the_sidecar_tells_how_it_was_built(
    onnx: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(onnx, tmp_path, "--target", "sm_86", "--workspace", "256M", "--json")) == 0
    (artefact,) = json.loads(capsys.readouterr().out)["artefacts"]
    engine = json.loads(Path(artefact["sidecar"]).read_text())["engine"]
    assert engine["compute_capabilities"] == ["8.6"]
    assert engine["workspace_bytes"] == 256 << 20
    assert engine["onnx_sha256"] == read_sidecar(onnx, "onnx").sha256
    assert (engine["stripped"], engine["refittable"], engine["version_compat"]) == (False, False, False)
