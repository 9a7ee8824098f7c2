"""Distribution, Q–Q, tail and evolution figures: what they draw, from numbers of known truth."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from mpviz.errors import ModelError, MpvizError
from mpviz.nets.evolution import Evolution, evolution, follow
from mpviz.rmt.fit import fit_bulk
from mpviz.rmt.law import MarchenkoPastur
from mpviz.ui import figures
from mpviz.ui.takeaway import evolution_file
from mpviz.workbench.views import SpectrumView, TailView

SHAPE = (300, 150)


def spectrum_of(scale: float = 1.0, spikes: tuple[float, ...] = (), seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrix = scale * rng.normal(size=SHAPE) / np.sqrt(SHAPE[0])
    for i, strength in enumerate(spikes):
        matrix += strength * np.outer(np.eye(SHAPE[0])[i], np.eye(SHAPE[1])[i])
    return np.linalg.svd(matrix, compute_uv=False)[::-1] ** 2 / SHAPE[0]


def view(spikes: tuple[float, ...] = (6.0, 4.0), **changes: object) -> SpectrumView:
    eigenvalues = spectrum_of(spikes=spikes)
    fit = fit_bulk(eigenvalues, SHAPE)
    assert fit.law is not None
    made = SpectrumView(
        layer="<b>a</b>.weight", role="mlp", shape=SHAPE, eigenvalues=eigenvalues, law_pdf=fit.law.pdf, edges=fit.edges,
        threshold=fit.threshold, sigma_plus=fit.sigma_plus, n_spikes=fit.n_spikes, bulk_fraction=fit.bulk_fraction,
        rigidity=fit.rigidity, mp_like=fit.mp_like, grade=fit.grade, verdict=fit.verdict,
        spikes=[{"rank": i + 1, "eigenvalue": x, "strength": 1.0, "overlap": (0.9, 0.9)}
                for i, x in enumerate(eigenvalues[: -fit.n_spikes - 1 : -1].tolist())],
        law_cdf=fit.law.cdf_nonzero, law_ppf=fit.law.ppf_nonzero, p_value=0.4, reason="MP-like",
    )  # fmt: skip
    return replace(made, **changes)


def unfitted() -> SpectrumView:
    nan = float("nan")
    return view(
        edges=(nan, nan), threshold=nan, law_cdf=None, law_ppf=None, spikes=(), n_spikes=0, mp_like=False, grade="none"
    )


def traces(figure: dict) -> dict[str, dict]:
    return {trace["name"]: trace for trace in figure["data"]}


KINDS = {"distribution": figures.distribution, "quantiles": figures.quantiles, "tail": figures.tail}


@pytest.mark.parametrize("scale", ["eigenvalue", "singular"])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_is_plain_valid_plotly(kind: str, theme: str, scale: str) -> None:
    tailed = TailView(alpha=2.5, x_min=0.01, ks=0.05, n_tail=20, no_tail=False)
    for shown in (view(), view(spikes=()), view(tail=tailed, shuffled=spectrum_of(seed=1)), unfitted(), None):
        figure = KINDS[kind](shown, scale, theme)
        assert json.loads(json.dumps(figure, allow_nan=False)) == figure
        go.Figure(figure)  # plotly's own validation
        figure["layout"].pop("uirevision", None)  # a key, never shown
        assert "<b>a</b>.weight" not in json.dumps(figure), "a layer's name is escaped"


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_scale_or_theme_is_refused(kind: str) -> None:
    with pytest.raises(MpvizError, match="scale"):
        KINDS[kind](view(), "cubic")
    with pytest.raises(MpvizError, match="theme"):
        KINDS[kind](view(), "singular", "sepia")


def test_the_residual_is_the_distance_that_the_verdict_judges() -> None:
    shown = view()
    drawn = traces(figures.distribution(shown))
    residual = np.array(drawn["residual"]["y"])
    assert np.abs(residual).max() == pytest.approx(shown.rigidity)
    law = MarchenkoPastur(aspect=(SHAPE[1] - 2) / (SHAPE[0] - 2), variance=1.0)
    assert np.all(np.diff(drawn["law"]["y"]) >= 0) and drawn["law"]["y"][-1] == pytest.approx(1.0)
    assert law.aspect < 1 and len(drawn["empirical"]["x"]) == min(SHAPE) - 2


def test_spikes_are_drawn_apart_from_the_bulk_on_both_scales() -> None:
    shown = view()
    truth = np.sort(shown.eigenvalues[shown.eigenvalues > shown.threshold])
    assert len(truth) == 2
    for make in (figures.distribution, figures.tail):
        np.testing.assert_allclose(traces(make(shown, "eigenvalue"))["spikes"]["x"], truth)
        np.testing.assert_allclose(traces(make(shown, "singular"))["spikes"]["x"], np.sqrt(SHAPE[0] * truth))
    np.testing.assert_allclose(traces(figures.quantiles(shown, "eigenvalue"))["spikes"]["y"], truth)


def test_a_bulk_that_fits_lies_on_the_diagonal_and_another_does_not() -> None:
    good = traces(figures.quantiles(view()))["bulk"]
    assert np.corrcoef(good["x"], good["y"])[0, 1] > 0.999
    slope = np.polyfit(good["x"], good["y"], 1)[0]
    stretched = view(law_ppf=MarchenkoPastur(aspect=0.5, variance=3 / SHAPE[0]).ppf_nonzero)
    wrong = traces(figures.quantiles(stretched))["bulk"]
    assert slope == pytest.approx(1.0, abs=0.03)
    assert np.polyfit(wrong["x"], wrong["y"], 1)[0] == pytest.approx(1 / 3, abs=0.03)


def test_the_tail_counts_from_the_top_and_draws_the_power_law_only_where_there_is_one() -> None:
    shown = view(tail=TailView(alpha=3.0, x_min=0.01, ks=0.05, n_tail=12, no_tail=False))
    drawn = traces(figures.tail(shown))
    assert drawn["spikes"]["y"][-1] == pytest.approx(1 / min(SHAPE)), "the largest is one of all"
    x, y = np.log(drawn["power law"]["x"]), np.log(drawn["power law"]["y"])
    assert np.polyfit(x, y, 1)[0] == pytest.approx(-(3.0 - 1.0))
    assert "α = 3.00" in figures.tail(shown)["layout"]["title"]["text"]
    none = figures.tail(
        view(tail=TailView(alpha=9.0, x_min=0.01, ks=0.3, n_tail=12, no_tail=True, why="ends like <i>"))
    )
    assert traces(none)["power law"]["x"] == [] and "no power-law tail" in none["layout"]["title"]["text"]
    assert "&lt;i&gt;" in none["layout"]["title"]["text"]


def test_the_shuffled_null_has_area_one() -> None:
    null = spectrum_of(seed=3)
    outline = traces(figures.spectrum(view(shuffled=null), "eigenvalue"))["shuffled entries"]
    x, y = np.array(outline["x"]), np.array(outline["y"])
    assert np.sum(y[:-1] * np.diff(x)) == pytest.approx(1.0)
    assert x[0] <= null[0] and x[-1] >= null[-1]
    assert traces(figures.spectrum(view(), "eigenvalue"))["shuffled entries"]["x"] == []


# ---- over checkpoints ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shrinking() -> Evolution:
    spectra = [spectrum_of(scale=s, spikes=(5.0,)) for s in (1.0, 0.5, 0.25)]
    return evolution("a.weight", SHAPE, ["epoch 0", "epoch 1", "epoch 2"], spectra)


def test_an_evolution_keeps_its_axes_and_shows_each_checkpoint(shrinking: Evolution) -> None:
    made = [figures.evolution(shrinking, i) for i in range(3)]
    for figure in made:
        go.Figure(figure)
        json.dumps(figure, allow_nan=False)
        assert figure["layout"]["xaxis"] == made[0]["layout"]["xaxis"]
        heights = np.concatenate([np.square(traces(figure)[name]["y"]) for name in ("bulk", "spikes")])
        assert heights.sum() == pytest.approx(min(SHAPE)), "every eigenvalue is in a bar"
    assert "50\u202f%" in made[1]["layout"]["title"]["text"] and "1 spike" in made[1]["layout"]["title"]["text"]
    edges = [figure["layout"]["shapes"][0]["x0"] for figure in made]
    assert edges[0] / edges[2] == pytest.approx(4.0, rel=0.02)


def test_a_checkpoint_that_is_not_there_is_refused(shrinking: Evolution) -> None:
    with pytest.raises(MpvizError, match="checkpoint 3"):
        figures.evolution(shrinking, 3)


def test_the_table_of_an_evolution(shrinking: Evolution) -> None:
    table = shrinking.table
    assert list(table.index) == list(shrinking.labels)
    np.testing.assert_allclose(table["bulk_scale"], [1.0, 0.5, 0.25], rtol=0.01)
    assert (table["n_spikes"] == 1).all()
    assert list(table["grade"]) == [fit.grade for fit in shrinking.fits]


def test_a_checkpoint_whose_fit_is_fair_says_so(shrinking: Evolution) -> None:
    fair = replace(shrinking.fits[1], mp_like=False, grade="fair")
    mixed = replace(shrinking, fits=(shrinking.fits[0], fair, replace(fair, grade="poor")))
    titles = [figures.evolution(mixed, i)["layout"]["title"]["text"] for i in range(3)]
    assert "MP fit good" in titles[0] and "▼ MP fit fair" in titles[1] and "⚠ MP fit poor" in titles[2]


def test_frames_for_a_page_of_its_own(shrinking: Evolution) -> None:
    stills = [figures.evolution(shrinking, i) for i in range(3)]
    figure = figures.animated(stills, list(shrinking.labels))
    assert [frame["name"] for frame in figure["frames"]] == list(shrinking.labels)
    html = go.Figure(figure).to_html(include_plotlyjs=False)
    assert "epoch 2" in html
    with pytest.raises(MpvizError, match="one label each"):
        figures.animated(stills, ["epoch 0"])


def test_checkpoints_become_one_page_that_plays(shrinking: Evolution) -> None:
    page = evolution_file(shrinking)
    assert page.name == "a.weight-evolution.html"
    assert b"epoch 2" in page.data and b"Play" in page.data and b"addFrames" in page.data


def test_one_layer_is_followed_through_checkpoints() -> None:
    rng = np.random.default_rng(0)
    states = {f"step {i}": {"a.weight": torch.from_numpy(rng.normal(size=SHAPE) / (i + 1))} for i in range(3)}
    followed = follow("a", states)
    assert followed.labels == ("step 0", "step 1", "step 2") and followed.shape == SHAPE
    np.testing.assert_allclose(followed.table["bulk_scale"], [1.0, 1 / 2, 1 / 3], rtol=0.02)
    with pytest.raises(ModelError, match="2 shapes"):
        follow("a", {**states, "other": {"a.weight": torch.ones(40, 30)}})
    with pytest.raises(ModelError, match="unknown layer"):
        follow("b", states)
