# SPDX-License-Identifier: Apache-2.0
"""``port-train``: a model from .npz files of poses.

May use: nn.train, config, skeleton. Test: tests/test_train_command.py.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from port_deploy.cli.common import Parser, print_json, run, say, table
from port_deploy.config import ModelSpec, PortConfig
from port_deploy.errors import InputError, missing_extra
from port_deploy.skeleton import Skeleton

if TYPE_CHECKING:
    from port_deploy.nn.train import Trainer

DESCRIPTION = """Train PORT from .npz files that hold joints [M, n, 2] or joints3d [M, n, 3], names [n] and perhaps
labelled [M, n]. Without options the paper's hyperparameters are used for --kind paper, and those that measured best for
--kind soft."""

RECIPE = (
    *("epochs", "epoch_poses", "batch", "optimiser", "lr", "warmup_steps", "weight_decay", "clip", "average", "loss"),
    *("masking", "mask_ratio", "masked_noise", "precision", "store", "seed", "start", "variance_only"),
)
SPEC = (
    *("codec", "temperature", "frame", "threshold", "threshold_source", "min_visible", "max_masked", "refine"),
    *("fusion", "confidence_divisor", "licence"),
)


def parser() -> Parser:
    """The options."""
    p = Parser(prog="port-train", description=DESCRIPTION)
    quiet = argparse.SUPPRESS
    p.add_argument(
        "--data", action="append", required=True, metavar="FILE[:WEIGHT][:ignore=JOINT+JOINT][:face]",
        help="a file of poses, its share of the batches, joints whose labels in it are not used, and whether motion "
        "capture is given a simulated face; may be repeated",
    )  # fmt: skip
    p.add_argument("--skeleton", help="bundled name or a .json file; needed unless --variance-only")
    p.add_argument(
        "--kind", choices=("soft", "paper"), default="soft", help="conditioned on confidence, or the paper's"
    )
    p.add_argument("--name", help="the model's name (default: the skeleton's)", default=quiet)
    p.add_argument("-o", "--output", type=Path, required=True, help="folder for checkpoint, model and metrics")
    p.add_argument("--hold-out", action="append", default=[], metavar="FIELD=VALUE,VALUE", help="poses that judge")
    p.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    p.add_argument("--threads", type=int, default=0, help="0: as many as PyTorch takes")
    p.add_argument("--json", action="store_true", help="print the result as one JSON object")
    recipe = p.add_argument_group("recipe (defaults follow from --kind)")
    for name, kind, text in (
        ("epochs", int, "paper: 100"),
        ("epoch-poses", int, "poses drawn in an epoch; 0: as many as there are"),
        ("batch", int, "poses in a step; paper 128, soft 64"),
        ("lr", float, "learning rate; paper 5e-4, soft 1.5e-3"),
        ("warmup-steps", int, "1000, or a tenth of all steps if that is fewer"),
        ("weight-decay", float, "of AdamW; soft 0.01"),
        ("clip", float, "largest norm of the gradient; 1"),
        ("average", float, "decay of the moving average of the weights; soft 0.999"),
        ("mask-ratio", float, "part of the joints that random masking takes; 0.4"),
        ("masked-noise", float, "error of joints under random masking, in sizes of the pose; 0.5"),
        ("seed", int, "0"),
    ):
        recipe.add_argument(f"--{name}", type=kind, help=text, default=quiet)
    recipe.add_argument("--optimiser", choices=("adam", "adamw", "muon"), help="paper adam, soft adamw", default=quiet)
    recipe.add_argument("--loss", choices=("squared", "distance"), help="paper squared (eq. 12)", default=quiet)
    recipe.add_argument(
        "--masking", choices=("random", "simulated"), default=quiet,
        help="what paper training masks: random joints (the default), or those that the simulated detector of soft "
        "training is unsure of, with its errors",
    )  # fmt: skip
    recipe.add_argument("--precision", choices=("fp32", "bf16"), help="of the matrix products", default=quiet)
    recipe.add_argument("--store", choices=("fp32", "fp16"), help="of the model file; fp16 halves it", default=quiet)
    recipe.add_argument("--start", metavar="MODEL", help="a model whose weights are the initial ones", default=quiet)
    recipe.add_argument(
        "--variance-only", action="store_true", default=quiet,
        help="give the model of --start a variance, the standard deviation of each repair, and change nothing else of "
        "it; --data and --hold-out as for its training (defaults: 3 epochs of 51200 poses, lr 5e-2, batch 256)",
    )  # fmt: skip
    recipe.add_argument(
        "--simulate", action="append", default=[], metavar="FIELD=NUMBER,NUMBER",
        help="a number of the simulated detector, a field of DetectorModel (nn/detector_model.py); may be repeated",
    )  # fmt: skip
    spec = p.add_argument_group("model")
    spec.add_argument("--config", action="append", default=[], metavar="FIELD=VALUE", help="a field of PortConfig")
    for name, kind in (
        *(("threshold", float), ("fusion", float), ("confidence-divisor", float)),
        *(("min-visible", int), ("max-masked", int)),
    ):
        spec.add_argument(f"--{name}", type=kind, default=quiet)
    for name in ("threshold-source", "licence", "codec", "frame", "refine"):
        spec.add_argument(f"--{name}", default=quiet)
    spec.add_argument("--temperature", type=float, default=quiet)
    return p


def key_values(options: Sequence[str], option: str) -> dict[str, str]:
    """``FIELD=VALUE`` options as a dictionary."""
    result = {}
    for text in options:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise InputError(f"expected {option} FIELD=VALUE, got {text!r}")
        result[key] = value
    return result


def numbers(options: Sequence[str], option: str) -> dict[str, tuple[float, ...]]:
    """``FIELD=NUMBER,NUMBER`` options, such as ``--hold-out subject=9,11``, as ``{"subject": (9.0, 11.0)}``."""
    pairs = key_values(options, option)
    try:
        return {k: tuple(float(x) for x in v.split(",")) for k, v in pairs.items()}
    except ValueError as error:
        raise InputError(f"expected {option} FIELD=NUMBER,NUMBER: {error}") from error


def network(kind: str, options: Sequence[str]) -> PortConfig:
    """The preset of ``kind`` with the fields of ``--config`` changed."""
    changes: dict[str, Any] = {}
    for key, text in key_values(options, "--config").items():
        try:
            changes[key] = json.loads(text)
        except json.JSONDecodeError:
            changes[key] = text
    unknown = sorted(set(changes) - set(PortConfig.__dataclass_fields__))
    if unknown:
        raise InputError(f"--config has no field {unknown[0]!r}: use {', '.join(PortConfig.__dataclass_fields__)}")
    return PortConfig.preset(kind, **changes)


@contextmanager
def progress(total: int, done: int) -> Iterator[Callable[[int, int, float], None]]:
    """A function to call after each step: a bar with rich on a terminal, else a line at each twentieth."""
    try:
        from rich.progress import Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        shown = None
    else:
        shown = Progress(
            *Progress.get_default_columns()[:3], TimeRemainingColumn(), TextColumn("loss {task.fields[loss]:.4f}")
        )
    if shown is None or not sys.stderr.isatty():

        def line(step: int, steps: int, loss: float) -> None:
            if step % max(1, steps // 20) == 0:
                print(f"step {step}/{steps} loss {loss:.4f}", file=sys.stderr, flush=True)

        yield line
        return
    smooth = [float("nan")]
    shown.console.stderr = True
    with shown:
        task = shown.add_task("training", total=total, completed=done, loss=float("nan"))

        def bar(step: int, steps: int, loss: float) -> None:
            smooth[0] = loss if step == done + 1 else 0.98 * smooth[0] + 0.02 * loss
            shown.update(task, completed=step, loss=smooth[0])

        yield bar


def keep_memory() -> None:
    """Have the C library keep what is freed; does nothing where that is not glibc.

    Each step asks for the same megabytes again, and fetching new pages for them takes a fifth of the step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3
    for setting, size in ((m_mmap_threshold, 1 << 30), (m_trim_threshold, (1 << 31) - 1), (m_top_pad, 1 << 26)):
        mallopt(setting, size)


def trainer(options: argparse.Namespace) -> Trainer:
    """The run that the options describe."""
    try:
        import torch

        from port_deploy.nn.data import DataSpec
        from port_deploy.nn.options import TrainOptions
        from port_deploy.nn.train import Trainer
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise missing_extra("training", "train") from error
    if options.threads < 0:
        raise InputError(f"expected --threads of at least 0, got {options.threads}")
    keep_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    given = vars(options)
    recipe = {k: given[k] for k in RECIPE if k in given}
    data = tuple(DataSpec.parse(text) for text in options.data)
    picked = {k: numbers(given[k], f"--{k.replace('_', '-')}") for k in ("hold_out", "simulate")}
    train_options = TrainOptions.preset(options.kind, data=data, **picked, **recipe)
    if train_options.variance_only:
        from port_deploy.nn.train_variance import VarianceTrainer

        fixed = [k for k in (*SPEC, "name", "skeleton", "config") if given.get(k)]
        fixed += [k for k in ("optimiser", "loss", "weight_decay") if k in given]
        if fixed:
            raise InputError(
                f"--variance-only changes nothing else of the model: leave out --{fixed[0].replace('_', '-')}"
            )
        return VarianceTrainer(train_options, options.output)
    if not options.skeleton:
        raise InputError("expected --skeleton: a bundled name or a .json file")
    skeleton = Skeleton.load(options.skeleton)
    spec = ModelSpec(
        name=given.get("name", skeleton.name),
        skeleton=skeleton,
        config=network(options.kind, options.config),
        **{k: given[k] for k in SPEC if k in given},
    )
    return Trainer(spec, train_options, options.output)


def result(done: Trainer) -> dict[str, Any]:
    """What a finished run prints."""
    best = done.progress.history[done.progress.best_epoch - 1]
    return {"model": str(done.model_path), "epochs": done.progress.epoch, "best": best}


def body(argv: Sequence[str] | None) -> int:
    """Parse, train, report."""
    options = parser().parse_args(argv)
    job = trainer(options)
    if options.resume:
        job.resume()
    elif job.checkpoint.exists():
        raise InputError(f"{job.output} holds a run: go on with --resume, or choose another folder with -o")
    for source in job.sources:
        if gaps := source.gaps(job.spec.skeleton):
            say(gaps)
    with progress(job.total_steps, job.progress.step) as report:
        job.run(report)
    answer = result(job)
    if options.json:
        print_json(answer)
        return 0
    if job.options.variance_only:
        columns: tuple[str, ...] = ("nll", "within_1_masked", "within_2_masked", "within_1_visible", "within_2_visible")
        heads = ("source", "-log L", "masked 1", "masked 2", "visible 1", "visible 2")
        print("held-out log-likelihood, and per cent of joints within 1 and 2 sigma (a Gaussian has 39.3 and 86.5)")
    else:
        columns = ("error", "error_masked", "detector_masked", "error_visible", "detector_visible")
        heads = ("source", "all", "masked", "detector", "visible", "detector")
        print("held-out error, per cent of the pose's size (detector: simulated)")
    rows = [(name, *(f"{v[c]:.2f}" for c in columns)) for name, v in answer["best"]["held_out"]["sources"].items()]
    print(table(rows, heads))
    print(f"best of {answer['epochs']} epochs: {answer['best']['epoch']}; model: {answer['model']}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``port-train``."""
    return run(body, argv)


if __name__ == "__main__":
    sys.exit(main())
