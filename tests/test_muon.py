# SPDX-License-Identifier: Apache-2.0
"""The optimiser Muon (nn/muon.py): alone, and in a training that is resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chains import CHAIN, write_chains

torch = pytest.importorskip("torch")

from port_deploy.config import ModelSpec, PortConfig  # noqa: E402
from port_deploy.nn.data import DataSpec  # noqa: E402
from port_deploy.nn.muon import Muon, orthogonal  # noqa: E402
from port_deploy.nn.options import TrainOptions  # noqa: E402
from port_deploy.nn.train import Trainer  # noqa: E402


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


def test_muon_learns_and_resumes(poses: Path, tmp_path: Path) -> None:
    spec = ModelSpec("chain", CHAIN, PortConfig.preset("soft", width=32, layers=1, heads=2, head_dim=16), min_visible=3)

    def fresh(output: str, epochs: int) -> Trainer:
        options = {"epochs": epochs, "epoch_poses": 64 * 60, "batch": 64, "lr": 1e-2, "average": 0.9}
        return Trainer(
            spec, TrainOptions.preset("soft", data=(DataSpec(poses),), optimiser="muon", **options), tmp_path / output
        )

    whole = fresh("whole", 2)
    before = whole.evaluate()["sources"]["chains"]
    whole.run()
    after = whole.evaluate()["sources"]["chains"]
    assert after["error_masked"] < 0.95 * before["error_masked"]
    assert after["error_masked"] < after["detector_masked"]
    broken = fresh("broken", 2)

    def stop(step: int, _total: int, _loss: float) -> None:
        if step == 61:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken.run(stop)
    again = fresh("broken", 2)
    again.resume()
    again.run()
    pairs = zip(whole.port.parameters(), again.port.parameters(), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)


@pytest.mark.parametrize("shape", [(3, 24, 40), (2, 40, 24)])
def test_muon_makes_matrices_orthogonal(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    answer = orthogonal(matrices, torch.float32)
    singular = torch.linalg.svdvals(answer)
    assert singular.min() > 0.6
    assert singular.max() < 1.3
    assert ((answer - u @ vt).flatten(1).norm(dim=1) < 0.4 * (u @ vt).flatten(1).norm(dim=1)).all()


def test_muon_gives_small_weights_to_adamw() -> None:
    large, small = (torch.nn.Parameter(torch.ones(s)) for s in ((32, 32), (32,)))
    optimiser = Muon([large, small], lr=0.1)
    reference = torch.nn.Parameter(torch.ones(32))
    adamw = torch.optim.AdamW([reference], lr=0.1, weight_decay=0.0)
    for _ in range(3):
        large.grad, gradient = torch.eye(32), torch.linspace(-1, 1, 32)
        small.grad, reference.grad = gradient.clone(), gradient.clone()
        optimiser.step()
        adamw.step()
    torch.testing.assert_close(small, reference)
    assert set(optimiser.state[large]) == {"momentum"}
