"""The memory that a verb's settings ask for, estimated from the files that they name; torch-free on a CPU.

Owns which model and which rows each stage reads, for single verbs and for a whole run. What takes how much is in
`training/memory.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crestline.data.formats import read_demonstrations, read_prompts, read_samples, read_texts
from crestline.data.rankings import read_rankings
from crestline.data.rows import is_large
from crestline.models.size import Size, size_of
from crestline.pipeline.configs import BestOfNConfig, RunConfig
from crestline.pipeline.plan import Sources, rl_settings
from crestline.pipeline.who import world_of
from crestline.training.configs import PretrainConfig, SftConfig
from crestline.training.dpo_configs import DpoConfig
from crestline.training.lengths import Lengths, lengths_of, plain_text
from crestline.training.machine import gpu_memory, memory
from crestline.training.memory import (
    Asked,
    Estimate,
    Place,
    chosen,
    estimated,
    imitation,
    larger,
    preferred,
    ranked,
    reinforced,
)
from crestline.training.reward_configs import RewardConfig
from crestline.training.rl_configs import Ppo, RlConfig, resolved
from crestline.training.savings import changes_of
from crestline.types import Demonstration, Prompt, Ranking

PROMPT_TOKENS = 256
"""Of prompts that cannot be looked at."""
PROMPTS_SAMPLED = 50
"""Prompts that `sample` and `best-of-n` sample together."""
ROWS_OF_WORLD = 200


def estimate(config: Any, device: str = "cpu") -> Estimate | None:
    """What a verb's config will need; None for other verbs, and where a model's size is not known from a folder."""
    place = Place(device.partition(":")[0])
    if isinstance(config, PretrainConfig):
        return of_pretrain(config, _rows(read_texts, config.text), place)
    if isinstance(config, SftConfig):
        rows = _rows(read_demonstrations, config.dataset_name, config.dataset_train_split)
        return of_sft(config, size_of(config.model_name_or_path), rows, place)
    if isinstance(config, RewardConfig):
        rankings = _rows(read_rankings, config.dataset_name, config.dataset_train_split)
        return of_reward(config, size_of(config.model_name_or_path), rankings, place)
    if isinstance(config, DpoConfig):
        rankings = _rows(read_rankings, config.dataset_name, config.dataset_train_split)
        return of_dpo(config, size_of(config.model_name_or_path), rankings, place)
    if isinstance(config, RlConfig):
        prompts = _rows(read_prompts, config.dataset_name, config.dataset_train_split)
        judge = size_of(config.reward_model_name_or_path)
        return of_rl(config, size_of(config.model_name_or_path), judge, prompts, place)
    if isinstance(config, BestOfNConfig):
        return of_best_of_n(config, place)
    if isinstance(config, RunConfig):
        return of_run(config, place)
    return None


def memory_line(config: Any, device: str = "cpu") -> tuple[str, bool]:
    """What to tell people of a config's memory, and whether it is more than is free."""
    found, free = estimate(config, device), free_on(device)
    if found is None:
        return "memory: not estimated: the model's size is not known before it is here", False
    return f"memory: {found.told(free)}", free is not None and found.total > free


def free_on(device: str) -> int | None:
    """Bytes that are free where training computes; None where that is not known."""
    if device.startswith("cuda"):
        found = gpu_memory(device)
        return found[0] if found else None
    here = memory()
    return here.free if here else None


# ---------------------------------------------------------------- stages


def of_pretrain(config: PretrainConfig, texts: Sequence[str], place: Place) -> Estimate:
    longest = Lengths(config.max_length, 0.0, config.max_length)
    lengths = lengths_of(texts) if texts else longest

    def needed(changed: PretrainConfig) -> dict[str, int]:
        return imitation(changed, pretrained_size(changed), lengths, place)

    return estimated(needed, list(changes_of(config)), config)


def pretrained_size(config: PretrainConfig) -> Size:
    """The size of the model that `pretrain` will make."""
    width, inner = config.hidden_size, 3 * config.hidden_size
    layer = 4 * width * width + 3 * width * inner + 2 * width
    return Size(
        kind="llama",
        num_parameters=config.vocab_size * width + config.num_layers * layer + width,
        hidden_size=width,
        num_layers=config.num_layers,
        intermediate_size=inner,
        num_heads=config.num_heads,
        kv_width=width,
        vocab_size=config.vocab_size,
        context=config.max_length,
    )


def of_sft(
    config: SftConfig, size: Size | None, rows: Sequence[Demonstration], place: Place
) -> Estimate | None:
    if size is None:
        return None
    most = min(config.max_length, size.context)
    texts = [plain_text(row.prompt) + row.completion for row in rows]
    lengths = lengths_of(texts, config.model_name_or_path) if texts else Lengths(most, 0.0, most)
    return estimated(lambda c: imitation(c, size, lengths, place), list(changes_of(config)), config)


def of_reward(
    config: RewardConfig, size: Size | None, rankings: Sequence[Ranking], place: Place
) -> Estimate | None:
    if size is None:
        return None
    texts = [text for row in rankings for text in row.completions]
    shown = [plain_text(row.prompt) for row in rankings]
    per_ranking = len(texts) / len(rankings) if rankings else 2.0
    prompts, most = Lengths(0.0, 0.0, 0), min(config.max_length, size.context)
    completions = Lengths(most, 0.0, most)
    if rankings:
        named = config.model_name_or_path
        if size.is_encoder:  # which read a prompt with each completion
            wholes = zip(shown, rankings, strict=True)
            texts = [prompt + text for prompt, row in wholes for text in row.completions]
        else:
            prompts = lengths_of(shown, named)
        completions = lengths_of(texts, named)

    def needed(changed: RewardConfig) -> dict[str, int]:
        return ranked(changed, size, prompts, completions, per_ranking, place)

    return estimated(needed, list(changes_of(config)), config)


def of_dpo(
    config: DpoConfig, size: Size | None, rankings: Sequence[Ranking], place: Place
) -> Estimate | None:
    if size is None:
        return None
    ranked_texts = [
        text
        for row in rankings
        for text, rank in zip(row.completions, row.ranks, strict=True)
        if rank is not None
    ]
    per_ranking = len(ranked_texts) / len(rankings) if rankings else 2.0
    half = min(config.max_length, size.context) // 2
    prompts = completions = Lengths(half, 0.0, half)
    if rankings:
        named = config.model_name_or_path
        prompts = lengths_of([plain_text(row.prompt) for row in rankings], named)
        completions = lengths_of(ranked_texts, named)

    def needed(changed: DpoConfig) -> dict[str, int]:
        return preferred(changed, size, prompts, completions, per_ranking, place)

    return estimated(needed, list(changes_of(config)), config)


def of_rl(
    config: RlConfig, size: Size | None, judge: Size | None, rows: Sequence[Prompt], place: Place
) -> Estimate | None:
    if size is None:
        return None
    texts = [plain_text(row.text) for row in rows]
    unknown = Lengths(PROMPT_TOKENS, 0.0, PROMPT_TOKENS)
    prompts = lengths_of(texts, config.model_name_or_path) if texts else unknown
    prompts = prompts.cut(max(1, size.context - config.max_completion_length))
    critic = None
    if isinstance(config.algorithm, Ppo) and config.algorithm.critic_model_name_or_path:
        critic = size_of(config.algorithm.critic_model_name_or_path)

    def needed(changed: RlConfig) -> dict[str, int]:
        changed = resolved(changed)
        held = changed.checkpoints.num_eval_prompts
        if rows and not changed.eval_dataset_name:
            held = min(held, len(rows) // 5)
        return reinforced(changed, size, prompts, place, num_held=held, reward=judge, critic=critic)

    return estimated(needed, list(changes_of(config)), config)


def of_best_of_n(config: BestOfNConfig, place: Place) -> Estimate | None:
    judge = "" if config.judge_is_function else config.judge
    names = {"reward model": config.reward_model_name_or_path, "judge": judge}
    names["policy"] = "" if config.samples_file else config.model_name_or_path
    sizes = {who: size_of(name) for who, name in names.items() if name}
    known = {who: size for who, size in sizes.items() if size}
    if len(known) < len(sizes):
        return None
    policy = known.pop("policy", None)
    count, longest = _asked(config, policy)

    def needed(changed: BestOfNConfig) -> dict[str, int]:
        scorers = {who: size for who, size in known.items() if who != "judge" or changed.judge}
        group = changed.num_generations
        asked = Asked(count * group, group, longest, changed.max_completion_length)
        if config.samples_file or not changed.samples_file:
            return chosen(scorers, policy, changed.sampler, asked, place)
        return larger(
            chosen({}, policy, changed.sampler, asked, place),
            chosen(scorers, None, changed.sampler, asked, place),
        )

    return estimated(needed, list(_changes_of_best_of_n(config)), config)


def _asked(config: BestOfNConfig, policy: Size | None) -> tuple[int, int]:
    """Prompts that are sampled together, and tokens of the longest one; of samples that are given, of the longest."""
    if policy is None:
        samples = _rows(lambda source, split: read_samples(source), config.samples_file)
        texts = [plain_text(prompt) + text for prompt, found in samples for text in found]
        named = config.reward_model_name_or_path
    else:
        rows = _rows(read_prompts, config.dataset_name, config.dataset_train_split)
        texts = [plain_text(row.text) for row in rows]
        named = config.model_name_or_path
    longest = lengths_of(texts, named).longest if texts else PROMPT_TOKENS
    if policy:
        longest = min(longest, max(1, policy.context - config.max_completion_length))
    return min(len(texts) or PROMPTS_SAMPLED, PROMPTS_SAMPLED), longest


def _changes_of_best_of_n(config: BestOfNConfig) -> Iterator[tuple[str, BestOfNConfig]]:
    """Changes that may lower what it needs, in words, and the changed config."""
    if config.judge and not config.judge_is_function:
        yield "leave out --judge", replace(config, judge="")
    if config.samples_file:
        return
    half = config.max_completion_length // 2 + 1
    yield "lower --max_completion_length", replace(config, max_completion_length=half)
    fewer = max(2, config.num_generations // 4)
    yield "lower --num_generations", replace(config, num_generations=fewer)
    yield "sample first and give --samples_file", replace(config, samples_file="samples.jsonl")


def of_run(config: RunConfig, place: Place) -> Estimate | None:
    """The stage of a run that will need most."""
    sources, material = Sources(config), config.material
    named = material.model_name_or_path
    policy = pretrained_size(config.pretrain) if sources.pretrains else size_of(named)
    backbone = config.reward.model_name_or_path
    judge = size_of(backbone) if backbone else policy
    world = world_of(config.world.name)
    found: dict[str, Estimate | None] = {}
    if sources.pretrains:
        texts = _rows(read_texts, material.text) or world.texts(ROWS_OF_WORLD, 0)
        found["pretrain"] = of_pretrain(config.pretrain, texts, place)
    demonstrations = _rows(read_demonstrations, material.demonstrations)
    demonstrations = demonstrations or world.demonstrations(ROWS_OF_WORLD, 0)
    if sources.fine_tunes:
        settings = replace(config.sft, model_name_or_path=named)
        found["sft"] = of_sft(settings, policy, demonstrations, place)
    prompts = _rows(read_prompts, material.prompts)
    prompts = prompts or [Prompt(text=row.prompt) for row in demonstrations]
    rankings = _rows(read_rankings, material.rankings) or [
        Ranking(
            prompt=row.text,
            completions=("word " * config.sample.max_completion_length,)
            * config.sample.num_generations,
            ranks=(0,) * config.sample.num_generations,
        )
        for row in prompts[:ROWS_OF_WORLD]
    ]
    reward = replace(config.reward, model_name_or_path=backbone or named)
    found["reward"] = of_reward(reward, judge, rankings, place)
    settings_of_rl = replace(rl_settings(config), model_name_or_path=named)
    found["rl"] = of_rl(settings_of_rl, policy, judge, prompts, place)
    known = {stage: each for stage, each in found.items() if each}
    if not known:
        return None
    stage = max(known, key=lambda name: known[name].total)
    flags = [words.replace("--", f"--{stage}.") for words in known[stage].flags]
    return replace(known[stage], flags=flags, stage=stage)


def _rows(read: Callable[..., Sequence[Any]], source: str, split: str = "train") -> Sequence[Any]:
    """The rows of a data set; none where it is on the hub, large, or not named."""
    path = Path(source)
    if not source or not path.exists() or is_large(path):
        return ()
    return read(source, split=split)
