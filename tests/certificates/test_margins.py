"""The measured tier: sound on every bundled network, and its tests notice a certificate that is not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mpviz as mp
from mpviz.certificates.margins import compare_logits, top_margin
from mpviz.certificates.preview import Preview, coverage_curve
from mpviz.errors import Cancelled, DataError, MpvizError
from mpviz.nets.data import Split
from mpviz.nets.forward import logits, masked_copy
from mpviz.prune.masks import Ranking

NAMES = ["fashion-mlp", "fashion-mlp-l1", "fashion-vit", "fashion-resnet"]


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.0, 3.0), classes=st.integers(2, 12))
def test_a_certified_label_cannot_change(seed, scale, classes):
    rng = torch.Generator().manual_seed(seed)
    dense = torch.randn(64, classes, generator=rng)
    direction = torch.randn(64, classes, generator=rng).sign()  # all logits move by the same eta: the worst case
    cert = compare_logits(dense, dense + scale * direction, torch.zeros(64, dtype=torch.long))
    assert cert.violations == 0
    assert cert.coverage <= cert.unchanged
    assert (cert.slack >= -1e-6).all()


def test_the_bound_is_tight_and_a_halved_perturbation_would_lie():
    dense = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    pruned = torch.tensor([[0.51, 0.49], [0.49, 0.51], [0.5, 0.5]])
    cert = compare_logits(dense, pruned, torch.zeros(3, dtype=torch.long))
    assert cert.certified.tolist() == [True, False, False]
    assert cert.changed.tolist() == [False, True, False]
    assert ((cert.margin > cert.eta) & cert.changed).any(), "margin > eta alone is no certificate"
    assert np.allclose(cert.slack, [0.0, 0.0, 0.0])


@pytest.mark.parametrize("name", NAMES)
def test_coverage_is_never_above_the_share_of_unchanged_predictions(name):
    model = mp.load_model(name)
    images, labels = mp.load_data("fashion-mnist").test.sample(100, seed=1)
    dense, ranking = logits(model, images), Ranking(model)
    seen = []
    for sparsity in (0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9):
        masks = ranking.masks(ranking.counts(sparsity))
        pruned = logits(model, images, masks)
        cert = compare_logits(dense, pruned, labels)
        by_hand = (pruned.argmax(1) == dense.argmax(1)).double().mean().item()
        assert cert.unchanged == pytest.approx(by_hand)
        assert cert.coverage <= by_hand and cert.violations == 0
        seen.append(cert.coverage)
    assert seen[0] == 1.0 and seen[2] > 0.5 and seen[-1] < seen[1]


def test_certify_measures_what_it_says():
    model, splits = mp.load_model("fashion-mlp"), mp.load_data("fashion-mnist")
    pruned = masked_copy(model, mp.magnitude_masks(model, 0.6))
    cert = mp.certify(model, pruned, splits.test, samples=500, seed=3)
    assert len(cert) == 500 and cert.split == "test" and cert.tier == "measured"
    images, labels = splits.test.sample(500, seed=3)
    z, y = model(images).detach().double().numpy(), pruned(images).detach().double().numpy()
    ranked = np.sort(z, axis=1)
    np.testing.assert_allclose(cert.margin, ranked[:, -1] - ranked[:, -2], atol=1e-4)
    np.testing.assert_allclose(cert.eta, np.abs(y - z).max(axis=1), atol=1e-4)
    assert cert.accuracy == pytest.approx((y.argmax(1) == labels.numpy()).mean())
    row = cert.table().iloc[7]
    assert splits.test.dataset[int(row.name)][1] == row["labels"]
    assert (mp.certify(model, model, splits.calibration).coverage) == 1.0


def test_refusals():
    model, splits = mp.load_model("fashion-mlp"), mp.load_data("fashion-mnist")
    with pytest.raises(MpvizError, match="did you mean 'measured'"):
        mp.certify(model, model, splits.test, tiers=("mesured",))
    with pytest.raises(DataError, match="empty"):
        mp.certify(model, model, Split("test", torch.utils.data.TensorDataset(torch.zeros(0, 1)), ()))
    z, y = torch.randn(4, 3), torch.zeros(4, dtype=torch.long)
    with pytest.raises(DataError, match="do not fit"):
        compare_logits(z, z[:3], y)
    with pytest.raises(DataError, match="labels run from 0 to 7"):
        compare_logits(z, z, torch.tensor([0, 1, 2, 7]))
    with pytest.raises(DataError, match="pruned network gives NaN"):
        compare_logits(z, z * float("nan"), y)
    with pytest.raises(DataError, match="two classes"):
        top_margin(z[:, :1])


@pytest.fixture(scope="module")
def preview():
    model = mp.load_model("fashion-mlp")
    images, labels = mp.load_data("digits").test.sample(50)
    images = torch.nn.functional.interpolate(images, size=28)
    ranking = Ranking(model)
    return Preview(model, images, labels, lambda s: ranking.masks(ranking.counts(s)))


def test_preview_measures_estimates_and_never_mixes_them(preview):
    assert preview.at(0.5) is None
    low, high = preview.measure(0.4), preview.measure(0.8)
    assert low.tier == high.tier == "measured"
    between = preview.at(0.5)
    assert between.tier == "estimate"
    assert between.coverage == pytest.approx(0.75 * low.coverage + 0.25 * high.coverage)
    assert preview.at(0.9) is None, "no extrapolation"
    assert preview.measure(0.5).tier == preview.at(0.5).tier == "measured"
    cert = preview.certificate(0.5)
    assert preview.at(0.5).coverage == cert.coverage


def test_curve_positions_progress_and_cancel(preview):
    told = []
    points = coverage_curve(
        preview.model, preview.images, preview.labels, preview.masks_at, progress=lambda f, m: told.append(f)
    )
    assert len(points) == 21 and told[-1] == 1.0
    assert [p.sparsity for p in points] == sorted(p.sparsity for p in points)
    assert points[0].coverage == 1.0
    assert all(p.tier == "measured" and p.coverage <= p.unchanged for p in points)
    with pytest.raises(Cancelled):
        coverage_curve(preview.model, preview.images, preview.labels, preview.masks_at, cancelled=lambda: True)


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_no_rounding_puts_coverage_above_the_share_unchanged(n):
    for certified in range(n + 1):
        dense = torch.tensor([[1.0, 0.0]]).repeat(n, 1)
        pruned = dense.clone()
        pruned[certified:] = torch.tensor([0.0, 1.0])
        cert = compare_logits(dense, pruned, torch.zeros(n, dtype=torch.long))
        assert cert.coverage == cert.unchanged == certified / n


@pytest.mark.parametrize("arguments", [{"tiers": ()}, {"delta": float("nan")}, {"delta": 1.0}])
def test_certify_refuses_no_tier_and_no_probability(arguments):
    model = mp.load_model("fashion-mlp")
    with pytest.raises(MpvizError):
        mp.certify(model, model, mp.load_data("digits").test, **arguments)
