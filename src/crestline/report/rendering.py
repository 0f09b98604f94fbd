"""How templates of this package are rendered. Owns the settings of Jinja; knows no template."""

from __future__ import annotations

from collections.abc import Callable

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment(*, markup: bool = True, **filters: Callable[..., str]) -> Environment:
    """Templates of `report/templates`, in which every name must be there.

    markup: whether what is filled in is escaped as HTML; Markdown escapes for itself. filters: by name.
    """
    found = Environment(
        loader=PackageLoader("crestline.report"),
        autoescape=markup,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not markup,
    )
    found.filters.update(filters)
    return found
