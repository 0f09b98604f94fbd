"""The page of an evaluation: whole, with parts missing, with hostile text; and its sentences."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crestline.formulas.learning_curve import PowerLaw, learning_curve
from crestline.report.reward_page import reward_page, write_reward_page
from crestline.report.reward_words import (
    calibration_verdict,
    curve_verdict,
    ensemble_told,
    headline,
    leak_verdict,
    not_checked,
    short_table,
)
from crestline.rewards.evaluation import evaluate
from crestline.runs.files import write_json
from crestline.types import BadInput, Ranking

EVIL = "</style></svg><script>alert(1)</script><img src=x onerror=alert(2)>\u202e\x00 {{ 7*7 }}"
VOID = {"meta", "link", "br"}


class Nested(HTMLParser):
    """Checks that tags nest; keeps the text and the names of the tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.stack.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("href", "src"):
                assert (value or "").startswith("data:")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack[-1:] != ["style"]:
            self.text += data


def curve(law: PowerLaw, *, num_more: int = 1000) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    counts = np.repeat([100, 200, 400, 800, 1600], 2)
    hard = rng.random(500)
    errors = np.array([(hard < law(n)).astype(float) for n in counts])
    found = learning_curve(counts, errors, num_more=num_more, num_resamples=50)
    points = [
        {"num_rankings": int(n), "seed": k % 2, "accuracy": 1 - e, "log_loss": 0.5}
        for k, (n, e) in enumerate(zip(counts, found.errors, strict=True))
    ]
    return {"points": points, "error": asdict(found), "log_loss": asdict(found)}


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """An evaluation with everything in it."""
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 2, (200, 4))
    members = truth[..., None] + rng.normal(0, 1, (200, 4, 3))
    ranks = np.argsort(np.argsort(-(truth + rng.gumbel(size=truth.shape)), axis=1), axis=1)
    rankings = [
        Ranking(
            prompt=f"p{n}",
            completions=tuple(f"{k}" + "x" * int(rng.integers(1, 50)) for k in range(4)),
            ranks=tuple(int(rank) for rank in ranks[n]),
            annotator=EVIL if n % 2 else "ann",
            source=("helpful", "code")[n % 2],
        )
        for n in range(200)
    ]
    figures = evaluate(
        rankings,
        members.mean(-1).ravel(),
        member_scores_NM=members.reshape(-1, 3),
        num_tokens_N=[len(text) for r in rankings for text in r.completions],
        counts={"num_skipped_rankings": 3, "num_truncated": 5},
        num_resamples=40,
    )
    leak = {
        "kind": "similar prompt",
        "test_where": f"test.jsonl:3{EVIL}",
        "train_where": "train.jsonl:8",
        "test_text": EVIL,
        "train_text": EVIL,
        "similarity": 0.9,
    }
    counts = {"num_test": 200, "num_train": 900, "num_same_prompt": 1, "num_same_completion": 0}
    without = {"accuracy": 0.712, "accuracy_low": 0.68, "accuracy_high": 0.74}
    return json.loads(
        json.dumps(
            figures
            | {
                "reward_model_name_or_path": f"runs/{EVIL}",
                "dataset_name": "test.jsonl",
                "temperature_was_fitted_on_these": True,
                "skipped": "3 all tied",
                "max_length": 512,
                "leakage": counts
                | {"num_similar": 1, "num_short_completions": 0, "num_leaking": 2}
                | {"train_dataset_name": "t", "examples": [leak], "without": without},
                "rewardbench": {"sections": {"Chat": 0.9}, "subsets": {"alpacaeval-easy": 0.9}},
                "learning_curve": curve(PowerLaw(floor=0.2, amplitude=2.0, exponent=0.5)),
            }
        )
    )


def bare(whole: dict[str, Any]) -> dict[str, Any]:
    """The same without what need not be there."""
    found = copy.deepcopy(whole)
    found |= dict.fromkeys(("leakage", "rewardbench", "learning_curve", "ensemble", "calibration"))
    found["accuracy_by"] = {"score_margin": found["accuracy_by"]["score_margin"][:1]}
    found["length"] = {"characters": dict.fromkeys(found["length"]["characters"])}
    return found


def test_everything_is_shown_and_nothing_runs(whole: dict[str, Any]) -> None:
    page = Nested(reward_page(whole))
    for heading in (
        "Can its probabilities be believed?",
        "Where it is right",
        "Does it follow length?",
        "Its best and people's best",
        "Does the ensemble know when it errs?",
        "What more rankings would buy",
        "Leaks",
        "RewardBench",
        "What was not checked",
    ):
        assert heading in page.text
    assert "script" not in page.tags and "img" not in page.tags
    assert "alert(1)" in page.text and "{{ 7*7 }}" in page.text  # told, not run
    assert "\x00" not in reward_page(whole)
    assert page.tags.count("svg") == 5  # reliability, margins, histogram, the curve twice
    assert " nan" not in page.text.lower() and "None" not in page.text.replace("None of", "")


def test_what_is_missing_leaves_no_holes(whole: dict[str, Any]) -> None:
    page = Nested(reward_page(bare(whole)))
    assert "Too few rankings of different prompts to say" in page.text
    for heading in ("believed?", "ensemble know", "Each dot is one training", "RewardBench"):
        assert heading not in page.text
    assert "None" not in page.text and "–" in page.text


def test_an_ensemble_that_was_never_wrong(whole: dict[str, Any]) -> None:
    figures = copy.deepcopy(whole)
    for key in figures["ensemble"]:
        if key.startswith("auroc"):
            figures["ensemble"][key] = None  # as JSON has NaN
    assert "never wrong here" in Nested(reward_page(figures)).text
    assert ("ensemble", ensemble_told(figures["ensemble"])) in short_table(figures)


def test_the_page_is_written_from_the_file_alone(whole: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "evaluation.json", whole)
    path = write_reward_page(tmp_path / "evaluation.json")
    first = path.read_bytes()
    assert write_reward_page(tmp_path / "evaluation.json").read_bytes() == first
    assert path.name == "evaluation.html"
    with pytest.raises(BadInput, match="cannot read"):
        write_reward_page(tmp_path / "no.json")


def test_the_headline(whole: dict[str, Any]) -> None:
    def said(low: float, gain_low: float, gain_high: float) -> str:
        changed = {"accuracy": 0.71, "accuracy_low": low, "accuracy_over_longer_wins": 0.09}
        ends = {
            "accuracy_over_longer_wins_low": gain_low,
            "accuracy_over_longer_wins_high": gain_high,
        }
        return headline(whole | changed | ends)

    assert (
        said(0.68, 0.05, 0.12)
        == "Right about 71\u00a0% of the pairs, 9 points more than “the longer wins”."
    )
    assert "not shown to be better than a coin" in said(0.49, 0.05, 0.12)
    assert "not shown to beat “the longer wins”" in said(0.68, -0.01, 0.12)
    assert "“the longer wins” is right more often" in said(0.68, -0.12, -0.01)


def test_few_prompts_are_held_against_nothing(whole: dict[str, Any]) -> None:
    ends = dict.fromkeys(("accuracy_over_longer_wins_low", "accuracy_over_longer_wins_high"))
    found = whole | ends | {"accuracy": 0.9, "accuracy_low": 0.6, "calibration": None}
    assert headline(found) == (
        "Right about 90\u00a0% of the pairs; too few prompts to hold it against “the longer wins”."
    )
    assert "of different prompts" in calibration_verdict(found)
    assert "too few prompts" in Nested(reward_page(found)).text


def test_the_best_of_k_says_of_how_many_rankings(whole: dict[str, Any]) -> None:
    one = {"num_ranked": 4, "num_rankings": 1, "hit": 0.0, "hit_low": 0.0, "hit_high": 0.793}
    few = whole | {"best_of_k": [one | {"chance": 0.25}]}
    told = dict(short_table(few))["best of 4"]
    assert told == "0.0\u00a0% (0.0–79.3\u00a0%) of 1 ranking; chance 25.0\u00a0%"
    assert "in 1 ranking; chance has 25.0\u00a0%" in Nested(reward_page(few)).text
    assert "of 200 rankings; chance" in dict(short_table(whole))["best of 4"]


def test_the_verdict_on_calibration(whole: dict[str, Any]) -> None:
    def said(ece: float, refitted: float) -> str:
        calibration = whole["calibration"] | {"ece": ece, "ece_floor": 0.02, "ece_floor_high": 0.03}
        temperatures = {"temperature": 1.0, "temperature_refitted": refitted}
        return calibration_verdict(whole | temperatures | {"calibration": calibration})

    assert said(0.025, 1.0).startswith("Its probabilities cannot be told from perfect ones")
    assert said(0.08, 2.0).startswith("It is too sure of itself")
    assert said(0.08, 0.5).startswith("It is less sure than it could be")
    assert "no other temperature would mend it" in said(0.08, 1.02)


def test_the_verdict_on_more_rankings(whole: dict[str, Any]) -> None:
    told = curve_verdict(whole)
    assert told.startswith("1,000 more rankings beside the 1,600 would buy about +")
    flat = whole | {"learning_curve": curve(PowerLaw(floor=0.3, amplitude=0.0, exponent=0.5))}
    assert curve_verdict(flat).startswith("Nothing is said of more rankings.")
    assert "flat" in curve_verdict(flat)
    assert "beyond what was measured" not in Nested(reward_page(flat)).text
    assert curve_verdict(whole | {"learning_curve": None}) == ""


def test_the_verdict_on_the_ensemble(whole: dict[str, Any]) -> None:
    def said(spread_low: float, both_low: float) -> str:
        changed = {
            "auroc_spread_over_margin_low": spread_low,
            "auroc_both_over_margin_low": both_low,
        }
        return ensemble_told(whole["ensemble"] | changed)

    assert "better than the margin" in said(0.01, 0.01)
    assert "something that the margin does not" in said(-0.1, 0.01)
    assert "not shown to tell more" in said(-0.1, -0.01)


def test_leaks_in_words(whole: dict[str, Any]) -> None:
    assert "2 of 200 test rankings" in leak_verdict(whole) and "71.2" in leak_verdict(whole)
    clean = whole["leakage"] | {"num_leaking": 0, "without": None}
    assert leak_verdict(whole | {"leakage": clean}).startswith("None of the 200")
    assert leak_verdict(whole | {"leakage": None}) == ""
    assert any("Leaks" in line for line in not_checked(whole | {"leakage": None}))
    assert not any("Leaks" in line for line in not_checked(whole))


def test_the_short_table_is_short(whole: dict[str, Any]) -> None:
    lines = short_table(whole)
    names = [name for name, _ in lines]
    assert names[:3] == ["accuracy", "longer wins", "best of 4"]
    assert {"calibration", "log-loss", "length", "ensemble", "too long", "leaks"} < set(names)
    assert len(lines) <= 12 and all("\n" not in told for _, told in lines)
    assert [name for name, _ in short_table(bare(whole))] == [
        "accuracy",
        "longer wins",
        "best of 4",
        "length",
        "too long",
    ]
