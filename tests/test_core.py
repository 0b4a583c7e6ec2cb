# SPDX-License-Identifier: Apache-2.0
"""_core alone: whatever it is handed past the friendly checks, it refuses or computes, and never leaves an array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import random_model

from port_deploy.backends.native import core

CORE = core()
MODEL = random_model("soft", "hand21", layers=1, head_dim=8)


@pytest.fixture(scope="module")
def refiner() -> Any:
    return CORE.Refiner(MODEL.data, "test", threads=1)


def arrays(batch: int = 3) -> dict[str, np.ndarray]:
    return {
        "joints": np.ones((batch, 21, 2), "f4"),
        "confidence": np.ones((batch, 21), "f4"),
        "out_joints": np.empty((batch, 21, 2), "f4"),
        "out_confidence": np.empty((batch, 21), "f4"),
        "out_mask": np.empty((batch, 21), "?"),
    }


@pytest.mark.parametrize("name", list(arrays()))
@pytest.mark.parametrize("fault", ["dtype", "rows", "rank", "layout", "unaligned", "read-only", "byte order", "kind"])
def test_arrays_that_do_not_fit_are_refused(refiner: Any, name: str, fault: str) -> None:
    given = arrays()
    value = given[name]
    if fault == "read-only" and not name.startswith("out"):
        return
    if fault == "byte order" and name == "out_mask":
        return
    if fault == "unaligned" and value.itemsize == 1:
        return
    spoilt: Any = {
        "dtype": lambda: value.astype("i8"),
        "rows": lambda: value[:2],
        "rank": lambda: value[None],
        "layout": lambda: np.asfortranarray(value),
        "unaligned": lambda: np.frombuffer(b"x" + value.tobytes(), "u1")[1:].view(value.dtype).reshape(value.shape),
        "read-only": lambda: np.broadcast_to(value[:1], value.shape).copy(),
        "byte order": lambda: value.astype(value.dtype.newbyteorder(">")),
        "kind": lambda: value.tolist(),
    }[fault]()
    if fault == "read-only":
        spoilt.flags.writeable = False
    error = TypeError if fault == "kind" else CORE.Error
    with pytest.raises(error):
        refiner.refine(**(given | {name: spoilt}), threshold=0.3)


@pytest.mark.parametrize("threshold", [-1.0, float("nan"), float("inf")])
def test_unusable_thresholds_are_refused(refiner: Any, threshold: float) -> None:
    with pytest.raises(CORE.Error) as caught:
        refiner.refine(**arrays(), threshold=threshold)
    assert caught.value.args[1] == "input"


@pytest.mark.parametrize("shape", [(3, 21, 8), (3, 20, 8, 8), (3, 21, 0, 8), (3, 21, 1, 5000), (3, 21, 8, 8, 1)])
def test_heatmaps_that_do_not_fit_are_refused(refiner: Any, shape: tuple[int, ...]) -> None:
    given = {k: v for k, v in arrays().items() if k.startswith("out")}
    with pytest.raises(CORE.Error):
        refiner.run(np.zeros(shape, "f4"), None, 0.3, *given.values())


@pytest.mark.parametrize("strides", [(4, 4, 4, 8), (4, 4, 2, 4), (1, 4, 4, 4)])
def test_strides_that_cannot_be_read_are_refused(refiner: Any, strides: tuple[int, ...]) -> None:
    maps = np.lib.stride_tricks.as_strided(np.zeros(4096, "f4"), (3, 21, 8, 8), strides)
    given = {k: v for k, v in arrays().items() if k.startswith("out")}
    with pytest.raises(CORE.Error):
        refiner.run(maps, None, 0.3, *given.values())


def test_overlaps_are_refused(refiner: Any) -> None:
    given = arrays()
    with pytest.raises(CORE.Error, match="overlap"):
        refiner.refine(**(given | {"out_confidence": given["out_joints"].reshape(-1)[:63].reshape(3, 21)}), threshold=0)
    memory = np.zeros(21 * 64 + 200, "f4")
    maps = memory[: 21 * 64].reshape(1, 21, 8, 8)
    out = arrays(1)
    with pytest.raises(CORE.Error, match="overlap"):
        refiner.run(maps[:, :, ::-1], None, 0.3, memory[1302:1344].reshape(1, 21, 2), *list(out.values())[3:])


@pytest.mark.parametrize("data", [b"", b"x" * 100, memoryview(b"ab")[::2], "text", None])
def test_what_is_no_model_is_refused(data: Any) -> None:
    with pytest.raises((CORE.Error, TypeError)):
        CORE.Refiner(data, "test")


def test_errors_carry_their_kind() -> None:
    with pytest.raises(CORE.Error) as caught:
        CORE.Refiner(b"12345678", "mine.safetensors")
    message, kind = caught.value.args
    assert kind == "model_file"
    assert "mine.safetensors" in message
    with pytest.raises(CORE.Error) as caught:
        CORE.Refiner(MODEL.data, "x", isa="mmx")
    assert caught.value.args[1] == "input"


def test_build_info_names_what_there_is() -> None:
    info = CORE.build_info()
    assert info["selected_isa"] in info["available_isas"]
    assert set(info["available_isas"]) <= set(info["compiled_isas"])
    assert "generic" in info["available_isas"]
    cuda = CORE.cuda_info()
    assert cuda["compiled"] == info["cuda"]
    assert cuda["detail"]


def test_the_stub_declares_what_the_module_has() -> None:
    import ast
    from importlib.resources import files

    tree = ast.parse((files("port_deploy") / "_core.pyi").read_text())
    declared = {n.name for n in tree.body if isinstance(n, (ast.ClassDef, ast.FunctionDef))}
    assert declared == {n for n in dir(CORE) if not n.startswith("_")}
    for name in ("Refiner", "CudaRefiner"):
        (stub,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
        methods = {n.name for n in stub.body if isinstance(n, ast.FunctionDef)} - {"__init__"}
        assert methods == {n for n in dir(getattr(CORE, name)) if not n.startswith("_")}


def decode_arguments() -> list[Any]:
    maps = np.random.default_rng(0).random((2, 5, 12, 20), np.float32)
    return [
        maps,
        "softargmax",
        40.0,
        0.3,
        np.full((2, 5, 2), -7, "f4"),
        np.full((2, 5), -7, "f4"),
        np.ones((2, 5), "?"),
        1,
    ]


def test_try_decode_does_what_decode_does() -> None:
    for codec in ("softargmax", "softargmax-sum", "argmax"):
        given, wanted = decode_arguments(), decode_arguments()
        given[1] = wanted[1] = codec
        assert CORE.try_decode(*given) is True
        CORE.decode(*wanted[:7], threads=1)
        for got, want in zip(given[4:7], wanted[4:7], strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, [[1.0]]),
        (0, np.zeros((2, 5, 12), "f4")),
        (0, np.zeros((2, 5, 12, 20), "f8")),
        (0, np.zeros((2, 6, 12, 20), "f4")),
        (1, "nonsense"),
        (1, None),
        (2, True),
        (2, 0.0),
        (2, float("nan")),
        (3, 1),
        (3, -1.0),
        (3, float("inf")),
        (4, np.zeros((2, 5, 2), "f8")),
        (4, np.zeros((2, 5, 4), "f4")[:, :, ::2]),
        (5, [0.0]),
        (6, np.zeros((2, 5), "u1")),
        (7, -1),
        (7, 10**30),
        (7, 1.0),
        (7, True),
    ],
)
def test_try_decode_writes_nothing_where_something_does_not_fit(index: int, value: Any) -> None:
    given = decode_arguments()
    outputs = given[4:7]
    given[index] = value
    assert CORE.try_decode(*given) is False
    assert (outputs[0] == -7).all()
    assert (outputs[1] == -7).all()
    assert outputs[2].all()


def test_try_decode_refuses_overlaps_and_read_only_outputs() -> None:
    given = decode_arguments()
    given[5] = given[4].reshape(-1)[:10].reshape(2, 5)
    assert CORE.try_decode(*given) is False
    given = decode_arguments()
    given[4].flags.writeable = False
    assert CORE.try_decode(*given) is False
    with pytest.raises(TypeError, match="8 arguments"):
        CORE.try_decode(1)
