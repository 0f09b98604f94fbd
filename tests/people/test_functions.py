"""A user's function as people: what is loaded, what is passed, what is believed."""

from pathlib import Path
from typing import Any

import pytest

from crestline.people.functions import FunctionPeople, load_people
from crestline.types import BadInput, Paused


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    (tmp_path / "neighbour_of_judge.py").write_text("BONUS = 1.0\n")
    file = tmp_path / "judge.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "import neighbour_of_judge\n"
        "@dataclass\nclass Taste:\n    bonus: float = neighbour_of_judge.BONUS\n"
        "def rank(prompt, completions, **columns):\n"
        "    return [len(c) + Taste().bonus for c in completions]\n"
        "def one(prompt): return []\n"
        "def three(prompt, completions, extra): return []\n"
        "def keywords(*, prompt, completions): return []\n"
        "class Judge:\n"
        "    def __call__(self, prompt, completions): return [0.0 for _ in completions]\n"
        "judge = Judge()\n"
        "number = 3\n"
    )
    return file


def test_a_function_from_a_file(judge: Path) -> None:
    people = load_people(f"{judge}:rank")
    assert people.rank("p", ["a", "bbb"], question_id="rank/0", other=1) == [2.0, 4.0]
    assert people.answered_by == "function"
    assert str(judge) in people.description


def test_a_callable_object(judge: Path) -> None:
    assert load_people(f"{judge}:judge").rank("p", ["a", "b"], question_id="x") == [0.0, 0.0]


def test_a_module_is_imported_once(tmp_path: Path) -> None:
    file = tmp_path / "counting.py"
    log = tmp_path / "log"
    file.write_text(
        f"with open({str(log)!r}, 'a') as file:\n    file.write('x')\n"
        "def rank(prompt, completions): return [0, 0]\n"
    )
    load_people(f"{file}:rank")
    load_people(f"{file}:rank")
    assert log.read_text() == "x"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("judge.py", "expected module.py:function"),
        (":rank", "expected module.py:function"),
        ("judge.py:", "expected module.py:function"),
        ("nowhere.py:rank", "no such file"),
        ("judge.py:taste", "no function 'taste'"),
        ("judge.py:number", "is int, not a function"),
        ("judge.py:one", "cannot be called as one(prompt, completions, **columns)"),
        ("judge.py:three", "cannot be called"),
        ("judge.py:keywords", "cannot be called"),
        ("broken.py:rank", "SyntaxError"),
        ("leaves.py:rank", "SystemExit"),
        ("notes.txt:rank", "not a Python file"),
    ],
)
def test_what_cannot_be_loaded(judge: Path, name: str, said: str) -> None:
    folder = judge.parent
    (folder / "broken.py").write_text("def rank(:\n")
    (folder / "leaves.py").write_text("raise SystemExit(1)\n")
    (folder / "notes.txt").write_text("rank\n")
    flag = str(folder / name) if not name.startswith(":") else name
    with pytest.raises(BadInput, match="--people") as caught:
        load_people(flag)
    assert said in str(caught.value)


def people(function: Any) -> FunctionPeople:
    return FunctionPeople(function, "the function f")


def test_columns_go_to_whoever_takes_them() -> None:
    seen: list[dict[str, Any]] = []
    people(lambda prompt, completions, **columns: seen.append(columns) or [0]).rank(
        "p", ["a"], question_id="q", topic="t"
    )
    people(lambda prompt, completions, topic: seen.append({"topic": topic}) or [0]).rank(
        "p", ["a"], question_id="q", topic="t"
    )
    assert seen == [{"question_id": "q", "topic": "t"}, {"topic": "t"}]


@pytest.mark.parametrize("returned", [[1, 0.5, None], (1, 0.5, None)])
def test_values_are_floats_or_none(returned: Any) -> None:
    assert people(lambda p, c: returned).rank("p", ["a", "b", "c"]) == [1.0, 0.5, None]


def test_arrays_and_their_numbers() -> None:
    import numpy as np

    assert people(lambda p, c: np.array([1, 2])).rank("p", ["a", "b"]) == [1.0, 2.0]
    assert people(lambda p, c: [np.float32(0.5), None]).rank("p", ["a", "b"]) == [0.5, None]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "returned NoneType"),
        (1.0, "returned float"),
        ("ab", "returned str"),
        ([1.0], "1 values for 2 completions"),
        ([1.0, float("nan")], "value 1 is nan"),
        ([float("inf"), 0.0], "value 0 is inf"),
        ([1.0, "good"], "value 1 is 'good'"),
    ],
)
def test_what_is_not_believed(returned: Any, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        people(lambda prompt, completions: returned).rank("p", ["a", "b"], question_id="rank/7")
    assert said in str(caught.value) and "rank/7" in str(caught.value)


@pytest.mark.parametrize("error", [KeyError("taste"), SystemExit(), SystemExit(0)])
def test_a_failure_pauses_and_names_the_item(error: BaseException) -> None:
    def fails(prompt: str, completions: list[str]) -> list[float]:
        raise error

    with pytest.raises(Paused, match=rf"rank/7.*a prompt.*{type(error).__name__}"):
        people(fails).rank("a prompt", ["a"], question_id="rank/7")


def test_an_interruption_passes() -> None:
    def stops(prompt: str, completions: list[str]) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        people(stops).rank("p", ["a"])
