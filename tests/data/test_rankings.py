"""Rankings in all their formats, from made and from real files, and back without loss."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crestline.data.columns import Keys
from crestline.data.rankings import (
    Skipped,
    rankings_as_rows,
    read_all_rankings,
    read_rankings,
    read_rankings_and_skipped,
)
from crestline.data.writers import write_rows
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


SIDES = ("chosen", "rejected")
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
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2, "subset": "s"},
            {"prompt": "p", **PAIR, "margin": 2.0, "source": "s"},
        ),
        (
            {"chosen": "a", "rejected": "b", "margin": "0.5", "data_source": 3, "source": ""},
            {"prompt": "", **PAIR, "margin": 0.5, "source": "3"},
        ),
        (  # OpenRLHF
            {"context_messages": [USER], "chosen": [said("a")], "rejected": [said("b")]},
            {"prompt": [USER], **PAIR},
        ),
        ({"input": "p", "chosen": "a", "rejected": "b", "margin": None}, {"prompt": "p", **PAIR}),
        (
            {"instruction": "p", "input": "", "chosen": "a", "rejected": "b"},
            {"prompt": "p", **PAIR},
        ),
        (  # a CSV of rows of both kinds
            {"prompt": "", "instruction": "p", "chosen": "a", "rejected": "b"},
            {"prompt": "p", **PAIR},
        ),
        (
            {"question": "p", "completions": [{"rank": 0, "completion": "a"}] * 2},
            {"prompt": "p", "completions": ("a", "a"), "ranks": (0, 0)},
        ),
        (  # RewardBench: the prompt is what a person asked
            {"prompt": "Hi", "chosen": "a", "rejected": "b", "chosen_model": "m", "subset": "s"},
            {"prompt": [USER], **PAIR, "source": "s"},
        ),
        (  # RewardBench 2: one of several is right
            {"prompt": "Hi", "chosen": ["a"], "rejected": ["b", "c", ""], "num_correct": 1},
            {"prompt": [USER], "completions": ("a", "b", "c", ""), "ranks": (0, 1, 1, 1)},
        ),
        (
            {"prompt": "p", "chosen": ["a", "b"], "rejected": "c", "completions": None},
            {"prompt": "p", "completions": ("a", "b", "c"), "ranks": (0, 0, 1)},
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
        ({"chosen": "a", "rejected": "b", "margin": float("nan")}, "margin is NaN; expected a fin"),
        ({"chosen": "a", "rejected": "b", "margin": "inf"}, "margin is text 'inf'; expected a fin"),
        ({"chosen": "a", "rejected": "b", "margin": "much"}, "margin is text 'much'; expected a"),
        ({"chosen": "a", "rejected": "b", "margin": True}, "margin is true; expected a finite"),
        ({"chosen": "a", "rejected": "b", "margin": 10**400}, "margin is number beyond 10^18; exp"),
        (
            {"prompt": "p", "completions": [entry(0), entry(1), entry(2)], "margin": 1},
            "margin stands beside 3 completions; only a pair has one",
        ),
        ({"chosen": "a", "rejected": "b", "source": ["s"]}, "source is a list of 1; expected text"),
        (
            {"input": "p", "question": "q", "chosen": "a", "rejected": "b"},
            "input and question may be the prompt; rename one to prompt, or say which: crestline",
        ),
        ({"chosen": ["a"], "rejected": [said("b")]}, "rejected is a list of 1; expected the same"),
        ({"chosen": [], "rejected": ["b"]}, "chosen is a list of 0; expected the same kind"),
        ({"prompt": "p", "completions": None}, "completions is null; expected a list of at least"),
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
        margin=draw(st.none() | st.floats(-3, 3)) if len(texts) == 2 else None,
        source=draw(TEXT),
    )


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rankings=st.lists(any_ranking(), min_size=1, max_size=4))
def test_rankings_come_back_without_loss(tmp_path: Path, rankings: list[Ranking]) -> None:
    source = write(tmp_path, *rankings_as_rows(rankings))
    found = read_rankings(source, keep_all=True)
    assert [replace(ranking, where="") for ranking in found] == rankings


def k_way(*ranks: int | None, **said: Any) -> Any:
    entries = [{"rank": rank, "completion": str(index)} for index, rank in enumerate(ranks)]
    return {"prompt": "p", "completions": entries, **said}


def test_repetitions(tmp_path: Path) -> None:
    """Of a person they are left out; of nobody they may be another person's vote."""
    swapped = {"prompt": "p", "completions": k_way(0, 1)["completions"][::-1], "annotator": "ann"}
    rows = [
        k_way(0, 1, annotator="ann"),
        k_way(0, 1, annotator="ben"),
        k_way(1, 0, annotator="ann"),
        k_way(3, 7, annotator="ann"),
        swapped,
        k_way(0, 1, annotator="ann", source="s"),
        k_way(0, 1),
        k_way(0, 1),
    ]
    source = write(tmp_path, *rows)
    rankings, skipped = read_rankings_and_skipped(source)
    assert [int(r.where.rpartition(":")[2]) for r in rankings] == [1, 2, 3, 6, 7, 8]
    assert skipped == Skipped(num_duplicates=2, num_repeated=1)
    assert skipped.num_rows == 2
    assert str(skipped) == (
        "2 said before by the same annotator; kept: 1 that repeat an earlier one"
    )
    rankings, skipped = read_rankings_and_skipped(source, keep_all=True)
    assert (len(rankings), skipped) == (8, Skipped(num_repeated=3))


def test_ties_on_one_side_are_kept(tmp_path: Path) -> None:
    source = write(tmp_path, k_way(0, 1, 1, 1), k_way(0, 0, 0, 1), k_way(0, 0, None, None))
    rankings, skipped = read_rankings_and_skipped(source)
    assert [ranking.ranks for ranking in rankings] == [(0, 1, 1, 1), (0, 0, 0, 1)]
    assert skipped == Skipped(num_all_tied=1)


def test_long_and_empty_completions(tmp_path: Path) -> None:
    pair = {"chosen": "word " * 20_000, "rejected": ""}
    for name in ("rankings.jsonl", "rankings.csv"):
        path = tmp_path / name
        text = json.dumps(pair) if name.endswith("l") else f"chosen,rejected\n{pair['chosen']},\n"
        path.write_text(text)
        assert read_rankings(str(path))[0].completions == (pair["chosen"], "")


def test_formats_may_be_mixed_and_the_wrong_row_is_told(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "completions": None},
        k_way(0, 1, chosen=None, rejected=None),
        {"chosen": hh("Hi", "a"), "rejected": hh("Hi", "b")},
        {"fields": {"x_1": "a", "x_2": "b"}, "responses": {"q": [{"value": ["x_2", "x_1"]}]}},
        {
            "data": {"answer1": "a", "answer2": "b"},
            "annotations": [{"result": [{"value": {"selected": "left"}}]}],
        },
    ]
    assert [r.ranks for r in read_rankings(write(tmp_path, *rows))] == [
        *[(0, 1)] * 3,
        (1, 0),
        (0, 1),
    ]
    source = write(tmp_path, *rows, {"prompt": "p", "chosen": "a"}, *rows)
    with pytest.raises(BadInput, match=r"rankings\.jsonl:6: no column 'rejected'"):
        read_rankings(source)


def test_columns_under_other_names(tmp_path: Path) -> None:
    row = {"q": "p", "better": "a", "worse": "b", "set": "s", "chosen": "x", "id": 7}
    source = write(tmp_path, row)
    keys = Keys(prompt="q", chosen="better", rejected="worse", source="set")
    reading = read_all_rankings(source, keys=keys)
    assert reading.rankings == [Ranking(prompt="p", **PAIR, source="s", where=f"{source}:1")]
    assert reading.unused == {"id": 1}
    for name in ("prompt", "chosen", "rejected", "source"):
        wrong = replace(keys, **{name: "nope"})
        with pytest.raises(BadInput, match=rf":1: no column 'nope'.*--{name}_key"):
            read_all_rankings(source, keys=wrong)


def test_columns_that_nobody_reads_are_counted(tmp_path: Path) -> None:
    rows = [
        {"chosen": "a", "rejected": "b", "votes": 3, "id": None},
        k_way(0, 1, votes=3, task_name="x"),
    ]
    assert read_all_rankings(write(tmp_path, *rows)).unused == {"votes": 2, "task_name": 1}


def test_chats_in_csv(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    cell = json.dumps([USER]).replace('"', '""')
    path.write_text(f'prompt,chosen,rejected\n"{cell}",a,b\n"[{{",a,b\n"[{{}}]",a,b\n')
    assert [r.prompt for r in read_rankings(str(path))] == [[USER], "[{", "[{}]"]


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


@pytest.mark.parametrize(
    ("name", "num_rows", "skipped"),
    [
        ("finegrained", 2616, Skipped()),
        ("llmbar", 885, Skipped(num_same_text=1, num_repeated=5)),
        ("ukpconvarg1", 11_650, Skipped(num_repeated=196)),
    ],
)
def test_real_pairs(name: str, num_rows: int, skipped: Skipped) -> None:
    rankings, found = read_rankings_and_skipped(real(f"pref/{name}/pairs.jsonl"))
    assert (len(rankings) + found.num_rows, found) == (num_rows, skipped)
    assert all(bool(ranking.prompt) != (name == "ukpconvarg1") for ranking in rankings)


def test_real_four_way_rankings(tmp_path: Path) -> None:
    """The prepared rankings, taken apart, are the verdicts that stand beside them as pairs."""
    pairs = real("pref/finegrained/pairs.jsonl")
    target = tmp_path / "rankings.jsonl"
    script = Path(__file__).parents[2] / "bench" / "prepare_finegrained.py"
    words = [sys.executable, str(script), str(Path(pairs).parent), str(target)]
    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert told.startswith("500 questions: 478 rankings (298 without ties, 12 all tied), 22 left")
    rankings, skipped = read_rankings_and_skipped(str(target))
    assert (len(rankings), skipped) == (466, Skipped(num_all_tied=12))
    prepared, _ = write_rows(rankings, "trl")
    taken = Counter(
        (r["prompt"][0]["content"], *(r[n][0]["content"] for n in SIDES)) for r in prepared
    )
    given = Counter((r.prompt, *r.completions) for r in read_rankings(pairs))
    assert len(given - taken) == 2616 - len(prepared) == 72
    assert not taken - given


def asked(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("prompt", "begins", "expected"),
    [
        ([asked("1")], [said("A"), asked("2")], [asked("1"), said("A"), asked("2")]),
        ([SYSTEM, asked("1")], [asked("1")], [SYSTEM, asked("1")]),
        ([SYSTEM, asked("1")], [SYSTEM, asked("1")], [SYSTEM, asked("1")]),
        ([asked("1")], [asked("1")], [asked("1")]),
        ("1", [SYSTEM, asked("1")], [SYSTEM, asked("1")]),
    ],
)
def test_nothing_of_a_prompt_is_lost(
    tmp_path: Path, prompt: Any, begins: Any, expected: Any
) -> None:
    """Completions of several turns, and dialogues that repeat the prompt without its system message."""
    row = {"prompt": prompt, "chosen": [*begins, said("a")], "rejected": [*begins, said("b")]}
    (found,) = read_rankings(write(tmp_path, row))
    assert (found.prompt, found.completions) == (expected, ("a", "b"))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("more", [{}, {"prompt": "\n\nHuman: Hi\n\nAssistant:"}, {"prompt": " Hi"}])
def test_transcripts_with_line_ends_of_windows(tmp_path: Path, end: str, more: Any) -> None:
    row = {name: hh("Hi", f"a{end}{name}").replace("\n\n", 2 * end) for name in SIDES}
    more = {name: value.replace("\n\n", 2 * end) for name, value in more.items()}
    (found,) = read_rankings(write(tmp_path, {**row, **more}))
    assert found.prompt == [USER] and found.completions == (f"a{end}chosen", f"a{end}rejected")


def test_a_transcript_beside_a_plain_text_is_no_pair(tmp_path: Path) -> None:
    rows = [
        {"chosen": hh("Hi", "a"), "rejected": "Human: Hi\nAssistant: b"},
        {"chosen": "a", "rejected": "b"},
    ]
    found, skipped = read_rankings_and_skipped(write(tmp_path, *rows))
    assert [r.completions for r in found] == [("a", "b")] and skipped.num_diverging == 1


def test_whole_numbers_that_a_table_made_floats_are_names(tmp_path: Path) -> None:
    rows = [{"chosen": "a", "rejected": "b", "annotator": name} for name in (7.0, None, 8)]
    assert [r.annotator for r in read_rankings(write(tmp_path, *rows))] == ["7", "", "8"]
    with pytest.raises(BadInput, match=r"annotator is number 7\.5"):
        read_rankings(write(tmp_path, {**rows[0], "annotator": 7.5}))


def test_k_way_rows_may_have_data_of_their_own(tmp_path: Path) -> None:
    row = {"prompt": "p", "data": {"id": 1}, "completions": [entry(0, "a"), entry(1, "b")]}
    assert read_rankings(write(tmp_path, row))[0].completions == ("a", "b")


@pytest.mark.parametrize(
    ("prompt", "begins", "expected"),
    [
        ("1", [said("A"), asked("2")], [asked("1"), said("A"), asked("2")]),
        ("1", [SYSTEM, said("A"), asked("2")], [SYSTEM, asked("1"), said("A"), asked("2")]),
        ([SYSTEM, asked("1")], [SYSTEM], [SYSTEM, asked("1")]),
        ([asked("1"), said("A"), asked("2")], [asked("2")], [asked("1"), said("A"), asked("2")]),
        ([asked("1 ")], [asked("1")], [asked("1 ")]),
        ([asked("1?")], [asked("1")], [asked("1")]),
        ([asked("1"), said("B")], [asked("1")], [asked("1")]),
        ([asked("1"), said("a")], [asked("1")], [asked("1")]),
        (
            [asked("1"), said("A"), asked("2")],
            [asked("1"), said("B"), asked("2")],
            [asked("1"), said("B"), asked("2")],
        ),
        ([asked("2")], [asked("1"), said("A"), asked("2")], [asked("1"), said("A"), asked("2")]),
        ("other", [asked("1")], [asked("1")]),
        (None, [asked("1")], [asked("1")]),
        (7, [asked("1")], [asked("1")]),
    ],
)
def test_what_a_dialogue_leaves_out_of_its_prompt_is_read(
    tmp_path: Path, prompt: Any, begins: Any, expected: Any
) -> None:
    row = {"prompt": prompt, "chosen": [*begins, said("a")], "rejected": [*begins, said("b")]}
    (found,) = read_rankings(write(tmp_path, row))
    assert (found.prompt, found.completions) == (expected, ("a", "b"))


def test_one_of_two_dialogues_may_repeat_the_prompt(tmp_path: Path) -> None:
    for whole, short in (SIDES, SIDES[::-1]):
        for prompt, read in (("Hi", [asked("Hi")]), ([asked("Hi ")], [asked("Hi ")])):
            row = {"prompt": prompt, whole: [asked("Hi"), said(whole)], short: [said(short)]}
            (found,) = read_rankings(write(tmp_path, row))
            assert (found.prompt, found.completions) == (read, SIDES)


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ({"role": "user", "content": "1"}, "prompt is an object with role, content; expected text"),
        ([asked("1"), said("B")], "prompt ends with an assistant message"),
    ],
)
def test_prompts_that_an_answer_cannot_follow(tmp_path: Path, prompt: Any, told: str) -> None:
    dialogue = [said("A"), asked("2"), said("a")]
    with pytest.raises(BadInput, match=f"rankings.jsonl:1: {told}"):
        read_rankings(write(tmp_path, {"prompt": prompt, "chosen": dialogue, "rejected": dialogue}))


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_conversation_cut_anywhere_is_read_whole(tmp_path: Path, data: st.DataObject) -> None:
    """Between prompt and dialogue, an end of the prompt in both, with the system's message or not."""
    roles = ["user", *["assistant", "user"] * data.draw(st.integers(0, 3))]
    turns = [{"role": role, "content": str(i)} for i, role in enumerate(roles)]
    rules = data.draw(st.sampled_from([[], [SYSTEM]]))
    cut = data.draw(st.integers(1, len(turns)))
    start = data.draw(st.integers(0, cut))
    begins = [*data.draw(st.sampled_from([[], rules])), *turns[start:]]
    row = {"prompt": [*rules, *turns[:cut]]}
    row |= {name: [*begins, said(name)] for name in SIDES}
    (found,) = read_rankings(write(tmp_path, row))
    assert (found.prompt, found.completions) == ([*rules, *turns], SIDES)
