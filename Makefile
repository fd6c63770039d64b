# Slipstream's commands. Each does all its own set-up: a machine needs git, make and Python >= 3.11, nothing else.
#   PYTHON=/path/to/python3   the Python to make .venv from
#   SLIPSTREAM_TORCH=...      the torch to install ("torch==2.13.0+cpu"); else chosen by whether there is a GPU
#   ARGS="..."                handed to the program behind the target

SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin/python -m
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)

.PHONY: help setup demo test fuzz lint format worker bench bench-queue aot gpu-test gpu-bench-kernels gpu-bench-engine gpu-bench-transformers chaos lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## a worker, a queue and thirty seconds of jobs, live in the terminal; ends by itself
	@$(RUN) ops.demo $(ARGS)

test: $(READY) ## every test, against a real redis-server (ARGS="tests/tour -k cancel")
	@$(RUN) pytest --durations=10 --durations-min=3 $(ARGS)

fuzz: $(READY) ## 10,000 random schedules over the queue's scripts (ARGS="--first 17 --seeds 1" to see one again)
	@$(RUN) tests.producer.fuzz $(ARGS)

lint: $(READY) ## ruff's rules, ruff's format, mypy --strict; changes nothing
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy

format: $(READY) ## put the code into ruff's format and mend what ruff can
	@$(RUN) ruff check --fix .
	@$(RUN) ruff format .

worker: $(READY) ## one worker (ARGS="--model DIR --redis URL"; the demo model unless said)
	@SLIPSTREAM_MODEL=$${SLIPSTREAM_MODEL:-ops/demo/model} $(RUN) worker $(ARGS)

bench: $(READY) ## this engine against static batches, as a table and JSON
	@$(RUN) ops.bench $(ARGS)

bench-queue: $(READY) ## the queue layer by itself; ARGS="--peers" sets arq, saq, streaq, taskiq-redis and Celery beside it
	@$(RUN) ops.bench queue $(ARGS)

aot: $(READY) ## every Triton kernel compiled for four GPUs, without one, and its bounds checked
	@$(RUN) ops.aot $(ARGS)

gpu-test: ## on a GPU machine, with its own python3, torch, triton and pytest: the kernels on the device
	@PYTHONPATH=. $(or $(PYTHON),python3) -m pytest --noconftest -c /dev/null --rootdir . --import-mode=importlib -q tests/gpu $(ARGS)

gpu-bench-kernels: ## on a GPU machine, with its own python3: each kernel checked, then timed against the roofline
	@$(or $(PYTHON),python3) -m ops.bench kernels $(ARGS)

gpu-bench-engine: ## on a GPU machine, with its own python3: steps against the floor, and 256 requests, on random weights
	@$(or $(PYTHON),python3) -m ops.bench gpu_engine $(ARGS)

gpu-bench-transformers: ## the same 256 requests with transformers, in static batches and with its continuous batching
	@$(or $(PYTHON),python3) -m ops.bench gpu_engine --with transformers $(ARGS)

chaos: $(READY) ## workers, Redis and network killed, paused and cut under load; then an audit to the token (ARGS=--short)
	@$(RUN) ops.chaos $(ARGS)

setup: $(READY) ## only make .venv, which every other target does by itself
	@:

lock: $(READY) ## write requirements.lock anew from pyproject.toml (ARGS=2.13.0 for another torch)
	@$(RUN) ops.lock $(ARGS)

clean: ## remove .venv, caches and build output
	@rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, by setup.py, which also notices an interrupted run and a second one beside it.
$(READY): pyproject.toml requirements.lock ops/setup.py
	@for python in $(PYTHONS); do \
	    if $$python -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        exec $$python ops/setup.py $(VENV); \
	    fi; \
	done; \
	echo "setup: no Python >= 3.11 with venv among: $(PYTHONS) (Debian: apt install python3-venv; or make PYTHON=...)" >&2; \
	exit 1
