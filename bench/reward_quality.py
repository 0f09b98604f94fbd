"""Are the reward models any good? Beside TRL on real data, rankings against pairs, calibration, spread.

    python bench/reward_quality.py --quick            two seeds of all but losses, smaller; under 10 minutes on 2 cores
    python bench/reward_quality.py --full --work DIR  writes bench/results/reward_quality.json; goes on where it stopped
    python bench/reward_quality.py --full --only trl  some of world, losses, trl; the rest stays as it was written last

Beside TRL: human jokes, HH helpful-base and four ranked answers, from the MiniLM encoder and from a Llama pretrained
on TinyStories; 5 seeds. A seed splits the data by prompt (jokes: by text) and draws the head; both sides begin from
the same weights and head, see the same rankings, read each text as often, and take as many steps by the same
schedule. Ours is the verb as it stands; TRL computes in float32 and gets rankings of four as their pairs, of which it
reads as many texts in as many updates.

The embedded world: for each of 10 seeds a fresh crowd ranks 2,000 groups of five samples, which are learned whole and
as ten pairs each (as many updates), by four heads, and by four models, each of half the data. Temperatures come from
rankings apart; figures from 1,000 more, of prompts that nothing was trained on. For each of 4 seeds the same rankings
are learned whole, by both losses, for two and for four epochs, and as pairs in as many updates as the longer ones.

Intervals over seeds are t intervals of the paired difference, in points where they are of accuracies.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from demo import machine
from peers.conversations import MINILM, PEERS, SHARED, require
from peers.preferences import FILES

BENCH = Path(__file__).resolve().parent
BACKBONES = ("minilm", "tinystories")
Rows = Sequence[dict[str, Any]]


# ---- the study, piece by piece ---------------------------------------------------------------


def pieces(options: argparse.Namespace) -> list[str]:
    """Names of all pieces, the policy of the world first."""
    seeds, world_seeds = (5, 10) if options.full else (2, 2)
    seeds, backbones = options.seeds or seeds, options.backbones.split(",")
    trl = [f"trl/{d}/{b}/{s}" for b in backbones for s in range(seeds) for d in FILES]
    world = [f"world/{seed}" for seed in range(world_seeds)]
    losses = [f"losses/{seed}" for seed in range(4 if options.full else 2)]
    whole = ["policy", *world, *losses, *trl]
    usual = "world,losses,trl" if options.full else "world,trl"
    only = {"policy", *(options.only or usual).split(",")}
    return [piece for piece in whole if piece.split("/")[0] in only]


def do(piece: str, work: Path, quick: bool, threads: int) -> None:
    """One piece, in a process of its own: its figures as a file."""
    import torch

    from quality import beside_trl, world

    torch.set_num_threads(threads)
    size = world.QUICK if quick else world.FULL
    began = time.perf_counter()
    kind, *what = piece.split("/")
    if kind == "policy":
        world.policy(work, size)
        figures: dict[str, Any] = {}
    elif kind == "world":
        figures = world.study(work, size, int(what[0]))
    elif kind == "losses":
        figures = world.losses(work, size, int(what[0]))
    else:
        share = 0.25 if quick else 1.0
        figures = beside_trl.study(what[0], what[1], int(what[2]), share, threads)
    figures |= {"seconds": round(time.perf_counter() - began, 1), "machine": machine()}
    path = file_of(piece, work)
    path.with_suffix(".tmp").write_text(json.dumps(figures))
    path.with_suffix(".tmp").replace(path)


def file_of(piece: str, work: Path) -> Path:
    return work / f"{piece.replace('/', '_')}.json"


def all_pieces(options: argparse.Namespace, work: Path) -> None:
    """Run what is not done yet, as many pieces at once as there are jobs; the policy before all."""
    waiting = [piece for piece in pieces(options) if not file_of(piece, work).exists()]
    running: dict[str, subprocess.Popen[bytes]] = {}
    while waiting or running:
        alone = "policy" in running or (waiting[:1] == ["policy"] and bool(running))
        if waiting and len(running) < options.jobs and not alone:
            piece = waiting.pop(0)
            threads = os.cpu_count() if piece == "policy" else options.threads
            command = [sys.executable, __file__, "--one", piece, "--work", str(work)]
            command += ["--threads", str(threads)] + ["--full"] * options.full
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
            running[piece] = subprocess.Popen(command, env=environment)
            continue
        time.sleep(0.2)
        for piece, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[piece]
            if process.returncode:
                sys.exit(f"{piece} failed with exit code {process.returncode}")
            seconds = json.loads(file_of(piece, work).read_text())["seconds"]
            print(f"{piece}: {seconds:.0f} s", file=sys.stderr, flush=True)


# ---- what the figures say ----------------------------------------------------------------------


def over_seeds(values: Sequence[float], unit: float = 1.0) -> list[float]:
    """Mean and its 95 % t interval: [mean, low, high]."""
    array = np.asarray(values, dtype=np.float64) * unit
    half = stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5
    return [round(float(v), 4) for v in (array.mean(), array.mean() - half, array.mean() + half)]


def beside_trl(rows: Rows) -> dict[str, Any]:
    """For each task, and for the mean over tasks: ours minus TRL's, in points."""
    tasks: dict[str, Any] = {}
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], []).append(row["ours_accuracy"] - row["trl_accuracy"])
    for data in FILES:
        for backbone in BACKBONES:
            own = [row for row in rows if (row["data"], row["backbone"]) == (data, backbone)]
            if not own:
                continue
            differences = [row["ours_accuracy"] - row["trl_accuracy"] for row in own]
            tasks[f"{data}/{backbone}"] = {
                "ours": over_seeds([row["ours_accuracy"] for row in own], 100),
                "trl": over_seeds([row["trl_accuracy"] for row in own], 100),
                "difference": over_seeds(differences, 100),
                "longer_wins": round(100 * float(np.mean([r["longer_wins"] for r in own])), 2),
                "num_test_pairs": [row["num_test_pairs"] for row in own],
            }
    return {"tasks": tasks, "mean": over_seeds([float(np.mean(v)) for v in by_seed.values()], 100)}


def arms(rows: Rows, kinds: Sequence[str]) -> dict[str, Any]:
    """What each kind of reward model is worth over seeds, and the median of its seconds."""
    longer = [row["whole"]["longer_wins_accuracy"] for row in rows]
    return {
        "accuracy": {k: over_seeds([r[k]["accuracy"] for r in rows], 100) for k in kinds},
        "gold_accuracy": {k: over_seeds([r[k]["gold_accuracy"] for r in rows], 100) for k in kinds},
        "seconds": {k: float(np.median([r[k]["seconds"] for r in rows])) for k in kinds},
        "longer_wins": round(100 * float(np.mean(longer)), 2),
    }


WHOLE = ("whole", "whole_by_pairs", "whole_longer", "whole_by_pairs_longer")


def of_losses(rows: Rows) -> dict[str, Any]:
    """Whole rankings minus their pairs, and by pairs minus by Plackett and Luce, over seeds, in points."""

    def paired(left: str, right: str) -> dict[str, list[float]]:
        return {
            key: over_seeds([row[left][key] - row[right][key] for row in rows], 100)
            for key in ("accuracy", "gold_accuracy", "hit")
        }

    return {
        **arms(rows, (*WHOLE, "pairs")),
        "minus_pairs": {kind: paired(kind, "pairs") for kind in WHOLE},
        "by_pairs_minus_plackett_luce": paired("whole_by_pairs", "whole"),
        "by_pairs_minus_plackett_luce_longer": paired("whole_by_pairs_longer", "whole_longer"),
    }


def of_world(rows: Rows) -> dict[str, Any]:
    """Whole rankings against pairs, calibration, and what spread knows, over seeds."""

    def paired(key: str, left: str, right: str) -> list[float]:
        return over_seeds([row[left][key] - row[right][key] for row in rows], 100)

    def mean(pick: Callable[[dict[str, Any]], float]) -> list[float]:
        return over_seeds([pick(row) for row in rows])

    calibration: dict[str, Any] = {}
    for name in ("ece", "ece_floor", "ece_uncalibrated", "log_loss", "brier"):
        calibration[name] = mean(lambda row, n=name: row["whole"]["calibration"][n])
    calibration["ece_above_floor"] = mean(
        lambda row: row["whole"]["calibration"]["ece"] - row["whole"]["calibration"]["ece_floor"]
    )
    for name in ("log_loss", "brier"):
        for other in ("uncalibrated", "constant"):
            key = f"{name}_gain_over_{other}"
            calibration[key] = mean(lambda row, n=key: row["whole"]["calibration"][n])
    spread = {
        kind: {
            name: mean(lambda row, k=kind, n=name: row[k]["ensemble"][n])
            for name in (
                "auroc_margin",
                "auroc_spread",
                "auroc_both",
                "auroc_spread_over_margin",
                "auroc_both_over_margin",
            )
        }
        for kind in ("heads", "models")
    }
    return {
        **arms(rows, ("whole", "pairs", "heads", "models")),
        "whole_minus_pairs": paired("accuracy", "whole", "pairs"),
        "whole_minus_pairs_gold": paired("gold_accuracy", "whole", "pairs"),
        "whole_minus_pairs_hit": paired("hit", "whole", "pairs"),
        "models_minus_whole": paired("accuracy", "models", "whole"),
        "calibration": calibration,
        "spread": spread,
    }


def told(values: Sequence[float], form: str = "+.2f") -> str:
    return f"{values[0]:{form}} ({values[1]:{form}} to {values[2]:{form}})"


def show(trl: dict[str, Any], world: dict[str, Any], losses: dict[str, Any] | None) -> None:
    """Tables for people."""
    print(f"\n{'held-out accuracy, %':24}{'ours':>26}{'TRL':>26}{'difference, points':>28}  longer")
    for name, row in trl["tasks"].items():
        cells = told(row["ours"], ".1f"), told(row["trl"], ".1f"), told(row["difference"])
        print(f"{name:24}{cells[0]:>26}{cells[1]:>26}{cells[2]:>28}{row['longer_wins']:8.1f}")
    print(f"{'mean over tasks':24}{'':52}{told(trl['mean']):>28}")
    for study in filter(None, (world, losses)):
        print(f"\nworld, accuracy on people / by gold, %; longer wins {study['longer_wins']:.1f}")
        for name, values in study["accuracy"].items():
            cells = told(values, ".2f"), told(study["gold_accuracy"][name], ".2f")
            print(f"  {name:22}{cells[0]:>24}{cells[1]:>24}{study['seconds'][name]:8.0f} s")
    print(
        f"  whole rankings minus pairs, as many updates: {told(world['whole_minus_pairs'])} points on people, "
        f"{told(world['whole_minus_pairs_gold'])} by gold"
    )
    for name, row in losses["minus_pairs"].items() if losses else ():
        cells = told(row["accuracy"]), told(row["gold_accuracy"])
        print(f"  {name} minus pairs: {cells[0]} points on people, {cells[1]} by gold")
    print("\ncalibration on one random pair of each ranking")
    for name, values in world["calibration"].items():
        print(f"  {name:32}{told(values, '.4f'):>32}")
    print("\ntelling wrong from right, AUROC")
    for kind, row in world["spread"].items():
        for name, values in row.items():
            print(f"  {kind:8}{name:32}{told(values, '.4f'):>32}")


def summary(
    trl: dict[str, Any], world: dict[str, Any], losses: dict[str, Any] | None
) -> dict[str, Any]:
    """The figures that are watched."""
    calibration = world["calibration"]
    return {
        "accuracy_minus_trl": trl["mean"][0],
        "accuracy_minus_trl_low": trl["mean"][1],
        "accuracy_minus_trl_low_by_task": {k: v["difference"][1] for k, v in trl["tasks"].items()},
        "whole_minus_pairs": world["whole_minus_pairs"],
        "whole_minus_pairs_gold": world["whole_minus_pairs_gold"],
        **{
            f"losses_{kind}_minus_pairs": row["accuracy"]
            for kind, row in (losses["minus_pairs"] if losses else {}).items()
        },
        "ece": calibration["ece"][0],
        "ece_floor": calibration["ece_floor"][0],
        "log_loss_gain_over_uncalibrated": calibration["log_loss_gain_over_uncalibrated"],
        "log_loss_gain_over_constant": calibration["log_loss_gain_over_constant"],
        "brier_gain_over_uncalibrated": calibration["brier_gain_over_uncalibrated"],
        "brier_gain_over_constant": calibration["brier_gain_over_constant"],
        **{
            f"{kind}_{name}": world["spread"][kind][name]
            for kind in ("heads", "models")
            for name in ("auroc_margin", "auroc_spread_over_margin", "auroc_both_over_margin")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=0, help="beside TRL; 0: 5, 2 with --quick")
    parser.add_argument("--backbones", default=",".join(BACKBONES), help="one of them or both")
    parser.add_argument("--only", default="", help="some of world,losses,trl")
    parser.add_argument("--work", type=Path, default=None, help="where pieces are kept")
    parser.add_argument("--one", default=None, help="do this piece only (used inside)")
    options = parser.parse_args()
    if options.one:
        do(options.one, options.work, not options.full, options.threads)
        return
    require(PEERS / ".done", MINILM, SHARED / "models" / "tinystories-656k", *FILES.values())
    work = options.work or Path(tempfile.mkdtemp(prefix="crestline-quality-"))
    work.mkdir(parents=True, exist_ok=True)
    all_pieces(options, work)
    results, rows = BENCH / "results" / "reward_quality.json", dict[str, dict[str, Any]]()
    if options.full and options.only and results.exists():
        rows = json.loads(results.read_text())["pieces"]
    rows |= {name: json.loads(file_of(name, work).read_text()) for name in pieces(options)}

    def of(kind: str) -> Rows:
        return [row for name, row in rows.items() if name.startswith(f"{kind}/")]

    trl, world = beside_trl(of("trl")), of_world(of("world"))
    losses = of_losses(of("losses")) if of("losses") else None
    show(trl, world, losses)
    figures = {**summary(trl, world, losses), "machine": machine()}  # each piece has its own
    figures["seeds_beside_trl"] = len({row["seed"] for row in of("trl")})
    if options.full:
        whole = {**figures, "beside_trl": trl, "world": world, "losses": losses}
        whole["pieces"] = rows
        results.write_text(json.dumps(whole, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
