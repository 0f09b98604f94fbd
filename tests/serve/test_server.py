"""On real sockets: a process that signals stop, clients that go away, ports that are taken."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from crestline.cli.main import main
from crestline.serve.address import is_local, listen, url
from crestline.serve.configs import RewardServeConfig
from crestline.serve.requests import text_hash
from crestline.serve.server import RewardServer, with_key
from crestline.types import BadInput


@contextmanager
def process(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`crestline reward-serve` on a port of its own, and where to reach it."""
    command = [sys.executable, "-m", "crestline", "reward-serve", str(folder), "--port", "0"]
    running = subprocess.Popen(
        [*command, "--num_threads", "1", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert running.stdout is not None
        ready = running.stdout.readline()
        assert ready.startswith("ready on http://"), ready
        yield running, ready.split()[2].rstrip(":")
    finally:
        running.kill()
        running.communicate()


def wait_until(is_so: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_sigterm_answers_what_was_accepted_and_refuses_what_is_new(reward_folder: Path) -> None:
    texts = [f"The cat number {n} sat" + " on the mat" * 9 for n in range(1500)]
    content = {"prompts": [""] * len(texts), "completions": texts}
    answers: list[httpx.Response] = []
    with process(reward_folder, "--max_batch_tokens", "64") as (running, at):
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{at}/score", json=content, timeout=60))
        )
        asking.start()
        wait_until(lambda: httpx.get(f"{at}/health").json()["queue_length"] == len(texts))
        running.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{at}/health").status_code == 503)
        late = httpx.post(f"{at}/get_reward", json={"query": ["late"]})
        assert late.status_code == 503 and late.json() == {"error": "the server is stopping"}
        asking.join()
        out, err = running.communicate(timeout=30)
    assert answers[0].status_code == 200
    assert answers[0].json()["hashes"] == [text_hash("", text) for text in texts]
    assert running.returncode == 0
    assert out == "stopped after 1 requests, 1500 texts\n"
    assert re.fullmatch(r"crestline: \d+ texts still to be scored; once more gives them up\n", err)


def test_a_client_that_is_slow_does_not_hold_the_stop(reward_folder: Path) -> None:
    with process(reward_folder) as (running, at):
        port = int(at.rpartition(":")[2].strip("/"))
        with socket.create_connection(("127.0.0.1", port)) as slow:
            head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n"
            slow.sendall(head + b'{"prompts"')
            wait_until(lambda: httpx.get(f"{at}/health").json()["queue_length"] == 1)
            running.send_signal(signal.SIGTERM)
            assert slow.recv(4096).startswith(b"HTTP/1.1 503")
            running.communicate(timeout=10)
    assert running.returncode == 0


def test_a_second_ctrl_c_gives_up_what_waits(reward_folder: Path) -> None:
    content = {"query": ["The cat sat" + " on the mat" * 9] * 4000}
    answers: list[httpx.Response] = []
    words = ("--max_batch_tokens", "64", "--host", "0.0.0.0")
    with process(reward_folder, *words) as (running, at):
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{at}/get_reward", json=content, timeout=60))
        )
        asking.start()
        wait_until(lambda: httpx.get(f"{at}/health").json()["num_texts"] > 0)
        running.send_signal(signal.SIGINT)
        wait_until(lambda: httpx.get(f"{at}/health").status_code == 503)
        running.send_signal(signal.SIGINT)
        err = running.communicate(timeout=30)[1]
        asking.join()
    assert answers[0].status_code == 503
    assert running.returncode == 130
    assert err.splitlines()[0] == (
        "crestline: warning: --host 0.0.0.0: anyone who can reach this machine can use it: "
        "give --api_key"
    )
    assert err.splitlines()[-1] == "crestline: interrupted"


@contextmanager
def on_socket(served: Any, *, is_scoring: bool) -> Iterator[str]:
    """The service on a socket of this process; without scoring, what is asked waits."""
    with listen("127.0.0.1", 0) as listening:
        server = RewardServer(served.service, listening)
        server.start()
        thread = threading.Thread(target=server.serve)
        if is_scoring:
            thread.start()
        try:
            yield url(listening)
        finally:
            server.stop()
            server.stop()
            if not is_scoring:
                thread.start()
            thread.join()


def connect(at: str) -> socket.socket:
    host, port = at.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)))


def post(content: Any, path: str = "/score") -> bytes:
    body = json.dumps(content).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def test_texts_of_a_client_that_went_away_are_dropped(serving: Callable[..., Any]) -> None:
    served = serving()
    with on_socket(served, is_scoring=False) as at:
        client = connect(at)
        client.sendall(post({"prompts": ["a"] * 5, "completions": ["b"] * 5}))
        wait_until(lambda: served.service.queue.num_waiting == 5)
        client.close()
        wait_until(lambda: served.service.queue.num_waiting == 0)
        assert served.service.queue.counts.num_dropped_texts == 5
    assert served.service.queue.counts.num_batches == 0


def test_a_client_that_goes_away_in_the_middle_of_its_body(serving: Callable[..., Any]) -> None:
    served = serving()
    with on_socket(served, is_scoring=True) as at:
        client = connect(at)
        client.sendall(post({"prompts": ["a"], "completions": ["b"]})[:-5])
        wait_until(lambda: served.service.queue.num_waiting == 1)
        client.close()
        wait_until(lambda: served.service.queue.num_waiting == 0)
        fine = httpx.post(f"{at}/score", json={"prompts": ["a"], "completions": ["b"]})
        assert fine.status_code == 200


def test_several_requests_on_one_connection_and_at_once(serving: Callable[..., Any]) -> None:
    served = serving()
    with on_socket(served, is_scoring=True) as at, httpx.Client(base_url=at) as client:
        for n in range(5):
            content = {"prompts": [f"{n}"], "completions": ["x"]}
            answer = client.post("/score", json=content).json()
            assert answer["hashes"] == [text_hash(f"{n}", "x")]


def test_a_body_far_too_large_still_hears_why(serving: Callable[..., Any]) -> None:
    served = serving(max_request_bytes=100_000)
    with on_socket(served, is_scoring=True) as at:
        response = httpx.post(f"{at}/score", content=b"x" * 390_000)
        assert response.status_code == 413


def test_what_is_no_http_does_not_end_the_server(serving: Callable[..., Any]) -> None:
    served = serving()
    with on_socket(served, is_scoring=True) as at:
        with connect(at) as client:
            client.sendall(b"\x00\xff not http\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 400")
        assert httpx.get(f"{at}/health").status_code == 200


def test_a_port_in_use_is_told_before_a_model_is_loaded(
    reward_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert main(["reward-serve", str(reward_folder), "--port", port]) == 2
    told = capsys.readouterr().err
    assert told == (
        f"crestline: error: --port {port} is in use on 127.0.0.1; choose another, or 0 for a free one\n"
    )


def test_addresses() -> None:
    with pytest.raises(BadInput, match=r"--host nowhere\.invalid: no such address"):
        listen("nowhere.invalid", 0)
    with pytest.raises(BadInput, match=r"--host 192\.0\.2\.1 is no address of this machine"):
        listen("192.0.2.1", 0)
    with listen("127.0.0.1", 0) as here:
        assert is_local(here) and re.fullmatch(r"http://127\.0\.0\.1:\d+", url(here))
    with listen("0.0.0.0", 0) as everywhere:
        assert not is_local(everywhere)


def test_bad_settings_answer_at_once_and_import_no_torch(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code = f"""
import sys
from crestline.cli.main import main
folder = {str(tmp_path)!r}
assert main(["reward-serve"]) == 2
assert main(["reward-serve", folder + "/nowhere"]) == 2
assert main(["reward-serve", folder + "/empty"]) == 2
assert main(["reward-serve", folder, "--port", "70000"]) == 2
assert main(["reward-serve", folder, "--max_queue", "0"]) == 2
assert main(["reward-serve", folder, "--api_key", "\\u00e9"]) == 2
assert "torch" not in sys.modules and "fastapi" not in sys.modules
"""
    began = time.perf_counter()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stderr.splitlines()
    assert len(lines) == 6
    assert [
        name
        for line, name in zip(
            lines,
            ("--model_name_or_path", "nowhere", "empty", "--port", "--max_queue", "--api_key"),
            strict=True,
        )
        if name not in line
    ] == []
    assert time.perf_counter() - began < 5  # well below a second on an idle machine


@pytest.mark.parametrize(("key", "told"), [("k\u00e9y", "CRESTLINE_API_KEY"), (" abc\n", "")])
def test_a_key_of_the_environment(monkeypatch: pytest.MonkeyPatch, key: str, told: str) -> None:
    """One that no header can hold is refused; spaces around it are no part of it."""
    monkeypatch.setenv("CRESTLINE_API_KEY", key)
    if told:
        with pytest.raises(BadInput, match=told):
            with_key(RewardServeConfig())
    else:
        assert with_key(RewardServeConfig()).api_key == "abc"
        assert with_key(RewardServeConfig(api_key="mine")).api_key == "mine"
