"""Policies that are trained by adapters, activation checkpointing, and accumulation: the same numbers, less memory."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from crestline.crest.configs import WatchConfig
from crestline.models.load import load_policy, load_tokenizer
from crestline.models.lora import with_adapters
from crestline.models.policy import token_logprobs
from crestline.models.reference import Reference
from crestline.models.sampler import PolicySampler
from crestline.pipeline.configs import CrestConfig
from crestline.pipeline.crest import crest
from crestline.rewards.configs import Shaping
from crestline.runs.files import read_jsonl
from crestline.training.batches import TokenBatch, padded
from crestline.training.configs import Lora, Optimization, SftConfig
from crestline.training.imitation import imitation_loss
from crestline.training.learner import Learner
from crestline.training.rl import rl
from crestline.training.rl_configs import Checkpointing, Grpo, Kl, Ppo, RlConfig
from crestline.training.sft import sft

LORA = Lora(use_peft=True, lora_r=4, lora_alpha=8)


def tokens(model: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
    tokens_NT, lengths_N = padded(rows)
    chosen_NT = torch.arange(4)[None] < lengths_N[:, None]
    chosen_NT[:, 0] = False
    return tokens_NT, lengths_N, chosen_NT


@pytest.fixture
def adapted(task: Path) -> Any:
    """A policy whose adapters have moved it."""
    policy = with_adapters(load_policy(task / "base"), LORA, task="policy", seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=generator)
    return policy.eval()


@torch.no_grad()
def test_the_reference_is_the_policy_with_its_adapters_off(task: Path, adapted: Any) -> None:
    plain = load_policy(task / "base").eval()
    asked = tokens(plain)
    expected, moved = token_logprobs(plain, *asked), token_logprobs(adapted, *asked)
    assert float((expected - moved).abs().max()) > 0.05
    adapted.train()
    with Reference(adapted).asked() as model:
        assert not model.training
        torch.testing.assert_close(token_logprobs(model, *asked), expected, atol=1e-5, rtol=1e-5)
    assert adapted.training
    torch.testing.assert_close(token_logprobs(adapted, *asked), moved, atol=1e-5, rtol=1e-5)
    with Reference(plain).asked() as model:
        assert model is plain


def test_asking_the_reference_leaves_gradients_as_they_were(task: Path, adapted: Any) -> None:
    asked = tokens(adapted)

    def gradients(between: Callable[[], None]) -> list[Tensor]:
        adapted.zero_grad(set_to_none=True)
        value = token_logprobs(adapted, *asked).sum()
        between()
        value.backward()
        return [p.grad.clone() for p in adapted.parameters() if p.requires_grad]

    def ask() -> None:
        with torch.no_grad(), Reference(adapted).asked() as model:
            token_logprobs(model, *asked)

    before, after = gradients(lambda: None), gradients(ask)
    assert len(before) == len(after) > 0
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(before, after, strict=True))


def settings(task: Path, folder: Path, **changes: Any) -> RlConfig:
    values: dict[str, Any] = {
        "model_name_or_path": str(task / "base"),
        "reward_model_name_or_path": str(task / "judge"),
        "dataset_name": str(task / "prompts.jsonl"),
        "output_dir": str(folder / "run"),
        "num_updates": 6,
        "num_prompts": 4,
        "num_generations": 4,
        "max_completion_length": 6,
        "lora": LORA,
        "checkpoints": Checkpointing(distance_step=0.05, num_eval_prompts=4),
        "optimization": Optimization(
            learning_rate=2e-2, lr_scheduler_type="constant", save_updates=2, dtype="float32"
        ),
    }
    return RlConfig(**(values | changes))


VARIANTS = {
    "rloo, KL exact in the reward": {"kl": Kl(beta=0.1, kl_estimator="exact")},
    "grpo, KL exact in the loss": {
        "algorithm": Grpo(num_iterations=2),
        "kl": Kl(beta=0.1, kl_estimator="exact"),
    },
    "ppo and PAR": {"algorithm": Ppo(), "shaping": Shaping(reward_shaping="par")},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_rl_trains_adapters_and_ships_both(variant: str, task: Path, tmp_path: Path) -> None:
    folder = rl(settings(task, tmp_path, **VARIANTS[variant]))
    base = load_file(task / "base/model.safetensors")
    lines = read_jsonl(folder / "checkpoints.jsonl")
    assert lines[0]["distance"] <= 1e-6 < 0.01 < lines[-1]["distance"]
    adapter = load_file(folder / "checkpoint-6/adapter_model.safetensors")
    assert all("lora" in name for name in adapter)
    assert not (folder / "checkpoint-6/model.safetensors").exists()
    shipped = load_policy(folder / "model").eval()
    by_adapter = load_policy(folder / "adapter").eval()
    asked = tokens(shipped)
    with torch.no_grad():
        found, expected = (token_logprobs(model, *asked) for model in (shipped, by_adapter))
        original = token_logprobs(load_policy(task / "base").eval(), *asked)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert float((found - original).abs().max()) > 1e-3
    assert set(load_file(folder / "model/model.safetensors")) == set(base)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_run_of_adapters_resumes_to_the_same_bits(variant, task, tmp_path) -> None:
    config = settings(task, tmp_path, **VARIANTS[variant])
    rl(replace(config, output_dir=str(tmp_path / "whole")))

    def killed(update: int, num_updates: int, metrics: Any) -> None:
        if update == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rl(config, progress=killed)
    rl(config)
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        found, expected = (load_file(tmp_path / side / name) for side in ("run", "whole"))
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_the_crest_ships_the_merged_model_and_the_adapter(task: Path, tmp_path: Path) -> None:
    (tmp_path / "people.py").write_text("def rank(prompt, completions):\n    return [0.0, 1.0]\n")
    rl(settings(task, tmp_path))
    config = CrestConfig(
        run_dir=str(tmp_path / "run"),
        people=f"{tmp_path}/people.py:rank",
        ship_unmeasured=True,
        watch=WatchConfig(num_labels=20),
    )
    update = crest(config).update
    run = tmp_path / "run"
    names = {path.name for path in (run / "model").iterdir()}
    assert "model.safetensors" in names and "README.md" in names
    assert not names & {"state.safetensors", "optimizer.safetensors", "adapter_config.json"}
    merged, kept = (
        load_policy(run / "model").eval(),
        load_policy(run / f"checkpoint-{update}").eval(),
    )
    asked = tokens(merged)
    with torch.no_grad():
        torch.testing.assert_close(token_logprobs(merged, *asked), token_logprobs(kept, *asked))
    assert (run / "adapter/adapter_model.safetensors").exists()


def test_sft_trains_adapters(task: Path, tmp_path: Path) -> None:
    config = SftConfig(
        model_name_or_path=str(task / "base"),
        dataset_name=str(task / "demonstrations.jsonl"),
        output_dir=str(tmp_path / "sft"),
        batch_size=5,
        num_train_epochs=6,
        lora=LORA,
        optimization=Optimization(learning_rate=3e-2, dtype="float32", save_updates=5),
    )
    model = sft(config)
    losses = [row["loss"] for row in read_jsonl(tmp_path / "sft/metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.1
    merged, adapter = load_policy(model).eval(), load_policy(tmp_path / "sft/adapter").eval()
    with torch.no_grad():
        found, expected = (token_logprobs(m, *tokens(m)) for m in (merged, adapter))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    sampler = PolicySampler(merged, load_tokenizer(model), max_completion_length=6)
    assert len(sampler.sample(["Say"], [1])) == 1


# ---- activation checkpointing and accumulation -----------------------------------------------


def batch() -> TokenBatch:
    tokens_NT = torch.randint(0, 12, (8, 9), generator=torch.Generator().manual_seed(0))
    lengths_N = torch.tensor([9, 4, 6, 9, 2, 7, 5, 3])
    trained_NT = torch.arange(9)[None] < lengths_N[:, None]
    trained_NT[:, 0] = False
    return TokenBatch(tokens_NT, lengths_N, trained_NT, int(trained_NT.sum()))


@pytest.mark.parametrize("dropout", [True, False])
def test_checkpointed_activations_give_the_same_update(tiny_model, dropout: bool) -> None:
    found, kept = [], []

    def weighed(tensor: Tensor) -> Tensor:
        kept[-1] += tensor.numel()
        return tensor

    for checkpointing in (False, True):
        config = Optimization(
            learning_rate=1e-2, dtype="float32", gradient_checkpointing=checkpointing
        )
        learner = Learner(tiny_model(12), config, 2, dropout=dropout)
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(weighed, lambda tensor: tensor):
            metrics = learner.update(batch(), imitation_loss, 1)
        assert learner.model.training == (dropout or checkpointing)
        found.append((metrics, learner.state()))
    assert kept[1] < 0.7 * kept[0]  # numbers kept for the backward pass
    (plain, moments), (again, other) = found
    assert again == pytest.approx(plain, abs=1e-6, rel=1e-5)
    for name, value in moments.items():
        torch.testing.assert_close(other[name], value, atol=1e-7, rtol=1e-4)


def test_without_dropout_a_checkpointed_model_drops_nothing() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 12}
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model: Any = GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.5, attn_pdrop=0.5))
        config = Optimization(dtype="float32", gradient_checkpointing=checkpointing)
        learner = Learner(model, config, 1, dropout=False)
        found.append(learner.update(batch(), imitation_loss, 1))
    assert found[1] == pytest.approx(found[0], abs=1e-6, rel=1e-5)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_accumulated_gradients_are_those_of_the_whole_batch(tiny_model, size: int) -> None:
    config = Optimization(learning_rate=1e-2, dtype="float32", micro_batch_size=size)
    learner, whole = Learner(tiny_model(12), config, 1), tiny_model(12)
    metrics = learner.update(batch(), imitation_loss, 1)
    value, _ = imitation_loss(whole, batch())
    value.backward()
    norm = torch.stack([p.grad.norm() for p in whole.parameters()]).norm()
    assert metrics["loss"] == pytest.approx(float(value.detach()), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    scale = min(1.0, 1.0 / float(norm))
    for name, parameter in whole.named_parameters():
        moment = learner.state()[f"exp_avg.{name}"]
        torch.testing.assert_close(moment, 0.1 * scale * parameter.grad, atol=1e-8, rtol=1e-4)
