"""Methods side by side: the drawn numbers are means and spreads over seeds, and outside words stay words."""

from __future__ import annotations

import json
import re
from itertools import product

import numpy as np
import pandas as pd
import pytest

from mpviz.errors import DataError, MpvizError
from mpviz.ui.comparison import PANELS, comparison_figure, comparison_html, comparison_table
from mpviz.ui.method_figures import removed_figure, spectra_figure
from mpviz.ui.paper_tables import paper_tables, read_paper
from mpviz.ui.reservoir_figure import reservoir_figure, restoring_methods
from mpviz.ui.text import escape

NASTY = "</script><b>&{{footer}}"


def grid(methods=("magnitude", "hybrid"), seeds=(0, 1, 2), phases=("pruned", "recovered")) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = list(product(methods, seeds, (0.3, 0.5, 0.8), phases))
    frame = pd.DataFrame(rows, columns=["method", "seed", "sparsity", "phase"])
    for name in (*PANELS, "dense_accuracy"):
        frame[name] = 0.9 if name == "dense_accuracy" else rng.uniform(0.1, 1.0, len(frame))
    return frame.sample(frac=1.0, random_state=0)  # the order of the rows must not matter


def layers(methods=("magnitude", "hybrid"), seeds=(0, 1)) -> pd.DataFrame:
    rows = [
        {"method": m, "seed": seed, "sparsity": s, "layer": f"{role}.{i}", "role": role, "params": 100 * (i + 1),
         "removed": 10 * (i + 1) + 5 * seed, "reservoir": (20 * s if role == "qkv" else 0) if m == "hybrid" else 0,
         "restored": 4 * seed if m == "hybrid" else 0}
        for m, seed, s, role, i in product(methods, seeds, (0.3, 0.5), ("qkv", "mlp"), (0, 1))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def lines(figure: dict) -> list[dict]:
    return [trace for trace in figure["data"] if trace["mode"] == "lines+markers"]


def test_lines_are_means_and_bands_one_standard_deviation() -> None:
    metrics = grid()
    figure = comparison_figure(metrics, phase="recovered")
    assert len(lines(figure)) == len(PANELS) * 2
    for number, (name, (_, scale)) in enumerate(PANELS.items(), start=1):
        key = "y" if number == 1 else f"y{number}"
        for method in ("magnitude", "hybrid"):
            own = [t for t in figure["data"] if t["yaxis"] == key and t["legendgroup"] == method]
            band, line = own
            for place, s in enumerate((0.3, 0.5, 0.8)):
                chosen = metrics.query("method == @method and sparsity == @s and phase == 'recovered'")[name]
                mean, spread = scale * np.mean(chosen), scale * np.std(chosen, ddof=1)
                assert line["x"][place] == pytest.approx(100 * s)
                assert line["y"][place] == pytest.approx(mean)
                assert line["customdata"][place] == [pytest.approx(spread), 3]
                assert band["y"][place] == pytest.approx(mean + spread)
                assert band["y"][-1 - place] == pytest.approx(mean - spread)
    assert figure["layout"]["shapes"][0]["y0"] == pytest.approx(90.0)


def test_one_seed_has_no_band_and_its_spread_is_unknown() -> None:
    metrics = grid(seeds=(0,))
    assert comparison_table(metrics)["accuracy_spread"].isna().all()
    assert len(comparison_figure(metrics)["data"]) == len(lines(comparison_figure(metrics)))


def test_each_method_stands_in_the_legend_once_and_keeps_its_colour() -> None:
    figure = comparison_figure(grid())
    named = [trace["name"] for trace in figure["data"] if trace["showlegend"]]
    assert sorted(named) == ["hybrid", "magnitude"]
    colours = {}
    for trace in lines(figure):
        colours.setdefault(trace["legendgroup"], set()).add(trace["line"]["color"])
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == 2
    hollow = [trace for trace in lines(figure) if trace["marker"]["symbol"].endswith("-open")]
    assert len(hollow) == len(PANELS) * 2


def panels(figure: dict) -> tuple[dict[str, dict], dict[str, dict]]:
    """Traces by name: of the types, left, and of the layers, right."""
    left = {trace["name"]: trace for trace in figure["data"] if trace["type"] == "bar"}
    return left, {trace["name"]: trace for trace in figure["data"] if trace["type"] == "scatter"}


@pytest.mark.parametrize("at", [0.3, 0.5])
def test_what_was_removed_is_a_share_of_its_type_and_of_its_layer(at: float) -> None:
    frame = layers()
    frame.loc[frame["sparsity"] == 0.3, ["removed", "restored"]] //= 2
    types, each = panels(removed_figure(frame, at))
    assert set(types) == set(each) == {"magnitude", "hybrid", "hybrid, came back"}
    for kind, traces in (("role", types), ("layer", each)):
        names = types["hybrid"]["x"] if kind == "role" else each["hybrid"]["customdata"]
        assert names == list(dict.fromkeys(frame[kind]))
        for method, name in product(("magnitude", "hybrid"), names):
            own = frame.query(f"method == @method and sparsity == @at and {kind} == @name")
            removed, back = (100 * own[column].sum() / own["params"].sum() for column in ("removed", "restored"))
            place = names.index(name)
            assert traces[method]["y"][place] == pytest.approx(removed, abs=1e-4)
            if method == "hybrid" and kind == "role":  # hatched, on top of the bar
                assert traces["hybrid, came back"]["base"][place] == traces[method]["y"][place]
                assert traces["hybrid, came back"]["y"][place] == pytest.approx(back, abs=1e-4)
            elif method == "hybrid":  # hollow, where it stood before
                assert traces["hybrid, came back"]["y"][place] == pytest.approx(removed + back, abs=1e-4)
                assert traces["hybrid, came back"]["customdata"][place] == [name, pytest.approx(back, abs=1e-4)]
    colours = {trace["marker"]["color"] for trace in (types["hybrid"], each["hybrid"])}
    assert len(colours) == 1 and each["hybrid"]["legendgroup"] == types["hybrid"]["legendgroup"]
    assert not each["hybrid"]["showlegend"]


def test_a_network_of_one_type_has_both_panels_too() -> None:
    types, each = panels(removed_figure(layers().query("role == 'mlp'"), 0.5))
    assert types["magnitude"]["x"] == ["mlp"] and types["magnitude"]["y"] == pytest.approx([100 * 70 / 600], abs=1e-4)
    assert each["magnitude"]["customdata"] == ["mlp.0", "mlp.1"]
    assert each["magnitude"]["y"] == pytest.approx([12.5, 11.25])  # (10 + 15) of 200, (20 + 25) of 400


def test_the_reservoir_is_a_share_of_each_layer_at_each_step_and_what_came_back_a_share_of_it() -> None:
    figure = reservoir_figure(layers(), "hybrid")
    held, back = figure["data"]
    assert held["x"] == back["x"] == ["30 %", "50 %"] and held["y"] == [0, 1, 2, 3]
    # two seeds: 2 · 20 s entries of 2 · 100 (i + 1), of which 0 and 4 came back; none in the last two layers
    assert held["z"] == [[6.0, 10.0], [3.0, 5.0], [None, None], [None, None]]
    assert back["z"] == [[33.3333, 20.0], [33.3333, 20.0], [None, None], [None, None]]
    assert "qkv.0, step to 50 %: 20 entries" in held["text"][0][1] and "step to 50 %: 4 entries" in back["text"][0][1]
    assert figure["layout"]["yaxis"]["ticktext"] == ["qkv.0", "qkv.1", "mlp.0", "mlp.1"]
    assert held["texttemplate"] and figure["layout"]["yaxis"]["autorange"] == "reversed"
    with pytest.raises(DataError, match=r"no reservoir of the method 'magnitude' is known; known: hybrid"):
        reservoir_figure(layers(), "magnitude")


def test_a_deep_network_is_named_by_its_blocks_and_has_no_numbers_in_its_cells() -> None:
    many = pd.concat([layers().assign(layer=f"blocks.{i}." + layers()["layer"]) for i in range(60)])
    figure = reservoir_figure(many, "hybrid")
    assert figure["data"][0]["texttemplate"] == "" and len(figure["data"][0]["z"]) == 240
    assert figure["layout"]["yaxis"]["ticktext"][0] == "blocks.0" and figure["layout"]["height"] < 800


def test_the_page_has_a_reservoir_of_each_method_that_restores_and_none_where_it_is_unknown() -> None:
    page = comparison_html(grid(), layers(), "x", {}, spectra=spectra())
    drawn = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])
    assert drawn["restoring"] == ["hybrid"] and len(drawn["reservoirs"]) == 1 and "<section hidden>" not in page
    for frame in (layers().drop(columns="reservoir"), layers().assign(reservoir=np.nan), layers(("magnitude",))):
        page = comparison_html(grid(), frame, "x", {}, spectra=spectra())
        assert restoring_methods(frame) == [] and page.count("<section hidden>") == 1


def test_the_page_offers_every_sparsity_and_begins_where_most_methods_are() -> None:
    frame = layers()
    frame = frame[(frame["method"] == "magnitude") | (frame["sparsity"] == 0.3)]  # the hybrid has come to 30 % only
    page = comparison_html(grid(), frame, "x", {})
    drawn = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])
    assert drawn["sparsities"] == ["30 %", "50 %"] and drawn["first"] == 0
    assert [{t["name"] for t in figure["data"]} for figure in drawn["removed"]] == [
        {"magnitude", "hybrid", "hybrid, came back"}, {"magnitude"},
    ]  # fmt: skip
    first = grid().sort_values("method")  # the hybrid comes first, and the curves' order gives the colours
    swapped = comparison_html(first, frame, "x", {})
    again = json.loads(re.search(r'id="figures">(.*?)</script>', swapped, re.DOTALL)[1])
    colours = {trace["legendgroup"]: trace["line"]["color"] for trace in lines(again["curves"])}
    for trace in again["removed"][0]["data"]:
        if "came back" not in trace["name"]:
            assert trace["marker"]["color"] == colours[trace["legendgroup"]]


def test_the_largest_change_of_a_logit_is_called_the_least_that_b_t_can_be() -> None:
    page = comparison_html(grid(), layers(), "x", {})
    figure = comparison_figure(grid(phases=("pruned",)))
    assert figure["layout"]["yaxis3"]["title"]["text"] == "least B<sub>T</sub> (measured)"
    assert (
        "least B<sub>T</sub> (measured): %{y" in next(t for t in lines(figure) if t["yaxis"] == "y3")["hovertemplate"]
    )
    assert ">least B_T (measured)</th>" in page and ">B_T</th>" not in page
    assert "No data-path budget B<sub>T</sub>, whatever its constants, can be smaller" in page


def test_the_page_holds_every_method_and_escapes_what_comes_from_outside() -> None:
    methods = (NASTY, "hybrid")
    page = comparison_html(grid(methods), layers(methods), f"a {NASTY}", {NASTY: NASTY})
    assert "</script><b>" not in page
    assert page.count(escape(NASTY)) >= 3
    drawn = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])
    assert {trace["legendgroup"] for trace in drawn["curves"]["data"]} == set(methods)
    json.dumps(drawn, allow_nan=False)


def test_the_papers_table_stands_beside_it_and_is_called_theirs() -> None:
    page = comparison_html(grid(), layers(), "x", {})
    assert "not measured here" in page and "arXiv:2606.02608" in page


TUNED_AT_30, PLAIN_AT_30 = "84.46", "84.07"  # its magnitude


@pytest.mark.parametrize(
    ("phases", "tuned", "plain"),
    [(("recovered",), True, False), (("pruned",), False, True), (("pruned", "recovered"), True, True)],
)
def test_only_the_papers_table_of_the_same_kind_stands_beside_a_grid(
    phases: tuple[str, ...], tuned: bool, plain: bool
) -> None:
    page = comparison_html(grid(phases=phases), layers(), "x", {})
    section = page[page.index("The paper's own numbers") :]
    section = section[: section.index("What was run")]
    assert (TUNED_AT_30 in section) is ("After fine-tuning: ViT-B/16 on ImageNet" in section) is tuned
    assert (PLAIN_AT_30 in section) is ("Without fine-tuning: magnitude and SEB" in section) is plain
    assert ("table after fine-tuning is left out" in section) is not tuned
    assert ("table without fine-tuning is left out" in section) is not plain


def test_the_papers_sparsities_are_those_next_to_the_grids() -> None:
    assert TUNED_AT_30 in paper_tables([0.3], ["recovered"]) and TUNED_AT_30 not in paper_tables([0.5], ["recovered"])
    assert PLAIN_AT_30 in paper_tables([0.31], ["pruned"])
    assert "goes from 5 to 70 % and has none" in paper_tables([0.9], ["recovered"])
    assert "goes from 30 to 75 % and has none" in paper_tables([0.05, 0.2], ["pruned"])  # not the numbers of 30 %


def test_the_papers_tables_are_read_as_they_are_printed() -> None:
    plain, tuned = read_paper("seb_no_finetune_grid.csv"), read_paper("vitb_sparsity_grid.csv")
    assert list(plain.index) == ["magnitude", "seb"] and plain.loc["seb", 0.6] == 61.57
    assert list(plain.columns) == [0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75]
    assert tuned.loc["hybrid", 0.7] == 78.01 and len(tuned.columns) == 14


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_themes_draw(theme: str) -> None:
    assert f"color-scheme: {theme}" in comparison_html(grid(), layers(), "x", {}, theme)


def test_a_frame_of_something_else_is_named() -> None:
    with pytest.raises(DataError, match="budget missing"):
        comparison_table(grid().drop(columns="budget"))
    with pytest.raises(DataError, match="no rows"):
        comparison_figure(grid().iloc[:0])
    with pytest.raises(DataError, match="it has pruned"):
        comparison_figure(grid(phases=("pruned",)), phase="recovered")
    with pytest.raises(DataError, match=r"no sparsity 0\.4; it has 0\.3, 0\.5"):
        removed_figure(layers(), 0.4)
    with pytest.raises(MpvizError, match="unknown theme"):
        comparison_html(grid(), layers(), "x", {}, "pink")


def spectra(layers=("a", "b"), methods=("dense", "magnitude", "hybrid")) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame([
        {"method": m, "sparsity": 0.5, "layer": one, "values": np.sort(rng.uniform(0.0, 9.0, 40)).tolist(),
         "sigma_plus": 5.0 + i, "grade": "poor" if m == "hybrid" else "good", "verdict": ""}
        for one in layers for i, m in enumerate(methods)
    ])  # fmt: skip


def test_spectra_are_counts_in_common_bins_and_only_believed_edges_are_drawn() -> None:
    frame = spectra()
    figure = spectra_figure(frame, "b", methods=("hybrid", "magnitude"))
    counts = {trace["name"]: trace["y"] for trace in figure["data"]}
    assert list(counts) == ["dense", "hybrid", "magnitude"] and {sum(y) for y in counts.values()} == {40}
    x = np.array(figure["data"][0]["x"])
    assert all(trace["x"] == figure["data"][0]["x"] for trace in figure["data"])
    half = (x[1] - x[0]) / 2
    for trace in figure["data"]:
        values = np.array(frame.query("layer == 'b' and method == @trace['name']")["values"].iloc[0])
        assert trace["y"][10] == ((values >= x[10] - half) & (values < x[10] + half)).sum()
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [5.0, 6.0]  # the hybrid's fit is poor
    assert figure["data"][1]["line"]["color"] == lines(comparison_figure(grid(("hybrid",))))[0]["line"]["color"]
    with pytest.raises(DataError, match="layer 'c'"):
        spectra_figure(frame, "c")


def test_what_a_grid_does_not_know_is_left_out_and_said() -> None:
    metrics = grid(phases=("pruned",)).assign(budget=np.nan)
    figure = comparison_figure(metrics)
    assert len(lines(figure)) == 3 * 2
    assert figure["layout"]["xaxis3"]["domain"] == [0.0, 1.0]
    page = comparison_html(metrics, layers().iloc[:0], "x", {}, remark="no <spectra>")
    assert "nan" not in re.search(r'aria-label="All cells">(.*?)</div>', page, re.DOTALL)[1]
    assert page.count("<section hidden>") == 3 and "no &lt;spectra&gt;" in page
    drawn = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])
    assert drawn["sparsities"] == drawn["removed"] == drawn["layers"] == drawn["spectra"] == []
    full = comparison_html(grid(), layers(), "x", {}, spectra=spectra())
    assert "<section hidden>" not in full and "at sparsity 50 %" in full
