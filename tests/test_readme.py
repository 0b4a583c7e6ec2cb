# SPDX-License-Identifier: Apache-2.0
"""What README.md prints works: Python blocks run, C++ compiles, commands and options exist, tables are current."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from port_deploy.calibration import KEY
from port_deploy.cli.evaluate import MARKDOWN_HEADER
from port_deploy.cli.evaluate import main as evaluate
from port_deploy.cli.info import models_markdown
from port_deploy.info import bundled_model_facts
from port_deploy.skeleton import bundled_skeletons
from port_deploy.weights import bundled_models, load_model

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
MODULES = {"port-eval": "evaluate"}


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", README.read_text("utf-8"), re.M | re.S)
    assert found, f"README has no {language} block"
    return found


def commands() -> list[str]:
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


def help_of(command: str) -> str:
    module = importlib.import_module(f"port_deploy.cli.{MODULES.get(command, command.removeprefix('port-'))}")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert module.main(["--help"]) == 0
    return output.getvalue()


@pytest.mark.parametrize("index", range(len(blocks("python"))))
def test_python_blocks_run(
    index: int, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = blocks("python")[index]
    monkeypatch.chdir(tmp_path)
    if "import torch" in block:
        torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install "port-deploy[export]"')
    if "mobilenetv2.pth" in block:
        from mmpose_reference import blank

        torch.save({"state_dict": blank("mobilenetv2").state_dict()}, "mobilenetv2.pth")
    if "PoseEngine.load" in block:
        from detector_models import tiny_detector

        from port_deploy.export import DetectorOptions, ExportOptions, export_model

        detector = DetectorOptions(str(tiny_detector(tmp_path / "mobilenetv2.onnx")), joints="hand21")
        export_model("hand21", "exported", ExportOptions(("onnx",), detector=detector))
    namespace: dict[str, object] = {}
    exec(compile(block, f"README python block {index + 1}", "exec"), namespace)
    if "print" in block:
        assert "joints rebuilt" in capsys.readouterr().out


def test_cpp_block_compiles(tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    assert compiler, "expected a C++ compiler: the package cannot be built without one either"
    for block in blocks("cpp"):
        (tmp_path / "block.cpp").write_text(block)
        options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{ROOT / 'csrc' / 'include'}"]
        done = subprocess.run([compiler, *options, tmp_path / "block.cpp"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_commands_and_their_options_exist() -> None:
    scripts = re.findall(r"^(port-\w+) = ", (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    used = set()
    for line in commands():
        program, *arguments = shlex.split(line)
        if program == "make":
            assert set(arguments) <= set(targets), line
        elif program.startswith("port-"):
            used.add(program)
            assert program in scripts, line
            text = help_of(program)
            for option in (a for a in arguments if a.startswith("-")):
                assert re.search(rf"(^|[\s,\[]){re.escape(option)}\b", text), (
                    f"{line}: {program} has no option {option}"
                )
        else:
            assert program in ("pip", "cmake"), line
    assert {"port-info", "port-train", "port-eval", "port-export"} <= used
    mentioned = set(re.findall(r"`(port-[a-z]+)", README.read_text("utf-8")))
    assert mentioned <= {*scripts, "port-deploy"}


def test_extras_named_in_the_readme_are_those_of_the_package() -> None:
    text = README.read_text("utf-8")
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    section = project.split("[project.optional-dependencies]")[1].split("\n[")[0]
    declared = set(re.findall(r"^([a-z-]+) = ", section, re.M))
    table = text.split("| extra | for |")[1].split("\n\n")[0]
    assert set(re.findall(r"`([a-z-]+)`", "\n".join(r.split("|")[1] for r in table.splitlines()[2:]))) == declared


def test_links_and_pictures_are_there_and_small() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text("utf-8")):
        path = ROOT / target
        assert path.exists(), target
        if path.suffix in (".jpg", ".png", ".svg"):
            assert path.stat().st_size < 200_000, target


def test_calibrated_figures_are_the_model_files() -> None:
    text = " ".join(README.read_text("utf-8").split("\nCalibrated by ")[1].split("<!-- eval:start -->")[0].split())
    for name, detector, measures in (
        *((n, "mobilenetv2", ("epe", "p_epe", "epe_root")) for n in ("hand21", "hand21-free", "hand21-paper")),
        *((n, "openpose", ("epe",)) for n in ("mpii16", "mpii16-free")),
    ):
        held_out = load_model(name).spec.metrics[KEY][detector]["held_out"]
        for measure in measures:
            assert f"{held_out[measure][1]:.2f}" in text, (name, measure)
    off = [("coco17", "openpose"), ("coco17-free", "openpose")]
    off += [(n, "lite-hrnet18") for n in ("coco17", "coco17-free", "mpii16", "mpii16-free")]
    for name, detector in off:
        assert load_model(name).spec.metrics[KEY][detector]["threshold"] == 0, (name, detector)


def test_coverage_of_the_standard_deviations_is_the_model_files() -> None:
    ranges = re.search(r"the models have (\d+) to (\d+) % and (\d+) to (\d+) %", README.read_text("utf-8"))
    assert ranges is not None
    shares: tuple[list[float], list[float]] = ([], [])
    for spec in (load_model(n).spec for n in bundled_models()):
        groups = ("masked", "visible") if spec.refine == "all" else ("masked",)
        for source in spec.metrics.get("held_out_variance", {}).get("sources", {}).values():
            for k in (1, 2):
                shares[k - 1].extend(source[f"within_{k}_{group}"] for group in groups)
    found = [round(limit(group)) for group in shares for limit in (min, max)]
    assert found == [int(n) for n in ranges.groups()]


def test_model_table_is_what_port_info_renders() -> None:
    table = README.read_text("utf-8").split("<!-- models:start -->\n")[1].split("<!-- models:end -->")[0]
    assert table == models_markdown(bundled_model_facts()), "port-info --markdown README.md mends it"


def test_evaluation_rows_are_what_port_eval_prints(
    shared_data: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    table = README.read_text("utf-8").split("<!-- eval:start -->\n")[1].split("<!-- eval:end -->")[0]
    header, rows = table.splitlines()[:2], table.splitlines()[2:]
    assert tuple(header) == MARKDOWN_HEADER
    assert len(rows) >= 3
    for row in rows:
        found = re.match(r"\| (\w+)(?: (\w+))?(?: by (\w+))? \([\d,]+\) \| `([\w-]+)`, ([\d.]+) \|", row)
        assert found, row
        file = str(shared_data(f"data/{found[1]}.npz"))
        arrays = ["--pred", found[2] or "pred", "--conf", found[3] or "conf"]
        assert evaluate(["--model", found[4], "--threshold", found[5], *arrays, "--markdown", file]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == row, "python benchmarks/evaluate.py DATA mends it"


def test_skeletons_are_all_named() -> None:
    for name in bundled_skeletons():
        assert f"`{name}`" in README.read_text("utf-8")
