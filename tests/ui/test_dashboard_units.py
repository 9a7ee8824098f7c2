"""The dashboard without a browser: its words, its repaints, and what its controls do to the state."""

import asyncio
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest

from mpviz.errors import MpvizError
from mpviz.ui import dashboard, dashboard_paint, dashboard_words, theme
from mpviz.ui.dashboard_parts import Bridge, page_parts, words
from mpviz.ui.dashboard_session import Session
from mpviz.workbench.views import CurveView, JobStatus

HOSTILE = "<img src=x onerror=alert(1)>"


# ---- words -------------------------------------------------------------------------------------------------------


def comparison(quantity="accuracy, 10000 test images", tier="measured"):
    rows = [(quantity, 0.906, 0.90299, tier), ("nonzero parameters", 669706.0, 337930.0, "measured")]
    return pd.DataFrame(rows, columns=["quantity", "dense", "pruned", "tier"])


def test_before_and_after_shows_shares_in_percent_and_counts_as_counts():
    html = dashboard_words.comparison_html(comparison())
    cells = re.findall(r"<td>(.*?)</td>", html)
    assert cells == ["90.6\u202f%", "90.3\u202f%", "669\u202f706", "337\u202f930"]
    assert html.count("class='chip measured'") == 2
    assert dashboard_words.comparison_html(None) == dashboard_words.EMPTY_COMPARISON


def test_a_number_that_is_not_there_is_a_dash():
    table = comparison()
    table.loc[0, "pruned"] = np.nan
    assert "<td>–</td>" in dashboard_words.comparison_html(table)


@pytest.mark.parametrize(
    "html",
    [
        dashboard_words.alert_html(HOSTILE),
        dashboard_words.status_html(JobStatus("load", "running", 0.5, HOSTILE)),
        dashboard_words.status_html(JobStatus("load", "done", 1.0, HOSTILE)),
        dashboard_words.comparison_html(comparison(HOSTILE, HOSTILE)),
        dashboard_words.footer_html(JobStatus(HOSTILE, "done"), {"device": HOSTILE, "data": HOSTILE}, HOSTILE),
        dashboard_words.dense_html({"dense_accuracy": 0.9}, 1000, HOSTILE),
    ],
)
def test_outside_text_is_escaped(html):
    assert "<img" not in html and "&lt;img" in html
    assert "onerror" in words(html).sanitize_hook(html), "the sanitizer must not eat escaped text"


def test_the_sanitizer_is_a_second_lock():
    pane = words("")
    clean = pane.sanitize_hook(f"<p class='quiet' onclick='x()'>a{HOSTILE}<script>alert(1)</script></p>")
    assert pane.sanitize_html and clean == '<p class="quiet">a</p>'
    kept = "<progress max='1' value='0.250'></progress>"
    assert "0.250" in pane.sanitize_hook(kept)


def test_the_status_says_what_is_done_and_how_long_it_takes():
    running = dashboard_words.status_html(JobStatus("prune", "running", 0.25, "dense network", 200.0))
    assert "value='0.250'" in running and "dense network, about 3 min 20 s left" in running
    assert "value" not in dashboard_words.status_html(JobStatus("load", "running", 0.0, "loading"))
    assert dashboard_words.status_html(JobStatus()) == ""
    failed = dashboard_words.status_html(JobStatus("load", "failed", 0.1, "a long sentence"))
    assert "load failed" in failed and "sentence" not in failed


def test_the_footer_names_mpviz_once():
    line = dashboard_words.footer_html(JobStatus(), {"versions": "torch 2.13.0 · mpviz 0.1.0"}, "0.1.0")
    assert line.count("mpviz") == 1
    assert "mpviz 0.1.0" in dashboard_words.footer_html(JobStatus(), {}, "0.1.0")


def test_the_footer_says_how_far_the_curve_is():
    nothing = np.full(21, np.nan)
    some = nothing.copy()
    some[:3] = 0.9
    view = CurveView(np.linspace(0, 1, 21), some, nothing, nothing)
    assert "curve: 3 of 21 positions" in dashboard_words.footer_html(JobStatus(), {}, "0.1.0", view)
    view = CurveView(np.linspace(0, 1, 21), np.ones(21), nothing, nothing)
    assert "curve" not in dashboard_words.footer_html(JobStatus(), {}, "0.1.0", view)


def test_all_colours_of_the_page_come_from_the_theme():
    css = dashboard_words.page_css()
    rules = dashboard_words.read_page_file(".css") + dashboard_words.read_page_file("_widgets.css")
    assert not re.search(r"#[0-9a-fA-F]{3,8}\b", rules)
    for palette in theme.THEMES.values():
        assert f"--paper:{palette.paper};" in css and f"--measured-text:{palette.measured.text};" in css
    used = set(re.findall(r"var\(--([a-z-]+)", rules)) - {"slider"}
    known = set(re.findall(r"--([a-z-]+):", css)) | {"color"}
    assert used <= known


def test_the_template_places_every_part_and_asks_for_no_other():
    parts = page_parts("fashion-mlp", "fashion-mnist", with_report=True)
    html = dashboard_words.read_page_file(".html")
    placed = set(re.findall(r"roots\.(\w+)", html)) | set(re.findall(r'field\("(\w+)"', html))
    assert placed == set(parts)
    assert "report" not in page_parts("fashion-mlp", "fashion-mnist", with_report=False)
    assert not re.search(r"https?://", html + dashboard_words.read_page_file(".js"))


# ---- repaints ----------------------------------------------------------------------------------------------------


class Document:
    """Keeps callbacks for later, as a server that is busy does."""

    def __init__(self):
        self.waiting = []

    def add_next_tick_callback(self, callback):
        self.waiting.append((threading.current_thread(), callback))


def test_many_changes_from_many_threads_make_one_repaint_on_the_loop(monkeypatch):
    monkeypatch.setattr("panel.io.hold", lambda document: __import__("contextlib").nullcontext())
    painted = []

    async def scene():
        document = Document()
        bridge = Bridge(document, painted.append)
        threads = [threading.Thread(target=bridge.mark, args=(["curve", f"t{i}"],)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        await asyncio.sleep(0.01)
        assert [thread for thread, _ in document.waiting] == [threading.current_thread()]
        document.waiting.pop()[1]()
        bridge.mark(["later"])
        await asyncio.sleep(0.01)
        assert len(document.waiting) == 1
        bridge.close()
        document.waiting.pop()[1]()
        bridge.mark(["after the end"])
        await asyncio.sleep(0.01)
        assert not document.waiting

    asyncio.run(scene())
    assert painted == [{"curve", *(f"t{i}" for i in range(20))}]


def test_a_repaint_after_the_server_has_ended_is_no_error():
    loop = asyncio.new_event_loop()

    async def make():
        return Bridge(Document(), lambda changed: None)

    bridge = loop.run_until_complete(make())
    loop.close()
    bridge.mark(["curve"])


def test_every_output_of_the_state_is_drawn_somewhere():
    from mpviz.workbench.state import Workbench

    outputs = set(Workbench.param) - {"name"}
    assert outputs - dashboard_paint.EVERYTHING == set()
    assert dashboard_paint.EVERYTHING - outputs == {"theme"}


# ---- a session ---------------------------------------------------------------------------------------------------


def until(true, seconds=60.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def loaded():
    """A session whose network is loaded, painting at once since it has no document."""
    session = Session("fashion-mlp", report=lambda wb: f"<p>{wb.model}</p>")
    session.open()
    until(lambda: session.wb is not None)
    session.wb.samples = 200
    assert session.wb.wait_preview()
    yield session
    session.close()


@pytest.fixture
def session(loaded):
    wb = loaded.wb
    wb.param.update(sparsity=0.5, beta=1.25, beta_mlp=None, locked=[], layer="features.fc1.weight", error="")
    loaded._dismiss()
    return loaded


def title(session, figure):
    return session.roots[figure].object["layout"]["title"]["text"]


def test_before_the_network_the_page_is_there_and_waits():
    session = Session("fashion-mlp")
    assert all(session.roots[name].disabled for name in ("sparsity", "prune", "lock", "recipe", "checkpoint"))
    assert "report" not in session.roots
    session.close()


def test_a_slider_moves_the_state_and_only_the_figures_that_follow(session):
    before = {name: session.roots[name].object for name in ("strip", "spectrum", "budgets", "coverage")}
    session.roots["sparsity"].value = 0.3
    assert session.wb.sparsity == 0.3
    assert "30\u202f% removed" in title(session, "budgets")
    changed = {name for name, figure in before.items() if session.roots[name].object is not figure}
    assert changed == {"budgets", "coverage"}
    assert session.roots["coverage"].object["layout"]["shapes"][0]["x0"] == pytest.approx(30)


def test_the_line_follows_the_slider_where_nothing_is_measured_yet(session):
    curve = session.wb.curve
    nothing = np.full(21, np.nan)
    session.wb.curve = CurveView(curve.positions, nothing, nothing, nothing)
    layout = session.roots["coverage"].object["layout"]
    session.wb.curve = curve
    assert layout["shapes"][0]["x0"] == pytest.approx(50) and "nan" not in str(layout["title"])


@pytest.mark.timing
def test_a_step_computes_in_20_milliseconds(session):
    times = []
    for i in range(40):
        start = time.thread_time()  # of this thread: the preview measures beside it
        session.roots["sparsity"].value = 0.4 + 0.01 * (i % 20)
        times.append(1000 * (time.thread_time() - start))
    print(f"slider step, budgets and both figures: median {np.median(times):.1f} ms, worst {max(times):.1f} ms")
    assert np.median(times) < 20


def test_a_click_selects_a_layer(session):
    session.roots["strip"].click_data = {"points": [{"customdata": "features.fc2.weight"}]}
    assert session.wb.layer == session.roots["layer"].value == "features.fc2.weight"
    assert title(session, "spectrum").startswith("<b>features.fc2</b>")
    session.roots["strip"].click_data = {"points": [{"x": 3}]}
    assert session.wb.layer == "features.fc2.weight"


def test_buttons_walk_through_the_layers(session):
    session.roots["next"].clicks += 1
    assert session.wb.layer == "features.fc2.weight"
    session.roots["previous"].clicks += 1
    session.roots["previous"].clicks += 1
    assert session.wb.layer == "head.weight"
    assert session.roots["lock"].disabled and "not prunable" in session.roots["lock"].label


def test_the_line_of_the_curve_can_be_dragged_and_its_points_clicked(session):
    session.roots["coverage"].relayout_data = {"shapes[0].x0": 61.23, "shapes[0].y0": 0.2}
    assert session.wb.sparsity == 0.61
    first = session.roots["coverage"].object["layout"]
    session.roots["coverage"].relayout_data = {"shapes[0].x0": 61.4}
    assert session.roots["coverage"].object["layout"]["editrevision"] != first["editrevision"]
    session.roots["coverage"].relayout_data = {"shapes[0].x0": 130.0}
    assert session.wb.sparsity == 0.99
    session.roots["coverage"].click_data = {"points": [{"customdata": 0.35}]}
    assert session.wb.sparsity == session.roots["sparsity"].value == 0.35
    session.roots["coverage"].relayout_data = {"xaxis.range": [0, 1]}
    assert session.wb.sparsity == 0.35


def test_a_role_can_have_its_own_beta(session):
    roots = session.roots
    assert roots["same_mlp"].value and roots["beta_mlp"].disabled and session.wb.beta_mlp is None
    roots["beta"].value = 0.75
    assert roots["beta_mlp"].value == 0.75 and session.wb.beta_mlp is None
    roots["same_mlp"].value = False
    assert session.wb.beta_mlp == 0.75 and not roots["beta_mlp"].disabled
    roots["beta_mlp"].value = 2.0
    assert session.wb.beta_mlp == 2.0 and session.wb.beta == 0.75
    roots["same_mlp"].value = True
    assert session.wb.beta_mlp is None and roots["beta_mlp"].value == 0.75
    assert roots["same_attention"].disabled, "this network has no attention"


def test_a_layer_can_be_locked(session):
    session.wb.sparsity = 0.2
    session.roots["lock"].value = True
    assert session.wb.locked == ["features.fc1.weight"]
    assert session.wb.budgets.loc["features.fc1.weight", "removed"] == 0
    session.wb.next_layer()
    assert session.roots["lock"].value is False
    session.wb.previous_layer()
    session.roots["lock"].value = False
    assert session.wb.locked == []


def test_what_the_state_refuses_is_said_and_taken_back(session):
    session.wb.locked = ["features.fc1.weight", "features.fc2.weight"]
    assert "role='alert'" in session.roots["alert"].object and session.roots["alert"].css_classes == ["shown"]
    assert session.wb.locked == [] and session.roots["lock"].value is False
    session.wb.sparsity = 0.3
    assert session.roots["alert"].object == "" and session.roots["alert"].css_classes == []
    session._set("sparsity", 1.5)
    assert "role='alert'" in session.roots["alert"].object
    assert session.roots["sparsity"].value == session.wb.sparsity == 0.3
    session.roots["dismiss"].clicks += 1
    assert session.roots["alert"].object == ""


def test_an_emptied_number_field_takes_back_its_value(session):
    session.roots["samples"].value = None
    assert session.roots["samples"].value == session.wb.samples == 200


def test_an_unknown_network_leaves_everything_as_it_was(session):
    session.roots["other"].value_input = "fashion-mpl"
    session.roots["open"].clicks += 1
    session.wb.wait(60)
    until(lambda: not session.roots["open"].disabled)
    assert "did you mean" in session.roots["alert"].object
    assert session.wb.model == session.roots["model"].value == "fashion-mlp"
    assert not session.roots["sparsity"].disabled


def test_dark_figures_on_a_dark_page(session):
    session.roots["theme"].value = True
    papers = {session.roots[n].object["layout"]["paper_bgcolor"] for n in ("strip", "spectrum", "coverage", "budgets")}
    session.roots["theme"].value = False
    assert papers == {theme.DARK.paper}


def test_pruning_fills_the_table_and_the_files_can_be_taken_away(session, tmp_path):
    session.roots["prune"].clicks += 1
    session.wb.wait(120)
    until(lambda: not session.roots["checkpoint"].disabled)
    assert "<table>" in session.roots["comparison"].object
    recipe = asyncio.run(session.roots["recipe"].callback()).read().decode()
    assert recipe == session.wb.export_recipe()
    assert asyncio.run(session.roots["report"].callback()).read() == b"<p>fashion-mlp</p>"
    import mpviz as mp

    (tmp_path / "pruned.safetensors").write_bytes(asyncio.run(session.roots["checkpoint"].callback()).read())
    assert mp.load(tmp_path / "pruned.safetensors").masks


def test_a_file_that_cannot_be_made_is_an_error_on_the_page(session, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(session.wb), "save", full)
    assert asyncio.run(session.roots["checkpoint"].callback()) is None
    assert "No space left" in session.roots["alert"].object


def test_a_first_network_that_cannot_be_loaded_leaves_the_page_usable():
    session = Session("no-such-network")
    session.open()
    until(lambda: session.job.state == "failed")
    until(lambda: session.roots["alert"].object != "")
    assert "no-such-network" in session.roots["alert"].object
    until(lambda: not session.roots["model"].disabled)
    assert session.roots["strip"].object["layout"]["annotations"][0]["text"].startswith("No network yet")
    session.roots["model"].value = "fashion-mlp"
    until(lambda: session.wb is not None)
    assert session.wb.model == "fashion-mlp"
    assert session.roots["alert"].object == ""
    session.close()


# ---- the server --------------------------------------------------------------------------------------------------


def test_a_taken_port_is_a_sentence(free_port):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        with pytest.raises(MpvizError, match=r"cannot serve on 127\.0\.0\.1:\d+ .*another port"):
            dashboard.serve(port=taken.getsockname()[1], address="127.0.0.1")


def test_neither_torch_nor_the_report_is_imported_for_the_page():
    unwanted = ("torch", "mpviz.ui.report", "ipywidgets")
    code = f"import sys, mpviz.ui.dashboard; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
