"""The dashboard's building blocks: controls and panes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import panel as pn
import param
from panel.util import LazyHTMLSanitizer

from mpviz.ui.css import read_shared
from mpviz.ui.dashboard_faces import LOWER, RIGHT
from mpviz.ui.dashboard_figure import figure_pane
from mpviz.ui.dashboard_words import read_page_file
from mpviz.ui.figures import TIER_WORDS
from mpviz.ui.layer_figure import LOOKS
from mpviz.ui.rows import LAYER_COLUMNS, SPIKE_COLUMNS, Column
from mpviz.ui.sample_rows import SAMPLE_COLUMNS, SAMPLES_EMPTY
from mpviz.workbench.names import TIERS, TIERS_SHOWN
from mpviz.workbench.policy import DATA, Gate, bundled_models

# What the words of the page are made of; all else is dropped, should an escape ever be forgotten.
_SANITIZER = LazyHTMLSanitizer(
    tags={"p", "b", "span", "br", "table", "thead", "tbody", "tr", "th", "td", "progress"},
    attributes={"*": {"class", "role"}, "th": {"scope", "class"}, "progress": {"value", "max"}},
)


@cache
def widget_css() -> str:
    """The style sheet of all controls."""
    return read_page_file("_widgets.css")


def _style(css_classes: Iterable[str] = (), **more: Any) -> dict[str, Any]:
    return {"margin": 0, "stylesheets": [widget_css()], "css_classes": list(css_classes), **more}


class _Offline(pn.custom.AnyWidgetComponent):
    """A component of our own script alone: panel would name addresses of React, which nothing here needs."""

    __abstract = True

    @classmethod
    def _process_importmap(cls) -> dict[str, dict[str, str]]:
        return {}


class Rows(_Offline):
    """The sortable table. said: what somebody did in it, a dict with what and row."""

    _esm = read_shared("download.js", "table.js")

    columns = param.List([])
    ids = param.List([])
    cells = param.Dict({})
    live = param.Dict({})
    selected = param.String("")
    label = param.String("")
    unit = param.String("row")
    empty = param.String("")
    tall = param.Integer(0)
    said = param.Dict({})


class Courier(_Offline):
    """Brings files to the page. said: what a menu asked for, a dict with what and form."""

    _esm = read_shared("download.js", "dashboard_courier.js")

    said = param.Dict({})


def rows(columns: Iterable[Column], label: str, unit: str, invitation: str) -> Rows:
    """An empty table that fills its cell. invitation: what is said while it has no rows."""
    return Rows(
        columns=[column.plain for column in columns], label=label, unit=unit, empty=invitation,
        sizing_mode="stretch_both", margin=0, stylesheets=[read_shared("table.css")],
    )  # fmt: skip


def words(html: str = "", *css_classes: str) -> pn.pane.HTML:
    """A region of text. The caller escapes what comes from outside; the sanitizer is the second lock."""
    return pn.pane.HTML(
        html,
        sanitize_html=True,
        sanitize_hook=_SANITIZER.clean,
        **_style(css_classes, sizing_mode="stretch_width"),
    )


class Slider(pn.widgets.FloatSlider):
    """A slider whose steps are told at once, where panel would wait 50 ms; what comes meanwhile is told together."""

    _priority_changes = ("value",)

    @property
    def _linked_properties(self) -> tuple[str, ...]:  # the value at the end of a pull is one that was told already
        return tuple(name for name in super()._linked_properties if name != "value_throttled")


def slider(label: str, value: float, bounds: tuple[float, float], step: float = 0.01) -> Slider:
    """A slider that tells each of its steps, not only the last one."""
    start, end = bounds
    return Slider(
        label=label, value=value, start=start, end=end, step=step, format="0.00", **_style(sizing_mode="stretch_width")
    )


def select(options: dict[str, Any], value: Any, **more: Any) -> pn.widgets.Select:
    """A drop-down list without a label of its own: the page has one."""
    return pn.widgets.Select(options=options, value=value, **_style(sizing_mode="stretch_width"), **more)


def choice(options: dict[str, Any], value: Any, *css_classes: str) -> pn.widgets.RadioButtonGroup:
    """Two or three buttons of which one is down."""
    return pn.widgets.RadioButtonGroup(options=options, value=value, **_style(css_classes))


def switches(options: dict[str, str], on: Iterable[str]) -> pn.widgets.CheckButtonGroup:
    """Buttons of which any number is down."""
    return pn.widgets.CheckButtonGroup(options=options, value=list(on), **_style(["tight", "switches"]))


def checkbox(label: str, value: bool) -> pn.widgets.Checkbox:
    """A box to tick, in small letters."""
    return pn.widgets.Checkbox(label=label, value=value, **_style(["small"]))


def text_input(placeholder: str) -> pn.widgets.TextInput:
    """One line of text; its value changes on Enter."""
    return pn.widgets.TextInput(placeholder=placeholder, **_style(sizing_mode="stretch_width"))


def text_area() -> pn.widgets.TextAreaInput:
    """Lines of text; its value changes when the focus goes."""
    return pn.widgets.TextAreaInput(resizable=False, max_length=20_000, **_style(["text"], sizing_mode="stretch_both"))


def file_input(accept: str) -> pn.widgets.FileInput:
    """A file of the visitor; its value is what is in it."""
    return pn.widgets.FileInput(accept=accept, **_style(["small"], sizing_mode="stretch_width"))


def integer(value: int, step: int) -> pn.widgets.IntInput:
    """A whole number. Without bounds: the page would keep what is beyond them, and say nothing."""
    return pn.widgets.IntInput(value=value, step=step, **_style(sizing_mode="stretch_width"))


def button(label: str, *css_classes: str, wide: bool = False) -> pn.widgets.Button:
    """A button; its `clicks` count."""
    size = {"sizing_mode": "stretch_width"} if wide else {}
    return pn.widgets.Button(label=label, **_style(css_classes, **size))


def toggle(label: str) -> pn.widgets.Toggle:
    """A button that stays down."""
    return pn.widgets.Toggle(label=label, **_style(sizing_mode="stretch_width"))


class Download(pn.widgets.FileDownload):
    """A button for a file. Its `callback`, a coroutine function, makes the file object, or None when it could not."""

    def _sync_data(self, fileobj: Any) -> None:
        if fileobj is not None:
            super()._sync_data(fileobj)


def download(label: str, filename: str) -> Download:
    """A button for a file that is made when it is pressed."""
    return Download(label=label, filename=filename, callback=_nothing, **_style(["snug"], sizing_mode="stretch_width"))


async def _nothing() -> None:
    return None


def page_parts(model: str, data: str, with_report: bool) -> dict[str, Any]:
    """All parts of the page, by their names in dashboard.html."""
    return {
        **{name: words() for name in ("dense", "status", "comparison", "footer", "alert", "taken")},
        "strip": figure_pane(),
        "spectrum": figure_pane(),
        "coverage": figure_pane(edits={"shapePosition": True}),  # its line is the chosen sparsity
        "proofs": figure_pane(),
        "right": _right(),
        "why": words(),
        "cards": words(),
        "tiers": switches({TIER_WORDS.get(name, name): name for name in TIERS}, TIERS_SHOWN),
        "budgets": figure_pane(),
        "layers": rows(LAYER_COLUMNS, "all layers", "layer", "Choose a model to see its layers."),
        "spikes": rows(SPIKE_COLUMNS, "spikes of the layer in view", "spike", "Nothing stands out of the bulk here."),
        "recipe_text": text_area(),
        "apply": button("Apply", "strong", wide=True),
        "session": download("Save session", "session.json"),
        "session_file": file_input(".json"),
        "undo": button("↶", "tight"),
        "redo": button("↷", "tight"),
        "sample_rows": rows(SAMPLE_COLUMNS, "samples that were proved", "sample", SAMPLES_EMPTY),
        "lower": _lower(),
        "courier": Courier(width=0, height=0, margin=0),
        **_rail(model, data),
        **({"report": download("Report", "report.html")} if with_report else {}),
        **_plan(),
    }


def _theme() -> pn.widgets.Toggle:
    """Down means dark. The page changes in the browser at once, the figures follow from the server."""
    made = toggle("dark")
    made.jscallback(value="document.documentElement.dataset.theme = cb_obj.active ? 'dark' : 'light'")
    return made


def _lower() -> pn.widgets.RadioButtonGroup:
    """What the card below the spectrum shows; it changes in the browser at once."""
    made = choice({name: name for name in LOWER}, LOWER[0], "tight")
    names = ", ".join(f'"{name}"' for name in LOWER)
    made.jscallback(value=f"document.querySelector('.card.budgets').dataset.shown = [{names}][cb_obj.active]")
    return made


def _right() -> pn.widgets.RadioButtonGroup:
    """What the card beside the spectrum shows; it changes in the browser at once."""
    faces = dict(zip(("measured", "proved", "margins", "by layer", "in words"), RIGHT, strict=True))
    made = choice(faces, RIGHT[0], "tight", "five")
    names = ", ".join(f'"{name}"' for name in RIGHT)
    made.jscallback(value=f"document.querySelector('.card.coverage').dataset.shown = [{names}][cb_obj.active]")
    return made


def _rail(model: str, data: str) -> dict[str, Any]:
    return {
        "theme": _theme(),
        "model": select({name: name for name in dict.fromkeys([*bundled_models(), model])}, model),
        "other": text_input("timm name or path"),
        "open": button("Open"),
        "data": select({name: name for name in dict.fromkeys([*DATA, data])}, data),
        "split": select({"test": "test", "calibration": "calibration"}, "test"),
        "samples": integer(1000, step=500),
        "prune": button("Prune", "strong", wide=True),
        "prove": button("Prove", wide=True),
        "precompute": button("Precompute", wide=True),
        "cancel": button("Cancel"),
        "checkpoint": download("Checkpoint", "pruned.safetensors"),
        "recipe": download("Recipe", "recipe.toml"),
        "dismiss": button("✕", "plain"),
    }


def _plan() -> dict[str, Any]:
    return {
        "previous": button("←", "mpviz-previous", "tight"),
        "next": button("→", "mpviz-next", "tight"),
        "layer": select({}, None),
        "scale": choice({"λ": "eigenvalue", "s": "singular"}, "singular", "tight"),
        "log_y": choice({"linear": False, "log": True}, False, "tight"),
        "view": select({look.label: look.name for look in LOOKS}, LOOKS[0].name),
        "shuffled": pn.widgets.Toggle(label="shuffled", **_style(["tight"])),
        "sparsity": slider("sparsity", 0.5, (0.0, 0.99)),
        "beta": slider("β", 1.25, (0.0, 3.0), 0.05),
        "decay_end": slider("decay end", 0.7, (0.05, 1.0)),
        "beta_attention": slider("β attention", 1.25, (0.0, 3.0), 0.05),
        "same_attention": checkbox("as β", True),
        "beta_mlp": slider("β MLP", 1.25, (0.0, 3.0), 0.05),
        "same_mlp": checkbox("as β", True),
        "signal": choice({"edge σ₊": "sigma_plus", "Hill α": "alpha"}, "sigma_plus"),
        "lock": toggle("lock this layer"),
    }


def offer(roots: dict[str, Any], gate: Gate) -> None:
    """Where visitors may open only what is offered, offer that, and take away the line for other names."""
    if not gate.restricted:
        return
    for name, offered in (("model", gate.policy.models_offered()), ("data", gate.policy.data_offered())):
        roots[name].options = {one: one for one in dict.fromkeys([*offered, roots[name].value])}
    for name in ("other", "open"):
        roots[name].visible = False
