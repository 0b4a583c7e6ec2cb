# SPDX-License-Identifier: Apache-2.0
"""A client of a model that ``port-export --triton`` wrote, served by Triton Inference Server.

    pip install "tritonclient[http]"
    port-export hand21 --triton repository --input joints
    tritonserver --model-repository=repository
    python benchmarks/examples/triton_client.py hand21 --url localhost:8000

Asks the server what the model takes, sends random poses (or heatmaps, or crops) of that shape, prints what comes back.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

TYPES = {"FP32": np.float32, "FP16": np.float16, "UINT8": np.uint8}
OPEN_SIDE = 64  # for heatmaps of any size


def make_request(metadata: Mapping[str, Any], batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs as a model's metadata describes them; joints are pixels of a 256-pixel crop."""
    rng = np.random.default_rng(seed)
    request = {}
    for tensor in metadata["inputs"]:
        shape = [batch, *(OPEN_SIDE if int(d) < 0 else int(d) for d in tensor["shape"][1:])]
        values = rng.random(shape)
        if tensor["name"] == "affine":
            values = np.tile(np.eye(2, 3), (batch, 1, 1))
        elif tensor["name"] == "joints" or tensor["datatype"] == "UINT8":
            values = values * 255
        request[tensor["name"]] = values.astype(TYPES[tensor["datatype"]])
    return request


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="its name in the repository")
    parser.add_argument("--url", default="localhost:8000", help="of the server's HTTP port")
    parser.add_argument("--batch", type=int, default=4)
    arguments = parser.parse_args(argv)
    try:
        import tritonclient.http as http
    except (ImportError, RuntimeError):
        print('error: no Triton client: pip install "tritonclient[http]"', file=sys.stderr)
        return 2
    client = http.InferenceServerClient(arguments.url)
    metadata = client.get_model_metadata(arguments.model)
    request = make_request(metadata, arguments.batch)
    inputs = []
    for tensor in metadata["inputs"]:
        values = request[tensor["name"]]
        inputs.append(http.InferInput(tensor["name"], list(values.shape), tensor["datatype"]))
        inputs[-1].set_data_from_numpy(values)
    answer = client.infer(arguments.model, inputs)
    for tensor in metadata["outputs"]:
        values = answer.as_numpy(tensor["name"])
        print(f"{tensor['name']} {list(values.shape)} {values.dtype}, the first: {values[0].ravel()[:6]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
