# SPDX-License-Identifier: Apache-2.0
"""A detector as ONNX against the same detector in PyTorch: outputs, precisions, batches, layouts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmpose_reference import FILES, TINY, Reference, blank

from port_deploy.errors import InputError
from port_deploy.nn.detectors import export_detector_onnx, load_detector
from port_deploy.nn.detectors.family import FAMILY

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def session(data):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options)


def crops(detector, batch):
    return np.random.default_rng(0).integers(0, 256, (batch, *detector.spec.input_size, 3), dtype=np.uint8)


def answers(detector, image):
    with torch.no_grad():
        return [o.numpy() for o in detector(torch.from_numpy(image))]


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(FAMILY, "tiny", TINY)
    torch.manual_seed(0)
    detector = blank("tiny", (64, 64))
    for module in detector.modules():  # statistics that folding has to get right
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
    return detector


def test_names_types_and_any_batch(tiny):
    data = export_detector_onnx(tiny)
    loaded = session(data)
    assert [(i.name, i.type, i.shape) for i in loaded.get_inputs()] == [("image", "tensor(uint8)", ["B", 64, 64, 3])]
    assert [(o.name, o.type, o.shape) for o in loaded.get_outputs()] == [
        ("heatmaps", "tensor(float)", ["B", 21, 16, 16])
    ]
    for batch in (0, 1, 5):
        image = crops(tiny, batch)
        (got,) = loaded.run(None, {"image": image})
        np.testing.assert_allclose(got, answers(tiny, image)[0], atol=1e-5)
    nodes = onnx.load_from_string(data).graph.node
    assert [node.op_type for node in nodes if "image" in node.input] == ["Cast"]  # all that TensorRT does with uint8
    operators = {node.op_type for node in nodes}
    assert "BatchNormalization" not in operators
    assert data == export_detector_onnx(tiny)


def test_float_crops_answer_as_bytes(tiny):
    image = crops(tiny, 2)
    loaded = session(export_detector_onnx(tiny, image="float32"))
    assert [(i.type, i.shape) for i in loaded.get_inputs()] == [("tensor(float)", ["B", 3, 64, 64])]
    (got,) = loaded.run(None, {"image": image.transpose(0, 3, 1, 2).astype(np.float32)})
    np.testing.assert_allclose(got, answers(tiny, image)[0], atol=1e-5)


def test_the_flip_test_is_in_the_graph(tiny):
    image = crops(tiny, 2)
    plain = answers(tiny, image)[0]
    tiny.flip_test = True
    (got,) = session(export_detector_onnx(tiny)).run(None, {"image": image})
    np.testing.assert_allclose(got, answers(tiny, image)[0], atol=1e-5)
    assert np.abs(got - plain).max() > 1e-3


def test_exporting_leaves_the_detector_as_it_was(tiny):
    before = {k: v.clone() for k, v in tiny.state_dict().items()}
    export_detector_onnx(tiny, precision="fp16")
    after = tiny.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert all(p.requires_grad for p in tiny.parameters())


@pytest.mark.parametrize(("precision", "kind"), [("fp16", 10), ("bf16", 16)])
def test_low_precision_is_in_the_weights_alone(precision, kind, tiny):
    graph = onnx.load_from_string(export_detector_onnx(tiny, precision=precision)).graph
    kinds = {i.name: i.data_type for i in graph.initializer if len(i.dims) == 4 and i.dims[0] > 1}
    heads = {kinds.pop(name) for name in list(kinds) if name.startswith("head.")}
    assert set(kinds.values()) == {kind}
    assert heads == {kind if precision == "fp16" else onnx.TensorProto.FLOAT}  # TensorRT-RTX: no bf16 deconvolution
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    # Inputs are normalised in float32: an initializer of the mean's shape is there in it.
    assert any(i.data_type == onnx.TensorProto.FLOAT and list(i.dims) == [1, 3, 1, 1] for i in graph.initializer)


def test_bad_options_are_refused(tiny):
    with pytest.raises(InputError, match="unknown precision 'int8': use fp32, fp16, bf16"):
        export_detector_onnx(tiny, precision="int8")
    with pytest.raises(InputError, match="unknown image 'nchw': use uint8 or float32"):
        export_detector_onnx(tiny, image="nchw")


def check(reference, name, precision, atol, folder):
    """Checkpoint to ONNX, against the network that the checkpoint was written from."""
    hand = FILES[name].startswith("hand")
    size, skeleton = ((256, 256), "hand21") if hand else ((256, 192), "coco17")
    detector = reference.detector(name, size, skeleton)
    torch.save({"meta": {}, "state_dict": detector.state_dict()}, folder / "checkpoint.pth")
    loaded = session(export_detector_onnx(load_detector(name, folder / "checkpoint.pth"), precision=precision))
    (folder / "checkpoint.pth").unlink()
    assert tuple(o.name for o in loaded.get_outputs()) == detector.spec.output_names
    image = crops(detector, 2)
    for got, wanted in zip(loaded.run(None, {"image": image}), answers(detector, image), strict=True):
        assert got.dtype == np.float32
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, atol=atol, rtol=0)


@pytest.fixture(scope="module")
def reference(shared_data):
    return Reference(shared_data)


BOUNDS = {"fp32": (1e-4, 2e-3), "fp16": (0.03, 0.3)}  # heatmaps up to 15, SimCC up to 76; fp16 measured: 0.010 and 0.11


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("name", ["mobilenetv2", "rtmpose_s"])
def test_onnx_answers_as_pytorch(name, precision, reference, tmp_path):
    check(reference, name, precision, BOUNDS[precision][FAMILY[name].simcc], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), [("hrnetv2_w18", "fp16"), ("resnet50", "fp16")])
def test_onnx_of_the_larger_ones_answers_as_pytorch(name, precision, reference, tmp_path):
    check(reference, name, precision, BOUNDS[precision][FAMILY[name].simcc], tmp_path)
