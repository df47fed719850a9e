# make quickstart: the main job on data that repq draws by itself.   make test: linters, types, tests.
# Each makes the virtual environment .venv when it is not there yet.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint clean
.DEFAULT_GOAL := quickstart

.venv/ready: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[openvino,report,dev]'
	touch $@

quickstart: .venv/ready
	$(BIN)/repq run recipes/quickstart.yaml --work runs/quickstart

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy repq

test: lint
	$(BIN)/python -m pytest

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache
