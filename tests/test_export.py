# SPDX-License-Identifier: Apache-2.0
"""Every kind of artefact, of either input, in every precision, against the oracle; and nothing left when one fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_model

from port_deploy import verify as verification
from port_deploy.backends import onnxruntime_, openvino_, torch_, torchscript_
from port_deploy.backends.base import HostBuffers
from port_deploy.errors import BackendUnavailableError, InputError, ModelFileError, VerificationError
from port_deploy.export import ExportOptions, export_model
from port_deploy.export.engine_options import BuildOptions
from port_deploy.sidecar import INPUTS, OUTPUTS, read_sidecar, sidecar_path
from port_deploy.weights import Model, save_model

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

SMALL = {"layers": 1, "head_dim": 16}
CASES: dict[str, tuple[Model, str, str]] = {
    "soft-heatmaps-fp32": (random_model("soft", **SMALL), "heatmaps", "fp32"),
    "paper-heatmaps-fp16": (random_model("paper", codec="softargmax-sum", **SMALL), "heatmaps", "fp16"),
    "soft-heatmaps-bf16": (random_model("soft", "mpii16", codec="argmax", **SMALL), "heatmaps", "bf16"),
    "paper-joints-fp32": (random_model("paper", frame="paper", masked_coordinates="zero", **SMALL), "joints", "fp32"),
    "soft-joints-fp16": (random_model("soft", refine="all", fusion=0.5, **SMALL), "joints", "fp16"),
    "paper-joints-bf16": (random_model("paper", "coco17", **SMALL), "joints", "bf16"),
}

Written = tuple[Model, Path]


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    """The folder with m.onnx and m.ts of a case, exported once."""
    made: dict[str, Path] = {}

    def folder(case: str) -> Written:
        model, kind, precision = CASES[case]
        if case not in made:
            made[case] = tmp_path_factory.mktemp(case)
            source = made[case] / "m.safetensors"
            save_model(source, model.spec, model.tensors)
            options = ExportOptions(("onnx", "ts"), input=kind, precision=precision, heatmap_size=(32, 24))
            export_model(source, made[case], options)
        return model, made[case]

    return folder


def answers(backend: Any, asked: verification.Questions, count: int, threshold: float | None = None) -> HostBuffers:
    n = asked.first.shape[1]
    out = HostBuffers(np.zeros((count, n, 2), "f4"), np.zeros((count, n), "f4"), np.zeros((count, n), "?"))
    delta = asked.threshold if threshold is None else threshold
    run = backend.refine if asked.input == "joints" else backend.run
    run(asked.first[:count], asked.second[:count], delta, out)
    return out


@pytest.mark.parametrize("case", CASES)
def test_what_is_written(artefacts: Callable[[str], Written], case: str) -> None:
    model, folder = artefacts(case)
    _, kind, precision = CASES[case]
    assert sorted(p.name for p in folder.iterdir()) == ["m.onnx", "m.onnx.json", "m.safetensors", "m.ts", "m.ts.json"]
    for name in ("onnx", "ts"):
        sidecar = read_sidecar(folder / f"m.{name}", name)
        assert (sidecar.input, sidecar.precision, sidecar.spec) == (kind, precision, model.spec)
        assert sidecar.verification["passed"] is True
        assert sidecar.verification["artefact_ran"] is True
        assert sidecar.verification["max_error_px"] <= verification.tolerance_px(precision)
        assert sidecar.verification["joints"] > 100
    proto = onnx.load(folder / "m.onnx")
    assert tuple(i.name for i in proto.graph.input) == INPUTS[kind]
    assert tuple(o.name for o in proto.graph.output) == OUTPUTS[kind]
    shape = proto.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in shape] == (
        ["B", model.spec.joints, 2] if kind == "joints" else ["B", model.spec.joints, "H", "W"]
    )
    initializers = {i.name for i in proto.graph.initializer}
    assert initializers & {i.name for i in proto.graph.input} == {"threshold"}
    assert str(Path(__file__).parents[1]).encode() not in (folder / "m.onnx").read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_precision_is_carried_by_the_graph(artefacts: Callable[[str], Written], case: str) -> None:
    _, folder = artefacts(case)
    proto, precision = onnx.load(folder / "m.onnx"), CASES[case][2]
    types = {i.data_type for i in proto.graph.initializer}
    low = {"fp32": None, "fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision]
    assert types & {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16} == ({low} if low else set())
    inferred = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(proto).graph.value_info}
    for node in proto.graph.node:
        if node.op_type in ("Softmax", "LayerNormalization", "Sqrt", "Sigmoid"):
            assert inferred[node.output[0]] == onnx.TensorProto.FLOAT, node.name


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("runtime", ["torchscript", "onnxruntime", "openvino"])
def test_round_trip(artefacts: Callable[[str], Written], case: str, runtime: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    model, folder = artefacts(case)
    _, kind, precision = CASES[case]
    if runtime == "onnxruntime" and precision == "bf16":
        with pytest.raises(BackendUnavailableError, match=r"lacks an operator .* use backend openvino"):
            onnxruntime_.load(folder / "m.onnx")
        return
    module = {"torchscript": torchscript_, "onnxruntime": onnxruntime_, "openvino": openvino_}[runtime]
    backend = module.load(folder / ("m.ts" if runtime == "torchscript" else "m.onnx"), threads=1)
    assert backend.name == runtime
    assert (backend.takes_joints, backend.takes_heatmaps) == (kind == "joints", kind == "heatmaps")
    problems = verification.make_problems(model, kind, (40, 24), seed=7)
    assert verification.verify(backend, problems, precision).passed
    asked = problems[0].questions
    assert answers(backend, asked, 0).joints.shape == (0, model.spec.joints, 2)
    strict = answers(backend, asked, 8, threshold=0.7)
    expected = answers(torch_.load(model, precision=precision), asked, 8, threshold=0.7)
    np.testing.assert_array_equal(strict.mask, expected.mask)
    other = backend.run if kind == "joints" else backend.refine
    with pytest.raises(InputError, match="takes"):
        other(np.zeros((1, model.spec.joints, 8, 8), "f4"), np.zeros((1, 2, 3), "f4"), 0.3, answers(backend, asked, 0))


def test_half_precision_heatmaps_and_no_affine(artefacts: Callable[[str], Written]) -> None:
    model, folder = artefacts("soft-heatmaps-fp32")
    asked = verification.make_problems(model, "heatmaps", (24, 24))[0].questions
    maps = asked.first[20:24].astype(np.float16)
    wanted, got = (
        HostBuffers(np.zeros((4, 21, 2), "f4"), np.zeros((4, 21), "f4"), np.zeros((4, 21), "?")) for _ in "ab"
    )
    torch_.load(model).run(maps, None, 0.3, wanted)
    onnxruntime_.load(folder / "m.onnx").run(maps, None, 0.3, got)
    np.testing.assert_allclose(got.joints, wanted.joints, atol=1e-3)
    np.testing.assert_array_equal(got.mask, wanted.mask)


def test_torch_is_not_needed_to_know_an_artefact(artefacts: Callable[[str], Written]) -> None:
    _, folder = artefacts("paper-joints-fp32")
    (folder / "copy.onnx").write_bytes((folder / "m.onnx").read_bytes()[:-1])
    sidecar_path(folder / "copy.onnx").write_text(sidecar_path(folder / "m.onnx").read_text())
    try:
        for load in (onnxruntime_.load, openvino_.load):
            with pytest.raises(ModelFileError, match="is not the file"):
                load(folder / "copy.onnx")
    finally:
        (folder / "copy.onnx").unlink()
        sidecar_path(folder / "copy.onnx").unlink()


def test_a_damaged_artefact_with_a_fitting_sidecar(artefacts: Callable[[str], Written], tmp_path: Path) -> None:
    from port_deploy.files import sha256

    _, folder = artefacts("paper-joints-fp32")
    for suffix, load in (("ts", torchscript_.load), ("onnx", onnxruntime_.load), ("onnx", openvino_.load)):
        path = tmp_path / f"m.{suffix}"
        path.write_bytes(b"PK\x03\x04 not what it says" * 20)
        data = json.loads(sidecar_path(folder / f"m.{suffix}").read_text())
        data |= {"sha256": sha256(path), "size_bytes": path.stat().st_size}
        sidecar_path(path).write_text(json.dumps(data))
        with pytest.raises(ModelFileError) as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_too_large_an_error_leaves_nothing(tmp_path: Path) -> None:
    model = CASES["paper-joints-fp32"][0]
    save_model(tmp_path / "m.safetensors", model.spec, model.tensors)
    options = ExportOptions(("ts",), input="joints", max_px_error=1e-9)
    with pytest.raises(VerificationError, match=r"m\.ts in torchscript disagrees .*allowed 1e-09 px"):
        export_model(tmp_path / "m.safetensors", tmp_path / "new" / "folder", options)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_an_older_export_survives_a_failing_one(artefacts: Callable[[str], Written]) -> None:
    _, folder = artefacts("paper-joints-fp32")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(VerificationError):
        export_model(folder / "m.safetensors", folder, ExportOptions(("ts",), input="joints", max_px_error=0.0))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": ()}, "expected kinds"),
        ({"kinds": ("exe",)}, "expected kinds"),
        ({"input": "video"}, "unknown input 'video'"),
        ({"precision": "int8"}, "unknown precision 'int8'"),
        ({"heatmap_size": (64,)}, "expected a heatmap size"),
        ({"heatmap_size": (64, 99999)}, "expected a heatmap size"),
        ({"batch": (8, 4, 16)}, "expected a batch min,opt,max"),
        ({"batch": (0, 4, 16)}, "expected a batch min,opt,max"),
        ({"max_px_error": -1.0}, "expected a max px error"),
        ({"max_px_error": float("nan")}, "expected a max px error"),
        ({"build": BuildOptions(targets=("sm_89",))}, "--target .* are for engines"),
    ],
)
def test_options_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ExportOptions(**({"kinds": ("ts",)} | changes))


def test_from_an_onnx_only_what_it_holds(artefacts: Callable[[str], Written], tmp_path: Path) -> None:
    _, folder = artefacts("paper-joints-fp32")
    for options, message in (
        (ExportOptions(("ts",)), "only engines are built"),
        (ExportOptions(("engine",), input="heatmaps"), "has input joints, asked for heatmaps"),
        (ExportOptions(("engine",), precision="fp16"), "has precision fp32, asked for fp16"),
    ):
        with pytest.raises(InputError, match=message):
            export_model(folder / "m.onnx", tmp_path / "x", options)
    assert not (tmp_path / "x").exists()


def test_onnxruntime_runs_where_the_arrays_lie(artefacts: Callable[[str], Written]) -> None:
    model, folder = artefacts("paper-joints-fp32")
    backend = onnxruntime_.load(folder / "m.onnx", threads=1, providers=[("CPUExecutionProvider", {})])
    asked = verification.make_problems(model, "joints")[0].questions
    usual = answers(backend, asked, 9)
    out = HostBuffers(np.zeros((9, 21, 2), "f4"), np.zeros((9, 21), "f4"), np.zeros((9, 21), "?"))
    given = (asked.first[:9], asked.second[:9])
    backend.run_on_device(given, asked.threshold, (out.joints, out.confidence, out.mask), device="cpu")
    np.testing.assert_array_equal(out.joints, usual.joints)
    np.testing.assert_array_equal(out.mask, usual.mask)
    targets = (out.joints, out.confidence, out.mask)
    for wrong in ((given[0].astype("f8"), given[1]), (np.asfortranarray(given[0]), given[1]), ([1], given[1])):
        with pytest.raises(InputError, match="expected joints as a contiguous <f4 array on cpu"):
            backend.run_on_device(wrong, 0.3, targets, device="cpu")
    with pytest.raises(InputError, match="on cuda, got ndarray"):
        backend.run_on_device(given, 0.3, targets, device="cuda")


def test_onnxruntime_without_the_provider_asked_for(artefacts: Callable[[str], Written]) -> None:
    import onnxruntime

    _, folder = artefacts("paper-joints-fp32")
    missing = "NoSuchExecutionProvider"
    with pytest.raises(BackendUnavailableError, match=rf"has no {missing} \(it has .*CPUExecutionProvider"):
        onnxruntime_.load(folder / "m.onnx", providers=[missing])
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(BackendUnavailableError, match="has no CUDAExecutionProvider .* onnxruntime-gpu"):
            onnxruntime_.load(folder / "m.onnx", device="cuda")


def test_the_threshold_may_be_left_out(artefacts: Callable[[str], Written]) -> None:
    import onnxruntime

    model, folder = artefacts("paper-joints-fp32")
    asked = verification.make_problems(model, "joints")[0].questions
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / "m.onnx"), options)
    joints, _, mask = session.run(None, {"joints": asked.first, "confidence": asked.second})
    expected = answers(onnxruntime_.load(folder / "m.onnx"), asked, len(asked.first), model.spec.threshold)
    np.testing.assert_array_equal(mask, expected.mask)
    np.testing.assert_allclose(joints, expected.joints, rtol=1e-5)


def test_openvino_hints(artefacts: Callable[[str], Written]) -> None:
    pytest.importorskip("openvino")
    _, folder = artefacts("paper-joints-fp32")
    assert openvino_.load(folder / "m.onnx", hint="bf16", threads=1).detail.endswith("bf16")
    with pytest.raises(InputError, match="unknown hint 'int8'"):
        openvino_.load(folder / "m.onnx", hint="int8")
    with pytest.raises(InputError, match="runs on the CPU only, got device 'cuda'"):
        openvino_.load(folder / "m.onnx", device="cuda")
    _, heatmaps = artefacts("soft-heatmaps-fp32")
    with pytest.raises(InputError, match="export it with --precision bf16 instead"):
        openvino_.load(heatmaps / "m.onnx", hint="bf16")


@pytest.mark.parametrize("runtime", ["torchscript", "onnxruntime", "openvino"])
def test_many_threads_share_a_backend(artefacts: Callable[[str], Written], runtime: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    if runtime == "openvino":
        pytest.importorskip("openvino")
    model, folder = artefacts("paper-joints-fp32")
    module = {"torchscript": torchscript_, "onnxruntime": onnxruntime_, "openvino": openvino_}[runtime]
    backend = module.load(folder / ("m.ts" if runtime == "torchscript" else "m.onnx"), threads=1)
    asked = verification.make_problems(model, "joints")[0].questions
    expected = [answers(backend, asked, count).joints for count in range(12)]
    with ThreadPoolExecutor(4) as pool:
        for count, out in pool.map(lambda count: (count, answers(backend, asked, count)), list(range(12)) * 4):
            np.testing.assert_allclose(out.joints, expected[count], rtol=1e-4)
