"""Every way from texts to scores gives the values and the gradients of transformers, text by text."""

import doctest
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPTNeoXConfig,
    GPTNeoXForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from crestline.models import packed_attention, packing, reward_forward
from crestline.models.lora import with_adapters
from crestline.models.packing import RankedTexts, packed
from crestline.models.reward_forward import PLAIN, WAYS, Forward, choose_forward, plain_scores
from crestline.models.tree import shared_beginning
from crestline.training.configs import Lora

PAD, VOCABULARY = 0, 60
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "num_labels": 2,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.3,
    **COMMON,
}
BERT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    **COMMON,
}
NEOX = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
GPT2: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 4, "initializer_range": 0.3, **COMMON}
DISTIL: dict[str, Any] = {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, **COMMON}

MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "llama": (lambda: LlamaForSequenceClassification(LlamaConfig(**LLAMA)), "llama"),
    "qwen3": (
        lambda: Qwen3ForSequenceClassification(Qwen3Config(head_dim=8, **LLAMA)),
        "llama",
    ),
    "gpt2": (lambda: GPT2ForSequenceClassification(GPT2Config(**GPT2)), "packed decoder"),
    "neox": (lambda: GPTNeoXForSequenceClassification(GPTNeoXConfig(**NEOX)), "packed decoder"),
    "short window": (
        lambda: MistralForSequenceClassification(MistralConfig(sliding_window=8, **LLAMA)),
        "padded",
    ),
    "alibi": (
        lambda: BloomForSequenceClassification(
            BloomConfig(hidden_size=16, n_layer=2, n_head=4, **COMMON)
        ),
        "padded",
    ),
    "bert": (lambda: BertForSequenceClassification(BertConfig(**BERT)), "encoder"),
    "roberta": (lambda: RobertaForSequenceClassification(RobertaConfig(**BERT)), "encoder"),
    "projected electra": (
        lambda: ElectraForSequenceClassification(ElectraConfig(embedding_size=8, **BERT)),
        "packed encoder",
    ),
    "distilbert": (
        lambda: DistilBertForSequenceClassification(DistilBertConfig(**DISTIL)),
        "padded",
    ),
}
BY_NAME = {way.name: way for way in (*WAYS, PLAIN)}


def texts(*, padded_end: bool = True) -> RankedTexts:
    """Rankings of 1 to 4 texts that begin alike for 0 to 9 tokens; the end of the last may be the token for padding,
    which decoders have where their end token pads."""
    generator = np.random.default_rng(0)

    def some(length: int) -> np.ndarray:
        return generator.integers(3, VOCABULARY, length)

    rankings = []
    for count, shared in ((2, 5), (4, 9), (1, 0), (3, 0), (2, 1)):
        beginning = some(shared)
        rankings.append(
            [np.concatenate([beginning, some(generator.integers(1, 12))]) for _ in range(count)]
        )
    if padded_end:
        beginning = some(3)
        rankings.append([np.concatenate([beginning, end]) for end in ([4], [PAD, PAD])])
    return RankedTexts.of(rankings)


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[Any, str, RankedTexts]:
    build, way = MODELS[request.param]
    torch.manual_seed(0)
    return build().eval(), way, texts(padded_end=way in ("llama", "packed decoder"))


def one_by_one(model: Any, several: RankedTexts) -> Tensor:
    """Each text alone, without padding, read where transformers reads it."""
    return torch.cat([model(input_ids=torch.from_numpy(ids)[None]).logits for ids in several.ids])


def gradients(model: Any, scores: Tensor) -> dict[str, Tensor]:
    weights = torch.linspace(-1, 2, scores.numel()).view(scores.shape)
    model.zero_grad()
    (scores.tanh() * weights).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def check_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in found.keys() | expected.keys():
        mine, theirs = (side.get(name, torch.zeros(())) for side in (found, expected))
        torch.testing.assert_close(
            *torch.broadcast_tensors(mine, theirs), atol=2e-5, rtol=1e-3, msg=name
        )


def test_the_fastest_way_that_is_right_is_chosen(case) -> None:
    model, name, several = case
    assert choose_forward(model, several).name == name


def test_values_and_gradients_are_those_of_single_texts(case) -> None:
    model, name, several = case
    expected = one_by_one(model, several)
    wanted = gradients(model, expected)
    found = BY_NAME[name].scores(model, several)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    check_same(gradients(model, found), wanted)


@pytest.mark.parametrize("name", ["packed decoder", "packed encoder"])
def test_ways_through_transformers_modules_too(name: str) -> None:
    """They serve where ours do not: their gradients on models that ours serve as well."""
    torch.manual_seed(0)
    model = MODELS["llama" if name == "packed decoder" else "bert"][0]().eval()
    several = texts(padded_end=name == "packed decoder")
    found = BY_NAME[name].scores(model, several)
    expected = one_by_one(model, several)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    check_same(gradients(model, found), gradients(model, one_by_one(model, several)))


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_adapters_are_read(kind: str) -> None:
    torch.manual_seed(0)
    model = MODELS[kind][0]()
    model = with_adapters(model, Lora(use_peft=True, lora_r=2), task="reward", seed=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    several = texts(padded_end=kind == "llama")
    way = choose_forward(model, several)
    assert way.name == MODELS[kind][1]
    found = gradients(model, way.scores(model, several))
    check_same(found, gradients(model, one_by_one(model, several)))
    assert any("lora_A" in name and bool(grad.any()) for name, grad in found.items())


@torch.no_grad()
def test_arithmetic_of_autocast_is_that_of_our_ways() -> None:
    several = texts()
    for kind in ("llama", "bert"):
        model, way = MODELS[kind][0]().eval(), BY_NAME[MODELS[kind][1]]
        exact = way.scores(model, several)
        with torch.autocast("cpu", torch.bfloat16):
            rough = way.scores(model, several).float()
        assert 0 < float((rough - exact).abs().max()) < 0.1 * float(exact.std() + exact.abs().max())


def test_a_way_that_is_wrong_is_not_taken() -> None:
    model = MODELS["llama"][0]().eval()
    slightly = Forward("off", lambda m, t: plain_scores(m, t) * 1.01 + 0.01, shares=False)
    failing = Forward("failing", lambda m, t: m.nothing_of_this_name, shares=False)
    assert choose_forward(model, texts(), [slightly, failing]) is PLAIN
    assert choose_forward(model, texts(), [failing, BY_NAME["llama"]]).name == "llama"


def test_attention_is_left_as_it_was_found() -> None:
    model = MODELS["gpt2"][0]().eval()
    before = model.config._attn_implementation
    BY_NAME["packed decoder"].scores(model, texts())
    with pytest.raises(ValueError, match="another kind of attention"):
        BY_NAME["packed encoder"].scores(model, texts())
    assert model.config._attn_implementation == before


# ---------------------------------------------------------------- the row


def test_doctests() -> None:
    assert doctest.testmod(packing).failed == 0


def test_what_texts_share_stands_once() -> None:
    rankings = [[np.array([7, 8, 1]), np.array([7, 8, 2, 3])], [np.array([5])]]
    several = RankedTexts.of(rankings)
    assert (several.shared, several.num_tokens, several.num_different_tokens) == ((2, 0), 8, 6)
    row = packed(several, np.array([2, 1, 0]), is_causal=True)
    assert row.tokens_T.tolist() == [7, 8, 1, 2, 3, 5]
    assert row.positions_T.tolist() == [0, 1, 2, 2, 3, 0]
    assert row.at_N.tolist() == [2, 1, 5]  # the second is read inside what it shares
    assert row.longest == 4
    with pytest.raises(ValueError, match="bidirectional"):
        packed(several, np.array([0, 0, 0]), is_causal=False)
    row = packed(several.alone(), np.array([0, 0, 0]), is_causal=False)
    assert row.tokens_T.tolist() == [7, 8, 1, 7, 8, 2, 3, 5]


def seen(view: packing.View, query: int) -> set[int]:
    """Places in the row that a query looks at, by the rectangles."""
    slot = int(view.slots[query])
    first_slot = first_key = 0
    for group in view.groups:
        num_slots = group.num_blocks * group.num_queries
        if slot < first_slot + num_slots:
            block, line = divmod(slot - first_slot, group.num_queries)
            start = first_key + block * group.num_keys
            keys = view.keys[start : start + group.num_keys].tolist()
            if group.mask_BQL is not None:
                shown = group.mask_BQL[block, 0, line].tolist()
            else:
                shown = [not group.is_causal or k <= line for k in range(len(keys))]
            assert int(view.queries[slot]) == query
            return {key for key, is_shown in zip(keys, shown, strict=True) if is_shown}
        first_slot, first_key = (
            first_slot + num_slots,
            first_key + group.num_blocks * group.num_keys,
        )
    raise AssertionError(slot)


@pytest.mark.parametrize("is_causal", [True, False])
def test_tokens_see_their_own_text_and_nothing_else(is_causal: bool) -> None:
    several = texts() if is_causal else texts().alone()
    columns = np.array([len(ids) - 1 if is_causal else 0 for ids in several.ids])
    row = packed(several, columns, is_causal=is_causal)
    place = 0
    for ranking, shared in enumerate(several.shared):
        prefix = list(range(place, place + shared))
        place += shared
        for n in range(several.first[ranking], several.first[ranking + 1]):
            own = list(range(place, place + len(several.ids[n]) - shared))
            whole = prefix + own
            assert row.tokens_T[whole].tolist() == several.ids[n].tolist()
            for column, query in enumerate(whole):
                expected = whole[: column + 1] if is_causal else whole
                assert seen(row.every, query) == set(expected)
            assert row.at_N[n] == whole[columns[n]]
            assert seen(row.read, n) == set(whole)
            place += len(own)
    assert place == len(row.tokens_T)


def test_unlike_lengths_do_not_go_together() -> None:
    lengths = [10, 200, 12, 210, 11]
    row = packed(
        RankedTexts.of([[np.arange(length)] for length in lengths]),
        np.zeros(5, dtype=np.int64),
        is_causal=False,
    )
    assert [(g.num_blocks, g.num_keys) for g in row.every.groups] == [(3, 12), (1, 200), (1, 210)]


def test_shared_beginning_leaves_each_text_a_token() -> None:
    assert shared_beginning([np.array([1, 2]), np.array([1, 2]), np.array([1, 2, 3])]) == 1
    assert shared_beginning([np.array([1]), np.array([1])]) == 0
    assert shared_beginning([np.array([1, 2])]) == 0
    assert shared_beginning([np.array([1, 2]), np.array([3, 2])]) == 0


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_recomputed_activations_give_the_same_gradients(kind: str) -> None:
    torch.manual_seed(0)
    model = MODELS[kind][0]().eval()
    way, several = BY_NAME[MODELS[kind][1]], texts(padded_end=False)
    expected = gradients(model, way.scores(model, several))
    switch = getattr(model, "activation_checkpointing_enable", None)  # its name in newer versions
    (switch or model.gradient_checkpointing_enable)({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    check_same(gradients(model, way.scores(model, several)), expected)
    with pytest.raises(ValueError, match="activation checkpointing"):
        BY_NAME["packed decoder" if kind == "llama" else "packed encoder"].scores(model, several)


@pytest.mark.parametrize("is_causal", [True, False])
def test_our_attention_is_torchs(is_causal: bool) -> None:
    """In float64 ours is taken, in float32 torch's; values and gradients, more query heads than key heads."""
    several = texts() if is_causal else texts().alone()
    columns = np.array([len(ids) - 1 if is_causal else 0 for ids in several.ids])
    row = packed(several, columns, is_causal=is_causal)
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(len(row.tokens_T), h, 8, generator=generator) for h in (4, 2, 2)]
    found = []
    for dtype in (torch.float64, torch.float32):
        given = [x.to(dtype).requires_grad_() for x in heads]
        mixed = packed_attention.mixed(row.every, *given, scaling=0.5)
        weights = torch.linspace(-1, 2, mixed.numel(), dtype=dtype).view(mixed.shape)
        found.append([mixed, *torch.autograd.grad((mixed * weights).sum(), given)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours.float(), theirs, atol=2e-5, rtol=1e-4)
    given = [x.bfloat16().requires_grad_() for x in heads]
    mixed = packed_attention.mixed(row.every, *given, scaling=0.5)
    rough = [
        mixed,
        *torch.autograd.grad((mixed * weights.bfloat16().view(mixed.shape)).sum(), given),
    ]
    for ours, theirs in zip(rough, found[1], strict=True):
        assert 0 < float((ours - theirs).detach().norm() / theirs.detach().norm()) < 0.02


@pytest.mark.parametrize("is_causal", [True, False])
def test_a_row_is_filled_up_with_tokens_that_nothing_sees(is_causal: bool) -> None:
    several = texts() if is_causal else texts().alone()
    columns = np.array([len(ids) - 1 if is_causal else 0 for ids in several.ids])
    plain, even = (packed(several, columns, is_causal=is_causal, multiple=m) for m in (1, 64))
    assert len(plain.tokens_T) % 64 and len(even.tokens_T) % 64 == 0
    real = len(plain.tokens_T)
    assert torch.equal(even.tokens_T[:real], plain.tokens_T)
    assert torch.equal(even.every.slots[:real], plain.every.slots)
    assert torch.equal(even.every.keys, plain.every.keys) and torch.equal(even.at_N, plain.at_N)


@pytest.mark.parametrize("kind", ["llama", "bert", "gpt2", "projected electra"])
def test_rows_are_even_in_low_precision_alone(kind: str, monkeypatch) -> None:
    build, way = MODELS[kind]
    lengths: list[int] = []

    def spied(*given: Any, **options: Any) -> packing.Packed:
        row = packed(*given, **options)
        lengths.append(len(row.tokens_T))
        return row

    monkeypatch.setattr(reward_forward, "packed", spied)
    several = texts(padded_end=False)
    for low in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            BY_NAME[way].scores(build().eval(), several)
    assert lengths[0] % 64 and lengths[1] == lengths[0] + -lengths[0] % 64
