import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

from crestline.models.lora import with_adapters
from crestline.training.batches import Mean, TokenBatch
from crestline.training.configs import Lora, Optimization
from crestline.training.imitation import imitation_loss
from crestline.training.learner import (
    Learner,
    learning_rate,
    only_adapters_drop_out,
    recompute_activations,
)
from crestline.types import Paused

FLOAT32 = Optimization(learning_rate=1e-2, dtype="float32", weight_decay=0.1)


def batch(seed: int) -> TokenBatch:
    tokens = torch.randint(0, 8, (6, 5), generator=torch.Generator().manual_seed(seed))
    trained = torch.ones(6, 5, dtype=torch.bool)
    trained[:, 0] = False
    return TokenBatch(tokens, torch.full((6,), 5), trained, 24)


@pytest.fixture
def learner(tiny_model) -> Learner:
    return Learner(tiny_model(8), FLOAT32, 10)


def weights(learner: Learner) -> dict[str, Tensor]:
    return copy.deepcopy(dict(learner.model.state_dict()))


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def rates(kind: Any, warmup: float = 0.2, count: int = 10) -> list[float]:
    config = Optimization(learning_rate=2.0, lr_scheduler_type=kind, warmup_ratio=warmup)
    return [learning_rate(config, update, count) for update in range(1, count + 1)]


def test_schedules_by_hand() -> None:
    assert rates("constant") == [1.0] + [2.0] * 9
    assert rates("linear") == pytest.approx([1.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25])
    cosine = [1 + math.cos(math.pi * step / 8) for step in range(8)]
    assert rates("cosine") == pytest.approx([1.0, 2.0, *cosine])


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("count", [1, 2, 50])
def test_schedules_stay_between_zero_and_the_peak(kind, warmup, count) -> None:
    found = rates(kind, warmup, count)
    assert all(0 < rate <= 2.0 for rate in found)
    assert max(found) == 2.0
    peak = found.index(2.0)
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)


def test_the_reported_rate_is_the_one_that_steps(tiny_model) -> None:
    config = Optimization(learning_rate=1e-2, dtype="float32", warmup_ratio=0.5)
    learner = Learner(tiny_model(8), config, 4)
    before = weights(learner)
    metrics = learner.update(batch(0), imitation_loss, 1)
    assert metrics["learning_rate"] == 5e-3
    # the first step of Adam moves every weight with a gradient by the learning rate
    name = "lm_head.weight"
    step = (learner.model.state_dict()[name] - before[name]).abs()
    assert float(step.median()) == pytest.approx(5e-3, rel=1e-3)


def test_weights_decay_by_the_rate_of_the_update(tiny_model) -> None:
    config = Optimization(learning_rate=1e-2, dtype="float32", warmup_ratio=0.5)
    free = Learner(tiny_model(8), config, 4)
    decaying = Learner(tiny_model(8), replace(config, weight_decay=0.5), 4)
    before = weights(free)
    for learner in (free, decaying):
        learner.update(batch(0), imitation_loss, 1)
    found = weights(decaying)
    for name, moved in weights(free).items():
        torch.testing.assert_close(found[name], moved - 5e-3 * 0.5 * before[name], msg=name)


def test_it_learns(learner: Learner) -> None:
    losses = [learner.update(batch(0), imitation_loss, 5)["loss"] for _ in range(40)]
    assert losses[-1] < 0.3 * losses[0]
    assert learner.model.training


def poisoned(model: Any, part: TokenBatch) -> tuple[Tensor, dict[str, Mean]]:
    value, metrics = imitation_loss(model, part)
    return value * float("nan"), metrics


def infinite(model: Any, part: TokenBatch) -> tuple[Tensor, dict[str, Mean]]:
    value, metrics = imitation_loss(model, part)
    return value + 1e30 * (value.exp() * 1e30), metrics


@pytest.mark.parametrize("loss", [poisoned, infinite])
def test_what_is_not_finite_pauses_and_leaves_no_trace(learner: Learner, loss, tiny_model) -> None:
    learner.update(batch(0), imitation_loss, 1)
    before, state = weights(learner), copy.deepcopy(learner.state())
    with pytest.raises(Paused, match=r"update 2: loss (nan|inf) .* is not finite"):
        learner.update(batch(1), loss, 2)
    assert same(weights(learner), before)
    assert same(learner.state(), state)
    learner.update(batch(1), imitation_loss, 2)
    untroubled = Learner(tiny_model(8), FLOAT32, 10)
    for update in (1, 2):
        untroubled.update(batch(update - 1), imitation_loss, update)
    assert same(weights(learner), weights(untroubled))


def test_optimiser_state_on_disk_gives_the_same_next_steps(
    learner: Learner, tiny_model, tmp_path: Path
) -> None:
    for update in (1, 2, 3):
        learner.update(batch(update), imitation_loss, update)
    save_file(learner.state(), tmp_path / "optimizer.safetensors")
    save_file(weights(learner), tmp_path / "model.safetensors")
    again = Learner(tiny_model(8, seed=9), FLOAT32, 10)
    again.model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    again.load(load_file(tmp_path / "optimizer.safetensors"))
    for update in (4, 5):
        expected = learner.update(batch(update), imitation_loss, update)
        assert again.update(batch(update), imitation_loss, update) == expected
    assert same(weights(again), weights(learner))
    assert same(again.state(), learner.state())


def test_weights_that_no_gradient_reaches_have_no_state_to_go_on_from(tiny_model) -> None:
    """As the experts that were never asked, or a pooler that nothing reads."""
    learners = []
    for seed in (0, 9):
        model = tiny_model(8, seed)
        model.unread = torch.nn.Linear(2, 2)
        learners.append(Learner(model, FLOAT32, 10))
    learner, again = learners
    learner.update(batch(1), imitation_loss, 1)
    assert not any("unread" in name for name in learner.state())
    again.model.load_state_dict(weights(learner))
    again.load(copy.deepcopy(learner.state()))
    expected = learner.update(batch(2), imitation_loss, 2)
    assert again.update(batch(2), imitation_loss, 2) == expected
    assert same(weights(again), weights(learner))
    assert same(again.state(), learner.state())


def test_gradients_are_clipped_and_their_norm_told(tiny_model) -> None:
    free = Learner(tiny_model(8), Optimization(dtype="float32", max_grad_norm=1e9), 10)
    held = Learner(tiny_model(8), Optimization(dtype="float32", max_grad_norm=0.01), 10)
    norms = [one.update(batch(0), imitation_loss, 1)["grad_norm"] for one in (free, held)]
    assert norms[0] == norms[1] > 0.1
    moments = [
        torch.cat([v.flatten() for k, v in one.state().items() if k.startswith("exp_avg.")])
        for one in (free, held)
    ]
    # the first moment is a tenth of the gradient after one update
    assert float(moments[0].norm()) == pytest.approx(0.1 * norms[0], rel=1e-4)
    assert float(moments[1].norm()) == pytest.approx(0.1 * 0.01, rel=1e-4)


def test_frozen_weights_stay(tiny_model) -> None:
    model = tiny_model(8)
    model.lm_head.weight.requires_grad_(False)
    learner = Learner(model, FLOAT32, 10)
    before = weights(learner)
    learner.update(batch(0), imitation_loss, 1)
    after = weights(learner)
    assert torch.equal(after["lm_head.weight"], before["lm_head.weight"])
    assert not torch.equal(after["model.norm.weight"], before["model.norm.weight"])


def test_bfloat16_steps_float32_weights_nearly_the_same_way(tiny_model) -> None:
    auto = Learner(tiny_model(8), Optimization(dtype="bfloat16"), 10)
    plain = Learner(tiny_model(8), Optimization(dtype="float32"), 10)
    found, exact = (one.update(batch(0), imitation_loss, 5) for one in (auto, plain))
    assert found["loss"] == pytest.approx(exact["loss"], rel=0.02)
    assert found["loss"] != exact["loss"]
    assert {p.dtype for p in auto.model.parameters()} == {torch.float32}
    assert {v.dtype for v in auto.state().values()} == {torch.float32}
    gradients = [one.state()["exp_avg.lm_head.weight"].flatten() for one in (auto, plain)]
    assert float(torch.cosine_similarity(*gradients, dim=0)) > 0.99


@pytest.fixture
def dropping() -> Any:
    """An OPT, which drops out by rates of its modules, with adapters that add nothing yet."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=8,
        hidden_size=16,
        ffn_dim=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        word_embed_proj_dim=16,
        dropout=0.4,
        attention_dropout=0.4,
        layerdrop=0.4,
    )
    lora = Lora(use_peft=True, lora_r=2, lora_dropout=0.5)
    return with_adapters(OPTForCausalLM(config), lora, task="policy", seed=0)


def test_the_backbones_own_dropout_is_off_however_it_is_built(dropping: Any) -> None:
    expected = dropping.eval()(torch.arange(8)[None]).logits
    only_adapters_drop_out(dropping)
    dropping.train()
    for _ in range(3):
        assert torch.allclose(dropping(torch.arange(8)[None]).logits, expected, atol=1e-6)
    rates = {m.p for n, m in dropping.named_modules() if ".lora_dropout." in n}
    assert rates == {0.5}


def test_recomputed_activations_without_dropout_are_those_of_evaluation(dropping: Any) -> None:
    expected = dropping.eval()(torch.arange(8)[None]).logits
    recompute_activations(dropping, dropout=False)
    dropping.train()
    for _ in range(3):
        assert torch.allclose(dropping(torch.arange(8)[None]).logits, expected, atol=1e-6)
