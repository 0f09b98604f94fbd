"""Which packages are there, whether their versions fit, and whether the large ones import. Torch-free until then.

Owns what the package itself says that it needs, and the words for what is missing. Asks nobody on the network.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Literal

from packaging.requirements import Requirement

from crestline import __version__

IMPORTED = ("torch", "transformers", "peft")
"""Packages that are imported, and named with their versions; the others are only counted."""
PURPOSES = {
    "tensorboard": "--report_to tensorboard",
    "wandb": "--report_to wandb",
    "trackio": "--report_to trackio",
    "vllm": "--sampler vllm",
}
"""What an optional package is for; other extras are for those who work on Crestline."""


@dataclass(frozen=True)
class Finding:
    """One line. state: ok; note: works, but there is something to do or to know; broken: nothing runs like this."""

    state: Literal["ok", "note", "broken"]
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:6} {self.name:12} {self.text}"


def requirements(extra: str = "") -> list[Requirement]:
    """What the package itself says that it needs; extra: for that extra alone. Nothing if it was not installed."""
    try:
        found = [Requirement(line) for line in metadata.requires("crestline") or []]
    except metadata.PackageNotFoundError:
        return []
    always = [need for need in found if applies(need, "")]
    return [n for n in found if applies(n, extra) and n not in always] if extra else always


def applies(need: Requirement, extra: str) -> bool:
    """Whether a requirement counts here, and with this extra."""
    return need.marker is None or need.marker.evaluate({"extra": extra})


def packages() -> Iterator[Finding]:
    """Python, Crestline, and whether every package that is needed is there, fits and, of the large ones, imports."""
    yield Finding("ok", "python", ".".join(map(str, sys.version_info[:3])))
    needed = requirements()
    bad = {need.name: said for need in needed if (said := wrong(need))}
    fit = f"{len(needed) - len(bad)} of {len(needed)} packages that it needs are there and fit"
    yield Finding("ok", "crestline", f"{__version__}; {fit}")
    for name, said in bad.items():
        yield Finding("broken", name, said)
    for name in IMPORTED:
        if name not in bad:
            yield imported(name)


def wrong(need: Requirement) -> str:
    """What is wrong with a package that is needed; nothing if it is there and fits."""
    mend = f"pip install '{need.name}{need.specifier}'"
    try:
        version = metadata.version(need.name)
    except metadata.PackageNotFoundError:
        return f"not installed: {mend}"
    if need.specifier.contains(version, prereleases=True):
        return ""
    return f"{version} does not fit: {mend}"


def imported(name: str) -> Finding:
    """A package's version, once it has been imported."""
    try:
        module = import_module(name)
    except Exception as error:  # broken installations raise every kind
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Finding(
            "broken", name, f"does not import: {said}: pip install --force-reinstall {name}"
        )
    return Finding("ok", name, str(getattr(module, "__version__", "unknown version")))


def extras() -> Iterator[Finding]:
    """Optional packages; each is called as the extra that brings it."""
    for name, purpose in PURPOSES.items():
        need = next(iter(requirements(name)), Requirement(name))
        if said := wrong(need).partition(":")[0]:
            told = f"{said}; for {purpose}: pip install 'crestline[{name}]'"
            yield Finding("note", name, told)
        else:
            yield Finding("ok", name, f"{metadata.version(name)}, for {purpose}")
