# `make demo` and `make test` need nothing but Python 3.11 or newer beforehand.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP     = $(BIN)/python -m pip install -q --disable-pip-version-check

.PHONY: bench bench-plane bench-client bench-first-query faults soak setup demo test check lint types imports tests lock generate notice dist clean bench-dump

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "The venv module is missing. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@# uv takes 2 s where pip takes 40; where it cannot be had, or trusts other certificates than pip does, pip does it.
	@export VIRTUAL_ENV=$(CURDIR)/$(VENV); \
	{ $(PIP) uv && $(BIN)/uv pip install -q --require-hashes -r requirements.lock; } >/dev/null 2>&1 || \
	  { echo "Installing with pip, which takes a minute …"; $(PIP) --require-hashes -r requirements.lock; }
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: setup
	@$(BIN)/python docs/demo.py

# The whole gate, and all that CI runs.
test: lint types imports tests
check: test

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

# As many at once as there are cores. Each keeps to neighbouring tests, which share what takes long to start.
tests: setup
	$(BIN)/pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal

# Rewrites what is generated from the code: openapi.json, shapes.py, docs/troubleshooting.md, …
generate: setup
	$(BIN)/python docs/generate.py

# Rewrites NOTICE from what is installed.
notice: setup
	$(BIN)/python docs/notice.py

# What is published: the sdist, and the wheel built from it.
dist: setup
	rm -rf dist && $(BIN)/hatchling build --target sdist --directory $(CURDIR)/dist
	cd dist && tar -xzf flux_db_access-*.tar.gz && cd flux_db_access-*/ && $(CURDIR)/$(BIN)/hatchling build --target wheel --directory $(CURDIR)/dist
	cd dist && rm -r flux_db_access-*/

# Measurements of the tree as it is, written into the docs. Never part of `make test`: a benchmark is no timed test.
bench: setup
	$(BIN)/python -m bench.speed --write docs/performance.md

bench-client: setup
	$(BIN)/python -m bench.client_start --write docs/performance.md

bench-first-query: setup
	$(BIN)/python -m bench.first_query --write docs/performance.md

bench-plane: setup
	$(BIN)/python -m bench.mints --write docs/performance.md

bench-dump: setup
	$(BIN)/python -m bench.dump --write docs/performance.md

faults: setup
	$(BIN)/python -m bench.faults --write docs/reliability.md

soak: setup
	$(BIN)/python -m bench.soak --write docs/reliability.md

lock:
	uv pip compile --extra dev --generate-hashes --no-emit-index-url --no-emit-find-links --universal --python-version 3.11 -o requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
