"""One run as one HTML file: figures that answer the mouse, tables, recipe. Nothing is fetched when it is opened."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from mpviz.errors import ModelError
from mpviz.ui import text
from mpviz.ui._report_page import Content, comparison_head, comparison_rows, page, points
from mpviz.workbench.sources import spectrum_view
from mpviz.workbench.views import CurveView

if TYPE_CHECKING:
    import pandas as pd

    from mpviz.run_results import RunResult
    from mpviz.workbench.state import Workbench

__all__ = ["comparison_head", "comparison_rows", "report_html", "workbench_html"]


def report_html(
    result: RunResult, curve: CurveView | None = None, theme: str = "light", when: datetime | None = None
) -> str:
    """The report of a finished run as one HTML page of its own.

    curve: coverage over sparsity; None takes the curve of the run, where it measured one. when: the date in the
    footer, now when None. Raises MpvizError for an unknown theme.
    """
    cert, name, budgets = result.certificate, result.recipe.model.name, result.budgets
    curve = curve or curve_view(result)
    headline, details = _headline(budgets, cert.coverage, name), _details(result)
    if result.recovered is not None:
        headline = _recovered_headline(result)
    content = Content(
        model=name,
        data=result.recipe.data.name,
        headline=headline,
        details=details,
        tier=cert.tier,
        table=result.table,
        budgets=budgets,
        views=[spectrum_view(layer) for layer in result.spectra.values()],
        recipe=result.recipe.to_toml(),
        comparison=result.comparison,
        curve=curve,
        curve_note="" if curve is None else _curve_note(curve, result),
    )
    return page(content, theme, when or datetime.now().astimezone())


def _details(result: RunResult) -> str:
    cert, name = result.certificate, result.recipe.model.name
    on, gone = f"On {text.count(len(cert))} {cert.split} images", f"{_removed(result.budgets)} are gone"
    dense, pruned = text.percent(cert.dense_accuracy), text.percent(cert.accuracy)
    if result.recovered is None:
        return (
            f"{on}, {text.percent(cert.unchanged)} of the predictions are in fact unchanged, and accuracy goes from "
            f"{dense} to {pruned} ({points(cert.accuracy - cert.dense_accuracy)}). {gone}, without any training "
            "afterwards."
        )
    after, epochs = result.recovered.certificate, result.recipe.recover.epochs
    return (
        f"{on}, the dense network is right on {dense}. {gone}; training for {epochs:g} epoch"
        f"{'' if epochs == 1 else 's'} of the training split, the dense network its teacher, takes accuracy from "
        f"{pruned} to {text.percent(after.accuracy)}. {text.percent(after.unchanged)} of the predictions are then the "
        f"same as those of the dense {name}, {text.percent(after.coverage)} certified so."
    )


def _curve_note(curve: CurveView, result: RunResult) -> str:
    note = "" if result.recovered is None else "The curve is of pruning alone, without training. "
    return f"{note}{_preview_note(curve.n_samples, len(result.certificate))}".strip()


def _preview_note(images: int, of: int) -> str:
    """How far a curve of some images may be from the numbers of all."""
    if images == of:
        return ""
    # two standard errors of a share of one half: no share scatters more
    return (
        f"The curve is measured on {text.count(images)} of the {text.count(of)} images, which leaves up to about "
        f"±{text.significant(100 / images**0.5, 1)} points between it and the numbers above."
    )


def workbench_html(workbench: Workbench, theme: str = "light", when: datetime | None = None) -> str:
    """The report of a workbench as it stands: its plan and preview, and before and after where it has pruned."""
    curve, budgets = workbench.curve, workbench.budgets
    if curve is not None and (curve.stale or not np.isfinite(curve.coverage).any()):
        curve = None  # nothing is measured for these budgets yet
    now = None if curve is None else curve.current
    pruned = workbench.certificate if workbench.comparison_is_current else None
    if pruned is not None:  # on the whole split, where the curve beside it has some images
        tier = pruned.tier
        headline = _headline(budgets, pruned.coverage, workbench.model)
        details = (
            f"On {text.count(len(pruned))} {pruned.split} images, {text.percent(pruned.unchanged)} of the predictions "
            f"stay the same and {text.percent(pruned.accuracy)} are right. "
        )
    elif curve is None or now is None or not np.isfinite(now["coverage"]):
        share = text.percent(_share(budgets))
        headline, details, tier = f"{workbench.model} with {share} of its prunable weights chosen to go", "", ""
    else:
        tier = str(now["tier"])
        headline = _headline(budgets, now["coverage"], workbench.model)
        details = (
            f"On {text.count(curve.n_samples)} {curve.split} images, {text.percent(now['unchanged'])} of the "
            f"predictions stay the same and {text.percent(now['accuracy'])} are right. "
        )
    content = Content(
        model=workbench.model,
        data=workbench.data,
        headline=headline,
        details=f"{details}{_removed(budgets)} go.",
        tier=tier,
        table=workbench.table,
        budgets=budgets,
        views=[spectrum_view(layer) for layer in workbench.spectra.values()],
        recipe=_recipe_text(workbench),
        comparison=workbench.comparison,
        caveat="" if workbench.comparison_is_current else "Pruned with other settings than those of this report.",
        curve=curve,
        curve_note="" if curve is None or pruned is None else _preview_note(curve.n_samples, len(pruned)),
        proofs=workbench.proofs if workbench.proofs_are_current else None,
        layer=workbench.layer,
    )
    return page(content, theme, when or datetime.now().astimezone())


def _share(budgets: pd.DataFrame) -> float:
    return float(budgets["removed"].sum() / budgets["params"].sum())


def _recipe_text(workbench: Workbench) -> str:
    try:
        return workbench.export_recipe()
    except ModelError as error:  # a network that was given as a module has none
        return f"# {error}\n"


def _removed(budgets: pd.DataFrame) -> str:
    return f"{text.count(budgets['removed'].sum())} of {text.count(budgets['params'].sum())} prunable weights"


def _headline(budgets: pd.DataFrame, coverage: float, model: str) -> str:
    return (
        f"With {text.percent(_share(budgets))} of its prunable weights removed, {text.percent(coverage)} "
        "of the predictions of "
        f"{model} are certified unchanged"
    )


def _recovered_headline(result: RunResult) -> str:
    assert result.recovered is not None
    cert, after = result.certificate, result.recovered.certificate
    return (
        f"With {text.percent(_share(result.budgets))} of its prunable weights removed and trained again, "
        f"{result.recipe.model.name} is right on {text.percent(after.accuracy)} of the images (dense "
        f"{text.percent(cert.dense_accuracy)})"
    )


def curve_view(result: RunResult) -> CurveView | None:
    """The run's own coverage curve as the figure takes it, None when the run measured none."""
    if result.curve is None or result.curve.empty:
        return None
    frame = result.curve.sort_values("sparsity")
    chosen = frame[np.isclose(frame["sparsity"], result.recipe.budget.sparsity, atol=1e-6)]
    positions, coverage, unchanged, accuracy = (
        frame[name].to_numpy(dtype=float) for name in ("sparsity", "coverage", "unchanged", "accuracy")
    )
    return CurveView(
        positions,
        coverage,
        unchanged,
        accuracy,
        current=None if chosen.empty else {str(name): value for name, value in chosen.iloc[0].items()},
        n_samples=int(frame["samples"].iloc[0]),
        split=result.certificate.split,
    )
