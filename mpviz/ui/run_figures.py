"""Pictures of runs while they run: loss and accuracy of a training, and a grid's cells as far as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mpviz.ui import text
from mpviz.ui.method_figures import MARKS, method_colour
from mpviz.ui.theme import Json, axis, empty, faint, layout, note, palette

if TYPE_CHECKING:
    from mpviz.workbench.run_curve import Curve
    from mpviz.workbench.run_store import Run

NO_CURVE = "Loss and accuracy appear with the first step of the training."
NO_CELLS = "The first cell of the grid appears here when it is done."
NO_TRAINING = "This run trains nothing: its table appears when it is done."
_WINDOWS = 40  # stretches that the strong line is a mean over


def figure_mark(run: Run, curve: Curve, cells: Sequence[Mapping[str, Any]]) -> str:
    """What tells the figure of a run from earlier ones: a screen that has it need not draw it again."""
    last = 0 if curve.last is None else curve.last.number
    return f"{run.name}/{curve.name}/{curve.rows}/{last}/{len(cells)}/{run.state == 'done'}"


def run_figure(run: Run, curve: Curve, cells: Sequence[Mapping[str, Any]], theme: str = "light") -> Json:
    """The training of a run, or a grid's cells where nothing trains; its zoom stays for as long as that is shown."""
    if curve.last is None and run.kind == "grid":
        figure = cells_figure(cells, theme, whole=run.state == "done")
    elif curve.last is None and not run.epochs:
        figure = empty(NO_TRAINING, theme)
    else:
        figure = curve_figure(curve, run.epochs, theme)
    figure["layout"] |= {"uirevision": f"{run.name} {curve.name}", "meta": run.name}
    return figure


def curve_figure(curve: Curve, epochs: float, theme: str = "light") -> Json:
    """Loss over accuracy, step by step, of a training that may still run. All measured, on the training batches.

    epochs: of the whole training. Faint: each point of the curve; strong: its mean over the last fortieth. Five traces
    at most. An empty curve invites.
    """
    if curve.last is None:
        return empty(NO_CURVE, theme)
    colours = palette(theme)
    window = max(1, len(curve.steps) // _WINDOWS)
    data: list[Json] = []
    for key, name, values, unit in (
        ("", "loss", curve.loss, " nats"),
        ("2", "accuracy", [100 * one for one in curve.accuracy], " %"),
    ):
        place = {"xaxis": "x", "yaxis": f"y{key}"}
        strong = {"color": colours.measured.line, "width": 2}
        if window > 1:
            data.append({"type": "scatter", "mode": "lines", "x": curve.steps, "y": values, "hoverinfo": "skip",
                         "line": {"color": faint(colours.measured.line, 0.3), "width": 1}, **place})  # fmt: skip
        data.append({
            "type": "scatter", "mode": "lines" if len(values) > 1 else "markers", "name": name, "x": curve.steps,
            "y": _smooth(values, window), "line": strong, "marker": {"color": colours.measured.line},
            "hovertemplate": f"{name} %{{y:.3~g}}{unit}, step %{{x}}<extra></extra>", **place,
        })  # fmt: skip
    last = curve.last
    whole = f" of {text.significant(epochs) if epochs % 1 else text.count(epochs)}" if epochs else ""
    head = f"{text.escape(curve.name)}, " if curve.name else ""
    title = f"{head}epoch {last.number}{whole}: loss {text.significant(last.loss)}, accuracy "
    title += f"{text.percent(last.accuracy)} (measured)"
    each = "" if curve.width == 1 else f"; a point is the mean of {text.count(curve.width)} steps"
    words = f"means over {text.plural(last.steps, 'step')} of this epoch, training batches"
    figure: Json = {"data": data, "layout": layout(theme, title, words + each)}
    figure["layout"] |= {
        "xaxis": axis(theme, "optimiser step", grid=False, anchor="y2", ticks="outside"),
        "yaxis": axis(theme, "loss, nats", domain=[0.56, 1.0]),
        "yaxis2": axis(theme, "accuracy, %", domain=[0.0, 0.46]),
        "shapes": [_border(step, colours.grid) for step in curve.ends.values()],
        "annotations": [_epoch(number, step, colours.muted) for number, step in curve.ends.items()]
        if len(curve.ends) <= 12 else [],
    }  # fmt: skip
    return figure


def _smooth(values: Sequence[float], window: int) -> list[float]:
    """Means over the last `window` values, as many as there are at the start."""
    made, total = [], 0.0
    for place, value in enumerate(values):
        total += value
        if place >= window:
            total -= values[place - window]
        made.append(total / min(place + 1, window))
    return made


def _border(step: int, colour: str) -> Json:
    line = {"color": colour, "width": 1}
    return {"type": "line", "x0": step, "x1": step, "y0": 0, "y1": 1, "yref": "paper", "line": line, "layer": "below"}


def _epoch(number: int, step: int, colour: str) -> Json:
    made = note(f"epoch {number}", colour, x=step, y=1, yref="paper", xanchor="right", yanchor="top", xshift=-4)
    return made | {"font": made["font"] | {"size": 11}}


def cells_figure(rows: Sequence[Mapping[str, Any]], theme: str = "light", whole: bool = False) -> Json:
    """Accuracy of a grid's finished cells against sparsity, a colour and mark a method; hollow before the recovery.

    rows: of `grid_cells`: method, seed, sparsity, phase, accuracy, dense_accuracy. None of them: it invites. whole:
    these are all cells.
    """
    known = [row for row in rows if isinstance(row.get("accuracy"), (int, float))]
    if not known:
        return empty(NO_CELLS, theme)
    colours, methods = palette(theme), list(dict.fromkeys(str(row["method"]) for row in known))
    after = "recovered" if any(row["phase"] == "recovered" for row in known) else "pruned"
    data = []
    for place, method in enumerate(methods):
        for phase in dict.fromkeys(row["phase"] for row in known):
            own = [row for row in known if str(row["method"]) == method and row["phase"] == phase]
            if own:
                data.append(_marks(own, method, place, phase != after, theme))
    best = max((row for row in known if row["phase"] == after), key=lambda row: (row["sparsity"], row["accuracy"]))
    cells = len({(row["method"], row["seed"], row["sparsity"]) for row in known})
    title = f"{text.plural(cells, 'cell')}{'' if whole else ' so far'}; at {text.percent(best['sparsity'])} "
    title += f"{text.escape(best['method'])} has {text.percent(best['accuracy'])} (measured)"
    figure: Json = {"data": data, "layout": layout(theme, title, "accuracy on the recipe's samples, a mark a seed")}
    dense = 100 * float(known[0]["dense_accuracy"])
    line = {"color": colours.muted, "width": 1, "dash": "dot"}
    figure["layout"] |= {
        "xaxis": axis(theme, "sparsity, %"),
        "yaxis": axis(theme, "accuracy, %"),
        "shapes": [{"type": "line", "x0": 0, "x1": 1, "xref": "paper", "y0": dense, "y1": dense, "line": line}],
        "annotations": [note("dense", colours.muted, x=0, xref="paper", y=dense, xanchor="left", yanchor="bottom")],
        "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "y": -0.22, "yanchor": "top", "font": {"size": 12}},
    }
    return figure


def _marks(own: Sequence[Mapping[str, Any]], method: str, place: int, hollow: bool, theme: str) -> Json:
    colour, mark = method_colour(place, theme), MARKS[place % len(MARKS)]
    own = sorted(own, key=lambda row: row["sparsity"])
    words = [f"{text.escape(method)}, seed {row['seed']}, {text.escape(row['phase'])}" for row in own]
    return {
        "type": "scatter", "mode": "markers", "name": text.escape(method), "legendgroup": method,
        "showlegend": not hollow, "x": [100 * row["sparsity"] for row in own], "text": words,
        "y": [100 * row["accuracy"] for row in own],
        "marker": {"symbol": f"{mark}-open" if hollow else mark, "size": 9, "color": colour},
        "hovertemplate": "%{text}: %{y:.2f} % at %{x:g} %<extra></extra>",
    }  # fmt: skip
