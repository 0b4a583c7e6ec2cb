# SPDX-License-Identifier: Apache-2.0
"""Model files: written and read back; truncated, foreign and hostile ones are refused by both readers."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from port_deploy import InputError, ModelFileError, Refiner
from port_deploy.backends.native import core
from port_deploy.weights import (
    bundled_models,
    half,
    load_model,
    model_from_bytes,
    model_to_bytes,
    rounded,
    save_model,
    with_changes,
)

CORE = core()
MODEL = random_model("soft", "hand21", layers=1, head_dim=8, width=16)
SIZE = struct.unpack("<Q", MODEL.data[:8])[0]
HEADER: dict[str, Any] = json.loads(MODEL.data[8 : 8 + SIZE])
PAYLOAD = MODEL.data[8 + SIZE :]


def python_refuses(data: bytes) -> str | None:
    try:
        model_from_bytes(data, "test")
    except ModelFileError as error:
        return str(error)
    return None


def core_refuses(data: bytes) -> str | None:
    try:
        CORE.Refiner(data, "test", threads=1)
    except CORE.Error as error:
        message, kind = error.args
        return str(message) if kind == "model_file" else None
    return None


def file_of(header: Any, payload: bytes = PAYLOAD) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


def changed(edit: Callable[[dict[str, Any], dict[str, Any]], None]) -> bytes:
    """The good file with its header (first argument) and specification (second) edited."""
    header = json.loads(json.dumps(HEADER))
    spec = json.loads(header["__metadata__"]["port_deploy"])
    edit(header, spec)
    if "port_deploy" in header.get("__metadata__", {}):
        header["__metadata__"]["port_deploy"] = json.dumps(spec)
    return file_of(header)


def with_spec(**fields: Any) -> bytes:
    return changed(lambda header, spec: spec.update(fields))


def with_config(**fields: Any) -> bytes:
    return changed(lambda header, spec: spec["config"].update(fields))


def with_tensor(name: str = "head.out.bias", **fields: Any) -> bytes:
    return changed(lambda header, spec: header[name].update(fields))


def swapped_offsets(header: dict[str, Any], spec: dict[str, Any]) -> None:
    header["head.out.bias"]["data_offsets"].reverse()


def two_of_a_shape(header: dict[str, Any]) -> list[str]:
    return [k for k in header if k != "__metadata__" and header[k]["shape"] == [16]][:2]


def overlap(header: dict[str, Any], spec: dict[str, Any]) -> None:
    first, second = two_of_a_shape(header)
    header[second]["data_offsets"] = list(header[first]["data_offsets"])


def weights_with(value: float) -> bytes:
    tensors = dict(MODEL.tensors)
    spoilt = tensors["head.out.weight"].copy()
    spoilt[0, 0] = value
    start, _ = HEADER["head.out.weight"]["data_offsets"]
    return file_of(HEADER, PAYLOAD[:start] + spoilt.tobytes() + PAYLOAD[start + spoilt.nbytes :])


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"1234567",
    "no header": bytes(8),
    "header of one byte": struct.pack("<Q", 1) + b"{" + PAYLOAD,
    "huge header": struct.pack("<Q", 2**63) + MODEL.data[8:],
    "largest header": b"\xff" * 8 + MODEL.data[8:],
    "header beyond the file": struct.pack("<Q", len(MODEL.data)) + MODEL.data[8:],
    "header of 100 MB": struct.pack("<Q", 100_000_000) + MODEL.data[8:],
    "a zip (PyTorch)": b"PK\x03\x04" + bytes(1000),
    "a pickle": b"\x80\x04\x95" + bytes(100),
    "text": b"not a model at all, just some text in a file",
    "header is no JSON": file_of(b"{" * 20),
    "header is no UTF-8": file_of(b'{"\xff\xfe": 1}'),
    "header is a list": file_of(b"[1, 2]"),
    "header is a number": file_of(b"12"),
    "deep header": file_of(b"[" * 100_000 + b"]" * 100_000),
    "deep header, open": file_of(b'{"a":' * 200_000),
    "no metadata": changed(lambda h, s: h.pop("__metadata__")),
    "metadata of another project": changed(lambda h, s: h.update(__metadata__={"format": "pt"})),
    "metadata is no text": file_of({**HEADER, "__metadata__": {"port_deploy": 1}}),
    "specification is no JSON": file_of({**HEADER, "__metadata__": {"port_deploy": "{"}}),
    "specification is a list": file_of({**HEADER, "__metadata__": {"port_deploy": "[]"}}),
    "deep specification": file_of({**HEADER, "__metadata__": {"port_deploy": "[" * 50_000}}),
    "format of the future": with_spec(format_version=2),
    "format 0": with_spec(format_version=0),
    "format as text": with_spec(format_version="1"),
    "no format": changed(lambda h, s: s.pop("format_version")),
    "no skeleton": changed(lambda h, s: s.pop("skeleton")),
    "no config": changed(lambda h, s: s.pop("config")),
    "unknown field": with_spec(colour="blue"),
    "unknown config field": with_config(colour="blue"),
    "unknown codec": with_spec(codec="centroid"),
    "unknown frame": with_spec(frame="camera"),
    "unknown refine": with_spec(refine="some"),
    "threshold NaN": with_spec(threshold=float("nan")),
    "threshold infinite": with_spec(threshold=float("inf")),
    "threshold negative": with_spec(threshold=-1),
    "threshold as text": with_spec(threshold="0.3"),
    "temperature 0": with_spec(temperature=0),
    "temperature infinite": with_spec(temperature=float("inf")),
    "fusion 2": with_spec(fusion=2),
    "min_visible 1": with_spec(min_visible=1),
    "max_masked negative": with_spec(max_masked=-1),
    "frame_size of one": with_spec(frame_size=[256]),
    "frame_size 0": with_spec(frame_size=[0, 256]),
    "confidence_divisor 0": with_spec(confidence_divisor=0),
    "width as text": with_config(width="16"),
    "width as fraction": with_config(width=16.5),
    "width true": with_config(width=True),
    "width huge": with_config(width=2**40),
    "width beyond integers": with_config(width=10**30),
    "width of no multiple": with_config(width=12),
    "layers negative": with_config(layers=-1),
    "layers 0": with_config(layers=0),
    "layers 10 million": with_config(layers=10_000_000),
    "hops of none": with_config(hops=[]),
    "hops twice": with_config(hops=[1, 1]),
    "hop 99": with_config(hops=[99]),
    "hops a number": with_config(hops=3),
    "input_channels 4": with_config(input_channels=4),
    "eps 0": with_config(layer_norm_eps=0.0),
    "residual as number": with_config(residual=1),
    "joint of no name": changed(lambda h, s: s["skeleton"]["names"].__setitem__(0, "")),
    "joints of one name": changed(lambda h, s: s["skeleton"]["names"].__setitem__(0, "pinky4")),
    "one joint": changed(lambda h, s: s["skeleton"].update(names=["a"], bones=[], root=0, axis=0)),
    "a thousand joints": changed(lambda h, s: s["skeleton"].update(names=[f"j{i}" for i in range(1000)])),
    "bone to nowhere": changed(lambda h, s: s["skeleton"]["bones"].append([0, 21])),
    "bone from before": changed(lambda h, s: s["skeleton"]["bones"].append([-1, 3])),
    "bone to itself": changed(lambda h, s: s["skeleton"]["bones"].append([3, 3])),
    "no bones": changed(lambda h, s: s["skeleton"].update(bones=[])),
    "root is axis": changed(lambda h, s: s["skeleton"].update(root=1, axis=1)),
    "root is nowhere": changed(lambda h, s: s["skeleton"].update(root=21)),
    "tensor missing": changed(lambda h, s: h.pop("head.out.bias")),
    "tensor too many": changed(lambda h, s: h.update(more={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})),
    "tensor of another shape": with_tensor(shape=[1, 2]),
    "tensor of another size": with_tensor(shape=[3]),
    "tensor of negative shape": with_tensor(shape=[-2]),
    "tensor of a shape beyond integers": with_tensor(shape=[2**62, 8]),
    "tensor of integers": with_tensor(dtype="I32"),
    "tensor of no dtype": with_tensor(dtype="F33"),
    "offsets beyond the file": with_tensor(data_offsets=[2**40, 2**40 + 8]),
    "offsets beyond integers": with_tensor(data_offsets=[10**25, 10**25 + 8]),
    "offsets negative": with_tensor(data_offsets=[-8, 0]),
    "offsets backwards": changed(swapped_offsets),
    "offsets overlapping": changed(overlap),
    "offsets of one": with_tensor(data_offsets=[0]),
    "truncated by one byte": MODEL.data[:-1],
    "half": MODEL.data[: len(MODEL.data) // 2],
    "header alone": MODEL.data[: 8 + SIZE],
    "bytes after the end": MODEL.data + b"more",
    "weights NaN": weights_with(float("nan")),
    "weights infinite": weights_with(float("inf")),
}


def test_the_good_file_is_good() -> None:
    assert python_refuses(file_of(HEADER)) is None
    assert core_refuses(file_of(HEADER)) is None
    assert python_refuses(MODEL.data) is None
    assert core_refuses(MODEL.data) is None


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_both_readers(name: str, tmp_path: Path) -> None:
    for reader in (python_refuses, core_refuses):
        message = reader(HOSTILE[name])
        assert message is not None, f"{reader.__name__}: {name} was taken"
        assert "test" in message
        assert "\n" not in message
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(ModelFileError, match=r"hostile\.safetensors"):
        Refiner.load(path)


@settings(max_examples=150, deadline=None)
@given(cut=st.integers(0, len(MODEL.data) - 1))
def test_every_truncation_is_refused_by_both_readers(cut: int) -> None:
    assert python_refuses(MODEL.data[:cut]) is not None
    assert core_refuses(MODEL.data[:cut]) is not None


@settings(max_examples=400, deadline=None)
@given(place=st.integers(0, 8 + SIZE - 1), value=st.integers(0, 255))
def test_a_damaged_byte_in_the_header_is_judged_alike(place: int, value: int) -> None:
    damaged = bytearray(MODEL.data)
    damaged[place] = value
    assert (python_refuses(bytes(damaged)) is None) == (core_refuses(bytes(damaged)) is None)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "mine.safetensors"
    save_model(path, MODEL.spec, MODEL.tensors)
    loaded = load_model(path)
    assert loaded.spec == MODEL.spec
    assert loaded.data == MODEL.data
    assert all(np.array_equal(loaded.tensors[k], v) for k, v in MODEL.tensors.items())
    assert not list(path.parent.glob(".*"))  # no temporary file is left


def test_weights_that_are_float16_are_written_as_such() -> None:
    rounded = {k: half(v).astype(np.float32) for k, v in MODEL.tensors.items()}
    small, large = model_to_bytes(MODEL.spec, rounded), model_to_bytes(MODEL.spec, MODEL.tensors)
    assert len(small) < 0.55 * len(large) + 4096
    back = model_from_bytes(small, "small")
    for name, value in rounded.items():
        np.testing.assert_array_equal(back.tensors[name], value)
    rounded["head.out.bias"] = rounded["head.out.bias"] + np.float32(1e6)
    beyond = model_from_bytes(model_to_bytes(MODEL.spec, rounded), "beyond")
    np.testing.assert_array_equal(beyond.tensors["head.out.bias"], rounded["head.out.bias"])


def test_shipped_weights_have_eight_significant_bits() -> None:
    values = np.concatenate([v.ravel() for v in MODEL.tensors.values()])
    shipped = rounded(values)
    np.testing.assert_array_equal(rounded(shipped), shipped)
    np.testing.assert_array_equal(half(shipped), shipped)
    normal = np.abs(values) > 2.0**-14
    assert (np.abs(shipped - values)[normal] <= 2.0**-8 * np.abs(values[normal])).all()
    assert len(np.unique(np.round(np.frexp(shipped[normal])[0] * 2**12) % 16)) == 1
    np.testing.assert_array_equal(rounded(np.array([0.0, 1e6, -1.0])), np.float32([0.0, 65504.0, -1.0]))


def test_float16_weights_are_read_by_both() -> None:
    halves = {k: v.astype(np.float16) for k, v in MODEL.tensors.items()}
    full = {k: v.astype(np.float32) for k, v in halves.items()}
    rng = np.random.default_rng(0)
    joints, confidence = rng.uniform(0, 256, (3, 21, 2)).astype("f4"), rng.random((3, 21)).astype("f4")
    from safetensors.numpy import save

    metadata = {"port_deploy": json.dumps(MODEL.spec.to_json())}
    a, b = (Refiner.load(model_from_bytes(save(t, metadata), "t")).refine(joints, confidence) for t in (halves, full))
    assert a.joints.tobytes() == b.joints.tobytes()


def test_changes_reach_the_bytes() -> None:
    other = with_changes(MODEL, min_visible=9, refine="all")
    assert model_from_bytes(other.data, "x").spec == other.spec
    assert (other.spec.min_visible, other.spec.refine) == (9, "all")
    with pytest.raises(InputError, match="min_visible"):
        with_changes(MODEL, min_visible=0)


def test_writing_checks_the_tensors() -> None:
    with pytest.raises(ModelFileError, match="tensors missing"):
        model_to_bytes(MODEL.spec, {})
    wrong = dict(MODEL.tensors) | {"head.out.bias": np.zeros(3, np.float32)}
    with pytest.raises(ModelFileError, match=r"expected head\.out\.bias float32 or float16 \[2\], got float32 \[3\]"):
        model_to_bytes(MODEL.spec, wrong)


def test_names_and_paths_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model 'nobody': use one of"):
        load_model("nobody")
    with pytest.raises(InputError, match="cannot read model"):
        load_model(tmp_path / "absent.safetensors")
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    with pytest.raises(InputError, match="cannot read model"):
        load_model(folder)
    big = tmp_path / "big.safetensors"
    with big.open("wb") as file:
        file.truncate(300 << 20)  # sparse
    with pytest.raises(ModelFileError, match="larger than 256 MiB"):
        load_model(big)


@pytest.mark.parametrize("name", bundled_models())
def test_bundled_models_load_and_carry_their_card(name: str) -> None:
    model = load_model(name)
    assert model.spec.name == name
    assert model.spec.licence != "unknown"
    assert model.spec.training
    assert model.spec.metrics
    assert len(model.data) <= 2.5e6
    Refiner.load(name)
