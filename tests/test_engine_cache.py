# SPDX-License-Identifier: Apache-2.0
"""The engine cache: found by everything that matters, whole or absent, one builder at a time over all processes."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from port_deploy.engine_info import EngineInfo
from port_deploy.export import engine_cache
from port_deploy.export.engine_cache import EngineCache, key_digest
from port_deploy.files import cache_folder

INFO = EngineInfo("tensorrt-rtx", "1.7", ("8.9",), onnx_sha256="ab", workspace_bytes=5)
KEY = {"onnx_sha256": "ab", "batch": [1, 4, 16]}


def never() -> Any:
    raise AssertionError("built although it was there")


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, notes: list[str]) -> EngineCache:
    return EngineCache(tmp_path / "engines", notes.append)


def entries(cache: EngineCache) -> list[str]:
    return sorted(p.name for p in cache.folder.iterdir())


def test_built_once(cache: EngineCache) -> None:
    assert cache.get_or_build(KEY, lambda: (b"plan", INFO)) == ((b"plan", INFO), False)
    assert cache.get_or_build(KEY, never) == ((b"plan", INFO), True)
    other, cached = cache.get_or_build({**KEY, "batch": [1, 4, 17]}, lambda: (b"other", INFO))
    assert (other[0], cached) == (b"other", False)
    assert entries(cache) == sorted([key_digest(KEY), key_digest({**KEY, "batch": [1, 4, 17]})])  # no lock, no rest


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PORT_CACHE", str(tmp_path))
    assert EngineCache().folder == tmp_path / "engines"
    monkeypatch.delenv("PORT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "port_deploy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "port_deploy"


@pytest.mark.parametrize("damage", ["flip", "cut", "record", "no record", "no engine"])
def test_a_damaged_entry_is_built_again(cache: EngineCache, notes: list[str], damage: str) -> None:
    cache.get_or_build(KEY, lambda: (b"plan", INFO))
    place = cache.folder / key_digest(KEY)
    if damage == "flip":
        (place / "engine").write_bytes(b"plam")
    elif damage == "cut":
        (place / "engine").write_bytes(b"pl")
    elif damage == "record":
        (place / "entry.json").write_text('{"engine": {}}')
    else:
        (place / ("entry.json" if damage == "no record" else "engine")).unlink()
    assert cache.get_or_build(KEY, lambda: (b"again", INFO)) == ((b"again", INFO), False)
    assert cache.get_or_build(KEY, never)[1]
    if not damage.startswith("no "):
        assert "is damaged" in notes[0]
        assert "it is built again" in notes[0]


def test_a_full_disk_answers_all_the_same_and_leaves_the_cache_intact(
    cache: EngineCache, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.get_or_build(KEY, lambda: (b"plan", INFO))
    before = {p: p.read_bytes() for p in cache.folder.rglob("*") if p.is_file()}

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(engine_cache.os, "fsync", full)
        assert cache.get_or_build({**KEY, "more": 1}, lambda: (b"new", INFO)) == ((b"new", INFO), False)
    assert notes == [f"the engine was not kept in {cache.folder} (No space left on device)"]
    assert {p: p.read_bytes() for p in cache.folder.rglob("*") if p.is_file()} == before


def test_a_build_that_fails_or_is_interrupted_leaves_nothing(cache: EngineCache) -> None:
    for error in (ValueError, KeyboardInterrupt):

        def fail(error: type[BaseException] = error) -> Any:
            raise error

        with pytest.raises(error):
            cache.get_or_build(KEY, fail)
        assert entries(cache) == []
    assert not cache.get_or_build(KEY, lambda: (b"plan", INFO))[1]


def test_without_a_folder_it_builds(tmp_path: Path, notes: list[str]) -> None:
    (tmp_path / "file").write_text("")
    cache = EngineCache(tmp_path / "file" / "engines", notes.append)
    assert cache.get_or_build(KEY, lambda: (b"plan", INFO)) == ((b"plan", INFO), False)
    assert "cannot be locked (Not a directory)" in notes[0]
    assert "was not kept" in notes[1]


BUILDER = """
import json, sys, time
from pathlib import Path
from port_deploy.export.engine_cache import EngineCache
from port_deploy.engine_info import EngineInfo
log = Path(sys.argv[2])
def build():
    with log.open("a") as file:
        print("build", sys.argv[3], file=file)
    if sys.argv[3] == "dies":
        time.sleep(0.3)
        import os
        os._exit(9)
    time.sleep(0.5)
    return b"plan " + sys.argv[3].encode(), EngineInfo("tensorrt-rtx", "1.7")
notes = []
(data, _), cached = EngineCache(Path(sys.argv[1]), notes.append).get_or_build({"a": 1}, build)
print(json.dumps([data.decode(), cached, notes]))
"""


def start(tmp_path: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, str(tmp_path / "engines"), str(tmp_path / "log"), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_of_several_processes_one_builds_and_the_others_take_it(tmp_path: Path) -> None:
    processes = [start(tmp_path, name) for name in "abc"]
    answers = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert len({data for data, _, _ in answers}) == 1
    assert sorted(cached for _, cached, _ in answers) == [False, True, True]
    assert [p.name for p in (tmp_path / "engines").iterdir()] == [key_digest({"a": 1})]


def test_a_builder_that_dies_holds_nobody_up(tmp_path: Path) -> None:
    dies = start(tmp_path, "dies")
    while not (tmp_path / "log").exists():
        assert dies.poll() is None
    data, cached, notes = json.loads(start(tmp_path, "b").communicate(timeout=60)[0])
    assert dies.wait(timeout=60) == 9
    assert (data, cached) == ("plan b", False)
    assert notes in ([], ["another process builds this engine: waiting for it"])
