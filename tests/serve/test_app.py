"""The two contracts, health and refusals, against a real tiny reward model."""

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crestline.serve.requests import text_hash

PROMPTS: list[Any] = [
    "The cat",
    [{"role": "user", "content": "Why did the hen cross?"}],
    "",
    "The log " * 40,
]
COMPLETIONS = [" sat on the mat.", "To sit on the log.", "", " é 漢字"]


def test_score_is_what_the_model_says(serving: Callable[..., Any]) -> None:
    served = serving()

    async def story(client: httpx.AsyncClient) -> None:
        content = {"prompts": PROMPTS, "completions": COMPLETIONS}
        response = await client.post("/score", json=content)
        assert response.status_code == 200
        answer = response.json()
        assert list(answer) == ["scores", "calibrated", "num_tokens", "truncated", "hashes"]
        np.testing.assert_allclose(
            answer["scores"], served.reward_model.score(PROMPTS, COMPLETIONS), atol=1e-5
        )
        by_hand = [1 / (1 + math.exp(-(score - 0.3) / 0.7)) for score in answer["scores"]]
        np.testing.assert_allclose(answer["calibrated"], by_hand, atol=1e-9)
        assert answer["truncated"] == [False, False, False, True]
        assert answer["num_tokens"] == [
            len(served.reward_model.encode(p, c)) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
        ]
        assert answer["num_tokens"][3] == served.reward_model.max_length
        assert answer["hashes"] == [
            text_hash(p, c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
        ]
        assert len(set(answer["scores"])) == 4

    with served.scoring():
        served.tell(story)


def test_a_completion_may_be_a_message_as_in_trl(serving: Callable[..., Any]) -> None:
    served = serving()

    async def story(client: httpx.AsyncClient) -> None:
        messages = [[{"role": "assistant", "content": "To sit."}]]
        plain, chat = [
            (await client.post("/score", json={"prompts": [PROMPTS[1]], "completions": c})).json()
            for c in (["To sit."], messages)
        ]
        assert plain == chat

    with served.scoring():
        served.tell(story)


def test_get_reward_is_openrlhfs_contract(serving: Callable[..., Any]) -> None:
    """What its clients do with the answer: rewards and scores become tensors of one length."""
    served = serving(query_end="</s>")
    queries = ["The cat sat.</s>", "The hen crossed.", "<|user|>Hi<|assistant|>Yo<|end|>"]

    async def story(client: httpx.AsyncClient) -> None:
        content = {"query": queries, "prompts": ["The", "The", "<|user|>Hi<|assistant|>"]}
        response = await client.post("/get_reward", json={**content, "labels": [None, "x", ""]})
        assert response.status_code == 200
        answer = response.json()
        cut = [query.removesuffix("</s>") for query in queries]
        wanted = served.reward_model.score(cut, [""] * 3)
        np.testing.assert_allclose(answer["rewards"], wanted, atol=1e-5)
        chat = served.reward_model.score([[{"role": "user", "content": "Hi"}]], ["Yo"])
        assert answer["rewards"][2] == pytest.approx(chat[0], abs=1e-5)
        assert torch.tensor(answer["rewards"]).shape == torch.tensor(answer["scores"]).shape == (3,)
        assert all(0 < score < 1 for score in answer["scores"])
        assert answer["extra_logs"] == {} and answer["truncated"] == [False] * 3
        assert answer["hashes"] == [text_hash(query, "") for query in cut]
        alone = await client.post("/get_reward", json={"query": queries[:1]})
        assert alone.json()["rewards"] == pytest.approx(answer["rewards"][:1], abs=1e-5)
        empty = await client.post("/get_reward", json={"query": [], "prompts": [], "labels": []})
        assert empty.status_code == 200 and empty.json()["rewards"] == []

    with served.scoring():
        served.tell(story)


def test_many_requests_at_once_get_their_own_scores(serving: Callable[..., Any]) -> None:
    served = serving(max_batch_tokens=256)
    texts = [
        f"The cat number {n} sat on mat {n * 7 % 13}" + " and on" * (n % 9) for n in range(320)
    ]
    wanted = served.reward_model.score([""] * 320, texts)

    async def story(client: httpx.AsyncClient) -> None:
        async def ask(start: int) -> None:
            mine = texts[start : start + 10]
            content = {"prompts": [""] * 10, "completions": mine}
            answer = (await client.post("/score", json=content)).json()
            assert answer["hashes"] == [text_hash("", text) for text in mine]
            np.testing.assert_allclose(answer["scores"], wanted[start : start + 10], atol=1e-5)

        await asyncio.gather(*(ask(start) for start in range(0, 320, 10)))
        told = (await client.get("/metrics")).json()
        assert told["num_texts"] == 320 and told["num_requests"] == 32
        assert told["texts_per_batch"] > 3
        assert 0 < told["latency_p50_seconds"] <= told["latency_p99_seconds"]

    with served.scoring():
        served.tell(story)


def test_a_text_that_cannot_be_scored_fails_alone(
    serving: Callable[..., Any], small_embedding_folder: Path
) -> None:
    """The last tokens of its tokenizer have no embedding: the model raises in the midst of a batch."""
    served = serving(small_embedding_folder)
    tokenizer = served.reward_model.tokenizer
    good, bad = tokenizer.decode([40, 41]), tokenizer.decode([len(tokenizer) - 1])

    async def story(client: httpx.AsyncClient) -> None:
        responses = await asyncio.gather(
            *(
                client.post("/score", json={"prompts": [good, last], "completions": ["", ""]})
                for last in (good, bad, good)
            )
        )
        assert [response.status_code for response in responses] == [200, 500, 200]
        assert responses[1].json()["error"].startswith("completions[1] could not be scored: ")
        query = await client.post("/get_reward", json={"query": [bad]})
        assert query.json()["error"].startswith("query[0] could not be scored: IndexError")
        again = await client.post("/score", json={"prompts": [good], "completions": [""]})
        assert again.status_code == 200
        assert (await client.get("/health")).json()["num_failed_texts"] == 2

    with served.scoring():
        served.tell(story)


def test_a_score_that_is_no_number_is_an_error(serving: Callable[..., Any]) -> None:
    served = serving()
    with torch.no_grad():
        served.reward_model.model.score.weight.fill_(float("nan"))

    async def story(client: httpx.AsyncClient) -> None:
        response = await client.post("/score", json={"prompts": ["a"], "completions": ["b"]})
        assert response.status_code == 500
        assert "completions[0] could not be scored" in response.json()["error"]
        assert "nan" in response.json()["error"]

    with served.scoring():
        served.tell(story)


def test_a_full_queue_says_when_to_come_back(serving: Callable[..., Any]) -> None:
    served = serving(max_queue=3)
    three = {"prompts": ["a"] * 3, "completions": ["b"] * 3}

    async def story(client: httpx.AsyncClient) -> None:
        first = asyncio.ensure_future(client.post("/score", json=three))
        while served.service.queue.num_waiting < 3:
            await asyncio.sleep(0.001)
        refused = await client.post("/get_reward", json={"query": ["x"]})
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert "the queue is full (3 texts)" in refused.json()["error"]
        health = (await client.get("/health")).json()
        assert health["queue_length"] == 3 and health["num_rejected_requests"] == 1
        with served.scoring():
            assert (await first).status_code == 200
        assert served.service.queue.num_waiting == 0

    served.tell(story)


def test_more_texts_than_the_queue_holds_are_too_many(serving: Callable[..., Any]) -> None:
    served = serving(max_queue=3)

    async def story(client: httpx.AsyncClient) -> None:
        response = await client.post("/get_reward", json={"query": ["x"] * 4})
        assert response.status_code == 413 and "send at most 3" in response.json()["error"]
        assert served.service.queue.num_waiting == 0

    served.tell(story)


def test_a_stopping_server_refuses_and_says_so(serving: Callable[..., Any]) -> None:
    served = serving()

    async def story(client: httpx.AsyncClient) -> None:
        assert (await client.get("/health")).json()["status"] == "ready"
        served.service.queue.close()
        response = await client.post("/score", json={"prompts": [], "completions": []})
        assert response.status_code == 503
        assert response.json() == {"error": "the server is stopping"}
        assert response.headers["connection"] == "close"
        health = await client.get("/health")
        assert health.status_code == 503 and health.json()["status"] == "stopping"

    served.tell(story)


def test_a_body_that_is_too_large_is_refused(serving: Callable[..., Any]) -> None:
    served = serving(max_request_bytes=1000)

    async def chunks() -> Any:
        for _ in range(30):
            yield b"x" * 100

    async def story(client: httpx.AsyncClient) -> None:
        for content in (b"x" * 1001, chunks()):
            response = await client.post("/score", content=content)
            assert response.status_code == 413
            assert "larger than 1000 bytes" in response.json()["error"]
        assert served.service.queue.num_waiting == 0

    served.tell(story)


def test_a_key_is_asked_for_where_one_is_set(serving: Callable[..., Any]) -> None:
    served = serving(api_key="secret")
    content = {"prompts": ["a"], "completions": ["b"]}

    async def story(client: httpx.AsyncClient) -> None:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            response = await client.post("/score", json=content, headers=headers)
            assert response.status_code == 401 and "no valid key" in response.json()["error"]
        right = {"Authorization": "Bearer secret"}
        assert (await client.post("/score", json=content, headers=right)).status_code == 200
        assert (await client.get("/health")).status_code == 200

    with served.scoring():
        served.tell(story)


def test_health_says_what_is_served(serving: Callable[..., Any], reward_folder: Path) -> None:
    served = serving()

    async def story(client: httpx.AsyncClient) -> None:
        told = (await client.get("/health")).json()
        assert (told["model"], told["device"]) == (str(reward_folder), "cpu")
        assert (told["num_members"], told["queue_length"]) == (1, 0)
        assert told["max_length"] == served.reward_model.max_length
        assert 0 <= told["uptime_seconds"] < 60

    served.tell(story)


def test_wrong_paths_and_methods_are_told_what_there_is(serving: Callable[..., Any]) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        lost = await client.post("/scores", json={})
        assert lost.status_code == 404 and "POST /score" in lost.json()["error"]
        read = await client.get("/get_reward")
        assert read.status_code == 405 and "POST /get_reward" in read.json()["error"]

    serving().tell(story)


def test_hugely_long_texts_keep_their_end(serving: Callable[..., Any]) -> None:
    served = serving()
    tail = " and the cat sat on the mat." * 10

    async def story(client: httpx.AsyncClient) -> None:
        content = {"prompts": ["", ""], "completions": ["a" * 100_000 + tail, "b" * 100_000 + tail]}
        answer = (await client.post("/score", json=content)).json()
        assert answer["truncated"] == [True, True]
        assert answer["scores"][0] == pytest.approx(answer["scores"][1], abs=1e-5)

    with served.scoring():
        served.tell(story)


bodies = st.binary(max_size=60) | st.dictionaries(
    st.sampled_from(["query", "prompts", "completions"]),
    st.lists(st.text(max_size=5) | st.none() | st.integers() | st.lists(st.text(max_size=3))),
).map(lambda value: json.dumps(value).encode())


@settings(max_examples=60, deadline=None)
@given(body=bodies)
def test_free_form_bodies_never_break_the_server(tiny_served: Any, body: bytes) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        for path in ("/score", "/get_reward"):
            response = await client.post(path, content=body)
            assert response.status_code in (200, 400, 422)
            if response.status_code != 200:
                line = response.json()["error"]
                assert line and len(line.splitlines()) == 1

    tiny_served.tell(story)
    assert tiny_served.service.queue.num_waiting == 0


@pytest.fixture(scope="module")
def tiny_served(serving: Callable[..., Any]) -> Any:
    served = serving()
    with served.scoring():
        yield served
