"""Proofs and previews as jobs of a workbench."""

from __future__ import annotations

import numpy as np
import pytest

from mpviz.workbench.names import TIERS
from mpviz.workbench.proofs import PROVED
from mpviz.workbench.proving import PROVED_ON
from mpviz.workbench.state import Workbench


@pytest.fixture(scope="module")
def wb() -> Workbench:
    wb = Workbench("fashion-mlp", beta=0.0, sparsity=0.3)
    yield wb  # type: ignore[misc]
    wb.close()


@pytest.fixture(scope="module")
def proved(wb: Workbench) -> Workbench:
    """The workbench with proofs of 40 samples."""
    assert wb.proofs is None
    assert wb.proofs_are_current
    assert wb.certify(40).wait(120).state == "done"
    return wb


def test_every_tier_is_below_what_is_measured(proved: Workbench) -> None:
    view = proved.proofs
    assert view is not None
    assert view.violations == 0
    assert view.scope == "all layers"
    unchanged = view.curves["unchanged"].coverage
    for name in (*PROVED, "ball"):
        assert (view.curves[name].coverage <= unchanged + 1e-12).all()
        assert view.curves[name].tier == "bound"
    assert view.curves["population"].tier == "population"
    assert view.curves["first order"].tier == "estimate"
    assert view.curves["gaussian"].tier == "gaussian"
    assert (view.curves["bracket"].coverage <= view.curves["slider"].coverage + 1e-12).all()
    assert list(view.curves) == list(TIERS)
    assert (view.curves["population"].coverage < unchanged).all()
    assert view.here["slider"] > 0.9
    assert len(view.samples) == 40
    assert len(view.samples.pictures) == 40
    steps = view.samples.steps.sum(axis=1)
    moved = view.samples.pruned_margin - view.samples.margin
    same = ~view.samples.changed & (view.samples.dense_top[:, 1] == view.samples.pruned_top[:, 1])
    np.testing.assert_allclose(steps[same], moved[same], atol=1e-4)


def test_proofs_grow_old_with_the_plan_and_go_with_the_network(proved: Workbench) -> None:
    proved.sparsity = 0.4
    assert not proved.proofs_are_current
    proved.sparsity = 0.3
    assert proved.proofs_are_current


def test_a_proof_looks_at_the_samples_of_the_preview_and_not_at_more_than_it_can_in_a_while(
    wb: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("mpviz.workbench.proving.ask", lambda *given: asked.append(given[-1]))
    monkeypatch.setattr(wb, "_run", lambda *given: None)
    for number in (40, 2000):
        wb.samples = number
        wb.certify()
    wb.certify(1500)
    assert asked == [40, PROVED_ON, 1500]


def test_a_cancelled_proof_leaves_the_last_one(proved: Workbench) -> None:
    before = proved.proofs
    assert before is not None
    job = proved.certify(1000)
    job.cancel()
    assert job.wait(60).state == "cancelled"
    assert proved.proofs is before


def test_tables_estimate_what_is_not_measured_yet(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("MPVIZ_CACHE", str(tmp_path))
    wb = Workbench("fashion-mlp", samples=100, sparsity=0.3)
    try:
        assert wb.curve.current is None
        job = wb.precompute(anchors=(0.0, 0.2, 0.4, 0.6, 0.8), grid=(0.0, 0.3, 0.6, 0.9), held_out=3)
        assert job.wait(120).state == "done", job.status
        now = wb.curve.current
        assert now["tier"] == "estimate"
        assert now["error"] >= 0
        wb.beta = 0.5
        assert wb.curve.current["tier"] == "estimate"
        estimate = wb.curve.current["coverage"]
        assert wb.preview.tier == "measured"
        assert wb.curve.current["tier"] == "measured"
        assert abs(wb.curve.current["coverage"] - estimate) < 0.25
        wb.samples = 50
        assert wb.curve.current is None
    finally:
        wb.close()
