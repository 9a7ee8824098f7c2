from __future__ import annotations

import pytest
import torch
from torch import nn

from mpviz.certificates.preview import Preview, coverage_curve
from mpviz.errors import Cancelled
from mpviz.prune.masks import Ranking


@pytest.fixture
def preview() -> Preview:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3)).eval()
        x = torch.randn(40, 1, 3, 3)
    family = Ranking(model)
    return Preview(model, x, torch.arange(40) % 3, lambda s: family.masks(family.counts(s)))


def test_between_measured_positions_the_tier_is_estimate_and_outside_there_is_none(preview: Preview) -> None:
    low, high = preview.measure(0.2), preview.measure(0.6)
    between = preview.at(0.4)
    assert between is not None and between.tier == "estimate" and low.tier == high.tier == "measured"
    assert between.coverage == pytest.approx((low.coverage + high.coverage) / 2)
    assert preview.at(0.1) is None and preview.at(0.7) is None


def test_the_measured_value_replaces_the_estimate(preview: Preview) -> None:
    for s in (0.2, 0.6):
        preview.measure(s)
    measured = preview.measure(0.4)
    assert preview.at(0.4) == measured and measured.tier == "measured"
    cert = preview.certificate(0.4)
    assert (measured.coverage, measured.unchanged, measured.accuracy) == (cert.coverage, cert.unchanged, cert.accuracy)


def test_a_curve_starts_dense_and_can_be_cancelled(preview: Preview) -> None:
    told: list[float] = []
    points = coverage_curve(
        preview.model,
        preview.images,
        preview.labels,
        preview.masks_at,
        (0.0, 0.5),
        lambda done, what: told.append(done),
    )
    assert points[0].coverage == 1.0 and [p.sparsity for p in points] == [0.0, 0.5] and told == [0.5, 1.0]
    with pytest.raises(Cancelled):
        preview.measure(0.3, cancelled=lambda: True)
    assert not preview.points()
