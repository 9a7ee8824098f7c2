"""The Marchenko–Pastur law for a lecture hall: a random matrix at each step of a slider, and what theory says of it."""

from __future__ import annotations

import ipywidgets as w
import param

from mpviz.ui import text
from mpviz.ui.export import file_stem
from mpviz.ui.law_figure import law_figure, law_words
from mpviz.ui.theme import Json
from mpviz.ui.widgets import panels
from mpviz.ui.widgets.desk import Desk, View
from mpviz.workbench.law import LawDraw, LawPlan, draw_law

_PLAN = ("rows", "cols", "sigma", "spikes", "strength", "seed")
_CONTROLS = (  # name, label, least, most, step, tooltip
    ("rows", "N, rows", 20, 1000, 20, "Rows N of W; the law depends on c = M/N alone"),
    ("cols", "M, columns", 20, 1000, 20, "Columns M of W; c = M/N. At c > 1 X = WᵀW/N has zeros, which are not drawn"),
    ("sigma", "σ", 0.1, 3.0, 0.1, "Standard deviation of the entries: λ± = σ²(1 ± √c)². Marchenko & Pastur (1967)"),
    ("spikes", "spikes", 0, 12, 1, "Rank of the planted signal S in W = S + R"),
    ("strength", "strength × BBP", 0.0, 4.0, 0.05,
     "Singular values of S in units of σ(NM)^¼: below 1 they drown. Baik, Ben Arous & Péché (2005)"),
)  # fmt: skip


class LawState(param.Parameterized):
    """What the sliders of the law stand on."""

    rows = param.Integer(600, bounds=(20, 1000))
    cols = param.Integer(300, bounds=(20, 1000))
    sigma = param.Number(1.0, bounds=(0.1, 3.0))
    spikes = param.Integer(3, bounds=(0, 12))
    strength = param.Number(1.5, bounds=(0.0, 4.0))
    seed = param.Integer(0, bounds=(0, None))
    scale = param.Selector(default="singular", objects=["eigenvalue", "singular"])
    error = param.String("")

    def draw(self) -> LawDraw:
        """The matrix as the sliders stand; one drawn before is remembered."""
        return draw_law(LawPlan(**{name: getattr(self, name) for name in _PLAN}))


def law_view(theme: str | None = None) -> View:
    """Slide rows, columns, σ and planted spikes, and watch law, edge and BBP transition. `.close()` ends it."""
    state = LawState()
    desk = Desk(state, theme)

    def draw(now: LawState, theme: str) -> Json:
        figure = law_figure(now.draw(), now.scale, theme)
        figure["layout"]["meta"] = file_stem("law", f"{now.rows}x{now.cols}", f"seed-{now.seed}")
        return figure

    figure = desk.figure((*_PLAN, "scale"), draw, 340)
    words = w.HTML(layout=w.Layout(margin="2px 8px"))

    def say() -> None:
        words.value = f"<div role='status' style='font-size:14px'>{text.escape(law_words(state.draw()))}</div>"

    desk.paint(_PLAN, say)
    sliders = panels.share(36, w.VBox([_slider(desk, *one) for one in _CONTROLS] + [_buttons(desk)]), 280)
    return panels.view(desk, [panels.row([panels.share(64, figure, 400), sliders]), words], "the Marchenko–Pastur law")


def _slider(desk: Desk, name: str, label: str, least: float, most: float, step: float, tip: str) -> w.Widget:
    kind = w.IntSlider if isinstance(step, int) else w.FloatSlider
    form = "d" if isinstance(step, int) else ".2f"
    slider = kind(
        min=least, max=most, step=step, value=getattr(desk.workbench, name), description=label, tooltip=tip,
        readout_format=form, style={"description_width": "104px"}, layout=w.Layout(width="auto"),
    )  # fmt: skip
    desk.bind(slider, name)
    return slider


def _buttons(desk: Desk) -> w.Widget:
    state = desk.workbench
    again = w.Button(description="new draw", icon="refresh", tooltip="Another matrix of the same kind",
                     layout=w.Layout(width="110px", min_width="110px"))  # fmt: skip
    again.on_click(lambda _: desk.act(setattr, state, "seed", state.seed + 1))
    seed = w.BoundedIntText(min=0, max=2**31 - 1, description="seed", tooltip="The same seed draws the same matrix",
                            style={"description_width": "36px"}, layout=w.Layout(width="120px"))  # fmt: skip
    desk.bind(seed, "seed")
    scale = panels.choice([("λ", "eigenvalue"), ("s", "singular")], "26px",
                          ["eigenvalues λ of WᵀW/N", "singular values s = √(N λ) of W"])  # fmt: skip
    desk.bind(scale, "scale")
    return w.HBox([again, seed, scale], layout=w.Layout(flex_flow="row wrap", align_items="center"))
