"""The figures as data: what is drawn, in which colour, over which numbers."""

import itertools
import json
import math
import subprocess
import sys
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest

from mpviz.errors import MpvizError
from mpviz.ui import figures, theme
from mpviz.ui._coverage import spread
from mpviz.ui._spectrum import _lines
from mpviz.ui._spectrum_numbers import Window, bins_of, law_line, window_of
from mpviz.workbench.views import CurveView, JobStatus, SpectrumView

HOSTILE = "<script>alert('$x$')</script>.weight"


# ---- plain results, made from the textbook formulas --------------------------------------------------------------


def mp_pdf(aspect, variance, conditional=False):
    """Marchenko–Pastur density, with the atom left out or (conditional) spread over x > 0."""
    low, high = variance * (1 - aspect**0.5) ** 2, variance * (1 + aspect**0.5) ** 2

    def pdf(x):
        x = np.asarray(x, dtype=float)
        inside = (x > low) & (x < high)
        x = np.where(inside, x, 1.0)
        density = np.sqrt(np.where(inside, (high - x) * (x - low), 0.0)) / (2 * np.pi * aspect * variance * x)
        return density * (max(aspect, 1.0) if conditional else 1.0)

    return pdf, (low, high)


@lru_cache
def planted(rows, cols, k, strongest, seed, dead):
    """Eigenvalues of W = S + R with k planted spikes, the strongest this many times the edge."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.05, (rows, cols))
    noise[:dead] = 0
    edge = 0.05 * (rows**0.5 + cols**0.5)
    left = np.linalg.qr(rng.normal(size=(rows, max(k, 1))))[0]
    right = np.linalg.qr(rng.normal(size=(cols, max(k, 1))))[0]
    strengths = np.linspace(strongest, 1.5, k) * edge
    return np.linalg.svd(noise + left[:, :k] * strengths @ right[:, :k].T, compute_uv=False)[::-1] ** 2 / rows


def make_view(rows=256, cols=128, k=6, strongest=3.0, seed=0, conditional=False, dead=0, **changes):
    """A spectrum of known truth, which is also its fit."""
    eigenvalues = changes["eigenvalues"] if "eigenvalues" in changes else planted(rows, cols, k, strongest, seed, dead)
    pdf, edges = mp_pdf(cols / rows, 0.05**2, conditional)
    threshold = 1.03 * edges[1]
    above = eigenvalues[eigenvalues > threshold][::-1]
    values = {
        "layer": "blocks.3.mlp.fc1.weight", "role": "mlp", "shape": (rows, cols), "eigenvalues": eigenvalues,
        "law_pdf": pdf, "edges": edges, "threshold": threshold, "sigma_plus": math.sqrt(rows * edges[1]),
        "n_spikes": len(above), "bulk_fraction": 1 - len(above) / len(eigenvalues), "rigidity": 2.4, "mp_like": True,
        "grade": "good", "verdict": "MP-like",
        "spikes": [
            {"rank": i + 1, "eigenvalue": float(x), "strength": 1.0, "overlap": (0.9, 0.8)} for i, x in enumerate(above)
        ],
    }  # fmt: skip
    return SpectrumView(**(values | changes))


def no_fit(**changes):
    nan = math.nan
    return make_view(
        edges=(nan, nan), threshold=nan, sigma_plus=nan, n_spikes=0, bulk_fraction=nan, rigidity=nan, mp_like=False,
        grade="none", verdict="too few eigenvalues", spikes=[], law_pdf=None, **changes,
    )  # fmt: skip


def make_table(n_blocks=6, first="stem.weight"):
    rng = np.random.default_rng(1)
    roles = {first: ("stem", 32, 9, False)}
    for i in range(n_blocks):
        roles[f"blocks.{i}.attn.qkv.weight"] = ("attention", 384, 128, True)
        roles[f"blocks.{i}.attn.proj.weight"] = ("attention", 128, 128, True)
        roles[f"blocks.{i}.mlp.fc1.weight"] = ("mlp", 512, 128, True)
        roles[f"blocks.{i}.dw.weight"] = ("depthwise", 128, 9, False)
    roles["head.weight"] = ("head", 10, 128, False)
    rows = {}
    for name, (role, n, m, prunable) in roles.items():
        fitted = min(n, m) > 20
        spikes = int(rng.integers(0, 20)) if fitted else 0
        rows[name] = {
            "role": role, "kind": "Linear", "rows": n, "cols": m, "aspect": m / n, "params": n * m,
            "prunable": prunable, "why": "" if prunable else "left out", "variance": 0.1, "lambda_minus": 0.1,
            "lambda_plus": 0.9, "threshold": 1.0, "sigma_plus": 1.5 if fitted else math.nan, "fit_error": 0.01,
            "mp_like": fitted and spikes < 15, "grade": ("good" if spikes < 15 else "poor") if fitted else "none",
            "verdict": "MP-like", "alpha": 3.0, "stable_rank": 5.0,
            "bulk_fraction": 1 - spikes / min(n, m) if fitted else math.nan, "n_spikes": spikes,
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def make_budgets(table, locked=()):
    table = table[table["prunable"]]
    share = np.linspace(0.2, 0.9, len(table))
    lock = np.array([name in locked for name in table.index])
    removed = np.where(lock, 0, (share * table["params"]).astype(int))
    return pd.DataFrame(
        {"role": table["role"], "params": table["params"], "weight": np.where(lock, 0.0, 1.2), "removed": removed,
         "sparsity": removed / table["params"], "locked": lock}
    )  # fmt: skip


def make_curve(measured=21, sparsity=0.5, tier="measured", **changes):
    positions = np.linspace(0, 0.95, 21)
    coverage = 1 - positions**3
    coverage[measured:] = np.nan
    now = {"sparsity": sparsity, "coverage": 0.9, "unchanged": 0.95, "accuracy": 0.88, "tier": tier}
    values = {"positions": positions, "coverage": coverage, "unchanged": np.sqrt(coverage), "accuracy": 0.9 * coverage,
              "current": now, "n_samples": 1000, "split": "test"}  # fmt: skip
    return CurveView(**(values | changes))


FIGURES = {
    "strip": lambda t: figures.strip(make_table(), "blocks.2.mlp.fc1.weight", t),
    "strip, one layer": lambda t: figures.strip(make_table(0).iloc[:1], None, t),
    "strip, empty": lambda t: figures.strip(None, None, t),
    "strip, no rows": lambda t: figures.strip(make_table().iloc[:0], None, t),
    "spectrum": lambda t: figures.spectrum(make_view(), theme=t),
    "spectrum, singular": lambda t: figures.spectrum(make_view(), "singular", theme=t),
    "spectrum, log": lambda t: figures.spectrum(make_view(), log_y=True, theme=t),
    "spectrum, square": lambda t: figures.spectrum(make_view(128, 128), log_y=True, theme=t),
    "spectrum, wide": lambda t: figures.spectrum(make_view(64, 512), "singular", True, t),
    "spectrum, no spikes": lambda t: figures.spectrum(make_view(k=0), theme=t),
    "spectrum, two spikes": lambda t: figures.spectrum(make_view(k=2), theme=t),
    "spectrum, far spike": lambda t: figures.spectrum(make_view(k=1, strongest=60.0), theme=t),
    "spectrum, no fit": lambda t: figures.spectrum(no_fit(), "singular", True, t),
    "spectrum, all zero": lambda t: figures.spectrum(no_fit(eigenvalues=np.zeros(128)), theme=t),
    "spectrum, all equal": lambda t: figures.spectrum(no_fit(eigenvalues=np.ones(128)), theme=t),
    "spectrum, one value": lambda t: figures.spectrum(no_fit(eigenvalues=np.ones(1), shape=(1, 5)), theme=t),
    "spectrum, hostile": lambda t: figures.spectrum(make_view(layer=HOSTILE), theme=t),
    "spectrum, empty": lambda t: figures.spectrum(None, theme=t),
    "budgets": lambda t: figures.budgets(make_budgets(make_table(), ("blocks.1.attn.qkv.weight",)), None, t),
    "budgets, empty": lambda t: figures.budgets(None, None, t),
    "coverage": lambda t: figures.coverage(make_curve(), t),
    "coverage, two points": lambda t: figures.coverage(make_curve(2), t),
    "coverage, none": lambda t: figures.coverage(make_curve(0, current=None), t),
    "coverage, unknown here": lambda t: figures.coverage(
        make_curve(3, current={"sparsity": 0.9, "coverage": math.nan, "tier": "estimate"}), t
    ),
    "coverage, stale": lambda t: figures.coverage(make_curve(stale=True, tier="estimate"), t, draggable=True),
    "coverage, empty": lambda t: figures.coverage(None, t),
}


def trace(figure, name):
    (found,) = [t for t in figure["data"] if t["name"] == name]
    return found


def words(figure) -> str:
    """Every text that the figure shows."""
    layout = figure["layout"]
    said = [layout["title"]["text"], *(note["text"] for note in layout.get("annotations", []))]
    for axis in ("xaxis", "yaxis"):
        said += layout[axis].get("ticktext", [])
    for one in figure["data"]:
        said += one.get("hovertext", [])
    return "\n".join(said)


# ---- what holds for every figure ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_plotly_accepts_it_and_json_can_carry_it(name, colours):
    import plotly.graph_objects as go

    figure = FIGURES[name](colours)
    assert set(figure) == {"data", "layout"}
    go.Figure(figure)  # raises for any attribute that plotly does not know
    assert json.loads(json.dumps(figure, allow_nan=False)) == figure


def leaves(value):
    if isinstance(value, dict):
        for inner in value.values():
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    else:
        yield value


@pytest.mark.parametrize("name", FIGURES)
def test_only_plain_values_inside(name):
    # numpy scalars and short arrays make the browser's echo raise; tuples come back as lists and look like a change
    assert {type(leaf) for leaf in leaves(FIGURES[name]("light"))} <= {str, int, float, bool}


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_input_gives_the_same_dict_with_the_same_traces(name):
    figure = FIGURES[name]("light")
    assert figure == FIGURES[name]("light")
    dark = FIGURES[name]("dark")
    assert [t["type"] for t in figure["data"]] == [t["type"] for t in dark["data"]]
    assert dark["layout"]["paper_bgcolor"] != figure["layout"]["paper_bgcolor"]


def test_a_figure_keeps_its_traces_so_that_it_can_be_updated_in_place():
    for kind in ("strip", "spectrum", "budgets", "coverage"):
        made = [FIGURES[name]("light")["data"] for name in FIGURES if name.startswith(kind)]
        assert len({tuple(t["type"] for t in data) for data in made if data}) == 1, kind


def test_unknown_theme_and_scale_are_refused():
    with pytest.raises(MpvizError, match="unknown theme"):
        figures.strip(make_table(), None, "purple")
    with pytest.raises(MpvizError, match="unknown scale"):
        figures.spectrum(make_view(), "decibel")


def test_hostile_names_are_escaped_wherever_they_are_shown():
    table = make_table(1, first=HOSTILE)
    table["verdict"], table["grade"] = HOSTILE, "poor"
    table.loc[HOSTILE, ["role", "prunable"]] = ["mlp", True]
    made = [
        figures.strip(table, HOSTILE),
        figures.budgets(make_budgets(table), HOSTILE),
        figures.spectrum(make_view(layer=HOSTILE, role=HOSTILE, mp_like=False, grade="poor", verdict=HOSTILE)),
        figures.coverage(make_curve(split=HOSTILE, tier=HOSTILE)),
    ]
    for figure in made:
        assert "<script" not in words(figure) and "$" not in words(figure)
        assert "alert(&#39;" in words(figure)
    # the click's target stays what it is: nobody renders it
    assert HOSTILE in trace(made[0], "layers")["customdata"] and HOSTILE in trace(made[1], "kept")["customdata"]


def test_drawing_needs_no_toolkit_and_no_torch():
    code = (
        "import sys, mpviz.ui.figures, mpviz.ui.tables, mpviz.workbench.views\n"
        "print([m for m in ('torch', 'panel', 'ipywidgets', 'plotly', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- the spectrum ------------------------------------------------------------------------------------------------

SHAPES = [(256, 128), (128, 256), (128, 128), (512, 64)]


@pytest.mark.parametrize("scale", ["eigenvalue", "singular"])
@pytest.mark.parametrize("shape", SHAPES)
def test_bars_have_the_area_of_what_they_show(shape, scale):
    view = make_view(*shape, k=8)
    figure = figures.spectrum(view, scale)
    areas = {name: sum(y * w for y, w in zip(t["y"], t["width"], strict=True))
             for name in ("bulk", "spikes") for t in [figure["data"][name == "spikes"]]}  # fmt: skip
    assert areas["bulk"] == pytest.approx(view.bulk_fraction)
    assert areas["spikes"] == pytest.approx(1 - view.bulk_fraction)
    assert int(bins_of(view, scale).counts.sum()) == len(view.eigenvalues)


@pytest.mark.parametrize("scale", ["eigenvalue", "singular"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_law_has_the_area_of_the_bulk_on_both_scales(shape, scale):
    view = make_view(*shape, k=8)
    x, y = law_line(view, scale)
    assert np.all(np.diff(x) > 0) and np.all(np.isfinite(y))
    # c = 1 on the scale of λ: the density is infinite at 0, and the first piece holds 2/π · √(x₀/λ₊) of the mass
    missing = 4 / np.pi * math.sqrt(x[0] / view.edges[1]) if shape == (128, 128) and scale == "eigenvalue" else 0.0
    assert np.trapezoid(y, x) + missing * view.bulk_fraction == pytest.approx(view.bulk_fraction, rel=0.01)


@pytest.mark.parametrize("shape", [(128, 256), (64, 512)])
def test_the_law_is_the_same_with_and_without_the_atom(shape):
    lines = [law_line(make_view(*shape, conditional=conditional), "singular")[1] for conditional in (False, True)]
    np.testing.assert_allclose(*lines, rtol=1e-12)


def test_the_jacobian_of_the_singular_scale():
    view = make_view(256, 128, k=0)
    x, y = law_line(view, "eigenvalue")
    s, z = law_line(view, "singular")
    np.testing.assert_allclose(s, np.sqrt(256 * x))
    np.testing.assert_allclose(z, y * 2 * s / 256)


def test_the_law_lies_on_the_bars():
    view = make_view(512, 256, k=20)
    for scale in ("eigenvalue", "singular"):
        bins, (x, y) = bins_of(view, scale), law_line(view, scale)
        bulk = ~bins.spike
        middle = bins.left[bulk] + bins.width / 2
        gap = np.abs(np.interp(middle, x, y) - bins.density[bulk])
        assert gap.mean() < 0.12 * bins.density[bulk].mean()


def test_what_lies_beyond_the_threshold_is_orange_and_nothing_else():
    view = make_view(k=6)
    for scale in ("eigenvalue", "singular"):
        figure = figures.spectrum(view, scale)
        cut = view.threshold if scale == "eigenvalue" else math.sqrt(256 * view.threshold)
        bulk, spikes = trace(figure, "bulk"), figure["data"][1]
        assert bulk["marker"]["color"] == theme.LIGHT.bulk.fill and "pattern" not in bulk["marker"]
        assert spikes["marker"]["color"] == theme.LIGHT.spike.fill and "pattern" in spikes["marker"]
        assert all(x + w / 2 <= cut * (1 + 1e-9) for x, w in zip(bulk["x"], bulk["width"], strict=True))
        assert all(x - w / 2 >= cut * (1 - 1e-9) for x, w in zip(spikes["x"], spikes["width"], strict=True))


def test_an_eigenvalue_exactly_at_the_threshold_is_bulk():
    plain = make_view(k=6)
    at = float(plain.eigenvalues[-7])
    bins = bins_of(make_view(k=6, threshold=at), "eigenvalue")
    assert int(bins.counts[bins.spike].sum()) == 6


def test_spikes_are_marked_with_rank_value_strength_and_overlap():
    view = make_view(k=4)
    figure = figures.spectrum(view, "singular")
    (diamonds,) = [t for t in figure["data"] if t.get("marker", {}).get("symbol") == "diamond"]
    assert diamonds["customdata"] == [1, 2, 3, 4]
    assert diamonds["x"] == pytest.approx([math.sqrt(256 * s["eigenvalue"]) for s in view.spikes])
    assert all(word in diamonds["hovertext"][0] for word in ("spike 1", "s = ", "strength 1.00", "overlap 90"))
    assert trace(figure, "rug")["x"] == diamonds["x"]


def test_lines_are_told_apart_without_colour_and_labelled_on_either_side():
    figure = figures.spectrum(make_view())
    edge, threshold = figure["layout"]["shapes"]
    assert (edge["line"]["dash"], threshold["line"]["dash"]) == ("dash", "solid")
    assert edge["line"]["color"] == "#009E73" and threshold["line"]["color"] == "#D55E00"
    left, right = figure["layout"]["annotations"][:2]
    assert (left["xanchor"], right["xanchor"]) == ("right", "left")
    assert "MP edge λ₊" in left["text"] and "Tracy–Widom threshold" in right["text"]
    assert "σ₊" in figures.spectrum(make_view(), "singular")["layout"]["annotations"][0]["text"]


def test_a_far_spike_does_not_squeeze_the_bulk_and_is_counted():
    view = make_view(k=1, strongest=60.0)
    window = window_of(view, "eigenvalue")
    assert window.beyond == 1
    span = view.threshold - view.edges[0]
    assert span > 0.3 * (window.high - window.low)
    figure = figures.spectrum(view)
    assert figure["layout"]["xaxis"]["range"] == [window.low, window.high]
    assert "1 spike further right, at" in words(figure)
    near = window_of(make_view(k=3, strongest=1.6), "singular")
    assert near.beyond == 0


def test_without_a_fit_nothing_pretends_to_be_bulk():
    figure = figures.spectrum(no_fit())
    bars = [t for t in figure["data"] if t["type"] == "bar" and t["y"]]
    assert [t["marker"]["color"] for t in bars] == [theme.LIGHT.neutral.fill]
    assert figure["layout"]["shapes"] == [] and "no MP fit" in words(figure) and "too few eigenvalues" in words(figure)


def test_numerically_zero_eigenvalues_are_left_out_and_said():
    view = make_view(128, 128, k=0, dead=40)
    figure = figures.spectrum(view)
    assert "88 nonzero eigenvalues (40 zero, not drawn)" in words(figure)
    assert int(bins_of(view, "eigenvalue").counts.sum()) == 88


def test_bars_of_a_logarithmic_axis_stand_on_its_floor():
    view = make_view()
    low, high = (figures.spectrum(view, log_y=flag) for flag in (False, True))
    assert high["layout"]["yaxis"]["type"] == "log"
    for plain, log in zip(low["data"][:2], high["data"][:2], strict=True):
        assert plain["base"] == 0 and log["base"] > 0
        assert [y + log["base"] for y in log["y"]] == pytest.approx(plain["y"])
    assert min(trace(high, "Marchenko–Pastur")["y"]) > 0


# ---- the layers --------------------------------------------------------------------------------------------------


def test_the_strip_has_one_clickable_cell_a_layer_in_the_row_of_its_role():
    table = make_table()
    figure = figures.strip(table, "blocks.2.mlp.fc1.weight")
    cells = trace(figure, "layers")
    assert cells["customdata"] == list(table.index) and cells["x"] == list(range(len(table)))
    assert figure["layout"]["yaxis"]["ticktext"] == ["attention", "mlp", "conv", "other"]
    rows = dict(zip(table["role"], cells["base"], strict=True))
    assert rows == {"attention": 3.0, "mlp": 2.0, "depthwise": 1.0, "stem": 0.0, "head": 0.0}
    (frame,) = figure["layout"]["shapes"]
    place = list(table.index).index("blocks.2.mlp.fc1.weight")
    assert (frame["x0"], frame["x1"]) == (place - 0.5, place + 0.5)
    assert figures.strip(table, "nowhere")["layout"]["shapes"] == []


def test_the_strip_stacks_bulk_and_spikes_by_their_shares():
    table = make_table()
    figure = figures.strip(table)
    bulk, spikes, none = (trace(figure, name) for name in ("bulk", "spikes", "no fit"))
    for i, (share, params) in enumerate(zip(table["bulk_fraction"], table["params"], strict=True)):
        total = bulk["y"][i] + spikes["y"][i] + none["y"][i]
        assert 0 < total <= 0.75 and (params < table["params"].max() or total == pytest.approx(0.7))
        if math.isnan(share):
            assert bulk["y"][i] == spikes["y"][i] == 0
        else:
            assert bulk["y"][i] / total == pytest.approx(share)
            assert spikes["base"][i] == pytest.approx(bulk["base"][i] + bulk["y"][i])


def test_the_fit_marks_say_good_poor_and_not_prunable_by_shape():
    table = make_table()
    marks = trace(figures.strip(table), "fit")["marker"]
    for symbol, good, prunable, share in zip(
        marks["symbol"], table["mp_like"], table["prunable"], table["bulk_fraction"], strict=True
    ):
        shape = "x-thin" if math.isnan(share) else "circle" if good else "triangle-up"
        assert symbol == (shape if prunable and shape != "x-thin" else shape + "-open")
    assert marks["opacity"] == 1
    fair = table.assign(mp_like=False, grade="fair", verdict="nearly MP-like: <i> (p*KS 3.6)")
    symbols = trace(figures.strip(fair), "fit")["marker"]["symbol"]
    assert {symbol.removesuffix("-open") for symbol in symbols} == {"x-thin", "triangle-down"}
    words = trace(figures.strip(fair), "layers")["hovertext"]
    assert any("MP fit fair" in word and "▼ nearly MP-like: &lt;i&gt;" in word for word in words)


def test_budgets_show_removed_against_kept_locks_and_the_whole_network():
    locked = "blocks.1.attn.qkv.weight"
    table = make_budgets(make_table(), (locked,))
    figure = figures.budgets(table, "blocks.0.mlp.fc1.weight")
    removed, kept = trace(figure, "removed"), trace(figure, "kept")
    assert removed["y"] == pytest.approx(list(100 * table["sparsity"]))
    assert [r + k for r, k in zip(removed["y"], kept["y"], strict=True)] == pytest.approx([100] * len(table))
    assert removed["marker"]["pattern"]["shape"] == "/" and "pattern" not in kept["marker"]
    assert kept["marker"]["color"] == theme.LIGHT.bulk.fill
    place = list(table.index).index(locked)
    assert kept["text"][place] == "locked" and kept["text"].count("locked") == 1 and removed["y"][place] == 0
    line, frame = figure["layout"]["shapes"]
    assert line["y0"] == line["y1"] == pytest.approx(100 * table["removed"].sum() / table["params"].sum())
    assert frame["type"] == "rect" and kept["customdata"] == list(table.index)


# ---- the coverage ------------------------------------------------------------------------------------------------


def test_measured_points_are_solid_and_what_lies_between_is_a_dotted_estimate():
    curve = make_curve(8)
    figure = figures.coverage(curve)
    points, between = trace(figure, "certified"), trace(figure, "between")
    assert points["mode"] == "markers" and points["marker"]["color"] == theme.LIGHT.measured.fill
    assert between["line"]["dash"] == "dot" and between["line"]["color"] == theme.LIGHT.estimate.line
    assert points["x"] == pytest.approx(list(100 * curve.positions[:8]))
    assert points["y"] == pytest.approx(list(100 * curve.coverage[:8]))
    assert points["customdata"] == pytest.approx(list(curve.positions[:8]))
    assert figure["layout"]["xaxis"]["range"] == [0, 100] and figure["layout"]["yaxis"]["range"] == [0, 102]


def test_points_may_come_in_any_order_of_time():
    curve = make_curve()
    coverage = curve.coverage.copy()
    coverage[[1, 2, 5]] = np.nan
    assert len(trace(figures.coverage(make_curve(coverage=coverage)), "certified")["x"]) == 18


@pytest.mark.parametrize(
    ("tier", "fill"), [("measured", "#0072B2"), ("estimate", "#FFFFFF"), ("unheard of", "#FFFFFF")]
)
def test_only_a_measured_position_is_drawn_solid(tier, fill):
    figure = figures.coverage(make_curve(tier=tier))
    chosen = trace(figure, "chosen")
    assert chosen["x"] == [50.0] and chosen["y"] == [90.0] and chosen["marker"]["color"] == fill
    assert tier in figure["layout"]["annotations"][-1]["text"]
    assert figure["layout"]["shapes"][0]["x0"] == 50.0 and "editable" not in figure["layout"]["shapes"][0]
    assert figures.coverage(make_curve(), draggable=True)["layout"]["shapes"][0]["editable"] is True


def test_a_stale_curve_is_greyed_and_says_so():
    figure = figures.coverage(make_curve(stale=True))
    assert all(t["opacity"] < 0.5 for t in figure["data"][:-1]) and "updating" in words(figure)
    assert all("opacity" not in t for t in figures.coverage(make_curve())["data"])


def test_labels_never_touch():
    for heights in ([100, 100, 92], [3, 2, 1], [50, 49, 48], [0, 0, 0]):
        placed = spread(heights, 9)
        assert all(a - b >= 9 - 1e-9 for a, b in itertools.pairwise(placed))
        assert min(placed) >= 4.5 - 1e-9


def test_job_status_is_busy_only_while_it_runs():
    assert JobStatus("prune", "running", 0.4).busy and not JobStatus().busy


@pytest.mark.parametrize(("share", "side"), [(0.5, "right"), (0.1, "left")])
def test_the_label_of_the_edge_stands_where_there_is_room(share, side):
    view = make_view()
    edge = view.edges[1]
    window = Window(0.0, edge / share, 0)  # the edge at this share of the axis
    (left, right) = _lines(view, "eigenvalue", window, "light")[1]
    assert left["xanchor"] == side and right["xanchor"] == "left"
    assert (left.get("yshift", 0) != 0) == (side == "left"), "on one side they stand one below the other"


def test_the_words_at_the_chosen_position_keep_off_the_curve():
    positions = np.linspace(0, 1, 21)
    falling = np.clip(1.3 - 1.3 * positions, 0, 1)
    curve = CurveView(positions, falling, falling, falling,
                      {"sparsity": 0.95, "coverage": 0.1, "unchanged": 0.1, "accuracy": 0.1, "tier": "measured"},
                      n_samples=100)  # fmt: skip
    box = figures.coverage(curve)["layout"]["annotations"][-1]
    assert "certified" in box["text"] and box["y"] > 0.3, "low, it would cover the end of the curve"
    empty = CurveView(positions, *(np.full(21, np.nan) for _ in range(3)), None)
    assert "0 test images" not in json.dumps(figures.coverage(empty), ensure_ascii=False)
