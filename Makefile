# Everything a user or contributor runs. `make` alone prints this list.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

PY := .venv/bin/python
# gpu, cpu or sim; empty: what this machine has
ENGINE ?=
export ENGINE

SOURCES := proto shared services loadgen tests
# Tests in the order in which a failure is cheapest to find.
SUITES := $(wildcard tests/unit tests/contract tests/golden tests/integration tests/e2e)
# A process for each core, a file at a time. Whole clusters run in real time, so those tests have the machine to themselves.
SPREAD := -n auto --maxprocesses 8 --dist loadfile

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install everything into .venv and .tools (ENGINE=gpu|cpu|sim overrides the choice)
	@deploy/setup/install.sh full

setup-light: ## install what the demo needs: no torch, no vLLM
	@deploy/setup/install.sh light

up: setup ## start the cluster on this machine with a real engine (Ctrl-C ends it)
	@exec .venv/bin/dopd up

demo: setup-light ## start the cluster with simulated GPUs and a load on it
	@exec .venv/bin/dopd up --demo

down: ## stop what `make up` or `make demo` started
	@[ ! -x .venv/bin/dopd ] || .venv/bin/dopd down

compose-up: ## start the cluster in containers, with emulated engines (docs/compose.md)
	@deploy/compose/up.sh

compose-down: ## end and remove those containers; the planner's decisions stay in their volume
	@cd deploy/compose && { [ ! -e .env ] || docker compose --profile '*' down; }

check: lint test ## all that CI runs: format, ruff, mypy, imports, generated files, tests

lint: setup ## the checks that run no test
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports --no-logo
	$(PY) -m dopd_proto.generate --check

test: setup ## unit, contract, golden, integration and end-to-end tests
	$(PY) -m pytest $(SPREAD) $(filter-out tests/e2e,$(SUITES))
	$(PY) -m pytest $(filter tests/e2e,$(SUITES))

test-fast: setup ## without the slow, vLLM, chaos and end-to-end tests
	$(PY) -m pytest -q $(SPREAD) -m "not slow and not vllm and not chaos" $(filter-out tests/e2e,$(SUITES))

test-compose: setup ## the containers in a real Docker engine: scaled, killed, paused, cut off (some minutes)
	$(PY) -m pytest -s tests/compose

bench: setup ## measurements (BENCH=virtual_hour for one); they assert nothing about time
	$(PY) -m pytest -s --timeout 0 tests/bench$(if $(BENCH),/bench_$(BENCH).py)

fmt: setup ## format, and fix what ruff can fix
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

gen: setup ## write schemas, golden messages and the subject table anew
	$(PY) -m dopd_proto.generate

clean: ## wipe the cluster's state, .dopd (after `make down`)
	@[ ! -x .venv/bin/dopd ] || .venv/bin/dopd clean

.PHONY: help setup setup-light up demo down compose-up compose-down check lint test test-fast test-compose bench fmt gen clean
