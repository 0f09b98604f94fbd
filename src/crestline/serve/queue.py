"""The bounded queue of texts that wait for scores, and the loop that scores them in batches across requests.

Two threads meet here. The event loop admits, drops and answers requests, and is the only one that counts. The
scoring thread runs `run`: it alone calls the model. Knows nothing of HTTP, tokenizers or torch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

WINDOW = 8
"""A batch is chosen among the oldest texts that fill this many batches."""
MAX_PADDING = 0.2
"""Share of a batch's tokens that may be padding."""

logger = logging.getLogger("crestline.serve")


class Row(Protocol):
    """A text as the model reads it."""

    @property
    def num_tokens(self) -> int: ...


R = TypeVar("R", bound=Row)
S = TypeVar("S")


class Full(Exception):
    """The queue has no room for the texts of a request."""


class Closed(Exception):
    """The server is stopping; nothing new is taken, or what waited was given up."""


class ScoringFailed(Exception):
    """The model could not score a text; `index` is its place in the request."""

    def __init__(self, index: int, error: Exception) -> None:
        said = str(error).strip() or "no message"
        super().__init__(f"{type(error).__name__}: {said.splitlines()[0][:200]}")
        self.index = index


@dataclass(eq=False, slots=True)
class Ticket(Generic[R, S]):
    """The texts of one request on their way."""

    rows: Sequence[R]
    loop: asyncio.AbstractEventLoop
    answered: asyncio.Future[list[S]]
    scores: dict[int, S] = field(default_factory=dict)
    is_dropped: bool = False
    """Nobody waits any more. Set by the event loop, read by the scoring thread."""


@dataclass(eq=False, slots=True)
class Waiting(Generic[R, S]):
    """One text in the scoring thread's list."""

    ticket: Ticket[R, S]
    index: int

    @property
    def row(self) -> R:
        return self.ticket.rows[self.index]

    @property
    def num_tokens(self) -> int:
        return self.row.num_tokens


@dataclass
class Counts:
    """What has gone through since the start."""

    num_requests: int = 0
    num_texts: int = 0
    num_tokens: int = 0
    """Tokens of scored texts, without padding."""
    num_batches: int = 0
    num_failed_texts: int = 0
    num_dropped_texts: int = 0
    """Texts whose client went away before they were scored."""
    num_rejected_requests: int = 0
    """Requests that found the queue full."""


class ScoringQueue(Generic[R, S]):
    """Texts of many requests, scored together.

    score: rows in, one result each out; called on the scoring thread only. max_queue: texts that may wait.
    max_batch_tokens: tokens of a batch, padding included.
    """

    def __init__(
        self, score: Callable[[Sequence[R]], Sequence[S]], *, max_queue: int, max_batch_tokens: int
    ) -> None:
        self._score, self.max_queue, self._max_batch_tokens = score, max_queue, max_batch_tokens
        self._inbox: SimpleQueue[Ticket[R, S] | None] = SimpleQueue()
        self._tickets: set[Ticket[R, S]] = set()
        self.num_waiting = 0
        self.closed = asyncio.Event()
        self.counts = Counts()

    # ---- the event loop's side ---------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        return self.closed.is_set()

    def admit(self, num_texts: int) -> None:
        """Take room for texts; give it back with `leave`. Raises Full or Closed."""
        if self.is_closed:
            raise Closed
        if self.num_waiting + num_texts > self.max_queue:
            raise Full
        self.num_waiting += num_texts

    def leave(self, num_texts: int) -> None:
        """Give back the room of texts that were answered or given up."""
        self.num_waiting -= num_texts
        self._end_if_idle()

    def submit(self, rows: Sequence[R]) -> Ticket[R, S]:
        """Queue the rows of one request, which has room for them; `ticket.answered` becomes their results in order.

        It raises ScoringFailed if a text could not be scored, and Closed if the queue was abandoned.
        """
        loop = asyncio.get_running_loop()
        ticket = Ticket(rows, loop, loop.create_future())
        if rows:
            self._tickets.add(ticket)
            self._inbox.put(ticket)
        else:
            ticket.answered.set_result([])
        return ticket

    def drop(self, ticket: Ticket[R, S]) -> None:
        """Nobody waits for this request any more: what is not being scored yet never will be."""
        ticket.is_dropped = True
        self._tickets.discard(ticket)
        self.counts.num_dropped_texts += len(ticket.rows) - len(ticket.scores)

    def close(self) -> None:
        """Take nothing new; the scoring thread ends when all that was admitted has been answered."""
        self.closed.set()
        self._end_if_idle()

    def abandon(self) -> None:
        """Give up what waits: its requests get Closed."""
        self.closed.set()
        for ticket in list(self._tickets):
            self._end(ticket, Closed())
        self._inbox.put(None)

    def _end_if_idle(self) -> None:
        if self.is_closed and self.num_waiting == 0:
            self._inbox.put(None)

    def _take_results(
        self, batch: Sequence[Waiting[R, S]], results: Sequence[S | Exception]
    ) -> None:
        self.counts.num_batches += 1
        for waiting, result in zip(batch, results, strict=True):
            ticket = waiting.ticket
            if ticket.is_dropped:
                continue
            if isinstance(result, Exception):
                self.counts.num_failed_texts += 1
                self._end(ticket, ScoringFailed(waiting.index, result))
                continue
            self.counts.num_texts += 1
            self.counts.num_tokens += waiting.num_tokens
            ticket.scores[waiting.index] = result
            if len(ticket.scores) == len(ticket.rows):
                self._end(ticket, [ticket.scores[n] for n in range(len(ticket.rows))])

    def _end(self, ticket: Ticket[R, S], outcome: list[S] | Exception) -> None:
        self._tickets.discard(ticket)
        if isinstance(outcome, Exception):
            ticket.is_dropped = True
            ticket.answered.set_exception(outcome)
        else:
            ticket.answered.set_result(outcome)

    # ---- the scoring thread's side -----------------------------------------------------------

    def run(self) -> None:
        """Score until the queue is closed and empty, or abandoned."""
        waiting: list[Waiting[R, S]] = []
        while True:
            while not waiting or not self._inbox.empty():
                ticket = self._inbox.get()
                if ticket is None:
                    return
                waiting += [Waiting(ticket, index) for index in range(len(ticket.rows))]
            waiting = [text for text in waiting if not text.ticket.is_dropped]
            if not waiting:
                continue
            batch = next_batch(waiting, self._max_batch_tokens)
            chosen = set(map(id, batch))
            waiting = [text for text in waiting if id(text) not in chosen]
            results = self._results([text.row for text in batch])
            batch[0].ticket.loop.call_soon_threadsafe(self._take_results, batch, results)

    def _results(self, rows: Sequence[R]) -> list[S | Exception]:
        """A result for each row; a batch that fails is halved until only the texts at fault fail."""
        try:
            return list(self._score(rows))
        except Exception as error:
            if len(rows) == 1:
                logger.exception("a text could not be scored")
                return [error]
        half = len(rows) // 2
        return self._results(rows[:half]) + self._results(rows[half:])


W = TypeVar("W", bound=Row)


def next_batch(waiting: Sequence[W], max_batch_tokens: int) -> list[W]:
    """The oldest text, with those nearest to it in length among the oldest that wait.

    waiting: oldest first, at least one. With its padding a batch has at most max_batch_tokens, or one text; at most
    MAX_PADDING of it is padding. Nobody starves: the text that waited longest is in every batch.
    """
    window: list[W] = []
    num_tokens = 0
    for text in waiting:
        num_tokens += text.num_tokens
        if window and num_tokens > WINDOW * max_batch_tokens:
            break
        window.append(text)
    window.sort(key=lambda text: text.num_tokens)
    lengths = [text.num_tokens for text in window]
    first = last = next(n for n, text in enumerate(window) if text is waiting[0])
    num_tokens = lengths[first]
    while True:
        sides = []
        if first > 0:
            sides.append((first - 1, last))
        if last + 1 < len(window):
            sides.append((first, last + 1))
        grown = []
        for low, high in sides:
            padded = (high - low + 1) * lengths[high]
            padding = padded - num_tokens - lengths[low if low < first else high]
            if padded <= max_batch_tokens and padding <= MAX_PADDING * padded:
                grown.append((padding, low, high))
        if not grown:
            return window[first : last + 1]
        _, low, high = min(grown)
        num_tokens += lengths[low if low < first else high]
        first, last = low, high
