"""The reward verb: rankings in, a calibrated reward model out, with what it is worth on held-out rankings.

Reward models are trained without dropout, as TRL does: a score must not depend on chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crestline.data.formats import read_samples
from crestline.models.reward import RewardEnsemble, RewardModel, new_reward_model
from crestline.models.reward_forward import WAYS
from crestline.rewards.calibrating import Answers, calibrate
from crestline.rewards.evaluation import evaluate
from crestline.runs.checkpoints import new_folder
from crestline.runs.files import read_json, write_json, writing
from crestline.runs.folder import RunFolder
from crestline.training.configs import required
from crestline.training.finish import finished, open_stage
from crestline.training.fit import fit
from crestline.training.health import PAUSED_FILE
from crestline.training.learner import Learner, only_adapters_drop_out
from crestline.training.preferences import check_ties, ranked_pairs, sides_of, trust_in
from crestline.training.rankings import RankingSource, halves, ranking_loss
from crestline.training.reward_configs import Ensemble, RewardConfig
from crestline.training.seeds import stream
from crestline.training.trackers import mirrored
from crestline.types import BadInput, Paused, Progress, Ranking, silent


def reward(config: RewardConfig, *, device: str = "cpu", progress: Progress = silent) -> Path:
    """Train on rankings and return the model's folder; a finished run returns at once.

    Writes data/ and splits.json (who is on which side), evaluation.json (what the scores are worth on the test side),
    model/ and, for a single model with LoRA, adapter/. Raises BadInput for bad input, and where a fresh process does
    not score like the model that was to be saved.
    """
    required(config, "model_name_or_path", "dataset_name", "output_dir")
    with open_stage(config, "reward") as folder:
        if finished(folder):
            return folder.path / "model"
        sides = sides_of(folder.path, config)
        if config.ranking_loss.loss_type == "plackett_luce":
            check_ties([*sides.train, *sides.test], config.ranking_loss)
        if not any(ranked_pairs(ranking) for ranking in sides.test):
            raise BadInput("the held-out rankings hold no two completions of which one is better")
        typical = typical_answers(config.calibration_samples)
        trust = trust_in(sides.train, config.ranking_loss)

        def begun() -> None:
            trust.write(folder.path)
            sides.write(folder.path, config)

        trained = _Training(folder, config, sides.train, trust.flips, begun, device, progress)
        model = trained.ensemble() if is_ensemble_of_models(config.ensemble) else trained.one()
        counts = {**sides.counts, "num_truncated": trained.num_truncated}
        _finish(folder.path, config, model, sides.test, typical, {**counts, **trained.told})
        return folder.path / "model"


def is_ensemble_of_models(config: Ensemble) -> bool:
    """Whether there are several models, and not one with several heads."""
    return config.num_members > 1 and config.members == "models"


def typical_answers(source: str) -> Answers:
    """The SFT model's completions that say where a calibrated score is 0.5; none without a file."""
    if not source:
        return ()
    return [(prompt, text) for prompt, texts in read_samples(source) for text in texts]


class _Training:
    """The trainings of one reward run, each in a folder that resumes.

    begun: called when nothing can be said against the input any more, before the first update.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: RewardConfig,
        rankings: Sequence[Ranking],
        flips: Sequence[float] | None,
        begun: Callable[[], None],
        device: str,
        progress: Progress,
    ) -> None:
        self.folder, self.config, self.rankings, self.flips = folder, config, rankings, flips
        self.begun, self.device, self.progress = begun, device, progress
        self.num_truncated = 0
        self.told: dict[str, str] = {}

    def one(self) -> RewardModel:
        """One model, with as many heads as there are members."""
        members, taught = self.config.ensemble.num_members, None
        if members > 1 and self.config.ensemble.member_data == "half":
            taught = self._halves()
        return self._train(
            self.folder, self.rankings, self.flips, self.config.seed, members, taught
        )

    def ensemble(self) -> RewardEnsemble:
        """Members trained one after the other, each with its own seed and, by default, half of the rankings."""
        settings = self.config.ensemble
        taught = self._halves() if settings.member_data == "half" else None
        members = []
        for number in range(settings.num_members):
            seed = stream(self.config.seed, "member", number)
            chosen = list(range(len(self.rankings)))
            if taught is not None:
                chosen = np.flatnonzero(taught[:, number]).tolist()
            flips = None if self.flips is None else [self.flips[n] for n in chosen]
            path = self._member(number)
            own = replace(self.config, output_dir=str(path), seed=seed, ensemble=Ensemble())
            rankings = [self.rankings[n] for n in chosen]
            try:
                with open_stage(own, "reward", member=number) as folder:
                    members.append(self._train(folder, rankings, flips, seed, 1, None))
            except Paused:
                self._pause_all(number)
                raise
        return RewardEnsemble(
            members, aggregate=settings.aggregate, uwo_coefficient=settings.uwo_coefficient
        )

    def _member(self, number: int) -> Path:
        return self.folder.path / f"member-{number}"

    def _pause_all(self, number: int) -> None:
        """A member's pause is that of the ensemble and of the members before it: the settings are theirs, too, and
        what cures the pause must be accepted by all."""
        told = {"member": number, **read_json(self._member(number) / PAUSED_FILE)}
        for path in (*map(self._member, range(number)), self.folder.path):
            write_json(path / PAUSED_FILE, told)

    def _halves(self) -> NDArray[np.bool_]:
        seed = stream(self.config.seed, "halves")
        return halves(len(self.rankings), self.config.ensemble.num_members, seed)

    def _train(
        self,
        folder: RunFolder,
        rankings: Sequence[Ranking],
        flips: Sequence[float] | None,
        seed: int,
        num_heads: int,
        taught: NDArray[np.bool_] | None,
    ) -> RewardModel:
        config, lora = self.config, self.config.lora
        model = new_reward_model(
            config.model_name_or_path,
            seed=stream(seed, "head"),
            max_length=config.max_length,
            half_depth=config.half_depth,
            device=self.device,
            num_heads=num_heads,
            aggregate=config.ensemble.aggregate,
            uwo_coefficient=config.ensemble.uwo_coefficient,
            lora=lora if lora.use_peft else None,
        )
        drops_out = lora.use_peft and lora.lora_dropout > 0
        if drops_out:
            only_adapters_drop_out(model.model)
        source = RankingSource(
            model,
            rankings,
            batch_size=config.batch_size,
            seed=seed,
            device=self.device,
            flips_R=flips,
            taught_RM=taught,
            ways=[
                way
                for way in WAYS
                if (way.drops_out or not drops_out)
                and (way.recomputes or not config.optimization.gradient_checkpointing)
            ],
        )
        self.begun()
        self.num_truncated += source.num_truncated
        self.told["forward"] = source.forward.name
        num_updates = math.ceil(config.num_train_epochs * len(rankings) / config.batch_size)
        fit(
            folder,
            Learner(model.model, config.optimization, num_updates, dropout=drops_out),
            model.tokenizer,
            source,
            ranking_loss(config.ranking_loss, source.forward),
            seed=seed,
            progress=mirrored(config.tracking, folder, self.progress),
        )
        return model


def _finish(
    path: Path,
    config: RewardConfig,
    model: RewardModel | RewardEnsemble,
    held: Sequence[Ranking],
    typical: Answers,
    counts: dict[str, int | str],
) -> None:
    """Calibrate, measure, and save what a fresh process scores alike."""
    prompts = [ranking.prompt for ranking in held for _ in ranking.completions]
    texts = [text for ranking in held for text in ranking.completions]
    scores_N = calibrate(model, held, typical=typical)
    several = model.num_members > 1
    figures = evaluate(
        held,
        scores_N,
        mean=model.calibration.mean,
        member_scores_NM=model.member_scores(prompts, texts) if several else None,
        seed=config.seed,
    )
    held_truncated = sum(row.is_truncated for row in model.rows(prompts, texts))
    figures |= counts
    figures["num_truncated"] = int(counts["num_truncated"]) + held_truncated
    write_json(path / "evaluation.json", figures)
    target = path / "model"
    with new_folder(target) as temporary, writing(target):
        if isinstance(model, RewardEnsemble) or not config.lora.use_peft:
            model.save(temporary, prompts, texts)
            return
        with new_folder(path / "adapter") as adapter:
            model.save(temporary, prompts, texts, adapter=adapter)
