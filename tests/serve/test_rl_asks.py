"""An RL run that is scored by `crestline reward-serve` over HTTP, against the same reward model in this process."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from crestline.models.load import load_tokenizer, save_model
from crestline.models.reward import load_reward_model
from crestline.rewards.configs import RewardSources
from crestline.runs.files import read_json, read_jsonl
from crestline.runs.tables import read_table
from crestline.training.configs import Optimization
from crestline.training.rl import rl
from crestline.training.rl_configs import Checkpointing, RlConfig
from crestline.types import Paused

WORDS = ["cat", "dog", "hen", "fox", "owl", "bee", "ant", "cow", "pig", "rat", "emu", "yak"]


@pytest.fixture
def policy(reward_folder: Path, tmp_path: Path, tiny_llama) -> Path:
    """A language model with the reward model's tokenizer; prompts.jsonl lies beside it."""
    tokenizer = load_tokenizer(reward_folder)
    model = tiny_llama(tokenizer)
    save_model(model, tokenizer, tmp_path / "policy")
    rows = [{"prompt": f"The {word} sat on"} for word in WORDS]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "policy"


@pytest.fixture
def server(reward_folder: Path) -> Iterator[str]:
    """Where the tiny reward model is served by a process of its own."""
    words = [str(reward_folder), "--port", "0", "--num_threads", "1"]
    running = subprocess.Popen(
        [sys.executable, "-m", "crestline", "reward-serve", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert running.stdout is not None
        ready = running.stdout.readline()
        assert ready.startswith("ready on http://"), ready
        yield ready.split()[2].rstrip(":")
    finally:
        running.kill()
        running.communicate()


def settings(policy: Path, url: str) -> RlConfig:
    return RlConfig(
        model_name_or_path=str(policy),
        dataset_name=str(policy.parent / "prompts.jsonl"),
        output_dir=str(policy.parent / "run"),
        reward_sources=RewardSources(remote_rm_url=url),
        num_updates=2,
        num_prompts=4,
        num_generations=4,
        max_completion_length=8,
        checkpoints=Checkpointing(num_eval_prompts=4),
        optimization=Optimization(learning_rate=1e-2, dtype="float32", warmup_ratio=0.0),
    )


def test_scores_over_http_are_those_of_the_reward_model(
    policy: Path, server: str, reward_folder: Path
) -> None:
    run = rl(settings(policy, f"{server}/get_reward"))
    judge = load_reward_model(reward_folder)
    tables = [run / "completions" / f"completions_{n:05d}.parquet" for n in (1, 2)]
    tables += sorted((run / "evaluations").iterdir())
    assert (
        len(tables) == 4
    )  # two updates, and the reference and the last policy on held-out prompts
    for path in tables:
        rows = read_table(path)
        # in OpenRLHF's contract prompt and completion are one text
        asked = [p + c for p, c in zip(rows["prompt"], rows["completion"], strict=True)]
        expected = judge.score([""] * len(asked), asked)
        np.testing.assert_allclose(rows["score"], expected, atol=1e-5)
        assert np.std(rows["score"]) > 1e-3
    rows = read_table(tables[0])
    np.testing.assert_allclose(rows["reward"], rows["score"], atol=1e-6)
    scale, held = read_json(run / "calibration.json"), read_table(tables[2])
    unit = 1 / (1 + np.exp(-(np.array(held["score"]) - scale["mean"]) / scale["temperature"]))
    np.testing.assert_allclose(held["calibrated"], unit, atol=1e-6)
    assert [row["update"] for row in read_jsonl(run / "metrics.jsonl")] == [1, 2]


def test_nobody_at_the_url_pauses(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crestline.rewards.remote.time.sleep", lambda _: None)
    with pytest.raises(
        Paused, match=r"--remote_rm_url http://127\.0\.0\.1:9/get_reward does not answer"
    ):
        rl(settings(policy, "http://127.0.0.1:9/get_reward"))
