"""Training in a notebook: a slider over checkpoints that moves spectrum, bulk and spikes together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ipywidgets as w
import param

from mpviz.errors import MpvizError
from mpviz.ui import figures, text
from mpviz.ui.export import file_stem
from mpviz.ui.theme import Json
from mpviz.ui.widgets import panels
from mpviz.ui.widgets.desk import Desk, View

if TYPE_CHECKING:
    from mpviz.nets.evolution import Evolution
    from mpviz.train.limit import TrainingLimit

_PACE = 450  # milliseconds a checkpoint, when it plays


class Step(param.Parameterized):
    """Which checkpoint is looked at, from 0."""

    step = param.Integer(0, bounds=(0, None))
    error = param.String("")


def evolution_view(evolution: Evolution, theme: str | None = None) -> View:
    """One layer over its checkpoints, with a slider and a button that plays them. `.close()` ends it.

    Raises MpvizError when there is no checkpoint.
    """
    desk = Desk(Step(), theme)
    slider = _slider(desk, evolution.labels, evolution.layer)

    def draw(now: Step, theme: str) -> Json:
        return _named(figures.evolution(evolution, now.step, theme), evolution.layer, evolution.labels[now.step])

    return panels.view(desk, [desk.figure(("step",), draw, 380), slider], f"{len(evolution)} checkpoints")


def limit_view(result: TrainingLimit, theme: str | None = None) -> View:
    """The training limit, with and without weight decay: one slider moves all four figures. `.close()` ends it."""
    with_decay, without = result.penalised, result.free
    desk = Desk(Step(), theme)
    slider = _slider(desk, with_decay.evolution.labels, with_decay.evolution.layer)

    def bulk(now: Step, theme: str) -> Json:
        return _named(_wrapped(figures.limit_bulk(result, now.step, theme)), "limit", "bulk")

    def spectrum(now: Step, theme: str) -> Json:
        return _named(figures.evolution(with_decay.evolution, now.step, theme), "limit", "spectrum")

    def decayed(now: Step, theme: str) -> Json:
        return _named(_wrapped(figures.limit_spikes(with_decay, now.step, theme)), "limit", "spikes-with-decay")

    def free(now: Step, theme: str) -> Json:
        return _named(_wrapped(figures.limit_spikes(without, now.step, theme)), "limit", "spikes-without-decay")

    above, below = (
        panels.row([panels.share(50, desk.figure(("step",), draw, 262), 400) for draw in pair])
        for pair in ((bulk, spectrum), (decayed, free))
    )
    return panels.view(desk, [slider, above, below], "the training limit")


def _slider(desk: Desk, labels: Sequence[str], layer: str) -> w.Widget:
    """A button that plays, a slider, and the name of the checkpoint."""
    if not labels:
        raise MpvizError(f"{layer} has no checkpoint to show; follow at least one")
    last = len(labels) - 1
    slider = w.IntSlider(min=0, max=last, readout=False, tooltip="The checkpoint; ← and → step through them",
                         description="checkpoint", layout=w.Layout(flex="1 1 0", min_width="140px"))  # fmt: skip
    play = w.Play(min=0, max=last, interval=_PACE, tooltip="Play all checkpoints", layout=w.Layout(width="auto"))
    w.jslink((play, "value"), (slider, "value"))
    name = w.HTML(layout=w.Layout(width="120px"))

    def say() -> None:
        name.value = f"<div role='status' class='mpviz-line'>{text.escape(labels[desk.workbench.step])}</div>"

    desk.bind(slider, "step")
    desk.paint(("step",), say)
    return w.HBox([play, slider, name], layout=w.Layout(align_items="center", flex_flow="row wrap"))


def _wrapped(figure: Json, longest: int = 52) -> Json:
    """The figure with its title on as many lines as a narrow column needs; each takes room from the plot."""
    title, margin = figure["layout"]["title"], figure["layout"]["margin"]
    head, subtitle, rest = title["text"].partition("<br>")
    lines, length = [""], 0
    for piece in re.findall(r"<[^>]*>|[^<\s]+|\s+", head):
        visible = 0 if piece.startswith("<") else len(piece)
        if length and length + visible > longest and piece.strip():
            lines[-1] = lines[-1].rstrip()
            lines.append("")
            length = 0
        lines[-1] += piece
        length += visible
    more = 17 * (len(lines) - 1)
    title["text"], title["pad"] = "<br>".join(lines) + subtitle + rest, title["pad"] | {"b": title["pad"]["b"] + more}
    margin["t"] += more
    return figure


def _named(figure: Json, *parts: str) -> Json:
    figure["layout"]["meta"] = file_stem(*parts)
    return figure
