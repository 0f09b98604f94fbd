"""Exit codes, dry runs, and the whole loop by hand, verb after verb."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from shlex import quote, split
from typing import Any

import pytest
import yaml

import crestline.cli.actions
from crestline.cli.chat import visible
from crestline.cli.checks import ESTIMATED
from crestline.cli.verbs import VERBS
from crestline.runs.settings import plain
from crestline.training.configs import PretrainConfig
from crestline.types import Paused

Run = Callable[..., Any]


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (Paused("waiting for people"), 3, "crestline: paused: waiting for people"),
        (KeyboardInterrupt(), 130, "crestline: interrupted; continue with the same command"),
        (MemoryError(), 2, "lower --micro_batch_size"),
        (OutOfMemoryError("CUDA out of memory"), 2, "lower --micro_batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 2, "lower --micro"),
        (OSError(errno.ENOSPC, "x", "model.bin"), 2, "model.bin: no space left on device"),
        (OSError(errno.ENAMETOOLONG, "x", "aaa"), 2, "aaa: file name too long"),
        (NotADirectoryError(errno.ENOTDIR, "x", "a/b"), 2, "a/b: not a directory"),
        (PermissionError(errno.EACCES, "x", "a"), 2, "a: permission denied"),
        (ModuleNotFoundError("no", name="peft.tuners"), 2, "pip install peft"),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    line: str,
    crestline: Run,
    monkeypatch: pytest.MonkeyPatch,
    material: Path,
    tmp_path: Path,
) -> None:
    def act(*_: object) -> None:
        (tmp_path / "out").mkdir()
        raise error

    monkeypatch.setattr("crestline.cli.actions.act", act)
    words = ("--text", material / "corpus.txt", "--output_dir", tmp_path / "out")
    result = crestline("pretrain", *words)
    assert result.code == code and result.out == ""
    assert line in result.err and result.err.count("\n") == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), ModuleNotFoundError("no", name="crestline.nowhere")]
)
def test_bugs_keep_their_traceback(
    error: Exception, crestline: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def act(*_: object) -> None:
        raise error

    monkeypatch.setattr("crestline.cli.actions.act", act)
    with pytest.raises(type(error)):
        crestline("report", tmp_path)


@pytest.mark.parametrize("name", ["demo", "my runs"])
def test_interrupted_run_says_how_to_go_on(
    crestline: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """In words that may be typed: quoted where the folder's name asks for it."""
    out = tmp_path / name

    def act(*_: object) -> None:
        out.mkdir()
        (out / "config.yaml").write_text("seed: 0\n")
        raise KeyboardInterrupt

    monkeypatch.setattr("crestline.cli.actions.act", act)
    result = crestline("run", "--preset", "smoke", "--output_dir", out)
    assert result.code == 130
    again = f"crestline run --resume {quote(str(out))}"
    assert result.err == f"crestline: interrupted; continue with: {again}\n"
    assert split(again)[-1] == str(out)


def test_what_may_be_looked_at_next_is_quoted(
    crestline: Run, material: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "my runs"
    shutil.copytree(material / "rl_run", out)
    shutil.copytree(out / "checkpoint-0", out / "checkpoint-5")
    monkeypatch.setenv("COLUMNS", "1000")
    result = crestline("crest", out, "--ship_unmeasured", "--num_threads", "1")
    assert result.code == 0, result.err
    quoted = quote(str(out))
    assert f"next: crestline report {quoted}; crestline chat {quoted}" in result.out


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_bug(closed: str, material: Path, tmp_path: Path) -> None:
    report = tmp_path / "run"
    shutil.copytree(material / "rl_run", report)
    words = f"{quote(sys.executable)} -m crestline report {quote(str(report))} {closed}"
    ended = subprocess.run(["sh", "-c", words], stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (report / "report.html").is_file()


def test_interrupt_of_a_process(material: Path, tmp_path: Path) -> None:
    out = tmp_path / "base"
    words = ["pretrain", "--text", str(material / "corpus.txt"), "--output_dir", str(out)]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "crestline",
            *words,
            "--num_updates",
            "100000",
            "--num_threads",
            "1",
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert said == "crestline: interrupted; continue with the same command\n"


@pytest.mark.parametrize("command", ["run --help", "convert --dataset_name {m}/rankings.jsonl"])
def test_a_closed_pipe_is_quiet(command: str, material: Path, tmp_path: Path) -> None:
    words = command.format(m=material)
    if "convert" in command:
        words += f" --output_file {tmp_path}/out.jsonl"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "crestline", *split(words)],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


DRY = {
    "pretrain": "--text {m}/corpus.txt --output_dir {o}",
    "sft": "--model_name_or_path {m}/policy --dataset_name {m}/demonstrations.jsonl "
    "--output_dir {o}",
    "sample": "--model_name_or_path {m}/policy --dataset_name {m}/prompts.jsonl "
    "--output_file {o}.jsonl",
    "rank": "--dataset_name {m}/samples.jsonl --people {m}/judge.py:rank --output_file {o}.jsonl",
    "convert": "--dataset_name {m}/rankings.jsonl --output_file {o}.jsonl",
    "reward": "--model_name_or_path {m}/policy --dataset_name {m}/rankings.jsonl --output_dir {o}",
    "reward-eval": "{m}/reward_model --dataset_name {m}/rankings.jsonl --output_dir {o}",
    "reward-join": "--reward_models {m}/reward_model,{m}/reward_model --output_dir {o}",
    "reward-serve": "{m}/reward_model",
    "rl": "--model_name_or_path {m}/policy --reward_model_name_or_path {m}/reward_model "
    "--dataset_name {m}/prompts.jsonl --output_dir {o}",
    "dpo": "--model_name_or_path {m}/policy --dataset_name {m}/rankings.jsonl --output_dir {o}",
    "best-of-n": "--model_name_or_path {m}/policy --reward_model_name_or_path {m}/reward_model "
    "--dataset_name {m}/prompts.jsonl --output_file {o}.jsonl",
    "crest": "{m}/rl_run --people pelican",
    "report": "{m}/rl_run",
    "chat": "{m}/rl_run --checkpoint reference",
    "run": "--preset smoke --output_dir {o}",
    "doctor": "",
}


@pytest.mark.parametrize("verb", VERBS)
def test_dry_run_does_nothing(verb: str, crestline: Run, material: Path, tmp_path: Path) -> None:
    words = DRY[verb].format(m=material, o=tmp_path / "out").split()
    result = crestline(verb, *words, "--dry_run")
    assert result.code == 0 and result.err == ""
    assert "nothing was done" in result.out
    assert ("memory: about" in result.out) == (verb in ESTIMATED)
    assert not list(tmp_path.iterdir())
    if verb == "run":
        assert "pretrain" in result.out and "embedded world 'pelican'" in result.out


def test_a_dry_run_takes_what_an_older_version_did_not_know_for_its_default(
    crestline: Run, material: Path, tmp_path: Path
) -> None:
    words = split(DRY["pretrain"].format(m=material, o=tmp_path))
    config = PretrainConfig(text=str(material / "corpus.txt"), output_dir=str(tmp_path))
    settings = {"verb": "pretrain", **plain(config)}
    del settings["hidden_size"], settings["optimization"]["dtype"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    result = crestline("pretrain", *words, "--dry_run")
    assert result.code == 0 and f"output_dir: {tmp_path} (goes on)" in result.out
    result = crestline("pretrain", *words, "--dry_run", "--hidden_size", "64")
    assert result.code == 2 and "hidden_size is 128 by default there and 64 here" in result.err


def test_the_loop_verb_by_verb(crestline: Run, material: Path, tmp_path: Path) -> None:
    """Tiny, but whole: each verb takes what the one before wrote, and says where it wrote."""
    m, o = material, tmp_path
    small = split("--num_threads 1")
    done = [
        crestline(
            *("pretrain", "--text", m / "corpus.txt", "--output_dir", o / "base", *small),
            *split("--num_updates 2 --hidden_size 16 --num_layers 1 --batch_size 8"),
        ),
        crestline(
            *("sft", "--model_name_or_path", o / "base/model", "--output_dir", o / "sft", *small),
            *("--dataset_name", m / "demonstrations.jsonl", "--num_train_epochs", "1"),
        ),
        crestline(
            *("sample", "--model_name_or_path", o / "sft/model", "--num_generations", "3", *small),
            *("--dataset_name", m / "prompts.jsonl", "--output_file", o / "samples.jsonl"),
            *("--max_completion_length", "6"),
        ),
        crestline(
            *("rank", "--dataset_name", o / "samples.jsonl", "--people", f"{m}/judge.py:rank"),
            *("--output_file", o / "rankings.jsonl"),
        ),
        crestline(
            *("reward", "--model_name_or_path", o / "sft/model", "--output_dir", o / "reward"),
            *("--dataset_name", o / "rankings.jsonl", "--num_train_epochs", "1", *small),
        ),
        crestline(
            *("rl", "--model_name_or_path", o / "sft/model", "--output_dir", o / "rl", *small),
            *("--reward_model_name_or_path", o / "reward/model"),
            *("--dataset_name", m / "prompts.jsonl", "--num_updates", "3", "--num_prompts", "2"),
            *("--num_generations", "2", "--max_completion_length", "6"),
            *("--algorithm", "grpo", "--num_eval_prompts", "8"),
        ),
        crestline(
            *("crest", o / "rl", "--people", f"{m}/judge.py:rank", "--num_labels", "6", *small),
            *("--min_duels", "4", "--num_duels_per_batch", "3"),
        ),
        crestline("report", o / "rl", "--output_file", o / "rl.html"),
    ]
    for result in done:
        assert result.code == 0 and result.err == "", result.err
    for result, path in zip(done, ("base/model", "sft/model", "samples.jsonl"), strict=False):
        assert f"wrote {o / path}" in result.out
    assert "verdict: " in done[6].out and (o / "rl" / "verdict.json").is_file()
    assert (o / "rl.html").is_file()
    assert len((o / "rl" / "answers.jsonl").read_text().splitlines()) <= 6
    rankings = [json.loads(line) for line in (o / "rankings.jsonl").read_text().splitlines()]
    assert {row["answered_by"] for row in rankings} == {"function"}


def test_a_failing_function_pauses(crestline: Run, material: Path, tmp_path: Path) -> None:
    words = ("--people", f"{material}/judge.py:fails", "--output_file", tmp_path / "r.jsonl")
    result = crestline("rank", "--dataset_name", material / "samples.jsonl", *words)
    assert result.code == 3
    assert result.err.startswith("crestline: paused: ") and "rank/0" in result.err
    assert "division by zero" in result.err and result.err.count("\n") == 1


def test_chat_with_a_pipe(crestline: Run, material: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "Hello\n/checkpoint 7\n/what\n\n/checkpoint reference\nAgain\n/quit\nnever\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    words = ("--checkpoint", "0", "--max_completion_length", "4", "--num_threads", "1")
    result = crestline("chat", material / "rl_run", *words)
    assert result.code == 0 and result.err == ""
    assert result.out.count("checkpoint-0") == 2
    assert "no such checkpoint" in result.out and "/quit leaves" in result.out


def test_what_a_model_says_does_not_steer_the_terminal() -> None:
    assert visible("a\x1b[2Jb\x07\x9b\r\n\tc") == "a[2Jb\n\tc"


def test_a_model_has_no_other_checkpoints_to_chat_with(
    crestline: Run, material: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("/what\n/checkpoint 3\n/checkpoint shipped\n"))
    result = crestline("chat", material / "policy", "--num_threads", "1")
    assert result.code == 0 and result.err == ""
    assert "/checkpoint N" not in result.out and result.out.count("/quit leaves") == 2
    assert "is a model, which has no checkpoints" in result.out


def test_chat_in_a_process_reads_any_bytes(material: Path) -> None:
    words = ["chat", str(material / "policy"), "--max_completion_length", "4"]
    ended = subprocess.run(
        [sys.executable, "-m", "crestline", *words],
        input=b"caf\xe9\n",
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == b"" and len(ended.stdout.splitlines()) >= 2


def test_devices_that_are_not_there(crestline: Run, material: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    words = ("--text", material / "corpus.txt", "--output_dir", tmp_path / "out")
    result = crestline("pretrain", *words, "--device", "cuda")
    assert result.code == 2 and "--device cuda" in result.err
    assert not list(tmp_path.iterdir())


def test_actions_know_every_verb() -> None:
    from crestline.cli.checks import INPUTS

    assert set(INPUTS) == set(VERBS)
    assert set(crestline.cli.actions.STAGES) < set(VERBS)


@pytest.mark.parametrize(
    ("wish", "spins"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_wait_briefly_unless_the_environment_says_else(
    wish: dict[str, str], spins: str | None
) -> None:
    """libgomp reads the variable when torch is loaded: it stands before that."""
    code = (
        "import builtins, json, os, sys\n"
        "from crestline.cli.main import main\n"
        "seen, load = [], builtins.__import__\n"
        "def watched(name, *rest, **named):\n"
        "    if name.split('.')[0] == 'torch' and not seen:\n"
        "        seen.append(os.environ.get('GOMP_SPINCOUNT'))\n"
        "    return load(name, *rest, **named)\n"
        "builtins.__import__ = watched\n"
        "main(['doctor'])\n"
        "print(json.dumps(seen))\n"
    )
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**clean, **wish}
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == [spins]
