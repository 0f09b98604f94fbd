"""The joining verb: several reward models in; one folder out, an ensemble or the average of their weights.

Owns what is asked of the members, and what evaluation.json says of them and of what they make together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from crestline.data.rankings import read_rankings
from crestline.models.averaging import averaged
from crestline.models.ensemble import RewardEnsemble
from crestline.models.reward import RewardModel, load_reward_model
from crestline.pipeline.configs import RewardJoinConfig
from crestline.rewards.calibrating import calibrate
from crestline.rewards.evaluation import evaluate
from crestline.runs.checkpoints import new_folder
from crestline.runs.files import write_json, writing
from crestline.training.configs import required
from crestline.training.finish import finished, open_stage
from crestline.types import BadInput, Progress, Ranking, silent

PROBE = (
    "",
    "Yes.",
    "The quick brown fox jumps over the lazy dog.",
    "naïve café 🐔\n\n1. one\n2. two",
)
"""Texts that a fresh process scores where no rankings were given."""
OF_A_MEMBER = ("accuracy", "accuracy_low", "accuracy_high", "mean", "temperature")


def reward_join(
    config: RewardJoinConfig, *, device: str = "cpu", progress: Progress = silent
) -> Path:
    """Join reward models and return the folder of the result; a finished run returns at once.

    With rankings, every member and the result are calibrated on them, and evaluation.json says how good each is.
    Raises BadInput where a model cannot be used, or weights cannot be averaged.
    """
    required(config, "reward_models", "output_dir")
    with open_stage(config, "reward-join") as folder:
        path = folder.path / "model"
        if finished(folder):
            return path
        rankings: list[Ranking] = []
        if config.dataset_name:
            rankings = list(read_rankings(config.dataset_name, split=config.dataset_train_split))
        joining = _Joining(config, rankings, device, progress)
        joined = joining.joined()
        if rankings:
            write_json(folder.path / "evaluation.json", joining.figures(joined))
        prompts = [r.prompt for r in rankings for _ in r.completions] or [""] * len(PROBE)
        texts = [text for r in rankings for text in r.completions] or list(PROBE)
        with new_folder(path) as temporary, writing(path):
            joined.save(temporary, prompts, texts)
        return path


class _Joining:
    """Members, as they are loaded one after the other, and what was measured of each."""

    def __init__(
        self,
        config: RewardJoinConfig,
        rankings: Sequence[Ranking],
        device: str,
        progress: Progress,
    ) -> None:
        self.config, self.rankings, self.device, self.progress = config, rankings, device, progress
        self.told: list[dict[str, Any]] = []

    def joined(self) -> RewardModel | RewardEnsemble:
        if self.config.how == "average":
            return averaged(self.members())
        return RewardEnsemble(
            [member for _, member in self.members()],
            aggregate=self.config.aggregate,
            uwo_coefficient=self.config.uwo_coefficient,
        )

    def members(self) -> Iterator[tuple[str, RewardModel]]:
        """Each with its name, calibrated where there are rankings."""
        names = self.config.names()
        for number, name in enumerate(names, 1):
            member = load_reward_model(name, device=self.device)
            if isinstance(member, RewardEnsemble):
                raise BadInput(f"{name} is an ensemble itself; name its members")
            if self.rankings:
                figures = self.measured(member)
                self.told.append({"reward_model": name, **{k: figures[k] for k in OF_A_MEMBER}})
            self.progress(number, len(names), {})
            yield name, member

    def measured(self, model: RewardModel | RewardEnsemble) -> dict[str, Any]:
        """Calibrate a model on the rankings, and say how good it is on them."""
        scores_N = calibrate(model, self.rankings)
        prompts = [ranking.prompt for ranking in self.rankings for _ in ranking.completions]
        texts = [text for ranking in self.rankings for text in ranking.completions]
        several = isinstance(model, RewardEnsemble)
        return evaluate(
            self.rankings,
            scores_N,
            mean=model.calibration.mean,
            member_scores_NM=model.member_scores(prompts, texts) if several else None,
            seed=self.config.seed,
        )

    def figures(self, joined: RewardModel | RewardEnsemble) -> dict[str, Any]:
        """What evaluation.json holds: the figures of the result, and the accuracy of each member."""
        found = self.measured(joined)
        return {"how": self.config.how, **found, "members": self.told}
