# SPDX-License-Identifier: Apache-2.0
"""From an engine in memory to what runs it: its weights where it has none, its execution contexts, RTX's runtime cache.

TensorRT-RTX compiles kernels where the engine runs; its runtime cache keeps them from process to process, and it
records CUDA graphs itself, because only it knows when a better kernel has replaced the first one.
May use: onnx_bytes, sidecar, files, errors. Test: tests/test_engine_run.py.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from port_deploy.config import ModelSpec
from port_deploy.errors import BackendUnavailableError, InputError, ModelFileError
from port_deploy.files import write_bytes
from port_deploy.onnx_bytes import without_initializer
from port_deploy.sidecar import DEFAULTS, Sidecar, read_artefact


class Contexts:
    """Makes the execution contexts of one engine.

    Args:
        engine: Deserialised.
        keep: What must outlive it: runtime and logger.
        library: Its Python module.
        graphs: CUDA graphs are wanted.
        runtime_cache: File of RTX's runtime cache; None: none.

    Attributes:
        records: The library records graphs itself.
    """

    def __init__(
        self, engine: Any, keep: tuple[Any, ...], library: Any, graphs: bool, runtime_cache: Path | None
    ) -> None:
        self._engine, self._keep, self._library = engine, keep, library
        self._path = runtime_cache
        self.records = graphs and hasattr(library, "CudaGraphStrategy")
        self._cache: Any = None
        self._configs = {may: self._config(may) for may in (True, False)}

    def make(self, may_record: bool) -> Any:
        """A new execution context; it may record graphs of its own. None where there is no memory for it."""
        config = self._configs[may_record]
        return self._engine.create_execution_context(*(() if config is None else (config,)))

    def _config(self, may_record: bool) -> Any:
        if self._path is None:
            return None
        config = self._engine.create_runtime_config()
        if self.records and may_record:
            config.cuda_graph_strategy = self._library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            with suppress(OSError):
                self._cache.deserialize(self._path.read_bytes())  # refused where it is not this GPU's: it stays empty
        config.set_runtime_cache(self._cache)
        return config

    def save(self) -> None:
        """Write the runtime cache, whole or not at all; where it cannot be written, the next start compiles again."""
        if self._cache is not None and self._path is not None:
            with suppress(InputError):
                write_bytes(self._path, bytes(self._cache.serialize()))


def weights_for(path: str | Path, sidecar: Sidecar, refit: str | Path | None) -> tuple[bytes | None, ModelSpec]:
    """The ONNX graph whose weights an engine needs (None: it has its own), and the specification that is then true.

    Args:
        path: The engine; a stripped one has the ONNX of its weights beside it.
        sidecar: Its sidecar.
        refit: An ONNX with other weights, or None.

    Raises:
        InputError: The engine cannot take other weights.
        ModelFileError: The ONNX is missing, damaged, or of another network.
    """
    info = sidecar.engine
    assert info is not None
    if refit is None and not info.stripped:
        return None, sidecar.spec
    if refit is not None and not info.refittable:
        raise InputError(f"{path} was not built to take other weights: port-export NAME.onnx --trt --refit builds one")
    place = Path(refit) if refit is not None else Path(path).with_suffix(".onnx")
    if not place.is_file():
        raise ModelFileError(f"{path} has no weights, and the ONNX that has them is not there: put {place} beside it")
    source, model = read_artefact(place, "onnx")
    if refit is None and source.sha256 != info.onnx_sha256:
        raise ModelFileError(f"{place} is not the ONNX that {path} was built from: put that one beside it")
    same = (sidecar.input, sidecar.precision, sidecar.spec.config, sidecar.spec.skeleton, sidecar.spec.frame)
    other = (source.input, source.precision, source.spec.config, source.spec.skeleton, source.spec.frame)
    if same != other:
        raise ModelFileError(f"{place} is another network than {path}: only weights can be put into an engine")
    return without_initializer(model, *DEFAULTS[source.input]), source.spec


def put_weights(path: str | Path, library: Any, engine: Any, logger: Any, model: bytes) -> None:
    """Put the weights of an ONNX graph into an engine.

    Raises:
        BackendUnavailableError: The library refuses them.
    """
    refitter = library.Refitter(engine, logger)
    parser = library.OnnxParserRefitter(refitter, logger)
    if parser.refit_from_bytes(model) and refitter.refit_cuda_engine():
        return
    reasons = [" ".join(str(parser.get_error(i).desc()).split()) for i in range(parser.num_errors)]
    missing = list(refitter.get_missing_weights())[:3]
    reason = "; ".join([*reasons[:2], *(f"no weights {name}" for name in missing)]) or "it gave no reason"
    raise BackendUnavailableError(f"{library.__name__} cannot put the weights into {path}: {reason}: build it again")
