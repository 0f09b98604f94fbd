from pathlib import Path
from typing import Any

import pytest

from crestline.models.load import load_policy, load_tokenizer, save_model
from crestline.models.sampler import PolicySampler
from crestline.models.text import render_prompt, render_scored
from crestline.runs.files import read_jsonl
from crestline.training.configs import Optimization, PretrainConfig, SftConfig
from crestline.training.imitation import ImitationSource
from crestline.training.pretrain import pretrain
from crestline.training.sft import encode_demonstrations, sft
from crestline.types import BadInput, Demonstration

CHAT = [{"role": "user", "content": "Say cat."}]


def settings(task: Path, output_dir: Path, **changes: Any) -> SftConfig:
    values: dict[str, Any] = {
        "model_name_or_path": str(task / "base"),
        "dataset_name": str(task / "demonstrations.jsonl"),
        "output_dir": str(output_dir),
        "num_train_epochs": 0.2,
        "batch_size": 4,
        "optimization": Optimization(learning_rate=1e-2, dtype="float32"),
    }
    return SftConfig(**(values | changes))


def test_prompt_then_completion_then_end(task: Path) -> None:
    tokenizer = load_tokenizer(task / "base")
    chat = Demonstration(prompt=CHAT, completion="cat")
    plain = Demonstration(prompt="Say cat. ", completion="")
    rows, first = encode_demonstrations(tokenizer, [chat, plain], 48)
    assert tokenizer.decode(rows[0]) == "<|user|>Say cat.<|assistant|>cat<|end|>"
    assert tokenizer.decode(rows[0][first[0] :]) == "cat<|end|>"
    assert tokenizer.decode(rows[1][first[1] :]) == "<|end|>"
    # what it trains on is what it will be asked, and what the reward model will read
    assert tokenizer.decode(rows[0][: first[0]]) == render_prompt(tokenizer, CHAT)
    assert tokenizer.decode(rows[0]) == render_scored(tokenizer, CHAT, "cat")


def test_what_is_too_long_loses_the_front_of_its_prompt(task: Path) -> None:
    tokenizer = load_tokenizer(task / "base")
    demonstration = Demonstration(prompt="a b c d e f g h", completion="cat dog")
    [whole], [start] = encode_demonstrations(tokenizer, [demonstration], 48)
    answer = whole[start:]
    [cut], [first] = encode_demonstrations(tokenizer, [demonstration], len(answer) + 3)
    assert cut == whole[-len(answer) - 3 :]
    assert (first, cut[first:]) == (3, answer)
    with pytest.raises(BadInput, match=r"demonstration 1: its completion has \d+ tokens"):
        encode_demonstrations(tokenizer, [demonstration], len(answer))


def test_a_tokenizer_without_an_end_is_refused(task: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(task / "base")
    tokenizer.eos_token = None
    save_model(load_policy(task / "base"), tokenizer, tmp_path / "endless")
    with pytest.raises(
        BadInput, match="endless: the tokenizer has no token that ends a completion"
    ):
        sft(settings(task, tmp_path / "run", model_name_or_path=str(tmp_path / "endless")))
    assert not (tmp_path / "run").exists()


def test_only_the_answer_is_trained() -> None:
    source = ImitationSource([[1, 2, 3, 4], [5, 6]], [2, 1], batch_size=2, seed=0)
    batch, made = source.batch(1)
    trained = {
        tuple(row[:length].tolist()): row[mask].tolist()
        for row, length, mask in zip(
            batch.tokens_NT, batch.lengths_N, batch.trained_NT, strict=True
        )
    }
    assert trained == {(1, 2, 3, 4): [3, 4], (5, 6): [6]}
    assert (batch.num_trained_tokens, made) == (3, {"num_tokens": 6.0})


def test_it_learns_to_answer_and_to_end(task: Path, tmp_path: Path) -> None:
    config = settings(
        task,
        tmp_path / "sft",
        num_train_epochs=30.0,
        batch_size=10,
        optimization=Optimization(learning_rate=3e-2, dtype="float32"),
    )
    folder = sft(config)
    metrics = read_jsonl(tmp_path / "sft/metrics.jsonl")
    assert [row["update"] for row in metrics] == list(range(1, 61))
    assert metrics[-1]["loss"] < 0.3 * metrics[0]["loss"]
    assert metrics[-1]["mean_token_accuracy"] > 0.8
    sampler = PolicySampler(load_policy(folder), load_tokenizer(folder), max_completion_length=10)
    completions = sampler.sample([CHAT] * 50, range(50))
    assert sum(completion.stop == "end" for completion in completions) > 40
    assert sum("cat" in completion.text for completion in completions) > 10


def test_a_base_with_our_role_tokens_gets_our_chat_template(task: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(task / "base")
    tokenizer.chat_template = None
    save_model(load_policy(task / "base"), tokenizer, tmp_path / "bare")
    folder = sft(settings(task, tmp_path / "sft", model_name_or_path=str(tmp_path / "bare")))
    found = load_tokenizer(folder)
    assert render_prompt(found, CHAT) == "<|user|>Say cat.<|assistant|>"


def test_a_base_without_role_tokens_gets_plain_lines(task: Path, tmp_path: Path) -> None:
    base = Path(__file__).parents[3] / "shared/data/models/stories260K"
    if not base.is_dir():
        pytest.skip(f"{base} is not there")
    folder = sft(settings(task, tmp_path / "sft", model_name_or_path=str(base)))
    found = load_tokenizer(folder)
    assert render_prompt(found, CHAT) == "Say cat.\n"
    assert render_scored(found, CHAT, "cat") == "Say cat.\ncat" + found.eos_token


def test_pretraining_makes_a_model_that_knows_its_text(task: Path, tmp_path: Path) -> None:
    config = PretrainConfig(
        text=str(task / "texts.jsonl"),
        output_dir=str(tmp_path / "base"),
        vocab_size=300,
        hidden_size=32,
        num_layers=1,
        num_heads=2,
        max_length=16,
        num_updates=60,
        batch_size=16,
        optimization=Optimization(learning_rate=1e-2, dtype="float32"),
    )
    folder = pretrain(config)
    metrics = read_jsonl(tmp_path / "base/metrics.jsonl")
    assert metrics[-1]["loss"] < 0.3 * metrics[0]["loss"]
    sampler = PolicySampler(load_policy(folder), load_tokenizer(folder), max_completion_length=5)
    texts = [completion.text for completion in sampler.sample([""] * 30, range(30))]
    assert sum(text.startswith("Say ") for text in texts) > 20


def test_pretraining_cuts_long_texts_and_loses_nothing(task: Path, tmp_path: Path) -> None:
    text = " ".join(["cat dog hen"] * 20)
    (tmp_path / "long.txt").write_text(text)
    config = PretrainConfig(
        text=str(tmp_path / "long.txt"),
        output_dir=str(tmp_path / "base"),
        vocab_size=300,
        hidden_size=8,
        num_layers=1,
        num_heads=1,
        max_length=10,
        num_updates=1,
        batch_size=100,
    )
    tokenizer = load_tokenizer(pretrain(config))
    [row] = read_jsonl(tmp_path / "base/metrics.jsonl")
    ids = tokenizer(text)["input_ids"]
    pieces = -(-len(ids) // 8)
    # a batch of 100 goes round the pieces; each has two ends more
    shortest = len(ids) - 8 * (pieces - 1) + 2
    assert 100 * shortest <= row["num_tokens"] <= 100 * 10
    assert row["num_tokens"] > 8 * 100
