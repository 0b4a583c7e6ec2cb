# SPDX-License-Identifier: Apache-2.0
"""The training loop: poses -> simulated detector -> `nn.line.Refine` -> loss; averaging, held-out scores, checkpoints.

Everything random follows from (seed, epoch), so a resumed run answers what an uninterrupted one does.
May use: config, files, weights, nn.*, torch. Test: tests/test_train.py.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from port_deploy.config import ModelSpec
from port_deploy.errors import InputError, PortError
from port_deploy.files import check_writable, write_text
from port_deploy.nn.augment import draw, draw_batch
from port_deploy.nn.checkpoint import Progress, load_checkpoint, save_checkpoint
from port_deploy.nn.data import check_hold_out, load_source
from port_deploy.nn.detector_model import detector_model
from port_deploy.nn.fused import FusedPort
from port_deploy.nn.line import Refine
from port_deploy.nn.mjm import Detection, distance_loss, mask_joints, reconstruction_loss
from port_deploy.nn.muon import Muon
from port_deploy.nn.options import TrainOptions
from port_deploy.nn.port import Port
from port_deploy.nn.simulated_detector import Graph, redefine, simulate_detector
from port_deploy.weights import Model, load_model, rounded, save_model

HELD_OUT_POSES = 1024
"""Most held-out poses of one source that score a checkpoint."""

USUAL_POSES = 8192
"""Training poses that tell the simulated detector what is unusual."""

SEEN_NOISE = 0.01
"""Location error in sizes of the joints that masked joint modelling leaves visible."""

PIXELS = (25.0, 60.0)
"""Size (root-mean-square coordinate) in pixels that poses are given before the line; about a 256-pixel crop's."""


class Trainer:
    """One training run.

    Args:
        spec: The model to be: name, skeleton, network, frame, threshold. ``training`` and ``metrics`` are filled in.
        options: How it is trained.
        output: Folder for ``checkpoint.safetensors``, ``<name>.safetensors`` (the best so far) and
            ``<name>.metrics.json``.

    Raises:
        InputError: A data file is missing or unusable, or none has a field of ``hold_out``.
    """

    chosen_by = "error"
    """The held-out score that chooses the best checkpoint."""

    def __init__(self, spec: ModelSpec, options: TrainOptions, output: Path) -> None:
        self.spec, self.options, self.output = spec, options, output
        self.sources = [load_source(d, spec.skeleton, options.hold_out) for d in options.data]
        check_hold_out(options.hold_out, self.sources)
        if not any(len(s.held_out) for s in self.sources):
            raise InputError(
                "no pose is held out: choose --hold-out values that the data have, to judge checkpoints by"
            )
        torch.manual_seed(options.seed)
        self.port = Port(spec.config, spec.skeleton)
        if self.port.mask_embedding is not None:
            torch.nn.init.normal_(cast(Tensor, self.port.mask_embedding), std=0.02)
        if options.start:
            self._start_from(load_model(options.start))
        self.average = {k: v.detach().clone() for k, v in self.port.named_parameters()}
        # Inference's own line; its scale of confidence (0..1) and its reach (any mask; `_line`: all joints) differ.
        self.line_spec = replace(spec, confidence_divisor=1.0, max_masked=spec.joints)
        dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
        self.line = self._line(dtype)
        self.optimiser = self._optimiser(dtype)
        self.progress = Progress()
        poses = options.epoch_poses or sum(len(s.training) for s in self.sources)
        self.epoch_steps = max(1, poses // options.batch)
        self.total_steps = self.epoch_steps * options.epochs
        self.detector = detector_model(spec.skeleton, options.simulate)
        self.graph = self._graph()
        self.trials = self._trials()

    @property
    def checkpoint(self) -> Path:
        """The file that ``resume`` reads."""
        return self.output / "checkpoint.safetensors"

    @property
    def model_path(self) -> Path:
        """The best model so far."""
        return self.output / f"{self.spec.name}.safetensors"

    def recipe(self) -> dict[str, Any]:
        """What must be equal for a run to be the same run."""
        spec = self.spec.to_json()
        return {"options": self.options.to_json(), "data": [dict(s.facts) for s in self.sources], "model": spec}

    def resume(self) -> None:
        """Go on from the checkpoint in ``output``."""
        self.progress = load_checkpoint(self.checkpoint, self.port, self.average, self.optimiser, self._plain_recipe())

    def run(self, report: Callable[[int, int, float], None] | None = None) -> Progress:
        """Train to the last epoch; every epoch ends with a checkpoint.

        Args:
            report: Called after each step with step, total steps and loss.

        Raises:
            InputError: ``output`` cannot be written, or no pose has anything to learn from.
            PortError: The loss is no longer finite; the last good checkpoint and best model are in ``output``.
        """
        check_writable(self.checkpoint)
        if not self.progress.epoch:
            self.evaluate()  # refuses, before hours of work, data and limits that leave nothing to learn
        while self.progress.epoch < self.options.epochs:
            entry = self._epoch(self.progress.epoch, report)
            scores = self.evaluate()
            entry["held_out"] = scores
            self.progress.epoch += 1
            self.progress.history.append(entry)
            if scores["score"] < self.progress.best_score:
                self.progress.best_score, self.progress.best_epoch = scores["score"], self.progress.epoch
                kept = {k: v.numpy() for k, v in self.average.items()}
                if self.options.store == "fp16":
                    kept = {k: rounded(v) for k, v in kept.items()}
                save_model(self.model_path, self._card(scores), kept)
            save_checkpoint(
                self.checkpoint, self.port, self.average, self.optimiser, self.progress, self._plain_recipe()
            )
            self._write_metrics()
        return self.progress

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to 0."""
        warmup = min(self.options.warmup_steps, self.total_steps // 10)
        if step < warmup:
            return self.options.lr * (step + 1) / warmup
        done = (step - warmup) / max(1, self.total_steps - warmup)
        return self.options.lr * 0.5 * (1 + math.cos(math.pi * done))

    def losses(self, detection: Detection, joints: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Through the line of inference.

        Args:
            detection: The simulated detector's answer.
            joints: [B, N, 2] true joints, size 1.
            scale: [B, 1, 1] pixels in a size.

        Returns:
            The loss; refined joints [B, N, 2] in sizes; [B, N] bool, which of them count (refined targets).
        """
        refined, changed = self.line(detection.joints * scale, detection.confidence, detection.threshold)
        refined = refined / scale
        target = detection.target & changed
        if self.spec.config.input_channels < 3:
            target &= ~(detection.confidence >= detection.threshold)  # eq. (12): masked joints alone
        recon = torch.where(target.unsqueeze(-1), refined, joints)
        loss = reconstruction_loss if self.options.loss == "squared" else distance_loss
        return loss(recon, joints, target), refined, target

    def detect(self, joints: Tensor, labelled: Tensor, generator: torch.Generator) -> Detection:
        """Hide joints the way that this kind of model is trained."""
        if self._simulates:
            return simulate_detector(joints, labelled, self.detector, self.graph, generator)
        return mask_joints(joints, labelled, self.options.mask_ratio, self.options.masked_noise, SEEN_NOISE, generator)

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Held-out scores of the averaged weights, by source: mean location error in per cent of the pose's size.

        ``score``, the sources' weighted mean of the one that is ``chosen_by``, chooses the best checkpoint.
        """
        kept = {k: v.detach().clone() for k, v in self.port.named_parameters()}
        self._load(self.average)
        sources: dict[str, dict[str, float]] = {}
        learnt = 0
        for name, (detection, joints) in self.trials.items():
            scale = torch.full((len(joints), 1, 1), PIXELS[0])
            sources[name], count = self.scores(detection, joints, scale)
            learnt += count
        self._load(kept)
        if not learnt:
            raise InputError(
                f"no held-out pose has a joint to learn: of {self.spec.joints} joints at least {self.spec.min_visible} "
                f"must stay visible and at most {self.spec.max_masked} be masked: lower --min-visible or --mask-ratio"
            )
        weights = {s.name: s.weight for s in self.sources if s.name in sources}
        total = sum(weights[n] * v[self.chosen_by] for n, v in sources.items())
        return {"score": total / sum(weights.values()), "sources": sources}

    def scores(self, detection: Detection, joints: Tensor, scale: Tensor) -> tuple[dict[str, float], int]:
        """One source's held-out scores, and how many joints they are of; arguments as `losses` takes them."""
        _, refined, target = self.losses(detection, joints, scale)
        mask = ~(detection.confidence >= detection.threshold)
        found = detection.joints.isfinite().all(-1)
        before = (detection.joints.nan_to_num() - joints).norm(dim=-1)
        after = (refined - joints).norm(dim=-1)
        scores = {
            "error": _mean(after, target),
            "error_masked": _mean(after, target & mask),
            "detector_masked": _mean(before, target & mask & found),
            "error_visible": _mean(after, target & ~mask),
            "detector_visible": _mean(before, target & ~mask),
        }
        return scores, int(target.sum())

    @property
    def _simulates(self) -> bool:
        return self.spec.config.input_channels == 3 or self.options.masking == "simulated"

    def _graph(self) -> Graph:
        """The skeleton's graph, and what is usual in the training poses."""
        generator = torch.Generator().manual_seed(self.options.seed)
        return Graph.of(self.spec.skeleton).with_poses(
            *draw_batch(self.sources, USUAL_POSES, self.spec.skeleton, generator)
        )

    def _trials(self) -> dict[str, tuple[Detection, Tensor]]:
        """Held-out poses of each source with their simulated detections: always the same ones."""
        trials = {}
        for source in self.sources:
            if not len(source.held_out):
                continue
            generator = torch.Generator().manual_seed(20230)
            chosen = torch.randperm(len(source.held_out), generator=generator)[:HELD_OUT_POSES]
            joints, labelled = draw(source, source.held_out[chosen], self.spec.skeleton, generator)
            joints = redefine(joints, labelled, self.detector.definition, self.graph, generator)
            detection = self.detect(joints, labelled, generator)
            if self._simulates:
                fixed = self.spec.threshold / self.spec.confidence_divisor
                detection = replace(detection, threshold=torch.full_like(detection.threshold, fixed))
            trials[source.name] = (detection, joints)
        return trials

    def _epoch(self, epoch: int, report: Callable[[int, int, float], None] | None) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + epoch)
        total, start = 0.0, time.perf_counter()
        for _ in range(self.epoch_steps):
            joints, labelled = draw_batch(self.sources, self.options.batch, self.spec.skeleton, generator)
            joints = redefine(joints, labelled, self.detector.definition, self.graph, generator)
            detection = self.detect(joints, labelled, generator)
            scale = PIXELS[0] + (PIXELS[1] - PIXELS[0]) * torch.rand(len(joints), 1, 1, generator=generator)
            loss, _, _ = self.losses(detection, joints, scale)
            value = loss.item()
            if not math.isfinite(value):
                raise PortError(
                    f"training diverged in epoch {epoch + 1}: the loss is {value}: start again with a lower --lr "
                    f"(the last good checkpoint and model are in {self.output})"
                )
            rate = self.learning_rate(self.progress.step)
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.port.parameters(), self.options.clip)
            self.optimiser.step()
            self.progress.step += 1
            self._move_average()
            total += value
            if report:
                report(self.progress.step, self.total_steps, value)
        seconds = time.perf_counter() - start
        return {"epoch": epoch + 1, "loss": total / self.epoch_steps, "lr": rate, "seconds": round(seconds, 1)}

    def _line(self, dtype: torch.dtype) -> Refine:
        if self.spec.config.variance:
            raise InputError("a variance is not trained with the joints: train them, then add it with --variance-only")
        return Refine(replace(self.line_spec, refine="all", fusion=1.0), FusedPort(self.port, dtype))  # type: ignore[arg-type]

    def _optimiser(self, dtype: torch.dtype) -> torch.optim.Optimizer:
        parameters, options = self.port.parameters(), self.options
        if options.optimiser == "muon":
            return Muon(parameters, lr=options.lr, weight_decay=options.weight_decay, dtype=dtype)
        if options.optimiser == "adamw":
            return torch.optim.AdamW(parameters, lr=options.lr, weight_decay=options.weight_decay)
        return torch.optim.Adam(parameters, lr=options.lr, weight_decay=options.weight_decay)

    def _start_from(self, model: Model) -> None:
        # The skeleton may be another: the weights are shared by all joints, the graph is not among them.
        if model.spec.config != self.spec.config:
            raise InputError(f"{model.source} has another network: start from one of the same shape")
        with torch.no_grad():
            self._load({k: torch.from_numpy(v) for k, v in model.tensors.items()})

    def _move_average(self) -> None:
        decay = min(self.options.average, (1 + self.progress.step) / (10 + self.progress.step))
        with torch.no_grad():
            for name, parameter in self.port.named_parameters():
                self.average[name].lerp_(parameter, 1.0 - decay)

    def _load(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.port.named_parameters():
            parameter.copy_(values[name])

    def _plain_recipe(self) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(json.dumps(self.recipe()))
        return plain

    def _card(self, scores: Mapping[str, Any]) -> ModelSpec:
        """The specification that goes into the model file."""
        training = {
            "data": [dict(s.facts) for s in self.sources],
            "options": self.options.to_json(),
            "epochs_done": self.progress.epoch,
            "poses_seen": self.progress.step * self.options.batch,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        return replace(self.spec, training=training, metrics={"held_out": dict(scores)} | dict(self.spec.metrics))

    def _write_metrics(self) -> None:
        best = self.progress.history[self.progress.best_epoch - 1] if self.progress.best_epoch else None
        facts = {"model": self.spec.name, "best": best, "epochs": self.options.epochs} | self.recipe()
        text = json.dumps({**facts, "history": self.progress.history}, indent=1)
        write_text(self.output / f"{self.spec.name}.metrics.json", text + "\n")


def _mean(values: Tensor, where: Tensor) -> float:
    """Mean in per cent over the joints ``where``; 0 where there are none."""
    return round(float(values[where].mean()) * 100, 3) if bool(where.any()) else 0.0
