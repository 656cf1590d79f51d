# Everything a user or a developer runs; `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3,$(if $(shell $(name) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo yes),$(name))))
VENV := .venv
BIN := $(VENV)/bin
# onnxruntime and onnxruntime-gpu share a folder, so each kind of machine has a lock of its own.
LOCK ?= $(if $(shell nvidia-smi -L 2>/dev/null),lock/gpu.txt,lock/cpu.txt)
STAMP := $(VENV)/.installed
PACKAGES := headrace sharding replicas autoscale gateway command
CODE := $(PACKAGES) models loadtests tests hatch_build.py
HOT_TESTS := tests/headrace/link tests/headrace/test_metrics.py tests/gateway/access tests/gateway/grpc \
  tests/gateway/http/test_lane.py tests/gateway/http/test_letter.py tests/replicas/test_batcher.py tests/replicas/test_engine.py \
  tests/loadtests/bench/test_calls.py

.PHONY: help setup compiled models media serve test redis perf-analyzer load-generators format check-format lint types pytest pytest-interpreted bench bench-peers bench-reload bench-tls bench-kills soak bench-limits bench-pool bench-sharding loadtest loadtest-tiers fuzz protos lock image-check clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: $(STAMP) compiled ## Make .venv, install everything from the lock, compile what is hot

compiled: $(STAMP) ## Compile the hottest modules again, if they were edited
	@$(BIN)/python hatch_build.py

$(STAMP): $(LOCK) pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "Headrace needs Python 3.11 or 3.12: install python3.11 and python3.11-venv, or call make PYTHON=/path/to/it"; exit 1; fi
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module: install python3-venv"; exit 1; }
	@echo "setting up $(VENV) from $(LOCK): about 750 MB, one to three minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCK)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@# Without compiled bytecode Ray and each replica take seconds longer to start.
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m compileall -q -j 0 $(VENV)/lib $(PACKAGES) >/dev/null 2>&1 || true
	@touch $(STAMP)

models: setup ## Build the demo models into models/repository
	@$(BIN)/python models/build.py

media: setup ## Build large pictures and clips into models/media, to try `headrace process`
	@$(BIN)/python models/media.py

serve: models ## Start the demo and serve until Ctrl-C
	@exec $(BIN)/headrace up examples/demo.yaml

test: setup models redis perf-analyzer load-generators check-format lint types pytest pytest-interpreted ## Format check, lint, types and all tests

# RUNLEVEL keeps a package from starting its service.
install = { \
	  echo "installing $(1) for the tests"; \
	  sudo=$$([ "$$(id -u)" = 0 ] || echo sudo -n); \
	  { $$sudo timeout 60 apt-get update -qq && $$sudo env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
	    timeout 120 apt-get install -y -qq --no-install-recommends $(1); } >/dev/null 2>&1 \
	  || echo "it cannot be installed here: the tests that want it are skipped"; }

redis: # Some tests want a real one.
	@command -v redis-server >/dev/null || $(call install,redis-server)

perf-analyzer: # Its test wants a library that is in no wheel.
	@PATH="$$PATH:/sbin" ldconfig -p | grep -c 'libb64\.so\.0d' >/dev/null || $(call install,libb64-0d)

load-generators: # The benchmark's test wants both.
	@{ command -v wrk && command -v h2load; } >/dev/null || $(call install,wrk nghttp2-client)

check-format: setup
	@$(BIN)/ruff format --check $(CODE)

lint: setup ## Check the style of the code
	@$(BIN)/ruff check $(CODE)

types: setup ## Check the types
	@$(BIN)/mypy

pytest: setup
	@$(BIN)/python -m pytest

# What is compiled, once more as it runs where there is no compiler.
pytest-interpreted: setup
	@HEADRACE_COMPILED=0 $(BIN)/python -m pytest -q -m "not ray and not tensorflow" $(HOT_TESTS)

format: setup ## Format the code
	@$(BIN)/ruff format $(CODE)
	@$(BIN)/ruff check --fix $(CODE)

bench: setup models ## Measure beside other model servers for a few minutes (needs wrk and h2load)
	@$(BIN)/python -m loadtests.bench --quick $(ARGS)

bench-peers: setup models ## Measure beside all other model servers, in full: more than an hour
	@$(BIN)/python -m loadtests.bench $(ARGS)

loadtest: setup ## Load a started system with locust and write a report with plots
	@$(BIN)/python -m loadtests.users $(ARGS)

bench-tls: setup models ## Measure what TLS costs, in turns with plain connections (needs wrk)
	@$(BIN)/python -m loadtests.tls $(ARGS)

bench-reload: setup models ## Measure a new version of tagger under load
	@$(BIN)/python -m loadtests.reload $(ARGS)

bench-kills: setup models ## Kill every kind of process 20 times under load (15 minutes)
	@$(BIN)/python -m loadtests.kills $(ARGS)

soak: setup models redis ## Repeat a day in 20 minutes under load: nothing may fail (ARGS="--minutes 5 --seed 1")
	@$(BIN)/python -m loadtests.soak $(ARGS)

bench-limits: setup models ## Measure isolation from a flood
	@$(BIN)/python -m loadtests.limits.isolation $(ARGS)

bench-pool: setup models ## Simulate the shared pool; measure cold starts, a spike and a bursty day
	@$(BIN)/python -m loadtests.pool.simulation --hours 1 --growth
	@$(BIN)/python -m loadtests.pool $(ARGS)

bench-sharding: setup models ## Measure large pictures and videos over shards
	@$(BIN)/python -m loadtests.sharding $(ARGS)

loadtest-tiers: setup ## Load a started system with callers of all tiers: who got what
	@$(BIN)/python -m loadtests.limits.tiers $(ARGS)

fuzz: setup models ## Change valid inputs at random and check what comes of them (ARGS="--target http1 --seconds 600")
	@$(BIN)/python -m tests.fuzz $(ARGS)

protos: setup ## Compile headrace/protocols/proto/*.proto
	@cd headrace/protocols/proto && ../../../$(BIN)/python -m grpc_tools.protoc --proto_path=. --include_imports --descriptor_set_out=descriptors.binpb *.proto

lock: ## Compile lock/*.txt from pyproject.toml
	@deploy/lock.sh

image-check: ## Run the steps of the Dockerfile in a clean folder
	@deploy/image_check.sh

clean: ## Remove what was built, except downloaded sources
	@rm -rf $(VENV) build dist headrace/_compiled models/repository .mypy_cache .ruff_cache .pytest_cache
	@find $(PACKAGES) models loadtests tests -name __pycache__ -type d -prune -exec rm -rf {} +
