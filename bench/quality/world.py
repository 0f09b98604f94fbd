"""The embedded world: rankings of a fresh crowd, learned whole, as pairs and by ensembles."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crestline.data.formats import demonstrations_as_rows, prompts_as_rows, texts_as_rows
from crestline.data.rankings import rankings_as_rows, read_rankings
from crestline.data.splits import canonical_prompt, side_of
from crestline.models.reward import load_reward_model
from crestline.pipeline.configs import RankConfig, SampleConfig
from crestline.pipeline.presets import DEMO
from crestline.pipeline.rank import rank
from crestline.pipeline.sample import sample
from crestline.pipeline.who import world_of
from crestline.rewards.evaluation import evaluate
from crestline.rewards.scoring import score_rankings
from crestline.runs.files import write_jsonl_atomic
from crestline.training.pretrain import pretrain
from crestline.training.reward import reward
from crestline.training.reward_configs import Ensemble, RankingLoss, RewardConfig, Splits
from crestline.training.seeds import stream
from crestline.training.sft import sft
from crestline.types import Prompt, Ranking
from quality.beside_trl import strict_pairs

WORLD = world_of("pelican")
SIDES = {"calibration": 0.3, "test": 0.7}
MEMBERS = 4


@dataclass(frozen=True)
class Size:
    """How much of everything. num_rankings: to train on; the others are of held-out prompts."""

    pretrain_updates: int
    sft_epochs: float
    num_rankings: int
    num_calibration: int
    num_test: int


FULL = Size(400, 3.0, 2000, 300, 1000)
QUICK = Size(150, 1.0, 500, 150, 350)


def policy(folder: Path, size: Size) -> None:
    """Pretrain and fine-tune the model whose answers are ranked, as the demo does."""
    texts = WORLD.texts(DEMO.world.num_texts, stream(0, "world"))
    shown = WORLD.demonstrations(DEMO.world.num_demonstrations, stream(0, "world"))
    write_jsonl_atomic(folder / "texts.jsonl", texts_as_rows(texts))
    write_jsonl_atomic(folder / "demonstrations.jsonl", demonstrations_as_rows(shown))
    first = replace(
        DEMO.pretrain,
        text=str(folder / "texts.jsonl"),
        output_dir=str(folder / "pretrain"),
        num_updates=size.pretrain_updates,
    )
    second = replace(
        DEMO.sft,
        model_name_or_path=str(pretrain(first)),
        dataset_name=str(folder / "demonstrations.jsonl"),
        output_dir=str(folder / "sft"),
        num_train_epochs=size.sft_epochs,
    )
    sft(second)


def rankings_of(folder: Path, work: Path, split: str, count: int, seed: int) -> list[Ranking]:
    """A fresh crowd's rankings of fresh samples."""
    prompts = WORLD.prompts(split, count, stream(seed, split))
    asked, said, ranked = (work / f"{split}_{n}.jsonl" for n in ("prompts", "samples", "rankings"))
    write_jsonl_atomic(asked, prompts_as_rows([Prompt(text=text) for text in prompts]))
    sampling = SampleConfig(
        model_name_or_path=str(folder / "sft" / "model"),
        dataset_name=str(asked),
        output_file=str(said),
        num_generations=DEMO.sample.num_generations,
        max_completion_length=DEMO.sample.max_completion_length,
        seed=stream(seed, "samples", split),
    )
    asking = RankConfig(
        dataset_name=str(sample(sampling)),
        people="pelican",
        output_file=str(ranked),
        flip_probability=DEMO.world.flip_probability,
        seed=seed,
    )
    return read_rankings(str(rank(asking)))


@dataclass(frozen=True)
class Asked:
    """Rankings of one seed. folder: where whole.jsonl, pairs.jsonl and calibration.jsonl lie; removed at the end."""

    folder: Path
    seed: int
    train: list[Ranking]
    pairs: list[Ranking]
    test: list[Ranking]


def asked(folder: Path, size: Size, seed: int, kind: str) -> Asked:
    """What a fresh crowd said, the same for every kind of study."""
    work = folder / f"{kind}_{seed}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    train = rankings_of(folder, work, "train", size.num_rankings, seed)
    apart = rankings_of(folder, work, "heldout", round(1.6 * size.num_test), seed)
    sides: dict[str, list[Ranking]] = {name: [] for name in SIDES}
    for ranking in apart:
        sides[side_of(canonical_prompt(ranking.prompt), SIDES, seed)].append(ranking)
    pairs = [
        replace(ranking, completions=pair, ranks=(0, 1))
        for ranking in train
        for pair in strict_pairs(ranking)
    ]
    calibration = sides["calibration"][: size.num_calibration]
    for name, rows in {"whole": train, "pairs": pairs, "calibration": calibration}.items():
        write_jsonl_atomic(work / f"{name}.jsonl", rankings_as_rows(rows))
    return Asked(work, seed, train, pairs, sides["test"][: size.num_test])


def study(folder: Path, size: Size, seed: int) -> dict[str, Any]:
    """Whole rankings against pairs in as many updates, calibration, and what an ensemble's spread knows."""
    said, several = asked(folder, size, seed, "world"), Ensemble(num_members=MEMBERS)
    plans: dict[str, dict[str, Any]] = {
        "whole": {},
        "pairs": _pairs(said, 1),
        "heads": {"ensemble": several},
        "models": {"ensemble": replace(several, members="models")},
    }
    return _arms(folder, said, plans)


def losses(folder: Path, size: Size, seed: int) -> dict[str, Any]:
    """The same rankings whole, by both losses, and as pairs.

    "longer" sees every ranking twice as often. The pairs are seen as often as in the short arms, in as many updates as
    in the longer ones.
    """
    said, plain = asked(folder, size, seed, "losses"), DEMO.reward
    by_pairs = RankingLoss(loss_type="pairwise")
    longer = {"num_train_epochs": 2 * plain.num_train_epochs}
    plans: dict[str, dict[str, Any]] = {
        "whole": {},
        "whole_by_pairs": {"ranking_loss": by_pairs},
        "whole_longer": longer,
        "whole_by_pairs_longer": {**longer, "ranking_loss": by_pairs},
        "pairs": _pairs(said, 2),
    }
    return _arms(folder, said, plans)


def _pairs(said: Asked, share: int) -> dict[str, Any]:
    """Pairs in place of rankings, in `share` times as many updates."""
    batch = DEMO.reward.batch_size * len(said.pairs) / len(said.train) / share
    return {"dataset_name": str(said.folder / "pairs.jsonl"), "batch_size": round(batch)}


def _arms(folder: Path, said: Asked, plans: dict[str, dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"seed": said.seed, "num_train_rankings": len(said.train)}
    for name, changes in plans.items():
        plain = replace(
            DEMO.reward,
            model_name_or_path=str(folder / "sft" / "model"),
            dataset_name=str(said.folder / "whole.jsonl"),
            output_dir=str(said.folder / name),
            splits=Splits(eval_dataset_name=str(said.folder / "calibration.jsonl")),
            seed=said.seed,
        )
        found[name] = judged(replace(plain, **changes), said.test)
    found["num_test_rankings"] = len(said.test)
    shutil.rmtree(said.folder)
    return found


def judged(config: RewardConfig, test: Sequence[Ranking]) -> dict[str, Any]:
    """Train, and say what the scores are worth on rankings that it never saw, and by the hidden gold.

    seconds: of this process's processor time.
    """
    began = time.process_time()
    model = load_reward_model(reward(config))
    seconds = time.process_time() - began
    scores = score_rankings(model, test)
    figures = evaluate(
        test,
        scores.scores_N,
        temperature=model.calibration.temperature,
        mean=model.calibration.mean,
        member_scores_NM=scores.member_scores_NM if model.num_members > 1 else None,
        num_resamples=400,
    )
    kept = ("accuracy", "accuracy_low", "accuracy_high", "longer_wins_accuracy", "num_pairs")
    return {
        **{name: figures[name] for name in kept},
        "gold_accuracy": gold_accuracy(test, scores.scores_N),
        "hit": figures["best_of_k"][-1]["hit"],
        "calibration": {k: v for k, v in figures["calibration"].items() if k != "bins"},
        "ensemble": figures["ensemble"],
        "seconds": round(seconds, 1),
    }


def gold_accuracy(test: Sequence[Ranking], scores_N: Any) -> float:
    """Share of pairs, of which one is better in truth, that the scores order as the hidden gold does."""
    golds = [WORLD.gold(r.prompt, text) for r in test for text in r.completions]
    first, right, count = 0, 0.0, 0
    for ranking in test:
        here = range(first, first + len(ranking.completions))
        first = here.stop
        for i in here:
            for j in here:
                if golds[i] > golds[j]:
                    right += 0.5 * (scores_N[i] == scores_N[j]) + float(scores_N[i] > scores_N[j])
                    count += 1
    return right / count
