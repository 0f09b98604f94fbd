"""How fast is reward-model training, beside TRL's RewardTrainer at its best?

    python bench/reward_throughput.py --quick    MiniLM alone; under 10 minutes on 2 idle cores
    python bench/reward_throughput.py --full     both, more turns; writes bench/results/reward_throughput.json

HH helpful-base rows at their real lengths (texts above 512 tokens are left out: TRL drops them), on the MiniLM encoder
and a random Llama of 7M weights. Pairs: the same pairs in every update on both sides. Rankings: five completions a
prompt, ours as one ranking, TRL's as its ten pairs; completions 3 to 5 are drawn from other rows, for their lengths.

TRL first gets its best settings of this machine: float32, bfloat16 autocast or bfloat16 weights, several
per-device batches, sdpa or eager attention; no activation checkpointing, tokens ready-made. Both sides then train in
processes of their own, in turns, on the same rows; only one computes at a time. Ours is the verb `crestline reward`
itself. The first updates are dropped; medians and quartiles of the ratios of neighbouring turns.

    --clock processor --threads 1    processor time in place of seconds, where others use the machine too
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crestline.data.rankings import read_rankings
from crestline.data.splits import canonical_prompt
from crestline.models.load import load_tokenizer
from crestline.training.seeds import Shuffled
from demo import machine
from peers.conversations import (
    MINILM,
    PEERS,
    SHARED,
    fitting,
    helpful,
    llama_7m,
    of_five,
    require,
    write_pairs,
    write_rankings,
)
from peers.pipe import CLOCKS
from peers.side_by_side import Plan, Settings, Side, fastest, in_turns, told_settings, trl_side

BENCH = Path(__file__).resolve().parent
ARITHMETIC = ("float32", "bfloat16 autocast", "bfloat16 weights")
MAX_LENGTH, LEARNING_RATE, SEED, NUM_HELD_OUT = 512, 1e-4, 0, 8


@dataclass(frozen=True)
class Task:
    """One thing to train: its files, and how many rankings an update has."""

    backbone: str
    kind: str
    model: Path
    rankings: Path
    held_out: Path
    pairs: Path
    batch_size: int
    pairs_per_ranking: int


def tasks_of(backbone: str, folder: Path, work: Path, sizes: dict[str, int]) -> list[Task]:
    """Pairs and rankings of five, written for both sides; TRL's rows lie in the order that ours are drawn in."""
    tokenizer = load_tokenizer(folder)
    rows = helpful()
    kinds = {"pairs": [(p, [a, b]) for p, a, b in rows], "rankings": of_five(rows, SEED)}
    tasks = []
    for kind, rankings in kinds.items():
        stem = work / f"{backbone}_{kind}"
        write_rankings(stem.with_suffix(".jsonl"), fitting(tokenizer, rankings, MAX_LENGTH))
        read = read_rankings(str(stem.with_suffix(".jsonl")))
        readable = [(str(ranking.prompt), list(ranking.completions)) for ranking in read]
        held = readable[
            :NUM_HELD_OUT
        ]  # what is measured on teaches nothing: neither side may see it
        asked = {canonical_prompt(prompt) for prompt, _ in held}
        kept = [row for row in readable if canonical_prompt(row[0]) not in asked]
        write_rankings(stem.with_suffix(".jsonl"), kept)
        order = Shuffled(len(kept), SEED).rows(0, len(kept))
        task = Task(
            backbone=backbone,
            kind=kind,
            model=folder,
            rankings=stem.with_suffix(".jsonl"),
            held_out=write_rankings(work / f"{backbone}_{kind}_held.jsonl", held),
            pairs=stem.with_suffix(".json"),
            batch_size=sizes[kind],
            pairs_per_ranking=len(kept[0][1]) * (len(kept[0][1]) - 1) // 2,
        )
        write_pairs(task.pairs, [kept[n] for n in order], tokenizer)
        print(
            f"{backbone}: {len(kept)} of {len(rankings)} {kind} are used, of at most {MAX_LENGTH} tokens"
        )
        tasks.append(task)
    return tasks


def trl_question(task: Task) -> Settings:
    return {
        "model": str(task.model),
        "rows": str(task.pairs),
        "pairs_per_update": task.batch_size * task.pairs_per_ranking,
        "max_length": MAX_LENGTH,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "seed": SEED,
    }


def best_of_trl(task: Task, plan: Plan, known: Settings) -> Settings:
    """TRL's fastest settings for a task: arithmetic, then attention, then how many pairs go through together.

    known: settings found on the same backbone, of which only the number of pairs is sought anew.
    """
    whole = task.batch_size * task.pairs_per_ranking
    sizes = [size for size in (whole, whole // 2, 8, 4, 2, 1) if whole % size == 0]
    sizes = [size for size in sizes if size <= 4] if known else sizes
    first = [known] if known else [{"arithmetic": a, "attention": "sdpa"} for a in ARITHMETIC]
    return fastest(
        "trl_reward.py",
        plan,
        trl_question(task),
        [
            lambda best: [{**settings, "per_device": 4} for settings in first],
            lambda best: [] if known else [{**best, "attention": "eager"}],
            lambda best: [{**best, "per_device": size} for size in sizes],
        ],
    )


def compared(task: Task, settings: Settings, plan: Plan, dtype: str) -> dict[str, Any]:
    """Both sides in turns on the same rows."""
    ours = Side("ours", Path(sys.executable), "our_reward.py", plan)
    trl = trl_side("trl_reward.py", plan)
    ours.open(
        {
            "model": str(task.model),
            "rankings": str(task.rankings),
            "held_out": str(task.held_out),
            "batch_size": task.batch_size,
            "max_length": MAX_LENGTH,
            "learning_rate": LEARNING_RATE,
            "dtype": dtype,
        }
    )
    trl.open({**trl_question(task), **settings})
    trl.steps(1)  # ours has made its first update when it answers
    found = in_turns(ours, trl, plan)
    ended = found.pop("ended")
    if task.kind == "pairs" and ended["ours"]["num_tokens"] != ended["trl"]["num_tokens"]:
        raise RuntimeError(f"the two sides saw other rows: {ended}")
    encoded = ended["ours"]["num_encoded_tokens"] / ended["trl"]["num_tokens"]
    return {
        **found,
        "ratio_per_token": round(found["ratio"] * encoded, 3),
        "encoded_tokens_share": round(encoded, 4),
        "rankings_per_update": task.batch_size,
        "trl_settings": settings,
    }


def summary(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures of the issue: the least over backbones, and each backbone's own."""
    pairs = [row["pairs"] for row in found.values()]
    rankings = [row["rankings"] for row in found.values()]
    both = [*pairs, *rankings]
    return {
        "pairs_vs_trl": min(row["ratio"] for row in pairs),
        "rankings_vs_trl": min(row["ratio"] for row in rankings),
        "rankings_vs_trl_per_token": min(row["ratio_per_token"] for row in rankings),
        "memory_vs_trl": round(max(row["our_peak_mb"] / row["trl_peak_mb"] for row in both), 3),
        **{
            f"{name}_{backbone}": row[kind][key]
            for backbone, row in found.items()
            for name, kind, key in (
                ("pairs_vs_trl", "pairs", "ratio"),
                ("rankings_vs_trl", "rankings", "ratio"),
                ("rankings_vs_trl_per_token", "rankings", "ratio_per_token"),
            )
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--dtype", default="auto", help="our arithmetic, as --dtype of the verb")
    parser.add_argument("--trl", default="", help="arithmetic,attention: TRL's best, found before")
    parser.add_argument("--backbones", default="", help="minilm,llama_7m: one of them or both")
    options = parser.parse_args()
    backbones = options.backbones or ("minilm,llama_7m" if options.full else "minilm")
    require(PEERS / ".done", MINILM, SHARED / "hh-rlhf" / "helpful-base" / "test.jsonl.gz")
    turns, steps = (9, 2) if options.full else (5, 2)
    plan = Plan(
        threads=options.threads,
        clock=options.clock,
        dropped=3 if options.full else 2,
        turns=turns,
        steps=steps,
        search_steps=3 if options.full else 2,
    )
    sizes = {"pairs": 16, "rankings": 4}
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for backbone in backbones.split(","):
            model = MINILM if backbone == "minilm" else llama_7m(work / "llama_7m")
            found[backbone] = {}
            known: Settings = told_settings(options.trl, "arithmetic", "attention")
            for task in tasks_of(backbone, model, work, sizes):
                settings = best_of_trl(task, plan, known)
                known = {name: settings[name] for name in ("arithmetic", "attention")}
                row = found[backbone][task.kind] = compared(task, settings, plan, options.dtype)
                print(
                    f"{backbone} {task.kind}: ours {row['our_seconds']:.2f} s, TRL {row['trl_seconds']:.2f} s an "
                    f"update of {task.batch_size}: {row['ratio']:.2f} times ({row['ratio_quartiles'][0]:.2f} to "
                    f"{row['ratio_quartiles'][1]:.2f}), {row['ratio_per_token']:.2f} per encoded token; "
                    f"{row['our_peak_mb']} MB against {row['trl_peak_mb']}",
                    flush=True,
                )
    figures = {**summary(found), "machine": machine(), "threads": options.threads}
    figures["clock"] = options.clock
    if options.full:
        results = BENCH / "results" / "reward_throughput.json"
        results.write_text(json.dumps({**figures, "backbones": found}, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
