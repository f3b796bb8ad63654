# VENV=/path shares one environment between checkouts (it takes about 6 GB); PYTHON chooses what it is made with.
VENV ?= .venv
PYTHON ?= python3
SHELL := /bin/bash
bin := $(VENV)/bin
# TORCH="torch==2.9.1 torchvision==0.24.1": this torch instead of the pinned one; TORCH=keep: the one that VENV has. The
# environment remembers it; TORCH= is the pinned one again. Where it comes from is pip's business (PIP_EXTRA_INDEX_URL).
TORCH ?= $(shell cat $(VENV)/.torch 2>/dev/null)
# CONSTRAINTS=FILE: these versions instead of the pinned ones.
CONSTRAINTS ?= constraints.txt
of_torch := ^(torch|torchvision|triton)==# triton: every torch wants a version of its own
scripts := submit.sh $(wildcard slurm/*.sh) .ci/run benchmarks/run_gpu.sh $(wildcard tests/*/*.sh)

# An environment is up to date when it holds the stamp of what the lists of packages say now.
stamp = $(VENV)/.$(1)-$(shell (cat requirements.txt $(2) $(CONSTRAINTS); printf %s '$(TORCH)') | cksum | cut -d ' ' -f 1)
installed := $(call stamp,installed)
installed_test := $(call stamp,installed-test,requirements-test.txt)

.DEFAULT_GOAL := help
.PHONY: help install demo tensorboard test test-docs test-slurm test-versions soak mutants lint format clean-venv

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(installed) ## make the environment (VENV, default .venv) and install what training needs

demo: $(installed) ## train the tiny preset on the embedded data, on whatever device there is: minutes; ARGS="--device cpu"
	$(bin)/python train.py --preset tiny --data glyphs --run-name demo $(ARGS)

tensorboard: $(installed) ## every run's curves, pictures, weights and settings, in a browser
	$(bin)/tensorboard --logdir logs/tensorboard

test: $(installed_test) ## the test suite; ARGS="-k data -x" goes to pytest
	$(bin)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-docs: $(installed_test) ## type every command of README and docs in a fresh copy of the project: minutes
	TYPE_DOCS=1 $(bin)/python -m pytest tests/project/test_docs_run.py $(ARGS)

soak: $(installed_test) ## random runs under random faults for MINUTES (10); ARGS="--seed=7": one round again
	$(bin)/python -m benchmarks.faults.soak --minutes $(or $(MINUTES),10) $(ARGS)

test-slurm: $(installed_test) ## submit.sh on a real Slurm that this sets up (root, Debian or Ubuntu): minutes
	tests/slurm/cluster.sh $(bin)/python -m pytest tests/slurm $(ARGS)

VENVS ?= .venvs
test-versions: ## a part of the suite with the oldest, the users' and the newest versions; SETS=oldest, VENVS=folder for them
	$(PYTHON) -m tests.versions.sets --folder $(VENVS) $(SETS)

mutants: $(installed_test) ## how many small changes to the code the tests notice: many minutes; ARGS="seeding scores": those modules
	$(bin)/python -m pip install -q cosmic-ray==8.7.0 -c constraints.txt
	$(bin)/python -m tests.mutants $(ARGS)

lint: $(installed_test) ## ruff and shellcheck
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/shellcheck $(scripts)

format: $(installed_test) ## let ruff fix and format the code
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

clean-venv: ## delete .venv (an environment elsewhere is yours to delete)
	rm -rf .venv

$(bin)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)

# $(call pip_install,FILE): what FILE asks for, in the pinned versions; of torch in that of TORCH.
define pip_install
	rm -f $(VENV)/.installed*
	grep -Ev '$(if $(TORCH),$(of_torch),^$$)' $(CONSTRAINTS) >$(VENV)/constraints.txt
	$(if $(filter keep,$(TORCH)),$(bin)/python -m pip list --format=freeze | grep -E '$(of_torch)' \
		>>$(VENV)/constraints.txt || { echo "TORCH=keep: $(VENV) has no torch to keep" >&2; exit 2; })
	$(bin)/python -m pip install $(filter-out keep,$(TORCH)) -r $(1) -c $(VENV)/constraints.txt
	printf %s '$(TORCH)' >$(VENV)/.torch
endef

$(installed): | $(bin)/python
	$(call pip_install,requirements.txt)
	touch $@

$(installed_test): | $(bin)/python
	$(call pip_install,requirements-test.txt)
	touch $(installed) $@
