"""Bad input to every verb: exit code 2, one line that names the culprit, nothing written or lost."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from shlex import split

import pytest

from crestline.cli.main import main
from crestline.runs.lock import FolderLock

# Words of the command line ({m} is the folder of material, {o} a place to write), and what the one
# line must name.
PRETRAIN = "pretrain --text {m}/corpus.txt --output_dir {o} "
SFT = "sft --model_name_or_path {m}/policy --dataset_name {m}/demonstrations.jsonl "
SFT_OUT = SFT + "--output_dir {o} "
SAMPLE = "sample --model_name_or_path {m}/policy --output_file {o}.jsonl --dataset_name {m}/"
RANK = "rank --dataset_name {m}/samples.jsonl --output_file {o}.jsonl --people "
CONVERT = "convert --dataset_name {m}/rankings.jsonl --output_file {o}"
REWARD = "reward --model_name_or_path {m}/policy --output_dir {o} --dataset_name {m}/"
DPO = "dpo --model_name_or_path {m}/policy --output_dir {o} --dataset_name {m}/"
JOIN = "reward-join --output_dir {o} --reward_models {m}/reward_model,{m}/"
EVAL = "reward-eval {m}/reward_model --output_dir {o} "
RL_BARE = "rl --dataset_name {m}/prompts.jsonl --max_completion_length 8 --output_dir {o} "
RL = RL_BARE + "--model_name_or_path {m}/policy --reward_model_name_or_path {m}/"
RL_DATA = (
    "rl --model_name_or_path {m}/policy --reward_model_name_or_path {m}/reward_model "
    "--output_dir {o} --dataset_name {m}/"
)
BEST = (
    "best-of-n --output_file {o}.jsonl --max_completion_length 8 --num_generations 2 "
    "--reward_model_name_or_path {m}/reward_model "
)
BEST_OF = BEST + "--model_name_or_path {m}/policy --dataset_name {m}/"
BEST_SAMPLES = BEST + "--samples_file {m}/"
RUN = "run --preset smoke --output_dir {o} "

CASES = {
    # the command line
    "no such verb": ("rlhf", "rlhf"),
    "unknown flag": (PRETRAIN + "--flux 3", "--flux"),
    "misspelt flag": (PRETRAIN + "--sede 3", "--seed"),
    "dashes for underscores": (PRETRAIN + "--num-updates 3", "--num_updates"),
    "one dash": (PRETRAIN + "-seed 3", "--seed"),
    "no value": (PRETRAIN + "--seed", "--seed"),
    "flag for a value": ("pretrain --text --output_dir {o}", "--text"),
    "given twice": (PRETRAIN + "--seed 1 --seed 2", "--seed"),
    "stray word": (PRETRAIN + "corpus.txt", "corpus.txt"),
    "two folders": ("report {m}/rl_run {m}/other_run", "other_run"),
    "stage's flag without its stage": (RUN + "--epsilon 0.1", "--rl.epsilon"),
    "decided by the run": (RUN + "--rl.output_dir x", "--rl.output_dir"),
    # required flags
    "pretrain without text": ("pretrain --output_dir {o}", "--text"),
    "sft without output_dir": (SFT, "--output_dir"),
    "sample without model": ("sample --dataset_name {m}/prompts.jsonl", "--model_name_or_path"),
    "rank without people": ("rank --dataset_name {m}/samples.jsonl", "--people"),
    "convert without data": ("convert --output_file {o}.jsonl", "--dataset_name"),
    "reward without data": ("reward --model_name_or_path {m}/policy", "--dataset_name"),
    "reward-eval without data": (EVAL, "--dataset_name"),
    "reward-eval without output_dir": ("reward-eval {m}/reward_model", "--output_dir"),
    "reward-eval of no model": (
        "reward-eval {m}/empty_folder --output_dir {o} --dataset_name {m}/rankings.jsonl",
        "--reward_model_name_or_path",
    ),
    "reward-eval without a head": (
        "reward-eval {m}/policy --output_dir {o} --dataset_name {m}/rankings.jsonl",
        "no trained reward head",
    ),
    "test rankings of half a pair": (
        EVAL + "--dataset_name {m}/no_rejected.jsonl",
        "no_rejected.jsonl:1",
    ),
    "no such training rankings": (
        EVAL + "--dataset_name {m}/rankings.jsonl --train_dataset_name {m}/no.jsonl",
        "no.jsonl",
    ),
    "curve without a backbone": (
        EVAL + "--dataset_name {m}/rankings.jsonl --learning_curve "
        "--train_dataset_name {m}/rankings.jsonl",
        "--model_name_or_path",
    ),
    "alike beyond all": (
        EVAL + "--dataset_name {m}/rankings.jsonl --similarity_threshold 2",
        "--similarity_threshold",
    ),
    "evaluation into a run": (
        "reward-eval {m}/reward_model --output_dir {m}/other_run --dataset_name {m}/rankings.jsonl",
        "other_run",
    ),
    "reward-join without models": ("reward-join --output_dir {o}", "--reward_models"),
    "reward-join of one": ("reward-join --output_dir {o} --reward_models {m}/policy,", "two"),
    "reward-join with nowhere": (JOIN + "nowhere", "nowhere"),
    "reward-join with no head": (JOIN + "policy", "no trained reward head"),
    "reward-join with other votes": (JOIN + "reward_model --dataset_name {m}/no.jsonl", "no.jsonl"),
    "reward-join by another word": (JOIN + "reward_model --aggregate median", "--aggregate"),
    "rl without reward model": (
        RL_BARE + "--model_name_or_path {m}/policy",
        "--reward_model_name_or_path",
    ),
    "dpo without data": ("dpo --model_name_or_path {m}/policy", "--dataset_name"),
    "dpo without a policy": (
        "dpo --dataset_name {m}/rankings.jsonl --output_dir {o}",
        "--model_name_or_path",
    ),
    "dpo of half a pair": (DPO + "no_rejected.jsonl", "no_rejected.jsonl:1"),
    "dpo with too few rankings": (DPO + "few_rankings.jsonl", "few_rankings.jsonl"),
    "dpo with no such held-out rankings": (
        DPO + "rankings.jsonl --eval_dataset_name {m}/no.jsonl",
        "no.jsonl",
    ),
    "dpo of a reward model": (
        "dpo --model_name_or_path {m}/reward_model --output_dir {o} "
        "--dataset_name {m}/rankings.jsonl",
        "reward_model is a reward model",
    ),
    "dpo that goes nowhere": (DPO + "rankings.jsonl --beta 0", "--beta"),
    "ipo with flips": (DPO + "rankings.jsonl --loss_type ipo --flip_rate 0.1", "loss_type"),
    "no such loss": (DPO + "rankings.jsonl --loss_type hinge", "--loss_type"),
    "crest without folder": ("crest --people pelican", "--run_dir"),
    "report without folder": ("report", "--run_dir"),
    "chat without folder": ("chat", "--run_dir"),
    # values
    "no number": (PRETRAIN + "--learning_rate fast", "--learning_rate"),
    "no whole number": (PRETRAIN + "--num_updates 1.5", "--num_updates"),
    "not a number": (PRETRAIN + "--learning_rate nan", "--learning_rate"),
    "no choice": (PRETRAIN + "--lr_scheduler_type step", "--lr_scheduler_type"),
    "no truth": (REWARD + "rankings.jsonl --half_depth=maybe", "--half_depth"),
    "no updates": (PRETRAIN + "--num_updates 0", "--num_updates"),
    "negative rate": (PRETRAIN + "--learning_rate -1", "--learning_rate"),
    "warm-up beyond the end": (SFT_OUT + "--warmup_ratio 2", "--warmup_ratio"),
    "heads do not fit": (PRETRAIN + "--num_heads 3", "--hidden_size"),
    "tiny vocabulary": (PRETRAIN + "--vocab_size 10", "--vocab_size"),
    "all held out": (REWARD + "rankings.jsonl --eval_fraction 1", "--eval_fraction"),
    "group of one": (RL + "reward_model --num_generations 1", "--num_generations"),
    "cold": (SAMPLE + "prompts.jsonl --temperature 0", "--temperature"),
    "too cold for best-of-n": (BEST_OF + "prompts.jsonl --temperature 1e-7", "--temperature"),
    "too cold for rl": (RL + "reward_model --temperature 1e-7", "--temperature"),
    "too cold for a run": (RUN + "--rl.temperature 1e-7", "--rl.temperature"),
    "too cold to chat": ("chat {m}/policy --temperature 0", "--temperature"),
    "answers of no length": ("chat {m}/policy --max_completion_length 0", "--max_completion"),
    "too sure": ("crest {m}/rl_run --people pelican --confidence 1", "--confidence"),
    "seed below zero": ("crest {m}/rl_run --people pelican --watch_seed -1", "--watch_seed"),
    "careless people": (RANK + "pelican --flip_probability 0.9", "--flip_probability"),
    "careless people at the crest": (
        "crest {m}/rl_run --people pelican --flip_probability 0.9",
        "--flip_probability",
    ),
    "careless people in a run": (RUN + "--flip_probability 0.9", "--flip_probability"),
    "no such algorithm": (RL + "reward_model --algorithm a2c", "--algorithm"),
    "another algorithm's": (RL + "reward_model --vf_coef 0.1", "--vf_coef"),
    "no such preset": ("run --preset huge", "--preset"),
    "nested value": (RUN + "--rl.num_updates none", "--rl.num_updates"),
    "no such device": (PRETRAIN + "--device tpu", "--device"),
    "no device of a run": (RUN + "--device tpu", "--device"),
    "negative threads": (PRETRAIN + "--num_threads -1", "--num_threads"),
    # YAML
    "no such file": (PRETRAIN + "--config {m}/no.yaml", "no.yaml"),
    "broken YAML": (PRETRAIN + "--config {m}/broken.yaml", "broken.yaml:3"),
    "unknown key": (PRETRAIN + "--config {m}/unknown.yaml", "unknown.yaml:2: sed"),
    "wrong type": (PRETRAIN + "--config {m}/wrong.yaml", "wrong.yaml:2: num_updates"),
    "value out of range": (PRETRAIN + "--config {m}/range.yaml", "range.yaml:3: "),
    "no settings": (PRETRAIN + "--config {m}/list.yaml", "list.yaml:1"),
    "key twice": (PRETRAIN + "--config {m}/twice.yaml", "twice.yaml:2: seed"),
    "another verb's": (PRETRAIN + "--config {m}/sft.yaml", "sft.yaml:1"),
    "YAML not UTF-8": (PRETRAIN + "--config {m}/latin1.yaml", "latin1.yaml:1"),
    "nested union": (RUN + "--config {m}/nested.yaml", "nested.yaml:4: rl.algorithm"),
    "decided in YAML": (RUN + "--config {m}/decided.yaml", "decided.yaml:2: rl.output_dir"),
    # data
    "no text": ("pretrain --text {m}/no.txt --output_dir {o}", "no.txt"),
    "malformed line": (SAMPLE + "malformed.jsonl", "malformed.jsonl:2"),
    "no rows": (SAMPLE + "empty.jsonl", "empty.jsonl"),
    "wrong column": (SAMPLE + "wrong_column.jsonl", "wrong_column.jsonl:1"),
    "prompts of numbers": (RL_DATA + "wrong_type.jsonl", "wrong_type.jsonl:2"),
    "no demonstrations": (
        "sft --model_name_or_path {m}/policy --output_dir {o} --dataset_name {m}/prompts.jsonl",
        "prompts.jsonl:1",
    ),
    "no pair": (REWARD + "no_rejected.jsonl", "no_rejected.jsonl:1"),
    "not UTF-8": (SAMPLE + "latin1.jsonl", "latin1.jsonl:1"),
    "pair without a better one": (
        "convert --dataset_name {m}/no_rejected.jsonl --output_file {o}.jsonl",
        "no_rejected.jsonl:1",
    ),
    "column that is not there": (CONVERT + ".jsonl --chosen_key better", "rankings.jsonl:1"),
    "unknown ending": (SAMPLE + "data.exe", "data.exe"),
    "broken parquet": (SAMPLE + "broken.parquet", "broken.parquet"),
    "folder without data": (SAMPLE + "empty_folder", "empty_folder"),
    "no such held-out prompts": (
        RL + "reward_model --eval_dataset_name {m}/no.jsonl",
        "no.jsonl",
    ),
    "completion too long": (
        "sft --model_name_or_path {m}/policy --dataset_name {m}/long_completion.jsonl "
        "--output_dir {o}",
        "--max_length",
    ),
    "prompt too long to sample": (SAMPLE + "long_prompts.jsonl", "--max_completion_length"),
    "prompt too long for rl": (RL_DATA + "long_prompts.jsonl", "--max_completion_length"),
    "too few prompts": (RL_DATA + "few_prompts.jsonl", "few_prompts.jsonl"),
    "too few rankings": (REWARD + "few_rankings.jsonl", "few_rankings.jsonl"),
    # models
    "no such model": (
        "sft --dataset_name {m}/demonstrations.jsonl --output_dir {o} "
        "--model_name_or_path {m}/no_model",
        "no_model",
    ),
    "no model folder": (RL + "foreign", "foreign"),
    "a file for a model": (RL + "corpus.txt", "corpus.txt"),
    "pickled weights": (RL + "pickled", "pytorch_model.bin"),
    "torn weights": (RL + "torn", "torn"),
    "no head": (RL + "policy", "policy has no trained reward head"),
    "two labels": (RL + "two_labels", "two_labels"),
    # where it writes
    "a file for a folder": (PRETRAIN.replace("{o}", "{m}/corpus.txt"), "corpus.txt"),
    "below a file": (PRETRAIN.replace("{o}", "{m}/corpus.txt/x"), "corpus.txt"),
    "foreign folder": (PRETRAIN.replace("{o}", "{m}/foreign"), "foreign"),
    "other settings": (PRETRAIN.replace("{o}", "{m}/other_run"), "started with other settings"),
    "another verb's folder": (SFT + "--output_dir {m}/other_run", "other_run"),
    "run in a stage's folder": ("run --output_dir {m}/other_run", "other_run"),
    "a folder for a file": (
        RANK.replace("{o}.jsonl", "{m}/folder.jsonl") + "pelican",
        "is a folder",
    ),
    "samples below a file": (
        SAMPLE.replace("{o}", "{m}/prompts.jsonl/new/x") + "prompts.jsonl --dry_run",
        "prompts.jsonl is a file, not a folder",
    ),
    "rankings below a file": (
        RANK.replace("{o}", "{m}/prompts.jsonl/x") + "{m}/judge.py:rank --dry_run",
        "prompts.jsonl is a file, not a folder",
    ),
    "conversion below a file": (
        CONVERT.replace("{o}", "{m}/prompts.jsonl/x.jsonl --dry_run"),
        "prompts.jsonl is a file, not a folder",
    ),
    "best-of-n below a file": (
        BEST_SAMPLES.replace("{o}", "{m}/prompts.jsonl/x") + "samples.jsonl --dry_run",
        "prompts.jsonl is a file, not a folder",
    ),
    "report below a file": (
        "report {m}/rl_run --output_file {m}/prompts.jsonl/x.html --dry_run",
        "prompts.jsonl is a file, not a folder",
    ),
    "report as a folder": ("report {m}/rl_run --output_file {m}/foreign --dry_run", "is a folder"),
    "a run nowhere": ("run --preset smoke --output_dir=", "--output_dir is missing"),
    "a name too long": (PRETRAIN.replace("{o}", 300 * "a") + "--dry_run", "name too long"),
    "no such format": (CONVERT + ".jsonl --format orl", "--format"),
    "no ending": (CONVERT, "--output_file"),
    "CSV under another ending": (CONVERT + ".jsonl --format csv", ".csv"),
    "a file is there": (CONVERT.replace("{o}", "{m}/prompts.jsonl"), "--overwrite"),
    # people
    "neither function nor world": (RANK + "atlantis", "atlantis"),
    "no such module": (RANK + "{m}/no.py:rank", "no.py"),
    "no such function": (RANK + "{m}/judge.py:judge", "'judge'"),
    "no function": (RANK + "{m}/judge.py:number", "number"),
    "import fails": (RANK + "{m}/broken_judge.py:rank", "no_such_module_anywhere"),
    "wrong signature": (RANK + "{m}/judge.py:lonely", "lonely"),
    "too few values": (RANK + "{m}/judge.py:short", "1 values for 2 completions"),
    "NaN": (RANK + "{m}/judge.py:nan", "nan"),
    "prompts of another world": (RANK + "pelican", "give --people"),
    "function of a run": (RUN + "--people {m}/no.py:rank", "no.py"),
    # best-of-n
    "best-of-n without a policy": (BEST, "--model_name_or_path"),
    "best-of-n without prompts": (BEST + "--model_name_or_path {m}/policy", "--dataset_name"),
    "best of one": (BEST_OF + "prompts.jsonl --num_generations 1", "--num_generations"),
    "best-of-n by nobody": (
        "best-of-n --samples_file {m}/samples.jsonl --output_file {o}.jsonl",
        "--reward_model_name_or_path",
    ),
    "best-of-n without a head": (
        BEST_SAMPLES + "samples.jsonl --judge {m}/policy",
        "policy has no",
    ),
    "judge who is the reward model": (
        BEST_SAMPLES + "samples.jsonl --judge {m}/reward_model/",
        "--judge must not",
    ),
    "no such judge": (BEST_SAMPLES + "samples.jsonl --judge {m}/nowhere", "--judge"),
    "judge who is no function": (
        BEST_SAMPLES + "samples.jsonl --judge {m}/judge.py:number",
        "number",
    ),
    "samples of prompts alone": (BEST_SAMPLES + "prompts.jsonl", "prompts.jsonl:1"),
    "samples of other prompts": (
        BEST_SAMPLES + "samples.jsonl --dataset_name {m}/prompts.jsonl",
        "samples of 3 prompts",
    ),
    "best-of-n of long prompts": (BEST_OF + "long_prompts.jsonl", "--max_completion_length"),
    "best-of-n with another ending": (
        BEST_SAMPLES.replace("{o}.jsonl", "{o}.csv") + "samples.jsonl",
        "ends in .jsonl",
    ),
    "best-of-n over another file": (
        BEST_SAMPLES.replace("{o}.jsonl", "{m}/samples.jsonl") + "samples.jsonl",
        "samples.jsonl is there",
    ),
    # the rest of the loop
    "crest of a file": ("crest {m}/corpus.txt --people pelican", "corpus.txt"),
    "crest without checkpoints": ("crest {m}/foreign --people pelican", "foreign"),
    "two kinds of people": ("crest {m}/rl_run --people pelican --stand_in x", "--stand_in"),
    "stand-in that RL maximised": ("crest {m}/rl_run --stand_in {m}/reward_model", "--stand_in"),
    "crest asks another world": ("crest {m}/rl_run --people pelican", "give --people"),
    "report of nothing": ("report {m}/empty_folder", "empty_folder"),
    "report of no folder": ("report {m}/nowhere", "nowhere"),
    "chat with nothing": ("chat {m}/nowhere", "nowhere"),
    "no such checkpoint": ("chat {m}/rl_run --checkpoint 7", "--checkpoint 7"),
    "checkpoint of a model": ("chat {m}/policy --checkpoint 77", "which has no checkpoints"),
    "nothing shipped yet": ("chat {m}/rl_run", "rl_run"),
    "resume of no folder": ("run --resume=", "holds no run"),
    "resume on another machine": ("run --resume {m}/cuda_run", "--device cuda:99: this machine"),
    "a checkpoint that is no number": ("chat {m}/rl_run --checkpoint \u00b2", "no such checkpoint"),
    "a date that is none": (RL + "reward_model --config {m}/date.yaml", "date.yaml:2"),
    "a training that has not finished": (
        "crest {m}/unfinished --people {m}/judge.py:rank --dry_run",
        "rl has not finished",
    ),
    "samples over prompts": (
        SAMPLE.replace("{o}.jsonl", "{m}/prompts.jsonl") + "prompts.jsonl",
        "is what is read",
    ),
    "samples as CSV": (
        SAMPLE.replace("{o}.jsonl", "{o}.csv --dry_run") + "prompts.jsonl",
        "ends in .jsonl",
    ),
    "rankings over samples of others": (
        RANK.replace("{o}.jsonl", "{m}/corpus.jsonl") + "{m}/judge.py:rank",
        "corpus.jsonl",
    ),
    "resume of nothing": ("run --resume {m}/empty_folder", "empty_folder"),
    "resume with settings": ("run --resume {m}/other_run --seed 3", "--seed"),
    "resume of another verb": ("run --resume {m}/other_run", "a folder of crestline pretrain"),
    "own model without prompts": (RUN + "--model_name_or_path {m}/policy", "--prompts"),
    "nobody knows": (
        RUN + "--model_name_or_path {m}/policy --prompts {m}/prompts.jsonl",
        "--people",
    ),
    "no such world": (RUN + "--world atlantis", "atlantis"),
    "few prompts for a run": (
        RUN + "--prompts {m}/few_prompts.jsonl --people {m}/judge.py:rank",
        "too few",
    ),
}


def contents(*folders: Path) -> dict[str, bytes]:
    """Every file below the folders with its bytes, and every folder."""
    return {
        str(path): path.read_bytes() if path.is_file() else b""
        for folder in folders
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_written(
    name: str, material: Path, tmp_path: Path, crestline: Callable[..., object]
) -> None:
    command, culprit = CASES[name]
    words = [word.format(m=material, o=tmp_path / "out") for word in command.split()]
    before = contents(material, tmp_path)
    result = crestline(*words)
    check_line(result.code, result.err, culprit)  # type: ignore[attr-defined]
    assert contents(material, tmp_path) == before


def check_line(code: int, err: str, culprit: str) -> None:
    assert code == 2, err
    assert err.startswith("crestline: error: ") and err.endswith("\n") and err.count("\n") == 1
    assert "Traceback" not in err
    assert culprit in err


def test_every_verb_has_cases() -> None:
    verbs = {command.split()[0] for command, _ in CASES.values()}
    every = (
        "pretrain sft sample rank convert reward reward-eval reward-join rl dpo best-of-n crest "
        "report chat run"
    )
    assert set(every.split()) <= verbs


def test_folder_in_use(material: Path, tmp_path: Path, crestline: Callable[..., object]) -> None:
    place = tmp_path / "out"
    place.mkdir()
    held = FolderLock(place)
    before = contents(tmp_path)
    result = crestline("pretrain", "--text", material / "corpus.txt", "--output_dir", place)
    check_line(result.code, result.err, f"pid {os.getpid()}")  # type: ignore[attr-defined]
    assert contents(tmp_path) == before
    held.release()


def in_process(*words: str | Path, **arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "crestline", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **arguments,  # type: ignore[call-overload]
    )


def test_bad_input_in_a_process(material: Path, tmp_path: Path) -> None:
    ended = in_process("pretrain", "--text", material / "no.txt", "--output_dir", tmp_path / "out")
    check_line(ended.returncode, ended.stderr, "no.txt")
    assert contents(tmp_path) == {}


def as_another_user(words: list[str]) -> tuple[int, str]:
    """Exit code and stderr of the command in a fork that lost root's rights, if it had them."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(write, 2)
            sys.stderr = os.fdopen(2, "w", buffering=1)
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            os._exit(main(words))
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as said:
        err = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), err


def test_no_permission(material: Path) -> None:
    import crestline.training.pretrain  # noqa: F401  (the other user may not read packages)

    place = Path(tempfile.mkdtemp())  # pytest's own folder is closed to other users
    try:
        place.chmod(0o755)
        shutil.copy(material / "corpus.txt", place)
        (place / "closed").mkdir(mode=0o555)
        words = f"pretrain --text {place}/corpus.txt --output_dir {place}/closed/out"
        code, err = as_another_user(words.split())
        check_line(code, err, "permission denied")
        assert contents(place / "closed") == {}
    finally:
        shutil.rmtree(place)


def test_disk_full(material: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        out = disk / "out"
        small = split("--num_updates 2 --hidden_size 16 --num_layers 1 --batch_size 4")
        words = ("pretrain", "--text", material / "corpus.txt", "--output_dir", out, *small)
        ended = in_process(*words)
        check_line(ended.returncode, ended.stderr, "no space left on device")
        assert not (out / "model").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
