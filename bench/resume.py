"""Does a run that was killed with -9 end with the same bits as one that was not?

    python bench/resume.py --quick     one kill in every stage and inside checkpoint writes
    python bench/resume.py --full      20 kills, stratified by stage, and some inside checkpoint writes

Each trial is a `crestline run --preset smoke` in a process of its own, killed by SIGKILL at a chosen point and then
continued by `crestline run --resume`. Compared with a run that nobody killed: all weights, rankings, completions,
answers, verdict and every metric but the `*_seconds`. A kill counts only if work existed before it and was left
after it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
STAGES = ("pretrain", "sft", "sample", "rank", "reward", "rl", "crest", "gold")
QUICK = [
    *(f"{stage}@0.5" for stage in STAGES),
    "write:pretrain@2",
    "write:rl@3",
]
FULL = [
    *(f"{stage}@{place}" for stage in ("pretrain", "sft", "reward") for place in (0.2, 0.7)),
    *(f"rl@{place}" for place in (0.1, 0.35, 0.6, 0.8)),
    *(f"{stage}@0.5" for stage in ("sample", "rank", "gold")),
    "crest@0.3",
    "crest@0.8",
    "write:pretrain@2",
    "write:sft@2",
    "write:reward@2",
    "write:rl@2",
    "write:rl@5",
]


# ---- the process that dies -------------------------------------------------------------------


class Fatal:
    """A screen that kills its process when a stage is so far; it shows nothing."""

    def __init__(self, stage: str, fraction: float) -> None:
        self.wanted, self.fraction = stage, fraction

    def say(self, text: str) -> None: ...

    def stage(self, name: str, text: str) -> Any:
        def progress(done: int, total: int, metrics: Any) -> None:
            if name == self.wanted and self.fraction <= done / total < 1:
                os.kill(os.getpid(), signal.SIGKILL)

        self.current = name
        return progress


def child(folder: Path, kill: str, preset: str, seed: int) -> None:
    """Start the run, and die where `kill` says: stage@fraction, or write:stage@n for the n-th checkpoint write."""
    from crestline.pipeline.presets import PRESETS
    from crestline.pipeline.run import run
    from crestline.training import fit

    what, _, place = kill.partition("@")
    screen = Fatal(what, float(place or 0))
    if what.startswith("write:"):
        whole, count = fit.save_file, [0]

        def torn(tensors: Any, path: Any) -> None:
            whole(tensors, path)
            if screen.current == what.removeprefix("write:"):
                count[0] += 1
                if count[0] == int(place):
                    data = Path(path).read_bytes()
                    Path(path).write_bytes(data[: len(data) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)

        fit.save_file = torn  # type: ignore[assignment]
    config = replace(PRESETS[preset], output_dir=str(folder), seed=seed, num_threads=1)
    run(config, screen=screen)


# ---- comparing -------------------------------------------------------------------------------


def fingerprint(folder: Path) -> dict[str, str]:
    """A hash of everything that must be the same, by file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or path.name in (".lock", "run.json", "report.html"):
            continue
        data = path.read_bytes()
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in data.decode().splitlines()]
            kept = [{k: v for k, v in r.items() if not k.endswith("_seconds")} for r in rows]
            data = json.dumps(kept).encode()
        elif path.name == "config.yaml" or path.name == "config.json":
            data = data.replace(str(folder).encode(), b"RUN")
        elif path.suffix in (".json", ".md") or path.name == "README.md":
            data = data.replace(str(folder).encode(), b"RUN").replace(folder.name.encode(), b"RUN")
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def trial(kill: str, whole: dict[str, str], work: Path, preset: str, seed: int) -> dict[str, Any]:
    """One kill and one resume: whether it counts, and which files differ."""
    folder = work / kill.replace(":", "-").replace("@", "-")
    command = [sys.executable, __file__, "--child", str(folder), "--kill", kill]
    dead = subprocess.run([*command, "--preset", preset, "--seed", str(seed)], check=False)
    counts = dead.returncode == -signal.SIGKILL and (folder / "run.json").exists()
    counts = counts or kill.startswith(("pretrain", "write:pretrain"))
    counts = counts and dead.returncode == -signal.SIGKILL and not (folder / "report.html").exists()
    began = time.perf_counter()
    resumed = subprocess.run(
        [sys.executable, "-m", "crestline", "run", "--resume", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = round(time.perf_counter() - began, 1)
    found = fingerprint(folder)
    different = sorted(
        name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name)
    )
    if resumed.returncode:
        different = [f"exit code {resumed.returncode}: {resumed.stderr.strip()[-300:]}"]
    shutil.rmtree(folder, ignore_errors=True)
    return {"kill": kill, "counts": counts, "different": different, "resume_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--preset", default="smoke")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path, default=None)
    parser.add_argument("--kill", default="")
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.kill, arguments.preset, arguments.seed)
        return
    work = Path(tempfile.mkdtemp(prefix="crestline-resume-"))
    child_command = [sys.executable, __file__, "--child", str(work / "whole")]
    subprocess.run([*child_command, "--seed", str(arguments.seed)], check=True)
    whole = fingerprint(work / "whole")
    trials = []
    for kill in FULL if arguments.full else QUICK:
        trials.append(trial(kill, whole, work, arguments.preset, arguments.seed))
        row = trials[-1]
        verdict = "identical" if not row["different"] else f"DIFFERENT: {row['different'][:3]}"
        counted = "" if row["counts"] else "  (does not count)"
        print(
            f"{row['kill']:18} {row['resume_seconds']:6.1f} s to resume  {verdict}{counted}",
            flush=True,
        )
    counted = [row for row in trials if row["counts"]]
    figures = {
        "kills": len(counted),
        "identical": sum(not row["different"] for row in counted),
        "files_compared": len(whole),
        "not_counted": len(trials) - len(counted),
    }
    if arguments.full:
        sys.path.insert(0, str(BENCH))
        from demo import machine

        results = BENCH / "results" / "resume.json"
        results.parent.mkdir(exist_ok=True)
        text = json.dumps({**figures, "trials": trials, "machine": machine()}, indent=1)
        results.write_text(text + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
