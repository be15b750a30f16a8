# The one door: every target sets up .venv from pinned versions first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUT ?= demo-out

.PHONY: help setup demo test lint clean

help:
	@echo "make demo   set up .venv and run the whole job on synthetic slides (under 5 minutes on 2 cores)"
	@echo "make test   set up .venv and run lint, types and the test suite"
	@echo "make lint   ruff and mypy only"
	@echo "make clean  remove .venv and the demo's output"

setup: $(BIN)/.ready

$(BIN)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/microtome demo -o $(DEMO_OUT)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

clean:
	rm -rf $(VENV) $(DEMO_OUT)
