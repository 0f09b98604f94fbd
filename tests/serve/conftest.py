"""Tiny reward models on disk, and services around them that answer in this process."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from crestline.models.load import save_model
from crestline.models.reward import load_reward_model
from crestline.models.tokenizer import train_tokenizer
from crestline.serve.app import RewardService, reward_app
from crestline.serve.configs import RewardServeConfig
from crestline.serve.scoring import TextScorer

MAX_LENGTH = 48


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


def save_reward_model(folder: Path, **changes: Any) -> Path:
    """A two-layer Llama whose head says something, with a calibration."""
    tokenizer = train_tokenizer(["The cat sat on the mat.", "Why did the hen cross?"] * 5, 290)
    torch.manual_seed(0)
    config = LlamaConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "initializer_range": 0.15,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "num_labels": 1,
            **changes,
        }
    )
    config.crestline = {"mean": 0.3, "temperature": 0.7, "max_length": MAX_LENGTH}
    save_model(LlamaForSequenceClassification(config), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("reward") / "model")


@pytest.fixture(scope="session")
def small_embedding_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose embedding lacks the last tokens of its tokenizer: texts that have them cannot be scored."""
    folder = tmp_path_factory.mktemp("broken") / "model"
    return save_reward_model(folder, vocab_size=275)


Story = Callable[[httpx.AsyncClient], Awaitable[None]]


class Served:
    """A service whose scoring thread runs only while `scoring` is entered."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        config = RewardServeConfig(model_name_or_path=str(folder), **settings)
        self.reward_model = load_reward_model(folder)
        self.service = RewardService(TextScorer(self.reward_model), config, device="cpu")
        self.app = reward_app(self.service)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        thread = threading.Thread(target=self.service.queue.run)
        thread.start()
        try:
            yield
        finally:
            self.service.queue.abandon()
            thread.join()

    def tell(self, story: Story) -> None:
        """Play a story against the application, without sockets."""

        async def play() -> None:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                await story(client)

        asyncio.run(play())


@pytest.fixture(scope="session")
def serving(reward_folder: Path) -> Callable[..., Served]:
    """serving(max_queue=3): a service with these settings on the tiny reward model, or on another `folder`."""

    def make(folder: Path = reward_folder, **settings: Any) -> Served:
        return Served(folder, **settings)

    return make
