"""Certificate figures: tiers keep their colours, what is not proved is not drawn, and nothing outside is rendered."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from mpviz.ui import cards, figures
from mpviz.ui._certificates import why_not
from mpviz.ui.dashboard_words import why_html
from mpviz.ui.sample_rows import SAMPLE_COLUMNS, sample_cells
from mpviz.ui.theme import palette
from mpviz.workbench.names import TIERS
from mpviz.workbench.proof_views import CertificateView, SampleView, TierCurve

HOSTILE = "<b onclick='alert(1)'>x</b>"


def make(n: int = 40, proved: bool = True, scope: str = "all layers", changed: bool = True) -> CertificateView:
    rng = np.random.default_rng(0)
    positions = np.array([0.1, 0.3, 0.5])
    top = np.stack([np.zeros(n, dtype=int), np.ones(n, dtype=int)], axis=1)
    after = top.copy()
    if changed:
        after[0] = (1, 0)
    margin = rng.gamma(3.0, 1.5, n)
    margin[0] = 0.5
    layers = (HOSTILE, "fc2.weight")
    samples = SampleView(
        index=np.arange(n), label=np.zeros(n, dtype=int), dense_top=top, pruned_top=after, margin=margin,
        pruned_margin=margin - 0.2, eta=np.full(n, 0.4), lower={"slider": margin - 1.0}, layers=layers,
        steps=np.stack([np.full(n, -0.5), np.full(n, 0.3)], axis=1), pictures={},
    )  # fmt: skip
    nothing = np.full(3, np.nan)
    curves = {
        "measured": TierCurve("measured", "measured", "this mask", np.array([0.99, 0.9, 0.6])),
        "unchanged": TierCurve("unchanged", "measured", "the same", np.array([1.0, 0.95, 0.8])),
        "population": TierCurve("population", "population", "all data", np.array([0.97, 0.92, 0.75])),
        "slider": TierCurve("slider", "bound", "every position", np.array([0.99, 0.94, 0.7]) if proved else nothing,
                            "" if proved else "no rule for Sigmoid"),
    }  # fmt: skip
    here = {"measured": 0.9, "unchanged": 0.95, "slider": 0.94 if proved else float("nan")}
    return CertificateView(
        "net", "test", ("shirt", HOSTILE), 0.3, positions, curves, here, {}, {}, samples,
        dict(zip(layers, (0.5, 0.3), strict=True)), {}, 0, scope,
    )  # fmt: skip


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("draw", [figures.tiers, figures.margins, figures.attribution])
def test_a_figure_is_plain_and_renders_nothing_from_outside(draw, theme: str) -> None:  # type: ignore[no-untyped-def]
    for view in (make(), make(1), make(changed=False), make(proved=False), None):
        figure = draw(view, theme)
        said = json.dumps(figure, allow_nan=False)
        shown = [a["text"] for a in figure["layout"].get("annotations", [])]
        shown += [figure["layout"].get("title", {}).get("text", "")]
        shown += list(figure["layout"].get("yaxis", {}).get("ticktext", []))
        assert not any("<b onclick" in word for word in shown)
        assert said


def test_each_tier_has_its_colour_and_a_bound_names_its_set() -> None:
    figure = figures.tiers(make())
    drawn = {trace["name"]: trace for trace in figure["data"]}
    colours = palette("light")
    assert drawn["slider"]["line"]["color"] == colours.bound.line
    assert drawn["measured"]["marker"]["color"] == colours.measured.fill
    assert "every position" in drawn["slider"]["hovertext"][0]
    assert drawn["slider"]["y"] == [99.0, 94.0, 70.0]
    title = figure["layout"]["title"]["text"]
    assert "of predictions proved" in title and "slider at" in title and "dense" not in title


def test_what_is_not_proved_is_said_and_never_drawn_as_nothing() -> None:
    figure = figures.tiers(make(proved=False))
    assert "slider" not in {trace["name"] for trace in figure["data"]}
    title = figure["layout"]["title"]["text"]
    assert "no proof: slider" in title
    assert "proved" not in title


def test_bounds_that_speak_about_a_part_of_the_layers_say_so_before_all_else() -> None:
    view = make(scope="the last 3 of 24 layers alone")
    title = figures.tiers(view)["layout"]["title"]["text"]
    assert "proved, <b>other layers dense</b><br>" in title
    said = why_html(view, "tiers", 0, TIERS)
    assert "the last 3 of 24 layers alone" in said and "all layers pruned" in said
    assert "all layers pruned" not in why_html(make(), "tiers", 0, TIERS)


def test_the_title_keeps_the_scope_and_what_has_no_proof_whatever_is_switched_on() -> None:
    view = make(scope="the last 3 of 24 layers alone")
    curves = {**view.curves, "bracket": TierCurve("bracket", "bound", "", np.full(3, np.nan), "no rule")}
    view = replace(view, curves={**curves, "sub-masks": TierCurve("sub-masks", "bound", "", np.array([0.9, 0.5, 0.1]))})
    title = lambda *shown: figures.tiers(view, shown=shown)["layout"]["title"]["text"]  # noqa: E731
    assert "slider, 40 images; no proof: bracket" in title("slider", "bracket")
    assert "bounds: other layers dense; 40 images" in title("unchanged", "sub-masks")
    assert "dense" not in title("unchanged")


def test_the_name_of_a_curve_leads_to_its_end() -> None:
    figure = figures.tiers(make())
    ends = {
        (trace["x"][-1], round(trace["y"][-1], 6)) for trace in figure["data"] if trace["name"] not in ("band", "model")
    }
    notes = figure["layout"]["annotations"]
    assert {(note["x"], round(note["y"], 6)) for note in notes} == ends and all(note["showarrow"] for note in notes)
    heights = sorted(note["ay"] for note in notes)
    assert min(b - a for a, b in pairwise(heights)) > 13


def test_titles_fit_the_card_and_names_do_not_print_over_each_other() -> None:
    view = make(scope="the last 3 of 24 layers alone", proved=True)
    many = tuple(f"blocks.{i}.attn.qkv.weight" for i in range(24))
    samples = replace(view.samples, layers=many, steps=np.linspace(-1, 1, 24 * len(view.samples)).reshape(-1, 24))
    view = replace(view, samples=samples, attribution=dict.fromkeys(many, 0.1))
    drawn = [figures.tiers(view), figures.tiers(make(proved=False)), figures.margins(view, sample=1)]
    drawn += [figures.attribution(view), figures.attribution(view, sample=1), figures.aged(figures.tiers(view))]
    for figure in drawn:
        lines = re.sub(r"<(?!br)[^>]*>", "", figure["layout"]["title"]["text"]).split("<br>")
        assert len(lines) == 2 and len(lines[0]) <= 42 and len(lines[1]) <= 52, lines
    axis = figures.attribution(view)["layout"]["yaxis"]
    assert len(axis["ticktext"]) == len(axis["tickvals"]) == 12 and axis["ticktext"][0] == "blocks.23.attn.qkv"


def test_tiers_are_shown_one_by_one() -> None:
    assert [trace["name"] for trace in figures.tiers(make(), shown=("measured",))["data"]] == ["measured"]
    assert {trace["name"] for trace in figures.tiers(make(), shown=("unchanged", "slider"))["data"]} == {
        "band", "unchanged", "slider",
    }  # fmt: skip


def test_margins_add_up_and_mark_the_sample() -> None:
    view = make()
    figure = figures.margins(view, sample=3)
    assert sum(sum(filter(None, trace["y"])) for trace in figure["data"]) == len(view.samples)
    changed = next(trace for trace in figure["data"] if trace["name"] == "changed")
    assert sum(filter(None, changed["y"])) == 1
    at = {shape["x0"] for shape in figure["layout"]["shapes"]}
    assert float(view.samples.margin[3]) in at
    assert 0.8 in at


def test_the_changes_of_one_sample_are_signed() -> None:
    figure = figures.attribution(make(), sample=2)
    assert figure["data"][0]["x"] == [0.3, -0.5]
    assert "add up to −0.200" in figure["layout"]["title"]["text"]


def test_why_a_sample_is_not_certified() -> None:
    view = make()
    said = " ".join(why_not(view.samples, 0, view.classes))
    assert "The prediction changed" in said
    close = int(np.argmin(view.samples.margin[1:])) + 1
    words = " ".join(why_not(view.samples, close, view.classes))
    assert ("not proved, by" in words) == (view.samples.margin[close] < 1.0)
    assert "fell most by" in words


def test_an_old_figure_is_greyed_and_says_so() -> None:
    figure = figures.aged(figures.tiers(make()))
    assert all(trace["opacity"] < 0.5 for trace in figure["data"])
    assert "older plan" in figure["layout"]["title"]["text"]
    assert "older" not in json.dumps(figures.aged(figures.tiers(None)))


def test_estimates_and_models_of_the_weights_do_not_look_proved() -> None:
    view = make()
    curves = dict(view.curves) | {
        "first order": TierCurve("first order", "estimate", "to first order", np.array([1.0, 0.97, 0.9])),
        "gaussian": TierCurve("gaussian", "gaussian", "if Gaussian", np.array([0.3, 0.1, 0.0])),
    }
    figure = figures.tiers(replace(view, curves=curves))
    drawn = {trace["name"]: trace for trace in figure["data"]}
    colours = palette("light")
    assert drawn["first order"]["line"] == {"color": colours.estimate.line, "width": 2, "dash": "dot"}
    assert drawn["gaussian"]["line"]["color"] == colours.gaussian.line
    assert drawn["model"]["fill"] == "tozeroy"
    assert max(drawn["band"]["y"][3:]) == 99.0, "the band starts at the best bound, not at an estimate"
    shown = {trace["name"] for trace in figures.tiers(view, shown=["unchanged"])["data"]}
    assert shown == {"unchanged"}


def test_samples_are_rows_with_pictures_worst_first() -> None:
    view = make()
    pixels = np.arange(28 * 28, dtype=np.uint32).reshape(28, 28).astype(np.uint8)
    view = replace(view, samples=replace(view.samples, pictures={0: pixels}))
    cells = sample_cells(view)
    assert set(cells) == {column.name for column in SAMPLE_COLUMNS} | {"row"}
    assert {len(values) for column in cells.values() for values in column.values()} == {len(view.samples)}
    json.dumps(cells, allow_nan=False)
    assert cells["row"]["sort"] == np.argsort(view.samples.pruned_margin, kind="stable").tolist()
    at = cells["row"]["sort"].index(0)
    assert cells["state"]["state"][at] == "poor" and cells["state"]["text"][at] == "flipped"
    assert cells["dense"]["text"][at] == f"shirt, {HOSTILE}"
    with Image.open(io.BytesIO(base64.b64decode(cells["picture"]["text"][at].partition(",")[2]))) as image:
        assert np.array_equal(np.asarray(image), pixels)
    assert cells["bracket"]["sort"] == [None] * len(view.samples), "no bound is not zero"
    assert sample_cells(None)["row"]["text"] == []


def test_every_tier_has_a_card_that_says_its_number_or_why_there_is_none() -> None:
    assert [card.name for card in cards.CARDS] == list(TIERS)
    for card in cards.CARDS:
        assert all((card.title, card.formula, card.claim, card.hypotheses, card.proof, card.source))
    view = replace(make(), scope=f"{HOSTILE} alone", why={"path": f"no proved bound: {HOSTILE}"})
    said = cards.html([*TIERS], view)
    assert HOSTILE not in said
    assert "94\u202f% at 30\u202f% sparsity (&lt;b onclick" in said
    assert "no proved bound: &lt;b" in said
    assert said.count("<p") == len(TIERS)
