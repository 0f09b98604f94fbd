"""Score pairs with RewardBench itself. Runs in `.venv-rewardbench`.

    python rewardbench_scores.py PAIRS.jsonl TEMPLATE MODEL [MODEL …]

PAIRS: RewardBench's file format. TEMPLATE: the name of a chat template of FastChat, or "own" for the tokenizer's.
Works in the current folder, where the models lie; RewardBench writes results/MODEL_outputs.jsonl there.
"""

from __future__ import annotations

import logging
import sys

import torch
from rewardbench.rewardbench import Args, rewardbench
from transformers import BatchEncoding


def main(pairs: str, template: str, models: list[str]) -> None:
    if not torch.cuda.is_available():
        # The pipeline names "cuda" outright; here its inputs stay where the model is.
        BatchEncoding.to = lambda self, *where, **how: self
    for model in models:
        rewardbench(
            Args(
                model=model,
                dataset=pairs,
                load_json=True,
                chat_template=None if template == "own" else template,
                not_quantized=True,
                torch_dtype="float32",
                batch_size=1,
            )
        )


if __name__ == "__main__":
    logging.disable(logging.INFO)
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
