# Two commands to know: make demo, make test. Each sets up all that it needs; repeats are quick.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test check format lock train clean

PY := .venv/bin/python
DEFAULT := .venv/.installed-default
DEV := .venv/.installed-dev

help: ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## /make \1\t/' | expand -t 16

demo: $(DEFAULT) ## a node, a PACS and three studies: ONCE=1 ends by itself, STUDY=path takes your own
	@scripts/get_ohif.sh
	@$(PY) -m dicom_node demo $(if $(ONCE),--once) $(if $(STUDY),--study "$(STUDY)")

test: $(DEV) ## everything, with real peers: ARGS="-k word" for a part
	@scripts/system_packages.sh
	@scripts/get_ohif.sh
	@$(PY) -m pytest $(ARGS)

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

train: $(DEV) ## trains sim4seg-s on DATA (../shared/data) and makes its package, in two hours
	@scripts/train.sh

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
