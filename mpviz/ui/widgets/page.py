"""The HTML around the figures: style sheet, before/after table, lines for status, work and errors. All escaped."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mpviz.ui import text
from mpviz.ui.css import variables
from mpviz.ui.tables import chip
from mpviz.ui.theme import FONT, faint, palette

if TYPE_CHECKING:
    import pandas as pd

    from mpviz.workbench.views import JobStatus

_RULES = """
.mpviz { font: 12px/1.45 %(font)s; color: %(ink)s; background: %(paper)s; border: 1px solid %(grid)s;
  border-radius: 6px; padding: 6px 10px; overflow: hidden; }
.mpviz .widget-box, .mpviz .mpviz-plot { overflow: hidden; }
.mpviz .widget-html-content { font: inherit; line-height: 1.45; color: %(ink)s; overflow: hidden; }
.mpviz .widget-inline-hbox .widget-label { color: %(ink)s; }
.mpviz .widget-readout { color: %(ink)s; min-width: 34px; width: 34px; text-align: right; }
.mpviz .jupyter-button { border-radius: 4px; font-size: 12px; padding: 0 3px; }
.mpviz .jupyter-button:not(.mod-primary) { background: %(paper)s; color: %(ink)s; border: 1px solid %(axis)s; }
.mpviz .jupyter-button.mod-active { background: %(chosen)s; color: %(focus)s; border-color: %(focus)s;
  box-shadow: none; }
.mpviz .mpviz-look select { padding: 0 2px 0 4px; font-size: 12px; }
.mpviz .mpviz-recipe textarea { background: %(paper)s; color: %(ink)s; border-color: %(axis)s;
  font: 11px/1.45 monospace; }
.mpviz .jupyter-button:disabled { opacity: 0.5; }
.mpviz :focus-visible { outline: 2px solid %(focus)s; outline-offset: 1px; }
.mpviz .noUi-connect { background: %(focus)s; }
.mpviz .mpviz-quiet { color: %(muted)s; }
.mpviz .mpviz-line { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.mpviz .mpviz-error { color: %(alarm)s; font-weight: 600; border-left: 4px solid %(alarm)s; padding: 2px 8px; }
.mpviz table.mpviz-table { border-collapse: collapse; width: 100%%; font: inherit; color: inherit;
  font-variant-numeric: tabular-nums; margin: 0; }
.mpviz table.mpviz-table th { font-weight: 600; color: %(muted)s; }
.mpviz table.mpviz-table th, .mpviz table.mpviz-table td { padding: 2px 0 2px 8px; text-align: right;
  border-bottom: 1px solid %(grid)s; background: none; white-space: nowrap; }
.mpviz table.mpviz-table thead th { white-space: normal; vertical-align: bottom; line-height: 1.25; }
.mpviz .mpviz-scroll .widget-html-content { overflow: visible; white-space: normal; }
.mpviz .mpviz-scroll .widget-html { height: auto; width: auto; }
.mpviz .mpviz-why { margin: 0; padding-left: 16px; }
.mpviz .chip { display: inline-block; padding: 0 6px; border: 1px solid currentcolor; border-radius: 8px;
  font-size: 10px; line-height: 13px; }
.mpviz .chip.measured, .mpviz .chip.population { color: var(--measured-text); }
.mpviz .chip.bound { color: var(--bound-text); }
.mpviz .chip.estimate, .mpviz .chip.gaussian { color: var(--estimate-text); }
.mpviz p.theorem { margin: 0 0 8px; padding: 1px 0 1px 9px; border-left: 3px solid var(--estimate-line); }
.mpviz p.theorem.measured, .mpviz p.theorem.population { border-color: var(--measured-line); }
.mpviz p.theorem.bound { border-color: var(--bound-line); }
.mpviz p.theorem.estimate { border-left-style: dotted; }
.mpviz .theorem .quiet { color: %(muted)s; font-size: 11px; }
.mpviz .formula { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, monospace; font-size: 11px; }
.mpviz .mpviz-follow { overflow: auto; display: flex; flex-direction: column-reverse; background: var(--quiet-solid);
  border-radius: 4px; }
.mpviz .mpviz-log { margin: 0; padding: 4px 8px; color: %(ink)s; background: none; white-space: pre;
  font: 11px/1.4 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
.mpviz .mpviz-follow .mpviz-log { flex: none; overflow: visible; }
.mpviz summary { cursor: pointer; }
.mpviz details .mpviz-log { max-height: 150px; overflow: auto; background: var(--quiet-solid); }
.mpviz table.mpviz-old { opacity: 0.55; }
.mpviz table.mpviz-table th:first-child { text-align: left; padding-left: 0; }
"""


def style(theme: str) -> str:
    """The style sheet of the panels that have the class `mpviz-light` or `mpviz-dark`, as an HTML element."""
    colours = palette(theme)
    rules = f".mpviz {{ {variables(colours)} }}\n" + _RULES % {
        "font": FONT,
        "ink": colours.ink,
        "paper": colours.paper,
        "grid": colours.grid,
        "muted": colours.muted,
        "axis": colours.axis,
        "focus": colours.measured.text,
        "chosen": faint(colours.measured.fill, 0.14),
        "alarm": colours.threshold.text,
    }
    return f"<style>{rules.replace('.mpviz ', f'.mpviz-{theme} ')}</style>"


def error_line(message: str) -> str:
    """What went wrong, and what is unharmed; nothing when all is well."""
    if not message:
        return ""
    return f"<div class='mpviz-error' role='alert'>{text.escape(_sentence(message))} Nothing else has changed.</div>"


def _sentence(message: str) -> str:
    message = message.strip()
    message = message[:1].upper() + message[1:]
    return message if message.endswith((".", "!", "?")) else message + "."


def status_line(model: str, data: str, info: dict[str, Any], n_samples: int = 0, split: str = "") -> str:
    """What is looked at, how good it is untouched, on how many images, and what runs where."""
    accuracy = info.get("dense_accuracy")
    known = accuracy is not None and math.isfinite(accuracy)
    images = f" on {text.count(n_samples)} {text.escape(split)} images" if n_samples else ""
    quality = f"dense accuracy <b>{text.percent(accuracy)}</b>{images}" if known else "dense accuracy: being measured …"
    machine = ", ".join(str(info[key]) for key in ("device", "versions") if info.get(key))
    source = f"{info.get('data', data)}; {machine}"
    quiet = f"<span class='mpviz-quiet'> · {text.escape(machine)}</span>"
    return (
        f"<div class='mpviz-line' title='{text.escape(source)}'><b>{text.escape(model)}</b> on {text.escape(data)}"
        f" · {quality}{quiet}</div>"
    )


def job_line(job: JobStatus, caption: str = "") -> str:
    """What the background work does, in words; caption: with what was pruned last, escaped."""
    words = {
        "idle": "",
        "running": job.message,
        "done": f"{job.name} is done",
        "cancelled": job.message,
        "failed": f"{job.name} failed",
    }[job.state]
    if job.state == "running" and job.seconds_left is not None:
        words += f", {seconds(job.seconds_left)} left"
    said = " · ".join(filter(None, (text.escape(words), "" if job.busy else caption)))
    return f"<div class='mpviz-line mpviz-quiet' role='status' style='text-align:right'>{said}</div>"


def seconds(duration: float) -> str:
    """
    >>> seconds(0.4), seconds(12.3), seconds(95)
    ('less than 1 s', '13 s', '1 min 35 s')
    """
    whole = math.ceil(duration)
    if whole <= 1:
        return "less than 1 s"
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def comparison_table(comparison: pd.DataFrame | None, theme: str, current: bool = True) -> str:
    """Before and after the last pruning, a column a quantity.

    current: False greys it, since plan or split are others by now.
    """
    if comparison is None or len(comparison) == 0:
        return "<div class='mpviz-quiet'>Press Prune to see the network before and after, measured on all images.</div>"
    rows = list(comparison[["quantity", "dense", "pruned", "tier"]].itertuples(index=False, name=None))
    tiers = {str(tier) for *_, tier in rows}
    one = chip(tiers.pop(), theme) if len(tiers) == 1 else ""
    names = [_in_lines(text.spaced(str(quantity).removeprefix("predictions "))) for quantity, *_ in rows]
    chips = ["" if one else chip(str(tier), theme) for *_, tier in rows]
    heads = "".join(f"<th scope='col'>{name}{mark}</th>" for name, mark in zip(names, chips, strict=True))
    dense = "".join(f"<td>{_amount(before, before)}</td>" for _, before, _, _ in rows)
    pruned = "".join(f"<td>{_amount(after, before)}{_change(before, after)}</td>" for _, before, after, _ in rows)
    corner = f"<th>{one}</th>"
    old = "" if current else " mpviz-old"
    return (
        f"<table class='mpviz-table{old}'><thead><tr>{corner}{heads}</tr></thead><tbody>"
        f"<tr><th scope='row'>dense</th>{dense}</tr><tr><th scope='row'>pruned</th>{pruned}</tr></tbody></table>"
    )


def _in_lines(name: str) -> str:
    """HTML that breaks behind a comma and, if there is one, nowhere else: three lines of a wide font are too high."""
    parts = text.escape(name).split(", ")
    return ",<br>".join(part.replace(" ", "\u00a0") for part in parts) if len(parts) > 1 else parts[0]


def _amount(value: float, dense: float) -> str:
    """A share or a count: no network has a single weight, so what is above 1 before pruning is counted."""
    return text.count(value) if dense > 1 else text.percent(value)


def _change(dense: float, pruned: float) -> str:
    """How far a quantity moved: shares in percentage points, counts not at all, since they say it themselves."""
    if dense > 1 or not math.isfinite(pruned - dense):
        return ""
    points = round(100 * (pruned - dense), 2)
    words = f"({points:+.3g})".replace("-", "−")
    return "" if points == 0 else f" <span class='mpviz-quiet' title='percentage points'>{words}</span>"
