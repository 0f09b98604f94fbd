"""What `--help` prints: the loop and its verbs, and the flags of one verb.

Owns the layout. Every word about a flag comes from the docstring of its field.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from itertools import groupby

from crestline import __version__
from crestline.cli.options import Option
from crestline.cli.verbs import VERBS, Verb

LOOP = """\
text ─pretrain─▶ base ─sft─▶ assistant ─sample─▶ people rank ─reward─▶ reward model ─rl─▶ crest ─▶ ship

A reward model is a lossy copy of what people like. RL against it makes answers better, and then
worse while the score still rises. Crestline asks people (or whoever stands in for them) at
checkpoints, finds the crest, ships that checkpoint, and shows the evidence."""


def main_help() -> str:
    """One screen: what the loop is, and every verb in a line."""
    verbs = "\n".join(f"  {verb.name:12} {verb.summary}" for verb in VERBS.values())
    return f"""\
crestline {__version__}: RLHF that knows when to stop

{LOOP}

usage: crestline VERB [--flag value ...]

{verbs}

Start here:
  crestline run                     the whole loop on an embedded world, nothing to bring
  crestline run --dry_run           what that would do
  crestline VERB --help             the flags of a verb, with examples

Every verb takes --config file.yaml, whose keys are the flags; flags override the file.
Exit codes: 0 done; 2 bad input; 3 paused, the same command goes on; 130 interrupted.
"""


def verb_help(verb: Verb, options: Sequence[Option]) -> str:
    """The flags of a verb in groups, with help and defaults, and two examples."""
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 110))
    usage = f" {verb.positional.upper()}" if verb.positional else ""
    lines = [f"usage: crestline {verb.name}{usage} [--flag value ...]", "", _capital(verb.summary)]
    shown = [option for option in options if not option.is_set_by_run]
    told_at: dict[str, str] = {}
    for group, members in groupby(shown, key=lambda option: option.group):
        lines += ["", group]
        for option in members:
            first = told_at.setdefault(option.help, option.flag)
            is_told = first != option.flag and len(option.help) > 40
            text = f"As --{first}." if is_told else option.help
            lines += _told(option, text, verb, width)
    lines += ["", "examples"]
    for example in verb.examples:
        lines += textwrap.wrap(
            example,
            width,
            initial_indent="  ",
            subsequent_indent="      ",
            break_on_hyphens=False,
            break_long_words=False,
        )
    return "\n".join(lines) + "\n"


def _told(option: Option, text: str, verb: Verb, width: int) -> list[str]:
    name = f"  --{option.flag} {option.value_name}".rstrip()
    if option.part == "settings" and option.path[0] in verb.required and not option.default:
        text += " Required."
    elif option.default not in ("", None) and option.default is not False:
        text += f" [{option.default}]"
    indent = " " * 34
    wrapped = textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
    if wrapped and len(name) <= 32:
        return [name.ljust(34) + wrapped[0].lstrip(), *wrapped[1:]]
    return [name, *wrapped]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
