"""The pelican world: jokes about pelicans and other topics, and what its people find funny.

A joke is a set-up, a punchline and perhaps a flourish. The demonstrations mix good and bad ones; the hidden gold
asks for form, the prompt's topic, a punchline that fits topic, place and opener, one flourish, no repetition and a
sane length. Owns text and gold; knows nothing of models.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from itertools import pairwise

from crestline.people.simulated import SimulatedPeople
from crestline.types import Demonstration, PromptText
from crestline.worlds.pelican_words import (
    CONNECTORS,
    FLOURISHES,
    PLACES,
    PLAIN,
    PUNS,
    REQUESTS,
    TOPICS,
    VERBS,
)

OPENERS = tuple(CONNECTORS)
TASTE = {"form": 0.1, "topic": 0.2, "fit": 0.15, "wit": 0.3, "flourish": 0.15, "verb": 0.1}
WORD = re.compile(r"[a-z']+|[.?!,]")
SENTENCE = re.compile(r"[^.?!]*[.?!]|[^.?!]+$")


def words(text: str) -> tuple[str, ...]:
    """Lower-case words and marks of a text.

    >>> words("Why not?")
    ('why', 'not', '?')
    """
    return tuple(WORD.findall(text.lower()))


def setup(stream: random.Random, opener: str, topic: str, place: str) -> str:
    return opener.format(topic=topic, verb=stream.choice(VERBS), place=place)


def joke(stream: random.Random, topic: str, *, skill: float) -> str:
    """A joke about the topic; skill in [0, 1] is the chance that each of its parts comes out right."""
    told = topic if stream.random() < 0.8 + 0.2 * skill else stream.choice(list(TOPICS))
    opener = stream.choice(OPENERS)
    luck = stream.random()
    if luck < skill:  # pun of the topic, at a place where it is funny
        pun = stream.choice(TOPICS[told])
        place = stream.choice(PUNS[pun][0])
    elif luck < 0.5 + skill / 2:  # pun of the topic, somewhere else
        pun, place = stream.choice(TOPICS[told]), stream.choice(PLACES)
    else:
        pun, place = stream.choice(list(PUNS)), stream.choice(PLACES)
    right = stream.random() < 0.5 + 0.5 * skill
    connector = CONNECTORS[opener] if right else stream.choice(list(CONNECTORS.values()))
    parts = [setup(stream, opener, told, place), f"{connector} {stream.choice(PUNS[pun][1])}."]
    mishap = stream.random()
    if mishap < 0.06 * (1 - skill):
        parts = parts[:1]
    elif mishap < 0.12 * (1 - skill):
        parts.insert(1, parts[0])
    elif mishap < 0.16 * (1 - skill):
        parts.append(f"{connector} {stream.choice(PUNS[stream.choice(list(PUNS))][1])}.")
    flourishes = stream.choices((0, 1, 2), (0.62, 0.35, 0.03))[0]
    parts += [stream.choice(FLOURISHES) for _ in range(flourishes)]
    return " ".join(parts)


@cache
def punchlines() -> dict[tuple[str, ...], str]:
    return {words(line): pun for pun, (_, lines) in PUNS.items() for line in lines}


@lru_cache(maxsize=100_000)
def closest(line: tuple[str, ...]) -> tuple[str, float, float]:
    """The pun that a line tells, how much its punchline is liked, and how well it is told, in [0, 1].

    Told well means few words wrong: 1 for the punchline itself, 0 where fewer than half of the neighbouring words
    agree (Dice's coefficient of word pairs).
    """
    pairs = set(pairwise(line))
    best, found = 0.0, line
    for known in punchlines():
        likeness = 2 * len(pairs & set(pairwise(known))) / max(1, len(pairs) + len(known) - 1)
        if likeness > best:
            best, found = likeness, known
    if best <= 0.5:
        return "", 0.0, 0.0
    return punchlines()[found], liking(" ".join(found)), ramp(best, 0.5, 1.0)


@cache
def known_pairs() -> frozenset[tuple[str, str]]:
    """Every pair of neighbouring words that the world's own jokes contain."""
    pieces = [
        opener.format(topic=topic, verb=verb, place=place)
        for opener in OPENERS
        for topic in TOPICS
        for verb in VERBS
        for place in PLACES
    ]
    pieces += [
        f"{connector} {' '.join(line)}."
        for connector in CONNECTORS.values()
        for line in punchlines()
    ]
    pieces += FLOURISHES
    pairs: set[tuple[str, str]] = set()
    for piece in pieces:
        tokens = words(piece)
        pairs.update(pairwise(tokens))
    starts = {words(piece)[0] for piece in pieces}
    pairs.update((mark, start) for mark in ".?!" for start in starts)
    return frozenset(pairs)


@cache
def liking(phrase: str) -> float:
    """How much everybody likes a punchline, a flourish or a verb: arbitrary, fixed, in [0, 1]."""
    return hashlib.sha256(phrase.encode()).digest()[0] / 255


def ramp(value: float, low: float, high: float) -> float:
    """0 at or below low, 1 at or above high, linear between."""
    return min(1.0, max(0.0, (value - low) / (high - low)))


class PelicanWorld:
    """Jokes about pelicans and 39 other topics; see the module."""

    name = "pelican"

    def texts(self, count: int, seed: int) -> list[str]:
        stream = random.Random(f"texts {seed}")
        topics = list(TOPICS)
        texts = []
        for _ in range(count):
            topic = stream.choice(topics)
            if stream.random() < 0.2:
                plain = stream.choice(PLAIN)
                texts.append(
                    plain.format(
                        topic=topic, verb=stream.choice(VERBS), place=stream.choice(PLACES)
                    )
                )
            else:
                request = stream.choice(REQUESTS).format(topic=topic)
                texts.append(f"{request} {joke(stream, topic, skill=stream.random())}")
        return texts

    def demonstrations(self, count: int, seed: int) -> list[Demonstration]:
        stream = random.Random(f"demonstrations {seed}")
        topics = list(TOPICS)
        rows = []
        for _ in range(count):
            topic = stream.choice(topics)
            skill = stream.choice((0.0, 0.2, 0.4, 0.8))
            rows.append(
                Demonstration(
                    prompt=self._ask(stream, topic), completion=joke(stream, topic, skill=skill)
                )
            )
        return rows

    @staticmethod
    def _ask(stream: random.Random, topic: str) -> PromptText:
        return [{"role": "user", "content": stream.choice(REQUESTS).format(topic=topic)}]

    def prompts(self, split: str, count: int, seed: int) -> list[PromptText]:
        asked = [
            request.format(topic=topic)
            for topic in TOPICS
            for number, request in enumerate(REQUESTS)
            if (number >= len(REQUESTS) - 2) == (split == "heldout")
        ]
        stream = random.Random(f"prompts {split} {seed}")
        order: list[str] = []
        while len(order) < count:
            order += stream.sample(asked, len(asked))
        return [[{"role": "user", "content": text}] for text in order[:count]]

    def topic(self, prompt: PromptText) -> str:
        """The topic that a prompt asks for. Raises KeyError if the prompt is not of this world."""
        text = prompt if isinstance(prompt, str) else (prompt[-1]["content"] if prompt else "")
        found = [word for word in words(text) if word in TOPICS]
        if len(found) != 1:
            raise KeyError(text)
        return found[0]

    def aspects(self, prompt: PromptText, completion: str) -> Mapping[str, float]:
        """Named qualities of a completion in [0, 1], from which gold is made."""
        topic = self.topic(prompt)
        tokens = words(completion)
        sentences = [words(part) for part in SENTENCE.findall(completion)]
        sentences = [sentence for sentence in sentences if len(sentence) > 1]
        pairs = list(pairwise(tokens))
        known = sum(pair in known_pairs() for pair in pairs) / max(len(pairs), 1)
        opening = sentences[0] if sentences else ()
        punch = sentences[1] if len(sentences) > 1 else ()
        opener = next((o for o in OPENERS if opening[:2] == words(o)[:2]), None)
        place = next((p for p in PLACES if opening[-1 - len(words(p)) : -1] == words(p)), None)
        connector = next((c for c in CONNECTORS.values() if punch[: len(words(c))] == words(c)), "")
        line = punch[len(words(connector)) : -1]
        pun, wit, told = closest(line)
        of_topic = told if pun in TOPICS[topic] else 0.0
        at_place = told if pun and place in PUNS[pun][0] else 0.0
        agrees = 1.0 if opener and connector == CONNECTORS[opener] else 0.0
        verb = next((v for v in VERBS if f" {v} " in completion), None)
        flourishes = [f for s in sentences[2:] for f in FLOURISHES if s == words(f)]
        number, extra = len(flourishes), len(sentences) - 2 - len(flourishes)
        count_taste = (0.3, 1.0, 0.6, 0.2)[number] if number < 4 and extra <= 0 else 0.0
        return {
            "fluent": ramp(known, 0.6, 0.97),
            "varied": ramp(len(set(pairs)) / max(len(pairs), 1), 0.6, 0.95),
            "form": 0.5 * (opener is not None and opening[-1:] == ("?",)) + 0.5 * told,
            "topic": 1.0 if topic in opening else 0.0,
            "fit": 0.45 * of_topic + 0.4 * at_place + 0.15 * agrees,
            "wit": told * wit,
            "verb": liking(verb) if verb else 0.5,
            "flourish": count_taste * (0.4 + 0.6 * max(map(liking, flourishes), default=0.5)),
            "length": ramp(len(tokens), 4, 10) * (1 - ramp(len(tokens), 27, 45)),
        }

    def gold(self, prompt: PromptText, completion: str) -> float:
        a = self.aspects(prompt, completion)
        taste = sum(weight * a[name] for name, weight in TASTE.items())
        return a["fluent"] * a["varied"] * a["length"] * taste

    def people(self, seed: int, *, flip_probability: float = 0.1) -> SimulatedPeople:
        return SimulatedPeople(
            self.gold,
            self.aspects,
            seed=seed,
            flip_probability=flip_probability,
            description="50 simulated people of the pelican world: a hidden gold, personas and noise",
        )
