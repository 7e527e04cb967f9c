# Every target makes its own .venv and installs what it needs; nothing is installed twice. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := .venv/bin
# How often `make faults` repeats each fault: make faults COUNT=100
COUNT ?= 20
# Passed on to pytest: make test ARGS="tests/unit -k manifest"
ARGS ?=

export PYTHON

.PHONY: help demo test lint faults format generated clean set-up-demo set-up-dev

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: set-up-demo ## a dataset in a real S3 server, mounted and read as training reads it (about 3 minutes)
	@$(BIN)/hayloft demo

test: set-up-dev ## every test that this machine can run (all of them: root, /dev/fuse)
	@$(BIN)/python -m pytest $(ARGS)

lint: set-up-dev ## ruff, mypy --strict, the floors, the generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet . || { echo "run: make format" >&2; exit 1; }
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	@.ci/check-generated

faults: set-up-dev ## kill, tear and fill things while they are in use, COUNT times each
	@HAYLOFT_FAULT_COUNT=$(COUNT) $(BIN)/python -m pytest -m faults --timeout=0 $(ARGS)

format: set-up-dev ## rewrite the source as ruff formats it
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

generated: set-up-dev ## proto/*.proto to csi_driver/rpc/pb
	proto/generate.sh

clean: ## remove .venv, caches and results; unmount what a demonstration left behind
	@.ci/clean

set-up-demo:
	@.ci/set-up demo

set-up-dev:
	@.ci/set-up dev

# -- packages ----------------------------------------------------------------------------------------------------------

.PHONY: lock test-lowest

lock: ## the newest versions that pyproject.toml allows, with their hashes, into locks/
	@.ci/set-up lock
	@.ci/lock

test-lowest: ## the unit tests with the lowest versions that pyproject.toml allows
	@.ci/test-lowest $(ARGS)
