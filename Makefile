# Two commands to know: make demo, make test. Each sets up all that it needs; repeats are quick.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test soak check format lock train-small clean

PY := .venv/bin/python
# The tests start some hundred processes: each would compile our modules anew.
unexport PYTHONDONTWRITEBYTECODE
# Test workers: much of the suite waits for servers.
JOBS ?= 2
DEFAULT := .venv/.installed-default
DEV := .venv/.installed-dev

help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 16

demo: $(DEFAULT) ## a node, a PACS and three studies: ONCE=1 ends by itself, STUDY=path takes your own
	@scripts/get_ohif.sh
	@$(PY) -m dicom_node demo $(if $(ONCE),--once) $(if $(STUDY),--study "$(STUDY)")

test: $(DEV) ## everything, with real peers: ARGS="-k word" for a part
	@scripts/system_packages.sh
	@scripts/get_ohif.sh
	@$(PY) -m pytest -n $(JOBS) --dist loadfile --reruns 1 -rR $(ARGS)

soak: $(DEV) ## power cuts and SIGKILLs, as root: CUTS=50 KILLS=100 SEED=1; fails on any loss
	@scripts/system_packages.sh
	@RACE_TRIALS=1000 $(PY) -m pytest -q tests/dicom_node/test_arrival_races.py
	@BROKER_RESTARTS=20 $(PY) -m pytest -q tests/flow/test_brokers.py -k consume
	@TOLERANCE_ROUNDS=12 $(PY) -m pytest -q tests/tolerance/test_damaged_files.py
	@WEB_EXAMPLES=2000 $(PY) -m pytest -q tests/dicom_node/web/test_any_request.py
	@$(PY) -m tests.faults.soak --cuts $(or $(CUTS),50) --kills $(or $(KILLS),100) --seed $(or $(SEED),1)

check: $(DEV) ## format, lint, types, import directions
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@.venv/bin/lint-imports --no-logo

format: $(DEV) ## rewrite what the formatter and the linter can
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix-only .

lock: $(DEV) ## locks/*.txt from pyproject.toml: ARGS=--upgrade for the newest
	@scripts/lock.sh $(ARGS)

train-small: $(DEV) ## trains the shipped models on DATA (../shared/data) and makes their packages, in seven hours
	@scripts/train.sh
	@scripts/train_more.sh prs-med-s
	@scripts/train_more.sh medseg-r-s

clean: ## what the other commands made, but for .venv
	rm -rf .demo .cache build test-artifacts .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.venv/bin/python:
	@scripts/make_venv.sh

$(DEFAULT): locks/default.txt pyproject.toml | .venv/bin/python
	@if [ ! $(DEV) -nt locks/dev.txt ] || [ ! $(DEV) -nt pyproject.toml ]; then scripts/install.sh default; fi
	@touch $@

$(DEV): locks/dev.txt locks/torch.txt pyproject.toml | .venv/bin/python
	@scripts/install.sh dev
	@touch $(DEFAULT) $@
