# SPDX-License-Identifier: Apache-2.0
"""Triton repositories: read with Triton's own schema; the served graph run; versions; what cannot be served."""

from __future__ import annotations

import importlib.util
import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL, random_model

from port_deploy import Refiner
from port_deploy.backends import cuda_memory, onnxruntime_
from port_deploy.cli.export import main
from port_deploy.errors import ExportError, InputError
from port_deploy.export import ExportOptions, to_engine, triton
from port_deploy.export.triton import export_triton
from port_deploy.export.triton_config import TritonOptions, to_pbtxt

for library in ("torch", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)

MODEL = random_model(**SMALL)
CLIENT = Path(__file__).resolve().parents[1] / "benchmarks" / "examples" / "triton_client.py"
ONNX = TritonOptions("onnxruntime")


def schema() -> Any:
    """Triton's ModelConfig: the client's generated file, loaded by itself, since its package wants grpc."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("tritonclient, which has Triton's schema, is not installed")
    place = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_config(folder: Path) -> Any:
    from google.protobuf import text_format

    return text_format.Parse((folder / "config.pbtxt").read_text(), schema().ModelConfig())


@pytest.fixture(scope="module")
def artefacts(small_onnx: Path) -> Path:
    return small_onnx


@pytest.mark.parametrize("kind", ["joints", "heatmaps"])
def test_the_repository_is_one_by_tritons_schema(artefacts: Path, tmp_path: Path, kind: str) -> None:
    options = TritonOptions("onnxruntime", instances=2, kind="cpu", queue_delay_us=500)
    done = export_triton(artefacts / kind / "m.onnx", tmp_path, ExportOptions(("engine",), batch=(1, 4, 32)), options)
    assert (done.folder, done.version, done.backend) == (tmp_path / "m", 1, "onnxruntime")
    assert sorted(p.name for p in (tmp_path / "m" / "1").iterdir()) == ["model.onnx", "port_deploy.json"]
    config, types = read_config(done.folder), schema()
    assert (config.name, config.backend, config.max_batch_size) == ("m", "onnxruntime", 32)
    assert config.default_model_filename == "model.onnx"
    n = MODEL.spec.joints
    inputs = {"joints": [n, 2], "confidence": [n]} if kind == "joints" else {"heatmaps": [n, -1, -1], "affine": [2, 3]}
    assert {i.name: list(i.dims) for i in config.input} == inputs
    assert {i.data_type for i in config.input} == {types.DataType.TYPE_FP32}
    tail = "_out" if kind == "joints" else ""
    assert {o.name: list(o.dims) for o in config.output} == {
        f"joints{tail}": [n, 2],
        f"confidence{tail}": [n],
        "mask": [n],
    }
    assert config.output[2].data_type == types.DataType.TYPE_BOOL
    batching = config.dynamic_batching
    assert (list(batching.preferred_batch_size), batching.max_queue_delay_microseconds) == ([4], 500)
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, types.ModelInstanceGroup.KIND_CPU)
    assert config.version_policy.latest.num_versions == 1
    assert [w.batch_size for w in config.model_warmup] == [1, 4]
    for warm in config.model_warmup:
        assert set(warm.inputs) == set(inputs)
        assert all(-1 not in value.dims and value.zero_data for value in warm.inputs.values())
    assert config.parameters["threshold"].string_value == f"{MODEL.spec.threshold:g}"


def test_the_served_graph_takes_what_the_configuration_says(artefacts: Path, tmp_path: Path) -> None:
    done = export_triton(artefacts / "joints" / "m.onnx", tmp_path, ExportOptions(("engine",)), ONNX)
    served = (done.folder / "1" / "model.onnx").read_bytes()
    import onnxruntime

    session = onnxruntime.InferenceSession(served)
    config = read_config(done.folder)
    assert [i.name for i in session.get_inputs()] == [i.name for i in config.input]
    assert [o.name for o in session.get_outputs()] == [o.name for o in config.output]
    rng = np.random.default_rng(0)
    joints, confidence = rng.uniform(0, 200, (7, 21, 2)).astype("f4"), rng.random((7, 21)).astype("f4")
    names = [o.name for o in config.output]
    got = onnxruntime_.run_once(served, names, {"joints": joints, "confidence": confidence})
    expected = Refiner.load(MODEL).refine(joints, confidence)
    np.testing.assert_allclose(got[0], expected.joints, atol=1e-3)
    np.testing.assert_array_equal(got[2], expected.mask)


def test_the_next_export_is_the_next_version(artefacts: Path, tmp_path: Path) -> None:
    for version in (1, 2):
        done = export_triton(artefacts / "joints" / "m.onnx", tmp_path, ExportOptions(("engine",)), ONNX)
        assert done.version == version
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["1", "2", "config.pbtxt"]
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_failure_leaves_the_repository_as_it_was(
    artefacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        if path.name == "config.pbtxt":
            raise InputError(f"cannot write {path}")

    source = artefacts / "joints" / "m.onnx"
    with monkeypatch.context() as patch:
        patch.setattr(triton, "write_text", full)
        with pytest.raises(InputError, match="cannot write"):
            export_triton(source, tmp_path / "new", ExportOptions(("engine",)), ONNX)
    assert not (tmp_path / "new").exists()
    export_triton(source, tmp_path / "new", ExportOptions(("engine",)), ONNX)
    before = sorted(tmp_path.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(triton, "write_text", full)
        with pytest.raises(InputError, match="cannot write"):
            export_triton(source, tmp_path / "new", ExportOptions(("engine",)), ONNX)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_engine_for_triton(artefacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for TensorRT: what the builder is given, and the configuration of a plan."""
    from fake_tensorrt import fake_tensorrt

    library = fake_tensorrt("10.9.0")
    monkeypatch.setattr(to_engine, "import_library", lambda name: library)
    for name, value in (("has_bindings", True), ("device_name", "NVIDIA T4"), ("compute_capability", "7.5")):
        monkeypatch.setattr(cuda_memory, name, lambda *_, value=value: value)
    monkeypatch.setattr(cuda_memory, "select_device", lambda device: None)
    given: list[bytes] = []
    parse = to_engine.parse
    monkeypatch.setattr(to_engine, "parse", lambda *a: (given.append(a[3]), parse(*a))[1])
    done = export_triton(
        artefacts / "joints" / "m.onnx", tmp_path, ExportOptions(("engine",), batch=(1, 8, 16)), TritonOptions()
    )
    assert (done.backend, (done.folder / "1" / "model.plan").read_bytes()) == ("tensorrt", b"plan")
    assert done.note == "it needs a Triton whose TensorRT is 10.9.0, on NVIDIA T4"
    import onnx

    (graph,) = given
    assert [i.name for i in onnx.load_model_from_string(graph).graph.input] == ["joints", "confidence"]
    config = read_config(done.folder)
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("tensorrt", "model.plan", 16)
    cuda = config.optimization.cuda
    assert cuda.graphs
    assert [(g.batch_size, list(g.input["joints"].dim)) for g in cuda.graph_spec] == [(1, [21, 2]), (8, [21, 2])]
    told = json.loads((done.folder / "1" / "port_deploy.json").read_text())
    assert told["specification"]["name"] == MODEL.spec.name


def test_what_cannot_be_served(artefacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = artefacts / "joints" / "m.onnx"
    with pytest.raises(InputError, match=r"Triton fills batches from one request on: expected --batch 1,…"):
        export_triton(source, tmp_path, ExportOptions(("engine",), batch=(2, 4, 8)), ONNX)
    for options, message in (
        ({"backend": "pytorch"}, "unknown Triton backend 'pytorch'"),
        ({"backend": "tensorrt", "kind": "cpu"}, "TensorRT engines run on a GPU"),
        ({"instances": 0}, "expected 1 to 64 instances"),
        ({"queue_delay_us": -1}, "expected a queue delay"),
    ):
        with pytest.raises(InputError, match=message):
            TritonOptions(**options)
    monkeypatch.setattr(triton, "without_input", lambda model, name: shutil.copy and _spoiled(model))
    with pytest.raises(ExportError, match="answers otherwise than the verified one in joints_out"):
        export_triton(source, tmp_path, ExportOptions(("engine",)), ONNX)
    assert list(tmp_path.iterdir()) == []


def _spoiled(model: bytes) -> bytes:
    import onnx

    proto = onnx.load_model_from_string(model)
    largest = max(proto.graph.initializer, key=lambda i: int(np.prod(i.dims)))
    values = onnx.numpy_helper.to_array(largest).copy()
    values += 1
    largest.CopyFrom(onnx.numpy_helper.from_array(values, largest.name))
    return bytes(proto.SerializeToString())


def test_the_command(artefacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(artefacts / "joints" / "m.onnx"), "--triton", str(tmp_path / "r"), "--triton-kind", "cpu"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path / 'r' / 'm'}: version 1, backend onnxruntime (on the CPU)" in out
    assert "serve it: tritonserver --model-repository=" in out
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == 2
    assert main(["--triton", str(tmp_path / "s")]) == 2


def test_text_format() -> None:
    text = to_pbtxt({"name": 'a"b\\c', "n": 3, "yes": True, "many": [1, 2], "inner": {"x": 1}, "list": [{"y": "z"}]})
    assert text == 'name: "a\\"b\\\\c"\nn: 3\nyes: true\nmany: [1, 2]\ninner {\n  x: 1\n}\nlist {\n  y: "z"\n}\n'


def test_the_example_client_makes_requests_of_the_right_shape() -> None:
    make = runpy.run_path(str(CLIENT))["make_request"]
    metadata = {
        "inputs": [
            {"name": "heatmaps", "datatype": "FP32", "shape": ["-1", "21", "-1", "-1"]},
            {"name": "affine", "datatype": "FP32", "shape": ["-1", "2", "3"]},
        ]
    }
    request = make(metadata, 3)
    assert {k: (v.shape, v.dtype) for k, v in request.items()} == {
        "heatmaps": ((3, 21, 64, 64), np.float32),
        "affine": ((3, 2, 3), np.float32),
    }
