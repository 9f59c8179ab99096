"""Recipes: TOML files with every number of a run and its source; one may build on another."""

import tomllib
from pathlib import Path
from typing import Any

Recipe = dict[str, Any]


def load_recipe(path: Path) -> Recipe:
    """Read a recipe; `base = "other.toml"` beside it is read first and overlaid, table by table.

    Raises
    ------
    ValueError
        If recipes build on each other in a circle.
    """
    return _load(path.resolve(), ())


def _load(path: Path, seen: tuple[Path, ...]) -> Recipe:
    if path in seen:
        raise ValueError(f"{path.name} builds on itself: {' -> '.join(one.name for one in (*seen, path))}")
    recipe: Recipe = tomllib.loads(path.read_text())
    base = recipe.pop("base", None)
    return overlaid(_load(path.parent / base, (*seen, path)), recipe) if base else recipe


def overlaid(below: Recipe, above: Recipe) -> Recipe:
    """`below` with the values of `above`; tables are merged, everything else replaced."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = overlaid(below[key], value) if both else value
    return merged
