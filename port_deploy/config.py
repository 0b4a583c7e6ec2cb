# SPDX-License-Identifier: Apache-2.0
"""What a PORT model is: the network's shape (`PortConfig`) and everything around it (`ModelSpec`).

Both are plain frozen data, checked when made, and written as JSON into model files and sidecars. Every backend,
kernel and export honours every field. May use: errors, skeleton. Test: tests/test_config.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from port_deploy.errors import InputError, ModelFileError
from port_deploy.skeleton import Skeleton

FORMAT_VERSION = 1
"""Version of the specification written into model files; a reader refuses a higher one."""

MAX_COORDINATE = 1e6
"""Pixels. A joint that is not finite or lies beyond this counts as missing: it is rebuilt and never read."""

MIN_SCALE = 1e-3
"""Pixels. Below this spread of the visible joints there is nothing to anchor a frame on: the pose is left alone."""

LOG_STD_RANGE = (-7.0, 0.0)
"""The network's log σ, in units of the frame, is clamped to this by every backend. At the top, a joint as uncertain as
the visible ones are spread, nothing is known but that it belongs to the pose: a linear row overshoots where most of a
pose is hidden, and with 1 instead of 0 held-out hands were less likely (-log L a joint -2.349 against -2.367)."""

CodecName = Literal["softargmax", "softargmax-sum", "argmax"]
"""Codecs of a model: every backend and export decodes with them."""

PeakCodecName = Literal["msra", "dark", "udp"]
"""Codecs of detectors' own evaluations, which start from the largest pixel: in `decode` and nn.detectors."""

FrameName = Literal["visible", "paper"]
RefineMode = Literal["masked", "all"]


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


@dataclass(frozen=True)
class PortConfig:
    """Shape of the network, eqs. (4)-(11).

    Attributes:
        width: D, channels of a joint's embedding.
        layers: L, encoder layers.
        heads: Attention heads.
        head_dim: Channels of one head. 64 gives the paper's 0.53 M parameters, 16 gives 0.13 M.
        hops: K, the exponents of the normalised adjacency in MSGC, eq. (4).
        share_hop_weights: One W for all hops (eq. 4 as printed) instead of one W_k per hop.
        mlp_ratio: Hidden width of the encoder's MLP over ``width``.
        se_reduction: ``width`` over the hidden width of the squeeze-and-excitation MLP, eq. (10).
        attention_scale: Scores are divided by the square root of ``head_dim`` or of ``width``, eq. (7).
        input_channels: 2 for (x, y); 3 for (x, y, confidence).
        residual: The head's output is a correction added to the input joint, not the joint itself.
        mask_embedding: Rows of masked joints are replaced by a learnt vector after the first MSGC.
        masked_coordinates: ``keep`` what the detector said of a masked joint as input, or ``zero`` it (the frame's
            origin) so that nothing of it leaks through the graph convolution.
        layer_norm_eps: Added to the variance in layer normalisation.
        variance: The head's third output is log σ of each rebuilt joint, σ the standard deviation of one coordinate in
            the frame's unit (an isotropic Gaussian). Files without the field have none.
    """

    width: int = 64
    layers: int = 4
    heads: int = 4
    head_dim: int = 64
    hops: tuple[int, ...] = (1, 2)
    share_hop_weights: bool = False
    mlp_ratio: int = 2
    se_reduction: int = 4
    attention_scale: Literal["head_dim", "width"] = "head_dim"
    input_channels: Literal[2, 3] = 2
    residual: bool = False
    mask_embedding: bool = True
    masked_coordinates: Literal["keep", "zero"] = "keep"
    layer_norm_eps: float = 1e-5
    variance: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "hops", tuple(self.hops))
        for name, low, high in (
            ("width", 8, 512),
            ("layers", 1, 32),
            ("heads", 1, 32),
            ("head_dim", 8, 256),
            ("mlp_ratio", 1, 8),
            ("se_reduction", 1, 64),
        ):
            value = getattr(self, name)
            _check(
                isinstance(value, int) and not isinstance(value, bool) and low <= value <= high,
                f"expected {name} to be a whole number from {low} to {high}, got {value!r}",
            )
        _check(self.width % 8 == 0, f"expected width to be a multiple of 8, got {self.width}")
        _check(self.head_dim % 8 == 0, f"expected head_dim to be a multiple of 8, got {self.head_dim}")
        _check(
            self.width % self.se_reduction == 0,
            f"expected se_reduction to divide width {self.width}, got {self.se_reduction}",
        )
        _check(
            1 <= len(self.hops) <= 4
            and all(isinstance(k, int) and 0 <= k <= 8 for k in self.hops)
            and len(set(self.hops)) == len(self.hops),
            f"expected hops to be 1 to 4 different whole numbers from 0 to 8, got {self.hops!r}",
        )
        _check(self.attention_scale in ("head_dim", "width"), f"unknown attention_scale {self.attention_scale!r}")
        _check(self.input_channels in (2, 3), f"expected input_channels 2 or 3, got {self.input_channels!r}")
        _check(self.masked_coordinates in ("keep", "zero"), f"unknown masked_coordinates {self.masked_coordinates!r}")
        for name in ("share_hop_weights", "residual", "mask_embedding", "variance"):
            _check(isinstance(getattr(self, name), bool), f"expected {name} to be true or false")
        _check(
            isinstance(self.layer_norm_eps, float) and 0 < self.layer_norm_eps < 1e-2,
            f"expected layer_norm_eps between 0 and 0.01, got {self.layer_norm_eps!r}",
        )

    @property
    def outputs(self) -> int:
        """Rows of the head: x, y, and log σ where there is a variance."""
        return 3 if self.variance else 2

    @property
    def inner(self) -> int:
        """Width of the concatenated heads: heads * head_dim."""
        return self.heads * self.head_dim

    @property
    def mlp_width(self) -> int:
        """Hidden width of the encoder's MLP."""
        return self.width * self.mlp_ratio

    @property
    def se_width(self) -> int:
        """Hidden width of the squeeze-and-excitation MLP."""
        return self.width // self.se_reduction

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of a model file: the one list that loaders, modules and C++ check against.

        MSGC weights are ``[hops, in, out]`` (``x @ W``); linear layers are ``[out, in]``.
        """
        d, inner, hidden, se = self.width, self.inner, self.mlp_width, self.se_width
        k = 1 if self.share_hop_weights else len(self.hops)
        shapes: dict[str, tuple[int, ...]] = {"embed.weight": (k, self.input_channels, d)}
        if self.mask_embedding:
            shapes["mask_embedding"] = (d,)
        for i in range(self.layers):
            p = f"layers.{i}."
            shapes |= {p + "norm1.weight": (d,), p + "norm1.bias": (d,)}
            shapes |= {p + f"{x}.weight": (k, d, inner) for x in ("q", "k", "v")}
            shapes |= {p + "out.weight": (d, inner), p + "out.bias": (d,)}
            shapes |= {p + "norm2.weight": (d,), p + "norm2.bias": (d,)}
            shapes |= {p + "fc1.weight": (hidden, d), p + "fc1.bias": (hidden,)}
            shapes |= {p + "fc2.weight": (d, hidden), p + "fc2.bias": (d,)}
        shapes |= {"head.se1.weight": (se, d), "head.se1.bias": (se,)}
        shapes |= {"head.se2.weight": (d, se), "head.se2.bias": (d,)}
        shapes |= {"head.out.weight": (self.outputs, d), "head.out.bias": (self.outputs,)}
        return shapes

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values; ``variance`` only where it is on, so that other files stay what they were."""
        data = asdict(self)
        if not self.variance:
            del data["variance"]
        return data

    def parameter_count(self) -> int:
        """Number of learnt values (Table II says 0.5 M for the paper's model)."""
        return sum(math.prod(s) for s in self.parameter_shapes().values())

    @classmethod
    def preset(cls, kind: str, **changes: Any) -> PortConfig:
        """``paper`` (the paper's model) or ``soft`` (conditioned on confidence, residual), with fields changed.

        ``soft`` has K={0,2} at the cost of the paper's {1,2}, whose powers never show a joint its place unmixed with
        its neighbours': after 300 steps of 64 hands the error of hidden joints stood at 69 % of the detector's with
        {0,2}, 72 % with {0,1}, and above 93 % with {1,2}.
        """
        soft = cls(hops=(0, 2), input_channels=3, residual=True, mask_embedding=False)
        presets = {"paper": cls(), "soft": soft}
        if kind not in presets:
            raise InputError(f"unknown kind of model {kind!r}: use one of {', '.join(presets)}")
        return replace(presets[kind], **changes)


@dataclass(frozen=True)
class ModelSpec:
    """Everything beside the weights that decides what a model answers; stored in the model file and in sidecars.

    Attributes:
        name: The model's name, e.g. ``hand21``.
        skeleton: Joints, bones, mirror pairs.
        config: Shape of the network.
        codec: How a heatmap becomes a joint: ``softargmax`` (softmax of temperature * map), ``softargmax-sum`` (map
            clipped at 0 and divided by its sum), ``argmax``. Eq. (1).
        temperature: Factor on the map inside the softmax of ``softargmax``. The default was read off the heatmaps of
            EfficientPose II Lite on 200 labelled photographs, all 2,400 labelled joints, mean error in pixels of the
            46 grid / of the 92 grid: softargmax at 10 3.03 / 7.21, 20 1.18 / 2.37, 30 1.17 / 2.31, **40 1.17 / 2.29**,
            75 1.19 / 2.27, 200 1.21 / 2.27; softargmax-sum 1.36 / 2.69; argmax 1.23 / 2.31. Lower ones pull a weak
            peak towards the middle of the map.
        frame: Coordinates that the network sees: ``visible`` or ``paper`` (nn/line.py defines both).
        frame_size: (width, height) in pixels that the ``paper`` frame divides by.
        threshold: δ, eq. (13): a joint whose confidence is below it is masked.
        threshold_source: How δ was chosen.
        min_visible: With fewer visible joints the pose is returned unchanged.
        max_masked: With more masked joints the pose is returned unchanged.
        refine: Which joints of a refined pose change: the ``masked`` ones or ``all``.
        fusion: Weight of the reconstruction in a changed joint, 0..1; the rest is the detector's joint. Eq. (14) has 1.
        confidence_divisor: Confidence is divided by this and clipped to 0..1 before it enters the network.
        std_scale: Factor on the network's σ, which makes it the error of a certain detector's repairs; of no effect
            without `PortConfig.variance`, and written into files only with it.
        training: What it was trained on and how.
        licence: Licence of the weights, as their data allow.
        metrics: What was measured.
    """

    name: str
    skeleton: Skeleton
    config: PortConfig
    codec: CodecName = "softargmax"
    temperature: float = 40.0
    frame: FrameName = "visible"
    frame_size: tuple[float, float] = (256.0, 256.0)
    threshold: float = 0.3
    threshold_source: str = "fixed"
    min_visible: int = 4
    max_masked: int = 64
    refine: RefineMode = "masked"
    fusion: float = 1.0
    confidence_divisor: float = 1.0
    std_scale: float = 1.0
    training: Mapping[str, Any] = field(default_factory=dict)
    licence: str = "unknown"
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(len(self.frame_size) == 2 and all(map(_positive, self.frame_size)), "expected frame_size (w, h) > 0")
        object.__setattr__(self, "frame_size", tuple(float(v) for v in self.frame_size))
        check_threshold(self.threshold)
        _check(self.codec in get_args(CodecName), f"unknown codec {self.codec!r}: {', '.join(get_args(CodecName))}")
        _check(self.frame in get_args(FrameName), f"unknown frame {self.frame!r}: {', '.join(get_args(FrameName))}")
        _check(self.refine in get_args(RefineMode), f"unknown refine {self.refine!r}: use masked or all")
        _check(_positive(self.temperature), f"expected a positive temperature, got {self.temperature!r}")
        _check(_positive(self.confidence_divisor), f"expected confidence_divisor > 0, got {self.confidence_divisor!r}")
        _check(_positive(self.std_scale), f"expected std_scale > 0, got {self.std_scale!r}")
        _check(
            isinstance(self.min_visible, int) and self.min_visible >= 2,
            f"expected min_visible to be a whole number of at least 2, got {self.min_visible!r}",
        )
        _check(
            isinstance(self.max_masked, int) and self.max_masked >= 0,
            f"expected max_masked to be a whole number of at least 0, got {self.max_masked!r}",
        )
        _check(
            isinstance(self.fusion, (int, float)) and 0 <= self.fusion <= 1,
            f"expected fusion from 0 to 1, got {self.fusion!r}",
        )

    @property
    def joints(self) -> int:
        """N."""
        return len(self.skeleton.names)

    def to_json(self) -> dict[str, Any]:
        """The specification as plain JSON values, with ``format_version``."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data["skeleton"] = self.skeleton.to_json()
        data["config"] = self.config.to_json()
        if not self.config.variance:
            del data["std_scale"]
        data["training"] = dict(self.training)
        data["metrics"] = dict(self.metrics)
        return {"format_version": FORMAT_VERSION, **data}

    @classmethod
    def from_json(cls, data: Any) -> ModelSpec:
        """Read what `to_json` wrote.

        Raises:
            ModelFileError: It is not a specification, is of a newer format, or a field has an unusable value.
        """
        if not isinstance(data, dict) or "format_version" not in data:
            raise ModelFileError("expected a port_deploy specification with format_version: re-export the model")
        version = data["format_version"]
        if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
            raise ModelFileError(
                f"expected specification format 1 to {FORMAT_VERSION}, got {version!r}: upgrade port-deploy"
            )
        known = {f.name for f in fields(cls)}
        unknown = set(data) - known - {"format_version"}
        missing = {"name", "skeleton", "config"} - set(data)
        if unknown or missing:
            raise ModelFileError(
                f"specification has unknown fields {sorted(unknown)} or lacks {sorted(missing)}: re-export the model"
            )
        try:
            values = {k: v for k, v in data.items() if k in known}
            values["skeleton"] = Skeleton.from_json(values["skeleton"])
            values["config"] = PortConfig(**values["config"])
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ModelFileError(f"unusable specification: {error}") from error


def _finite(value: object) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def _positive(value: Any) -> bool:
    return _finite(value) and bool(value > 0)


def check_threshold(value: Any) -> float:
    """δ as a float, or an InputError that says what it must be."""
    if not _finite(value) or value < 0:
        raise InputError(f"expected threshold to be a finite number of at least 0, got {value!r}: 0 masks nothing")
    return float(value)
