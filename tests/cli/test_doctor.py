"""`crestline doctor`, the memory line of dry runs, the warning before work, and the sampler flag's refusals."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from crestline.pipeline import doctor as looked
from crestline.pipeline import packages as found
from crestline.training.machine import Memory

Run = Callable[..., Any]


def test_a_machine_that_works(crestline: Run, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    result = crestline("doctor")
    assert result.code == 0 and result.err == ""
    lines = {line.split()[1]: line for line in result.out.splitlines()}
    for name in ("torch", "transformers", "peft"):
        assert metadata.version(name).split("+")[0] in lines[name] and lines[name].startswith("ok")
    assert "--dtype auto picks" in lines["matrices"] and "GFLOP/s" in lines["matrices"]
    assert "free in" in lines["disk"] and "GB" in lines["memory"]
    assert lines["tensorboard"].startswith("ok" if installed("tensorboard") else "note")
    assert all(line.split()[0] in ("ok", "note") for line in result.out.splitlines())
    assert not list(tmp_path.iterdir())


def installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def test_what_is_not_installed_is_said_with_what_to_do(crestline: Run) -> None:
    if installed("vllm"):
        pytest.skip("vLLM is installed")
    lines = crestline("doctor").out.splitlines()
    (line,) = [line for line in lines if " vllm " in line]
    assert line.startswith("note") and "pip install 'crestline[vllm]'" in line
    assert "--sampler vllm" in line


def test_a_package_that_does_not_fit_is_broken(crestline: Run, monkeypatch: Any) -> None:
    version = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "4.50.0" if name == "transformers" else version(name)
    )
    result = crestline("doctor")
    assert result.code == 2
    assert "4.50.0 does not fit: pip install 'transformers" in result.out
    assert result.err.startswith("crestline: error: broken: transformers; ")
    assert "matrices" not in result.out  # nothing that could stumble over it


def test_a_package_that_does_not_import_is_broken(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "torn_package.py").write_text("raise OSError('libtorn.so: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = found.imported("torn_package")
    assert finding.state == "broken" and "libtorn.so: cannot open" in finding.text
    assert found.imported("no_such_package_anywhere").state == "broken"


def test_a_device_that_is_not_there(crestline: Run) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    result = crestline("doctor", "--device", "cuda")
    assert result.code == 2 and "--device cpu" in result.out
    assert "broken: cuda" in result.err


def test_little_room_is_a_note(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(looked, "memory", lambda: Memory(free=10**9, limit=2 * 10**9))
    finding = looked.memory_here()
    assert finding.state == "note" and "the container's limit is 2.0 GB" in finding.text
    monkeypatch.setattr(looked, "memory", lambda: None)
    assert looked.memory_here().state == "note"
    monkeypatch.setattr(looked, "LITTLE_DISK", 1 << 62)
    assert looked.disk(tmp_path / "new" / "folder").state == "note"


def test_the_rate_is_that_of_the_machine() -> None:
    """Half the rate of a plain loop over the same product, at least, and not more than twice."""
    matrix = torch.randn(1024, 1024)
    torch.mm(matrix, matrix)
    rates = []
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        rates.append(2 * 1024**3 / (time.perf_counter() - began))
    told = looked.matmul_rate(torch.float32, "cpu")
    assert max(rates) / 3 < told < max(rates) * 3


def test_it_takes_less_than_ten_seconds_and_no_network() -> None:
    code = """
import socket, sys
def refuse(*_, **__): raise AssertionError("network")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from crestline.cli.main import main
sys.exit(main(["doctor"]))
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    # of the processor, so that others who are at work do not count
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 10


# ---------------------------------------------------------------- settings of other verbs


def words_of_sft(m: Path, o: Path) -> list[str]:
    return [
        *("sft", "--model_name_or_path", str(m / "policy"), "--output_dir", str(o / "out")),
        *("--dataset_name", str(m / "demonstrations.jsonl")),
    ]


def test_settings_in_a_file_are_estimated(crestline: Run, material: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    settings = {
        "model_name_or_path": str(material / "policy"),
        "dataset_name": str(material / "prompts.jsonl"),
        "output_dir": "x",
    }
    file.write_text(json.dumps({**settings, "algorithm": "grpo"}))
    result = crestline("doctor", "rl", "--config", file)
    (line,) = [line for line in result.out.splitlines() if line.split()[1] == "settings"]
    assert result.code == 0 and line.startswith("ok") and "are free" in line
    for verb, data in (("sft", "demonstrations"), ("dpo", "rankings")):
        file.write_text(json.dumps({"verb": verb, **settings}).replace("prompts", data))
        assert "settings" in crestline("doctor", "--config", file).out


@pytest.mark.parametrize(
    ("words", "text", "culprit"),
    [
        (["chat"], None, "--verb chat"),
        (["--config", "{f}"], None, "cannot read"),
        (["--config", "{f}"], "verb: sample\n", "--verb sample"),
        (["--config", "{f}"], "verb: sft\n", "--model_name_or_path"),
        (["rl", "--config", "{f}"], "verb: sft\n", "settings of crestline sft"),
        (["--config", "{f}"], "rl:\n  num_update: 3\n", ":2: rl.num_update"),
    ],
)
def test_bad_settings(
    crestline: Run, tmp_path: Path, words: list[str], text: str | None, culprit: str
) -> None:
    file = tmp_path / "settings.yaml"
    if text is not None:
        file.write_text(text)
    result = crestline("doctor", *[word.format(f=file) for word in words])
    assert result.code == 2 and result.out == "" and result.err.count("\n") == 1
    assert culprit in result.err


def test_a_dry_run_tells_the_memory(crestline: Run, material: Path, tmp_path: Path) -> None:
    result = crestline(*words_of_sft(material, tmp_path), "--dry_run")
    (line,) = [line for line in result.out.splitlines() if "memory: about" in line]
    assert line.endswith("are free") and result.code == 0


def test_a_run_tells_its_largest_stage(crestline: Run, tmp_path: Path) -> None:
    result = crestline("run", "--preset", "smoke", "--output_dir", tmp_path / "o", "--dry_run")
    (line,) = [line for line in result.out.splitlines() if "memory: about" in line]
    assert any(f" in {stage}: " in line for stage in ("pretrain", "sft", "reward", "rl"))


def test_too_little_memory_is_one_line_and_no_error(
    crestline: Run, material: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("crestline.pipeline.memory.memory", lambda: Memory(free=10**8))
    words = [*words_of_sft(material, tmp_path), "--num_train_epochs", "0.1", "--num_threads", "1"]
    dry = crestline(*words, "--dry_run")
    assert dry.code == 0 and dry.err == "" and "only 100 MB are free: " in dry.out
    result = crestline(*words)
    assert result.code == 0 and (tmp_path / "out" / "model").is_dir()
    assert result.err.startswith("crestline: warning: memory: about ")
    assert result.err.count("\n") == 1 and "only 100 MB are free: " in result.err


def test_a_dry_run_imports_no_torch(material: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from crestline.cli.main import main
assert main({[*words_of_sft(material, tmp_path), "--dry_run"]!r}) == 0
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}
    )
    assert ended.returncode == 0, ended.stderr


# ---------------------------------------------------------------- the sampler flag


def test_samplers_that_cannot_serve_are_told_before_anything_is_loaded(
    material: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    config = json.loads((material / "policy" / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    (other / "model.safetensors").symlink_to(material / "policy" / "model.safetensors")
    code = f"""
import sys
sys.modules["vllm"] = None
from crestline.cli.main import main
m, o = {str(material)!r}, {str(tmp_path / "out")!r}
sample = ["sample", "--dataset_name", m + "/prompts.jsonl", "--output_file", o + ".jsonl"]
rl = ["rl", "--dataset_name", m + "/prompts.jsonl", "--output_dir", o,
      "--reward_model_name_or_path", m + "/reward_model"]
for verb in (sample, rl):
    assert main([*verb, "--model_name_or_path", m + "/policy", "--sampler", "vllm"]) == 2
    assert main([*verb, "--model_name_or_path", {str(other)!r}, "--sampler", "ours"]) == 2
assert main(["run", "--preset", "smoke", "--output_dir", o, "--rl.sampler", "vllm"]) == 2
assert main([*rl, "--model_name_or_path", m + "/policy", "--sampler", "theirs"]) == 2
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stderr.splitlines()
    assert len(lines) == 6 and not list(tmp_path.glob("out*"))
    for line in (lines[0], lines[2], lines[4]):
        assert "pip install 'crestline[vllm]'" in line
    for line in (lines[1], lines[3]):
        assert "--sampler ours does not decode mamba models; use --sampler auto" in line
    assert "auto, ours, transformers" in lines[5]
