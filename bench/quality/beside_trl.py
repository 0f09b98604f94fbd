"""A reward model of ours and one of TRL from the same weights, rows, order and schedule, on held-out answers."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, count
from pathlib import Path
from typing import Any

import numpy as np

from crestline.data.rankings import rankings_as_rows, read_rankings
from crestline.models.load import load_tokenizer
from crestline.models.reward import load_reward_model, new_reward_model
from crestline.rewards.evaluation import evaluate
from crestline.rewards.scoring import score_rankings
from crestline.runs.files import write_jsonl_atomic
from crestline.training.configs import Optimization
from crestline.training.reward import reward
from crestline.training.reward_configs import RewardConfig, Splits
from crestline.training.seeds import Shuffled
from crestline.types import Ranking
from peers.conversations import MINILM, PEERS, SHARED, encoded, write_ids
from peers.pipe import Worker
from peers.preferences import DATA

WARMUP = 0.03


@dataclass(frozen=True)
class Backbone:
    """Where to start from, and settings that suit its size. max_length: longer rows are left out on both sides."""

    folder: Path
    learning_rate: float
    max_length: int


BACKBONES = {
    "minilm": Backbone(MINILM, 1e-4, 160),
    "tinystories": Backbone(SHARED / "models" / "tinystories-656k", 5e-4, 384),
}


@dataclass(frozen=True)
class Budget:
    """How much to learn from.

    num_rankings: at most. num_epochs: times that ours reads each completion. TRL, which gets rankings as pairs, reads
    as many texts in as many updates. batch_size: of our rankings for each update.
    """

    num_rankings: int
    num_epochs: int
    batch_size: int


BUDGETS = {
    "helpful": Budget(800, 1, 16),
    "jokes": Budget(3000, 1, 32),
    "answers": Budget(240, 3, 8),
}
MOST_TOGETHER = 8
"""Pairs that TRL takes through the model together at most, adding gradients beyond."""


def study(data: str, backbone: str, seed: int, share: float, threads: int) -> dict[str, Any]:
    """Both accuracies and their paired difference on the same held-out pairs. share: of the budget's rankings."""
    start, budget = BACKBONES[backbone], BUDGETS[data]
    train, test = DATA[data](seed)
    tokenizer = load_tokenizer(start.folder)
    train, test = (fitting(rows, tokenizer, start.max_length) for rows in (train, test))
    train = train[: round(budget.num_rankings * share)]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        begin = work / "begin"
        begin.mkdir()
        new_reward_model(start.folder, seed=seed, max_length=start.max_length).write(begin)
        write_jsonl_atomic(work / "train.jsonl", rankings_as_rows(train))
        write_jsonl_atomic(work / "test.jsonl", rankings_as_rows(test))
        train, test = (read_rankings(str(work / f"{side}.jsonl")) for side in ("train", "test"))
        models = {
            "ours": ours(start, budget, seed, work),
            "trl": trls(start, budget, train, tokenizer, seed, work, threads),
        }
        scores = {
            side: score_rankings(load_reward_model(model), test).scores_N
            for side, model in models.items()
        }
    figures = {side: evaluate(test, found, num_resamples=400) for side, found in scores.items()}
    return {
        "data": data,
        "backbone": backbone,
        "seed": seed,
        "num_train_rankings": len(train),
        "num_test_pairs": figures["ours"]["num_pairs"],
        "longer_wins": figures["ours"]["longer_wins_accuracy"],
        **{f"{side}_accuracy": found["accuracy"] for side, found in figures.items()},
        **{
            f"{side}_interval": [found["accuracy_low"], found["accuracy_high"]]
            for side, found in figures.items()
        },
    }


def fitting(rows: Sequence[Ranking], tokenizer: Any, max_length: int) -> list[Ranking]:
    """Rankings of which every text fits."""
    return [
        row
        for row in rows
        if max(map(len, encoded(tokenizer, str(row.prompt), row.completions))) <= max_length
    ]


def ours(start: Backbone, budget: Budget, seed: int, work: Path) -> Path:
    """The verb's model."""
    config = RewardConfig(
        model_name_or_path=str(work / "begin"),
        dataset_name=str(work / "train.jsonl"),
        output_dir=str(work / "ours"),
        num_train_epochs=budget.num_epochs,
        batch_size=budget.batch_size,
        max_length=start.max_length,
        seed=seed,
        splits=Splits(eval_dataset_name=str(work / "test.jsonl")),
        optimization=Optimization(
            learning_rate=start.learning_rate,
            warmup_ratio=WARMUP,
            save_updates=10**9,
            dtype="float32",
        ),
    )
    return reward(config)


def trls(
    start: Backbone,
    budget: Budget,
    train: Sequence[Ranking],
    tokenizer: Any,
    seed: int,
    work: Path,
    threads: int,
) -> Path:
    """TRL's model: the rankings' strict pairs, as many texts in as many updates as ours reads.

    In our order; the pairs of a pass are shuffled where rankings have several.
    """
    pairs_of = [strict_pairs(ranking) for ranking in train]
    size = max(len(ranking.completions) for ranking in train)
    num_updates = math.ceil(budget.num_epochs * len(train) / budget.batch_size)
    together = round(budget.batch_size * size / 2)
    order, rows = Shuffled(len(train), seed), list[tuple[Any, str, str]]()
    for number in count():
        if len(rows) >= num_updates * together:
            break
        of_pass = order.rows(number * len(train), len(train))
        new = [(train[n].prompt, *pair) for n in of_pass for pair in pairs_of[n]]
        if size > 2:
            shuffled = np.random.default_rng([seed, number]).permutation(len(new))
            new = [new[n] for n in shuffled]
        rows += new
    rows = rows[: num_updates * together]
    at_once = max(n for n in range(1, MOST_TOGETHER + 1) if together % n == 0)
    ids = [encoded(tokenizer, str(prompt), pair) for prompt, *pair in rows]
    write_ids(work / "pairs.json", ids)
    python, script = PEERS / "bin" / "python", Path(__file__).parents[1] / "peers" / "trl_reward.py"
    worker = Worker(python, script, threads=threads)
    worker.ask(
        "train",
        model=str(work / "begin"),
        rows=str(work / "pairs.json"),
        save_to=str(work / "trl"),
        arithmetic="float32",
        attention="sdpa",
        per_device=at_once,
        pairs_per_update=together,
        learning_rate=start.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(WARMUP * len(rows) / together),
        max_length=start.max_length,
        seed=seed,
    )
    worker.close()
    for file in (work / "begin").glob("tokenizer*"):
        shutil.copy(file, work / "trl")
    return work / "trl"


def strict_pairs(ranking: Ranking) -> list[tuple[str, str]]:
    """(better, worse) of every two completions that are not tied."""
    ranked = [
        (rank, text)
        for rank, text in zip(ranking.ranks, ranking.completions, strict=True)
        if rank is not None
    ]
    ranked.sort(key=lambda item: item[0])
    return [(a, b) for (i, a), (j, b) in combinations(ranked, 2) if i < j]
