# SPDX-License-Identifier: Apache-2.0
"""port-export --trt --fuse without a GPU: the kernel's PTX, the network around it, both ways of plugins, the errors.

TensorRT is a stand-in (fake_plugins.py) that checks every call as NVIDIA's own Python files do; the PTX is real where
nvcc is. The kernel itself runs in csrc/tests/emulated/test_engine_layer.cpp, fused engines in test_tensorrt_gpu.py.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import random_model
from fake_plugins import launch, library_with_plugins

from port_deploy.backends import cuda_memory, engine_plugin, native, native_cuda
from port_deploy.backends.base import Availability
from port_deploy.cli.export import main
from port_deploy.engine_info import EngineInfo
from port_deploy.errors import BackendUnavailableError, ExportError, InputError
from port_deploy.export import fused_kernel, fused_network, to_engine
from port_deploy.export.engine_options import BuildOptions
from port_deploy.export.fused_kernel import drop_last_argument, find_ptx, make_kernel, specialise
from port_deploy.export.fused_network import build_network, plan_fused
from port_deploy.export.to_engine import build_engine
from port_deploy.sidecar import INPUTS, OUTPUTS, Sidecar
from port_deploy.weights import Model, load_model, model_from_bytes, model_to_bytes

ROOT = Path(__file__).parents[1]
SIZE = (64, 48)

# As nvcc writes it, in short; 24 bytes of constants.
PTX = """\
.version 9.0
.target sm_80
.address_size 64

.const .align 8 .b8 port_line_constants[{size}];
.visible .entry port_line(
\t.param .u64 port_line_param_0,
\t.param .u64 port_line_param_1
)
{{
\tld.param.u64 \t%rd3, [port_line_param_0];
\tld.param.u64 \t%rd4, [port_line_param_1];
\tld.const.u32 \t%r1, [port_line_constants];
\t.pragma "used_bytes_mask 240";
\tld.const.v2.u32 \t{{%r2, %r3}}, [port_line_constants+4];
\tld.const.f32 \t%f1, [port_line_constants+12];
\tld.const.s32 \t%rd1, [port_line_constants+16];
\tld.const.u64 \t%rd2, [port_line_constants+16];
\tret;
}}
"""


def write_ptx(folder: Path) -> None:
    """A stand-in for every kernel that a build with CUDA has."""
    folder.mkdir(exist_ok=True)
    for kind in ("fp32_{}_sm75", "fp16_{}_sm75", "fp16_{}_sm80", "bf16_{}_sm80"):
        for columns in (2, 3, 4):
            text = PTX.format(size=424).replace("sm_80", f"sm_80 // {kind.format(columns)}")
            (folder / f"port_line_{kind.format(columns)}.ptx").write_text(text)


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "layers"
    write_ptx(folder)
    monkeypatch.setattr(fused_kernel, "layers_folder", lambda: folder)
    return folder


@pytest.fixture(scope="module")
def real_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kernels compiled now, one per precision."""
    if shutil.which("nvcc") is None or shutil.which("ptxas") is None:
        pytest.skip("no nvcc and ptxas: the kernels cannot be compiled here")
    folder = tmp_path_factory.mktemp("layers")
    source = ROOT / "csrc" / "cuda"
    for name, form, oldest in (
        ("fp32_3_sm75", "port::kernels::Plain", 75),
        ("fp16_3_sm80", "port::device::Half", 80),
        ("bf16_2_sm80", "port::device::Bfloat", 80),
    ):
        columns = name.split("_")[1]
        command = ["nvcc", "-ptx", f"-arch=compute_{oldest}", "-std=c++17", f"-I{source}"]
        command += [f"-DPORT_LAYER_FORMAT={form}", f"-DPORT_LAYER_COLUMNS={columns}"]
        subprocess.run(
            [*command, "-o", folder / f"port_line_{name}.ptx", source / "engine_layer.cu"],
            check=True,
            capture_output=True,
        )
    return folder


def test_reads_of_constants_become_numbers() -> None:
    constants = np.array([7, 8, 9, 0, -2, 1], np.int32).tobytes()
    constants = constants[:12] + np.float32(1.5).tobytes() + constants[16:]
    text = specialise(PTX.format(size=24), constants)
    assert "port_line_constants" not in text
    assert ".version 7.8\n" in text
    assert ".pragma" not in text  # newer than 7.8
    body = text[text.index("{") :].split()
    joined = " ".join(body)
    assert "mov.b32 %r1, 7;" in joined
    assert "mov.b32 %r2, 8; mov.b32 %r3, 9;" in joined
    assert "mov.f32 %f1, 0f3FC00000;" in joined
    assert "mov.b64 %rd1, -2;" in joined
    assert f"mov.b64 %rd2, {(1 << 32) + 0xFFFFFFFE};" in joined


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PTX.format(size=16), "of 24 bytes, got one of 16 bytes"),
        ("nothing", "of 24 bytes, got none"),
        (PTX.format(size=24).replace("ld.const.u64", "ld.const.u16"), "in a way that is not known"),
        (PTX.format(size=24).replace("%rd2, [", "%x2, ["), "reads a constant into %x2"),
    ],
)
def test_ptx_of_another_build_is_refused(text: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        specialise(text, bytes(24))


def test_a_last_argument_that_nobody_passes_becomes_null() -> None:
    text = drop_last_argument(PTX.format(size=24))
    assert "port_line_param_1" not in text
    assert ".param .u64 port_line_param_0\n)" in text
    assert "mov.b64 %rd4, 0;" in text
    assert "ld.param.u64 \t%rd3, [port_line_param_0];" in text
    for wrong in (PTX.replace("[port_line_param_1]", "[port_line_param_1+4]"), PTX.replace(".u64 port", ".u32 port")):
        with pytest.raises(ExportError, match="no last argument"):
            drop_last_argument(wrong.format(size=24))


def with_variance(name: str) -> Model:
    """A bundled model with a random third row; or without it where the name says so."""
    model = load_model(name.removesuffix(" without"))
    wanted = not name.endswith(" without")
    spec = replace(model.spec, config=replace(model.spec.config, variance=wanted))
    rows = np.random.default_rng(0).normal(0, 0.1, (3, spec.config.width)).astype(np.float32)
    weight, bias = model.tensors["head.out.weight"][:2], model.tensors["head.out.bias"][:2]
    if wanted:
        weight, bias = np.concatenate([weight, rows[2:]]), np.concatenate([bias, rows[2, :1]])
    tensors = {**model.tensors, "head.out.weight": weight, "head.out.bias": bias}
    return model_from_bytes(model_to_bytes(spec, tensors), name)


@pytest.mark.parametrize("variance", ["", " without"])
@pytest.mark.parametrize(
    ("model", "precision", "oldest"), [("hand21", "fp32", 75), ("hand21", "fp16", 80), ("mpii16", "bf16", 80)]
)
def test_the_kernel_assembles_without_spills_and_takes_the_arguments_of_the_layer(
    real_kernels: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    model: str,
    precision: Any,
    oldest: int,
    variance: str,
) -> None:
    monkeypatch.setattr(fused_kernel, "layers_folder", lambda: real_kernels)
    library = library_with_plugins("11.4.0", monkeypatch)
    fused = plan_fused(library, with_variance(model + variance), "heatmaps", precision, SIZE, "9.0")
    network, _ = build_network(library, library.Builder(None), fused)
    assert len(network.outputs) == (3 if variance else 4)
    (layer,) = [entry for entry in network.layers if entry.kind == "plugin"]
    started = launch(layer, 5)
    declared = re.search(r"\.entry (\w+)\(([^)]*)\)", started.ptx)
    assert declared is not None
    assert declared[1] == started.name
    kinds = re.findall(r"\.param \.(\w+)", declared[2])
    assert kinds == ["u32" if isinstance(a, int) else "u64" for a in started.arguments]
    assert started.block_x == int(re.search(r"\.maxntid (\d+)", started.ptx)[1])  # type: ignore[index]
    path = tmp_path / "kernel.ptx"
    path.write_text(started.ptx)
    for arch in {oldest, 90, 120}:
        command = ["ptxas", "-v", f"-arch=sm_{arch}", str(path), "-o", str(tmp_path / "kernel.cubin")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "0 bytes spill stores, 0 bytes spill loads" in done.stderr
        registers = re.search(r"Used (\d+) registers", done.stderr)
        assert registers is not None
        assert int(registers[1]) <= 128  # two blocks on a multiprocessor


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
