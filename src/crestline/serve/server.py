"""`crestline reward-serve`: a reward model on a port until a signal stops it.

Owns the process: socket, threads, signals and the lines it prints. The main thread scores; HTTP has a thread of its
own. SIGTERM and Ctrl-C finish what was accepted and refuse what is new; a second one gives up what waits.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import uvicorn

from crestline.models.reward import load_reward_model
from crestline.serve.address import is_local, listen, url
from crestline.serve.app import RewardService, reward_app
from crestline.serve.configs import RewardServeConfig
from crestline.serve.scoring import TextScorer
from crestline.types import BadInput

KEEP_ALIVE_SECONDS = 75
"""An idle connection is kept this long, for trainers that ask once an update."""
MAX_CONNECTIONS = 65536
GRACE_SECONDS = 5
"""After the last answer, connections may take this long to end."""


def reward_serve(config: RewardServeConfig, *, device: str = "cpu") -> None:
    """Serve until SIGTERM, then return; Ctrl-C raises KeyboardInterrupt once everything accepted is answered.

    Raises BadInput if the port is taken or the folder holds no reward model.
    """
    listening = listen(config.host, config.port)
    with listening:
        config = with_key(config)
        reward_model = load_reward_model(
            config.model_name_or_path, device=device, dtype=config.dtype
        )
        scorer = TextScorer(reward_model)
        scorer.warm_up()
        service = RewardService(scorer, config, device=device)
        if not is_local(listening) and not config.api_key:
            warning = "anyone who can reach this machine can use it: give --api_key"
            print(
                f"crestline: warning: --host {config.host}: {warning}", file=sys.stderr, flush=True
            )
        allow_connections()
        server = RewardServer(service, listening)
        with server.signals():
            server.start()
            about = f"{config.model_name_or_path} on {device}, {scorer.description}"
            print(f"ready on {url(listening)}: {about}", flush=True)
            server.serve()
        counts = service.queue.counts
        print(f"stopped after {counts.num_requests} requests, {counts.num_texts} texts", flush=True)
        if server.is_interrupted:
            raise KeyboardInterrupt


def with_key(config: RewardServeConfig) -> RewardServeConfig:
    """The config with the key of the environment, where none is given. Raises BadInput if no header can hold it."""
    key = os.environ.get("CRESTLINE_API_KEY", "").strip()
    try:
        return replace(config, api_key=config.api_key or key)
    except ValueError as error:
        raise BadInput(f"CRESTLINE_API_KEY: {error}") from None


def allow_connections() -> None:
    """Let this process have as many open files as the system allows: a trainer may open thousands of connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, MAX_CONNECTIONS)
    if soft != resource.RLIM_INFINITY and wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class RewardServer:
    """A service on a socket: `start` answers HTTP in a thread, `serve` scores in the caller's until it is stopped."""

    def __init__(self, service: RewardService, listening: socket.socket) -> None:
        self._service, self._listening = service, listening
        self._http = uvicorn.Server(
            uvicorn.Config(
                reward_app(service),
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )
        self._thread = threading.Thread(target=self._answer_http, name="http", daemon=True)
        self._loop = asyncio.new_event_loop()
        self._is_up = threading.Event()
        self._stops: list[int] = []
        self._failure: BaseException | None = None

    @property
    def is_interrupted(self) -> bool:
        """Whether Ctrl-C stopped it, or a second signal did not let it finish."""
        return len(self._stops) > 1 or signal.SIGINT in self._stops

    def start(self) -> None:
        """Begin to answer HTTP."""
        self._thread.start()
        self._is_up.wait()

    def serve(self) -> None:
        """Score until everything accepted before `stop` has been answered."""
        self._service.queue.run()
        self._http.should_exit = True
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Take nothing new and finish the rest; called again, give up the rest. May be called from anywhere."""
        self._stops.append(number)
        queue = self._service.queue
        finish = queue.close if len(self._stops) == 1 else queue.abandon
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(finish)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT stop the server, in the main thread."""

        def stop(number: int, frame: FrameType | None) -> None:
            if not self._stops and (waiting := self._service.queue.num_waiting):
                line = f"crestline: {waiting} texts still to be scored; once more gives them up\n"
                os.write(2, line.encode())
            self.stop(number)

        before: dict[int, Any] = {
            n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _answer_http(self) -> None:
        async def answer() -> None:
            self._is_up.set()
            try:
                await self._http.serve(sockets=[self._listening])
            finally:
                self._service.queue.abandon()  # ends the scoring thread too, if HTTP ended by itself

        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(answer())
        except BaseException as error:
            self._failure = error
