"""How well a reward model tells what people find funny, beside two shortcuts.

    python bench/jokes.py jokes/ model [model …]

jokes/ is what bench/prepare_jokes.py wrote; each model is a folder of `crestline reward`. Accuracy on the test
pairs, all of them and joke against joke, with 95 % intervals from a bootstrap over texts: every text is drawn with
replacement, and a pair counts as often as both of its texts were drawn, multiplied. Shortcuts: "the longer wins" and
"a joke beats a non-joke, else the longer". How much better than the second: the interval of the paired difference.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from crestline.data.rankings import read_rankings
from crestline.models.reward import load_reward_model
from crestline.training.reward import half_if_equal

NUM_RESAMPLES = 2000


def interval(
    right: np.ndarray[Any, Any], pairs: np.ndarray[Any, Any], seed: int = 0
) -> list[float]:
    """Mean of `right` and its 95 % interval, texts resampled. pairs: the two texts' numbers, [P, 2]."""
    generator = np.random.default_rng(seed)
    count = int(pairs.max()) + 1
    means = []
    for _ in range(NUM_RESAMPLES):
        drawn = np.bincount(generator.integers(count, size=count), minlength=count)
        weights = drawn[pairs[:, 0]] * drawn[pairs[:, 1]]
        if weights.sum():
            means.append((right * weights).sum() / weights.sum())
    low, high = np.quantile(means, [0.025, 0.975])
    return [round(float(value), 3) for value in (right.mean(), low, high)]


def main(jokes: Path, models: list[str]) -> None:
    rankings = read_rankings(str(jokes / "rankings_test.jsonl"))
    kinds = {}
    for line in (jokes / "kinds.jsonl").read_text(encoding="utf8").splitlines():
        row = json.loads(line)
        kinds[row["text"]] = row["kind"] != "not a joke"
    number: dict[str, int] = {}
    won = []
    for ranking in rankings:
        better, worse = sorted(
            ranking.completions, key=lambda t: ranking.ranks[ranking.completions.index(t)] or 0
        )
        won.append((better, worse))
        for text in (better, worse):
            number.setdefault(text, len(number))
    pairs = np.array([[number[a], number[b]] for a, b in won])
    jokes_only = np.array([kinds[a] and kinds[b] for a, b in won])
    judges = {
        "the longer wins": np.array([half_if_equal(len(a), len(b)) for a, b in won]),
        "a joke beats a non-joke, else the longer": np.array(
            [half_if_equal((kinds[a], len(a)), (kinds[b], len(b))) for a, b in won]
        ),
    }
    texts = list(number)
    for name in models:
        scores = dict(
            zip(texts, load_reward_model(name).score([""] * len(texts), texts), strict=True)
        )
        judges[name] = np.array([half_if_equal(scores[a], scores[b]) for a, b in won])
    figures: dict[str, Any] = {
        "pairs": len(won),
        "joke_pairs": int(jokes_only.sum()),
        "texts": len(texts),
    }
    print(
        f"{len(won)} test pairs of {len(texts)} texts, {int(jokes_only.sum())} of them joke against joke\n"
    )
    print(f"{'':44}{'all pairs':>24}{'joke against joke':>24}")
    for name, right in judges.items():
        rows = [interval(right, pairs), interval(right[jokes_only], pairs[jokes_only])]
        figures[name] = {"all": rows[0], "joke_against_joke": rows[1]}
        told = "".join(f"{f'{m:.1%} ({low:.1%}–{high:.1%})':>24}" for m, low, high in rows)
        print(f"{name[-44:]:44}{told}")
    shortcut = judges["a joke beats a non-joke, else the longer"]
    for name in models:
        rows = [
            interval(judges[name] - shortcut, pairs),
            interval((judges[name] - shortcut)[jokes_only], pairs[jokes_only]),
        ]
        figures[name]["better_than_shortcut"] = {"all": rows[0], "joke_against_joke": rows[1]}
        told = "".join(f"{f'{m:+.1%} ({low:+.1%} to {high:+.1%})':>24}" for m, low, high in rows)
        print(f"{'  better than the second shortcut by':44}{told}")
    print(json.dumps(figures))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
