"""Tiny models and good and bad files, made once; a command that runs in this process."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from crestline.cli.main import main

PROMPTS = [f"The fox number {n} says" for n in range(40)]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def crestline(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """crestline("rl", "--seed", "3") in this process."""

    def run(*words: str | Path) -> Result:
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return Result(code, said.out, said.err)

    return run


def write_rows(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models and data sets, good and bad; tests only read it."""
    folder = tmp_path_factory.mktemp("material")
    make_data(folder)
    make_people(folder)
    make_models(folder)
    make_runs(folder)
    return folder


def make_data(folder: Path) -> None:
    (folder / "corpus.txt").write_text("\n".join(f"{p} hello." for p in PROMPTS))
    write_rows(folder / "prompts.jsonl", [{"prompt": p} for p in PROMPTS])
    write_rows(folder / "few_prompts.jsonl", [{"prompt": p} for p in PROMPTS[:4]])
    write_rows(folder / "long_prompts.jsonl", [{"prompt": p * 30} for p in PROMPTS])
    good = [{"prompt": p, "completion": " hello."} for p in PROMPTS]
    write_rows(folder / "demonstrations.jsonl", good)
    write_rows(folder / "long_completion.jsonl", [*good, {"prompt": "a", "completion": "b " * 99}])
    pairs = [{"prompt": p, "chosen": " yes.", "rejected": " no."} for p in PROMPTS]
    write_rows(folder / "rankings.jsonl", pairs)
    write_rows(folder / "few_rankings.jsonl", pairs[:1])
    write_rows(folder / "no_rejected.jsonl", [{"prompt": "a", "chosen": "b"}])
    samples = [{"prompt": p, "completions": [" a.", " b."]} for p in PROMPTS[:3]]
    write_rows(folder / "samples.jsonl", samples)
    write_rows(folder / "wrong_column.jsonl", [{"question": "a"}])
    write_rows(folder / "wrong_type.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": 3}])
    (folder / "malformed.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n{"prompt": "b"}\n')
    (folder / "empty.jsonl").write_text("")
    (folder / "corpus.jsonl").write_text(json.dumps([{"text": p} for p in PROMPTS]))
    (folder / "folder.jsonl").mkdir()
    (folder / "latin1.jsonl").write_bytes('{"prompt": "caf\u00e9"}\n'.encode("latin-1"))
    (folder / "data.exe").write_bytes(b"MZ")
    (folder / "broken.parquet").write_bytes(b"PAR1 but not really")
    for name, text in {
        "broken.yaml": "seed: 3\nrl: [1, 2\n",
        "unknown.yaml": "seed: 3\nsed: 4\n",
        "wrong.yaml": "seed: 3\nnum_updates: many\n",
        "list.yaml": "- seed\n",
        "twice.yaml": "seed: 3\nseed: 4\n",
        "range.yaml": "seed: 3\noptimization:\n  learning_rate: -1\n",
        "sft.yaml": "verb: sft\nseed: 3\n",
        "date.yaml": "seed: 3\noutput_dir: 2024-13-45\n",
        "nested.yaml": "rl:\n  num_updates: 3\n  algorithm:\n    name: a2c\n",
        "decided.yaml": "rl:\n  output_dir: elsewhere\n",
    }.items():
        (folder / name).write_text(text)
    (folder / "latin1.yaml").write_bytes("output_dir: caf\u00e9\n".encode("latin-1"))


def make_people(folder: Path) -> None:
    (folder / "judge.py").write_text(
        "def rank(prompt, completions, **columns):\n    return [len(c) for c in completions]\n"
        "def plain(prompt, completions):\n    return [0.5 for c in completions]\n"
        "def short(prompt, completions, **columns):\n    return [1.0]\n"
        "def nan(prompt, completions, **columns):\n    return [float('nan')] * len(completions)\n"
        "def fails(prompt, completions, **columns):\n    return 1 / 0\n"
        "def lonely(prompt):\n    return []\n"
        "number = 3\n"
    )
    (folder / "broken_judge.py").write_text("import no_such_module_anywhere\n")


def make_models(folder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    from crestline.models.load import load_tokenizer, new_llama, save_model
    from crestline.models.reward import new_reward_model
    from crestline.models.tokenizer import train_tokenizer

    torch.set_num_threads(1)
    policy = folder / "policy"
    tokenizer = train_tokenizer((f"{p} hello." for p in PROMPTS), 300)
    model = new_llama(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_layers=1,
        num_heads=2,
        intermediate_size=64,
        max_position=64,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        seed=0,
    )
    save_model(model, tokenizer, policy)
    new_reward_model(policy, seed=0, max_length=64).write(folder / "reward_model")
    two = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=2)
    save_model(two, load_tokenizer(policy), folder / "two_labels")
    shutil.copytree(policy, folder / "pickled")
    (folder / "pickled" / "model.safetensors").unlink()
    (folder / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    shutil.copytree(policy, folder / "torn")
    weights = folder / "torn" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)


def make_runs(folder: Path) -> None:
    (folder / "empty_folder").mkdir()
    (folder / "foreign").mkdir()
    (folder / "foreign" / "thesis.txt").write_text("years of work")
    other = folder / "other_run"
    other.mkdir()
    (other / "config.yaml").write_text("verb: pretrain\nnum_updates: 77\n")
    rl = folder / "rl_run"
    shutil.copytree(folder / "policy", rl / "checkpoint-0")
    shutil.copytree(folder / "policy", rl / "model")
    row = {"update": 0, "distance": 0.0, "proxy": 0.5}
    write_rows(rl / "checkpoints.jsonl", [row, {"update": 5, "distance": 0.5, "proxy": 0.7}])
    (rl / "config.yaml").write_text(
        f"verb: rl\nreward_model_name_or_path: {folder / 'reward_model'}\n"
        "max_completion_length: 8\ntemperature: 1.0\n"
    )
    from crestline.runs.tables import write_table

    for update in (0, 5):
        write_table(
            rl / "evaluations" / f"evaluation_{update:05d}.parquet",
            {"prompt": PROMPTS[:8], "completion": [f" answer {update}."] * 8},
        )
    shutil.copytree(rl, folder / "unfinished")
    shutil.rmtree(folder / "unfinished" / "model")
    (folder / "cuda_run").mkdir()
    (folder / "cuda_run" / "config.yaml").write_text("device: cuda:99\n")
