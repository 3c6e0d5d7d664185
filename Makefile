# Every target works from a clean clone: setup makes .venv from requirements.lock.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Where pip finds the CPU build of torch when its default index has none, e.g. PyTorch's own CPU wheel index.
TORCH_INDEX ?=
export HF_HUB_OFFLINE ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: demo setup reasoning-gym test test-all conformance mutate sbom lint clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "omnigym needs Python 3.11: set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(BIN)/python -m pip install -q --no-deps -r requirements.lock
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

# The package behind the environment reasoning_gym, which does without it until a task of it is wanted.
reasoning-gym: $(VENV)/.reasoning-gym

$(VENV)/.reasoning-gym: requirements-reasoning-gym.lock $(VENV)/.installed
	$(BIN)/python -m pip install -q --no-deps -r requirements-reasoning-gym.lock
	@touch $@

# A real model learns on three real environments: about 25 minutes on two cores, no GPU.
demo: setup
	$(BIN)/omnigym model get smollm2-135m
	$(BIN)/omnigym train rl_trainer/configs/demo.yaml

lint: setup
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# Files of tests go to two processes; -n 0 keeps them in one.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not conformance"

# Slow tests: the real model, vLLM, whole runs that are killed and resumed, containers where there is a Docker engine, and the
# conformance cases where they are.
test-all: setup reasoning-gym
	$(BIN)/omnigym model get smollm2-135m
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not conformance" -k reasoning_gym
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow or conformance"

conformance: setup reasoning-gym
	@test -d ../shared/conformance || { echo "no conformance folder at ../shared/conformance"; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m conformance

# What is in the image, from the locks, in CycloneDX's form.
sbom: setup
	$(BIN)/python compose/sbom.py > compose/sbom.json

# One-line bugs, each of which a named test must notice: about 8 minutes.
mutate: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutations.py

clean:
	rm -rf $(VENV) *.egg-info
