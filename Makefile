# Each target does all its own set-up on a fresh machine: a virtual environment in .venv and everything in it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow test-kernels smoke lint format proto reference docs clean

$(STAMP): pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[training,test,docs]'
	touch $@

demo: $(STAMP)
	$(BIN)/reluguard demo

test: $(STAMP)
	$(BIN)/python -m pytest -m 'not slow'

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

test-kernels: $(STAMP)
	$(BIN)/python tests/kernels.py

# wheel and sdist in clean environments: base, newest Python, lowest versions
smoke: $(STAMP)
	$(BIN)/python tests/install/environments.py

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: $(STAMP)
	$(BIN)/python proto/generate.py

reference: $(STAMP)
	$(BIN)/python docs/reference/write_api.py

# the site, in docs/_build; a page, link or picture that is not right is an error
docs: $(STAMP)
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --builder html docs docs/_build

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache
