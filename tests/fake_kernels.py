# SPDX-License-Identifier: Apache-2.0
"""What the tests of fused engines share: stand-ins for the kernels' PTX, and models with and without a variance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from port_deploy.weights import Model, load_model, model_from_bytes, model_to_bytes

SIZE = (64, 48)
"""Of a heatmap, height and width."""

# As nvcc writes it, in short; 24 bytes of constants.
PTX = """\
.version 9.0
.target sm_80
.address_size 64

.const .align 8 .b8 port_line_constants[{size}];
.visible .entry port_line(
\t.param .u64 port_line_param_0,
\t.param .u64 port_line_param_1
)
{{
\tld.param.u64 \t%rd3, [port_line_param_0];
\tld.param.u64 \t%rd4, [port_line_param_1];
\tld.const.u32 \t%r1, [port_line_constants];
\t.pragma "used_bytes_mask 240";
\tld.const.v2.u32 \t{{%r2, %r3}}, [port_line_constants+4];
\tld.const.f32 \t%f1, [port_line_constants+12];
\tld.const.s32 \t%rd1, [port_line_constants+16];
\tld.const.u64 \t%rd2, [port_line_constants+16];
\tret;
}}
"""


def write_ptx(folder: Path) -> None:
    """A stand-in for every kernel that a build with CUDA has."""
    folder.mkdir(exist_ok=True)
    for kind in ("fp32_{}_sm75", "fp16_{}_sm75", "fp16_{}_sm80", "bf16_{}_sm80"):
        for columns in (2, 3, 4):
            text = PTX.format(size=424).replace("sm_80", f"sm_80 // {kind.format(columns)}")
            (folder / f"port_line_{kind.format(columns)}.ptx").write_text(text)


def with_variance(name: str) -> Model:
    """A bundled model with a random third row; or without it where the name says so."""
    model = load_model(name.removesuffix(" without"))
    wanted = not name.endswith(" without")
    spec = replace(model.spec, config=replace(model.spec.config, variance=wanted))
    rows = np.random.default_rng(0).normal(0, 0.1, (3, spec.config.width)).astype(np.float32)
    weight, bias = model.tensors["head.out.weight"][:2], model.tensors["head.out.bias"][:2]
    if wanted:
        weight, bias = np.concatenate([weight, rows[2:]]), np.concatenate([bias, rows[2, :1]])
    tensors = {**model.tensors, "head.out.weight": weight, "head.out.bias": bias}
    return model_from_bytes(model_to_bytes(spec, tensors), name)
