"""Splits: one prompt or text never on two sides, and nothing moves when rows are added."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crestline.data.rankings import read_rankings
from crestline.data.splits import (
    canonical_prompt,
    side_of,
    split_by_prompt,
    split_by_prompt_or_text,
    split_by_text,
)
from crestline.types import BadInput, Prompt, Ranking

SHARED = Path(__file__).parents[2] / "../shared/data"
HALVES = {"train": 0.5, "heldout": 0.5}


def prompt_text(prompt: Prompt) -> str:
    assert isinstance(prompt.text, str)
    return prompt.text


def test_known_sides() -> None:
    """Recorded: a change of the hash would move the prompts of everybody's runs."""
    sides = [side_of(canonical_prompt(text), HALVES, seed=0) for text in "abcdefgh"]
    again = [side_of(canonical_prompt(text), HALVES, seed=1) for text in "abcdefgh"]
    assert "".join(side[0] for side in sides) == "hhthtthh"
    assert "".join(side[0] for side in again) == "ttttthth"


@given(texts=st.lists(st.text(max_size=5)), more=st.lists(st.text(max_size=5)), seed=st.integers())
def test_adding_rows_moves_nothing(texts: list[str], more: list[str], seed: int) -> None:
    before = split_by_prompt([Prompt(text=t) for t in texts], prompt_text, HALVES, seed)
    after = split_by_prompt([Prompt(text=t) for t in more + texts], prompt_text, HALVES, seed)
    assert sum(map(len, before.values())) == len(texts)
    assert not {p.text for p in after["train"]} & {p.text for p in after["heldout"]}
    for name in HALVES:
        assert {p.text for p in before[name]} <= {p.text for p in after[name]}


def test_fractions_are_met() -> None:
    fractions = {"train": 0.9, "nobody": 0.0, "heldout": 0.1}
    sides = split_by_prompt([str(i) for i in range(20_000)], str, fractions, seed=3)
    assert len(sides["heldout"]) == pytest.approx(2000, abs=200)
    assert sides["nobody"] == []


def test_text_and_chat_are_different_prompts() -> None:
    chat = [{"role": "user", "content": "a"}]
    turned = [{"content": "a", "role": "user"}]
    assert canonical_prompt(chat) == canonical_prompt(turned)
    assert canonical_prompt(canonical_prompt(chat)) != canonical_prompt(chat)


@pytest.mark.parametrize("fractions", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": float("nan")}])
def test_wrong_fractions(fractions: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="sum to 1"):
        side_of("a", fractions, 0)


def test_no_joke_stands_on_two_sides() -> None:
    source = SHARED / "jokes/ukp-humour/pairs.jsonl"
    if not source.exists():
        pytest.skip(f"no {source}")
    rankings = read_rankings(str(source))
    sides, num_dropped = split_by_text(rankings, {"train": 0.7, "heldout": 0.3}, seed=0)
    train, heldout = (
        {text for ranking in sides[name] for text in ranking.completions} for name in sides
    )
    assert not train & heldout
    assert sum(map(len, sides.values())) + num_dropped == len(rankings)
    assert len(sides["heldout"]) == pytest.approx(0.09 * len(rankings), rel=0.2)


def test_split_by_text_keeps_whole_rankings() -> None:
    same = Ranking(prompt="", completions=("a", "a"), ranks=(0, 1))
    assert split_by_text([same], {"only": 1.0}, seed=0) == ({"only": [same]}, 0)


def test_rankings_without_a_prompt_move_none_that_have_one() -> None:
    """One of them in the file must not let prompts stand on both sides."""
    prompted = [
        Ranking(prompt=f"p{n % 50}", completions=(f"a{n}", f"b{n}"), ranks=(0, 1))
        for n in range(150)
    ]
    alone = [Ranking(prompt="", completions=(f"x{n}", f"x{n}!"), ranks=(0, 1)) for n in range(40)]
    mixed = [*alone[:20], *prompted, *alone[20:]]
    sides, num_dropped = split_by_prompt_or_text(mixed, HALVES, seed=0)
    names = list(HALVES)
    first, second = ({r.prompt for r in sides[name] if r.prompt} for name in names)
    assert first and second and not first & second
    texts = [{t for r in sides[name] for t in r.completions if not r.prompt} for name in names]
    assert all(texts) and not texts[0] & texts[1]
    assert sum(map(len, sides.values())) + num_dropped == len(mixed) and num_dropped
    for name in names:
        assert sides[name] == [ranking for ranking in mixed if ranking in sides[name]]
    only = split_by_prompt_or_text(prompted, HALVES, seed=0)
    assert only == (split_by_prompt(prompted, lambda r: r.prompt, HALVES, 0), 0)
