# SPDX-License-Identifier: Apache-2.0
"""evaluate.py, predictions.py, curves.py and port-eval: known answers, joint matching, bad files, the figures' JSON."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from port_deploy import Refined, metrics
from port_deploy.cli.evaluate import main
from port_deploy.curves import change_by_masked, error_by_confidence
from port_deploy.errors import InputError
from port_deploy.evaluate import evaluate
from port_deploy.predictions import load_predictions
from port_deploy.skeleton import Skeleton

MPII = Skeleton.load("mpii16")
HAND = Skeleton.load("hand21")


class Oracle:
    """Stands in for a Refiner: moves every joint below the threshold a given share of the way to its label."""

    def __init__(self, truth: np.ndarray, skeleton: Skeleton, share: float, threshold: float = 0.3) -> None:
        self.truth, self.share, self.threshold = truth, share, threshold
        self.model = SimpleNamespace(joints=len(skeleton.names), skeleton=skeleton, name="oracle", std_scale=1.0)

    def refine(self, joints: np.ndarray, confidence: np.ndarray) -> Any:
        mask = ~(confidence >= self.threshold) | ~np.isfinite(joints).all(-1)
        moved = np.where(np.isfinite(joints), joints + self.share * (self.truth - joints), self.truth)
        return Refined(np.where(mask[..., None], moved, joints), confidence, mask)


def arrays(skeleton: Skeleton = MPII, batch: int = 6, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    joints = rng.uniform(0, 300, (batch, len(skeleton.names), 2)).astype(np.float32)
    conf = rng.uniform(0, 1, joints.shape[:2]).astype(np.float32)
    pred = joints + rng.normal(size=joints.shape).astype(np.float32) * (1.5 - conf[..., None]) * 20
    return {"joints": joints, "pred": pred, "conf": conf, "names": np.array(skeleton.names)}


def saved(folder: Path, data: dict[str, Any], name: str = "predictions.npz") -> Path:
    np.savez(folder / name, **data)
    return folder / name


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Any]) -> Callable[[str], str]:
    def write(skeleton: str) -> str:
        path = tmp_path_factory.mktemp("model") / f"{skeleton}.safetensors"
        path.write_bytes(make_model("soft", skeleton).data)
        return str(path)

    return write


def test_figures_are_those_of_metrics_and_split_by_confidence(tmp_path: Path) -> None:
    data = arrays()
    predictions = load_predictions(saved(tmp_path, data), MPII)
    result = evaluate(Oracle(data["joints"], MPII, 0.5), predictions)  # type: ignore[arg-type]
    error = np.linalg.norm(data["pred"] - data["joints"], axis=-1)
    low = data["conf"] < 0.3
    assert result.detector.epe == pytest.approx(error.mean(), rel=1e-6)
    assert result.detector.epe_masked == pytest.approx(error[low].mean(), rel=1e-6)
    assert result.refined.epe_masked == pytest.approx(error[low].mean() / 2, rel=1e-5)
    assert result.refined.epe_untouched == result.detector.epe_untouched == pytest.approx(error[~low].mean(), rel=1e-6)
    assert result.detector.epe_root == metrics.epe(data["pred"], data["joints"], root=MPII.root)
    assert result.masked_fraction == pytest.approx(low.mean())
    assert (result.samples, result.scored, result.left_alone, result.nearer) == (6, 96, 0, 1.0)
    assert result.pck_of == "pose"


def test_unlabelled_joints_are_left_out_wherever_the_flag_comes_from(tmp_path: Path) -> None:
    data = arrays()
    flag = np.ones(data["conf"].shape, bool)
    flag[:, 3] = False
    data["joints"][:, 3] = -1
    data["joints"][0, 0] = np.nan
    expected = np.linalg.norm(data["pred"] - data["joints"], axis=-1)[flag & np.isfinite(data["joints"]).all(-1)].mean()
    for extra in ({"labelled": flag}, {"visible": flag.astype(np.uint8) * 2}, {"labelled": flag, "visible": flag * 0}):
        predictions = load_predictions(saved(tmp_path, {**data, **extra}), MPII)
        result = evaluate(Oracle(data["joints"], MPII, 0.0), predictions)  # type: ignore[arg-type]
        assert result.scored == 6 * 15 - 1
        assert result.detector.epe == pytest.approx(expected, rel=1e-6)


def test_joints_are_matched_by_name_and_absent_ones_given_as_missing(tmp_path: Path) -> None:
    data = arrays()
    keep = [i for i, n in enumerate(MPII.names) if n not in ("pelvis", "thorax")]
    order = np.random.default_rng(1).permutation(keep)
    aliases = [MPII.names[i].replace("right_", "r").replace("left_", "l") for i in order]
    shuffled = {k: data[k][:, order] for k in ("joints", "pred", "conf")}
    predictions = load_predictions(saved(tmp_path, {**shuffled, "names": np.array(aliases)}), MPII)
    assert predictions.absent == ("pelvis", "thorax")
    np.testing.assert_array_equal(predictions.detected[:, keep], data["pred"][:, keep])
    lost = [6, 7]
    assert np.isnan(predictions.detected[:, lost]).all()
    assert not predictions.confidence[:, lost].any()
    assert not predictions.labelled[:, lost].any()
    result = evaluate(Oracle(predictions.joints, MPII, 0.5), predictions)  # type: ignore[arg-type]
    assert result.scored == 6 * 14
    assert np.isnan(result.detector.epe_root), "without a label of the root there is no root-relative error"


def test_joints_that_the_detector_left_out_are_told_apart(tmp_path: Path) -> None:
    data = arrays()
    data["pred"][0, 1] = np.nan
    data["pred"][1, 2] = 0
    data["conf"][1, 2] = 0  # as OpenPose writes a joint that it did not find
    data["pred"][5] = np.nan  # a person that it did not find
    predictions = load_predictions(saved(tmp_path, data), MPII)
    result = evaluate(Oracle(data["joints"][:5], MPII, 0.0), predictions)  # type: ignore[arg-type]
    assert (result.samples, result.scored, result.missing) == (5, 78, 2)
    assert result.missing_epe == pytest.approx(0, abs=1e-6)
    assert np.isfinite(result.detector.epe)
    assert result.detector == result.refined, "both sides are scored on the same joints"


def test_pck_size_comes_from_the_file(tmp_path: Path) -> None:
    data = {**arrays(), "bbox": np.tile(np.float32([5, 5, 40, 100]), (6, 1)), "head_size": np.full(6, 30.0)}
    data["imsize"] = np.full((6, 2), 400)
    predictions = load_predictions(saved(tmp_path, data), MPII)
    oracle: Any = Oracle(data["joints"], MPII, 0.0)
    for of, size, fraction in ((None, 100, 0.2), ("head", 30, 0.5), ("image", 400, 0.05), ("px", 1, 10.0)):
        result = evaluate(oracle, predictions, of)
        assert result.pck_limit == fraction
        assert result.detector.pck == metrics.pck(data["pred"], data["joints"], fraction, float(size))
    assert evaluate(oracle, predictions, "bbox", 0.01).detector.pck < result.detector.pck
    del data["head_size"]
    with pytest.raises(InputError, match="no head size"):
        evaluate(oracle, load_predictions(saved(tmp_path, data), MPII), "head")


def test_curves_count_every_scored_joint_once(tmp_path: Path) -> None:
    data = arrays(batch=40)
    data["conf"][0, 0] = 1.2
    result = evaluate(Oracle(data["joints"], MPII, 0.5), load_predictions(saved(tmp_path, data), MPII))  # type: ignore[arg-type]
    count, before, after = error_by_confidence(result)
    assert count.sum() == result.scored
    assert np.nansum(count * before) / result.scored == pytest.approx(result.detector.epe, rel=1e-9)
    np.testing.assert_allclose(after[:3], before[:3] / 2, rtol=1e-5)
    np.testing.assert_allclose(after[3:], before[3:])
    poses, change = change_by_masked(result)
    assert poses.sum() == 40
    assert np.nansum(poses * change) / 40 == pytest.approx(result.refined.epe - result.detector.epe, rel=1e-6)


def test_port_eval_prints_one_json_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model_file: Callable[[str], str]
) -> None:
    path = saved(tmp_path, {**arrays(), "labelled": np.ones((6, 16), bool)})
    assert main([str(path), "--model", model_file("mpii16"), "--threshold", "0.4", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    for side in ("detector", "refined"):
        assert {"epe_root", "epe", "p_epe", "p_epe_paper", "epe_masked", "epe_untouched", "pck"} <= set(answer[side])
    assert answer["threshold"] == 0.4
    assert 0 < answer["masked_fraction"] < 1
    assert answer["samples"] == 6
    assert answer["detector"]["epe_untouched"] == answer["refined"]["epe_untouched"]
    assert answer["detector"]["epe_masked"] != answer["refined"]["epe_masked"]
    assert set(answer["joints"]) == set(MPII.names)


def test_port_eval_prints_a_table_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model_file: Callable[[str], str]
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install port-deploy[viz]")
    path, plot = saved(tmp_path, arrays()), tmp_path / "plots" / "errors.png"
    arguments = [str(path), "--model", model_file("mpii16"), "--refine", "all", "--joints", "--plot", str(plot)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for word in (
        "EPE, relative to pelvis",
        "P-EPE, the paper's way",
        "EPE, joints below δ",
        "left_elbow",
        "refine all",
    ):
        assert word in text
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main([*arguments[:-1], str(tmp_path / "errors.xyz")]) == 2
    assert not list(tmp_path.glob("*.xyz*"))


def bad_files(folder: Path) -> dict[str, Path]:
    data = arrays()
    files = {"absent": folder / "absent.npz"}
    for name, content in {"empty": b"", "text": b"joints", "zip": b"PK\x03\x04 and nothing"}.items():
        files[name] = folder / f"{name}.npz"
        files[name].write_bytes(content)
    whole = saved(folder, data, "whole.npz").read_bytes()
    files["truncated"] = folder / "truncated.npz"
    files["truncated"].write_bytes(whole[: len(whole) // 2])
    files["pickle"] = saved(folder, {**data, "names": np.array([{"a": 1}] * 16, dtype=object)}, "pickle.npz")
    np.save(folder / "single.npy", data["joints"])
    files["single array"] = folder / "single.npy"
    with zipfile.ZipFile(folder / "foreign.npz", "w") as archive:
        archive.writestr("joints.npy", b"not an array")
    files["foreign"] = folder / "foreign.npz"
    changes: dict[str, dict[str, Any]] = {
        "no labels": {"joints": None},
        "no predictions": {"pred": None, "pred_mine": data["pred"]},
        "no confidence": {"conf": None},
        "flat joints": {"joints": data["joints"][0]},
        "other count": {"pred": data["pred"][:, :5]},
        "other confidence": {"conf": data["conf"][:3]},
        "text joints": {"joints": data["joints"].astype("U8")},
        "foreign names": {"names": np.array([f"joint{i}" for i in range(16)])},
        "short names": {"names": np.array(MPII.names[:5])},
        "same names": {"names": np.array(["head"] * 16)},
        "no names": {**{k: data[k][:, :5] for k in ("joints", "pred", "conf")}, "names": None},
        "no poses": {k: data[k][:0] for k in ("joints", "pred", "conf")},
        "nothing labelled": {"labelled": np.zeros((6, 16), bool)},
        "odd boxes": {"bbox": np.ones((6, 3))},
    }
    for name, change in changes.items():
        content = {k: v for k, v in {**data, **change}.items() if v is not None}
        files[name] = saved(folder, content, f"{name.replace(' ', '-')}.npz")
    return files


def test_bad_files_are_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model_file: Callable[[str], str]
) -> None:
    model = model_file("mpii16")
    files = bad_files(tmp_path)
    assert len(files) > 20
    for name, path in files.items():
        assert main([str(path), "--model", model]) == 2, name
        error = capsys.readouterr()
        assert error.err.count("\n") == 1, name
        assert error.err.startswith("error: "), name
        assert path.stem in error.err, f"{name}: {error.err}"
        assert not error.out, name


@pytest.mark.parametrize(
    "options",
    [
        ["--threshold", "-1"],
        ["--threshold", "nan"],
        ["--conf-constant", "nan"],
        ["--pck", "-0.1"],
        ["--pck-of", "head"],
        ["--pred", "nothing"],
        ["--backend", "magic"],
    ],
)
def test_bad_options_are_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model_file: Callable[[str], str], options: list[str]
) -> None:
    assert main([str(saved(tmp_path, arrays())), "--model", model_file("mpii16"), *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_detector_without_confidence_can_be_given_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model_file: Callable[[str], str]
) -> None:
    data = arrays()
    del data["conf"]
    path = str(saved(tmp_path, data))
    assert main([path, "--model", model_file("mpii16")]) == 2
    assert "--conf-constant" in capsys.readouterr().err
    assert main([path, "--model", model_file("mpii16"), "--conf-constant", "1", "--refine", "all", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["masked_fraction"] == 0
    assert answer["detector"]["epe_masked"] is None
    assert answer["detector"]["epe"] != answer["refined"]["epe"]


def test_the_detector_row_on_panoptic(
    capsys: pytest.CaptureFixture[str], model_file: Callable[[str], str], shared_data: Callable[[str], Path]
) -> None:
    path = shared_data("data/panoptic_dev_hand21.npz")
    assert main([str(path), "--model", model_file("hand21"), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["detector"]
    assert [f"{row[k]:.2f}" for k in ("epe_root", "epe", "p_epe", "p_epe_paper")] == ["15.62", "9.87", "7.63", "7.79"]
