import math

import numpy as np
import pandas as pd
import pytest

from mpviz.errors import MpvizError
from mpviz.ui import tables, text, theme
from mpviz.workbench.views import CurveView, SpectrumView

HOSTILE = "<script>alert('$x$')</script>\n\"&"
T = text.THIN


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (2.404, "2.40"),
        (9.9996, "10.0"),
        (0.0123456, "0.0123"),
        (123.4, "123"),
        (123456.0, f"123{T}000"),
        (1.5e-7, "1.50·10⁻⁷"),
        (2.5e8, "2.50·10⁸"),
        (-3.14159, "−3.14"),
        (0.0, "0"),
        (math.nan, "–"),
        (None, "–"),
        (math.inf, "–"),
    ],
)
def test_numbers_have_three_significant_digits(value, words):
    assert text.significant(value) == words


def test_significant_is_within_half_a_unit_of_the_third_digit():
    for value in 10 ** np.random.default_rng(0).uniform(-4, 5.9, 300):
        shown = float(text.significant(value).replace(T, ""))
        assert abs(shown - value) <= 0.5001 * 10 ** (math.floor(math.log10(value)) - 2)


@pytest.mark.parametrize(
    ("share", "digits", "words"),
    [
        (0.9731, 3, f"97.3{T}%"),
        (0.94, 2, f"94{T}%"),
        (1.0, 2, f"100{T}%"),
        (0.0, 3, f"0{T}%"),
        (0.99996, 3, f"over 99.9{T}%"),
        (0.9999, 2, f"over 99{T}%"),
        (1e-7, 3, f"under 0.01{T}%"),
        (math.nan, 3, "–"),
    ],
)
def test_percent(share, digits, words):
    assert text.percent(share, digits) == words


def test_rounding_never_turns_almost_all_into_all():
    for share in 1 - 10 ** np.linspace(-15, -1, 60):
        for digits in (1, 2, 3, 4):
            assert text.percent(float(share), digits) != f"100{T}%"
            assert text.percent(float(1 - share), digits) != f"0{T}%"


def test_escape_leaves_nothing_that_html_plotly_or_mathjax_would_read():
    safe = text.escape(HOSTILE)
    assert not set("<>\"'$\n") & set(safe)
    assert "&quot;" not in safe  # plotly's text knows no such entity


def test_names_are_shortened_in_the_middle():
    assert text.short_name("blocks.3.mlp.fc1.weight") == "blocks.3.mlp.fc1"
    assert text.short_name("weight") == "weight"
    short = text.short_name("a" * 60 + ".weight")
    assert len(short) <= 44 and "…" in short
    assert text.elided("word " * 50, 30).endswith(" …") and len(text.elided("word " * 50, 30)) <= 31


def test_a_column_stands_under_its_decimal_points():
    cells = text.aligned([1.5, 12.25, math.nan, None, -3.0])
    assert len({len(cell) for cell in cells}) == 1
    assert len({cell.index(".") for cell in cells if "." in cell}) == 1
    assert text.aligned([]) == [] and text.aligned([math.nan]) == ["–"]


def view(**changes) -> SpectrumView:
    kept = {
        "layer": "blocks.3.mlp.fc1.weight", "role": "mlp", "shape": (512, 512), "eigenvalues": np.ones(512),
        "law_pdf": np.zeros_like, "edges": (0.1, 0.9), "threshold": 1.0, "sigma_plus": 2.0, "n_spikes": 31,
        "bulk_fraction": 0.94, "rigidity": 2.4, "mp_like": True, "grade": "good", "verdict": "MP-like",
    }  # fmt: skip
    return SpectrumView(**(kept | changes))


def plain(rich: str) -> str:
    """What a reader sees of rich text."""
    import html
    import re

    return html.unescape(re.sub("<[^>]*>", "", rich)).replace(T, " ")


def test_the_spectrum_title_states_the_finding():
    assert plain(text.spectrum_title(view())) == "blocks.3.mlp.fc1 — ■ 94 % bulk, ◆ 31 spikes, MP fit good (p·KS 2.4)"
    poor = plain(text.spectrum_title(view(mp_like=False, grade="poor", rigidity=9.1, n_spikes=1)))
    assert "1 spike," in poor and "⚠ MP fit poor (p·KS 9.1)" in poor
    nan = math.nan
    none = view(edges=(nan, nan), threshold=nan, rigidity=nan, mp_like=False, grade="none", bulk_fraction=nan,
                verdict="only 3 <b>")  # fmt: skip
    assert plain(text.spectrum_title(none)) == "blocks.3.mlp.fc1 — ⚠ no MP fit"
    assert text.spectrum_note(none, 3).endswith("only 3 &lt;b&gt;")
    assert "(12 zero, not drawn)" in text.spectrum_note(view(), 500)


def test_a_fair_fit_is_said_to_be_fair_wherever_fits_are_named():
    reason = "column scales differ"
    fair = view(mp_like=False, grade="fair", rigidity=3.6, reason=reason)
    assert plain(text.spectrum_title(fair)).endswith("▼ MP fit fair (p·KS 3.6)")
    colours = theme.palette("light")
    assert colours.neutral.text in text.spectrum_title(fair) and colours.threshold.text not in text.spectrum_title(fair)
    table = pd.DataFrame(
        {"rows": 128, "cols": 128, "bulk_fraction": 0.9, "n_spikes": 9, "grade": ["good", "fair", "poor"],
         "reason": ["MP-like", reason, "heavy tail"]},
    )  # fmt: skip
    assert plain(text.strip_title(table)).endswith("⚠ MP fit poor in 1: heavy tail, ▼ fair in 1")
    assert plain(text.strip_title(table[:2])).endswith("▼ MP fit fair in 1: column scales differ")
    assert plain(text.strip_title(table[:1])).endswith("MP fit good in all")


def test_the_coverage_title_names_tier_and_samples():
    nothing = np.full(21, np.nan)
    now = {"sparsity": 0.5, "coverage": 0.9731, "unchanged": 0.99, "accuracy": 0.9, "tier": "measured"}
    curve = CurveView(np.linspace(0, 1, 21), nothing, nothing, nothing, now, 1000, "test")
    title, note = (plain(words) for words in text.coverage_title(curve))
    assert title == "97.3 % of predictions certified"
    assert note == "measured, at 50 % sparsity, 1 000 test images"


@pytest.mark.parametrize("name", ["light", "dark"])
def test_chips_and_tables_escape_what_they_show(name):
    frame = pd.DataFrame(
        {"quantity": [HOSTILE, "parameters"], "dense": [0.91234, 1234567], "pruned": [HOSTILE, None],
         "tier": [HOSTILE, "measured"]}, dtype=object,
    )  # fmt: skip
    html = tables.comparison_table(frame, name)
    assert "<script" not in html and "alert(&#39;" in html
    assert f"91.2{T}%" in html and f"1{T}234{T}567" in html
    assert theme.palette(name).measured.text in html
    assert "Prune" in tables.comparison_table(None, name)
    assert "dotted" in tables.chip("estimate", name)


def test_the_layers_table_shows_locks_bars_and_the_selection():
    names = [HOSTILE, "b.weight", "head.weight"]
    table = pd.DataFrame(
        {"role": ["mlp", "mlp", "head"], "rows": 4, "cols": 4, "sigma_plus": [1.0, 22.5, np.nan],
         "alpha": [2.0, 3.0, np.nan], "bulk_fraction": [0.9, 1.0, np.nan], "n_spikes": [1, 0, 0],
         "grade": ["fair", "poor", "none"], "prunable": [True, True, False]},
        index=names,
    )  # fmt: skip
    budgets = pd.DataFrame({"sparsity": [0.3, 0.0], "locked": [False, True]}, index=names[:2])
    html = tables.layers_table(table, budgets, HOSTILE)
    assert "<script" not in html and html.count("outline:2px") == 1
    assert "locked" in html and "not prunable" in html and "30.0%" in html
    assert html.count("▼ fair") == html.count("▲ poor") == 1 and "● good" not in html
    assert "locked" not in tables.layers_table(table)


def test_contrast_of_every_colour_in_both_themes():
    for palette in theme.THEMES.values():
        for name in ("ink", "muted"):
            assert theme.contrast(getattr(palette, name), palette.paper) >= 4.5, name
        assert theme.contrast(palette.axis, palette.paper) >= 3
        meanings = [getattr(palette, name) for name in palette.__dataclass_fields__]
        for colour in (c for c in meanings if isinstance(c, theme.Colour)):
            assert theme.contrast(colour.line, palette.paper) >= 3, colour
            assert theme.contrast(colour.text, palette.paper) >= 4.5, colour


def test_the_colours_are_okabe_ito():
    for palette in theme.THEMES.values():
        fills = {
            name: getattr(palette, name).fill for name in ("bulk", "spike", "edge", "threshold", "removed", "measured")
        }
        assert fills == {
            "bulk": "#56B4E9", "spike": "#E69F00", "edge": "#009E73", "threshold": "#D55E00", "removed": "#CC79A7",
            "measured": "#0072B2",
        }  # fmt: skip


def test_nothing_is_sent_anywhere():
    assert theme.CONFIG["plotlyServerURL"] == "" and theme.CONFIG["showSendToCloud"] is False
    with pytest.raises(MpvizError, match="did you mean 'dark'"):
        theme.palette("drak")
