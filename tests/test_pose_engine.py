# SPDX-License-Identifier: Apache-2.0
"""`PoseEngine`: crops of every kind in, the same joints out; what a GPU's engine would be given, without one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_model
from detector_models import IMAGE, tiny_detector
from fake_cuda import DeviceArray, FakeContext, FakeCuda

from port_deploy import PoseEngine, Refiner
from port_deploy.backends import cuda_graph, cuda_memory
from port_deploy.backends.engine_backend import TensorRtBackend
from port_deploy.backends.select import Choice
from port_deploy.engine_info import EngineInfo
from port_deploy.errors import InputError
from port_deploy.sidecar import INPUTS, OUTPUTS, read_sidecar
from port_deploy.weights import save_model

for library in ("torch", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)

RNG = np.random.default_rng(0)
CROPS = RNG.integers(0, 256, (5, *IMAGE, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """d_m.onnx (float32 [B, 3, 64, 48], ImageNet values), byte_m.onnx (uint8 [B, 64, 48, 3]) and m.safetensors."""
    from port_deploy.export import DetectorOptions, ExportOptions, export_model

    path = tmp_path_factory.mktemp("engine")
    made = random_model("soft", layers=1, head_dim=8)
    save_model(path / "m.safetensors", made.spec, made.tensors)
    for name, layout, more in (("d", "nchw", {}), ("byte", "nhwc", {"uint8": True})):
        detector = tiny_detector(path / f"{name}.onnx", image_layout=layout)
        options = DetectorOptions(str(detector), joints="hand21", values="imagenet", **more)  # type: ignore[arg-type]
        export_model(path / "m.safetensors", path, ExportOptions(("onnx",), detector=options))
    return path


@pytest.fixture(scope="module")
def engine(folder: Path) -> PoseEngine:
    return PoseEngine.load(folder / "d_m.onnx", threads=1)


def same(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a.joints, b.joints, atol=2e-3)
    np.testing.assert_allclose(a.confidence, b.confidence, atol=1e-5)
    np.testing.assert_array_equal(a.mask, b.mask)


def test_what_it_says_of_itself(engine: PoseEngine) -> None:
    assert repr(engine) == "PoseEngine('d' + 'random', backend='onnxruntime', threshold=0.3)"
    assert engine.model.skeleton.name == "hand21"
    assert engine.detector.image_size == IMAGE
    assert "CPUExecutionProvider" in str(engine.backend)


def test_every_kind_of_crop_gives_the_same(engine: PoseEngine, folder: Path) -> None:
    torch = pytest.importorskip("torch")
    expected = engine(CROPS)
    assert expected.joints.shape == (5, 21, 2)
    assert expected.mask.any()
    same(engine(CROPS.transpose(0, 3, 1, 2)), expected)
    real = ((CROPS / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).astype(np.float32)
    same(engine(real), expected)
    same(engine(np.ascontiguousarray(real.transpose(0, 3, 1, 2))), expected)
    answer = engine(torch.from_numpy(CROPS))
    assert isinstance(answer.joints, torch.Tensor)
    assert answer.mask.dtype == torch.bool
    same(answer, expected)
    in_graph = PoseEngine.load(folder / "byte_m.onnx")
    assert in_graph.detector.image_type == "uint8"
    same(in_graph(CROPS), expected)
    same(in_graph(CROPS.transpose(0, 3, 1, 2)), expected)


def test_in_openvino(engine: PoseEngine, folder: Path) -> None:
    pytest.importorskip("openvino")
    for name in ("d_m.onnx", "byte_m.onnx"):
        other = PoseEngine.load(folder / name, backend="openvino", threads=1)
        same(other(CROPS), engine(CROPS))
        assert other(CROPS[:0]).joints.shape == (0, 21, 2)


def test_crop_to_image(engine: PoseEngine) -> None:
    plain = engine(CROPS)
    boxes = np.float32([[10, 20, 10 + 2 * IMAGE[1], 20 + 3 * IMAGE[0]]] * 5)
    moved = engine(CROPS, boxes=boxes)
    kept = ~plain.mask
    np.testing.assert_allclose(moved.joints[kept], (plain.joints * [2, 3] + [10, 20])[kept], atol=1e-3)
    affine = np.float32([[2, 0, 10], [0, 3, 20]])
    same(engine(CROPS, affine=affine), moved)
    same(engine(CROPS, affine=np.repeat(affine[None], 5, 0)), moved)
    np.testing.assert_array_equal(moved.mask, plain.mask)
    udp = engine(CROPS, boxes=boxes, udp=True).joints[kept]
    wider = plain.joints * [2 * IMAGE[1] / (IMAGE[1] - 1), 3 * IMAGE[0] / (IMAGE[0] - 1)] + [10, 20]
    np.testing.assert_allclose(udp, wider[kept], atol=1e-3)


def test_threshold(engine: PoseEngine, folder: Path) -> None:
    assert not engine(CROPS, threshold=0).mask.any()
    strict = PoseEngine.load(folder / "d_m.onnx", threshold=0.6)
    np.testing.assert_array_equal(strict(CROPS).mask, engine(CROPS, threshold=0.6).mask)
    assert strict(CROPS).mask.sum() != engine(CROPS).mask.sum()


def test_any_batch_and_the_callers_memory(engine: PoseEngine) -> None:
    whole = engine(CROPS)
    for batch in (0, 1, 3):
        part = engine(CROPS[:batch])
        assert part.joints.shape == (batch, 21, 2)
        np.testing.assert_allclose(part.joints, whole.joints[:batch], atol=2e-3)
    out = (np.zeros((5, 21, 2), np.float32), np.zeros((5, 21), np.float32), np.zeros((5, 21), np.bool_))
    answer = engine(CROPS, out=out)
    assert answer.joints is out[0]
    same(answer, whole)


def test_many_threads(engine: PoseEngine) -> None:
    expected = engine(CROPS)
    with ThreadPoolExecutor(4) as pool:
        for answer in pool.map(lambda _: engine(CROPS), range(12)):
            same(answer, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": CROPS[0]}, r"got \[64, 48, 3\]: add the batch axis"),
        ({"images": CROPS[..., :1]}, r"got \[5, 64, 48, 1\]: it reads colour"),
        ({"images": CROPS[:, :32]}, r"expected images \[B, 3, 64, 48\] or .* got \[5, 32, 48, 3\]: cut and resize"),
        ({"images": CROPS.transpose(0, 2, 1, 3)}, r"got \[5, 48, 64, 3\]: cut and resize"),
        ({"images": CROPS.astype(np.float64)}, "expected images uint8 or float32 .* got float64"),
        ({"images": "photo.jpg"}, "expected images as a NumPy array"),
        ({"images": CROPS, "boxes": np.zeros((5, 4)), "affine": np.eye(2, 3)}, "expected boxes or affine, got both"),
        ({"images": CROPS, "boxes": np.zeros((4, 4))}, r"expected boxes \[5, 4\]"),
        ({"images": CROPS, "affine": np.zeros((4, 2, 3))}, r"expected affine \[5, 2, 3\]"),
        ({"images": CROPS, "udp": True}, "udp=True says how boxes are read"),
        ({"images": CROPS, "threshold": -1}, "expected threshold"),
        ({"images": CROPS, "out": (1, 2, 3)}, "expected out.joints"),
    ],
)
def test_mistakes(engine: PoseEngine, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        engine(**arguments)
    assert "\n" not in str(caught.value)


def test_uint8_graphs_take_nothing_else(folder: Path) -> None:
    with pytest.raises(InputError, match=r"expected images uint8 in 0\.\.255 .* got float32"):
        PoseEngine.load(folder / "byte_m.onnx")(CROPS.astype(np.float32))


def test_each_artefact_in_its_own_class(folder: Path, tmp_path: Path) -> None:
    from port_deploy.export import ExportOptions, export_model

    with pytest.raises(InputError, match=r"artefact that takes images: load it with PoseEngine\.load"):
        Refiner.load(folder / "d_m.onnx")
    with pytest.raises(InputError, match=r"is a model without a detector: port-export"):
        PoseEngine.load(folder / "m.safetensors")
    export_model(folder / "m.safetensors", tmp_path, ExportOptions(("onnx",), input="joints"))
    with pytest.raises(InputError, match=r"m\.onnx holds no detector: load it with Refiner\.load"):
        PoseEngine.load(tmp_path / "m.onnx")
    with pytest.raises(InputError, match="no file"):
        PoseEngine.load(tmp_path / "none.onnx")


class ImageContext(FakeContext):
    """An engine that answers the first pixel of each crop, moved by its affine, so that crops can be told apart."""

    def execute_async_v3(self, stream: int) -> bool:
        count = self.shapes["image"][0]
        self.batches.append(count)
        where = dict(self.addresses)

        def run() -> None:
            image = self.cuda.at(where["image"], count * CROPS[0].size).reshape(count, *CROPS[0].shape).copy()
            affine = self._array(where["affine"], (count, 2, 3))
            joints = np.repeat(image[:, 0, :1, :2] + affine[:, None, :, 2], 21, 1).astype(np.float32)
            self._write(where["joints"], joints)
            self._write(where["confidence"], np.full((count, 21), self._array(where["threshold"], (1,))[0]))
            self._write(where["mask"], np.ones((count, 21), np.bool_))

        self.cuda.put(stream, run)
        return True


@pytest.fixture
def on_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[PoseEngine, FakeCuda, list[ImageContext]]:
    """byte_m as an engine of batches 2 to 4, on stand-ins for CUDA and TensorRT."""
    cuda, contexts = FakeCuda(), []
    for module in (cuda_memory, cuda_graph):
        monkeypatch.setattr(module, "cuda_runtime", lambda: cuda)
    onnx = read_sidecar(folder / "byte_m.onnx", "onnx")
    built = EngineInfo("tensorrt", "10.9.0", ("8.9",))
    sidecar = replace(onnx, kind="engine", file="byte_m.engine", batch=(2, 2, 4), engine=built)

    def make(_: bool) -> ImageContext:
        contexts.append(ImageContext(cuda, INPUTS["image"], OUTPUTS["image"]))
        return contexts[-1]

    backend = TensorRtBackend(sidecar, make, "a stand-in", record=False)
    return PoseEngine(backend, Choice("tensorrt", "cuda", "a stand-in", "asked for")), cuda, contexts


MOVED = np.tile(np.eye(2, 3, dtype=np.float32), (5, 1, 1))
MOVED[:, 0, 2] = np.arange(5) * 1000
FIRST = CROPS[:, 0, 0, :2].astype(np.float32)


def test_host_crops_in_an_engine(on_gpu: tuple[PoseEngine, FakeCuda, list[ImageContext]]) -> None:
    engine, _, contexts = on_gpu
    answer = engine(CROPS, affine=MOVED, threshold=0.25)
    assert contexts[0].batches == [4, 2]  # 5 crops: a full piece, and one filled up to the smallest batch
    np.testing.assert_array_equal(answer.joints[:, 7], FIRST + MOVED[:, :, 2])
    assert (answer.confidence == 0.25).all()
    np.testing.assert_array_equal(engine(CROPS).joints[:, 3], FIRST)
    assert engine(CROPS[:0]).joints.shape == (0, 21, 2)


@pytest.mark.parametrize("moved", [True, False])
def test_crops_on_the_gpu_are_queued_on_the_callers_stream(
    on_gpu: tuple[PoseEngine, FakeCuda, list[ImageContext]], moved: bool
) -> None:
    engine, cuda, contexts = on_gpu
    stream = int(cuda.cudaStreamCreateWithFlags(0)[1])
    empty = np.zeros((5, 21, 2), "f4"), np.zeros((5, 21), "f4"), np.zeros((5, 21), "?")
    out = tuple(DeviceArray(cuda, a) for a in empty)
    affine = DeviceArray(cuda, MOVED) if moved else None
    answer = engine(DeviceArray(cuda, CROPS), affine=affine, out=out, stream=stream)
    assert answer.joints is out[0]
    cuda.streams[stream].drain()
    assert contexts[0].batches == [4, 2]
    np.testing.assert_array_equal(out[0].numpy()[:, 7], FIRST + (MOVED[:, :, 2] if moved else 0))
    wrong = DeviceArray(cuda, np.ascontiguousarray(CROPS.transpose(0, 3, 1, 2)))
    with pytest.raises(InputError, match=r"expected images uint8 \[·, 64, 48, 3\], got uint8 \[5, 3, 64, 48\]"):
        engine(wrong, out=out, stream=stream)


def test_a_stream_needs_crops_on_the_gpu(
    engine: PoseEngine, on_gpu: tuple[PoseEngine, FakeCuda, list[ImageContext]]
) -> None:
    for each in (engine, on_gpu[0]):
        with pytest.raises(InputError, match="stream= is for crops on the GPU"):
            each(CROPS, stream=7)
