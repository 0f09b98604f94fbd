"""Page and card of runs that were rewarded by functions, a server, a reward model or several of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from crestline.report import facts_of, write_card, write_report
from crestline.report.reading import read_run
from crestline.report.rewarded import rewarded
from crestline.runs.files import read_json

MODEL = {"reward_model_name_or_path": "reward/model"}


def sources(**given: str) -> dict[str, Any]:
    return {"reward_sources": {"reward_funcs": "", "remote_rm_url": "", **given}}


def rewarded_by(run: Path, settings: dict[str, Any]) -> tuple[str, str]:
    """Page and card of the run, had RL had these settings."""
    (run / "rl" / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    card = write_card(run, verdict=read_json(run / "verdict.json"), facts=facts_of(run))
    return write_report(run).read_text(encoding="utf-8"), card.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "by"),
    [
        ({}, ()),
        (MODEL, ("reward model",)),
        (MODEL | sources(), ("reward model",)),
        (sources(reward_funcs="a.py:f, b/c.py:g"), ("function a.py:f", "function c.py:g")),
        (sources(remote_rm_url="http://me:secret@host/get_reward"), ("remote reward server",)),
        (sources(remote_rm_url="x/y.py"), ("function y.py",)),
        (MODEL | sources(reward_funcs="a.py:f"), ("reward model", "function a.py:f")),
        ({"reward_sources": None, "reward_model_name_or_path": None}, ()),
    ],
)
def test_who_scored(settings: dict[str, Any], by: tuple[str, ...]) -> None:
    assert rewarded(settings).by == by


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"reward_funcs": "/home/me/rf.py:big"}, "the reward (function rf.py:big)"),
        ({"remote_rm_url": "http://host/get_reward"}, "the reward (remote reward server)"),
    ],
)
def test_no_reward_model_is_told_of_where_there_was_none(
    run: Path, given: dict[str, str], said: str
) -> None:
    page, card = rewarded_by(run, sources(**given))
    seen = page.split('id="settings"')[0]
    assert said in page and "reward model" not in seen.lower()
    assert f"Reinforcement learning raised {said}." in card
    assert "reward model" not in card.lower() and "learned from" not in card
    assert "74" not in card  # the accuracy of a reward model that had no part in it
    for text in (seen, card):
        assert "/home/me" not in text and "http://host" not in text


def test_a_reward_model_beside_a_function(run: Path) -> None:
    page, card = rewarded_by(run, MODEL | sources(reward_funcs="rf.py:big"))
    both = "the reward (reward model + function rf.py:big)"
    assert f"Training pushes {both} up." in page
    assert "A reward model learned from 640 rankings" in card
    assert f"reinforcement learning raised {both}." in card
    assert "How good the reward model was" in page


def test_a_reward_model_alone(run: Path) -> None:
    page, card = rewarded_by(run, MODEL)
    assert "Training pushes the reward model&#39;s score up." in page
    assert (
        "A reward model learned from 640 rankings (simulated people), and reinforcement learning "
        "raised the reward model's score." in card
    )


def test_an_unknown_reward_gets_no_origin(run: Path, tmp_path: Path) -> None:
    card = write_card(tmp_path, verdict=read_json(run / "verdict.json"), facts={})
    assert "Reinforcement learning raised the reward. " in card.read_text(encoding="utf-8")
    (run / "rl" / "config.yaml").unlink()
    assert read_run(run).rewarded.told == "the reward"
