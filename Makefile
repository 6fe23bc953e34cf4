# Everything sets itself up: all that is needed is Python 3.11 or later (with pip and venv) and make.

PYTHON ?= python3
# Of the simulation, in make soak: some two hours on two cores.
SEEDS ?= 100000
BIN := .venv/bin
READY := .venv/ready

.PHONY: help demo test lint bench oracle controlplane soak lock clean

help:
	@echo "make demo   two clusters share one fabric, on an embedded nats-server"
	@echo "make test   lint, then all tests"
	@echo "make lint   ruff, mypy --strict, import layers"
	@echo "make bench  the figures of docs/benchmarks.md"
	@echo "make oracle build/oracle: upstream's allocator and CEL compiler, to compare with"
	@echo "make controlplane   Kubernetes' control plane for the tests: some ten minutes on two cores, once for a machine"
	@echo "make soak   the long runs: 100,000 simulated histories (SEEDS=n: as many), the model, 100,000 allocations against upstream's, real kills, 600 pods of two real clusters (some three hours)"
	@echo "make lock   renew requirements.lock from pyproject.toml"

$(READY): requirements.lock pyproject.toml
	@echo "setting up .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: $(READY)
	@$(BIN)/dragoman demo

test: lint oracle
	@$(BIN)/python -m tests.controlplane.programs --if-possible
	@$(BIN)/python -m tests.deploy.helm_program --if-possible
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/mypy docs/model/check.py
	$(BIN)/lint-imports --no-cache

bench: $(READY) oracle controlplane
	@$(BIN)/python -m tests.bench

oracle: build/oracle

build/oracle: $(wildcard tests/oracle/*.go) tests/oracle/go.mod tests/oracle/go.sum | $(READY)
	@$(BIN)/python -m tests.oracle.build

controlplane: $(READY)
	@$(BIN)/python -m tests.controlplane.programs

soak: $(READY) oracle controlplane
	$(BIN)/python docs/model/check.py
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --first-seed 2000
	ORACLE_PROBLEMS=100000 ORACLE_SEED=2 $(BIN)/python -m pytest --timeout 0 tests/oracle/test_allocation_differential.py
	$(BIN)/python -m tests.chaos --minutes 10
	COMPETING_PODS=300 COMPETING_DEVICES=200 $(BIN)/python -m pytest -s tests/kubernetes/test_competing.py

lock: $(READY)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra local --extra tracing --group test --group lint pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis
