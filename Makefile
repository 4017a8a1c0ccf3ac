# Everything happens in .venv; nothing is installed outside this directory.
# It needs Python 3.11 or newer with venv, and nothing else. `make PYTHON=/path/to/python` names one.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?=
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3.13 python3.12 python3.11 python3)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --require-virtualenv
ARGS ?=
# Seconds; longer than that is told at the end, and fails nothing.
TEST_LIMIT_S ?= 90
# Tests wait more than they work, so there are twice as many at once as a small machine has cores.
PARALLEL = -n $(TEST_JOBS) --dist loadfile
TEST_JOBS ?= 4

.PHONY: help run test test-all check format bench attacks simulate soak clean generated dist deb homebrew \
  screenshot lock sbom audit fuzz map

help:
	@echo "make run     serve on http://127.0.0.1:8433   (ARGS='--config FILE')"
	@echo "make test    run the tests that need no process, a minute (ARGS='tests/core -k window')"
	@echo "make test-all  run every test, a quarter of an hour (TEST_JOBS=2)"
	@echo "make check   formatting, lint, types, lock files and every test: what CI runs"
	@echo "make format  put the code into the project's form"
	@echo "make bench   measure it beside nginx, 5 minutes (PEERS=1 for five more, ARGS=--help)"
	@echo "make attacks  clients that try to fill its memory, beside honest ones, 20 minutes"
	@echo "make simulate  months of memory in minutes: leaks told, healthy weeks left alone"
	@echo "make soak    watch it for growth under load that hangs, 6 minutes (SOAK_HOURS=8)"
	@echo "make fuzz    attack it with changed inputs, 2 minutes (FUZZ_MINUTES=30)"
	@echo "make map     which part of the source stands on which"
	@echo "make generated  write completions and the manual page anew"
	@echo "make dist    build the wheel and the source archive, and note their SHA-256"
	@echo "make deb     build the Debian package   (PYTHON=/usr/bin/python3: whose version it is for)"
	@echo "make homebrew  write the formula for Homebrew anew, from requirements.lock"
	@echo "make screenshot  take the README's pictures of the page (needs node and chromium)"
	@echo "make lock    write the hashes in the lock files anew, for the versions they pin"
	@echo "make audit   ask for known holes in what is locked (needs the package index)"
	@echo "make sbom    write what tidegate is made of, as CycloneDX"
	@echo "make clean   remove .venv and every cache"

run: $(VENV)/installed
	@exec $(BIN)/tidegate run $(ARGS)

test: $(VENV)/installed-dev
	TEST_LIMIT_S=$(TEST_LIMIT_S) $(BIN)/python -m pytest $(or $(ARGS),-n $(TEST_JOBS) --dist worksteal -m quick)

# What measures memory or time has the machine for itself, behind the rest.
test-all: export TIDEGATE_TEST_LONG = 1
test-all: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(PARALLEL) -m "not alone" $(ARGS)
	$(BIN)/python -m pytest -m alone $(ARGS)

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check daemon tests bench packaging
	$(BIN)/ruff check daemon tests bench packaging
	$(BIN)/mypy
	$(BIN)/python packaging/audit.py
	$(MAKE) --no-print-directory test-all

format: $(VENV)/installed-dev
	$(BIN)/ruff format daemon tests bench packaging
	$(BIN)/ruff check --fix daemon tests bench packaging

bench: $(VENV)/installed-dev
	$(BIN)/python bench/run.py $(if $(PEERS),--peers all) $(ARGS)

attacks: $(VENV)/installed-dev
	PYTHONPATH=bench:tests $(BIN)/python bench/attacks.py $(ARGS)

simulate: $(VENV)/installed-dev
	$(BIN)/python bench/simulate.py $(ARGS)

soak: $(VENV)/installed-soak
	PYTHONPATH=bench:tests $(BIN)/python -m soak $(ARGS)

fuzz: $(VENV)/installed-dev
	PYTHONPATH=tests $(BIN)/python -m hostile.fuzz $(ARGS)

map: $(BIN)/python
	@$(BIN)/python tests/house.py

generated: $(VENV)/installed
	PYTHONPATH=packaging $(BIN)/python -m shell

dist: $(VENV)/installed
	@rm -f dist/tidegate-*.whl dist/tidegate-*.tar.gz
	$(BIN)/hatchling build -d dist
	@cd dist && if command -v sha256sum >/dev/null; then sha256sum tidegate-*; \
	  else shasum -a 256 tidegate-*; fi >SHA256SUMS

deb: $(VENV)/installed
	@$(BIN)/python packaging/deb/build.py $(if $(PYTHON),--python $(PYTHON)) $(ARGS)

homebrew: $(VENV)/installed
	$(BIN)/python packaging/homebrew/generate.py

screenshot: $(VENV)/installed-dev
	PYTHONPATH=tests $(BIN)/python packaging/screenshot.py $(ARGS)

lock: $(BIN)/python
	$(BIN)/python packaging/locks.py

sbom: $(BIN)/python
	@$(BIN)/python packaging/sbom.py

audit: $(VENV)/audit/installed
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --require-hashes \
	  -r requirements.lock -r requirements-build.lock $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find daemon tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# pip runs again only when what it would read has changed, so a second `make run` starts at once.
# What has no SHA-256 in the locks, or another one, is not installed.
$(VENV)/installed: pyproject.toml requirements.lock requirements-build.lock | $(BIN)/python
	@echo "Installing into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements.lock -r requirements-build.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/installed-dev: requirements-dev.lock $(VENV)/installed
	@echo "Installing the tools for tests into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@

$(VENV)/installed-soak: bench/soak/requirements.txt $(VENV)/installed
	@echo "Installing what the soak needs into $(VENV) ..."
	@$(PIP) install -r bench/soak/requirements.txt
	@touch $@

$(VENV)/audit/installed: | $(BIN)/python
	@$(BIN)/python -m venv $(VENV)/audit
	@$(VENV)/audit/bin/python -m pip --disable-pip-version-check --quiet install 'pip-audit>=2.9'
	@touch $@

# A candidate counts only if it runs: pyenv, for one, leaves commands that find no Python.
$(BIN)/python:
	@for candidate in $(CANDIDATES); do \
	  if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    python=$$candidate; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "tidegate needs Python 3.11 or newer. Tried: $(CANDIDATES)" >&2; \
	  for candidate in $(CANDIDATES); do \
	    version=$$($$candidate --version 2>/dev/null) && echo "  $$candidate is $$version: too old" >&2; \
	  done; \
	  echo "Install one (Debian, Ubuntu: sudo apt install python3 python3-venv;" \
	    "macOS: brew install python@3.13), or name one: make run PYTHON=/path/to/python3" >&2; \
	  exit 1; \
	fi; \
	if ! $$python -c 'import venv, ensurepip' 2>/dev/null; then \
	  echo "$$python ($$($$python --version)) has no venv or ensurepip." >&2; \
	  echo "Debian, Ubuntu: sudo apt install python3-venv; then run make again." >&2; \
	  exit 1; \
	fi; \
	echo "Making $(VENV) with $$($$python --version) ..."; \
	$$python -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }
