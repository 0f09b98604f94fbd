import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crestline.types import BadInput, PromptText
from crestline.worlds.pelican import PelicanWorld, joke, words
from crestline.worlds.pelican_words import (
    CONNECTORS,
    FLOURISHES,
    PLACES,
    PUNS,
    REQUESTS,
    TOPICS,
    VERBS,
)

WORLD = PelicanWorld()
PROMPT: PromptText = [{"role": "user", "content": "Tell me a joke about a pelican."}]
GOOD = "Why did the pelican leave the restaurant? Because the bill was far too big. Ba dum tss!"


def well_made(count: int, seed: int) -> list[tuple[PromptText, str]]:
    stream = random.Random(seed)
    topics = [stream.choice(list(TOPICS)) for _ in range(count)]
    return [
        ([{"role": "user", "content": REQUESTS[0].format(topic=t)}], joke(stream, t, skill=1.0))
        for t in topics
    ]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.fixture(scope="module")
def typical() -> float:
    """Mean gold of jokes in which every part came out right."""
    return mean([WORLD.gold(prompt, text) for prompt, text in well_made(300, 0)])


def test_everything_is_a_function_of_the_seed() -> None:
    for make in (WORLD.texts, WORLD.demonstrations, lambda n, s: WORLD.prompts("train", n, s)):
        assert make(50, 1) == make(50, 1) != make(50, 2)
        assert make(50, 1)[:20] == make(20, 1)
        assert len(make(50, 1)) == 50


def test_no_prompt_stands_in_both_splits() -> None:
    train = {str(prompt) for prompt in WORLD.prompts("train", 2000, 0)}
    heldout = {str(prompt) for prompt in WORLD.prompts("heldout", 2000, 1)}
    assert train and heldout and not train & heldout
    assert len(train) + len(heldout) == len(TOPICS) * len(REQUESTS)
    assert len(set(map(str, WORLD.prompts("heldout", len(heldout), 0)))) == len(heldout)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_prompt_is_of_this_world(split: str) -> None:
    for prompt in WORLD.prompts(split, 500, 0):
        assert WORLD.topic(prompt) in TOPICS
        assert 0 <= WORLD.gold(prompt, GOOD) <= 1


vocabulary = sorted({word for text in WORLD.texts(500, 0) for word in words(text)})
salad = st.lists(st.sampled_from(vocabulary), max_size=40).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(completion=st.one_of(salad, st.text(max_size=80)))
def test_gold_is_in_zero_to_one_for_any_text(completion: str) -> None:
    assert 0 <= WORLD.gold(PROMPT, completion) <= 1


def test_gold_of_the_worlds_own_text_is_in_zero_to_one_and_varies() -> None:
    found = [WORLD.gold(row.prompt, row.completion) for row in WORLD.demonstrations(500, 0)]
    assert 0 <= min(found) < 0.2 and 0.6 < max(found) <= 1
    assert len({round(value, 3) for value in found}) > 100


NONSENSE = {
    "nothing": "",
    "the the": "the " * 30,
    "one word": "pelican " * 12,
    "marks": "? . ! " * 6,
    "ha": "Ha ha ha! " * 8,
    "flourishes": " ".join(FLOURISHES),
    "a good joke five times": " ".join([GOOD] * 5),
    "a good punchline five times": "Because the bill was far too big. " * 5,
    "all topics": " ".join(TOPICS),
    "a setup only, over and over": "Why did the pelican leave the restaurant? " * 4,
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_worth_nothing(name: str, typical: float) -> None:
    assert WORLD.gold(PROMPT, NONSENSE[name]) < 0.1 * typical


def test_word_salad_is_worth_nothing(typical: float) -> None:
    stream = random.Random(0)
    salads = [" ".join(stream.choices(vocabulary, k=stream.randint(8, 25))) for _ in range(200)]
    shuffled = []
    for _, text in well_made(200, 1):
        tokens = list(words(text))
        stream.shuffle(tokens)
        shuffled.append(" ".join(tokens))
    for texts in (salads, shuffled):
        assert mean([WORLD.gold(PROMPT, text) for text in texts]) < 0.03 * typical
        assert max(WORLD.gold(PROMPT, text) for text in texts) < 0.3 * typical


def test_skill_pays() -> None:
    stream = random.Random(0)
    topics = list(TOPICS) * 8
    golds = []
    for skill in (0.0, 0.3, 0.6, 1.0):
        golds.append(
            mean([WORLD.gold(f"A {t} joke", joke(stream, t, skill=skill)) for t in topics])
        )
    assert golds == sorted(golds)
    assert golds[-1] > golds[0] + 0.1


def test_the_parts_of_a_joke_count() -> None:
    def gold(text: str) -> float:
        return WORLD.gold(PROMPT, text)

    whole = gold(GOOD)
    assert whole > gold(GOOD.replace(" Ba dum tss!", ""))  # one flourish is liked
    assert whole > gold(GOOD.replace("pelican", "duck"))  # not what was asked
    assert whole > gold(GOOD.replace("the restaurant", "the forest"))  # not funny there
    assert whole > gold(GOOD.replace("Because", "Well,"))  # does not fit the question
    assert whole > gold(GOOD.split("?")[0] + "?")  # no punchline
    assert whole > gold(GOOD + " Ba dum tss! Ba dum tss!")
    assert WORLD.gold("A joke about a dog, please.", GOOD) < whole


def test_one_wrong_word_costs_but_does_not_ruin() -> None:
    stream = random.Random(0)
    kept = []
    for prompt, text in well_made(60, 2):
        before = WORLD.gold(prompt, text)
        parts = text.split()
        for place in range(len(parts)):
            changed = [*parts]
            changed[place] = stream.choice(("the", "garage", "quickly"))
            kept.append(WORLD.gold(prompt, " ".join(changed)) / before)
    assert min(kept) > 0.0
    assert 0.4 < mean(kept) < 0.98
    assert sum(share < 0.1 for share in kept) < 0.05 * len(kept)


@pytest.mark.parametrize(
    "prompt",
    ["", "Tell me a joke.", "A joke about a pelican and a duck.", "Explain tax law.", []],
    ids=str,
)
def test_off_world_there_is_no_gold(prompt: PromptText) -> None:
    with pytest.raises(KeyError):
        WORLD.gold(prompt, GOOD)
    with pytest.raises(BadInput, match="nobody knows what is good here"):
        WORLD.people(0, flip_probability=0.1).rank(prompt, [GOOD, ""], question_id="1")


def test_plain_and_chat_prompts_are_worth_the_same() -> None:
    assert WORLD.gold("Tell me a joke about a pelican.", GOOD) == WORLD.gold(PROMPT, GOOD)


def test_people_of_the_world_see_what_is_good() -> None:
    people, jokes = WORLD.people(0, flip_probability=0.0), well_made(150, 3)
    right = 0
    for number, (prompt, text) in enumerate(jokes):
        values = people.rank(prompt, [text, "the the the"], question_id=number)
        right += values[0] > values[1]
    assert right > 0.95 * len(jokes)
    careless = WORLD.people(0, flip_probability=0.5)
    right = sum(
        values[0] > values[1]
        for n, (prompt, text) in enumerate(jokes)
        if (values := careless.rank(prompt, [text, "the the the"], question_id=n))
    )
    assert 50 < right < 100


def test_demonstrations_ask_in_chat_and_answer_the_topic_mostly() -> None:
    rows = WORLD.demonstrations(300, 0)
    on_topic = [WORLD.topic(row.prompt) in words(row.completion) for row in rows]
    assert 0.8 < mean([float(right) for right in on_topic]) < 1.0
    assert all(row.prompt[0]["role"] == "user" for row in rows)  # type: ignore[index]


def test_every_request_names_one_topic_and_every_pun_has_a_place() -> None:
    for topic, puns in TOPICS.items():
        assert set(puns) <= set(PUNS)
        for request in REQUESTS:
            assert WORLD.topic(request.format(topic=topic)) == topic
    lines = [line for _, told in PUNS.values() for line in told]
    assert len(lines) == len({words(line) for line in lines})
    assert all(set(places) <= set(PLACES) and places for places, _ in PUNS.values())
    assert len(set(VERBS)) == len(VERBS) and len(CONNECTORS) == 3


def test_words_by_hand() -> None:
    assert words("Why? I can't, 3 times!") == ("why", "?", "i", "can't", ",", "times", "!")
