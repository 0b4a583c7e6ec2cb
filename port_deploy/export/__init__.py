# SPDX-License-Identifier: Apache-2.0
"""Writing artefacts: TorchScript, ONNX, AOTInductor packages and TensorRT engines, each with its sidecar, verified.

`export_model` is the way in. Every library is imported by the function that needs it: building an engine from an ONNX
file needs TensorRT alone. May use: backends, verify, sidecar, nn, weights, config, errors, files.
"""

from port_deploy.export.detector.options import DetectorOptions
from port_deploy.export.package import export_model
from port_deploy.export.run import Exported, ExportOptions

__all__ = ["DetectorOptions", "ExportOptions", "Exported", "export_model"]
