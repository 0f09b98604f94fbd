"""The HTTP face of a reward model: OpenRLHF's /get_reward, the plain /score, /health and /metrics.

Owns what is answered, and with which status. Knows nothing of sockets and signals; batching is the queue's, what
stands in a body `requests`'.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from crestline.models.reward_model import BATCH_TOKENS
from crestline.serve.configs import RewardServeConfig
from crestline.serve.queue import Closed, Full, ScoringFailed, ScoringQueue, Ticket
from crestline.serve.requests import Refused, Texts, query_texts, score_texts
from crestline.serve.scoring import Row, Scored, TextScorer

READ_SECONDS = 60.0
"""A body must arrive within this time."""
KEPT_LATENCIES = 2048
"""Latencies are told of this many latest requests."""
CLIENT_GONE = 499
"""Status for a log; nobody is there to read it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The texts of a request, how the model reads them, and what it says of them."""

    hashes: list[str]
    rows: Sequence[Row]
    scored: Sequence[Scored]


class RewardService:
    """A reward model behind a queue. Its methods run on the event loop; `queue.run` on the scoring thread."""

    def __init__(self, scorer: TextScorer, config: RewardServeConfig, *, device: str) -> None:
        self.scorer, self.config, self._device = scorer, config, device
        self.queue: ScoringQueue[Row, Scored] = ScoringQueue(
            scorer.score,
            max_queue=config.max_queue,
            max_batch_tokens=config.max_batch_tokens or batch_tokens(device),
        )
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self._latencies: deque[float] = deque(maxlen=KEPT_LATENCIES)
        self._began = time.monotonic()

    async def score(self, request: Request) -> Response:
        """The plain contract."""
        return await self._respond(request, score_texts, "completions", self._plain)

    async def reward(self, request: Request) -> Response:
        """OpenRLHF's contract."""
        read = partial(
            query_texts, query_start=self.scorer.query_start, query_end=self.config.query_end
        )
        return await self._respond(request, read, "query", self._openrlhf)

    async def health(self) -> Response:
        """Whether it takes requests, and what it is."""
        is_ready = not self.queue.is_closed
        content = {
            "status": "ready" if is_ready else "stopping",
            "model": self.config.model_name_or_path,
            "device": self._device,
            "num_members": self.scorer.num_members,
            "max_length": self.scorer.max_length,
            "queue_length": self.queue.num_waiting,
            "max_queue": self.config.max_queue,
            "uptime_seconds": round(time.monotonic() - self._began, 3),
            **asdict(self.queue.counts),
        }
        return JSONResponse(content, 200 if is_ready else 503)

    async def metrics(self) -> Response:
        """Counts since the start and latencies of the latest requests."""
        seconds = time.monotonic() - self._began
        counts = self.queue.counts
        content = {
            **asdict(counts),
            "queue_length": self.queue.num_waiting,
            "uptime_seconds": round(seconds, 3),
            "texts_per_batch": counts.num_texts / max(1, counts.num_batches),
            "latency_p50_seconds": self._latency(0.5),
            "latency_p99_seconds": self._latency(0.99),
        }
        return JSONResponse(content)

    def _latency(self, share: float) -> float | None:
        return float(np.quantile(self._latencies, share)) if self._latencies else None

    async def _respond(
        self,
        request: Request,
        read: Callable[[bytes], Texts],
        field: str,
        shape: Callable[[Answer], dict[str, Any]],
    ) -> Response:
        began = time.monotonic()
        try:
            self._check_key(request)
            answer = await self._answer(request, read)
        except Refused as error:
            return refusal(error.status, error.line)
        except Full:
            self.queue.counts.num_rejected_requests += 1
            seconds = min(60, math.ceil(self._latency(0.5) or 1))
            line = f"the queue is full ({self.config.max_queue} texts); try again in {seconds} s"
            return refusal(429, line, {"Retry-After": str(seconds)})
        except Closed:
            return refusal(503, "the server is stopping", {"Connection": "close"})
        except ScoringFailed as error:
            return refusal(500, f"{field}[{error.index}] could not be scored: {error}")
        except TimeoutError:
            line = f"the body did not arrive within {READ_SECONDS:g} s"
            return refusal(408, line, {"Connection": "close"})
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        self.queue.counts.num_requests += 1
        self._latencies.append(time.monotonic() - began)
        return JSONResponse(shape(answer))

    def _check_key(self, request: Request) -> None:
        if self.config.api_key:
            given = request.headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {self.config.api_key}".encode()):
                raise Refused(401, "no valid key; send the header Authorization: Bearer KEY")

    async def _answer(self, request: Request, read: Callable[[bytes], Texts]) -> Answer:
        room = 1  # for a request whose texts are not counted yet
        self.queue.admit(room)
        try:
            body = await self._unless_closed(body_of(request, self.config.max_request_bytes))
            loop = asyncio.get_running_loop()
            hashes, rows = await loop.run_in_executor(self._preparing, self._prepare, read, body)
            more = max(0, len(rows) - room)
            self.queue.admit(more)
            room += more
            ticket = self.queue.submit(rows)
            try:
                scored = await unless_gone(request, ticket)
            finally:
                if not ticket.answered.done():
                    self.queue.drop(ticket)
            return Answer(hashes, rows, scored)
        finally:
            self.queue.leave(room)

    async def _unless_closed(self, body: Coroutine[Any, Any, bytes]) -> bytes:
        """The body. Raises Closed as soon as the server is to stop: a client that is slow must not hold it."""
        reading = asyncio.ensure_future(body)
        closing = asyncio.ensure_future(self.queue.closed.wait())
        try:
            await asyncio.wait({reading, closing}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise Closed
            return reading.result()
        finally:
            for task in (reading, closing):
                task.cancel()
            await asyncio.wait({reading, closing})

    def _prepare(
        self, read: Callable[[bytes], Texts], body: bytes
    ) -> tuple[list[str], Sequence[Row]]:
        """Off the event loop: what is in a body, as the model reads it."""
        texts = read(body)
        if len(texts.completions) > self.config.max_queue:
            line = f"{len(texts.completions)} texts in one request; send at most {self.config.max_queue}"
            raise Refused(413, line)
        return texts.hashes(), self.scorer.rows(texts)

    def _plain(self, answer: Answer) -> dict[str, Any]:
        scores = {
            "scores": [scored.score for scored in answer.scored],
            "calibrated": [scored.calibrated for scored in answer.scored],
        }
        return scores | self._beside(answer)

    def _openrlhf(self, answer: Answer) -> dict[str, Any]:
        """rewards are raw scores; scores lie in [0, 1], as OpenRLHF's dynamic filtering wants them.

        extra_logs stays empty: OpenRLHF 0.8 cannot read lists there, and an answer over HTTP has nothing else.
        """
        scores = {
            "rewards": [scored.score for scored in answer.scored],
            "scores": [scored.calibrated for scored in answer.scored],
            "extra_logs": {},
        }
        return scores | self._beside(answer)

    def _beside(self, answer: Answer) -> dict[str, Any]:
        """What both contracts tell of each text beside its score."""
        spread = {"spread": [scored.spread for scored in answer.scored]}
        return {
            **(spread if self.scorer.num_members > 1 else {}),
            "num_tokens": [row.num_tokens for row in answer.rows],
            "truncated": [row.is_truncated for row in answer.rows],
            "hashes": answer.hashes,
        }


def reward_app(service: RewardService) -> FastAPI:
    """The ASGI application of a service."""
    app = FastAPI(title="crestline reward-serve", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/score", service.score, methods=["POST"], response_model=None)
    app.add_api_route("/get_reward", service.reward, methods=["POST"], response_model=None)
    app.add_api_route("/health", service.health, methods=["GET"], response_model=None)
    app.add_api_route("/metrics", service.metrics, methods=["GET"], response_model=None)
    paths = "POST /score, POST /get_reward, GET /health, GET /metrics"

    async def no_such_place(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        line = f"{request.method} {request.url.path}: {error.detail.lower()}; there are {paths}"
        return refusal(error.status_code, line, dict(error.headers or {}))

    async def broken(request: Request, error: Exception) -> Response:
        return refusal(500, f"internal error ({type(error).__name__}); the server's log has more")

    app.add_exception_handler(HTTPException, no_such_place)
    app.add_exception_handler(Exception, broken)
    return app


def batch_tokens(device: str) -> int:
    """Tokens that a device scores best together."""
    return BATCH_TOKENS.get(device.partition(":")[0], BATCH_TOKENS["cpu"])


def refusal(status: int, line: str, headers: dict[str, str] | None = None) -> Response:
    """An answer without scores: one line that says why."""
    return JSONResponse({"error": line}, status, headers)


async def body_of(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises Refused (413) if it is larger than max_bytes, TimeoutError if it does not come."""
    chunks: list[bytes] = []
    num_bytes = 0
    async with asyncio.timeout(READ_SECONDS):
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes <= max_bytes:
                chunks.append(chunk)
            elif num_bytes > 4 * max_bytes:
                break  # until here it is read and thrown away, so that the client hears why
    if num_bytes > max_bytes:
        raise Refused(413, f"the body is larger than {max_bytes} bytes; send fewer texts at a time")
    return b"".join(chunks)


async def unless_gone(request: Request, ticket: Ticket[Row, Scored]) -> list[Scored]:
    """The results of a ticket. Raises ClientDisconnect as soon as nobody waits for them."""
    gone = asyncio.ensure_future(request.receive())  # after the body only the end can come
    try:
        either: set[asyncio.Future[Any]] = {ticket.answered, gone}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not ticket.answered.done():
            raise ClientDisconnect
        return ticket.answered.result()
    finally:
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
