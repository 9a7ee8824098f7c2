"""Certificates in a notebook: tiers, margins, layers, and why one sample is certified or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ipywidgets as w

from mpviz.ui import figures, text
from mpviz.ui._certificates import why_not
from mpviz.ui.takeaway import stamped
from mpviz.ui.theme import Json
from mpviz.ui.widgets import page, panels
from mpviz.ui.widgets.desk import Desk, View
from mpviz.workbench.names import PLAN

if TYPE_CHECKING:
    from mpviz.workbench.state import Workbench

_TIERS = ("unchanged", "slider", "path", "sub-masks", "population", "measured")


def certificate_view(wb: Workbench, theme: str | None = None, samples: int = 300) -> View:
    """What is proved about the plan's predictions, tier by tier, on so many images; Prove computes it.

    The boxes switch tiers on one by one. The slider walks through the samples, those with the least margin after
    pruning first; the other figures mark the sample, and the words say why it is certified or not. `.close()` ends it.
    """
    desk = Desk(wb, theme)
    boxes = {name: w.Checkbox(value=True, description=name, indent=False) for name in _TIERS}
    for box in boxes.values():
        box.layout.width = "auto"

    def tiers(wb: Workbench, theme: str) -> Json:
        shown = [name for name, box in boxes.items() if box.value]
        return stamped(figures.tiers(wb.proofs, theme, shown), wb, "tiers")

    def margins(wb: Workbench, theme: str) -> Json:
        return stamped(figures.margins(wb.proofs, theme, _row(wb)), wb, "margins")

    def layers(wb: Workbench, theme: str) -> Json:
        return stamped(figures.attribution(wb.proofs, theme, _row(wb)), wb, "attribution")

    above = desk.figure(("proofs", *PLAN), tiers, 270)
    for box in boxes.values():
        box.observe(lambda _: desk.act(wb.param.trigger, "proofs"), "value")
    below = panels.row([
        panels.share(50, desk.figure(("proofs", "sample"), margins, 230), 340),
        panels.share(50, desk.figure(("proofs", "sample"), layers, 230), 340),
    ])  # fmt: skip
    return panels.view(desk, [_buttons(desk, samples), w.HBox([*boxes.values()]), above, _sample(desk), below])


def _row(wb: Workbench) -> int | None:
    return None if wb.proofs is None else min(wb.sample, len(wb.proofs.samples) - 1)


def _buttons(desk: Desk, samples: int) -> w.Widget:
    wb = desk.workbench
    prove = w.Button(description="Prove", button_style="primary", tooltip="Prove what can be proved for this plan")
    cancel = w.Button(description="Cancel", tooltip="Stop the running work; what was there before stays")
    prove.on_click(lambda _: desk.act(wb.certify, samples))
    cancel.on_click(lambda _: desk.act(wb.cancel))
    words = w.HTML()

    def show() -> None:
        prove.disabled, cancel.disabled = wb.job.busy, not wb.job.busy
        old = "" if wb.proofs_are_current else "these are the proofs of an older plan; press Prove again"
        words.value = page.job_line(wb.job, old)

    desk.paint(("job", "proofs", "split", *PLAN), show)
    return w.HBox([prove, cancel, words])


def _sample(desk: Desk) -> w.Widget:
    """A slider over the samples, and why the one in view is certified or not."""
    wb = desk.workbench
    slider = w.IntSlider(min=0, max=0, readout=False, description="sample", tooltip="least margin after pruning first")
    words = w.HTML(layout=w.Layout(flex="1 1 0", min_width="0"))
    order: list[int] = []

    def show() -> None:
        view, row = wb.proofs, _row(wb)
        if view is None or row is None:
            slider.disabled, words.value = True, ""
            return
        order[:] = view.samples.pruned_margin.argsort(kind="stable").tolist()
        slider.disabled, slider.max = False, len(order) - 1
        slider.value = order.index(row)
        said = "".join(f"<li>{text.escape(line)}</li>" for line in why_not(view.samples, row, view.classes))
        style = "font-size:12px;line-height:1.35"
        words.value = f"<div role='status' class='mpviz-line' style='{style}'><ul>{said}</ul></div>"

    def move(change: dict[str, int]) -> None:
        if order:
            desk.act(setattr, wb, "sample", order[min(change["new"], len(order) - 1)])

    slider.observe(move, "value")
    desk.paint(("proofs", "sample"), show)
    return w.HBox([slider, words])
