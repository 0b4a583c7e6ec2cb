# SPDX-License-Identifier: Apache-2.0
"""All files or none, whatever goes wrong between."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from port_deploy.errors import InputError
from port_deploy.export.staging import publish, staging_folder


def test_files_appear_together(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with staging_folder(target) as staging:
        for name in ("m.ts", "m.ts.json"):
            (staging / name).write_text(name)
        assert list(target.iterdir()) == [staging]
        publish(staging, target, ["m.ts", "m.ts.json"])
    assert sorted(p.name for p in target.iterdir()) == ["m.ts", "m.ts.json"]


@pytest.mark.parametrize("problem", [RuntimeError("a bug"), KeyboardInterrupt()])
def test_nothing_is_left_after_a_failure(tmp_path: Path, problem: BaseException) -> None:
    def fail() -> None:
        with staging_folder(tmp_path / "a" / "b") as staging:
            (staging / "m.ts").write_text("half")
            raise problem

    with pytest.raises(type(problem)):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(InputError, match="No space left on device: free space"), staging_folder(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write to .*: free space"), staging_folder(tmp_path / "file" / "a"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_was_there_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.ts").write_text("old")
    move = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if self.parent.name.startswith(".port-export") and self.name == "m.ts.json":
            raise OSError(errno.EIO, "Input/output error")
        return move(self, target)

    monkeypatch.setattr(Path, "replace", failing)

    def publish_three() -> None:
        with staging_folder(tmp_path) as staging:
            for name in ("m.ts", "m.ts.json", "m.onnx"):
                (staging / name).write_text("new")
            publish(staging, tmp_path, ["m.onnx", "m.ts", "m.ts.json"])

    with pytest.raises(InputError, match="Input/output error"):
        publish_three()
    assert [p.name for p in tmp_path.iterdir()] == ["m.ts"]
    assert (tmp_path / "m.ts").read_text() == "old"
