# SPDX-License-Identifier: Apache-2.0
"""benchmarks/ablations.py: its table is what the stored runs say, and ABLATIONS.md is that table."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ablations() -> Any:
    spec = importlib.util.spec_from_file_location("ablations", ROOT / "benchmarks" / "ablations.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scored(seed: int, value: float) -> dict[str, Any]:
    figures = {"p_epe_paper": value, "p_epe": 7.5, "epe": 9.5}
    return {
        "seed": seed,
        "commit": "0123456789ab",
        "parameters": 528_914,
        "epe_root": 15.0,
        "held_out": 40.0,
        "detector": figures,
        **figures,
    }


def test_rows_hold_mean_and_spread(ablations: Any) -> None:
    base = " ".join(ablations.PAPER)
    rows = ablations.table({"runs": {base: [scored(0, 7.0), scored(1, 7.2), scored(2, 7.4)]}})
    assert {r["variant"] for r in rows} == {
        *("K = {1, 2}", "40 %", "40 % at random", "the detector's coordinates", "visible"),
        *("D = 64, L = 4, heads of 64", "paper"),
    }
    assert {r["P-EPE as in the paper"] for r in rows} == {"7.200 ± 0.200"}
    assert next(r for r in rows if r["variant"] == "40 %")["the paper's"] == 7.36


def test_every_variant_is_one_that_training_takes(ablations: Any) -> None:
    from port_deploy.cli.train import network, parser

    for options in ablations.runs().values():
        data = ["--data", "x.npz", "-o", "x"]
        chosen = parser().parse_args([*data, *ablations.RECIPE, *options])
        assert network(chosen.kind, chosen.config).hops


def test_document_is_the_stored_table(ablations: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not ablations.RESULT.exists():
        pytest.skip("the ablations have not been run")
    result = json.loads(ablations.RESULT.read_text("utf-8"))
    assert ablations.table(result) == result["table"]
    document = tmp_path / "ABLATIONS.md"
    assert ablations.main(["--render", "--document", str(document)]) == 0
    assert document.read_text("utf-8") == ablations.DOCUMENT.read_text("utf-8")


def test_without_data_it_says_so(ablations: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablations.main(["--result", str(tmp_path / "none.json")]) == 2
    assert "folder of the research data" in capsys.readouterr().err
    assert ablations.main(["--render", "--result", str(tmp_path / "none.json")]) == 2
    assert "ablations.py DATA first" in capsys.readouterr().err
