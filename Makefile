PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo smoke test check clean

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/crestline run --preset demo --output_dir runs/demo

smoke: setup
	$(BIN)/crestline run --preset smoke --output_dir runs/smoke

check: setup
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench
	$(BIN)/mypy src

test: check
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) runs
