"""Records from plain mappings and back: exactly what fits, and a line for what does not."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from crestline.runs.settings import build, defaults_of, plain
from crestline.types import BadInput, CurvePoint, Verdict


@dataclass(frozen=True)
class Sphere:
    radius: float = 1.0


@dataclass(frozen=True)
class Box:
    width: float = 1.0
    height: float = 2.0


@dataclass(frozen=True)
class Place:
    name: str = "here"
    depth: int = 0

    def __post_init__(self) -> None:
        if self.depth < 0:
            raise ValueError(f"depth must be 0 or more, got {self.depth}")


@dataclass(frozen=True)
class Thing:
    count: int = 1
    weight: float = 0.5
    label: str = ""
    is_heavy: bool = False
    colour: Literal["red", "blue"] = "red"
    limit: int | None = None
    pair: tuple[int, int] = (0, 0)
    many: tuple[float, ...] = ()
    shape: Sphere | Box = field(default_factory=Sphere)
    place: Place = field(default_factory=Place)


THINGS = st.builds(
    Thing,
    count=st.integers(),
    weight=st.floats(allow_nan=False, allow_infinity=False),
    label=st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"))),
    is_heavy=st.booleans(),
    colour=st.sampled_from(["red", "blue"]),
    limit=st.none() | st.integers(),
    pair=st.tuples(st.integers(), st.integers()),
    many=st.lists(st.floats(-1e6, 1e6)).map(tuple),
    shape=st.builds(Sphere, st.floats(0, 9)) | st.builds(Box, st.floats(0, 9), st.floats(0, 9)),
    place=st.builds(Place, st.sampled_from(["here", "3"]), st.integers(0, 9)),
)


@given(THINGS)
def test_what_is_written_is_read_back(thing: Thing) -> None:
    assert build(Thing, plain(thing)) == thing
    assert build(Thing, json.loads(json.dumps(plain(thing)))) == thing
    assert build(Thing, yaml.safe_load(yaml.safe_dump(plain(thing), allow_unicode=True))) == thing


def test_members_of_unions_carry_their_names() -> None:
    assert plain(Thing(shape=Box()))["shape"] == {"name": "box", "width": 1.0, "height": 2.0}
    assert build(Thing, {"shape": "box"}).shape == Box()
    assert build(Thing, {"shape": {"radius": 3}}).shape == Sphere(3.0)
    assert build(Thing, {"place": "there"}).place == Place("there")


def test_a_base_stands_in_for_the_defaults() -> None:
    base = Thing(count=7, shape=Box(height=9.0), place=Place("there", 4))
    found = build(Thing, {"shape": {"width": 5}, "place": {"depth": 1}}, base=base)
    assert found == Thing(count=7, shape=Box(5.0, 9.0), place=Place("there", 1))
    assert build(Thing, {"shape": {"name": "sphere"}}, base=base).shape == Sphere()


def test_numbers_may_stand_as_text() -> None:
    found = build(Thing, {"count": "3", "weight": "1e-4", "is_heavy": "True"})
    assert (found.count, found.weight, found.is_heavy) == (3, 1e-4, True)
    assert isinstance(build(Thing, {"weight": 2}).weight, float)


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"cuont": 1}, "run.yaml: cuont: no such setting; did you mean 'count'?"),
        ({"zzz": 1}, "run.yaml: zzz: no such setting"),
        ({"count": 1.5}, "run.yaml: count: expected a whole number, got 1.5"),
        ({"count": True}, "run.yaml: count: expected a whole number, got True"),
        ({"count": None}, "run.yaml: count: expected a whole number, got nothing"),
        ({"weight": "heavy"}, "run.yaml: weight: expected a number, got 'heavy'"),
        ({"weight": float("inf")}, "run.yaml: weight: expected a number, got inf"),
        ({"weight": [1]}, "run.yaml: weight: expected a number, got [1]"),
        ({"label": 3}, "run.yaml: label: expected text (in quotes, if it looks like a number)"),
        ({"is_heavy": 1}, "run.yaml: is_heavy: expected true or false, got 1"),
        ({"colour": "green"}, "run.yaml: colour: expected one of red, blue, got 'green'"),
        ({"limit": "no"}, "run.yaml: limit: expected a whole number"),
        ({"pair": [1]}, "run.yaml: pair: expected 2 values, got 1"),
        ({"pair": 1}, "run.yaml: pair: expected a list, got 1"),
        ({"many": [1, "x"]}, "run.yaml: many.1: expected a number, got 'x'"),
        ({"place": 3}, "run.yaml: place: expected settings, got 3"),
        ({"place": {"depht": 3}}, "run.yaml: place.depht: no such setting; did you mean 'depth'?"),
        ({"place": {"depth": -1}}, "run.yaml: place.depth must be 0 or more, got -1"),
        ({"shape": "cone"}, "run.yaml: shape.name: expected one of sphere, box, got 'cone'"),
        ({"shape": 3}, "run.yaml: shape: expected a name or settings, got 3"),
        ({"shape": {"name": "box", "radius": 1}}, "a setting of sphere, but the shape is box"),
    ],
)
def test_what_does_not_fit(mapping: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        build(Thing, mapping, where="run.yaml")
    assert said in str(caught.value)


def test_places_can_be_named_by_a_function() -> None:
    with pytest.raises(BadInput, match=r"^--place\.depth: expected a whole number"):
        build(Thing, {"place": {"depth": "x"}}, lambda path: "--" + ".".join(path))


def test_the_verb_in_a_config_is_passed_over() -> None:
    assert build(Thing, {"verb": "thing", "count": 2}) == Thing(count=2)


def test_a_verdict_survives_json() -> None:
    verdict = Verdict(
        kind="peaked",
        update=40,
        interval=(30, 50),
        distance=1.5,
        win_rate=None,
        win_rate_interval=(0.6, 0.8),
        num_labels=300,
        answered_by="function",
        reason="because",
        curve=(
            CurvePoint(
                update=40, distance=1.5, win_rate=0.7, low=0.6, high=0.8, num_duels=9, num_wins=6.5
            ),
        ),
    )
    assert build(Verdict, json.loads(json.dumps(plain(verdict)))) == verdict


def test_required_fields() -> None:
    with pytest.raises(BadInput, match=r"verdict\.json: kind: missing|verdict\.json: .*: missing"):
        build(Verdict, {}, where="verdict.json")


# ---------------------------------------------------------------- what nobody gave


@dataclass(frozen=True)
class Room:
    thing: Thing = field(default_factory=lambda: Thing(count=5, shape=Box(height=3.0)))
    size: int = 2


def test_what_nobody_gave() -> None:
    assert defaults_of(Thing(count=9, label="x")) == plain(Thing())
    assert defaults_of(Room(thing=Thing(), size=1)) == {
        **plain(Room()),
        # the sphere is given: its own defaults count, and that it is one is no default
        "thing": {**plain(Room().thing), "shape": {"name": "box", "radius": 1.0}},
    }
    assert defaults_of(Room(thing=Thing(shape=Box(height=9.0)))) == plain(Room())


@given(THINGS)
def test_what_nobody_gave_is_what_is_built_without_it(thing: Thing) -> None:
    given = {"shape": {"name": plain(thing)["shape"]["name"]}}
    whole = defaults_of(build(Thing, given))
    assert {**whole, "shape": {**whole["shape"], **given["shape"]}} == plain(build(Thing, given))
