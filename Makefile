# Two commands do everything on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export OMP_NUM_THREADS := 1

.PHONY: help setup controlplane demo test lint bench bench-plan crds lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## .venv with everything that the other commands need
	@hack/setup.sh

controlplane: setup ## the Kubernetes control plane of the development cluster (built once)
	@python -m llmtrain_devcluster.build

demo: controlplane ## the main example on an embedded cluster (DEMO_KEEP=1, DEMO_REPORT=FILE)
	@python -m llmtrain_devcluster.demo

test: setup ## everything that CI runs, with the time of each tier
	@python hack/tiers.py

lint: setup ## only the static tier
	@python hack/tiers.py lint

bench: setup ## benchmarks, with their tables
	@python -m pytest tests/perf -m perf -s

bench-plan: setup ## the planner's predictions against published runs
	@python -m pytest tests/perf/bench_plan.py -s -q

crds: setup ## write crds/ from the models
	@llmtrain crd --write crds

lock: setup ## renew the hashed locks from pyproject.toml
	@hack/lock.sh

clean: ## remove .venv and caches inside the clone
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
