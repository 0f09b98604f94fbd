"""Which page belongs to which config: the only place where algorithms are told apart."""

from __future__ import annotations

from types import ModuleType

from crestline.training import grpo, rloo
from crestline.training.rl_configs import Algorithm, Grpo, Rloo

PAGES: dict[type[Algorithm], ModuleType] = {Rloo: rloo, Grpo: grpo}
