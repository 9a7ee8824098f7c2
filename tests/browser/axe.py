"""What axe, which judges pages as screen readers and keyboards meet them, holds against one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axe_playwright_python.sync_playwright import Axe

if TYPE_CHECKING:
    from playwright.sync_api import Page

_AXE = Axe()
_GRAVE = ("serious", "critical")


def grave(page: Page, where: str, part: str | None = None, colours: bool = False) -> list[str]:
    """What is serious or critical in the page, shadow trees included, a line each.

    part: CSS of the only part to look at. colours: contrast alone, for a page whose other theme is known.
    """
    options: dict[str, Any] = {"resultTypes": ["violations"]} | ({"runOnly": ["color-contrast"]} if colours else {})
    found = _AXE.run(page, context=part, options=options).response["violations"]
    return [
        f"{where}: {one['impact']} {one['id']} at {node['target']}: {node['failureSummary']}"
        for one in found
        if one["impact"] in _GRAVE
        for node in one["nodes"]
    ]
