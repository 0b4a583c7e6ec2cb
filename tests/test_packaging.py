# SPDX-License-Identifier: Apache-2.0
"""The package as it is declared: commands, extras, licence lines, import contracts that bite, targets that exist."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "port_deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SOURCES = sorted(PACKAGE.rglob("*.py"))

DISTRIBUTION = {
    "PIL": "pillow",
    "skimage": "scikit-image",
    "cuda": "cuda-bindings",
    "tensorrt_rtx": "tensorrt-rtx-cu13",
}
"""What brings a library, where its name is not the library's own."""

CALLERS_OWN = {"cupy"}
"""Libraries whose arrays a caller may pass, and that are never needed here."""


LINT_HERE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "ScikitBuild" not in type(f).__name__]  # the editable install's
sys.path.insert(0, "")
from importlinter.cli import lint_imports_command
lint_imports_command()
"""
"""import-linter on the package of the working directory."""


def imports(tree: ast.AST) -> set[str]:
    """Names of all modules that a file imports, those inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def parsed(path: Path) -> ast.AST:
    return ast.parse(path.read_text("utf-8"), str(path))


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\s<>=!~;\[]", r, maxsplit=1)[0] for r in requirements}


@pytest.mark.parametrize(("command", "target"), sorted(PROJECT["project"]["scripts"].items()))
def test_every_command_has_its_function(command, target):
    module, function = target.split(":")
    main = getattr(importlib.import_module(module), function)
    assert main(["--help"]) == 0
    assert main(["--no-such-option"]) == 2


def test_what_the_package_imports_is_declared():
    declared = requirement_names(PROJECT["project"]["dependencies"])
    assert declared == {"numpy", "safetensors"}
    for requirements in PROJECT["project"]["optional-dependencies"].values():
        declared |= requirement_names(requirements)
    used = {name.split(".")[0] for path in SOURCES for name in imports(parsed(path))}
    third_party = used - set(sys.stdlib_module_names) - {"port_deploy"} - CALLERS_OWN
    assert "torch" in third_party  # the search finds imports inside functions
    assert {DISTRIBUTION.get(name, name) for name in third_party} - declared == set()


def test_all_names_only_extras_that_exist():
    extras = PROJECT["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    named = set(re.search(r"\[(.*)\]", everything).group(1).split(","))
    # Plain TensorRT would bring gigabytes for a GPU that may not be there; RTX builds engines without one.
    assert named == set(extras) - {"all", "tensorrt"}


def test_the_extension_module_is_imported_in_one_file():
    importing = [p.relative_to(PACKAGE).as_posix() for p in SOURCES if "port_deploy._core" in imports(parsed(p))]
    assert importing == ["backends/native.py"]


def tracked(*patterns: str) -> list[Path]:
    """Files of the source tree, build trees and environments left out."""
    folders = ("port_deploy", "csrc", "python", "tests", "benchmarks")
    files = [ROOT / "CMakeLists.txt"]
    for folder in folders:
        for pattern in patterns:
            files += (ROOT / folder).rglob(pattern)
    return sorted(f for f in files if f.is_file())


def test_every_source_file_names_its_licence():
    files = tracked("*.py", "*.pyi", "*.cpp", "*.h", "*.hpp", "*.cu", "*.cuh", "*.cmake", "CMakeLists.txt")
    assert len(files) > 100
    unnamed = [
        f.relative_to(ROOT).as_posix()
        for f in files
        if "SPDX-License-Identifier: Apache-2.0" not in "".join(f.read_text("utf-8").splitlines(True)[:2])
        and f.stat().st_size
    ]
    assert unnamed == []


def test_the_installed_version_is_the_declared_one():
    import port_deploy

    if port_deploy.__version__ == "0+unknown":
        pytest.skip("port-deploy is not installed: pip install -e .")
    assert port_deploy.__version__ == PROJECT["project"]["version"]


@pytest.mark.parametrize(
    ("file", "line", "expected"),
    [
        ("refiner.py", "import torch", "nowhere else BROKEN"),
        ("weights.py", "from port_deploy import refiner", "the specification BROKEN"),
        ("nn/port.py", "from port_deploy.backends import select", "the specification BROKEN"),
        ("verify.py", "import openvino", "times it bare BROKEN"),
        ("newcomer.py", "", "newcomer"),
    ],
)
def test_the_import_contracts_bite(file, line, expected, tmp_path):
    pytest.importorskip("importlinter")
    shutil.copytree(PACKAGE, tmp_path / "port_deploy", ignore=shutil.ignore_patterns("data", "*.so", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "port_deploy" / file).open("a", encoding="utf-8") as target:
        target.write(f"\n{line}\n")
    command = [sys.executable, "-c", LINT_HERE, "--no-cache"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    assert expected in " ".join(result.stdout.split())


@pytest.mark.parametrize("target", ["install", "demo", "test", "lint", "bench", "wheel", "test-wheel", "test-asan"])
def test_make_knows_the_target(target):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    result = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_ci_is_a_script_that_parses():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
