# `make demo`, `make test` and `make bench` need Python 3.11+, git and make; everything else goes into .venv and build.
PYTHON ?= python3
BIN := .venv/bin

define need_python
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
  echo "tinyllm needs Python 3.11 or newer, and '$(PYTHON)' is not that; name one that is: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
endef

.PHONY: demo test docs torture torture-long soak bench bench-quick bench-claims lint format types imports clean

demo: .venv/ready
	@$(BIN)/python examples/demo.py

# On as many cores as there are; but a container may say that it has more than it may use.
test: lint types imports
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

docs: .venv/ready
	$(BIN)/python -m sphinx -W --keep-going -E -q docs build/docs
	@echo "built; open build/docs/index.html"

# Less than 15 minutes on 2 cores. A violation says how to see it again.
torture: .venv/ready
	$(BIN)/python -m tests.torture

# A night.
torture-long: .venv/ready
	$(BIN)/python -m tests.torture --long

# 10 minutes; on 2 cores nothing else should run beside it. A violation says what shows it.
soak: .venv/ready
	$(BIN)/python -m tests.soak

# About 45 minutes on 2 cores; nothing else should run beside it. What is measured goes to docs/benchmarks.
bench:
	$(need_python)
	@$(PYTHON) benchmarks/bench.py

# Minutes; what is measured goes to build/bench/quick.
bench-quick:
	$(need_python)
	@$(PYTHON) benchmarks/bench.py --quick

# A minute; prints what a claim costs by how many traces wait.
bench-claims: .venv/ready
	@$(BIN)/python benchmarks/claims.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: .venv/ready
	$(BIN)/mypy

imports: .venv/ready
	$(BIN)/lint-imports --no-logo

clean:
	rm -rf .venv build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip before 25.3 cannot constrain what a build needs, so the build's needs are installed first, constrained like the rest.
.venv/ready: pyproject.toml constraints.txt
	$(need_python)
	@echo "Installing into .venv (once; about half a minute) ..."
	@rm -rf .venv
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt hatchling editables
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@
