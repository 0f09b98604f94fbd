"""Help: complete, told by the fields themselves, and there at once."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable

import pytest

from crestline import __version__
from crestline.cli.verbs import SET_BY_RUN, STAGES, VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_flags_are_unique_and_documented(verb: str) -> None:
    options = VERBS[verb].options(VERBS[verb].defaults())
    twice = [flag for flag, count in Counter(o.flag for o in options).items() if count > 1]
    assert not twice
    assert not [option.flag for option in options if not option.help]
    assert not [option.flag for option in options if "-" in option.flag]


@pytest.mark.parametrize("verb", VERBS)
def test_help_names_every_flag(verb: str, crestline: Callable[..., object]) -> None:
    result = crestline(verb, "--help")
    text = result.out  # type: ignore[attr-defined]
    assert result.code == 0 and result.err == ""  # type: ignore[attr-defined]
    for option in VERBS[verb].options(VERBS[verb].defaults()):
        assert (f"--{option.flag} " in text or f"--{option.flag}\n" in text) != (
            option.is_set_by_run
        )
    for example in VERBS[verb].examples:
        assert example.split()[1] == verb
        assert example.split("--")[0] in text
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize("verb", VERBS)
def test_examples_parse(verb: str) -> None:
    from crestline.cli.parsing import parse_flags

    spec = VERBS[verb]
    for example in spec.examples:
        assert parse_flags(example.split()[2:], spec.options(spec.defaults()), spec.positional)


def test_main_help_is_one_screen_and_lists_every_verb(crestline: Callable[..., object]) -> None:
    for words in ((), ("--help",), ("-h",), ("help",)):
        result = crestline(*words)
        text = result.out  # type: ignore[attr-defined]
        assert result.code == 0  # type: ignore[attr-defined]
        assert len(text.splitlines()) <= 40
        for verb in VERBS.values():
            assert f"  {verb.name} " in text and verb.summary in text


def test_version(crestline: Callable[..., object]) -> None:
    assert crestline("--version").out == f"crestline {__version__}\n"  # type: ignore[attr-defined]


def test_help_shows_defaults_types_and_groups(crestline: Callable[..., object]) -> None:
    text = crestline("rl", "--help").out  # type: ignore[attr-defined]
    assert "--num_generations N " in text and "Completions for each prompt: the group. [8]" in text
    assert "--algorithm rloo|grpo|ppo|reinforce" in text
    assert "--beta NUMBER" in text and "[None]" not in text
    assert "rloo, grpo, ppo, reinforce: Ratios are clipped" in " ".join(text.split())
    assert "optimization: How weights are stepped" in text
    text = crestline("run", "--help").out  # type: ignore[attr-defined]
    assert "--rl.learning_rate" in text and "--learning_rate" not in text.split()
    assert "--world TEXT" in text and "--watch.num_labels N" in text


def test_settings_of_the_run_itself_exist() -> None:
    flags = {option.flag for option in VERBS["run"].options(VERBS["run"].defaults())}
    hidden = {f"{stage}.{key}" for stage, keys in SET_BY_RUN.items() for key in keys}
    assert hidden <= flags and set(SET_BY_RUN) <= set(STAGES)


def test_a_narrow_terminal_keeps_words_whole(
    crestline: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {}
    for columns in (20, 60, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        told[columns] = crestline("chat", "--help").out  # type: ignore[attr-defined]
    assert told[20] == told[60]
    assert max(map(len, told[60].splitlines())) <= 62
    assert told[60].split() == told[100].split()


def test_help_needs_no_unicode() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "crestline", "--help"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )
    assert ended.returncode == 0 and ended.stderr == b""
    assert b"text ?pretrain?? base" in ended.stdout


HELP = """
import sys
from crestline.cli.main import main
for verb in {verbs}:
    main([verb, "--help"])
heavy = {{"torch", "transformers", "pyarrow", "datasets"}} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_imports_nothing_heavy() -> None:
    code = HELP.format(verbs=list(VERBS))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_bad_input_without_a_model_imports_nothing_heavy() -> None:
    code = """
import sys
from crestline.cli.main import main
assert main(["rl", "--sede", "3"]) == 2
assert main(["pretrain", "--text", "no.txt", "--output_dir", "x"]) == 2
assert main(["crest", "nowhere", "--people", "pelican"]) == 2
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["crest", "--help"]])
def test_help_is_there_at_once(words: list[str]) -> None:
    seconds = []
    for _ in range(2):  # the first may have to compile bytecode
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "crestline", *words], check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 2.0  # a second on an idle machine
