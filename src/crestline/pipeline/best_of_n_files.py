"""What best-of-n reads and where it writes, looked at before any model is loaded. Torch-free.

Owns the names of the files beside output_file, and whether they belong to the same settings. Knows nothing of scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crestline.data.formats import read_prompts, read_samples
from crestline.pipeline.configs import BestOfNConfig
from crestline.runs.checkpoints import clean_temporary
from crestline.runs.files import read_json, write_json
from crestline.runs.settings import plain
from crestline.types import BadInput, Prompt, PromptText

Samples = list[tuple[PromptText, list[str]]]
"""Prompts, each with its completions."""


@dataclass(frozen=True, slots=True)
class Files:
    """Everything that best-of-n writes.

    >>> Files(Path("runs/best.jsonl")).figures.name, Files(Path("runs/best.jsonl")).scored.name
    ('best.json', 'best.scored.jsonl')
    """

    best: Path

    @property
    def samples(self) -> Path:
        """All samples, where none were given."""
        return self.best.with_suffix(".samples.jsonl")

    @property
    def scored(self) -> Path:
        """All samples with their scores."""
        return self.best.with_suffix(".scored.jsonl")

    @property
    def figures(self) -> Path:
        """Settings and curve; written first, so that whoever goes on knows what was begun."""
        return self.best.with_suffix(".json")

    def check(self, config: BestOfNConfig) -> bool:
        """Whether this was begun before. Raises BadInput where it was with other settings, or another file is there."""
        if self.best.suffix != ".jsonl":
            raise BadInput(f"--output_file {self.best}: expected a name that ends in .jsonl")
        if not self.figures.exists():
            for path in (self.best, self.samples, self.scored):
                if path.exists():
                    raise BadInput(
                        f"{path} is there, and no {self.figures.name} that says what made it; "
                        "choose another --output_file"
                    )
            return False
        found = read_json(self.figures)
        there = found.get("settings") if isinstance(found, dict) else None
        if not isinstance(there, dict):
            raise BadInput(f"{self.figures} is not of best-of-n; choose another --output_file")
        here = settings_of(config)
        there = settings_of(BestOfNConfig()) | there  # an older version did not know all of them
        for key in here:
            if there[key] != here[key]:
                again = f" (--samples_file {self.samples} takes its samples)"
                raise BadInput(
                    f"{self.best} was begun with {key} {there[key]!r}, not {here[key]!r}; choose another "
                    f"--output_file{again if self.samples.exists() else ''}"
                )
        return True

    def begin(self, config: BestOfNConfig) -> bool:
        """Write the settings down; True if they were there already. Raises as `check`."""
        if self.check(config):
            clean_temporary(self.best.parent, f"{self.best.stem}.")
            write_json(self.figures, read_json(self.figures) | {"settings": settings_of(config)})
            return True
        write_json(self.figures, {"settings": settings_of(config), "is_done": False})
        return False

    def abandon(self) -> None:
        """Leave no trace of a start that wrote nothing but its settings: bad input may be mended by other ones."""
        if not (self.samples.exists() or self.scored.exists()):
            self.figures.unlink(missing_ok=True)


def settings_of(config: BestOfNConfig) -> dict[str, Any]:
    """All settings but where the result lies, each by the name of its flag."""
    found: dict[str, Any] = plain(config)
    del found["output_file"]
    sources: dict[str, Any] = found.pop("reward_sources")
    return found | sources


def check_given(config: BestOfNConfig) -> None:
    """Raises BadInput unless there are samples, or a policy and prompts to sample them."""
    if not config.samples_file:
        if not (config.model_name_or_path and config.dataset_name):
            name = "dataset_name" if config.model_name_or_path else "model_name_or_path"
            raise BadInput(
                f"--{name} is missing: give --model_name_or_path and --dataset_name to sample, or --samples_file"
            )
    elif config.reward_sources.remote_rm_url and not config.model_name_or_path:
        raise BadInput(
            "--model_name_or_path is missing: --remote_rm_url gets prompts by the policy's chat template"
        )


def given_prompts(config: BestOfNConfig) -> tuple[list[Prompt], Samples | None]:
    """The prompts, and the samples where --samples_file gives them.

    Prompts of --dataset_name bring their other columns, for reward functions; samples must then be of the same prompts.
    Raises: BadInput for a file that cannot be used, or for neither samples nor a policy.
    """
    check_given(config)
    if not config.samples_file:
        return read_prompts(config.dataset_name, split=config.dataset_train_split), None
    samples = read_samples(config.samples_file)
    check_several(samples, config.samples_file)
    if not config.dataset_name:
        return [Prompt(text=prompt) for prompt, _ in samples], samples
    prompts = read_prompts(config.dataset_name, split=config.dataset_train_split)
    check_same(prompts, samples, config.samples_file)
    return prompts, samples


def check_same(prompts: Sequence[Prompt], samples: Samples, file: str | Path) -> None:
    """Raises BadInput unless these are samples of these prompts, one by one."""
    if len(prompts) != len(samples):
        raise BadInput(
            f"{file} holds samples of {len(samples)} prompts, --dataset_name has {len(prompts)}; "
            "give the prompts that were sampled, or finish crestline sample"
        )
    for number, (prompt, (sampled, _)) in enumerate(zip(prompts, samples, strict=True), 1):
        if prompt.text != sampled:
            raise BadInput(
                f"{file}: sample {number} answers another prompt than --dataset_name has there; "
                "give the prompts that were sampled, in their order"
            )


def check_several(samples: Samples, file: str) -> None:
    """Raises BadInput for a prompt with one completion only: there is nothing to choose."""
    for number, (_, completions) in enumerate(samples, 1):
        if len(completions) < 2:
            raise BadInput(
                f"{file}: sample {number} has one completion; best-of-n needs at least two of each prompt"
            )
