# SPDX-License-Identifier: Apache-2.0
"""Engines that do not fit: refused, built again (by TensorRT-RTX, for real), or replaced by the model."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL, gpu_present, random_model

from port_deploy import BackendUnavailableError, InputError, Refiner
from port_deploy.backends import cuda_memory, onnxruntime_, tensorrt_
from port_deploy.errors import ModelFileError
from port_deploy.export import engine_cache
from port_deploy.export.mismatch import rebuild
from port_deploy.sidecar import read_sidecar, sidecar_path
from port_deploy.weights import save_model

MODEL = random_model(**SMALL)
RNG = np.random.default_rng(0)
JOINTS, CONFIDENCE = RNG.uniform(0, 200, (5, 21, 2)).astype("f4"), RNG.random((5, 21)).astype("f4")

without_gpu = pytest.mark.skipif(gpu_present(), reason="says what happens without a GPU")


@pytest.fixture(scope="module")
def built(small_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """m.safetensors, m.onnx and m.engine of one model."""
    pytest.importorskip("tensorrt_rtx")
    from port_deploy.export import ExportOptions, export_model
    from port_deploy.export.engine_options import BuildOptions

    place = Path(shutil.copytree(small_onnx / "joints", tmp_path_factory.mktemp("mismatch") / "m"))
    shutil.copy(small_onnx / "m.safetensors", place)
    build = BuildOptions("tensorrt-rtx", ("sm_89",))
    export_model(place / "m.onnx", place, ExportOptions(("engine",), batch=(1, 2, 8), build=build))
    return place


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "deployed"))


def of_another_version(folder: Path) -> None:
    beside = sidecar_path(folder / "m.engine")
    data = json.loads(beside.read_text())
    data["engine"]["version"] = "0.9"
    beside.write_text(json.dumps(data))


@without_gpu
def test_native_runs_the_model_file_and_says_so(folder: Path) -> None:
    with pytest.warns(RuntimeWarning, match=r"m\.engine is not what runs: native-cpu does, from .*m\.safetensors"):
        refiner = Refiner.load(folder / "m.engine", on_mismatch="native")
    assert refiner.backend.name == "native-cpu"
    assert "in place of the engine, because" in str(refiner.backend)
    expected = Refiner.load(MODEL).refine(JOINTS, CONFIDENCE)
    np.testing.assert_array_equal(refiner.refine(JOINTS, CONFIDENCE).joints, expected.joints)


@without_gpu
def test_native_wants_the_same_model(folder: Path) -> None:
    other = random_model("soft", layers=1, head_dim=16, threshold=0.7)
    save_model(folder / "m.safetensors", other.spec, other.tensors)
    with pytest.raises(BackendUnavailableError, match=r"could not be replaced: no m\.safetensors of the same model"):
        Refiner.load(folder / "m.engine", on_mismatch="native")


@without_gpu
def test_raise_is_the_default_and_rebuild_does_not_invent_a_gpu(folder: Path) -> None:
    with pytest.raises(BackendUnavailableError, match="no NVIDIA GPU"):
        Refiner.load(folder / "m.engine")
    with pytest.raises(BackendUnavailableError, match="building it again does not help without a GPU"):
        Refiner.load(folder / "m.engine", on_mismatch="rebuild")


def test_words_and_files_that_make_no_sense(folder: Path) -> None:
    with pytest.raises(InputError, match="unknown on_mismatch 'ignore': use one of raise, rebuild, native"):
        Refiner.load(folder / "m.engine", on_mismatch="ignore")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"on_mismatch= is for \.engine files"):
        Refiner.load("hand21", on_mismatch="native")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> list[bytes]:
    """A GPU as far as checks go; what would run an engine runs the ONNX it was built from. Holds what was opened."""
    opened: list[bytes] = []

    def run_onnx(path: Path, sidecar: Any, data: bytes, **options: Any) -> Any:
        opened.append(data)
        return onnxruntime_.load(folder / "m.onnx")

    monkeypatch.setenv("PORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cuda_memory, "device_state", lambda: None)
    monkeypatch.setattr(cuda_memory, "has_bindings", lambda: True)
    monkeypatch.setattr(cuda_memory, "compute_capability", lambda device=0: "8.9")
    monkeypatch.setattr(tensorrt_, "open_engine", run_onnx)
    return opened


@pytest.mark.parametrize("what", ["another version", "another file", "another sidecar"])
def test_rebuild_builds_from_the_onnx_once_and_verifies(
    folder: Path, gpu: list[bytes], what: str, tmp_path: Path
) -> None:
    path = folder / "m.engine"
    if what == "another version":
        of_another_version(folder)
    elif what == "another file":
        path.write_bytes(b"not what was built")
    else:
        data = json.loads(sidecar_path(path).read_text())
        data["sha256"] = "0" * 64
        sidecar_path(path).write_text(json.dumps(data))
    real = tensorrt_.open_engine
    before = path.read_bytes()

    def as_loaded(path: Path, sidecar: Any, data: bytes, **options: Any) -> Any:
        tensorrt_.check_runs_here(path, sidecar, tensorrt_.import_library(sidecar.engine.flavour).__version__)
        return real(path, sidecar, data, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorrt_, "open_engine", as_loaded)
        refiner = Refiner.load(path, backend="tensorrt-rtx", on_mismatch="rebuild")
        assert "built again from the ONNX, because" in str(refiner.backend)
        Refiner.load(path, backend="tensorrt-rtx", on_mismatch="rebuild")
    assert len({*gpu}) == 1
    assert len(gpu[0]) > 10_000
    assert path.read_bytes() == before  # the deployed folder is left as it was
    (entry,) = (tmp_path / "cache" / "engines").iterdir()
    assert (entry / engine_cache.ENGINE).read_bytes() == gpu[0]
    np.testing.assert_allclose(
        refiner.refine(JOINTS, CONFIDENCE).joints, Refiner.load(MODEL).refine(JOINTS, CONFIDENCE).joints, atol=1e-3
    )


def test_rebuild_wants_the_onnx_that_it_was_built_from(folder: Path) -> None:
    sidecar, data = rebuild(folder / "m.engine")
    assert sidecar.engine is not None
    assert (sidecar.batch, sidecar.size_bytes) == ((1, 2, 8), len(data))
    assert sidecar.engine.onnx_sha256 == read_sidecar(folder / "m.onnx", "onnx").sha256
    before = json.loads(sidecar_path(folder / "m.engine").read_text())
    before["engine"]["onnx_sha256"] = "ab"
    sidecar_path(folder / "m.engine").write_text(json.dumps(before))
    with pytest.raises(ModelFileError, match=r"m\.onnx is not the ONNX that m\.engine was built from"):
        rebuild(folder / "m.engine")
    (folder / "m.onnx").unlink()
    with pytest.raises(ModelFileError, match="keep the ONNX beside the engine"):
        rebuild(folder / "m.engine")


def test_an_engine_that_fits_is_taken_as_it_is(folder: Path, gpu: list[bytes]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refiner = Refiner.load(folder / "m.engine", backend="tensorrt-rtx", on_mismatch="rebuild")
    assert refiner.backend.reason == "asked for"
    assert gpu == [(folder / "m.engine").read_bytes()]
