# make demo: train the laptop model.  make test: run all tests.
# PYTHON chooses the interpreter, VENV where it is installed.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
ARGS ?=

.PHONY: install demo test format

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is not Python 3.11 or newer; name one with 'make PYTHON=python3.12 ...'"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "error: $(PYTHON) cannot make a virtual environment; install its venv package (Debian: apt install python3-venv)"; exit 1; }
	@echo "Installing into $(VENV), once; about a minute."
	@$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

demo: install
	@$(RUN) -m jaxrl_mm.main --config=configs/digits_r1v2.py --workdir=runs/digits_r1v2 $(ARGS)

test: install
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m pytest $(ARGS)

format: install
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .
