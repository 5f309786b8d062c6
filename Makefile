# Everything runs in .venv, which `make setup` makes and keeps up to date.
export HF_HUB_OFFLINE ?= 1
export MUJOCO_GL ?= egl
export OMP_WAIT_POLICY ?= PASSIVE
# Where this is set, importing torch takes three times as long, every time.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
ARGS ?=

.PHONY: help setup test check format quickstart pins

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv, or bring it up to date
	@scripts/setup.sh

test: setup ## run the tests (make test ARGS="-k critic")
	@scripts/test-tools.sh
	@$(BIN)/python -m pytest $(ARGS)

check: setup ## lint, formatting, types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

format: setup ## let ruff repair what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

quickstart: setup ## run ALOE's smallest complete loop and write its report
	@$(BIN)/aloe run --preset quickstart

pins: ## after a change of dependencies: write requirements.txt anew (needs uv)
	uv pip compile pyproject.toml --quiet --extra dev --generate-hashes --no-annotate \
		--python-version 3.12 --python-platform x86_64-manylinux_2_28 \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make pins" --output-file requirements.txt
