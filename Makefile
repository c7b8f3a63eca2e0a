# One command each; the first call sets up .venv with pip, later ones reuse it until pyproject.toml changes.
PYTHON ?= $(or $(shell command -v python3.11),$(shell command -v python3))
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-all lint bench

help:
	@echo "make demo      explain two real models on real photographs and say where the pictures are"
	@echo "make test      the fast tests        make test-all  every test"
	@echo "make lint      style and types       make bench     the benchmarks"

demo: $(VENV)/.demo
	$(BIN)/lrp-onnx demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow"

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m experiments.benchmarks

# A stamp is written only after pip succeeded, so an interrupted set-up is taken up again by the next call.
$(VENV)/.demo $(VENV)/.dev: $(VENV)/.%: pyproject.toml | $(BIN)/pip
	@echo "Installing lrp-onnx[$*] into $(VENV); the first time takes minutes and gigabytes (PyTorch, TensorFlow)."
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --editable ".[$*]"
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "lrp-onnx needs Python 3.11 or newer, found: $(PYTHON). Name another with: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
