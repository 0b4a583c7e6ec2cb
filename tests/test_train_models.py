# SPDX-License-Identifier: Apache-2.0
"""benchmarks/train_models.py: a recipe runs from seed to finished model, goes on where it stopped, and is compared."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch")

from port_deploy.weights import bundled_models, load_model

ROOT = Path(__file__).parents[1]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, with trainings of a few steps on a file of its own."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    sys.modules.pop("train_models", None)
    import train_models as module

    monkeypatch.setattr(module, "COMMON", ("--kind", "soft", "--epoch-poses", "128", "--store", "fp16"))
    monkeypatch.setattr(module, "VARIANCE", ("--variance-only", "--epochs", "1", "--epoch-poses", "256"))
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Motion capture of random poses under COCO's and Human3.6M's names."""
    random = np.random.default_rng(0)
    names = ["LShoulder", "RShoulder", "LHip", "RHip", "LKnee", "RKnee", "LFoot", "RFoot", "LElbow", "RElbow"]
    joints = random.normal(size=(60, len(names), 3)).astype(np.float32)
    np.savez(tmp_path / "mocap.npz", joints3d=joints, names=np.array(names))
    return tmp_path


def test_every_bundled_model_of_the_soft_kind_has_a_recipe(models: Any) -> None:
    soft = {n for n in bundled_models() if load_model(n).spec.config.input_channels == 3}
    assert soft <= set(models.RECIPES)
    for recipe in models.RECIPES.values():
        assert recipe.start is None or recipe.start in models.RECIPES


def test_recipe_trains_and_goes_on(
    models: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = models.Recipe("h36m17", ("mocap.npz:1:face",), 1, (), None, models.BODY, None, "CC0")
    recipes = {"h36m17-free": base, "coco17-free": replace(base, skeleton="coco17", start="h36m17-free")}
    monkeypatch.setattr(models, "RECIPES", recipes)
    monkeypatch.setattr(models, "bundled_models", lambda: ())
    output = tmp_path / "runs"
    command = ["coco17-free", str(data), "-o", str(output)]
    assert models.main(command) == 0
    model = load_model(output / "coco17-free.safetensors")
    spec = model.spec
    assert (spec.name, spec.licence, spec.fusion, spec.config.variance) == ("coco17-free", "CC0", 0.25, True)
    assert spec.metrics["calibrations"]["reconstruct"]["fusion"] == 1.0
    assert spec.training["options"]["start"] == "h36m17-free.safetensors"
    assert (output / "h36m17-free" / "joints" / "h36m17-free.safetensors").exists()
    capsys.readouterr()
    assert models.main(command) == 0
    assert "train " not in capsys.readouterr().err
    assert load_model(output / "coco17-free.safetensors").data == model.data


def test_comparison_fails_where_the_new_one_is_worse(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from port_deploy.weights import with_changes

    bundled = load_model("hand21")
    assert models.compare("hand21", _written(tmp_path, bundled)) == 0
    worse = {k: v | {"error": 1.2 * v["error"]} for k, v in bundled.spec.metrics["held_out"]["sources"].items()}
    metrics = {**bundled.spec.metrics, "held_out": {"score": 1.0, "sources": worse}}
    assert models.compare("hand21", _written(tmp_path, with_changes(bundled, metrics=metrics))) == 1
    assert "+20.0%" in capsys.readouterr().out


def _written(folder: Path, model: Any) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(model.data)
    return path


def test_mistakes(models: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main(["nobody"]) == 2
    assert "expected one of hand21" in capsys.readouterr().err
    assert models.main(["hand21"]) == 2
    assert "folder of the research data" in capsys.readouterr().err
    assert models.main(["--list"]) == 0
    assert "6,144,000" in capsys.readouterr().out
