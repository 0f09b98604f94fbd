"""What does serving cost? Texts per second over HTTP against scoring the same texts offline on the same cores.

    python bench/reward_serve.py --quick     about five minutes on two idle cores
    python bench/reward_serve.py --full      more rounds, and 100,000 texts through a small model; about ten minutes;
                                             writes results/reward_serve.json

A 22M encoder (MiniLM, which `make peers` brings) with a random head scores texts of 64
tokens. Served: `crestline reward-serve` in a process of its own, 32 clients in one async process, 16 texts a request,
half of the clients on /score and half on /get_reward, each sending its next request when the answer is there.
Offline: `RewardModel.score` in another process. They alternate; fractions are of neighbours in time.

    serve_fraction_of_offline   served texts/s, without the clients' CPU time (their share of the cores), over offline
    serve_fraction_raw          the same by the clock alone

Every answer's hash is compared with its text's, and its score with the offline score of that text. Whether answers are
lost or crossed is the queue's doing and not the model's: the 100,000 texts go through an encoder of two narrow layers,
which keeps far more requests in flight for each second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peers.conversations import MINILM, require

BENCH = Path(__file__).resolve().parent
CLIENTS, TEXTS_PER_REQUEST, TOKENS_PER_TEXT, TOLERANCE = 32, 16, 64, 1e-4


# ---- what is scored ------------------------------------------------------------------------


def make_model(folder: Path) -> None:
    from crestline.models.reward import new_reward_model

    new_reward_model(MINILM, seed=0, max_length=128).write(folder)


def make_small_model(folder: Path) -> None:
    """The same tokenizer before two narrow layers."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from crestline.models.reward import new_reward_model

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        num_labels=1,
    )
    backbone = folder.with_name(f"{folder.name}-backbone")
    BertForSequenceClassification(config).save_pretrained(backbone)
    tokenizer.save_pretrained(backbone)
    new_reward_model(backbone, seed=0, max_length=128).write(folder)


def make_texts(number: int, seed: int) -> list[tuple[str, str]]:
    """(prompt, completion) pairs, all different, each TOKENS_PER_TEXT tokens with those that the tokenizer adds."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    words = [word for word in sorted(tokenizer.get_vocab()) if re.fullmatch("[a-z]{3,}", word)]
    rng = random.Random(seed)
    pairs = []
    for _ in range(number):
        chosen = rng.choices(words, k=TOKENS_PER_TEXT - 2)
        cut = rng.randint(4, 40)
        pairs.append((" ".join(chosen[:cut]), " " + " ".join(chosen[cut:])))
    lengths = {len(tokenizer(p + c)["input_ids"]) for p, c in pairs[:500]}
    assert lengths == {TOKENS_PER_TEXT}, lengths
    return pairs


# ---- the clients: one async process, run as `--clients` --------------------------------------


class Connection:
    """HTTP/1.1 over one TCP connection, as little of it as a client needs."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port)

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.writer.write(head.encode() + body)
        lines = (await self.reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        length = next(int(h[15:]) for h in lines if h[:15].lower() == b"content-length:")
        return int(lines[0].split()[1]), await self.reader.readexactly(length)


def request_of(path: str, pairs: list[tuple[str, str]]) -> bytes:
    if path == "/score":
        content: dict[str, Any] = {
            "prompts": [p for p, _ in pairs],
            "completions": [c for _, c in pairs],
        }
    else:
        content = {"query": [p + c for p, c in pairs], "prompts": [p for p, _ in pairs]}
        content["labels"] = [None] * len(pairs)
    return json.dumps(content).encode()


async def drive(host: str, port: int, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """All clients until every text has been sent once; what they saw and what they cost."""
    from hashlib import sha256

    starts = iter(range(0, len(pairs), TEXTS_PER_REQUEST))
    scores: list[float | None] = [None] * len(pairs)
    seen = {"crossed": 0, "refused": 0}
    latencies: list[float] = []

    async def client(number: int, connection: Connection) -> None:
        path = ("/score", "/get_reward")[number % 2]
        for start in starts:
            mine = pairs[start : start + TEXTS_PER_REQUEST]
            began = time.perf_counter()
            status, body = await connection.post(path, request_of(path, mine))
            latencies.append(time.perf_counter() - began)
            if status != 200:
                seen["refused"] += 1
                continue
            answer = json.loads(body)
            found = answer["scores" if path == "/score" else "rewards"]
            for n, (pair, digest, score) in enumerate(
                zip(mine, answer["hashes"], found, strict=True)
            ):
                seen["crossed"] += sha256("".join(pair).encode()).hexdigest() != digest
                scores[start + n] = score

    connections = [Connection(host, port) for _ in range(CLIENTS)]
    for connection in connections:
        await connection.open()
    cpu, began = cpu_seconds(), time.perf_counter()
    await asyncio.gather(*(client(n, c) for n, c in enumerate(connections)))
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    for connection in connections:
        connection.writer.close()
    return {
        **seen,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "latencies": sorted(latencies),
        "scores": scores,
    }


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def clients_process(port: int) -> None:
    """A line of pairs in, a line of what the clients saw out, until the input ends."""
    for line in sys.stdin:
        pairs = [tuple(pair) for pair in json.loads(line)]
        print(json.dumps(asyncio.run(drive("127.0.0.1", port, pairs))), flush=True)


# ---- offline: another process, run as `--offline` ---------------------------------------------


def offline_process(folder: Path, threads: int) -> None:
    """A line of pairs in, a line of scores and seconds out, until the input ends."""
    import torch

    from crestline.models.reward import load_reward_model

    torch.set_num_threads(threads)
    reward_model = load_reward_model(folder)
    reward_model.score([""] * 64, ["warm up"] * 64)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        pairs = json.loads(line)
        cpu, began = cpu_seconds(), time.perf_counter()
        scores = reward_model.score([p for p, _ in pairs], [c for _, c in pairs])
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
        print(json.dumps({"scores": scores, "seconds": seconds, "cpu_seconds": cpu}), flush=True)


# ---- the study ------------------------------------------------------------------------------


class Worker:
    """A process of this script that answers JSON lines."""

    def __init__(self, *words: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(self.process.args[2:])} ended")  # type: ignore[union-attr]
        return json.loads(line)

    def ask(self, content: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(content) + "\n")
        self.process.stdin.flush()
        return self.read()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def server(folder: Path, threads: int) -> Iterator[tuple[int, int]]:
    """(port, process id) of `crestline reward-serve`; SIGTERM must end it with exit code 0."""
    command = [sys.executable, "-m", "crestline", "reward-serve", str(folder), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--num_threads", str(threads)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    ready = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:(\d+)", ready)
    if not found:
        sys.exit(f"the server did not start: {ready}")
    try:
        yield int(found.group(1)), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
    assert code == 0, f"the server ended with {code}"


def cpu_seconds_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def study(pairs: list[tuple[str, str]], rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Served and offline by turns, each round on texts of its own."""
    cores = len(os.sched_getaffinity(0))
    size = len(pairs) // rounds
    found = []
    with server(folder, cores) as (port, pid):
        clients = Worker("--clients", port)
        offline = Worker("--offline", folder, "--threads", cores)
        offline.read()
        clients.ask(pairs[:1024])  # warms the server up
        for number in range(rounds):
            texts = pairs[number * size : (number + 1) * size]
            cpu = cpu_seconds_of(pid)
            served = clients.ask(texts)
            served["server_cpu_seconds"] = cpu_seconds_of(pid) - cpu
            found.append(compare(served, offline.ask(texts), cores))
            print(row(number, found[-1]), file=sys.stderr, flush=True)
        clients.end()
        offline.end()
    return found


def compare(served: dict[str, Any], offline: dict[str, Any], cores: int) -> dict[str, Any]:
    """The figures of one round."""
    number = len(offline["scores"])
    pairs = zip(served["scores"], offline["scores"], strict=True)
    differences = [abs(a - b) for a, b in pairs if a is not None]
    without_clients = served["seconds"] - served["cpu_seconds"] / cores
    latencies = served["latencies"]
    return {
        "texts": number,
        "served_texts_per_second": number / served["seconds"],
        "offline_texts_per_second": number / offline["seconds"],
        "fraction_raw": offline["seconds"] / served["seconds"],
        "fraction": offline["seconds"] / without_clients,
        "cpu_fraction": offline["cpu_seconds"] / served["server_cpu_seconds"],
        "client_cpu_ms_per_text": 1000 * served["cpu_seconds"] / number,
        "server_cpu_ms_per_text": 1000 * served["server_cpu_seconds"] / number,
        "latency_p50_seconds": latencies[len(latencies) // 2],
        "latency_p99_seconds": latencies[int(len(latencies) * 0.99)],
        "lost": number - len(differences),
        "refused_requests": served["refused"],
        "crossed": served["crossed"] + sum(d > TOLERANCE for d in differences),
        "largest_difference": max(differences, default=float("nan")),
    }


HEAD = "round   served/s  offline/s  fraction    raw  by CPU  p50 s  p99 s  lost  crossed"


def row(number: object, figures: dict[str, Any]) -> str:
    return (
        f"{number!s:6} {figures['served_texts_per_second']:9.1f} "
        f"{figures['offline_texts_per_second']:10.1f} {figures['fraction']:9.3f} "
        f"{figures['fraction_raw']:6.3f} {figures['cpu_fraction']:7.3f} "
        f"{figures['latency_p50_seconds']:6.2f} {figures['latency_p99_seconds']:6.2f} "
        f"{figures['lost']:5} {figures['crossed']:8}"
    )


def summarise(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    from statistics import median

    def spread(key: str) -> list[float]:
        values = sorted(r[key] for r in rounds)
        return [round(v, 4) for v in (values[0], median(values), values[-1])]

    middle = {key: median(r[key] for r in rounds) for key in rounds[0]}
    return {
        "serve_fraction_of_offline": round(middle["fraction"], 4),
        "serve_fraction_raw": round(middle["fraction_raw"], 4),
        "serve_fraction_by_cpu_time": round(middle["cpu_fraction"], 4),
        "fraction_min_median_max": spread("fraction"),
        "fraction_raw_min_median_max": spread("fraction_raw"),
        "served_texts_per_second": round(middle["served_texts_per_second"], 2),
        "offline_texts_per_second": round(middle["offline_texts_per_second"], 2),
        "client_cpu_ms_per_text": round(middle["client_cpu_ms_per_text"], 4),
        "server_cpu_ms_per_text": round(middle["server_cpu_ms_per_text"], 4),
        "latency_p50_seconds": round(middle["latency_p50_seconds"], 4),
        "latency_p99_seconds": round(middle["latency_p99_seconds"], 4),
        "texts": sum(r["texts"] for r in rounds),
        "lost": sum(r["lost"] for r in rounds),
        "crossed": sum(r["crossed"] for r in rounds),
        "refused_requests": sum(r["refused_requests"] for r in rounds),
        "largest_difference": max(r["largest_difference"] for r in rounds),
        "rounds": len(rounds),
        "clients": CLIENTS,
        "texts_per_request": TEXTS_PER_REQUEST,
        "tokens_per_text": TOKENS_PER_TEXT,
    }


def many_texts(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Are any of very many answers lost or crossed? In rounds, so that no line of a worker holds them all."""
    make_small_model(folder)
    pairs = make_texts(arguments.many, arguments.seed + 1)
    found = summarise(study(pairs, max(1, arguments.many // 10_000), folder))
    kept = ("texts", "lost", "crossed", "refused_requests", "served_texts_per_second")
    return {f"many_{name}": found[name] for name in kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--texts", type=int, default=0, help="0: 4,608 with --quick, else 7,680")
    parser.add_argument("--rounds", type=int, default=0, help="0: 6 with --quick, else 10")
    parser.add_argument("--many", type=int, default=100_000, help="texts through the small model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=None, help="used inside: a port")
    parser.add_argument("--offline", type=Path, default=None, help="used inside: a model folder")
    parser.add_argument("--threads", type=int, default=1, help="used inside")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if arguments.clients is not None:
        clients_process(arguments.clients)
        return
    if arguments.offline is not None:
        offline_process(arguments.offline, arguments.threads)
        return
    require(MINILM)
    rounds = arguments.rounds or (10 if arguments.full else 6)
    number = arguments.texts or (7_680 if arguments.full else 4_608)
    pairs = make_texts(number - number % rounds, arguments.seed)
    print(HEAD, file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="crestline-serve-") as work:
        make_model(Path(work) / "model")
        found = study(pairs, rounds, Path(work) / "model")
        many = many_texts(Path(work) / "small", arguments) if arguments.full else {}
    print("\n".join([HEAD, "-" * len(HEAD), *(row(n, r) for n, r in enumerate(found))]))
    figures = {**summarise(found), **many, "seed": arguments.seed}
    if arguments.full:
        from demo import machine

        figures["machine"] = machine()
        results = BENCH / "results" / "reward_serve.json"
        results.parent.mkdir(exist_ok=True)
        results.write_text(json.dumps({**figures, "each": found}, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
