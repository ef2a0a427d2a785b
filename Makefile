# plssm: `make demo` and `make test` set up what they need, once, and then do their job.
#
#   make test TORCH="torch --index-url URL"     another build of torch (see its install page)
#   make test PYTHON=/path/to/python3.12        another interpreter (3.11 or newer)
#   make test WORKERS=4 ARGS="-k gaussian"      more processes, arguments for pytest

VENV    ?= .venv
TORCH   ?= torch==2.13.0
EXTRAS  ?= dev,data
WORKERS ?= 2
ARGS    ?=

BIN   := $(VENV)/bin
STAMP := $(VENV)/.plssm-installed
# One thread a process: the tests run in several processes, and BLAS threads would fight over cores.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help setup demo test slow lint format types coverage bench clean

help: ## list the commands
	@grep -E '^[a-z]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## make .venv and install torch, then plssm with its extras

demo: $(STAMP) ## fit a real recording, print the table, write the pictures
	$(BIN)/plssm demo $(ARGS)

test: $(STAMP) ## style, then all quick tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(ONE_THREAD) MPLBACKEND=Agg $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(ARGS)

slow: $(STAMP) ## the tests that take minutes
	$(ONE_THREAD) MPLBACKEND=Agg $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m slow $(ARGS)

lint: $(STAMP) ## style only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## put the code into the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## check the type annotations
	$(BIN)/mypy

coverage: $(STAMP) ## which lines the tests reach
	$(ONE_THREAD) MPLBACKEND=Agg $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --cov $(ARGS)

bench: $(STAMP) ## every benchmark beside its peer (installs the peers)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[bench]"
	$(BIN)/python -m benchmarks all

clean: ## remove caches (not .venv)
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
	rm -rf .pytest_cache .ruff_cache .mypy_cache .coverage build dist *.egg-info

# The interpreter is looked for only when .venv has to be made: an entry on the PATH counts only
# if it runs and is new enough. CPU torch comes first; the package's own requirement is then
# satisfied and brings nothing larger.
$(STAMP): setup.cfg pyproject.toml
	@set -e; found=; \
	new='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if [ ! -x $(BIN)/python ]; then \
	    for python in $(or $(PYTHON),python3 python3.11 python3.12 python3.13 python); do \
	        if "$$python" -c "$$new" >/dev/null 2>&1; then found="$$python"; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "plssm needs Python 3.11 or newer; $(or $(PYTHON),what is on the PATH) is not." >&2; \
	        echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	        exit 1; \
	    fi; \
	    echo "making $(VENV) with $$("$$found" --version)"; \
	    "$$found" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; \
	elif ! $(BIN)/python -c "$$new"; then \
	    echo "$(VENV) holds $$($(BIN)/python --version), plssm needs 3.11 or newer:" >&2; \
	    echo "remove $(VENV) and run this again." >&2; \
	    exit 1; \
	fi
	@echo "installing $(TORCH), then plssm with its extras $(EXTRAS) (a few minutes, once)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS)]"
	@touch $@
