# make demo   the whole path on the bundled pictures: runs/demo/report.html (about 25 minutes on two cores)
# make compare  diffusion and autoregressive models trained and compared (under an hour): runs/compare_demo/comparison/compare.html
# make test   every test: faults, two processes, kills (twenty minutes on two cores)
# make check  lint, format, types, import direction
# make venv   only create .venv and install what the checks need
# make clean  remove .venv, caches and builds; data/ and runs/ stay
#
# PYTHON names the interpreter that .venv is made from: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# torch goes in first and by its exact version, so that no later requirement chooses another build of it.
TORCH := $(shell sed -n 's/^\(torch==[^ ;]*\).*/\1/p' constraints.txt)

.PHONY: help demo compare test check format venv clean

help:
	@sed -n 's/^# \{0,1\}//; /^make/p' Makefile

demo: $(VENV)/.installed
	@$(BIN)/python tools/demo.py

compare: $(VENV)/.installed
	@$(BIN)/python tools/compare.py experiment=compare_demo --seeds 0 1 --counts 48 --curve-counts 24

test: $(VENV)/.installed-dev
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(BIN)/python -m pytest -q

check: $(VENV)/.installed-dev
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/python -m pyright
	@$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

venv: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: '$(PYTHON)' is not Python 3.11 or newer: name one that is, as in 'make PYTHON=python3.12'" >&2; exit 1; }
	@echo "installing into $(VENV) (once; a few minutes)"
	"$(PYTHON)" -m venv $(VENV)
	$(PIP) install --constraint constraints.txt $(TORCH)
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find mentor tools tests -name __pycache__ -type d -prune -exec rm -rf {} +
