"""RL against functions, mixtures and shaped scores: what is charged, what is kept, what resumes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from crestline.models.load import load_policy, load_tokenizer, save_model
from crestline.models.reward import load_reward_model
from crestline.models.sampler import PolicySampler
from crestline.rewards.configs import RewardSources, Shaping
from crestline.runs.files import read_json, read_jsonl
from crestline.runs.tables import read_table
from crestline.training.configs import Optimization
from crestline.training.rl import rl
from crestline.training.rl_configs import (
    Algorithm,
    Checkpointing,
    Grpo,
    Kl,
    Ppo,
    Reinforce,
    RlConfig,
    Rloo,
    resolved,
)
from crestline.training.seeds import stream
from crestline.types import BadInput, Paused

FUNCTIONS = """
import os

def length(prompts, completions, word, **columns):
    assert len(word) == len(completions) == len(prompts)
    return [float(len(completion[0]["content"])) for completion in completions]

def brevity(completions, prompts):
    return [None if number % 2 else -1.0 for number in range(len(completions))]

def reward_func(queries, prompts, labels):
    assert all(label in query for label, query in zip(labels, queries))
    return {"rewards": [float(query.count("a")) for query in queries]}

def fails(prompts, completions):
    if os.path.exists("mended"):
        return [float(len(completion[0]["content"])) for completion in completions]
    raise RuntimeError("no judge")
"""


@pytest.fixture
def material(task: Path, tmp_path: Path) -> Path:
    """A folder with functions.py and prompts that have other columns."""
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    rows = [json.loads(line) for line in (task / "prompts.jsonl").read_text().splitlines()]
    for row in rows:
        row["word"] = row["label"] = row["prompt"][0]["content"].split()[1]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "prompts.jsonl").write_text(text)
    return tmp_path


def settings(task: Path, folder: Path, **changes: Any) -> RlConfig:
    values: dict[str, Any] = {
        "model_name_or_path": str(task / "base"),
        "dataset_name": str(folder / "prompts.jsonl"),
        "output_dir": str(folder / "run"),
        "num_updates": 6,
        "num_prompts": 4,
        "num_generations": 4,
        "max_completion_length": 6,
        "checkpoints": Checkpointing(distance_step=9.0, num_eval_prompts=4),
        "optimization": Optimization(
            learning_rate=1e-2, lr_scheduler_type="constant", save_updates=2, dtype="float32"
        ),
    }
    return RlConfig(**(values | changes))


def columns_of(folder: Path, update: int) -> dict[str, np.ndarray]:
    rows = read_table(folder / "run/completions" / f"completions_{update:05d}.parquet")
    return {name: np.array(values) for name, values in rows.items()}


def test_without_a_reward_model_the_reference_gives_the_scale(task: Path, material: Path) -> None:
    sources = RewardSources(reward_funcs=f"{material}/functions.py:length")
    rl(settings(task, material, reward_sources=sources))
    rows = columns_of(material, 1)
    assert rows["score"].tolist() == [float(len(text)) for text in rows["completion"]]
    np.testing.assert_allclose(rows["reward"], rows["score"], atol=1e-6)
    scale = read_json(material / "run/calibration.json")
    expected = 1 / (1 + np.exp(-(rows["score"] - scale["mean"]) / scale["temperature"]))
    np.testing.assert_allclose(rows["calibrated"], expected, atol=1e-6)
    first = read_jsonl(material / "run/checkpoints.jsonl")[0]
    assert first["proxy"] == pytest.approx(0.5, abs=0.25)
    assert "rewards/length/mean" not in read_jsonl(material / "run/metrics.jsonl")[0]


def test_a_mixture_of_everyone(task: Path, material: Path) -> None:
    file = f"{material}/functions.py"
    sources = RewardSources(
        reward_funcs=f"{file}:length,{file}:brevity", remote_rm_url=file, reward_weights="2,0.5,1,3"
    )
    judge = str(task / "judge")
    rl(settings(task, material, reward_sources=sources, reward_model_name_or_path=judge))
    rows = columns_of(material, 1)
    prompts = [json.loads(prompt) for prompt in rows["prompt"]]
    learned = load_reward_model(judge).score(prompts, list(rows["completion"]))
    texts = list(rows["completion"])
    said = [prompt[0]["content"] for prompt in prompts]
    expected = [
        2 * raw + 0.5 * len(text) - (n % 2 == 0) + 3 * (text + question).count("a")
        for n, (raw, text, question) in enumerate(zip(learned, texts, said, strict=True))
    ]
    template = load_tokenizer(task / "base").apply_chat_template(
        [{"role": "user", "content": ""}], tokenize=False, add_generation_prompt=True
    )
    expected = [value + 3 * template.count("a") for value in expected]
    np.testing.assert_allclose(rows["score"], expected, atol=1e-4)
    metrics = read_jsonl(material / "run/metrics.jsonl")[0]
    lengths = [len(text) for text in texts]
    assert metrics["rewards/length/mean"] == pytest.approx(np.mean(lengths))
    assert metrics["rewards/length/std"] == pytest.approx(np.std(lengths, ddof=1))
    assert metrics["rewards/brevity/mean"] == -1.0
    assert metrics["rewards/reward_model/mean"] == pytest.approx(np.mean(learned), abs=1e-5)
    assert rows["rewards/brevity"].tolist()[:3] == [-1.0, None, -1.0]


def test_par_compares_with_the_references_own_completions(task: Path, material: Path) -> None:
    config = settings(
        task,
        material,
        reward_model_name_or_path=str(task / "judge"),
        shaping=Shaping(reward_shaping="par", num_reference_completions=3, length_penalty=0.01),
        kl=Kl(beta=0.1),
        num_updates=8,
        checkpoints=Checkpointing(distance_step=0.1, num_eval_prompts=4),
    )
    rl(config)
    asked = [json.loads(line) for line in (material / "prompts.jsonl").read_text().splitlines()]
    rows = columns_of(material, 1)
    held = read_table(material / "run/evaluations/evaluation_00000.parquet")["prompt"]
    train = [row["prompt"] for row in asked if json.dumps(row["prompt"]) not in held]
    reference = load_policy(task / "base").eval()
    sampler = PolicySampler(reference, load_tokenizer(task / "base"), max_completion_length=6)
    judge = load_reward_model(task / "judge")
    for n in range(0, 16, 4):
        prompt = json.loads(rows["prompt"][n])
        place = train.index(prompt)
        seeds = [stream(0, "reference", place, m) for m in range(3)]
        texts = [found.text for found in sampler.sample([prompt] * 3, seeds)]
        references = np.array(judge.score([prompt] * 3, texts))
        gap = (rows["score"][n] - references) / 1.5  # the judge's temperature
        expected = float(np.mean(1 / (1 + np.exp(-gap)))) - 0.01 * rows["num_tokens"][n]
        # the first update has no distance yet, so KL costs nothing
        assert rows["reward"][n] == pytest.approx(expected, abs=1e-3)
    last = load_file(material / "run/checkpoint-8/state.safetensors")
    known = last["source/reference_scores"]
    assert known.shape == (16, 3)
    assert int(known.isnan().any(1).sum()) == 0  # 8 updates of 4 prompts saw all 16


def test_what_runs_out_of_room_is_charged_for_it(task, brief, material: Path) -> None:
    shaping = Shaping(reward_shaping="raw", missing_eos_penalty=0.7, length_penalty=0.01)
    sources = RewardSources(reward_funcs=f"{material}/functions.py:length")
    changed = {"model_name_or_path": str(brief), "num_updates": 1}
    rl(settings(task, material, reward_sources=sources, shaping=shaping, **changed))
    rows = columns_of(material, 1)
    truncated_N = rows["stop"] == "length"
    assert 0 < truncated_N.sum() < 16
    expected = rows["score"] - 0.7 * truncated_N - 0.01 * rows["num_tokens"]
    np.testing.assert_allclose(rows["reward"], expected, atol=1e-5)


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_what_the_source_keeps_resumes_to_the_same_bits(task, material, stop, tmp_path) -> None:
    config = settings(
        task,
        material,
        reward_model_name_or_path=str(task / "judge"),
        shaping=Shaping(reward_shaping="centered", normalize_rewards=True),
        kl=Kl(beta=0.1, kl_target=1e-3),
        num_updates=6,
    )
    rl(config)
    shutil.move(material / "run", material / "whole")

    def progress(update: int, num_updates: int, metrics: Any) -> None:
        if update == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rl(config, progress=progress)
    before = (stop - 1) // 2 * 2
    state = read_json(material / f"run/checkpoint-{before}/trainer.json")["source"]
    assert state["beta"] != 0.1 and state["shaper.count"] == 16 * before
    rl(config)
    for name in ("model/model.safetensors", "checkpoint-6/state.safetensors"):
        found, expected = (load_file(material / side / name) for side in ("run", "whole"))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    metrics, expected_metrics = (
        [
            {key: value for key, value in row.items() if key != "step_seconds"}
            for row in read_jsonl(material / side / "metrics.jsonl")
        ]
        for side in ("run", "whole")
    )
    assert metrics == expected_metrics
    trainers = [
        read_json(material / side / "checkpoint-6/trainer.json") for side in ("run", "whole")
    ]
    assert trainers[0] == trainers[1]


@pytest.mark.parametrize("name", ["length_penalty", "missing_eos_penalty", "reward_clip_range"])
def test_penalties_are_not_presents(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 0, got -0.1"):
        Shaping(**{name: -0.1})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("sampler", "other"), [("ours", "transformers"), ("transformers", "ours")])
def test_the_sampler_that_is_named_samples(
    task: Path, material: Path, sampler: Any, other: str, dtype: Any
) -> None:
    """To the last bit of the log-probabilities, which tells it from the other one, and its arithmetic."""
    given = RewardSources(reward_funcs=f"{material}/functions.py:length")
    learning = Optimization(learning_rate=1e-2, dtype=dtype)
    changed = {"reward_sources": given, "num_updates": 1, "optimization": learning}
    rl(settings(task, material, sampler=sampler, **changed))
    rows = columns_of(material, 1)
    prompts = [json.loads(prompt) for prompt in rows["prompt"]]
    seeds = [stream(0, "sample", 1, n) for n in range(len(prompts))]
    policy, tokenizer = load_policy(task / "base"), load_tokenizer(task / "base")
    found = {}
    for name in (sampler, other):
        engine = PolicySampler(
            policy, tokenizer, max_completion_length=6, engine=name, dtype=getattr(torch, dtype)
        )
        found[name] = [sum(answer.logprobs) for answer in engine.sample(prompts, seeds)]
    assert rows["logprob"].tolist() == found[sampler] != found[other]


def test_ours_is_refused_for_a_model_that_it_does_not_compute(task: Path, material: Path) -> None:
    tokenizer = load_tokenizer(task / "base")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = GPTNeoXConfig(vocab_size=len(tokenizer), intermediate_size=24, **sizes)
    save_model(GPTNeoXForCausalLM(config), tokenizer, material / "neox")
    changed = {
        "model_name_or_path": str(material / "neox"),
        "reward_sources": RewardSources(reward_funcs=f"{material}/functions.py:length"),
        "num_updates": 1,
    }
    with pytest.raises(BadInput, match="--sampler ours does not decode this GPTNeoXForCausalLM"):
        rl(settings(task, material, sampler="ours", **changed))
    assert not (material / "run").exists()
    assert (rl(settings(task, material, **changed)) / "model").is_dir()


def test_a_function_that_fails_pauses_and_the_run_goes_on(task, material, monkeypatch) -> None:
    monkeypatch.chdir(material)
    sources = RewardSources(reward_funcs="functions.py:fails")
    config = settings(task, material, reward_sources=sources)
    with pytest.raises(Paused, match="no judge; mend it and run the same command again"):
        rl(config)
    Path("mended").touch()
    assert (rl(config) / "model").is_dir()


@pytest.mark.parametrize(
    ("sources", "complaint"),
    [
        ({}, "nobody scores: give --reward_model_name_or_path"),
        ({"reward_funcs": "functions.py:none"}, "no function 'none'"),
        ({"reward_funcs": "functions.py:length,functions.py:length"}, "two rewards are called"),
        ({"reward_funcs": "functions.py:length", "reward_weights": "1,2"}, "2 weights for 1"),
    ],
)
def test_bad_input(task, material, monkeypatch, sources, complaint) -> None:
    monkeypatch.chdir(material)
    with pytest.raises(BadInput, match=complaint):
        rl(settings(task, material, reward_sources=RewardSources(**sources)))
    assert not (material / "run").exists()


def test_one_completion_of_one_prompt_is_enough_without_a_group(task, material) -> None:
    sources = RewardSources(reward_funcs=f"{material}/functions.py:length")
    alone = {"num_prompts": 1, "num_generations": 1, "num_updates": 2, "reward_sources": sources}
    rl(settings(task, material, algorithm=Reinforce(), **alone))
    rows = read_jsonl(material / "run/metrics.jsonl")
    assert [row["reward_std"] for row in rows] == [0.0, 0.0]
    assert "frac_reward_zero_std" not in rows[0]  # one alone agrees with nobody


def test_a_critic_that_is_not_there_leaves_no_trace(task, material) -> None:
    sources = RewardSources(reward_funcs=f"{material}/functions.py:length")
    named = Ppo(critic_model_name_or_path=str(material / "nowhere"))
    given = {"reward_sources": sources, "num_updates": 1}
    with pytest.raises(BadInput, match="nowhere"):
        rl(settings(task, material, algorithm=named, **given))
    rl(settings(task, material, algorithm=Ppo(), **given))
    assert len(read_jsonl(material / "run/metrics.jsonl")) == 1


@pytest.mark.parametrize(
    ("algorithm", "flag"),
    [
        (Ppo(), "--normalize_advantages false"),
        (Reinforce(), "--normalize_advantages false"),
        (Rloo(normalize_advantages=True), "--normalize_advantages false"),
        (Grpo(), "--scale_rewards none"),
    ],
)
def test_exact_kl_in_the_reward_wants_advantages_in_its_unit(
    algorithm: Algorithm, flag: str
) -> None:
    kl = Kl(beta=0.1, kl_estimator="exact", kl_place="reward")
    with pytest.raises(BadInput, match=f"--kl_place loss, or {flag}"):
        resolved(RlConfig(kl=kl, algorithm=algorithm))
    resolved(RlConfig(kl=replace(kl, beta=0.0), algorithm=algorithm))
    resolved(RlConfig(kl=replace(kl, kl_place="loss"), algorithm=algorithm))
    name = "scale_rewards" if isinstance(algorithm, Grpo) else "normalize_advantages"
    undivided = replace(algorithm, **{name: "none" if name == "scale_rewards" else False})
    resolved(RlConfig(kl=kl, algorithm=undivided))
