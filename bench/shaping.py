"""Does PAR with a small KL ship better answers than the raw score? Paired over seeds, in two variants of the world.

    python bench/shaping.py --quick            one seed of one variant, if ten minutes allow; it claims nothing
    python bench/shaping.py --full             8 seeds of both variants, two at a time; hours on 2 cores
    python bench/shaping.py --full --work DIR  keeps the runs there, and goes on where it was stopped

A seed pretrains, fine-tunes, asks simulated people and trains the reward model once; then every arm trains the same
policy with the same prompts and random streams. The variants differ in how far the reward model can be trusted:
"clean" is the demo's, "noisy" has people who flip a quarter of their comparisons and half of the rankings. Gold is
measured on 1,024 completions per checkpoint, in standard deviations of the reference's, above the reference; the best
checkpoint is chosen on one half and its gold comes from the other, swapped and averaged. "shipped" is what the watch
ships with 1,000 duels. PAR with a small KL is the default; it would give way to the raw score only where the interval
of the shipped difference lies below 0 in both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
VARIANTS = {"clean": {}, "noisy": {"flip_probability": 0.25, "num_prompts": 1000}}
ARMS = ("raw", "raw_kl", "par", "par_kl")
BETA = {"raw": 0.0, "raw_kl": 0.01, "par": 0.0, "par_kl": 0.01}
"""Reward units for each nat: PAR's rewards lie in [0, 1], raw ones spread over about 1 too."""
NUM_GOLD = {"demo": 1024, "smoke": 256}
LABELS, FLIP = 1000, 0.25


# ---- one seed of one variant ---------------------------------------------------------------


def one(preset: str, variant: str, seed: int, arms: list[str], work: Path) -> None:
    """Train every arm and write its figures to <variant>_<seed>.json."""
    import torch

    from crestline.pipeline.presets import PRESETS
    from crestline.pipeline.run import run
    from crestline.pipeline.screen import Silent
    from crestline.rewards.configs import Shaping
    from crestline.training.rl import rl
    from crestline.training.rl_configs import Kl

    torch.set_num_threads(1)
    base = PRESETS[preset]
    changes = dict(VARIANTS[variant])
    if preset == "smoke":
        changes.pop("num_prompts", None)
    folder = work / f"{variant}_{seed}"
    config = replace(
        base,
        output_dir=str(folder),
        seed=seed,
        num_threads=1,
        world=replace(base.world, num_gold_completions=0, **changes),
    )
    # The run is wanted for its SFT and reward models; the arms train the policy themselves.
    run(replace(config, rl=replace(config.rl, num_updates=1)), screen=Silent())
    figures: dict[str, Any] = {"variant": variant, "seed": seed, "arms": {}}
    for arm in arms:
        began = time.process_time()
        path = folder / f"rl_{arm}"
        rl(
            replace(
                config.rl,
                model_name_or_path=str(folder / "sft" / "model"),
                reward_model_name_or_path=str(folder / "reward" / "model"),
                dataset_name=str(folder / "data" / "prompts.jsonl"),
                eval_dataset_name=str(folder / "data" / "heldout_prompts.jsonl"),
                output_dir=str(path),
                seed=seed,
                shaping=Shaping(reward_shaping="par" if arm.startswith("par") else "raw"),
                kl=Kl(beta=BETA[arm]),
            )
        )
        figures["arms"][arm] = measured(path, seed, NUM_GOLD[preset])
        figures["arms"][arm]["cpu_seconds"] = round(time.process_time() - began, 1)
    target = work / f"{variant}_{seed}.json"
    target.with_suffix(".tmp").write_text(json.dumps(figures))
    target.with_suffix(".tmp").replace(target)


def measured(path: Path, seed: int, num_gold: int) -> dict[str, Any]:
    """Gold above the reference of the best, the last and the shipped checkpoint, in its standard deviations."""
    from crestline.crest.configs import WatchConfig
    from crestline.pipeline.crest import Checkpoints, ask_and_decide
    from crestline.pipeline.gold import golds_of
    from crestline.pipeline.who import world_of
    from crestline.types import silent

    world, checkpoints = world_of("pelican"), Checkpoints(path)
    people = world.people(seed, flip_probability=FLIP)
    watch = WatchConfig(num_labels=LABELS)
    verdict = ask_and_decide(checkpoints, people, watch, path, seed, silent)
    golds = golds_of(checkpoints, world.gold, num_completions=num_gold, seed=seed)
    deviation = float(golds[0].std(ddof=1)) or 1.0  # 0 where a tiny model never says anything good
    gain = {u: (values - golds[0]) / deviation for u, values in golds.items()}
    halves = [{u: float(values[h::2].mean()) for u, values in gain.items()} for h in (0, 1)]
    best = [max(half, key=lambda u: half[u]) for half in halves]
    last = max(gain)
    return {
        "best": (halves[1][best[0]] + halves[0][best[1]]) / 2,
        "last": float(gain[last].mean()),
        "shipped": float(gain[verdict.update].mean()) if verdict.update else 0.0,
        "verdict": verdict.kind,
        "shipped_update": verdict.update,
        "distance": {str(row["update"]): row["distance"] for row in checkpoints.rows},
        "gold": {str(u): float(values.mean()) for u, values in gain.items()},
        "num_updates": last,
    }


# ---- what the figures say ------------------------------------------------------------------


def paired(differences: list[float]) -> dict[str, float | None]:
    """Mean difference with its 95 % t interval; one seed has none."""
    import numpy as np
    from scipy import stats

    values = np.array(differences)
    if len(values) < 2:
        return {"mean": round(float(values.mean()), 4), "low": None, "high": None}
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return {
        name: round(float(values.mean() + sign * half), 4)
        for name, sign in (("mean", 0), ("low", -1), ("high", 1))
    }


def summarise(rows: list[dict[str, Any]], arms: list[str]) -> dict[str, Any]:
    """Differences to the raw score by variant, arm and checkpoint."""
    found: dict[str, Any] = {"seeds": {}, "differences": {}}
    for variant in sorted({row["variant"] for row in rows}):
        own = [row["arms"] for row in rows if row["variant"] == variant]
        found["seeds"][variant] = len(own)
        found["differences"][variant] = {
            arm: {
                place: paired([seed[arm][place] - seed["raw"][place] for seed in own])
                for place in ("best", "last", "shipped")
            }
            for arm in arms
            if arm != "raw"
        }
    worse = [
        found["seeds"][variant] >= 8 and by_arm["par_kl"]["shipped"]["high"] < 0
        for variant, by_arm in found["differences"].items()
        if "par_kl" in by_arm
    ]
    found["raw_becomes_default"] = len(worse) == len(VARIANTS) and all(worse)
    return found


def told_interval(difference: dict[str, Any]) -> str:
    if difference["low"] is None:
        return f"{difference['mean']:+.2f}"
    return f"{difference['mean']:+.2f} ({difference['low']:+.2f} to {difference['high']:+.2f})"


def table(rows: list[dict[str, Any]], summary: dict[str, Any]) -> str:
    head = f"{'variant':8}{'seed':>5}  {'arm':8}{'best':>7}{'shipped':>9}{'last':>8}  {'ships':>6}  verdict"
    lines = [head, "-" * len(head)]
    for row in rows:
        for arm, f in row["arms"].items():
            lines.append(
                f"{row['variant']:8}{row['seed']:>5}  {arm:8}{f['best']:7.2f}{f['shipped']:9.2f}{f['last']:8.2f}"
                f"  {f['shipped_update']!s:>6}  {f['verdict']}"
            )
    for variant, by_arm in summary["differences"].items():
        for arm, places in by_arm.items():
            told = "   ".join(f"{place} {told_interval(d)}" for place, d in places.items())
            lines.append(f"{variant}: {arm} - raw, {summary['seeds'][variant]} seeds:   {told}")
    return "\n".join(lines)


# ---- the study -----------------------------------------------------------------------------


def study(arguments: argparse.Namespace, arms: list[str], work: Path) -> list[dict[str, Any]]:
    """Every seed of every variant in a process of its own, until all are done or the time is up."""
    deadline = time.monotonic() + (570.0 if arguments.quick else float("inf"))
    variants = ["clean"] if arguments.quick else list(VARIANTS)
    seeds = range(1 if arguments.quick else arguments.seeds)
    wanted = [(variant, seed) for seed in seeds for variant in variants]
    waiting = [(v, s) for v, s in wanted if not (work / f"{v}_{s}.json").exists()]
    running: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    while waiting or running:
        while waiting and len(running) < arguments.jobs and time.monotonic() < deadline:
            variant, seed = waiting.pop(0)
            command = [sys.executable, __file__, "--one", f"{variant}:{seed}", "--work", str(work)]
            command += ["--arms", ",".join(arms)] + ["--smoke"] * arguments.smoke
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            running[variant, seed] = subprocess.Popen(command, env=environment)
        time.sleep(0.5)
        for key, process in list(running.items()):
            late = time.monotonic() >= deadline
            if process.poll() is None and not late:
                continue
            if process.poll() is None:
                process.kill()
            elif process.returncode:
                print(f"{key} failed with exit code {process.returncode}", file=sys.stderr)
            del running[key]
        if time.monotonic() >= deadline:
            waiting = []
    found = [work / f"{variant}_{seed}.json" for variant, seed in wanted]
    return [json.loads(path.read_text()) for path in found if path.exists()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="the tiny preset, to try this script")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--arms", default="raw,par_kl", help=f"some of {', '.join(ARMS)}")
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--one", default="", help="variant:seed, run this only (used inside)")
    arguments = parser.parse_args()
    arms = arguments.arms.split(",")
    if arguments.one:
        variant, _, seed = arguments.one.partition(":")
        preset = "smoke" if arguments.smoke else "demo"
        one(preset, variant, int(seed), arms, arguments.work)
        return
    work = arguments.work or Path(tempfile.mkdtemp(prefix="crestline-shaping-"))
    work.mkdir(parents=True, exist_ok=True)
    rows = study(arguments, arms, work)
    if not rows:
        print("no seed was finished in the time there was")
        print(json.dumps({"seeds": {}}))
        return
    figures = summarise(rows, arms)
    print(table(rows, figures))
    if arguments.full and not arguments.smoke:
        sys.path.insert(0, str(BENCH))
        from demo import machine

        results = BENCH / "results" / "shaping.json"
        results.parent.mkdir(exist_ok=True)
        text = json.dumps({**figures, "runs": rows, "beta": BETA, "machine": machine()}, indent=1)
        results.write_text(text + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
