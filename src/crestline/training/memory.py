"""How much memory a stage will need, told before anything is loaded, and which flags would change it.

Owns the estimate: what training, sampling and scoring keep, from a model's size and the lengths of rows. Torch-free.
It is an estimate: of the runs that were measured it is between 0.82 and 1.34 of the process's peak
(docs/doctor.md).

Letters as in tensor code: T tokens, V vocabulary; bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from crestline.models.processor import multiplies_bfloat16_fast
from crestline.models.size import OWN_DECODER, OWN_PASS, Size
from crestline.training.configs import (
    Lora,
    Optimization,
    PretrainConfig,
    SftConfig,
    rows_together,
    tokens_together,
)
from crestline.training.dpo_configs import DpoConfig
from crestline.training.lengths import Lengths
from crestline.training.machine import gigabytes
from crestline.training.reward_configs import RewardConfig
from crestline.training.rl_configs import Ppo, RlConfig

FLOAT, HALF = 4, 2
PROCESS = 550_000_000
"""What Python, torch and transformers take before a model is loaded."""
GPU_CONTEXT = 500_000_000
"""What a process takes of a GPU before a model is loaded."""
KEPT_LOGPROBS = 128 << 20
"""Log-probabilities that are kept for the backward pass, at most; beyond, none are: they are computed again."""
SLICE = 512
"""Places that pass through the output layer together."""
ROWS_SAMPLED, FEWEST_ROWS_SAMPLED = 256, 16
"""Completions that the sampler writes at once, at most; and how many it writes whatever they take."""
CACHE = 2 << 30
"""Fewer are written at once where their own keys and values would take more."""
SHORT_PROMPT = 64
"""Keys and values of a longer prompt are stored once for all its completions, in our own decoder."""
LOGITS_SAMPLED = 1 << 24
"""Logits (a number of them) that the sampler looks at together."""
TOKENS_SCORED = {"cpu": 2048, "cuda": 65536}
"""Tokens that a reward model scores together, by kind of device."""


@dataclass(frozen=True)
class Pass:
    """Numbers that a forward pass keeps for each token and layer: so many times the hidden size, the inner size, and
    heads times the tokens that a token may look at."""

    hidden: float
    inner: float
    looks: float


OURS, ENCODER, OTHER = Pass(9, 4, 1.5), Pass(11, 4, 0.0), Pass(14, 8, 3.0)
RANKED = Pass(9, 4, 0.0)
"""Of our own pass over a decoder that scores: it keeps no attention weights, or few."""


@dataclass(frozen=True)
class Place:
    """Where training computes. kind: cpu, cuda or mps."""

    kind: str = "cpu"

    def width(self, optimization: Optimization) -> int:
        """Bytes of a number that is kept for the backward pass."""
        if optimization.dtype != "auto":
            return HALF if optimization.dtype == "bfloat16" else FLOAT
        fast = self.kind == "cuda" or (self.kind == "cpu" and multiplies_bfloat16_fast())
        return HALF if fast else FLOAT

    @property
    def before(self) -> dict[str, int]:
        """What is taken before a model is loaded."""
        return (
            {"GPU context": GPU_CONTEXT} if self.kind == "cuda" else {"Python and torch": PROCESS}
        )


@dataclass(frozen=True)
class Asked:
    """Completions that are asked for. rows: of them; group: of each prompt. prompt, written: tokens."""

    rows: int
    group: int
    prompt: int
    written: int


# ---------------------------------------------------------------- what takes how much


@dataclass(frozen=True)
class Estimate:
    """Bytes by what takes them.

    flags: what would lower it, the most helpful first. stage: which one of a run; empty for a single verb.
    """

    pieces: Mapping[str, int]
    flags: Sequence[str] = ()
    stage: str = ""

    @property
    def total(self) -> int:
        return sum(self.pieces.values())

    def told(self, free: int | None) -> str:
        """One line: the sum, what it is made of, and what to change if it is more than is free (None: not known)."""
        parts = sorted(self.pieces.items(), key=lambda piece: -piece[1])
        largest = [(name, size) for name, size in parts if size >= 0.04 * self.total]
        where = f" in {self.stage}" if self.stage else ""
        line = f"about {gigabytes(self.total)}{where}: " + ", ".join(
            f"{name} {gigabytes(size)}" for name, size in largest
        )
        if free is None:
            return line
        if self.total <= free:
            return f"{line}; {gigabytes(free)} are free"
        return f"{line}; only {gigabytes(free)} are free: {', or '.join(self.flags[:3])}"


def estimated(
    needed: Callable[[Any], dict[str, int]], changes: Sequence[tuple[str, Any]], config: Any
) -> Estimate:
    """The estimate of a config, and of what each change of it would save."""
    pieces = needed(config)
    total = sum(pieces.values())
    savings = {words: total - sum(needed(changed).values()) for words, changed in changes}
    helpful = [words for words, saved in savings.items() if saved > 0.04 * total]
    helpful.sort(key=lambda words: -savings[words])
    return Estimate(pieces, [*helpful, "take a smaller model"])


def activations(
    size: Size, kept: Pass, tokens: int, longest: int, optimization: Optimization, place: Place
) -> int:
    """Kept for the backward pass of a micro-batch. tokens: of all its rows, padding included; longest: of one row."""
    width = place.width(optimization)
    layer = kept.hidden * size.hidden_size + kept.inner * size.intermediate_size
    layer += kept.looks * size.num_heads * longest
    layers = (
        (size.num_layers * size.hidden_size / layer + 1)
        if optimization.gradient_checkpointing
        else size.num_layers
    )
    copied = 0
    if kept is not OTHER or width == HALF:  # weights side by side, or in another precision
        copied = size.joined_weights
        if optimization.gradient_checkpointing:
            copied //= size.num_layers
    return int(width * (tokens * layers * layer + copied))


def trained(size: Size, lora: Lora) -> dict[str, int]:
    """Weights, and gradients with AdamW's two moments."""
    numbers = size.num_parameters
    if not lora.use_peft:
        return {"weights": FLOAT * numbers, "gradients and optimiser": 3 * FLOAT * numbers}
    hidden, inner = size.hidden_size, size.intermediate_size
    widths = 2 * (hidden + hidden) + 2 * (hidden + size.kv_width) + 3 * (hidden + inner)
    added = size.num_layers * lora.lora_r * widths
    return {"weights": FLOAT * (numbers + added), "gradients and optimiser": 3 * FLOAT * added}


def output_layer(size: Size, places: int) -> int:
    """Log-probabilities of places, kept and in passing."""
    kept = FLOAT * places * size.vocab_size
    return (kept if kept <= KEPT_LOGPROBS else 0) + 4 * FLOAT * SLICE * size.vocab_size


def imitation(
    config: SftConfig | PretrainConfig, size: Size, lengths: Lengths, place: Place
) -> dict[str, int]:
    """Of `sft` and `pretrain`."""
    lora = config.lora if isinstance(config, SftConfig) else Lora()
    lengths = lengths.cut(min(config.max_length, size.context))
    most = rows_together(config.optimization.micro_batch_size, lengths.longest, place.kind)
    rows = min(config.batch_size, most)
    kept = OURS if size.kind in OWN_PASS else OTHER
    tokens = lengths.together(rows)
    read = tokens if kept is OURS else rows * lengths.longest
    return {
        **place.before,
        **trained(size, lora),
        "activations": activations(size, kept, read, lengths.longest, config.optimization, place),
        "output layer": output_layer(size, tokens),
    }


def ranked(
    config: RewardConfig,
    size: Size,
    prompts: Lengths,
    completions: Lengths,
    per_ranking: float,
    place: Place,
) -> dict[str, int]:
    """Of `reward`. prompts: read once for each ranking, no tokens where they are read with every completion and stand
    in completions; per_ranking: completions of a ranking."""
    if config.half_depth:
        size = halved(size)
    most = min(config.max_length, size.context)
    longest = min(most, prompts.longest + completions.longest)
    prompts, completions = prompts.cut(most), completions.cut(most)
    texts = min(round(config.batch_size * per_ranking), config.optimization.micro_batch_size)
    read = completions.together(texts) + prompts.together(max(1, round(texts / per_ranking)))
    whole = prompts.longest + round(completions.longest * per_ranking)
    tokens = max(min(read, tokens_together(place.kind, ranked=True)), whole)
    kept = ENCODER if size.is_encoder else RANKED if size.kind in OWN_PASS else OTHER
    pieces = {
        **place.before,
        **trained(size, config.lora),
        "activations": activations(size, kept, tokens, longest, config.optimization, place),
    }
    if config.ensemble.members == "models" and config.ensemble.num_members > 1:
        others = config.ensemble.num_members - 1
        pieces["other members"] = others * FLOAT * size.num_parameters
    return pieces


def preferred(
    config: DpoConfig,
    size: Size,
    prompts: Lengths,
    completions: Lengths,
    per_ranking: float,
    place: Place,
) -> dict[str, int]:
    """Of `dpo`. prompts, completions: their lengths; per_ranking: completions of a ranking.

    Completions of a ranking go through together. Our own forward pass reads their prompt once; others read it with each
    of them, in a rectangle.
    """
    most = min(config.max_length, size.context)
    completions = completions.cut(most - 1)
    prompts = prompts.cut(max(1, most - round(completions.mean)))
    longest = min(most, prompts.longest + completions.longest)
    group = max(1, round(per_ranking))
    answers = completions.together(group)
    whole = prompts.longest + answers
    rankings = min(config.batch_size, max(1, config.optimization.micro_batch_size // group))
    tokens = prompts.together(rankings) + completions.together(rankings * group)
    tokens = max(whole, min(tokens, tokens_together(place.kind)))
    kept = OURS if size.kind in OWN_PASS else OTHER
    read = tokens if kept is OURS else tokens * group * longest // whole
    return {
        **place.before,
        **trained(size, config.lora),
        "reference": 0 if config.lora.use_peft else FLOAT * size.num_parameters,
        "activations": activations(size, kept, read, longest, config.optimization, place),
        "output layer": output_layer(size, tokens * answers // whole),
    }


def halved(size: Size) -> Size:
    """With the first half of the layers."""
    layers = max(1, size.num_layers // 2)
    outside = size.vocab_size * size.hidden_size
    inside = max(0, size.num_parameters - outside)
    return replace(
        size, num_layers=layers, num_parameters=outside + inside * layers // size.num_layers
    )


def reinforced(
    config: RlConfig,
    size: Size,
    prompts: Lengths,
    place: Place,
    *,
    num_held: int,
    reward: Size | None,
    critic: Size | None,
) -> dict[str, int]:
    """Of `rl`, which samples and then trains: the larger of the two counts.

    prompts: their lengths. num_held: prompts that checkpoints answer. reward: None where no reward model is in this
    process; critic: of ppo, None for the policy's own size.
    """
    group, written = config.num_generations, config.max_completion_length
    rows = config.num_prompts * group
    own = place.width(config.optimization)
    ours = decodes(size, config.sampler)
    asked = (
        Asked(rows, group, prompts.longest, written),
        Asked(num_held, 1, prompts.longest, written),
    )
    longest = prompts.longest + written
    most = config.optimization.micro_batch_size
    rows = min(rows, max(min(group, most), rows_together(most, longest, place.kind)))
    kept = OURS if size.kind in OWN_PASS else OTHER
    read = prompts.together(-(-rows // group)) + rows * written if kept is OURS else rows * longest
    working = {
        "sampling": max(sampling(size, each, own, ours=ours) for each in asked),
        "activations": activations(size, kept, read, longest, config.optimization, place)
        + output_layer(size, rows * written),
    }
    if isinstance(config.algorithm, Ppo):
        critic = critic or size
        working["activations"] += activations(
            critic, kept, read, longest, config.optimization, place
        )
    largest = max(working, key=lambda name: working[name])
    copied = ours and (config.lora.use_peft or own == HALF)
    shaped = config.shaping.reward_shaping != "raw"  # the reference is sampled, too
    return {
        **place.before,
        **trained(size, config.lora),
        "reference": 0 if config.lora.use_peft else FLOAT * size.num_parameters,
        "sampler's weights": own
        * size.num_parameters
        * (copied + (shaped and ours and own == HALF)),
        "reward model": FLOAT * reward.num_parameters if reward else 0,
        "critic": sum(trained(critic, Lora()).values()) if critic else 0,
        largest: working[largest],
    }


def chosen(
    scorers: Mapping[str, Size], policy: Size | None, sampler: str, asked: Asked, place: Place
) -> dict[str, int]:
    """Of `best-of-n`, which samples and then scores: the larger of the two counts.

    scorers: reward models by what they do, there all the time. policy: None where samples are given.
    """
    held = {name: FLOAT * size.num_parameters for name, size in scorers.items()}
    longest = asked.prompt + asked.written
    scored = {"scoring": max((scoring(s, longest, place) for s in scorers.values()), default=0)}
    if policy is None:
        return {**place.before, **held, **scored}
    own, ours = place.width(Optimization()), decodes(policy, sampler)
    sampled = {
        "policy": FLOAT * policy.num_parameters,
        "sampler's weights": own * policy.num_parameters * (ours and own == HALF),
        "sampling": sampling(policy, asked, own, ours=ours),
    }
    return {**place.before, **held, **larger(sampled, scored)}


def larger(*needs: dict[str, int]) -> dict[str, int]:
    """What needs most, of things that are done one after the other."""
    return max(needs, key=lambda pieces: sum(pieces.values()))


def decodes(size: Size, sampler: str) -> bool:
    """Whether our own decoder samples."""
    return size.kind in OWN_DECODER and sampler in ("auto", "ours")


def sampling(size: Size, asked: Asked, width: int, *, ours: bool) -> int:
    """Keys, values and logits of completions that are written at once. width: bytes of a number in our decoder."""
    rows, prompt, stored = min(asked.rows, ROWS_SAMPLED), asked.prompt, 0
    token = (width if ours else FLOAT) * 2 * size.num_layers * size.kv_width
    if ours:
        if prompt > SHORT_PROMPT:
            prompt, stored = 0, prompt
        most = CACHE // max(1, token * (prompt + asked.written))
        rows = min(rows, max(FEWEST_ROWS_SAMPLED, most))
    cache = token * (rows * (prompt + asked.written) + -(-rows // asked.group) * stored)
    return cache + 4 * FLOAT * min(rows * size.vocab_size, LOGITS_SAMPLED)


def scoring(size: Size, longest: int, place: Place) -> int:
    """What a layer of a reward model hands on, of texts that are scored together; longest: tokens of one."""
    tokens = max(TOKENS_SCORED.get(place.kind, TOKENS_SCORED["cpu"]), min(longest, size.context))
    return (
        FLOAT * tokens * int(OTHER.hidden * size.hidden_size + OTHER.inner * size.intermediate_size)
    )
