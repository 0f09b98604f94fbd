"""DPO against plain transformers, hand numbers and closed forms; invariances; the verb on a tiny task."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from crestline.data.rankings import read_rankings
from crestline.models.load import load_policy, load_tokenizer, save_model
from crestline.models.lora import with_adapters
from crestline.models.reference import Reference
from crestline.runs.files import read_json, read_jsonl
from crestline.training.configs import Lora, Optimization
from crestline.training.direct_preference import (
    DirectBatch,
    DirectSource,
    EncodedRanking,
    dpo_loss,
    encode_rankings,
    implicit_rewards,
    only_ranked,
)
from crestline.training.dpo import dpo
from crestline.training.dpo_configs import DpoConfig, DpoLoss
from crestline.training.reward_configs import Splits
from crestline.training.sft import encode_demonstrations
from crestline.types import BadInput, Demonstration, PromptText, Ranking

CHAT: PromptText = [{"role": "user", "content": "Say cat."}]
PAIRS = [
    EncodedRanking([5, 6, 7], [[1, 2, 9], [3, 9]], (0, 1), 0.0, 0.0),
    EncodedRanking([8], [[4, 4, 4, 4, 9], [9]], (1, 0), 0.0, 0.0),
    EncodedRanking([2, 3], [[4, 1], [4, 2, 9]], (0, 1), 0.0, 0.0),
]
TRIPLES = [
    EncodedRanking([5, 6], [[1, 9], [2, 2, 9], [3, 3, 3, 9]], (1, 0, 2), 0.0, 0.0),
    EncodedRanking([7], [[9], [8, 9], [8, 8, 9]], (0, 1, 1), 0.0, 0.0),
]


def batch_of(rankings: Sequence[EncodedRanking]) -> DirectBatch:
    return DirectBatch(rankings, len(rankings), "cpu")


def plain_logp(model: Any, prompt: list[int], completion: list[int]) -> Tensor:
    """log π(completion | prompt), by one plain forward pass of this row alone."""
    ids = torch.tensor([[*prompt, *completion]])
    logprobs = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logprobs.gather(1, torch.tensor(completion)[:, None]).sum()


def plain_rewards(policy: Any, reference: Any, ranking: EncodedRanking, beta: float) -> Tensor:
    with torch.no_grad():
        expected = [plain_logp(reference, ranking.prompt, ids) for ids in ranking.completions]
    said = [plain_logp(policy, ranking.prompt, ids) for ids in ranking.completions]
    return beta * (torch.stack(said) - torch.stack(expected))


def loss_and_gradients(
    model: Any, reference: Any, rankings: Sequence[EncodedRanking], size: int, **settings: Any
) -> tuple[float, dict[str, Tensor], dict[str, float]]:
    model.zero_grad(set_to_none=True)
    loss = dpo_loss(DpoLoss(**settings), Reference(reference))
    total, sums = 0.0, {}
    for part in batch_of(rankings).parts(size):
        value, metrics = loss(model, part)
        value.backward()
        total += float(value.detach())
        sums = {name: mean + sums[name] if name in sums else mean for name, mean in metrics.items()}
    return total, gradients_of(model), {name: mean.value for name, mean in sums.items()}


def gradients_of(model: Any) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def tiny_gpt2(seed: int) -> Any:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 10, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.4)).eval()


@pytest.fixture(params=["llama", "gpt2"])
def models(request: pytest.FixtureRequest, tiny_model: Callable[..., Any]) -> tuple[Any, Any]:
    """Policy and reference: one that our own forward pass knows, and one that goes through transformers."""
    build = tiny_gpt2 if request.param == "gpt2" else lambda seed: tiny_model(10, seed)
    return build(0), build(1)


def test_two_completions_are_dpo(models: tuple[Any, Any]) -> None:
    policy, reference = models
    found, gradients, metrics = loss_and_gradients(policy, reference, PAIRS, 100, beta=0.3)
    policy.zero_grad(set_to_none=True)
    chosen, rejected = [], []
    for ranking in PAIRS:
        rewards = plain_rewards(policy, reference, ranking, 0.3)
        better = ranking.ranks.index(0)
        chosen.append(rewards[better])
        rejected.append(rewards[1 - better])
    margins = torch.stack(chosen) - torch.stack(rejected)
    expected = -F.logsigmoid(margins).mean()
    expected.backward()
    margins = margins.detach()
    assert found == pytest.approx(float(expected.detach()), abs=1e-5)
    for name, gradient in gradients_of(policy).items():
        torch.testing.assert_close(gradients[name], gradient, atol=2e-6, rtol=1e-4, msg=name)
    assert metrics["rewards/margins"] == pytest.approx(float(margins.mean()), abs=1e-5)
    assert metrics["rewards/chosen"] == pytest.approx(float(sum(chosen).detach()) / 3, abs=1e-5)
    assert metrics["rewards/rejected"] == pytest.approx(float(sum(rejected).detach()) / 3, abs=1e-5)
    assert metrics["rewards/accuracies"] == pytest.approx(float((margins > 0).float().mean()))
    with torch.no_grad():
        logps = [
            plain_logp(policy, r.prompt, r.completions[r.ranks.index(0)]).item() for r in PAIRS
        ]
    assert metrics["logps/chosen"] == pytest.approx(np.mean(logps), abs=1e-4)


def test_the_gradient_is_the_papers(models: tuple[Any, Any]) -> None:
    """−β σ(r(rejected) − r(chosen)) (∇ log π(chosen) − ∇ log π(rejected)), Rafailov et al. 2023, section 4."""
    policy, reference = models
    [pair], beta = PAIRS[:1], 0.7
    _, gradients, _ = loss_and_gradients(policy, reference, [pair], 100, beta=beta)
    with torch.no_grad():
        rewards = plain_rewards(policy, reference, pair, beta)
    weight = beta * float(torch.sigmoid(rewards[1] - rewards[0]))
    toward = []
    for completion in pair.completions:
        policy.zero_grad(set_to_none=True)
        plain_logp(policy, pair.prompt, completion).backward()
        toward.append(gradients_of(policy))
    for name, gradient in gradients.items():
        expected = -weight * (toward[0][name] - toward[1][name])
        torch.testing.assert_close(gradient, expected, atol=2e-6, rtol=1e-4, msg=name)


def test_more_completions_are_all_orders_that_agree(models: tuple[Any, Any]) -> None:
    policy, reference = models
    found, gradients, metrics = loss_and_gradients(policy, reference, TRIPLES, 100, beta=0.5)
    policy.zero_grad(set_to_none=True)
    total, margins = torch.zeros(()), []
    for ranking in TRIPLES:
        rewards = plain_rewards(policy, reference, ranking, 0.5)
        probability = torch.zeros(())
        for order in permutations(range(3)):
            if [ranking.ranks[k] for k in order] == sorted(ranking.ranks):
                weights = rewards[list(order)].exp()
                probability = probability + math.prod(
                    weights[i] / weights[i:].sum() for i in range(3)
                )
        total = total - probability.log() / 2
        margins += [
            float((rewards[i] - rewards[j]).detach())
            for i in range(3)
            for j in range(3)
            if ranking.ranks[i] < ranking.ranks[j]
        ]
    total.backward()
    assert found == pytest.approx(float(total.detach()), abs=1e-5)
    for name, gradient in gradients_of(policy).items():
        torch.testing.assert_close(gradients[name], gradient, atol=2e-6, rtol=1e-4, msg=name)
    assert len(margins) == 3 + 2
    assert metrics["rewards/margins"] == pytest.approx(np.mean(margins), abs=1e-5)
    assert metrics["rewards/accuracies"] == pytest.approx(np.mean(np.array(margins) > 0))


def test_ipo_pulls_to_a_distance(models: tuple[Any, Any]) -> None:
    policy, reference = models
    found, *_ = loss_and_gradients(policy, reference, PAIRS, 100, beta=0.4, loss_type="ipo")
    squares = []
    with torch.no_grad():
        for ranking in PAIRS:
            ratios = plain_rewards(policy, reference, ranking, 1.0)
            better = ranking.ranks.index(0)
            each = [float(r) / len(ids) for r, ids in zip(ratios, ranking.completions, strict=True)]
            squares.append((each[better] - each[1 - better] - 1 / 0.8) ** 2)
    assert found == pytest.approx(np.mean(squares), abs=1e-5)


def test_flips_and_margins_by_hand(tiny_model: Callable[..., Any]) -> None:
    """Where policy and reference are one, every implicit reward is 0."""
    model = tiny_model(10)
    pair = PAIRS[0]
    assert loss_and_gradients(model, model, [pair], 9)[0] == pytest.approx(math.log(2))
    margin = replace(pair, margin=1.5)
    assert loss_and_gradients(model, model, [margin], 9)[0] == pytest.approx(
        math.log(1 + math.exp(1.5)), abs=1e-6
    )
    far, *_ = loss_and_gradients(tiny_model(10, 3), model, [pair], 9, beta=1.0)
    flipped, *_ = loss_and_gradients(
        tiny_model(10, 3), model, [replace(pair, flip_rate=0.1)], 9, beta=1.0
    )
    said = math.exp(-far)
    assert flipped == pytest.approx(-math.log(0.9 * said + 0.1 * (1 - said)), abs=1e-5)


@pytest.mark.parametrize("settings", [{}, {"ties": "equal"}, {"loss_type": "ipo"}], ids=str)
def test_micro_batches_change_nothing(models: tuple[Any, Any], settings: Any) -> None:
    policy, reference = models
    rankings = [PAIRS[0], TRIPLES[0], PAIRS[1], TRIPLES[1], PAIRS[2]]
    assert [len(part.rankings) for part in batch_of(rankings).parts(100)] == [3, 2]
    assert [len(part.rankings) for part in batch_of(rankings).parts(1)] == [1] * 5
    whole, gradients, metrics = loss_and_gradients(policy, reference, rankings, 100, **settings)
    for size in (1, 4):
        found, others, told = loss_and_gradients(policy, reference, rankings, size, **settings)
        assert found == pytest.approx(whole, rel=1e-6, abs=1e-6)
        assert told == pytest.approx(metrics, abs=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, atol=2e-6, rtol=1e-4, msg=name)


def test_implicit_rewards_are_in_the_order_of_the_rankings(models: tuple[Any, Any]) -> None:
    policy, reference = models
    rankings = [TRIPLES[0], *PAIRS, TRIPLES[1]]
    found = implicit_rewards(
        policy, Reference(reference), rankings, beta=0.3, micro_batch_size=4, device="cpu"
    )
    for ranking, rewards in zip(rankings, found, strict=True):
        with torch.no_grad():
            expected = plain_rewards(policy, reference, ranking, 0.3)
        assert rewards == pytest.approx(expected.tolist(), abs=1e-5)


def test_with_adapters_the_reference_is_the_policy_without_them(task: Path) -> None:
    policy = with_adapters(
        load_policy(task / "base"), Lora(use_peft=True, lora_r=4), task="policy", seed=0
    )
    plain = load_policy(task / "base").eval()
    untouched, gradients, metrics = loss_and_gradients(policy, policy, PAIRS, 100)
    assert untouched == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["rewards/accuracies"] == 0.5 and metrics["rewards/margins"] == 0
    assert gradients and all("lora_" in name for name in gradients)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    apart, *_ = loss_and_gradients(policy, policy, PAIRS, 100)
    assert abs(apart - untouched) > 1e-3
    assert loss_and_gradients(policy, plain, PAIRS, 100)[0] == pytest.approx(apart, abs=1e-5)


# ---------------------------------------------------------------- texts


def test_prompt_then_completion_then_end_as_in_fine_tuning(task: Path) -> None:
    tokenizer = load_tokenizer(task / "base")
    rankings = [
        Ranking(prompt=CHAT, completions=("cat", "dog cat"), ranks=(0, 1)),
        Ranking(prompt="Say cat. ", completions=("cat", ""), ranks=(1, 0), margin=0.5),
        Ranking(prompt="", completions=("cat", "cat!"), ranks=(0, 1)),
    ]
    found, cut = encode_rankings(tokenizer, rankings, 48, [0.0, 0.1, 0.0])
    assert (cut.num_prompts, cut.num_completions) == (0, 0)
    for ranking, encoded in zip(rankings, found, strict=True):
        rows = [Demonstration(prompt=ranking.prompt, completion=t) for t in ranking.completions]
        whole, first = encode_demonstrations(tokenizer, rows, 48)
        assert [[*encoded.prompt, *ids] for ids in encoded.completions] == whole
        assert {len(encoded.prompt)} == set(first)
        assert encoded.ranks == ranking.ranks
    assert [(r.margin, r.flip_rate) for r in found] == [(0.0, 0.0), (0.5, 0.1), (0.0, 0.0)]


def test_what_is_too_long_is_cut_alike_and_counted(task: Path) -> None:
    tokenizer = load_tokenizer(task / "base")
    ranking = Ranking(prompt="a b c d e f", completions=("cat", "cat dog hen"), ranks=(0, 1))
    [whole], _ = encode_rankings(tokenizer, [ranking], 48)
    longest = max(map(len, whole.completions))
    [cut], told = encode_rankings(tokenizer, [ranking], longest + 2)
    assert cut.prompt == whole.prompt[-2:] and cut.completions == whole.completions
    assert (told.num_prompts, told.num_completions) == (1, 0)
    [cut], told = encode_rankings(tokenizer, [ranking], longest)
    assert cut.prompt == whole.prompt[-1:]
    assert cut.completions == [whole.completions[0], whole.completions[1][: longest - 1]]
    assert (told.num_prompts, told.num_completions) == (1, 1)


def test_what_nobody_ranked_is_not_trained_on() -> None:
    ranking = Ranking(prompt="p", completions=("a", "b", "c"), ranks=(2, None, 0))
    found = only_ranked(ranking)
    assert (found.completions, found.ranks) == (("a", "c"), (2, 0))


def test_num_tokens_are_those_of_all_texts() -> None:
    source = DirectSource(TRIPLES[:1], batch_size=2, seed=0, device="cpu")
    batch, made = source.batch(1)
    assert made == {"num_tokens": 2.0 * (3 * 2 + 2 + 3 + 4)}
    assert batch.num_rankings == 2


# ---------------------------------------------------------------- the verb


def settings(task: Path, output_dir: Path, **changes: Any) -> DpoConfig:
    values: dict[str, Any] = {
        "model_name_or_path": str(task / "base"),
        "dataset_name": str(task / "rankings.jsonl"),
        "output_dir": str(output_dir),
        "splits": Splits(eval_fraction=0.3),
        "num_train_epochs": 1.0,
        "batch_size": 4,
        "max_length": 40,
        "optimization": Optimization(learning_rate=1e-2, dtype="float32"),
    }
    return DpoConfig(**(values | changes))


def test_it_learns_to_prefer_and_says_how_well(task: Path, tmp_path: Path) -> None:
    """The same two answers to every prompt, and a third that is sometimes not ranked: what is learned carries over."""
    rows = [json.loads(line) for line in (task / "prompts.jsonl").read_text().splitlines()]
    for n, row in enumerate(rows):
        ranked = {"no dog": 1, "cat!": 0, "hen": [2, None][n % 2]}
        row["completions"] = [{"rank": rank, "completion": text} for text, rank in ranked.items()]
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    same = {"dataset_name": str(tmp_path / "same.jsonl"), "num_train_epochs": 8.0}
    folder = dpo(settings(task, tmp_path / "dpo", **same))
    metrics = read_jsonl(tmp_path / "dpo/metrics.jsonl")
    assert metrics[0]["loss"] > 2 * metrics[-1]["loss"]
    assert metrics[-1]["rewards/accuracies"] == 1.0 and metrics[-1]["rewards/margins"] > 0.5
    told = read_json(tmp_path / "dpo/evaluation.json")
    assert told["accuracy"] > 0.8
    assert told["accuracy_low"] <= told["accuracy"] <= told["accuracy_high"]
    assert told["rewards/margins_low"] < told["rewards/margins"] < told["rewards/margins_high"]
    difference = told["rewards/chosen"] - told["rewards/rejected"]
    assert told["rewards/margins"] == pytest.approx(difference)
    assert told["num_train_rankings"] + told["num_heldout_rankings"] == 20
    assert told["num_truncated_prompts"] == told["num_truncated_completions"] == 0
    policy, reference = load_policy(folder).eval(), load_policy(task / "base").eval()
    held = read_rankings(str(tmp_path / "dpo/data/test.jsonl"))
    encoded, _ = encode_rankings(load_tokenizer(folder), held, 40)
    with torch.no_grad():
        margins = [
            float(rewards[i] - rewards[j])
            for ranking in encoded
            for rewards in [plain_rewards(policy, reference, ranking, 0.1)]
            for i, rank in enumerate(ranking.ranks)
            for j, other in enumerate(ranking.ranks)
            if rank is not None and other is not None and rank < other
        ]
    assert told["num_pairs"] == len(margins)
    assert told["rewards/margins"] == pytest.approx(np.mean(margins), abs=1e-4)
    assert told["accuracy"] == pytest.approx(np.mean(np.array(margins) > 0))


def test_adapters_ship_merged_and_alone(task: Path, tmp_path: Path) -> None:
    lora = Lora(use_peft=True, lora_r=2, lora_dropout=0.2)
    folder = dpo(settings(task, tmp_path / "dpo", lora=lora, num_train_epochs=2.0))
    shipped, alone = load_policy(folder), load_policy(tmp_path / "dpo" / "adapter")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        found, expected = shipped(ids).logits, alone(ids).logits
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert (found - load_policy(task / "base")(ids).logits).abs().max() > 1e-3


def test_activation_checkpointing_changes_nothing(task: Path, tmp_path: Path) -> None:
    told = []
    for recomputes in (False, True):
        config = settings(
            task,
            tmp_path / str(recomputes),
            lora=Lora(use_peft=True, lora_r=2),
            optimization=Optimization(
                learning_rate=1e-2, dtype="float32", gradient_checkpointing=recomputes
            ),
        )
        dpo(config)
        metrics = read_jsonl(tmp_path / str(recomputes) / "metrics.jsonl")
        told.append([[row[name] for name in ("loss", "grad_norm")] for row in metrics])
    np.testing.assert_allclose(told[1], told[0], rtol=1e-4)
    assert len(told[0]) > 2


def test_ipo_and_flips_run(task: Path, tmp_path: Path) -> None:
    for name, loss in (
        ("ipo", DpoLoss(loss_type="ipo")),
        ("flips", DpoLoss(flip_rate=0.2, ties="equal")),
    ):
        dpo(settings(task, tmp_path / name, ranking_loss=loss))
        assert (tmp_path / name / "model" / "config.json").is_file()
    losses = [read_jsonl(tmp_path / name / "metrics.jsonl")[0]["loss"] for name in ("ipo", "flips")]
    assert losses[0] == pytest.approx(25.0, abs=0.1) and losses[1] < 2  # (1 / 0.2)² at the start


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="beta must be above 0"):
        DpoLoss(beta=0)
    with pytest.raises(ValueError, match="loss_type ipo is no likelihood"):
        DpoLoss(loss_type="ipo", flip_rate=0.1)
    with pytest.raises(ValueError, match="max_length must be at least 2"):
        DpoConfig(max_length=1)


def test_bad_input_leaves_no_trace(task: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    tokenizer = load_tokenizer(task / "base")
    tokenizer.chat_template = None
    save_model(load_policy(task / "base"), tokenizer, bare)
    rows = [json.loads(line) for line in (task / "rankings.jsonl").read_text().splitlines()]
    wide = {"prompt": "p", "completions": [{"rank": 0, "completion": f"a{n}"} for n in range(11)]}
    wide["completions"].append({"rank": 1, "completion": "b"})
    (tmp_path / "wide.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*rows, wide]))
    given = Splits(eval_dataset_name=str(task / "held_rankings.jsonl"))
    for changes, line in (
        ({"model_name_or_path": str(tmp_path / "nothing")}, "does not exist"),
        ({"model_name_or_path": str(task / "judge")}, "is a reward model"),
        ({"model_name_or_path": str(bare)}, "no chat template"),
        ({"dataset_name": str(tmp_path / "no.jsonl")}, r"no\.jsonl"),
        (
            {"dataset_name": str(tmp_path / "wide.jsonl"), "splits": given},
            r"wide\.jsonl:21: 11 completions share a rank",
        ),
    ):
        with pytest.raises(BadInput, match=line):
            dpo(settings(task, tmp_path / "run", **changes))
        assert not (tmp_path / "run").exists()
