"""The RL verb: a policy, a reward and prompts in; checkpoints on a grid of distance out.

Owns who takes part and in which order. How samples become batches is in `rollouts`, when checkpoints are kept in
`grid`, what an algorithm is on its page.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crestline.data.formats import read_prompts
from crestline.models.critic import Critic, new_critic
from crestline.models.load import load_policy, load_tokenizer
from crestline.models.lora import with_adapters
from crestline.models.reference import Reference
from crestline.models.sampling import open_sampler
from crestline.runs.files import write_json
from crestline.runs.folder import RunFolder
from crestline.runs.settings import plain
from crestline.training.arithmetic import products_in
from crestline.training.configs import required
from crestline.training.finish import finished, open_stage, ship_final
from crestline.training.fit import Keeper, fit, save_checkpoint
from crestline.training.grid import DistanceGrid
from crestline.training.health import Watchdog
from crestline.training.learner import Learner, Loss
from crestline.training.rewarding import reward_of
from crestline.training.rl_configs import RESOLVED, RESOLVED_FILE, Ppo, RlConfig, resolved
from crestline.training.rollouts import Cast, RlSource, prompt_column
from crestline.training.seeds import stream
from crestline.training.surrogate import Surrogate
from crestline.training.trackers import mirrored
from crestline.types import BadInput, Progress, Prompt, Sampler, silent


def rl(config: RlConfig, *, device: str = "cpu", progress: Progress = silent) -> Path:
    """Train the policy against its reward and return the run folder; a finished run returns at once."""
    required(config, "model_name_or_path", "dataset_name", "output_dir")
    given, config = config, resolved(config)
    with open_stage(given, "rl") as folder:
        if finished(folder):
            return folder.path
        train, held = split_prompts(config)
        tokenizer = load_tokenizer(config.model_name_or_path)
        cast = gathered(config, folder, tokenizer, train, held, device)
        source = RlSource(config, folder, cast, train)
        grid = DistanceGrid(config, folder, cast, held)
        watchdog = Watchdog(config.health)
        learner = learner_of(config, cast)
        write_json(folder.path / RESOLVED_FILE, {n: plain(getattr(config, n)) for n in RESOLVED})
        if not folder.checkpoint_path(0).exists():
            folder.cut_to(-1)
            grid.measure(0)
            at_start: dict[str, Keeper] = {"source": source, "hook": grid, "health": watchdog}
            save_checkpoint(folder.path, learner, tokenizer, 0, keep=True, keepers=at_start)
        fit(
            folder,
            learner,
            tokenizer,
            source,
            loss_of(source),
            seed=config.seed,
            hook=grid,
            keepers={"source": source},
            watchdog=watchdog,
            on_weights=cast.sampler.refresh,
            progress=mirrored(config.tracking, folder, progress),
        )
        ship_final(folder, cast.policy, tokenizer)
        return folder.path


def gathered(
    config: RlConfig,
    folder: RunFolder,
    tokenizer: Any,
    train: Sequence[Prompt],
    held: Sequence[Prompt],
    device: str,
) -> Cast:
    """Load everyone who takes part. Raises BadInput for who cannot be loaded, and for prompts that are too long."""
    policy = load_policy(config.model_name_or_path, device=device)
    if config.lora.use_peft:
        seed = stream(config.seed, "adapters")
        policy = with_adapters(policy, config.lora, task="policy", seed=seed)
        reference = Reference(policy)
    else:
        reference = Reference(load_policy(config.model_name_or_path, device=device).eval())

    dtype = products_in(config.optimization, next(policy.parameters()).device.type)

    def sampler_of(model: Any, kind: str) -> Sampler:
        return open_sampler(
            model,
            tokenizer,
            sampler=kind,
            dtype=dtype,
            max_completion_length=config.max_completion_length,
            temperature=config.temperature,
        )

    sampler = sampler_of(policy, config.sampler)  # as yet it samples from the reference
    sampler.encode([prompt.text for prompt in (*train, *held)])
    critic = critic_of(config, policy, device)
    of_reference = None
    if config.shaping.reward_shaping != "raw":
        # a second vLLM would take as much of the GPU again, and could not switch adapters off
        kind = "auto" if config.sampler == "vllm" else config.sampler
        with reference.asked() as model:
            of_reference = sampler_of(model, kind)
    # the last: it may write the scale of its scores, and what cannot be loaded must leave no trace
    reward = reward_of(config, tokenizer, device, folder=folder, reference=sampler, prompts=held)
    return Cast(
        policy=policy,
        reference=reference,
        sampler=sampler,
        reference_sampler=of_reference,
        reward=reward,
        critic=critic,
    )


def critic_of(config: RlConfig, policy: Any, device: str) -> Critic | None:
    """The critic of an algorithm that has one. Raises BadInput if it reads other tokens than the policy."""
    algorithm = config.algorithm
    if not isinstance(algorithm, Ppo):
        return None
    name = algorithm.critic_model_name_or_path or config.model_name_or_path
    critic = new_critic(name, device=device)
    sizes = [model.get_input_embeddings().num_embeddings for model in (critic.model, policy)]
    if sizes[0] != sizes[1]:
        raise BadInput(
            f"--critic_model_name_or_path {name} reads {sizes[0]} different tokens and the policy {sizes[1]}; "
            "give a model with the policy's tokenizer"
        )
    return critic


def learner_of(config: RlConfig, cast: Cast) -> Learner:
    """What steps policy and critic. Without dropout: what is trained is what sampled."""
    scale = 1.0
    if isinstance(config.algorithm, Ppo) and config.algorithm.critic_learning_rate:
        scale = config.algorithm.critic_learning_rate / config.optimization.learning_rate
    return Learner(
        cast.policy,
        config.optimization,
        config.num_updates,
        dropout=False,
        critic=cast.critic,
        critic_scale=scale,
    )


def loss_of(source: RlSource) -> Loss:
    """The loss of the algorithm's page."""
    surrogate = Surrogate(source.kl, source.cast.reference)
    beside = [source.cast.critic] if source.page.returns else []
    return source.page.loss(source.config.algorithm, surrogate, *beside)


def split_prompts(config: RlConfig) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to train on and prompts for checkpoints; no prompt stands in both."""
    prompts = read_prompts(config.dataset_name, split=config.dataset_train_split)
    wanted = config.checkpoints.num_eval_prompts
    if config.eval_dataset_name:
        held = read_prompts(config.eval_dataset_name, split=config.dataset_train_split)
        return prompts, held[:wanted]
    distinct = list({prompt_column(prompt.text): prompt for prompt in prompts}.values())
    held_count = min(wanted, len(distinct) // 5)
    if held_count < 2:
        raise BadInput(
            f"{config.dataset_name}: {len(distinct)} different prompts are too few to hold some out for checkpoints; "
            "give at least 10, or --eval_dataset_name"
        )
    generator = np.random.default_rng(stream(config.seed, "held out"))
    order = [distinct[n] for n in generator.permutation(len(distinct))]
    out = {prompt_column(prompt.text) for prompt in order[:held_count]}
    return [p for p in prompts if prompt_column(p.text) not in out], order[:held_count]
