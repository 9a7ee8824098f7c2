"""Numbers, names and findings as words. Pure: plain values in, strings out.

What ends in `_title` is rich text (the few tags that plotly and HTML share) with every outside string escaped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpviz.ui.theme import Colour, palette

if TYPE_CHECKING:
    import pandas as pd

    from mpviz.recipe import BudgetPlan
    from mpviz.workbench.views import CurveView, SpectrumView

THIN = "\u202f"  # narrow no-break space: between thousands, and before % and units
FIGURE = "\u2007"  # a space as wide as a digit: aligns decimals
NONE = "–"  # what is shown for a number that is not there

EMPTY_SPECTRUM = "Choose a layer, or press → to walk through them."
EMPTY_STRIP = "Choose a model to see its layers."
EMPTY_BUDGETS = "No layer of this model can be pruned; choose another model."
EMPTY_COVERAGE = "Coverage is being measured;<br>the first points appear in a moment."


def escape(text: object) -> str:
    """Outside text made harmless in HTML and in plotly's rich text, which knows numeric entities only.

    Dollar signs too: a page with MathJax would set what stands between two of them.

    >>> escape('<b>"x"</b> & $y$')
    '&lt;b&gt;&#34;x&#34;&lt;/b&gt; &amp; &#36;y&#36;'
    """
    safe = "".join(" " if ord(letter) < 32 else letter for letter in str(text))
    for letter, entity in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ('"', "&#34;"),
        ("'", "&#39;"),
        ("$", "&#36;"),
    ):
        safe = safe.replace(letter, entity)
    return safe


def escape_lines(words: str) -> str:
    r"""The same of a text of several lines, which stay lines.

    >>> escape_lines("<a>\n  b")
    '&lt;a&gt;\n  b'
    """
    return "\n".join(escape(line) for line in words.split("\n"))


def significant(value: float | None, digits: int = 3) -> str:
    """A number with three significant digits, without exponents between 1e-4 and 1e6.

    >>> significant(2.4049), significant(0.012345), significant(12345.0), significant(float("nan"))
    ('2.40', '0.0123', '12\u202f300', '–')
    """
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    value = float(f"{value:.{digits - 1}e}")  # rounds first, so that 9.999 becomes 10.0 and not 10.00
    exponent = math.floor(math.log10(abs(value)))
    if not -5 < exponent < 6:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}·10{_superscript(int(power))}".replace("-", "−")
    return f"{value:,.{max(0, digits - 1 - exponent)}f}".replace(",", THIN).replace("-", "−")


def _superscript(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def count(number: float) -> str:
    """An integer with thin spaces between thousands.

    >>> count(1234567)
    '1\u202f234\u202f567'
    """
    return f"{int(number):,}".replace(",", THIN)


def percent(share: float | None, digits: int = 3) -> str:
    """A share 0 … 1 in percent. Never rounded up to 100 % or down to 0 %: a promise must not grow by rounding.

    >>> percent(0.9734), percent(0.5), percent(0.99996), percent(1.0), percent(0.94, 2)
    ('97.3\u202f%', '50\u202f%', 'over 99.9\u202f%', '100\u202f%', '94\u202f%')
    """
    if share is None or not math.isfinite(share):
        return NONE
    shown = float(f"{100 * share:.{digits}g}")
    decimals = max(0, digits - 2)
    if share < 1 and shown >= 100:
        return f"over {100 - 10.0**-decimals:.{decimals}f}{THIN}%"
    if share > 0 and round(shown, decimals + 1) == 0:
        return f"under {10.0 ** -(decimals + 1):.{decimals + 1}f}{THIN}%"
    return f"{shown:.10g}{THIN}%"


def plural(number: int, noun: str) -> str:
    """
    >>> plural(1, "spike"), plural(0, "spike"), plural(31, "spike")
    ('1 spike', 'no spikes', '31 spikes')
    """
    if number == 1:
        return f"1 {noun}"
    return f"{count(number) if number else 'no'} {noun}s"


def short_name(layer: str, longest: int = 44) -> str:
    """A parameter's name without its final ".weight", elided in the middle when too long. Not escaped.

    >>> short_name("blocks.3.mlp.fc1.weight")
    'blocks.3.mlp.fc1'
    """
    name = layer.removesuffix(".weight") or layer
    if len(name) <= longest:
        return name
    half = (longest - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def elided(sentence: str, longest: int) -> str:
    """A sentence cut at a word, with an ellipsis, when it is too long. Not escaped.

    >>> elided("heavy tail, no stable line between bulk and spikes", 24)
    'heavy tail, no stable …'
    """
    if len(sentence) <= longest:
        return sentence
    return sentence[: longest - 1].rsplit(" ", 1)[0] + " …"


def spaced(words: str) -> str:
    """Words in which whole numbers from 10 000 on get thin spaces. Not escaped.

    >>> spaced("test accuracy, 10000 images of 2024")
    'test accuracy, 10\u202f000 images of 2024'
    """
    return re.sub(r"(?<![\w.])\d{5,}(?![\w.])", lambda found: count(int(found[0])), words)


def pruned_words(plan: BudgetPlan, split: str, current: bool) -> str:
    """“pruned at 60 %, β 1.25, test”, and whether the settings are others by now; escaped."""
    strength = f"β {significant(plan.beta)}" if plan.beta else "plain magnitude"
    settings = [f"pruned at {percent(plan.sparsity)}", strength]
    settings += [f"β {role} {significant(beta)}" for role, beta in plan.beta_by_role.items()]
    settings += [f"{plural(len(plan.locked), 'layer')} locked"] if plan.locked else []
    moved = "" if current else "; the settings have moved since"
    return escape(", ".join([*settings, split])) + moved


def aligned(values: Sequence[float | None], digits: int = 3) -> list[str]:
    """A column of numbers whose decimal points stand under each other, the largest with `digits` significant ones.

    >>> aligned([1.5, 12.25, None])
    ['\u20071.5', '12.2', '\u2007\u2007\u2007–']
    """
    finite = [abs(v) for v in values if v is not None and math.isfinite(v)]
    largest = max(finite, default=0.0)
    exponent = math.floor(math.log10(largest)) if largest > 0 else 0
    decimals = min(6, max(0, digits - 1 - exponent))
    cells = [
        NONE if v is None or not math.isfinite(v) else f"{v:,.{decimals}f}".replace(",", THIN).replace("-", "−")
        for v in values
    ]
    width = max(map(len, cells), default=0)
    return [FIGURE * (width - len(cell)) + cell for cell in cells]


def _word(text: str, colour: str) -> str:
    return f"<span style='color:{colour}'>{text}</span>"


def key(mark: str, text: str, colour: Colour) -> str:
    """A direct label: the mark in the colour it has in the figure, the word in its readable shade."""
    return _word(mark, colour.line) + " " + _word(text, colour.text)


def fit_words(mp_like: bool, rigidity: float, reason: str = "", fair: bool = False) -> str:
    """How good the fit is, in words; escaped. What is not good is said aloud, with the reason where it is known.

    >>> fit_words(True, 2.4), fit_words(False, 12.0, "heavy tail"), fit_words(False, 12.0)
    ('MP fit good (p·KS 2.4)', '⚠ heavy tail (p·KS 12)', '⚠ MP fit poor (p·KS 12)')
    >>> fit_words(False, 3.6, "column scales differ", fair=True)
    '▼ MP fit fair (p·KS 3.6)'
    """
    if not math.isfinite(rigidity):
        return f"⚠ no MP fit: {escape(reason)}" if reason else "⚠ no MP fit"
    poor = f"⚠ {escape(reason)}" if reason else "⚠ MP fit poor"
    if fair:
        poor = "▼ MP fit fair"  # the reason stands on the next line; here it would run out of a narrow figure
    return f"{'MP fit good' if mp_like else poor} (p·KS {significant(rigidity, 2)})"


def spectrum_title(view: SpectrumView, theme: str = "light") -> str:
    """“blocks.3.mlp.fc1 — ■ 94 % bulk, ◆ 31 spikes, MP fit good (p·KS 2.4)”."""
    colours = palette(theme)
    name = f"<b>{escape(short_name(view.layer))}</b>"
    fair = view.grade == "fair"
    fit = fit_words(view.mp_like, view.rigidity, view.reason, fair)
    if not view.fitted:
        return f"{name} — {fit}"
    bulk = key("■", f"{percent(view.bulk_fraction, 2)} bulk", colours.bulk)
    spikes = key("◆", plural(view.n_spikes, "spike"), colours.spike)
    bad = colours.neutral if fair else colours.threshold
    return f"{name} — {bulk}, {spikes}, {fit if view.mp_like else _word(fit, bad.text)}"


def spectrum_note(view: SpectrumView, nonzero: int) -> str:
    """The second line: what the matrix is, or why the fit is not to be trusted; escaped."""
    rows, cols = view.shape
    size = f"{escape(view.role)}, {rows} × {cols}"
    if not view.mp_like:
        return f"{size}, {escape(elided(view.verdict, 54))}"
    zeros = len(view.eigenvalues) - nonzero
    return f"{size}, {count(nonzero)} nonzero eigenvalues" + (f" ({count(zeros)} zero, not drawn)" if zeros else "")


def _why(poor: pd.DataFrame) -> str:
    """“: heavy tail”, or “, mostly column scales differ”; nothing when no reasons are known."""
    if "reason" not in poor:
        return ""
    reasons = poor["reason"].value_counts()
    return f"{':' if len(reasons) == 1 else ', mostly'} {escape(reasons.index[0])}"


def strip_title(table: pd.DataFrame, theme: str = "light") -> str:
    """“26 layers — ■ 91 % bulk, ◆ 312 spikes, ⚠ MP fit poor in 3: heavy tail, ▼ fair in 2”."""
    colours = palette(theme)
    sizes = table[["rows", "cols"]].min(axis=1)
    known = table["bulk_fraction"].notna() & table["n_spikes"].notna()
    head = f"<b>{plural(len(table), 'layer')}</b>"
    if not known.any():
        return f"{head} — none has a Marchenko–Pastur fit"
    share = float((table["bulk_fraction"] * sizes)[known].sum() / sizes[known].sum())
    poor, fair = (table[known & (table["grade"] == grade)] for grade in ("poor", "fair"))
    parts = [f"⚠ MP fit poor in {count(len(poor))}{_why(poor)}"] if len(poor) else []
    if len(fair):
        parts.append(
            f"▼ fair in {count(len(fair))}" if len(poor) else f"▼ MP fit fair in {count(len(fair))}{_why(fair)}"
        )
    fits = ", ".join(parts) or "MP fit good in all"
    bulk = key("■", f"{percent(share, 2)} bulk", colours.bulk)
    spikes = key("◆", plural(int(table["n_spikes"][known].sum()), "spike"), colours.spike)
    return f"{head} — {bulk}, {spikes}, {fits}"


def budgets_title(budgets: pd.DataFrame, theme: str = "light") -> str:
    """“50 % removed: 132 000 of 264 000 weights, between 31 % and 62 % a layer”."""
    colours = palette(theme)
    total, removed = int(budgets["params"].sum()), int(budgets["removed"].sum())
    head = key("▨", f"{percent(removed / total if total else 0.0)} removed", colours.removed)
    free = budgets.loc[~budgets["locked"].astype(bool), "sparsity"]
    words = f"<b>{head}</b>: {count(removed)} of {count(total)} weights"
    if len(free) > 1:
        words += f", {percent(float(free.min()), 2)} to {percent(float(free.max()), 2)} a layer"
    return words


def coverage_title(curve: CurveView, theme: str = "light") -> tuple[str, str]:
    """The finding and, as a second quieter line, how it is known."""
    colours = palette(theme)
    now = curve.current
    images = f"{count(curve.n_samples)} {escape(curve.split)} images" if curve.n_samples else ""
    waiting = "old curve, updating …" if curve.stale else ""
    if now is None or not math.isfinite(now["coverage"]):
        return "<b>Certified predictions against sparsity</b>", ", ".join(filter(None, (images, waiting)))
    tier = str(now["tier"])
    share = _word(f"<b>{percent(now['coverage'])}</b>", colours.tier(tier).text)
    at = f"at {percent(now['sparsity'])} sparsity"  # in the second line: the first has to fit a narrow card
    known = (_word(escape(tier), colours.tier(tier).text), at, images, waiting)
    return f"{share} of predictions certified", ", ".join(filter(None, known))
