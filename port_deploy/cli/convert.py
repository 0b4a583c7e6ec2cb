# SPDX-License-Identifier: Apache-2.0
"""port-convert: data sets and predictions in public formats to the .npz of port-train and port-eval.

May use: formats, formats_predictions, skeleton, files, errors, cli.common. Test: tests/test_formats.py.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from port_deploy.cli.common import Parser, print_json, run
from port_deploy.errors import InputError
from port_deploy.files import check_writable, write_bytes
from port_deploy.formats import READERS
from port_deploy.formats_predictions import read_coco, read_mmpose
from port_deploy.skeleton import Skeleton

EPILOG = (
    "panoptic: folder of CMU Panoptic hand labels. fphb: Hand_pose_annotation_v1. rhd: anno_*.pickle. h36m: "
    "data_3d_h36m.npz or MMPose's annotation .npz. coco: annotations .json, with --results a detector's. mmpose: what "
    "MMPose 1.x dumps, .pkl or .json. Pickles are read without running anything in them."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of port-convert."""
    return run(body, argv)


def body(argv: Sequence[str] | None) -> int:
    """Parse, read, write."""
    p = Parser(prog="port-convert", description="Public formats to .npz for port-train and port-eval.", epilog=EPILOG)
    p.add_argument("format", choices=(*READERS, "coco", "mmpose"))
    p.add_argument("path", type=Path, help="file or folder")
    p.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.npz")
    p.add_argument("--results", type=Path, metavar="FILE.json", help="of coco: a detector's results")
    p.add_argument("--skeleton", help="joint names where the format has none (mmpose): a bundled name or .json")
    p.add_argument("--json", action="store_true", help="print what was written as one JSON object")
    options = p.parse_args(argv)
    if options.output.suffix != ".npz":
        raise InputError(f"expected the output to be an .npz file, got {str(options.output)!r}")
    if options.results and options.format != "coco":
        raise InputError(f"--results goes with coco, not with {options.format}")
    for given in (options.path, options.results):
        if given is not None and not given.exists():
            raise InputError(f"there is no file or folder {given}: give the path of one that exists")
    check_writable(options.output)
    if options.format == "coco":
        arrays = read_coco(options.path, options.results)
    elif options.format == "mmpose":
        arrays = read_mmpose(options.path)
    else:
        arrays = READERS[options.format](options.path)
    count = next(arrays[k].shape[1] for k in ("joints", "joints3d") if k in arrays)
    if options.skeleton and "names" not in arrays:
        names = Skeleton.load(options.skeleton).names
        if len(names) != count:
            raise InputError(f"skeleton {options.skeleton!r} has {len(names)} joints, {options.path} has {count}")
        arrays["names"] = np.array(names)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(options.output, buffer.getvalue())
    shapes = {k: list(v.shape) for k, v in arrays.items()}
    if options.json:
        print_json({"file": str(options.output), "arrays": shapes})
    else:
        print(f"{options.output}: " + ", ".join(f"{k} {s}" for k, s in shapes.items()))
        if "names" not in arrays:
            print("the format has no joint names: --skeleton gives them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
