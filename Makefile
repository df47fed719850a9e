# make quickstart: the main job on data that repq draws by itself.   make test: linters, types, tests.
# make results: every way to INT8 on models that it trains on the spot, as one table; it goes on where it stopped.
# make test-ranges: the lowest versions that setup.cfg promises, and each extra alone, in fresh environments (nightly).
# make test-tensorrt: the tests on TensorRT's own builder, after make tensorrt-check has put one here (no GPU needed).
# make docs: the site of docs/, into build/site; whatever is wrong with it fails.
# make wheel-test: builds the wheel and tries it in an environment of its own.
# Each makes the virtual environment .venv when it is not there yet.
PYTHON ?= python3
BIN := .venv/bin
REPQ_SHARED ?= ../shared
CHECK_BUILD := .venv/tensorrt-check
WORKERS ?= 2
# A file of tests stays in one process, which shares its fixtures; threads that wait would take the cores from others.
# Processes that tests start find compiled modules.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: quickstart results test tests test-ranges tensorrt-check test-tensorrt docs wheel-test lint clean
.DEFAULT_GOAL := quickstart

.venv/ready: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[openvino,ncnn,report,dev]'
	touch $@

quickstart: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/repq run recipes/quickstart.yaml --work runs/quickstart  # small layers: threads would wait more

results: .venv/ready
	$(BIN)/python benchmarks/results_table.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy repq

test: .venv/ready
	$(MAKE) --no-print-directory -j 2 lint tests  # mypy takes one core for half a minute

tests: .venv/ready
	$(PYTEST)

test-ranges: .venv/ready
	$(BIN)/python tests/ranges.py

tensorrt-check: .venv/ready
	PYTHON="$(CURDIR)/$(BIN)/python" bash "$(REPQ_SHARED)/trt/setup.sh" $(CHECK_BUILD)

test-tensorrt:
	. ./$(CHECK_BUILD)/env.sh && $(PYTEST) -m tensorrt

.venv/docs-ready: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[docs]'
	touch $@

docs: .venv/docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel-test: .venv/ready
	$(BIN)/python tests/wheel.py

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache
