# SPDX-License-Identifier: Apache-2.0
"""Which backend runs a model, and why: what the caller asked for, or the best that is there.

May use: backends' registry, weights, config, errors. Test: tests/test_backends.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from port_deploy.backends import ENTRIES, MODEL_SUFFIX, Entry, availability, entries_for, entry, module_of, require
from port_deploy.backends.base import Backend
from port_deploy.errors import BackendUnavailableError, InputError
from port_deploy.weights import Model, bundled_models, load_model, with_changes

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Choice:
    """The backend that was picked; ``str()`` of it is a line for people.

    Attributes:
        name: Its name.
        device: ``cpu`` or ``cuda``.
        detail: What it runs on and how.
        reason: Why this one.
    """

    name: str
    device: str
    detail: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.detail}): {self.reason}"


Source = str | Path | Model
"""Bundled name, file, or a model in memory."""


def choose(source: Source, backend: str = "auto", device: str = "auto") -> tuple[Entry, str, str]:
    """Pick the backend for a model or an artefact.

    Args:
        source: Bundled name, ``.safetensors`` file, artefact, or a model in memory.
        backend: A backend's name, or ``auto``.
        device: ``cpu``, ``cuda`` (or ``cuda:1``), or ``auto``.

    Returns:
        The backend, the device, and the reason.

    Raises:
        InputError: Unknown backend, device or suffix, or they do not go together.
        BackendUnavailableError: What was asked for cannot run here; the message holds the remedy.
    """
    if isinstance(source, Model):
        source, suffix = source.spec.name, MODEL_SUFFIX
    else:
        suffix = MODEL_SUFFIX if str(source) in bundled_models() else Path(source).suffix
    if not isinstance(device, str) or device.split(":")[0] not in DEVICES:
        raise InputError(f"unknown device {device!r}: use {', '.join(DEVICES)}")
    if backend != "auto":
        return _asked_for(entry(backend), source, suffix, device)
    candidates = entries_for(suffix)
    if not candidates:
        known = ", ".join(dict.fromkeys(e.suffix for e in ENTRIES))
        raise InputError(f"no model {str(source)!r}: use one of {', '.join(bundled_models())} or a file of {known}")
    if suffix == MODEL_SUFFIX:
        candidates = tuple(c for c in candidates if c.name.startswith("native-"))
    refused: dict[str, list[str]] = {}
    for candidate in candidates:
        if device != "auto" and device.split(":")[0] not in candidate.devices:
            continue
        state = availability(candidate.name)
        if state.available:
            why = _refusals(refused) or "the best for this file"
            return candidate, _device_of(candidate, device), f"chosen by auto ({why})"
        text = state.detail + (f": {state.remedy}" if state.remedy else "")
        refused.setdefault(text, []).append(candidate.name)
    what = f"{suffix} on device {device!r}" if device != "auto" else suffix
    raise BackendUnavailableError(f"no backend runs {what} here: {_refusals(refused) or 'none supports it'}")


def check_threads(threads: object) -> None:
    """Raise unless it is a number of threads.

    Raises:
        InputError: It is not.
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or not 0 <= threads <= 256:
        raise InputError(f"expected threads from 0 (one per processor) to 256, got {threads!r}")


def _refusals(refused: dict[str, list[str]]) -> str:
    return "; ".join(f"no {' or '.join(names)}, {text}" for text, names in refused.items())


def _asked_for(wanted: Entry, source: str | Path, suffix: str, device: str) -> tuple[Entry, str, str]:
    if device != "auto" and device.split(":")[0] not in wanted.devices:
        raise InputError(f"backend {wanted.name} runs on {' or '.join(wanted.devices)}, got device {device!r}")
    if wanted.suffix != suffix:
        if suffix == MODEL_SUFFIX:
            made = f"{Path(source).stem}{wanted.suffix}"
            remedy = f"port-export {source} -o . {wanted.flag}, then load {made!r}"
        else:
            remedy = (
                f"leave backend at auto or use {' or '.join(e.name for e in entries_for(suffix)) or 'another file'}"
            )
        raise InputError(f"backend {wanted.name} runs {wanted.suffix} files, got {str(source)!r}: {remedy}")
    return require(wanted.name), _device_of(wanted, device), "asked for"


def _check_exists(source: Source) -> None:
    """Before anything about backends: raise where an artefact is not there."""
    if isinstance(source, Model) or str(source) in bundled_models():
        return
    path = Path(source)
    runners = entries_for(path.suffix)
    if runners and path.suffix != MODEL_SUFFIX and not path.is_file():
        raise InputError(f"no file {str(path)!r}: port-export MODEL -o DIR {runners[0].flag} writes one")


def _device_of(which: Entry, device: str) -> str:
    return which.devices[0] if device == "auto" else device


def open_backend(
    source: Source,
    backend: str,
    device: str,
    threads: int,
    precision: str,
    changes: dict[str, Any],
    options: dict[str, Any],
) -> tuple[Backend, Choice]:
    """Load a model or an artefact into the backend that `choose` picks.

    Args:
        source: Bundled name, ``.safetensors`` file, artefact, or a model in memory.
        backend: A backend's name, or ``auto``.
        device: ``cpu``, ``cuda``, or ``auto``.
        threads: That compute, the caller included; 0 for one per processor.
        precision: ``fp32``, ``bf16``, ``fp16``; an artefact carries its own. ``auto``: the backend's default.
        changes: Fields of the specification to change (``refine``, ``min_visible``, ``max_masked``).
        options: For the backend alone (``providers`` of onnxruntime, ``isa`` of native-cpu).

    Raises:
        InputError: An option is unusable, or the backend does not take it.
        ModelFileError: The file is broken or foreign.
        BackendUnavailableError: What was asked for cannot run here.
    """
    check_threads(threads)
    _check_exists(source)
    which, where, reason = choose(source, backend, device)
    module = module_of(which)
    unknown = set(options) - set(signature(module.load).parameters) if options else set()
    if unknown:
        raise InputError(f"backend {which.name} takes no option {', '.join(sorted(unknown))}: leave it out")
    loaded: Backend
    if isinstance(source, Model) or which.suffix == MODEL_SUFFIX:
        model = source if isinstance(source, Model) else load_model(source)
        if changes:
            model = with_changes(model, **changes)
        if precision != "auto":
            options = {**options, "precision": precision}
        loaded = module.load(model, threads=threads, device=where, **options)
    else:
        if changes:
            raise InputError(f"{', '.join(changes)} of an artefact are fixed when it is exported: port-export it anew")
        if precision not in ("auto", "fp32"):
            raise InputError("the precision of an artefact is fixed when it is exported: port-export --precision")
        loaded = module.load(Path(source), threads=threads, device=where, **options)
    return loaded, Choice(loaded.name, where, loaded.detail, reason)
