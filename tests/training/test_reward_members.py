"""Who of an ensemble learns from which rankings, how far each is believed, and that every setting reaches the loss."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crestline.training import reward as verb
from crestline.training.configs import Optimization
from crestline.training.preferences import sides_of, trust_in
from crestline.training.rankings import RankingSource, halves
from crestline.training.reward import reward
from crestline.training.reward_configs import Ensemble, RankingLoss, RewardConfig, Splits
from crestline.training.seeds import stream

TRUSTING = RankingLoss(annotator_reliability=True)


class Noted(RankingSource):
    """Notes itself, and the head that its model began from."""

    made: list["Noted"]

    def __init__(self, reward_model: Any, *given: Any, **named: Any) -> None:
        super().__init__(reward_model, *given, **named)
        self.reward_model = reward_model
        self.first_head = reward_model.model.score.weight.detach().clone()
        self.made.append(self)

    @property
    def scores_NM(self) -> np.ndarray:
        """What its model's members say of three completions."""
        asked = [[{"role": "user", "content": "Say cat."}]] * 3, ["cat", "dog hen", "no"]
        found: np.ndarray = self.reward_model.member_scores(*asked)
        return found


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> list[Noted]:
    """The sources of a run's trainings, in their order. Nothing is calibrated, measured and saved."""
    monkeypatch.setattr(Noted, "made", [], raising=False)
    monkeypatch.setattr(verb, "RankingSource", Noted)
    monkeypatch.setattr(verb, "_finish", lambda *given: None)
    return Noted.made


@pytest.fixture(scope="module")
def votes(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each question answered by three people: ann and bob agree, eve does not care."""
    rows = []
    for number, line in enumerate((task / "rankings.jsonl").read_text().splitlines()):
        row = json.loads(line)
        better, worse = (answer["completion"] for answer in row["completions"][:2])
        for who, first in (("ann", better), ("bob", better), ("eve", (better, worse)[number % 2])):
            answers = [{"rank": int(t is not first), "completion": t} for t in (better, worse)]
            rows.append({"context": row["context"], "completions": answers, "annotator": who})
    path: Path = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(task: Path, votes: Path, output_dir: Path, **changes: Any) -> RewardConfig:
    values: dict[str, Any] = {
        "model_name_or_path": str(task / "base"),
        "dataset_name": str(votes),
        "output_dir": str(output_dir),
        "splits": Splits(eval_fraction=0.3),
        "num_train_epochs": 1.0,
        "batch_size": 12,
        "max_length": 40,
        "optimization": Optimization(learning_rate=1e-2, dtype="float32"),
    }
    return RewardConfig(**(values | changes))


def believed(config: RewardConfig) -> dict[tuple[Any, ...], float]:
    """Share of wrong answers by who answered what."""
    train = sides_of(Path(config.output_dir), config).train
    flips = trust_in(train, config.ranking_loss).flips
    assert flips and len(set(flips)) > 1
    return {
        (str(r.prompt), r.completions, r.annotator): flip
        for r, flip in zip(train, flips, strict=True)
    }


@pytest.mark.parametrize("members", ["one", "heads", "models"])
def test_everybody_is_trusted_as_they_agree(task, votes, tmp_path, sources, members) -> None:
    ensemble = Ensemble() if members == "one" else Ensemble(num_members=3, members=members)
    config = settings(task, votes, tmp_path, ensemble=ensemble, ranking_loss=TRUSTING)
    flips = believed(config)
    reward(config)
    assert len(sources) == (3 if members == "models" else 1)
    for source in sources:
        expected = [flips[str(r.prompt), r.completions, r.annotator] for r in source.rankings]
        assert list(source.flips_R) == expected


def test_members_of_models_learn_from_their_halves(task, votes, tmp_path, sources) -> None:
    config = settings(task, votes, tmp_path, ensemble=Ensemble(num_members=3, members="models"))
    train = sides_of(tmp_path, config).train
    reward(config)
    taught = halves(len(train), 3, stream(0, "halves"))
    for number, source in enumerate(sources):
        assert source.rankings == [train[n] for n in np.flatnonzero(taught[:, number])]
        assert source.taught_RM.all() and source.flips_R == [0.0] * len(source.rankings)
    assert len({source.order.seed for source in sources}) == 3


def test_heads_learn_from_their_halves(task, votes, tmp_path, sources) -> None:
    config = settings(task, votes, tmp_path, ensemble=Ensemble(num_members=3))
    train = sides_of(tmp_path, config).train
    reward(config)
    (source,) = sources
    assert source.rankings == train
    assert (source.taught_RM == halves(len(train), 3, stream(0, "halves"))).all()


@pytest.mark.parametrize("members", ["heads", "models"])
def test_all_the_rankings_teach_all_members_from_different_beginnings(
    task, votes, tmp_path, sources, members
) -> None:
    scores = []
    for data in ("all", "half"):
        ensemble = Ensemble(num_members=2, members=members, member_data=data)
        config = settings(task, votes, tmp_path / data, ensemble=ensemble)
        train = sides_of(tmp_path / data, config).train
        reward(config)
        made = list(sources)
        sources.clear()
        heads = np.concatenate([source.first_head for source in made])
        assert len(heads) == 2 and (heads[0] != heads[1]).all()
        if data == "all":
            assert all(source.rankings == train for source in made)
            assert all(source.taught_RM.all() for source in made)
        scores.append(np.concatenate([source.scores_NM for source in made], axis=1))
    assert (np.abs(scores[0] - scores[1]) > 1e-3).all()


@pytest.mark.parametrize(
    "changed",
    [
        {"center_rewards_coefficient": 0.1},
        {"flip_rate": 0.2},
        {"annotator_reliability": True},
        {"loss_type": "pairwise"},
        {"ties": "equal"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_is_learned_is_what_was_set(task, votes, tmp_path, changed) -> None:
    """Told by the loss of the third update; at the first all scores are nearly alike."""

    def stop(update: int, num_updates: int, metrics: Mapping[str, float]) -> None:
        if update == 3:
            losses.append(metrics["loss"])
            raise KeyboardInterrupt

    losses: list[float] = []
    named = "annotator_reliability" in changed
    config = settings(task, votes if named else task / "rankings.jsonl", tmp_path / "plain")
    config = replace(config, batch_size=4)
    other = replace(config, output_dir=str(tmp_path / "other"), ranking_loss=RankingLoss(**changed))
    for one in (config, other):
        with pytest.raises(KeyboardInterrupt):
            reward(one, progress=stop)
    assert abs(losses[0] - losses[1]) > 1e-4
