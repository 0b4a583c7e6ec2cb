# SPDX-License-Identifier: Apache-2.0
"""The demo's numbers: real detector heatmaps of two photographs, one joint hidden in each, decoded and refined.

Truth for a hidden joint is where the same detector sees it on the unpatched photograph. May use: refiner, joint_names,
errors, NumPy. Test: tests/test_demo.py.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.errors import BackendUnavailableError, InputError
from port_deploy.joint_names import canonical_name, match_names

if TYPE_CHECKING:
    from port_deploy.refiner import Refiner
    from port_deploy.skeleton import Skeleton

SAMPLE = "demo_heatmaps.npz"
PATCH_PX = 80
"""Side of the square that was painted over the hidden joint, photograph pixels."""
SEEN = 0.1
"""A joint of lower confidence on the unpatched photograph lies outside it."""
TIMED_CALLS = 300


@dataclass(frozen=True)
class Sample:
    """Heatmaps in a skeleton's order.

    Attributes:
        runs: Names, e.g. ``camera`` and ``camera_lelb_grass``.
        heatmaps: [R, N, 92, 92] float16.
        affine: [R, 2, 3] float32, heatmap to photograph pixels.
    """

    runs: tuple[str, ...]
    heatmaps: NDArray[np.float16]
    affine: NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """One photograph with a hidden joint. Positions are photograph pixels, [N, 2] float32.

    Attributes:
        photo: Name of the photograph in ``skimage.data``.
        hidden: Index of the joint under the patch.
        joint: Its name, e.g. ``left elbow``.
        truth: What the detector sees on the unpatched photograph; of the hidden joint, what counts as right.
        truth_confidence: [N] confidence on the unpatched photograph.
        detected: What it sees on the patched one.
        refined: The same after PORT.
        confidence: [N], on the patched photograph.
        mask: [N] bool, the joints of confidence below δ in a pose that was refined: they were rebuilt.
        names: The skeleton's joint names.
        bones: Its bones.
    """

    photo: str
    hidden: int
    joint: str
    truth: NDArray[np.float32]
    truth_confidence: NDArray[np.float32]
    detected: NDArray[np.float32]
    refined: NDArray[np.float32]
    confidence: NDArray[np.float32]
    mask: NDArray[np.bool_]
    names: tuple[str, ...]
    bones: tuple[tuple[int, int], ...]

    @property
    def before_px(self) -> float:
        """How far the detector's hidden joint is off."""
        return float(np.linalg.norm(self.detected[self.hidden] - self.truth[self.hidden]))

    @property
    def after_px(self) -> float:
        """How far the refined hidden joint is off."""
        return float(np.linalg.norm(self.refined[self.hidden] - self.truth[self.hidden]))

    @property
    def seen(self) -> NDArray[np.bool_]:
        """[N] bool: the detector finds the joint on the unpatched photograph; the others lie outside it."""
        return np.asarray(self.truth_confidence >= SEEN)

    @property
    def masked(self) -> tuple[str, ...]:
        """Names of the masked joints, in words."""
        return tuple(in_words(name) for name, masked in zip(self.names, self.mask, strict=True) if masked)

    def masked_in_words(self) -> str:
        """Names of the masked joints that lie in the photograph, and how many lie outside it."""
        inside = [n for n, name in enumerate(self.names) if self.mask[n] and self.seen[n]]
        outside = int((self.mask & ~self.seen).sum())
        words = [in_words(self.names[n]) for n in inside]
        return ", ".join(words + [f"{outside} outside the photo"] * bool(outside)) or "none"

    def to_json(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return {
            "photo": self.photo,
            "joint": self.joint,
            "confidence": float(self.confidence[self.hidden]),
            "masked": list(self.masked),
            "before_px": self.before_px,
            "after_px": self.after_px,
        }


def in_words(name: str) -> str:
    """``left_elbow`` as ``left elbow``."""
    return name.replace("_", " ")


def load_sample(skeleton: Skeleton) -> Sample:
    """The bundled heatmaps with their channels in the skeleton's order.

    Raises:
        InputError: The skeleton has joints that the heatmaps lack.
    """
    entry = resources.files("port_deploy") / "data" / "samples" / SAMPLE
    with entry.open("rb") as file, np.load(file, allow_pickle=False) as data:
        arrays = {name: data[name] for name in ("run", "names", "heatmaps92", "affine")}
    index = match_names(arrays["names"].tolist(), skeleton)
    if (index < 0).any():
        lacking = ", ".join(n for n, i in zip(skeleton.names, index, strict=True) if i < 0)
        raise InputError(f"the demo's heatmaps have no {lacking} of skeleton {skeleton.name!r}: use a model for mpii16")
    return Sample(
        runs=tuple(str(r) for r in arrays["run"]),
        heatmaps=np.ascontiguousarray(arrays["heatmaps92"][:, index]),
        affine=np.ascontiguousarray(arrays["affine"], dtype=np.float32),
    )


def run_cases(sample: Sample, refiner: Refiner, decoder: Refiner) -> list[Case]:
    """Decode and refine every run that hides a joint.

    Args:
        sample: The heatmaps.
        refiner: The model as a user runs it.
        decoder: The same model with threshold 0 and ``refine="masked"``: it masks nothing, so it only decodes.
    """
    spec = refiner.model
    seen = decoder(sample.heatmaps, affine=sample.affine)
    out = refiner(sample.heatmaps, affine=sample.affine)
    positions = {name: i for i, name in enumerate(spec.skeleton.names)}
    cases = []
    for run, name in enumerate(sample.runs):
        photo, *hidden = name.split("_")
        if not hidden:
            continue
        clean = sample.runs.index(photo)
        joint = positions[canonical_name(hidden[0])]
        cases.append(
            Case(
                photo=photo,
                hidden=joint,
                joint=in_words(spec.skeleton.names[joint]),
                truth=np.array(seen.joints[clean]),
                truth_confidence=np.array(seen.confidence[clean]),
                detected=np.array(seen.joints[run]),
                refined=np.array(out.joints[run]),
                confidence=np.array(out.confidence[run]),
                mask=np.asarray(np.array(out.mask[run]) & ~(np.array(out.confidence[run]) >= refiner.threshold)),
                names=spec.skeleton.names,
                bones=spec.skeleton.bones,
            )
        )
    return cases


def latency_us(refiner: Refiner, sample: Sample, calls: int = TIMED_CALLS) -> float:
    """Median wall time of ``refiner(heatmaps)`` for one person, float32 heatmaps, caches warm."""
    heatmaps = np.ascontiguousarray(sample.heatmaps[:1], dtype=np.float32)
    affine = sample.affine[:1]
    out = refiner(heatmaps, affine=affine)
    times = np.empty(calls)
    for i in range(calls):
        start = time.perf_counter_ns()
        refiner(heatmaps, affine=affine, out=out)
        times[i] = time.perf_counter_ns() - start
    return float(np.median(times) / 1e3)


def photograph(name: str) -> NDArray[np.uint8]:
    """The photograph [H, W, 3] from scikit-image, which brings it in its wheel: nothing is downloaded.

    Raises:
        BackendUnavailableError: scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise BackendUnavailableError(
            'the photographs come with scikit-image, which is not installed: pip install "port-deploy[viz]"'
        ) from error
    pixels = np.asarray(getattr(data, name)(), np.uint8)
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
