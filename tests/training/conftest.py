"""Models of a few thousand weights, and a tiny task on disk for the verbs."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from crestline.models.load import load_policy, load_tokenizer, new_llama, save_model
from crestline.models.reward import Calibration, new_reward_model
from crestline.models.tokenizer import train_tokenizer


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


def tiny_config(vocab_size: int, **changes: Any) -> LlamaConfig:
    settings = {
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
        "initializer_range": 0.4,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": vocab_size - 1,
    }
    return LlamaConfig(**(settings | changes))


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """(vocab_size, seed): a Llama far from uniform; its last token is the end."""

    def build(vocab_size: int, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(tiny_config(vocab_size, pad_token_id=None))
        model.set_attn_implementation("eager")
        return model.eval()

    return build


@pytest.fixture(scope="session")
def tiny_scorer() -> Callable[[int], Any]:
    """(vocab_size): a Llama with a head of one label."""

    def build(vocab_size: int) -> Any:
        torch.manual_seed(0)
        model: Any = LlamaForSequenceClassification(tiny_config(vocab_size, num_labels=1))
        model.set_attn_implementation("eager")
        return model.eval()

    return build


@dataclass(frozen=True)
class Enumeration:
    """Every completion of one prompt: what the tests know without sampling."""

    prompt: list[int]
    completions: list[tuple[int, ...]]

    def logprobs(self, model: Any, temperature: float = 1.0) -> list[Tensor]:
        """Of each token of each completion, one plain forward pass for each."""
        found = []
        for completion in self.completions:
            ids = torch.tensor([[*self.prompt, *completion]])
            logits = model(ids).logits[0, len(self.prompt) - 1 : -1] / temperature
            chosen = torch.tensor(completion)[:, None]
            found.append(logits.log_softmax(-1).gather(1, chosen)[:, 0])
        return found


@pytest.fixture(scope="session")
def every_completion() -> Callable[..., Enumeration]:
    """(prompt, vocab_size, length, end): all completions of at most so many tokens."""

    def enumerate_all(
        prompt: Sequence[int], vocab_size: int, length: int, end: int | None
    ) -> Enumeration:
        whole: list[tuple[int, ...]] = []
        open_ones: list[tuple[int, ...]] = [()]
        for _ in range(length):
            longer = [(*row, token) for row in open_ones for token in range(vocab_size)]
            whole += [row for row in longer if row[-1] == end]
            open_ones = [row for row in longer if row[-1] != end]
        return Enumeration(list(prompt), whole + open_ones)

    return enumerate_all


ANIMALS = "cat dog hen fox owl bee ant cow pig rat emu yak elk ape bat cod eel fly gnu jay"
WORDS = ANIMALS.split()


def ask(word: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Say {word}."}]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def ranking_row(word: str, number: int) -> dict[str, Any]:
    texts = [f"{word} {word}", word, "no"][: 2 + number % 2]
    ranks = [0, 1, [1, 2, None][number % 3]][: len(texts)]
    answers = [
        {"rank": rank, "completion": [{"role": "assistant", "content": text}]}
        for rank, text in zip(ranks, texts, strict=True)
    ]
    return {"context": ask(word), "completions": answers}


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base/, judge/, texts.jsonl, demonstrations.jsonl, prompts.jsonl, rankings.jsonl, and
    held_rankings.jsonl, which has other prompts."""
    folder = tmp_path_factory.mktemp("task")
    texts = [f"Say {word}. {word} {word}!" for word in WORDS]
    write_rows(folder / "texts.jsonl", [{"text": text} for text in texts])
    write_rows(
        folder / "demonstrations.jsonl",
        [{"prompt": ask(w), "completion": [{"role": "assistant", "content": w}]} for w in WORDS],
    )
    write_rows(folder / "prompts.jsonl", [{"prompt": ask(word)} for word in WORDS])
    write_rows(folder / "rankings.jsonl", [ranking_row(word, n) for n, word in enumerate(WORDS)])
    held = [{**ranking_row(w, n), "context": ask(f"{w} again")} for n, w in enumerate(WORDS)]
    write_rows(folder / "held_rankings.jsonl", held)
    tokenizer = train_tokenizer(texts, 300)
    base = new_llama(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_layers=1,
        num_heads=2,
        intermediate_size=48,
        max_position=48,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        seed=0,
    )
    save_model(base, tokenizer, folder / "base")
    judge = new_reward_model(folder / "base", seed=0, max_length=40)
    with torch.no_grad():
        judge.model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    typical = judge.score([ask(word) for word in WORDS], [f"{word}!" for word in WORDS[::-1]])
    judge.calibration = Calibration(round(sum(typical) / len(typical), 1), 1.5)
    judge.write(folder / "judge")
    return folder


@pytest.fixture(scope="session")
def brief(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The task's base, for which every sixth token ends a completion; the base itself hardly ever ends one."""
    folder: Path = tmp_path_factory.mktemp("brief") / "base"
    model = load_policy(task / "base")
    model.generation_config.eos_token_id = list(range(0, model.config.vocab_size, 6))
    save_model(model, load_tokenizer(task / "base"), folder)
    return folder
