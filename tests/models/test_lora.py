import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LNTuningConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from crestline.models.heads import outside_backbone
from crestline.models.load import (
    OtherModel,
    load_policy,
    load_tokenizer,
    load_weights,
    save_model,
)
from crestline.models.lora import merged, quiet_peft, with_adapters, write_adapter
from crestline.models.policy import token_logprobs
from crestline.models.reward import RewardModel, load_reward_model, new_reward_model
from crestline.models.sampler import PolicySampler
from crestline.training.configs import Lora
from crestline.types import BadInput

ARCHITECTURES = [
    "llama",
    "qwen2",
    "gpt2",
    "bert",
    "roberta",
    "distilbert",
    "modernbert",
    "deberta-v2",
]
PROMPTS, TEXTS = ["The cat", "", "Why"], [" sat on the mat.", "<|end|>", " did the hen " * 30]
TOKENS = torch.tensor([[1, 20, 30, 2, 40]])


def adapted(folder: Path, **changes: Any) -> RewardModel:
    lora = Lora(use_peft=True, **({"lora_r": 4} | changes))
    return new_reward_model(folder, seed=1, max_length=48, lora=lora)


def trained(model: Any) -> Any:
    """The same model after something like training: every trainable weight has moved."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_whatever_is_new_is_trained_in_full_and_the_rest_by_adapters(backbone_folder, name) -> None:
    folder = backbone_folder(name)
    plain = new_reward_model(folder, seed=1, max_length=48)
    model = adapted(folder).model
    whole = {n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n}
    new = outside_backbone(plain.model) + (["bert.pooler"] if name == "bert" else [])
    expected = {n for n, _ in plain.model.named_parameters() if n.startswith(tuple(new))}
    assert {
        n.removeprefix("base_model.model.").replace(".modules_to_save.default", "") for n in whole
    } == expected
    lora = {n.split(".lora_")[0] for n, p in model.named_parameters() if "lora_" in n}
    assert lora and not any(part in n for n in lora for part in ("classifier", "score", "pooler"))
    linear = [
        n
        for n, m in plain.model.named_modules()
        if type(m).__name__ in ("Linear", "Conv1D") and not n.startswith(tuple(new))
    ]
    assert {n.removeprefix("base_model.model.") for n in lora} == set(linear)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_adapters_change_nothing_before_training_and_survive_every_way_out(
    backbone_folder, name, tmp_path
) -> None:
    folder = backbone_folder(name)
    fresh, plain = adapted(folder), new_reward_model(folder, seed=1, max_length=48)
    np.testing.assert_allclose(fresh.score(PROMPTS, TEXTS), plain.score(PROMPTS, TEXTS), atol=1e-6)
    reward_model = fresh
    trained(reward_model.model)
    scores = reward_model.score(PROMPTS, TEXTS)
    assert np.abs(np.subtract(scores, plain.score(PROMPTS, TEXTS))).max() > 1e-3

    reward_model.write(tmp_path / "model")
    reward_model.write_adapter(tmp_path / "adapter")
    np.testing.assert_allclose(reward_model.score(PROMPTS, TEXTS), scores, atol=1e-7)
    for written in ("model", "adapter"):
        again = load_reward_model(tmp_path / written)
        np.testing.assert_allclose(again.score(PROMPTS, TEXTS), scores, atol=1e-5)
        assert again.max_length == 48

    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    base.config.pad_token_id = load_tokenizer(tmp_path / "adapter").pad_token_id
    with quiet_peft():
        theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokens = torch.tensor([reward_model.encode(PROMPTS[0], TEXTS[0])])
    with torch.no_grad():
        found = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    assert float(found[0, 0]) == pytest.approx(scores[0], abs=1e-5)


def test_a_checkpoint_holds_what_was_trained_and_nothing_else(backbone_folder, tmp_path) -> None:
    reward_model = adapted(backbone_folder("roberta"))
    trained(reward_model.model)
    save_model(reward_model.model, reward_model.tokenizer, tmp_path)
    other = adapted(backbone_folder("roberta"))
    load_weights(other.model, tmp_path)
    for (name, left), (_, right) in zip(
        reward_model.model.named_parameters(), other.model.named_parameters(), strict=True
    ):
        assert torch.equal(left, right), name
    assert not (tmp_path / "model.safetensors").exists() and not (tmp_path / "README.md").exists()
    with pytest.raises(OtherModel):
        load_weights(
            adapted(backbone_folder("roberta"), lora_target_modules="query").model, tmp_path
        )


def test_a_policys_reference_is_itself_without_adapters(llama, tokenizer, tmp_path) -> None:
    save_model(llama, tokenizer, tmp_path / "sft")
    policy = load_policy(tmp_path / "sft")
    with torch.no_grad():
        before = policy(TOKENS).logits
    policy = trained(
        with_adapters(policy, Lora(use_peft=True, lora_r=4), task="policy", seed=0)
    ).eval()
    with torch.no_grad():
        after = policy(TOKENS).logits
        with policy.disable_adapter():
            assert torch.equal(policy(TOKENS).logits, before)
        assert torch.equal(policy(TOKENS).logits, after)
    assert (after - before).abs().max() > 1e-3
    assert all("lora_" in name for name, p in policy.named_parameters() if p.requires_grad)

    plain = merged(policy)
    with torch.no_grad():
        torch.testing.assert_close(plain(TOKENS).logits, after, atol=1e-5, rtol=1e-5)

    save_model(policy, tokenizer, tmp_path / "checkpoint")
    again = load_policy(tmp_path / "checkpoint")
    with torch.no_grad():
        torch.testing.assert_close(
            again(TOKENS).logits, policy(TOKENS).logits, atol=1e-5, rtol=1e-5
        )
    assert type(again) is type(llama)
    with quiet_peft():
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
        theirs = PeftModel.from_pretrained(base, tmp_path / "checkpoint").eval()
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(TOKENS).logits, policy(TOKENS).logits, atol=1e-5, rtol=1e-5
        )


def test_the_first_weights_are_a_function_of_the_seed_and_leave_no_trace(llama) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    lora = Lora(use_peft=True, lora_r=4)
    models = [with_adapters(copy.deepcopy(llama), lora, task="policy", seed=s) for s in (0, 0, 1)]
    assert torch.equal(torch.rand(1), expected)
    a, b, c = (next(p for n, p in m.named_parameters() if "lora_A" in n) for m in models)
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_an_adapter_is_written_with_the_same_bytes_by_every_process(llama, tmp_path) -> None:
    model = with_adapters(copy.deepcopy(llama), Lora(use_peft=True), task="policy", seed=0)
    write_adapter(model, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert len(written) == 7 and written == sorted(written)


def test_targets_can_be_named_and_mistyped(backbone_folder) -> None:
    model = adapted(backbone_folder("llama"), lora_target_modules="q_proj, v_proj").model
    touched = {
        n.split(".lora_")[0].rpartition(".")[2] for n, _ in model.named_parameters() if "lora_" in n
    }
    assert touched == {"q_proj", "v_proj"}
    assert sorted(model.peft_config["default"].target_modules) == ["q_proj", "v_proj"]
    with pytest.raises(
        BadInput, match=r"--lora_target_modules query: no such .* there are .*q_proj"
    ):
        adapted(backbone_folder("llama"), lora_target_modules="query")


def test_adapters_that_do_not_fit_are_told_in_one_line(backbone_folder, tmp_path) -> None:
    adapted(backbone_folder("llama")).write_adapter(tmp_path / "adapter")
    config = (tmp_path / "adapter" / "adapter_config.json").read_text()
    for base, line in [
        (backbone_folder("bert"), "does not fit its base model"),
        (tmp_path / "gone", "does not exist"),
        (tmp_path / "copy", "names itself"),
    ]:
        shutil.copytree(tmp_path / "adapter", tmp_path / "copy")
        changed = config.replace(str(backbone_folder("llama")), str(base))
        (tmp_path / "copy" / "adapter_config.json").write_text(changed)
        with pytest.raises(BadInput, match=line) as refused:
            load_reward_model(tmp_path / "copy")
        assert "\n" not in str(refused.value)
        shutil.rmtree(tmp_path / "copy")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{")
    with pytest.raises(BadInput, match=r"adapter_config\.json: no JSON"):
        load_reward_model(tmp_path / "adapter")


def test_a_policys_adapter_is_no_reward_model(llama, tokenizer, tmp_path) -> None:
    save_model(llama, tokenizer, tmp_path / "sft")
    policy = with_adapters(load_policy(tmp_path / "sft"), Lora(lora_r=2), task="policy", seed=0)
    save_model(policy, tokenizer, tmp_path / "adapter")
    with pytest.raises(BadInput, match="no trained reward head: it is the adapter of a language"):
        load_reward_model(tmp_path / "adapter")


def test_a_reward_models_adapter_is_no_policy(backbone_folder, tmp_path) -> None:
    adapted(backbone_folder("llama")).write_adapter(tmp_path / "adapter")
    with pytest.raises(BadInput, match="is a reward model or classifier"):
        load_policy(tmp_path / "adapter")


@pytest.fixture
def chain(llama, tokenizer, tmp_path) -> Any:
    """A policy with trained adapters on top of an adapter folder, tmp_path/first, which names tmp_path/sft."""
    save_model(llama, tokenizer, tmp_path / "sft")
    lora = Lora(use_peft=True, lora_r=4)
    first = with_adapters(load_policy(tmp_path / "sft"), lora, task="policy", seed=0)
    save_model(trained(first), tokenizer, tmp_path / "first")
    second = with_adapters(load_policy(tmp_path / "first"), lora, task="policy", seed=1)
    return trained(second).eval()


@torch.no_grad()
def test_adapters_on_an_adapter_folder_keep_both(chain, tokenizer, tmp_path) -> None:
    save_model(chain, tokenizer, tmp_path / "second")
    config = json.loads((tmp_path / "second" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str((tmp_path / "first").resolve())
    assert chain.get_base_model().config._name_or_path == str(tmp_path / "sft")
    expected = chain(TOKENS).logits
    for folder in ("second", "plain"):
        again = load_policy(tmp_path / folder) if folder == "second" else merged(chain)
        torch.testing.assert_close(again(TOKENS).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lora", [None, Lora(use_peft=True, lora_r=4)])
def test_a_reward_model_grows_on_a_policys_adapter(chain, tmp_path, lora) -> None:
    reward_model = new_reward_model(tmp_path / "first", seed=1, max_length=48, lora=lora)
    bare = new_reward_model(tmp_path / "sft", seed=1, max_length=48)
    trained(reward_model.model)
    scores = reward_model.score(PROMPTS, TEXTS)
    assert np.abs(np.subtract(scores, bare.score(PROMPTS, TEXTS))).max() > 1e-3
    reward_model.write(tmp_path / "model")
    if lora is not None:
        reward_model.write_adapter(tmp_path / "adapter")
    for folder in ("model", "adapter")[: 1 if lora is None else 2]:
        again = load_reward_model(tmp_path / folder)
        np.testing.assert_allclose(again.score(PROMPTS, TEXTS), scores, atol=1e-5)


def test_what_an_adapter_was_merged_into_can_be_trained_whole(chain, tmp_path) -> None:
    model = load_policy(tmp_path / "first")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_virtual_tokens_are_refused_in_one_line(llama, tokenizer, tmp_path) -> None:
    save_model(llama, tokenizer, tmp_path / "sft")
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with quiet_peft():
        model = get_peft_model(load_policy(tmp_path / "sft"), config).eval()
    model.save_pretrained(tmp_path / "prompt")
    asked = TOKENS, torch.tensor([5]), torch.tensor([[False, True, True, True, True]])
    for refused in (
        lambda: token_logprobs(model, *asked),
        lambda: PolicySampler(model, tokenizer, max_completion_length=3),
        lambda: load_policy(tmp_path / "prompt"),
    ):
        with pytest.raises(BadInput, match="LoRA") as told:
            refused()
        assert "\n" not in str(told.value)


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@torch.no_grad()
def test_tuned_norms_count(request, name: str, tokenizer) -> None:
    targets = ["norm", "post_attention_layernorm", "ln_f", "ln_1"]
    plain = copy.deepcopy(request.getfixturevalue(name))
    with quiet_peft():
        model = get_peft_model(plain, LNTuningConfig(target_modules=targets)).eval()
    trained(model)
    chosen = torch.tensor([[False, True, True, True, True]])
    expected = model(TOKENS).logits[0, :-1].log_softmax(-1).gather(1, TOKENS[0, 1:, None])[:, 0]
    found = token_logprobs(model, TOKENS, torch.tensor([5]), chosen)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    sampler = PolicySampler(model, tokenizer, max_completion_length=3)
    [[prompt], [said]] = sampler.encode(["The cat"]), sampler.sample(["The cat"], [0])
    whole = model(torch.tensor([[*prompt, *said.tokens]])).logits[0, len(prompt) - 1 : -1]
    expected = whole.log_softmax(-1).gather(1, torch.tensor(said.tokens)[:, None])[:, 0]
    np.testing.assert_allclose(said.logprobs, expected, atol=1e-4)
