# make demo   the whole of Safe RLHF on this machine, with a report at the end
# make test   the tests
# make check  what continuous integration runs: format, lint, types, the rules of the house, tests
# make bench  time and memory against peers, written to docs/performance.md (an hour or so)
# make clean  remove caches and build outputs (runs/ and .venv stay)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest

.PHONY: demo install test check bench clean

demo: $(INSTALLED)
	@$(BIN)/poise run safe-rlhf --folder runs/demo

install: $(INSTALLED)

# One installation for all targets; it is repeated when the requirements change. Every file is compared with the checksums
# of requirements.lock, the build backend's too; torch alone, whose file differs by machine, is pinned without one.
$(INSTALLED): pyproject.toml constraints.txt requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON). Install Python 3.11 or newer, or: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "poise needs Python 3.11 or newer, and $(PYTHON) is older. Choose another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "$(PYTHON) cannot create a virtual environment. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV) (about 2 GB; two minutes or so)" >&2
	@$(PIP) --require-hashes --no-deps -r requirements.lock
	@$(PIP) -c constraints.txt torch
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

test: $(INSTALLED)
	$(TEST) -n 2

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(TEST) tests/architecture
	$(TEST) -n 2 --ignore=tests/architecture

BENCHMARKS := rollout_fixed rollout_mixed rollout_grouped grpo_16 grpo_64 grpo_16_lora grpo_64_lora \
	ppo_lag_16 ppo_lag_16_separate dpo reward sft sft_packed

# The peers are an extra; torch and transformers stay as they are.
bench: $(INSTALLED)
	@$(PIP) -c constraints.txt -e '.[bench]'
	@for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py || exit 1; done
	@for axis in rows response layers; do for name in rollout_fixed grpo_16; do \
		$(BIN)/python benchmarks/$$name.py --scaling $$axis || exit 1; done; done
	@$(BIN)/python benchmarks/render.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +
