"""What reward models and DPO train and measure on: splits by prompt, and how far each person is believed.

Owns which ranking stands on which side, and the run folder's data/ and splits.json. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from crestline.data.rankings import (
    Skipped,
    rankings_as_rows,
    read_rankings,
    read_rankings_and_skipped,
    uninformative,
)
from crestline.data.splits import canonical_prompt, split_by_prompt_or_text
from crestline.formulas.annotators import annotator_reliability
from crestline.formulas.ranking import MOST_TIED, largest_upper_tie
from crestline.runs.files import read_json, write_json, write_jsonl_atomic
from crestline.training.dpo_configs import DpoConfig
from crestline.training.reward_configs import Likelihood, RewardConfig
from crestline.training.seeds import stream
from crestline.types import BadInput, Ranking

RankedConfig = RewardConfig | DpoConfig
"""Settings of the verbs that learn from rankings."""
SIDES = ("train", "watch", "test")
SPLITS_FILE = "splits.json"


@dataclass(frozen=True)
class Sides:
    """Rankings by what they are for. counts: of rankings on each side, and of those left out, with their reasons."""

    train: list[Ranking]
    watch: list[Ranking]
    test: list[Ranking]
    counts: Mapping[str, int | str]

    def write(self, folder: Path, config: RankedConfig) -> None:
        """data/{train,watch,test}.jsonl, then splits.json."""
        for name in SIDES:
            rows = rankings_as_rows(getattr(self, name))
            write_jsonl_atomic(folder / "data" / f"{name}.jsonl", rows)
        told: dict[str, int | float | str] = {"seed": config.seed}
        told["watch_fraction"] = config.splits.watch_fraction
        if config.splits.eval_dataset_name:
            told["test_from"] = config.splits.eval_dataset_name
            told["test_split"] = config.splits.eval_dataset_split
        else:
            told["eval_fraction"] = config.splits.eval_fraction
        write_json(folder / SPLITS_FILE, {"settings": told, **self.counts})


def sides_of(folder: Path, config: RankedConfig) -> Sides:
    """The rankings of a run: those in its folder, where it has been started; else the data set, divided.

    So a run goes on with what it began with, whatever has become of the data set. Raises BadInput as `split_rankings`.
    """
    if not (folder / SPLITS_FILE).exists():
        return split_rankings(config)
    counts = read_json(folder / SPLITS_FILE)
    del counts["settings"]
    sides = {
        name: read_rankings(str(folder / "data" / f"{name}.jsonl"), keep_all=True)
        if counts[f"num_{name}_rankings"]
        else []
        for name in SIDES
    }
    return Sides(**sides, counts=counts)


def split_rankings(config: RankedConfig) -> Sides:
    """Rankings to train on, to watch with and to test on: no prompt stands on two sides.

    By prompt; those that have no prompt by completion text. Raises BadInput where a side comes out empty.
    """
    rankings, skipped = _informative(
        config.dataset_name, config.dataset_train_split, config.ranking_loss
    )
    watch, given = config.splits.watch_fraction, config.splits.eval_dataset_name
    test, measured, num_rankings = config.splits.eval_fraction, list[Ranking](), len(rankings)
    if given:
        test, measured = 0.0, read_rankings(given, split=config.splits.eval_dataset_split)
        rankings = without_prompts_of(measured, rankings)
        if not rankings:
            raise BadInput(
                f"{config.dataset_name}: all {num_rankings} rankings have prompts of {given}; "
                "give others to train on or to measure on"
            )
    fractions = {"train": 1 - watch - test, "watch": watch, "test": test}
    dropped = 0
    # Of its own: rankings that were split by the same seed before would all fall on one side. The same for both
    # verbs: a reward model and DPO on the same rankings hold out the same prompts.
    seed = stream(config.seed, "reward splits")
    if not watch and not test:
        sides = {"train": rankings, "watch": [], "test": []}
    else:
        sides, dropped = split_by_prompt_or_text(rankings, fractions, seed)
    if given:
        sides["test"] = measured
    for name, wanted in (("train", 1.0), ("watch", watch), ("test", 1.0)):
        if wanted and not sides[name]:
            raise BadInput(
                f"{config.dataset_name}: {len(rankings)} rankings are too few to hold out "
                f"{watch + test:.0%}; give more, or --eval_dataset_name"
            )
    counts: dict[str, int | str] = {f"num_{name}_rankings": len(sides[name]) for name in sides}
    counts |= {"split_by": _split_by(rankings), "num_dropped_by_split": dropped}
    counts["num_dropped_as_evaluation"] = num_rankings - len(rankings)
    counts |= {"num_skipped_rankings": skipped.num_rows, "skipped": str(skipped)}
    counts["num_repeated_rankings"] = skipped.num_repeated
    return Sides(sides["train"], sides["watch"], sides["test"], counts)


def without_prompts_of(measured: Sequence[Ranking], rankings: Sequence[Ranking]) -> list[Ranking]:
    """The rankings whose prompt is none of those measured on. Empty prompts are compared by nothing, and stay."""
    prompts = {canonical_prompt(ranking.prompt) for ranking in measured if ranking.prompt}
    return [ranking for ranking in rankings if canonical_prompt(ranking.prompt) not in prompts]


def _split_by(rankings: Sequence[Ranking]) -> str:
    ways = {"prompt" if ranking.prompt else "text" for ranking in rankings}
    return " and ".join(sorted(ways))


def _informative(source: str, split: str, config: Likelihood) -> tuple[list[Ranking], Skipped]:
    """Rankings that say something: with `equal`, those that are tied altogether do."""
    if config.ties == "either":
        return read_rankings_and_skipped(source, split=split)
    everything, skipped = read_rankings_and_skipped(source, split=split, keep_all=True)
    why_not = [uninformative(ranking) for ranking in everything]
    skipped = replace(
        skipped,
        num_too_few_ranked=why_not.count("too few ranked"),
        num_same_text=why_not.count("same text"),
    )
    kept = [r for r, why in zip(everything, why_not, strict=True) if why in (None, "all tied")]
    if not kept:
        raise BadInput(f"{source}: no usable ranking ({skipped}); give rankings with a preference")
    return kept, skipped


def check_ties(rankings: Sequence[Ranking], config: Likelihood) -> None:
    """Raise BadInput for the first tie above others that is too wide to sum over."""
    if config.ties != "either":
        return
    for ranking in rankings:
        if (size := largest_upper_tie(ranking.ranks)) > MOST_TIED:
            raise BadInput(
                f"{ranking.where or 'a ranking'}: {size} completions share a rank above others; at most {MOST_TIED} "
                "can: rank them finer, or use --ties equal"
            )


@dataclass(frozen=True)
class Trust:
    """flips: share of answers the wrong way round that each ranking is trusted with; None where it is 0 for all.
    annotators: what is known of each person; empty where nobody was looked at."""

    flips: list[float] | None
    annotators: Mapping[str, Mapping[str, float]]

    def write(self, folder: Path) -> None:
        """annotators.json, where people were looked at."""
        if self.annotators:
            write_json(folder / "annotators.json", self.annotators)


def trust_in(rankings: Sequence[Ranking], config: Likelihood) -> Trust:
    """How far each ranking is believed.

    With annotator_reliability as far as its person, told by what several people answered; rankings without a name
    keep flip_rate. Raises BadInput where no two people answered the same.
    """
    if not config.annotator_reliability:
        return Trust([config.flip_rate] * len(rankings) if config.flip_rate else None, {})
    names = sorted({ranking.annotator for ranking in rankings if ranking.annotator})
    number = {name: place for place, name in enumerate(names)}
    answers = [
        (number[ranking.annotator], key, first_won)
        for ranking in rankings
        if ranking.annotator
        for key, first_won in comparisons(ranking)
    ]
    keys = {key: place for place, key in enumerate(dict.fromkeys(key for _, key, _ in answers))}
    try:
        if not answers:
            raise ValueError("no ranking names its annotator")
        found = annotator_reliability(
            np.array([who for who, _, _ in answers]),
            np.array([keys[key] for _, key, _ in answers]),
            np.array([won for _, _, won in answers]),
            num_annotators=len(names),
        )
    except ValueError as error:
        raise BadInput(
            f"--annotator_reliability: {error}; leave it out, or let several people answer the same questions"
        ) from None
    reliability = dict(zip(names, found.reliability_A.tolist(), strict=True))
    told = {
        name: {"reliability": reliability[name], "num_shared_answers": int(shared)}
        for name, shared in zip(names, found.num_shared_A, strict=True)
    }
    flips = [
        1 - reliability[ranking.annotator] if ranking.annotator else config.flip_rate
        for ranking in rankings
    ]
    return Trust(flips, told)


def comparisons(ranking: Ranking) -> list[tuple[str, bool]]:
    """Every two different texts that were ranked and not tied: a name for the question, whatever the order of the
    texts, and whether the one that comes first in it won."""
    found = []
    for i, j in ranked_pairs(ranking):
        better, worse = ranking.completions[i], ranking.completions[j]
        if better != worse:
            texts = sorted((better, worse))
            found.append((repr((canonical_prompt(ranking.prompt), texts)), texts[0] == better))
    return found


def ranked_pairs(ranking: Ranking) -> list[tuple[int, int]]:
    """Places (better, worse) of every two completions that people ranked and did not tie."""
    return [
        (i, j)
        for i, rank in enumerate(ranking.ranks)
        for j, other in enumerate(ranking.ranks)
        if rank is not None and other is not None and rank < other
    ]
