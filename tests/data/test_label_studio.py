"""Label Studio's exports: Pairwise and Ranker, JSON and JSON-MIN, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from crestline.data.columns import Keys
from crestline.data.rankings import Reading, read_all_rankings, read_rankings
from crestline.types import BadInput, Ranking

PROMPT = "What is the capital of France?"
PAIR = {"prompt": PROMPT, "answer1": "Paris", "answer2": "London"}
ITEMS = [
    {"id": "llm_1", "title": "LLM 1", "body": "Paris."},
    {"id": "llm_2", "title": "LLM 2", "body": "London."},
    {"id": "llm_3", "title": "LLM 3", "body": ""},
]


def write(folder: Path, *rows: Any) -> str:
    path = folder / "export.json"
    path.write_text(json.dumps(list(rows)))
    return str(path)


def read(folder: Path, *rows: Any, **keys: Any) -> Reading:
    return read_all_rankings(write(folder, *rows), keep_all=True, keys=Keys(**keys))


def result(value: Any, name: str = "comparison", to_name: str = "comparison") -> dict[str, Any]:
    kind = "ranker" if "ranker" in value else "pairwise"
    return {"id": "Dx_aB91ISN", "from_name": name, "to_name": to_name, "type": kind, "value": value}


def annotation(*results: Any, **more: Any) -> dict[str, Any]:
    return {
        "id": 1001,
        "completed_by": 10,
        "result": list(results),
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": "2024-03-09T22:16:08.728353Z",
        "lead_time": 4.288,
        **more,
    }


def task(data: Any, *annotations: Any) -> dict[str, Any]:
    return {
        "id": 1,
        "data": data,
        "annotations": list(annotations),
        "drafts": [],
        "predictions": [{"model_version": "m", "result": [result({"selected": "right"})]}],
        "meta": {},
        "project": 83,
    }


def test_pairwise_with_several_people(tmp_path: Path) -> None:
    row = task(
        {**PAIR, "source": "geography", "model": "m"},
        annotation(result({"selected": "left"})),
        annotation(
            result({"selected": "right"}), completed_by={"id": 11, "email": "ann@example.com"}
        ),
        annotation(result({"selected": "right"}), was_cancelled=True),
        annotation(),
    )
    reading = read(tmp_path, row)
    where = f"{tmp_path / 'export.json'}:1"
    said = {"prompt": PROMPT, "completions": ("Paris", "London"), "source": "geography"}
    assert reading.rankings == [
        Ranking(ranks=(0, 1), annotator="10", where=where, **said),
        Ranking(ranks=(1, 0), annotator="ann@example.com", where=where, **said),
    ]
    assert (reading.skipped.num_withdrawn, reading.skipped.num_unanswered) == (1, 1)
    assert reading.unused == {"model": 1}


@pytest.mark.parametrize(
    ("data", "to_name"),
    [
        ({"q": PROMPT, "Text 2": "London", "Text 1": "Paris"}, "comparison"),
        ({"q": PROMPT, "right": "London", "left": "Paris"}, "comparison"),
        ({"q": PROMPT, "summary_b": "London", "summary_a": "Paris"}, "comparison"),
        ({"q": PROMPT, "mine": "Paris", "theirs": "London"}, "mine,theirs"),
        ({"q1": PROMPT, "x1": "Paris", "x2": "London"}, "x1,x2"),
    ],
)
def test_pairwise_sides_by_their_names(tmp_path: Path, data: Any, to_name: str) -> None:
    row = task(data, annotation(result({"selected": "left"}, to_name=to_name)))
    ranking = read(tmp_path, row).rankings[0]
    assert (ranking.prompt, ranking.completions, ranking.ranks) == (
        PROMPT,
        ("Paris", "London"),
        (0, 1),
    )


@pytest.mark.parametrize(
    ("value", "buckets", "ranks"),
    [
        (["llm_2", "llm_3", "llm_1"], (), (2, 0, 1)),
        ({"rank": ["llm_2", "llm_3", "llm_1"]}, (), (2, 0, 1)),
        ({"_": ["llm_1"], "best": ["llm_3", "llm_2"]}, (), (None, 1, 0)),
        ({"_": ["llm_3"], "rank_1": [], "rank_2": ["llm_1", "llm_2"]}, (), (0, 0, None)),
        ({"tier 10": ["llm_1"], "tier 9": ["llm_3", "llm_2"]}, (), (1, 0, 0)),
        ({"bad": ["llm_1", "llm_2"], "good": ["llm_3"]}, ("good", "soso", "bad"), (1, 1, 0)),
        ({"bad": [], "good": []}, (), (None, None, None)),
    ],
)
def test_ranker(tmp_path: Path, value: Any, buckets: Any, ranks: Any) -> None:
    data = {"task": "Rank them.", "prompt": PROMPT, "items": ITEMS}
    row = task(data, annotation(result({"ranker": value}, "rank", "answers")))
    ranking = read(tmp_path, row, buckets=buckets).rankings[0]
    assert ranking.completions == ("Paris.", "London.", "")
    assert (ranking.ranks, ranking.prompt) == (ranks, PROMPT)


def test_json_min(tmp_path: Path) -> None:
    pairwise = {
        **PAIR,
        "id": 3,
        "comparison": [{"selected": "right"}],
        "annotator": 2,
        "annotation_id": 7,
        "created_at": "2024-03-09T22:16:08.728353Z",
        "updated_at": "2024-03-09T22:16:08.728353Z",
        "lead_time": 4.288,
    }
    ranker = {"items": ITEMS, "rank": [{"ranker": ["llm_3", "llm_1", "llm_2"]}]}
    ranker |= {"annotator": 2, "annotation_id": 8}
    found = read(tmp_path, pairwise, ranker).rankings
    assert [(r.prompt, r.ranks, r.annotator) for r in found] == [
        (PROMPT, (1, 0), "2"),
        ("", (1, 2, 0), "2"),
    ]


def test_exports_from_before_version_1(tmp_path: Path) -> None:
    row = {"id": 0, "data": PAIR, "completions": [annotation(result({"selected": "left"}))]}
    assert read(tmp_path, row).rankings[0].ranks == (0, 1)


def test_chat_prompts(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": PROMPT}]
    row = task({**PAIR, "prompt": chat}, annotation(result({"selected": "left"})))
    assert read(tmp_path, row).rankings[0].prompt == chat


def test_one_of_several_tags(tmp_path: Path) -> None:
    row = task(
        PAIR,
        annotation(
            result({"selected": "left"}, "helpful"),
            result({"selected": "right"}, "harmless"),
            {"from_name": "why", "to_name": "prompt", "type": "textarea", "value": {"text": ["x"]}},
        ),
    )
    assert read(tmp_path, row, question="harmless").rankings[0].ranks == (1, 0)
    with pytest.raises(BadInput, match=r"several rankings: helpful, harmless.*--question"):
        read(tmp_path, row)


LEFT = annotation(result({"selected": "left"}))
RANKED = {"prompt": PROMPT, "items": ITEMS}


def ranker(value: Any, items: Any = ITEMS) -> dict[str, Any]:
    data = {"prompt": PROMPT, "items": items}
    return task(data, annotation(result({"ranker": value}, "rank")))


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (task(PAIR, 7), "annotations[0] is number 7; expected an object with a list 'result'"),
        (task(PAIR, annotation("x")), "annotations[0].result[0] is text 'x'"),
        (
            task(PAIR, annotation(result({"selected": "middle"}))),
            "annotations[0] selected is text 'middle'; expected left or right",
        ),
        (task({**PAIR, "answer2": None}, LEFT), "which two texts were compared? Found: prompt, an"),
        (
            task({"mine": "x", "theirs": "y"}, LEFT),
            "which two texts were compared? Found: mine, theirs",
        ),
        (
            task({"one": "x", "two": "z", "y1": "b", "y2": "c"}, LEFT),
            "which column is the prompt: one, two?",
        ),
        (ranker(["llm_9"]), "annotations[0] ranker: no item has the id 'llm_9'"),
        (ranker(["llm_1", "llm_1"]), "annotations[0] ranker has an item twice"),
        (ranker("llm_1"), "annotations[0] ranker is text 'llm_1'; expected a list of ids"),
        (ranker({"good": ["llm_1"], "bad": ["llm_2"]}), "annotations[0] ranker: which bucket is"),
        (ranker([], ITEMS[:1]), "items is a list of 1; expected at least two items"),
        (ranker([], ITEMS[:1] * 2), "items has an id twice"),
        (ranker([], "x"), "found 0 lists of items with ids"),
        (ranker([], [{"id": 1}, {"id": 2}]), "items[0] is null; expected text"),
    ],
)
def test_wrong_tasks_are_told_with_their_line(tmp_path: Path, row: Any, told: str) -> None:
    path = tmp_path / "export.jsonl"
    path.write_text(json.dumps(task(PAIR, LEFT)) + "\n" + json.dumps(row))
    with pytest.raises(BadInput) as caught:
        read_rankings(str(path))
    assert str(caught.value).startswith(f"{path}:2: {told}")


def test_a_bucket_that_is_not_named(tmp_path: Path) -> None:
    row = ranker({"good": ["llm_1"], "bad": ["llm_2"]})
    with pytest.raises(BadInput, match="--buckets does not name 'bad'"):
        read(tmp_path, row, buckets=("good",))


def test_in_a_table_every_value_has_all_keys(tmp_path: Path) -> None:
    """Parquet fills what a result lacks with null; its type still says what it is."""
    choice = {
        "from_name": "why",
        "type": "choices",
        "value": {"choices": ["style"], "selected": None},
    }
    side = {**result({"selected": "left", "choices": None}), "type": "pairwise"}
    reading = read(tmp_path, task(PAIR, annotation(choice, side)))
    assert [r.completions for r in reading.rankings] == [("Paris", "London")]


def test_relations_between_regions_rank_nothing(tmp_path: Path) -> None:
    relation = {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"}
    given = annotation(relation, result({"selected": "right"}))
    assert read(tmp_path, task(PAIR, given)).rankings[0].ranks == (1, 0)
