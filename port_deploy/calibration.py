# SPDX-License-Identifier: Apache-2.0
"""Settings that a model keeps for single detectors: δ, reach, fusion, scales of confidence and σ, in the model file.

They lie in the specification under ``metrics.calibrations``, one entry a detector, which readers that know nothing of
them pass over. `port_deploy.calibrate` chooses them; `Refiner.load(..., detector=)` uses them.
May use: config, errors, weights. Test: tests/test_calibrate.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from port_deploy.config import ModelSpec, RefineMode
from port_deploy.errors import InputError, ModelFileError
from port_deploy.weights import Model, bundled_models, load_model, with_changes

KEY = "calibrations"
"""Where they lie in `ModelSpec.metrics`."""


@dataclass(frozen=True)
class Setting:
    """What depends on the detector; each field is the field of `ModelSpec` of that name."""

    threshold: float
    max_masked: int
    refine: RefineMode
    fusion: float
    confidence_divisor: float
    std_scale: float = 1.0

    @classmethod
    def of(cls, spec: ModelSpec) -> Setting:
        """The model's own."""
        return cls(**{f.name: getattr(spec, f.name) for f in fields(cls)})

    def off(self) -> Setting:
        """This one with nothing below δ: only joints that the detector gave no position for are rebuilt."""
        return Setting(0.0, self.max_masked, "masked", self.fusion, self.confidence_divisor, self.std_scale)

    def to_json(self, variance: bool) -> dict[str, Any]:
        """The fields as plain values; ``std_scale`` only where the model has a variance."""
        values = asdict(self)
        if not variance:
            del values["std_scale"]
        return values

    def __str__(self) -> str:
        if self.threshold == 0:
            return "off (δ = 0)"
        what = "every joint" if self.refine == "all" else "joints below δ"
        return (
            f"δ = {self.threshold:.3g}, {what}, fusion {self.fusion:g}, at most {self.max_masked} masked, "
            f"confidence divided by {self.confidence_divisor:.3g}"
            + (f", σ times {self.std_scale:.3g}" if self.std_scale != 1 else "")
        )


def detectors(spec: ModelSpec) -> tuple[str, ...]:
    """Names of the detectors that the model is calibrated for."""
    known = spec.metrics.get(KEY, {})
    return tuple(sorted(known)) if isinstance(known, Mapping) else ()


def calibrated(source: str | Path | Model, detector: str) -> Model:
    """The model with a detector's setting as its own.

    Args:
        source: Bundled name, ``.safetensors`` file, or a model in memory.
        detector: Name that the setting is kept under.

    Raises:
        InputError: It is not calibrated for that detector, or is an artefact, whose setting is fixed.
        ModelFileError: Its entry is unusable.
    """
    if isinstance(source, Model):
        model = source
    elif str(source) not in bundled_models() and Path(source).suffix not in ("", ".safetensors"):
        raise InputError(
            f"{source} is an artefact, whose setting is fixed when it is exported: port-calibrate --default the model, "
            "then port-export that"
        )
    else:
        model = load_model(source)
    known = detectors(model.spec)
    if detector not in known:
        listed = ", ".join(known) or "none"
        raise InputError(
            f"{model.source} is not calibrated for detector {detector!r} (for {listed}): port-calibrate does that"
        )
    entry = model.spec.metrics[KEY][detector]
    names = {f.name for f in fields(Setting)}
    try:
        values = {k: v for k, v in entry.items() if k in names}
        setting = Setting(**values)
        return with_changes(model, **asdict(setting), threshold_source=str(entry.get("source", "calibrated")))
    except (TypeError, AttributeError, ValueError) as error:
        raise ModelFileError(f"{model.source}: unusable calibration for {detector!r}: {error}") from error


def with_calibration(
    model: Model, detector: str, setting: Setting, facts: Mapping[str, Any], default: bool = False
) -> Model:
    """The model with a detector's setting kept in it.

    Args:
        model: The model.
        detector: Its name; an entry of that name is replaced.
        setting: What was chosen.
        facts: ``source``, one line that says how, and what was measured; plain JSON values.
        default: Also make it the model's own setting.

    Raises:
        InputError: The name is empty.
    """
    if not detector.strip():
        raise InputError("expected the detector to have a name")
    entry = {**setting.to_json(model.spec.config.variance), **facts}
    entries = dict(model.spec.metrics.get(KEY, {})) | {detector: entry}
    changes: dict[str, Any] = {"metrics": {**model.spec.metrics, KEY: entries}}
    if default:
        changes |= asdict(setting) | {"threshold_source": str(facts.get("source", "calibrated"))}
    return with_changes(model, **changes)
