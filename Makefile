# make demo: train the laptop model.  make demo-reward: train a judge.
# make test: run all tests.
# make parity: compare with torch, which is large, live.
# make pod: several processes, and killed ones; takes long.
# make fit: compile a 7B run for a TPU slice, without a TPU.
# make tpu: the tests that need its compiler.
# PYTHON chooses the interpreter, VENV where it is installed.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
ARGS ?=

.PHONY: install demo demo-reward test parity pod fit tpu format

install: $(VENV)/installed

$(VENV)/installed: EXTRAS := test
$(VENV)-parity/installed: EXTRAS := test,parity
$(VENV)-tpu/installed: EXTRAS := test,tpu

%/installed: pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is not Python 3.11 or newer; name one with 'make PYTHON=python3.12 ...'"; exit 1; }
	@$(PYTHON) -m venv $* || { \
	  echo "error: $(PYTHON) cannot make a virtual environment; install its venv package (Debian: apt install python3-venv)"; exit 1; }
	@echo "Installing into $*, once; it takes a minute or more."
	@$*/bin/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'
	@touch $@

demo: install
	@$(RUN) -m jaxrl_mm.main --config=configs/digits_r1v2.py --workdir=runs/digits_r1v2 $(ARGS)

demo-reward: install
	@$(RUN) -m jaxrl_mm.main --config=configs/digits_r1_reward.py --workdir=runs/digits_r1_reward $(ARGS)

test: install
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m pytest $(ARGS)

# Warnings of torch and peft are their own affair.
parity: $(VENV)-parity/installed
	@$(VENV)-parity/bin/python -m pytest -W ignore tests/parity/*_parity.py $(ARGS)

pod: install
	@$(RUN) -m pytest -n 0 tests/pod/*_pod.py $(ARGS)

fit: $(VENV)-tpu/installed
	@$(VENV)-tpu/bin/python -m benchmarks.fit configs/r1_reward_7b.py --topology=v5p:2x2x4 $(ARGS)

tpu: $(VENV)-tpu/installed
	@$(VENV)-tpu/bin/python -m pytest -n 0 tests/tpu/*_tpu.py $(ARGS)

format: install
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .
