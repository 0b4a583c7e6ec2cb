# SPDX-License-Identifier: Apache-2.0
"""Sidecars: the way there and back, and every way in which one does not belong to its artefact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import random_model

from port_deploy.engine_info import EngineInfo
from port_deploy.errors import InputError, ModelFileError
from port_deploy.files import sha256
from port_deploy.sidecar import Sidecar, read_sidecar, sidecar_path, write_sidecar

SPEC = random_model("soft", layers=1, threshold=0.25).spec


def make_artefact(folder: Path, **changes: Any) -> Path:
    path = folder / "m.engine"
    path.write_bytes(b"an engine")
    values: dict[str, Any] = {
        "kind": "engine",
        "file": path.name,
        "sha256": sha256(path),
        "size_bytes": 9,
        "spec": SPEC,
        "input": "heatmaps",
        "precision": "fp16",
        "heatmap_size": (64, 48),
        "batch": (1, 8, 32),
        "tools": {"torch": "2"},
        "engine": EngineInfo("tensorrt-rtx", "1.2", ("8.9", "12.0")),
    }
    write_sidecar(path, Sidecar(**{**values, **changes}))
    return path


def test_there_and_back(tmp_path: Path) -> None:
    path = make_artefact(tmp_path)
    sidecar = read_sidecar(path, "engine")
    assert Sidecar.from_json(json.loads(json.dumps(sidecar.to_json()))) == sidecar
    assert sidecar.spec == SPEC
    assert sidecar.engine == EngineInfo("tensorrt-rtx", "1.2", ("8.9", "12.0"))
    assert sidecar_path(path).name == "m.engine.json"


def test_it_says_what_an_integrator_must_know(tmp_path: Path) -> None:
    data = json.loads(sidecar_path(make_artefact(tmp_path)).read_text())
    assert data["threshold"] == 0.25
    assert data["inputs"][0] == {"name": "heatmaps", "dtype": "float32", "shape": ["B", 21, 64, 48]}
    assert [o["name"] for o in data["outputs"]] == ["joints", "confidence", "mask"]
    assert data["outputs"][2]["dtype"] == "bool"
    assert data["batch"] == {"min": 1, "opt": 8, "max": 32}
    assert data["specification"]["skeleton"]["names"] == list(SPEC.skeleton.names)


def test_a_missing_artefact_or_sidecar(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no artefact"):
        read_sidecar(tmp_path / "none.onnx", "onnx")
    path = make_artefact(tmp_path)
    sidecar_path(path).unlink()
    with pytest.raises(ModelFileError, match=r"m\.engine\.json beside .* found none: copy both files"):
        read_sidecar(path, "engine")


def test_another_file_of_the_same_name(tmp_path: Path) -> None:
    path = make_artefact(tmp_path)
    path.write_bytes(b"AN ENGINE")
    with pytest.raises(ModelFileError, match=r"is not the file that m\.engine\.json describes"):
        read_sidecar(path, "engine")
    path.write_bytes(b"cut")
    with pytest.raises(ModelFileError, match=r"3 bytes.* is not the file"):
        read_sidecar(path, "engine")


def test_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="expected an artefact of kind 'onnx', got 'engine'"):
        read_sidecar(make_artefact(tmp_path), "onnx")


def test_an_engine_must_say_what_built_it(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="lacks engine or batch"):
        read_sidecar(make_artefact(tmp_path, engine=None), "engine")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"x"', "[" * 100_000, "\x00", '{"sidecar_version": 1}'])
def test_what_is_no_sidecar(tmp_path: Path, text: str) -> None:
    path = make_artefact(tmp_path)
    sidecar_path(path).write_text(text)
    with pytest.raises(ModelFileError) as caught:
        read_sidecar(path, "engine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sidecar_version", 99),
        ("sidecar_version", "1"),
        ("kind", "exe"),
        ("kind", ["engine"]),
        ("file", 3),
        ("sha256", None),
        ("size_bytes", -1),
        ("size_bytes", 1e9),
        ("size_bytes", True),
        ("input", "video"),
        ("precision", "fp8"),
        ("heatmap_size", [64]),
        ("heatmap_size", "64,64"),
        ("batch", [1, 2, 3]),
        ("batch", {"min": 1}),
        ("engine", {"flavour": "other", "version": "1", "compute_capabilities": []}),
        ("engine", {"flavour": "tensorrt", "version": 1, "compute_capabilities": []}),
        ("tools", []),
        ("platform", None),
        ("verification", 3),
        ("golden", 7),
        ("specification", None),
        ("specification", {"format_version": 99}),
    ],
)
def test_hostile_fields(tmp_path: Path, field: str, value: Any) -> None:
    path = make_artefact(tmp_path)
    data = json.loads(sidecar_path(path).read_text())
    data[field] = value
    sidecar_path(path).write_text(json.dumps(data))
    with pytest.raises(ModelFileError) as caught:
        read_sidecar(path, "engine")
    assert "\n" not in str(caught.value)


def test_a_huge_sidecar_is_not_read(tmp_path: Path) -> None:
    path = make_artefact(tmp_path)
    sidecar_path(path).write_bytes(b" " * (5 << 20))
    with pytest.raises(ModelFileError, match="larger than 4 MiB"):
        read_sidecar(path, "engine")


def test_a_graph_with_a_detector_describes_it(tmp_path: Path) -> None:
    from test_detector_info import INFO

    with pytest.raises(ModelFileError, match="input image describes its detector"):
        read_sidecar(make_artefact(tmp_path, input="image"), "engine")
    path = make_artefact(tmp_path, input="image", detector=INFO, heatmap_size=None)
    sidecar = read_sidecar(path, "engine")
    assert sidecar.detector is not None
    assert sidecar.detector.to_json() == INFO.to_json()
    data = json.loads(sidecar_path(path).read_text())
    assert data["inputs"][0] == {"name": "image", "dtype": "float32", "shape": ["B", 3, 96, 64]}
    assert [i["name"] for i in data["inputs"]] == ["image", "affine", "threshold"]
