# Every target makes its own .venv; `make help` lists them. python3 (>= 3.11), make and git suffice.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest
FAST   := not slow and not process and not chaos
SEED   ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test check check-lint check-fast format chaos restores crash sim swarm mutants powercut corruption hostile bench run build clean

help: ## list the targets
	@grep -hE '^[a-z.-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "OnceMQ needs Python 3.11 or newer; name one with: make PYTHON=python3.11")'
	@test -e oncemq || ln -s actors oncemq  # an archive may have lost the link
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

.venv: $(STAMP) ## make the virtual environment with all tools

demo: $(STAMP) ## the main job on real input, with processes killed on the way
	@$(BIN)/python -m examples.flights.demo

test: $(STAMP) ## the whole test suite (long fault runs are in `make chaos`)
	@$(PYTEST) -n 2 --dist worksteal -m "not chaos" $(ARGS)

check: check-lint check-fast ## format, lint, types, layers, tidy and the fast tests: under a minute

check-lint: $(STAMP) ## format, lint, types and layers only
	@$(BIN)/ruff format --check --quiet . || { echo "run: make format"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

check-fast: $(STAMP) ## tidy and the fast tests only
	@$(PYTEST) -q -n 2 -m "$(FAST)" $(ARGS)

format: $(STAMP) ## format the code and mend what ruff can mend
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --fix --quiet .

chaos: $(STAMP) ## long runs that kill, freeze and cut real and simulated processes
	@$(PYTEST) -n 2 --dist worksteal -m chaos --timeout=1800 $(ARGS)

restores: $(STAMP) ## every way in which a backup comes back, twenty times each: over an hour
	@ONCEMQ_TEST_ROUNDS=20 $(PYTEST) -n 4 --dist worksteal -m chaos --timeout=3600 tests/process/test_same_log.py tests/process/test_backup.py $(ARGS)

crash: $(STAMP) ## a power cut at every disk call, all variants
	@ONCEMQ_TEST_CRASH_ALL=1 $(PYTEST) -s --timeout=3600 tests/storage/test_crash_every_call.py $(ARGS)

sim: $(STAMP) ## one simulated run with its trace: make sim SEED=7
	@$(BIN)/python -m oncemq sim --seed $(SEED) --trace

swarm: $(STAMP) ## 2,000 simulated runs, each with faults of its own: make swarm ARGS="--minutes 5"
	@$(BIN)/python -m oncemq sim $(or $(ARGS),--seeds 2000)

mutants: $(STAMP) ## seeded bugs, one after the other: each must be caught
	@$(BIN)/python -m tests.sim.mutants $(ARGS)

powercut: $(STAMP) ## power cuts on real file systems, every cut point (root; else skipped)
	@tests/powercut/install.sh
	@ONCEMQ_TEST_POWERCUT_ALL=1 $(PYTEST) -s --timeout=3600 tests/powercut $(ARGS)

corruption: $(STAMP) ## every byte of every log, ledger and snapshot damaged; none of it silent
	@$(BIN)/python -m tests.corruption.sweep $(ARGS)

hostile: $(STAMP) ## 110,000 hostile messages against a real broker
	@$(BIN)/python -m tests.hostile.siege --cases 110000 --seed $(SEED)

bench: $(STAMP) ## throughput, latency, dedup and recovery figures of this machine
	@$(BIN)/python -m bench pipeline --json
	@$(BIN)/python -m bench latency --json
	@$(BIN)/python -m bench dedup --json
	@$(BIN)/python -m bench recover --json

run: $(STAMP) ## broker, producer and consumer under the Procfile
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/honcho start

build: $(STAMP) ## wheel and sdist, in dist/
	@$(BIN)/python -m build --outdir dist .

clean: ## remove caches (never data/)
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist
