"""The ranking verb: people order the samples; each answer is kept as soon as it is given, and never asked again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crestline.data.formats import read_samples
from crestline.data.rankings import rankings_as_rows, read_rankings
from crestline.pipeline.configs import RankConfig
from crestline.pipeline.who import people_of
from crestline.runs.begun import RANKING_COLUMNS, begin, check_begun, check_free, rows_there
from crestline.runs.files import append_jsonl, mend_jsonl
from crestline.runs.lock import FileLock
from crestline.runs.settings import plain
from crestline.training.configs import required
from crestline.types import BadInput, People, Progress, PromptText, Ranking, silent

ANSWERS_PER_WRITE = 50


def rank(config: RankConfig, *, progress: Progress = silent) -> Path:
    """Let the people that the config names rank the samples; returns the rankings file.

    Raises BadInput where the file holds rankings of other samples, or asked for with other settings, or is no file of
    rankings, or another process writes it.
    """
    required(config, "dataset_name", "people", "output_file")
    rows_there(config.output_file, config.dataset_name, RANKING_COLUMNS)
    asked = plain(config)
    settings = {name: asked[name] for name in ("people", "flip_probability", "seed")}
    with FileLock(Path(config.output_file)):
        return write_rankings(config, progress=progress, settings=settings)


def write_rankings(
    config: RankConfig, *, progress: Progress, settings: Mapping[str, Any] | None = None
) -> Path:
    """`rank`, for who holds its lock; settings: kept beside the file and compared; None: not."""
    samples = read_samples(config.dataset_name)
    people = people_of(config.people, seed=config.seed, flip_probability=config.flip_probability)
    path = Path(config.output_file)
    rows = rows_there(config.output_file, config.dataset_name, RANKING_COLUMNS)
    mend_jsonl(path)
    num_done = check_done(path, samples, people) if rows else 0
    if settings:
        (check_begun if num_done else check_free)(path, settings)
    several = ANSWERS_PER_WRITE if people.answered_by == "simulated people" else 1
    waiting: list[Ranking] = []
    for number in range(num_done, len(samples)):
        prompt, completions = samples[number]
        waiting.append(ask(people, prompt, completions, question_id=f"rank/{number}"))
        if len(waiting) >= several or number == len(samples) - 1:
            if settings and number + 1 == len(waiting):
                begin(path, settings)
            append_jsonl(path, rankings_as_rows(waiting))
            waiting = []
            progress(number + 1, len(samples), {})
    return path


def check_done(
    path: Path, samples: Sequence[tuple[PromptText, Sequence[str]]], people: People
) -> int:
    """How many rankings the file holds. Raises BadInput if they are not of these samples by these people."""
    done = read_rankings(str(path), keep_all=True)
    asked = [(prompt, tuple(completions)) for prompt, completions in samples]
    if [(row.prompt, row.completions) for row in done] != asked[: len(done)]:
        raise BadInput(f"{path} holds rankings of other samples; choose another --output_file")
    if any(row.answered_by != people.answered_by for row in done):
        raise BadInput(f"{path} holds rankings by others; choose another --output_file")
    return len(done)


def ask(
    people: People, prompt: PromptText, completions: Sequence[str], *, question_id: str
) -> Ranking:
    """One ranking: values become ranks, 0 is best, equal values tie, None is not ranked."""
    values = people.rank(prompt, completions, question_id=question_id)
    order = sorted({value for value in values if value is not None}, reverse=True)
    ranks = tuple(None if value is None else order.index(value) for value in values)
    return Ranking(
        prompt=prompt,
        completions=tuple(completions),
        ranks=ranks,
        answered_by=people.answered_by,
    )
