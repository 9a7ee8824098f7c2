"""Pictures of a 2:4 benchmark: throughput by endpoint, layer shapes beside limits, and what each step is worth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from mpviz.errors import DataError
from mpviz.ui import text
from mpviz.ui.method_figures import MARKS, method_colour
from mpviz.ui.theme import Json, axis, hatch, layout, note, palette

if TYPE_CHECKING:
    from mpviz.two_four import Route, Step

TIMED = ("model", "batch", "tome", "endpoint", "arithmetic", "median_ms", "low_ms", "high_ms", "images_per_s")
SHAPES = ("out", "in", "rows", "operations", "layers", "dense_s", "compute_s", "memory_s", "of_limit", "bound",
          "speedup")  # fmt: skip
BOUNDS = {"compute": "circle", "memory": "square", "overhead": "x"}


def run_name(batch: int, tome: int) -> str:
    """What a cell is called.

    >>> run_name(8, 0), run_name(64, 4)
    ('batch 8', 'batch 64, 4 merged')
    """
    return f"batch {batch}" + (f", {tome} merged" if tome else "")


def throughput_figure(table: pd.DataFrame, theme: str = "light") -> Json:
    """Images a second of one network by endpoint, one mark for each batch and number of merged tokens. All measured.

    table: what `BenchReport.table` and `cells_table` give, of one network on one machine. Marks are at the median of
    the rounds, whiskers reach from quartile to quartile; endpoints without a timing are only counted. Raises DataError.
    """
    _has_columns(table, TIMED)
    names = sorted(set(table["model"]))
    if len(names) > 1:
        raise DataError(f"one figure holds one network; the table has {', '.join(names)}")
    timed = table[table["median_ms"].notna()]
    if timed.empty:
        raise DataError("nothing was timed, so there is no throughput to draw")
    endpoints = list(dict.fromkeys(timed["endpoint"]))
    runs = sorted(set(timed[["tome", "batch"]].itertuples(index=False, name=None)))
    data = []
    for place, (tome, batch) in enumerate(runs):
        own = timed[(timed["tome"] == tome) & (timed["batch"] == batch)]
        shift = 0.0 if len(runs) == 1 else 0.6 * (place / (len(runs) - 1) - 0.5)
        data.append(_marks(own, endpoints, run_name(batch, tome), place, shift, theme))
    best = timed.sort_values("images_per_s").iloc[-1]
    found = f"{text.escape(names[0])}: {text.escape(best['endpoint'])} reaches {_speed(best['images_per_s'])} at "
    found += run_name(int(best["batch"]), int(best["tome"]))
    # an endpoint that has a mark at another batch is no endpoint without a timing
    without = len(set(table["endpoint"]) - set(endpoints))
    known = "measured: median of the rounds, whiskers from quartile to quartile"
    known += f"; {text.plural(without, 'endpoint')} could not be timed" if without else ""
    types = timed.drop_duplicates("endpoint").set_index("endpoint")["arithmetic"]
    muted = palette(theme).muted
    ticks = [f"{text.escape(name)}<br><span style='font-size:10px;color:{muted}'>{text.escape(types[name])}</span>"
             for name in endpoints]  # fmt: skip
    figure: Json = {"data": data, "layout": layout(theme, found, known)}
    figure["layout"] |= {
        "height": 150 + max(40, 16 * len(runs)) * len(endpoints),
        "xaxis": axis(theme, "images a second", rangemode="tozero"),
        "yaxis": axis(theme, "", tickmode="array", tickvals=list(range(len(endpoints))), ticktext=ticks,
                      range=[len(endpoints) - 0.5, -0.5]),
        "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "y": -60 / (60 + 40 * len(endpoints)), "yanchor": "top"},
        "margin": {"l": 56, "r": 16, "t": 56, "b": 72},
    }  # fmt: skip
    return figure


def _marks(own: pd.DataFrame, endpoints: list[str], name: str, place: int, shift: float, theme: str) -> Json:
    colour, rate = method_colour(place, theme), own["images_per_s"]
    words = [
        f"{text.escape(row['endpoint'])}, {text.escape(row['arithmetic'])}, {name}<br>{_speed(row['images_per_s'])}"
        f"<br>{text.significant(row['median_ms'])} ms ({text.significant(row['low_ms'])} to "
        f"{text.significant(row['high_ms'])})"
        for row in own.to_dict("records")
    ]
    fast, slow = rate * own["median_ms"] / own["low_ms"], rate * own["median_ms"] / own["high_ms"]
    return {
        "type": "scatter", "mode": "markers", "name": name, "x": rate.tolist(),
        "y": [endpoints.index(one) + shift for one in own["endpoint"]], "text": words,
        "hovertemplate": "%{text}<extra></extra>",
        "error_x": {"type": "data", "symmetric": False, "array": (fast - rate).tolist(),
                    "arrayminus": (rate - slow).tolist(), "color": colour, "thickness": 1.5, "width": 4},
        "marker": {"color": colour, "size": 9, "symbol": MARKS[place % len(MARKS)]},
    }  # fmt: skip


def layers_figure(table: pd.DataFrame, theme: str = "light") -> Json:
    """Shapes of layers by their operations: milliseconds beside both limits (left), and how near, or 2:4 (right).

    table: of `roofline` or `BenchReport.layers`. Left: blue is the measured dense product, grey what the rates of a
    square product and of a copy allow: estimates, since a measured rate is no proof. Right: the larger limit in
    per cent of the time, or, where 2:4 products were timed, how many times faster they are by themselves. Raises
    DataError.
    """
    _has_columns(table, SHAPES)
    rows = table[table["dense_s"].notna()]
    if rows.empty:
        raise DataError("no layer was timed; bench the network with layers=True")
    colours, operations = palette(theme), (rows["operations"] / 1e6).tolist()
    hover = [_shape_words(row) for row in rows.to_dict("records")]
    common = {"type": "scatter", "x": operations, "mode": "markers", "text": hover,
              "hovertemplate": "%{text}<extra></extra>"}  # fmt: skip
    figure: Json = {"data": [], "layout": layout(theme, *_layers_title(rows))}
    for name, symbol in (("compute", "triangle-down-open"), ("memory", "square-open")):
        figure["data"].append(common | {
            "name": f"{name} limit (estimate)", "y": (1e3 * rows[f"{name}_s"]).tolist(),
            "marker": {"color": colours.estimate.line, "size": 9, "symbol": symbol},
        })  # fmt: skip
    figure["data"].append(common | {
        "name": "dense product (measured)", "y": (1e3 * rows["dense_s"]).tolist(),
        "marker": {"color": colours.measured.line, "size": 9, "symbol": "circle"},
    })  # fmt: skip
    sparse = bool(rows["speedup"].notna().any())
    values = rows["speedup"] if sparse else 100 * rows["of_limit"]
    for bound, symbol in BOUNDS.items():
        here = (rows["bound"] == bound) & values.notna()
        if here.any():
            figure["data"].append(common | {
                "name": f"right: ruled by {bound}", "xaxis": "x2", "yaxis": "y2",
                "x": (rows["operations"][here] / 1e6).tolist(), "y": values[here].tolist(),
                "text": [words for words, shown in zip(hover, here, strict=True) if shown],
                "marker": {"color": colours.measured.line, "size": 9, "symbol": symbol},
            })  # fmt: skip
    _finish_layers(figure, sparse, theme)
    return figure


def _layers_title(rows: pd.DataFrame) -> tuple[str, str]:
    far = int((rows["bound"] == "overhead").sum())
    known = "measured on random values; limits estimated from the rates of a square product and of a copy there"
    return f"{far or 'none'} of {text.plural(len(rows), 'layer shape')} reach less than half of their limit", known


def _shape_words(row: Any) -> str:
    words = f"{row['out']} × {row['in']} weights, {text.count(row['rows'])} rows, {text.plural(row['layers'], 'layer')}"
    words += f"<br>dense {text.significant(1e3 * row['dense_s'])} ms, {text.percent(row['of_limit'])} of its limit"
    words += f"<br>limits: compute {text.significant(1e3 * row['compute_s'])} ms, "
    words += f"memory {text.significant(1e3 * row['memory_s'])} ms"
    return words if not row["speedup"] > 0 else f"{words}<br>2:4 {text.significant(row['speedup'])} × as fast"


def _finish_layers(figure: Json, sparse: bool, theme: str) -> None:
    """Axes, the line of what is possible, and the legend."""
    colours, top = palette(theme), 2.0 if sparse else 100.0
    meaning = colours.estimate
    line = {"type": "line", "xref": "x2 domain", "yref": "y2", "x0": 0, "x1": 1}
    words = "2 ×, half of the operations (estimate)" if sparse else "at its limit (estimate)"
    shapes = [{**line, "y0": top, "y1": top, "line": {"color": meaning.line, "width": 1.5, "dash": "dash"}}]
    if sparse:
        shapes.append({**line, "y0": 1.0, "y1": 1.0, "line": {"color": colours.muted, "width": 1, "dash": "dot"}})
    ticks: Json = {"type": "log", "dtick": 1, "exponentformat": "power"}
    right = {**ticks, "domain": [0.56, 1.0], "anchor": "y2", "matches": "x"}
    figure["layout"] |= {
        "height": 440,
        "xaxis": axis(theme, "million operations", domain=[0.0, 0.45], anchor="y", **ticks),
        "yaxis": axis(theme, "ms a product", anchor="x", **ticks),
        "xaxis2": axis(theme, "million operations", **right),
        "yaxis2": axis(theme, "2:4, times as fast as dense" if sparse else "of its limit, %", anchor="x2",
                       rangemode="tozero"),
        "shapes": shapes,
        "annotations": [note(words, meaning.text, xref="x2 domain", yref="y2", x=1, y=top, xanchor="right",
                             yanchor="bottom")],
        "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "y": -0.24, "yanchor": "top"},
        "margin": {"l": 64, "r": 16, "t": 56, "b": 80},
    }  # fmt: skip


def steps_figure(way: Route, theme: str = "light") -> Json:
    """From fp32 to the fastest endpoint, one change a step: how many times as fast as fp32, measured.

    Whiskers are the quartiles of the ratios, round by round. Hatched bars compute in another number type than fp32. The
    dashed line is an estimate: what 2:4 saves on top of the fastest dense endpoint, by Amdahl's law over multiply–adds.
    """
    colours, muted = palette(theme), palette(theme).muted
    steps = way.steps
    totals = [1.0 if one.total is None else one.total.value for one in steps]
    spread = [(0.0, 0.0) if (all_ := one.total) is None else (all_.value - all_.low, all_.high - all_.value)
              for one in steps]  # fmt: skip
    low, high = ([max(0.0, one) for one in side] for side in zip(*spread, strict=True))
    other = ["/" if one.arithmetic != steps[0].arithmetic else "" for one in steps]
    pattern = hatch(colours.measured, "/") | {"shape": other, "fgcolor": colours.paper}
    line = way.dense_total * way.limit
    saved = f"2:4 by multiply–adds (estimate): {way.limit:.2f} × {text.escape(way.dense)}"
    found = f"{text.escape(way.model)}, {run_name(way.batch, way.tome)}: {_verdict(way)}"
    known = "measured; hatched: another number type than fp32, so not the same arithmetic"
    figure: Json = {"layout": layout(theme, found, known)}
    figure["data"] = [{
        "type": "bar", "x": list(range(len(steps))), "y": totals, "width": 0.5,
        "marker": {"color": colours.measured.fill, "pattern": pattern,
                   "line": {"color": colours.measured.line, "width": 1}},
        "error_y": {"type": "data", "symmetric": False, "array": [one or None for one in high],
                    "arrayminus": [one or None for one in low], "color": colours.ink, "thickness": 1.2, "width": 4},
        "text": [_step_words(one) for one in steps], "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
    }]  # fmt: skip
    labels = [f"{text.escape(one.endpoint)}<br><span style='font-size:10px;color:{muted}'>{_change(one)}</span>"
              for one in steps]  # fmt: skip
    tops = [total + one for total, one in zip(totals, high, strict=True)]
    figure["layout"] |= {
        "height": 400,
        "xaxis": axis(theme, "", grid=False, tickmode="array", tickvals=list(range(len(steps))), ticktext=labels,
                      tickangle=0, range=[-0.5, max(len(steps), 4) - 0.5]),
        "yaxis": axis(theme, "times as fast as fp32", range=[0.0, 1.22 * max(*tops, line)]),
        "shapes": [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": line, "y1": line,
                    "line": {"color": colours.estimate.line, "width": 1.5, "dash": "dash"}}],
        "annotations": [
            *(note(f"{total:.2f} ×", colours.ink, x=i, y=top, yanchor="bottom", yshift=3)
              for i, (total, top) in enumerate(zip(totals, tops, strict=True))),
            note(saved, colours.estimate.text, xref="paper", x=0,
                 xanchor="left", y=line, yanchor="bottom"),
        ],
        "margin": {"l": 64, "r": 16, "t": 56, "b": 64},
    }  # fmt: skip
    return figure


def _verdict(way: Route) -> str:
    """The finding of the steps in words."""
    gains = [one for one in way.steps if one.gain is not None]
    if not gains:
        return "nothing is faster than fp32"
    largest = max(gains, key=lambda one: 0.0 if one.gain is None else one.gain.value)
    gain = 0.0 if largest.gain is None else largest.gain.value
    type_ = f"{largest.arithmetic} instead of {way.steps[0].arithmetic}"
    return f"the largest step, {gain:.2f} ×, is {text.escape(largest.change.replace('number type', type_))}"


def _change(step: Step) -> str:
    words = f"{step.change}: {step.arithmetic}" if step.change == "number type" else step.change or step.arithmetic
    return text.escape(words)


def _step_words(step: Step) -> str:
    if step.gain is None or step.total is None:
        return f"{text.escape(step.endpoint)}, {text.escape(step.arithmetic)}: what the others are compared with"
    return f"{text.escape(step.gain)}<br>{text.escape(step.total)}"


def _speed(rate: float) -> str:
    return f"{text.significant(rate)}{text.THIN}images/s" if math.isfinite(rate) else text.NONE


def _has_columns(table: pd.DataFrame, columns: tuple[str, ...]) -> None:
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(f"this is no table of a benchmark: {', '.join(missing)} missing; take it from mp.bench")
