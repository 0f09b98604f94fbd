"""What the crest leaves in a folder: when it is refused, what ships, and what an earlier verdict shipped."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from crestline.cli.checks import crest_input
from crestline.crest.configs import WatchConfig
from crestline.pipeline.configs import CrestConfig
from crestline.pipeline.crest import crest
from crestline.runs.files import write_jsonl_atomic
from crestline.runs.lock import FolderLock
from crestline.runs.tables import write_table
from crestline.types import BadInput

JUDGE = """
import sys

def later(prompt, completions):
    return [float(text) for text in completions]

def nobody(prompt, completions):
    return [None, None]

def leaves(prompt, completions):
    sys.exit()
"""
NUM_PROMPTS = 60


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The folder of an rl that has finished: the later checkpoint, 4, answers better than 0."""
    folder = tmp_path / "rl"
    for update in (0, 4):
        write_table(
            folder / "evaluations" / f"evaluation_{update:05d}.parquet",
            {"prompt": [f"p{n}" for n in range(NUM_PROMPTS)], "completion": [str(update)] * 60},
        )
        made(folder / f"checkpoint-{update}", f"checkpoint {update}")
    rows = [{"update": u, "distance": u / 2, "proxy": 0.5} for u in (0, 4)]
    write_jsonl_atomic(folder / "checkpoints.jsonl", rows)
    (folder / "config.yaml").write_text(yaml.safe_dump({"verb": "rl"}))
    made(folder / "model", "the last policy")
    (tmp_path / "judge.py").write_text(JUDGE)
    return folder


def made(folder: Path, weights: str) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(weights)


def asked(folder: Path, who: str) -> CrestConfig:
    watch = WatchConfig(num_labels=60, min_duels=5)
    return CrestConfig(run_dir=str(folder), people=f"{folder.parent}/judge.py:{who}", watch=watch)


def shipped(folder: Path) -> str:
    return (folder / "model" / "model.safetensors").read_text()


def test_a_training_that_has_not_finished_keeps_its_folder(trained: Path) -> None:
    shutil.rmtree(trained / "model")
    before = sorted(trained.rglob("*"))
    with pytest.raises(BadInput, match="rl has not finished"):
        crest(asked(trained, "later"))
    assert sorted(trained.rglob("*")) == before


def as_run(trained: Path) -> Path:
    """The same RL as the rl/ of a run."""
    run = trained.parent / "run"
    run.mkdir()
    trained.rename(run / "rl")
    return run


def test_the_rl_of_a_run_lies_apart(trained: Path) -> None:
    run = as_run(trained)
    for _ in range(2):
        assert crest(asked(run, "later")).update == 4
        assert shipped(run) == "checkpoint 4" and shipped(run / "rl") == "the last policy"


def test_a_run_whose_rl_has_not_finished_is_not_asked_about(trained: Path) -> None:
    """What its checkpoints were asked would be of no use once there are more of them."""
    shutil.rmtree(trained / "model")
    run = as_run(trained)
    before = sorted(run.rglob("*"))
    with pytest.raises(BadInput, match="run/rl: rl has not finished"):
        crest(asked(run, "later"))
    with pytest.raises(BadInput, match="run/rl: rl has not finished"):
        crest_input(asked(run, "later"))
    assert sorted(run.rglob("*")) == before


def test_an_rl_whose_verdict_removed_its_model_has_finished(trained: Path) -> None:
    crest(asked(trained, "later"))
    (trained / "answers.jsonl").unlink()
    crest(asked(trained, "nobody"))
    assert not (trained / "model").exists()
    run = as_run(trained)
    assert crest(asked(run, "later")).update == 4


def test_answers_about_other_checkpoints_are_named_as_such(trained: Path) -> None:
    crest(asked(trained, "later"))
    answers = trained / "answers.jsonl"
    answers.write_text(answers.read_text().replace('"update": 4', '"update": 3'))
    with pytest.raises(BadInput, match=r"row 1 does not belong .*of other checkpoints or with"):
        crest(asked(trained, "later"))


def test_a_verdict_that_ships_nothing_removes_what_the_last_one_shipped(trained: Path) -> None:
    assert crest(asked(trained, "later")).update == 4
    assert shipped(trained) == "checkpoint 4"
    (trained / "answers.jsonl").unlink()
    (trained / "adapter").mkdir()
    assert crest(asked(trained, "nobody")).update is None
    assert not (trained / "model").exists() and not (trained / "adapter").exists()
    (trained / "answers.jsonl").unlink()
    assert crest(asked(trained, "later")).update == 4
    assert shipped(trained) == "checkpoint 4"


def test_what_training_wrote_stays_where_nothing_ships(trained: Path) -> None:
    (trained / "adapter").mkdir()
    assert crest(asked(trained, "nobody")).update is None
    assert shipped(trained) == "the last policy" and (trained / "adapter").is_dir()


def test_no_verdict_ships_a_checkpoint_that_is_gone(trained: Path) -> None:
    shutil.rmtree(trained / "checkpoint-4")
    with pytest.raises(BadInput, match="checkpoint-4 is gone"):
        crest(asked(trained, "later"))
    assert not (trained / "verdict.json").exists()
    assert shipped(trained) == "the last policy"


def test_one_process_asks_in_a_folder(trained: Path) -> None:
    lock = FolderLock(trained)
    with pytest.raises(BadInput, match="another crestline process"):
        crest(asked(trained, "later"))
    assert not (trained / "answers.jsonl").exists()
    lock.release()
    crest(asked(trained, "later"))
    assert not list(trained.glob(".*"))
    assert json.loads((trained / "verdict.json").read_text())["update"] == 4
