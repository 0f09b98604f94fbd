"""Whatever `load_reward_model` opens is served: heads, ensembles, adapters; and what no model can read is named."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from crestline.formulas.ensemble import spread
from crestline.models.calibration import Calibration
from crestline.models.reward import RewardEnsemble, load_reward_model, new_reward_model
from crestline.training.configs import Lora

PROMPTS: list[Any] = ["The cat", [{"role": "user", "content": "Why?"}], ""]
COMPLETIONS = [" sat on the mat.", "To sit.", "log " * 60]


def shaken(reward_model: Any, seed: int) -> Any:
    """The reward model with weights in its head and adapters that say something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in reward_model.model.named_parameters():
            if "score" in name or "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
    return reward_model


def heads(folder: Path, base: Path) -> None:
    made = shaken(new_reward_model(base, seed=1, max_length=40, num_heads=3, aggregate="min"), 1)
    made.put_on_one_scale([0.1, -0.4, 2.0], [1.0, 2.0, 0.5])
    made.calibration = Calibration(0.2, 1.5)
    made.write(folder)


def ensemble(folder: Path, base: Path) -> None:
    members = [
        shaken(new_reward_model(base, seed=s, max_length=length), s)
        for s, length in ((1, 40), (2, 20))
    ]
    members[0].calibration = Calibration(0.5, 2.0)
    RewardEnsemble(members, aggregate="uwo", calibration=Calibration(-1.0, 0.5)).write(folder)


def adapter(folder: Path, base: Path) -> None:
    made = shaken(new_reward_model(base, seed=1, max_length=40, lora=Lora(lora_r=2)), 1)
    made.calibration = Calibration(0.2, 1.5)
    folder.mkdir()
    made.write_adapter(folder)


@pytest.mark.parametrize(("write", "num_members"), [(heads, 3), (ensemble, 2), (adapter, 1)])
def test_every_kind_of_folder_is_served(
    write: Callable[[Path, Path], None],
    num_members: int,
    reward_folder: Path,
    serving: Callable[..., Any],
    tmp_path: Path,
) -> None:
    write(tmp_path / "folder", reward_folder)
    served = serving(tmp_path / "folder")
    offline = load_reward_model(tmp_path / "folder")

    async def story(client: httpx.AsyncClient) -> None:
        content = {"prompts": PROMPTS, "completions": COMPLETIONS}
        answer, health = await asyncio.gather(
            client.post("/score", json=content), client.get("/health")
        )
        assert health.json()["num_members"] == num_members
        found = answer.json()
        wanted = offline.score(PROMPTS, COMPLETIONS)
        np.testing.assert_allclose(found["scores"], wanted, atol=1e-4)
        calibrated = [offline.calibration.score(score) for score in found["scores"]]
        np.testing.assert_allclose(found["calibrated"], calibrated)
        assert found["truncated"] == [False, False, True]
        assert ("spread" in found) == (num_members > 1)
        if num_members > 1:
            apart = spread(offline.member_scores(PROMPTS, COMPLETIONS))
            np.testing.assert_allclose(found["spread"], apart, atol=1e-4)
            rewards = (await client.post("/get_reward", json={"query": ["a"]})).json()
            assert rewards["spread"][0] > 0

    with served.scoring():
        served.tell(story)


def test_a_token_that_the_tokenizer_adds_is_not_doubled(
    reward_folder: Path, serving: Callable[..., Any], tmp_path: Path
) -> None:
    """A query decoded from Llama's tokens begins with its first token; ours adds it again."""
    model = new_reward_model(reward_folder, seed=0, max_length=40)
    tokenizer = model.tokenizer
    tokenizer.bos_token = "<|system|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", tokenizer.bos_token_id)]
    )
    model.write(tmp_path / "model")
    served = serving(tmp_path / "model")
    assert served.reward_model.rows(["cat"], [""])[0].ids[0] == tokenizer.bos_token_id

    async def story(client: httpx.AsyncClient) -> None:
        query = ["<|system|>The cat", "The cat"]
        rewards = (await client.post("/get_reward", json={"query": query})).json()["rewards"]
        wanted = served.reward_model.score(["The cat"], [""])
        np.testing.assert_allclose(rewards, wanted * 2, atol=1e-5)

    with served.scoring():
        served.tell(story)


def test_a_chat_that_the_template_does_not_take_is_named(
    reward_folder: Path, serving: Callable[..., Any]
) -> None:
    served = serving()
    served.reward_model.tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "{% for message in messages %}{{ message.content }}{% endfor %}"
    )

    async def story(client: httpx.AsyncClient) -> None:
        system = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
        content = {"prompts": [system[1:], system], "completions": ["a", "b"]}
        response = await client.post("/score", json=content)
        assert response.status_code == 422
        line = "prompts[1]: the chat template refuses this prompt: no system here"
        assert response.json() == {"error": line}

    with served.scoring():
        served.tell(story)
