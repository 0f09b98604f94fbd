"""`import crestline`: the names it promises, and what it costs."""

import subprocess
import sys

import pytest

import crestline

NAMES = [
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


def test_the_names_are_pinned() -> None:
    assert crestline.__all__ == NAMES == sorted(NAMES)
    assert set(NAMES) <= set(dir(crestline))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there(name: str) -> None:
    found = getattr(crestline, name)
    assert callable(found)
    assert found.__name__ == {"find_crest": "crest"}.get(name, name)


def test_no_name_is_hidden_by_a_package() -> None:
    """`from crestline import x` would hand out a package of that name once it is imported."""
    code = (
        f"from crestline import {', '.join(NAMES)}\n"
        f"assert all(map(callable, ({', '.join(NAMES)})))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'ppo'"):
        _ = crestline.ppo


def test_importing_costs_nothing() -> None:
    code = (
        "import sys, crestline\n"
        "assert crestline.__version__\n"
        "heavy = {'torch', 'numpy', 'scipy', 'transformers', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
