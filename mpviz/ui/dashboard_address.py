"""The address of the dashboard: what is set and how it looks, so that a reload or a copied link shows the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from mpviz.errors import RecipeError
from mpviz.ui.dashboard_faces import LOWER, RIGHT
from mpviz.workbench.names import STATE, to_query

THEMES = ("light", "dark")
LOOKS = {"theme": THEMES, "lower": LOWER, "right": RIGHT}
ADDRESSED = frozenset((*STATE, *LOOKS))


@dataclass(frozen=True)
class Address:
    """theme, lower, right: of `Seen`. state: of the Workbench; folders, which this machine alone has, are left out.

    asked: the rest of an address that was read, for `state_asked`.
    """

    theme: str = THEMES[0]
    lower: str = LOWER[0]
    right: str = RIGHT[0]
    state: Mapping[str, Any] = field(default_factory=dict)
    asked: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """What was asked for by a name, such as "model"; "" for nothing."""
        return [*self.asked.get(name, ()), ""][0]

    def state_asked(self) -> dict[str, Any]:
        """The state that was asked for. Raises RecipeError for what no workbench can have."""
        from mpviz.workbench.session_file import from_query  # with torch, for which the page does not wait

        if "folder" in self.asked:
            raise RecipeError("an address names no folder; give the dashboard one with --folder")
        return from_query(self.asked)

    def query(self) -> str:
        """The query of the address, with its question mark.

        >>> Address("dark", state={"model": "fashion-mlp", "folder": "/data"}).query()
        '?model=fashion-mlp&theme=dark'
        """
        state = to_query({name: value for name, value in self.state.items() if name != "folder" and value is not None})
        looks = {name: getattr(self, name) for name, known in LOOKS.items() if getattr(self, name) != known[0]}
        return "?" + "&".join(part for part in (state, urlencode(looks)) if part)


def read_address(query: Mapping[str, Sequence[str]]) -> Address:
    """An address from its query, a list of texts a name. Raises RecipeError for looks that the page does not have."""
    looks: dict[str, Any] = {}
    for name, known in LOOKS.items():
        if name in query:
            value = query[name][-1]
            if value not in known:
                raise RecipeError(f"the address says '{name}={value}'; known: {', '.join(known)}")
            looks[name] = value
    return Address(**looks, asked={name: texts for name, texts in query.items() if name not in looks})
