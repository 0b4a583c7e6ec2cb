# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the Python package ``tensorrt``: the names that 10 and 11 have, and a record of what is asked of them.

Full TensorRT makes no object without a GPU, so what is said to it, in which order and with which addresses is tested
against this. Names and their versions are those of NVIDIA's own bindings (10.0.1, 10.9.0, 11.4.0). What it cannot
show is what TensorRT does with them: tests marked ``cuda`` are for that.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

FLAGS_10 = ("FP16", "BF16", "INT8", "REFIT", "TF32", "STRIP_PLAN", "REFIT_IDENTICAL", "VERSION_COMPATIBLE")
FLAGS_11 = ("REFIT", "TF32", "STRIP_PLAN", "REFIT_IDENTICAL", "VERSION_COMPATIBLE", "STRICT_NANS")


class Log(list[Any]):
    """Calls in order, each a tuple that starts with its name."""

    def of(self, name: str) -> list[Any]:
        return [call[1] if len(call) == 2 else call[1:] for call in self if call[0] == name]


class FakeTimingCache:
    def __init__(self, log: Log, content: bytes) -> None:
        self.log, self.content = log, content

    def combine(self, other: Any, ignore_mismatch: bool) -> bool:
        self.log.append(("combine", other.content))
        return True

    def serialize(self) -> bytes:
        return self.content + b"+measured"


class FakeConfig:
    def __init__(self, log: Log, timing: dict[bytes, bool]) -> None:
        object.__setattr__(self, "log", log)
        object.__setattr__(self, "timing", timing)

    def __setattr__(self, name: str, value: Any) -> None:
        self.log.append(("set", name, value))
        object.__setattr__(self, name, value)

    def set_flag(self, flag: str) -> None:
        self.log.append(("set_flag", flag))

    def clear_flag(self, flag: str) -> None:
        self.log.append(("clear_flag", flag))

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.log.append(("pool", pool, size))

    def add_optimization_profile(self, profile: Any) -> None:
        self.log.append(("profile", profile.shapes))

    def create_timing_cache(self, content: bytes) -> Any:
        return FakeTimingCache(self.log, content)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        accepted = self.timing.get(cache.content, True)
        self.log.append(("timing", cache.content, ignore_mismatch, accepted))
        return accepted


class FakeProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, *shapes: Any) -> None:
        self.shapes[name] = shapes


def fake_tensorrt(version: str = "10.9.0", plan: bytes | None = b"plan", **timing: Any) -> Any:
    """A module as ``tensorrt`` of that version has it, with ``log``; ``plan`` is the engine that its builder makes."""
    log = Log()
    major = int(version.split(".")[0])
    flags = FLAGS_10 if major < 11 else FLAGS_11
    levels = (
        ("NONE", "AMPERE_PLUS") if version.startswith("10.0") else ("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY")
    )

    class ILogger:
        ERROR = 1

    class IProgressMonitor:
        pass

    class Network:
        num_inputs = 3

        def get_input(self, index: int) -> Any:
            name, shape = (("joints", (-1, 21, 2)), ("confidence", (-1, 21)), ("threshold", (1,)))[index]
            return SimpleNamespace(name=name, shape=shape)

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def create_network(self, flags: int) -> Network:
            log.append(("network", flags))
            return Network()

        def create_builder_config(self) -> FakeConfig:
            return FakeConfig(log, timing.get("accepts", {}))

        def create_optimization_profile(self) -> FakeProfile:
            return FakeProfile()

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            monitor = config.progress_monitor
            monitor.phase_start("Building", None, 2)
            going = all(monitor.step_complete("Building", i) for i in range(2))
            monitor.phase_finish("Building")
            log.append(("build", going))
            if plan is None:
                self.logger.log(1, "the reason\nof the library")
            return plan if going else None

    class OnnxParser:
        num_errors = 0

        def __init__(self, network: Any, logger: Any) -> None:
            pass

        def parse(self, model: bytes) -> bool:
            log.append(("parse", len(model)))
            return True

    return SimpleNamespace(
        __name__="tensorrt",
        __version__=version,
        log=log,
        ILogger=ILogger,
        IProgressMonitor=IProgressMonitor,
        Builder=Builder,
        OnnxParser=OnnxParser,
        BuilderFlag=SimpleNamespace(**{name: name for name in flags}),
        MemoryPoolType=SimpleNamespace(WORKSPACE="WORKSPACE"),
        HardwareCompatibilityLevel=SimpleNamespace(**{name: name for name in levels}),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1 if major < 11 else 0),
    )


def fake_runtime(cuda: Any, inputs: Any, outputs: Any, version: str = "10.9.0", rtx: bool = False, **says: Any) -> Any:
    """The part of the module that runs engines; with ``rtx`` the names that TensorRT-RTX has on top.

    Args:
        cuda: A FakeCuda.
        inputs: Names of the engine's inputs.
        outputs: Names of its outputs.
        version: Of the library.
        rtx: As TensorRT-RTX.
        says: ``refits`` (what the refitter answers), ``accepts`` (whether a stored runtime cache is taken).
    """
    from fake_cuda import FakeContext

    library = fake_tensorrt(version)
    log = library.log

    class RuntimeCache:
        content = b""

        def deserialize(self, blob: bytes) -> bool:
            taken = says.get("accepts", True)
            self.content = blob if taken else b""
            log.append(("runtime cache", blob, taken))
            return bool(taken)

        def serialize(self) -> bytes:
            return self.content + b"+compiled"

    class RuntimeConfig:
        cuda_graph_strategy = "DISABLED"

        def create_runtime_cache(self) -> RuntimeCache:
            return RuntimeCache()

        def set_runtime_cache(self, cache: RuntimeCache) -> bool:
            self.cache = cache
            return True

    class Engine:
        def create_execution_context(self, config: Any = None) -> Any:
            log.append(("context", config and (config.cuda_graph_strategy, config.cache.content)))
            return FakeContext(cuda, inputs, outputs)

        if rtx:

            def create_runtime_config(self) -> RuntimeConfig:
                return RuntimeConfig()

    class Runtime:
        def __init__(self, logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, data: bytes) -> Engine:
            log.append(("deserialise", data, getattr(self, "engine_host_code_allowed", False)))
            return Engine()

    class Refitter:
        def __init__(self, engine: Any, logger: Any) -> None:
            pass

        def refit_cuda_engine(self) -> bool:
            log.append(("refit", True))
            return bool(says.get("refits", True))

        def get_missing_weights(self) -> list[str]:
            return ["encoder.0"]

    class OnnxParserRefitter:
        num_errors = 0

        def __init__(self, refitter: Any, logger: Any) -> None:
            pass

        def refit_from_bytes(self, model: bytes) -> bool:
            log.append(("weights", len(model)))
            return True

    library.Runtime, library.Refitter, library.OnnxParserRefitter = Runtime, Refitter, OnnxParserRefitter
    if rtx:
        library.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="WHOLE_GRAPH_CAPTURE")
    return library
