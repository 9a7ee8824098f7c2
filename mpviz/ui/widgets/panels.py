"""The panels of the notebook: each is a box of figures and controls that follow a desk's workbench."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as w

from mpviz.ui import figures, text
from mpviz.ui.layer_figure import LOOKS, SHUFFLED_TIP, layer_figure, look
from mpviz.ui.takeaway import proof_figure, stamped
from mpviz.ui.theme import Json
from mpviz.ui.widgets import page
from mpviz.ui.widgets.controls import job_button, lock_button, plan_sliders, recipe
from mpviz.ui.widgets.desk import Desk, View
from mpviz.ui.widgets.figure import Figure
from mpviz.ui.widgets.table import layer_rows, sample_rows, spike_rows
from mpviz.workbench.names import PLAN
from mpviz.workbench.state import Workbench

PROOFS = ("proofs", "split", "model", *PLAN)  # what makes proofs, or makes them old
PROVE_TIP = "Prove how many predictions cannot change near this plan, tier by tier, on 300 of the images at most"
PRECOMPUTE_TIP = "Make the tables from which coverage follows every slider at once, as an estimate; kept on disk"
_FEW = 10  # layers whose names stand side by side


def strip(desk: Desk, height: int) -> Figure:
    """The whole model, a cell a layer; a click selects."""

    def draw(wb: Workbench, theme: str) -> Json:
        return stamped(_low(figures.strip(wb.table, wb.layer, theme), list(wb.table.index)), wb, "strip")

    figure = desk.figure(("table", "layer"), draw, height)
    figure.on_pick(lambda layer: desk.act(desk.workbench.select, layer))
    return figure


def spectrum(desk: Desk, height: int) -> w.Widget:
    """The spectrum of the layer in view, under its buttons."""

    def draw(wb: Workbench, theme: str) -> Json:
        return stamped(layer_figure(wb.spectrum, wb.view, wb.scale, wb.log_y, theme), wb, "spectrum")

    figure = desk.figure(("spectrum", "scale", "log_y", "view"), draw, height - 30)
    return w.VBox([_toolbar(desk), figure])


def _low(figure: Json, names: list[str]) -> Json:
    """A figure over layers made low: no room for a title of the x axis, and short names where there are few layers."""
    if not figure["data"]:
        return figure
    layout = figure["layout"]
    layout["margin"]["b"] = 22
    layout["xaxis"]["automargin"] = False
    if len(names) <= _FEW:
        short = [text.escape(text.short_name(name).rpartition(".")[2]) for name in names]
        layout["xaxis"] |= {"tickvals": list(range(len(names))), "ticktext": short}
    return figure


def _toolbar(desk: Desk) -> w.Widget:
    wb = desk.workbench
    place = w.HTML(layout=w.Layout(width="46px", flex="0 0 auto"))

    def say_place() -> None:
        names = wb.layers
        here = names.index(wb.layer) + 1 if wb.layer in names else 0
        place.value = f"<div class='mpviz-quiet' style='text-align:center'>{here} of {len(names)}</div>"

    def step(icon: str, tooltip: str, action: Any) -> w.Button:
        button = w.Button(icon=icon, tooltip=tooltip, layout=_fixed("22px"))
        button.on_click(lambda _: desk.act(action))
        return button

    desk.paint(("layer", "table"), say_place)
    scale = choice([("λ", "eigenvalue"), ("s", "singular")], "22px",
                    ["eigenvalues λ of WᵀW/N", "singular values s = √(N λ) of W"])  # fmt: skip
    density = choice(
        [("linear", False), ("log", True)], "43px", ["density on a linear axis", "density on a logarithmic axis"]
    )
    view = w.Dropdown(
        options=[(one.label, one.name) for one in LOOKS], tooltip="\n\n".join(f"{o.label}: {o.tip}" for o in LOOKS),
        layout=_fixed("96px"),
    )  # fmt: skip
    view.add_class("mpviz-look")
    shuffled = w.ToggleButton(description="shuffled", tooltip=SHUFFLED_TIP, layout=_fixed("62px"))
    for control, name in ((scale, "scale"), (density, "log_y"), (view, "view"), (shuffled, "shuffled")):
        desk.bind(control, name)

    def follow_view() -> None:
        density.disabled = not look(wb.view).log_y

    desk.paint(("view",), follow_view)
    parts = [
        step("chevron-left", "Previous layer", wb.previous_layer),
        place,
        step("chevron-right", "Next layer", wb.next_layer),
        lock_button(desk),
        view,
        shuffled,
        w.HBox([scale, density], layout=w.Layout(margin="0 0 0 auto", flex="0 0 auto")),
    ]
    return w.HBox(parts, layout=w.Layout(min_height="30px", align_items="center", flex_flow="row wrap"))


def _fixed(width: str) -> w.Layout:
    """A control that keeps its width in a row that has too little of it."""
    return w.Layout(width=width, min_width=width, flex="0 0 auto")


def choice(options: list[tuple[str, Any]], width: str, tooltips: list[str]) -> w.ToggleButtons:
    """Buttons of which one is down. options: (label, value); width: of each."""
    buttons = w.ToggleButtons(options=options, tooltips=tooltips, layout=w.Layout(width="auto"))
    buttons.style.button_width = width
    return buttons


def budgets(desk: Desk, height: int) -> Figure:
    """What each layer loses; a click selects the layer."""

    def draw(wb: Workbench, theme: str) -> Json:
        figure = _low(figures.budgets(wb.budgets, wb.layer, theme), list(wb.budgets.index))
        if figure["data"]:
            figure["layout"]["yaxis"]["title"]["text"] = "share, %"
        return stamped(figure, wb, "budgets")

    figure = desk.figure(("budgets", "layer"), draw, height)
    figure.on_pick(lambda layer: desk.act(desk.workbench.select, layer))
    return figure


def coverage(desk: Desk, height: int) -> Figure:
    """The certified share along the sparsity; a click on a point moves the slider there."""

    def draw(wb: Workbench, theme: str) -> Json:
        return stamped(figures.coverage(wb.curve, theme), wb, "coverage")

    figure = desk.figure(("curve",), draw, height)
    figure.on_pick(lambda sparsity: desk.act(setattr, desk.workbench, "sparsity", float(sparsity)))
    return figure


def proof(desk: Desk, what: str, height: int) -> Figure:
    """One figure of the last proofs: "tiers", "margins" or "attribution"."""

    def draw(wb: Workbench, theme: str) -> Json:
        return stamped(proof_figure(wb, what, theme), wb, what)

    return desk.figure((*PROOFS, "tiers" if what == "tiers" else "sample"), draw, height)


def known(desk: Desk, height: int) -> w.Widget:
    """What is measured along the slider, or what is proved, by a switch above; Prove turns to the second."""
    makers = {"measured": lambda: coverage(desk, height - 30), "proved": lambda: proof(desk, "tiers", height - 30)}
    switch = choice([(name, name) for name in makers], "74px", ["along the slider", "tier by tier, after Prove"])
    faces = _faces(desk, switch, makers)
    seen: list[Any] = [desk.workbench.proofs]

    def turn() -> None:
        if desk.workbench.proofs is not None and desk.workbench.proofs is not seen[0]:
            switch.value = "proved"
        seen[0] = desk.workbench.proofs

    desk.paint(("proofs",), turn)
    return w.VBox([w.HBox([switch], layout=w.Layout(min_height="30px")), *faces])


def _faces(desk: Desk, switch: w.ToggleButtons, makers: Mapping[str, Callable[[], w.Widget]]) -> list[w.Widget]:
    """A part for each value of a switch. Only the one that is seen follows, the others once they are shown."""
    faces = {}
    for name, make in makers.items():

        def seen(name: str = name) -> bool:
            return bool(switch.value == name)

        with desk.face(seen):
            faces[name] = w.VBox([make()], layout=w.Layout(overflow="hidden"))

    def show(_: Any = None) -> None:
        desk.flush()  # before it is seen: nobody sees it as it was
        for name, face in faces.items():
            face.layout.display = None if name == switch.value else "none"

    switch.observe(show, "value")
    show()
    return list(faces.values())


def while_seen(desk: Desk, names: tuple[str, ...], seen: Callable[[], bool], make: Callable[[], w.Widget]) -> w.Widget:
    """A part that is there, and follows, only while `seen()`, which one of these parameters decides."""
    with desk.face(seen):
        box = w.VBox([make()])

    def follow() -> None:
        box.layout.display = None if seen() else "none"

    desk.paint(names, follow)
    return box


def lower(desk: Desk, height: int) -> w.Widget:
    """One of five, by a switch beside it: what each layer loses; tables of layers, spikes, samples; the recipe."""
    kinds = {"budgets": budgets, "layers": layer_rows, "spikes": spike_rows, "samples": sample_rows, "recipe": recipe}
    makers = {name: lambda make=make: make(desk, height) for name, make in kinds.items()}
    tips = ["what each layer loses", "all numbers of all layers", "spikes of the layer in view", "proved samples",
            "all that is set, as text"]  # fmt: skip
    switch = choice([(name, name) for name in makers], "62px", tips)
    switch.layout = _fixed("66px")
    stack = w.VBox(
        _faces(desk, switch, makers), layout=w.Layout(flex="1 1 0", width="auto", min_width="0", overflow="hidden")
    )
    return w.HBox([switch, stack], layout=w.Layout(align_items="flex-start"))


def plan(desk: Desk) -> w.Widget:
    """The sliders of the plan."""
    return w.VBox(plan_sliders(desk))


def pruning(desk: Desk) -> w.Widget:
    """Prune, Cancel, progress, and the table of before and after."""
    wb = desk.workbench
    prune = w.Button(description="Prune", button_style="primary", icon="scissors",
                     tooltip="Remove the weights from a copy, then measure it on the whole split",
                     layout=_fixed("90px"))  # fmt: skip
    cancel = w.Button(description="Cancel", tooltip="Stop the running work; what was there before stays",
                      layout=_fixed("76px"))  # fmt: skip
    bar = w.FloatProgress(min=0.0, max=1.0, layout=w.Layout(width="auto", height="10px", margin="0 2px"))
    words, table = w.HTML(), w.HTML()
    prune.on_click(lambda _: desk.act(wb.prune))
    cancel.on_click(lambda _: desk.act(wb.cancel))

    def show_job() -> None:
        prune.disabled, cancel.disabled = wb.job.busy, not wb.job.busy
        bar.value = wb.job.progress
        bar.layout.visibility = "visible" if wb.job.busy else "hidden"
        caption = ""
        if wb.comparison is not None and wb.pruned_at is not None:
            plan, split = wb.pruned_at
            caption = text.pruned_words(plan, split, wb.comparison_is_current)
        words.value = page.job_line(wb.job, caption)

    def show_table() -> None:
        table.value = page.comparison_table(wb.comparison, desk.theme, wb.comparison_is_current)

    desk.paint(("job", "comparison", "split", *PLAN), show_job)
    desk.paint(("comparison", "split", "theme", *PLAN), show_table)
    more = w.HBox([
        job_button(desk, "Prove", PROVE_TIP, wb.certify), job_button(desk, "Precompute", PRECOMPUTE_TIP, wb.precompute)
    ])  # fmt: skip
    buttons = w.VBox([w.HBox([prune, cancel]), more, bar])
    return w.VBox([row([share(22, buttons, 180), share(78, table, 380)]), _ends(status(desk), words)])


def _ends(left: w.Widget, right: w.Widget) -> w.Widget:
    """One line: the left part takes what the right one leaves."""
    left.layout.flex, left.layout.min_width = "1 1 0", "0"
    right.layout.flex, right.layout.max_width = "0 1 auto", "60%"
    return w.HBox([left, right], layout=w.Layout(margin="0 5px"))


def row(children: list[w.Widget]) -> w.Widget:
    """Panels side by side, one below the other where the page is too narrow for both."""
    return w.HBox(children, layout=w.Layout(width="100%", align_items="flex-start", flex_flow="row wrap"))


def share(percent: int, child: w.Widget, least: int = 340) -> w.Widget:
    """A column that takes this share of what its row has over the least widths, in pixels, of its columns."""
    # its content must not widen it: a figure is as wide as it is told to be
    return w.VBox([child], layout=w.Layout(flex=f"{percent} 1 {least}px", width="auto", min_width="0", margin="0 5px"))


def status(desk: Desk) -> w.Widget:
    """What is looked at and how good it is untouched."""
    line = w.HTML()
    wb = desk.workbench

    def show() -> None:
        line.value = page.status_line(wb.model, wb.data, wb.info, wb.curve.n_samples, wb.split)

    desk.paint(("info", "model", "data", "curve", "split"), show)
    return line


def errors(desk: Desk) -> w.Widget:
    """The sentence that says what went wrong; takes no room while all is well."""
    line = w.HTML()

    def show() -> None:
        line.value = page.error_line(desk.workbench.error)
        line.layout.display = None if desk.workbench.error else "none"

    desk.paint(("error",), show)
    return line


def sheet(desk: Desk) -> w.Widget:
    """The style sheet of the page's theme."""
    element = w.HTML(layout=w.Layout(display="none"))

    def dress() -> None:
        element.value = page.style(desk.theme)

    desk.paint(("theme",), dress)
    return element


def view(desk: Desk, children: list[w.Widget], title: str = "") -> View:
    """Panels as one view in the theme of the page, errors on top where they are seen. title: in place of a model."""
    made = View(desk, [sheet(desk), errors(desk), *children], title, layout=w.Layout(width="100%"))
    made.add_class("mpviz")

    def dress() -> None:
        made.remove_class("mpviz-dark" if desk.theme == "light" else "mpviz-light")
        made.add_class(f"mpviz-{desk.theme}")

    desk.paint(("theme",), dress)
    desk.start()
    return made
