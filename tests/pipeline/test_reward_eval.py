"""The evaluating verb on tiny models: what it reads, writes, keeps and refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

from crestline.data.rankings import read_rankings
from crestline.models.load import save_model
from crestline.models.reward import load_reward_model
from crestline.models.tokenizer import train_tokenizer
from crestline.pipeline import reward_curve
from crestline.pipeline.reward_curve import measure_curve, nested_part, sizes_of
from crestline.pipeline.reward_eval import reward_eval
from crestline.pipeline.reward_eval_configs import (
    LearningCurveConfig,
    RewardEvalConfig,
    inputs_of,
)
from crestline.rewards.scoring import score_rankings
from crestline.runs.files import read_json, read_jsonl, write_jsonl_atomic
from crestline.training.configs import Optimization
from crestline.training.preferences import trust_in
from crestline.training.reward import reward
from crestline.training.reward_configs import RankingLoss, RewardConfig, Splits
from crestline.types import BadInput, Ranking

ANIMALS = ["fox", "owl", "cat", "dog", "hen", "bee", "ant", "cow", "pig", "rat"]
VERBS = ["sees", "likes", "hears", "meets", "helps", "finds"]


def rows(first: int, num: int) -> list[dict[str, Any]]:
    """Rankings of three answers to prompts of their own: kind words beat none, which beat unkind ones."""
    found = []
    for n in range(first, first + num):
        who, what, whom = ANIMALS[n % 10], VERBS[n // 10 % 6], ANIMALS[n // 60 % 10]
        answers = [(0, f" a good {whom}."), (1, f" the {whom}."), (2, f" a bad, bad {whom}.")]
        if n % 7 == 0:
            answers[0], answers[1] = (1, answers[0][1]), (0, answers[1][1])  # not all agree
        found.append(
            {
                "prompt": f"The {who} number {n} {what}",
                "completions": [{"rank": rank, "completion": text} for rank, text in answers],
                "annotator": ("ann", "bob")[n % 2],
                "source": ("farm", "wood")[n % 3 == 0],
            }
        )
    return found


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory, tiny_llama) -> Path:
    """A folder with a backbone, rankings, and a run of the reward verb with its split beside the model."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("evaluation")
    write_jsonl_atomic(folder / "train.jsonl", rows(0, 96))
    write_jsonl_atomic(folder / "test.jsonl", rows(200, 40))
    texts = [f"{r['prompt']}{c['completion']}" for r in rows(0, 96) for c in r["completions"]]
    tokenizer = train_tokenizer(texts, 300)
    model = tiny_llama(tokenizer)
    save_model(model, tokenizer, folder / "base")
    reward(training(folder, num_train_epochs=4.0, output_dir=str(folder / "run")))
    for name in ("train.jsonl", "test.jsonl"):
        (folder / "run" / "data").mkdir(exist_ok=True)
        (folder / "run" / "data" / name).write_bytes((folder / name).read_bytes())
    return folder


def training(folder: Path, **changes: Any) -> RewardConfig:
    settings: dict[str, Any] = {
        "model_name_or_path": str(folder / "base"),
        "dataset_name": str(folder / "train.jsonl"),
        "output_dir": str(folder / "run"),
        "splits": Splits(eval_dataset_name=str(folder / "test.jsonl")),
        "num_train_epochs": 1.0,
        "batch_size": 8,
        "max_length": 48,
        "optimization": Optimization(learning_rate=1e-2, dtype="float32"),
    }
    return RewardConfig(**(settings | changes))


def settings(task: Path, output_dir: Path, **changes: Any) -> RewardEvalConfig:
    given: dict[str, Any] = {
        "reward_model_name_or_path": str(task / "run" / "model"),
        "output_dir": str(output_dir),
        "num_resamples": 50,
    }
    return RewardEvalConfig(**(given | changes))


class Told:
    """A screen that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.stages: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def stage(self, name: str, text: str) -> Any:
        self.stages.append(f"{name} {text}".strip())

        def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
            assert 0 <= done <= total

        return progress


def test_figures_of_a_trained_model(task: Path, tmp_path: Path) -> None:
    told = Told()
    path = reward_eval(settings(task, tmp_path / "eval"), screen=told)
    found = read_json(path)
    assert found["dataset_name"] == str(task / "run" / "data" / "test.jsonl")
    assert found["num_heldout_rankings"] == 40 and found["num_pairs"] == 120
    assert found["accuracy"] > 0.8 > found["longer_wins_accuracy"]
    assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]
    assert {row["name"] for row in found["accuracy_by"]["source"]} == {"farm", "wood"}
    assert {row["name"] for row in found["accuracy_by"]["annotator"]} == {"ann", "bob"}
    # the temperature was fitted on these very rankings: calibration is measured across halves
    assert found["temperature_was_fitted_on_these"]
    assert found["calibration"]["temperature_from"] == "the other half"
    calibration = load_reward_model(task / "run" / "model").calibration
    assert found["temperature"] == calibration.temperature and found["mean"] == calibration.mean
    assert set(found["length"]) == {"characters", "tokens"}
    assert found["num_truncated"] == 0 and found["ensemble"] is None
    assert found["leakage"]["num_leaking"] == 0 and found["learning_curve"] is None
    assert any("40 test rankings" in line for line in told.lines) and told.stages == ["score"]
    page = path.with_suffix(".html").read_text(encoding="utf-8")
    assert "Right about" in page and "http:" not in page and "https:" not in page


def test_the_figures_are_those_of_plain_scores(task: Path, tmp_path: Path) -> None:
    """Accuracy recomputed from the model's scores alone."""
    found = read_json(reward_eval(settings(task, tmp_path / "eval")))
    model = load_reward_model(task / "run" / "model")
    right = []
    for ranking in read_rankings(str(task / "test.jsonl")):
        scores = model.score([ranking.prompt] * 3, ranking.completions)
        order = sorted(zip(ranking.ranks, scores, strict=True))
        right += [order[i][1] > order[j][1] for i in range(3) for j in range(i + 1, 3)]
    assert found["accuracy"] == pytest.approx(sum(right) / len(right))


def test_again_with_other_settings_in_the_same_folder(task: Path, tmp_path: Path) -> None:
    first = reward_eval(settings(task, tmp_path / "eval")).read_bytes()
    again = reward_eval(settings(task, tmp_path / "eval")).read_bytes()
    assert first == again
    other = read_json(
        reward_eval(settings(task, tmp_path / "eval", dataset_name=str(task / "train.jsonl")))
    )
    assert other["num_heldout_rankings"] == 96
    assert not other["temperature_was_fitted_on_these"]
    assert other["calibration"]["temperature_from"] == "the model"


def test_the_held_out_rankings_under_another_name(task: Path, tmp_path: Path) -> None:
    """The temperature was fitted on them all the same."""
    config = settings(task, tmp_path / "eval", dataset_name=str(task / "test.jsonl"))
    found = read_json(reward_eval(config))
    assert found["temperature_was_fitted_on_these"]
    assert found["calibration"]["temperature_from"] == "the other half"


def test_leaks_are_told_with_places_and_taken_out(task: Path, tmp_path: Path) -> None:
    mixed = [*rows(200, 30), *rows(0, 10)]
    write_jsonl_atomic(tmp_path / "mixed.jsonl", mixed)
    found = read_json(
        reward_eval(settings(task, tmp_path / "eval", dataset_name=str(tmp_path / "mixed.jsonl")))
    )
    leaks = found["leakage"]
    assert (leaks["num_leaking"], leaks["num_same_prompt"], leaks["num_train"]) == (10, 10, 96)
    assert leaks["examples"][0]["test_where"].endswith("mixed.jsonl:31")
    assert leaks["examples"][0]["train_where"].endswith("train.jsonl:1")
    clean = read_json(reward_eval(settings(task, tmp_path / "clean")))
    assert leaks["without"]["num_pairs"] == 90 and clean["leakage"]["without"] is None
    page = (tmp_path / "eval" / "evaluation.html").read_text(encoding="utf-8")
    assert "10 of 40 test rankings stand" in page


def test_without_training_rankings_no_leaks_are_looked_for(task: Path, tmp_path: Path) -> None:
    told = Told()
    config = settings(
        task,
        tmp_path / "eval",
        reward_model_name_or_path=copy_of(task / "run" / "model", tmp_path / "elsewhere"),
        dataset_name=str(task / "test.jsonl"),
    )
    assert read_json(reward_eval(config, screen=told))["leakage"] is None
    assert any("not looked for" in line for line in told.lines)


def copy_of(model: Path, place: Path) -> str:
    place.mkdir()
    for file in model.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return str(place)


def test_an_ensemble_is_judged_as_one_and_by_its_spread(task: Path, tmp_path: Path) -> None:
    config = settings(task, tmp_path / "eval")
    members = [copy_of(task / "run" / "model", tmp_path / f"member-{n}") for n in range(2)]
    other = load_reward_model(members[1])
    with torch.no_grad():
        noise = torch.Generator().manual_seed(0)
        for weight in other.model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=noise)
    other.write(Path(members[1]))
    ensemble = tmp_path / "ensemble"
    ensemble.mkdir()
    (ensemble / "ensemble.json").write_text(
        json.dumps({"members": members, "aggregate": "mean", "uwo_coefficient": 0})
    )
    config = replace(
        config,
        reward_model_name_or_path=str(ensemble),
        dataset_name=str(task / "test.jsonl"),
        rewardbench_output=str(tmp_path / "bench"),
    )
    found = read_json(reward_eval(config))
    assert found["ensemble"]["num_members"] == 2 == len(found["ensemble"]["member_accuracies"])
    assert found["accuracy"] > 0.6


# ---------------------------------------------------------------- RewardBench


SUBSETS = ("xstest-should-respond", "hep-go", "xstest-should-refuse")


def test_rewardbench_files_are_as_its_own_tools_read_them(task: Path, tmp_path: Path) -> None:
    pairs = [
        {
            "prompt": f"The fox number {n} sees",
            "chosen": " a good hen.",
            "rejected": " a bad, bad hen.",
            "subset": SUBSETS[n % 3],
            "id": 1000 + n,
        }
        for n in range(30)
    ]
    pairs[0]["chosen"], pairs[0]["rejected"] = pairs[0]["rejected"], pairs[0]["chosen"]
    write_jsonl_atomic(tmp_path / "filtered.jsonl", pairs)
    model = copy_of(task / "run" / "model", tmp_path / "rm")
    config = settings(
        task,
        tmp_path / "eval",
        reward_model_name_or_path=model,
        dataset_name=str(tmp_path / "filtered.jsonl"),
        rewardbench_output=str(tmp_path / "results"),
    )
    found = read_json(reward_eval(config))["rewardbench"]
    (summary,) = (tmp_path / "results" / "eval-set").rglob("*.json")
    (scores,) = (tmp_path / "results" / "eval-set-scores").rglob("*.json")
    table = pandas.read_json(scores, orient="records")  # as its run_ensemble_offline.py does
    assert table["id"].tolist() == [row["id"] for row in pairs]
    assert table["subset"].tolist() == [row["subset"] for row in pairs]
    assert (
        table["results"].tolist()
        == (table.scores_chosen > table.scores_rejected).astype(int).tolist()
    )
    assert table["results"].sum() == 29  # one was turned round
    assert table["text_chosen"][1] == "The fox number 1 sees a good hen."
    told = read_json(summary)
    by_hand = table.groupby("subset")["results"].mean().to_dict()
    assert {name: told[name] for name in by_hand} == pytest.approx(by_hand)
    assert told["model"] == model and told["model_type"] == "Seq. Classifier"
    assert found["subsets"] == pytest.approx(by_hand)
    # one of ten that should be answered was turned round; these weigh 250 of 404
    safety = (0.9 * 250 + 1.0 * 154) / 404
    assert found["sections"] == pytest.approx({"Safety": safety, "Reasoning": 1.0})
    (place,) = set((tmp_path / "results").rglob("rm.json")) - {summary, scores}
    assert read_json(place)["accuracy"] == pytest.approx(29 / 30)
    rows = read_jsonl(place.with_name("rm_outputs.jsonl"))
    assert [row["results"] for row in rows] == table["results"].tolist()
    assert rows[3]["scores_chosen"] == pytest.approx(table.scores_chosen[3])
    assert rows[3]["id"] == "1003"


def test_more_than_two_are_written_as_rewardbench_2(task: Path, tmp_path: Path) -> None:
    config = settings(task, tmp_path / "eval", rewardbench_output=str(tmp_path / "results"))
    reward_eval(config)
    (scores,) = (tmp_path / "results" / "eval-set-scores").rglob("*.json")
    found = read_json(scores)
    assert [len(row) for row in found["scores"]] == [3] * 40 == [len(t) for t in found["text"]]
    assert found["num_correct"] == [1] * 40
    assert found["results"] == [float(row[0] == max(row)) for row in found["scores"]]
    assert found["text"][0][0].startswith("The fox number 200")


# ---------------------------------------------------------------- the learning curve


class Killed(Told):
    def stage(self, name: str, text: str) -> Any:
        if "2 of 2" in text:
            raise KeyboardInterrupt
        return super().stage(name, text)


def test_a_learning_curve_goes_on_where_it_was_and_trains_nothing_twice(
    task: Path, tmp_path: Path
) -> None:
    curve = LearningCurveConfig(learning_curve=True, num_sizes=2, num_seeds=1, num_more_rankings=50)
    config = settings(task, tmp_path / "eval", curve=curve)
    with pytest.raises(KeyboardInterrupt):
        reward_eval(config, screen=Killed())
    told = Told()
    found = read_json(reward_eval(config, screen=told))["learning_curve"]
    assert told.stages == ["score", "curve 96 rankings, seed 0 (2 of 2)"]
    assert [point["num_rankings"] for point in found["points"]] == [48, 96]
    assert found["error"]["errors"] == pytest.approx([1 - p["accuracy"] for p in found["points"]])
    assert "too few points" in found["error"]["refused"] and found["error"]["gain"] is None
    kept = tmp_path / "eval" / "curve"
    assert [entry.name for entry in kept.iterdir()] == ["points.jsonl"]  # models are gone
    assert len(read_jsonl(kept / "points.jsonl")) == 2
    told = Told()
    other = replace(config, seed=7, curve=replace(curve, num_more_rankings=20))
    again = read_json(reward_eval(other, screen=told))["learning_curve"]
    assert told.stages == ["score"] and again["points"] == found["points"]
    page = (tmp_path / "eval" / "evaluation.html").read_text(encoding="utf-8")
    assert "What more rankings would buy" in page and "too few points" in page


def test_a_curve_does_without_reliability_where_nobody_answered_the_same(
    task: Path, tmp_path: Path, monkeypatch
) -> None:
    """One question of 15 is answered twice; a 17th ranking has a prompt of the test side and is not trained on."""
    votes = [{**row, "annotator": "ann"} for row in rows(0, 15)]
    votes += [{**votes[7], "annotator": "bob"}, rows(200, 1)[0]]
    write_jsonl_atomic(tmp_path / "votes.jsonl", votes)
    trusting = RankingLoss(annotator_reliability=True)
    config = training(task, dataset_name=str(tmp_path / "votes.jsonl"), ranking_loss=trusting)
    asked = []

    def trained(self: Any, settings: RewardConfig, part: list[Ranking], *_: Any) -> dict[str, Any]:
        asked.append(settings.ranking_loss.annotator_reliability)
        trust_in(part, settings.ranking_loss)  # refuses what cannot be told
        return {"errors": [0.5] * 40, "log_losses": [0.6] * 40}

    monkeypatch.setattr(reward_curve._Curve, "_trained", trained)
    test = read_rankings(str(task / "test.jsonl"))
    curve = LearningCurveConfig(num_sizes=2, num_seeds=2)
    found = measure_curve(curve, config, test, tmp_path, device="cpu", screen=Told(), seed=0)
    points = {(p["num_rankings"], p["seed"]): p for p in found["points"]}
    assert list(points) == [(8, 0), (16, 0), (8, 1), (16, 1)]
    assert [p.get("annotator_reliability", True) for p in points.values()] == asked
    assert points[8, 0]["annotator_reliability"] is False and asked[1] and asked[3]


def test_parts_are_nested_and_keep_prompts_together(task: Path) -> None:
    rankings = read_rankings(str(task / "train.jsonl"))
    twice = [Ranking(prompt=r.prompt, completions=("x", "y"), ranks=(0, 1)) for r in rankings]
    everything = [*rankings, *twice]
    for seed in (0, 1):
        small, large = (nested_part(everything, num, seed) for num in (24, 48))
        assert len(small) == 24 and len(large) == 48
        assert all(ranking in large for ranking in small)
        prompts = [ranking.prompt for ranking in large]
        assert len(set(map(str, prompts))) == 24  # both rankings of each
    assert nested_part(everything, 24, 0) != nested_part(everything, 24, 1)
    assert sizes_of(100, 9) == [12, 25, 50, 100]


def test_settings_of_the_trainings_are_those_of_the_run(task: Path, tmp_path: Path) -> None:
    curve = LearningCurveConfig(learning_curve=True)
    found = inputs_of(settings(task, tmp_path / "eval", curve=curve)).training
    assert found is not None
    assert (found.num_train_epochs, found.batch_size) == (4.0, 8)
    assert found.dataset_name == str(task / "run" / "data" / "train.jsonl")
    given = LearningCurveConfig(
        learning_curve_dataset_name=str(task / "test.jsonl"), model_name_or_path="other"
    )
    found = inputs_of(settings(task, tmp_path / "eval", curve=given)).training
    assert found is not None
    assert (found.dataset_name, found.model_name_or_path) == (str(task / "test.jsonl"), "other")


# ---------------------------------------------------------------- what is refused


def refused(config: RewardEvalConfig) -> str:
    with pytest.raises(BadInput) as caught:
        reward_eval(config)
    (line,) = str(caught.value).splitlines()
    return line


def test_what_cannot_be_evaluated(task: Path, tmp_path: Path) -> None:
    elsewhere = copy_of(task / "run" / "model", tmp_path / "elsewhere")
    config = settings(task, tmp_path / "eval", reward_model_name_or_path=elsewhere)
    assert "--dataset_name is missing" in refused(config)
    assert "--output_dir is missing" in refused(replace(config, output_dir=""))
    config = replace(config, dataset_name=str(task / "test.jsonl"))
    curve = LearningCurveConfig(learning_curve=True)
    assert "--learning_curve_dataset_name" in refused(replace(config, curve=curve))
    curve = replace(curve, learning_curve_dataset_name=str(task / "train.jsonl"))
    assert "--model_name_or_path" in refused(replace(config, curve=curve))
    write_jsonl_atomic(tmp_path / "few.jsonl", rows(0, 9))
    few = LearningCurveConfig(
        learning_curve_dataset_name=str(tmp_path / "few.jsonl"),
        model_name_or_path=str(task / "base"),
    )
    assert "few.jsonl: 9 rankings are too few" in refused(replace(config, curve=few))
    assert not (tmp_path / "eval").exists()  # nothing is left of what did not begin
    assert "has no config.json" in refused(replace(config, reward_model_name_or_path=str(task)))
    assert "no trained reward head" in refused(
        replace(config, reward_model_name_or_path=str(task / "base"))
    )


def test_other_peoples_folders_are_left_alone(task: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "years.txt").write_text("of work")
    assert "holds no run" in refused(settings(task, tmp_path / "thesis"))
    before = (task / "run" / "evaluation.json").read_bytes()
    assert "verb is 'reward' there" in refused(settings(task, task / "run"))
    assert (task / "run" / "evaluation.json").read_bytes() == before


def test_settings_out_of_range() -> None:
    for name, value in (("similarity_threshold", 1.5), ("num_resamples", 0), ("seed", -1)):
        with pytest.raises(ValueError, match=name):
            RewardEvalConfig(**{name: value})
    with pytest.raises(ValueError, match="num_sizes"):
        LearningCurveConfig(num_sizes=0)


# ---------------------------------------------------------------- scoring


def test_scores_keep_their_order_and_count_what_was_cut(task: Path) -> None:
    model = load_reward_model(task / "run" / "model")
    rankings = read_rankings(str(task / "test.jsonl"))[:5]
    long = Ranking(prompt="p", completions=("good " * 80, "bad"), ranks=(0, 1))
    scores = score_rankings(model, [*rankings, long])
    assert scores.member_scores_NM.shape == (17, 1) and scores.num_truncated == 1
    for n, ranking in enumerate(rankings):
        alone = model.score([ranking.prompt] * 3, ranking.completions)
        assert scores.scores_N[3 * n : 3 * n + 3] == pytest.approx(alone, abs=1e-5)
    chosen = scores.of(scores.truncated_N)
    assert len(chosen.scores_N) == 1 and chosen.num_tokens_N.tolist() == [48]
    assert len(score_rankings(model, []).scores_N) == 0
