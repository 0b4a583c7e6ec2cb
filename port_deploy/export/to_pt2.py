# SPDX-License-Identifier: Apache-2.0
"""``NAME.pt2``: the line compiled ahead of time by PyTorch for the CPU of this kind of machine.

Needs a C++ compiler. May use: graph, torch. Test: tests/test_backend_aotinductor.py.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from port_deploy.backends.artefact import first_line
from port_deploy.errors import ExportError
from port_deploy.export.graph import Graph, quiet


def write_pt2(graph: Graph, path: Path) -> dict[str, str]:
    """Write the artefact; returns the versions of what wrote it.

    Raises:
        ExportError: PyTorch could not compile the line.
    """
    level = logging.getLogger("torch").level
    logging.getLogger("torch").setLevel(logging.ERROR)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(graph.module, graph.examples, dynamic_shapes=graph.dynamic_shapes)
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except (RuntimeError, OSError) as error:
        raise ExportError(
            f"PyTorch {torch.__version__} could not compile {path.name} ({first_line(error)}): "
            "it needs a working C++ compiler (g++ or CXX)"
        ) from error
    finally:
        logging.getLogger("torch").setLevel(level)
    return {"torch": torch.__version__}
