# SPDX-License-Identifier: Apache-2.0
"""Loading an engine, and `Refiner` on it: what is checked before the library sees a byte, weights, caches, streams.

On stand-ins for CUDA and TensorRT (fake_cuda.py, fake_tensorrt.py); on a GPU: test_tensorrt_gpu.py.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_model
from fake_cuda import DeviceArray, FakeCuda
from fake_tensorrt import fake_runtime

from port_deploy import Refiner
from port_deploy.backends import cuda_decode, cuda_graph, cuda_memory, engine_contexts, native_cuda, tensorrt_
from port_deploy.backends.base import Availability
from port_deploy.engine_info import EngineInfo
from port_deploy.errors import BackendUnavailableError, EngineMismatchError, InputError, ModelFileError
from port_deploy.refined import Refined
from port_deploy.sidecar import INPUTS, OUTPUTS, Sidecar, sidecar_path, write_sidecar

SPEC = random_model("soft", layers=1, head_dim=16).spec
RNG = np.random.default_rng(0)


class Place:
    """A folder with an engine, on a machine with stand-ins for a GPU and for the library."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch, self.cuda = folder, monkeypatch, FakeCuda()
        monkeypatch.setenv("PORT_CACHE", str(folder / "cache"))
        for module in (cuda_memory, cuda_graph):
            monkeypatch.setattr(module, "cuda_runtime", lambda: self.cuda)
        monkeypatch.setattr(cuda_memory, "has_bindings", lambda: True)
        monkeypatch.setattr(cuda_memory, "device_state", lambda: None)
        monkeypatch.setattr(cuda_memory, "compute_capability", lambda device=0: "8.9")
        monkeypatch.setattr(engine_contexts, "without_initializer", lambda model, *names: model)

    def write(self, engine: dict[str, Any] | None = None, data: bytes = b"plan", **changes: Any) -> Path:
        path = self.folder / "m.engine"
        path.write_bytes(data)
        info = EngineInfo(
            **{"flavour": "tensorrt", "version": "10.9.0", "compute_capabilities": ("8.9",)} | (engine or {})
        )
        values = {"precision": "fp32", "input": "joints", "batch": (1, 4, 16), "engine": info} | changes
        sha256 = hashlib.sha256(data).hexdigest()
        write_sidecar(path, Sidecar("engine", "m.engine", sha256, len(data), SPEC, **values))
        return path

    def write_onnx(self, data: bytes = b"graph", spec: Any = SPEC) -> str:
        path, sha256 = self.folder / "m.onnx", hashlib.sha256(data).hexdigest()
        path.write_bytes(data)
        write_sidecar(path, Sidecar("onnx", "m.onnx", sha256, len(data), spec, "joints", "fp32"))
        return sha256

    def runtime(self, kind: str = "joints", **says: Any) -> Any:
        library = fake_runtime(self.cuda, INPUTS[kind], OUTPUTS[kind], **says)
        self.patch.setattr(tensorrt_, "import_library", lambda flavour: library)
        self.patch.setattr("port_deploy.backends.select.require", lambda name: tensorrt_entry())
        return library

    def refiner(self, **options: Any) -> Refiner:
        return Refiner.load(self.folder / "m.engine", backend="tensorrt", **options)


def tensorrt_entry() -> Any:
    from port_deploy.backends import entry

    return entry("tensorrt")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


def test_it_is_warm_and_answers_from_the_first_call(place: Place) -> None:
    library = place.runtime()
    place.write()
    refiner = place.refiner()
    assert library.log.of("deserialise") == [(b"plan", False)]
    assert refiner.backend.detail == "tensorrt 10.9.0, compute capability 8.9, fp32"
    before = place.cuda.calls.count("cudaMalloc")
    joints, confidence = RNG.random((4, 21, 2), np.float32), RNG.random((4, 21), np.float32)
    out = refiner.refine(joints, confidence)
    np.testing.assert_array_equal(out.joints, 2 * joints)
    assert place.cuda.calls.count("cudaMalloc") == before
    assert refiner.refine(joints[:0], confidence[:0]).joints.shape == (0, 21, 2)
    np.testing.assert_array_equal(
        refiner.refine(np.tile(joints, (9, 1, 1)), np.tile(confidence, (9, 1))).joints[32:], 2 * joints
    )


def test_the_hash_is_checked_before_the_library_sees_a_byte(place: Place) -> None:
    library = place.runtime()
    path = place.write()
    path.write_bytes(b"plaN")
    with pytest.raises(EngineMismatchError, match=r"m\.engine \(4 bytes\) is not the file that m\.engine\.json"):
        place.refiner()
    assert library.log == []


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"version": "10.8.0"}, r"built with tensorrt 10\.8\.0, this machine has 10\.9\.0"),
        ({"compute_capabilities": ("8.6",)}, r"compute capability 8\.6, this one has 8\.9"),
    ],
)
def test_what_it_was_built_with_is_compared_before(place: Place, engine: dict[str, Any], message: str) -> None:
    library = place.runtime()
    place.write(engine)
    with pytest.raises(EngineMismatchError, match=message):
        place.refiner()
    assert library.log == []


def test_a_version_compatible_engine_may_bring_its_runtime(place: Place) -> None:
    library = place.runtime(version="11.4.0")
    place.write({"version_compat": True})
    place.refiner()
    assert library.log.of("deserialise") == [(b"plan", True)]


def test_a_stripped_engine_takes_its_weights_from_its_onnx(place: Place) -> None:
    library = place.runtime()
    place.write({"stripped": True, "onnx_sha256": place.write_onnx()})
    place.refiner()
    assert [call[0] for call in library.log][:4] == ["deserialise", "weights", "refit", "context"]
    place.write_onnx(b"other")
    with pytest.raises(ModelFileError, match=r"m\.onnx is not the ONNX that .*m\.engine was built from"):
        place.refiner()
    (place.folder / "m.onnx").unlink()
    with pytest.raises(ModelFileError, match=r"m\.engine has no weights, .* put .*m\.onnx beside it"):
        place.refiner()


def test_other_weights_go_into_a_refittable_engine(place: Place) -> None:
    trained = replace(SPEC, threshold=0.45)
    place.runtime()
    place.write({"refittable": True})
    place.write_onnx(b"trained", trained)
    refiner = place.refiner(refit=place.folder / "m.onnx")
    assert (refiner.model, refiner.threshold) == (trained, 0.45)
    other = replace(SPEC, frame="paper")
    place.write_onnx(b"another", other)
    with pytest.raises(ModelFileError, match="is another network than"):
        place.refiner(refit=place.folder / "m.onnx")
    place.write()
    with pytest.raises(InputError, match="was not built to take other weights: .* --refit"):
        place.refiner(refit=place.folder / "m.onnx")


def test_weights_that_the_library_refuses(place: Place) -> None:
    place.runtime(refits=False)
    place.write({"stripped": True, "onnx_sha256": place.write_onnx()})
    with pytest.raises(BackendUnavailableError, match=r"cannot put the weights into .*: no weights encoder\.0"):
        place.refiner()


RTX = {"flavour": "tensorrt-rtx", "version": "1.7"}


def test_rtx_keeps_what_it_compiled_and_records_graphs_itself(place: Place) -> None:
    library = place.runtime(version="1.7", rtx=True)
    path = place.write(RTX)
    refiner = place.refiner()
    assert library.log.of("context") == [("WHOLE_GRAPH_CAPTURE", b"")]
    kept = place.folder / "cache" / "runtime" / f"{hashlib.sha256(path.read_bytes()).hexdigest()[:40]}.cache"
    assert kept.read_bytes() == b"+compiled"
    joints, confidence = np.zeros((4, 21, 2), "f4"), np.ones((4, 21), "f4")
    for _ in range(3):
        refiner.refine(joints, confidence)
    assert "cudaGraphLaunch" not in place.cuda.calls
    library.log.clear()
    place.refiner(graphs=False)
    assert library.log.of("runtime cache") == [(b"+compiled", True)]
    assert library.log.of("context") == [("DISABLED", b"+compiled")]
    own = place.folder / "own.cache"
    place.refiner(runtime_cache=own)
    assert own.read_bytes() == b"+compiled"


def test_a_runtime_cache_of_another_gpu_is_left_out(place: Place) -> None:
    own = place.folder / "own.cache"
    own.write_bytes(b"foreign")
    library = place.runtime(version="1.7", rtx=True, accepts=False)
    place.write(RTX)
    place.refiner(runtime_cache=own)
    assert library.log.of("runtime cache") == [(b"foreign", False)]
    assert own.read_bytes() == b"+compiled"


def test_tensorrt_has_no_runtime_cache(place: Place) -> None:
    place.runtime()
    place.write()
    with pytest.raises(InputError, match="TensorRT compiles when it builds and has no runtime cache"):
        place.refiner(runtime_cache="x")


def on_device(cuda: FakeCuda, count: int) -> tuple[list[DeviceArray], Refined]:
    given = [DeviceArray(cuda, RNG.random(s, np.float32)) for s in ((count, 21, 2), (count, 21))]
    empty = (np.zeros((count, 21, 2), "f4"), np.zeros((count, 21), "f4"), np.zeros((count, 21), "?"))
    return given, Refined(*(DeviceArray(cuda, a) for a in empty))


def test_refine_of_arrays_on_the_gpu(place: Place) -> None:
    place.runtime()
    place.write()
    refiner = place.refiner()
    stream = place.cuda.cudaStreamCreateWithFlags(0)[1]
    given, out = on_device(place.cuda, 20)
    refiner.refine(*given, out=out, stream=stream)
    place.cuda.calls.clear()
    got = refiner.refine(*given, out=out, stream=stream)
    assert not {"cudaStreamSynchronize", "cudaDeviceSynchronize"} & {*place.cuda.calls}
    assert got == out
    place.cuda.streams[stream].drain()
    np.testing.assert_array_equal(out.joints.numpy(), 2 * given[0].numpy())
    np.testing.assert_array_equal(out.mask.numpy(), given[1].numpy() < np.float32(SPEC.threshold))
    with pytest.raises(InputError, match=r"new arrays of that kind cannot be made: pass out="):
        refiner.refine(*given)
    with pytest.raises(InputError, match="expected confidence on the GPU like the other"):
        refiner.refine(given[0], given[1].numpy(), out=out)
    with pytest.raises(InputError, match="stream= is for arrays on the GPU"):
        refiner.refine(given[0].numpy(), given[1].numpy(), stream=stream)


def test_heatmaps_on_the_gpu_with_an_engine_of_the_whole_line(place: Place) -> None:
    place.runtime("heatmaps")
    place.write(input="heatmaps", heatmap_size=(4, 6))
    refiner = place.refiner(warm_up=False)
    calls: list[Any] = []
    place.patch.setattr(refiner._backend, "run_on_device", lambda *a: calls.append(a))
    maps, matrix = (DeviceArray(place.cuda, np.zeros(s, "f4")) for s in ((2, 21, 4, 6), (2, 2, 3)))
    _, out = on_device(place.cuda, 2)
    refiner(maps, out=out)
    refiner(maps, affine=matrix, out=out, threshold=0.2)
    assert [(c[0], c[1]) for c in calls] == [((maps, None), SPEC.threshold), ((maps, matrix), 0.2)]
    with pytest.raises(InputError, match="pass affine= .* on the GPU, too"):
        refiner(maps, boxes=np.float32([[0, 0, 6, 4]] * 2), out=out)


def test_the_core_decodes_in_front_of_an_engine_with_input_joints(place: Place) -> None:
    place.runtime()
    place.write()
    refiner = place.refiner(graphs=False)
    maps = DeviceArray(place.cuda, RNG.random((4, 21, 4, 6), np.float32))
    _, out = on_device(place.cuda, 4)
    place.patch.setattr(native_cuda, "availability", lambda: Availability(False, "no CUDA"))
    with pytest.raises(
        BackendUnavailableError, match=r"no decode .* here \(no CUDA\): export .* with --input heatmaps"
    ):
        refiner(maps, out=out)
    made: list[DeviceArray] = []

    def make(shape: tuple[int, ...], dtype: str) -> DeviceArray:
        made.append(DeviceArray(place.cuda, np.zeros(shape, dtype)))
        return made[-1]

    def decode(maps: Any, codec: str, temperature: float, threshold: float, out: Any, device: int, stream: int) -> None:
        assert (maps.shape, codec, temperature, device) == ((4, 21, 4, 6), SPEC.codec, SPEC.temperature, 0)
        view = place.cuda.at(out[0].address, out[0].size_bytes).view(np.float32)
        place.cuda.put(stream, lambda: view.fill(7))

    place.patch.setattr(native_cuda, "availability", lambda: Availability(True, "a stand-in"))
    place.patch.setattr(cuda_decode, "decode_on_device", decode)
    place.patch.setattr("port_deploy.decode_device.empty_like", lambda like, name: make)
    stream = place.cuda.cudaStreamCreateWithFlags(0)[1]
    refiner(maps, out=out, stream=stream)
    place.cuda.streams[stream].drain()
    assert (out.joints.numpy() == 14).all()


def test_sidecars_of_before_have_the_defaults(place: Place) -> None:
    path = place.write()
    data = json.loads(sidecar_path(path).read_text())
    data["engine"] = {k: data["engine"][k] for k in ("flavour", "version", "compute_capabilities")}
    assert Sidecar.from_json(data).engine == EngineInfo("tensorrt", "10.9.0", ("8.9",))


def test_a_classic_layer_is_made_known_before_the_engine_is_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    library = place.runtime(version="10.3.0")
    monkeypatch.setattr(tensorrt_.engine_plugin, "register", lambda given: given.log.append(("register", given)))
    place.write({"version": "10.3.0", "fused": "ipluginv3"})
    place.refiner()
    assert [call[0] for call in library.log][:2] == ["register", "deserialise"]
    library.log.clear()
    place.write({"version": "10.3.0", "fused": "aot"}, b"another")  # holds its kernel: nothing of ours is needed
    place.refiner()
    assert library.log[0][0] == "deserialise"
