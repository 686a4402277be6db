# `make help` lists what there is. Everything is installed into .venv, from requirements*.txt, when it changes.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
# For any system, and any Python from 3.11 on.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command "make lock"

.PHONY: help demo bench bench-scale test chaos fuzz mutants check lock sbom run tools clean
.DEFAULT_GOAL := help

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: Python 3.11 or newer is needed; name yours with PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Installing into $(VENV) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		-r requirements-dev.txt
	@touch $@

demo: $(READY) ## Real servers, real objects, a crash: watch them being replicated
	@$(BIN)/python -m scripts.demo

bench: $(READY) tools ## Beside rclone and mc mirror, on this machine
	@$(BIN)/python -m scripts.bench $(ARGS)

bench-scale: $(READY) tools ## The ledger at 1,000,000 rows, a fleet, a killed worker, the pages; ARGS="--write" keeps it
	@$(BIN)/python -m scripts.bench_scale $(ARGS)

test: $(READY) tools ## All tests, on real servers; ARGS="-k name" narrows
	@$(BIN)/python -m pytest $(ARGS)

fuzz: $(READY) ## The reader of notifications, on mutations of real ones, without an end; ARGS="-max_total_time=300" ends it
	@mkdir -p .fuzz
	@$(BIN)/python -m tests.fuzz.fuzz_events -artifact_prefix=.fuzz/ $(ARGS) .fuzz tests/fuzz/corpus

chaos: $(READY) tools ## The service under faults, for MINUTES=2; SEED=n repeats a run, ENGINE=postgresql narrows
	@$(BIN)/python -m tests.lab $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) \
		$(if $(ENGINE),--engine $(ENGINE)) $(ARGS)

mutants: $(READY) ## Small changes of a module that its tests must notice; ARGS="webhook/retry.py --sample 100"
	@$(BIN)/python -m scripts.mutants $(ARGS)

check: $(READY) ## Format, lint, types, the direction of imports, known vulnerabilities
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/bandit --quiet --recursive --configfile pyproject.toml webhook scripts config
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m scripts.audit

lock: $(READY) ## Pins anew what requirements*.in name, with hashes; ARGS="--upgrade" takes newer ones of the rest
	@$(LOCK) $(ARGS) --output-file requirements.txt requirements.in
	@$(LOCK) $(ARGS) --output-file requirements-dev.txt requirements-dev.in

sbom: $(READY) ## What the service is made of, as CycloneDX: build/sbom.json
	@mkdir -p build
	@PYTHONWARNINGS=ignore $(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --output-format JSON \
		--output-file build/sbom.json requirements.txt
	@echo build/sbom.json

run: $(READY) ## The service, with the settings in .env
	@PATH="$(CURDIR)/$(BIN):$$PATH"; eval "exec $$(sed -n 's/^web: //p' Procfile)"

tools: ## MinIO's own client and Chromium, for the tests of config/minio-webhook.sh and of the pages
	@scripts/get_mc.sh >/dev/null || echo "make: going on without MinIO's client; the tests that need it are skipped"
	@scripts/get_chromium.sh >/dev/null || echo "make: going on without Chromium; the tests that need it are skipped"

clean: ## Removes what make has installed
	rm -rf $(VENV) .tools .mutants .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
