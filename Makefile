# SPDX-License-Identifier: Apache-2.0
# Everything from a fresh checkout: needs a C++ compiler, python3 >= 3.10 and nothing else; cmake and ninja come from pip.
#   make demo        install, repair the hidden joints in two photographs, export an engine
#   make test        install what the tests need, run them             (ARGS="-k refiner" picks some)
#   make lint        formatters, types, import rules: reads only       (make format mends what it can)
#   make bench       measure, store, render README's table             (about ten minutes, on an idle machine)
#   make test-asan   the C++ tests under sanitizers
#   make test-emulated  the CUDA kernels' own sources on an emulated GPU, under sanitizers; part of make test
#   make wheel       dist/*.whl                                        (make test-wheel tries it in a bare environment)
#   make clean       removes build trees and results                   (make distclean: the virtual environment, too)
# What is installed lies in .venv; a second run installs nothing and takes seconds.
#   PYTHON=python3.12  the interpreter      TORCH=torch  another PyTorch (2.6 or later; a CPU build is enough)
#   PORT_CUDA=ON       demand the CUDA code; AUTO builds it where nvcc works, OFF never does. Left alone: wheels AUTO,
#                      .venv AUTO where there is a GPU (all kernels together take minutes to compile), else OFF
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
JOBS ?= 2
ARGS ?=
BUILD ?= build
ifndef PORT_CUDA
$(VENV)/.core $(VENV)/.demo $(VENV)/.dev: export PORT_CUDA = $(if $(wildcard /dev/nvidiactl /dev/nvhost-gpu),AUTO,OFF)
wheel: export PORT_CUDA = AUTO
endif

BIN := $(VENV)/bin
WITH_TOOLS := PATH="$(abspath $(BIN)):$$PATH"
PIP := $(WITH_TOOLS) $(BIN)/python -m pip --disable-pip-version-check install --quiet
EDITABLE := --no-build-isolation -C build-dir=$(BUILD)/editable --editable
CPP := \( -name '*.cpp' -o -name '*.h' -o -name '*.hpp' -o -name '*.cu' -o -name '*.cuh' \)
CPP_FILES = $(shell find csrc python -type f $(CPP))
CORE_SOURCES := $(shell find csrc python -type f \( $(CPP) -o -name CMakeLists.txt -o -name '*.cmake' -o -name '*.in' \) \
                  ! -path 'csrc/tests/*' ! -path 'csrc/examples/*')

.PHONY: help install demo test lint format bench test-asan test-emulated asan-build cuda-compile wheel test-wheel clean distclean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

install: $(VENV)/.core

demo: $(VENV)/.core $(VENV)/.demo
	$(BIN)/port-demo --output out/demo $(ARGS)

test: $(VENV)/.core $(VENV)/.dev $(if $(ARGS),,test-emulated)
	$(WITH_TOOLS) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: $(VENV)/.core $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP_FILES)

bench: $(VENV)/.core $(VENV)/.dev
	$(BIN)/python benchmarks/run.py $(ARGS)

# The C++ core and its tests under AddressSanitizer and UndefinedBehaviorSanitizer.
test-asan: asan-build
	$(WITH_TOOLS) ctest --test-dir $(BUILD)/asan --output-on-failure --no-tests=error -LE emulated

test-emulated: asan-build
	$(WITH_TOOLS) ctest --test-dir $(BUILD)/asan --output-on-failure --no-tests=error -L emulated -j $(JOBS)

asan-build: $(VENV)/.tools
	$(WITH_TOOLS) cmake -S . -B $(BUILD)/asan -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPORT_CUDA=OFF \
	  -DPORT_TESTS=ON -DPORT_SANITIZE=ON -DPORT_WERROR=ON
	$(WITH_TOOLS) cmake --build $(BUILD)/asan

# Compiles the kernels for every architecture into the wheel and checks what they take; needs nvcc, no GPU.
cuda-compile:
	$(MAKE) wheel PORT_CUDA=ON
	$(BIN)/python csrc/cmake/check_resources.py $(BUILD)/wheel

wheel: $(VENV)/.tools
	rm -rf dist
	$(WITH_TOOLS) $(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation \
	  -C build-dir=$(BUILD)/wheel --wheel-dir dist .

# The wheel in a bare environment: NumPy and safetensors, neither torch nor a compiler.
test-wheel: wheel
	$(BIN)/python tests/wheel_smoke.py dist

clean:
	rm -rf $(BUILD) dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

distclean: clean
	rm -rf $(VENV)

# cmake, ninja and the build backend, in a virtual environment. Each check says what is missing and what mends it.
$(VENV)/.tools: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo 'error: no $(PYTHON): install Python 3.10 or later, or set PYTHON=' >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo 'error: expected Python 3.10 or later, got $(PYTHON) '"$$($(PYTHON) -V): set PYTHON= to a later one" >&2; exit 2; }
	@command -v "$${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
	  { echo 'error: no C++ compiler: install one (Debian, Ubuntu: apt install g++), or set CXX=' >&2; exit 2; }
	@test -x $(BIN)/pip || if $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then $(PYTHON) -m venv $(VENV); \
	  elif $(PYTHON) -c 'import virtualenv' 2>/dev/null; then $(PYTHON) -m virtualenv --quiet $(VENV); \
	  else echo 'error: $(PYTHON) cannot make a virtual environment: apt install python3-venv, or pip install virtualenv' >&2; exit 2; fi
	$(PIP) 'pip>=25.1'
	$(PIP) --group build
	@touch $@

# The package, editable: Python files are read in place; the core is built anew when its sources change.
$(VENV)/.core: pyproject.toml CMakeLists.txt $(CORE_SOURCES) | $(VENV)/.tools
	$(PIP) numpy safetensors
	$(PIP) $(EDITABLE) . --no-deps
	@touch $@

$(VENV)/.demo: pyproject.toml | $(VENV)/.core
	$(PIP) '$(TORCH)' $(EDITABLE) '.[export,tensorrt-rtx,viz]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.demo
	$(PIP) '$(TORCH)' --group dev $(EDITABLE) '.[all]'
	@touch $@
