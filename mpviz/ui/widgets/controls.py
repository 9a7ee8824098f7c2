"""Sliders and buttons of the plan, each with a tooltip that says its formula and where that comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as w

from mpviz.ui.widgets.desk import Desk
from mpviz.workbench.names import PLAN

SEB = "Spectral Edge Budgeting, arXiv:2606.02608"
_TIPS = {
    "sparsity": "s: the share of the prunable weights that is removed. Exactly round(s·n) of n weights go.",
    "signal": "What tells layers apart: σ₊, the Marchenko–Pastur edge on the singular-value scale, or α, Hill's "
    f"exponent of the eigenvalue tail (AlphaPruning, Lu et al. 2024). {SEB}",
    "beta": "β: how strongly the signal z counts. Layer weight w = max(0.1, 1 + β·d(s)·z); the smallest |W|/w go. "
    f"0 is plain global magnitude pruning. {SEB}",
    "decay_end": f"s_d: the sparsity at which the signal stops to count, d(s) = 1 − s/s_d, at least 0. {SEB}",
    "beta_attention": f"β of the attention layers alone. {SEB}",
    "beta_mlp": f"β of the MLP layers alone. {SEB}",
}
_SLIDER = {"continuous_update": True, "style": {"description_width": "86px"}}
_FILL = {"flex": "1 1 auto", "width": "auto", "min_width": "0", "height": "26px", "margin": "0"}


def _slider(description: str, name: str, low: float, high: float, step: float, form: str) -> w.FloatSlider:
    return w.FloatSlider(
        value=low, min=low, max=high, step=step, readout_format=form, description=description, tooltip=_TIPS[name],
        layout=w.Layout(**_FILL), **_SLIDER,
    )  # fmt: skip


def sparsity_slider(desk: Desk) -> w.Widget:
    """The share removed, in percent."""
    slider = _slider("sparsity, %", "sparsity", 0.0, 99.0, 1.0, ".0f")
    slider.add_class("mpviz-sparsity")
    desk.bind(
        slider, "sparsity", read=lambda percent: round(percent / 100, 6), write=lambda share: round(100 * share, 4)
    )
    return w.HBox([slider])


def plan_sliders(desk: Desk) -> list[w.Widget]:
    """All controls of the plan, a row each; roles that the model does not have are hidden."""
    beta = _slider("β", "beta", 0.0, 3.0, 0.05, ".2f")
    decay = _slider("decay end", "decay_end", 0.05, 1.0, 0.05, ".2f")
    signal = w.Dropdown(
        options=[("σ₊, the MP edge", "sigma_plus"), ("α, Hill's tail exponent", "alpha")], description="signal",
        tooltip=_TIPS["signal"], layout=w.Layout(**_FILL), style=_SLIDER["style"],
    )  # fmt: skip
    for control, name in ((beta, "beta"), (decay, "decay_end"), (signal, "signal")):
        desk.bind(control, name)
    roles = [_role_slider(desk, "attention"), _role_slider(desk, "mlp")]
    first = w.HBox([sparsity_slider(desk), *_steps(desk)])
    first.children[0].layout.flex = "1 1 auto"
    return [first, w.HBox([signal]), w.HBox([beta]), *roles, w.HBox([decay])]


def _steps(desk: Desk) -> list[w.Widget]:
    """Buttons that undo and redo what was set."""
    wb, made = desk.workbench, []
    for name, icon, action in (("undo", "undo", wb.undo), ("redo", "repeat", wb.redo)):
        tip = {"undo": "Undo the last change of the plan", "redo": "Take the last undo back"}[name]
        button = w.Button(icon=icon, tooltip=tip, layout=w.Layout(width="28px", height="24px", margin="1px 0 1px 4px"))
        button.on_click(lambda _, action=action: desk.act(action))

        def follow(button: w.Button = button, name: str = name) -> None:
            button.disabled = not getattr(wb, f"{name}able")

        desk.paint((f"{name}able",), follow)
        made.append(button)
    return made


def recipe(desk: Desk, height: int) -> w.Widget:
    """All that is set as TOML, to change, paste and apply."""
    wb = desk.workbench
    words = w.Textarea(layout=w.Layout(width="auto", height=f"{height - 40}px"), continuous_update=False)
    words.add_class("mpviz-recipe")
    apply = w.Button(
        description="Apply", layout=w.Layout(width="90px"),
        tooltip="Set the controls to this text; lines that are left out change nothing. wb.recipe_text is what it says",
    )  # fmt: skip
    apply.on_click(lambda _: desk.act(wb.apply, words.value))

    def follow() -> None:
        words.value = wb.recipe_text

    desk.paint(("model", "data", "split", *PLAN), follow)
    return w.VBox([words, apply])


def _role_slider(desk: Desk, role: str) -> w.Widget:
    """β of one role: the common β while its button is pressed, else its own."""
    wb, name = desk.workbench, f"beta_{role}"
    label = {"attention": "β attention", "mlp": "β MLP"}[role]
    slider = _slider(label, name, 0.0, 3.0, 0.05, ".2f")
    small = w.Layout(width="40px", height="24px", padding="0", margin="1px 0 1px 4px")
    same = w.ToggleButton(description="= β", tooltip=f"{label} is the same as β while this is pressed", layout=small)
    row = w.HBox([slider, same])

    def follow() -> None:
        own = getattr(wb, name)
        same.value, slider.disabled = own is None, own is None
        slider.value = wb.beta if own is None else own
        roles = wb.table["role"][wb.table["prunable"].astype(bool)]
        row.layout.display = None if (roles == role).any() else "none"

    def move(change: Any) -> None:
        if getattr(wb, name) is not None:
            desk.act(setattr, wb, name, change["new"])

    slider.observe(move, "value")
    same.observe(lambda change: desk.act(setattr, wb, name, None if change["new"] else wb.beta), "value")
    desk.paint((name, "beta", "table"), follow)
    return row


def lock_button(desk: Desk) -> w.ToggleButton:
    """Locks the layer in view: it loses nothing, the others make up for it."""
    wb = desk.workbench
    button = w.ToggleButton(layout=w.Layout(width="54px", min_width="54px", flex="0 0 auto"))

    def follow() -> None:
        locked = wb.layer in wb.locked
        button.value, button.description, button.icon = (
            locked,
            "locked" if locked else "lock",
            "lock" if locked else "unlock",
        )
        prunable = wb.layer in wb.table.index and bool(wb.table.at[wb.layer, "prunable"])
        button.disabled = not prunable
        button.tooltip = (
            "A locked layer loses nothing; the other layers make up for it"
            if prunable
            else f"This layer is never pruned: {wb.table.at[wb.layer, 'why']}"
        )

    def toggle(pressed: bool) -> None:
        wb.locked = [name for name in wb.locked if name != wb.layer] + ([wb.layer] if pressed else [])

    button.observe(lambda change: desk.act(toggle, change["new"]), "value")
    desk.paint(("layer", "locked", "table"), follow)
    return button


def job_button(desk: Desk, label: str, tooltip: str, start: Callable[[], Any]) -> w.Button:
    """A button that starts background work and waits while there is some."""
    wb = desk.workbench
    button = w.Button(description=label, tooltip=tooltip, layout=w.Layout(width="auto", min_width="76px"))
    button.on_click(lambda _: desk.act(start))

    def follow() -> None:
        button.disabled = wb.job.busy

    desk.paint(("job",), follow)
    return button
