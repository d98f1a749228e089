# On a fresh machine two commands are enough: `make demo` and `make test`. `make` alone lists all of them.
#
# PYTHON       Python 3.11 or newer, used to make the environment.
# TORCH_INDEX  Further package index to take torch from. Set it to PyTorch's CPU wheel index on a Linux machine without
#              GPU: otherwise the default build is installed, with gigabytes of GPU libraries. The environment variable
#              PIP_EXTRA_INDEX_URL does the same. Not needed on macOS, or where pip already finds a CPU build.
# PIP_FLAGS    Added to every `pip install`.
# PYTEST_FLAGS Added to every pytest call, for example PYTEST_FLAGS='-x -k processor'.
# MUTANT_FLAGS Of `make mutants`, for example MUTANT_FLAGS='--only anyres --jobs 4'.
# BENCH_FLAGS  Of `make bench`: a quick run of everything by default; empty for all rounds and systems.
# VENV, CONSTRAINTS  The environment to work in, and the file of pinned versions it is filled from.

PYTHON ?= python3
TORCH_INDEX ?=
PIP_FLAGS ?=
PYTEST_FLAGS ?=
MUTANT_FLAGS ?=
BENCH_FLAGS ?= --quick
BENCH_RESULTS ?= outputs/benchmark.json
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
TINY_RUN ?= outputs/tiny
TINY_QUESTIONS ?= 1000

BIN := $(VENV)/bin
WHEEL_VENV := .venv-wheel

# `$(call install,VENV,WHAT)`, tried three times because a large download is easily cut off. The pins hold for the build
# backend too; older and newer versions of pip read that from different variables.
install = for attempt in 1 2 3; do \
	PIP_CONSTRAINT=$(CONSTRAINTS) PIP_BUILD_CONSTRAINT=$(CONSTRAINTS) PIP_DISABLE_PIP_VERSION_CHECK=1 \
	$(1)/bin/python -m pip install --quiet $(PIP_FLAGS) $(2) && break; \
	[ $$attempt -lt 3 ] || exit 1; echo "Trying again in 10 seconds."; sleep 10; done
# Alone and first, so that nothing else decides which build of torch is installed.
torch = torch $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
create = $(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, not %d.%d: set PYTHON." % sys.version_info[:2] \
	if sys.version_info < (3, 11) else 0)' && $(PYTHON) -m venv $(1)

.PHONY: help demo test test-slow test-oldest test-newest test-host test-hosts test-host-suite test-eval test-wheel \
	mutants unit lint types format tiny-train tiny-eval bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.base ## Have the packaged small model answer questions about pictures (writes demo-output/)
	@$(BIN)/xgen-mm demo --output demo-output/

test: lint types unit ## Check style and types, run the tests

unit: $(VENV)/.dev ## Run the tests only
	@echo "pytest"
	@$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-slow: $(VENV)/.dev ## Run the tests that take minutes
	@$(BIN)/python -m pytest -m slow --timeout 1800 $(PYTEST_FLAGS)

test-oldest: ## Run the tests on the oldest supported transformers, in .venv-oldest
	@$(MAKE) unit VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

test-newest: ## Run the tests without any pins, on what the package index has today, in .venv-newest
	@rm -rf .venv-newest
	@$(MAKE) unit VENV=.venv-newest CONSTRAINTS=/dev/null

# The gate of a merge runs this when there is a newer transformers than the pinned one. Everything that does not belong to
# transformers stays pinned, so that a failure is the host's and torch stays the build that is there.
test-host: ## Run the demo and the core tests on the newest transformers, the rest pinned, in .venv-host
	@rm -rf .venv-host && mkdir -p outputs
	@grep -vE '^(transformers|tokenizers|huggingface_hub)==' constraints.txt > outputs/constraints-host.txt
	@$(MAKE) .venv-host/.dev VENV=.venv-host CONSTRAINTS=outputs/constraints-host.txt
	@$(MAKE) demo VENV=.venv-host CONSTRAINTS=outputs/constraints-host.txt
	@.venv-host/bin/python -m pytest $(PYTEST_FLAGS) tests/test_auto.py tests/test_compatibility.py tests/loading \
		tests/modeling tests/processing tests/generation \
		--deselect tests/test_compatibility.py::test_tested_versions_are_those_that_are_pinned_and_declared

test-hosts: $(VENV)/.dev ## Exchange checkpoints between the pinned and the oldest supported transformers
	@$(MAKE) .venv-oldest/.dev VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt
	@XGEN_MM_OTHER_PYTHONS=$(CURDIR)/.venv-oldest/bin/python $(BIN)/python -m pytest $(PYTEST_FLAGS) -m slow tests/test_across_hosts.py

# Its source release has the tests; the two mixins it lacks are replaced by empty ones.
HOST_SUITE := outputs/host-suite
test-host-suite: $(VENV)/.dev ## Run transformers' own common model tests on our classes
	@rm -rf $(HOST_SUITE) && mkdir -p $(HOST_SUITE)
	@$(BIN)/python -m pip install --quiet --target $(HOST_SUITE)/packages parameterized
	@$(BIN)/python -m pip download --quiet --no-deps --no-binary transformers --dest $(HOST_SUITE) \
		transformers==$$($(BIN)/python -c 'import transformers; print(transformers.__version__)')
	@tar -xzf $(HOST_SUITE)/transformers-*.tar.gz -C $(HOST_SUITE) --strip-components 1
	@cd $(HOST_SUITE)/tests && mkdir -p exporters generation models/xgenmm && \
		touch __init__.py exporters/__init__.py generation/__init__.py models/__init__.py models/xgenmm/__init__.py && \
		echo 'class ExportTesterMixin: pass' > exporters/test_export.py && \
		echo 'class GenerationTesterMixin: pass' > generation/test_utils.py && \
		cp $(CURDIR)/tests/host_suite/suite_modeling.py models/xgenmm/test_modeling_xgenmm.py
	@cd $(HOST_SUITE) && PYTHONPATH=packages $(abspath $(BIN))/python -m pytest -q $(PYTEST_FLAGS) tests/models/xgenmm

test-eval: ## Run the tests of the evaluation harnesses beside lmms-eval, in .venv-eval
	@$(MAKE) .venv-eval/.harness VENV=.venv-eval CONSTRAINTS=constraints-eval.txt
	@.venv-eval/bin/python -m pytest $(PYTEST_FLAGS) tests/evaluation/harness

test-wheel: ## Build the wheel and run the tests against it, in .venv-wheel
	@echo "Building the wheel"
	@rm -rf $(WHEEL_VENV) dist
	@$(call create,$(WHEEL_VENV))
	@$(call install,$(WHEEL_VENV),$(torch))
	@PIP_BUILD_CONSTRAINT=$(CONSTRAINTS) $(WHEEL_VENV)/bin/python -m pip wheel --quiet --no-deps $(PIP_FLAGS) --wheel-dir dist .
	@wheel=$$(ls dist/*.whl) && $(call install,$(WHEEL_VENV),"$$wheel[train$(comma)dev]")
	@$(WHEEL_VENV)/bin/python -m pytest $(PYTEST_FLAGS) tests

mutants: $(VENV)/.dev ## Put small faults into copies of the source and count those that the tests notice
	@$(BIN)/python -m tests.mutants.run $(MUTANT_FLAGS)

lint: $(VENV)/.dev ## Check style, format and spelling
	@echo "ruff, codespell"
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/codespell

types: $(VENV)/.dev ## Check types
	@echo "mypy"
	@$(BIN)/mypy

format: $(VENV)/.dev ## Format the code and repair what ruff can repair
	@$(BIN)/ruff check --fix-only
	@$(BIN)/ruff format

tiny-train: $(VENV)/.dev ## Train the packaged small model again, into outputs/tiny (more than an hour on two cores)
	@$(BIN)/torchrun --nproc_per_node 2 -m xgen_mm.tiny.train --stage tower --output $(TINY_RUN)
	@$(BIN)/torchrun --nproc_per_node 2 -m xgen_mm.tiny.train --stage joint --output $(TINY_RUN)
	@$(BIN)/python -m xgen_mm.tiny.export --run $(TINY_RUN) --to $(TINY_RUN)/checkpoint

tiny-eval: $(VENV)/.base ## Score the packaged small model on digits it has never seen
	@$(BIN)/python -m xgen_mm.tiny.evaluate --n $(TINY_QUESTIONS)

bench: $(VENV)/.base ## Measure speed and memory against the bare parts, print which goals are met
	@$(BIN)/python -m benchmarks.suite --json $(BENCH_RESULTS) $(BENCH_FLAGS)

clean: ## Remove environments, caches and built files (keeps outputs/ and .data/)
	rm -rf .venv .venv-* .mypy_cache .pytest_cache .ruff_cache build dist demo-output
	find src tests -name __pycache__ -prune -exec rm -rf {} +

# A comma in an argument of `call` has to be hidden.
comma := ,

$(VENV)/.created:
	@echo "Creating $(VENV)"
	@$(call create,$(VENV))
	@touch $@

$(VENV)/.base: pyproject.toml $(CONSTRAINTS) | $(VENV)/.created
	@echo "Installing torch into $(VENV) (about 200 MB for the CPU build)"
	@$(call install,$(VENV),$(torch))
	@echo "Installing xgen-mm into $(VENV)"
	@$(call install,$(VENV),--editable .)
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "Installing the tools for training and tests into $(VENV)"
	@$(call install,$(VENV),--editable '.[train$(comma)dev]')
	@touch $@

# torchvision comes along with lmms-eval, and nothing here needs it. Built for GPUs, as the package index has it, it
# breaks the import of every model beside a CPU build of torch. timm needs it, and `accelerate launch` imports timm.
$(VENV)/.harness: $(VENV)/.dev
	@echo "Installing lmms-eval into $(VENV)"
	@$(call install,$(VENV),--editable '.[train$(comma)dev$(comma)eval]')
	@$(BIN)/python -m pip uninstall --quiet --yes torchvision timm
	@touch $@
