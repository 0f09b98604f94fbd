"""Do peers, in environments of their own, find in our folders what we find? `make test-peers` runs this.

RewardBench and TRL open reward models of every kind that we write; TRL's policy losses are recorded anew and compared
with the recordings that `make test` uses. Slow, and not part of `make test`.
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from crestline.data.writers import write_rows
from crestline.models.reward import load_reward_model, new_reward_model
from crestline.runs.files import write_jsonl_atomic
from crestline.training.configs import Lora
from crestline.types import Ranking

pytest_plugins = ["tests.models.conftest"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RECORDINGS = ROOT / "tests" / "fixtures" / "trl"
DECODERS = ["llama", "qwen2", "gpt2"]
ENCODERS = ["bert", "roberta", "distilbert", "modernbert", "deberta-v2"]
KINDS = ["full", "lora", "heads"]
PAIRS = [
    Ranking(
        prompt=[{"role": "user", "content": f"Why did the {word} cross?"}],
        completions=(f"The {word} sat on the log{'. And sat' * n}.", "Why not"),
        ranks=(0, 1),
        source="jokes",
    )
    for n, word in enumerate(["hen", "cat", "dog", "emu"])
]
TALK = [
    {"role": "user", "content": "The cat?"},
    {"role": "assistant", "content": "On the mat."},
    {"role": "user", "content": "And the dog?"},
]
PAIRS.append(Ranking(prompt=TALK, completions=("On the log.", "No."), ranks=(0, 1), source="talk"))


def peer(environment: str, *command: str | Path, folder: Path) -> None:
    """Run a script in a peer's environment; skips where that was not made."""
    python = ROOT / environment / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{environment} is not there: make peers")
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    ended = subprocess.run(
        [str(python), *map(str, command)],
        cwd=folder,
        env={**os.environ, **quiet, "WANDB_MODE": "disabled", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.fixture(scope="module")
def folders(
    backbone_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with reward models: every architecture trained in full, by adapters, and with three heads."""
    place = tmp_path_factory.mktemp("models")
    for name in DECODERS + ENCODERS:
        for kind in KINDS:
            model = new_reward_model(
                backbone_folder(name),
                seed=1,
                max_length=64,
                num_heads=3 if kind == "heads" else 1,
                lora=Lora(use_peft=True, lora_r=4) if kind == "lora" else None,
            )
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in model.model.parameters():
                    if parameter.requires_grad:
                        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            folder = place / f"{name}-{kind}"
            folder.mkdir()
            model.write(folder)
    return place


def scores_of(folder: Path) -> tuple[list[float], list[float]]:
    """Our own scores of the chosen and of the rejected completions, with the heads' mean."""
    model = load_reward_model(folder)
    sides = []
    for side in (0, 1):
        members = model.member_scores(
            [pair.prompt for pair in PAIRS], [pair.completions[side] for pair in PAIRS]
        )
        sides.append(members.mean(1).tolist())
    return sides[0], sides[1]


@pytest.mark.parametrize("kind", KINDS)
def test_rewardbench_scores_our_folders_as_we_do(folders: Path, kind: str) -> None:
    rows, _ = write_rows(PAIRS, "rewardbench")
    write_jsonl_atomic(folders / "pairs.jsonl", rows)
    names = [f"{name}-{kind}" for name in DECODERS + ENCODERS]
    script = HERE / "rewardbench_scores.py"
    peer(".venv-rewardbench", script, "pairs.jsonl", "own", *names, folder=folders)
    for name in names:
        told = (folders / "results" / f"{name}_outputs.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in told]
        for side, ours in zip(("chosen", "rejected"), scores_of(folders / name), strict=True):
            theirs = [row[f"scores_{side}"] for row in found]
            np.testing.assert_allclose(theirs, ours, atol=2e-5, err_msg=f"{name} {side}")
        assert len({round(score, 4) for score in ours}) > 1, f"{name} scores everything the same"


@pytest.mark.parametrize("kind", KINDS)
def test_trl_opens_our_folders_and_scores_as_we_do(folders: Path, kind: str) -> None:
    names = [f"{name}-{kind}" for name in DECODERS + ENCODERS]
    pairs: dict[str, Any] = {}
    for name in names:
        model = load_reward_model(folders / name)
        pairs[name] = {
            side: [model.rows([p.prompt], [p.completions[k]])[0].ids for p in PAIRS]
            for k, side in enumerate(("chosen_ids", "rejected_ids"))
        }
    (folders / "pairs.json").write_text(json.dumps(pairs))
    script = HERE / "trl_opens.py"
    peer(".venv-peers", script, "pairs.json", *names, folder=folders)
    told = (folders / "scores.jsonl").read_text().splitlines()
    found = {row["model"]: row for row in map(json.loads, told)}
    assert set(found) == set(names)
    for name, row in found.items():
        better, worse = scores_of(folders / name)
        np.testing.assert_allclose(row["chosen_ids"], better, atol=2e-5, err_msg=name)
        np.testing.assert_allclose(row["rejected_ids"], worse, atol=2e-5, err_msg=name)
        assert row["accuracy"] == pytest.approx(np.mean(np.array(better) > np.array(worse)))


def test_trl_still_does_what_was_recorded(tmp_path: Path) -> None:
    peer(".venv-peers", HERE / "record_trl.py", tmp_path / "again", folder=tmp_path)
    old = json.loads((RECORDINGS / "recordings.json").read_text())
    new = json.loads((tmp_path / "again" / "recordings.json").read_text())
    assert {k: v for k, v in old.items() if k not in ("cases", "versions")} == {
        k: v for k, v in new.items() if k not in ("cases", "versions")
    }
    for before, after in zip(old["cases"], new["cases"], strict=True):
        assert before["settings"] == after["settings"]
        assert before["loss"] == pytest.approx(after["loss"], abs=1e-6)
        np.testing.assert_allclose(before["advantages"], after["advantages"], atol=1e-5)
    old, new = (
        json.loads((folder / "dpo.json").read_text()) for folder in (RECORDINGS, tmp_path / "again")
    )
    assert (old["pairs"], old["ids"]) == (new["pairs"], new["ids"])
    for before, after in zip(old["cases"], new["cases"], strict=True):
        assert before["settings"] == after["settings"]
        assert before["loss"] == pytest.approx(after["loss"], abs=1e-6)
        assert before["metrics"] == pytest.approx(after["metrics"], abs=1e-5)
    for file in (
        "gradients.safetensors",
        "dpo_gradients.safetensors",
        "model/model.safetensors",
    ):
        tensors = load_file(tmp_path / "again" / file)
        for name, tensor in load_file(RECORDINGS / file).items():
            torch.testing.assert_close(tensors[name], tensor, atol=1e-5, rtol=1e-5, msg=name)
