"""What a sweep runs: recipes and products of settings as named runs, each checked before the first is begun."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from mpviz.errors import MpvizError, RecipeError, nearest
from mpviz.grid import checked_grid
from mpviz.nets.architectures import ARCHITECTURES
from mpviz.nets.data import BUNDLED
from mpviz.nets.packaged import PACKAGED
from mpviz.nets.zoo import Source, build_architecture
from mpviz.pipeline import checked_plan
from mpviz.projecting import checked_projection
from mpviz.recipe import STEPPED, Recipe, read_recipe, with_settings
from mpviz.sweep_folder import JOBS, NOTE, Planned

_LONGEST = 80  # characters of a run's name
_PAIRS = {"[": "]", "{": "}", '"': '"', "'": "'"}


def plan_runs(
    recipes: Sequence[str | Path | Recipe], settings: Sequence[str] = (), processes: int = 1
) -> list[tuple[Planned, Recipe]]:
    """Each recipe with each combination of the settings, named after both and checked as far as names and values go.

    settings: "key=value", or "key=value,value,…" for several, with values as in `with_settings`; a comma inside of
    brackets or quotes parts nothing. processes: of each run. Raises RecipeError that names the run, and the key.
    """
    if not recipes:
        raise RecipeError("a sweep needs a recipe; `mpviz recipe > plan.toml` writes one to start from")
    axes = [(one.partition("=")[0].strip(), _values(one)) for one in settings]
    moving = [key for key, values in axes if len(values) > 1]
    shown, found = _short(moving), []
    names: set[str] = set()
    built: set[str] = set()
    for number, given in enumerate(recipes, start=1):
        source = "recipe" if isinstance(given, Recipe) else str(given)
        base = given if isinstance(given, Recipe) else read_recipe(given)
        stem = f"recipe-{number}" if isinstance(given, Recipe) else Path(given).stem
        for chosen in product(*(values for _, values in axes)):
            pairs = [(key, value) for (key, _), value in zip(axes, chosen, strict=True)]
            words = [f"{shown[key]}={value}" for key, value in pairs if key in shown]
            name = _unused(_name("-".join([stem, *words])), names)
            made = tuple(f"{key}={value}" for key, value in pairs)
            try:
                recipe = _checked(with_settings(base, made), processes, built)
            except MpvizError as error:
                raise RecipeError(f"{source}, run {name}: {error}; nothing was begun") from error
            found.append((Planned(name, source, made), recipe))
    return found


def _values(setting: str) -> list[str]:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"a setting looks like budget.sparsity=0.5,0.7; got '{setting}'")
    parts = [part.strip() for part in _parted(text)]
    if not all(parts) and len(parts) > 1:
        raise RecipeError(f"the setting '{setting}' has an empty value between its commas; take it out")
    again = next((part for i, part in enumerate(parts) if part in parts[:i]), None)
    if again is not None:
        raise RecipeError(f"the setting '{setting}' names {again} twice; a sweep runs each value once")
    return parts


def _parted(text: str) -> Iterator[str]:
    """A text at its commas, but for those inside of brackets or quotes."""
    inside: list[str] = []
    start = 0
    for place, letter in enumerate(text):
        if inside and letter == inside[-1]:
            inside.pop()
        elif letter in _PAIRS and (not inside or inside[-1] not in "\"'"):
            inside.append(_PAIRS[letter])
        elif letter == "," and not inside:
            yield text[start:place]
            start = place + 1
    yield text[start:]


def _short(keys: Sequence[str]) -> dict[str, str]:
    """Keys by their last part, or whole where two share it."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: word if last.count(word) == 1 else key for key, word in zip(keys, last, strict=True)}


def _name(words: str) -> str:
    """A folder's name: letters, digits, dots, dashes and equals signs only."""
    words = re.sub(r"[\[\]{}\"']", "", words).replace(",", "+")
    return re.sub(r"[^\w.=+]+", "-", words, flags=re.ASCII).strip("-.")[:_LONGEST].strip("-.") or "run"


def _unused(name: str, names: set[str]) -> str:
    chosen, number = name, 2
    while chosen in names or chosen in (JOBS, NOTE):
        chosen, number = f"{name}-{number}", number + 1
    names.add(chosen)
    return chosen


def _checked(recipe: Recipe, processes: int, built: set[str]) -> Recipe:
    {"grid": checked_grid, "projection": checked_projection, "plan": checked_plan}[recipe.kind](recipe)
    _check_places(recipe)
    if repr(recipe.model) not in built:  # a large network takes seconds
        _check_network(recipe)
        built.add(repr(recipe.model))
    if processes > 1 and not _trains(recipe):
        raise RecipeError(
            f"recipe key 'recover.epochs' is 0, and {processes} processes share nothing but training; leave them out"
        )
    return recipe


def _check_network(recipe: Recipe) -> None:
    plan = recipe.model
    if plan.name in (*ARCHITECTURES, *PACKAGED) or Path(plan.name).is_file() or plan.name.endswith(".safetensors"):
        return
    try:
        build_architecture(Source(plan.name, plan.options))
    except MpvizError as error:
        raise RecipeError(f"recipe key 'model.name': {error}") from error


def _check_places(recipe: Recipe) -> None:
    """Raises RecipeError for files, folders and data sets that are not there."""
    name, places = recipe.data.name, {"model.weights": recipe.model.weights}
    places["data.folder"] = "" if recipe.data.folder == "bundled" else recipe.data.folder
    for key, given in (("model.name", recipe.model.name), ("project.source", recipe.project.source)):
        if given.endswith(".safetensors"):
            places[key] = given
    for key, place in places.items():
        if place and not Path(place).expanduser().exists():
            raise RecipeError(f"recipe key '{key}' names {place}, which is not there")
    if name not in BUNDLED and "/" not in name and not Path(name).expanduser().is_dir():
        raise RecipeError(f"recipe key 'data.name' names the unknown '{name}'; {nearest(name, BUNDLED)}")


def _trains(recipe: Recipe) -> bool:
    stepped = any(method in STEPPED for method in recipe.grid.methods)
    return recipe.recover.epochs > 0 or stepped or (bool(recipe.project.pattern) and recipe.project.source in STEPPED)
