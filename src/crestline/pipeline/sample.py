"""The sampling verb: K completions for each prompt, written as they come; a killed run goes on where it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crestline.data.formats import read_prompts, samples_as_rows
from crestline.models.load import load_policy, load_tokenizer
from crestline.models.sampling import open_sampler
from crestline.pipeline.configs import SampleConfig
from crestline.runs.begun import SAMPLE_COLUMNS, begin, check_begun, check_free, rows_there
from crestline.runs.files import append_jsonl, mend_jsonl
from crestline.runs.lock import FileLock
from crestline.runs.settings import plain
from crestline.training.configs import required
from crestline.training.seeds import stream
from crestline.types import BadInput, Progress, silent

PROMPTS_PER_BATCH = 50
COMPLETIONS_PER_BATCH = 4096
"""Sampled between two writes at most, or those of one prompt."""


def sample(config: SampleConfig, *, device: str = "cpu", progress: Progress = silent) -> Path:
    """Sample and return the file. Prompts that the file holds already are not sampled again.

    Raises BadInput where the file holds samples of other prompts, or made with other settings, or is no file of
    samples, or another process writes it.
    """
    required(config, "model_name_or_path", "dataset_name", "output_file")
    rows_there(config.output_file, config.dataset_name, SAMPLE_COLUMNS)
    with FileLock(Path(config.output_file)):
        return write_samples(config, device=device, progress=progress, settings=settings_of(config))


def settings_of(config: SampleConfig) -> dict[str, Any]:
    """What decides the samples of a prompt."""
    passed_over = ("dataset_name", "dataset_train_split", "output_file")
    return {name: value for name, value in plain(config).items() if name not in passed_over}


def write_samples(
    config: SampleConfig,
    *,
    device: str,
    progress: Progress,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """`sample`, for who holds its lock; settings: kept beside the file and compared; None: not."""
    rows = read_prompts(config.dataset_name, split=config.dataset_train_split)
    prompts = [row.text for row in rows]
    path = Path(config.output_file)
    done = rows_there(config.output_file, config.dataset_name, SAMPLE_COLUMNS)
    mend_jsonl(path)
    if any(row["prompt"] != prompt for row, prompt in zip(done, prompts, strict=False)):
        raise BadInput(f"{path} holds samples of other prompts; choose another --output_file")
    if others := {len(row["completions"]) for row in done} - {config.num_generations}:
        raise BadInput(
            f"{path} holds {others.pop()} completions of a prompt, not {config.num_generations}; "
            "choose another --output_file"
        )
    if settings:
        (check_begun if done else check_free)(path, settings)
    if len(done) >= len(prompts):
        return path
    tokenizer = load_tokenizer(config.model_name_or_path)
    sampler = open_sampler(
        load_policy(config.model_name_or_path, device=device),
        tokenizer,
        sampler=config.sampler,
        max_completion_length=config.max_completion_length,
        temperature=config.temperature,
    )
    together = max(1, min(PROMPTS_PER_BATCH, COMPLETIONS_PER_BATCH // config.num_generations))
    for start in range(len(done), len(prompts), together):
        part = range(start, min(start + together, len(prompts)))
        asked = [prompts[n] for n in part for _ in range(config.num_generations)]
        seeds = [
            stream(config.seed, "sample", n, k) for n in part for k in range(config.num_generations)
        ]
        texts = [completion.text for completion in sampler.sample(asked, seeds)]
        groups = [
            (prompts[n], texts[i * config.num_generations : (i + 1) * config.num_generations])
            for i, n in enumerate(part)
        ]
        if settings and start == 0:
            begin(path, settings)
        append_jsonl(path, samples_as_rows(groups))
        progress(part.stop, len(prompts), {})
    return path
