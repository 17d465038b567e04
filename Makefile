# Every target makes .venv first, if it is missing or older than the pins.

PYTHON ?= python3
SEED ?= 0
RECIPE ?= demo
# More arguments: make test ARGS="tests/unit -k census", make demo ARGS="--run-root my_runs"
ARGS ?=

# Ray starts dozens of processes, each of which would compile what it imports: four seconds of a core.
unexport PYTHONDONTWRITEBYTECODE
export UV_COMPILE_BYTECODE = 1

VENV := .venv
SITE := build/docs
# Changes when the environment was last brought in line with pyproject.toml and uv.lock.
INSTALLED := $(VENV)/.installed
# Nothing is installed but what a hash is known of, and nothing that runs code of its own to be built.
PIP = $(VENV)/bin/python -m pip install --disable-pip-version-check --require-hashes --only-binary :all:
# The one on the PATH, else the locked one, which pip installs.
UV = $(shell uv --version >/dev/null 2>&1 && echo uv || echo $(VENV)/bin/uv)
# What only torch's CUDA build brings.
CUDA = $(shell sed -n -E 's/^name = "((cuda|nvidia)-.*|triton)"$$/--no-install-package \1/p' uv.lock)

.PHONY: help install demo test docs lint types contract check format audit lock

help:
	@echo "make demo [VIDEOS=folder] [SEED=0]  the whole chain, on rendered videos or on your own;"
	@echo "                                    RECIPE=smoke takes a minute, RECIPE=video a GPU"
	@echo "make test [ARGS=...]                the test suite"
	@echo "make docs                           the documentation as a site, in $(SITE)"
	@echo "make check                          lint, types and the architecture contract"
	@echo "make format                         rewrite the code as the linter wants it"
	@echo "make install                        only the environment, in $(VENV)"
	@echo "make audit                          known vulnerabilities of the locked packages"
	@echo "make lock [ARGS=--upgrade]          renew uv.lock and what is made from it"
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

# uv's status is 1 where it found something, and 2 where nobody answered: then there is nothing to say.
audit: $(INSTALLED)
	@answer=$$($(VENV)/bin/uv audit --frozen --preview-features audit-command $(ARGS) 2>&1); status=$$?; \
	echo "$$answer"; \
	if [ $$status = 2 ] && echo "$$answer" | grep -q -E 'error sending request|HTTP status \w+ error'; \
	then echo "audit skipped: the vulnerability service can't be reached from here"; else exit $$status; fi

# An environment that an interrupted run left without pip is made anew. What else was installed there stays.
$(INSTALLED): pyproject.toml uv.lock torch-cpu.txt
	@$(VENV)/bin/python -c 'import pip' >/dev/null 2>&1 || { \
	command -v '$(PYTHON)' >/dev/null || { \
		echo "no command '$(PYTHON)'; install Python 3.11 or newer, or name it: make PYTHON=python3.12 ..."; \
		exit 1; }; \
	'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "'$(PYTHON)' is older than Python 3.11; name a newer one: make PYTHON=python3.12 ..."; exit 1; }; \
	'$(PYTHON)' -m venv --clear $(VENV) || { \
		echo "'$(PYTHON)' has no working venv; on Debian and Ubuntu: apt install python3-venv"; exit 1; }; }
	@$(UV) --version 2>/dev/null || { \
	$(VENV)/bin/python -c 'import tomllib; \
		[uv] = [each for each in tomllib.load(open("uv.lock", "rb"))["package"] if each["name"] == "uv"]; \
		print("uv==" + uv["version"], *("--hash=" + wheel["hash"] for wheel in uv["wheels"]))' \
		> $(VENV)/uv.txt && $(PIP) -r $(VENV)/uv.txt; }
	@if $(PIP) --no-deps -r torch-cpu.txt 2>/dev/null; then without="--no-install-package torch $(CUDA)"; \
	else echo "pip's settings lead to no file of torch-cpu.txt: torch comes from PyPI, with CUDA"; fi; \
	export UV_PROJECT_ENVIRONMENT=$(VENV) UV_PYTHON_DOWNLOADS=never; \
	$(UV) sync --frozen --inexact --no-install-project --no-build --extra dev $$without && \
	$(UV) pip install --python $(VENV)/bin/python --no-deps --no-build-isolation -e .
	@touch $@

# Adds what pyproject.toml asks for anew; ARGS=--upgrade moves all to their newest versions. torch-cpu.txt is
# edited by hand when torch moves.
lock: $(INSTALLED)
	$(VENV)/bin/uv lock $(ARGS)
	$(VENV)/bin/uv export --frozen --no-emit-project --extra server --quiet --output-file requirements.txt
	$(MAKE) install
	$(VENV)/bin/python -m docs.make.licences > $(VENV)/licences.md
	mv $(VENV)/licences.md docs/reference/licences.md
