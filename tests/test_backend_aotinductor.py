# SPDX-License-Identifier: Apache-2.0
"""One AOTInductor package, compiled, verified, reloaded; and refused on another machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import random_model

from port_deploy import verify as verification
from port_deploy.backends import aotinductor_
from port_deploy.errors import BackendUnavailableError, InputError, ModelFileError
from port_deploy.export import ExportOptions, export_model
from port_deploy.files import sha256
from port_deploy.sidecar import sidecar_path
from port_deploy.weights import save_model

pytest.importorskip("torch")

MODEL = random_model("soft", layers=1, head_dim=16)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pt2")
    save_model(folder / "m.safetensors", MODEL.spec, MODEL.tensors)
    (done,) = export_model(folder / "m.safetensors", folder, ExportOptions(("pt2",), input="joints"))
    assert done.verification.backend == "aotinductor"
    assert done.verification.passed
    return done.path


@pytest.mark.slow
def test_a_compiled_package(package: Path, tmp_path: Path) -> None:
    assert sorted(p.name for p in package.parent.iterdir()) == ["m.pt2", "m.pt2.json", "m.safetensors"]
    backend = aotinductor_.load(package)
    assert verification.verify(backend, verification.make_problems(MODEL, "joints", seed=5), "fp32").passed
    with pytest.raises(InputError, match="was compiled for device 'cpu', got 'cuda'"):
        aotinductor_.load(package, device="cuda")

    data = json.loads(sidecar_path(package).read_text())
    other = tmp_path / "m.pt2"
    other.write_bytes(package.read_bytes())
    sidecar_path(other).write_text(json.dumps(data | {"platform": {"machine": "riscv64", "cpu": "RVV"}}))
    with pytest.raises(BackendUnavailableError, match=r"compiled for riscv64 RVV.* run port-export --pt2 here"):
        aotinductor_.load(other)

    other.write_bytes(b"PK\x03\x04 half a package")
    sidecar_path(other).write_text(json.dumps(data | {"sha256": sha256(other), "size_bytes": other.stat().st_size}))
    with pytest.raises(ModelFileError, match="cannot load") as caught:
        aotinductor_.load(other)
    assert "\n" not in str(caught.value)
