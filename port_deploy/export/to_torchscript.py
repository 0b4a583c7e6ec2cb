# SPDX-License-Identifier: Apache-2.0
"""``NAME.ts``: the line as TorchScript, scripted (so that no branch is lost) and frozen.

May use: graph, torch. Test: tests/test_export.py.
"""

from __future__ import annotations

from pathlib import Path

import torch

from port_deploy.export.graph import Graph, quiet


def write_torchscript(graph: Graph, path: Path) -> dict[str, str]:
    """Write the artefact; returns the versions of what wrote it."""
    with quiet():  # PyTorch warns that TorchScript is being retired; --pt2 is its successor
        frozen = torch.jit.freeze(torch.jit.script(graph.module))
        data = frozen.save_to_buffer()
    path.write_bytes(data)  # by ourselves: PyTorch's writer hides why it failed
    return {"torch": torch.__version__}
