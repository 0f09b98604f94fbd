"""Decoding for the Llama family from plain tensors and a preallocated cache: the fast path of the sampler.

Owns one forward pass with a cache. Knows nothing of sampling or text. Matches transformers' LlamaForCausalLM
within float rounding (a test compares them).

Letters: B rows in the batch, L cache length, S new tokens, H heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def is_supported(model: Any) -> bool:
    """Whether `LlamaDecoder` computes exactly what this model computes."""
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        type(model).__name__ == "LlamaForCausalLM"
        and not getattr(config, "attention_bias", False)
        and not getattr(config, "mlp_bias", False)
        and config.hidden_act == "silu"
        and rope.get("rope_type", "default") == "default"
    )


class LlamaDecoder:
    """A view of the model's weights that decodes; refresh it after every update."""

    def __init__(self, model: Any) -> None:
        config = model.config
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_size = getattr(config, "head_dim", None) or config.hidden_size // self.num_heads
        self.epsilon = config.rms_norm_eps
        self.rope_theta = float((config.rope_parameters or {}).get("rope_theta", 10000.0))
        self.refresh(model)

    def refresh(self, model: Any) -> None:
        """Take the current weights: projections that read the same input are joined."""
        with torch.no_grad():
            self.embedding = model.model.embed_tokens.weight.detach()
            self.output = model.lm_head.weight.detach()
            self.final_norm = model.model.norm.weight.detach()
            self.layers = [
                (
                    layer.input_layernorm.weight.detach(),
                    torch.cat(
                        [
                            layer.self_attn.q_proj.weight,
                            layer.self_attn.k_proj.weight,
                            layer.self_attn.v_proj.weight,
                        ]
                    ).detach(),
                    layer.self_attn.o_proj.weight.detach(),
                    layer.post_attention_layernorm.weight.detach(),
                    torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]).detach(),
                    layer.mlp.down_proj.weight.detach(),
                )
                for layer in model.model.layers
            ]

    def new_cache(self, batch: int, length: int) -> list[tuple[Tensor, Tensor]]:
        shape = (batch, self.num_kv_heads, length, self.head_size)
        weight = self.embedding
        return [(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in self.layers]

    def rotations(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for positions [B, S], each [B, 1, S, D]."""
        half = torch.arange(0, self.head_size, 2, device=positions.device, dtype=torch.float32)
        frequencies = 1.0 / self.rope_theta ** (half / self.head_size)
        angles = positions[..., None].float() * frequencies
        angles = torch.cat([angles, angles], -1)[:, None]
        return angles.cos(), angles.sin()

    def __call__(
        self,
        tokens_BS: Tensor,
        positions_BS: Tensor,
        cache: list[tuple[Tensor, Tensor]],
        start: int,
        bias_BSL: Tensor,
    ) -> Tensor:
        """Logits after the last new token, [B, V]; writes cache columns start … start + S - 1.

        bias_BSL: 0 where a new token may look at a cache column, -inf where not; L = start + S.
        """
        batch, new = tokens_BS.shape
        heads, kv_heads, size = self.num_heads, self.num_kv_heads, self.head_size
        stop = start + new
        cos, sin = self.rotations(positions_BS)
        x = F.embedding(tokens_BS, self.embedding)
        for (norm, qkv, out, norm2, gate_up, down), (keys, values) in zip(
            self.layers, cache, strict=True
        ):
            joined = F.linear(F.rms_norm(x, (x.shape[-1],), norm, self.epsilon), qkv)
            joined = joined.view(batch, new, heads + 2 * kv_heads, size).transpose(1, 2)
            rotated = joined[:, : heads + kv_heads]
            first, second = rotated.chunk(2, -1)
            rotated = rotated * cos + torch.cat([-second, first], -1) * sin
            keys[:, :, start:stop] = rotated[:, heads:]
            values[:, :, start:stop] = joined[:, heads + kv_heads :]
            k, v = keys[:, :, :stop], values[:, :, :stop]
            q = rotated[:, :heads]
            group = heads // kv_heads
            if group > 1:
                q = q.reshape(batch, kv_heads, group * new, size)
            weights = q @ k.transpose(-1, -2) * size**-0.5
            weights = weights + (bias_BSL.repeat(1, group, 1) if group > 1 else bias_BSL)[:, None]
            mixed = weights.softmax(-1) @ v
            if group > 1:
                mixed = mixed.reshape(batch, heads, new, size)
            x = x + F.linear(mixed.transpose(1, 2).reshape(batch, new, heads * size), out)
            gate, up = F.linear(F.rms_norm(x, (x.shape[-1],), norm2, self.epsilon), gate_up).chunk(
                2, -1
            )
            x = x + F.linear(F.silu(gate) * up, down)
        last = F.rms_norm(x[:, -1], (x.shape[-1],), self.final_norm, self.epsilon)
        return F.linear(last, self.output)
