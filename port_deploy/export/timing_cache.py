# SPDX-License-Identifier: Apache-2.0
"""TensorRT's timing cache in a file: what it measured of its kernels, so that the next build is quick and the same.

One file per library version and GPU lies beside the engine cache unless a file is named. TensorRT-RTX times nothing.
May use: engine_options, files, errors. Test: tests/test_engine_options.py.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from port_deploy.errors import InputError
from port_deploy.export.engine_options import BuildOptions
from port_deploy.files import cache_folder, write_bytes


class TimingCache:
    """The timing cache of one build.

    Args:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        library: Its Python module.
        gpu: Model of the GPU.
        options: Names the file, or turns caches off.
    """

    def __init__(self, name: str, library: Any, gpu: str, options: BuildOptions) -> None:
        self.path = options.timing_cache
        self._asked = self.path is not None
        if self.path is None and options.cache:
            place = re.sub(r"[^\w.]+", "-", f"{library.__version__}-{gpu}")
            self.path = cache_folder() / "timing" / f"{place}.cache"
        if name != "tensorrt":
            self.path = None
        self._cache: Any = None

    def attach(self, config: Any) -> None:
        """Give a builder configuration what the file holds; a file of another version or GPU is started anew."""
        if self.path is None:
            return
        blob = b""
        with suppress(OSError):
            blob = self.path.read_bytes()
        for content in dict.fromkeys((blob, b"")):
            self._cache = config.create_timing_cache(content)
            if self._cache is not None and config.set_timing_cache(self._cache, False):
                return

    def store(self, config: Any) -> None:
        """Write what the build measured, whole or not at all, with what another build wrote meanwhile.

        Raises:
            InputError: A file that was named cannot be written.
        """
        if self.path is None or self._cache is None:
            return
        with suppress(OSError):
            other = config.create_timing_cache(self.path.read_bytes())
            if other is not None:
                self._cache.combine(other, False)
        try:
            write_bytes(self.path, bytes(self._cache.serialize()))
        except InputError:
            if self._asked:
                raise
