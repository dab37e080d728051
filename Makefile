# Two commands for everybody: `make demo` and `make test`. `make help` lists the rest.

.DEFAULT_GOAL := help
SHELL := /bin/sh

VENV ?= .venv
BIN := $(VENV)/bin
# The first Python that is new enough; name another with PYTHON=…
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
ONCE ?=
REQUESTS ?= 200
ARGS ?=
FAST = $(BIN)/python -m pytest -q -m "not services and not slow" $(ARGS)

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

# ---- environments -----------------------------------------------------------------------------

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found. Install it, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "$(PYTHON) is not there, or is older than Python 3.11. Name another: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@touch $@

$(VENV)/.demo: requirements/demo.lock $(VENV)/.created
	@test -e $(VENV)/.dev || { echo "Setting up a private environment in $(VENV) (once) …"; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/demo.lock; }
	@touch $@

$(VENV)/.dev: requirements/dev.lock $(VENV)/.created
	@echo "Setting up the development environment in $(VENV) (once) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@touch $@ $(VENV)/.demo

.PHONY: setup
setup: $(VENV)/.dev ## Set up the development environment

# UPGRADE= keeps what is pinned, and adds or removes only what changed in requirements/.
UPGRADE ?= --upgrade

.PHONY: lock
lock: $(VENV)/.dev ## Pin the newest versions that requirements/*.in allow, with hashes
	cd requirements && for set in dev demo; do \
		constraints=$$(test $$set = demo && echo "--constraints dev.lock"); \
		../$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
			--no-emit-index-url --no-header $$constraints $(UPGRADE) $$set.in --output-file $$set.lock || exit 1; \
	done

# ---- the two commands -------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV)/.demo ## See it work: start everything, send requests, show what became of them (ONCE=1: then stop)
	@$(BIN)/python -m examples.demo --requests $(REQUESTS) $(if $(ONCE),--once) $(ARGS)

.PHONY: test
test: check services ## Every test, with the real servers (ARGS=… goes to pytest; ARGS="-n 0": one after the other)
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile $(ARGS)

.PHONY: contract
contract: $(VENV)/.dev ## 50,000 requests by schemathesis to a publisher behind its shipped server (ARGS="--requests …")
	@$(BIN)/python -m tests.integration.contract.run $(ARGS)

# ---- inner loop -------------------------------------------------------------------------------

.PHONY: test-fast
test-fast: $(VENV)/.dev ## Tests that need no server: two halves side by side
	@$(FAST) tests/unit/audit_logging tests/unit/audit_publisher & half=$$!; \
		$(FAST) tests/unit/audit_sink tests/unit/examples tests/contracts tests/integration; other=$$?; \
		wait $$half && exit $$other

.PHONY: services
services: $(VENV)/.dev ## Install what the tests' servers need, where that needs no password
	@$(BIN)/python -m tests.services install

.PHONY: check
check: $(VENV)/.dev ## Style, types, import direction, and that generated files are up to date
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "Run: make format"; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python -m config.docs --check
	@AUDIT_DATA_DIR=$${TMPDIR:-/tmp}/audit-check-$$$$ sh -c '\
		$(BIN)/python manage.py audit_openapi --check && \
		$(BIN)/python manage.py makemigrations --check --dry-run && \
		$(BIN)/python manage.py check --fail-level WARNING; \
		status=$$?; rm -rf "$$AUDIT_DATA_DIR"; exit $$status'

.PHONY: format
format: $(VENV)/.dev ## Format the code, and fix what can be fixed by itself
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet .

.PHONY: docs
docs: $(VENV)/.dev ## Write the generated pages: configuration and OpenAPI
	@$(BIN)/python -m config.docs
	@$(BIN)/python manage.py audit_openapi

.PHONY: clean
clean: ## Remove the environment and all that runs left behind in the checkout
	rm -rf $(VENV) var .pytest_cache .mypy_cache .ruff_cache .hypothesis
