import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitNetConfig,
    BitNetForCausalLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    RobertaConfig,
    T5Config,
    T5ForSequenceClassification,
)

from crestline.models import reward_model as reward_model_module
from crestline.models.encoding import Row
from crestline.models.load import load_tokenizer, save_model
from crestline.models.reload import check_reloaded
from crestline.models.reward import Calibration, RewardModel, load_reward_model, new_reward_model
from crestline.models.reward_forward import PLAIN
from crestline.models.text import render_prompt
from crestline.rewards.standin import StandIn
from crestline.training.configs import Lora
from crestline.types import BadInput, PromptText

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
WAY_OF = {
    "llama": "llama",
    "qwen2": "llama",
    "gpt2": "packed decoder",
    "bert": "encoder",
    "roberta": "encoder",
}
CHAT: PromptText = [{"role": "user", "content": "Why did the hen cross the road?"}]
PROMPTS: list[PromptText] = [CHAT, "The cat", CHAT, "", CHAT, "The <|end|>"]
TEXTS = [
    "To get there.",
    " sat on the mat and the dog sat.",
    "",
    "Why",
    "🐔" * 3,
    "<|end|> cat" * 40,
]


def trained(folder: Path, **changes: Any) -> RewardModel:
    """A reward model of which everything that training would touch says something."""
    reward_model = new_reward_model(folder, **({"seed": 1, "max_length": 48} | changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in reward_model.model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return reward_model


@pytest.fixture(params=ARCHITECTURES)
def backbone(request: pytest.FixtureRequest, backbone_folder) -> Path:
    return backbone_folder(request.param)


@pytest.fixture
def llama_folder(backbone_folder) -> Path:
    return backbone_folder("llama")


def test_score_does_not_depend_on_the_batch(backbone: Path) -> None:
    reward_model = trained(backbone)
    together = reward_model.score(PROMPTS, TEXTS)
    alone = [reward_model.score([p], [t])[0] for p, t in zip(PROMPTS, TEXTS, strict=True)]
    backwards = reward_model.score(PROMPTS[::-1], TEXTS[::-1])[::-1]
    rows = reward_model.rows(PROMPTS, TEXTS)
    in_pairs = reward_model.raw_of_rows(rows, batch_tokens=2 * reward_model.max_length)[:, 0]
    for other in (alone, backwards, in_pairs):
        np.testing.assert_allclose(together, other, atol=2e-6)
    assert len({round(score, 4) for score in together}) == len(TEXTS)


def own_score(reward_model: RewardModel, row: Row) -> float:
    """What transformers' forward pass gives the row by itself."""
    tokens = torch.tensor([row.ids])
    with torch.no_grad():
        return float(reward_model.raw(tokens, torch.ones_like(tokens)))


def test_scores_are_those_of_the_models_own_forward_pass(backbone: Path) -> None:
    reward_model = trained(backbone)
    rows = reward_model.rows([*PROMPTS, *PROMPTS], [*TEXTS, *TEXTS[::-1]])
    found = reward_model.raw_of_rows(rows)[:, 0]
    for row, score in zip(rows, found, strict=True):
        assert own_score(reward_model, row) == pytest.approx(score, abs=2e-6)
    assert reward_model._forward is not None
    assert reward_model._forward.name == WAY_OF.get(reward_model.model.config.model_type, "padded")


LENGTH_MATTERS = {
    "attention window": (MistralForCausalLM, MistralConfig, {"sliding_window": 32}),
    "rotation by length": (
        Phi3ForCausalLM,
        Phi3Config,
        {
            "original_max_position_embeddings": 24,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0] * 8,
                "long_factor": [4.0] * 8,
            },
            "pad_token_id": 0,
        },
    ),
}


@pytest.mark.parametrize("name", LENGTH_MATTERS)
def test_where_length_changes_the_model_it_goes_its_own_way(name: str, tmp_path, tokenizer) -> None:
    build, config, special = LENGTH_MATTERS[name]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 400}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    save_model(build(config(**sizes, **heads, **special)), tokenizer, tmp_path)
    reward_model = trained(tmp_path)
    texts = ["To get there.", "sat on the mat and the dog sat. " * 9, "Why?"]
    rows = reward_model.rows(["The cat"] * 3, texts)
    assert max(row.num_tokens for row in rows) > 32
    found = reward_model.raw_of_rows(rows)[:, 0]
    alone = [reward_model.raw_of_rows([row])[0, 0] for row in rows]
    if name == "attention window":
        np.testing.assert_allclose(found, alone, atol=2e-6)
    assert reward_model._forward is PLAIN
    for row, score in zip(rows, alone, strict=True):
        assert own_score(reward_model, row) == pytest.approx(score, abs=2e-6)


def test_what_is_longer_than_the_ways_were_compared_on_goes_the_models_own(
    llama_folder: Path, monkeypatch
) -> None:
    monkeypatch.setattr(reward_model_module, "LONGEST_PROBE", 12)
    reward_model = trained(llama_folder)
    rows = reward_model.rows(PROMPTS, TEXTS)
    assert min(row.num_tokens for row in rows) <= 12 < max(row.num_tokens for row in rows)
    lengths: list[int] = []
    raw = reward_model.raw

    def counted(tokens_NT: torch.Tensor, attention_NT: torch.Tensor) -> torch.Tensor:
        lengths.extend(attention_NT.sum(1).tolist())
        return raw(tokens_NT, attention_NT)

    monkeypatch.setattr(reward_model, "raw", counted)
    found = reward_model.raw_of_rows(rows)
    assert sorted(lengths) == sorted(row.num_tokens for row in rows if row.num_tokens > 12)
    monkeypatch.undo()
    np.testing.assert_allclose(found, trained(llama_folder).raw_of_rows(rows), atol=2e-6)


@pytest.mark.parametrize("name", ["roberta", "bert"])
def test_a_padding_token_in_a_prompt_is_read_as_the_model_reads_it(backbone_folder, name) -> None:
    reward_model = trained(backbone_folder(name))
    prompts: list[PromptText] = ["The <|pad|> cat <|pad|> sat", "<|pad|><|pad|>Why", "Why"]
    rows = reward_model.rows(prompts, [" on it"] * 3)
    assert sum(row.ids.count(reward_model.tokenizer.pad_token_id) for row in rows) == 4
    found = reward_model.raw_of_rows(rows)[:, 0]
    for row, score in zip(rows, found, strict=True):
        assert own_score(reward_model, row) == pytest.approx(score, abs=2e-6)


def test_written_it_scores_the_same_here_and_in_plain_transformers(backbone, tmp_path) -> None:
    reward_model = trained(backbone)
    reward_model.calibration = Calibration(0.5, 2.0)
    scores = reward_model.score(PROMPTS, TEXTS)
    reward_model.write(tmp_path / "saved")
    again = load_reward_model(tmp_path / "saved")
    np.testing.assert_allclose(again.score(PROMPTS, TEXTS), scores, atol=1e-6)
    assert (again.calibration, again.max_length) == (Calibration(0.5, 2.0), 48)

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    texts = ["The cat sat on the mat.", "Why did the hen cross the road? " * 9, "🐔"]
    inputs = tokenizer(
        texts, return_tensors="pt", padding=True, truncation=True, return_token_type_ids=False
    )
    assert inputs["input_ids"].shape[1] == 48
    with torch.no_grad():
        found = plain(**inputs).logits
    assert found.shape == (3, 1)
    np.testing.assert_allclose(found[:, 0], again.score([""] * 3, texts), atol=2e-6)


@pytest.fixture(scope="module")
def saved(backbone_folder, tmp_path_factory) -> list[tuple[str, Any]]:
    """Every architecture, with one head and three, in full and with adapters: (what it is, what must be found)."""
    found = []
    for name in ARCHITECTURES:
        for heads, lora in [(1, False), (3, False), (1, True), (3, True)]:
            if (heads, lora) == (3, False) and name not in ("llama", "roberta"):
                continue
            settings = {"num_heads": heads, "lora": Lora(use_peft=True, lora_r=2) if lora else None}
            reward_model = trained(backbone_folder(name), **settings)
            folder = tmp_path_factory.mktemp("saved")
            reward_model.write(folder / "model")
            check = reward_model.check(folder / "model", PROMPTS, TEXTS)
            found.append((name, check))
            if lora:
                reward_model.write_adapter(folder / "adapter")
                adapter = replace(
                    check,
                    folder=folder / "adapter",
                    base=str(backbone_folder(name)),
                    num_hidden_layers=2,
                )
                found.append((name, adapter))
    return found


def test_a_fresh_process_without_us_gives_the_same_scores(saved) -> None:
    checks = [check for _, check in saved]
    assert len(checks) == 8 * 2 + 2 + 8 * 3 - 8 + 8
    assert {len(check.rows) for check in checks} == {len(TEXTS)}
    assert all("text" in row for check in checks for row in check.rows[:1])
    check_reloaded(checks)


def test_what_a_fresh_process_cannot_score_the_same_is_refused(saved, tmp_path: Path) -> None:
    check = next(check for name, check in saved if name == "distilbert")
    off = replace(check, scores=[*check.scores[:-1], check.scores[-1] + 0.01])
    with pytest.raises(BadInput, match="scores differently in a fresh process") as refused:
        check_reloaded([check, off])
    assert "\n" not in str(refused.value)

    shutil.copytree(check.folder, tmp_path / "headless")
    weights = load_file(check.folder / "model.safetensors")
    weights.pop("pre_classifier.weight")
    save_file(weights, tmp_path / "headless" / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"weights are missing: pre_classifier\.weight"):
        check_reloaded([replace(check, folder=tmp_path / "headless")])


def test_a_save_that_reads_back_differently_keeps_nothing_to_be_used(
    llama_folder, tmp_path
) -> None:
    reward_model = trained(llama_folder)
    # the weights on disk cannot say what this one says
    reward_model.model.score.register_forward_hook(lambda module, inputs, output: output + 1)
    with pytest.raises(BadInput, match="scores differently in a fresh process"):
        reward_model.save(tmp_path / "saved", PROMPTS, TEXTS)


def test_what_is_too_long_keeps_its_end(llama_folder: Path) -> None:
    long, short = trained(llama_folder, max_length=60), trained(llama_folder, max_length=10)
    whole = long.encode(CHAT, "Because the cat sat.")
    cut = short.rows([CHAT], ["Because the cat sat."])[0]
    assert len(whole) > 10 and len(cut.ids) == 10 and cut.is_truncated
    assert cut.ids == [whole[0], *whole[-9:]]
    assert cut.ids[-1] == short.tokenizer.eos_token_id
    assert short.encode("", "cat") == long.encode("", "cat")
    exact = trained(llama_folder, max_length=len(whole))
    row = exact.rows([CHAT], ["Because the cat sat."])[0]
    assert row.ids == whole and not row.is_truncated


def test_max_length_never_passes_the_models_context(backbone: Path) -> None:
    reward_model = trained(backbone, max_length=5000)
    assert reward_model.max_length == 64
    assert math.isfinite(reward_model.score([CHAT], ["cat " * 500])[0])


def test_an_empty_text_has_a_score(llama_folder: Path) -> None:
    reward_model = trained(llama_folder)
    assert reward_model.encode("", "") == [reward_model.tokenizer.eos_token_id]
    assert math.isfinite(reward_model.score([""], [""])[0])
    assert reward_model.score([], []) == []


def test_a_hundred_thousand_characters_cost_no_more_than_their_length(llama_folder: Path) -> None:
    reward_model = trained(llama_folder)
    texts = ["a" * 100_000, "the cat " * 12_500, "<|end|>" * 14_000]
    began = time.process_time()
    scores = reward_model.score([CHAT] * 3, texts)
    assert time.process_time() - began < 5
    assert all(map(math.isfinite, scores))


def test_half_depth_halves_the_blocks_and_keeps_their_weights(tiny_llama, tokenizer, tmp_path):
    whole = tiny_llama(num_hidden_layers=4)
    save_model(whole, tokenizer, tmp_path / "whole")
    half = new_reward_model(tmp_path / "whole", seed=0, max_length=32, half_depth=True)
    layers = half.model.model.layers
    assert len(layers) == 2 and half.model.config.num_hidden_layers == 2
    for kept, original in zip(layers, whole.model.layers, strict=False):
        assert torch.equal(kept.mlp.up_proj.weight, original.mlp.up_proj.weight)
    half.write(tmp_path / "half")
    assert len(load_reward_model(tmp_path / "half").model.model.layers) == 2


def test_half_depth_goes_with_every_architecture_and_with_adapters(backbone, tmp_path) -> None:
    half = trained(backbone, half_depth=True, lora=Lora(use_peft=True, lora_r=2))
    half.write_adapter(tmp_path / "adapter")
    again = load_reward_model(tmp_path / "adapter")
    assert again.model.config.num_hidden_layers == 1
    np.testing.assert_allclose(again.score(PROMPTS, TEXTS), half.score(PROMPTS, TEXTS), atol=1e-5)


@pytest.mark.parametrize("name", ["qwen2", "modernbert"])
def test_half_depth_cuts_what_the_config_says_of_every_layer(
    name: str, backbone_folder, tmp_path
) -> None:
    lora = Lora(use_peft=True, lora_r=2)
    half = trained(backbone_folder(name), half_depth=True, lora=lora)
    half.save(tmp_path / "model", PROMPTS, TEXTS, adapter=tmp_path / "adapter")
    found = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (found["num_hidden_layers"], len(found["layer_types"])) == (1, 1)
    for folder in ("model", "adapter"):
        again = load_reward_model(tmp_path / folder).score(PROMPTS, TEXTS)
        np.testing.assert_allclose(again, half.score(PROMPTS, TEXTS), atol=1e-5)


def test_the_head_is_a_function_of_the_seed(llama_folder: Path) -> None:
    heads = [
        new_reward_model(llama_folder, seed=seed, max_length=32).model.score.weight
        for seed in (0, 0, 1)
    ]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_a_trained_head_is_trained_on_and_a_classifiers_is_replaced(
    llama_folder, tokenizer, tmp_path
):
    first = trained(llama_folder)
    first.write(tmp_path / "first")
    again = new_reward_model(tmp_path / "first", seed=9, max_length=48)
    assert torch.equal(again.model.score.weight, first.model.score.weight)
    config = LlamaConfig.from_pretrained(llama_folder, num_labels=3)
    save_model(LlamaForSequenceClassification(config), tokenizer, tmp_path / "three")
    replaced = new_reward_model(tmp_path / "three", seed=9, max_length=48)
    assert replaced.model.score.weight.shape == (1, 32)
    assert np.isfinite(replaced.score(PROMPTS, TEXTS)).all()


def test_a_causal_model_without_a_head_is_refused(llama_folder: Path) -> None:
    with pytest.raises(BadInput, match=r"no trained reward head \(missing score.weight\)"):
        load_reward_model(llama_folder)


def test_two_labels_are_refused(llama_folder: Path, tokenizer, tmp_path) -> None:
    config = LlamaConfig.from_pretrained(llama_folder, num_labels=2)
    save_model(LlamaForSequenceClassification(config), tokenizer, tmp_path / "two")
    with pytest.raises(BadInput, match="has 2 labels; a reward model has one"):
        load_reward_model(tmp_path / "two")


def test_what_can_carry_no_head_is_refused_in_one_line(llama_folder, tokenizer, tmp_path) -> None:
    small = {"vocab_size": len(tokenizer), "num_labels": 1, "pad_token_id": 0, "eos_token_id": 4}
    t5 = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, **small)
    save_model(T5ForSequenceClassification(t5), tokenizer, tmp_path / "t5")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bitnet = BitNetConfig(**sizes, intermediate_size=16, num_key_value_heads=2, **small)
    save_model(BitNetForCausalLM(bitnet), tokenizer, tmp_path / "bitnet")
    shutil.copytree(llama_folder, tmp_path / "holes")
    weights = load_file(llama_folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, tmp_path / "holes" / "model.safetensors", {"format": "pt"})
    for name, line in [
        ("t5", "is an encoder-decoder"),
        ("bitnet", "no sequence classifier for this architecture"),
        ("holes", r"lacks weights of its backbone \(model\.layers\.1\.mlp\.up_proj\.weight\)"),
    ]:
        with pytest.raises(BadInput, match=line) as refused:
            new_reward_model(tmp_path / name, seed=0, max_length=32)
        assert "\n" not in str(refused.value)


def test_padding_of_the_tokenizer_holds_where_positions_do_not_depend_on_it(
    backbone_folder, tokenizer, tmp_path
) -> None:
    """RoBERTa counts positions from its own padding id: another one would move them when it is loaded again."""
    folder = tmp_path / "roberta"
    shutil.copytree(backbone_folder("roberta"), folder)
    RobertaConfig.from_pretrained(folder, pad_token_id=2).save_pretrained(folder)
    reward_model = trained(folder)
    assert (reward_model.model.config.pad_token_id, reward_model.tokenizer.pad_token_id) == (2, 0)
    assert reward_model.max_length == 48
    reward_model.write(tmp_path / "saved")
    again = load_reward_model(tmp_path / "saved").score(PROMPTS, TEXTS)
    np.testing.assert_allclose(again, reward_model.score(PROMPTS, TEXTS), atol=2e-6)


def test_a_tokenizer_without_padding_gets_one_or_is_refused(llama_folder, tmp_path) -> None:
    def changed(name: str, **tokens: Any) -> Path:
        shutil.copytree(llama_folder, tmp_path / name)
        path = tmp_path / name / "tokenizer_config.json"
        found = json.loads(path.read_text())
        path.write_text(json.dumps(found | tokens))
        return tmp_path / name

    reward_model = trained(changed("end only", pad_token=None))
    assert reward_model.tokenizer.pad_token == "<|end|>"
    texts = ["cat", "The cat sat on the mat.", "cat<|end|>"]
    alone = [reward_model.score([""], [text])[0] for text in texts]
    np.testing.assert_allclose(reward_model.score([""] * 3, texts), alone, atol=2e-6)
    with pytest.raises(BadInput, match="no token to pad with"):
        trained(changed("nothing", pad_token=None, eos_token=None))


def test_padding_that_the_model_has_no_embedding_for(llama_folder, tmp_path) -> None:
    tokenizer = load_tokenizer(llama_folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    shutil.copytree(llama_folder, tmp_path / "pad")
    tokenizer.save_pretrained(tmp_path / "pad")
    reward_model = trained(tmp_path / "pad")
    assert reward_model.tokenizer.pad_token == "<|end|>"
    expected = reward_model.score(PROMPTS, TEXTS)
    alone = [reward_model.score([p], [t])[0] for p, t in zip(PROMPTS, TEXTS, strict=True)]
    np.testing.assert_allclose(expected, alone, atol=2e-6)
    reward_model.write(tmp_path / "saved")
    again = load_reward_model(tmp_path / "saved")
    np.testing.assert_allclose(again.score(PROMPTS, TEXTS), expected, atol=2e-6)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "pad")
    with pytest.raises(BadInput, match=r"pads with \[PAD\], which has no row among"):
        trained(tmp_path / "pad")


def test_a_chat_template_that_refuses_a_conversation_says_so_in_a_line(llama_folder) -> None:
    reward_model = trained(llama_folder)
    reward_model.tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    line = "the chat template refuses this prompt: System role not supported"
    with pytest.raises(BadInput, match=line):
        reward_model.score([CHAT], ["To get there."])
    with pytest.raises(BadInput, match=line):
        render_prompt(reward_model.tokenizer, CHAT)


def test_a_reward_model_of_somebody_else_loads_uncalibrated(llama_folder: Path, tmp_path) -> None:
    trained(llama_folder).write(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    config = json.loads(path.read_text())
    del config["crestline"]
    path.write_text(json.dumps(config))
    assert load_reward_model(tmp_path / "theirs").calibration == Calibration(0.0, 1.0)


def test_bfloat16_scores_are_near(backbone: Path) -> None:
    reward_model = trained(backbone)
    exact = np.array(reward_model.score(PROMPTS, TEXTS))
    reward_model.dtype = "bfloat16"
    near = np.array(reward_model.score(PROMPTS, TEXTS))
    assert 0 < np.abs(near - exact).max() < 0.05 * max(1, np.abs(exact).max())


def test_calibration_by_hand_and_at_the_extremes() -> None:
    calibration = Calibration(mean=1.0, temperature=2.0)
    assert calibration.score(1.0) == 0.5
    assert calibration.score(3.0) == pytest.approx(1 / (1 + math.exp(-1)))
    assert calibration.score(-3.0) == pytest.approx(1 / (1 + math.exp(2)))
    tiny = Calibration(mean=0.0, temperature=1e-300)
    assert tiny.score(1e30) == pytest.approx(1.0) and 0 <= tiny.score(-1e30) < 1e-20
    assert Calibration().score(float("inf")) == pytest.approx(1.0)


def test_the_stand_in_ranks_by_score_and_says_what_it_is(llama_folder: Path) -> None:
    reward_model = trained(llama_folder)
    people = StandIn(reward_model, "a stand-in of half depth")
    values = people.rank(CHAT, TEXTS[:3], question_id="7")
    np.testing.assert_allclose(values, reward_model.score([CHAT] * 3, TEXTS[:3]), atol=1e-6)
    assert (people.answered_by, people.description) == ("stand-in", "a stand-in of half depth")


@pytest.mark.parametrize("name", ["stories260K", "tinystories-656k", "babyllama-tok361"])
def test_a_trained_backbone_scores_what_its_tokenizer_makes(real_model, name: str) -> None:
    folder = real_model(name)
    reward_model = new_reward_model(folder, seed=0, max_length=64)
    ids = reward_model.encode("Once upon", " a time.")
    assert ids == load_tokenizer(folder)("Once upon a time.")["input_ids"]
    texts = [" a time.", " a time there was a little girl called Lily.", ""]
    together = reward_model.score(["Once upon"] * 3, texts)
    alone = [reward_model.score(["Once upon"], [text])[0] for text in texts]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_backbone_that_transformers_cannot_score_with(real_model) -> None:
    with pytest.raises(BadInput, match="no sequence classifier for this architecture"):
        new_reward_model(real_model("bitllama-3m"), seed=0, max_length=64)
