# SPDX-License-Identifier: Apache-2.0
"""port-train --variance-only (nn/train_variance.py): σ learns, everything else of the model stays bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import CHAIN, SMALL, write_chains

torch = pytest.importorskip("torch")

from conftest import random_model  # noqa: E402

from port_deploy.backends.torch_ import TorchBackend  # noqa: E402
from port_deploy.cli.train import main  # noqa: E402
from port_deploy.config import ModelSpec, PortConfig  # noqa: E402
from port_deploy.errors import InputError  # noqa: E402
from port_deploy.nn.augment import draw_batch  # noqa: E402
from port_deploy.nn.data import DataSpec  # noqa: E402
from port_deploy.nn.fused import FusedPort  # noqa: E402
from port_deploy.nn.mjm import gaussian_loss  # noqa: E402
from port_deploy.nn.options import TrainOptions  # noqa: E402
from port_deploy.nn.port import Port  # noqa: E402
from port_deploy.nn.train import Trainer  # noqa: E402
from port_deploy.nn.train_variance import VarianceTrainer  # noqa: E402
from port_deploy.weights import Model, load_model, save_model  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def poses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chains(tmp_path_factory.mktemp("poses"))


@pytest.fixture(scope="module", params=["soft", "paper"])
def trained(request: pytest.FixtureRequest, poses: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    spec = ModelSpec("chain", CHAIN, PortConfig.preset(request.param, **SMALL), min_visible=3, licence="CC0")
    options = TrainOptions.preset(
        request.param, data=(DataSpec(poses),), epochs=2, epoch_poses=64 * 300, batch=64, lr=5e-3, average=0.95
    )
    run = Trainer(spec, options, tmp_path_factory.mktemp(request.param))
    run.run()
    return load_model(run.model_path)


def add_variance(model: Model, poses: Path, output: Path, **changes: Any) -> VarianceTrainer:
    changes = {"epochs": 3, "epoch_poses": 64 * 60, "batch": 64, "lr": 2e-2, "average": 0.9} | changes
    options = TrainOptions.preset("soft", data=(DataSpec(poses),), start=model.source, variance_only=True, **changes)
    return VarianceTrainer(options, output)


def test_it_learns_and_nothing_else_changes(trained: Model, poses: Path, tmp_path: Path) -> None:
    run = add_variance(trained, poses, tmp_path / "variance")
    before = run.evaluate()
    run.run()
    after = run.progress.history[-1]["held_out"]
    assert after["score"] < before["score"] - 0.05
    model = load_model(run.model_path)
    assert model.spec.config == replace(trained.spec.config, variance=True)
    assert replace(model.spec, config=trained.spec.config, training={}, metrics={}) == replace(
        trained.spec, training={}, metrics={}
    )
    assert model.spec.metrics["held_out"] == trained.spec.metrics["held_out"]
    assert set(model.spec.metrics["held_out_variance"]["sources"]) == {"chains"}
    assert model.spec.training["options"] == trained.spec.training["options"]
    assert model.spec.training["variance"]["options"]["variance_only"] is True
    for name, values in trained.tensors.items():
        np.testing.assert_array_equal(model.tensors[name][: len(values)], values, err_msg=name)
    assert model.tensors["head.out.weight"].shape == (3, 16)
    assert model.tensors["head.out.weight"][2].any()
    joints = np.random.default_rng(0).normal(0, 50, (64, 6, 2)).astype(np.float32)
    confidence = np.random.default_rng(1).random((64, 6)).astype(np.float32)
    for dtype in ("float32", "float64"):
        plain = TorchBackend(trained, dtype).compute(joints, confidence, 0.4)
        answer = TorchBackend(model, dtype).compute(joints, confidence, 0.4)
        for one, other in zip(plain, answer, strict=False):
            np.testing.assert_array_equal(one, other)
        assert plain[2].any()


def test_sigma_depends_on_what_the_network_sees(trained: Model, poses: Path, tmp_path: Path) -> None:
    """On poses drawn anew: likelier than the best σ that is the same for all joints, and of the errors' size."""
    run = add_variance(trained, poses, tmp_path / "variance", epochs=5, epoch_poses=64 * 100)
    run.run()
    truth, labelled = draw_batch(run.sources, 2048, CHAIN, torch.Generator().manual_seed(7))
    detection = run.detect(truth, labelled, torch.Generator().manual_seed(8))
    scale = torch.full((len(truth), 1, 1), 25.0)
    weight, bias = run.port.head.out.weight, run.port.head.out.bias
    with torch.no_grad():
        run._load(run.average)
        learnt = float(run.losses(detection, truth, scale)[0])
        refined, std, target = run.answers(detection, scale)
        weight[2] = 0.0
        constant = []
        for log_sigma in np.linspace(-5, 0, 101):
            bias[2] = float(log_sigma)
            constant.append(float(run.losses(detection, truth, scale)[0]))
    assert int(target.sum()) > 1500
    assert learnt < min(constant) - 0.02
    squared = (refined - truth).square().sum(-1)[target] / 2
    assert 0.8 < float((squared / std[target].square()).mean().sqrt()) < 1.25


def test_a_model_that_has_one_begins_anew(trained: Model, poses: Path, tmp_path: Path) -> None:
    first = add_variance(trained, poses, tmp_path / "a")
    first.run()
    again = add_variance(load_model(first.model_path), poses, tmp_path / "b")
    again.run()
    one, other = load_model(first.model_path), load_model(again.model_path)
    assert all(np.array_equal(one.tensors[k], other.tensors[k]) for k in one.tensors)


def test_it_resumes(trained: Model, poses: Path, tmp_path: Path) -> None:
    whole = add_variance(trained, poses, tmp_path / "whole")
    whole.run()
    broken = add_variance(trained, poses, tmp_path / "broken")

    def stop(step: int, _total: int, _loss: float) -> None:
        if step == 70:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken.run(stop)
    again = add_variance(trained, poses, tmp_path / "broken")
    again.resume()
    again.run()
    assert whole.model_path.read_bytes() == again.model_path.read_bytes()


@pytest.mark.parametrize("kind", ["soft", "paper"])
def test_the_fused_network_has_the_row_too(kind: str) -> None:
    torch.manual_seed(0)
    port = Port(PortConfig.preset(kind, **SMALL, variance=True), CHAIN, torch.float64)
    inputs = torch.randn(5, 6, 3 if kind == "soft" else 2, dtype=torch.float64)
    mask = torch.rand(5, 6) < 0.4
    answer = FusedPort(port, torch.float64)(inputs, mask)
    assert answer.shape == (5, 6, 3)
    torch.testing.assert_close(answer, port(inputs, mask))


def test_the_loss_is_smallest_at_the_errors_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    error = 0.3 * torch.randn(20000, 1, 2, generator=generator)
    target = torch.ones(20000, 1, dtype=torch.bool)
    sigmas = torch.linspace(0.2, 0.4, 41)
    losses = [gaussian_loss(error, 0 * error, torch.full((20000, 1), float(s)), target) for s in sigmas]
    assert abs(float(sigmas[torch.stack(losses).argmin()]) - 0.3) <= 0.005
    target[5:] = False
    error[5:] = float("nan")
    assert gaussian_loss(error, 0 * error, torch.ones(20000, 1), target).isfinite()


def test_the_joints_are_not_trained_with_it(poses: Path, tmp_path: Path) -> None:
    spec = ModelSpec("chain", CHAIN, PortConfig.preset("soft", **SMALL, variance=True), min_visible=3)
    with pytest.raises(InputError, match="--variance-only"):
        Trainer(spec, TrainOptions.preset("soft", data=(DataSpec(poses),)), tmp_path / "run")


def command(poses: Path, tmp_path: Path, *more: str) -> list[str]:
    base = ["--variance-only", "--data", str(poses), "-o", str(tmp_path / "out"), "--epochs", "1"]
    return [*base, "--epoch-poses", "640", "--batch", "64", *more]


def test_command(trained: Model, poses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(poses, tmp_path, "--start", trained.source, "--json")) == 0
    printed = json.loads(capsys.readouterr().out)
    assert load_model(printed["model"]).spec.config.variance
    assert main(command(poses, tmp_path, "--start", trained.source, "--resume")) == 0
    assert "within 1 and 2 sigma" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "--start MODEL"),
        (["--config", "width=8"], "leave out --config"),
        (["--threshold", "0.3"], "leave out --threshold"),
        (["--skeleton", "hand21"], "leave out --skeleton"),
        (["--optimiser", "muon"], "leave out --optimiser"),
    ],
)
def test_mistakes_are_one_line(
    poses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    start = tmp_path / "start.safetensors"
    model = random_model("soft", "hand21", **SMALL)
    save_model(start, model.spec, model.tensors)
    assert main(command(poses, tmp_path, *more, *(["--start", str(start)] if more else []))) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
