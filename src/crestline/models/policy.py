"""What a policy says of given tokens: hidden states, log-probabilities and logits at chosen places.

Owns the choice between our own forward pass (the Llama family: no padding, shared prompts once) and transformers'.
Both give the same numbers within rounding.

Letters: N completions, T tokens, S chosen places (rows of a mask, in order), V vocabulary, C hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crestline.models.blocks import recomputes
from crestline.models.llama_family import LlamaFamily, family_of
from crestline.models.llama_train import fits_window, tree_hidden
from crestline.models.logprobs import EVEN_ROWS, logprobs_and_best_of, logprobs_of, slices
from crestline.models.lora import learns_prompts
from crestline.models.tree import Tree, shared_beginning, tree_of
from crestline.types import BadInput

SHAPED_AFTER_THE_OUTPUT_LAYER = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "output_logit_soft_cap",
    "logits_scaling",
    "logit_scale",
    "lm_head_multiplier",
)
"""Settings of Gemma, RecurrentGemma, xLSTM, Granite, Cohere and Falcon-H1 that change what the output layer gave.

Small logits pass a cap nearly unchanged, so that a probe of an untrained model would not notice it."""

_in_two_parts: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""What `_has_two_parts` found for each model."""


def token_logprobs(
    model: Any,
    tokens_NT: Tensor,
    lengths_N: Tensor,
    chosen_NT: Tensor,
    *,
    temperature: float = 1.0,
    group_size: int = 1,
) -> Tensor:
    """Log-probability [S], float32, nats, of each chosen token given those before it.

    tokens_NT: ids, padded on the right; lengths_N: real tokens. chosen_NT: True at the tokens asked about; never the
    first of a row. temperature: what the logits are divided by. group_size: so many neighbouring rows each may begin
    with the same tokens, which are then read once; it changes the cost alone. N must be a multiple of it.
    """
    chosen_S = tokens_NT[chosen_NT]
    weight = _plain_output_weight(model)
    if weight is None:
        logits_SV = logits_before(model, tokens_NT, lengths_N, chosen_NT, group_size=group_size)
        logits_SV = logits_SV.float() / temperature
        return logits_SV.gather(1, chosen_S[:, None])[:, 0] - logits_SV.logsumexp(1)
    hidden_SC = hidden_before(model, tokens_NT, lengths_N, chosen_NT, group_size=group_size)
    return logprobs_of(hidden_SC, weight, chosen_S, temperature=temperature)


def token_logprobs_and_best(
    model: Any, tokens_NT: Tensor, lengths_N: Tensor, chosen_NT: Tensor
) -> tuple[Tensor, Tensor]:
    """`token_logprobs`, and whether each chosen token is the most likely one, bool [S]."""
    chosen_S = tokens_NT[chosen_NT]
    weight = _plain_output_weight(model)
    if weight is None:
        logprobs_SV = logits_before(model, tokens_NT, lengths_N, chosen_NT).float().log_softmax(-1)
        return logprobs_SV.gather(1, chosen_S[:, None])[:, 0], logprobs_SV.argmax(-1) == chosen_S
    hidden_SC = hidden_before(model, tokens_NT, lengths_N, chosen_NT)
    return logprobs_and_best_of(hidden_SC, weight, chosen_S)


def logits_in_parts(
    model: Any, tokens_NT: Tensor, lengths_N: Tensor, chosen_NT: Tensor
) -> Iterator[Tensor]:
    """`logits_before` a few hundred places at a time: [s, V] each, in order. Not for training."""
    weight = _plain_output_weight(model)
    if weight is None:
        logits_SV = logits_before(model, tokens_NT, lengths_N, chosen_NT)
        yield from (logits_SV[rows] for rows in slices(len(logits_SV)))
        return
    hidden_SC = hidden_before(model, tokens_NT, lengths_N, chosen_NT)
    yield from (F.linear(hidden_SC[rows], weight) for rows in slices(len(hidden_SC)))


def logits_before(
    model: Any, tokens_NT: Tensor, lengths_N: Tensor, chosen_NT: Tensor, *, group_size: int = 1
) -> Tensor:
    """Logits [S, V] from which each chosen token was predicted; arguments as for `token_logprobs`.

    Only these places pass through the output layer where logits are all that it does.
    """
    if not _has_two_parts(model):
        _check(chosen_NT)
        inputs = _inputs(tokens_NT, lengths_N)
        logits: Tensor = model(**inputs, use_cache=False).logits[chosen_NT[:, 1:]]
        return logits
    hidden_SC = hidden_before(model, tokens_NT, lengths_N, chosen_NT, group_size=group_size)
    weight = _plain_output_weight(model)
    if weight is None:
        return model.get_output_embeddings()(hidden_SC)  # type: ignore[no-any-return]
    return F.linear(hidden_SC, weight.to(hidden_SC.dtype))


def hidden_before(
    model: Any, tokens_NT: Tensor, lengths_N: Tensor, chosen_NT: Tensor, *, group_size: int = 1
) -> Tensor:
    """Last hidden states [S, C] from which each chosen token was predicted; arguments as for `token_logprobs`."""
    _check(chosen_NT)
    family = family_of(model)
    if family is not None and not _drops_out(model):
        rows = [
            ids[:length] for ids, length in zip(tokens_NT.tolist(), lengths_N.tolist(), strict=True)
        ]
        ids_NT = tokens_NT.cpu().numpy()
        texts = [ids[: len(row)] for ids, row in zip(ids_NT, rows, strict=True)]
        starts = range(0, len(rows), group_size)
        shared = [shared_beginning(texts[start : start + group_size]) for start in starts]
        low = torch.is_autocast_enabled(tokens_NT.device.type)
        tree = _tree(rows, shared, group_size, EVEN_ROWS if low else 1).to(tokens_NT.device)
        if fits_window(family, tree):
            before_S = _places_before(tree, shared, chosen_NT, group_size)
            return _without_autocast(family, tree, model).index_select(0, before_S)
    hidden = _trunk(model)(**_inputs(tokens_NT, lengths_N), use_cache=False).last_hidden_state
    found: Tensor = hidden[chosen_NT[:, 1:]]
    return found


def _tree(rows: Sequence[Sequence[int]], shared: Sequence[int], size: int, multiple: int) -> Tree:
    prompts = [rows[n * size][:length] for n, length in enumerate(shared)]
    completions = [
        [row[length:] for row in rows[n * size : (n + 1) * size]] for n, length in enumerate(shared)
    ]
    return tree_of(prompts, completions, multiple=multiple)


def _places_before(tree: Tree, shared: Sequence[int], chosen_NT: Tensor, group_size: int) -> Tensor:
    """Place in the layout of the token before each chosen one, [S], in the order of the mask."""
    row_S, column_S = chosen_NT.nonzero(as_tuple=True)
    column_S = column_S - 1
    shared_S = torch.tensor(shared, device=row_S.device)[row_S // group_size]
    in_prompt_S = column_S < shared_S
    prompts, completions = tree.prompts.place_RW, tree.completions.place_RW
    inside_S = (column_S - shared_S).clamp_min(0)
    if completions.shape[1] == 0:
        return prompts[row_S // group_size, column_S]
    places_S = completions[row_S, inside_S.clamp_max(completions.shape[1] - 1)]
    if prompts.shape[1] == 0:
        return places_S
    of_prompt_S = prompts[row_S // group_size, column_S.clamp_max(prompts.shape[1] - 1)]
    return torch.where(in_prompt_S, of_prompt_S, places_S)


def _without_autocast(family: LlamaFamily, tree: Tree, model: Any) -> Tensor:
    """The tree's hidden states in the arithmetic that autocast asks for, which our own pass settles itself."""
    kind = tree.tokens_S.device.type
    enabled = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if enabled else family.embedding.dtype
    with torch.autocast(kind, enabled=False):
        return tree_hidden(family, tree, dtype=dtype, recompute=recomputes(model))


def _trunk(model: Any) -> Any:
    """The model without its output layer, adapters included. Raises BadInput for adapters that are no layers in it."""
    if learns_prompts(model):
        raise BadInput("prompt and prefix tuning are not trained here; use LoRA")
    return _inside(model).base_model


def _inside(model: Any) -> Any:
    """The transformers model inside a PeftModel; any other as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _has_two_parts(model: Any) -> bool:
    """Whether logits are exactly what the output layer makes of the trunk's last hidden states.

    Told by the settings and, for models that are not ours, by a probe, once for each model.
    """
    plain = _inside(model)
    if plain not in _in_two_parts:
        config = plain.config.get_text_config()
        shaped = any(getattr(config, name, None) for name in SHAPED_AFTER_THE_OUTPUT_LAYER)
        ours = family_of(model) is not None
        _in_two_parts[plain] = not shaped and (ours or _passes_probe(model))
    return _in_two_parts[plain]


@torch.no_grad()
def _passes_probe(model: Any) -> bool:
    """Whether trunk and output layer one after the other give the model's own logits for a few tokens."""
    trunk, device = _trunk(model), next(model.parameters()).device
    tokens_NT = torch.arange(4, device=device)[None] % model.config.get_text_config().vocab_size
    try:
        with in_eval(model), torch.autocast(device.type, enabled=False):
            hidden = trunk(input_ids=tokens_NT, use_cache=False).last_hidden_state
            found = model.get_output_embeddings()(hidden)
            logits = model(input_ids=tokens_NT, use_cache=False).logits
        most = float(logits.abs().max())
        return bool(torch.allclose(found, logits, rtol=1e-5, atol=1e-5 * most))
    except Exception:  # whatever a trunk of another shape raises: the whole model is asked then
        return False


@contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """With every module in `eval`; each goes back to the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _inputs(tokens_NT: Tensor, lengths_N: Tensor) -> dict[str, Tensor]:
    """All but the last token of the rectangle: nothing is predicted from it."""
    width = tokens_NT.shape[1] - 1
    column_T = torch.arange(width, device=tokens_NT.device)
    return {
        "input_ids": tokens_NT[:, :-1],
        "attention_mask": (column_T < lengths_N[:, None]).long(),
    }


def _check(chosen_NT: Tensor) -> None:
    if bool(chosen_NT[:, 0].any()):
        raise ValueError("the first token of a row has nothing before it that could predict it")


def _plain_output_weight(model: Any) -> Tensor | None:
    """The output layer's weight where logits are just its product with the hidden states."""
    if not _has_two_parts(model):
        return None
    layer = model.get_output_embeddings()
    return layer.weight if type(layer) is nn.Linear and layer.bias is None else None


def _drops_out(model: Any) -> bool:
    """Whether anything is dropped at random now: our own forward pass knows no dropout."""
    if not model.training:
        return False
    config = model.config
    rates = [getattr(config, name, 0.0) for name in ("attention_dropout", "resid_pdrop")]
    return any(rates) or any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
