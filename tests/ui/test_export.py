"""Files to take away: they hold what is seen, need nothing else, and cannot be made to do harm."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpviz.errors import MpvizError
from mpviz.ui import export, figures, theme
from mpviz.ui.takeaway import FIGURES, TABLES, take
from mpviz.workbench.state import Workbench

ATTACK = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def wb() -> Iterator[Workbench]:
    bench = Workbench("fashion-mlp", samples=50)
    yield bench
    bench.close()


def test_a_figure_is_one_page_without_other_files(wb: Workbench) -> None:
    page = export.figure_html(figures.budgets(wb.budgets), "budgets")
    assert theme.CONFIG["plotlyServerURL"] == ""  # plotly takes it out of the dict that it is given
    assert "<title>budgets</title>" in page and len(page) > 1_000_000  # plotly.js is inside
    assert not re.search(r"<(script|link|img)[^>]*\\s(src|href)=", page)
    assert "50\\u202f% removed" in page or "50\u202f% removed" in page


def test_names_cannot_end_the_script_of_a_figure(wb: Workbench) -> None:
    budgets = wb.budgets.rename(index={wb.layers[0]: ATTACK})
    page = export.figure_html(figures.budgets(budgets), ATTACK)
    assert ATTACK not in page and "alert(1)" in page


def test_tables_come_back_as_they_went(wb: Workbench) -> None:
    table = export.layer_table(wb.table, wb.budgets)
    assert {"sparsity", "locked", "removed", "sigma_plus", "verdict"} <= set(table.columns) and len(table) == 3
    text = pd.read_csv(io.BytesIO(export.table_csv(table)), index_col=0)
    pd.testing.assert_series_equal(text["sigma_plus"], table["sigma_plus"])
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(export.table_parquet(table))), table)
    spikes = export.spike_table(wb.spectrum)
    assert len(spikes) == wb.spectrum.n_spikes and (spikes["singular_value"] > spikes["strength"]).all()
    assert list(export.spike_table(None).columns) == list(spikes.columns)
    assert export.curve_table(wb.curve).index.name == "sparsity"


def test_without_pyarrow_a_sentence_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("no pyarrow")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", missing)
    with pytest.raises(MpvizError, match="pip install pyarrow, or take the table away as CSV"):
        export.table_parquet(pd.DataFrame({"x": [1]}))


@given(st.lists(st.text(max_size=200), max_size=4))
def test_a_file_name_is_harmless_whatever_a_layer_is_called(parts: list[str]) -> None:
    stem = export.file_stem(*parts)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", stem) and len(stem) <= 96
    assert ".." not in stem and not stem.endswith(".")


def test_everything_on_the_page_can_be_taken_away(wb: Workbench) -> None:
    wb.preview  # noqa: B018 - measures a point, so that the curve holds one
    wb.certify(20).wait(60)
    for what in FIGURES:
        assert take(wb, what, "html").data.startswith(b"<!doctype html>")
    for what in set(TABLES) - {"comparison"}:
        assert len(pd.read_csv(io.BytesIO(take(wb, what, "csv").data)))
        assert len(pd.read_parquet(io.BytesIO(take(wb, what, "parquet").data)))
    curve = pd.read_csv(io.BytesIO(take(wb, "curve", "csv").data), index_col="sparsity")
    assert np.isfinite(curve.loc[0.5, "coverage"])
    message = take(wb, "spikes", "csv").message
    assert message["name"] == "fashion-mlp-features.fc1.weight-spikes.csv" and message["type"] == "text/csv"
    assert base64.b64decode(message["base64"]).startswith(b"rank,")


@pytest.mark.parametrize(
    ("what", "form", "words"),
    [
        ("comparison", "csv", "press Prune"),
        ("strib", "html", "did you mean 'strip'"),
        ("layers", "exe", "'exe'"),
    ],
)
def test_what_is_not_there_is_a_sentence(wb: Workbench, what: str, form: str, words: str) -> None:
    with pytest.raises(MpvizError, match=words):
        take(wb, what, form)


def test_proofs_that_are_not_there_are_a_sentence(wb: Workbench) -> None:
    fresh = Workbench("fashion-mlp", samples=20)
    for what in ("samples", "tiers"):
        with pytest.raises(MpvizError, match="press Prove"):
            take(fresh, what, "csv")
    fresh.close()
