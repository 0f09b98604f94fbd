"""Who answers: turns a --people flag into people. One of the few places that know worlds."""

from __future__ import annotations

from crestline.people.functions import load_people
from crestline.types import BadInput, People
from crestline.worlds.pelican import PelicanWorld
from crestline.worlds.world import World

WORLDS: dict[str, World] = {"pelican": PelicanWorld()}


def people_of(flag: str, *, seed: int, flip_probability: float) -> People:
    """The people that a flag names: an embedded world's crowd, or a user's function.

    Raises BadInput if it names neither.
    """
    if flag in WORLDS:
        return WORLDS[flag].people(seed, flip_probability=flip_probability)
    if ":" not in flag:
        raise BadInput(
            f"--people {flag!r} is neither module.py:function nor an embedded world ({', '.join(WORLDS)})"
        )
    return load_people(flag)


def world_of(name: str) -> World:
    """The embedded world of that name. Raises BadInput if there is none."""
    if name not in WORLDS:
        raise BadInput(f"no world is called {name!r}; there are: {', '.join(WORLDS)}")
    return WORLDS[name]
