"""A worker of bench/rl_step.py: TRL's GRPOTrainer. Runs in `.venv-peers`."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")

from cheap_reward import share_of_vowels
from datasets import Dataset
from pipe import Line
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl_reward import ARITHMETIC, Turns


def trainer(question: dict[str, Any], work: str) -> GRPOTrainer:
    """TRL's trainer on prompts. No activation checkpointing, no logging to services; k3 as GRPO has it."""
    arithmetic = dict(ARITHMETIC[question["arithmetic"]])
    arguments = {"attn_implementation": question["attention"]} | arithmetic.pop(
        "model_init_kwargs", {"dtype": "float32"}
    )
    rows = [json.loads(line) for line in Path(question["prompts"]).read_text().splitlines()]
    completions, per_device = question["num_completions"], question["per_device"]
    config = GRPOConfig(
        output_dir=work,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=completions // per_device,
        num_generations=question["num_generations"],
        max_completion_length=question["max_completion_length"],
        max_steps=10**6,
        beta=question["beta"],
        use_bias_correction_kl=False,
        learning_rate=question["learning_rate"],
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        model_init_kwargs=arguments,
        gradient_checkpointing=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=question["seed"],
        **arithmetic,
    )
    return GRPOTrainer(
        model=question["model"],
        reward_funcs=share_of_vowels,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(question["model"]),
    )


def main() -> None:
    line = Line()
    while (question := line.read()) is not None:
        with tempfile.TemporaryDirectory() as work:
            training = trainer(question, work)
            training.add_callback(Turns(line, question["clock"]))
            training.train()
        line.answer(stopped=True, num_tokens=training.state.num_input_tokens_seen)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()
