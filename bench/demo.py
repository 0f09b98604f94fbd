"""Does the demo's story hold? Cliff, crest and regret over seeds, against what a practitioner would guess.

    python bench/demo.py --quick            as many seeds as fit in ten minutes; it claims nothing
    python bench/demo.py --full             12 seeds, two at a time with one thread each; about an hour on 2 cores
    python bench/demo.py --full --work DIR  keeps the runs there, and goes on where it was stopped

Each seed is a whole `crestline run --preset demo`. The watch is then asked anew with people who flip a quarter of
their answers, with 1,000 labels and with 300. Gold is measured on 2,048 completions per checkpoint; the oracle is
chosen on one half and the golds come from the other, swapped and averaged (DESIGN.md, "Measuring regret").
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
FLIP, LABELS = 0.25, (1000, 300)
NUM_GOLD = {"demo": 2048, "smoke": 256}


# ---- one seed ------------------------------------------------------------------------------


def one_seed(preset: str, seed: int, threads: int, work: Path) -> None:
    """Run the demo for a seed and write its figures to seed_<n>.json."""
    import numpy as np
    import torch

    from crestline.crest.watch import WatchConfig
    from crestline.pipeline.crest import Checkpoints, ask_and_decide
    from crestline.pipeline.gold import golds_of
    from crestline.pipeline.presets import PRESETS
    from crestline.pipeline.run import run
    from crestline.pipeline.screen import Silent
    from crestline.pipeline.who import world_of
    from crestline.types import silent

    torch.set_num_threads(threads)
    base = PRESETS[preset]
    folder = work / f"seed_{seed}"
    config = replace(
        base,
        output_dir=str(folder),
        seed=seed,
        num_threads=threads,
        world=replace(base.world, num_gold_completions=0),
    )
    began = time.perf_counter()
    run(config, screen=Silent())
    seconds = time.perf_counter() - began
    checkpoints = Checkpoints(folder / "rl")
    world = world_of(config.world.name)
    verdicts = {}
    for num_labels in LABELS:
        asked = folder / f"watch_{num_labels}"
        asked.mkdir(exist_ok=True)
        people = world.people(seed, flip_probability=FLIP)
        verdict = ask_and_decide(
            checkpoints, people, WatchConfig(num_labels=num_labels), asked, seed, silent
        )
        verdicts[str(num_labels)] = asdict(verdict)
    golds = golds_of(checkpoints, world.gold, num_completions=NUM_GOLD[preset], seed=seed)
    record = json.loads((folder / "run.json").read_text())
    figures = {
        "seed": seed,
        "seconds": seconds,
        "stage_seconds": {name: stage["seconds"] for name, stage in record["stages"].items()},
        "peak_memory_mb": record["stages"]["report"]["peak_memory_mb"],
        "reward_accuracy": json.loads((folder / "reward" / "evaluation.json").read_text())[
            "accuracy"
        ],
        "num_updates": config.rl.num_updates,
        "checkpoints": checkpoints.rows,
        "gold": {
            str(update): {
                "halves": [float(values[0::2].mean()), float(values[1::2].mean())],
                "mean": float(values.mean()),
                "standard_error": float(values.std(ddof=1) / len(values) ** 0.5),
                "gain_standard_error": float((values - golds[0]).std(ddof=1) / len(values) ** 0.5),
            }
            for update, values in golds.items()
        },
        "reference_standard_deviation": float(np.std(golds[0], ddof=1)),
        "verdicts": verdicts,
    }
    path = work / f"seed_{seed}.json"
    path.with_suffix(".tmp").write_text(json.dumps(figures))
    path.with_suffix(".tmp").replace(path)
    for checkpoint in (folder / "rl").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


# ---- what the figures say ------------------------------------------------------------------


class Seed:
    """The golds of one seed, cross-fitted."""

    def __init__(self, figures: dict[str, Any]) -> None:
        self.figures = figures
        self.updates = [int(update) for update in figures["gold"]]
        self.halves = {int(u): g["halves"] for u, g in figures["gold"].items()}
        self.mean = {int(u): g["mean"] for u, g in figures["gold"].items()}

    def oracle(self, half: int) -> int:
        """The best update by one half of the completions."""
        return max(self.updates, key=lambda update: self.halves[update][half])

    @property
    def best_update(self) -> int:
        return max(self.updates, key=lambda update: self.mean[update])

    @property
    def possible_gain(self) -> float:
        """Gold at the oracle crest minus gold at the reference, cross-fitted."""
        gains = [self.halves[self.oracle(1 - h)][h] - self.halves[0][h] for h in (0, 1)]
        return sum(gains) / 2

    def gain(self, update: int) -> float:
        return self.mean[update] - self.mean[0]

    def regret(self, update: int) -> float:
        lost = [self.halves[self.oracle(1 - h)][h] - self.halves[update][h] for h in (0, 1)]
        return sum(lost) / 2 / (self.possible_gain or float("nan"))

    @property
    def is_flat(self) -> bool:
        error = self.figures["gold"][str(self.best_update)]["gain_standard_error"]
        deviation = self.figures["reference_standard_deviation"]
        return self.possible_gain <= max(0.25 * deviation, 4 * error)

    @property
    def has_cliff(self) -> bool:
        return self.regret(self.updates[-1]) >= 0.5

    def shipped(self, num_labels: int) -> int:
        update = self.figures["verdicts"][str(num_labels)]["update"]
        return 0 if update is None else int(update)

    def beats_reference(self, update: int) -> bool:
        error = self.figures["gold"][str(update)]["gain_standard_error"]
        gain = self.gain(update)
        return gain > 2 * error and gain >= 0.5 * self.possible_gain

    def nearest(self, wanted: float) -> int:
        return min(self.updates, key=lambda update: abs(update - wanted))

    @property
    def proxy_argmax(self) -> int:
        rows = self.figures["checkpoints"]
        return int(max(rows, key=lambda row: row["proxy"])["update"])

    def world_figures(self) -> dict[str, float]:
        """What makes the world good: rise in gold deviations, distance and place of the crest."""
        best = self.best_update
        distance = {int(row["update"]): row["distance"] for row in self.figures["checkpoints"]}
        rising = sum(
            self.mean[b] > self.mean[a]
            for a, b in zip(self.updates, self.updates[1:], strict=False)
            if b <= best
        )
        return {
            "rise": self.possible_gain
            / (self.figures["reference_standard_deviation"] or float("nan")),
            "crest_distance": distance[best],
            "crest_fraction": best / self.figures["num_updates"],
            "rising_checkpoints": rising,
            "reward_accuracy": self.figures["reward_accuracy"],
        }


def spread(values: list[float]) -> dict[str, float]:
    import numpy as np

    if not values:
        return {}
    quartiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 0.9, 1])
    names = ("min", "quartile_1", "median", "quartile_3", "p90", "max")
    return {name: round(float(value), 4) for name, value in zip(names, quartiles, strict=True)}


def summarise(seeds: list[Seed]) -> dict[str, Any]:
    """The figures of the study over seeds; flat runs are counted, and not in the medians."""
    from crestline.formulas.intervals import wilson

    measured = [seed for seed in seeds if not seed.is_flat]

    def median(values: list[float]) -> float | None:
        return spread(values).get("median")

    def fixed(seed: Seed) -> int:
        others = [s.best_update for s in measured if s is not seed]
        return seed.nearest(sorted(others)[len(others) // 2]) if others else seed.updates[-1]

    regrets = {n: [seed.regret(seed.shipped(n)) for seed in measured] for n in LABELS}
    baselines = {
        "last": [seed.regret(seed.updates[-1]) for seed in measured],
        "proxy_argmax": [seed.regret(seed.proxy_argmax) for seed in measured],
        "fixed_update": [seed.regret(fixed(seed)) for seed in measured],
    }
    beats = {n: sum(s.beats_reference(s.shipped(n)) for s in seeds) for n in LABELS}
    cliffs = sum(seed.has_cliff for seed in seeds)
    world = [seed.world_figures() for seed in seeds]
    medians = {name: median(values) for name, values in baselines.items()}
    known = [value for value in medians.values() if value is not None]
    return {
        "seconds": median([seed.figures["seconds"] for seed in seeds]),
        "peak_memory_mb": max(seed.figures["peak_memory_mb"] for seed in seeds),
        "cliff_seeds": cliffs,
        "cliff_interval": wilson(cliffs, len(seeds)),
        "beats_sft_seeds": beats[1000],
        "beats_sft_interval": wilson(beats[1000], len(seeds)),
        "beats_sft_seeds_300": beats[300],
        "median_regret": median(regrets[1000]),
        "regret_spread": spread(regrets[1000]),
        "median_regret_300": median(regrets[300]),
        "regret_spread_300": spread(regrets[300]),
        "best_baseline_regret": min(known) if known else None,
        "baseline_regrets": {name: spread(values) for name, values in baselines.items()},
        "verdicts": {
            str(n): sorted(seed.figures["verdicts"][str(n)]["kind"] for seed in seeds)
            for n in LABELS
        },
        "flat_seeds": len(seeds) - len(measured),
        "flat_lost_gold": [s.possible_gain - s.gain(s.shipped(1000)) for s in seeds if s.is_flat],
        "seeds": len(seeds),
        "world": {name: spread([row[name] for row in world]) for name in world[0]},
    }


def table(seeds: list[Seed]) -> str:
    head = (
        "seed  reward acc  rise sd  crest at      of  d      shipped  regret  (300)   last  cliff"
    )
    lines = [head, "-" * len(head)]
    for seed in seeds:
        facts = seed.world_figures()
        n = seed.figures["seed"]
        lines.append(
            f"{n:4}  {facts['reward_accuracy']:10.3f}  {facts['rise']:7.2f}  {seed.best_update:8}  "
            f"{facts['crest_fraction']:6.0%}  {facts['crest_distance']:5.2f}  {seed.shipped(1000):7}  "
            f"{seed.regret(seed.shipped(1000)):6.2f}  {seed.regret(seed.shipped(300)):5.2f}  "
            f"{seed.regret(seed.updates[-1]):5.2f}  {'yes' if seed.has_cliff else 'no':>5}"
        )
    return "\n".join(lines)


# ---- the study -----------------------------------------------------------------------------


def study(arguments: argparse.Namespace, work: Path) -> list[Seed]:
    """Run seeds in subprocesses until all are done or the time is up."""
    deadline = time.monotonic() + (540.0 if arguments.quick else float("inf"))
    waiting = [s for s in range(arguments.seeds) if not (work / f"seed_{s}.json").exists()]
    running: dict[int, subprocess.Popen[bytes]] = {}
    while waiting or running:
        while waiting and len(running) < arguments.jobs and time.monotonic() < deadline:
            seed = waiting.pop(0)
            command = [sys.executable, __file__, "--one", str(seed), "--work", str(work)]
            command += ["--threads", str(arguments.threads)] + (["--smoke"] * arguments.smoke)
            running[seed] = subprocess.Popen(command)
        time.sleep(0.5)
        for seed, process in list(running.items()):
            if process.poll() is None and time.monotonic() < deadline:
                continue
            if process.poll() is None:
                process.kill()
            elif process.returncode:
                print(f"seed {seed} failed with exit code {process.returncode}", file=sys.stderr)
            else:
                print(f"seed {seed} done", file=sys.stderr, flush=True)
            del running[seed]
        if time.monotonic() >= deadline:
            waiting = []
    found = [work / f"seed_{s}.json" for s in range(arguments.seeds)]
    return [Seed(json.loads(path.read_text())) for path in found if path.exists()]


def machine() -> dict[str, Any]:
    """Where it was measured."""
    import platform

    import torch

    model = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=BENCH, check=False
    )
    return {
        "processor": model[0] if model else platform.processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="the tiny preset, to try this script")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--one", type=int, default=None, help="run this seed only (used inside)")
    arguments = parser.parse_args()
    if arguments.one is not None:
        one_seed(
            "smoke" if arguments.smoke else "demo", arguments.one, arguments.threads, arguments.work
        )
        return
    work = arguments.work or Path(tempfile.mkdtemp(prefix="crestline-demo-"))
    work.mkdir(parents=True, exist_ok=True)
    seeds = study(arguments, work)
    if not seeds:
        print("no seed was finished in the time there was")
        print(json.dumps({"seeds": 0}))
        return
    print(table(seeds))
    figures = {**summarise(seeds), "machine": machine(), "jobs": arguments.jobs}
    figures["threads"] = arguments.threads
    if arguments.full:
        results = BENCH / "results" / "demo.json"
        results.parent.mkdir(exist_ok=True)
        rows = [seed.figures for seed in seeds]
        results.write_text(json.dumps({**figures, "runs": rows}, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
