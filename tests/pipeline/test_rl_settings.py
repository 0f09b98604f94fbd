"""What RL is told in a whole run."""

from dataclasses import replace

import pytest

from crestline.pipeline.configs import Material, RunConfig
from crestline.pipeline.plan import plan, rl_settings
from crestline.rewards.configs import Shaping
from crestline.training.rl_configs import Kl, RlConfig, resolved
from crestline.types import BadInput


def test_the_world_is_rewarded_raw_and_people_by_par() -> None:
    world = RunConfig()
    assert resolved(rl_settings(world)).shaping.reward_shaping == "raw"
    told = replace(world, rl=RlConfig(shaping=Shaping(reward_shaping="par")))
    assert resolved(rl_settings(told)).shaping.reward_shaping == "par"
    people = replace(world, material=Material(people="people.py:ask"))
    assert resolved(rl_settings(people)).shaping.reward_shaping == "par"
    assert resolved(rl_settings(people)).kl.beta == 0.01
    stand_in = replace(
        world, material=Material(rankings="votes.jsonl")
    )  # the world's people are not asked
    assert resolved(rl_settings(stand_in)).shaping.reward_shaping == "par"


def test_what_does_not_fit_together_is_refused_before_the_first_stage() -> None:
    config = replace(RunConfig(), rl=RlConfig(kl=Kl(kl_target=3.0)))
    with pytest.raises(BadInput, match="give a --beta above 0"):
        rl_settings(config)


def test_naming_the_worlds_people_is_as_naming_nobody() -> None:
    nobody = RunConfig()
    named = replace(nobody, material=Material(people=nobody.world.name))
    assert plan(named) == plan(nobody)
    assert rl_settings(named) == rl_settings(nobody)
