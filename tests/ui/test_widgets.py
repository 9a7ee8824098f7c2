"""The notebook's panels without a notebook: what a control does to the state, and what the figures then hold."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets as w
import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter

from mpviz.ui import figures
from mpviz.ui.widgets import budget_view, coverage_view, page, spectrum_view, strip_view, workbench_view
from mpviz.ui.widgets.desk import Desk, View, compact
from mpviz.ui.widgets.figure import Figure, apply_figure, changes, shelf
from mpviz.workbench.state import Workbench
from mpviz.workbench.views import JobStatus

ATTACK = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def shared() -> Iterator[Workbench]:
    workbench = Workbench("fashion-mlp", samples=60)
    yield workbench
    workbench.close()


@pytest.fixture
def wb(shared: Workbench) -> Workbench:
    """The workbench as it was opened."""
    shared.locked, shared.beta_mlp, shared.beta_attention = [], None, None
    shared.param.update(sparsity=0.5, beta=1.25, signal="sigma_plus", scale="singular", log_y=False, error="")
    shared.layer = shared.layers[0]
    return shared


@pytest.fixture
def view(wb: Workbench) -> Iterator[View]:
    made = workbench_view(wb, theme="light")
    yield made
    made.close()


def parts(view: w.Widget, kind: type, **traits: Any) -> list[Any]:
    """All widgets of a kind inside a view, from the top left, with these traits."""
    found = [view] if isinstance(view, kind) and all(getattr(view, k) == v for k, v in traits.items()) else []
    for child in getattr(view, "children", ()):
        found += parts(child, kind, **traits)
    return found


def part(view: w.Widget, kind: type, **traits: Any) -> Any:
    found = parts(view, kind, **traits)
    assert len(found) == 1, traits
    return found[0]


def slider(view: w.Widget, label: str) -> w.FloatSlider:
    return part(view, w.FloatSlider, description=label)


def words(view: w.Widget) -> str:
    return "\n".join(html.value for html in parts(view, w.HTML))


def eventually(check: Callable[[], Any], seconds: float = 10.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := check()) and time.monotonic() < end:
        time.sleep(0.02)
    return value


def plain(figure: Figure) -> dict[str, Any]:
    """What the page gets, without the identities that plotly gives to traces."""
    picture = copy.deepcopy(figure.picture)
    for trace in picture["data"]:
        trace.pop("uid", None)
    return json.loads(json.dumps(picture))


def dense(value: Any) -> Any:
    """Without what says nothing: None, and empty lists and dicts."""
    if isinstance(value, dict):
        kept = {key: dense(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in (None, {}, [])}
    return [dense(item) for item in value] if isinstance(value, list) else value


# --- changing a figure by a plain dict --------------------------------------------------------------------------------


def test_changes_name_what_differs_and_what_is_gone() -> None:
    old = {"a": 1, "b": {"c": [1, 2], "d": {"e": 1}}, "gone": 3}
    new = {"a": 1, "b": {"c": [1, 2, 3], "d": {"f": 2}}, "new": {"x": 1}}
    assert changes(old, new) == {"b.c": [1, 2, 3], "b.d.f": 2, "b.d.e": None, "new": {"x": 1}, "gone": None}
    assert changes(new, new) == {}


def all_figures(wb: Workbench) -> dict[str, dict[str, Any]]:
    """Figures of many shapes: with and without spikes, curve, selection, data."""
    views = []
    for layer in wb.layers:
        wb.select(layer)
        views.append(wb.spectrum)
    made = {
        f"{v.layer} {scale} {log}": figures.spectrum(v, scale, log)
        for v in views
        for scale in ("singular", "eigenvalue")
        for log in (False, True)
    }
    made["dark"] = figures.spectrum(views[0], theme="dark")
    made["budgets"] = figures.budgets(wb.budgets, wb.layer)
    made["nothing selected"] = figures.budgets(wb.budgets)
    made["strip"] = figures.strip(wb.table, wb.layer)
    made["curve"] = figures.coverage(wb.curve)
    made["empty"] = figures.coverage(None)
    return made


def test_any_figure_can_become_any_other(wb: Workbench) -> None:
    made = all_figures(wb)
    widget = Figure(made["empty"])
    names = list(made)
    for name in [*names, *reversed(names), *names[::3], *names[::5]]:
        apply_figure(widget, made[name])
        assert dense(plain(widget)) == dense(json.loads(json.dumps(made[name]))), name


def test_a_change_is_one_message_and_none_where_nothing_changed(wb: Workbench) -> None:
    made = all_figures(wb)
    widget = Figure(made["budgets"])
    sent: list[Any] = []
    widget.observe(lambda change: sent.append(change["new"]), "picture")
    apply_figure(widget, figures.budgets(wb.budgets, wb.layer))
    assert sent == []
    wb.sparsity = 0.7
    apply_figure(widget, figures.budgets(wb.budgets, wb.layer))
    assert len(sent) == 1
    apply_figure(widget, made["strip"])  # other traces altogether
    assert len(sent) == 2


def test_what_the_page_gets_is_plain_json(wb: Workbench) -> None:
    def check(value: Any) -> None:
        assert not isinstance(value, np.ndarray | np.generic), "numpy arrays make the page's echo raise in the kernel"
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
            check(item)

    for figure in all_figures(wb).values():
        picture = Figure(figure).picture
        check(picture)
        json.dumps(picture, allow_nan=False)


def test_it_is_a_figure_widget_with_plotly_s_own_interface(wb: Workbench) -> None:
    import plotly.graph_objects as go

    widget = Figure(figures.budgets(wb.budgets))
    assert isinstance(widget, go.FigureWidget)
    widget.add_scatter(x=[0, 1], y=[1, 2], name="mine")
    assert widget.picture["data"][-1]["name"] == "mine"
    with widget.batch_update():
        widget.data[-1].y = [5, 6]
        widget.layout.title.text = "new"
    assert widget.picture["data"][-1]["y"] == [5, 6] and widget.picture["layout"]["title"]["text"] == "new"
    widget.data = widget.data[:1]
    assert len(widget.picture["data"]) == 1


def test_plotly_js_is_sent_once_and_not_with_every_figure(wb: Workbench) -> None:
    first, second = Figure(figures.budgets(wb.budgets)), Figure(figures.strip(wb.table))
    assert len(json.dumps(first.get_state(), default=str)) < 100_000
    assert first.library == second.library == shelf().key
    assert len(shelf().source) > 1_000_000 and shelf() is shelf()
    shelf().close()  # as Widget.close_all() does
    assert shelf().comm is not None


def test_nothing_invites_to_upload(wb: Workbench) -> None:
    config = Figure(figures.budgets(wb.budgets))._config
    assert config["showSendToCloud"] is False and config["plotlyServerURL"] == ""


def test_the_first_figure_does_not_compile_grammars() -> None:
    code = (
        "import sys; from mpviz.ui.widgets.figure import Figure; Figure({'data': [], 'layout': {}});"
        "print('rfc3987_syntax' in sys.modules, 'lark' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split()[:2] == ["False", "False"]


def test_a_click_gives_the_mark_s_target(wb: Workbench) -> None:
    widget = Figure(figures.strip(wb.table, wb.layer))
    picked: list[Any] = []
    widget.on_pick(picked.append)
    targets = next(i for i, trace in enumerate(widget.data) if trace.name == "layers")
    click(widget, targets, 1)
    assert picked == [wb.layers[1]]
    click(widget, 0, 1)  # a bar without a target
    assert len(picked) == 1


def click(widget: Figure, trace: int, point: int) -> None:
    points = {"xs": [0], "ys": [0], "trace_indexes": [trace], "point_indexes": [point]}
    widget.set_state({"_js2py_pointsCallback": {"event_type": "plotly_click", "points": points}})


# --- the panels -------------------------------------------------------------------------------------------------------


def test_the_view_shows_everything_in_at_most_640_pixels(view: View, wb: Workbench) -> None:
    strip, spectrum, coverage, proved, budgets = parts(view, Figure)
    heights = [figure.picture["layout"]["height"] for figure in (strip, spectrum, budgets)]
    assert sum(heights) + 30 + 100 <= 640  # the toolbar, and the row of Prune with its table
    assert coverage.picture["layout"]["height"] == proved.picture["layout"]["height"]
    assert coverage.picture["layout"]["height"] <= spectrum.picture["layout"]["height"]
    assert wb.model in words(view) and "dense accuracy" in words(view)
    assert eventually(lambda: "on 60 test images" in words(view), 30)
    assert view.layout.width == "100%"


def test_sliders_move_the_state_and_the_figures_at_once(view: View, wb: Workbench) -> None:
    budgets = parts(view, Figure)[4]
    for label, value, name, state in (
        ("sparsity, %", 63.0, "sparsity", 0.63),
        ("β", 0.5, "beta", 0.5),
        ("decay end", 0.9, "decay_end", 0.9),
    ):
        slider(view, label).value = value
        assert getattr(wb, name) == state
        expected = (100 * wb.budgets["sparsity"]).tolist()
        assert budgets.picture["data"][0]["y"] == expected
    part(view, w.Dropdown, description="signal").value = "alpha"
    assert wb.signal == "alpha"


def test_controls_follow_the_state(view: View, wb: Workbench) -> None:
    wb.sparsity, wb.log_y, wb.beta_mlp = 0.355, True, 2.0
    assert eventually(lambda: slider(view, "sparsity, %").value == 35.5)
    assert eventually(lambda: slider(view, "β MLP").value == 2.0 and not slider(view, "β MLP").disabled)
    assert eventually(lambda: any(choice.value is True for choice in parts(view, w.ToggleButtons)))
    assert wb.sparsity == 0.355  # the control, which shows whole steps, did not write back


def test_beta_of_a_role_is_the_common_one_until_it_is_set_free(view: View, wb: Workbench) -> None:
    own, same = slider(view, "β MLP"), parts(view, w.ToggleButton, description="= β")[1]
    assert wb.beta_mlp is None and same.value and own.disabled
    slider(view, "β").value = 0.75
    assert own.value == 0.75
    same.value = False
    assert wb.beta_mlp == 0.75 and not own.disabled
    own.value = 2.25
    assert wb.beta_mlp == 2.25 and wb.beta == 0.75
    same.value = True
    assert wb.beta_mlp is None and own.value == 0.75


def test_roles_that_the_model_lacks_have_no_slider(view: View) -> None:
    rows = {
        box.children[0].description: box.layout.display
        for box in parts(view, w.HBox)
        if isinstance(box.children[0], w.FloatSlider)
    }
    assert rows["β attention"] == "none" and rows["β MLP"] is None


def test_the_buttons_walk_and_lock(view: View, wb: Workbench) -> None:
    part(view, w.Button, tooltip="Next layer").click()
    assert wb.layer == wb.layers[1] and "fc2" in parts(view, Figure)[1].picture["layout"]["title"]["text"]
    lock = part(view, w.ToggleButton, description="lock")
    wb.sparsity = 0.3
    lock.value = True
    assert wb.locked == [wb.layer] and lock.description == "locked"
    part(view, w.Button, tooltip="Previous layer").click()
    assert lock.value is False and wb.locked == [wb.layers[1]]
    wb.select(wb.layers[2])
    assert eventually(lambda: lock.disabled) and "never pruned" in lock.tooltip


def test_clicks_select_a_layer_and_a_sparsity(view: View, wb: Workbench) -> None:
    strip, _, coverage, _, budgets = parts(view, Figure)
    click(strip, [trace.name for trace in strip.data].index("layers"), 1)
    assert wb.layer == wb.layers[1]
    click(budgets, 0, 0)
    assert wb.layer == wb.layers[0]
    assert wb.wait_preview(60)
    certified = [trace.name for trace in coverage.data].index("certified")
    assert eventually(lambda: len(coverage.data[certified].x or ()) == 21)
    click(coverage, certified, 4)
    assert wb.sparsity == pytest.approx(coverage.data[certified].x[4] / 100)


def test_an_impossible_plan_is_a_sentence_and_a_possible_one_clears_it(view: View, wb: Workbench) -> None:
    budgets = parts(view, Figure)[4].picture["data"]
    wb.select(wb.layers[0])
    lock = part(view, w.ToggleButton, description="lock")
    lock.value = True  # this layer holds more weights than may stay
    line = next(html for html in parts(view, w.HTML) if "alert" in html.value)
    assert (
        "unlock a layer or lower the sparsity. Nothing else has changed." in line.value and line.layout.display is None
    )
    assert parts(view, Figure)[4].picture["data"] == budgets
    assert wb.locked == [] and lock.value is False
    slider(view, "sparsity, %").value = 20.0
    assert line.value == "" and line.layout.display == "none"
    lock.value = True
    slider(view, "sparsity, %").value = 80.0
    assert "unlock a layer" in line.value and slider(view, "sparsity, %").value == 20.0


def test_undo_redo_and_the_recipe_are_at_hand(view: View, wb: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpviz.workbench.history.MERGE", 0.0)
    undo, redo = (one for one in parts(view, w.Button) if one.icon in ("undo", "repeat"))
    [words], [apply] = parts(view, w.Textarea), parts(view, w.Button, description="Apply")
    next(one for one in parts(view, w.ToggleButtons) if "recipe" in dict(one.options)).value = "recipe"
    wb.beta = 0.75
    assert eventually(lambda: "beta = 0.75" in words.value and not undo.disabled)
    undo.click()
    assert wb.beta == 1.25
    assert eventually(lambda: "beta = 1.25" in words.value and not redo.disabled)
    redo.click()
    assert wb.beta == 0.75
    words.value = "[budget]\nbeta = 2.0\nbeta_by_role = {mlp = 0.5}\n"
    apply.click()
    assert (wb.beta, wb.beta_mlp) == (2.0, 0.5)
    words.value = "[budget]\nbeta = 20.0\n"
    apply.click()
    assert wb.beta == 2.0
    assert eventually(lambda: any("between 0.0 and 3.0" in one.value for one in parts(view, w.HTML)))


def test_an_error_of_a_control_is_said_and_escaped(wb: Workbench) -> None:
    view = strip_view(wb)
    try:
        view.desk.act(wb.select, ATTACK)
        assert "<script" not in words(view) and "&lt;script&gt;" in words(view) and "unknown layer" in wb.error
        view.desk.act(setattr, wb, "sparsity", 1.5)  # out of the parameter's bounds
        assert "alert" in words(view) and wb.sparsity == 0.5
        view.desk.act(wb.next_layer)
        assert "alert" not in words(view)
    finally:
        view.close()


def test_prune_tells_its_progress_and_fills_the_table(view: View, wb: Workbench) -> None:
    prune, cancel = part(view, w.Button, description="Prune"), part(view, w.Button, description="Cancel")
    assert "Press Prune" in words(view) and cancel.disabled
    prune.click()
    assert wb.wait(120).state == "done"
    assert eventually(lambda: "mpviz-table" in words(view) and not prune.disabled)
    # painted by callbacks of other threads: on a busy machine they come one after another
    assert eventually(lambda: "331\u202f776" in words(view) and "prune is done" in words(view) and cancel.disabled)
    assert "pruned at 50\u202f%, β 1.25, test" in words(view)
    assert eventually(lambda: "mpviz-table mpviz-old" not in words(view))
    slider(view, "β").value = 0.75  # as many weights as before, but others
    assert eventually(lambda: "moved since" in words(view) and "mpviz-table mpviz-old" in words(view))
    slider(view, "β").value = 1.25
    assert eventually(lambda: "moved since" not in words(view))
    wb.split = "calibration"
    assert eventually(lambda: "moved since" in words(view))
    wb.split = "test"


def test_single_panels_stand_alone_on_the_same_state(wb: Workbench) -> None:
    views = [make(wb) for make in (strip_view, spectrum_view, budget_view, coverage_view)]
    try:
        assert [len(parts(view, Figure)) for view in views] == [1, 1, 1, 1]
        part(views[1], w.Button, tooltip="Next layer").click()
        assert eventually(lambda: parts(views[0], Figure)[0].picture["layout"]["shapes"][0]["x0"] == 0.5)
        slider(views[3], "sparsity, %").value = 40.0
        assert eventually(lambda: slider(views[2], "sparsity, %").value == 40.0)
    finally:
        for view in views:
            view.close()


def test_a_closed_view_follows_no_more(wb: Workbench) -> None:
    def watchers() -> int:
        return len(wb.param.watchers["sparsity"]["value"])

    before = watchers()
    view = budget_view(wb)
    assert watchers() == before + 1
    figure = parts(view, Figure)[0]
    view.close()
    shown = figure.picture
    wb.sparsity = 0.8
    time.sleep(0.2)
    assert watchers() == before and figure.picture == shown
    assert eventually(lambda: not view.desk._thread.is_alive())


def test_changes_from_many_threads_end_in_the_newest(wb: Workbench) -> None:
    view = budget_view(wb, theme="light")
    figure = parts(view, Figure)[0]

    def slide(start: int) -> None:
        for step in range(15):
            wb.sparsity = (start + step) / 100

    try:
        threads = [threading.Thread(target=slide, args=(10 * i + 5,)) for i in range(5)]
        for thread in threads:
            thread.start()
        for value in range(20, 40):  # a hand on the slider meanwhile
            slider(view, "sparsity, %").value = float(value)
        for thread in threads:
            thread.join()
        expected = figures.budgets(wb.budgets, wb.layer)["data"][0]["y"]
        assert eventually(lambda: figure.picture["data"][0]["y"] == expected)
        assert eventually(lambda: slider(view, "sparsity, %").value == round(100 * wb.sparsity, 4))
    finally:
        view.close()


def test_a_storm_of_changes_is_painted_few_times(wb: Workbench) -> None:
    painted: list[float] = []
    desk = Desk(wb)
    desk.paint(("job",), lambda: painted.append(wb.job.progress))
    desk.start()
    try:
        for i in range(500):
            wb.job = JobStatus("test", "running", i / 500)
        wb.job = JobStatus("test", "done", 1.0)
        assert eventually(lambda: painted[-1] == 1.0)
        assert len(painted) < 100
    finally:
        desk.close()
        wb.job = JobStatus()


def test_a_painting_does_not_wait_for_the_state_s_lock(wb: Workbench) -> None:
    view = budget_view(wb)
    try:
        with wb._lock:  # a job's thread holds it for a moment
            mover = threading.Thread(target=view.desk.flush)
            mover.start()
            mover.join(5)
            assert not mover.is_alive()
    finally:
        view.close()


def test_the_look_follows_the_page_unless_it_is_chosen(wb: Workbench) -> None:
    following, fixed = strip_view(wb), strip_view(wb, theme="light")
    try:
        shelf().dark = True
        dark, light = (figures.strip(wb.table, theme=theme)["layout"]["paper_bgcolor"] for theme in ("dark", "light"))
        assert eventually(lambda: parts(following, Figure)[0].picture["layout"]["paper_bgcolor"] == dark)
        assert parts(fixed, Figure)[0].picture["layout"]["paper_bgcolor"] == light
    finally:
        shelf().dark = False
        following.close()
        fixed.close()


def test_one_panel_that_cannot_be_drawn_leaves_the_others_alone(wb: Workbench) -> None:
    view = budget_view(wb)
    desk, broken = view.desk, [False]

    def draw() -> None:
        if broken[0]:
            raise RuntimeError(ATTACK)

    try:
        desk.paint(("sparsity",), draw)
        broken[0] = True
        slider(view, "sparsity, %").value = 61.0
        assert parts(view, Figure)[0].picture["data"][0]["y"] == (100 * wb.budgets["sparsity"]).tolist()
        assert eventually(lambda: "could not be drawn" in words(view)) and "<script" not in words(view)
        broken[0] = False
        slider(view, "sparsity, %").value = 62.0
        assert eventually(lambda: "could not be drawn" not in words(view))
    finally:
        view.close()


def test_the_panels_follow_another_network(wb: Workbench) -> None:
    view = workbench_view(wb)
    strip = parts(view, Figure)[0]
    before = strip.picture
    try:
        assert wb.open("fashion-mlp-l1").wait(120).state == "done"
        assert eventually(lambda: "fashion-mlp-l1" in words(view) and strip.picture != before)
        assert wb.open("fashion-mlp").wait(120).state == "done"
        assert eventually(lambda: "fashion-mlp-l1" not in words(view))
    finally:
        view.close()


def test_every_control_has_a_tooltip(view: View) -> None:
    for kind in (w.Button, w.ToggleButton, w.FloatSlider, w.Dropdown):
        for control in parts(view, kind):
            assert control.tooltip, control
    for choice in parts(view, w.ToggleButtons):
        assert len(choice.tooltips) == len(choice.options)


def test_the_workbench_displays_itself(wb: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[View] = []

    def make(workbench: Workbench) -> View:
        shown.append(workbench_view(workbench))
        return shown[0]

    monkeypatch.setattr("mpviz.ui.widgets.workbench_view", make)
    bundle = DisplayFormatter().format(wb)[0]
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == shown[0].model_id
    shown[0].close()


# --- the words --------------------------------------------------------------------------------------------------------


def comparison(*rows: tuple[Any, ...]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=["quantity", "dense", "pruned", "tier"])


def test_the_table_escapes_and_tells_shares_from_counts() -> None:
    frame = comparison((ATTACK, 0.9, 0.897, "measured"), ("prunable weights", 1000.0, 500.0, "measured"))
    html = page.comparison_table(frame, "light")
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "(−0.3)" in html and "1\u202f000" in html and html.count("mp-chip") == 1
    assert "mpviz-old" not in html and "mpviz-old" in page.comparison_table(frame, "light", current=False)
    frame = comparison(
        ("test accuracy, 10000 images", 0.9, 0.9, "measured"), ("certified unchanged", 1, 0.9, "measured")
    )
    html = page.comparison_table(frame, "light")
    assert ">test\u00a0accuracy,<br>10\u202f000\u00a0images<" in html and ">certified unchanged<" in html


def test_rows_of_different_tiers_each_have_their_chip() -> None:
    frame = comparison(("accuracy", 0.9, 0.9, "measured"), ("certified", 1.0, 0.8, "bound"))
    assert page.comparison_table(frame, "dark").count("mp-chip") == 2
    assert "Press Prune" in page.comparison_table(None, "light")


def test_lines_are_escaped() -> None:
    info = {"dense_accuracy": 0.9, "device": ATTACK, "versions": ATTACK, "data": f"'{ATTACK}'"}
    status = page.status_line(ATTACK, ATTACK, info)
    job = page.job_line(JobStatus("x", "running", 0.5, ATTACK, 12.0))
    assert "on 1\u202f000 test images" in page.status_line("m", "d", info, 1000, "test")
    for html in (status, job, page.error_line(ATTACK)):
        assert "<script" not in html
    assert "title='&#39;" in page.status_line("m", "d", {"data": "'quoted"})
    assert "12 s left" in job
    assert page.error_line("") == "" and "A word. Nothing" in page.error_line("a word")


def test_compact_leaves_no_title_cut_off(wb: Workbench) -> None:
    layout = figures.strip(wb.table)["layout"]
    compact(layout, 120)
    assert layout["height"] == 120 and layout["margin"]["t"] >= layout["title"]["pad"]["b"] + 13
