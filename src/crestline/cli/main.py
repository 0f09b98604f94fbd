"""The `crestline` command: reads the line, does one verb, and turns what went wrong into an exit code.

0 done; 2 bad input; 3 paused; 130 interrupted; anything unexpected keeps its traceback.
"""

from __future__ import annotations

import errno
import io
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crestline import __version__
from crestline.cli.help import main_help, verb_help
from crestline.cli.options import Option
from crestline.cli.parsing import Given, assemble, parse_flags, parse_yaml, verb_of
from crestline.cli.verbs import VERBS, Control, DoctorControl, Machine, RunControl, Verb
from crestline.runs.settings import nearest
from crestline.training.configs import required
from crestline.types import BadInput, Paused

DONE, BAD_INPUT, PAUSED, INTERRUPTED, BROKEN_PIPE = 0, 2, 3, 130, 141
SPINS = "3000"
_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the words of the command line say and return the exit code."""
    wait_briefly()
    open_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = Command()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a terminal that lacks our arrows still gets the words
        sys.stdout.reconfigure(errors="replace")
    try:
        command.do(words)
        sys.stdout.flush()
        return DONE
    except BadInput as error:
        return told(f"error: {error}", BAD_INPUT)
    except Paused as error:
        return told(f"paused: {error}", PAUSED)
    except KeyboardInterrupt:
        return told(f"interrupted{command.how_to_continue()}", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        line = expected(error)
        if line is None:
            raise
        return told(f"error: {line}", BAD_INPUT)


def wait_briefly() -> None:
    """Let a thread that waits for the others sleep soon, unless the environment has a wish of its own.

    libgomp, with which torch computes on Linux, spins for milliseconds first. Beside another busy process the cores are
    then full of waiting: an update of a small model took up to sixty times as long. It reads the variable once,
    when torch is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def open_streams() -> None:
    """Put the null device where the caller closed stdin, stdout or stderr: else a file of ours gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  (open to the end)


def told(text: str, code: int) -> int:
    """Print one line on stderr and return the code."""
    print(f"crestline: {' '.join(text.split())}", file=sys.stderr)
    return code


def expected(error: Exception) -> str | None:
    """One line for errors that are no bugs: memory, disk, a package that is not installed."""
    said = str(error)
    is_full = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in said
    if is_full or isinstance(error, MemoryError):
        return (
            "out of memory; lower --micro_batch_size (training), --num_generations or "
            "--max_completion_length (sampling), or take a smaller model"
        )
    if isinstance(error, OSError) and error.errno in _DISK:
        return f"{error.filename or 'the disk'}: {os.strerror(error.errno).lower()}"
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] != "crestline":
        return f"the package {error.name!r} is missing; install it: pip install {error.name}"
    return None


class Command:
    """One command line; what it learns on the way tells how to go on after an interruption."""

    def __init__(self) -> None:
        self.verb: Verb | None = None
        self.config: Any = None

    def do(self, words: Sequence[str]) -> None:
        """Help, version or a verb."""
        if not words or words[0] in ("-h", "--help", "help"):
            print(main_help(), end="")
            return
        if words[0] in ("-V", "--version"):
            print(f"crestline {__version__}")
            return
        if words[0] not in VERBS:
            near = nearest(words[0], VERBS) or f"; the verbs are: {', '.join(VERBS)}"
            raise BadInput(f"{words[0]!r} is no verb{near}")
        self.verb = VERBS[words[0]]
        if any(word in ("-h", "--help") for word in words[1:]):
            defaults = self.verb.defaults()
            print(verb_help(self.verb, self.verb.options(defaults)), end="")
            return
        self.do_verb(self.verb, words[1:])

    def do_verb(self, verb: Verb, words: Sequence[str]) -> None:
        """Settle the settings, check what can be checked at once, then work."""
        options = verb.options(verb.defaults())
        flags = parse_flags(words, options, verb.positional)
        control = assemble("control", verb.control(), flags)
        if isinstance(control, RunControl) and "resume" in flags:
            self.resume(control, flags)
            return
        if isinstance(control, DoctorControl):
            self.doctor(verb, control, flags, options)
            return
        self.config, machine = settle(verb, control, flags, options)
        required(self.config, *verb.required)
        self.work(verb, control, machine)

    def work(self, verb: Verb, control: Control, machine: Machine) -> None:
        from crestline.cli.actions import act, check_device, plan_lines
        from crestline.cli.checks import ESTIMATED, INPUTS

        device = getattr(self.config, "device", machine.device)
        check_device(device)
        found = INPUTS[verb.name](self.config)
        if verb.name in ESTIMATED:
            from crestline.pipeline.memory import memory_line

            line, is_too_much = memory_line(self.config, device)
            found.append(line)
            if is_too_much and not control.dry_run:
                print(f"crestline: warning: {line}", file=sys.stderr)
        if control.dry_run:
            plan = plan_lines(self.config) if verb.name == "run" else []
            print(f"crestline {verb.name} would do this: {verb.summary}")
            print("\n".join([*plan, *(f"  {line}" for line in found), "nothing was done"]))
            return
        act(verb.name, self.config, machine)

    def doctor(
        self,
        verb: Verb,
        control: DoctorControl,
        flags: Mapping[str, Given],
        options: Sequence[Option],
    ) -> None:
        """Look at the machine; the file that --config names holds another verb's settings."""
        from crestline.cli.actions import check_device, doctor
        from crestline.cli.checks import INPUTS

        config, machine = settle(verb, Control(), flags, options)
        check_device(machine.device)
        found = INPUTS[verb.name](config)
        settings = None
        if control.config:
            name = config.verb or verb_of(control.config) or "run"
            INPUTS[verb.name](replace(config, verb=name))
            asked = VERBS[name]
            theirs = asked.options(asked.defaults())
            settings, _ = settle(asked, asked.control(config=control.config), {}, theirs)
            required(settings, *asked.required)
        if control.dry_run:
            print("\n".join([f"crestline doctor would look at {found[0]}", "nothing was done"]))
            return
        doctor(config, machine, settings)

    def resume(self, control: RunControl, flags: Mapping[str, Given]) -> None:
        """Go on with a run; its folder alone says how."""
        others = [f"--{flag}" for flag in flags if flag not in ("resume",)]
        if others:
            raise BadInput(
                f"--resume takes the settings from the run's folder; leave out {', '.join(others)}"
            )
        assert self.verb is not None
        self.config = replace(self.verb.defaults(), output_dir=control.resume)
        from crestline.cli.actions import resume

        resume(control.resume)

    def how_to_continue(self) -> str:
        """What to type after an interruption, if there is anything to go on with."""
        if self.verb is None or self.config is None or not self.verb.folder:
            return ""
        place = Path(getattr(self.config, self.verb.folder))
        if self.verb.name == "run" and (place / "config.yaml").is_file():
            again = shlex.join(["crestline", "run", "--resume", str(place)])
            return f"; continue with: {again}"
        return "; continue with the same command" if place.exists() else ""


def settle(
    verb: Verb, control: Control, flags: Mapping[str, Given], options: Sequence[Option]
) -> tuple[Any, Machine]:
    """The settings: defaults or the preset, then the file, then the flags."""
    base = verb.defaults()
    if isinstance(control, RunControl):
        from crestline.pipeline.presets import PRESETS

        base = PRESETS[control.preset]
    given = dict(flags)
    if control.config:
        fit_for_file = [option for option in options if option.part != "control"]
        given = {**parse_yaml(control.config, fit_for_file, verb.name), **flags}
    return assemble("settings", base, given), assemble("machine", Machine(), given)
