# Every target makes its own .venv and installs what it needs; nothing is installed twice. `make help` lists them.
#
# The folder of a test decides when it runs:
#   make check    tests/unit and tests/architecture: no server, no mount, no other process
#   make test     these, tests/contracts, tests/integration and tests/e2e
#   make faults   tests/faults: kills, torn writes, full disks, hostile stores
#   make e2e      tests/cluster: a Kubernetes of one node, and Hayloft's image in it
#   make storage-suite   one of these: the tests that Kubernetes has for storage of other vendors
#   make stores   tests/stores with all stores; `make test` has those that come with the tests
#   .ci/run       all of them, and a missing prerequisite is a failure; of properties it draws four times as many examples

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := .venv/bin
# How often `make faults` repeats each fault: make faults COUNT=100
COUNT ?= 20
# Passed on to pytest: make test ARGS="tests/unit -k manifest"
ARGS ?=
# How often `make sanity` repeats the suite: make sanity RUNS=10
RUNS ?= 3
# `make e2e KUBELET=older`: with the kubelet of the minor version before, which .ci/cluster builds, 8 minutes once.
KUBELET ?=
# The stores of `make stores`, by name (tests/stores); without any, all of them: make stores STORES="nginx versitygw"
STORES ?=
# Processes of `make test`: four for each core, since many tests wait (with five, two cores are no faster), at most 8, and
# one for each 2 GiB of memory: each takes 1 GiB, and its SeaweedFS server up to another one.
WORKERS ?= $(shell awk -v cores=$$(nproc) '/^MemTotal/ { most = int($$2 / 2097152); count = cores * 4; if (count > 8) count = 8; \
	if (count > most) count = most; print (count < 1) ? 1 : count }' /proc/meminfo)
# Processes of the unit tests: one more than cores, as some wait; each costs some seconds for its imports.
UNIT_WORKERS ?= $(shell cores=$$(nproc); echo $$((cores >= 8 ? 8 : cores + 1)))

export PYTHON
# Many containers set this. Each process would then compile all that it imports, and pytest all tests anew in each of its
# processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help check test unit lint faults sanity e2e storage-suite stores test-lowest format generated manifests image lock clean docs docs-serve demo set-up-demo set-up-dev set-up-docs

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

check: set-up-dev ## lint and unit tests, the inner loop (2 minutes on two cores, with warm caches)
	@$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target lint unit

# A quarter of the examples that hypothesis draws (tests/support/examples.py): make test HAYLOFT_QUICK=0 draws all.
test unit: export HAYLOFT_QUICK ?= 1

test: set-up-dev ## all tests but the fault runs, as far as this machine can (root, /dev/fuse: all; 8 to 12 minutes on two cores)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --ignore=tests/faults --ignore=tests/cluster \
		-m "not faults and not cluster" $(ARGS)

unit: set-up-dev ## unit and structure tests
	@$(BIN)/python -m pytest -q -n $(UNIT_WORKERS) --dist worksteal tests/unit tests/architecture $(ARGS)

lint: set-up-dev ## ruff, mypy, import contracts, Dockerfiles, generated files
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet . || { echo "run: make format" >&2; exit 1; }
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/hadolint --no-color --failure-threshold style Dockerfile deploy/benchmarks/Dockerfile
	@.ci/check-generated

faults: set-up-dev ## kill, tear and fill things while they are in use, COUNT times each
	@HAYLOFT_FAULT_COUNT=$(COUNT) $(BIN)/python -m pytest -m faults --timeout=0 $(ARGS)

sanity: set-up-dev ## csi-sanity, RUNS times in random order, on one process tree and on the split processes (Go, once)
	@.ci/csi-sanity
	@HAYLOFT_SANITY_RUNS=$(RUNS) $(BIN)/python -m pytest tests/cluster/test_csi_sanity.py $(ARGS)

e2e: set-up-dev ## tests/cluster: Kubernetes of one node, the image, Helm (root, Go; 17 minutes on two cores, and once 17 more)
	@.ci/cluster
	@[ -z "$(KUBELET)" ] || .ci/cluster $(KUBELET)-kubelet
	@$(if $(KUBELET),HAYLOFT_CLUSTER_TOOLS=.tools/$(KUBELET)-kubelet )$(BIN)/python -m pytest -m "cluster and not storage_suite" --timeout=600 \
		tests/cluster $(ARGS)

storage-suite: set-up-dev ## the tests that Kubernetes has for storage of other vendors (as make e2e, and once 10 minutes more)
	@.ci/cluster
	@.ci/cluster storage-suite
	@$(BIN)/python -m pytest -m storage_suite tests/cluster/test_storage_suite.py $(ARGS)

stores: set-up-dev ## other people's object stores, mounted: all, and docs/stores.md anew, or STORES="nginx moto"
	@.ci/stores $(STORES)
	@HAYLOFT_STORES="$(or $(STORES),all)" HAYLOFT_STORES_TABLE="$(if $(STORES),,docs/stores.md)" \
		$(BIN)/python -m pytest -n 2 --dist loadfile tests/stores $(ARGS)

test-lowest: ## unit tests with the lowest version of each dependency that pyproject.toml allows
	@.ci/test-lowest $(ARGS)

format: set-up-dev ## rewrite the source as ruff formats it
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

generated: set-up-dev ## proto/*.proto to csi_driver/rpc/pb, and the generated tables of the docs
	proto/generate.sh
	$(BIN)/python -m tools.generated_tables

manifests: set-up-dev ## deploy/kubernetes, rendered from deploy/chart by the Helm that .ci/helm builds
	@.ci/helm
	@$(BIN)/python -m tools.plain_manifests

image: ## the image, built from Debian's packages without a registry, and its tests (root; 2 to 3 minutes)
	@.ci/image $(ARGS)

lock: ## the newest version of each dependency that pyproject.toml allows, to locks/
	@.ci/set-up lock
	@.ci/lock

docs: set-up-docs ## the documentation as a site, build/site: strict, links and anchors checked, nothing loaded from elsewhere
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@$(BIN)/python -m tools.docs_site_check build/site

docs-serve: set-up-docs ## the site at http://127.0.0.1:8000, made anew when a page changes
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

demo: set-up-demo ## a dataset in a real S3 server, mounted and read as training reads it (about 3 minutes)
	@$(BIN)/hayloft demo

clean: ## remove .venv, caches and results; unmount what a demonstration left behind
	@.ci/clean

set-up-demo:
	@.ci/set-up demo

set-up-dev:
	@.ci/set-up dev

set-up-docs:
	@.ci/set-up docs
