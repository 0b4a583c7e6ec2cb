# SPDX-License-Identifier: Apache-2.0
"""A detector's ONNX and PORT in one graph: crops in, refined joints out.

In the order of the work: `source` reads and checks the file (`family`: a named detector's checkpoint), `joints` matches
its channels to the skeleton by name, `head` finds the heatmaps, `half` lowers the detector to fp16, `merge` joins the
graphs, `apart` asks the detector and then the oracle, and `run` writes what agrees. May use: what export may use.
"""

from port_deploy.export.detector.options import DetectorOptions

__all__ = ["DetectorOptions"]
