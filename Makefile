# Every target makes .venv first, if it is missing or older than the pins.

PYTHON ?= python3
SEED ?= 0
RECIPE ?= demo
# More arguments: make test ARGS="tests/unit -k census", make demo ARGS="--run-root my_runs"
ARGS ?=

VENV := .venv
SITE := build/docs
# Changes when the environment was last brought in line with pyproject.toml and constraints.txt.
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test docs lint types contract check format constraints

help:
	@echo "make demo [VIDEOS=folder] [SEED=0]  the whole chain, on rendered videos or on your own;"
	@echo "                                    RECIPE=smoke takes a minute, RECIPE=video a GPU"
	@echo "make test [ARGS=...]                the test suite"
	@echo "make docs                           the documentation as a site, in $(SITE)"
	@echo "make check                          lint, types and the architecture contract"
	@echo "make format                         rewrite the code as the linter wants it"
	@echo "make install                        only the environment, in $(VENV)"
	@echo "make constraints                    renew the pinned versions in constraints.txt"
	@echo "Another Python (3.11 or newer): make PYTHON=python3.12 ..."

install: $(INSTALLED)

demo: $(INSTALLED)
	$(VENV)/bin/python jobs/demo.py $(RECIPE) $(if $(VIDEOS),--videos '$(VIDEOS)') --seed $(SEED) $(ARGS)

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# Everything is read anew, as the reference comes from the code. A warning is an error: a link that leads
# nowhere, an option without a sentence of its own.
docs: $(INSTALLED)
	$(VENV)/bin/python -m sphinx --fresh-env --fail-on-warning --keep-going --quiet docs $(SITE)
	@echo "documentation: $(SITE)/index.html"

lint: $(INSTALLED)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

types: $(INSTALLED)
	$(VENV)/bin/python -m mypy

contract: $(INSTALLED)
	$(VENV)/bin/lint-imports --no-logo

check: lint types contract

format: $(INSTALLED)
	$(VENV)/bin/python -m ruff check --fix-only --quiet .
	$(VENV)/bin/python -m ruff format .

# An environment that an interrupted run left without pip is made anew.
$(INSTALLED): pyproject.toml constraints.txt
	@$(VENV)/bin/python -c 'import pip' >/dev/null 2>&1 || { \
	command -v '$(PYTHON)' >/dev/null || { \
		echo "no command '$(PYTHON)'; install Python 3.11 or newer, or name it: make PYTHON=python3.12 ..."; \
		exit 1; }; \
	'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "'$(PYTHON)' is older than Python 3.11; name a newer one: make PYTHON=python3.12 ..."; exit 1; }; \
	'$(PYTHON)' -m venv --clear $(VENV) || { \
		echo "'$(PYTHON)' has no working venv; on Debian and Ubuntu: apt install python3-venv"; exit 1; }; }
	$(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# The newest versions that fit pyproject.toml, from a throwaway environment. Left out: this project, what comes
# with every environment, and the CUDA libraries that only torch's Linux build brings.
constraints:
	rm -rf $(VENV)-renew
	'$(PYTHON)' -m venv $(VENV)-renew
	$(VENV)-renew/bin/python -m pip install --disable-pip-version-check -e '.[dev]'
	@{ echo "# Every package that an install brings, for pip install -c. Renewed by: make constraints"; \
	echo "# Resolved with $$($(VENV)-renew/bin/python --version), for 3.11 and newer."; \
	$(VENV)-renew/bin/python -m pip freeze --exclude distillflow-ray --exclude setuptools \
		| sed 's/+[a-z0-9.]*$$//' | grep -v -E '^(nvidia-|cuda-|triton)'; } > constraints.txt.new
	mv constraints.txt.new constraints.txt
	rm -rf $(VENV)-renew
