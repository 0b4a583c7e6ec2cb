# SPDX-License-Identifier: Apache-2.0
"""Training (nn/{fused,train,options,checkpoint}.py): it learns, repeats itself, resumes, refuses."""

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

from port_deploy.config import ModelSpec, PortConfig  # noqa: E402
from port_deploy.errors import InputError, ModelFileError, PortError  # noqa: E402
from port_deploy.nn import train as train_module  # noqa: E402
from port_deploy.nn.checkpoint import differences  # noqa: E402
from port_deploy.nn.data import DataSpec  # noqa: E402
from port_deploy.nn.detector_model import DetectorModel  # noqa: E402
from port_deploy.nn.fused import FusedPort  # noqa: E402
from port_deploy.nn.options import TrainOptions  # noqa: E402
from port_deploy.nn.port import Port  # noqa: E402
from port_deploy.nn.simulated_detector import Graph, simulate_detector  # noqa: E402
from port_deploy.nn.train import Trainer  # noqa: E402
from port_deploy.skeleton import Skeleton  # noqa: E402
from port_deploy.weights import load_model  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Equal sums need an equal number of threads; one is also the quickest here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def poses(tmp_path: Path) -> Path:
    return write_chains(tmp_path)


def make(poses: Path, output: Path, kind: str = "soft", **changes: Any) -> Trainer:
    spec = ModelSpec("chain", CHAIN, PortConfig.preset(kind, **SMALL), min_visible=3)
    changes = {"epochs": 2, "epoch_poses": 64 * 6, "batch": 64, "average": 0.5, "warmup_steps": 2} | changes
    return Trainer(spec, TrainOptions.preset(kind, data=(DataSpec(poses),), **changes), output)


def weights(trainer: Trainer) -> dict[str, Any]:
    return {k: v.detach().clone() for k, v in trainer.port.named_parameters()}


@pytest.mark.parametrize("kind", ["soft", "paper"])
@pytest.mark.parametrize("shared", [False, True])
def test_the_fused_network_is_the_network(kind: str, shared: bool) -> None:
    torch.manual_seed(0)
    config = PortConfig.preset(kind, **SMALL, hops=(0, 1, 3), share_hop_weights=shared)
    port = Port(config, CHAIN, torch.float64)
    if port.mask_embedding is not None:
        torch.nn.init.normal_(port.mask_embedding)
    inputs = torch.randn(5, 6, config.input_channels, dtype=torch.float64)
    mask = torch.rand(5, 6) < 0.4
    fused = FusedPort(port, torch.float64)
    expected = port(inputs, mask)
    expected.square().sum().backward()
    gradients = {k: v.grad.clone() for k, v in port.named_parameters()}
    port.zero_grad()
    answer = fused(inputs, mask)
    answer.square().sum().backward()
    torch.testing.assert_close(answer, expected)
    for name, parameter in port.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=name)


@pytest.mark.parametrize(
    ("kind", "masking", "epochs"), [("soft", "random", 3), ("paper", "random", 3), ("paper", "simulated", 5)]
)
def test_it_learns(poses: Path, tmp_path: Path, kind: str, masking: str, epochs: int) -> None:
    options = {"epochs": epochs, "epoch_poses": 64 * 120, "lr": 5e-3, "average": 0.95, "masking": masking}
    trainer = make(poses, tmp_path / "run", kind, **options)
    before = trainer.evaluate()["sources"]["chains"]
    trainer.run()
    after = trainer.evaluate()["sources"]["chains"]
    assert after["error_masked"] < 0.9 * before["error_masked"]
    assert after["error_masked"] < 0.95 * after["detector_masked"]
    losses = [h["loss"] for h in trainer.progress.history]
    assert losses[-1] < losses[0]


def test_the_paper_kind_learns_from_masked_joints_alone(poses: Path, tmp_path: Path) -> None:
    """On the simulated detector too: a joint above the threshold reaches the network, not the loss."""
    trainer = make(poses, tmp_path / "run", "paper", masking="simulated")
    joints, labelled = torch.randn(64, 6, 2), torch.ones(64, 6, dtype=torch.bool)
    detection = trainer.detect(joints, labelled, torch.Generator().manual_seed(0))
    below = ~(detection.confidence >= detection.threshold)
    assert (detection.joints - joints)[~below].abs().max() > 0.1  # as a detector errs
    _, _, target = trainer.losses(detection, joints, torch.full((64, 1, 1), 40.0))
    assert target.any()
    assert not (target & ~below).any()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_paper_frame_trains_too(poses: Path, tmp_path: Path, precision: str) -> None:
    spec = ModelSpec("chain", CHAIN, PortConfig.preset("paper", **SMALL), min_visible=3, frame="paper")
    options = TrainOptions(
        data=(DataSpec(poses),), epochs=2, epoch_poses=64 * 40, batch=64, lr=5e-3, precision=precision
    )
    progress = Trainer(spec, options, tmp_path / "run").run()
    assert progress.history[1]["loss"] < 0.9 * progress.history[0]["loss"]


def test_what_is_written_reads_back(poses: Path, tmp_path: Path) -> None:
    trainer = make(poses, tmp_path / "run")
    trainer.run()
    model = load_model(trainer.model_path)
    assert model.spec.training["data"][0]["file"] == "chains.npz"
    assert model.spec.training["data"][0]["poses"] + model.spec.training["data"][0]["held_out"] == 600
    assert set(model.spec.metrics["held_out"]["sources"]) == {"chains"}
    metrics = json.loads((tmp_path / "run" / "chain.metrics.json").read_text())
    assert len(metrics["history"]) == 2
    assert metrics["best"]["held_out"]["score"] == min(h["held_out"]["score"] for h in metrics["history"])
    assert str(tmp_path) not in model.data.decode("latin-1"), "no path of the training machine in the model"


def test_every_seed_holds_out_the_same_poses(poses: Path, tmp_path: Path) -> None:
    """Else seeds do not compare, and poses that one run held out are what another has learnt."""
    first, second = (make(poses, tmp_path / str(seed), seed=seed).sources[0] for seed in (0, 1))
    assert 0 < len(first.held_out) < len(first.training)
    assert first.held_out.equal(second.held_out)


def test_a_seed_decides_everything(poses: Path, tmp_path: Path) -> None:
    runs = [make(poses, tmp_path / str(i), seed=seed) for i, seed in enumerate((3, 3, 4))]
    for trainer in runs:
        trainer.run()
    first, same, other = (weights(t) for t in runs)
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_resuming_answers_what_an_uninterrupted_run_does(poses: Path, tmp_path: Path) -> None:
    whole = make(poses, tmp_path / "whole", epochs=3)
    whole.run()
    broken = make(poses, tmp_path / "broken", epochs=3)

    def stop(step: int, _total: int, _loss: float) -> None:
        if step == 9:  # in the middle of the second epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken.run(stop)
    assert load_model(broken.model_path).spec.name == "chain", "the first epoch's model is whole"
    assert {p.name for p in broken.output.iterdir()} == {
        *("checkpoint.safetensors", "chain.safetensors", "chain.metrics.json")
    }
    again = make(poses, tmp_path / "broken", epochs=3)
    again.resume()
    assert again.progress.epoch == 1
    again.run()
    first, second = weights(whole), weights(again)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert whole.model_path.read_bytes() == again.model_path.read_bytes()
    strip = [{k: v for k, v in h.items() if k != "seconds"} for h in again.progress.history]
    assert strip == [{k: v for k, v in h.items() if k != "seconds"} for h in whole.progress.history]


def test_resuming_something_else_is_refused(poses: Path, tmp_path: Path) -> None:
    trainer = make(poses, tmp_path / "run", epochs=1)
    with pytest.raises(InputError, match="no checkpoint"):
        trainer.resume()
    trainer.run()
    with pytest.raises(InputError, match="of another run: seed: 0 in the checkpoint, 1 now.*: resume with the same"):
        make(poses, tmp_path / "run", epochs=1, seed=1).resume()
    trainer.checkpoint.write_bytes(trainer.checkpoint.read_bytes()[:1000])
    with pytest.raises(ModelFileError, match="not a checkpoint"):
        make(poses, tmp_path / "run", epochs=1).resume()


def test_differences_of_recipes_are_named_and_few() -> None:
    before = {"options": {"epochs": 1, "hold_out": {}}, "data": [{"file": "a.npz"}], "model": {"config": {"layers": 3}}}
    now = json.loads(json.dumps(before))
    assert differences(before, now) == ""
    now["options"] |= {"epochs": 2, "hold_out": {"subject": [9.0]}}
    now["data"] = [{"file": "b.npz"}, {"file": "a.npz"}]
    now["model"]["config"]["layers"] = 4
    assert differences(before, now) == (
        "epochs: 1 in the checkpoint, 2 now; hold_out subject: none in the checkpoint, [9.0] now; "
        'data 1 file: "a.npz" in the checkpoint, "b.npz" now; and 2 more'
    )
    long = differences({"data": []}, {"data": [{"file": "x" * 99}]})
    assert long == 'data 1 file: none in the checkpoint, "' + "x" * 38 + "… now"


def test_starting_from_a_model(poses: Path, tmp_path: Path) -> None:
    first = make(poses, tmp_path / "first")
    first.run()
    second = make(poses, tmp_path / "second", start=str(first.model_path))
    kept = load_model(first.model_path).tensors
    assert all(np.array_equal(v.numpy(), kept[k]) for k, v in weights(second).items())
    with pytest.raises(InputError, match="another network"):
        make(poses, tmp_path / "third", kind="paper", start=str(first.model_path))
    part = Skeleton("part", tuple("bcdef"), tuple((i, i + 1) for i in range(4)))
    options = TrainOptions.preset("soft", data=(DataSpec(poses),), start=str(first.model_path))
    spec = ModelSpec("part", part, PortConfig.preset("soft", **SMALL), min_visible=3)
    other = Trainer(spec, options, tmp_path / "fourth")
    assert all(np.array_equal(v.numpy(), kept[k]) for k, v in weights(other).items())


def test_divergence_keeps_the_last_good_model(poses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(poses, tmp_path / "run", epochs=1)
    trainer.run()
    good = trainer.model_path.read_bytes()
    trainer = make(poses, tmp_path / "run", epochs=2)
    monkeypatch.setattr(train_module, "distance_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(PortError, match="the loss is nan"):
        trainer.run()
    assert trainer.model_path.read_bytes() == good


def test_unlabelled_joints_never_reach_the_gradient(poses: Path, tmp_path: Path) -> None:
    """Whatever stands where a label is missing, the loss of a batch is the same."""
    trainer = make(poses, tmp_path / "run")
    joints = torch.randn(32, 6, 2)
    labelled = torch.rand(32, 6) < 0.8
    values = []
    for fill in (0.0, 50.0):
        filled = torch.where(labelled.unsqueeze(-1), joints, torch.full_like(joints, fill))
        detection = replace(
            simulate_detector(joints, labelled, DetectorModel(), Graph.of(CHAIN), torch.Generator().manual_seed(1)),
            threshold=torch.full((32, 1), 0.4),
        )
        values.append(trainer.losses(detection, filled, torch.full((32, 1, 1), 40.0))[0].item())
    assert values[0] == values[1] > 0


def test_limits_that_leave_nothing_to_learn_are_refused_before_training(poses: Path, tmp_path: Path) -> None:
    spec = ModelSpec("chain", CHAIN, PortConfig.preset("paper", **SMALL), min_visible=5)
    options = TrainOptions.preset("paper", data=(DataSpec(poses),), epochs=1, epoch_poses=64, batch=64)
    with pytest.raises(InputError, match="lower --min-visible"):
        Trainer(spec, options, tmp_path / "run").run()
    assert not list((tmp_path / "run").glob("*"))


def test_an_output_that_cannot_be_written_is_refused_before_training(poses: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    steps: list[int] = []
    with pytest.raises(InputError, match="cannot write"):
        make(poses, tmp_path / "file" / "run").run(lambda step, total, loss: steps.append(step))
    assert not steps
