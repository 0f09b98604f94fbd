"""The choosing verb on tiny models: what it writes, what it does not do twice, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crestline.data.formats import read_demonstrations, read_samples
from crestline.models.load import load_tokenizer, save_model
from crestline.models.reward import load_reward_model, new_reward_model
from crestline.models.tokenizer import train_tokenizer
from crestline.pipeline.best_of_n import best_of_n
from crestline.pipeline.configs import BestOfNConfig, SampleConfig
from crestline.pipeline.sample import sample
from crestline.rewards.configs import RewardSources
from crestline.runs.files import read_json, read_jsonl, write_json, write_jsonl_atomic
from crestline.training.configs import Optimization, SftConfig
from crestline.training.sft import sft
from crestline.types import BadInput, Paused

PROMPTS = [f"The {who} number {n} says" for n, who in enumerate(["fox", "owl", "cat", "hen"] * 15)]
FUNCTIONS = """
import os
CALLS = os.path.join(os.path.dirname(__file__), "calls.txt")

def length(prompts, completions, **columns):
    with open(CALLS, "a") as file:
        file.write(f"{len(completions)}\\n")
    return [float(len(c if isinstance(c, str) else c[0]["content"])) for c in completions]

def vowels(prompts, completions, **columns):
    return [sum(c.count(v) for v in "aeiou") / (1 + len(c)) for c in completions]

def near(prompts, completions, wanted, **columns):
    return [-abs(len(c) - w) for c, w in zip(completions, wanted)]

def fails_late(prompts, completions, **columns):
    if os.path.exists(CALLS) and not os.path.exists(CALLS + ".mended"):
        raise RuntimeError("gone home")
    return length(prompts, completions)

def silent(prompts, completions, **columns):
    return [None] * len(completions)
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory, tiny_llama) -> Path:
    """A folder with a policy, two reward models, prompts, samples and functions."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("best")
    rows = [{"prompt": text, "wanted": 3 + n % 5} for n, text in enumerate(PROMPTS)]
    write_jsonl_atomic(folder / "prompts.jsonl", rows)
    tokenizer = train_tokenizer((f"{p} hello." for p in PROMPTS), 280)
    model = tiny_llama(tokenizer, 64)
    save_model(model, tokenizer, folder / "policy")
    for seed, name in ((1, "reward"), (2, "other")):
        new_reward_model(folder / "policy", seed=seed, max_length=64).write(folder / name)
    (folder / "rewards.py").write_text(FUNCTIONS)
    sample(
        SampleConfig(
            model_name_or_path=str(folder / "policy"),
            dataset_name=str(folder / "prompts.jsonl"),
            output_file=str(folder / "samples.jsonl"),
            num_generations=8,
            max_completion_length=8,
        )
    )
    return folder


def settings(task: Path, output: Path, **changes: Any) -> BestOfNConfig:
    given: dict[str, Any] = {
        "model_name_or_path": str(task / "policy"),
        "dataset_name": str(task / "prompts.jsonl"),
        "reward_model_name_or_path": str(task / "reward"),
        "output_file": str(output),
        "num_generations": 8,
        "max_completion_length": 8,
    }
    return BestOfNConfig(**(given | changes))


def from_file(task: Path, output: Path, functions: str, **changes: Any) -> BestOfNConfig:
    """Choosing among the samples by Python functions: no model is loaded."""
    given = {
        "model_name_or_path": "",
        "dataset_name": "",
        "reward_model_name_or_path": "",
        "samples_file": str(task / "samples.jsonl"),
        "reward_sources": RewardSources(
            reward_funcs=",".join(f"{task}/rewards.py:{name}" for name in functions.split(","))
        ),
    }
    return settings(task, output, **(given | changes))


class Stopping:
    """A screen whose progress raises after so many steps of a stage, as Ctrl-C does."""

    def __init__(self, stage: str, steps: int) -> None:
        self.stage_name, self.steps = stage, steps

    def say(self, text: str) -> None: ...

    def stage(self, name: str, text: str) -> Callable[[int, int, Mapping[str, float]], None]:
        def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
            if name == self.stage_name:
                self.steps -= 1
                if not self.steps:
                    raise KeyboardInterrupt

        return progress


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_best_by_the_reward_model_is_written(task: Path, tmp_path: Path) -> None:
    path = best_of_n(settings(task, tmp_path / "best.jsonl", judge=str(task / "other")))
    names = ["best.html", "best.json", "best.jsonl", "best.samples.jsonl", "best.scored.jsonl"]
    assert sorted(files_of(tmp_path)) == names
    samples = read_samples(str(tmp_path / "best.samples.jsonl"))
    assert samples == read_samples(str(task / "samples.jsonl"))  # the sample verb's own
    model, other = load_reward_model(task / "reward"), load_reward_model(task / "other")
    rows = read_jsonl(path)
    for row, (prompt, texts) in zip(rows, samples, strict=True):
        scores = model.score([prompt] * 8, texts)
        best = int(np.argmax(scores))
        assert row["prompt"] == prompt and row["completion"] == texts[best]
        assert row["score"] == pytest.approx(max(scores), abs=1e-5)
        assert row["judge_score"] == pytest.approx(
            other.score([prompt], [texts[best]])[0], abs=1e-5
        )
        assert row["num_generations"] == 8
    figures = read_json(tmp_path / "best.json")
    last = figures["curve"][-1]
    assert figures["is_done"] and last["n"] == 8
    assert last["score"] == pytest.approx(np.mean([row["score"] for row in rows]))
    assert last["judge"] == pytest.approx(np.mean([row["judge_score"] for row in rows]))
    scored = read_jsonl(tmp_path / "best.scored.jsonl")
    everything = [value for row in scored for value in row["scores"]]
    assert figures["curve"][0]["score"] == pytest.approx(np.mean(everything))


def test_sft_learns_from_what_was_chosen(task: Path, tmp_path: Path) -> None:
    """The sft verb takes the rows, for chats too."""
    chat = [
        {"prompt": [{"role": "user", "content": text}], "completions": ["a", "abc", "ab"]}
        for text in PROMPTS[:4]
    ]
    write_jsonl_atomic(tmp_path / "chat.jsonl", chat)
    config = from_file(
        task, tmp_path / "c.jsonl", "length", samples_file=str(tmp_path / "chat.jsonl")
    )
    found = read_demonstrations(str(best_of_n(config)))
    assert [item.completion for item in found] == ["abc"] * 4
    assert found[0].prompt == chat[0]["prompt"]
    plain = best_of_n(from_file(task, tmp_path / "best.jsonl", "vowels"))
    model = sft(
        SftConfig(
            model_name_or_path=str(task / "policy"),
            dataset_name=str(plain),
            output_dir=str(tmp_path / "sft"),
            num_train_epochs=1.0,
            max_length=64,
            optimization=Optimization(dtype="float32"),
        )
    )
    assert load_tokenizer(model) is not None


def test_interrupted_sampling_goes_on(task: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    best_of_n(settings(task, tmp_path / "whole" / "best.jsonl"))
    config = settings(task, tmp_path / "cut" / "best.jsonl")
    with pytest.raises(KeyboardInterrupt):
        best_of_n(config, screen=Stopping("sample", 1))
    assert sorted(files_of(tmp_path / "cut")) == ["best.json", "best.samples.jsonl"]
    assert not read_json(tmp_path / "cut" / "best.json")["is_done"]
    with open(tmp_path / "cut" / "best.samples.jsonl", "a") as file:
        file.write('{"prompt": "torn by a ki')  # as kill -9 may leave it
    (tmp_path / "cut" / ".tmp-best.jsonl-0").write_text('{"half": ')
    before = len(read_jsonl(tmp_path / "cut" / "best.samples.jsonl"))
    assert 0 < before < len(PROMPTS)
    best_of_n(config)
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_interrupted_scoring_goes_on(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crestline.pipeline.best_of_n.COMPLETIONS_PER_WRITE", 100)
    calls = task / "calls.txt"
    calls.unlink(missing_ok=True)
    config = from_file(task, tmp_path / "best.jsonl", "length")
    with pytest.raises(KeyboardInterrupt):
        best_of_n(config, screen=Stopping("score", 2))
    best_of_n(config)
    done = files_of(tmp_path)
    assert sum(map(int, calls.read_text().split())) == 8 * len(PROMPTS)  # none scored twice
    best_of_n(config)  # counts anew, asks nobody
    assert files_of(tmp_path) == done
    assert sum(map(int, calls.read_text().split())) == 8 * len(PROMPTS)


def test_a_function_that_fails_pauses(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crestline.pipeline.best_of_n.COMPLETIONS_PER_WRITE", 200)
    (task / "calls.txt").unlink(missing_ok=True)
    config = from_file(task, tmp_path / "best.jsonl", "fails_late")
    with pytest.raises(Paused, match="gone home"):
        best_of_n(config)
    assert len(read_jsonl(tmp_path / "best.scored.jsonl")) == 25
    (task / "calls.txt.mended").touch()
    best_of_n(config)
    assert len(read_jsonl(tmp_path / "best.jsonl")) == len(PROMPTS)


def test_columns_weights_and_a_judging_function(task: Path, tmp_path: Path) -> None:
    """Columns of the prompts reach functions; the sum is weighted; the judge is a function."""
    sources = RewardSources(
        reward_funcs=f"{task}/rewards.py:near,{task}/rewards.py:vowels", reward_weights="1,0.001"
    )
    config = from_file(
        task,
        tmp_path / "best.jsonl",
        "near",
        dataset_name=str(task / "prompts.jsonl"),
        reward_sources=sources,
        judge=f"{task}/rewards.py:length",
    )
    samples = read_samples(str(task / "samples.jsonl"))
    for n, row in enumerate(read_jsonl(best_of_n(config))):
        texts, wanted = samples[n][1], 3 + n % 5
        assert abs(len(row["completion"]) - wanted) == min(abs(len(t) - wanted) for t in texts)
        assert row["judge_score"] == len(row["completion"])


def test_samples_of_different_number(task: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completions": ["x", "xxx", "xx"]},
        {"prompt": "b", "completions": ["y", ""]},
    ]
    write_jsonl_atomic(tmp_path / "samples.jsonl", rows)
    config = from_file(
        task, tmp_path / "best.jsonl", "length", samples_file=str(tmp_path / "samples.jsonl")
    )
    chosen = read_jsonl(best_of_n(config))
    assert [(row["completion"], row["num_generations"]) for row in chosen] == [("xxx", 3), ("y", 2)]
    curve = read_json(tmp_path / "best.json")["curve"]
    assert [row["score"] for row in curve] == [
        pytest.approx((2 + 0.5) / 2),
        pytest.approx((8 / 3 + 1) / 2),
    ]


def refused(config: BestOfNConfig, match: str) -> None:
    """Bad input: one line, and the folder is as it was."""
    folder = Path(config.output_file).parent
    before = files_of(folder)
    with pytest.raises(BadInput, match=match):
        best_of_n(config)
    assert files_of(folder) == before


def test_bad_input_leaves_no_trace(task: Path, tmp_path: Path) -> None:
    out = tmp_path / "best.jsonl"
    refused(settings(task, out, model_name_or_path=""), "--model_name_or_path is missing")
    refused(settings(task, out, dataset_name=""), "--dataset_name is missing")
    refused(settings(task, out, reward_model_name_or_path=""), "nobody scores")
    refused(
        settings(task, out, reward_model_name_or_path=str(task / "policy")), "no trained reward"
    )
    refused(settings(task, out, max_completion_length=200), "--max_completion_length")
    refused(settings(task, tmp_path / "best.json"), r"ends in \.jsonl")
    refused(from_file(task, out, "silent"), "no reward says anything")
    refused(from_file(task, out, "length", judge=f"{task}/rewards.py:silent"), "no reward says")
    refused(from_file(task, out, "length", judge=f"{task}/rewards.py:nobody"), "'nobody'")
    remote = RewardSources(remote_rm_url="http://127.0.0.1:9/get_reward")
    refused(from_file(task, out, "length", reward_sources=remote), "chat template")
    for given in ("1,2", "1"):
        sources = RewardSources(
            reward_funcs=f"{task}/rewards.py:length,{task}/rewards.py:vowels,{task}/rewards.py:near",
            reward_weights=given,
        )
        refused(from_file(task, out, "length", reward_sources=sources), "--reward_weights")
    lone = tmp_path / "lone.jsonl"
    write_jsonl_atomic(lone, [{"prompt": "a", "completions": ["x"]}])
    refused(from_file(task, out, "length", samples_file=str(lone)), "needs at least two")
    prompts = str(task / "prompts.jsonl")
    refused(
        from_file(task, out, "length", samples_file=str(lone), dataset_name=prompts), "least two"
    )
    pair = tmp_path / "pair.jsonl"
    write_jsonl_atomic(pair, [{"prompt": "a", "completions": ["x", "y"]}])
    refused(
        from_file(task, out, "length", samples_file=str(pair), dataset_name=prompts), "1 prompts"
    )
    other = [{"prompt": "a", "completions": ["x", "y"]} for _ in PROMPTS]
    write_jsonl_atomic(pair, other)
    refused(
        from_file(task, out, "length", samples_file=str(pair), dataset_name=prompts), "sample 1"
    )


def test_another_file_is_not_taken_over(task: Path, tmp_path: Path) -> None:
    (tmp_path / "best.jsonl").write_text('{"prompt": "mine"}\n')
    refused(from_file(task, tmp_path / "best.jsonl", "length"), "choose another --output_file")
    (tmp_path / "best.json").write_text('{"mine": 1}')
    refused(from_file(task, tmp_path / "best.jsonl", "length"), "is not of best-of-n")


def test_other_settings_are_refused(task: Path, tmp_path: Path) -> None:
    config = from_file(task, tmp_path / "best.jsonl", "length")
    best_of_n(config)
    refused(from_file(task, tmp_path / "best.jsonl", "vowels"), "begun with reward_funcs")
    rows = read_jsonl(tmp_path / "best.scored.jsonl")
    rows[3]["completions"][0] = "another"
    write_jsonl_atomic(tmp_path / "best.scored.jsonl", rows)
    refused(config, "scores of other samples")
    (tmp_path / "best.scored.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n")
    refused(config, "not written by best-of-n")


def test_settings_that_an_older_version_did_not_know_are_their_defaults(
    task: Path, tmp_path: Path
) -> None:
    config = from_file(task, tmp_path / "best.jsonl", "length")
    best_of_n(config)
    whole, known = files_of(tmp_path), read_json(tmp_path / "best.json")
    older = {k: v for k, v in known["settings"].items() if k not in ("sampler", "reward_weights")}
    write_json(tmp_path / "best.json", known | {"settings": older})
    refused(replace(config, sampler="ours"), "begun with sampler 'auto', not 'ours'")
    best_of_n(config)
    assert files_of(tmp_path) == whole


def test_the_judge_must_be_somebody_else(task: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="judge must not be"):
        settings(task, tmp_path / "best.jsonl", judge=f"{task / 'reward'}/")
    with pytest.raises(ValueError, match="num_generations must be at least 2"):
        settings(task, tmp_path / "best.jsonl", num_generations=1)


def test_samples_of_another_number_are_not_mixed(task: Path, tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_bytes((task / "samples.jsonl").read_bytes())
    config = SampleConfig(
        model_name_or_path=str(task / "policy"),
        dataset_name=str(task / "prompts.jsonl"),
        output_file=str(tmp_path / "samples.jsonl"),
        num_generations=4,
    )
    with pytest.raises(BadInput, match="8 completions of a prompt, not 4"):
        sample(config)
