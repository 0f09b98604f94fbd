"""How much preference the watch leaves behind, on simulated runs with a known gold curve.

    python bench/crest_sim.py --quick        3 runs of each kind, under two minutes on one core
    python bench/crest_sim.py --full         50 runs of each kind, about 20 minutes on one core: the quoted table,
                                             kept in bench/results
    python bench/crest_sim.py --num_runs 5   so many runs, printed only

Regret = (gold at the best checkpoint − gold at what ships) / (gold at the best − gold at the
reference). "cover": of the runs whose verdict has an interval, how many hold the best checkpoint.
Where nothing beats the reference there is neither; gold lost is counted everywhere. "band": the
part of the checkpoints whose true win rate lies within the curve's 90 % interval. The last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from crestline.crest.watch import Watch, WatchConfig
from crestline.formulas.curves import win_rate
from crestline.formulas.intervals import wilson
from crestline.types import Duel, Observation, Verdict
from demo import machine, spread

Array = NDArray[np.float64]
NUM_PROMPTS = 256
RUNS_QUICK, RUNS_FULL = 3, 50
NUM_LABELS, FLIPS = (1000, 300), (0.25, 0.0)
RESULTS = Path(__file__).parent / "results" / "crest_sim.json"


@dataclass(frozen=True)
class Truth:
    """A kind of run: the verdicts that are right for it and its gold curve over distance."""

    right: tuple[str, ...]
    farthest: float
    gold: Callable[[Array], Array]


def _gao(height: float, peak: float) -> Callable[[Array], Array]:
    return lambda d: height * d / peak * (1 - np.log(d / peak))


def _cliff(rise: float, place: float, drop: float, width: float = 0.2) -> Callable[[Array], Array]:
    return lambda d: (
        rise * -np.expm1(-1.6 * d)
        + 0.05 * d
        - drop * (expit((d - place) / width) - expit(-place / width))
    )


TRUTHS: dict[str, Truth] = {
    "gao slow decline": Truth(("peaked",), 5.5, _gao(1.0, 2.2)),
    "gao mild decline": Truth(("peaked", "still_rising"), 5.0, _gao(0.8, 3.0)),
    "early peak": Truth(("peaked",), 5.0, _gao(0.8, 0.9)),
    "cliff at 2": Truth(("peaked",), 5.5, _cliff(1.0, 2.0, 1.8)),
    "cliff at 3": Truth(("peaked",), 5.5, _cliff(1.0, 3.0, 1.8)),
    "cliff at 4.2": Truth(("peaked",), 5.5, _cliff(1.0, 4.2, 1.8)),
    "small gain, cliff": Truth(("peaked",), 5.5, _cliff(0.6, 3.0, 1.5, 0.3)),
    "large gain, cliff": Truth(("peaked",), 4.8, _cliff(1.4, 3.4, 2.5, 0.15)),
    "healthy saturating": Truth(("still_rising",), 5.0, lambda d: -np.expm1(-0.8 * d)),
    "healthy early plateau": Truth(("still_rising",), 5.0, lambda d: -np.expm1(-2.0 * d)),
    "healthy linear": Truth(("still_rising",), 5.0, lambda d: d / 5.0),
    "flat": Truth(("nothing_beats_reference",), 5.0, lambda d: 0.0 * d),
    "only falling": Truth(("nothing_beats_reference",), 5.0, lambda d: -0.3 * d),
}


def simulate(truth: Truth, flip: float, num_labels: int, seed: int) -> dict[str, Any]:
    """One run: its verdict, the regret of the watch and of the baselines."""
    rng = np.random.default_rng([seed, 11])
    num_checkpoints = int(rng.integers(18, 27))
    distances = np.linspace(0, truth.farthest, num_checkpoints + 1)[1:]
    distances = distances + rng.uniform(-0.03, 0.03, num_checkpoints)
    gold = truth.gold(distances)
    chances = win_rate(gold, flip)
    watch = Watch(WatchConfig(num_labels=num_labels, watch_seed=seed), NUM_PROMPTS)
    for i, distance in enumerate(distances.tolist()):
        watch.observe(Observation(update=20 * (i + 1), distance=distance, proxy=0.5))
    while batch := watch.next_duels():
        for update, prompt_index in batch:
            won = float(rng.random() < chances[update // 20 - 1])
            watch.answer(Duel(update=update, prompt_index=prompt_index, outcome=won))
    start = time.perf_counter()
    verdict = watch.verdict("simulated people")
    seconds = time.perf_counter() - start
    per_checkpoint = num_labels // num_checkpoints
    rates = rng.binomial(per_checkpoint, chances) / per_checkpoint
    shipped = {
        "watch": (verdict.update or 0) // 20,
        "last": num_checkpoints,
        "argmax": int(rates.argmax()) + 1,
        "patience": patience(rates) + 1,
    }
    golds = np.concatenate([[0.0], gold])
    best = float(golds.max())
    return {
        "kind": verdict.kind,
        "regrets": {k: (best - golds[i]) / best for k, i in shipped.items()} if best > 0 else {},
        "lost": best - float(golds[shipped["watch"]]),
        "covered": holds_best(verdict, golds),
        "band": [
            p.low <= chance <= p.high for p, chance in zip(verdict.curve[1:], chances, strict=False)
        ],
        "seconds": seconds,
    }


def holds_best(verdict: Verdict, golds: Array) -> bool | None:
    """Whether the interval holds the best checkpoint; None where there is no interval or no gain.

    golds: of the reference, then of each checkpoint.
    """
    if verdict.interval is None or not golds.max() > golds[0]:
        return None
    return verdict.interval[0] <= 20 * int(golds.argmax()) <= verdict.interval[1]


def patience(rates: Array, allowed: int = 2) -> int:
    """Index of the best so far, once `allowed` checkpoints in a row each won less than before."""
    worse = 0
    for t in range(1, len(rates)):
        worse = worse + 1 if rates[t] < rates[t - 1] else 0
        if worse >= allowed:
            return int(rates[: t + 1].argmax())
    return int(rates.argmax())


def cell(name: str, flip: float, num_labels: int, num_runs: int, seed: int) -> dict[str, Any]:
    """All runs of one kind: one row of the table."""
    runs = [simulate(TRUTHS[name], flip, num_labels, seed + i) for i in range(num_runs)]
    kinds = Counter(r["kind"] for r in runs)
    right = sum(kinds[k] for k in TRUTHS[name].right)
    covered = [r["covered"] for r in runs if r["covered"] is not None]
    row: dict[str, Any] = {
        "truth": name,
        "flip": flip,
        "num_labels": num_labels,
        "num_runs": num_runs,
        "right": right,
        "right_interval": wilson(right, num_runs),
        "verdicts": dict(kinds),
        "gold_lost": spread_and_mean([r["lost"] for r in runs]),
        "num_intervals": len(covered),
        "covered": sum(covered),
        "covered_interval": wilson(sum(covered), len(covered)) if covered else None,
        "band": round(float(np.mean([held for r in runs for held in r["band"]])), 4),
        "slowest_verdict_seconds": max(r["seconds"] for r in runs),
    }
    for rule in ("watch", "last", "argmax", "patience"):
        row[rule] = spread_and_mean([r["regrets"][rule] for r in runs if r["regrets"]])
    return row


def spread_and_mean(values: list[float]) -> dict[str, float] | None:
    """How values spread over runs; None without any."""
    return {**spread(values), "mean": round(float(np.mean(values)), 4)} if values else None


def show(row: dict[str, Any]) -> str:
    """One line of the table."""

    def figures(rule: str) -> str:
        found = row[rule]
        return f"{found['median']:6.2f} {found['p90']:6.2f}" if found else "     –      –"

    n, num_intervals = row["num_runs"], row["num_intervals"]
    cover = f"{row['covered'] / num_intervals:5.2f}" if num_intervals else "    –"
    kinds = [
        row["verdicts"].get(k, 0) / n for k in ("peaked", "still_rising", "nothing_beats_reference")
    ]
    return (
        f"{row['truth']:22s} {row['flip']:4.2f} {row['num_labels']:5d} {n:4d} |{figures('watch')} |"
        f"{figures('last')} |{figures('argmax')} |{figures('patience')} | "
        + " ".join(f"{k:5.2f}" for k in kinds)
        + f" | {row['right'] / n:5.2f} {cover} {row['band']:5.2f}"
    )


def table(num_runs: int, seed: int) -> list[dict[str, Any]]:
    """Play and print every row."""
    print(f"{'':38s} | watch         | last          | argmax        | patience-2    | verdicts")
    print(
        f"{'truth':22s} flip labels runs |   med    p90 |   med    p90 |   med    p90 |"
        "   med    p90 |  peak  rise  none | right cover  band"
    )
    rows = []
    for num_labels in NUM_LABELS:
        for flip in FLIPS:
            for name in TRUTHS:
                rows.append(cell(name, flip, num_labels, num_runs, seed))
                print(show(rows[-1]), flush=True)
    return rows


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is quoted of the rows with 1,000 labels and a quarter of the answers turned round."""
    hard = [r for r in rows if r["num_labels"] == 1000 and r["flip"] == 0.25]
    peaks = [r for r in hard if TRUTHS[r["truth"]].right == ("peaked",)]
    return {
        "worst_median_regret_1000_labels_25_percent_flips": max(
            r["watch"]["median"] for r in hard if r["watch"]
        ),
        "intervals_of_peaks_1000_labels_25_percent_flips": sum(r["num_intervals"] for r in peaks),
        "intervals_that_hold_the_best": sum(r["covered"] for r in peaks),
    }


def main() -> None:
    """Run the table and print it; --full also writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few runs of each kind (default)")
    size.add_argument("--full", action="store_true", help="the quoted table, written to results")
    size.add_argument("--num_runs", type=int, default=None, help="runs of each kind, printed only")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first run of each kind")
    arguments = parser.parse_args()
    num_runs = arguments.num_runs or (RUNS_FULL if arguments.full else RUNS_QUICK)
    start = time.perf_counter()
    rows = table(num_runs, arguments.seed)
    result: dict[str, Any] = {
        **figures(rows),
        "num_runs": num_runs,
        "seeds": list(range(arguments.seed, arguments.seed + num_runs)),
        "seconds": round(time.perf_counter() - start, 1),
        "machine": machine(),
    }
    if arguments.full:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({**result, "rows": rows}, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
