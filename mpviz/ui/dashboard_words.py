"""What the dashboard says besides its figures: HTML of the text regions, and the page's style. No toolkit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mpviz.ui import text
from mpviz.ui._certificates import why_not
from mpviz.ui.css import read_shared, variables
from mpviz.ui.run_words import duration
from mpviz.ui.theme import THEMES

if TYPE_CHECKING:
    import pandas as pd

    from mpviz.workbench.proof_views import CertificateView
    from mpviz.workbench.views import CurveView, JobStatus

_CERTIFIED = (
    "<p class='quiet'>Certified: the margin is more than twice what any logit moved, so this mask cannot have changed "
    "the label. Prove speaks about whole sets of masks.</p>"
)
EMPTY_COMPARISON = "<p class='quiet'>Press Prune to see what it costs.</p>"


def read_page_file(suffix: str) -> str:
    """The text of dashboard.html, .css or .js, or of _widgets.css."""
    return read_shared(f"dashboard{suffix}")


def page_css() -> str:
    """The style of the page: its rules, and the colours of both themes as variables."""
    light, dark = (variables(palette) for palette in THEMES.values())
    return f':root{{{light}}}\n:root[data-theme="dark"]{{{dark}}}\n{read_page_file(".css")}'


def chip(tier: str) -> str:
    """How a number is known, as a small label in the tier's colour."""
    known = tier if tier in ("measured", "bound", "estimate", "population", "gaussian") else "quiet"
    return f"<span class='chip {known}'>{text.escape(tier)}</span>"


def comparison_html(table: pd.DataFrame | None, caption: str = "", current: bool = True) -> str:
    """Before and after as a table: shares in percent, counts with thin spaces.

    caption: with what it was measured, escaped. current: False greys the table, the page shows other settings.
    """
    if table is None or len(table) == 0:
        return EMPTY_COMPARISON
    columns = (table[name].tolist() for name in ("quantity", "dense", "pruned", "tier"))
    body = "".join(
        f"<tr><th scope='row'>{text.escape(text.spaced(str(quantity)))} {chip(str(tier))}</th>"
        f"<td>{_amount(dense, dense)}</td><td>{_amount(pruned, dense)}</td></tr>"
        for quantity, dense, pruned, tier in zip(*columns, strict=True)
    )
    head = "<tr><td></td><th scope='col'>dense</th><th scope='col'>pruned</th></tr>"
    said = f"<p class='quiet' role='status'>{caption}</p>" if caption else ""
    old = "" if current else " class='old'"
    return f"{said}<table{old}><thead>{head}</thead><tbody>{body}</tbody></table>{_CERTIFIED}"


def _amount(value: float, dense: float) -> str:
    """A share or a count: no network has a single weight, so what is above 1 before pruning is counted."""
    if not math.isfinite(value):
        return text.NONE
    return text.count(value) if dense > 1 else text.percent(value)


def status_html(job: JobStatus, curve: CurveView | None = None) -> str:
    """A progress bar, what is being done, and how long it still takes; between jobs, how far the curve is measured."""
    if not job.busy and curve is not None and job.state != "failed":
        known, all_of_them = curve.progress
        if known < all_of_them:
            ended = f"{text.escape(job.message)}; " if job.message else ""
            said = f"{ended}measuring coverage: {known} of {all_of_them} positions"
            return f"<progress max='1' value='{known / all_of_them:.3f}'></progress><p role='status'>{said}</p>"
    if job.state == "idle":
        return ""
    # the sentence of an error stands in the alert, and it may be long
    message = text.escape(f"{job.name} failed; nothing has changed" if job.state == "failed" else job.message)
    if not job.busy:
        return f"<p class='quiet' role='status'>{message}</p>"
    value = f" value='{job.progress:.3f}'" if job.progress > 0 else ""  # without a value the bar says “some time”
    left = "" if job.seconds_left is None else f", about {duration(job.seconds_left)} left"
    return f"<progress max='1'{value}></progress><p>{message}{left}</p>"


def taken_html(name: str, size: int) -> str:
    """Which file went to the browser's downloads, and how large it is."""
    large = f"{text.significant(size / 1e6, 2)}{text.THIN}MB"
    return f"<p class='quiet' role='status'>{text.escape(name)}, {large}, is in your downloads</p>"


def alert_html(message: str) -> str:
    """An error as a sentence, announced by screen readers."""
    return f"<p role='alert'>{text.escape(message)}</p>" if message else ""


def dense_html(info: Mapping[str, Any], n_samples: int, split: str) -> str:
    """How good the network is before anything is removed, on the images of the preview."""
    accuracy = info.get("dense_accuracy")
    if accuracy is None:
        return "<p class='quiet'>dense accuracy: being measured …</p>"
    images = f"{text.count(n_samples)} {text.escape(split)} images"
    return f"<p>dense accuracy <b>{text.percent(accuracy)}</b> <span class='quiet'>on {images}</span></p>"


def footer_html(job: JobStatus, info: Mapping[str, Any], version: str, curve: CurveView | None = None) -> str:
    """One line: what is being done, what runs where, versions, where the data come from."""
    known, all_of_them = (0, 0) if curve is None else curve.progress
    device = str(info.get("device", "")) or text.NONE
    versions = str(info.get("versions", ""))
    parts = [
        f"{job.name}: {job.state}" if job.name else "",
        f"measuring coverage: {known} of {all_of_them}" if known < all_of_them else "",
        f"locked layers let {text.percent(curve.limit)} go at most" if curve is not None and curve.limit < 1 else "",
        f"runs on {device}",
        versions if "mpviz" in versions else f"{versions} · mpviz {version}".strip(" ·"),
        str(info.get("data", "")),
    ]
    return "<p class='line'>" + " │ ".join(text.escape(part) for part in parts if part) + "</p>"


def why_html(view: CertificateView | None, shown: str, row: int | None, tiers: Sequence[str]) -> str:
    """Under the proofs: why one of these tiers says nothing, or why one sample is certified or not."""
    if view is None or row is None or shown == "attribution":
        return ""
    if shown == "tiers":
        reasons = sorted({*(view.why.get(name, "") for name in tiers), view.scope_why} - {""})
        if view.scope != "all layers":
            reasons.insert(0, f"Green: {view.scope}, others dense; blue: all layers pruned")
        return f"<div role='status'>{' '.join(text.escape(reason) + '.' for reason in reasons)}</div>"
    lines = "<br>".join(text.escape(line) for line in why_not(view.samples, row, view.classes))
    closest = row == int(view.samples.pruned_margin.argmin())
    which = f"sample {int(view.samples.index[row])}{', the closest call' if closest else ''}"
    return f"<div role='status'><b>{which}</b><span>; another one: under samples</span><br>{lines}</div>"
