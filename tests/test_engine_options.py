# SPDX-License-Identifier: Apache-2.0
"""What is said to TensorRT 10 and 11 for each option, checked on a stand-in that keeps every call.

The stand-in (fake_tensorrt.py) has the names of NVIDIA's bindings of that version; it shows what is asked for, not what
TensorRT makes of it. TensorRT-RTX is asked for real, here and in test_engine_build.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import random_model
from fake_tensorrt import fake_tensorrt

from port_deploy.backends import cuda_memory
from port_deploy.errors import ExportError, InputError
from port_deploy.export import to_engine
from port_deploy.export.engine_options import BuildOptions, check_supported, parse_size
from port_deploy.export.to_engine import build_engine
from port_deploy.sidecar import Sidecar

SOURCE = Sidecar("onnx", "m.onnx", "0", 1, random_model("soft", layers=1, head_dim=16).spec, "joints", "fp16")


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Build with a stand-in of a version; returns what came back and the module with its log."""

    def run(version: str, plan: bytes | None = b"plan", accepts: Any = None, **options: Any) -> Any:
        library = fake_tensorrt(version, plan, accepts=accepts or {})
        monkeypatch.setenv("PORT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(to_engine, "import_library", lambda name: library)
        monkeypatch.setattr(to_engine, "without_initializer", lambda model, *names: model)
        for name, value in (("has_bindings", True), ("device_name", "NVIDIA T4"), ("compute_capability", "7.5")):
            monkeypatch.setattr(cuda_memory, name, lambda *_, value=value: value)
        monkeypatch.setattr(cuda_memory, "select_device", lambda device: library.log.append(("device", device)))
        chosen = BuildOptions(flavour="tensorrt", **({"cache": False} | options))
        return build_engine(b"onnx", SOURCE, (64, 64), (1, 4, 16), chosen), library

    return run


def test_the_sidecar_says_what_was_asked_for(build: Any) -> None:
    built, library = build("10.9.0", hardware_compat="ampere+", version_compat=True, workspace_bytes=1 << 20)
    assert built.data == b"plan"
    info = built.info
    assert (info.version, info.device, info.compute_capabilities) == ("10.9.0", "NVIDIA T4", ("7.5",))
    assert (info.hardware_compat, info.version_compat, info.workspace_bytes) == ("ampere+", True, 1 << 20)
    assert (info.stripped, info.refittable) == (False, False)
    assert len(info.onnx_sha256) == 64
    log = library.log
    assert ("set", "hardware_compatibility_level", "AMPERE_PLUS") in log
    assert ("pool", "WORKSPACE", 1 << 20) in log
    assert log.of("clear_flag") == ["TF32"]
    assert log.of("profile") == [
        {"joints": ((1, 21, 2), (4, 21, 2), (16, 21, 2)), "confidence": ((1, 21), (4, 21), (16, 21))}
    ]


@pytest.mark.parametrize(
    ("version", "network", "always"),
    [("10.0.1", 1 << 1, []), ("10.9.0", 1 << 1, []), ("11.4.0", 1 << 0, ["STRICT_NANS"])],
)
@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, []),
        ({"version_compat": True}, ["VERSION_COMPATIBLE"]),
        ({"strip_weights": True}, ["STRIP_PLAN", "REFIT_IDENTICAL"]),
        ({"refit": True}, ["REFIT"]),
        ({"strip_weights": True, "refit": True}, ["STRIP_PLAN", "REFIT"]),
    ],
)
def test_each_version_gets_the_flags_it_has(
    build: Any, version: str, network: int, always: list[str], options: dict[str, bool], flags: list[str]
) -> None:
    _, library = build(version, **options)
    assert library.log.of("network") == [network]  # strongly typed: the precision is the graph's
    assert library.log.of("set_flag") == [*always, *flags]
    names = [call[0] for call in library.log]
    assert names.index("device") < names.index("parse") < names.index("profile") < names.index("build")


def test_a_level_that_an_older_version_lacks(build: Any) -> None:
    with pytest.raises(InputError, match=r"tensorrt 10\.0\.1 has no hardware compatibility same-cc: use ampere\+"):
        build("10.0.1", hardware_compat="same-cc")
    build("10.9.0", hardware_compat="same-cc")


def test_a_refusal_names_the_reason_and_the_version(build: Any) -> None:
    with pytest.raises(ExportError, match=r"tensorrt 11\.4\.0 could not build the engine: the reason of the library"):
        build("11.4.0", plan=None)


def test_the_timing_cache_is_read_and_grows(build: Any, tmp_path: Path) -> None:
    file = tmp_path / "times"
    _, library = build("10.9.0", timing_cache=file)
    assert library.log.of("timing") == [(b"", False, True)]
    assert file.read_bytes() == b"+measured"
    _, library = build("10.9.0", timing_cache=file)
    assert library.log.of("timing") == [(b"+measured", False, True)]
    assert library.log.of("combine") == [b"+measured"]  # what another build may have written meanwhile
    assert file.read_bytes() == b"+measured+measured"


def test_a_timing_cache_of_another_gpu_is_started_anew(build: Any, tmp_path: Path) -> None:
    file = tmp_path / "times"
    file.write_bytes(b"foreign")
    _, library = build("10.9.0", timing_cache=file, accepts={b"foreign": False})
    assert library.log.of("timing") == [(b"foreign", False, False), (b"", False, True)]


def test_times_are_kept_beside_the_engine_cache_unless_caches_are_off(build: Any, tmp_path: Path) -> None:
    build("10.9.0")
    assert not (tmp_path / "cache").exists()
    built, _ = build("10.9.0", cache=True)
    assert not built.cached
    assert [p.name for p in (tmp_path / "cache" / "timing").iterdir()] == ["10.9.0-NVIDIA-T4.cache"]
    again, library = build("10.9.0", cache=True)
    assert again == (b"plan", built.info, True)
    assert library.log.of("build") == []
    other, library = build("11.4.0", cache=True)
    assert not other.cached


def test_a_timing_cache_that_cannot_be_written_is_said_before_the_build(build: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write .*times"):
        build("10.9.0", timing_cache=tmp_path / "file" / "times")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"hardware_compat": "ampere+"}, InputError, "has no --hardware-compat: name the GPUs with --target"),
        ({"version_compat": True}, InputError, "has no --version-compat: keep the ONNX beside the engine"),
        ({"timing_cache": Path("x")}, InputError, "there is no --timing-cache.*runtime_cache"),
        ({"refit": True}, ExportError, "refittable and stripped engines only where a GPU is"),
        ({"strip_weights": True}, ExportError, "refittable and stripped engines only where a GPU is"),
    ],
)
def test_what_rtx_lacks_is_said_before_the_build(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(cuda_memory, "device_state", lambda: "no NVIDIA GPU")
    with pytest.raises(error, match=f"tensorrt-rtx .* {message}"):
        check_supported("tensorrt-rtx", rtx, BuildOptions(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flavour": "cudnn"}, "unknown TensorRT 'cudnn'"),
        ({"hardware_compat": "all"}, r"unknown hardware compatibility 'all': use ampere\+ or same-cc"),
        ({"workspace_bytes": 0}, "expected a workspace above 0"),
        ({"targets": ("8.9",)}, "expected targets as sm_89, got '8.9'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BuildOptions(**options)


def test_targets_are_for_rtx() -> None:
    with pytest.raises(InputError, match="builds for the GPU that it runs on: leave out --target"):
        check_supported("tensorrt", fake_tensorrt(), BuildOptions(targets=("sm_89",)))


@pytest.mark.parametrize(("text", "size"), [("512M", 512 << 20), ("2g", 2 << 30), ("1.5GiB", 3 << 29), ("4096", 4096)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "-1M", "1T", "0x10"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size such as 512M"):
        parse_size(text)
