"""Does a command that was killed with -9 anywhere end with the same bits as one that was not?

    python bench/resume.py --quick                one kill of every job
    python bench/resume.py --full                 50 kills, 10 of them of the whole `crestline run`
    python bench/resume.py --only grpo,ppo --each 5

A job is a real command in a process of its own (`resume_jobs.py`). Each is run once in peace; then again and again,
killed by SIGKILL to its process group and started by the same command once more. Two kinds of kills: by the clock, at
a moment drawn between the first update and the end (told by how many lines the logs had then and how long ago the last
of them came, so that a busy machine changes nothing), and at the disk, at one of the steps drawn from
`resume_disk.py`, which tears what was being written. Some runs are killed again while they go on.

Compared: every file; of metrics, run.json and event files what is not time; of the report that it is there. A kill
counts if the process died of it, an update had been made, and not all was done; others are drawn again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resume_jobs import OUT, REWARD_FUNCTION, RUN, Job, jobs

BENCH = Path(__file__).resolve().parent
LOOK = 0.01
"""Seconds between looks at a process and its logs."""
LONGEST = 400.0
"""Seconds after which a process counts as hung."""
DRAWS = 5
"""How often a kill is drawn until one counts."""
RUN_KILLS, OTHER_KILLS = 10, 40
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


# ---- what must be the same -------------------------------------------------------------------


def fingerprint(folder: Path) -> dict[str, str]:
    """A hash of everything that must be the same, by file."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name == ".lock":
            continue
        place, data = path.relative_to(folder), path.read_bytes()
        if path.name == "metrics.jsonl" and data.endswith(b"\n"):  # else torn
            data = as_bytes([timeless(json.loads(line)) for line in data.splitlines()])
        elif path.name == "run.json":
            stages = json.loads(data)["stages"]
            data = as_bytes({name: stage["state"] for name, stage in stages.items()})
        elif path.name == "report.html":
            data = b"there"  # it tells how long things took
        elif path.parent.name == "tensorboard":
            place, data = place.parent, as_bytes(scalars(path.parent))
        found[str(place)] = hashlib.sha256(data).hexdigest()
    return found


def as_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


def timeless(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.endswith("_seconds")}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: steps and values by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(
        logging.ERROR
    )  # it tells of every event that was redone
    events = EventAccumulator(str(folder))
    events.Reload()
    shown = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    return timeless(
        {name: [(event.step, event.value) for event in found] for name, found in shown.items()}
    )


def differences(found: Mapping[str, str], whole: Mapping[str, str]) -> list[str]:
    """Files that are not the same, or not on both sides."""
    return sorted(
        name for name in found.keys() | whole.keys() if found.get(name) != whole.get(name)
    )


# ---- processes -------------------------------------------------------------------------------

living: set[subprocess.Popen[bytes]] = set()


@contextmanager
def started(command: Sequence[str], place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a group of its own, which is gone afterwards; what it says is in place/said.txt."""
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "said.txt", "wb") as said:
        process = subprocess.Popen(
            command, cwd=place, stdout=said, stderr=said, env=ENVIRONMENT, start_new_session=True
        )
    living.add(process)
    try:
        yield process
    finally:
        kill_group(process)
        living.discard(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait(process: subprocess.Popen[bytes], until: Callable[[], bool]) -> bool:
    """Whether it came so far before the process ended. Raises TimeoutError for one that hangs."""
    began = time.monotonic()
    while process.poll() is None:
        if until():
            return True
        if time.monotonic() - began > LONGEST:
            raise TimeoutError(f"hung for {LONGEST:.0f} s")
        time.sleep(LOOK)
    return False


def never() -> bool:
    return False


def lines(folder: Path) -> int:
    """Lines of all logs below a folder: updates made, answers given; not the data that these start from."""
    total = 0
    for above, _, names in os.walk(folder):
        for name in names if Path(above).name != "data" else ():
            if name.endswith(".jsonl"):
                try:
                    total += Path(above, name).read_bytes().count(b"\n")
                except FileNotFoundError:
                    continue
    return total


def newest(folder: Path) -> int:
    """When anything below a folder last changed."""
    times = [0]
    for above, _, names in os.walk(folder):
        for path in (above, *(os.path.join(above, name) for name in names)):
            try:
                times.append(os.stat(path).st_mtime_ns)
            except FileNotFoundError:
                continue
    return max(times)


# ---- a job in peace --------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """A run that nobody killed. moments: (seconds since its start, lines of its logs) whenever a line came.

    end: seconds until it last wrote anything. steps: what it did to the disk, (what, file).
    """

    files: dict[str, str]
    moments: list[tuple[float, int]]
    end: float
    steps: list[tuple[str, str]]

    @property
    def later_steps(self) -> list[int]:
        """Numbers, from 1, of the steps after the first update."""
        first = next(n for n, step in enumerate(self.steps) if step[0] == "write")
        return list(range(first + 2, len(self.steps) + 1))

    def lines_at(self, seconds: float) -> tuple[float, int]:
        """The last line before a moment: (when, how many lines then)."""
        return [moment for moment in self.moments if moment[0] <= seconds][-1]

    def when(self, count: int) -> float:
        """When there were so many lines, at least."""
        return next((seconds for seconds, found in self.moments if found >= count), self.end)


def in_peace(job: Job, place: Path) -> Whole:
    """Run a job as it is meant to be run."""
    shutil.rmtree(place, ignore_errors=True)
    listed, out, moments = place / "steps.json", place / OUT, list[tuple[float, int]]()
    command = at_the_disk(job, place, "--list", str(listed))
    began = time.time()

    def look() -> bool:
        if (count := lines(out)) and (not moments or count != moments[-1][1]):
            moments.append((time.time() - began, count))
        return False

    with started(command, place) as process:
        wait(process, look)
    if process.returncode:
        said = (place / "said.txt").read_text()[-2000:]
        raise SystemExit(f"{job.name}: exit code {process.returncode} in peace\n{said}")
    if not moments:
        raise SystemExit(f"{job.name}: wrote no log")
    end = max(newest(out) / 1e9 - began, moments[-1][0])
    return Whole(fingerprint(out), moments, end, json.loads(listed.read_text()))


def at_the_disk(job: Job, place: Path, *how: str) -> list[str]:
    child = [sys.executable, str(BENCH / "resume_disk.py"), str(place / OUT)]
    return [*child, *how, "--", *job.program]


# ---- a job that is killed --------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """A kill that is wanted. at_disk: else by the clock. twice: again while it goes on."""

    job: Job
    number: int
    at_disk: bool
    twice: bool


def drawn_moment(whole: Whole, dice: random.Random) -> float:
    """Anywhere between first line and end: half of the time all seconds are alike, else all lines are."""
    borders = [*(seconds for seconds, _ in whole.moments), whole.end]
    after = dice.randrange(len(whole.moments))
    begin, end = dice.choice([(borders[0], whole.end), (borders[after], borders[after + 1])])
    return dice.uniform(begin, end)


def kill_by_clock(
    job: Job, place: Path, whole: Whole, dice: random.Random
) -> tuple[str, int | None]:
    """Kill at a moment between first update and end; returns which it was to be, and the exit code."""
    moment = drawn_moment(whole, dice)
    since, count = whole.lines_at(moment)
    began = time.monotonic()
    with started(job.command, place) as process:
        if wait(process, lambda: lines(place / OUT) >= count):
            pace = (time.monotonic() - began) / since
            pause(process, (moment - since) * pace)
    share = (moment - whole.moments[0][0]) / (whole.end - whole.moments[0][0])
    told = f"{share:.0%} of the time, {1000 * (moment - since):.0f} ms after line {count}"
    return told, process.returncode


def kill_at_disk(
    job: Job, place: Path, whole: Whole, dice: random.Random
) -> tuple[str, int | None]:
    """Let it die at a step, of a kind that is drawn first; returns which, and the exit code."""
    kinds = sorted({whole.steps[number - 1][0] for number in whole.later_steps})
    kind = dice.choice(kinds)
    step = dice.choice([n for n in whole.later_steps if whole.steps[n - 1][0] == kind])
    with started(at_the_disk(job, place, "--step", str(step)), place) as process:
        wait(process, never)
    told = f"{kind} {whole.steps[step - 1][1]}, step {step} of {len(whole.steps)}"
    return told, process.returncode


def pause(process: subprocess.Popen[bytes], seconds: float) -> None:
    end = time.monotonic() + seconds
    wait(process, lambda: time.monotonic() >= end)


def kill_again(job: Job, place: Path, whole: Whole, dice: random.Random) -> bool:
    """Kill it while it goes on, anywhere between its first look at the folder and the end; False if it came to that."""
    before, left = newest(place / OUT), whole.end - whole.when(lines(place / OUT))
    with started(job.command, place) as process:
        if wait(process, lambda: newest(place / OUT) > before):
            pause(process, dice.uniform(0, left))
        was_alive = process.poll() is None
    return was_alive and process.returncode == -signal.SIGKILL


def trial(slot: Slot, attempt: int, seed: int, whole: Whole, work: Path) -> dict[str, Any]:
    """One kill, the same command again, and what came of it."""
    job, dice = slot.job, random.Random(f"{seed} {slot.job.name} {slot.number} {attempt}")
    place = work / f"{job.name}-{slot.number}-{attempt}"
    shutil.rmtree(place, ignore_errors=True)
    kill = kill_at_disk if slot.at_disk else kill_by_clock
    killed, code = kill(job, place, whole, dice)
    found = {"job": job.name, "by": "disk" if slot.at_disk else "clock", "killed": killed}
    begun, left = lines(place / OUT), differences(fingerprint(place / OUT), whole.files)
    row: dict[str, Any] = {**found, "counts": code == -signal.SIGKILL and bool(begun and left)}
    if not row["counts"]:
        shutil.rmtree(place)
        return row
    row["lines"] = begun
    row["checkpoints"] = sum(path.is_dir() for path in (place / OUT).rglob("checkpoint-*"))
    row["killed_again"] = slot.twice and kill_again(job, place, whole, dice)
    try:
        with started(job.command, place) as process:
            wait(process, never)
        row["different"] = differences(fingerprint(place / OUT), whole.files)
        if process.returncode:
            said = (place / "said.txt").read_text().strip()[-400:]
            row["different"] = [f"exit code {process.returncode}: {said}"]
    except TimeoutError as error:
        row["different"] = [str(error)]
    if row["different"]:
        row["kept"] = str(place)
    else:
        shutil.rmtree(place)
    return row


def until_it_counts(slot: Slot, seed: int, whole: Whole, work: Path) -> list[dict[str, Any]]:
    """Draw until a kill counts; all that were drawn."""
    rows = []
    for attempt in range(DRAWS):
        rows.append(trial(slot, attempt, seed, whole, work))
        tell(rows[-1])
        if rows[-1]["counts"]:
            break
    return rows


def tell(row: Mapping[str, Any]) -> None:
    if not row["counts"]:
        told = "does not count"
    else:
        again = "and again: " if row["killed_again"] else ""
        told = again + (f"DIFFERENT {row['different'][:4]}" if row["different"] else "identical")
    print(f"{row['job']:14} {row['by']:5} {row['killed']:66.66}  {told}", flush=True)


# ---- all of them -----------------------------------------------------------------------------


def slots_of(chosen: Sequence[Job], each: int, full: bool) -> list[Slot]:
    """The kills that are wanted: a third at the disk, a quarter twice; the longest job first."""
    counts = dict.fromkeys(chosen, each)
    if full:
        others = [job for job in chosen if job != RUN]
        counts = {job: RUN_KILLS if job == RUN else 0 for job in chosen}
        for number in range(OTHER_KILLS if others else 0):
            counts[others[number % len(others)]] += 1
    turns = [(job, number) for job in chosen for number in range(counts[job])]
    return [
        Slot(job, number, at_disk=turn % 3 == 2, twice=turn % 4 == 1)
        for turn, (job, number) in enumerate(turns)
    ]


def figures_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counted = [row for row in rows if row["counts"]]
    kills = Counter(row["job"] for row in counted)
    same = Counter(row["job"] for row in counted if not row["different"])
    return {
        "kills": len(counted),
        "identical": same.total(),
        "by_job": {job: {"kills": kills[job], "identical": same[job]} for job in kills},
        "at_disk": sum(row["by"] == "disk" for row in counted),
        "twice_killed": sum(row["killed_again"] for row in counted),
        "with_checkpoints": sum(row["checkpoints"] > 0 for row in counted),
        "not_counted": len(rows) - len(counted),
    }


def measure(
    chosen: Sequence[Job], slots: Sequence[Slot], smoke: Whole, given: argparse.Namespace
) -> list[dict[str, Any]]:
    """Every job in peace, then the kills, so many at a time."""
    with ThreadPoolExecutor(given.jobs) as pool:
        others = {
            job: pool.submit(in_peace, job, given.work / job.name) for job in chosen if job != RUN
        }
        wholes = {RUN: smoke} | {job: future.result() for job, future in others.items()}
        for job in chosen:
            whole = wholes[job]
            print(
                f"{job.name:14} {whole.end:5.1f} s of work, {whole.end - whole.moments[0][0]:5.1f} s after the first "
                f"line, {len(whole.files)} files",
                flush=True,
            )
        found = [
            pool.submit(until_it_counts, slot, given.seed, wholes[slot.job], given.work)
            for slot in slots
        ]
        return [row for future in found for row in future.result()]


def smoke_run(work: Path) -> Whole:
    """The whole loop in peace, whose models and files the other jobs begin from; made once in a folder."""
    kept = work / "smoke.json"
    if kept.exists():
        found = json.loads(kept.read_text())
        return Whole(**found | {"moments": [tuple(moment) for moment in found["moments"]]})
    whole = in_peace(RUN, work / "smoke")
    (work / "smoke" / "rewards.py").write_text(REWARD_FUNCTION)
    kept.write_text(json.dumps(asdict(whole)))
    return whole


def end_all(*_: object) -> None:
    """Leave nothing running behind."""
    for process in list(living):
        os.killpg(process.pid, signal.SIGKILL)
    os._exit(143)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one kill of every job (the default)")
    parser.add_argument(
        "--full", action="store_true", help="50 kills, written to results/resume.json"
    )
    parser.add_argument("--only", default="", help="names of jobs, with commas between")
    parser.add_argument("--each", type=int, default=1, help="kills of every job, without --full")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, a thread each")
    parser.add_argument("--seed", type=int, default=0, help="decides which kills are drawn")
    parser.add_argument("--work", type=Path, help="keep the smoke run here, and take it from here")
    given = parser.parse_args()
    given.passing = given.work is None
    given.work = (given.work or Path(tempfile.mkdtemp(prefix="crestline-resume-"))).resolve()
    given.work.mkdir(parents=True, exist_ok=True)
    return given


def main() -> None:
    from crestline.cli.verbs import VERBS

    given = options()
    signal.signal(signal.SIGTERM, end_all)
    signal.signal(signal.SIGINT, end_all)
    known = jobs(given.work / "smoke" / OUT, frozenset(VERBS))
    wanted = given.only.split(",") if given.only else [job.name for job in known]
    if strange := set(wanted) - {job.name for job in known}:
        raise SystemExit(
            f"no job is called {', '.join(strange)}; there are {', '.join(j.name for j in known)}"
        )
    chosen = [job for job in known if job.name in wanted]
    smoke = smoke_run(given.work)
    began = time.monotonic()
    rows = measure(chosen, slots_of(chosen, given.each, given.full), smoke, given)
    figures = figures_of(rows) | {"minutes": round((time.monotonic() - began) / 60, 1)}
    if given.passing and figures["identical"] == figures["kills"]:
        shutil.rmtree(given.work)
    if given.full:
        sys.path.insert(0, str(BENCH))
        from demo import machine

        results = BENCH / "results" / "resume.json"
        results.parent.mkdir(exist_ok=True)
        text = json.dumps(
            {**figures, "seed": given.seed, "trials": rows, "machine": machine()}, indent=1
        )
        results.write_text(text + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
