# SPDX-License-Identifier: Apache-2.0
"""port-export --trt --fuse without a GPU: the network around it, both ways of plugins, the errors.

TensorRT is a stand-in (fake_plugins.py) that checks every call as NVIDIA's own Python files do; its kernels are
stand-ins too (fake_kernels.py; test_fused_kernel.py has the real ones). The kernel itself runs in
csrc/tests/emulated/test_engine_layer.cpp, fused engines in test_tensorrt_gpu.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import random_model
from fake_kernels import SIZE, with_variance, write_ptx
from fake_plugins import launch, library_with_plugins

from port_deploy.backends import cuda_memory, engine_plugin, native, native_cuda
from port_deploy.backends.base import Availability
from port_deploy.cli.export import main
from port_deploy.engine_info import EngineInfo
from port_deploy.errors import BackendUnavailableError, InputError
from port_deploy.export import fused_kernel, fused_network, to_engine
from port_deploy.export.engine_options import BuildOptions
from port_deploy.export.fused_kernel import find_ptx, make_kernel
from port_deploy.export.fused_network import build_network, plan_fused
from port_deploy.export.to_engine import build_engine
from port_deploy.sidecar import INPUTS, OUTPUTS, Sidecar
from port_deploy.weights import load_model, model_from_bytes


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "layers"
    write_ptx(folder)
    monkeypatch.setattr(fused_kernel, "layers_folder", lambda: folder)
    return folder


@pytest.mark.parametrize("version", ["10.9.0", "11.4.0"])
@pytest.mark.parametrize("kind", ["heatmaps", "joints"])
@pytest.mark.parametrize("model", ["hand21", "mpii16", "hand21 without", "mpii16 without"])
def test_the_network_ahead_of_time(
    kernels: Path, monkeypatch: pytest.MonkeyPatch, version: str, kind: Any, model: str
) -> None:
    library = library_with_plugins(version, monkeypatch)
    loaded = with_variance(model)
    fused = plan_fused(library, loaded, kind, "fp16", SIZE, "8.9")
    assert fused.way == "aot"
    assert version in fused.reason
    network, keep = build_network(library, library.Builder(None), fused)
    assert library.log.of("network") == [1 << (1 if version.startswith("10") else 0)]  # strongly typed
    count = loaded.spec.joints
    side = Sidecar("engine", "m", "", 0, loaded.spec, kind, "fp16", heatmap_size=SIZE if kind == "heatmaps" else None)
    for tensors, promised in ((network.inputs, "inputs"), (network.outputs, "outputs")):
        wanted = [(t["name"], t["dtype"], tuple(-1 if n == "B" else n for n in t["shape"]))
                  for t in side.to_json()[promised]]  # fmt: skip
        assert [(t.name, t.dtype, t.shape) for t in tensors] == wanted
    (layer,) = [entry for entry in network.layers if entry.kind == "plugin"]
    for batch in (1, 7):
        started = launch(layer, batch)
        *inputs, packed, number, joints, confidence, state = started.arguments[:8]
        assert started.arguments[8:] == list(network.outputs[3:])
        assert ("port_line_param_1" in started.ptx) == loaded.spec.config.variance
        assert inputs == network.inputs
        assert number == started.grid_x == batch
        assert (joints, confidence) == tuple(network.outputs[:2])
        assert (started.grid_y, started.grid_z, started.block_y, started.block_z) == (1, 1, 1, 1)
        assert started.shared_mem <= 48 << 10
        assert started.name == "port_line"
        assert f"fp16_{2 if model.startswith('mpii16') else 3}_sm80" in started.ptx
    module = native.core().engine_layer(loaded.data, model, "fp16", *(SIZE if kind == "heatmaps" else (0, 0)))
    assert packed.made_by.values.tobytes() == module["weights"]
    assert any(packed.made_by.values is kept for kept in keep)
    assert state.dtype == "int32"
    assert state.shape == (-1, module["state_words"])
    mask = network.outputs[2].made_by
    assert mask.kind == "cast"
    if model.startswith("mpii16"):  # no scratch memory behind the mask
        assert mask.of is state
        assert state.shape == (-1, count)
    else:
        assert mask.of.made_by.kind == "gather"
        assert mask.of.made_by.of is state
        assert mask.of.made_by.axis == 1
        np.testing.assert_array_equal(mask.of.made_by.indices.made_by.values, np.arange(count))
    build_network(library, library.Builder(None), fused)  # once more in one process: the operator is known


def test_kernels_fit_the_gpu(kernels: Path) -> None:
    assert "fp16_3_sm75" in find_ptx("fp16", 3, "7.5")
    assert "fp16_3_sm80" in find_ptx("fp16", 3, "12.1")
    assert "fp32_2_sm75" in find_ptx("fp32", 2, "9.0")
    with pytest.raises(InputError, match=r"bf16 kernels need compute capability 8\.0 or later, this GPU has 7\.5"):
        find_ptx("bf16", 4, "7.5")


def test_a_build_without_cuda_has_no_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_kernel, "layers_folder", lambda: tmp_path)
    library = library_with_plugins("11.4.0", monkeypatch)
    with pytest.raises(BackendUnavailableError, match=r"--fuse needs a build with PORT_CUDA=ON.*PORT_CUDA=ON pip"):
        plan_fused(library, load_model("hand21"), "heatmaps", "fp32", SIZE, "8.9")


def test_classic_plugins_where_there_is_no_other_way(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hand, wide = load_model("hand21"), random_model("soft", layers=1, width=256, heads=4, head_dim=64)
    old, new = library_with_plugins("10.3.0"), library_with_plugins("11.4.0", monkeypatch)
    with pytest.raises(BackendUnavailableError, match=r"classic plugin \(tensorrt 10\.3\.0 has no ahead-of-time"):
        plan_fused(old, hand, "joints", "fp32", SIZE, "8.9")
    monkeypatch.setattr(native_cuda, "availability", lambda: Availability(True, "NVIDIA T4 (7.5)"))
    assert plan_fused(old, hand, "joints", "fp32", SIZE, "8.9").way == "ipluginv3"
    large = plan_fused(new, wide, "joints", "fp32", SIZE, "8.9")
    assert large.way == "ipluginv3"
    assert "48 KB" in large.reason
    network, _ = build_network(old, old.Builder(None), plan_fused(old, hand, "joints", "fp16", SIZE, "8.9"))
    assert [t.name for t in network.inputs] == list(INPUTS["joints"])
    wanted = [*zip(OUTPUTS["joints"], ("float32", "float32", "bool"), strict=True), ("std", "float32")]
    shapes = [(-1, 21, 2), (-1, 21), (-1, 21), (-1, 21)]
    for name, outputs in (("hand21", 4), ("hand21 without", 3)):
        plan = plan_fused(old, with_variance(name), "joints", "fp16", SIZE, "8.9")
        network, _ = build_network(old, old.Builder(None), plan)
        assert [(t.name, t.dtype) for t in network.outputs] == wanted[:outputs]
        assert [tuple(t.shape) for t in network.outputs] == shapes[:outputs]


@pytest.mark.parametrize("variance", ["", " without"])
@pytest.mark.parametrize("kind", ["heatmaps", "joints"])
def test_a_classic_layer_comes_back_and_launches_on_tensorrts_stream(
    monkeypatch: pytest.MonkeyPatch, kind: str, variance: str
) -> None:
    library = library_with_plugins("10.3.0")
    model = with_variance("mpii16" + variance)
    plugin = engine_plugin.make_plugin(library, model, "fp16")
    ((creator, namespace),) = library.get_plugin_registry().creators
    assert engine_plugin.register(library) is creator  # once
    assert namespace == plugin.plugin_namespace == "port"
    loaded = creator.create_plugin("line", plugin.get_fields_to_serialize(), "RUNTIME")
    assert (loaded.data, loaded.precision) == (model.data, "fp16")
    calls: list[Any] = []
    refiner = SimpleNamespace(
        run_layer=lambda *given: calls.append(("run", *given)),
        refine_layer=lambda *given: calls.append(("refine", *given)),
    )
    made: list[str] = []
    monkeypatch.setattr(engine_plugin, "_refiner_for", lambda data, precision: made.append(precision) or refiner)
    context = loaded.attach_to_context(None)
    assert made == ["fp16"]  # not within the first launch, which may be captured
    shape = (5, 16, 64, 48) if kind == "heatmaps" else (5, 16, 2)
    outputs = [40, 50, 60] if variance else [40, 50, 60, 65]
    context.enqueue([SimpleNamespace(dims=shape)], [], [10, 20, 30], outputs, None, 70)
    out = (30, 40, 50, 60, 0 if variance else 65)
    assert calls == [("run", 10, shape, 20, out, 70) if kind == "heatmaps" else ("refine", 10, 20, 5, out, 70)]
    assert made == ["fp16"]
    assert model_from_bytes(loaded.data, "layer").spec == model.spec


@pytest.fixture
def build(kernels: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def run(model: Any, version: str = "11.4.0", **options: Any) -> Any:
        library = library_with_plugins(version, monkeypatch)
        monkeypatch.setenv("PORT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(to_engine, "import_library", lambda name: library)
        monkeypatch.setattr(to_engine, "without_initializer", lambda data, *names: data)
        for name, value in (("has_bindings", True), ("device_name", "NVIDIA L4"), ("compute_capability", "8.9")):
            monkeypatch.setattr(cuda_memory, name, lambda *_, value=value: value)
        monkeypatch.setattr(cuda_memory, "select_device", lambda device: None)
        source = Sidecar("onnx", "m.onnx", "0", 1, load_model("mpii16").spec, "heatmaps", "fp16")
        chosen = BuildOptions(flavour="tensorrt", **({"fuse": True} | options))
        return build_engine(b"onnx", source, SIZE, (1, 4, 16), chosen, weights=model), library

    return run


def test_an_engine_says_how_it_was_fused(build: Any) -> None:
    model = load_model("mpii16")
    built, library = build(model)
    assert built.info.fused == "aot"
    assert EngineInfo.from_json(json.loads(json.dumps(built.info.to_json()))) == built.info
    assert library.log.of("parse") == []  # nothing of ONNX
    (profile,) = library.log.of("profile")
    assert profile["heatmaps"] == tuple((b, 16, *SIZE) for b in (1, 4, 16))
    assert profile["affine"] == tuple((b, 2, 3) for b in (1, 4, 16))
    assert build(model)[0].cached
    changed = bytearray(model.data)
    changed[-1] ^= 1  # a bit of the last weight
    assert not build(model_from_bytes(bytes(changed), "other"))[0].cached
    plain, library = build(None, fuse=False)
    assert not plain.cached
    assert (plain.info.fused, plain.info.fused_reason) == ("none", "not asked for: --fuse")
    assert len(library.log.of("parse")) == 1
    with pytest.raises(InputError, match="--fuse needs the model itself"):
        build(None)


def test_engines_of_before_are_plain() -> None:
    data = EngineInfo("tensorrt", "10.9.0").to_json()
    del data["fused"], data["fused_reason"]
    assert EngineInfo.from_json(data).fused == "none"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refit": True}, "leave out --strip-weights and --refit"),
        ({"strip_weights": True}, "leave out --strip-weights and --refit"),
        ({"version_compat": True}, "leave out --fuse or --version-compat"),
    ],
)
def test_what_does_not_go_together(options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BuildOptions(fuse=True, **options)


def test_tensorrt_rtx_has_no_plugin_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    network = rtx.Builder(rtx.Logger(rtx.Logger.ERROR)).create_network(0)
    assert [name for name in dir(network) if "plugin" in name] == []  # when it has, --fuse is for it, too
    code = main(["mpii16", "-o", str(tmp_path / "out"), "--trt", "--tensorrt", "tensorrt-rtx", "--fuse"])
    error = capsys.readouterr().err
    assert code == 2
    assert "has no plugin layers, so there is no --fuse: leave it out" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [["--triton", "models"], ["--detector", "d.onnx"]])
def test_where_the_plain_graph_is_all_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["mpii16", "--trt", "--fuse", *more]) == 2
    assert "leave out --fuse" in capsys.readouterr().err


def test_from_an_onnx_there_is_no_fused_engine(small_onnx: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx = str(small_onnx / "joints" / "m.onnx")
    assert main([onnx, "-o", str(small_onnx / "none"), "--trt", "--fuse"]) == 2
    assert "--fuse needs the model itself: start from its .safetensors" in capsys.readouterr().err


def test_what_stands_around_the_layer_builds_in_tensorrt_rtx(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real builder on inputs, packed weights, gather, cast and outputs, with other layers in the plugin's place."""
    rtx = pytest.importorskip("tensorrt_rtx")
    model = load_model("hand21")
    kernel = make_kernel(model, "fp16", None, "8.9")
    fused = fused_network.Fused(model, "joints", "fp16", None, "aot", "", kernel)

    def stand_in(library: Any, network: Any, given: Any, inputs: Any, keep: list[Any]) -> Any:
        weights = np.frombuffer(kernel.weights, np.int32)[: kernel.state_words]
        keep.append(weights)
        packed = network.add_constant((1, kernel.state_words), weights).get_output(0)
        first = network.add_gather(inputs[1], network.add_constant((1,), np.zeros(1, np.int32)).get_output(0), 1)
        column = network.add_cast(first.get_output(0), library.int32).get_output(0)
        state = network.add_elementwise(column, packed, library.ElementWiseOperation.SUM)
        copies = [network.add_identity(inputs[i]).get_output(0) for i in (0, 1, 1)]
        outputs = [*copies[:2], state.get_output(0), copies[2]]
        return SimpleNamespace(get_output=lambda i: outputs[i], name="")

    monkeypatch.setattr(fused_network, "_add_aot", stand_in)
    builder = rtx.Builder(rtx.Logger(rtx.Logger.ERROR))
    network, keep = build_network(rtx, builder, fused)
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    assert model.spec.config.variance
    assert [t.name for t in outputs] == [*OUTPUTS["joints"], "std"]
    assert [t.dtype for t in outputs] == [rtx.float32, rtx.float32, rtx.bool, rtx.float32]
    assert [tuple(t.shape) for t in outputs] == [(-1, 21, 2), (-1, 21), (-1, 21), (-1, 21)]
    config = builder.create_builder_config()
    config.add_optimization_profile(to_engine._profile(builder, network, SIZE, (1, 4, 16)))
    assert builder.build_serialized_network(network, config) is not None
    del keep
