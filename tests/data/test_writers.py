"""Rankings written in every format and read again: nothing is lost but what is said to be."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crestline.data.columns import dense
from crestline.data.rankings import read_rankings
from crestline.data.writers import Format, Lost, csv_text, write_rows
from crestline.types import BadInput, Message, PromptText, Ranking

USER = {"role": "user", "content": "Hi"}
ODD = ["", " ", "a,b", 'say "x"', "line\r\nbreak", "\u2028", "ü", "[{", "\n\nHuman: no", "true"]
TEXT = st.text(max_size=8) | st.sampled_from(ODD)
CHAT = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": TEXT}),
    min_size=1,
    max_size=3,
)
NAMES = ["", "ann", "7", "007", "06f7d4c0-e048-43d2-ab3f-06f147616ac6", "ü, \n"]
in_a_file = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def any_ranking(draw: st.DrawFn, prompts: Any = TEXT | CHAT) -> Ranking:
    texts = tuple(draw(st.lists(TEXT, min_size=2, max_size=4)))
    return Ranking(
        prompt=draw(prompts),
        completions=texts,
        ranks=tuple(draw(st.none() | st.integers(0, 4)) for _ in texts),
        annotator=draw(st.sampled_from(NAMES)),
        answered_by=draw(st.sampled_from(["", "people", "simulated people"])),
        margin=draw(st.none() | st.floats(-9, 9)) if len(texts) == 2 else None,
        source=draw(st.sampled_from(["", "jokes", "a,b"])),
    )


def again(folder: Path, rankings: Sequence[Ranking], form: Format) -> tuple[list[Ranking], Lost]:
    """What is read of what is written, and what the writer says is lost."""
    rows, lost = write_rows(rankings, form)
    if not rows:
        return [], lost
    path = folder / ("rows.csv" if form == "csv" else "rows.jsonl")
    text = csv_text(rows) if form == "csv" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(text.encode())
    return [replace(r, where="") for r in read_rankings(str(path), keep_all=True)], lost


RANKINGS = st.lists(any_ranking(), min_size=1, max_size=4)


@in_a_file
@given(rankings=RANKINGS)
def test_nemo_holds_everything(tmp_path: Path, rankings: list[Ranking]) -> None:
    assert again(tmp_path, rankings, "nemo") == (rankings, Lost())


@pytest.mark.parametrize("form", ["argilla", "label-studio"])
@in_a_file
@given(rankings=RANKINGS)
def test_labelling_tools_hold_everything_but_gaps_in_ranks(
    tmp_path: Path, form: Format, rankings: list[Ranking]
) -> None:
    expected = [replace(ranking, ranks=dense(ranking.ranks)) for ranking in rankings]
    assert again(tmp_path, rankings, form) == (expected, Lost())


def in_pairs(ranking: Ranking, with_ties: bool = False) -> list[Ranking]:
    """Every two ranked completions, better first, said otherwise than in the writer."""
    pairs = []
    for a, b in combinations(range(len(ranking.completions)), 2):
        first, second = ranking.ranks[a], ranking.ranks[b]
        if first is None or second is None or (first == second and not with_ties):
            continue
        better, worse = (b, a) if second < first else (a, b)
        texts = (ranking.completions[better], ranking.completions[worse])
        pairs.append(replace(ranking, completions=texts, ranks=(0, int(first != second))))
    return pairs


def account(
    rankings: Sequence[Ranking],
    with_ties: bool = False,
    *,
    fits: Callable[[Ranking], bool] = lambda pair: True,
    as_chats: bool = False,
) -> dict[str, int]:
    """What pairs lose, counted from the rankings. fits: whether the format holds a pair; as_chats: only chats."""
    count: Counter[str] = Counter()
    for ranking in rankings:
        pairs = in_pairs(ranking, with_ties)
        if not with_ties:
            count["num_ties"] += len(in_pairs(ranking, True)) - len(pairs)
        count["num_not_ranked"] += ranking.ranks.count(None)
        written = [pair for pair in pairs if fits(pair)]
        count["num_unspeakable"] += len(pairs) - len(written)
        count["num_unwritten"] += not written
        if len(ranking.ranks) > 2 and written:
            count["num_expanded"] += 1
            count["num_pairs"] += len(written)
        if as_chats and written:
            count["num_plain_prompts"] += isinstance(ranking.prompt, str)
            count["num_system"] += sum(m["role"] == "system" for m in as_chat(ranking).prompt)
    return dict(count)


@in_a_file
@given(rankings=RANKINGS)
def test_csv_holds_pairs_and_ties(tmp_path: Path, rankings: list[Ranking]) -> None:
    pairs = [pair for ranking in rankings for pair in in_pairs(ranking, with_ties=True)]
    assert again(tmp_path, rankings, "csv") == (pairs, Lost(**account(rankings, with_ties=True)))


@pytest.mark.parametrize("form", ["trl", "openrlhf"])
@in_a_file
@given(rankings=RANKINGS)
def test_pairs_without_ties(tmp_path: Path, form: Format, rankings: list[Ranking]) -> None:
    pairs = [pair for ranking in rankings for pair in in_pairs(ranking)]
    missing = [pair for pair in pairs if pair.margin is None]
    counted = account(rankings)
    if 0 < len(missing) < len(pairs):
        pairs = [replace(p, margin=0.0 if p.margin is None else p.margin) for p in pairs]
        counted["num_margins"] = len(missing)
    assert again(tmp_path, rankings, form) == (pairs, Lost(**counted))


def as_chat(ranking: Ranking) -> Ranking:
    if isinstance(ranking.prompt, str):
        return replace(ranking, prompt=[{"role": "user", "content": ranking.prompt}])
    return ranking


def alternating(pair: Ranking) -> Ranking:
    """A person's turns in a row said as one; of these tests' prompts nothing else is left."""
    content = "\n\n".join(m["content"] for m in as_chat(pair).prompt if isinstance(m, dict))
    return replace(pair, prompt=[{"role": "user", "content": content}])


@in_a_file
@given(rankings=RANKINGS)
def test_rewardbench_holds_chats_in_turn(tmp_path: Path, rankings: list[Ranking]) -> None:
    pairs = [pair for ranking in rankings for pair in in_pairs(ranking)]
    chats = [as_chat(pair).prompt for pair in pairs]
    counted = account(rankings, as_chats=True)
    counted["num_merged"] = sum(len(chat) > 1 for chat in chats)
    found = again(tmp_path, rankings, "rewardbench")
    assert found == ([alternating(pair) for pair in pairs], Lost(**counted))


def test_rewardbench_needs_a_person_to_begin(tmp_path: Path) -> None:
    said = {"role": "assistant", "content": "Hello."}
    pair = Ranking(prompt=[USER, said, USER], completions=("a", "b"), ranks=(0, 1))
    assert again(tmp_path, [pair], "rewardbench") == ([pair], Lost())
    begun = replace(pair, prompt=[said, USER])
    assert again(tmp_path, [pair, begun], "rewardbench") == (
        [pair],
        Lost(num_unspeakable=1, num_unwritten=1),
    )


def turns(pair: Ranking) -> list[str]:
    """Everything that is said, in order."""
    chat = as_chat(pair).prompt
    return [m["content"] for m in chat if isinstance(m, dict)] + list(pair.completions)


def stripped(pair: Ranking) -> Ranking:
    """What a transcript holds: no white space around turns, and the person says the system's."""
    prompt: list[Message] = [
        {"role": m["role"].replace("system", "user"), "content": m["content"].strip()}
        for m in as_chat(pair).prompt
        if isinstance(m, dict)
    ]
    return replace(pair, prompt=prompt, completions=tuple(t.strip() for t in pair.completions))


@in_a_file
@given(rankings=RANKINGS)
def test_hh_holds_transcripts(tmp_path: Path, rankings: list[Ranking]) -> None:
    pairs = [pair for ranking in rankings for pair in in_pairs(ranking)]

    def fits(pair: Ranking) -> bool:
        return not any("\n\nHuman:" in text for text in turns(pair))

    fit = [pair for pair in pairs if fits(pair)]
    counted = account(rankings, fits=fits, as_chats=True)
    counted["num_stripped"] = sum(turns(pair) != turns(stripped(pair)) for pair in fit)
    assert again(tmp_path, rankings, "hh") == ([stripped(p) for p in fit], Lost(**counted))


def test_losses_in_words() -> None:
    rankings = [
        Ranking(prompt="p", completions=("a", "b", "c", "d"), ranks=(0, 0, 1, None)),
        Ranking(prompt="p", completions=("a", "b"), ranks=(3, 3), margin=0.5),
    ]
    assert str(write_rows(rankings, "hh")[1]) == (
        "1 rankings of more than two written as 2 pairs, 2 ties not written, "
        "1 completions without a rank not written, 1 rankings not written at all, "
        "1 plain prompts written as a person's message"
    )
    assert str(write_rows(rankings, "nemo")[1]) == "nothing"


def row(ranking: Ranking, form: Format) -> dict[str, Any]:
    return write_rows([ranking], form)[0][0]


def test_rows_as_other_tools_expect_them() -> None:
    """Against the shapes that the tools document, written out by hand."""
    pair = Ranking(
        prompt=[{"role": "system", "content": "Be brief."}, USER],
        completions=("Go away.", "Hello."),
        ranks=(1, 0),
        annotator="ann",
        source="s",
        margin=2.0,
    )
    good, bad = ({"role": "assistant", "content": text} for text in ("Hello.", "Go away."))
    said = {"annotator": "ann", "source": "s", "margin": 2.0}
    trl = {"prompt": pair.prompt, "chosen": [good], "rejected": [bad], **said}
    assert row(pair, "trl") == row(pair, "openrlhf") == trl
    assert row(pair, "rewardbench") == {
        "prompt": "Be brief.\n\nHi",
        "chosen": [{"role": "user", "content": "Be brief.\n\nHi"}, good],
        "rejected": [{"role": "user", "content": "Be brief.\n\nHi"}, bad],
        "subset": "s",
        "chosen_model": "",
        "rejected_model": "",
        "id": 0,
        "annotator": "ann",
        "margin": 2.0,
    }
    assert row(pair, "hh")["chosen"] == "\n\nHuman: Be brief.\n\nHuman: Hi\n\nAssistant: Hello."
    plain = Ranking(prompt="", completions=("a", "b"), ranks=(0, 1))
    assert row(plain, "trl") == {"chosen": "a", "rejected": "b"}
    assert row(plain, "openrlhf") == {"prompt": "", "chosen": "a", "rejected": "b"}
    order = row(pair, "argilla")["responses"]["ranking"][0]
    assert order["value"] == ["completion_2", "completion_1"] and order["status"] == "submitted"
    assert row(pair, "argilla")["metadata"] == {**said}
    tied = Ranking(prompt="p", completions=("a", "b", "c"), ranks=(1, 1, 0), annotator="7")
    assert row(tied, "argilla")["responses"]["ranking"][0]["value"] == [
        {"rank": 1, "value": "completion_3"},
        {"rank": 2, "value": "completion_1"},
        {"rank": 2, "value": "completion_2"},
    ]
    task = row(pair, "label-studio")
    assert task["annotations"][0]["result"][0]["value"] == {"selected": "right"}
    assert (task["data"]["answer1"], task["data"]["answer2"]) == pair.completions
    task = row(tied, "label-studio")
    assert task["annotations"][0]["completed_by"] == 7
    assert task["annotations"][0]["result"][0]["value"]["ranker"] == {
        "_": [],
        "rank_1": ["completion_3"],
        "rank_2": ["completion_1", "completion_2"],
    }
    assert [item["body"] for item in task["data"]["items"]] == ["a", "b", "c"]


def test_all_rows_have_the_same_columns() -> None:
    rankings = [
        Ranking(prompt="p", completions=("a", "b"), ranks=(0, 1), source="s"),
        Ranking(prompt="p", completions=("a", "b"), ranks=(0, 1), margin=1.0),
    ]
    forms: tuple[Format, ...] = ("trl", "nemo", "hh", "openrlhf", "rewardbench", "csv")
    for form in forms:
        rows, _ = write_rows(rankings, form)
        assert rows[0].keys() == rows[1].keys()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything inside a row."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    if isinstance(value, dict | list):
        for key, inner in items:
            found += places(inner, (*path, key)) if isinstance(inner, dict | list) else []
            found += [] if isinstance(inner, dict | list) else [(*path, key)]
    return found


def changed(row: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of a row with another value at one place; "gone" takes the place away."""
    copy = json.loads(json.dumps(row))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if value == "gone":
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return copy


SAMPLES = [
    row(Ranking(prompt=prompt, completions=texts, ranks=ranks), form)
    for prompt in ("p", [USER])
    for texts, ranks in ((("a", "b"), (0, 1)), (("a", "b", "c"), (0, 0, 1)))
    for form in ("trl", "nemo", "hh", "argilla", "label-studio", "rewardbench")
]  # fmt: skip
SAMPLES += [
    {"p": "x", "a_1": "y", "a_2": "z", "best.responses": ["a_1"], "best.responses.status": [None]},
    {
        "a_1": "y",
        "a_2": "z",
        "q": [{"user_id": 1, "value": [{"rank": 1, "value": "a_2"}], "status": ""}],
    },
    {"a_1": "y", "a_2": "z", "r_1": {"user_id": [1], "value": [3], "status": [""]}},
]
INNER = st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | TEXT | st.just("gone")
VALUES = INNER | st.lists(INNER, max_size=2) | st.dictionaries(TEXT, INNER, max_size=2)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_row_is_read_or_refused_in_one_line(tmp_path: Path, data: st.DataObject) -> None:
    damaged = data.draw(st.sampled_from(SAMPLES))
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(places(damaged)))
        damaged = changed(damaged, path, data.draw(VALUES))
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(damaged))
    try:
        read_rankings(str(file), keep_all=True)
    except BadInput as error:
        assert "\n" not in str(error) and str(file) in str(error)


def test_what_is_lost_of_rankings_is_counted_once_each(tmp_path: Path) -> None:
    def four(prompt: PromptText, *texts: str) -> Ranking:
        return Ranking(prompt=prompt, completions=texts, ranks=(0, 1, 2, 3))

    held, not_held = four("p", *"abcd"), four("p\n\nHuman: q", *"abcd")
    assert write_rows([held, not_held], "hh")[1] == Lost(
        num_expanded=1, num_pairs=6, num_plain_prompts=1, num_unspeakable=6, num_unwritten=1
    )
    asked = four([{"role": "system", "content": "s"}, USER], *"abcd")
    lost = write_rows([asked], "rewardbench")[1]
    assert (lost.num_system, lost.num_pairs, lost.num_merged) == (1, 6, 6)


def test_csv_leaves_out_texts_that_would_be_read_as_chats(tmp_path: Path) -> None:
    chat = '[{"role": "user", "content": "x"}]'
    plain = Ranking(prompt="p", completions=("a", "b"), ranks=(0, 1))
    for text in (chat, chat.replace('"', "'"), f" {chat}"):
        odd = replace(plain, completions=(text, "no"))
        assert again(tmp_path, [odd, plain], "csv") == (
            [plain],
            Lost(num_unspeakable=1, num_unwritten=1),
        )
    held = replace(plain, completions=(f"{chat} is a chat", '[{"role": "user", "con'))
    assert again(tmp_path, [held], "csv") == ([held], Lost())
