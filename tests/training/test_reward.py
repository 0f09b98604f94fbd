import json
import math
from pathlib import Path
from typing import Any

import pytest

from crestline.models.reward import Calibration, load_reward_model
from crestline.runs.files import read_json, read_jsonl
from crestline.training.configs import Optimization
from crestline.training.reward import (
    RankingSource,
    half_if_equal,
    measure,
    num_truncated,
    ranked_pairs,
    reward,
    split_rankings,
)
from crestline.training.reward_configs import RewardConfig, Splits
from crestline.types import BadInput, PromptText, Ranking

CHAT: PromptText = [{"role": "user", "content": "Say cat."}]


class LongerIsBetter:
    """Scores by length: what `measure` needs of a reward model."""

    def score(self, prompts: list[PromptText], texts: list[str]) -> list[float]:
        return [float(len(text)) for text in texts]


def ranking(texts: str, *ranks: int | None) -> Ranking:
    return Ranking(prompt=CHAT, completions=tuple(texts.split()), ranks=ranks)


def settings(task: Path, output_dir: Path, **changes: Any) -> RewardConfig:
    values: dict[str, Any] = {
        "model_name_or_path": str(task / "base"),
        "dataset_name": str(task / "rankings.jsonl"),
        "output_dir": str(output_dir),
        "splits": Splits(eval_fraction=0.3),
        "num_train_epochs": 1.0,
        "batch_size": 4,
        "max_length": 40,
        "optimization": Optimization(learning_rate=1e-2, dtype="float32"),
    }
    return RewardConfig(**(values | changes))


def test_measure_by_hand() -> None:
    rankings = [
        ranking("aaaa b cc", 0, 1, 1),  # right, right
        ranking("a bbb cc dd", 0, None, 1, 1),  # wrong, wrong
        ranking("aa bb", 0, 1),  # equal scores: half
        ranking("a bb", 1, 1),  # a tie says nothing
    ]
    calibration, evaluation = measure(LongerIsBetter(), rankings, seed=0)
    assert evaluation["accuracy"] == evaluation["longer_wins_accuracy"] == pytest.approx(2.5 / 5)
    assert (evaluation["num_pairs"], evaluation["num_heldout_rankings"]) == (5, 4)
    assert evaluation["accuracy_low"] <= 0.5 <= evaluation["accuracy_high"]
    assert calibration.mean == pytest.approx((4 + 1 + 2 + 1 + 3 + 2 + 2 + 2 + 2 + 1 + 2) / 11)
    # the likelihood of the differences 3 2 -1 -1 0 is flat there
    temperature = calibration.temperature
    slope = sum(d / (1 + math.exp(d / temperature)) for d in (3, 2, -1, -1, 0))
    assert slope == pytest.approx(0, abs=1e-3)


def test_only_ties_cannot_be_measured(task: Path, tmp_path: Path) -> None:
    row = json.loads((task / "rankings.jsonl").read_text().splitlines()[0])
    for answer in row["completions"]:
        answer["rank"] = 0
    (tmp_path / "ties.jsonl").write_text(f"{json.dumps(row)}\n" * 5)
    config = settings(
        task, tmp_path / "reward", splits=Splits(eval_dataset_name=str(tmp_path / "ties.jsonl"))
    )
    with pytest.raises(BadInput, match=r"no usable ranking \(5 all tied\)"):
        reward(config)
    assert not (tmp_path / "reward" / "metrics.jsonl").exists()  # said before the training


def test_ranked_pairs_by_hand() -> None:
    assert ranked_pairs(ranking("a b c d", 1, 0, None, 1)) == [(1, 0), (1, 3)]
    assert ranked_pairs(ranking("a b", 0, 0)) == ranked_pairs(ranking("a b", 0, None)) == []


def test_half_if_equal() -> None:
    assert [half_if_equal(2, 1), half_if_equal(1, 2), half_if_equal(1, 1)] == [1.0, 0.0, 0.5]


def test_batches_hold_ragged_rankings(task: Path) -> None:
    judge = load_reward_model(task / "judge")
    rankings = [ranking("cat dog hen", 2, None, 0), ranking("fox owl", 0, 1)]
    source = RankingSource(judge, rankings, batch_size=2, seed=0, device="cpu")
    batch, made = source.batch(1)
    assert made == {"num_tokens": float(batch.lengths_N.sum())}
    rows = dict(
        zip(source.order.rows(0, 2), zip(batch.ranks_RK, batch.ranked_RK, strict=True), strict=True)
    )
    assert rows[0][1].tolist() == [True, False, True]
    assert rows[0][0][rows[0][1]].tolist() == [2, 0]
    assert rows[1][1].tolist() == [True, True, False]
    assert rows[1][0][rows[1][1]].tolist() == [0, 1]
    place = 3 * source.order.rows(0, 2).index(0)
    for k, text in enumerate(("cat", "dog", "hen")):
        length = int(batch.lengths_N[place + k])
        assert batch.tokens_NT[place + k, :length].tolist() == judge.encode(CHAT, text)
        assert set(batch.tokens_NT[place + k, length:].tolist()) <= {0}


def test_truncated_are_those_that_lost_something(task: Path) -> None:
    judge = load_reward_model(task / "judge")
    texts = ranking("cat " + "cat-dog-" * 3, 0, 1)
    lengths = [len(judge.encode(CHAT, text)) for text in texts.completions]
    assert lengths[0] < lengths[1] < judge.max_length
    counts = []
    for limit in (lengths[1], lengths[1] - 1, lengths[0] - 1):
        judge.max_length = limit
        counts.append(num_truncated(judge, [texts]))
    assert counts == [0, 1, 2]


def test_it_learns_calibrates_and_says_how_well(task: Path, tmp_path: Path) -> None:
    config = settings(task, tmp_path / "reward", num_train_epochs=20.0)
    folder = reward(config)
    metrics = read_jsonl(tmp_path / "reward/metrics.jsonl")
    assert metrics[-1]["loss"] < 0.5 * metrics[0]["loss"]
    assert metrics[-1]["accuracy"] == 1.0 and metrics[-1]["margin"] > 1
    evaluation = read_json(tmp_path / "reward/evaluation.json")
    assert evaluation["accuracy"] > 0.8
    assert evaluation["accuracy_low"] <= evaluation["accuracy"] <= evaluation["accuracy_high"]
    assert evaluation["num_train_rankings"] + evaluation["num_heldout_rankings"] == 20
    assert evaluation["num_dropped_by_split"] == evaluation["num_truncated"] == 0
    found = load_reward_model(folder)
    assert found.calibration == Calibration(evaluation["mean"], evaluation["temperature"])
    _, held, _, _ = split_rankings(config)
    raw = [found.score([r.prompt], [text])[0] for r in held for text in r.completions]
    assert found.calibration.mean == pytest.approx(sum(raw) / len(raw), abs=1e-4)


def test_no_prompt_stands_on_both_sides(task: Path, tmp_path: Path) -> None:
    train, held, dropped, _ = split_rankings(settings(task, tmp_path))
    assert (len(train) + len(held), dropped) == (20, 0)
    prompts = [{json.dumps(r.prompt) for r in side} for side in (train, held)]
    assert not prompts[0] & prompts[1]
    everything, same, _, _ = split_rankings(
        settings(task, tmp_path, splits=Splits(eval_dataset_name=str(task / "rankings.jsonl")))
    )
    assert everything == same and len(same) == 20


def test_one_prompt_is_too_few_to_hold_some_out(task: Path, tmp_path: Path) -> None:
    lines = (task / "rankings.jsonl").read_text().splitlines()
    (tmp_path / "one.jsonl").write_text(f"{lines[0]}\n" * 5)
    config = settings(task, tmp_path / "reward", dataset_name=str(tmp_path / "one.jsonl"))
    with pytest.raises(BadInput, match="5 rankings are too few to hold out 30%"):
        reward(config)


def test_half_of_one_block_is_one_block(task: Path, tmp_path: Path) -> None:
    folder = reward(settings(task, tmp_path / "half", half_depth=True))
    assert load_reward_model(folder).model.config.num_hidden_layers == 1
