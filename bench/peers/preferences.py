"""People's preferences in ../shared/data as rankings, split anew for every seed.

Human votes on jokes, HH helpful-base, and four answers ranked by people (Fine-Grained RLHF).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

from crestline.data.rankings import read_rankings
from crestline.data.splits import split_by_prompt, split_by_text
from crestline.types import Ranking
from peers.conversations import SHARED, helpful

JOKES = SHARED / "jokes" / "ukp-humour" / "pairs.jsonl"
FOUR = SHARED / "pref" / "finegrained" / "dev_feedback.json"
Sides = tuple[list[Ranking], list[Ranking]]
"""Rankings to train on, and rankings to test on."""


def talks(seed: int) -> Sides:
    """Helpful answers in conversations; no prompt stands on two sides."""
    rows = [Ranking(prompt=p, completions=(a, b), ranks=(0, 1)) for p, a, b in helpful() if a != b]
    fractions = {"train": 0.7, "test": 0.3}
    sides = split_by_prompt(rows, lambda ranking: ranking.prompt, fractions, seed)
    return sides["train"], sides["test"]


def jokes(seed: int) -> Sides:
    """Which of two short texts people found funnier; no text stands on two sides."""
    sides, _ = split_by_text(read_rankings(str(JOKES)), {"train": 0.7, "test": 0.3}, seed)
    return sides["train"], sides["test"]


def answers(seed: int) -> Sides:
    """Four answers to a question; where six verdicts contradict each other there is no ranking, and it is left out."""
    rows = []
    for item in json.loads(FOUR.read_text()):
        verdicts = dict(zip(combinations(range(4), 2), item["preference"], strict=True))
        points = [0, 0, 0, 0]  # 2 for a win, 1 for a tie
        for (i, j), verdict in verdicts.items():
            points[i] += {1: 2, 0: 1, 2: 0}[verdict]
            points[j] += {1: 0, 0: 1, 2: 2}[verdict]
        agrees = all(
            verdict == (1 if points[i] > points[j] else 2 if points[i] < points[j] else 0)
            for (i, j), verdict in verdicts.items()
        )
        if agrees and len(set(points)) > 1:
            order = sorted(set(points), reverse=True)
            texts = tuple(item[f"prediction {k}"] for k in range(1, 5))
            ranks = tuple(order.index(value) for value in points)
            rows.append(Ranking(prompt=item["question"] + "\n", completions=texts, ranks=ranks))
    fractions = {"train": 0.7, "test": 0.3}
    sides = split_by_prompt(rows, lambda ranking: ranking.prompt, fractions, seed)
    return sides["train"], sides["test"]


DATA: dict[str, Callable[[int], Sides]] = {"helpful": talks, "jokes": jokes, "answers": answers}
FILES: dict[str, Path] = {
    "helpful": SHARED / "hh-rlhf" / "helpful-base" / "test.jsonl.gz",
    "jokes": JOKES,
    "answers": FOUR,
}
