from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpviz as mp
from mpviz.certificates import preview_store
from mpviz.certificates.anchored import AnchoredPreview
from mpviz.certificates.margins import compare_logits
from mpviz.certificates.resume import Tail, finished_before, layer_outputs, trace
from mpviz.errors import BudgetError, Cancelled, DataError
from mpviz.nets.forward import logits
from mpviz.prune.masks import Ranking

SMALL: dict[str, Any] = {"anchors": (0.0, 0.3, 0.6, 0.9), "grid": (0.0, 0.25, 0.5, 0.75, 1.0), "held_out": 3}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MPVIZ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(36, 30),
            nn.ReLU(inplace=True),
            nn.Linear(30, 30),
            nn.ReLU(inplace=True),
            nn.Linear(30, 30),
            nn.ReLU(),
            nn.Linear(30, 4),
        ).eval()


@dataclass
class Problem:
    model: nn.Module
    x: Tensor
    y: Tensor
    family: Ranking

    def preview(self, **settings: Any) -> AnchoredPreview:
        return AnchoredPreview(self.model, self.x, self.y, self.family, self.family.counts, **(SMALL | settings))


def problem() -> Problem:
    g = torch.Generator().manual_seed(8)
    model, x = network(), torch.randn(60, 1, 6, 6, generator=g)
    return Problem(model, x, torch.randint(0, 4, (60,), generator=g), Ranking(model))


def exact(p: Problem, counts: Mapping[str, int]) -> np.ndarray:
    return logits(p.model, p.x, p.family.masks(counts)).numpy()


def test_exact_at_anchors_and_where_one_layer_is_at_a_grid_point() -> None:
    p = problem()
    preview = p.preview()
    for s in SMALL["anchors"]:
        counts = p.family.counts(s)
        np.testing.assert_allclose(preview._look.logits(preview._vector(counts)), exact(p, counts), atol=1e-5)
    for name in preview.names:
        for share in SMALL["grid"]:
            counts = preview.counts_of({name: share})
            np.testing.assert_allclose(preview._look.logits(preview._vector(counts)), exact(p, counts), atol=1e-5)


def test_the_dense_network_is_exact_and_the_words_agree_with_the_measured_certificate() -> None:
    p = problem()
    preview = p.preview()
    dense = preview.estimate(dict.fromkeys(preview.names, 0))
    assert (dense.coverage, dense.unchanged, dense.tier, dense.sparsity) == (1.0, 1.0, "estimate", 0.0)
    assert dense.eta.max() == 0.0
    counts = preview.counts_of({preview.names[0]: 0.61, preview.names[1]: 0.37})
    cert = compare_logits(logits(p.model, p.x), torch.tensor(exact(p, counts)), p.y)
    guess, measured = preview.estimate(counts), preview.measure(counts)
    assert (measured.coverage, measured.unchanged, measured.accuracy) == (cert.coverage, cert.unchanged, cert.accuracy)
    np.testing.assert_allclose(measured.eta, cert.eta, atol=1e-12)
    assert not np.array_equal(guess.eta, measured.eta)


def test_what_was_measured_replaces_the_estimate_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpviz.certificates.anchored.REMEMBERED", 2)
    p = problem()
    preview = p.preview(held_out=0)
    several = [p.family.counts(s) for s in (0.41, 0.52, 0.71)]
    assert preview.at(several[0]).tier == "estimate"
    for counts in several:
        assert preview.measure(counts).tier == preview.at(counts).tier == "measured"
    assert [preview.at(counts).tier for counts in several] == ["estimate", "measured", "measured"]


def test_the_error_is_measured_on_held_out_budgets() -> None:
    p = problem()
    preview = p.preview(held_out=4)
    assert [e.kind for e in preview.error] == ["slider with up to 3 overrides", "arbitrary budgets"]
    for error, budgets in zip(preview.error, preview.held_out(p.family.counts, 4, 0).values(), strict=True):
        off = [100 * abs(preview.estimate(c).coverage - preview.measure(c).coverage) for c in budgets]
        assert error.coverage == pytest.approx(np.mean(off)) and error.worst == pytest.approx(max(off))
    assert preview.estimate(p.family.counts(0.5)).error == preview.error
    assert preview.measure(p.family.counts(0.5)).error == ()


def test_the_same_again_comes_from_disk_and_is_equal(own_cache: Path) -> None:
    p = problem()
    first, second = p.preview(), p.preview()
    assert (first.from_cache, second.from_cache) == (False, True) and first.error == second.error
    counts = p.family.counts(0.47)
    assert np.array_equal(first.estimate(counts).margins, second.estimate(counts).margins)
    (file,) = own_cache.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-7])
    assert not p.preview().from_cache


def _one_ulp(p: Problem) -> None:
    weight = p.model[7].weight  # type: ignore[index]
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))


def _one_pixel(p: Problem) -> None:
    p.x = p.x.clone()
    p.x[0, 0, 0, 0] += 1e-6


def _one_label(p: Problem) -> None:
    p.y = (p.y + (torch.arange(60) == 3)) % 4


def _activation(p: Problem) -> None:
    p.model[6] = nn.GELU().eval()  # type: ignore[operator]


def _order(p: Problem) -> None:
    name = p.family.names[0]
    p.family._order[name] = p.family._order[name].flip(0)


@pytest.mark.parametrize("change", [_one_ulp, _one_pixel, _one_label, _activation, _order])
def test_anything_that_changed_makes_new_tables(change: Callable[[Problem], None]) -> None:
    p = problem()
    p.preview()
    change(p)
    assert not p.preview().from_cache
    assert p.preview().from_cache


def test_code_that_changed_behind_the_same_weights_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem()
    p.preview()
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x.abs())
    assert not p.preview().from_cache


def test_cancel_leaves_nothing_behind(own_cache: Path) -> None:
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 12

    with pytest.raises(Cancelled):
        problem().preview(cancelled=cancelled)
    assert asked == 13 and not list(own_cache.rglob("*"))


def test_a_write_that_dies_leaves_nothing_whole(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    def die(arrays: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(preview_store, "save_file", die)
    with pytest.raises(KeyboardInterrupt):
        problem().preview()
    assert not [path for path in own_cache.rglob("*") if path.is_file()]


def test_progress_rises_to_one() -> None:
    told: list[float] = []
    problem().preview(progress=lambda done, what: told.append(done))
    assert told == sorted(told) and told[-1] == pytest.approx(1.0) and len(told) > 8


def test_half_precision_takes_less_and_is_close() -> None:
    p = problem()
    full, halved = p.preview(), p.preview(dtype="float16")
    assert halved.nbytes < full.nbytes and not halved.from_cache
    counts = p.family.counts(0.47)
    np.testing.assert_allclose(halved.estimate(counts).margins, full.estimate(counts).margins, atol=5e-3)


def test_bad_input() -> None:
    p = problem()
    with pytest.raises(BudgetError, match=r"takes .* MiB, the limit is .*take at most \d+ samples.*float16"):
        p.preview(memory_limit=10_000)
    with pytest.raises(DataError, match="one sample"):
        AnchoredPreview(p.model, p.x[:0], p.y[:0], p.family, p.family.counts)
    with pytest.raises(BudgetError, match="same layers: other is in one only"):
        AnchoredPreview(p.model, p.x, p.y, p.family, lambda s: p.family.counts(s) | {"other": 0}, **SMALL)
    with pytest.raises(DataError, match="NaN"):
        AnchoredPreview(p.model, p.x * torch.nan, p.y, p.family, p.family.counts, **SMALL)
    preview = p.preview()
    name = preview.names[0]
    with pytest.raises(BudgetError, match="did you mean"):
        preview.estimate(dict.fromkeys(preview.names, 0) | {name + "s": 1})
    with pytest.raises(BudgetError, match="no budget for"):
        preview.estimate({name: 0})
    with pytest.raises(BudgetError, match="cannot be removed"):
        preview.estimate(dict.fromkeys(preview.names, 0) | {name: 10**6})
    with pytest.raises(BudgetError, match=r"in \[0, 1\]"):
        preview.counts_of({name: 1.5})


class Brittle(nn.Module):
    """Divides by the sum of what the second layer's weight lets through: not finite once all of it is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) / self.body[3].weight.abs().sum()  # type: ignore[index, operator]


def test_logits_that_are_not_finite_name_the_layer() -> None:
    p = problem()
    model = Brittle().eval()
    family = Ranking(model)
    with pytest.raises(DataError, match=r"body\.3\.weight alone pruned"):
        AnchoredPreview(model, p.x, p.y, family, family.counts, **SMALL)


@pytest.mark.parametrize("name", ["fashion-vit", "fashion-resnet"])
def test_resumed_runs_equal_whole_ones(name: str) -> None:
    model = mp.load_model(name)
    x = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    calls, masks = trace(model, x[:1]), mp.magnitude_masks(model, 0.7)
    for parameter in [list(masks)[i] for i in (0, 5, -1)]:
        tail = Tail(model, calls, parameter)
        assert tail.skipped
        torch.testing.assert_close(tail.record(x), logits(model, x), atol=1e-5, rtol=0)
        whole = logits(model, x, {parameter: masks[parameter]})
        torch.testing.assert_close(tail.run(x, masks[parameter]), whole, atol=1e-5, rtol=0)
        assert not torch.allclose(whole, logits(model, x), atol=1e-3)


def test_a_network_that_cannot_be_resumed_is_run_whole() -> None:
    p = problem()
    model = Brittle().eval()  # uses a weight outside its module as well
    model.body[1].weight = nn.Parameter(torch.randn(30, 36))  # type: ignore[index, union-attr]
    name = "body.3.weight"
    mask = torch.rand(30, 30, generator=torch.Generator().manual_seed(0)) < 0.5
    found = layer_outputs(model, trace(model, p.x), name, [mask], [p.x[:40], p.x[40:]], lambda: None)
    torch.testing.assert_close(found[0], logits(model, p.x, {name: mask}), atol=1e-5, rtol=0)
    tied = network()
    tied[5].weight = tied[3].weight  # type: ignore[index, union-attr]
    assert finished_before(tied, trace(tied, p.x), "3.weight") == []
    found = layer_outputs(tied, trace(tied, p.x), "3.weight", [mask], [p.x], lambda: None)
    torch.testing.assert_close(found[0], logits(tied, p.x, {"3.weight": mask}), atol=1e-5, rtol=0)
