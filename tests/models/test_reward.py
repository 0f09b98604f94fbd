import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from crestline.models.load import load_tokenizer, save_model
from crestline.models.reward import (
    Calibration,
    RewardModel,
    fit_temperature,
    load_reward_model,
    new_reward_model,
)
from crestline.rewards.standin import StandIn
from crestline.types import BadInput, PromptText

CHAT: PromptText = [{"role": "user", "content": "Why did the hen cross the road?"}]
PROMPTS: list[PromptText] = [CHAT, "The cat", CHAT, "", CHAT]
TEXTS = ["To get there.", " sat on the mat and the dog sat on the log.", "", "Why", "🐔" * 3]


def bert(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.15,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )
    return BertForSequenceClassification(config)


@pytest.fixture(params=["llama", "gpt2", "bert"])
def backbone(request: pytest.FixtureRequest, tokenizer, tmp_path: Path) -> Path:
    """A folder with a backbone and its tokenizer."""
    model = bert(tokenizer) if request.param == "bert" else request.getfixturevalue(request.param)
    save_model(model, tokenizer, tmp_path / "backbone")
    return tmp_path / "backbone"


@pytest.fixture
def llama_folder(llama, tokenizer, tmp_path: Path) -> Path:
    save_model(llama, tokenizer, tmp_path / "policy")
    return tmp_path / "policy"


def trained(folder: Path, **changes: Any) -> RewardModel:
    """A reward model whose head says something."""
    reward_model = new_reward_model(folder, **({"seed": 1, "max_length": 48} | changes))
    head = list(reward_model.model.parameters())[-1]
    with torch.no_grad():
        head.normal_(generator=torch.Generator().manual_seed(0))
    return reward_model


def test_score_does_not_depend_on_the_batch(backbone: Path) -> None:
    reward_model = trained(backbone)
    together = reward_model.score(PROMPTS, TEXTS)
    alone = [reward_model.score([p], [t])[0] for p, t in zip(PROMPTS, TEXTS, strict=True)]
    backwards = reward_model.score(PROMPTS[::-1], TEXTS[::-1])[::-1]
    pairs = reward_model.score(PROMPTS, TEXTS, batch_size=2)
    for other in (alone, backwards, pairs):
        np.testing.assert_allclose(together, other, atol=1e-4)
    assert len({round(score, 3) for score in together}) == len(TEXTS)


def test_saved_it_scores_the_same_here_and_in_plain_transformers(backbone: Path, tmp_path) -> None:
    reward_model = trained(backbone)
    reward_model.calibration = Calibration(0.5, 2.0)
    scores = reward_model.score(PROMPTS, TEXTS)
    reward_model.save(tmp_path / "saved")
    again = load_reward_model(tmp_path / "saved")
    np.testing.assert_allclose(again.score(PROMPTS, TEXTS), scores, atol=1e-5)
    assert (again.calibration, again.max_length) == (Calibration(0.5, 2.0), 48)

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    texts = [
        reward_model.tokenizer.decode(reward_model.encode(p, t))
        for p, t in zip(PROMPTS, TEXTS, strict=True)
    ]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    with torch.no_grad():
        found = plain(**inputs).logits
    np.testing.assert_allclose(found[:, 0], scores, atol=1e-4)


def test_a_save_that_reads_back_differently_is_refused(llama_folder: Path, tmp_path) -> None:
    reward_model = trained(llama_folder)
    # the same weights on disk cannot say what this one says
    reward_model.model.score.register_forward_hook(lambda module, inputs, output: output + 1)
    with pytest.raises(BadInput, match="scores differently when read back"):
        reward_model.save(tmp_path / "saved")


def test_what_is_too_long_keeps_its_end(llama_folder: Path) -> None:
    long, short = trained(llama_folder, max_length=60), trained(llama_folder, max_length=10)
    whole = long.encode(CHAT, "Because the cat sat.")
    cut = short.encode(CHAT, "Because the cat sat.")
    assert len(whole) > 10 and len(cut) == 10
    assert cut == [whole[0], *whole[-9:]]
    assert cut[-1] == short.tokenizer.eos_token_id
    assert short.encode("", "cat") == long.encode("", "cat")
    exact = trained(llama_folder, max_length=len(whole))
    assert exact.encode(CHAT, "Because the cat sat.") == whole


def test_max_length_never_passes_the_models_context(llama_folder: Path) -> None:
    reward_model = trained(llama_folder, max_length=5000)
    assert reward_model.max_length == 64
    assert math.isfinite(reward_model.score([CHAT], ["cat " * 500])[0])


def test_an_empty_text_has_a_score(llama_folder: Path) -> None:
    reward_model = trained(llama_folder)
    assert reward_model.encode("", "") == [reward_model.tokenizer.eos_token_id]
    assert math.isfinite(reward_model.score([""], [""])[0])


def test_half_depth_halves_the_blocks_and_keeps_their_weights(
    tiny_llama, tokenizer, tmp_path
) -> None:
    whole = tiny_llama(num_hidden_layers=4)
    save_model(whole, tokenizer, tmp_path / "whole")
    half = new_reward_model(tmp_path / "whole", seed=0, max_length=32, half_depth=True)
    layers = half.model.model.layers
    assert len(layers) == 2 and half.model.config.num_hidden_layers == 2
    for kept, original in zip(layers, whole.model.layers, strict=False):
        assert torch.equal(kept.mlp.up_proj.weight, original.mlp.up_proj.weight)
    half.save(tmp_path / "half")
    assert len(load_reward_model(tmp_path / "half").model.model.layers) == 2


def test_the_head_is_a_function_of_the_seed(llama_folder: Path) -> None:
    heads = [
        new_reward_model(llama_folder, seed=seed, max_length=32).model.score.weight
        for seed in (0, 0, 1)
    ]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_a_causal_model_without_a_head_is_refused(llama_folder: Path) -> None:
    with pytest.raises(BadInput, match=r"no trained reward head \(missing score.weight\)"):
        load_reward_model(llama_folder)


def test_two_labels_are_refused(llama_folder: Path, tokenizer, tmp_path) -> None:
    config = LlamaConfig.from_pretrained(llama_folder, num_labels=2)
    save_model(LlamaForSequenceClassification(config), tokenizer, tmp_path / "two")
    with pytest.raises(BadInput, match="has 2 labels; a reward model has one"):
        load_reward_model(tmp_path / "two")


def test_a_reward_model_of_somebody_else_loads_uncalibrated(llama_folder: Path, tmp_path) -> None:
    trained(llama_folder).save(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    config = json.loads(path.read_text())
    del config["crestline"]
    path.write_text(json.dumps(config))
    assert load_reward_model(tmp_path / "theirs").calibration == Calibration(0.0, 1.0)


def test_calibration_by_hand_and_at_the_extremes() -> None:
    calibration = Calibration(mean=1.0, temperature=2.0)
    assert calibration.score(1.0) == 0.5
    assert calibration.score(3.0) == pytest.approx(1 / (1 + math.exp(-1)))
    assert calibration.score(-3.0) == pytest.approx(1 / (1 + math.exp(2)))
    tiny = Calibration(mean=0.0, temperature=1e-300)
    assert tiny.score(1e30) == pytest.approx(1.0) and 0 <= tiny.score(-1e30) < 1e-20
    assert Calibration().score(float("inf")) == pytest.approx(1.0)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 7.0])
def test_a_known_temperature_is_found_again(temperature: float) -> None:
    random = np.random.default_rng(0)
    gaps = random.normal(0, 3 * temperature, 8000)
    right = random.random(8000) < 1 / (1 + np.exp(-gaps / temperature))
    found = fit_temperature(np.where(right, gaps, -gaps).tolist())
    assert found == pytest.approx(temperature, rel=0.08)


def test_temperature_of_nothing_is_refused_and_of_perfect_pairs_finite() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        fit_temperature([])
    assert 0 < fit_temperature([1.0, 2.0]) < 0.1
    assert fit_temperature([-1.0, -2.0]) > 50


def test_the_stand_in_ranks_by_score_and_says_what_it_is(llama_folder: Path) -> None:
    reward_model = trained(llama_folder)
    people = StandIn(reward_model, "a stand-in of half depth")
    values = people.rank(CHAT, TEXTS[:3], question_id="7")
    np.testing.assert_allclose(values, reward_model.score([CHAT] * 3, TEXTS[:3]), atol=1e-6)
    assert (people.answered_by, people.description) == ("stand-in", "a stand-in of half depth")


def test_a_trained_backbone_scores_what_its_tokenizer_makes(real_model) -> None:
    folder = real_model("stories260K")
    reward_model = new_reward_model(folder, seed=0, max_length=64)
    ids = reward_model.encode("Once upon", " a time.")
    assert ids == load_tokenizer(folder)("Once upon a time.")["input_ids"]
    texts = [" a time.", " a time there was a little girl called Lily.", ""]
    together = reward_model.score(["Once upon"] * 3, texts)
    alone = [reward_model.score(["Once upon"], [text])[0] for text in texts]
    np.testing.assert_allclose(together, alone, atol=1e-4)
