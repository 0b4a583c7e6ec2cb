# SPDX-License-Identifier: Apache-2.0
"""port-demo: the bundled heatmaps in order, repaired joints, the picture, the export, exit codes."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from port_deploy import demo, picture
from port_deploy.cli import demo as command
from port_deploy.cli.demo import SETTING, main
from port_deploy.errors import InputError
from port_deploy.refiner import Refiner
from port_deploy.skeleton import Skeleton

MPII = Skeleton.load("mpii16")


def cases() -> list[demo.Case]:
    """Both hidden joints with the bundled model."""
    decoder = Refiner.load("mpii16", threshold=0.0, refine="masked")
    return demo.run_cases(demo.load_sample(MPII), Refiner.load("mpii16", detector=SETTING), decoder)


def test_channels_are_in_the_skeleton_s_order_and_land_in_the_photograph() -> None:
    sample = demo.load_sample(MPII)
    assert sample.heatmaps.shape == (4, 16, 92, 92)
    with (resources.files("port_deploy") / "data" / "samples" / demo.SAMPLE).open("rb") as file:
        data = np.load(file, allow_pickle=False)
        short = dict(zip(data["names"].tolist(), data["pred"].transpose(1, 0, 2), strict=True))
    flat = sample.heatmaps.reshape(4, 16, -1).argmax(-1)
    peaks = np.stack([flat % 92, flat // 92, np.ones_like(flat)], -1) @ sample.affine.transpose(0, 2, 1)
    for name, alias in (("left_elbow", "lelb"), ("right_wrist", "rwri"), ("head", "head"), ("right_ankle", "rank")):
        # the file's own argmax was taken before the heatmaps were rounded to half precision
        assert np.abs(peaks[:, MPII.names.index(name)] - short[alias]).max() < 13, name


def test_other_skeletons_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="left_eye, right_eye"):
        demo.load_sample(Skeleton.load("coco17"))


def test_photographs_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage", reason='scikit-image is not installed: pip install "port-deploy[viz]"')

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a photograph was asked of the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("camera", "astronaut"):
        photo = demo.photograph(name)
        assert photo.shape == (512, 512, 3)
        assert photo.std() > 20


def test_hidden_joints_end_nearer_as_shipped_too() -> None:
    decoder = Refiner.load("mpii16", threshold=0.0, refine="masked")
    for case in demo.run_cases(demo.load_sample(MPII), Refiner.load("mpii16"), decoder):
        assert case.after_px < case.before_px


def test_hidden_joints_are_masked_and_end_nearer_with_the_bundled_model() -> None:
    found = {(case.photo, case.joint): case for case in cases()}
    assert set(found) == {("camera", "left elbow"), ("astronaut", "right wrist")}
    for (photo, joint), case in found.items():
        assert case.before_px > 50, "the patch must mislead the detector for the demo to mean anything"
        assert case.after_px < case.before_px, f"{joint} of {photo}"
        assert case.mask[case.hidden], f"{joint} of {photo} is not masked"
        assert joint in case.masked_in_words()


def test_the_picture_is_whole_or_absent(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason='matplotlib is not installed: pip install "port-deploy[viz]"')
    image = pytest.importorskip("matplotlib.image")
    picture.draw_before_after(cases(), tmp_path / "new" / "picture.png")
    pixels = image.imread(tmp_path / "new" / "picture.png")
    height, width = pixels.shape[:2]
    assert 900 < width < 1400
    assert height > width
    left, right = pixels[:, : width // 2, :3], pixels[:, width // 2 :, :3]
    green = np.array([0x34, 0xD3, 0x99]) / 255
    counts = [(np.abs(side - green).max(-1) < 0.02).sum() for side in (left[: int(height * 0.9)], right)]
    assert counts[0] < 100 < counts[1], "rebuilt joints are drawn on the right side only"
    with pytest.raises(InputError, match=r"\.png"):
        picture.draw_before_after(cases()[:1], tmp_path / "picture.xyz")
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_confidence_colours_run_from_red_to_blue_and_take_anything() -> None:
    colours = picture.confidence_colours(np.array([-1, 0, 0.4, 0.8, 5, np.nan], np.float32))
    np.testing.assert_array_equal(colours[0], colours[1])
    np.testing.assert_array_equal(colours[3], colours[4])
    np.testing.assert_array_equal(colours[5], colours[0])
    assert colours[1, 0] > colours[1, 2]
    assert colours[3, 2] > colours[3, 0]


def test_json_holds_the_figures_and_latency(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "--no-export", "--no-picture", "-o", str(tmp_path)]) == 0
    streams = capsys.readouterr()
    answer = json.loads(streams.out)
    assert "left elbow" in streams.err
    assert answer["latency_us"] > 0
    for case in answer["cases"]:
        assert case["after_px"] < case["before_px"]


def test_a_model_that_does_not_help_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make_model: Callable[..., Any]
) -> None:
    path = tmp_path / "idle.safetensors"
    path.write_bytes(make_model("soft", "mpii16", threshold=0.0).data)
    assert main(["--model", str(path), "--no-export", "--no-picture"]) == 1
    streams = capsys.readouterr()
    assert "left elbow of camera did not end nearer" in streams.err
    assert "none" in streams.out


def test_the_export_is_port_export_s_and_its_exit_code_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    export = pytest.importorskip("port_deploy.cli.export")
    asked = []
    code = 0

    def record(arguments: list[str]) -> int:
        asked.append(arguments)
        return code

    monkeypatch.setattr(export, "main", record)
    monkeypatch.setattr(command, "missing_extras", lambda *_: [])
    assert main(["--no-picture", "-o", str(tmp_path)]) == 0
    assert asked == [["mpii16", "--trt", "--heatmap-size", "92,92", "-o", str(tmp_path)]]
    code = 2
    assert main(["--no-picture", "-o", str(tmp_path)]) == 2
    assert "exit code 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "absent", "extras", "flags"),
    [
        ([], ("matplotlib", "onnx", "tensorrt", "tensorrt_rtx"), "export,tensorrt-rtx,viz", "--no-picture --no-export"),
        ([], ("skimage",), "viz", "--no-picture"),
        ([], ("torch",), "export", "--no-export"),
        (["--no-export"], ("torch", "matplotlib"), "viz", "--no-picture"),
        (["--no-picture"], ("torch", "matplotlib"), "export", "--no-export"),
    ],
)
def test_without_libraries_one_line_at_the_start_names_all_that_it_takes(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    absent: tuple[str, ...],
    extras: str,
    flags: str,
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name in absent else object())
    monkeypatch.setattr(command, "gpus", lambda: [])
    assert main([*options, "-o", str(tmp_path / "new")]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err == (
        "error: the demo needs libraries that are not installed: "
        f'pip install "port-deploy[{extras}]", or run it with {flags}\n'
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("options", [["--model", "hand21"], ["--model", "nothing"], ["--backend", "magic"]])
def test_bad_options_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str]) -> None:
    assert main(["--no-export", "--no-picture", "-o", str(tmp_path), *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_in_the_folder_s_place_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("mine")
    assert main(["-o", str(tmp_path / "taken")]) == 2
    assert "choose a folder" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"
