# Two commands are enough: `make demo` runs the main job, `make test` runs the tests (`make test-all` also the slow ones).
# Each makes its own virtual environment; nothing else on the machine is touched.

PYTHON ?= python3
DEMO := .venv
DEV := .venv-dev
PYTEST := $(DEV)/bin/python -m pytest -n 2 --dist loadfile

.PHONY: demo test test-all lint types board clean

demo: $(DEMO)/.installed
	$(DEMO)/bin/alignbench run --method vapi --model llamagen-tiny

test: $(DEV)/.installed
	$(PYTEST)

test-all: $(DEV)/.installed
	$(PYTEST) -m "not heavy"

lint: $(DEV)/.installed
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .

types: $(DEV)/.installed
	$(DEV)/bin/python -m mypy

board: $(DEV)/.installed
	$(DEV)/bin/alignbench leaderboard --check

$(DEMO)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python -m pip install --quiet --editable .
	touch $@

$(DEV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(DEMO) $(DEV) build dist runs .pytest_cache .mypy_cache .ruff_cache
