"""Samples and rankings go on with the settings that they were begun with, and with no others."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crestline.models.load import save_model
from crestline.models.tokenizer import train_tokenizer
from crestline.pipeline.configs import RankConfig, SampleConfig
from crestline.pipeline.rank import rank
from crestline.pipeline.sample import sample
from crestline.types import BadInput

JUDGE = """
def longest(prompt, completions):
    return [float(len(text)) for text in completions]

def shortest(prompt, completions):
    return [-float(len(text)) for text in completions]
"""


@pytest.fixture
def asked(tmp_path: Path, tiny_llama: Callable[..., Any]) -> SampleConfig:
    """Two answers to each of 60 prompts, by a model that knows nothing."""
    texts = [f"the {n} fox" for n in range(60)]
    tokenizer = train_tokenizer(texts, 300)
    save_model(tiny_llama(tokenizer), tokenizer, tmp_path / "model")
    rows = "".join(json.dumps({"prompt": text}) + "\n" for text in texts)
    (tmp_path / "prompts.jsonl").write_text(rows)
    return SampleConfig(
        model_name_or_path=str(tmp_path / "model"),
        dataset_name=str(tmp_path / "prompts.jsonl"),
        output_file=str(tmp_path / "samples.jsonl"),
        num_generations=2,
        max_completion_length=4,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("model_name_or_path", "nowhere"), ("temperature", 0.5), ("seed", 1), ("sampler", "ours")],
)
def test_samples_of_other_settings_are_not_taken(
    asked: SampleConfig, name: str, value: Any
) -> None:
    before = sample(asked).read_bytes()
    with pytest.raises(BadInput, match=rf"samples.jsonl was begun with {name} .*--output_file"):
        sample(replace(asked, **{name: value}))
    assert sample(asked).read_bytes() == before


def test_samples_go_on_with_their_settings(asked: SampleConfig, tmp_path: Path) -> None:
    whole = sample(asked).read_bytes()
    (tmp_path / "samples.jsonl").write_bytes(whole[:-400])
    elsewhere = tmp_path / "same.jsonl"
    elsewhere.write_bytes((tmp_path / "prompts.jsonl").read_bytes())
    assert sample(replace(asked, dataset_name=str(elsewhere))).read_bytes() == whole


def test_nothing_is_begun_by_a_model_that_is_not_there(asked: SampleConfig, tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        sample(replace(asked, model_name_or_path=str(tmp_path / "nowhere")))
    assert not list(tmp_path.glob("samples*"))
    assert len(sample(asked).read_text().splitlines()) == 60


def test_rankings_by_another_function_are_not_taken(asked: SampleConfig, tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text(JUDGE)
    config = RankConfig(
        dataset_name=str(sample(asked)),
        people=f"{tmp_path}/judge.py:longest",
        output_file=str(tmp_path / "rankings.jsonl"),
    )
    whole = rank(config).read_bytes()
    with pytest.raises(BadInput, match=r"rankings.jsonl was begun with people .*longest"):
        rank(replace(config, people=f"{tmp_path}/judge.py:shortest"))
    Path(config.output_file).write_bytes(whole[:-100])
    assert rank(config).read_bytes() == whole


def test_settings_that_are_none_are_named(asked: SampleConfig, tmp_path: Path) -> None:
    sample(asked)
    (tmp_path / "samples.settings.json").write_text("[]")
    with pytest.raises(BadInput, match=r"samples.settings.json holds no settings"):
        sample(asked)
