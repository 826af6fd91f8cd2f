# Two environments: .venv-demo holds the light dependencies and what the demo shows itself with, .venv every
# framework and every tool. Each is made when first needed and brought up to date when pyproject.toml changes.

PYTHON ?= python3
JOBS   ?= 2
ARGS   ?=

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench clean

help: ## list the targets
	@awk -F ' ## ' '/^[a-z]+:.* ## / { sub(/:.*/, "", $$1); printf "make %-7s %s\n", $$1, $$2 }' Makefile
	@echo 'Options: ARGS="what the command is to be given"  PYTHON=python3.12  JOBS=4 (processes of make test)'

demo: .venv-demo/ready ## derive, explain, verify and train three losses on real data, in NumPy alone
	.venv-demo/bin/lossforge demo $(ARGS)

test: .venv/ready ## run every test, in every framework
	LOSSFORGE_REQUIRE_ALL=1 .venv/bin/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: .venv/ready ## check style, format, types and the floors of the design
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

format: .venv/ready ## format the code as lint wants it
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

bench: .venv/ready ## measure the losses against every installed framework
	.venv/bin/lossforge bench $(ARGS)

clean: ## remove the environments and the tools' caches
	rm -rf .venv .venv-demo .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist

# PyTorch goes in first and alone, as pyproject.toml pins it, so that no other package chooses another.
.venv/ready: pyproject.toml
	@$(call new-environment,.venv,every framework: some minutes)
	.venv/bin/python -m pip install --quiet $$(grep -o 'torch==[0-9.]*' pyproject.toml)
	.venv/bin/python -m pip install --quiet --editable '.[dev]'
	@touch $@

.venv-demo/ready: pyproject.toml
	@$(call new-environment,.venv-demo,the light dependencies: a minute or less)
	.venv-demo/bin/python -m pip install --quiet --editable '.[demo]'
	@touch $@

define new-environment
$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("lossforge needs Python 3.11 or newer, and \
$(PYTHON) is %d.%d: name another one, as in `make PYTHON=python3.12 ...`" % sys.version_info[:2])' && \
echo "Making $(1) ($(2))" && \
$(PYTHON) -m venv $(1)
endef
