"""Certificates in a notebook: tiers, margins, layers, samples, what each tier claims, and why a sample is certified."""

from __future__ import annotations

import ipywidgets as w

from mpviz.ui import cards, figures, text
from mpviz.ui._certificates import why_not
from mpviz.ui.widgets import page, panels
from mpviz.ui.widgets.controls import job_button
from mpviz.ui.widgets.desk import Desk, View
from mpviz.ui.widgets.table import sample_rows
from mpviz.workbench.names import TIERS
from mpviz.workbench.state import Workbench


def certificate_view(wb: Workbench, theme: str | None = None, samples: int | None = None) -> View:
    """What is proved about the plan's predictions, tier by tier, on so many images; Prove computes it.

    The boxes switch tiers on one by one, in the figure and in the words beside it. A row of the table is a sample: the
    other figures mark it, and the words say why it is certified or not. `.close()` ends it.
    """
    desk = Desk(wb, theme)
    above = panels.row([
        panels.share(58, panels.proof(desk, "tiers", 262), 380),
        panels.share(42, _words(desk, 262), 280),
    ])  # fmt: skip
    middle = panels.row([
        panels.share(62, sample_rows(desk, 150), 380),
        panels.share(38, _why(desk, 150), 240),
    ])  # fmt: skip
    below = panels.row([
        panels.share(50, panels.proof(desk, "margins", 190), 340),
        panels.share(50, panels.proof(desk, "attribution", 190), 340),
    ])  # fmt: skip
    return panels.view(desk, [_buttons(desk, samples), _switches(desk), above, middle, below])


def _switches(desk: Desk) -> w.Widget:
    """A box a tier."""
    wb = desk.workbench
    boxes = {
        name: w.Checkbox(value=name in wb.tiers, description=figures.TIER_WORDS.get(name, name), indent=False,
                         layout=w.Layout(width="auto", margin="0 10px 0 0"))
        for name in TIERS
    }  # fmt: skip

    def choose(_: object) -> None:
        desk.act(setattr, wb, "tiers", [name for name, box in boxes.items() if box.value])

    def follow() -> None:
        for name, box in boxes.items():
            if box.value != (name in wb.tiers):
                box.value = name in wb.tiers

    for box in boxes.values():
        box.observe(choose, "value")
    desk.paint(("tiers",), follow)
    return w.HBox([*boxes.values()], layout=w.Layout(flex_flow="row wrap"))


def _buttons(desk: Desk, samples: int | None) -> w.Widget:
    wb = desk.workbench
    prove = job_button(desk, "Prove", panels.PROVE_TIP, lambda: wb.certify(samples))
    prove.button_style = "primary"
    cancel = w.Button(description="Cancel", tooltip="Stop the running work; what was there before stays")
    cancel.on_click(lambda _: desk.act(wb.cancel))
    words = w.HTML()

    def show() -> None:
        cancel.disabled = not wb.job.busy
        old = "" if wb.proofs_are_current else "these are the proofs of an older plan; press Prove again"
        words.value = page.job_line(wb.job, old)

    desk.paint(("job", *panels.PROOFS), show)
    return w.HBox([prove, cancel, words])


def _words(desk: Desk, height: int) -> w.Widget:
    """The cards of the tiers that are switched on."""
    wb = desk.workbench
    said = w.HTML()

    def show() -> None:
        said.value = cards.html(wb.tiers, wb.proofs)

    desk.paint(("tiers", "proofs"), show)
    return _scrolling(said, height)


def _why(desk: Desk, height: int) -> w.Widget:
    """Why the sample in view is certified or not, and why a tier says nothing at all."""
    wb = desk.workbench
    said = w.HTML()

    def show() -> None:
        view = wb.proofs
        if view is None:
            said.value = ""
            return
        row = min(wb.sample, len(view.samples) - 1)
        lines = why_not(view.samples, row, view.classes)
        lines += sorted({*(view.why.get(name, "") for name in wb.tiers), view.scope_why} - {""})
        listed = "".join(f"<li>{text.escape(line)}</li>" for line in lines)
        number = int(view.samples.index[row])
        said.value = f"<div role='status'><b>sample {number}</b><ul class='mpviz-why'>{listed}</ul></div>"

    desk.paint(("proofs", "sample", "tiers"), show)
    return _scrolling(said, height)


def _scrolling(child: w.Widget, height: int) -> w.Widget:
    box = w.Box([child], layout=w.Layout(height=f"{height}px", overflow="hidden auto", display="block"))
    box.add_class("mpviz-scroll")
    return box
