"""The learning curve of a reward model: trainings on nested parts of its rankings, measured on the same test set.

Owns the sizes, the parts and what is kept of each training. The fit is in `formulas.learning_curve`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from crestline.data.rankings import rankings_as_rows, read_rankings
from crestline.formulas.calibration import SMALLEST, preference_probability
from crestline.formulas.learning_curve import learning_curve
from crestline.models.reward import load_reward_model
from crestline.pipeline.reward_eval_configs import LearningCurveConfig
from crestline.pipeline.screen import Screen
from crestline.rewards.pairs import Pairs, agreement, clusters_of, pairs_of
from crestline.rewards.scoring import score_rankings
from crestline.rewards.trust import cross_fitted
from crestline.runs.checkpoints import remove_folder
from crestline.runs.files import append_jsonl, read_jsonl, write_jsonl_atomic
from crestline.runs.settings import plain
from crestline.training.preferences import trust_in, without_prompts_of
from crestline.training.reward import reward
from crestline.training.reward_configs import RewardConfig, Splits
from crestline.types import BadInput, Progress, Ranking

SMALLEST_PART = 8
"""Rankings below which no reward model is trained."""
KEPT = "points.jsonl"
"""A row for each training: what it was, and its mean error and log-loss on each prompt of the test set."""
TOLD = ("num_rankings", "seed", "annotator_reliability")
"""What a point says of its training; the last one, False, where it had to do without what the settings ask for."""


def measure_curve(
    config: LearningCurveConfig,
    training: RewardConfig,
    test: Sequence[Ranking],
    folder: Path,
    *,
    device: str,
    screen: Screen,
    seed: int,
) -> dict[str, Any]:
    """Train what is not trained yet, and fit error and log-loss against the number of rankings.

    training: settings of each training; seeds, data and places are set here. test: rankings to measure on. folder:
    what was measured is kept there, so that a killed curve goes on; a model goes once it is measured. Rankings that
    share a prompt with the test are left out.
    Raises: BadInput where there are too few rankings for two sizes, and what `reward` raises.
    """
    everything = read_rankings(training.dataset_name, split=training.dataset_train_split)
    rankings = without_prompts_of(test, everything)
    sizes = sizes_of(len(rankings), config.num_sizes)
    if len(sizes) < 2:
        raise BadInput(
            f"{training.dataset_name}: {len(rankings)} rankings are too few for a learning curve; "
            f"give at least {2 * SMALLEST_PART}"
        )
    curve = _Curve(training, rankings, test, folder, device)
    rows = []
    points = [(num, number) for number in range(config.num_seeds) for num in sizes]
    for place, (num, number) in enumerate(points, start=1):
        told = f"{num} rankings, seed {number} ({place} of {len(points)})"
        rows.append(curve.row(num, number, screen, told))
    return fitted(rows, curve.pairs, num_more=config.num_more_rankings, seed=seed)


def sizes_of(num_rankings: int, num_sizes: int) -> list[int]:
    """All rankings, half, a quarter …, the smallest first.

    >>> sizes_of(1000, 4), sizes_of(20, 4)
    ([125, 250, 500, 1000], [10, 20])
    """
    sizes = [num_rankings // 2**k for k in range(num_sizes)]
    return [size for size in reversed(sizes) if size >= SMALLEST_PART]


def nested_part(rankings: Sequence[Ranking], num: int, seed: int) -> list[Ranking]:
    """So many rankings, prompts in an order of the seed: a smaller part of a seed lies within its larger ones."""
    cluster_R, _ = clusters_of(rankings)
    order_C = np.random.default_rng([seed, 4]).permutation(cluster_R.max() + 1)
    order_R = np.argsort(order_C[cluster_R], kind="stable")
    return [rankings[n] for n in sorted(order_R[:num])]


def with_reliability_where_told(training: RewardConfig, part: Sequence[Ranking]) -> RewardConfig:
    """The settings, without annotator_reliability where nobody in this part answered what somebody else did."""
    try:
        trust_in(part, training.ranking_loss)
    except BadInput:
        plainer = replace(training.ranking_loss, annotator_reliability=False)
        return replace(training, ranking_loss=plainer)
    return training


def losses(
    pairs: Pairs, scores_N: np.ndarray[Any, Any], *, seed: int = 0
) -> dict[str, list[float]]:
    """Mean error and mean log-loss (temperature of the other half) of each cluster with pairs, in their order."""
    differences_P = scores_N[pairs.better_P] - scores_N[pairs.worse_P]
    temperature_P = cross_fitted(pairs, scores_N, pairs.cluster_P, seed=seed)
    probability_P = preference_probability(differences_P / temperature_P, 1.0)
    place_P = np.unique(pairs.cluster_P, return_inverse=True)[1]
    num_C = np.bincount(place_P)
    return {
        "errors": (np.bincount(place_P, 1 - agreement(differences_P)) / num_C).tolist(),
        "log_losses": (
            np.bincount(place_P, -np.log(np.maximum(probability_P, SMALLEST))) / num_C
        ).tolist(),
    }


def fitted(
    rows: Sequence[dict[str, Any]], pairs: Pairs, *, num_more: int, seed: int
) -> dict[str, Any]:
    """The points and both curves, as plain values."""
    weights_C = np.unique(pairs.cluster_P, return_counts=True)[1]
    counts = [row["num_rankings"] for row in rows]
    curves = {
        name: learning_curve(
            counts, [row[key] for row in rows], weights_C, num_more=num_more, seed=seed
        )
        for name, key in (("error", "errors"), ("log_loss", "log_losses"))
    }
    points = [
        {
            **{key: row[key] for key in TOLD if key in row},
            "accuracy": 1 - error,
            "log_loss": loss,
        }
        for row, error, loss in zip(
            rows, curves["error"].errors, curves["log_loss"].errors, strict=True
        )
    ]
    return {"points": points, **{name: asdict(curve) for name, curve in curves.items()}}


@dataclass
class _Curve:
    """The trainings of one curve, and what is kept of them."""

    training: RewardConfig
    rankings: Sequence[Ranking]
    test: Sequence[Ranking]
    folder: Path
    device: str

    def __post_init__(self) -> None:
        self.pairs = pairs_of(self.test)
        self.kept = {r["key"]: r for r in read_jsonl(self.folder / KEPT, missing_ok=True)}
        self.test_rows = rankings_as_rows(self.test)

    def row(self, num: int, seed: int, screen: Screen, told: str) -> dict[str, Any]:
        """What is kept of a training, or the training now."""
        part = nested_part(self.rankings, num, seed)
        settings = replace(self.training, dataset_name="", output_dir="", seed=seed)
        content = [plain(settings), rankings_as_rows(part), self.test_rows]
        key = hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()
        if key not in self.kept:
            able = with_reliability_where_told(settings, part)
            found = self._trained(able, part, key, screen.stage("curve", told))
            self.kept[key] = {"key": key, "num_rankings": num, "seed": seed, **found}
            if able != settings:
                self.kept[key]["annotator_reliability"] = False
            append_jsonl(self.folder / KEPT, [self.kept[key]])
            remove_folder(self.folder / key)
        return self.kept[key]

    def _trained(
        self, settings: RewardConfig, part: Sequence[Ranking], key: str, progress: Progress
    ) -> dict[str, list[float]]:
        place = self.folder / key
        write_jsonl_atomic(place / "train.jsonl", rankings_as_rows(part))
        write_jsonl_atomic(place / "test.jsonl", self.test_rows)
        settings = replace(
            settings,
            dataset_name=str(place / "train.jsonl"),
            output_dir=str(place / "run"),
            splits=Splits(eval_dataset_name=str(place / "test.jsonl")),
        )
        path = reward(settings, device=self.device, progress=progress)
        model = load_reward_model(path, device=self.device)
        return losses(self.pairs, score_rankings(model, self.test).scores_N)
