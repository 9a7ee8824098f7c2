"""What a workbench can go back to and take over: undo and redo, recipes that are pasted, sessions from elsewhere."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from mpviz.errors import RecipeError
from mpviz.prune.allocate import layer_names
from mpviz.recipe import BudgetPlan, CertifyPlan, DataPlan, ModelPlan, Recipe, recipe_from_dict
from mpviz.recipe_values import toml_section
from mpviz.workbench.history import History
from mpviz.workbench.jobs import Job
from mpviz.workbench.names import PLAN, SHOWN
from mpviz.workbench.proving import Proving
from mpviz.workbench.session_file import checked_state, read_session, write_session
from mpviz.workbench.sources import Subject

UNDOABLE = (*PLAN, "split", "samples")
# what of a recipe has a control: keys by section, () for all; what is changed most stands first
CONTROLLED: dict[str, tuple[str, ...]] = {"budget": (), "certify": ("split",), "model": ("name",), "data": ()}
_ROLES = {"attention": "beta_attention", "mlp": "beta_mlp"}


class Remembering(Proving):
    """The part of a workbench that sets all its controls at once. Its other half loads, plans and prunes."""

    _folder: str | None
    _counts: Callable[[float, BudgetPlan, Subject], tuple[pd.Series, dict[str, int]]]
    _history: History | None = None

    # --- undo and redo --------------------------------------------------------------------------------------------

    def undo(self) -> bool:
        """Go back to the plan, split and number of samples before the last change; False where there is none.

        What a slider passes through in one pull is one step. A network that is loaded begins anew.
        """
        return self._walk(History.undo)

    def redo(self) -> bool:
        """Take back the last `undo`; False where there is none, or where something was set since."""
        return self._walk(History.redo)

    def _walk(self, step: Callable[[History], Mapping[str, Any] | None]) -> bool:
        with self._lock:
            found = None if self._history is None else step(self._history)
            if found is None:
                return False
            self._set(**found)
        return True

    def _remember(self) -> dict[str, bool]:
        """Keep what is set now as a step. Returns what the state says of undo and redo."""
        now = {name: _copied(getattr(self, name)) for name in UNDOABLE}
        if self._history is None:
            self._history = History(now)
        self._history.record(now)
        return {"undoable": self._history.undoable, "redoable": self._history.redoable}

    # --- recipes --------------------------------------------------------------------------------------------------

    @property
    def recipe(self) -> Recipe:
        """The whole plan."""
        raise NotImplementedError

    @property
    def recipe_text(self) -> str:
        """What of the recipe the controls make, as TOML; `apply` takes it back."""
        values = self._controls().to_dict()
        return "\n".join(
            toml_section((section,), {key: values[section][key] for key in keys or values[section]})
            for section, keys in CONTROLLED.items()
        )

    def apply(self, recipe: str | Recipe) -> Job | None:
        """Set the controls to a recipe, or to what TOML text says; keys that a text leaves out stay as they are.

        Another network or data set is loaded in the background by the Job that is returned, which sets the controls
        once all is there; else they are set at once. Raises RecipeError for text that is no recipe, for values out of
        bounds, and for what has no control here, such as methods to compare; BudgetError for unknown layers. On an
        error everything stays as it is.
        """
        wanted = recipe if isinstance(recipe, Recipe) else self._merged(recipe)
        settings = _settings_of(wanted)
        return self._take(wanted.model.name, wanted.data.name, wanted.data.folder, settings)

    def _merged(self, text: str) -> Recipe:
        """The recipe that is there with what a text changes of it."""
        try:
            given = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"the recipe is not valid TOML: {error}") from error
        values = self._controls().to_dict()
        for section, keys in given.items():
            inside = isinstance(keys, Mapping) and isinstance(values.get(section), dict)
            values[section] = {**values[section], **keys} if inside else keys
        return recipe_from_dict(values)

    def _controls(self) -> Recipe:
        """The recipe as the controls stand; of a network in hand, too, whose name leads nowhere."""
        data = DataPlan(name=self.data, folder=self._folder or "")
        return Recipe(ModelPlan(name=self.model), data, self.plan, CertifyPlan(split=self.split))

    # --- sessions -------------------------------------------------------------------------------------------------

    @property
    def state(self) -> dict[str, Any]:
        """All that is set and not as it was first, as plain values: for `restore`, an address or a file."""
        found: dict[str, Any] = {"model": self.model, "data": self.data}
        if self._folder:
            found["folder"] = self._folder
        for name in (*PLAN, *SHOWN):
            value = getattr(self, name)
            if value != self.param[name].default:
                found[name] = round(value, 6) if isinstance(value, float) else _copied(value)
        return found

    def restore(self, state: Mapping[str, Any]) -> Job | None:
        """Set everything as a `state` says; what it leaves out becomes as it was first.

        Another network or data set is loaded as in `apply`. Raises RecipeError, BudgetError and ModelError for what
        cannot be set. On an error everything stays as it is.
        """
        wanted = checked_state(state)
        settings = {name: wanted.get(name, _copied(self.param[name].default)) for name in (*PLAN, *SHOWN)}
        if not settings["layer"]:
            del settings["layer"]
        source = wanted.get("model", self.model), wanted.get("data", self.data), wanted.get("folder", "")
        return self._take(*source, settings)

    def save_session(self, path: str | Path) -> Path:
        """Write all that is set as a small JSON file. Raises RecipeError where that fails, ModelError for a module.

        Weights are not in it: a session names its network.
        """
        _ = self.recipe  # which says why, for a network without a name
        return write_session(path, self.state)

    def open_session(self, path: str | Path) -> Job | None:
        """Set everything as in a file of `save_session`. Errors: `restore`."""
        return self.restore(read_session(path))

    # --- both -----------------------------------------------------------------------------------------------------

    def open(
        self, model: Any, data: str | None = None, folder: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> Job:
        """Load another network (and data set) in the background."""
        raise NotImplementedError

    def _take(self, model: str, data: str, folder: str, settings: dict[str, Any]) -> Job | None:
        """Set everything, after loading what is not there yet."""
        if (model, data, folder) != (self.model, self.data, self._folder or ""):
            in_hand = model == self.model and not self._subject.loadable
            return self.open(self._subject.network if in_hand else model, data, folder, settings)
        with self._lock:
            self._set(**self._fitting(settings, self._subject))
        return None

    def _fitting(self, settings: Mapping[str, Any], subject: Subject) -> dict[str, Any]:
        """The settings with whole layer names. Raises BudgetError and ModelError for what the network does not have."""
        found = dict(settings)
        if "layer" in found:
            found["layer"] = layer_names([found["layer"]], subject.spectra, "layer")[0]
        found["locked"] = layer_names(found.get("locked", self.locked), subject.ranking.names, "locked layer")
        plan = BudgetPlan(
            sparsity=found.get("sparsity", self.sparsity), signal=found.get("signal", self.signal),
            beta=found.get("beta", self.beta), decay_end=found.get("decay_end", self.decay_end),
            locked=found["locked"],
        )  # fmt: skip
        self._counts(plan.sparsity, plan, subject)
        return found


def _settings_of(recipe: Recipe) -> dict[str, Any]:
    """What the controls stand at for a recipe. Raises RecipeError for values that no control has."""
    budget = recipe.budget
    for role in budget.beta_by_role:
        if role not in _ROLES:
            raise RecipeError(f"recipe key 'budget.beta_by_role.{role}' has no control here; run it with mpviz run")
    shown = Recipe(
        ModelPlan(name=recipe.model.name), recipe.data, budget, CertifyPlan(split=recipe.certify.split)
    ).to_dict()  # fmt: skip
    for section, values in asdict(recipe).items():
        for key, value in values.items():
            if value != shown[section][key]:
                raise RecipeError(f"recipe key '{section}.{key}' has no control here; run it with mpviz run")
    named = {"sparsity": budget.sparsity, "signal": budget.signal, "beta": budget.beta, "decay_end": budget.decay_end,
             "locked": list(budget.locked), "split": recipe.certify.split}  # fmt: skip
    return checked_state(named | {setting: budget.beta_by_role.get(role) for role, setting in _ROLES.items()})


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value
