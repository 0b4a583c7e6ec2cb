# SPDX-License-Identifier: Apache-2.0
"""export/fused_kernel.py: the kernel's PTX made ready for one model; assembled for real where nvcc and ptxas are."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_kernels import PTX, SIZE, with_variance
from fake_plugins import launch, library_with_plugins

from port_deploy.errors import ExportError
from port_deploy.export import fused_kernel
from port_deploy.export.fused_kernel import drop_last_argument, specialise
from port_deploy.export.fused_network import build_network, plan_fused

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def real_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kernels compiled now, one per precision."""
    if shutil.which("nvcc") is None or shutil.which("ptxas") is None:
        pytest.skip("no nvcc and ptxas: the kernels cannot be compiled here")
    folder = tmp_path_factory.mktemp("layers")
    source = ROOT / "csrc" / "cuda"
    for name, form, oldest in (
        ("fp32_3_sm75", "port::kernels::Plain", 75),
        ("fp16_3_sm80", "port::device::Half", 80),
        ("bf16_2_sm80", "port::device::Bfloat", 80),
    ):
        columns = name.split("_")[1]
        command = ["nvcc", "-ptx", f"-arch=compute_{oldest}", "-std=c++17", f"-I{source}"]
        command += [f"-DPORT_LAYER_FORMAT={form}", f"-DPORT_LAYER_COLUMNS={columns}"]
        subprocess.run(
            [*command, "-o", folder / f"port_line_{name}.ptx", source / "engine_layer.cu"],
            check=True,
            capture_output=True,
        )
    return folder


def test_reads_of_constants_become_numbers() -> None:
    constants = np.array([7, 8, 9, 0, -2, 1], np.int32).tobytes()
    constants = constants[:12] + np.float32(1.5).tobytes() + constants[16:]
    text = specialise(PTX.format(size=24), constants)
    assert "port_line_constants" not in text
    assert ".version 7.8\n" in text
    assert ".pragma" not in text  # newer than 7.8
    body = text[text.index("{") :].split()
    joined = " ".join(body)
    assert "mov.b32 %r1, 7;" in joined
    assert "mov.b32 %r2, 8; mov.b32 %r3, 9;" in joined
    assert "mov.f32 %f1, 0f3FC00000;" in joined
    assert "mov.b64 %rd1, -2;" in joined
    assert f"mov.b64 %rd2, {(1 << 32) + 0xFFFFFFFE};" in joined


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PTX.format(size=16), "of 24 bytes, got one of 16 bytes"),
        ("nothing", "of 24 bytes, got none"),
        (PTX.format(size=24).replace("ld.const.u64", "ld.const.u16"), "in a way that is not known"),
        (PTX.format(size=24).replace("%rd2, [", "%x2, ["), "reads a constant into %x2"),
    ],
)
def test_ptx_of_another_build_is_refused(text: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        specialise(text, bytes(24))


def test_a_last_argument_that_nobody_passes_becomes_null() -> None:
    text = drop_last_argument(PTX.format(size=24))
    assert "port_line_param_1" not in text
    assert ".param .u64 port_line_param_0\n)" in text
    assert "mov.b64 %rd4, 0;" in text
    assert "ld.param.u64 \t%rd3, [port_line_param_0];" in text
    for wrong in (PTX.replace("[port_line_param_1]", "[port_line_param_1+4]"), PTX.replace(".u64 port", ".u32 port")):
        with pytest.raises(ExportError, match="no last argument"):
            drop_last_argument(wrong.format(size=24))


@pytest.mark.parametrize("variance", ["", " without"])
@pytest.mark.parametrize(
    ("model", "precision", "oldest"), [("hand21", "fp32", 75), ("hand21", "fp16", 80), ("mpii16", "bf16", 80)]
)
def test_the_kernel_assembles_without_spills_and_takes_the_arguments_of_the_layer(
    real_kernels: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    model: str,
    precision: Any,
    oldest: int,
    variance: str,
) -> None:
    monkeypatch.setattr(fused_kernel, "layers_folder", lambda: real_kernels)
    library = library_with_plugins("11.4.0", monkeypatch)
    fused = plan_fused(library, with_variance(model + variance), "heatmaps", precision, SIZE, "9.0")
    network, _ = build_network(library, library.Builder(None), fused)
    assert len(network.outputs) == (3 if variance else 4)
    (layer,) = [entry for entry in network.layers if entry.kind == "plugin"]
    started = launch(layer, 5)
    declared = re.search(r"\.entry (\w+)\(([^)]*)\)", started.ptx)
    assert declared is not None
    assert declared[1] == started.name
    kinds = re.findall(r"\.param \.(\w+)", declared[2])
    assert kinds == ["u32" if isinstance(a, int) else "u64" for a in started.arguments]
    assert started.block_x == int(re.search(r"\.maxntid (\d+)", started.ptx)[1])  # type: ignore[index]
    path = tmp_path / "kernel.ptx"
    path.write_text(started.ptx)
    for arch in {oldest, 90, 120}:
        command = ["ptxas", "-v", f"-arch=sm_{arch}", str(path), "-o", str(tmp_path / "kernel.cubin")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "0 bytes spill stores, 0 bytes spill loads" in done.stderr
        registers = re.search(r"Used (\d+) registers", done.stderr)
        assert registers is not None
        assert int(registers[1]) <= 128  # two blocks on a multiprocessor
