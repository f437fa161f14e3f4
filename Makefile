# Everything runs in .venv, which `make setup` builds from the compiled lock with plain pip.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.recollect-stamp

.PHONY: setup fmt check test torture bench demo lock clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml scripts/setup
	@PYTHON="$(PYTHON)" scripts/setup
	@touch $@

fmt: setup
	@$(BIN)/ruff check -q --fix src tests benchmarks
	@$(BIN)/ruff format -q src tests benchmarks

check: setup
	@BIN=$(BIN) scripts/check

test: setup
	@$(BIN)/python -m pytest -m "not torture"

torture: setup
	@$(BIN)/python -m pytest -m torture --timeout 7200 -s

bench: setup
	@$(BIN)/pip install -q -r benchmarks/requirements.lock
	@$(BIN)/python benchmarks/run.py

demo: setup
	@$(BIN)/recollect demo

lock: setup
	@$(BIN)/uv pip compile -q --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-annotate \
		--no-header --all-extras --group dev pyproject.toml -o requirements.lock

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
