"""A worker of bench/reward_throughput.py and bench/reward_quality.py: TRL's RewardTrainer. Runs in `.venv-peers`."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")

from datasets import Dataset
from pipe import Line, memory_mb, turns
from transformers import AutoTokenizer, TrainerCallback
from trl import RewardConfig, RewardTrainer

ARITHMETIC: dict[str, dict[str, Any]] = {
    "float32": {"bf16": False},
    "bfloat16 autocast": {"bf16": True},
    "bfloat16 weights": {"bf16": False, "model_init_kwargs": {"dtype": "bfloat16"}},
}


def trainer(question: dict[str, Any], work: str) -> RewardTrainer:
    """TRL's trainer on encoded pairs, in the order given. No activation checkpointing, no logging to services."""
    arithmetic = dict(ARITHMETIC[question["arithmetic"]])
    arguments = {"attn_implementation": question["attention"]} | arithmetic.pop(
        "model_init_kwargs", {}
    )
    rows = json.loads(Path(question["rows"]).read_text())
    per_device = question["per_device"]
    schedule = ("learning_rate", "lr_scheduler_type", "warmup_steps", "max_length", "seed")
    config = RewardConfig(
        output_dir=work,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=question["pairs_per_update"] // per_device,
        num_train_epochs=1.0,
        adam_beta2=0.95,
        train_sampling_strategy="sequential",
        model_init_kwargs=arguments,
        gradient_checkpointing=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **{name: question[name] for name in schedule},
        **arithmetic,
    )
    return RewardTrainer(
        model=question["model"],
        args=config,
        train_dataset=Dataset.from_dict(rows),
        processing_class=AutoTokenizer.from_pretrained(question["model"]),
    )


class Turns(TrainerCallback):
    """Waits for the next question after every update."""

    def __init__(self, line: Line, clock: str) -> None:
        self.line, self.turn = line, turns(line, clock)

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.line.answer(memory_mb=memory_mb(), num_updates=state.max_steps)
        self.turn()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if not self.turn():
            control.should_training_stop = True


def main() -> None:
    """open: train, held after every update. train: train to the end and save_to a folder."""
    line = Line()
    while (question := line.read()) is not None:
        with tempfile.TemporaryDirectory() as work:
            training = trainer(question, work)
            if question["do"] == "open":
                training.add_callback(Turns(line, question["clock"]))
            training.train()
            if question["do"] == "train":
                training.save_model(question["save_to"])
        line.answer(stopped=True, num_tokens=training._total_train_tokens)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()
