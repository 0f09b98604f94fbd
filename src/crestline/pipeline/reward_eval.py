"""The evaluating verb: a reward model and rankings in; evaluation.json, a page and RewardBench's files out.

Owns the order of the work, and what stands in evaluation.json beside the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from crestline.data.leakage import Leakage, find_leaks
from crestline.data.rankings import read_rankings, read_rankings_and_skipped
from crestline.data.rows import read_rows
from crestline.models.reward import RewardEnsemble, RewardModel, load_reward_model
from crestline.models.text import render_scored
from crestline.pipeline.reward_curve import measure_curve
from crestline.pipeline.reward_eval_configs import EvaluationInputs, RewardEvalConfig, inputs_of
from crestline.pipeline.rewardbench import write_rewardbench
from crestline.pipeline.screen import Screen, Silent
from crestline.report.reward_page import write_reward_page
from crestline.rewards.evaluation import Figures, content_of, evaluate
from crestline.rewards.pairs import ranked_pairs
from crestline.rewards.scoring import Scores, score_rankings
from crestline.runs.files import write_json
from crestline.runs.folder import RunFolder
from crestline.runs.settings import plain
from crestline.training.configs import required
from crestline.types import BadInput, Ranking

MOST_EXAMPLES = 20
"""Leaks that are shown; all are counted."""


def reward_eval(
    config: RewardEvalConfig, *, device: str = "cpu", screen: Screen | None = None
) -> Path:
    """Evaluate a reward model and return the path of evaluation.json; evaluation.html lies beside it.

    Scores are measured anew each time; what was measured for a learning curve is kept.
    Raises: BadInput where the model, the rankings or the folder cannot be used.
    """
    required(config, "reward_model_name_or_path", "output_dir")
    inputs, settings = inputs_of(config), plain(config)
    folder = RunFolder(Path(config.output_dir))
    folder.open_or_create(
        {"verb": "reward-eval", **settings}, what="reward-eval", ignore=(*settings,)
    )
    try:
        figures = _Evaluation(config, inputs, device, screen or Silent()).figures(folder.path)
        path = folder.path / "evaluation.json"
        write_json(path, figures)
        write_reward_page(path)
        return path
    except BadInput:
        folder.abandon()
        raise
    finally:
        folder.close()


class _Evaluation:
    """One model on one test set."""

    def __init__(
        self, config: RewardEvalConfig, inputs: EvaluationInputs, device: str, screen: Screen
    ) -> None:
        self.config, self.inputs, self.device, self.screen = config, inputs, device, screen
        self.test, self.skipped = read_rankings_and_skipped(
            inputs.test, split=config.dataset_test_split
        )
        told = f"{len(self.test):,} test rankings in {inputs.test}"
        screen.say(f"{told}; skipped: {self.skipped}" if self.skipped.num_rows else told)
        self.fitted_here = self.shares_with_held_out()
        self.leakage = self.look_for_leaks()
        self.model = load_reward_model(
            config.reward_model_name_or_path, device=device, dtype=config.dtype
        )

    def figures(self, folder: Path) -> Figures:
        """Everything that evaluation.json holds."""
        config, inputs, calibration = self.config, self.inputs, self.model.calibration
        scores = score_rankings(self.model, self.test, progress=self.screen.stage("score", ""))
        found = {
            "reward_model_name_or_path": config.reward_model_name_or_path,
            "dataset_name": inputs.test,
            "temperature_was_fitted_on_these": self.fitted_here,
            "skipped": str(self.skipped),
            "max_length": self.model.max_length,
            **self.evaluated(self.test, scores),
            "mean": calibration.mean,
            "temperature": calibration.temperature,
            "leakage": self.leaks(self.leakage, scores) if self.leakage else None,
            "rewardbench": self.rewardbench(scores) if config.rewardbench_output else None,
            "learning_curve": None,
        }
        if inputs.training:
            found["learning_curve"] = measure_curve(
                config.curve,
                inputs.training,
                self.test,
                folder / "curve",
                device=self.device,
                screen=self.screen,
                seed=config.seed,
            )
        return found

    def evaluated(self, rankings: Sequence[Ranking], scores: Scores) -> Figures:
        own = None if self.fitted_here else self.model.calibration.temperature
        return evaluate(
            rankings,
            scores.scores_N,
            temperature=own,
            member_scores_NM=scores.member_scores_NM,
            num_tokens_N=scores.num_tokens_N,
            counts={
                "num_skipped_rankings": self.skipped.num_rows,
                "num_truncated": scores.num_truncated,
            },
            num_resamples=self.config.num_resamples,
            seed=self.config.seed,
        )

    def shares_with_held_out(self) -> bool:
        """Whether any of these rankings is one on which training fitted the temperature."""
        if not self.inputs.held_out:
            return False
        known = {content_of(ranking) for ranking in read_rankings(self.inputs.held_out)}
        return any(content_of(ranking) in known for ranking in self.test)

    def look_for_leaks(self) -> Leakage | None:
        """What of the test rankings stands in the training rankings; None where these are not known."""
        if not self.inputs.train:
            self.screen.say("leaks: not looked for, as no training rankings are known")
            return None
        train = read_rankings(self.inputs.train, split=self.config.dataset_train_split)
        found = find_leaks(train, self.test, threshold=self.config.similarity_threshold)
        self.screen.say(
            f"leaks: {found.num_leaking:,} of them, in {len(train):,} training rankings of {self.inputs.train}"
        )
        return found

    def leaks(self, leakage: Leakage, scores: Scores) -> Figures:
        """Leaks by kind with examples, and the accuracy on test rankings that do not leak."""
        told = asdict(leakage)
        found = {name: told[name] for name in told if name.startswith("num_")}
        found |= {
            "train_dataset_name": self.inputs.train,
            "num_leaking": leakage.num_leaking,
            "examples": told["leaks"][:MOST_EXAMPLES],
            "without": None,
        }
        clean_R = ~np.array(leakage.leaking, dtype=bool)
        clean = [r for r, is_clean in zip(self.test, clean_R, strict=True) if is_clean]
        if leakage.num_leaking and any(ranked_pairs(ranking) for ranking in clean):
            chosen_N = np.repeat(clean_R, [len(r.completions) for r in self.test])
            figures = self.evaluated(clean, scores.of(chosen_N))
            keys = (
                "accuracy",
                "accuracy_low",
                "accuracy_high",
                "longer_wins_accuracy",
                "num_pairs",
            )
            found["without"] = {key: figures[key] for key in keys}
        return found

    def rewardbench(self, scores: Scores) -> dict[str, Any]:
        """Write RewardBench's files and return its scores."""
        rows = read_rows(self.inputs.test, split=self.config.dataset_test_split)
        known = {row.where: str(row.values["id"]) for row in rows if "id" in row.values}
        tokenizer = tokenizer_of(self.model)
        return write_rewardbench(
            Path(self.config.rewardbench_output),
            self.config.reward_model_name_or_path,
            self.test,
            scores.scores_N.tolist(),
            [render_scored(tokenizer, r.prompt, text) for r in self.test for text in r.completions],
            [known.get(ranking.where, ranking.where) for ranking in self.test],
            chat_template="tokenizer" if tokenizer.chat_template else None,
        )


def tokenizer_of(model: RewardModel | RewardEnsemble) -> Any:
    """The tokenizer of a model; of an ensemble that of its first member."""
    first = model if isinstance(model, RewardModel) else model.members[0]
    assert isinstance(first, RewardModel), "a folder's ensemble is made of reward models"
    return first.tokenizer
