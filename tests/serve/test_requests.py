"""Bodies of requests: what is read, and one line with the field and the index for what is not."""

import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crestline.serve.requests import Refused, Texts, query_texts, score_texts, text_hash

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def test_plain_and_chat_are_read() -> None:
    found = score_texts(
        body(
            prompts=["1+1=", CHAT],
            completions=["2", [{"role": "assistant", "content": "Hello", "name": "x"}]],
            other=1,
        )
    )
    assert found == Texts(["1+1=", CHAT], ["2", "Hello"])


def test_openrlhf_bodies_of_every_version_are_read() -> None:
    wanted = Texts(["a b", "c"], ["", ""])
    assert query_texts(body(query=["a b", "c"])) == wanted
    labels: list[Any] = [None, "42"]
    assert query_texts(body(query=["a b", "c"], prompts=["a", "c"], labels=labels)) == wanted
    assert query_texts(body(query=["a b", "c"], prompts=None, labels=None, metas=[{}])) == wanted
    assert query_texts(body(query=[], prompts=[], labels=[])) == Texts([], [])


def test_the_ends_of_a_query_are_cut_once() -> None:
    found = query_texts(
        body(query=["<s><s>a</s></s>", "b</s>c"]), query_start="<s>", query_end="</s>"
    )
    assert found.prompts == ["<s>a</s>", "b</s>c"]


def test_hashes_are_sha256_of_what_stands_there() -> None:
    assert text_hash("é ", "ü") == sha256("é ü".encode()).hexdigest()
    lines = b"system: Be kind.\nuser: Hi\nassistant: Hello"
    assert text_hash(CHAT, "Hello") == sha256(lines).hexdigest()
    texts = Texts(["a", "b"], ["c", "d"])
    assert texts.hashes() == [text_hash("a", "c"), text_hash("b", "d")]


WRONG = {
    "not JSON": (score_texts, b'{"prompts": [', 400, "not JSON"),
    "not UTF-8": (score_texts, b'{"prompts": ["caf\xe9"]}', 400, "not UTF-8 (byte 18)"),
    "empty": (query_texts, b"", 400, "not JSON"),
    "no object": (query_texts, b"[1]", 400, "a list; expected a JSON object"),
    "nested": (score_texts, b"[" * 200_000, 400, "nested too deeply"),
    "no field": (score_texts, body(prompts=[], texts=[]), 422, "no field 'completions'"),
    "nothing": (query_texts, b"{}", 422, "no field 'query'; found: none"),
    "a text for a list": (query_texts, body(query="abc"), 422, "query is the text 'abc'"),
    "lengths": (
        score_texts,
        body(prompts=["a"], completions=["b", "c"]),
        422,
        "prompts has 1 entries and completions 2",
    ),
    "lengths of queries": (
        query_texts,
        body(query=["a"], prompts=[]),
        422,
        "query has 1 entries and prompts 0",
    ),
    "null": (
        score_texts,
        body(prompts=["a", "b"], completions=["c", None]),
        422,
        "completions[1] is null; expected text",
    ),
    "number": (query_texts, body(query=["a", 3.5]), 422, "query[1] is the number 3.5"),
    "truth": (query_texts, body(query=[True]), 422, "query[0] is true"),
    "half a pair": (
        query_texts,
        b'{"query": ["ok", "ab\\ud800"]}',
        422,
        "query[1] holds half a surrogate pair at character 3",
    ),
    "no messages": (
        score_texts,
        body(prompts=[[]], completions=["a"]),
        422,
        "prompts[0] is an empty list",
    ),
    "no role": (
        score_texts,
        body(prompts=["a", [{"content": "x"}]], completions=["a", "b"]),
        422,
        "prompts[1][0] is an object; expected an object with role and content",
    ),
    "unknown role": (
        score_texts,
        body(prompts=[[{"role": "robot", "content": "x"}]], completions=["a"]),
        422,
        "prompts[0][0].role is the text 'robot'; expected system, user, assistant",
    ),
    "a role that is a list": (
        score_texts,
        body(prompts=[[{"role": ["user"], "content": "x"}]], completions=["a"]),
        422,
        "prompts[0][0].role is a list",
    ),
    "content of parts": (
        score_texts,
        body(prompts=[[{"role": "user", "content": [{"type": "text"}]}]], completions=["a"]),
        422,
        "prompts[0][0].content is a list; expected text",
    ),
    "answered already": (
        score_texts,
        body(prompts=[[*CHAT, {"role": "assistant", "content": "x"}]], completions=["a"]),
        422,
        "prompts[0] ends with an assistant message",
    ),
    "a chat for a completion": (
        score_texts,
        body(prompts=["a"], completions=[CHAT]),
        422,
        "completions[0] is a chat",
    ),
}


@pytest.mark.parametrize(("read", "content", "status", "named"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(
    read: Callable[[bytes], Texts], content: bytes, status: int, named: str
) -> None:
    with pytest.raises(Refused) as refused:
        read(content)
    assert refused.value.status == status
    assert named in refused.value.line and "\n" not in refused.value.line


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
names = st.sampled_from(["query", "prompts", "completions", "labels", "role", "content", "\ud800"])
free_form = st.dictionaries(names, json_values | st.lists(st.dictionaries(names, json_values)))


@given(st.binary(max_size=40) | free_form.map(lambda value: json.dumps(value).encode()))
def test_free_form_bodies_are_read_or_refused_in_one_line(content: bytes) -> None:
    for read in (score_texts, query_texts):
        try:
            texts = read(content)
        except Refused as refused:
            assert refused.status in (400, 422)
            assert len(refused.line.splitlines()) == 1 and len(refused.line) < 600
            refused.line.encode()
        else:
            assert len(texts.prompts) == len(texts.completions) == len(texts.hashes())
