# SPDX-License-Identifier: Apache-2.0
"""`DetectorRun`: one export with a detector in front, from its file to a verified graph and engine.

May use: the other files of export, backends, verify_images, weights, errors. Test: tests/test_export_detector.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from port_deploy.backends import onnxruntime_
from port_deploy.config import ModelSpec
from port_deploy.detector_info import DetectorInfo, Scale, Values
from port_deploy.errors import InputError
from port_deploy.export.detector.apart import Apart, load_photographs
from port_deploy.export.detector.half import to_half
from port_deploy.export.detector.head import Alone, Head, find_head, raw_images
from port_deploy.export.detector.joints import channel_order, check_order, joint_names
from port_deploy.export.detector.merge import RAW, merge
from port_deploy.export.detector.options import DetectorOptions
from port_deploy.export.detector.quantized import quantized
from port_deploy.export.detector.source import Ask, Source, read_source
from port_deploy.export.engine_artefact import write_engine
from port_deploy.export.graph import build_detector_graph
from port_deploy.export.run import Exported, ExportOptions, Run, onnx_verified
from port_deploy.nn.onnx_graph import onnx_graph
from port_deploy.sidecar import Precision
from port_deploy.verify_images import GOLDEN_IMAGES, ImageProblem, image_golden, random_images, verify_images
from port_deploy.weights import Model, load_model

PROBES = 3
"""Images of the first run, which shows the outputs' shapes: more than one, and not a power of two."""
SEED = 20


@dataclass(frozen=True)
class _Joined:
    """A detector that is understood."""

    source: Source
    alone: Alone
    head: Head
    info: DetectorInfo


class DetectorRun(Run):
    """From a model file and a detector, with PyTorch.

    Args:
        source: The refiner.
        name: Its name; the artefacts' also has the detector's.
        staging: Folder to write into.
        options: With ``detector``.
    """

    def __init__(self, source: str | Path, name: str, staging: Path, options: ExportOptions) -> None:
        assert options.detector is not None  # export_model saw to it
        super().__init__(artefact_name(options.detector.source, name), staging, options)
        self.model, self.detector = load_model(source), options.detector
        self.precision = options.precision or "fp32"

    def write(self) -> list[Exported]:
        """The merged ONNX, and the engine where one is wanted."""
        given, model = self.detector, self.model
        joined = understand(read_detector(given), given, model)
        lowered, cost = self._lowered(joined), ""
        if given.quantize is not None:
            bound = self.options.max_px_error
            source, alone, about, cost = quantized(joined.source, joined.alone, joined.info, given, model, bound)
            lowered = self._lowered(replace(joined, source=source, alone=alone, info=about))
        problems, info = self._problems(lowered)
        tail, tools = tail_of(model, info, self.precision)
        merged = merge(lowered.source.proto, tail, lowered.source, lowered.head, info, model.spec.threshold)
        path = self.staging / f"{self.name}.onnx"
        path.write_bytes(merged.SerializeToString(deterministic=True))
        sidecar = replace(
            self.describe(path, "onnx", model.spec, "image", self.precision, tools),
            detector=info,
            golden=image_golden(problems[1], SEED),
        )
        onnx = onnx_verified(self, path, sidecar, problems)
        notes = [onnx.note, describe(info, model.spec)]
        if cost:
            notes.append(cost)  # what comes beyond it is rounding
        elif lowered is not joined:
            notes.append(self._against("in fp32", joined.alone, joined, path))
        if joined.source.in_pytorch is not None and not cost:
            notes.append(self._against("in PyTorch", joined.source.in_pytorch, joined, path))
        done = [self.recorded(replace(onnx, note="; ".join(n for n in notes if n)))]
        if "engine" in self.options.kinds:
            done.append(write_engine(self, done[0], lambda: problems))
        return done

    def _lowered(self, joined: _Joined) -> _Joined:
        """The detector in the precision that was asked for; what its file holds in a lower one stays as it is."""
        source = joined.source
        if self.precision != "fp16" or joined.info.precision != "fp32":
            return joined
        proto = source.lower("fp16") if source.lower is not None else to_half(source.proto, source.name)
        source = replace(source, proto=proto, precision="fp16")
        return _Joined(source, Alone(source), joined.head, replace(joined.info, precision="fp16"))

    def _problems(self, joined: _Joined) -> tuple[tuple[ImageProblem, ...], DetectorInfo]:
        """What to verify on, random images first, and the detector with the range of its values."""
        info = joined.info
        apart = Apart(joined.alone, joined.source, info, self.model)
        problems: tuple[ImageProblem, ...] = ()
        for images in self._images(info):
            if problems:
                real = apart.problems(images, SEED)
                seen = apart.detected(images)
                check_order(self.model.spec.skeleton, seen.joints, seen.confidence)
                problems = (*problems, *real)
            else:
                problems = apart.problems(images, SEED)
        low, high = apart.value_range(images)
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError(f"detector {info.name} answers values that are not finite: see --image-values")
        return problems, replace(info, value_range=(low, high))

    def _images(self, info: DetectorInfo) -> Iterator[NDArray[np.uint8]]:
        yield random_images(info.image_size, GOLDEN_IMAGES, SEED)
        if self.detector.images is not None:
            yield load_photographs(self.detector.images, info.image_size)

    def _against(self, where: str, ask: Ask, joined: _Joined, path: Path) -> str:
        """The same comparison with the detector computed another way, in one clause.

        Networks in two libraries or precisions differ by rounding, which heatmaps with several peaks magnify without
        bound. So it is told, and bounds the export only on photographs, or where the caller gave the bound.

        Raises:
            VerificationError: The error is above it.
        """
        apart = Apart(ask, joined.source, joined.info, self.model)
        asked = [p for images in self._images(joined.info) for p in apart.problems(images, SEED)]
        found = verify_images(onnxruntime_.load(path), asked, self.precision, self.options.max_px_error)
        if self.options.max_px_error is not None or self.detector.images is not None:
            found.check(f"{path.name} against the detector {where}")
        sure = f" on the {found.joints} joints it is sure of" if found.low_precision else ""
        return f"against the detector {where} max {found.max_error_px:.2g} px, mean {found.mean_error_px:.2g} px{sure}"


def tail_of(model: Model, info: DetectorInfo, precision: Precision) -> tuple[Any, dict[str, str]]:
    """What follows the detector, as a ModelProto, and the versions of what wrote it."""
    graph = build_detector_graph(model, info, precision)
    names = (*RAW[info.head], "affine", "threshold")
    return onnx_graph(graph.module, graph.examples, names, graph.outputs, graph.dynamic_shapes, {0: "B"})


def read_detector(given: DetectorOptions) -> Source:
    """The detector's graph: its file, or an export of the family."""
    if given.is_file:
        return read_source(given)
    from port_deploy.export.detector.family import family_source

    return family_source(given)


def understand(source: Source, given: DetectorOptions, model: Model) -> _Joined:
    """Run a detector once and find its heatmaps, its joints and its scale.

    Raises:
        InputError: Something does not fit, or has to be said; the message says what.
    """
    names = joint_names(given.joints, source.metadata)
    alone = Alone(source)
    values: Values = given.values or _said(source.metadata, "values", get_args(Values)) or "unit"
    probe = random_images(source.size, PROBES, SEED)
    outputs = alone(raw_images(probe, source, values))
    head = find_head(outputs, source, given, names)
    assert names is not None  # find_head insists on them
    usual: Scale = "corner" if head.kind == "simcc" else "half-pixel"
    info = DetectorInfo(
        name=source.name,
        sha256=source.sha256,
        outputs=head.outputs,
        head=head.kind,
        map_layout=head.layout,
        map_size=head.map_size,
        joints=names,
        order=channel_order(names, model.spec),
        scale=given.scale or _said(source.metadata, "scale", get_args(Scale)) or usual,
        image_layout=source.layout,
        image_type="uint8" if given.uint8 else source.dtype,
        image_size=source.size,
        values="byte" if source.dtype == "uint8" else values,
        precision=source.precision,
        score=given.score,
    )
    return _Joined(source, alone, head, info)


def _said(metadata: Mapping[str, str], key: str, choices: tuple[str, ...]) -> Any:
    """What the file's metadata say of itself: ``port_deploy.scale``, ``port_deploy.values``; None where nothing."""
    value = metadata.get(f"port_deploy.{key}")
    return value if value in choices else None


def describe(info: DetectorInfo, spec: ModelSpec) -> str:
    """One line on how a detector was read, for people who check it."""
    low, high = info.value_range
    maps = " x ".join(map(str, info.map_size))
    what = f"{info.head} from {', '.join(info.outputs)} ({info.map_layout}, {maps}, values {low:.2g} to {high:.2g})"
    text = f"{what}, scale {info.scale}, reads {info.values} RGB"
    lacking = [name for name, c in zip(spec.skeleton.names, info.order, strict=True) if c < 0]
    if lacking:
        text += f"; not detected, so always rebuilt: {', '.join(lacking)}"
    if info.dropped:
        text += f"; dropped: {', '.join(info.dropped)}"
    if high > 1.5:
        text += "; confidence is clipped to 1, so scale its values to 0..1 for thresholds to mean something"
    return text


def artefact_name(detector: str, model: str) -> str:
    """``efficientpose_mpii16``: the detector's file and the model, of letters that every system takes."""
    stem = re.sub(r"[^\w.+-]+", "_", Path(detector).stem if detector.endswith(".onnx") else detector).strip("_.")
    return f"{stem or 'detector'}_{model}"
