# SPDX-License-Identifier: Apache-2.0
"""Engines as far as a machine without a GPU goes: TensorRT-RTX builds real ones; loading says why it cannot run them.

The run path is tried with a stand-in for the GPU: how batches are cut and filled does not depend on one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import gpu_present, random_model

from port_deploy.backends import cuda_memory, tensorrt_
from port_deploy.engine_info import EngineInfo
from port_deploy.errors import BackendUnavailableError, EngineMismatchError, ExportError, InputError, ModelFileError
from port_deploy.export.engine_options import BuildOptions
from port_deploy.sidecar import Sidecar, read_sidecar, sidecar_path
from port_deploy.weights import save_model

MODEL = random_model("soft", layers=1, head_dim=16)

without_gpu = pytest.mark.skipif(gpu_present(), reason="says what happens without a GPU")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """m.onnx (joints, fp16), written with PyTorch, and m.engine, built from it without."""
    for library in ("torch", "onnxscript", "onnxruntime", "tensorrt_rtx"):
        pytest.importorskip(library)
    from port_deploy.export import ExportOptions, export_model

    path = tmp_path_factory.mktemp("engine")
    save_model(path / "m.safetensors", MODEL.spec, MODEL.tensors)
    export_model(path / "m.safetensors", path, ExportOptions(("onnx",), input="joints", precision="fp16"))
    blocked = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['onnxscript'] = None\n"
        "from port_deploy.cli.export import main\n"
        f"code = main([{str(path / 'm.onnx')!r}, '-o', {str(path)!r}, '--trt', '--tensorrt', 'tensorrt-rtx',\n"
        "             '--batch', '1,4,16', '--target', 'sm_89,sm_120', '--json'])\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path / "report.json").write_text(done.stdout)
    return path


def test_an_engine_is_built_without_torch(folder: Path) -> None:
    assert (folder / "m.engine").stat().st_size > 10_000
    sidecar = read_sidecar(folder / "m.engine", "engine")
    import tensorrt_rtx

    assert sidecar.engine == EngineInfo(
        "tensorrt-rtx",
        tensorrt_rtx.__version__,
        ("8.9", "12.0"),
        onnx_sha256=read_sidecar(folder / "m.onnx", "onnx").sha256,
        workspace_bytes=1 << 30,
        fused_reason="not asked for: --fuse",
    )
    assert sidecar.batch == (1, 4, 16)
    assert (sidecar.input, sidecar.precision) == ("joints", "fp16")
    assert sidecar.spec == MODEL.spec


@without_gpu
def test_the_report_says_what_was_verified(folder: Path) -> None:
    (artefact,) = json.loads((folder / "report.json").read_text())["artefacts"]
    assert artefact["kind"] == "engine"
    record = artefact["verification"]
    assert record["passed"] is True
    assert record["artefact_ran"] is False
    assert record["backend"] == "onnxruntime"
    assert record["note"].startswith("the engine was not run (m.engine needs an NVIDIA GPU")
    assert record["note"].endswith("these are the errors of the ONNX that it was built from")


@without_gpu
def test_loading_without_a_gpu_is_one_clean_error(folder: Path) -> None:
    with pytest.raises(BackendUnavailableError, match="needs an NVIDIA GPU, and here there is none") as caught:
        tensorrt_.load(folder / "m.engine")
    assert "\n" not in str(caught.value)
    state = tensorrt_.availability("tensorrt-rtx")
    assert not state.available
    assert "no NVIDIA GPU" in state.detail


@without_gpu
def test_the_library_itself_refuses_cleanly(folder: Path) -> None:
    import tensorrt_rtx

    with pytest.raises(BackendUnavailableError, match=r"tensorrt_rtx .* refuses .*: .*CUDA") as caught:
        tensorrt_.deserialise(folder / "m.engine", (folder / "m.engine").read_bytes(), tensorrt_rtx)
    assert "\n" not in str(caught.value)


def test_what_is_no_engine_is_found_by_its_header(folder: Path) -> None:
    import tensorrt_rtx

    with pytest.raises(BackendUnavailableError, match=r"tensorrt_rtx .* refuses m\.engine: malformed engine: build it"):
        tensorrt_.deserialise("m.engine", b"not an engine" * 100, tensorrt_rtx)


def test_heatmaps_engine_with_a_fixed_size(folder: Path) -> None:
    from port_deploy.export import ExportOptions, export_model

    build = BuildOptions("tensorrt-rtx")
    options = ExportOptions(("engine",), heatmap_size=(48, 40), batch=(2, 4, 8), build=build)
    (done,) = export_model(folder / "m.safetensors", folder / "heatmaps", options)
    assert sorted(p.name for p in (folder / "heatmaps").iterdir()) == ["m.engine", "m.engine.json"]
    assert done.sidecar.heatmap_size == (48, 40)
    assert done.sidecar.engine is not None
    assert done.sidecar.engine.compute_capabilities == ()
    assert done.verification.passed


@pytest.mark.parametrize(
    ("targets", "flavour", "message"),
    [
        (("sm_42",), "tensorrt-rtx", r"cannot build for sm_42: use sm_75, sm_80"),
        ((), "cudnn", "unknown TensorRT 'cudnn'"),
    ],
)
def test_targets_and_flavours_that_do_not_exist(folder: Path, targets: Any, flavour: str, message: str) -> None:
    from port_deploy.export.to_engine import build_engine

    source = read_sidecar(folder / "m.onnx", "onnx")
    with pytest.raises(InputError, match=message):
        build_engine((folder / "m.onnx").read_bytes(), source, (64, 64), (1, 1, 1), BuildOptions(flavour, targets))


def test_a_graph_that_the_parser_refuses(folder: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from port_deploy.export.to_engine import build_engine

    proto = onnx.load(folder / "m.onnx")
    node = next(n for n in proto.graph.node if n.op_type == "Softmax")
    node.op_type, node.domain = "Hardest", "no.such.domain"
    proto.opset_import.append(onnx.helper.make_opsetid("no.such.domain", 1))
    source = read_sidecar(folder / "m.onnx", "onnx")
    with pytest.raises(ExportError, match=rf"does not take the ONNX graph: node '{node.name}' \(Hardest\)") as caught:
        build_engine(proto.SerializeToString(), source, (64, 64), (1, 1, 1), BuildOptions("tensorrt-rtx"))
    assert "\n" not in str(caught.value)


class NoGpuTensorRt:
    """Full TensorRT as it behaves without a GPU: its factory answers a null pointer, and the log holds error 35."""

    __version__ = "10.9"
    __name__ = "tensorrt"

    class ILogger:
        ERROR = 1

    @staticmethod
    def Builder(logger: Any) -> Any:
        logger.log(1, "createInferBuilder: Error Code 6: API Usage Error (CUDA initialization failure with error: 35)")
        raise TypeError("pybind11::init(): factory function returned nullptr")


def test_full_tensorrt_without_a_gpu_says_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from port_deploy.export import to_engine

    monkeypatch.setattr(to_engine, "import_library", lambda name: NoGpuTensorRt())
    source = read_sidecar(folder / "m.onnx", "onnx")
    with pytest.raises(ExportError, match=r"without a working NVIDIA GPU \(.*error: 35\)\): run port-export .* sm_89"):
        to_engine.build_engine((folder / "m.onnx").read_bytes(), source, (64, 64), (1, 1, 1), BuildOptions("tensorrt"))


def engine_sidecar(**changes: Any) -> Sidecar:
    values = {
        "kind": "engine",
        "file": "m.engine",
        "sha256": "0",
        "size_bytes": 1,
        "spec": MODEL.spec,
        "input": "joints",
        "precision": "fp32",
        "batch": (4, 8, 16),
        "engine": EngineInfo("tensorrt", "10.9.0", ("8.9",)),
    }
    return Sidecar(**{**values, **changes})


def test_an_engine_names_what_it_was_built_with_and_what_runs() -> None:
    sidecar = engine_sidecar()
    tensorrt_.check_fits("m.engine", sidecar, "10.9.0", "8.9")
    with pytest.raises(BackendUnavailableError, match=r"built with tensorrt 10\.9\.0, this machine has 11\.0.*m\.onnx"):
        tensorrt_.check_fits("m.engine", sidecar, "11.0", "8.9")
    with pytest.raises(BackendUnavailableError, match=r"compute capability 8\.9, this one has 9\.0: build it here"):
        tensorrt_.check_fits("m.engine", sidecar, "10.9.0", "9.0")


def test_engines_that_were_built_to_carry_over() -> None:
    later = engine_sidecar(engine=EngineInfo("tensorrt", "10.9.0", ("8.9",), version_compat=True))
    tensorrt_.check_fits("m.engine", later, "10.13.2", "8.9")
    tensorrt_.check_fits("m.engine", later, "11.0.0", "8.9")
    with pytest.raises(EngineMismatchError, match=r"built with tensorrt 10\.9\.0, this machine has 10\.8\.0"):
        tensorrt_.check_fits("m.engine", later, "10.8.0", "8.9")
    ampere = engine_sidecar(engine=EngineInfo("tensorrt", "10.9.0", ("8.9",), hardware_compat="ampere+"))
    for capability in ("8.0", "8.6", "9.0", "12.0"):
        tensorrt_.check_fits("m.engine", ampere, "10.9.0", capability)
    with pytest.raises(EngineMismatchError, match=r"compute capability 8\.0 or later, this one has 7\.5"):
        tensorrt_.check_fits("m.engine", ampere, "10.9.0", "7.5")


@pytest.mark.parametrize(
    ("capability", "fits"),
    [("7.5", False), ("8.0", True), ("8.9", True), ("9.0", False), ("12.1", True), ("13.0", True)],
)
def test_where_an_rtx_engine_runs(capability: str, fits: bool) -> None:
    sidecar = engine_sidecar(engine=EngineInfo("tensorrt-rtx", "1.0"))
    if fits:
        tensorrt_.check_fits("m.engine", sidecar, "1.0", capability)
    else:
        with pytest.raises(BackendUnavailableError, match="compute capability"):
            tensorrt_.check_fits("m.engine", sidecar, "1.0", capability)


def test_the_sidecar_is_checked_before_the_library_sees_the_file(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.engine"
    path.write_bytes((folder / "m.engine").read_bytes())
    with pytest.raises(ModelFileError, match="expected the sidecar"):
        tensorrt_.load(path)
    data = json.loads(sidecar_path(folder / "m.engine").read_text())
    data["engine"]["version"] = "0.1"
    sidecar_path(path).write_text(json.dumps(data))
    with pytest.raises(BackendUnavailableError, match=r"built with tensorrt-rtx 0\.1, this machine has"):
        tensorrt_.load(path)
    path.write_bytes(b"another")
    with pytest.raises(EngineMismatchError, match="is not the file"):
        tensorrt_.load(path)
    with pytest.raises(InputError, match="engines run on a GPU, got device 'cpu'"):
        tensorrt_.load(folder / "m.engine", device="cpu")


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailableError, match=r'pip install "port-deploy\[tensorrt\]"'):
        tensorrt_.import_library("tensorrt")


@without_gpu
def test_cuda_calls_without_a_gpu_say_why() -> None:
    pytest.importorskip("cuda.bindings")
    assert "no NVIDIA GPU" in str(cuda_memory.device_state())
    with pytest.raises(BackendUnavailableError, match=r"CUDA says: .* see nvidia-smi"):
        cuda_memory.Arena()
    with pytest.raises(BackendUnavailableError, match="CUDA says"):
        cuda_memory.compute_capability()
