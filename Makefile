# `make help` lists what there is. Everything is installed into .venv, from requirements*.txt, when it changes.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: help demo bench bench-scale test check run tools clean
.DEFAULT_GOAL := help

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: Python 3.11 or newer is needed; name yours with PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Installing into $(VENV) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: $(READY) ## Real servers, real objects, a crash: watch them being replicated
	@$(BIN)/python -m scripts.demo

bench: $(READY) tools ## Beside rclone and mc mirror, on this machine
	@$(BIN)/python -m scripts.bench $(ARGS)

bench-scale: $(READY) tools ## The ledger at 1,000,000 rows, a fleet, a killed worker, the pages; ARGS="--write" keeps it
	@$(BIN)/python -m scripts.bench_scale $(ARGS)

test: $(READY) tools ## All tests, on real servers; ARGS="-k name" narrows
	@$(BIN)/python -m pytest $(ARGS)

check: $(READY) ## Format, lint, types and the direction of imports
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

run: $(READY) ## The service, with the settings in .env
	@PATH="$(CURDIR)/$(BIN):$$PATH"; eval "exec $$(sed -n 's/^web: //p' Procfile)"

tools: ## MinIO's own client and Chromium, for the tests of config/minio-webhook.sh and of the pages
	@scripts/get_mc.sh >/dev/null || echo "make: going on without MinIO's client; the tests that need it are skipped"
	@scripts/get_chromium.sh >/dev/null || echo "make: going on without Chromium; the tests that need it are skipped"

clean: ## Removes what make has installed
	rm -rf $(VENV) .tools .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
