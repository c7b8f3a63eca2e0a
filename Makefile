# One command each; the first call sets up .venv with pip, later ones reuse it until pyproject.toml changes.
PYTHON ?= $(or $(shell command -v python3.11),$(shell command -v python3))
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-all fuzz lint bench bench-peers bench-coverage

help:
	@echo "make demo      explain two real models on real photographs and say where the pictures are"
	@echo "make test      the fast tests        make test-all  every test"
	@echo "make lint      style and types       make bench     the benchmarks"
	@echo "make fuzz      random graphs, EXAMPLES=20000      make bench-coverage  architectures that are explained"
	@echo "make bench-peers  the same with zennit, captum and lxt; options: make bench BENCH='--batch 16 --memory'"

demo: $(VENV)/.demo
	$(BIN)/lrp-onnx demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest

fuzz: $(VENV)/.dev
	$(BIN)/python -m pytest tests/fuzz --fuzz $(or $(EXAMPLES),20000)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m experiments.benchmarks $(BENCH)

# Which architectures of torchvision, Keras, timm and transformers convert and are explained; goes on where it stopped.
bench-coverage: $(VENV)/.coverage
	$(BIN)/python -m experiments.coverage $(BENCH)

# In an environment of its own: zennit and captum, and this package beside them.
bench-peers: .venv-peers/.ready
	.venv-peers/bin/python -m experiments.benchmarks $(BENCH)

.venv-peers/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check --editable . torchvision zennit==0.5.1 captum==0.9.0 transformers==4.52.4
	.venv-peers/bin/pip install --quiet --disable-pip-version-check --no-deps lxt==2.1  # its other needs are for other models
	@touch $@

# A stamp is written only after pip succeeded, so an interrupted set-up is taken up again by the next call.
$(VENV)/.demo $(VENV)/.dev $(VENV)/.coverage: $(VENV)/.%: pyproject.toml | $(BIN)/pip
	@echo "Installing lrp-onnx[$*] into $(VENV); the first time takes minutes and gigabytes (PyTorch, TensorFlow)."
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --editable ".[$*]"
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "lrp-onnx needs Python 3.11 or newer, found: $(PYTHON). Name another with: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
