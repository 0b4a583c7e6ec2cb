# SPDX-License-Identifier: Apache-2.0
"""port-export --check: real graphs, broken in one way each, asked of the real TensorRT-RTX parser; exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import gpu_present
from fake_plugins import library_with_plugins
from fake_tensorrt import fake_tensorrt

from port_deploy.backends import cuda_memory
from port_deploy.cli.export import main
from port_deploy.export import ExportOptions, fused_kernel, preflight, to_engine
from port_deploy.export.engine_options import BuildOptions
from port_deploy.export.preflight import check_export, failed

onnx = pytest.importorskip("onnx")
pytest.importorskip("tensorrt_rtx")

RTX = BuildOptions("tensorrt-rtx")


def detector(batch: Any = "B", width: Any = 16, opset: int = 17, kind: int = 1, operator: str = "Relu") -> Any:
    """A graph of two nodes, image [batch, 3, 16, width] to maps."""
    h = onnx.helper
    domain = "" if operator == "Relu" else "no.such.domain"
    nodes = [
        h.make_node("Mul", ["image", "scale"], ["scaled"], name="multiply"),
        h.make_node(operator, ["scaled"], ["maps"], name="last", domain=domain),
    ]
    shape = [batch, 3, 16, width]
    scale = h.make_tensor("scale", kind, [1], [2.0])
    tensors = [h.make_tensor_value_info(n, kind, shape) for n in ("image", "maps")]
    graph = h.make_graph(nodes, "detector", tensors[:1], tensors[1:], [scale])
    domains = [h.make_opsetid("", opset), *([h.make_opsetid(domain, 1)] if domain else [])]
    return h.make_model(graph, opset_imports=domains, ir_version=8)


def found(path: Path, proto: Any = None, batch: tuple[int, int, int] = (1, 2, 4), **build: Any) -> dict[str, Any]:
    place = path / "d.onnx"
    place.write_bytes((proto or detector()).SerializeToString())
    options = ExportOptions(("engine",), batch=batch, build=BuildOptions(**{"flavour": "tensorrt-rtx", **build}))
    return {f.check: f for f in check_export(place, path / "out", options)}


def test_a_graph_that_will_build(tmp_path: Path) -> None:
    findings = found(tmp_path)
    assert not failed([*findings.values()])
    assert findings["operators"].text.startswith("2 kinds in 2 nodes, all taken by tensorrt-rtx")
    assert findings["shapes"].text == "image [B, 3, 16, 16]; batch 1, 2, 4"
    assert findings["weights"].text.startswith("1 FLOAT (strongly typed")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "check", "message"),
    [
        ({"operator": "Hardest"}, "operators", "node 'last' (Hardest): "),
        ({"width": "W"}, "shapes", "image has a free axis beside the batch"),
        ({"batch": 1}, "shapes", "image has a fixed batch of 1: export it with a free one, or ask for --batch 1,1,1"),
        ({"kind": onnx.TensorProto.DOUBLE}, "types", "TensorRT has no such type: image (DOUBLE), maps (DOUBLE)"),
    ],
)
def test_what_a_build_would_fail_on(tmp_path: Path, changes: dict[str, Any], check: str, message: str) -> None:
    finding = found(tmp_path, detector(**changes))[check]
    assert finding.status == "error"
    assert message in finding.text


def test_a_fixed_batch_that_is_asked_for_is_fine(tmp_path: Path) -> None:
    assert found(tmp_path, detector(batch=2), (2, 2, 2))["shapes"].status == "ok"


def test_a_file_that_is_no_onnx(tmp_path: Path) -> None:
    (tmp_path / "d.onnx").write_bytes(b"\x00no")
    findings = check_export(tmp_path / "d.onnx", tmp_path, ExportOptions(("engine",), build=RTX))
    assert (findings[-1].check, findings[-1].status) == ("graph", "error")
    assert "not a valid ONNX model" in findings[-1].text


def test_targets_and_options_that_the_library_lacks(tmp_path: Path) -> None:
    assert "cannot build for sm_90: use sm_75" in found(tmp_path, targets=("sm_90",))["target"].text
    assert found(tmp_path, targets=("sm_89",))["target"].text == "sm_89"
    assert "has no --version-compat" in found(tmp_path, version_compat=True)["builder"].text


def test_a_cache_and_an_output_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PORT_CACHE", str(tmp_path / "file" / "cache"))
    findings = {
        f.check: f for f in check_export(None, tmp_path / "file" / "out", ExportOptions(("engine",), build=RTX))
    }
    assert findings["output"].status == "error"
    assert (findings["cache"].status, "built anew each time" in findings["cache"].text) == ("note", True)


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage)
    findings = {f.check: f for f in check_export(None, tmp_path, ExportOptions(("engine",), build=RTX))}
    assert findings["output"].status == "error"
    assert findings["output"].text.endswith("0.0 GB free: make room for an engine")


def test_missing_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = preflight.find_spec
    monkeypatch.setattr(preflight, "find_spec", lambda name: None if name in ("torch", "onnxscript") else real(name))
    findings = {f.check: f for f in check_export("hand21", tmp_path, ExportOptions(("engine",), build=RTX))}
    assert findings["libraries"].status == "error"
    assert findings["libraries"].text.startswith("torch, onnxscript not installed: pip install")
    assert findings["model"].text == "hand21 can be read; its graph was not looked at"


def test_a_gpu_with_less_memory_than_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for TensorRT and a GPU."""
    monkeypatch.setattr(to_engine, "import_library", lambda name: fake_tensorrt("10.9.0"))
    facts = {"device_state": None, "has_bindings": True, "device_name": "T4", "compute_capability": "7.5"}
    for name, value in (facts | {"free_memory": (1 << 29, 1 << 34)}).items():
        monkeypatch.setattr(cuda_memory, name, lambda *_, value=value: value)
    findings = {
        f.check: f for f in check_export(None, tmp_path, ExportOptions(("engine",), build=BuildOptions("tensorrt")))
    }
    assert findings["builder"].text == "tensorrt 10.9.0 on T4 (7.5)"
    assert findings["GPU"].status == "note"
    assert "0.5 of 17.2 GB free, less than the workspace of 1.1 GB: give a smaller --workspace" in findings["GPU"].text


def test_the_fused_layer_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for TensorRT and a GPU, in a build that may or may not have kernels."""
    monkeypatch.setattr(to_engine, "import_library", lambda name: library_with_plugins("11.4.0", monkeypatch))
    facts = {"device_state": None, "has_bindings": True, "device_name": "T4", "compute_capability": "7.5"}
    for name, value in (facts | {"free_memory": (1 << 33, 1 << 34)}).items():
        monkeypatch.setattr(cuda_memory, name, lambda *_, value=value: value)
    monkeypatch.setattr(preflight, "_graph_of", lambda *_: (b"", None))  # the graph is another test's
    options = ExportOptions(("engine",), precision="bf16", build=BuildOptions("tensorrt", fuse=True))
    monkeypatch.setattr(fused_kernel, "layers_folder", lambda: tmp_path)
    findings = {f.check: f for f in check_export("mpii16", tmp_path, options) if f.status == "error"}
    assert "--fuse needs a build with PORT_CUDA=ON" in findings["builder"].text
    (tmp_path / "port_line_bf16_2_sm80.ptx").write_text("")
    findings = {f.check: f for f in check_export("mpii16", tmp_path, options) if f.status == "error"}
    assert "bf16 kernels need compute capability 8.0 or later, this GPU has 7.5" in findings["builder"].text
    monkeypatch.setattr(fused_kernel, "specialise", lambda ptx, constants: ptx)
    monkeypatch.setattr(cuda_memory, "compute_capability", lambda *_: "8.9")
    ok = {f.check: f for f in check_export("mpii16", tmp_path, options)}["fused layer"]
    assert (ok.status, ok.text[:5]) == ("ok", "aot: ")


@pytest.mark.skipif(gpu_present(), reason="says what happens without a GPU")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", "--tensorrt", "tensorrt-rtx", "-o", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "✓ builder" in out
    assert "· GPU" in out
    assert out.endswith("nothing stands in the way\n")
    (tmp_path / "d.onnx").write_bytes(detector(width="W").SerializeToString())
    arguments = [
        str(tmp_path / "d.onnx"),
        "--check",
        "--tensorrt",
        "tensorrt-rtx",
        "-o",
        str(tmp_path / "out"),
        "--json",
    ]
    assert main(arguments) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["passed"] is False
    assert [f["check"] for f in answer["findings"] if f["status"] == "error"] == ["shapes"]
    for wrong in ("nothing.onnx", "nothing.safetensors", "nothing"):
        assert main([wrong, "--check"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["--trt"]) == 2
    assert "expected a model" in capsys.readouterr().err


def test_a_model_is_looked_at_as_the_graph_that_it_becomes(small_onnx: Path, tmp_path: Path) -> None:
    options = ExportOptions(("engine",), input="joints", precision="fp16", build=RTX)
    findings = {f.check: f for f in check_export(small_onnx / "m.safetensors", tmp_path, options)}
    assert not failed([*findings.values()])
    assert findings["model"].text == "m.safetensors: joints, fp16, 21 joints"
    assert "FLOAT16" in findings["weights"].text
    assert "all taken by tensorrt-rtx" in findings["operators"].text


def test_a_detector_is_looked_at_alone(tmp_path: Path) -> None:
    from port_deploy.export import DetectorOptions

    (tmp_path / "d.onnx").write_bytes(detector(operator="Hardest").SerializeToString())
    given = DetectorOptions(str(tmp_path / "d.onnx"))
    options = ExportOptions(("engine",), build=RTX, batch=(1, 2, 4), detector=given)
    findings = {f.check: f for f in check_export(None, tmp_path, options)}
    assert findings["detector shapes"].status == "ok"
    assert findings["detector operators"].status == "error"
    assert "node 'last' (Hardest)" in findings["detector operators"].text
    named = ExportOptions(("engine",), build=RTX, detector=DetectorOptions("resnet50", "no.pth"))
    findings = {f.check: f for f in check_export(None, tmp_path, named)}
    assert findings["detector"].text == "no file 'no.pth' for --checkpoint"
