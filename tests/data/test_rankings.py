"""Rankings in all their formats, from made and from real files, and back without loss."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crestline.data.rankings import (
    Skipped,
    rankings_as_rows,
    read_rankings,
    read_rankings_and_skipped,
)
from crestline.types import BadInput, Ranking

SHARED = Path(__file__).parents[2] / "../shared/data"
USER = {"role": "user", "content": "Hi"}
TEXT = st.text(max_size=12)


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(folder: Path, *values: Any) -> str:
    path = folder / "rankings.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def real(name: str) -> str:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"no {path}")
    return str(path)


def hh(*turns: str) -> str:
    return "".join(
        f"\n\n{who}: {text}" for who, text in zip(["Human", "Assistant"] * 9, turns, strict=False)
    )


PAIR = {"completions": ("a", "b"), "ranks": (0, 1)}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {
                "context": [USER],
                "completions": [
                    {"rank": 1, "completion": [said("a")]},
                    {"rank": None, "completion": [said("")]},
                    {"rank": 0, "completion": [said("c")]},
                    {"rank": 1, "completion": [said("d")]},
                ],
                "annotator": 7,
                "answered_by": "people",
            },
            {
                "prompt": [USER],
                "completions": ("a", "", "c", "d"),
                "ranks": (1, None, 0, 1),
                "annotator": "7",
                "answered_by": "people",
            },
        ),
        (
            {
                "prompt": "p",
                "completions": [
                    {"rank": 0.0, "completion": "a"},
                    {"rank": 1.0, "completion": "b"},
                ],
            },
            {"prompt": "p", **PAIR},
        ),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "p", **PAIR}),
        (
            {"prompt": [USER], "chosen": [said("a")], "rejected": [said("b")]},
            {"prompt": [USER], **PAIR},
        ),
        (
            {"prompt": "Hi", "chosen": [USER, said("a")], "rejected": [USER, said("b")]},
            {"prompt": [USER], **PAIR},
        ),
        (
            {"chosen": [USER, said("a")], "rejected": [USER, said("b")]},
            {"prompt": [USER], **PAIR},
        ),
        (
            {
                "chosen": [USER, said("x"), USER, said("a")],
                "rejected": [USER, said("x"), USER, said("b")],
            },
            {"prompt": [USER, said("x"), USER], **PAIR},
        ),
        ({"chosen": "a", "rejected": "b", "votes_chosen": 0}, {"prompt": "", **PAIR}),
        ({"chosen": "a", "rejected": "b", "prompt": ""}, {"prompt": "", **PAIR}),
        (
            {"chosen": hh("Hi", "x ", "Hi", "a"), "rejected": hh("Hi", "x", "Hi", "b")},
            {"prompt": [USER, said("x"), USER], **PAIR},
        ),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "tie": True},
            {"prompt": "p", "completions": ("a", "b"), "ranks": (0, 0)},
        ),
    ],
)
def test_formats(tmp_path: Path, row: Any, expected: Any) -> None:
    source = write(tmp_path, row)
    assert read_rankings(source, keep_all=True) == [Ranking(where=f"{source}:1", **expected)]


def test_csv_pairs_with_ties(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("chosen,rejected,tie\na,b,\na,c,True\nd,e,0\n")
    rankings, skipped = read_rankings_and_skipped(str(path))
    assert [ranking.completions for ranking in rankings] == [("a", "b"), ("d", "e")]
    assert skipped == Skipped(num_all_tied=1)


def test_rows_that_teach_nothing_are_counted(tmp_path: Path) -> None:
    def k_way(*ranks: int | None, text: str = "") -> Any:
        return {
            "prompt": "p",
            "completions": [
                {"rank": rank, "completion": text or str(i)} for i, rank in enumerate(ranks)
            ],
        }

    source = write(
        tmp_path,
        k_way(0, 1),
        k_way(2, 2, 2),
        k_way(None, None),
        k_way(0, None),
        k_way(0, 1, text="same"),
        {"chosen": hh("Hi", "x", "Hi", "a"), "rejected": hh("Hi", "y", "Hi", "a")},
        {"chosen": hh("Hi", "x", "Hi"), "rejected": hh("Hi", "x")},
        {"chosen": [USER, said("x"), USER, said("a")], "rejected": [USER, said("b")]},
    )
    rankings, skipped = read_rankings_and_skipped(source)
    assert [ranking.where for ranking in rankings] == [f"{source}:1"]
    assert skipped == Skipped(
        num_too_few_ranked=2, num_all_tied=1, num_same_text=1, num_diverging=3
    )
    assert skipped.num_rows == 7
    assert len(read_rankings(source, keep_all=True)) == 5
    with pytest.raises(BadInput, match=r"no usable ranking \(1 all tied\)"):
        read_rankings(write(tmp_path, k_way(0, 0)))


def entry(rank: Any, completion: Any = "c") -> dict[str, Any]:
    return {"rank": rank, "completion": completion}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"a": 1}, "no column 'completions'; found columns: a; expected 'completions' with"),
        ({"completions": [entry(0), entry(1)]}, "no column 'prompt'; found columns: completions"),
        ({"prompt": "p", "completions": [entry(0)]}, "completions is a list of 1; expected a list"),
        ({"prompt": "p", "completions": [entry(0), "c"]}, "completions[1] is text 'c'"),
        ({"prompt": "p", "completions": [entry(0), {"rank": 1}]}, "completions[1] is an object"),
        ({"prompt": "p", "completions": [entry(True), entry(0)]}, "completions[0].rank is true"),
        ({"prompt": "p", "completions": [entry(-1), entry(0)]}, "completions[0].rank is number -1"),
        ({"prompt": "p", "completions": [entry(1.5), entry(0)]}, "completions[0].rank is number"),
        ({"prompt": "p", "completions": [entry(float("nan")), entry(0)]}, "completions[0].rank is"),
        ({"prompt": "p", "completions": [entry(float("inf")), entry(0)]}, "completions[0].rank is"),
        ({"prompt": "p", "completions": [entry("0"), entry(0)]}, "completions[0].rank is text '0'"),
        (
            {"prompt": "p", "completions": [entry(0, None), entry(1)]},
            "completions[0].completion is",
        ),
        ({"prompt": "p", "chosen": "a"}, "no column 'rejected'; found columns: prompt, chosen"),
        ({"prompt": "p", "chosen": "a", "rejected": [said("b")]}, "rejected is a list of 1"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "prompt is null"),
        ({"prompt": "p", "chosen": "a", "rejected": 3}, "rejected is number 3"),
        ({"chosen": "a", "rejected": "b", "tie": "maybe"}, "tie is text 'maybe'"),
        ({"chosen": "a", "rejected": "b", "annotator": [1]}, "annotator is a list of 1"),
        ({"prompt": "p", "chosen": [USER], "rejected": [1]}, "rejected[0] is number 1"),
    ],
)
def test_wrong_rankings_are_told_with_line_and_column(tmp_path: Path, row: Any, told: str) -> None:
    source = write(tmp_path, {"chosen": "a", "rejected": "b"}, row)
    with pytest.raises(BadInput) as caught:
        read_rankings(source)
    assert str(caught.value).startswith(f"{source}:2: {told}")


@st.composite
def any_ranking(draw: st.DrawFn) -> Ranking:
    texts = tuple(draw(st.lists(TEXT, min_size=2, max_size=5)))
    ranks = tuple(draw(st.none() | st.integers(0, 5)) for _ in texts)
    prompt = draw(TEXT | TEXT.map(lambda text: [{"role": "user", "content": text}]))
    return Ranking(
        prompt=prompt,
        completions=texts,
        ranks=ranks,
        annotator=draw(TEXT),
        answered_by=draw(st.sampled_from(["", "people", "simulated people"])),
    )


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rankings=st.lists(any_ranking(), min_size=1, max_size=4))
def test_rankings_come_back_without_loss(tmp_path: Path, rankings: list[Ranking]) -> None:
    source = write(tmp_path, *rankings_as_rows(rankings))
    found = read_rankings(source, keep_all=True)
    assert [replace(ranking, where="") for ranking in found] == rankings


def test_real_votes_on_jokes() -> None:
    rankings, skipped = read_rankings_and_skipped(real("jokes/ukp-humour/pairs.jsonl"))
    assert len(rankings) + skipped.num_rows == 28_118
    assert skipped.num_all_tied == 3426
    assert all(ranking.prompt == "" for ranking in rankings)


@pytest.mark.parametrize(
    ("name", "num_rows", "num_same_text", "num_diverging"),
    [
        ("helpful-base", 2354, 2, 9),
        ("helpful-online", 1137, 2, 2),
        ("helpful-rejection-sampled", 2749, 32, 3),
    ],
)
def test_real_dialogues(name: str, num_rows: int, num_same_text: int, num_diverging: int) -> None:
    source = real(f"hh-rlhf/{name}/test.jsonl.gz")
    rankings, skipped = read_rankings_and_skipped(source)
    assert len(rankings) + skipped.num_rows == num_rows
    assert skipped.num_same_text == num_same_text
    assert num_diverging <= skipped.num_diverging < 0.02 * num_rows
    for ranking in rankings:
        assert not isinstance(ranking.prompt, str)
        assert ranking.prompt[0]["role"] == ranking.prompt[-1]["role"] == "user"
        assert not any("\n\nHuman:" in text for text in ranking.completions)


def test_real_four_way_pairs() -> None:
    rankings, skipped = read_rankings_and_skipped(real("pref/finegrained/pairs.jsonl"))
    assert len(rankings) + skipped.num_rows == 2616
    assert all(isinstance(r.prompt, str) and r.prompt for r in rankings)
