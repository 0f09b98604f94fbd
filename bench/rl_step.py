"""How long does a GRPO step take, beside TRL's GRPOTrainer at its best and beside what the processor could do?

    python bench/rl_step.py --quick           the 7M Llama; a few minutes on 2 idle cores
    python bench/rl_step.py --full            more turns; writes bench/results/rl_step.json
    python bench/rl_step.py --full --size 100m    a Llama of 100M weights; writes bench/results/rl_step_100m.json

Sampling, a reward function that costs nothing, the reference, the learner: 64 completions of 48 tokens to prompts of 8
tokens, groups of 8, KL 0.05 by k3 in the loss. Random weights (bench/peers/llama_*.json), tied embeddings, context
256. TRL first gets its best settings of this machine: float32, bfloat16 autocast or bfloat16 weights, sdpa or eager
attention, and of how many completions go through the model together the fewest that cost no more than 3 % of time
(they take least memory); no activation checkpointing. Both sides train in processes of their own, in turns; ours
is the verb `crestline rl` itself. The first 5 updates are dropped; medians and quartiles of neighbouring turns.

ceiling_fraction: the arithmetic of a step (2 N a token to sample, 2 N for the reference, 6 N for the learner; N
weights; real tokens of prompt and completion) at the rate of bare matrix products of the same shapes, float32 or
bfloat16, whichever is faster here, divided by the time of our step. It is a rate of useful work: prompts that a group
shares are read once, and logits of prompts never made, so less is executed. executed_fraction: what the products of one
update really do, attention's included, as torch's counter has it, at the same rate and divided by the same time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from crestline.models.load import load_policy, load_tokenizer
from crestline.runs.files import write_jsonl_atomic
from demo import machine
from peers.conversations import BENCH, PEERS, SHARED, helpful, llama_7m, require
from peers.pipe import CLOCKS
from peers.side_by_side import Plan, Settings, Side, fastest, in_turns, told_settings, trl_side

ARITHMETIC = ("float32", "bfloat16 autocast", "bfloat16 weights")
PROMPT_TOKENS, COMPLETION_TOKENS, COMPLETIONS, GROUP = 8, 48, 64, 8
NUM_PROMPTS = 512


def prompts_of(model: Path) -> list[dict[str, str]]:
    """Openings of real conversations that are 8 tokens long."""
    tokenizer = load_tokenizer(model)
    found: dict[str, None] = {}
    for prompt, _, _ in helpful():
        text = tokenizer.decode(tokenizer(prompt)["input_ids"][:PROMPT_TOKENS])
        if len(tokenizer(text)["input_ids"]) == PROMPT_TOKENS:
            found[text] = None
    return [{"prompt": text} for text in list(found)[:NUM_PROMPTS]]


def shapes_of(shape: dict[str, int]) -> list[list[int]]:
    """The matrix products of a forward pass over a step's tokens: [m, k, n], as often as they come."""
    tokens, hidden, inner = (
        COMPLETIONS * (PROMPT_TOKENS + COMPLETION_TOKENS),
        shape["hidden_size"],
        shape["intermediate_size"],
    )
    block = [[tokens, hidden, hidden]] * 4 + [[tokens, hidden, inner]] * 2
    block += [[tokens, inner, hidden]]
    return block * shape["num_layers"] + [[tokens, hidden, shape["vocab_size"]]]


def rates(shape: dict[str, int], plan: Plan) -> dict[str, float]:
    """FLOP/s of bare products of the step's shapes, by arithmetic."""
    side = Side("ours", Path(sys.executable), "our_rl.py", plan)
    found: dict[str, float] = {}
    for dtype in ("float32", "bfloat16"):
        question = {"shapes": shapes_of(shape), "dtype": dtype, "clock": plan.clock}
        found[dtype] = side.worker.ask("rate", **question)["flop_per_second"]
    side.close()
    return found


def executed(question: Settings, plan: Plan) -> Settings:
    """FLOP that the products of one of our updates do, and its tokens of completions."""
    side = Side("ours", Path(sys.executable), "our_rl.py", plan)
    found = side.worker.ask("executed", **question)
    side.close()
    return found


def best_of_trl(question: Settings, plan: Plan) -> Settings:
    """Arithmetic first, then attention, then how many completions go through the model together: the fewest that are
    about as fast, for their memory."""
    return fastest(
        "trl_rl.py",
        plan,
        question,
        [
            lambda best: [
                {"arithmetic": name, "attention": "sdpa", "per_device": COMPLETIONS}
                for name in ARITHMETIC
            ],
            lambda best: [{**best, "attention": "eager"}],
            lambda best: [{**best, "per_device": size} for size in (32, 16, 8, 4)],
        ],
        tolerance=0.03,
    )


def measured(work: Path, options: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """The comparison and the ceiling."""
    shape = json.loads((BENCH / "peers" / f"llama_{options.size}.json").read_text())
    model = llama_7m(work / "model", size=options.size, max_position=256)
    prompts = write_prompts(work / "prompts.jsonl", model)
    policy = load_policy(model)
    num_weights = sum(parameter.numel() for parameter in policy.parameters())
    rows = len(policy.get_input_embeddings().weight)
    if rows != len(load_tokenizer(model)):
        raise RuntimeError(f"{rows} embeddings for {len(load_tokenizer(model))} tokens")
    question: Settings = {
        "model": str(model),
        "prompts": str(prompts),
        "num_completions": COMPLETIONS,
        "num_generations": GROUP,
        "max_completion_length": COMPLETION_TOKENS,
        "beta": 0.05,
        "learning_rate": 1e-4,
        "seed": 0,
    }
    settings = told_settings(options.trl, "arithmetic", "attention", "per_device") or best_of_trl(
        question, plan
    )
    ours = Side("ours", Path(sys.executable), "our_rl.py", plan)
    trl = trl_side("trl_rl.py", plan)
    ours.open({**question, "dtype": options.dtype})
    trl.open({**question, **settings})
    trl.steps(1)
    found = in_turns(ours, trl, plan)
    ended = found.pop("ended")
    tokens = ended["ours"]["num_completion_tokens"] + COMPLETIONS * PROMPT_TOKENS
    flop = 10.0 * num_weights * tokens
    rate = rates(shape, plan)
    fastest_rate = max(rate.values())
    done = executed({**question, "dtype": "float32"}, plan)
    done_flop = done["flop"] * tokens / (done["tokens"] + COMPLETIONS * PROMPT_TOKENS)
    return {
        "speedup_vs_trl": found["ratio"],
        "ceiling_fraction": round(flop / fastest_rate / found["our_seconds"], 4),
        "ceiling_fraction_bfloat16": round(flop / rate["bfloat16"] / found["our_seconds"], 4),
        "executed_fraction": round(done_flop / fastest_rate / found["our_seconds"], 4),
        "memory_vs_trl": round(found["our_peak_mb"] / found["trl_peak_mb"], 3),
        "size": options.size,
        "num_weights": num_weights,
        "tokens_per_step": round(tokens, 1),
        "gflop_per_step": round(flop / 1e9, 1),
        "gflop_executed": round(done_flop / 1e9, 1),
        "ceiling_seconds": round(flop / fastest_rate, 4),
        **{f"gflop_per_second_{name}": round(value / 1e9, 1) for name, value in rate.items()},
        "trl_settings": settings,
        **found,
    }


def write_prompts(path: Path, model: Path) -> Path:
    write_jsonl_atomic(path, prompts_of(model))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--size", choices=("7m", "100m"), default="7m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--trl", default="", help="arithmetic,attention,completions: found before")
    parser.add_argument("--dtype", default="auto", help="our arithmetic, as --dtype of the verb")
    options = parser.parse_args()
    require(PEERS / ".done", SHARED / "hh-rlhf" / "helpful-base" / "test.jsonl.gz")
    turns, steps = (9, 3) if options.full and options.size == "7m" else (5, 2)
    large = options.size == "100m"
    plan = Plan(
        threads=options.threads,
        clock=options.clock,
        dropped=1 if large else 5,
        turns=turns,
        steps=1 if large else steps,
        search_steps=1 if large else 3,
    )
    with tempfile.TemporaryDirectory() as work:
        found = measured(Path(work), options, plan)
    print(
        f"{options.size} ({found['num_weights'] / 1e6:.1f}M weights), {options.threads} threads\n"
        f"  ours {found['our_seconds']:.3f} s, TRL {found['trl_seconds']:.3f} s a step "
        f"({', '.join(map(str, found['trl_settings'].values()))}): {found['ratio']:.2f} times "
        f"({found['ratio_quartiles'][0]:.2f} to {found['ratio_quartiles'][1]:.2f})\n"
        f"  {found['gflop_per_step']:.0f} GFLOP a step; bare products "
        f"{found['gflop_per_second_float32']:.0f} GFLOP/s in float32, "
        f"{found['gflop_per_second_bfloat16']:.0f} in bfloat16: at best {found['ceiling_seconds']:.3f} s, "
        f"{found['ceiling_fraction']:.0%} reached; {found['gflop_executed']:.0f} GFLOP are executed, "
        f"{found['executed_fraction']:.0%}\n"
        f"  peak memory {found['our_peak_mb']} MB against {found['trl_peak_mb']}"
    )
    figures = {**found, "machine": machine(), "threads": options.threads, "clock": options.clock}
    if options.full:
        name = "rl_step" if options.size == "7m" else f"rl_step_{options.size}"
        (BENCH / "results" / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps({k: v for k, v in figures.items() if k != "turns"}))


if __name__ == "__main__":
    main()
