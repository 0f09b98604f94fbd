import math
from collections.abc import Mapping

import pytest
from scipy import stats

from crestline.people.simulated import SimulatedPeople
from crestline.types import BadInput, PromptText


def gold(prompt: PromptText, completion: str) -> float:
    """The number that the completion is."""
    if prompt != "rate":
        raise KeyError(prompt)
    return float(completion)


def aspects(prompt: PromptText, completion: str) -> Mapping[str, float]:
    return {"big": float(float(completion) > 0.5), "length": len(completion) / 10}


def crowd(**changes: object) -> SimulatedPeople:
    settings: dict[str, object] = {
        "seed": 0,
        "flip_probability": 0.0,
        "noise": 0.0,
        "persona_spread": 0.0,
    }
    return SimulatedPeople(gold, aspects, **(settings | changes))  # type: ignore[arg-type]


def share_wrong(people: SimulatedPeople, better: str, worse: str, count: int = 1500) -> float:
    wrong = 0
    for number in range(count):
        pair = [better, worse] if number % 2 else [worse, better]
        values = people.rank("rate", pair, question_id=number)
        wrong += (values[0] > values[1]) != (pair[0] == better)
    return wrong / count


def test_careful_people_without_taste_say_gold() -> None:
    assert crowd().rank("rate", ["0.3", "0.9", "0.3"], question_id=1) == [0.3, 0.9, 0.3]
    assert share_wrong(crowd(), "0.51", "0.5", 200) == 0.0


@pytest.mark.parametrize("flip", [0.1, 0.25, 0.5])
def test_flips_come_as_often_as_asked(flip: float) -> None:
    found = share_wrong(crowd(flip_probability=flip), "0.9", "0.1")
    test = stats.binomtest(round(found * 1500), 1500, flip)
    assert test.pvalue > 1e-3


def test_the_same_question_gets_the_same_answer() -> None:
    first, second = (crowd(flip_probability=0.2, noise=0.3, persona_spread=0.3) for _ in range(2))
    asked = [(["0.4", "0.5"], number) for number in range(40)]
    answers = [first.rank("rate", pair, question_id=number) for pair, number in asked]
    backwards = [second.rank("rate", pair, question_id=n) for pair, n in reversed(asked)]
    assert answers == backwards[::-1]
    assert len({tuple(answer) for answer in answers}) == 40


def test_another_seed_is_another_crowd() -> None:
    pair = ["0.4", "0.5"]
    found = [crowd(noise=0.3, seed=seed).rank("rate", pair, question_id=0) for seed in (0, 1)]
    assert found[0] != found[1]


def test_noise_has_the_given_spread_and_no_drift() -> None:
    people = crowd(noise=0.2)
    values = [people.rank("rate", ["0.5"], question_id=n)[0] - 0.5 for n in range(1500)]
    assert stats.kstest(values, stats.norm(0, 0.2).cdf).pvalue > 1e-3


def test_personas_are_a_crowd_of_the_given_size() -> None:
    people = crowd(persona_spread=0.2, num_people=5)
    # the taste for "big" of each person, seen with nothing else in play
    tastes = {
        round(people.rank("rate", ["0.9", "0.1"], question_id=n)[0] - 0.9, 9) for n in range(300)
    }
    assert len(tastes) == 5
    many = crowd(persona_spread=0.2, num_people=10_000)
    gaps = [
        many.rank("rate", ["0.9", "0.1"], question_id=n)[0]
        - many.rank("rate", ["0.9", "0.1"], question_id=n)[1]
        for n in range(1000)
    ]
    assert stats.kstest(gaps, stats.norm(0.8, 0.2).cdf).pvalue > 1e-3


def test_a_shared_bias_moves_everybody_and_not_gold() -> None:
    people = crowd(shared_bias={"length": 1.0})
    assert people.rank("rate", ["0.5", "0.500"], question_id=0) == pytest.approx([0.8, 1.0])
    assert people.gold("rate", "0.500") == 0.5
    assert share_wrong(people, "0.5", "0.4000000", 100) == 1.0


def test_a_careless_person_orders_more_than_two_at_random() -> None:
    people = crowd(flip_probability=0.5)
    texts = ["0.1", "0.2", "0.3"]
    orders = [0] * 6
    for number in range(1200):
        values = people.rank("rate", texts, question_id=number)
        order = sorted(range(3), key=values.__getitem__)
        orders[order[0] * 2 + (order[1] > order[2])] += 1
    assert stats.chisquare(orders).pvalue > 1e-3


def test_nobody_knows_another_world() -> None:
    with pytest.raises(BadInput, match="nobody knows what is good here") as refused:
        crowd().rank("weigh", ["0.1", "0.2"], question_id=0)
    assert "'weigh'" in str(refused.value) and "--people module.py:function" in str(refused.value)
    with pytest.raises(BadInput, match="nobody knows what is good here"):
        crowd(flip_probability=0.5).rank("weigh", ["0.1", "0.2"], question_id=0)


def test_nothing_asked_nothing_said() -> None:
    assert crowd().rank("rate", [], question_id=0) == []


@pytest.mark.parametrize("flip", [-0.1, 0.51, math.nan])
def test_a_flip_that_is_no_probability_is_refused(flip: float) -> None:
    with pytest.raises(ValueError, match=r"flip_probability must be in \[0, 0.5\]"):
        crowd(flip_probability=flip)


def test_they_say_what_they_are() -> None:
    people = crowd(description="five people")
    assert (people.answered_by, people.description) == ("simulated people", "five people")
