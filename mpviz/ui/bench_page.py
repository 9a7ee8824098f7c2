"""The dashboard's page of the 2:4 benchmark: measurements that come with mpviz, their limits, and the paper's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from mpviz.benchmark.ledger import Cell, cells_table
from mpviz.errors import DataError, MpvizError, nearest
from mpviz.paper import PaperRow, paper_rows
from mpviz.two_four import benchmark_cells, gpu_here, hardware, layers_of, missing_here, route, two_four_gain
from mpviz.ui import tables, text
from mpviz.ui.bench_figures import layers_figure, run_name, steps_figure, throughput_figure
from mpviz.ui.page import choice_form, filled_page, pages_nav
from mpviz.ui.theme import CONFIG, THEMES

FIELDS = ("network", "hardware", "run")


def bench_page(asked: Mapping[str, str]) -> tuple[bool, str]:
    """The page, and whether all that was asked for exists. asked: network, hardware, run and theme of the URL.

    seen: the network of the page that led here, shown where none is asked for and it was timed.
    run: a batch with its merged tokens, such as "batch 8, 4 merged". Nothing is timed here, and nothing but the
    committed cells is opened.
    """
    theme = asked.get("theme", "light") if asked.get("theme", "light") in THEMES else "light"
    try:
        every = benchmark_cells()
        chosen, choices, cells = _choose(every, asked)
        return True, _page(every, cells, {**chosen, "theme": theme}, choices, theme)
    except MpvizError as error:
        parts = {
            "nav": pages_nav("bench", asked, theme),
            "title": "No such benchmark here",
            "message": text.escape(str(error)),
        }
        return False, filled_page("notice.html", parts, None, theme)


def _trait(cell: Cell, field: str) -> str:
    return {"network": cell.model, "hardware": hardware(cell), "run": run_name(cell.batch, cell.tome)}[field]


def _choose(every: list[Cell], asked: Mapping[str, str]) -> tuple[dict[str, str], dict[str, list[str]], list[Cell]]:
    """What the fields stand at, what they offer, and the cells of that network and hardware.

    The form sends all of its fields: what is left of the network before, and unknown to this one, becomes the first.
    Raises DataError for what no cell has.
    """
    chosen: dict[str, str] = {}
    choices: dict[str, list[str]] = {}
    cells = every
    for field in FIELDS:
        anywhere = list(dict.fromkeys(_trait(cell, field) for cell in every))
        choices[field] = list(dict.fromkeys(_trait(cell, field) for cell in cells))
        first = asked["seen"] if field == "network" and asked.get("seen") in choices[field] else None
        value = asked.get(field, first or (choices[field][0] if every else ""))
        if value not in anywhere and field in asked:
            known = nearest(value, anywhere) if every else "no measurements have come with mpviz yet"
            raise DataError(f"no {field} '{value}' here; {known}")
        chosen[field] = value if value in choices[field] or not every else choices[field][0]
        if field != "run":
            cells = [cell for cell in cells if _trait(cell, field) == chosen[field]]
    return chosen, choices, cells


def _page(
    every: list[Cell], cells: list[Cell], asked: dict[str, str], choices: dict[str, list[str]], theme: str
) -> str:
    drawn: dict[str, Any] = {"config": CONFIG}
    parts = {
        "nav": pages_nav("bench", asked, theme),
        "title": "How much faster is 2:4?",
        "here": _here(),
        "measured": tables.chip("measured", theme),
        "estimate": tables.chip("estimate", theme),
        "theirs": theirs_table(every, theme),
        "some_cells": "hidden" if cells else "",
        "no_cells": "" if cells else "hidden",
        "none": "No measurements have come with mpviz yet. <code>mpviz bench MODEL --out DIR</code> makes some.",
        **dict.fromkeys(("form", "about", "table", "run", "ratios", "limit"), ""),
        "no_layers": "hidden",
    }
    if cells:
        shown = next(cell for cell in cells if _trait(cell, "run") == asked["run"])
        table = cells_table(cells)
        shapes = layers_of(shown)
        if len(shapes):
            drawn["layers"] = layers_figure(shapes, theme)
        if table["median_ms"].notna().any():
            drawn["throughput"] = throughput_figure(table, theme)
        ratios, drawn["steps"] = steps_of(shown, theme)
        parts |= {
            "no_layers": "" if len(shapes) else "hidden",
            "form": choice_form(choices, asked), "about": _about(shown), "table": endpoints_table(cells, theme),
            "run": text.escape(asked["run"]), "ratios": ratios, "limit": limit_words(shown, theme),
        }  # fmt: skip
    return filled_page("bench.html", parts, drawn, theme)


def _here() -> str:
    """Whether 2:4 could be timed on this server; escaped."""
    gpu, why = gpu_here(), missing_here()
    below = "below are the measurements that come with mpviz, each with its hardware."
    if not gpu:
        return f"This server has no CUDA GPU, so nothing of 2:4 is timed here; {below}"
    if why:
        return text.escape(f"This server has a CUDA GPU ({gpu}) that cannot run 2:4 ({why}); {below}")
    words = f"This server has a CUDA GPU, {gpu}: mpviz bench times 2:4 on it. This page times nothing itself; {below}"
    return text.escape(words)


def _about(cell: Cell) -> str:
    """Hardware, date, versions and weights of a cell; escaped."""
    machine, size = cell.machine, " × ".join(map(str, cell.input_size))
    gpu, versions = machine.get("gpu") or {}, machine.get("versions") or {}
    words = [hardware(cell) if not gpu else f"{gpu['name']}, with {machine.get('hardware', 'unknown processor')}"]
    told = (
        ("load", "load {} when it ended", machine),
        ("driver_version", "driver {}", gpu),
        ("torch", "PyTorch {}", versions),
    )
    words += [form.format(found[key]) for key, form, found in (*told, ("date", "{}", machine)) if key in found]
    return text.escape(f"Timed on {', '.join(words)}. Images {size}. {cell.weights[:1].upper()}{cell.weights[1:]}.")


def endpoints_table(cells: list[Cell], theme: str) -> str:
    """All endpoints of all runs: medians with quartiles, or the reason why there is none.

    Memory and energy have columns where any of them was told, which a CPU does not.
    """
    rows, every = [], cells_table(cells)
    told = [(key, head) for key, head in (("peak_mib", "memory of a call, MiB"), ("joules_per_image", "J/image"))
            if every[key].notna().any()]  # fmt: skip
    for row in every.to_dict("records"):
        timed = math.isfinite(row["median_ms"])
        low, median, high = (text.significant(row[f"{name}_ms"]) for name in ("low", "median", "high"))
        rows.append([
            text.escape(row["endpoint"]), text.escape(row["arithmetic"]), str(row["batch"]), str(row["tome"] or "–"),
            f"{median} ({low}–{high})" if timed else "–",
            tables.cell(float(row["images_per_s"])) if timed else "–",
            *(text.significant(row[key]) for key, _ in told),
            "–" if math.isnan(row["error"]) else f"{row['error']:.1e}" if row["error"] else "0", _wrapped(row["why"]),
        ])  # fmt: skip
    head = ("endpoint", "arithmetic", "batch", "merged", "median ms (quartiles)", "images/s", *(one for _, one in told),
            "error", "why not")  # fmt: skip
    return tables.html_table(head, rows, theme)


def steps_of(cell: Cell, theme: str) -> tuple[str, Any]:
    """Ratios in sentences with their chip, and the figure of the steps; a reason instead where there is none."""
    try:
        way = route(cell)
    except MpvizError as error:
        return f'<p class="quiet">{text.escape(error)}</p>', None
    chip, said, ends = tables.chip("measured", theme), [], (way.fastest, way.steps[-1].endpoint)
    for step in way.steps:
        if step.gain is not None:
            said.append(f"<p>{chip} {text.escape(step.change.capitalize())}: {text.escape(step.gain)}</p>")
        if step.total is not None and step.before != way.steps[0].endpoint and step.endpoint in ends:
            said.append(f"<p>{chip} Altogether: {text.escape(step.total)}</p>")
    if not said:
        said = [f"<p>{chip} Nothing that was timed is faster than fp32 (float32).</p>"]
    return "".join(said), steps_figure(way, theme)


def limit_words(cell: Cell, theme: str) -> str:
    """What 2:4 saves, and whether any was timed."""
    gain = two_four_gain(cell)
    share = text.percent(2 * (1 - 1 / cell.limit))  # 1 / limit = 1 − share + share / 2
    words = (
        f"{tables.chip('estimate', theme)} By multiply–adds alone 2:4 makes this network {cell.limit:.2f} × as fast as "
        f"itself dense, in the same number type: layers that pack hold {share} of the multiply–adds and need half "
        "(Amdahl's law, as if all of them took the same time and nothing else took any)."
    )
    if gain is None:
        return f"{words} No 2:4 endpoint was timed beside its dense counterpart in this run."
    return f"{words} {tables.chip('measured', theme)} Reached: {text.escape(gain)}."


def theirs_table(cells: list[Cell], theme: str) -> str:
    """The paper's rows with a measured speed, what each was measured against, and ours at the same architecture."""
    rows, estimate, measured = [], tables.chip("estimate", theme), tables.chip("measured", theme)
    for one in paper_rows():
        if one.speedup is None:
            continue
        mine = [cell for cell in cells if _same(cell, one)]
        found = [(gain.value, cell) for cell in mine if (gain := two_four_gain(cell)) is not None]
        ours = "not timed"
        if found:
            value, cell = max(found, key=lambda pair: pair[0])
            ours = f"{value:.2f} × {measured}<br>{_wrapped(f'{hardware(cell)}, batch {cell.batch}')}"
        rows.append([
            f"{one.row}. {text.escape(one.architecture)}", str(one.tome or "–"),
            f"<i>{one.speedup:.3f} ×</i>", _wrapped(baseline(one.endpoint)),
            f"{max(cell.limit for cell in mine):.2f} × {estimate}" if mine else "–", ours, _wrapped(one.endpoint),
        ])  # fmt: skip
    head = ("row", "merged", "theirs", "against", "ours: by multiply–adds", "ours", "theirs as printed")
    return tables.html_table(head, rows, theme)


def _wrapped(words: str) -> str:
    """A sentence in a cell, in lines that are not too long."""
    style = "display:inline-block;width:max-content;max-width:17em;white-space:normal"
    return f'<span style="{style}">{text.escape(words)}</span>' if words else ""


def _same(cell: Cell, row: PaperRow) -> bool:
    return (cell.model.split(".")[0], cell.tome) == (row.checkpoint.split(".")[0], row.tome)


def baseline(endpoint: str) -> str:
    """What the paper says its speed was measured against.

    >>> baseline("A40 im2col sparse GEMM vs dense im2col batch 128")
    'dense im2col, type not named'
    >>> baseline("A100 no ToMe (dense endpoint 463.6 im/s vs 1254.1 im/s; dense endpoint not bf16)")
    'dense, not bf16'
    """
    if found := re.search(r"dense endpoint (not \w+)", endpoint):
        return f"dense, {found[1]}"
    if found := re.search(r"vs (dense .+?)(?: batch|$)", endpoint):
        return f"{found[1]}, type not named"
    graph = "dense, same ToMe graph" if "same ToMe graph" in endpoint else "dense"
    return f"{graph}, type not named"
