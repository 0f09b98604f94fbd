"""Samples and rankings go on with the settings that they were begun with, and with no others."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from crestline.models.load import save_model
from crestline.models.tokenizer import train_tokenizer
from crestline.pipeline.configs import RankConfig, SampleConfig
from crestline.pipeline.rank import rank
from crestline.pipeline.sample import sample
from crestline.runs.lock import FileLock
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


@pytest.mark.parametrize("text", ['{"years": "of work"}', "[]", '{"seed": 1}', "years of work"])
def test_settings_of_others_are_left_as_they_are(
    asked: SampleConfig, tmp_path: Path, text: str
) -> None:
    for verb, config in ((sample, asked), (rank, ranking(asked, tmp_path, tmp_path / "r.jsonl"))):
        theirs = Path(config.output_file).with_suffix(".settings.json")
        theirs.write_text(text)
        with pytest.raises(BadInput, match=theirs.name):
            verb(config)
        assert theirs.read_text() == text and not Path(config.output_file).exists()


def test_settings_of_removed_samples_are_written_anew(asked: SampleConfig, tmp_path: Path) -> None:
    sample(asked).unlink()
    other = replace(asked, seed=1)
    sample(other)
    assert json.loads((tmp_path / "samples.settings.json").read_text())["seed"] == 1


def test_a_model_that_is_no_numbers_is_named(asked: SampleConfig, tmp_path: Path) -> None:
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"/model gives logits that are not finite numbers"):
        sample(asked)
    assert not list(tmp_path.glob("samples*"))


def ranking(asked: SampleConfig, tmp_path: Path, output: Path) -> RankConfig:
    (tmp_path / "judge.py").write_text(JUDGE)
    rows = [{"prompt": f"say {n}", "completions": ["a", "bb"]} for n in range(4)]
    source = tmp_path / "few.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    people = f"{tmp_path}/judge.py:longest"
    return RankConfig(dataset_name=str(source), people=people, output_file=str(output))


FOREIGN = {
    "one line": json.dumps([{"prompt": "a", "completions": ["b"]}]),
    "one object": json.dumps({"years": "of work"}),
    "text": "years of work",
    "other rows": json.dumps({"text": "a"}) + "\n" + json.dumps({"text": "b"}) + "\n",
    "indented": json.dumps([{"prompt": "a"}], indent=2),
}


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN.keys())
def test_files_of_others_are_left_as_they_are(
    asked: SampleConfig, tmp_path: Path, text: str
) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text(text)
    with pytest.raises(BadInput, match=r"mine\.jsonl"):
        rank(ranking(asked, tmp_path, mine))
    with pytest.raises(BadInput, match=r"mine\.jsonl"):
        sample(replace(asked, output_file=str(mine)))
    assert mine.read_text() == text
    assert not list(tmp_path.glob("mine.settings*"))


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl.gz", "x.json", "x"])
def test_only_json_lines_are_written(asked: SampleConfig, tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match=r"ends in \.jsonl"):
        rank(ranking(asked, tmp_path, tmp_path / name))
    with pytest.raises(BadInput, match=r"ends in \.jsonl"):
        sample(replace(asked, output_file=str(tmp_path / name)))
    assert not list(tmp_path.glob("x*"))


def test_what_is_read_is_not_written(asked: SampleConfig, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is what is read"):
        sample(replace(asked, output_file=asked.dataset_name))
    config = ranking(asked, tmp_path, tmp_path / "few.jsonl")
    with pytest.raises(BadInput, match="is what is read"):
        rank(config)
    assert len((tmp_path / "prompts.jsonl").read_text().splitlines()) == 60


def test_one_process_writes_a_file(asked: SampleConfig, tmp_path: Path) -> None:
    config = ranking(asked, tmp_path, tmp_path / "rankings.jsonl")
    in_use = "another crestline process .*"
    with FileLock(Path(config.output_file)), pytest.raises(BadInput, match=in_use + "rankings"):
        rank(config)
    with FileLock(Path(asked.output_file)), pytest.raises(BadInput, match=in_use + "samples"):
        sample(asked)
    assert len(rank(config).read_text().splitlines()) == 4
    assert not list(tmp_path.glob(".*"))
