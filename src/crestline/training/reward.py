"""The reward verb: rankings in, a calibrated reward model out, with its accuracy on held-out rankings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crestline.data.rankings import read_rankings, read_rankings_and_skipped
from crestline.data.splits import split_by_prompt, split_by_text
from crestline.formulas.calibration import fit_temperature
from crestline.formulas.intervals import bootstrap_interval
from crestline.formulas.ranking import plackett_luce_loss, untied_pairs
from crestline.models.reward import Calibration, RewardModel, new_reward_model
from crestline.runs.checkpoints import new_folder
from crestline.runs.files import write_json, writing
from crestline.runs.settings import plain
from crestline.training.batches import Mean, RankingBatch, attention, padded
from crestline.training.configs import required
from crestline.training.finish import finished, open_stage
from crestline.training.fit import Progress, fit, silent
from crestline.training.learner import Learner
from crestline.training.reward_configs import RewardConfig
from crestline.training.seeds import Shuffled, stream
from crestline.types import BadInput, Ranking


def ranking_loss(model: Any, part: RankingBatch) -> tuple[Tensor, dict[str, Mean]]:
    """Plackett–Luce negative log-likelihood in nats, divided by the number of rankings in the update."""
    seen_NT = attention(part.lengths_N, part.tokens_NT.shape[1])
    scores_N = model(input_ids=part.tokens_NT, attention_mask=seen_NT).logits[:, 0].float()
    scores_RK = scores_N.view(part.ranks_RK.shape)
    loss_R = plackett_luce_loss(scores_RK, part.ranks_RK, part.ranked_RK)
    better_RKK = untied_pairs(part.ranks_RK, part.ranked_RK)
    margins_P = (scores_RK[:, :, None] - scores_RK[:, None, :]).detach()[better_RKK]
    metrics = {
        "accuracy": Mean(float((margins_P > 0).sum()), len(margins_P)),
        "margin": Mean(float(margins_P.sum()), len(margins_P)),
    }
    return loss_R.sum() / part.num_rankings, metrics


class RankingSource:
    """Batches of rankings in a fresh order every epoch; rankings of fewer than K completions are padded."""

    def __init__(
        self,
        reward_model: RewardModel,
        rankings: Sequence[Ranking],
        *,
        batch_size: int,
        seed: int,
        device: str,
    ) -> None:
        self.rankings, self.batch_size, self.device = rankings, batch_size, device
        self.pad = reward_model.tokenizer.pad_token_id
        self.rows = [[reward_model.encode(r.prompt, c) for c in r.completions] for r in rankings]
        self.order = Shuffled(len(rankings), seed)

    def batch(self, update: int) -> tuple[RankingBatch, dict[str, float]]:
        numbers = self.order.rows((update - 1) * self.batch_size, self.batch_size)
        width = max(len(self.rows[n]) for n in numbers)
        ranks_RK = torch.zeros(len(numbers), width, dtype=torch.long)
        ranked_RK = torch.zeros(len(numbers), width, dtype=torch.bool)
        flat: list[list[int]] = []
        for place, n in enumerate(numbers):
            flat += self.rows[n] + [self.rows[n][0]] * (width - len(self.rows[n]))
            for k, rank in enumerate(self.rankings[n].ranks):
                if rank is not None:
                    ranks_RK[place, k], ranked_RK[place, k] = rank, True
        tokens_NT, lengths_N = padded(flat, fill=self.pad)
        batch = RankingBatch(
            tokens_NT=tokens_NT.to(self.device),
            lengths_N=lengths_N.to(self.device),
            ranks_RK=ranks_RK.to(self.device),
            ranked_RK=ranked_RK.to(self.device),
            num_rankings=len(numbers),
        )
        return batch, {"num_tokens": float(lengths_N.sum())}


def reward(config: RewardConfig, *, device: str = "cpu", progress: Progress = silent) -> Path:
    """Train on rankings and return the model's folder; a finished run returns at once.

    Writes evaluation.json: accuracy on held-out pairs with a 95 % interval, beside "the longer wins".
    """
    required(config, "model_name_or_path", "dataset_name", "output_dir")
    with open_stage(config.output_dir, plain(config), "reward") as folder:
        if finished(folder):
            return folder.path / "model"
        train, held, dropped, skipped = split_rankings(config)
        if not any(ranked_pairs(ranking) for ranking in held):
            raise BadInput("the held-out rankings hold no two completions of which one is better")
        reward_model = new_reward_model(
            config.model_name_or_path,
            seed=stream(config.seed, "head"),
            max_length=config.max_length,
            half_depth=config.half_depth,
            device=device,
        )
        source = RankingSource(
            reward_model, train, batch_size=config.batch_size, seed=config.seed, device=device
        )
        num_updates = math.ceil(config.num_train_epochs * len(train) / config.batch_size)
        learner = Learner(reward_model.model, config.optimization, num_updates)
        fit(
            folder,
            learner,
            reward_model.tokenizer,
            source,
            ranking_loss,
            seed=config.seed,
            progress=progress,
        )
        reward_model.calibration, evaluation = measure(reward_model, held, seed=config.seed)
        evaluation |= {"num_train_rankings": len(train), "num_dropped_by_split": dropped}
        evaluation["num_skipped_rankings"] = skipped
        evaluation["num_truncated"] = num_truncated(reward_model, [*train, *held])
        path = folder.path / "model"
        write_json(folder.path / "evaluation.json", evaluation)
        with new_folder(path) as temporary, writing(path):
            prompts = [ranking.prompt for ranking in held for _ in ranking.completions]
            texts = [text for ranking in held for text in ranking.completions]
            reward_model.save(temporary, prompts, texts)
        return path


def split_rankings(config: RewardConfig) -> tuple[list[Ranking], list[Ranking], int, int]:
    """Rankings to train on, rankings held out, how many the split dropped, and how many said nothing.

    By prompt; where rankings have no prompt, by completion text, so that no text stands on two sides.
    """
    rankings, left_out = read_rankings_and_skipped(
        config.dataset_name, split=config.dataset_train_split
    )
    skipped = left_out.num_rows
    if config.splits.eval_dataset_name:
        held = read_rankings(config.splits.eval_dataset_name, split=config.dataset_train_split)
        return rankings, held, 0, skipped
    fractions = {"train": 1 - config.splits.eval_fraction, "held": config.splits.eval_fraction}
    dropped = 0
    if any(not ranking.prompt for ranking in rankings):
        sides, dropped = split_by_text(rankings, fractions, config.seed)
    else:
        sides = split_by_prompt(rankings, lambda ranking: ranking.prompt, fractions, config.seed)
    if not sides["train"] or not sides["held"]:
        raise BadInput(
            f"{config.dataset_name}: {len(rankings)} rankings are too few to hold out "
            f"{config.splits.eval_fraction:.0%}; give more, or --eval_dataset_name"
        )
    return sides["train"], sides["held"], dropped, skipped


def measure(
    reward_model: RewardModel, rankings: Sequence[Ranking], *, seed: int
) -> tuple[Calibration, dict[str, Any]]:
    """Calibration and accuracy on held-out rankings: pairs that people did not tie, bootstrap over rankings."""
    prompts = [ranking.prompt for ranking in rankings for _ in ranking.completions]
    texts = [text for ranking in rankings for text in ranking.completions]
    scores = iter(reward_model.score(prompts, texts))
    right, longer, differences, group = [], [], [], []
    values = []
    for number, ranking in enumerate(rankings):
        raw = [next(scores) for _ in ranking.completions]
        values += raw
        for i, j in ranked_pairs(ranking):
            differences.append(raw[i] - raw[j])
            right.append(half_if_equal(raw[i], raw[j]))
            lengths = [len(ranking.completions[k]) for k in (i, j)]
            longer.append(half_if_equal(lengths[0], lengths[1]))
            group.append(number)
    low, high = bootstrap_interval(right, groups=group, seed=seed)
    calibration = Calibration(float(np.mean(values)), fit_temperature(differences))
    return calibration, {
        "accuracy": float(np.mean(right)),
        "accuracy_low": low,
        "accuracy_high": high,
        "longer_wins_accuracy": float(np.mean(longer)),
        "num_pairs": len(right),
        "num_heldout_rankings": len(rankings),
        "mean": calibration.mean,
        "temperature": calibration.temperature,
    }


def ranked_pairs(ranking: Ranking) -> list[tuple[int, int]]:
    """Places (better, worse) of every two completions that people ranked and did not tie."""
    return [
        (i, j)
        for i, rank in enumerate(ranking.ranks)
        for j, other in enumerate(ranking.ranks)
        if rank is not None and other is not None and rank < other
    ]


def half_if_equal(left: float, right: float) -> float:
    """1 if left is larger, 0 if right is, 0.5 if they are equal."""
    return 0.5 if left == right else float(left > right)


def num_truncated(reward_model: RewardModel, rankings: Sequence[Ranking]) -> int:
    """How many completions did not fit max_length and lost their front."""
    prompts = [ranking.prompt for ranking in rankings for _ in ranking.completions]
    texts = [text for ranking in rankings for text in ranking.completions]
    return sum(row.is_truncated for row in reward_model.rows(prompts, texts))
