"""The queue: nothing lost, nothing crossed, whatever the interleaving; failures stay with the texts at fault."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crestline.serve.queue import (
    MAX_PADDING,
    WINDOW,
    Closed,
    Full,
    ScoringFailed,
    ScoringQueue,
    next_batch,
)


@dataclass(frozen=True)
class Text:
    name: str
    num_tokens: int = 1


def length_of(rows: Sequence[Text]) -> list[str]:
    """What the model says of a text here: its name, so that a crossed answer shows."""
    return [row.name for row in rows]


def play(queue: ScoringQueue[Text, str], story: Callable[[], Awaitable[None]]) -> None:
    """Run a story on an event loop while another thread scores, then end both."""

    async def whole() -> None:
        thread = threading.Thread(target=queue.run)
        thread.start()
        try:
            await story()
        finally:
            queue.close()
            if queue.num_waiting:
                queue.abandon()
            await asyncio.to_thread(thread.join)

    asyncio.run(whole())


async def scored(queue: ScoringQueue[Text, str], rows: Sequence[Text]) -> list[str]:
    """One request, from admission to answer."""
    queue.admit(len(rows))
    try:
        return await queue.submit(rows).answered
    finally:
        queue.leave(len(rows))


def test_answers_of_many_requests_at_once_are_neither_lost_nor_crossed() -> None:
    queue = ScoringQueue(length_of, max_queue=10_000, max_batch_tokens=50)

    async def client(number: int) -> None:
        for turn in range(20):
            rows = [Text(f"{number}/{turn}/{n}", 1 + (7 * n + number) % 6) for n in range(11)]
            assert await scored(queue, rows) == [row.name for row in rows]
            await asyncio.sleep(0)

    async def story() -> None:
        await asyncio.gather(*(client(number) for number in range(32)))

    play(queue, story)
    assert queue.num_waiting == 0
    assert queue.counts.num_texts == 32 * 20 * 11
    assert 1 < queue.counts.num_batches < queue.counts.num_texts / 2


def test_a_failing_text_fails_its_own_request_only() -> None:
    def score(rows: Sequence[Text]) -> list[str]:
        if any(row.name.startswith("bad") for row in rows):
            raise ZeroDivisionError("no such\ntoken")
        return length_of(rows)

    queue = ScoringQueue(score, max_queue=100, max_batch_tokens=100)

    async def story() -> None:
        good = [scored(queue, [Text(f"{n}"), Text(f"{n}!")]) for n in range(8)]
        bad = [
            scored(queue, [Text("fine"), Text("fine"), Text("bad")]),
            scored(queue, [Text("bad")]),
        ]
        found: list[Any] = await asyncio.gather(*good, *bad, return_exceptions=True)
        assert found[:8] == [[f"{n}", f"{n}!"] for n in range(8)]
        assert [error.index for error in found[8:]] == [2, 0]
        assert all(str(error) == "ZeroDivisionError: no such" for error in found[8:])
        assert await scored(queue, [Text("after")]) == ["after"]

    play(queue, story)
    assert queue.counts.num_failed_texts == 2


def test_the_queue_is_bounded_and_room_comes_back() -> None:
    queue = ScoringQueue(length_of, max_queue=5, max_batch_tokens=10)
    queue.admit(3)
    with pytest.raises(Full):
        queue.admit(3)
    queue.admit(2)
    with pytest.raises(Full):
        queue.admit(1)
    queue.leave(5)
    queue.admit(5)


def test_what_nobody_waits_for_is_not_scored() -> None:
    seen: list[str] = []
    queue = ScoringQueue(
        lambda rows: [seen.append(r.name) or r.name for r in rows], max_queue=9, max_batch_tokens=9
    )

    async def before() -> None:
        queue.admit(2)
        gone, stays = queue.submit([Text("gone")]), queue.submit([Text("stays")])
        queue.drop(gone)
        thread = threading.Thread(target=queue.run)
        thread.start()
        assert await stays.answered == ["stays"]
        queue.leave(2)
        queue.close()
        thread.join()

    asyncio.run(before())
    assert seen == ["stays"] and queue.counts.num_dropped_texts == 1


def test_closing_finishes_what_was_accepted_and_refuses_what_is_new() -> None:
    may_score = threading.Event()

    def score(rows: Sequence[Text]) -> list[str]:
        assert may_score.wait(10)
        return length_of(rows)

    queue = ScoringQueue(score, max_queue=100, max_batch_tokens=1)

    async def story() -> None:
        accepted = [asyncio.ensure_future(scored(queue, [Text(str(n))])) for n in range(5)]
        await asyncio.sleep(0)
        queue.close()
        with pytest.raises(Closed):
            await scored(queue, [Text("late")])
        may_score.set()
        assert await asyncio.gather(*accepted) == [[str(n)] for n in range(5)]

    play(queue, story)
    assert queue.num_waiting == 0


def test_abandoning_tells_everyone_who_waits() -> None:
    may_score = threading.Event()

    def score(rows: Sequence[Text]) -> list[str]:
        assert may_score.wait(10)
        return length_of(rows)

    queue = ScoringQueue(score, max_queue=100, max_batch_tokens=1)

    async def story() -> None:
        waiting = [asyncio.ensure_future(scored(queue, [Text(str(n))])) for n in range(5)]
        await asyncio.sleep(0.01)
        queue.close()
        queue.abandon()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(error) for error in found] == [Closed] * 5
        may_score.set()

    play(queue, story)
    assert queue.counts.num_texts == 0


def test_a_request_without_texts_is_answered() -> None:
    queue = ScoringQueue(length_of, max_queue=1, max_batch_tokens=1)

    async def story() -> None:
        assert await scored(queue, []) == []

    play(queue, story)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    max_batch_tokens=st.integers(1, 100),
)
def test_a_batch_has_the_oldest_text_and_keeps_to_its_tokens(
    lengths: list[int], max_batch_tokens: int
) -> None:
    waiting = [Text(str(n), length) for n, length in enumerate(lengths)]
    batch = next_batch(waiting, max_batch_tokens)
    assert any(text is waiting[0] for text in batch)
    assert len({id(text) for text in batch}) == len(batch)
    padded = len(batch) * max(text.num_tokens for text in batch)
    assert padded <= max_batch_tokens or len(batch) == 1
    assert sum(text.num_tokens for text in batch) >= (1 - MAX_PADDING) * padded
    last = max(waiting.index(text) for text in batch)
    assert sum(lengths[: last + 1]) <= WINDOW * max_batch_tokens or last == 0


def test_a_batch_is_of_a_like_length() -> None:
    waiting = [Text(f"{n}", 30 if n % 2 else 3) for n in range(20)]
    batch = next_batch(waiting, 400)
    assert {text.num_tokens for text in batch} == {3} and len(batch) == 10
    assert len(next_batch(waiting[::2], 18)) == 6
    assert {text.num_tokens for text in next_batch(waiting[1:], 90)} == {30}


def test_nobody_starves_behind_texts_that_keep_coming() -> None:
    waiting = [Text("long", 50), *(Text(f"{n}", 1) for n in range(100))]
    assert [text.name for text in next_batch(waiting, 60)] == ["long"]


def test_failures_name_their_place_in_one_line() -> None:
    assert str(ScoringFailed(3, RuntimeError())) == "RuntimeError: no message"
