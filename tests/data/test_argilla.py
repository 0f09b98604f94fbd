"""Argilla's exports: all four shapes, ranking, label and rating questions, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from crestline.data.columns import Keys
from crestline.data.rankings import Reading, read_all_rankings, read_rankings
from crestline.types import BadInput, Ranking

ANN = "06f7d4c0-e048-43d2-ab3f-06f147616ac6"
BEN = "8aaf57d2-cb8e-4673-a7ce-2f684b60adf5"
FIELDS = {
    "instruction": "Name a bird that cannot fly.",
    "response-1": "A pigeon.",
    "response-2": "The kiwi of New Zealand.",
    "response-3": "",
}
TEXTS = ("A pigeon.", "The kiwi of New Zealand.", "")


def write(folder: Path, *rows: Any) -> str:
    path = folder / "export.json"
    path.write_text(json.dumps(list(rows), indent=1))
    return str(path)


def read(folder: Path, *rows: Any, **keys: Any) -> Reading:
    return read_all_rankings(write(folder, *rows), keep_all=True, keys=Keys(**keys))


def nested(fields: Any, responses: Any, **more: Any) -> dict[str, Any]:
    """A record as `dataset.records.to_json` of version 2 writes it."""
    return {
        "id": "rec-1",
        "fields": fields,
        "metadata": {},
        "suggestions": {"preference": {"value": ["response-1"], "score": 0.2, "agent": "gpt"}},
        "responses": responses,
        "vectors": {},
        "status": "completed",
        "_server_id": "c2bb965d-5ff8-44bd-9544-5cd541ef47ad",
        **more,
    }


def test_nested_records_with_a_ranking_question(tmp_path: Path) -> None:
    orders = [
        {"value": ["response-2", "response-1", "response-3"], "user_id": ANN},
        {"value": ["response-2", "response-3"], "user_id": BEN},
    ]
    record = nested(FIELDS, {"preference": orders}, metadata={"source": "birds", "difficulty": 3})
    reading = read(tmp_path, record)
    source = str(tmp_path / "export.json")
    said = {"prompt": FIELDS["instruction"], "completions": TEXTS, "source": "birds"}
    assert reading.rankings == [
        Ranking(ranks=(1, 0, 2), annotator=ANN, where=f"{source}:2", **said),
        Ranking(ranks=(None, 0, 1), annotator=BEN, where=f"{source}:2", **said),
    ]
    assert reading.unused == {"difficulty": 1}


def test_flat_records_with_drafts(tmp_path: Path) -> None:
    """As `to_datasets` and the hub have them; read from parquet."""
    record = {
        "id": "4f56e32b",
        "status": "completed",
        "_server_id": "e8d07261",
        **FIELDS,
        "subset": "birds",
        "preference.responses": [
            ["response-1", "response-2", "response-3"],
            ["response-3", "response-2", "response-1"],
            ["response-2", "response-1", "response-3"],
        ],
        "preference.responses.users": [ANN, BEN, "third"],
        "preference.responses.status": ["submitted", "draft", "discarded"],
        "preference.suggestion": ["response-1"],
        "preference.suggestion.score": None,
        "preference.suggestion.agent": "gpt",
    }
    unanswered = {
        **record,
        "preference.responses": None,
        "preference.responses.users": None,
        "preference.responses.status": None,
    }
    path = tmp_path / "train-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record, unanswered]), path)
    reading = read_all_rankings(str(path))
    assert [(r.ranks, r.annotator, r.source) for r in reading.rankings] == [
        ((0, 1, 2), ANN, "birds")
    ]
    assert (reading.skipped.num_withdrawn, reading.skipped.num_unanswered) == (2, 1)
    assert reading.skipped.num_rows == 3


@pytest.mark.parametrize(
    "value",
    [
        [
            {"rank": 2, "value": "response-1"},
            {"rank": 1, "value": "response-2"},
            {"rank": 2, "value": "response-3"},
        ],
        {"rank": [2, 1, 2], "value": ["response-1", "response-2", "response-3"]},
    ],
)
def test_feedback_datasets_keep_ties(tmp_path: Path, value: Any) -> None:
    """Version 1 on the hub; `datasets` turns the list of objects into an object of lists."""
    record = {
        **FIELDS,
        "preference": [{"user_id": ANN, "value": value, "status": "submitted"}],
        "preference-suggestion": None,
        "preference-suggestion-metadata": {"type": None, "score": None, "agent": None},
        "external_id": "7",
        "metadata": '{"data_source": "birds"}',
    }
    ranking = read(tmp_path, record).rankings[0]
    assert (ranking.ranks, ranking.source) == ((1, 0, 1), "birds")
    assert (ranking.annotator, ranking.prompt) == (ANN, FIELDS["instruction"])
    assert read_all_rankings(write(tmp_path, record, {**record, "preference": []})).skipped.num_rows


def test_old_feedback_datasets_with_lists_of_answers(tmp_path: Path) -> None:
    """As argilla/comparison-data-falcon-with-feedback: the answer is the number of the best."""
    record = {
        "instruction": "Say hello.",
        "response-1": "Hello!",
        "response-2": "Hi hi hi",
        "choose-best": {"user_id": [None, None], "value": [1, 2], "status": ["submitted"] * 2},
        "external_id": None,
    }
    found = read(tmp_path, record).rankings
    assert [(r.ranks, r.annotator) for r in found] == [((0, 1), ""), ((1, 0), "")]


def test_records_by_person(tmp_path: Path) -> None:
    """Version 1's own JSON of a record: each response holds the answers of one person."""
    record = {
        "fields": FIELDS,
        "metadata": {},
        "responses": [
            {
                "user_id": ANN,
                "status": "submitted",
                "values": {
                    "preference": {
                        "value": [
                            {"rank": 1, "value": "response-1"},
                            {"rank": 1, "value": "response-2"},
                            {"rank": 3, "value": "response-3"},
                        ]
                    },
                    "why": {"value": "I like pigeons and kiwis."},
                },
            }
        ],
        "suggestions": [],
        "external_id": None,
    }
    reading = read(tmp_path, record)
    assert reading.rankings[0].ranks == (0, 0, 1)
    assert reading.unused == {"why": 1}


def test_ratings_are_ranked_higher_first(tmp_path: Path) -> None:
    """distilabel's PreferenceToArgilla: a rating and a rationale for each generation."""
    fields = {
        "id": "sha256",
        "instruction": [{"role": "user", "content": "Say hello."}],
        "generations-0": "Hello!",
        "generations-1": "Hi",
        "generations-2": "Go away.",
    }
    ratings = {"generations-0-rating": 5, "generations-1-rating": 5, "generations-2-rating": 1}
    responses = {name: [{"value": value, "user_id": ANN}] for name, value in ratings.items()}
    responses["generations-0-rationale"] = [{"value": "1", "user_id": ANN}]
    reading = read(tmp_path, nested(fields, responses))
    assert reading.rankings[0].ranks == (0, 0, 1)
    assert reading.rankings[0].prompt == fields["instruction"]
    assert reading.unused == {"id": 1, "generations-0-rationale": 1}
    del responses["generations-1-rating"]
    assert read(tmp_path, nested(fields, responses)).rankings[0].ranks == (0, None, 1)


def test_ratings_of_several_people_and_kinds(tmp_path: Path) -> None:
    """As argilla/mistral-vs-llama-rating, but with two ratings each."""
    record = {
        "input": "Say hello.",
        "response_1": "Hello!",
        "response_2": "Hi",
        "help_1.responses": [1, 4],
        "help_1.responses.users": [ANN, BEN],
        "help_2.responses": [2, 2],
        "help_2.responses.users": [ANN, BEN],
        "truth_1.responses": [7, 7],
        "truth_1.responses.users": [ANN, BEN],
    }
    found = read(tmp_path, record, question="help").rankings
    assert {ranking.annotator: ranking.ranks for ranking in found} == {ANN: (1, 0), BEN: (0, 1)}
    with pytest.raises(BadInput, match=r"ratings of response_1: help_1, truth_1.*--question"):
        read_rankings(write(tmp_path, record))


def rated(**values: int) -> dict[str, Any]:
    return {name: [{"value": value, "user_id": ANN}] for name, value in values.items()}


def test_ratings_bear_the_whole_name_of_a_completion(tmp_path: Path) -> None:
    """Neither is response_10 rated with response_1, nor response_a with the accuracy of a response."""
    names = [f"response_{number}" for number in range(1, 12)]
    ratings = rated(**{f"{name}_rating": -number for number, name in enumerate(names)})
    record = nested({"prompt": "p", **dict.fromkeys(names, "text")}, ratings)
    assert read(tmp_path, record).rankings[0].ranks == tuple(range(11))
    record = nested(
        {"prompt": "p", "response_a": "x", "response_b": "y"},
        rated(rating_a=1, rating_b=2, response_accuracy=5),
    )
    assert read(tmp_path, record).rankings[0].ranks == (1, 0)


def test_a_discarded_answer_may_have_no_values(tmp_path: Path) -> None:
    kept = {"user_id": ANN, "status": "submitted", "values": {"r": {"value": list(TWO)[1:]}}}
    gone = {"user_id": BEN, "status": "discarded", "values": None}
    reading = read(tmp_path, nested(TWO, [gone, kept]))
    assert [ranking.annotator for ranking in reading.rankings] == [ANN]
    assert reading.skipped.num_withdrawn == 1


def test_numbers_beside_the_texts_are_no_completions(tmp_path: Path) -> None:
    record = {**TWO, "score_1": 0.5, "score_2": 0.1, "best.responses": ["response_2"]}
    reading = read(tmp_path, record)
    assert reading.rankings[0].ranks == (1, 0) and reading.unused == {"score_1": 1, "score_2": 1}


@pytest.mark.parametrize(
    ("value", "ranks"),
    [
        ("response_a", (0, 1)),
        ("Response B", (1, 0)),
        ("b", (1, 0)),
        ("tie", (0, 0)),
        ("both_bad", (0, 0)),
        ("unsure", (None, None)),
    ],
)
def test_labels_that_name_the_best(tmp_path: Path, value: str, ranks: Any) -> None:
    fields = {"prompt": "Say hello.", "response_a": "Hello!", "response_b": "Hi"}
    answers = {"preferred": [{"value": value, "user_id": ANN}]}
    answers["comment"] = [{"value": "I prefer a to b.", "user_id": ANN}]
    assert read(tmp_path, nested(fields, answers)).rankings[0].ranks == ranks


def test_fields_that_only_the_ranking_names(tmp_path: Path) -> None:
    fields = {"instruction": "Sort.", "chosen_code": "sorted(x)", "rejected_code-1": "x"}
    order = [{"rank": 1, "value": "rejected_code-1"}, {"rank": 2, "value": "chosen_code"}]
    record = nested(fields, {"preference": [{"value": order, "user_id": ANN}]})
    ranking = read(tmp_path, record).rankings[0]
    assert dict(zip(ranking.completions, ranking.ranks, strict=True)) == {"sorted(x)": 1, "x": 0}


def test_the_prompt_may_be_named(tmp_path: Path) -> None:
    fields = {"ask": "Say hello.", "persona": "a cat", "response_1": "Hello!", "response_2": "Hi"}
    record = nested(fields, {"rank": [{"value": ["response_1", "response_2"], "user_id": ANN}]})
    with pytest.raises(BadInput, match=r"which field is the prompt: ask, persona\?"):
        read(tmp_path, record)
    reading = read(tmp_path, record, prompt="ask")
    assert reading.rankings[0].prompt == "Say hello."
    assert reading.unused == {"persona": 1}


TWO = {"prompt": "p", "response_1": "a", "response_2": "b"}


def answered(value: Any) -> dict[str, Any]:
    return nested(TWO, {"preference": [{"value": value, "user_id": ANN}]})


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (nested(TWO, "yes"), "responses is text 'yes'; expected answers by question"),
        (nested(TWO, {"q": "yes"}), "responses.q is text 'yes'"),
        (nested(TWO, {"q": [{"user_id": ANN}]}), "responses.q[0] is an object with user_id"),
        (nested(TWO, [{"user_id": ANN}]), "responses[0] is an object with user_id"),
        (answered("fine"), "no answer ranks the completions; questions answered: preference"),
        (answered(["response_1", "response_1"]), "preference names a completion twice"),
        (answered(["response_1", "1"]), "preference names a field twice: response_1, 1"),
        (answered(["response_1", "response_9"]), "no answer ranks the completions"),
        (
            answered(
                [{"value": "response_1", "rank": float("nan")}, {"value": "response_2", "rank": 1}]
            ),
            "preference[0].rank is NaN; expected a whole number, or null",
        ),
        (answered({"value": ["response_1", "response_2"], "rank": [1]}), "preference.rank is a"),
        (
            nested({"response_1": "a", "text_1": "b", "text_2": "c", "response_2": "d"}, {
                "best": [{"value": 1, "user_id": ANN}]
            }),
            "which fields are the completions: response_1, response_2; text_1, text_2?",
        ),
        (
            nested(TWO, {q: [{"value": ["response_1"], "user_id": ANN}] for q in ("one", "two")}),
            "several questions give rankings: one, two; say which: crestline convert --question",
        ),
        (
            nested({**TWO, "response_2": 5}, {"best": [{"value": 2, "user_id": ANN}]}),
            "response_2 is number 5",
        ),
        ({**TWO, "q.responses": "x"}, "q.responses is text 'x'; expected a list of answers"),
        ({**TWO, "q.responses": [1], "q.responses.users": []}, "q.responses.users is a list of 0"),
        (
            {**TWO, "q": {"user_id": [ANN], "value": [1, 2], "status": ["submitted"]}},
            "q is an object with user_id, value, status; expected lists",
        ),
    ],
)  # fmt: skip
def test_wrong_records_are_told_with_their_line(tmp_path: Path, record: Any, told: str) -> None:
    path = tmp_path / "export.jsonl"
    path.write_text(json.dumps(answered(["response_1", "response_2"])) + "\n" + json.dumps(record))
    with pytest.raises(BadInput) as caught:
        read_rankings(str(path))
    assert str(caught.value).startswith(f"{path}:2: {told}")


def test_nobody_answered(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no usable ranking \(2 that nobody answered\)"):
        read(tmp_path, nested(TWO, {}), nested(TWO, {"preference": []}))
