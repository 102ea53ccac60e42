# Two commands do everything on a machine that has only Python 3.11+ and make:
#   make demo    the main job, embedded, nothing to start
#   make test    every check and every test
# And one more takes its time:
#   make chaos   the chaos tests with their full counts
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test chaos check format bench clean

demo: .venv/demo
	$(BIN)/tenantsync demo

test: check
	$(BIN)/python -m pytest -n auto

chaos: .venv/test
	TENANTSYNC_CHAOS=full $(BIN)/python -m pytest -n auto --dist worksteal tests/chaos

check: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/test
	$(BIN)/python tests/benchmarks/ingest.py

.venv/demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[binary,server]'
	touch $@

.venv/test: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@ .venv/demo

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
