"""The dashboard without a browser: its words, its repaints, and what its controls do to the state."""

import asyncio
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mpviz.errors import MpvizError
from mpviz.ui import dashboard, dashboard_paint, dashboard_words, theme
from mpviz.ui.dashboard_bridge import Bridge
from mpviz.ui.dashboard_parts import page_parts, words
from mpviz.ui.dashboard_session import Session
from mpviz.ui.takeaway import FIGURES, TABLES
from mpviz.workbench.views import CurveView, JobStatus

HOSTILE = "<img src=x onerror=alert(1)>"


# ---- words -------------------------------------------------------------------------------------------------------


def comparison(quantity="test accuracy, 10000 images", tier="measured"):
    rows = [(quantity, 0.906, 0.90299, tier), ("nonzero parameters", 669706.0, 337930.0, "measured")]
    return pd.DataFrame(rows, columns=["quantity", "dense", "pruned", "tier"])


def test_before_and_after_shows_shares_in_percent_and_counts_as_counts():
    html = dashboard_words.comparison_html(comparison())
    cells = re.findall(r"<td>(.*?)</td>", html.partition("<tbody>")[2])
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
    half = np.where(np.arange(21) < 10, 0.9, np.nan)
    curve = CurveView(np.linspace(0, 1, 21), half, half, half)
    assert "measuring coverage: 10 of 21 positions" in dashboard_words.status_html(JobStatus(), curve)
    assert "10 of 21" not in dashboard_words.status_html(JobStatus("prune", "running", 0.2, "dense network"), curve)
    whole = replace(curve, coverage=np.ones(21))
    assert dashboard_words.status_html(JobStatus("prune", "done", 1.0, "prune finished"), whole).count("progress") == 0
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
    assert "measuring coverage: 3 of 21" in dashboard_words.footer_html(JobStatus(), {}, "0.1.0", view)
    limited = replace(view, limit=0.1)  # locked layers hold the rest
    assert view.positions[:3].tolist() == [0, 0.05, 0.1]
    words = dashboard_words.footer_html(JobStatus(), {}, "0.1.0", limited)
    assert "measuring" not in words and "locked layers let 10\u202f% go at most" in words
    old = replace(view, coverage=np.ones(21), stale=True)
    assert "measuring coverage: 0 of 21" in dashboard_words.footer_html(JobStatus(), {}, "0.1.0", old)
    view = CurveView(np.linspace(0, 1, 21), np.ones(21), nothing, nothing)
    assert "measuring" not in dashboard_words.footer_html(JobStatus(), {}, "0.1.0", view)


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
    menus = {(what, form.lower()) for what, forms in re.findall(r'take\("(\w+)", ([^)]*)\)', html)
             for form in re.findall(r'"(\w+)"', forms)}  # fmt: skip
    pictures, files = (
        ("png", "svg"),
        {(w, "html") for w in FIGURES} | {(w, f) for w in TABLES for f in ("csv", "parquet")},
    )
    assert {(what, form) for what, form in menus if form not in pictures} <= files
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
    assert dashboard_paint.EVERYTHING - outputs == {"theme", "lower", "right"}  # of the page alone


# ---- a session ---------------------------------------------------------------------------------------------------


def until(true, seconds=180.0):
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
    wb.param.update(view="histogram", shuffled=False, split="test", samples=200)
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


def test_before_and_after_says_with_what_it_was_measured_and_when_that_is_over(session):
    session.wb.prune().wait(120)
    until(lambda: "pruned at 50\u202f%, β 1.25, test" in session.roots["comparison"].object)
    assert "class='old'" not in session.roots["comparison"].object
    changes = ({"beta": 0.5}, {"sparsity": 0.6}, {"signal": "alpha"}, {"split": "calibration"}, {"decay_end": 0.9})
    for change in changes:
        name = next(iter(change))
        before = getattr(session.wb, name)
        session.wb.change(**change)
        assert "settings have moved since" in session.roots["comparison"].object, change
        assert "class='old'" in session.roots["comparison"].object
        session.wb.change(**{name: before})
        assert "moved since" not in session.roots["comparison"].object, change


def test_a_slider_moved_while_pruning_runs_is_told_at_its_end(session):
    job = session.wb.prune()
    session.wb.sparsity = 0.2
    job.wait(120)
    until(lambda: "pruned at 50\u202f%" in session.roots["comparison"].object)
    assert "settings have moved since" in session.roots["comparison"].object


def test_float_noise_of_a_slider_reaches_no_sentence(session):
    session.wb.locked = ["features.fc2.weight"]
    session.roots["sparsity"].value = 0.1 + 0.2
    assert session.wb.plan.sparsity == 0.3
    session.wb.change(sparsity=0.7000000000000001, locked=["features.fc1.weight"])
    words = session.roots["alert"].object
    assert "sparsity 0.7 removes" in words and "0.700000" not in words and re.search(r"removes \d+\u202f\d{3} ", words)


def test_images_are_kept_within_the_split_and_it_is_said(session):
    field = session.roots["samples"]
    for typed, kept in ((0, 1), (-5, 1), (99_999_999, session.wb.available), (200, 200)):
        session._dismiss()
        field.value = typed
        assert session.wb.samples == field.value == kept
        assert ("images asked for" in session.roots["alert"].object) == (typed != kept)


def test_a_double_click_sets_a_slider_back(session):
    courier = session.roots["courier"]
    session.wb.change(sparsity=0.23, beta=2.0, beta_mlp=2.5)
    for i, name in enumerate(("sparsity", "beta", "beta_mlp", "locked", "no such")):
        courier.said = {"what": name, "form": "reset", "times": i}
    assert (session.wb.sparsity, session.wb.beta, session.wb.beta_mlp) == (0.5, 1.25, 1.25)
    assert session.roots["sparsity"].value == 0.5


# ---- views, tables, files ----------------------------------------------------------------------------------------


def test_the_spectrum_can_be_looked_at_in_four_ways(session):
    revisions = set()
    for name in ("distribution", "quantiles", "tail", "histogram"):
        session.roots["view"].value = name
        assert session.wb.view == name and session.roots["log_y"].disabled == (name != "histogram")
        revisions.add(session.roots["spectrum"].object["layout"]["uirevision"])
    assert len(revisions) == 4
    session.roots["shuffled"].value = True
    assert session.wb.wait_shuffled()
    outline = {t["name"]: t for t in session.roots["spectrum"].object["data"]}["shuffled entries"]
    assert len(outline["x"]) > 10
    session.roots["shuffled"].value = False
    outline = {t["name"]: t for t in session.roots["spectrum"].object["data"]}["shuffled entries"]
    assert outline["x"] == []


def test_only_the_table_that_is_seen_follows_the_sliders(session):
    table, before = session.roots["layers"], session.roots["budgets"].object
    assert table.ids == session.wb.layers and table.live == {}
    session.roots["lower"].value = "layers"
    shown = table.live["sparsity"]["text"]
    session.roots["sparsity"].value = 0.3
    assert table.live["sparsity"]["text"] != shown and session.roots["budgets"].object is before
    cells = table.cells
    session.wb.next_layer()
    assert table.selected == session.wb.layer and table.cells is cells
    session.roots["lower"].value = "spikes"
    assert len(session.roots["spikes"].ids) == session.wb.spectrum.n_spikes > 0
    session.roots["lower"].value = "budgets"
    assert "30\u202f% removed" in title(session, "budgets")


def test_rows_of_the_table_select_and_lock(session):
    said = session.roots["layers"]
    session.wb.sparsity = 0.2
    said.said = {"what": "pick", "row": "features.fc2.weight", "times": 1}
    assert session.wb.layer == "features.fc2.weight"
    said.said = {"what": "lock", "row": "features.fc1.weight", "times": 2}
    assert session.wb.locked == ["features.fc1.weight"]
    said.said = {"what": "lock", "row": "features.fc1.weight", "times": 3}
    assert session.wb.locked == []
    said.said = {"what": "pick", "row": HOSTILE, "times": 4}
    assert "unknown layer" in session.roots["alert"].object and "<img" not in session.roots["alert"].object


def test_files_go_to_the_part_of_the_page_that_asked(session, monkeypatch):
    sent = []
    for name in ("layers", "spikes", "courier"):
        monkeypatch.setattr(session.roots[name], "send", lambda message, name=name: sent.append((name, message)))
    session.roots["layers"].said = {"what": "csv", "row": "", "times": 10}
    session.roots["spikes"].said = {"what": "parquet", "row": "", "times": 10}
    session.roots["courier"].said = {"what": "coverage", "form": "html", "times": 10}
    session.roots["courier"].said = {"what": "curve", "form": "csv", "times": 11}
    assert [(name, message["name"]) for name, message in sent] == [
        ("layers", "fashion-mlp-layers.csv"),
        ("spikes", "fashion-mlp-features.fc1.weight-spikes.parquet"),
        ("courier", "fashion-mlp-coverage.html"),
        ("courier", "fashion-mlp-curve.csv"),
    ]
    session.roots["courier"].said = {"what": "../../etc/passwd", "form": "csv", "times": 12}
    assert "no table is called" in session.roots["alert"].object and len(sent) == 4


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


def test_prove_shows_what_is_proved_and_why_one_sample_is_not(loaded):
    session = loaded
    session.roots["samples"].value = 100
    session.roots["prove"].clicks += 1
    until(lambda: session.wb.proofs is not None and not session.wb.job.busy)
    assert session.roots["right"].value == "tiers"
    # painted by the job's own thread
    until(lambda: {"slider", "path", "unchanged"} <= {one["name"] for one in session.roots["proofs"].object["data"]})
    session.roots["right"].value = "margins"
    flipped = int(np.flatnonzero(session.wb.proofs.samples.changed)[0])
    session.roots["sample_rows"].said = {"what": "pick", "row": str(flipped), "times": "1"}
    until(lambda: "The prediction changed" in session.roots["why"].object)
    session.roots["lower"].value = "samples"
    assert session.roots["sample_rows"].selected == str(flipped)
    assert len(session.roots["sample_rows"].ids) == 100
    session.roots["sample_rows"].said = {"what": "pick", "row": "<b>", "times": "2"}
    assert session.wb.sample == flipped
    session.roots["sparsity"].value = 0.31
    until(lambda: "older plan" in session.roots["proofs"].object["layout"]["title"]["text"])


def test_tiers_are_switched_one_by_one(loaded):
    session = loaded
    session.roots["right"].value = "cards"
    assert "Every mask between two sparsities" not in session.roots["cards"].object
    session.roots["tiers"].value = ["bracket"]
    assert session.wb.tiers == ["bracket"]
    assert "Every mask between two sparsities" in session.roots["cards"].object
    assert "Every position" not in session.roots["cards"].object
    session.wb.tiers = []
    assert session.roots["tiers"].value == []
    assert "Switch a tier on" in session.roots["cards"].object


def test_precompute_makes_the_tables(loaded, tmp_path, monkeypatch):
    monkeypatch.setenv("MPVIZ_CACHE", str(tmp_path))
    session = loaded
    session.wb.samples = 60
    session.roots["precompute"].clicks += 1
    until(lambda: session.job.name == "precompute" and not session.job.busy)
    assert session.job.state == "done"
    assert session.roots["precompute"].disabled is False


def test_the_reasons_of_a_tier_without_proof_are_escaped():
    from tests.ui.test_certificate_figures import make

    view = replace(make(proved=False), why={"slider": "no proved bound: <script>"}, scope_why="<b>deep</b>")
    said = dashboard_words.why_html(view, "tiers", 0, ["slider"])
    assert "<script>" not in said
    assert "&lt;script&gt;" in said
    assert "&lt;b&gt;deep" in said
    assert dashboard_words.why_html(None, "tiers", None, []) == ""
    assert "script" not in dashboard_words.why_html(view, "tiers", 0, ["path"])
