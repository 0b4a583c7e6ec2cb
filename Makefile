# SPDX-License-Identifier: Apache-2.0
# Everything from a fresh machine with a C++ compiler and python3: `make demo`, `make test`. The second time takes seconds.
#   PYTHON=python3.12  the interpreter      TORCH=torch==2.9.1  the PyTorch to install (a CPU build is enough)
#   PORT_CUDA=ON       demand the CUDA code; AUTO builds it where nvcc works, OFF never does
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
export PORT_CUDA ?= AUTO

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
CORE_SOURCES := $(shell find csrc python -type f \( -name '*.cpp' -o -name '*.h' -o -name '*.hpp' -o -name '*.cu' -o -name '*.cuh' \
                  -o -name CMakeLists.txt -o -name '*.cmake' -o -name '*.in' \) ! -path 'csrc/tests/*' ! -path 'csrc/examples/*')

.PHONY: demo test lint format bench wheel test-asan test-wheel cuda-compile clean

demo: $(VENV)/.core
	$(BIN)/port-demo --output out/demo

test: $(VENV)/.core $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup tests

lint: $(VENV)/.core $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.h' '*.hpp' '*.cpp' '*.cu' '*.cuh')

format: $(VENV)/.dev
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.h' '*.hpp' '*.cpp' '*.cu' '*.cuh')

bench: $(VENV)/.core $(VENV)/.dev
	$(BIN)/python benchmarks/run.py

# The C++ core and its tests under AddressSanitizer and UndefinedBehaviorSanitizer.
test-asan: $(VENV)/.core
	$(BIN)/cmake -S . -B build/asan -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  -DPORT_CUDA=OFF -DPORT_TESTS=ON -DPORT_SANITIZE=ON -DPORT_WERROR=ON
	$(BIN)/cmake --build build/asan
	$(BIN)/ctest --test-dir build/asan --output-on-failure

# Compiles the CUDA sources for every architecture; needs nvcc, no GPU.
cuda-compile: $(VENV)/.core
	$(BIN)/cmake -S . -B build/cuda -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DPORT_CUDA=ON -DPORT_WERROR=ON
	$(BIN)/cmake --build build/cuda

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

# The wheel in a bare environment: NumPy and safetensors, neither torch nor a compiler.
test-wheel: wheel
	$(BIN)/python tests/wheel_smoke.py dist

clean:
	rm -rf $(VENV) build dist out

$(VENV)/.venv:
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON): install Python 3.10 or newer, or set PYTHON=" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) cannot make a virtual environment: install its venv module" >&2; exit 2; }
	$(PIP) --upgrade 'pip>=25.1'
	touch $@

# What the demo needs: build tools, the exporters, pictures.
$(VENV)/.demo: pyproject.toml | $(VENV)/.venv
	$(PIP) '$(TORCH)' 'scikit-build-core>=0.11' 'pybind11>=2.13' 'cmake>=3.25' ninja numpy safetensors \
	  onnx onnxscript onnxruntime rich matplotlib scikit-image \
	  tensorrt-rtx-cu13 tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings
	touch $@

$(VENV)/.core: CMakeLists.txt $(CORE_SOURCES) $(VENV)/.demo
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) --no-build-isolation --no-deps -C build-dir=build/editable -e .
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) --group dev '$(TORCH)' openvino
	touch $@
