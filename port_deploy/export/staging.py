# SPDX-License-Identifier: Apache-2.0
"""Several files that appear together or not at all. May use: errors. Test: tests/test_export_staging.py."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from port_deploy.errors import InputError


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """A folder inside ``target`` to write into; it is gone afterwards, however the block ends.

    Folders that had to be made for it are removed again where the block fails.

    Raises:
        InputError: ``target`` cannot be written, or the disk is full; the message names path and reason.
    """
    made: list[Path] = []
    try:
        for folder in reversed((target, *target.parents)):
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
        staging = Path(tempfile.mkdtemp(prefix=".port-export-", dir=target))
    except OSError as error:
        _remove_empty(made)
        raise _unwritable(target, error) from error
    done = False
    try:
        yield staging
        done = True
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not done:
            _remove_empty(made)


def publish(staging: Path, target: Path, names: Sequence[str]) -> None:
    """Move files out of a staging folder; if one cannot be moved, all that were there before are put back."""
    kept = staging / "replaced"
    kept.mkdir()
    moved: list[str] = []
    try:
        for name in names:
            moved.append(name)
            if (target / name).exists():
                (target / name).replace(kept / name)
            (staging / name).replace(target / name)
    except BaseException:  # an interruption, too
        for name in moved:
            if (kept / name).exists():
                (kept / name).replace(target / name)
            elif not (staging / name).exists():
                (target / name).unlink(missing_ok=True)
        raise


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in reversed(folders):
        try:
            folder.rmdir()
        except OSError:
            return


def _unwritable(target: Path, error: OSError) -> InputError:
    return InputError(f"cannot write to {target}: {error.strerror or error}: free space or choose another folder")
