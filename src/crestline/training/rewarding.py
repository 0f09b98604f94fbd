"""Who scores, made from settings: reward model, functions and server, and in RL as one reward with a scale.

Owns the order of the sources and where the scale of an uncalibrated one comes from. How they score is in `rewards`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from crestline.data.code import load_function
from crestline.models.calibration import Calibration
from crestline.models.reward import load_reward_model
from crestline.rewards.configs import RewardSources
from crestline.rewards.functions import FunctionReward, QueryReward
from crestline.rewards.remote import RemoteReward
from crestline.rewards.sources import LearnedReward, Reward, Source, calibration_of
from crestline.runs.files import read_json, write_json
from crestline.runs.folder import RunFolder
from crestline.training.rl_configs import RlConfig
from crestline.training.seeds import stream
from crestline.types import BadInput, Prompt, Sampler

CALIBRATION_FILE = "calibration.json"
"""In the run folder: the scale that the reference's own completions gave, where no reward model brings one."""


class SaysWhoScores(Protocol):
    """Settings that name a reward model, other sources, or both."""

    @property
    def reward_model_name_or_path(self) -> str: ...

    @property
    def reward_sources(self) -> RewardSources: ...


def sources_of(config: SaysWhoScores, tokenizer: Any, device: str) -> list[Source]:
    """Everyone who scores, in the order of reward_weights. Raises BadInput for whom there is not, or for nobody."""
    given, found = config.reward_sources, list[Source]()
    if name := config.reward_model_name_or_path:
        found.append(LearnedReward(load_reward_model(name, device=device)))
    for value in given.functions:
        function = load_function("reward_funcs", value)
        found.append(FunctionReward(function, f"--reward_funcs {value}"))
    if named := given.query_function:
        function, who = load_function("remote_rm_url", named), f"--remote_rm_url {named}"
        found.append(QueryReward(function, who, tokenizer, given.label_key))
    elif given.remote_rm_url:
        found.append(RemoteReward(given.remote_rm_url, tokenizer, given.label_key))
    if not found:
        raise BadInput(
            "nobody scores: give --reward_model_name_or_path, --reward_funcs or --remote_rm_url"
        )
    names = [source.name for source in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise BadInput(f"--reward_funcs: two rewards are called {twice.pop()!r}; rename one")
    return found


def weights_of(config: SaysWhoScores, count: int) -> list[float]:
    """A weight for each source. Raises BadInput if there are not as many."""
    weights = config.reward_sources.weights
    if weights and len(weights) != count:
        raise BadInput(f"--reward_weights: {len(weights)} weights for {count} rewards")
    return weights or [1.0] * count


def reward_of(
    config: RlConfig,
    tokenizer: Any,
    device: str,
    *,
    folder: RunFolder,
    reference: Sampler,
    prompts: Sequence[Prompt],
) -> Reward:
    """The reward of the run. A reward model alone has its own scale; else it is that of the reference's completions.

    reference: samples from the policy that training starts from. prompts: those that it answers for the scale.
    """
    sources = sources_of(config, tokenizer, device)
    reward = Reward(sources, weights_of(config, len(sources)), Calibration())
    if len(sources) == 1 and isinstance(sources[0], LearnedReward) and reward.weights == [1.0]:
        return replace(reward, calibration=sources[0].model.calibration)
    path = folder.path / CALIBRATION_FILE
    if not path.exists():
        seeds = [stream(config.seed, "calibrate", n) for n in range(len(prompts))]
        answers = reference.sample([prompt.text for prompt in prompts], seeds)
        raw = reward.judge(prompts, [answer.text for answer in answers]).raw
        scale = calibration_of(raw)
        write_json(path, {"mean": scale.mean, "temperature": scale.temperature})
    return replace(reward, calibration=Calibration.stored(read_json(path)))
