# SPDX-License-Identifier: Apache-2.0
"""benchmarks/cards.py: every bundled model has a card, and the cards are what it writes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the cards' simulated detector needs torch")

from port_deploy.weights import bundled_models, load_model

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "port_deploy" / "data" / "models"


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    for name in ("cards", "evaluate", "train_models"):
        sys.modules.pop(name, None)
    import cards

    return cards


@pytest.mark.parametrize("name", bundled_models())
def test_every_model_has_a_card_that_names_its_data_and_licence(name: str) -> None:
    text, model = (FOLDER / f"{name}.md").read_text("utf-8"), load_model(name)
    assert text.split("\n# ")[1].startswith(name)
    for facts in model.spec.training["data"]:
        assert f"| {facts['file']} |" in text
    for heading in ("Licence", "Limits"):
        assert f"## {heading}" in text
    assert model.spec.licence.split(" (")[0] in text
    assert f"{model.spec.config.parameter_count():,} parameters" in text


def test_free_models_use_no_data_that_forbids_commerce(cards: Any) -> None:
    for name in (n for n in bundled_models() if n.endswith("-free")):
        for facts in load_model(name).spec.training["data"]:
            assert cards.SOURCES[facts["file"]][1] in ("MIT", "free use"), (name, facts["file"])


def test_card_is_what_the_script_writes(
    cards: Any, shared_data: Callable[[str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data = str(shared_data("data/panoptic_dev_hand21.npz").parent)
    name = "h36m17"
    assert cards.main([data, name, "--check"]) == 0, "python benchmarks/cards.py DATA writes them"
    (tmp_path / f"{name}.md").write_text(re.sub(r"\d", "0", (FOLDER / f"{name}.md").read_text("utf-8")))
    monkeypatch.setattr(cards, "FOLDER", tmp_path)
    assert cards.main([data, name, "--check"]) == 1
    assert f"out of date: {name}" in capsys.readouterr().err
    assert cards.main([data, "nobody"]) == 2
