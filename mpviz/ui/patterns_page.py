"""The dashboard's page of k:n patterns: a layer's groups, what patterns cost, and the paper's rows beside ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import pandas as pd

from mpviz.errors import DataError, MpvizError, nearest
from mpviz.nets.paths import data_root
from mpviz.paper import paper_rows
from mpviz.structured import PatternView, committed_cells, explore, mac_stages, pattern_layers
from mpviz.ui import tables, text
from mpviz.ui.page import choice_form, filled_page, pages_nav
from mpviz.ui.pattern_figures import arm_name, macs_figure, pattern_figure, patterns_figure
from mpviz.ui.theme import CONFIG, THEMES

NETWORKS = ("fashion-vit", "fashion-resnet", "fashion-mlp")
PATTERNS = ("2:4", "4:8", "8:16", "12:16")
ORDERS = ("hungarian", "snake", "interleave", "none")
MERGED = 4


def patterns_page(asked: Mapping[str, str]) -> tuple[bool, str]:
    """The page, and whether all that was asked for exists. asked: network, pattern, order, layer and theme of the URL.

    seen: the network of the page that led here, shown where none is asked for and it is one of ours.

    Nothing but the bundled networks is ever opened; other names are told to be unknown.
    """
    theme = asked.get("theme", "light") if asked.get("theme", "light") in THEMES else "light"
    try:
        seen = asked.get("seen")
        network = _known("network", asked.get("network", seen if seen in NETWORKS else NETWORKS[0]), NETWORKS)
        pattern = _known("pattern", asked.get("pattern", PATTERNS[0]), PATTERNS)
        order = _known("order", asked.get("order", ORDERS[0]), ORDERS)
        layers = pattern_layers(network)
        middle = layers[len(layers) // 2]
        layer = asked.get("layer", middle)
        if layer not in layers and any(layer in pattern_layers(other) for other in NETWORKS):
            layer = middle  # the form asks for another network, and still for a layer of the one before
        layer = _known("layer", layer, layers)
        return True, _page(network, pattern, order, layer, layers, theme)
    except MpvizError as error:
        parts = {
            "nav": pages_nav("patterns", asked, theme),
            "title": "No such pattern here",
            "message": text.escape(str(error)),
        }
        return False, filled_page("notice.html", parts, None, theme)


def _known(what: str, name: str, known: tuple[str, ...]) -> str:
    if name not in known:
        raise DataError(f"no {what} '{name}' here; {nearest(name, known)}")
    return name


@lru_cache(maxsize=64)
def _view(network: str, pattern: str, order: str, layer: str) -> PatternView:
    return explore(network, pattern, order, layer)


def _page(network: str, pattern: str, order: str, layer: str, layers: tuple[str, ...], theme: str) -> str:
    cells = committed_cells()
    merges = MERGED if network == "fashion-vit" else 0
    drawn: dict[str, Any] = {
        "config": CONFIG,
        "groups": pattern_figure(_view(network, pattern, order, layer), theme),
        "macs": macs_figure(mac_stages(network, pattern, merges), theme),
        "choices": [], "grids": [],
    }  # fmt: skip
    drawn["groups"]["layout"]["height"] = 520
    here = cells[cells["network"] == network]
    for epochs, tome, renew in sorted(set(here[["epochs", "tome", "renew"]].itertuples(index=False, name=None))):
        words = [f"{epochs} epochs of distillation" if epochs else "no training"]
        words += [f"{tome} pairs merged a block"] * bool(tome) + ["batch norms renewed"] * bool(renew)
        drawn["choices"].append(", ".join(words))
        drawn["grids"].append(patterns_figure(cells, network, theme, epochs, tome, renew))
    asked = {"network": network, "pattern": pattern, "order": order, "layer": layer, "theme": theme}
    parts = {
        "nav": pages_nav("patterns", asked, theme),
        "title": "Which k of every n inputs stay?",
        "form": choice_form(_choices(layers), asked, lambda one: one.removesuffix(".weight")),
        "network": text.escape(network),
        "no_grid": "" if drawn["grids"] else "hidden",
        "table": _grid_table(here, theme) if drawn["grids"] else "",
        "rows": rows_table(theme),
        "measured": tables.chip("measured", theme),
    }
    return filled_page("patterns.html", parts, drawn, theme)


def _choices(layers: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {"network": NETWORKS, "pattern": PATTERNS, "order": ORDERS, "layer": layers}


def _grid_table(cells: pd.DataFrame, theme: str) -> str:
    """Accuracy by arm and pattern, mean ± standard deviation over the seeds."""
    cells = cells.assign(arm=[arm_name(row) for row in cells.to_dict("records")])
    patterns = list(dict.fromkeys(cells["pattern"]))
    rows = []
    for (epochs, arm), some in cells.groupby(["epochs", "arm"], sort=False):
        row = [text.escape(arm), f"{epochs}"]
        for pattern in patterns:
            found = 100 * some.loc[some["pattern"] == pattern, "accuracy"]
            spread = f" ± {found.std(ddof=1):.2f}" if len(found) > 1 else ""
            row.append(f"{found.mean():.2f}{spread}" if len(found) else "–")
        rows.append(row)
    return tables.html_table(("accuracy, %", "epochs", *patterns), rows, theme)


def rows_table(theme: str) -> str:
    """The paper's rows, and what was counted and run here: savings as executed, by their convention, and end to end."""
    path = data_root() / "benchmarks" / "paper-rows.json"
    ours = {row["row"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]} if path.is_file() else {}
    rows = []
    for one in paper_rows():
        mine = ours.get(one.row)
        settings = [
            one.method,
            one.source,
            f"merged {one.tome}" if one.tome else "",
            "permuted" * (one.permute == "yes"),
        ]
        rows.append([
            f"{one.row}. {text.escape(one.architecture)}", text.escape(one.pattern),
            text.escape(", ".join(word for word in settings if word)),
            *(f"<i>{number:.2f}</i>" if number is not None else "–"
              for number in (one.dense_top1, one.top1, one.mac_reduction)),
            *((f"{mine['reduction_pct']:.2f}", f"{mine['paper_reduction_pct']:.2f}") if mine else ("–", "–")),
            ("same bits" if mine["reloads_bit_identical"] else "other bits") if mine else "–",
        ])  # fmt: skip
    head = ("row", "pattern", "how", "theirs: dense", "top-1", "saved, %", "ours: executed, %", "their way, %",
            "reloads")  # fmt: skip
    return tables.html_table(head, rows, theme)
