"""How fast does a policy write, beside `transformers.generate` at its best on this machine?

    python bench/sampler.py --quick    a few minutes on 2 idle cores
    python bench/sampler.py --full     more turns; writes bench/results/sampler.json

A Llama of 7.2M random weights (6 layers × 288, tied embeddings, vocabulary 4,096), groups of 8, 64 at a time:

- short: 64 completions of 48 tokens to prompts of 8 tokens, nobody ends early (`speedup_vs_generate`);
- shared: the same to prompts of 256 tokens, context 1,024 (`speedup_shared_prompt`);
- uneven: 256 completions of at most 96 tokens that end with a chance of 1 in 24 a token (`speedup_uneven`).

`generate` first gets its best of float32, bfloat16 and autocast, eager and sdpa attention. Then both sides take turns;
medians and quartiles of the ratios. Ours records the log-probability of every token, `generate` does not.

Also: the share of completions that change when their neighbours, the size of the batch, the order or the number of
threads change; how far recorded log-probabilities lie from a fresh float32 forward pass of transformers; the decoding
arithmetic (2 FLOP a weight and token) as a fraction of bare matrix products of the same shapes.

    --clock processor --threads 1    processor time in place of seconds, where others use the machine too
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from crestline.models.sampler import PolicySampler
from demo import machine

RESULTS = Path(__file__).resolve().parent / "results"
VOCABULARY, GROUP, AT_ONCE = 4096, 8, 64
CLOCKS: dict[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "processor": time.process_time,
}


@dataclass(frozen=True)
class Workload:
    """What both sides write. ends: how many ids of the vocabulary end a completion."""

    name: str
    completions: int
    prompt_tokens: int
    new_tokens: int
    context: int
    ends: int


WORKLOADS = (
    Workload("short", 64, 8, 48, 256, 0),
    Workload("shared", 64, 256, 48, 1024, 0),
    Workload("uneven", 256, 8, 96, 256, VOCABULARY // 24),
)


def policy_of(work: Workload) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=288,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        intermediate_size=768,
        max_position_embeddings=work.context,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def words() -> Any:
    """A tokenizer for which every word is a token."""
    tokenizer = Tokenizer(models.WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0")


def prompts_of(work: Workload) -> list[str]:
    """Groups of equal prompts."""
    numbers = np.random.default_rng(0).integers(
        5, VOCABULARY, (work.completions // GROUP, work.prompt_tokens)
    )
    return [" ".join(f"w{n}" for n in row) for row in numbers for _ in range(GROUP)]


class Ours:
    """`PolicySampler`."""

    def __init__(self, work: Workload, **settings: Any) -> None:
        self.prompts = prompts_of(work)
        self.sampler = PolicySampler(
            policy_of(work),
            words(),
            max_completion_length=work.new_tokens,
            batch_size=AT_ONCE,
            **settings,
        )
        self.sampler.end_ids = ends_of(work)

    def write(self) -> int:
        """Tokens written."""
        completions = self.sampler.sample(self.prompts, range(len(self.prompts)))
        return sum(len(completion.tokens) for completion in completions)


def ends_of(work: Workload) -> list[int]:
    return list(range(5, 5 + work.ends))


class Theirs:
    """`generate`, 64 completions at a time."""

    def __init__(self, work: Workload, arithmetic: str, attention: str) -> None:
        self.settings = {"arithmetic": arithmetic, "attention": attention}
        self.model = policy_of(work)
        self.model.set_attn_implementation(attention)
        if arithmetic == "bfloat16 weights":
            self.model.to(torch.bfloat16)
        self.autocast = arithmetic == "bfloat16 autocast"
        self.ids = torch.tensor(words()(prompts_of(work))["input_ids"])
        self.ends = ends_of(work)
        self.new_tokens = work.new_tokens

    def write(self) -> int:
        tokens = 0
        for ids in self.ids.split(AT_ONCE):
            with torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext():
                found = self.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=True,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=self.new_tokens,
                    eos_token_id=self.ends or None,
                    pad_token_id=0,
                )
            written = found[:, ids.shape[1] :]
            ended = torch.isin(written, torch.tensor(self.ends)).int().cumsum(1)
            tokens += int((ended - torch.isin(written, torch.tensor(self.ends)).int() == 0).sum())
        return tokens


def timed(side: Ours | Theirs, clock: Callable[[], float]) -> tuple[float, int]:
    began = clock()
    tokens = side.write()
    return clock() - began, tokens


def best_of_generate(work: Workload, clock: Callable[[], float]) -> Theirs:
    arithmetic = ("float32", "bfloat16 autocast", "bfloat16 weights")
    tried: list[tuple[float, Theirs]] = []
    for settings in itertools.product(arithmetic, ("eager", "sdpa")):
        side = Theirs(work, *settings)
        seconds = min(timed(side, clock)[0] for _ in range(2))
        print(f"  generate, {settings[0]}, {settings[1]}: {seconds:.2f} s", flush=True)
        tried.append((seconds, side))
    return min(tried, key=lambda pair: pair[0])[1]


def compared(work: Workload, turns: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Seconds for each token on both sides, in turns."""
    print(f"{work.name}:", flush=True)
    theirs, ours = best_of_generate(work, clock), Ours(work)
    ours.write()
    pairs = []
    for number in range(turns):
        order = (theirs, ours) if number % 2 == 0 else (ours, theirs)
        took = {side: timed(side, clock) for side in order}
        pairs.append([seconds / tokens for seconds, tokens in (took[theirs], took[ours])])
    slow, fast = np.array(pairs).T
    low, ratio, high = np.quantile(slow / fast, (0.25, 0.5, 0.75))
    found = {
        "speedup": round(float(ratio), 3),
        "quartiles": [round(float(low), 3), round(float(high), 3)],
        "turns": turns,
        "our_tokens_per_second": round(float(1 / np.median(fast))),
        "generate_tokens_per_second": round(float(1 / np.median(slow))),
        "generate_settings": theirs.settings,
        "our_dtype": str(ours.sampler.engine.decoder.shadow.dtype),  # type: ignore[attr-defined]
    }
    print(f"  ours {found['our_tokens_per_second']:,} tokens/s, generate ", end="")
    print(f"{found['generate_tokens_per_second']:,}; {ratio:.2f}× ({low:.2f} … {high:.2f})")
    return found


# ---- exactness -----------------------------------------------------------------------------


def said(side: Ours, order: Any = None) -> list[Any]:
    """What each completion is, to the last bit, whatever the order they are asked in."""
    order = np.arange(len(side.prompts)) if order is None else order
    found = side.sampler.sample([side.prompts[n] for n in order], order.tolist())
    return [(found[n].tokens, found[n].logprobs) for n in np.argsort(order)]


def differing(work: Workload, dtype: torch.dtype) -> dict[str, float]:
    """Share of completions that company changes."""
    side, threads = Ours(work, dtype=dtype), torch.get_num_threads()
    expected = said(side)
    found: dict[str, Any] = {}
    for rows in (1, 5, 16, 256):
        side.sampler.batch_size = rows
        if rows > 1 or work.completions <= 64:
            found[f"batch of {rows}"] = said(side)
    side.sampler.batch_size = AT_ONCE
    found["shuffled"] = said(side, np.random.default_rng(1).permutation(len(side.prompts)))
    torch.set_num_threads(1 if threads > 1 else 2)
    found[f"{torch.get_num_threads()} threads"] = said(side)
    torch.set_num_threads(threads)
    return {
        name: sum(a != b for a, b in zip(other, expected, strict=True)) / len(expected)
        for name, other in found.items()
    }


@torch.no_grad()
def logprob_difference(work: Workload, dtype: torch.dtype) -> dict[str, float]:
    """Recorded log-probabilities minus those of a fresh float32 forward pass, nats a token."""
    side = Ours(work, dtype=dtype)
    completions = side.sampler.sample(side.prompts, range(len(side.prompts)))
    gaps = []
    for ids, completion in zip(side.sampler.encode(side.prompts), completions, strict=True):
        tokens = torch.tensor([[*ids, *completion.tokens]])
        logits = side.sampler.model(tokens).logits[0, len(ids) - 1 : -1].double()
        fresh = logits.log_softmax(1).gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
        gaps.append(torch.tensor(completion.logprobs).double() - fresh)
    gap = torch.cat(gaps)
    ratio = gap.exp()
    return {
        "mean_absolute": float(gap.abs().mean()),
        "largest": float(gap.abs().max()),
        "mean_ratio": float(ratio.mean()),
    }


def ceiling(work: Workload, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """Seconds that the matrix products of one step of 64 rows take by themselves."""
    model = policy_of(work)
    maps = [m.weight.to(dtype) for m in model.modules() if isinstance(m, torch.nn.Linear)]
    given = {width: torch.randn(AT_ONCE, width).to(dtype) for width in (288, 768)}
    times = []
    for _ in range(20):
        began = clock()
        for weight in maps:
            torch.nn.functional.linear(given[weight.shape[1]], weight)
        times.append(clock() - began)
    return float(np.median(times))


# ---- all of it -----------------------------------------------------------------------------


def measured(turns: int, clock: Callable[[], float]) -> dict[str, Any]:
    speeds = {work.name: compared(work, turns, clock) for work in WORKLOADS}
    short = WORKLOADS[0]
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    changed = {
        f"{name}, {work.name}": differing(work, dtype)
        for name, dtype in dtypes.items()
        for work in WORKLOADS
    }
    gaps = {name: logprob_difference(short, dtype) for name, dtype in dtypes.items()}
    steps = {name: ceiling(short, dtype, clock) for name, dtype in dtypes.items()}
    step = AT_ONCE / speeds["short"]["our_tokens_per_second"]
    print("\nshare of completions that company changes:")
    for name, shares in changed.items():
        print(f"  {name}: " + ", ".join(f"{key} {share:.4f}" for key, share in shares.items()))
    print("log-probabilities against a fresh float32 pass, nats a token:")
    for name, gap in gaps.items():
        print(f"  {name}: mean {gap['mean_absolute']:.1e}, largest {gap['largest']:.1e}")
    print(f"a step of {AT_ONCE} rows: {1e3 * step:.2f} ms; its matrix products alone: ", end="")
    print(", ".join(f"{1e3 * seconds:.2f} ms in {name}" for name, seconds in steps.items()))
    return {
        "speedup_vs_generate": speeds["short"]["speedup"],
        "speedup_shared_prompt": speeds["shared"]["speedup"],
        "speedup_uneven": speeds["uneven"]["speedup"],
        "tokens_per_second": speeds["short"]["our_tokens_per_second"],
        "differing_completions": max(max(shares.values()) for shares in changed.values()),
        "logprob_difference": gaps,
        "products_fraction": round(min(steps.values()) / step, 3),
        "workloads": speeds,
        "differing": changed,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--quick", action="store_true")
    how.add_argument("--full", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measured(9 if options.full else 5, CLOCKS[options.clock])
    found = {"mode": "full" if options.full else "quick", "clock": options.clock, **found}
    found["machine"] = machine()
    if options.full:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "sampler.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
