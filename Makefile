# `make` alone explains the targets. Everything that is installed lies below LLM_BRIDGE_HOME, everything that is
# built below build/.
SHELL := /bin/bash
HOME_DIR := $(or $(LLM_BRIDGE_HOME),/var/tmp/llm-bridge)
PYTHON := $(HOME_DIR)/airflow-env/bin/python
export MYPY_CACHE_DIR := build/cache/mypy

.DEFAULT_GOAL := help
.PHONY: help setup demo up status down clean test chaos ray-report failures-report docs lint format
.PHONY: compose-env compose-verify

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

setup: ## install what is missing: Debian packages (as root), two Python environments
	@./setup.sh

demo: setup ## the whole pipeline on this machine: local Slurm cluster, test Hub, Airflow, one run
	@$(PYTHON) -m demo run

up: setup ## start cluster, Hub and Airflow, without a run
	@$(PYTHON) -m demo up

status: ## what of it is up
	@$(PYTHON) -m demo status || true

down: ## stop all that was started
	@if [ -x "$(PYTHON)" ]; then "$(PYTHON)" -m demo down; fi

clean: ## stop it and delete what was built, the local cluster's files included
	@if [ -x "$(PYTHON)" ]; then "$(PYTHON)" -m demo clean; fi
	@rm -rf build

lint: setup ## ruff and mypy
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy

chaos: setup ## break everything around running jobs (CHAOS_FAULTS=200, CHAOS_SEED=n, CHAOS_SHORT=1)
	@$(PYTHON) -m pytest tests/chaos

ray-report: setup ## measure Ray on a local Slurm cluster; build/ray/report.json (SECTIONS="bring_up idle" for some of it)
	@AIRFLOW_HOME=$(CURDIR)/build/ray/airflow PYTHONPATH=plugins $(PYTHON) -m benchmarks.ray_report $(SECTIONS)

failures-report: setup ## cause failures for real; build/failures/report.json: found, done, told (CASES="hang node_off")
	@PYTHONPATH=plugins $(PYTHON) -m benchmarks.failures_report $(CASES)

compose-env: ## make .env for docker compose, with keys and passwords of its own; what is there stays
	@python3 docker/make_env.py

compose-verify: setup ## build and start the containers, train the demo's model in them, twice (VERIFY=--keep)
	@$(PYTHON) -m benchmarks.compose_verify $(VERIFY)

docs: setup ## write docs/troubleshooting.md anew from the table of signatures
	@PYTHONPATH=plugins $(PYTHON) -m llm_bridge.failures.docs

format: setup ## let ruff put the sources in shape
	@$(PYTHON) -m ruff check --fix .
	@$(PYTHON) -m ruff format .

test: lint ## lint and all tests, on real local clusters; three streams, for most of them wait most of their time
	@mkdir -p build
	@$(PYTHON) -m pytest tests/e2e >build/e2e-tests.log 2>&1 & e2e=$$!; \
	$(PYTHON) -m pytest -n 2 --dist loadfile tests/operators >build/operators-tests.log 2>&1 & operators=$$!; \
	$(PYTHON) -m pytest --ignore=tests/e2e --ignore=tests/operators --ignore=tests/chaos; others=$$?; \
	wait $$operators; operators=$$?; \
	cat build/operators-tests.log; \
	CHAOS_SHORT=1 $(PYTHON) -m pytest tests/chaos; chaos=$$?; \
	wait $$e2e; e2e=$$?; \
	cat build/e2e-tests.log; \
	exit $$((others ? others : operators ? operators : chaos ? chaos : e2e))
