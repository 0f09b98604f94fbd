"""The choosing verb: N completions for each prompt, scored; the best of each out, and what every n up to N would buy.

Owns the order of the work, and that none of it is done twice. How samples come and how scores are made is elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from crestline.data.code import load_function
from crestline.data.formats import demonstrations_as_rows, read_samples
from crestline.models.calibration import Calibration
from crestline.models.load import load_tokenizer
from crestline.models.reward import load_reward_model
from crestline.pipeline.best_of_n_files import Files, Samples, check_same, given_prompts
from crestline.pipeline.configs import BestOfNConfig, SampleConfig
from crestline.pipeline.sample import write_samples
from crestline.pipeline.screen import Screen, Silent
from crestline.report.best_of_n_page import write_best_of_n_page
from crestline.rewards.best_of_n import Scored, best_of_n_figures
from crestline.rewards.functions import FunctionReward
from crestline.rewards.sources import LearnedReward, Reward
from crestline.runs.files import (
    append_jsonl,
    mend_jsonl,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl_atomic,
)
from crestline.training.configs import required
from crestline.training.rewarding import sources_of, weights_of
from crestline.types import BadInput, Demonstration, Progress, Prompt

COMPLETIONS_PER_WRITE = 2048
"""Scored between two writes, at least a prompt's."""
NUM_EXAMPLES = 8
"""Prompts whose answers the page shows."""


def best_of_n(config: BestOfNConfig, *, device: str = "cpu", screen: Screen | None = None) -> Path:
    """Choose the best of N for each prompt; returns output_file. Its .json and .html beside it hold the curve.

    What was sampled and scored before is kept: a killed run goes on, and one that is done only counts anew.
    Raises: BadInput for input that cannot be used; Paused where a reward function or a server fails.
    """
    required(config, "output_file")
    screen, files = screen or Silent(), Files(Path(config.output_file))
    prompts, samples = given_prompts(config)
    files.check(config)
    reward, judge = scorers(config, device)
    was_begun = files.begin(config)
    try:
        if samples is None:
            samples = sampled(config, files, prompts, device, screen.stage("sample", "loading"))
        progress = screen.stage("score", "")
        scored = score(prompts, samples, reward, judge, files.scored, progress)
    except BadInput:
        if not was_begun:
            files.abandon()
        raise
    write_jsonl_atomic(files.best, best_rows(scored))
    begun = {"settings": read_json(files.figures)["settings"], "is_done": True}
    figures = best_of_n_figures(scored, seed=config.seed)
    write_json(files.figures, begun | figures | {"examples": examples(scored)})
    write_best_of_n_page(files.figures)
    return files.best


def scorers(config: BestOfNConfig, device: str) -> tuple[Reward, Reward | None]:
    """Who chooses, and who else is asked. Raises BadInput for whom there is not, or for one in both places."""
    tokenizer = None
    if config.reward_sources.remote_rm_url:
        tokenizer = load_tokenizer(config.model_name_or_path)
    sources = sources_of(config, tokenizer, device)
    reward = Reward(sources, weights_of(config, len(sources)), Calibration())
    if not config.judge:
        return reward, None
    if config.judge_is_function:
        function = load_function("judge", config.judge)
        return reward, alone(FunctionReward(function, f"--judge {config.judge}"))
    return reward, alone(LearnedReward(load_reward_model(config.judge, device=device)))


def alone(source: FunctionReward | LearnedReward) -> Reward:
    """One source as a reward."""
    return Reward([source], [1.0], Calibration())


def sampled(
    config: BestOfNConfig, files: Files, prompts: Sequence[Prompt], device: str, progress: Progress
) -> Samples:
    """Samples of all prompts, of which the file may hold some already."""
    settings = SampleConfig(
        model_name_or_path=config.model_name_or_path,
        dataset_name=config.dataset_name,
        dataset_train_split=config.dataset_train_split,
        output_file=str(files.samples),
        num_generations=config.num_generations,
        max_completion_length=config.max_completion_length,
        temperature=config.temperature,
        sampler=config.sampler,
        seed=config.seed,
    )
    samples = read_samples(str(write_samples(settings, device=device, progress=progress)))
    check_same(prompts, samples, files.samples)
    return samples


def score(
    prompts: Sequence[Prompt],
    samples: Samples,
    reward: Reward,
    judge: Reward | None,
    path: Path,
    progress: Progress,
) -> list[Scored]:
    """All samples with their scores, in order; those that the file holds are not scored again."""
    done = scored_before(path, samples)
    for part in parts([len(texts) for _, texts in samples], COMPLETIONS_PER_WRITE, len(done)):
        asked = [prompts[n] for n in part for _ in samples[n][1]]
        texts = [text for n in part for text in samples[n][1]]
        said = said_of(reward, asked, texts)
        judged = said_of(judge, asked, texts) if judge else []
        found, start = [], 0
        for n in part:
            stop = start + len(samples[n][1])
            found.append(
                Scored(
                    prompt=samples[n][0],
                    completions=tuple(samples[n][1]),
                    scores=tuple(said[start:stop]),
                    judge_scores=tuple(judged[start:stop]),
                )
            )
            start = stop
        append_jsonl(path, [asdict(item) for item in found])
        done += found
        progress(part.stop, len(samples), {})
    return done


def said_of(reward: Reward, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    """Raw scores. Raises BadInput for one that is not finite: JSON and order have no place for it."""
    raw = reward.judge(prompts, texts).raw
    if not np.isfinite(raw).all():
        raise BadInput(
            f"{reward.sources[0].name} gives a score that is no number; its weights or the reward_weights are damaged"
        )
    return raw


def scored_before(path: Path, samples: Samples) -> list[Scored]:
    """What the file holds. Raises BadInput where that is not of these samples."""
    mend_jsonl(path)
    rows = read_jsonl(path, missing_ok=True)
    try:
        found = [
            Scored(
                prompt=row["prompt"],
                completions=tuple(row["completions"]),
                scores=tuple(float(value) for value in row["scores"]),
                judge_scores=tuple(float(value) for value in row["judge_scores"]),
            )
            for row in rows
        ]
    except (KeyError, TypeError, ValueError):
        raise BadInput(f"{path} was not written by best-of-n; remove it") from None
    there = [(item.prompt, list(item.completions)) for item in found]
    if there != samples[: len(there)]:
        raise BadInput(f"{path} holds scores of other samples; choose another --output_file")
    return found


def parts(counts: Sequence[int], most: int, start: int) -> Iterator[range]:
    """Ranges that cover counts[start:], of neighbours whose counts sum to `most` at most, at least one each.

    >>> list(parts([2, 2, 2, 9], 4, 0))
    [range(0, 2), range(2, 3), range(3, 4)]
    """
    while start < len(counts):
        stop, total = start + 1, counts[start]
        while stop < len(counts) and total + counts[stop] <= most:
            total += counts[stop]
            stop += 1
        yield range(start, stop)
        start = stop


def best_rows(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """The chosen completion of each prompt as a demonstration, with what was said of it."""
    chosen = [Demonstration(prompt=s.prompt, completion=s.completions[s.best]) for s in scored]
    rows = []
    for row, item in zip(demonstrations_as_rows(chosen), scored, strict=True):
        row["score"] = item.scores[item.best]
        if item.judge_scores:
            row["judge_score"] = item.judge_scores[item.best]
        rows.append(row | {"num_generations": len(item.completions)})
    return rows


def examples(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """A few prompts, evenly spaced: their first sample, which nobody chose, beside the chosen one."""
    step = max(1, len(scored) // NUM_EXAMPLES)
    found = []
    for item in scored[::step][:NUM_EXAMPLES]:
        row: dict[str, Any] = {"prompt": item.prompt}
        for name, k in (("first", 0), ("best", item.best)):
            judged = item.judge_scores[k] if item.judge_scores else None
            row[name] = {
                "completion": item.completions[k],
                "score": item.scores[k],
                "judge": judged,
            }
        found.append(row)
    return found
