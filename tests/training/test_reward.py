import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crestline.data.rankings import read_rankings
from crestline.models.reward import Calibration, RewardModel, load_reward_model, new_reward_model
from crestline.models.reward_forward import WAYS
from crestline.runs.files import read_json, read_jsonl
from crestline.training.configs import Lora, Optimization
from crestline.training.health import Unhealthy
from crestline.training.learner import Learner
from crestline.training.preferences import (
    check_ties,
    ranked_pairs,
    sides_of,
    split_rankings,
    trust_in,
)
from crestline.training.rankings import RankingSource, halves
from crestline.training.reward import only_adapters_drop_out, reward
from crestline.training.reward_configs import Ensemble, RankingLoss, RewardConfig, Splits
from crestline.types import BadInput, Paused, PromptText, Ranking

CHAT: PromptText = [{"role": "user", "content": "Say cat."}]


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


def test_batches_hold_ragged_rankings(task: Path) -> None:
    judge = load_reward_model(task / "judge")
    rankings = [ranking("cat dog hen", 2, None, 0), ranking("fox owl", 0, 1)]
    rankings[1] = replace(rankings[1], margin=0.5)
    source = RankingSource(judge, rankings, batch_size=2, seed=0, device="cpu", flips_R=[0.1, 0.2])
    batch, made = source.batch(1)
    order = source.order.rows(0, 2)
    first, second = order.index(0), order.index(1)
    assert batch.ranked_RK[first].tolist() == [True, False, True]
    assert batch.ranks_RK[first][batch.ranked_RK[first]].tolist() == [2, 0]
    assert batch.ranked_RK[second].tolist() == [True, True, False]
    assert batch.margins_R[[first, second]].tolist() == [0.0, 0.5]
    assert batch.flips_R[[first, second]].tolist() == pytest.approx([0.1, 0.2])
    texts = [ids.tolist() for ids in batch.texts.ids]
    expected = [
        judge.encode(CHAT, text)
        for n in order
        for text, rank in zip(rankings[n].completions, rankings[n].ranks, strict=True)
        if rank is not None  # the others are not read
    ]
    assert texts == expected
    assert batch.ranks_RK.shape == (2, 3)
    # the prompt goes through the model once for each ranking
    assert source.forward.shares
    assert made["num_tokens"] == sum(map(len, expected)) > made["num_encoded_tokens"]


def test_halves_complete_each_other() -> None:
    taught = halves(9, 3, seed=1)
    assert taught.sum(0).tolist() == [5, 5, 5]
    assert (taught[:, 0] | taught[:, 1]).all()
    assert (taught[:, 0] != taught[:, 2]).any()


def test_truncated_are_those_that_lost_something(task: Path) -> None:
    texts = ranking("cat " + "cat-dog-" * 3, 0, 1)
    judge = load_reward_model(task / "judge")
    lengths = [len(judge.encode(CHAT, text)) for text in texts.completions]
    assert lengths[0] < lengths[1] < judge.max_length
    counts = []
    for limit in (lengths[1], lengths[1] - 1, lengths[0] - 1):
        short = RewardModel(
            judge.model, judge.tokenizer, max_length=limit, calibration=Calibration()
        )
        source = RankingSource(short, [texts], batch_size=1, seed=0, device="cpu")
        counts.append(source.num_truncated)
        assert source.ids[0][1].tolist()[-3:] == judge.encode(CHAT, texts.completions[1])[-3:]
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
    held = split_rankings(config).test
    raw = [found.score([r.prompt], [text])[0] for r in held for text in r.completions]
    assert found.calibration.mean == pytest.approx(sum(raw) / len(raw), abs=1e-4)


def test_no_prompt_stands_on_two_sides(task: Path, tmp_path: Path) -> None:
    config = settings(task, tmp_path, splits=Splits(eval_fraction=0.3, watch_fraction=0.3))
    sides = split_rankings(config)
    prompts = [
        {json.dumps(r.prompt) for r in side} for side in (sides.train, sides.watch, sides.test)
    ]
    assert all(prompts) and len(set.union(*prompts)) == sum(map(len, prompts))
    assert sum(map(len, (sides.train, sides.watch, sides.test))) == 20
    given = Splits(eval_dataset_name=str(task / "held_rankings.jsonl"))
    whole = split_rankings(settings(task, tmp_path, splits=given))
    assert (len(whole.train), whole.watch, len(whole.test)) == (20, [], 20)
    reward(replace(config, output_dir=str(tmp_path / "run")))
    told = read_json(tmp_path / "run/splits.json")
    for name in ("train", "watch", "test"):
        written = read_rankings(str(tmp_path / f"run/data/{name}.jsonl"))
        assert len(written) == told[f"num_{name}_rankings"]
        assert [r.completions for r in written] == [r.completions for r in getattr(sides, name)]


def test_prompts_that_are_measured_on_are_not_trained_on(task: Path, tmp_path: Path) -> None:
    rows = (task / "rankings.jsonl").read_text().splitlines(keepends=True)
    bare = '{"prompt": "", "chosen": "cat cat", "rejected": "dog"}\n'
    (tmp_path / "votes").mkdir()
    (tmp_path / "votes" / "train.jsonl").write_text("".join([*rows, bare]))
    (tmp_path / "votes" / "test.jsonl").write_text("".join([*rows[:5], bare]))
    given = Splits(eval_dataset_name=str(tmp_path / "votes"), watch_fraction=0.3)
    config = settings(task, tmp_path / "run", dataset_name=str(tmp_path / "votes"), splits=given)
    sides = split_rankings(config)
    assert len(sides.test) == 6 and len([*sides.train, *sides.watch]) == 16
    asked = [{json.dumps(r.prompt) for r in side if r.prompt} for side in (sides.train, sides.test)]
    assert not asked[0] & asked[1]
    assert sides.counts["num_dropped_as_evaluation"] == 5
    assert sides.counts["num_dropped_by_split"] == 0
    reward(config)
    told = read_json(tmp_path / "run/splits.json")
    assert told["num_dropped_as_evaluation"] == 5 and told["settings"]["test_split"] == "test"


def test_rankings_to_measure_on_that_are_missing_or_all_there_are(
    task: Path, tmp_path: Path
) -> None:
    def refused(source: Path) -> str:
        with pytest.raises(BadInput) as found:
            split_rankings(settings(task, tmp_path, splits=Splits(eval_dataset_name=str(source))))
        return str(found.value)

    assert "all 20 rankings have prompts of" in refused(task / "rankings.jsonl")
    (tmp_path / "votes").mkdir()
    shutil.copy(task / "rankings.jsonl", tmp_path / "votes" / "train.jsonl")
    assert "no split 'test'; found train.jsonl" in refused(tmp_path / "votes")


def test_one_prompt_is_too_few_to_hold_some_out(task: Path, tmp_path: Path) -> None:
    lines = (task / "rankings.jsonl").read_text().splitlines()
    (tmp_path / "one.jsonl").write_text(f"{lines[0]}\n" * 5)
    config = settings(task, tmp_path / "reward", dataset_name=str(tmp_path / "one.jsonl"))
    with pytest.raises(BadInput, match="5 rankings are too few to hold out 30%"):
        reward(config)


def test_half_of_one_block_is_one_block(task: Path, tmp_path: Path) -> None:
    folder = reward(settings(task, tmp_path / "half", half_depth=True))
    assert load_reward_model(folder).model.config.num_hidden_layers == 1


def test_a_run_goes_on_with_the_rankings_it_began_with(task: Path, tmp_path: Path) -> None:
    shutil.copy(task / "rankings.jsonl", tmp_path / "votes.jsonl")
    config = settings(task, tmp_path / "run", dataset_name=str(tmp_path / "votes.jsonl"))
    before = sides_of(tmp_path / "run", config)

    def stop(update: int, num_updates: int, metrics: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reward(config, progress=stop)
    (tmp_path / "votes.jsonl").unlink()
    after = sides_of(tmp_path / "run", config)
    for name in ("train", "watch", "test"):
        same = [replace(ranking, where="") for ranking in getattr(before, name)]
        assert [replace(ranking, where="") for ranking in getattr(after, name)] == same
    assert after.counts == before.counts
    reward(config)


def test_the_pause_of_a_member_is_cured_by_other_settings(
    task: Path, tmp_path: Path, monkeypatch
) -> None:
    """The second of three pauses; the first, trained already, must accept the cure too."""
    update = Learner.update

    def diverging(learner: Learner, batch: Any, loss: Any, number: int) -> dict[str, float]:
        if learner.config.learning_rate == 1.0 and (tmp_path / "run" / "member-1").exists():
            raise Unhealthy(number, "loss nan is not finite", "lower --learning_rate")
        return update(learner, batch, loss, number)

    monkeypatch.setattr(Learner, "update", diverging)
    config = settings(task, tmp_path / "run", ensemble=Ensemble(num_members=3, members="models"))
    with pytest.raises(Paused, match="lower --learning_rate and run the same command again"):
        reward(replace(config, optimization=Optimization(learning_rate=1.0, dtype="float32")))
    told = read_json(tmp_path / "run" / "paused.json")
    assert (told["member"], told["update"]) == (1, 1)
    before = (tmp_path / "run" / "member-0" / "metrics.jsonl").read_bytes()
    assert load_reward_model(reward(config)).num_members == 3
    assert not list((tmp_path / "run").rglob("paused.json"))
    assert (tmp_path / "run" / "member-0" / "metrics.jsonl").read_bytes() == before
    with pytest.raises(BadInput, match="learning_rate"):  # no longer paused
        reward(replace(config, optimization=Optimization(learning_rate=1.0, dtype="float32")))


def test_bad_input_leaves_no_trace(task: Path, tmp_path: Path) -> None:
    config = settings(task, tmp_path / "run", model_name_or_path=str(tmp_path / "nothing"))
    for ensemble in (Ensemble(), Ensemble(num_members=2, members="models")):
        with pytest.raises(BadInput, match="does not exist"):
            reward(replace(config, ensemble=ensemble))
        assert not (tmp_path / "run").exists()


def test_rankings_tied_altogether_teach_where_a_tie_means_equal(task: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (task / "rankings.jsonl").read_text().splitlines()]
    for answer in rows[0]["completions"]:
        answer["rank"] = 0
    for answer in rows[1]["completions"]:
        answer["rank"] = None
    (tmp_path / "ties.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = settings(task, tmp_path, dataset_name=str(tmp_path / "ties.jsonl"))
    given = replace(config, splits=Splits(eval_dataset_name=str(task / "held_rankings.jsonl")))
    sides = split_rankings(given)
    assert (len(sides.train), sides.counts["num_skipped_rankings"]) == (18, 2)
    sides = split_rankings(replace(given, ranking_loss=RankingLoss(ties="equal")))
    assert (len(sides.train), sides.counts["num_skipped_rankings"]) == (19, 1)
    assert sides.counts["skipped"] == "1 with fewer than two ranked"


@pytest.mark.parametrize("members", ["heads", "models"])
def test_an_ensemble_is_one_reward_model_with_a_spread(
    task: Path, tmp_path: Path, members: Any
) -> None:
    ensemble = Ensemble(num_members=2, members=members, aggregate="uwo")
    config = settings(task, tmp_path / "reward", num_train_epochs=4.0, ensemble=ensemble)
    folder = reward(config)
    found = load_reward_model(folder)
    assert (found.num_members, found.aggregate) == (2, "uwo")
    spread = found.member_scores([CHAT] * 2, ["cat", "dog hen"])
    assert spread.shape == (2, 2) and (spread[:, 0] != spread[:, 1]).all()
    joined = spread.mean(1) - 0.1 * spread.var(1)
    scores = np.array(found.score([CHAT] * 2, ["cat", "dog hen"]))
    assert np.diff(scores) == pytest.approx(np.diff(joined), abs=1e-5)


def test_adapters_ship_merged_and_alone(task: Path, tmp_path: Path) -> None:
    config = settings(task, tmp_path / "reward", lora=Lora(use_peft=True, lora_r=2))
    folder = reward(config)
    alone = load_reward_model(tmp_path / "reward" / "adapter")
    asked = ([CHAT] * 2, ["cat", "dog hen"])
    assert load_reward_model(folder).score(*asked) == pytest.approx(alone.score(*asked), abs=1e-4)


def test_adapters_of_an_ensemble_ship_merged(task: Path, tmp_path: Path) -> None:
    ensemble = Ensemble(num_members=2, members="models")
    lora = Lora(use_peft=True, lora_r=2, lora_dropout=0.5)
    found = load_reward_model(
        reward(settings(task, tmp_path / "run", lora=lora, ensemble=ensemble))
    )
    assert found.num_members == 2
    assert not (tmp_path / "run" / "adapter").exists()


def test_dropout_of_adapters_alone_works_in_training(task: Path, tmp_path: Path) -> None:
    lora = Lora(use_peft=True, lora_r=2, lora_dropout=0.5)
    model = new_reward_model(task / "base", seed=0, max_length=40, lora=lora)
    source = RankingSource(
        model, [ranking("cat dog hen", 0, 1, 2)], batch_size=1, seed=0, device="cpu"
    )
    texts = source.batch(1)[0].texts
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    for module in model.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3
    ways = {way.name: way for way in WAYS}
    expected = ways["llama"].scores(model.model, texts)
    only_adapters_drop_out(model.model)
    model.model.train()
    for _ in range(2):  # other draws, other scores
        found = ways["packed decoder"].scores(model.model, texts)
        assert not torch.allclose(found, expected, atol=1e-3)
        expected = found
    dropouts = [m.p for n, m in model.model.named_modules() if isinstance(m, torch.nn.Dropout)]
    assert set(dropouts) == {0.5}
    assert all(
        m.attention_dropout == 0 for m in model.model.modules() if hasattr(m, "attention_dropout")
    )
    config = settings(task, tmp_path / "run", lora=lora)
    reward(config)
    assert read_json(tmp_path / "run/evaluation.json")["forward"] == "packed decoder"
    reward(settings(task, tmp_path / "without", lora=replace(lora, lora_dropout=0.0)))
    assert read_json(tmp_path / "without/evaluation.json")["forward"] == "llama"
    losses = [
        read_jsonl(tmp_path / name / "metrics.jsonl")[-1]["loss"] for name in ("run", "without")
    ]
    assert losses[0] != losses[1]


def test_people_are_trusted_by_how_they_agree(task: Path, tmp_path: Path) -> None:
    row = json.loads((task / "rankings.jsonl").read_text().splitlines()[0])
    texts = [completion["completion"] for completion in row["completions"]][:2]
    rows = []
    for number in range(12):
        for who, first in (("ann", 0), ("bob", 0), ("eve", number % 2)):
            ranks = [0, 1] if first == 0 else [1, 0]
            context = [{"role": "user", "content": f"question {number}"}]
            pairs = zip(ranks, texts, strict=True)
            answers = [{"rank": rank, "completion": text} for rank, text in pairs]
            rows.append({"context": context, "completions": answers, "annotator": who})
    (tmp_path / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trusting = RankingLoss(annotator_reliability=True)
    config = settings(
        task,
        tmp_path / "reward",
        dataset_name=str(tmp_path / "named.jsonl"),
        ranking_loss=trusting,
    )
    reward(config)
    told = read_json(tmp_path / "reward/annotators.json")
    assert told["ann"]["reliability"] > 0.9 > 0.75 > told["eve"]["reliability"]
    with pytest.raises(BadInput, match="no ranking names its annotator"):
        reward(settings(task, tmp_path / "unnamed", ranking_loss=trusting))


def test_who_only_ever_ties_is_trusted_as_somebody_unknown() -> None:
    """The last by name, so that nobody behind them has a number."""
    votes = [
        replace(ranking("x y", 0, int(who != "zoe")), prompt=f"question {n}", annotator=who)
        for n in range(6)
        for who in ("ann", "bob", "zoe")
    ]
    found = trust_in(votes, RankingLoss(ties="equal", annotator_reliability=True))
    assert found.annotators["zoe"] == {"reliability": 7 / 8, "num_shared_answers": 0}
    assert found.flips is not None and found.flips[2] == 1 / 8 > found.flips[0]


def test_a_tie_too_wide_is_named(task: Path) -> None:
    wide = replace(ranking("x " * 12, *[0] * 11, 1), where="votes.jsonl:3")
    with pytest.raises(BadInput, match=r"votes.jsonl:3: 11 completions share a rank"):
        check_ties([wide], RankingLoss())
    check_ties([wide], RankingLoss(ties="equal"))


def test_typical_answers_say_where_a_half_is(task: Path, tmp_path: Path) -> None:
    samples = [{"prompt": CHAT, "completions": ["cat", "dog hen owl"]}]
    (tmp_path / "samples.jsonl").write_text(json.dumps(samples[0]) + "\n")
    config = settings(
        task, tmp_path / "reward", calibration_samples=str(tmp_path / "samples.jsonl")
    )
    found = load_reward_model(reward(config))
    scores = found.score([CHAT] * 2, samples[0]["completions"])
    assert found.calibration.mean == pytest.approx(np.mean(scores), abs=1e-4)
