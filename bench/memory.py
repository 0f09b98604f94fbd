"""How near is the memory estimate of `--dry_run` to what a process takes?

    python bench/memory.py --quick   one run of each verb; a few minutes on 2 cores
    python bench/memory.py --full    all of them; writes bench/results/memory.json

Each row is one `crestline VERB` in a process of its own, on one thread of a CPU: the peak of the whole process
(VmHWM) beside the estimate of the same settings. Models have random weights, texts are made here; training stops
after two updates (three of PPO). A useless estimate, such as the median of all peaks, is printed beside: its ratios
are what an estimate must beat.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
PEAK = """
import sys
from crestline.cli.main import Command
from crestline.pipeline.memory import estimate
command = Command()
command.do(sys.argv[1:])
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(1024 * peak, estimate(command.config).total)
"""
SIZES: dict[str, dict[str, int]] = {
    "Llama 7M": {"vocab_size": 4096, "hidden_size": 256, "num_layers": 8, "intermediate_size": 704},
    "Llama 23M": {
        "vocab_size": 4096,
        "hidden_size": 512,
        "num_layers": 8,
        "intermediate_size": 1024,
    },
    "Llama 43M": {
        "vocab_size": 8192,
        "hidden_size": 512,
        "num_layers": 12,
        "intermediate_size": 1536,
    },
}
OTHERS = ("GPT-2 7M", "encoder 22M")
Case = tuple[str, str, str, str, dict[str, Any]]


def cases() -> list[Case]:
    """(verb, what the table says, model, data, flags)."""
    low = {"dtype": "bfloat16"}
    exact = {"dtype": "float32"}
    whole = {**exact, "batch_size": 32}
    rl = {**exact, "num_prompts": 8, "max_completion_length": 48, "num_updates": 2}
    rl |= {"num_eval_prompts": 80}
    judged = {"reward_model_name_or_path": "reward 7M"}
    best = {"num_generations": 16, "max_completion_length": 48, **judged}
    ppo = {**rl, "algorithm": "ppo", "num_updates": 3}
    return [
        ("pretrain", "defaults", "", "texts", {**exact, "num_updates": 2}),
        ("sft", "batch 32", "Llama 7M", "demonstrations", whole),
        ("sft", "adapters", "Llama 7M", "demonstrations", {**whole, "use_peft": True}),
        ("sft", "bfloat16", "Llama 7M", "demonstrations", {**whole, **low}),
        ("sft", "batch 32", "Llama 43M", "demonstrations", whole),
        (
            "sft",
            "checkpointed",
            "Llama 43M",
            "demonstrations",
            {**whole, "gradient_checkpointing": True},
        ),
        ("sft", "batch 32", "GPT-2 7M", "demonstrations", whole),
        ("rl", "8 × 8 of 48 tokens", "Llama 7M", "prompts", {**rl, **judged}),
        ("rl", "bfloat16", "Llama 7M", "prompts", {**rl, **judged, **low}),
        ("rl", "ppo", "Llama 7M", "prompts", {**ppo, **judged}),
        ("rl", "8 × 8 of 48 tokens", "Llama 43M", "prompts", {**rl, **judged}),
        ("rl", "adapters", "Llama 43M", "prompts", {**rl, **judged, "use_peft": True}),
        ("reward", "texts of 200 tokens", "encoder 22M", "long pairs", whole),
        ("reward", "the same, bfloat16", "encoder 22M", "long pairs", {**whole, **low}),
        ("reward", "texts of 200 tokens", "Llama 7M", "long pairs", whole),
        ("reward", "the same, bfloat16", "Llama 7M", "long pairs", {**whole, **low}),
        ("reward", "rankings of five", "Llama 7M", "fives", whole),
        ("reward", "the same, bfloat16", "Llama 7M", "fives", {**whole, **low}),
        ("dpo", "pairs", "Llama 7M", "pairs", whole),
        ("dpo", "adapters", "Llama 7M", "pairs", {**whole, "use_peft": True}),
        ("dpo", "bfloat16", "Llama 7M", "pairs", {**whole, **low}),
        ("dpo", "rankings of five", "Llama 7M", "fives", whole),
        ("dpo", "pairs", "Llama 43M", "pairs", whole),
        ("dpo", "checkpointed", "Llama 43M", "pairs", {**whole, "gradient_checkpointing": True}),
        ("dpo", "fives, micro-batch 8", "Llama 43M", "fives", {**whole, "micro_batch_size": 8}),
        ("dpo", "pairs", "GPT-2 7M", "pairs", whole),
        ("best-of-n", "20 × 16 of 48 tokens", "Llama 7M", "20 prompts", best),
        (
            "best-of-n",
            "20 × 64 of 128 tokens",
            "Llama 7M",
            "20 prompts",
            {**best, "num_generations": 64, "max_completion_length": 128},
        ),
        (
            "best-of-n",
            "transformers samples",
            "Llama 7M",
            "20 prompts",
            {**best, "sampler": "transformers"},
        ),
        ("best-of-n", "20 × 16 of 48 tokens", "GPT-2 7M", "20 prompts", best),
        ("best-of-n", "with a judge", "Llama 43M", "20 prompts", {**best, "judge": "reward 23M"}),
    ]


QUICK = (0, 1, 7, 16, 18, 26)


# ---- models and data -----------------------------------------------------------------------


def make(place: Path) -> None:
    """Models by name, and data: NAME.jsonl."""
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

    from crestline.models.load import new_llama, save_model
    from crestline.models.reward import new_reward_model
    from crestline.models.tokenizer import train_tokenizer

    texts = [f"Once there was a fox number {n} who liked apples and long walks." for n in range(96)]
    tokenizer = train_tokenizer(texts, 400)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    for name, size in SIZES.items():
        model = new_llama(max_position=512, num_heads=8, seed=0, **ids, **size)
        save_model(model, tokenizer, place / name)
    shape = {"vocab_size": 4096, "n_embd": 256, "n_layer": 8, "n_head": 8, "n_positions": 512}
    save_model(GPT2LMHeadModel(GPT2Config(**shape, **ids)), tokenizer, place / "GPT-2 7M")
    encoder = BertConfig(
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    save_model(BertForSequenceClassification(encoder), tokenizer, place / "encoder 22M")
    for name in ("7M", "23M"):
        judge = new_reward_model(place / f"Llama {name}", seed=0, max_length=512)
        judge.write(place / f"reward {name}")
    halves = [text.partition(" who") for text in texts]
    prompts = [{"prompt": first} for first, *_ in halves]
    shown = [{"prompt": a, "completion": (b + c) * 5} for a, b, c in halves]

    def ranked(count: int, times: int, rows: int) -> list[dict[str, Any]]:
        return [
            {
                "prompt": a,
                "completions": [
                    {"rank": k, "completion": f"{(b + c) * (times + (n + k) % 3)} {n} {k}"}
                    for k in range(count)
                ],
            }
            for n, (a, b, c) in enumerate(halves[:rows])
        ]

    data: dict[str, list[dict[str, Any]]] = {
        "texts": [{"text": text * 4} for text in texts],
        "prompts": prompts,
        "20 prompts": prompts[:20],
        "demonstrations": shown[:64],
        "pairs": ranked(2, 2, 64),
        "long pairs": ranked(2, 10, 80),
        "fives": ranked(5, 1, 80),
    }
    for name, rows in data.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (place / f"{name}.jsonl").write_text(lines)


def words_of(case: Case, place: Path, out: Path) -> list[str]:
    """The command line."""
    verb, _, model, data, flags = case
    given: dict[str, Any] = {"text" if verb == "pretrain" else "dataset_name": f"{data}.jsonl"}
    if model:
        given["model_name_or_path"] = model
    given["output_file" if verb == "best-of-n" else "output_dir"] = out
    if verb in ("sft", "reward", "dpo"):
        given["num_train_epochs"] = 1
    words = [verb]
    for name, value in {**given, **flags}.items():
        inside = place / str(value)
        words += [f"--{name}"] + (
            [] if value is True else [str(inside if inside.exists() else value)]
        )
    return [*words, "--num_threads", "1"]


def measured(case: Case, place: Path, number: int) -> dict[str, Any]:
    """Peak and estimate of one process, bytes."""
    out = place / f"out {number}{'.jsonl' if case[0] == 'best-of-n' else ''}"
    ended = subprocess.run(
        [sys.executable, "-c", PEAK, *words_of(case, place, out)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    if ended.returncode:
        sys.exit(f"{case[:3]} failed: {ended.stderr[-2000:]}")
    peak, estimate = map(int, ended.stdout.splitlines()[-1].split())
    return {
        "verb": case[0],
        "what": case[1],
        "model": case[2] or "1M, new",
        "peak": peak,
        "estimate": estimate,
        "ratio": round(estimate / peak, 3),
    }


# ---- what the figures say ------------------------------------------------------------------


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Ratios of the estimate, and those of the median peak in its place."""
    ratios = [row["ratio"] for row in rows]
    middle = statistics.median(row["peak"] for row in rows)
    useless = [middle / row["peak"] for row in rows]
    return {
        "runs": len(rows),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_lowest": min(ratios),
        "ratio_highest": max(ratios),
        "useless_lowest": round(min(useless), 3),
        "useless_highest": round(max(useless), 3),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    head = f"{'verb':10} {'what':24} {'model':12} {'estimate':>9} {'measured':>9} {'ratio':>6}"
    lines = [head, "-" * len(head)]
    for row in rows:
        sizes = [f"{row[name] / 1e9:6.2f} GB" for name in ("estimate", "peak")]
        lines.append(
            f"{row['verb']:10} {row['what']:24} {row['model']:12} {' '.join(sizes)} {row['ratio']:6.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--full", action="store_true")
    arguments = parser.parse_args()
    chosen = cases() if arguments.full else [cases()[n] for n in QUICK]
    with tempfile.TemporaryDirectory(prefix="crestline-memory-") as name:
        place = Path(name)
        make(place)
        rows = []
        for number, case in enumerate(chosen):
            rows.append(measured(case, place, number))
            print(
                f"{number + 1}/{len(chosen)} {table(rows[-1:]).splitlines()[-1]}", file=sys.stderr
            )
    figures = summary(rows)
    print(table(rows))
    print(
        f"estimate over peak: median {figures['ratio_median']:.2f}, "
        f"{figures['ratio_lowest']:.2f} to {figures['ratio_highest']:.2f}; the median peak for all would have "
        f"{figures['useless_lowest']:.2f} to {figures['useless_highest']:.2f}"
    )
    if arguments.full:
        sys.path.insert(0, str(BENCH))
        from demo import machine

        text = json.dumps({**figures, "rows": rows, "machine": machine()}, indent=1)
        (BENCH / "results" / "memory.json").write_text(text + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
