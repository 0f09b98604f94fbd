"""Score pairs with models as TRL's RewardTrainer opens them. Runs in `.venv-peers`.

    python trl_opens.py PAIRS.json MODEL [MODEL …]

PAIRS: {"chosen_ids": [...], "rejected_ids": [...]} for each model. Writes scores.jsonl in the current folder, a line
for each model: the scores of both sides and TRL's own accuracy on them.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")

import torch
from datasets import Dataset
from trl import RewardConfig, RewardTrainer


def main(pairs: Path, models: list[str]) -> None:
    rows, lines = json.loads(pairs.read_text()), []
    for model in models:
        with tempfile.TemporaryDirectory() as work:
            config = RewardConfig(
                output_dir=work, bf16=False, use_cpu=True, report_to="none", disable_tqdm=True
            )
            data = Dataset.from_dict(rows[model])
            trainer = RewardTrainer(model=model, args=config, train_dataset=data, eval_dataset=data)
            accuracy = trainer.evaluate()["eval_accuracy"]
            network = trainer.model.eval()
            with torch.no_grad():
                scores = {
                    side: [network(torch.tensor([ids])).logits.item() for ids in rows[model][side]]
                    for side in ("chosen_ids", "rejected_ids")
                }
        lines.append(json.dumps({"model": model, "accuracy": accuracy, **scores}) + "\n")
    Path("scores.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main(Path(sys.argv[1]), sys.argv[2:])
