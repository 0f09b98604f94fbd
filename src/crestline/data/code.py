"""A user's Python function, named on the command line as module.py:function.

Owns finding and importing it. Knows nothing of what it is for and how it is called.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from crestline.types import BadInput


def load_function(flag: str, value: str) -> Callable[..., Any]:
    """The function that "path/module.py:function" names. flag: who asks, such as "people".

    Raises: BadInput for a missing file or function, or a module that fails to import.
    """
    file, _, name = value.rpartition(":")
    if not file or not name:
        raise BadInput(f"--{flag} {value}: expected module.py:function")
    function = getattr(_module(Path(file), f"--{flag} {value}"), name, None)
    if function is None:
        raise BadInput(f"--{flag} {value}: {file} has no function {name!r}")
    if not callable(function):
        raise BadInput(f"--{flag} {value}: {name} is {type(function).__name__}, not a function")
    found: Callable[..., Any] = function
    return found


def _module(file: Path, asked: str) -> ModuleType:
    """The module in a file, imported once; its neighbours can be imported from it."""
    if not file.is_file():
        raise BadInput(f"{asked}: no such file: {file}; expected module.py:function")
    path = file.resolve()
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadInput(f"{asked}: {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise BadInput(
            f"{asked}: importing {file} failed: {type(error).__name__}: {error}"
        ) from error
    return module
