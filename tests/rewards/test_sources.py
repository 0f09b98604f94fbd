"""Who scores: reward models, functions in two contracts, a server, and their weighted sum."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch

from crestline.models.calibration import Calibration
from crestline.rewards.configs import RewardSources, Shaping
from crestline.rewards.functions import FunctionReward, QueryReward
from crestline.rewards.remote import RemoteReward
from crestline.rewards.shaped import Shaper
from crestline.rewards.sources import Reward, calibration_of
from crestline.types import BadInput, Paused, Prompt

PLAIN = [
    Prompt(text="one", columns={"answer": "a", "level": 1}),
    Prompt(text="two", columns={"answer": "bb"}),
]
CHAT = [Prompt(text=[{"role": "user", "content": "Hi"}], columns={"label": "x"})]


class Template:
    """A tokenizer as far as rendering a prompt goes."""

    chat_template = "there is one"

    def apply_chat_template(self, messages: Any, **_: Any) -> str:
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


def test_a_function_gets_prompts_completions_and_columns() -> None:
    seen: dict[str, Any] = {}

    def score(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        seen.update(prompts=prompts, completions=completions, **columns)
        return [1, None]

    found = FunctionReward(score, "f").judge(PLAIN, ["A", "B"])
    assert found == [1.0, None]
    assert seen == {
        "prompts": ["one", "two"],
        "completions": ["A", "B"],
        "answer": ["a", "bb"],
        "level": [1, None],
    }


def test_a_function_without_columns_gets_those_that_it_names() -> None:
    def score(completions: Any, prompts: Any, answer: Any) -> Any:
        return np.array([len(a) + len(c) for a, c in zip(answer, completions, strict=True)])

    assert FunctionReward(score, "f").judge(PLAIN, ["A", "BB"]) == [2.0, 4.0]


@pytest.mark.parametrize("name", ["function", "who", "prompts", "completions"])
def test_columns_may_have_any_name(name: str) -> None:
    seen: dict[str, Any] = {}

    def score(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        assert completions == ["A"] and prompts == ["one"]
        seen.update(columns)
        return [1.0]

    assert FunctionReward(score, "f").judge([Prompt(text="one", columns={name: "x"})], ["A"]) == [1]
    assert seen == ({} if name in ("prompts", "completions") else {name: ["x"]})


def test_what_a_function_does_to_its_arguments_changes_nothing() -> None:
    prompt = Prompt(text=[{"role": "user", "content": "Hi."}], columns={"tags": ["a"]})

    def score(prompts: Any, completions: Any, tags: Any) -> list[float]:
        lengths = []
        for messages, answer, own in zip(prompts, completions, tags, strict=True):
            messages[0]["content"] = messages[0]["content"].rstrip(".")
            messages.append(answer[0])
            own.append("b")
            lengths.append(float(len(messages) + len(own)))
        return lengths

    assert FunctionReward(score, "f").judge([prompt] * 3, ["A", "B", "C"]) == [4.0] * 3
    assert prompt == Prompt(text=[{"role": "user", "content": "Hi."}], columns={"tags": ["a"]})


def test_chats_are_answered_by_messages_as_in_trl() -> None:
    def score(prompts: Any, completions: Any, **_: Any) -> Any:
        assert prompts == [[{"role": "user", "content": "Hi"}]]
        return torch.tensor([float(len(completion[0]["content"])) for completion in completions])

    assert FunctionReward(score, "f").judge(CHAT, ["Hello"]) == [5.0]


def test_openrlhf_functions_get_whole_texts_and_labels() -> None:
    def reward_func(queries: Any, prompts: Any, labels: Any) -> Any:
        assert queries == ["<user>Hi<assistant>Yo"]
        assert prompts == ["<user>Hi<assistant>"] and labels == ["x"]
        return {"rewards": torch.tensor([[0.5]]), "scores": torch.tensor([1.0]), "extra_logs": {}}

    assert QueryReward(reward_func, "f", Template(), "label").judge(CHAT, ["Yo"]) == [0.5]

    def empty(queries: Any, prompts: Any, labels: Any) -> Any:
        assert labels == ["", ""] and queries == ["oneA", "twoB"]
        return [1.0, 2.0]

    assert QueryReward(empty, "f", Template(), "label").judge(PLAIN, ["A", "B"]) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        ("text", "f: returned str; expected a list of 2 numbers"),
        ([1.0], "f: returned 1 values for 2 completions"),
        ([1.0, "a"], "f: value 1 is 'a'; expected a finite number or None"),
        ([float("nan"), 1.0], "f: value 0 is nan"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused(returned: Any, complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        FunctionReward(lambda prompts, completions: returned, "f").judge(PLAIN, ["A", "B"])


def test_a_dict_without_rewards_is_refused() -> None:
    reward = QueryReward(lambda queries, prompts, labels: {"score": [1]}, "f", Template(), "label")
    with pytest.raises(BadInput, match="f: returned no 'rewards', but score"):
        reward.judge(CHAT, ["Yo"])


def test_a_function_that_fails_pauses_the_run() -> None:
    def score(prompts: Any, completions: Any) -> Any:
        raise RuntimeError("the judge sleeps")

    with pytest.raises(Paused, match="f failed: RuntimeError: the judge sleeps; mend it"):
        FunctionReward(score, "f").judge(PLAIN, ["A", "B"])


def constant(values: Sequence[float | None], name: str) -> FunctionReward:
    def score(prompts: Any, completions: Any) -> Any:
        return list(values)

    score.__name__ = name
    return FunctionReward(score, name)


def test_the_weighted_sum_is_over_those_that_apply() -> None:
    sources = [constant([1.0, None], "first"), constant([10.0, -4.0], "second")]
    reward = Reward(sources, [2.0, 0.5], Calibration(mean=1.0, temperature=3.0))
    found = reward.judge(PLAIN, ["A", "B"])
    assert found.raw == [7.0, -2.0] and found.spread == []
    assert found.parts == {"first": [1.0, None], "second": [10.0, -4.0]}
    assert reward.in_unit([1.0, 4.0])[0] == 0.5
    alone = Reward(sources[1:], [1.0], Calibration())
    assert alone.judge(PLAIN, ["A", "B"]).parts == {}


def test_a_completion_of_which_nobody_says_anything_is_refused() -> None:
    reward = Reward([constant([1.0, None], "f"), constant([2.0, None], "g")], [1, 1], Calibration())
    with pytest.raises(
        BadInput, match="no reward says anything of a completion to the prompt 'two'"
    ):
        reward.judge(PLAIN, ["A", "B"])


def test_the_scale_of_the_reference() -> None:
    values = np.random.default_rng(0).logistic(3.0, 2.0, size=20_000)
    found = calibration_of(values.tolist())
    assert found.mean == pytest.approx(3.0, abs=0.1)
    assert found.temperature == pytest.approx(2.0, abs=0.05)
    assert calibration_of([4.0, 4.0]) == Calibration(4.0, 1.0)
    assert calibration_of([4.0]) == Calibration(4.0, 1.0)


# ---- the client of /get_reward ---------------------------------------------------------------


class Judge(BaseHTTPRequestHandler):
    """Scores a query by its length; the first answers are what `script` says: a status, 1 no JSON, 2 broken off."""

    script: list[int]
    bodies: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append(body)
        status = self.script.pop(0) if self.script else 200
        said: Any = {"rewards": [len(query) for query in body["query"]]}
        data = b"<html>" if status == 1 else json.dumps(said).encode()
        self.send_response(200 if status < 100 else status)
        self.send_header("Content-Length", str(500 if status == 2 else len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def judge() -> Iterator[Callable[..., tuple[RemoteReward, list[dict[str, Any]]]]]:
    """(what the server answers first): a client of a real server, and the bodies that it got."""
    servers = []

    def start(*script: int) -> tuple[RemoteReward, list[dict[str, Any]]]:
        handler = type("Scripted", (Judge,), {"script": list(script), "bodies": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        url = f"http://127.0.0.1:{server.server_port}/get_reward"
        client = RemoteReward(url, Template(), "answer", pauses=(0.01, 0.01))
        return client, handler.bodies  # type: ignore[attr-defined]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_server_is_asked_in_openrlhfs_shape(judge) -> None:
    client, bodies = judge()
    assert client.judge(PLAIN, ["A", "BBB"]) == [4.0, 6.0]
    assert bodies == [
        {"query": ["oneA", "twoBBB"], "prompts": ["one", "two"], "labels": ["a", "bb"]}
    ]


def test_many_texts_are_asked_in_parts(judge) -> None:
    client, bodies = judge()
    found = client.judge(PLAIN * 300, [str(n) for n in range(600)])
    assert found == [float(3 + len(str(n))) for n in range(600)]
    assert [len(body["query"]) for body in bodies] == [256, 256, 88]


def test_a_server_that_breaks_off_is_asked_again(judge) -> None:
    client, bodies = judge(2)
    assert client.judge(PLAIN, ["A", "B"]) == [4.0, 4.0] and len(bodies) == 2
    client, bodies = judge(2, 2, 2)
    with pytest.raises(Paused, match="does not answer: IncompleteRead"):
        client.judge(PLAIN, ["A", "B"])
    assert len(bodies) == 3


def test_a_busy_server_is_asked_again(judge) -> None:
    client, bodies = judge(503, 429)
    assert client.judge(PLAIN, ["A", "B"]) == [4.0, 4.0]
    assert len(bodies) == 3


@pytest.mark.parametrize(
    ("script", "error", "complaint"),
    [
        ([422], BadInput, "answers 422"),
        ([1], BadInput, "answers no JSON"),
        ([500, 500, 500], Paused, "answers 500.*start the server and run the same command again"),
    ],
)
def test_a_server_that_refuses(judge, script, error, complaint) -> None:
    client, bodies = judge(*script)
    with pytest.raises(error, match=complaint):
        client.judge(PLAIN, ["A", "B"])
    assert len(bodies) == len(script)


def test_nobody_listens() -> None:
    client = RemoteReward("http://127.0.0.1:9/get_reward", Template(), "label", pauses=())
    with pytest.raises(
        Paused, match=r"--remote_rm_url http://127\.0\.0\.1:9/get_reward does not answer"
    ):
        client.judge(PLAIN, ["A", "B"])


# ---- shaping ---------------------------------------------------------------------------------


def shaped(scores: Sequence[float], reference: Any = None, **settings: Any) -> list[float]:
    number = len(scores)
    reference_NM = torch.tensor(reference) if reference else torch.zeros(number, 0)
    lengths = torch.arange(1, number + 1)
    truncated = torch.tensor([n == 0 for n in range(number)])
    shaper = Shaper(Shaping(**{"reward_shaping": "raw"} | settings), temperature=2.0)
    assert shaper.compares == bool(reference)
    found = shaper.rewards(torch.tensor(scores), reference_NM, lengths, truncated)
    return [round(value, 4) for value in found.tolist()]


def test_shaping_by_hand() -> None:
    reference = [[0.0, 2.0], [4.0, 4.0]]
    assert shaped([3.0, -1.0]) == [3.0, -1.0]
    assert shaped([3.0, 4.0], reference, reward_shaping="centered") == [2.0, 0.0]
    assert shaped([1.0, 4.0], reference, reward_shaping="par") == [0.5, 0.5]
    assert shaped([3.0, -9.0], reward_clip_range=2.5) == [2.5, -2.5]
    assert shaped([3.0, -1.0], length_penalty=0.5) == [2.5, -2.0]
    assert shaped([3.0, -1.0], missing_eos_penalty=1.0) == [2.0, -1.0]
    # bounds are for scores; what is taken off for length comes after
    everything = shaped([9.0, -1.0], reward_clip_range=2.0, length_penalty=1.0)
    assert everything == [1.0, -3.0]


def test_the_running_scale_is_kept_and_goes_on_from_its_state() -> None:
    batches = [torch.randn(5, generator=torch.Generator().manual_seed(n)) for n in range(4)]
    rest = torch.zeros(5, 0), torch.ones(5), torch.zeros(5, dtype=torch.bool)
    whole = Shaper(Shaping(reward_shaping="raw", normalize_rewards=True), 1.0)
    expected = [whole.rewards(batch, *rest) for batch in batches]
    first, second = (
        Shaper(Shaping(reward_shaping="raw", normalize_rewards=True), 1.0) for _ in range(2)
    )
    found = [first.rewards(batch, *rest) for batch in batches[:2]]
    second.load(json.loads(json.dumps(first.state())))
    found += [second.rewards(batch, *rest) for batch in batches[2:]]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
    seen = torch.cat(batches)
    torch.testing.assert_close(
        expected[-1], (batches[-1] - seen.mean()) / (seen.std() + 1e-4), atol=1e-5, rtol=1e-5
    )


def test_settings_of_sources() -> None:
    given = RewardSources(
        reward_funcs="a.py:f, b.py:g", reward_weights="1,0.5", remote_rm_url="c.py"
    )
    assert given.functions == ["a.py:f", "b.py:g"] and given.weights == [1.0, 0.5]
    assert given.query_function == "c.py:reward_func"
    assert RewardSources(remote_rm_url="c.py:judge").query_function == "c.py:judge"
    assert RewardSources(remote_rm_url="http://x/get_reward").query_function == ""
    with pytest.raises(ValueError, match="reward_weights must be numbers"):
        RewardSources(reward_weights="1,much")
    for wrong in ({"num_reference_completions": 0}, {"reward_clip_range": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
            Shaping(**wrong)
