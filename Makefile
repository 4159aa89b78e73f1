# `make` lists the targets. Installed files are below LLM_BRIDGE_HOME, built files below build/.
SHELL := /bin/bash
HOME_DIR := $(or $(LLM_BRIDGE_HOME),/var/tmp/llm-bridge)
PYTHON := $(HOME_DIR)/airflow-env/bin/python
export MYPY_CACHE_DIR := build/cache/mypy

.DEFAULT_GOAL := help
.PHONY: help setup airflow-env demo up status down clean unit test docs lint format
.PHONY: chaos ray-report failures-report sites-report data-report recipes-report log-probs-report
.PHONY: upload-report gpu-trial bench
.PHONY: compose-env compose-verify browser-test

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

setup: ## install what is missing: Debian packages (as root), two Python environments
	@./setup.sh

airflow-env:
	@./setup.sh airflow

demo: setup ## run the whole pipeline once on this machine: local Slurm cluster, test Hub, Airflow
	@$(PYTHON) -m demo run

up: setup ## start the cluster, the Hub and Airflow, without a run
	@$(PYTHON) -m demo up

status: ## show the state of cluster, Hub and Airflow
	@$(PYTHON) -m demo status || true

down: ## stop cluster, Hub and Airflow
	@if [ -x "$(PYTHON)" ]; then "$(PYTHON)" -m demo down; fi

clean: ## stop everything, delete build/ and the local cluster's files
	@if [ -x "$(PYTHON)" ]; then "$(PYTHON)" -m demo clean; fi
	@rm -rf build

lint: airflow-env ## run ruff, mypy --strict, and import-linter
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy
	@PYTHONPATH=plugins:. $(dir $(PYTHON))lint-imports --cache-dir build/cache/import-linter

unit: airflow-env ## run the fast tests: no root, no cluster, no network (a part: T="tests/unit/slurm -k poller")
	@$(PYTHON) -m pytest -q $(or $(T),-n 2 tests/unit)

chaos: setup ## inject faults around running jobs (CHAOS_FAULTS=200, CHAOS_SEED=n, CHAOS_SHORT=1)
	@$(PYTHON) -m pytest tests/chaos

ray-report: setup ## measure Ray on a local Slurm cluster: build/ray/report.json (a part: SECTIONS="bring_up idle")
	@AIRFLOW_HOME=$(CURDIR)/build/ray/airflow PYTHONPATH=plugins $(PYTHON) -m benchmarks.ray_report $(SECTIONS)

failures-report: setup ## cause real failures, check their diagnosis: build/failures/report.json (a part: CASES="hang node_off")
	@PYTHONPATH=plugins $(PYTHON) -m benchmarks.failures_report $(CASES)

sites-report: setup ## play quirks of sites on a local cluster: build/sites/report.json (a part: QUIRKS="greeting tcsh")
	@PYTHONPATH=plugins $(PYTHON) -m benchmarks.sites_report $(QUIRKS)

data-report: setup ## prepare many short rows, beside datasets.map: build/data/report.json (other numbers: ROWS=300000)
	@mkdir -p build/data
	@PYTHONPATH=plugins HF_HUB_OFFLINE=1 $(HOME_DIR)/cluster-env/bin/python -m benchmarks.data_report $(ROWS) \
	  | tee build/data/report.json

recipes-report: setup ## train a tiny twin of every recipe, try bad inputs: build/recipes/report.json (a part: CASES=...)
	@PYTHONPATH=plugins $(PYTHON) -m benchmarks.recipes_report $(CASES)

log-probs-report: setup ## measure log-probabilities without flash-attn, beside verl's: build/log-probs/report.json
	@mkdir -p build/log-probs
	@PYTHONPATH=plugins $(HOME_DIR)/cluster-env/bin/python -m benchmarks.log_probs_report | tee build/log-probs/report.json

gpu-trial: ## train on this machine's GPUs, without Slurm: build/gpu-trial/report.json (GPU_PYTHON=ENV/bin/python CASES="ppo-1b")
	@$(or $(GPU_PYTHON),$(HOME_DIR)/cluster-env/bin/python) -m benchmarks.gpu_trial $(CASES)

upload-report: setup ## upload three shards, beside hf upload, in turns: build/upload/report.json (other size: SIZE=200)
	@mkdir -p build/upload
	@PYTHONPATH=plugins:. $(PYTHON) -m benchmarks.upload_report $(SIZE) | tee build/upload/report.json

bench: setup ## measure speed beside peers: docs/performance.md, build/bench/report.json (a part: SECTIONS="notice submit")
	@PYTHONPATH=plugins:. $(PYTHON) -m benchmarks.bench $(SECTIONS)

browser-test: ## use form and run page in headless Chromium (10 minutes, no part of make test): build/browser/*.png
	@./setup.sh browser
	@$(PYTHON) -m pytest tests/browser

compose-env: ## write .env for docker compose with generated keys and passwords; keeps existing values
	@python3 docker/make_env.py

compose-verify: setup ## build and start the containers, and run the demo in them twice (VERIFY=--keep)
	@PYTHONPATH=plugins $(PYTHON) -m benchmarks.compose_verify $(VERIFY)

docs: airflow-env ## write troubleshooting.md, reference.md and operators-reference.md from what they describe
	@PYTHONPATH=plugins $(PYTHON) -m llm_bridge.diagnosis.docs
	@PYTHONPATH=plugins $(PYTHON) -m llm_bridge.config.docs
	@PYTHONPATH=plugins $(PYTHON) -m llm_bridge.commands.operators_reference

format: airflow-env ## apply ruff's fixes and formatting
	@$(PYTHON) -m ruff check --fix .
	@$(PYTHON) -m ruff format .

test: setup lint ## run lint and all tests, on real local clusters
	@mkdir -p build
	@# Two tracks, since most tests wait most of the time. More at once starve each other on two cores.
	@{ $(PYTHON) -m pytest tests/e2e; e2e=$$?; CHAOS_SHORT=1 $(PYTHON) -m pytest tests/chaos && exit $$e2e; } \
	    >build/e2e-and-chaos-tests.log 2>&1 & long=$$!; \
	$(PYTHON) -m pytest -n 2 tests/unit tests/docker; unit=$$?; \
	$(PYTHON) -m pytest --ignore=tests/unit --ignore=tests/docker --ignore=tests/e2e --ignore=tests/operators \
	    --ignore=tests/chaos --ignore=tests/browser; others=$$?; \
	$(PYTHON) -m pytest -n 2 --dist loadfile tests/operators; operators=$$?; \
	wait $$long; long=$$?; \
	cat build/e2e-and-chaos-tests.log; \
	exit $$((unit ? unit : others ? others : operators ? operators : long))
