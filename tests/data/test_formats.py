"""Texts, prompts, demonstrations and samples: read, refused with the line, and read back."""

import datetime
import doctest
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crestline.data import (
    argilla,
    chat,
    columns,
    formats,
    parsers,
    rankings,
    rows,
    splits,
    writers,
)
from crestline.data.formats import (
    demonstrations_as_rows,
    prompts_as_rows,
    read_demonstrations,
    read_prompts,
    read_samples,
    read_texts,
    samples_as_rows,
    texts_as_rows,
)
from crestline.types import BadInput, Demonstration, Prompt

MODULES = [argilla, chat, columns, formats, parsers, rankings, rows, splits, writers]
USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
TEXT = st.text(max_size=12)
CHAT = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": TEXT}),
    min_size=1,
    max_size=3,
)
PROMPT = TEXT | CHAT
in_a_file = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(folder: Path, *values: Any) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


def test_texts(tmp_path: Path) -> None:
    source = write(tmp_path, {"text": ""}, {"messages": [USER, ANSWER]})
    assert read_texts(source) == ["", "Hi\n\nHello"]


def test_prompts_keep_their_other_columns(tmp_path: Path) -> None:
    noisy = {**USER, "name": None}
    source = write(tmp_path, {"prompt": "p", "answer": 4}, {"prompt": [noisy]})
    assert read_prompts(source) == [
        Prompt(text="p", columns={"answer": 4}),
        Prompt(text=[USER], columns={}),
    ]


def test_demonstrations_in_all_shapes(tmp_path: Path) -> None:
    source = write(
        tmp_path,
        {"prompt": "Once", "completion": " upon"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": "Hi", "completion": [ANSWER]},
        {"messages": [USER, ANSWER, USER, ANSWER]},
        {"prompt": "p", "completion": ""},
    )
    assert read_demonstrations(source) == [
        Demonstration(prompt="Once", completion=" upon"),
        Demonstration(prompt=[USER], completion="Hello"),
        Demonstration(prompt=[USER], completion="Hello"),
        Demonstration(prompt=[USER, ANSWER, USER], completion="Hello"),
        Demonstration(prompt="p", completion=""),
    ]


@pytest.mark.parametrize(
    ("read", "row", "told"),
    [
        (read_texts, {"txt": "a", "n": 1}, ":2: no column 'text'; found columns: txt, n; expected"),
        (read_texts, {}, ":2: no column 'text'; found columns: none"),
        (read_texts, {"text": float("nan")}, ":2: text is NaN; expected text"),
        (read_texts, {"text": None}, ":2: text is null; expected text"),
        (read_texts, {"text": True}, ":2: text is true; expected text"),
        (read_texts, {"text": "a\ud800"}, ":2: text holds half a surrogate pair at character 2"),
        (read_prompts, {"prompt": 3}, ":2: prompt is number 3; expected text or chat"),
        (read_prompts, {"prompt": []}, ":2: prompt is a list of 0; expected chat messages"),
        (read_prompts, {"prompt": ["a"]}, ":2: prompt[0] is text 'a'; expected an object"),
        (read_prompts, {"prompt": [{"role": "bot", "content": ""}]}, ":2: prompt[0].role is text"),
        (read_prompts, {"prompt": [{**USER, "role": ["x"]}]}, ":2: prompt[0].role is a list of 1"),
        (read_prompts, {"prompt": [{**USER, "content": None}]}, ":2: prompt[0].content is null"),
        (read_prompts, {"prompt": [USER, ANSWER]}, ":2: prompt ends with an assistant message"),
        (read_demonstrations, {"prompt": "p"}, ":2: no column 'completion'; found columns: prompt"),
        (read_demonstrations, {"messages": [USER]}, ":2: messages end with the user's"),
        (read_demonstrations, {"messages": [ANSWER]}, ":2: messages has no message before"),
        (read_demonstrations, {"prompt": "p", "completion": [USER]}, ":2: completion has the mess"),
        (read_samples, {"prompt": "p", "completions": "c"}, ":2: completions is text 'c'"),
        (read_samples, {"prompt": "p", "completions": []}, ":2: completions is a list of 0"),
        (read_samples, {"prompt": "p", "completions": [1]}, ":2: completions[0] is number 1"),
    ],
)
def test_wrong_rows_are_told_with_line_and_column(
    tmp_path: Path, read: Any, row: Any, told: str
) -> None:
    path = tmp_path / "rows.jsonl"
    good = {"text": "t", "prompt": "p", "completion": "c", "completions": ["c"]}
    path.write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(BadInput) as caught:
        read(str(path))
    assert str(caught.value).startswith(f"{path}{told}")


@in_a_file
@given(texts=st.lists(TEXT, min_size=1, max_size=4))
def test_texts_come_back(tmp_path: Path, texts: list[str]) -> None:
    assert read_texts(write(tmp_path, *texts_as_rows(texts))) == texts


@in_a_file
@given(
    prompts=st.lists(
        st.builds(
            Prompt,
            text=PROMPT,
            columns=st.dictionaries(st.sampled_from(["answer", "tag"]), TEXT | st.integers()),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_prompts_come_back(tmp_path: Path, prompts: list[Prompt]) -> None:
    assert read_prompts(write(tmp_path, *prompts_as_rows(prompts))) == prompts


@in_a_file
@given(
    items=st.lists(st.builds(Demonstration, prompt=PROMPT, completion=TEXT), min_size=1, max_size=4)
)
def test_demonstrations_come_back(tmp_path: Path, items: list[Demonstration]) -> None:
    assert read_demonstrations(write(tmp_path, *demonstrations_as_rows(items))) == items


@in_a_file
@given(
    samples=st.lists(
        st.tuples(PROMPT, st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=4
    )
)
def test_samples_come_back(tmp_path: Path, samples: list[Any]) -> None:
    assert read_samples(write(tmp_path, *samples_as_rows(samples))) == samples


EXPORTED = [
    "value", "user_id", "status", "values", "result", "selected", "ranker", "id", "body", "items",
    "answer1", "answer2", "response_1", "response_2", "best",
]  # fmt: skip
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | TEXT | st.just([USER, ANSWER]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "rank", "completion", *EXPORTED]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
NAMES = [
    "text", "messages", "prompt", "completion", "completions", "context", "chosen", "rejected",
    "tie", "annotator", "margin", "source", "input", "chosen_model", "fields", "responses", "q",
    "q.responses", "q.responses.status", "q-suggestion", "response_1", "response_2", "data",
    "annotations", "annotation_id", "metadata",
]  # fmt: skip


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(row=st.dictionaries(st.sampled_from(NAMES), ANY, max_size=5))
def test_any_row_is_read_or_refused_in_one_line(tmp_path: Path, row: dict[str, Any]) -> None:
    source = write(tmp_path, row)
    readers: list[Any] = [
        read_texts, read_prompts, read_demonstrations, read_samples, rankings.read_rankings
    ]  # fmt: skip
    for read in readers:
        try:
            read(source)
        except BadInput as error:
            assert "\n" not in str(error)


def test_messages_count_where_the_other_columns_are_empty(tmp_path: Path) -> None:
    """As in UltraChat, and in a Parquet of rows of both kinds, where what a row lacks is null."""
    both = [
        {"prompt": "Hi", "prompt_id": "x", "messages": [USER, ANSWER]},
        {"prompt": None, "completion": None, "messages": [USER, ANSWER]},
        {"prompt": "Hi", "completion": "Hello", "messages": None},
    ]
    found = read_demonstrations(write(tmp_path, *both))
    assert [row.completion for row in found] == ["Hello"] * 3
    texts = [{"text": None, "messages": [USER, ANSWER]}, {"text": "a", "messages": None}]
    assert read_texts(write(tmp_path, *texts)) == ["Hi\n\nHello", "a"]
    with pytest.raises(BadInput, match="text is null"):
        read_texts(write(tmp_path, {"text": None, "messages": None}))


def test_an_empty_text_is_none_where_messages_hold_the_answer(tmp_path: Path) -> None:
    """A CSV has no null."""
    row = {"prompt": "Hi", "text": "", "completion": "", "messages": [USER, ANSWER]}
    for empty in ("", None, []):
        source = write(tmp_path, {**row, "text": empty, "completion": empty})
        assert read_demonstrations(source) == [Demonstration(prompt=[USER], completion="Hello")]
        assert read_texts(source) == ["Hi\n\nHello"]
        source = write(tmp_path, {**row, "messages": empty})
        assert read_demonstrations(source) == [Demonstration(prompt="Hi", completion="")]
        assert read_texts(source) == [""]


def test_dates_and_decimals_beside_prompts_become_text(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    when = datetime.datetime(2024, 1, 2, 3, 4)
    values = {"prompt": "p", "when": when, "more": {"day": when.date(), "cost": Decimal("1.50")}}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([values]), path)
    found = read_prompts(str(path))
    more = {"day": "2024-01-02", "cost": "1.50"}
    assert found[0].columns == {"when": "2024-01-02T03:04:00", "more": more}
    json.dumps(prompts_as_rows(found))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"prompt": "p", "image": b"x"}]), path)
    with pytest.raises(BadInput, match=r"column 'image': .*bytes.*; leave that column out"):
        prompts_as_rows(read_prompts(str(path)))
