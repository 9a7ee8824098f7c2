"""Pictures of patterns: what they show is what was measured, in plain lists, in both themes."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from mpviz.errors import DataError
from mpviz.structured import Groups, PatternView
from mpviz.ui.pattern_figures import arm_name, macs_figure, pattern_figure, patterns_figure


def view(rule: str = "snake", groups: int = 40, n: int = 4) -> PatternView:
    draws = np.random.default_rng(0)

    def side(name: str) -> Groups:
        columns = np.arange(groups * n) if name == "none" else draws.permutation(groups * n)
        kept = np.zeros((3, groups, n), dtype=bool)
        kept[..., :2] = True
        return Groups(name, columns.reshape(groups, n), draws.random((3, groups, n)), kept, draws.random(groups))

    before = side("none")
    return PatternView(
        "a.<b>.weight", "2:4", np.array([0, 7, 9]), before, before if rule == "none" else side(rule), 50.0
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("rule", ["none", "snake"])
def test_a_layer_is_drawn_as_it_is(rule: str, theme: str) -> None:
    seen = view(rule)
    figure = pattern_figure(seen, theme, first=100)
    json.dumps(figure, allow_nan=False)
    maps = [trace for trace in figure["data"] if trace["type"] == "heatmap"]
    lines = [trace for trace in figure["data"] if trace["type"] == "scatter"]
    assert len(maps) == len(lines) == (1 if rule == "none" else 2)
    for trace, side in zip(maps, (seen.before, seen.after), strict=False):
        z = np.array(trace["z"])
        start = 40 - 16  # 64 inputs are shown, and no more groups than there are
        assert z.shape == (3, 64)
        assert np.array_equal(z > 0, side.kept[:, start:].reshape(3, -1)) and np.abs(z).max() == 1.0
        assert f"output 7, input {side.columns[start, 0]}: kept" in trace["text"][1][0]
    for line, side in zip(lines, (seen.before, seen.after), strict=False):
        assert np.allclose(line["y"], 100 * np.sort(side.cost)[::-1] / seen.before.cost.sum())
    title = figure["layout"]["title"]["text"]
    share = 100 * seen.after.cost.sum() / 50
    assert "a.&lt;b&gt; at 2:4" in title and f"{share:.3g}"[:4] in title
    assert ("own order" in title) == (rule != "none")


def cells() -> pd.DataFrame:
    rows = []
    for seed in (0, 1):
        for pattern, drop in (("2:4", 0.05), ("8:16", 0.01)):
            for criterion, order, repair in (("magnitude", "none", False), ("cast", "best", True)):
                rows.append({"network": "net", "pattern": pattern, "criterion": criterion, "order": order, "tome": 0,
                             "repair": repair, "damping": 0.0, "renew": False, "seed": seed, "epochs": 0,
                             "accuracy": 0.9 - drop - 0.01 * seed,
                             "dense_accuracy": 0.9, "share": drop})  # fmt: skip
    return pd.DataFrame(rows)


def test_arms_stand_side_by_side_with_their_spread() -> None:
    figure = patterns_figure(cells(), "net")
    json.dumps(figure, allow_nan=False)
    names = [trace["name"] for trace in figure["data"]]
    assert names == ["magnitude", "CAST, reordered, repaired"] * 2
    accuracy = figure["data"][2]
    assert accuracy["y"] == pytest.approx([84.5, 88.5]) and accuracy["error_y"]["array"] == pytest.approx(
        [0.5**0.5] * 2
    )
    assert any("dense 90.00 %" in note["text"] for note in figure["layout"]["annotations"])
    with pytest.raises(DataError, match="no cells of other"):
        patterns_figure(cells(), "other")
    with pytest.raises(DataError, match="share missing"):
        patterns_figure(cells().drop(columns="share"), "net")


def test_arms_have_names() -> None:
    plain = {"criterion": "wanda", "order": "interleave", "repair": False, "tome": 4, "damping": 0.0, "renew": False}
    assert arm_name(plain) == "Wanda, interleaved, merged 4"
    assert arm_name(plain | {"damping": 1.0, "renew": True, "tome": 0}) == "Wanda, interleaved, damped, norms renewed"


def test_savings_add_up_to_what_runs() -> None:
    def table(attention: float, mlp: float) -> pd.DataFrame:
        return pd.DataFrame({"dense": [4e9, 8e9], "sparse": [attention, mlp]}, index=["attention", "mlp"])

    figure = macs_figure([("dense", table(4e9, 8e9)), ("merged", table(3e9, 7e9)), ("2:4", table(2e9, 3.5e9))])
    bars = figure["data"][0]
    assert bars["measure"] == ["absolute", *["relative"] * 4, "total"]
    assert bars["y"] == pytest.approx([12, -1, -1, -1, -3.5, 5.5]) and sum(bars["y"][:-1]) == pytest.approx(5.5)
    assert (
        "54.17" in figure["layout"]["annotations"][0]["text"]
        and "no speed" in figure["layout"]["annotations"][0]["text"]
    )
    with pytest.raises(DataError):
        macs_figure([])
