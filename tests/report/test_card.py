"""The model card: its header, what it admits, and that it is the same twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from crestline.report import facts_of, write_card

FACTS: dict[str, Any] = {
    "name": "pelican",
    "base_model": "org/small-model",
    "algorithm": "rloo",
    "beta": 0.0,
    "num_updates": 420,
    "reward_accuracy": 0.742,
    "reward_accuracy_low": 0.71,
    "reward_accuracy_high": 0.77,
    "longer_wins_accuracy": 0.553,
    "num_pairs": 576,
    "num_rankings": 640,
    "chat": True,
    "prompt": "Tell me a joke about a pelican.",
    "baselines": [{"name": "last", "win_rate": 0.06, "low": 0.02, "high": 0.1, "num_duels": 80}],
    "versions": {"transformers": "5.0.0", "crestline": "0.1.0"},
}


def read_verdict(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "verdict.json").read_text(encoding="utf-8"))
    return found


def header_of(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def code_of(text: str) -> str:
    return text.split("```python\n")[1].split("\n```")[0]


def test_card_tells_what_was_measured(run: Path, tmp_path: Path) -> None:
    path = write_card(tmp_path / "model", verdict=read_verdict(run), facts=FACTS)
    text = path.read_text(encoding="utf-8")
    assert path.name == "README.md"
    assert header_of(text) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "org/small-model",
        "tags": ["crestline", "rlhf"],
    }
    for said in (
        "peaked at update 120 of 420. Shipped: checkpoint-120.",
        "Simulated people: nobody real has read this model's answers.",
        "78\u00a0% (90 % interval 72–83\u00a0%)",
        "74\u00a0% (95 % interval 71–77\u00a0%) of 576 held-out pairs",
        "| last | 6\u00a0% | 2–10\u00a0% | 80 |",
        "crestline 0.1.0, transformers 5.0.0",
        "Whether real people prefer these answers.",
        "Safety:",
        "| algorithm | rloo |",
        "0 (no KL term",
    ):
        assert said in text
    compile(code_of(text), "quick start", "exec")
    assert "apply_chat_template" in code_of(text)


def test_same_arguments_same_bytes(run: Path, tmp_path: Path) -> None:
    verdict = read_verdict(run)
    first = write_card(tmp_path / "a", verdict=verdict, facts=FACTS).read_bytes()
    second = write_card(tmp_path / "b", verdict=verdict, facts=dict(reversed(FACTS.items())))
    assert first == second.read_bytes()


@pytest.mark.parametrize(
    ("answered_by", "said"),
    [
        ("stand-in", "Estimated by a stand-in, not by people."),
        ("people", "Answered by people."),
        ("function", "Answered by a function, not by people."),
    ],
)
def test_card_says_who_answered(run: Path, tmp_path: Path, answered_by: str, said: str) -> None:
    verdict = {**read_verdict(run), "answered_by": answered_by}
    text = write_card(tmp_path, verdict=verdict, facts={}).read_text(encoding="utf-8")
    assert said in text
    assert ("Whether real people prefer" in text) == (answered_by != "people")


@pytest.mark.parametrize(
    "verdict",
    [
        {},
        {"kind": "not_measured", "update": None, "answered_by": "people", "num_labels": 3},
        {"kind": "nothing_beats_reference", "update": 0, "answered_by": "people"},
    ],
)
def test_card_without_numbers(tmp_path: Path, verdict: dict[str, Any]) -> None:
    text = write_card(tmp_path, verdict=verdict, facts={}).read_text(encoding="utf-8")
    assert "license" not in header_of(text) and "base_model" not in header_of(text)
    assert "None" not in text and "\n\n\n" not in text
    compile(code_of(text), "quick start", "exec")


def test_hostile_facts_stay_text(tmp_path: Path) -> None:
    evil = 'x\n---\n# <script>alert(1)</script> | `a` ```\n"quoted" \\'
    facts = {"name": evil, "base_model": evil, "license": evil, "prompt": evil, "other": evil}
    verdict = {"kind": "peaked", "update": 4, "reason": evil, "answered_by": evil}
    text = write_card(tmp_path, verdict=verdict, facts=facts).read_text(encoding="utf-8")
    header = yaml.safe_load(text[4 : text.index("\n---\n\n# ")])
    assert header["license"] == evil and set(header) == {
        "library_name",
        "pipeline_tag",
        "license",
        "base_model",
        "tags",
    }
    compile(code_of(text), "quick start", "exec")
    outside = text.split("## Quick start")[0][text.index("\n---\n\n# ") :]
    assert "<script" not in outside
    assert text.count("\n```") == 2


def test_facts_of_a_run(run: Path, make_run: Callable[..., Path], tmp_path: Path) -> None:
    facts = facts_of(run)
    assert facts["algorithm"] == "rloo" and facts["beta"] == 0.0
    assert facts["num_updates"] == 420 and facts["num_rankings"] == 640
    assert facts["reward_accuracy"] == 0.742 and facts["temperature"] == 1.0
    assert "base_model" not in facts and "chat" not in facts
    sft = run / "sft"
    sft.mkdir()
    (sft / "config.yaml").write_text("model_name_or_path: org/base-model\n", encoding="utf-8")
    (run / "model").mkdir()
    (run / "model" / "chat_template.jinja").write_text("x", encoding="utf-8")
    assert facts_of(run)["base_model"] == "org/base-model"
    assert facts_of(run)["chat"] is True
    text = write_card(run / "model", verdict=read_verdict(run), facts=facts_of(run)).read_text()
    assert "| seed | 0 |" in text and "reward shaping" not in text
    settled = {"kl": {"beta": 0.01}, "shaping": {"reward_shaping": "par"}}
    (run / "rl" / "resolved.json").write_text(json.dumps(settled), encoding="utf-8")
    facts = facts_of(run)
    assert facts["beta"] == 0.01 and facts["reward_shaping"] == "par"
