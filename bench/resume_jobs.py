"""What bench/resume.py kills: every verb that trains or samples, and the ways through them that keep a state.

Each is the command that a user would type, so small that it takes some seconds, with checkpoints often enough that
kills fall before, between and after them. All begin from the models and files of one run of the smoke preset.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

OUT = "out"
"""The folder that a job writes to, below the one in which it is started."""
REWARD_FUNCTION = '''
def brevity(prompts, completions, **columns):
    """Short answers, and each distinct word."""
    texts = [answer if isinstance(answer, str) else answer[0]["content"] for answer in completions]
    return [len(set(text.split())) - 0.1 * len(text) for text in texts]
'''


@dataclass(frozen=True)
class Job:
    """program: what follows `python`; it writes below out/, in the folder where it is started."""

    name: str
    program: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        return [sys.executable, *self.program]


def command(name: str, words: str) -> Job:
    return Job(name, ("-m", "crestline", *words.split()))


RUN = command("run", f"run --preset smoke --output_dir {OUT}")
"""The whole loop: what it leaves is what the others begin from."""


def jobs(smoke: Path, verbs: frozenset[str]) -> list[Job]:
    """All jobs, RUN first. smoke: the folder of that run; it may not be there yet. verbs: those that crestline has."""
    policy, rankings = f"{smoke}/sft/model", f"{smoke}/rankings.jsonl"
    data, function = f"{smoke}/data", smoke.parent / "rewards.py"
    training = f"--output_dir {OUT} --dtype float32"
    rl = (
        f"rl {training} --model_name_or_path {policy} --dataset_name {data}/prompts.jsonl --num_updates 18 "
        f"--eval_dataset_name {data}/heldout_prompts.jsonl --num_prompts 4 --num_generations 4 "
        "--max_completion_length 16 --num_eval_prompts 16 --distance_step 0.1 --save_updates 3"
    )
    learned = f"{rl} --reward_model_name_or_path {smoke}/reward/model"
    whole = f"{learned} --learning_rate 3e-4"
    twice = "--num_iterations 2 --num_mini_batches 2"
    reward = (
        f"reward {training} --model_name_or_path {policy} --dataset_name {rankings} --batch_size 8 "
        "--num_train_epochs 3 --eval_fraction 0.3 --save_updates 3"
    )
    sft = (
        f"sft {training} --model_name_or_path {smoke}/pretrain/model --dataset_name {data}/demonstrations.jsonl "
        "--num_train_epochs 1 --batch_size 16 --save_updates 4"
    )
    choice = f"--model_name_or_path {policy} --dataset_name {data}/demonstrations.jsonl --max_completion_length 16"
    found = [
        RUN,
        command("rloo", f"{whole} --algorithm rloo --report_to tensorboard"),
        command("grpo", f"{whole} --algorithm grpo {twice} --beta 0.05 --kl_estimator k3"),
        command("grpo-exact", f"{whole} --algorithm grpo --beta 0.05 --kl_estimator exact --kl_target 0.5"),
        command("ppo", f"{whole} --algorithm ppo {twice} --beta 0.05 --kl_target 0.5"),
        command("reinforce", f"{whole} --algorithm reinforce --baseline group --max_distance 1.2"),
        command("par", f"{whole} --reward_shaping par --normalize_rewards --beta 0.02 --kl_estimator exact"),
        command("rl-lora", f"{learned} --use_peft --lora_r 4 --learning_rate 1e-2"),
        command("function", f"{rl} --learning_rate 3e-4 --reward_funcs {function}:brevity"),
        command("reward-heads", f"{reward} --num_members 4"),
        command("reward-models", f"{reward} --num_members 2 --members models"),
        command("reward-lora", f"{reward} --use_peft --lora_r 4 --lora_dropout 0.1"),
        command("sft", sft),
        command("sft-lora", f"{sft} --use_peft --lora_r 4 --lora_dropout 0.1"),
        command(
            "pretrain",
            f"pretrain {training} --text {data}/texts.jsonl --vocab_size 400 --hidden_size 32 --num_layers 2 "
            "--num_heads 2 --num_updates 24 --batch_size 16 --save_updates 5",
        ),
        command("dpo", f"dpo {training} --model_name_or_path {policy} --dataset_name {rankings} --batch_size 4 "
                "--num_train_epochs 2 --eval_fraction 0.3 --save_updates 3 --learning_rate 1e-3"),
        command("sample", f"sample {choice} --output_file {OUT}/samples.jsonl"),
        command(
            "best-of-n",
            f"best-of-n {choice} --reward_model_name_or_path {smoke}/reward/model --num_generations 4 "
            f"--output_file {OUT}/best.jsonl",
        ),
    ]  # fmt: skip
    return [job for job in found if job.program[2] in verbs]
