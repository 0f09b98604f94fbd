"""Crestline: RLHF that knows when to stop.

The public names below are imported when they are first used: `import crestline` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crestline.crest.configs import WatchConfig
    from crestline.crest.watch import Watch
    from crestline.pipeline.best_of_n import best_of_n
    from crestline.pipeline.configs import (
        BestOfNConfig,
        ChatConfig,
        ConvertConfig,
        CrestConfig,
        DoctorConfig,
        RankConfig,
        ReportConfig,
        RewardJoinConfig,
        RunConfig,
        SampleConfig,
    )
    from crestline.pipeline.convert import convert
    from crestline.pipeline.crest import crest as find_crest
    from crestline.pipeline.doctor import doctor
    from crestline.pipeline.rank import rank
    from crestline.pipeline.reward_eval import reward_eval
    from crestline.pipeline.reward_eval_configs import RewardEvalConfig
    from crestline.pipeline.reward_join import reward_join
    from crestline.pipeline.run import run
    from crestline.pipeline.sample import sample
    from crestline.report.page import write_report
    from crestline.serve.configs import RewardServeConfig
    from crestline.serve.server import reward_serve
    from crestline.training.configs import PretrainConfig, SftConfig
    from crestline.training.dpo import dpo
    from crestline.training.dpo_configs import DpoConfig
    from crestline.training.pretrain import pretrain
    from crestline.training.reward import reward
    from crestline.training.reward_configs import RewardConfig
    from crestline.training.rl import rl
    from crestline.training.rl_configs import Grpo, Kl, Ppo, Reinforce, RlConfig, Rloo
    from crestline.training.sft import sft
    from crestline.types import BadInput, Duel, Observation, Verdict

__version__ = "0.1.0"

# `crestline.crest` is the package of the watch, so the verb crest is called find_crest here.
_HOMES = {
    "BadInput": "crestline.types",
    "Duel": "crestline.types",
    "Observation": "crestline.types",
    "Verdict": "crestline.types",
    "BestOfNConfig": "crestline.pipeline.configs",
    "ChatConfig": "crestline.pipeline.configs",
    "ConvertConfig": "crestline.pipeline.configs",
    "CrestConfig": "crestline.pipeline.configs",
    "DoctorConfig": "crestline.pipeline.configs",
    "DpoConfig": "crestline.training.dpo_configs",
    "Grpo": "crestline.training.rl_configs",
    "Kl": "crestline.training.rl_configs",
    "Ppo": "crestline.training.rl_configs",
    "PretrainConfig": "crestline.training.configs",
    "RankConfig": "crestline.pipeline.configs",
    "Reinforce": "crestline.training.rl_configs",
    "ReportConfig": "crestline.pipeline.configs",
    "RewardConfig": "crestline.training.reward_configs",
    "RewardEvalConfig": "crestline.pipeline.reward_eval_configs",
    "RewardJoinConfig": "crestline.pipeline.configs",
    "RewardServeConfig": "crestline.serve.configs",
    "RlConfig": "crestline.training.rl_configs",
    "Rloo": "crestline.training.rl_configs",
    "RunConfig": "crestline.pipeline.configs",
    "SampleConfig": "crestline.pipeline.configs",
    "SftConfig": "crestline.training.configs",
    "Watch": "crestline.crest.watch",
    "WatchConfig": "crestline.crest.configs",
    "best_of_n": "crestline.pipeline.best_of_n",
    "convert": "crestline.pipeline.convert",
    "doctor": "crestline.pipeline.doctor",
    "dpo": "crestline.training.dpo",
    "find_crest": "crestline.pipeline.crest:crest",
    "pretrain": "crestline.training.pretrain",
    "rank": "crestline.pipeline.rank",
    "reward": "crestline.training.reward",
    "reward_eval": "crestline.pipeline.reward_eval",
    "reward_join": "crestline.pipeline.reward_join",
    "reward_serve": "crestline.serve.server",
    "rl": "crestline.training.rl",
    "run": "crestline.pipeline.run",
    "sample": "crestline.pipeline.sample",
    "sft": "crestline.training.sft",
    "write_report": "crestline.report.page",
}

__all__ = [
    "BadInput",
    "BestOfNConfig",
    "ChatConfig",
    "ConvertConfig",
    "CrestConfig",
    "DoctorConfig",
    "DpoConfig",
    "Duel",
    "Grpo",
    "Kl",
    "Observation",
    "Ppo",
    "PretrainConfig",
    "RankConfig",
    "Reinforce",
    "ReportConfig",
    "RewardConfig",
    "RewardEvalConfig",
    "RewardJoinConfig",
    "RewardServeConfig",
    "RlConfig",
    "Rloo",
    "RunConfig",
    "SampleConfig",
    "SftConfig",
    "Verdict",
    "Watch",
    "WatchConfig",
    "best_of_n",
    "convert",
    "doctor",
    "dpo",
    "find_crest",
    "pretrain",
    "rank",
    "reward",
    "reward_eval",
    "reward_join",
    "reward_serve",
    "rl",
    "run",
    "sample",
    "sft",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'crestline' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(module), attribute or name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
