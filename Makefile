# demo, test: the two commands of a newcomer; each works alone in a fresh clone.
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
NATIVE := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name 'CMakeLists.txt')
CPP := $(shell find csrc benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.cu')

.PHONY: setup demo test test-long bench lint format gpu

setup: $(READY)

# A virtual environment with pinned packages, and an editable install with the native library built in it.
$(READY): constraints.txt pyproject.toml $(NATIVE)
	test -x $(PY) || python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt torch scikit-build-core cmake ninja
	$(PY) -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[test,lint]'
	touch $@

demo: $(READY)
	$(VENV)/bin/hyperfast demo --out hyperfast-demo

# Triton reads TRITON_INTERPRET at import: the interpreter's tests are a run of their own.
test: $(READY)
	$(PY) -m pytest -q -n 2
	TRITON_INTERPRET=1 $(PY) -m pytest -q -n 2

test-long: $(READY)
	$(PY) -m pytest -q --long
	TRITON_INTERPRET=1 $(PY) -m pytest -q --long

bench: $(READY)
	$(VENV)/bin/hyperfast bench
	$(PY) -m hyperfast.benchmarks.report

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(CPP)
	$(VENV)/bin/mypy

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CPP)

# On a machine with a CUDA GPU and torch: build, test on the device, benchmark and profile into the folder OUT.
OUT := gpu-results
PYTHON := python3
gpu:
	mkdir -p $(OUT)
	$(PYTHON) -m pip install --no-build-isolation --no-deps --editable .
	$(PYTHON) -m hyperfast.cli doctor | tee $(OUT)/doctor.txt
	set -o pipefail; $(PYTHON) -m pytest -q tests/test_target_net*.py tests/test_ensemble.py tests/test_gauge.py \
	    tests/test_nn_entropy.py tests/test_kde.py tests/test_cuda_graphs.py tests/test_hyper_lstm.py \
	    tests/test_hyper_lstm_rnn.py tests/test_tiled_conv.py tests/test_tiled_conv_layers.py \
	    tests/test_coord_grid.py tests/test_coord_grid_norms.py | tee $(OUT)/tests.txt
	set -o pipefail; for tool in memcheck racecheck initcheck synccheck; do \
	    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	        $(PYTHON) -m pytest -q tests -m gpu -k test_28 || exit 1; \
	done | tee $(OUT)/sanitizers.txt
	nvcc -std=c++17 -O3 -arch=native -o $(OUT)/hyper_lstm_barrier benchmarks/hyper_lstm_barrier.cu
	set -o pipefail; $(OUT)/hyper_lstm_barrier | tee $(OUT)/hyper_lstm_barrier.txt
	$(PYTHON) -m hyperfast.benchmarks.run --device cuda --json $(OUT)/cuda.json --report $(OUT)/RESULTS.md
	$(PYTHON) -m hyperfast.cli profile --device cuda --trace $(OUT)/trace.json | tee $(OUT)/profile.txt
gpu: SHELL := /bin/bash
