# SPDX-License-Identifier: Apache-2.0
"""Engines that were built before, found by everything that would make another: ``~/.cache/port_deploy/engines``.

An entry is a folder named after the hash of its key; it appears by one rename, whole. A lock per key, released by the
system whatever becomes of the process, lets the second of two builders wait and take what the first one built. What
is read is compared with the hash that was written beside it: an engine is executable code. ``PORT_CACHE`` names
another folder; any of it may be deleted at any time.
May use: engine_info, files. Test: tests/test_engine_cache.py.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from port_deploy.engine_info import EngineInfo
from port_deploy.files import cache_folder

CACHE_FORMAT = 1
"""Part of every key: raised when what lies in an entry changes its meaning."""

ENGINE, RECORD = "engine", "entry.json"

Built = tuple[bytes, EngineInfo]


def key_digest(key: Mapping[str, Any]) -> str:
    """The name of a key's entry: a hash over its canonical JSON."""
    text = json.dumps({"cache_format": CACHE_FORMAT, **key}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:40]


class EngineCache:
    """A folder of engines.

    Args:
        folder: Where; it is made. None: ``engines`` in `cache_folder`.
        note: Told in one line when the cache could not be used; what was asked for is answered all the same.
    """

    def __init__(self, folder: Path | None = None, note: Callable[[str], None] = lambda text: None) -> None:
        self.folder = folder or cache_folder() / "engines"
        self._note = note

    def get_or_build(self, key: Mapping[str, Any], build: Callable[[], Built]) -> tuple[Built, bool]:
        """The engine of a key, from the cache or built now and kept.

        Args:
            key: Everything that would make another engine, as plain JSON values.
            build: Builds it. Called at most once, and by one process at a time for one key.

        Returns:
            The engine with what it was built with, and whether it came from the cache.
        """
        digest = key_digest(key)
        if found := self.read(digest):
            return found, True
        with self._lock(digest):
            if found := self.read(digest):  # another process built it while this one waited
                return found, True
            built = build()
            try:
                self._write(digest, key, built)
            except OSError as error:
                self._note(f"the engine was not kept in {self.folder} ({error.strerror or error})")
            return built, False

    def read(self, digest: str) -> Built | None:
        """An entry; None where there is none or it is damaged (a damaged one is built anew)."""
        place = self.folder / digest
        try:
            record = json.loads((place / RECORD).read_text("utf-8"))
            data = (place / ENGINE).read_bytes()
            if hashlib.sha256(data).hexdigest() != record["sha256"]:
                raise ValueError("its hash is another")
            return data, EngineInfo.from_json(record["engine"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._note(f"the cached engine in {place} is damaged ({error}): it is built again")
            return None

    def _write(self, digest: str, key: Mapping[str, Any], built: Built) -> None:
        data, info = built
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{digest}.", dir=self.folder))
        try:
            record = {"key": dict(key), "sha256": hashlib.sha256(data).hexdigest(), "engine": info.to_json()}
            for name, content in ((ENGINE, data), (RECORD, json.dumps(record, indent=1).encode())):
                with (fresh / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            place = self.folder / digest
            shutil.rmtree(place, ignore_errors=True)  # a damaged one; a good one would have been taken
            fresh.rename(place)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    @contextmanager
    def _lock(self, digest: str) -> Iterator[None]:
        """One holder per key over all processes; without one where the folder cannot be written or has no locks."""
        path, handle = self.folder / f".{digest}.lock", None
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = _locked(path, self._note)
        except OSError as error:
            self._note(f"the engine cache {self.folder} cannot be locked ({error.strerror or error})")
        try:
            yield
        finally:
            if handle is not None:
                with suppress(OSError):
                    path.unlink()
                os.close(handle)


def _locked(path: Path, note: Callable[[str], None]) -> int:
    """A descriptor that holds the lock on ``path``; a file that its last holder removed meanwhile does not count."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                note("another process builds this engine: waiting for it")
                fcntl.flock(handle, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.fstat(handle).st_ino == path.stat().st_ino:
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
