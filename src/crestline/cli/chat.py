"""The terminal loop of `crestline chat`: a line in, an answer out. Knows nothing of models."""

from __future__ import annotations

import contextlib
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from crestline.pipeline.configs import ChatConfig
from crestline.types import BadInput

CHANGES = "/checkpoint N (or shipped, reference, last) changes the model; "
LEAVES = "/quit leaves"


class Conversation(Protocol):
    """What answers."""

    description: str
    is_of_run: bool
    """Whether there are other checkpoints to talk to."""

    def say(self, text: str) -> str: ...


def talk(config: ChatConfig, open_chat: Callable[[ChatConfig], Conversation]) -> None:
    """Answer lines of stdin until it ends, /quit or Ctrl-C.

    open_chat: loads the model that a config names. Raises BadInput if the first one cannot be.
    """
    conversation = open_chat(config)
    hint = f"{CHANGES if conversation.is_of_run else ''}{LEAVES}"
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives input() its history)
    elif hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    print(f"{conversation.description}. {hint}", flush=True)
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        while True:
            line = input("> " if is_terminal else "").strip()
            command, _, argument = line.partition(" ")
            if command in ("/quit", "/exit"):
                return
            if command == "/checkpoint":
                try:
                    changed = replace(config, checkpoint=argument.strip())
                    conversation, config = open_chat(changed), changed
                    print(conversation.description, flush=True)
                except BadInput as error:
                    print(error, flush=True)
            elif command.startswith("/"):
                print(hint, flush=True)
            elif line:
                try:
                    print(visible(conversation.say(line)), flush=True)
                except BadInput as error:  # a message that does not fit the model
                    print(error, flush=True)
    if is_terminal:
        print()


def visible(text: str) -> str:
    """The text without control characters: what a model says must not steer the terminal.

    >>> visible("red\\x1b[31m")
    'red[31m'
    """
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
