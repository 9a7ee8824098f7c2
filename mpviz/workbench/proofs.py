"""What can be said about the predictions under the present plan, tier by tier: computed as a job, drawn by any face."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mpviz.certificates.attribution import attribute
from mpviz.certificates.bounds import Options
from mpviz.certificates.certify import Slider, tier_results
from mpviz.certificates.margins import Certificate, TierResult, compare_logits
from mpviz.certificates.population import population_share
from mpviz.certificates.scope import Scope, find_scope
from mpviz.certificates.walk import Start, prepare
from mpviz.errors import DataError
from mpviz.nets.data import Split
from mpviz.nets.forward import logits, pruned_copy
from mpviz.nets.graph import Network
from mpviz.prune.masks import Ranking

Masks = Mapping[str, Tensor]
PROVED = ("slider", "path", "bracket", "sub-masks")
CURVE_TIERS = ("slider", "path", "sub-masks")
POSITIONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
WIDTH = 0.01
SMALLEST = 0.05  # sparsity at which the reach of bounds is tried when the plan removes less
PICTURES = 24
DELTA = 0.05


@dataclass(frozen=True, eq=False)
class TierCurve:
    """One tier along the slider. coverage: Float64["positions"], shares; NaN where nothing is proved: see `why`.

    tier: how it is known (measured, bound, population); about: the set or the population in words. For the population
    tier, `coverage` is the lower limit.
    """

    name: str
    tier: str
    about: str
    coverage: np.ndarray
    why: str = ""


@dataclass(frozen=True, eq=False)
class SampleView:
    """The samples one by one. index: Int["n"] in the split; label: Int["n"]; dense_top, pruned_top: Int["n 2"] classes;
    margin, pruned_margin (of the dense prediction), eta: Float64["n"]. lower: {tier: Float64["n"]}, least margin over
    the set. layers, steps: names and Float64["n layers"], change of the dense top-2 margin by each layer in turn.
    pictures: {row: UInt8["h w"] or UInt8["h w 3"]} of those that flip or nearly flip.
    """

    index: np.ndarray
    label: np.ndarray
    dense_top: np.ndarray
    pruned_top: np.ndarray
    margin: np.ndarray
    pruned_margin: np.ndarray
    eta: np.ndarray
    lower: Mapping[str, np.ndarray]
    layers: tuple[str, ...]
    steps: np.ndarray
    pictures: Mapping[int, np.ndarray]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def changed(self) -> np.ndarray:
        """Bool["n"]: another prediction after pruning."""
        return self.dense_top[:, 0] != self.pruned_top[:, 0]

    @property
    def certified(self) -> np.ndarray:
        """Bool["n"], measured: margin > 2η."""
        return self.margin > 2 * self.eta


@dataclass(frozen=True, eq=False)
class CertificateView:
    """Everything the certificate figures draw. sparsity: of the plan; positions: Float64["positions"] of the curves.

    here: {tier: share at the plan itself}; about: {tier: its set in words}; why: {tier: why nothing is proved}.
    attribution: {layer: mean |change| of the top-2 margin}; eta_share: {layer: its share of the logit steps}.
    scope: the layers whose masks the bounds speak about, all others dense, and scope_why, why not all. delta: the
    population tier's chance to fail. violations: certified predictions that changed; any but 0 disproves a bound.
    """

    model: str
    split: str
    classes: tuple[str, ...]
    sparsity: float
    positions: np.ndarray
    curves: Mapping[str, TierCurve]
    here: Mapping[str, float]
    about: Mapping[str, str]
    why: Mapping[str, str]
    samples: SampleView
    attribution: Mapping[str, float]
    eta_share: Mapping[str, float]
    violations: int
    scope: str = "all layers"
    scope_why: str = ""
    delta: float = DELTA


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked: a network, a nested family with frozen weights, the plan's sparsity, the most that can go."""

    name: str
    network: nn.Module
    masks_at: Callable[[float], Masks]
    sparsity: float
    limit: float
    split: Split
    samples: int
    seed: int = 0


def prove(
    question: Question,
    tell: Callable[[float, str], None] = lambda share, what: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> CertificateView:
    """All tiers at the plan and along the slider. Raises Cancelled, and the errors of `certify`."""
    q = question
    images, labels = q.split.sample(min(q.samples, len(q.split)), q.seed)
    tell(0.01, "measuring the dense network")
    dense = logits(q.network, images, cancelled=cancelled)
    positions = [s for s in POSITIONS if s < q.limit]
    masks = q.masks_at(q.sparsity)
    tell(0.02, "looking how far bounds reach")
    scope = find_scope(q.network, q.masks_at(max(q.sparsity, SMALLEST)), images, Options(cancelled=cancelled))
    ready = prepare(scope.network, scope.layers, images) if scope.network is not None and scope.layers else None
    cert = _certificate(q, scope, ready, dense, images, labels, q.sparsity, PROVED, cancelled)
    population = population_share(~cert.changed, DELTA, split="test").low if q.split.name == "test" else np.nan
    found = []
    for i, s in enumerate(positions):
        tell(0.1 + 0.6 * i / len(positions), f"proving at {100 * s:.0f} % sparsity")
        found.append(_certificate(q, scope, ready, dense, images, labels, s, CURVE_TIERS, cancelled))
    tell(0.7, "what each layer changes")
    some = {name: mask for name, mask in masks.items() if not bool(mask.all())} or dict(masks)
    parts = attribute(
        q.network, images, some, progress=lambda f: tell(0.7 + 0.25 * f, "what each layer changes"), cancelled=cancelled
    )
    pruned = logits(q.network, images, masks, cancelled=cancelled)
    steps = np.abs(parts.step).sum(axis=0)
    return CertificateView(
        model=q.name,
        split=q.split.name,
        classes=tuple(q.split.classes),
        sparsity=q.sparsity,
        positions=np.array(positions),
        curves=_curves(found, q.split.name, len(positions)),
        here={"measured": cert.coverage, "unchanged": cert.unchanged, "population": population}
        | {name: tier.coverage for name, tier in cert.tiers.items()},
        about={name: tier.about for name, tier in cert.tiers.items()},
        why={name: tier.why for name, tier in cert.tiers.items() if tier.why},
        scope=scope.words,
        scope_why=scope.why,
        samples=_samples(cert, dense, pruned, images, parts.layers, parts.margin),
        attribution=dict(zip(parts.layers, np.abs(parts.margin).mean(axis=0).tolist(), strict=True)),
        eta_share=dict(zip(parts.layers, (steps / max(steps.sum(), 1e-300)).tolist(), strict=True)),
        violations=0,  # `_certificate` stops at the first
    )


def _certificate(
    q: Question,
    scope: Scope,
    ready: tuple[Network, Start] | None,
    dense: Tensor,
    images: Tensor,
    labels: Tensor,
    sparsity: float,
    tiers: tuple[str, ...],
    cancelled: Callable[[], bool],
) -> Certificate:
    """The measured certificate at one sparsity, with the bounds of the family around it."""
    indices = q.split.indices(min(q.samples, len(q.split)), q.seed)
    masks = q.masks_at(sparsity)
    after = logits(q.network, images, masks, cancelled=cancelled)
    cert = compare_logits(dense, after, labels, q.split.name, indices)
    if not scope.layers:
        why = {name: TierResult(name, "bound", "", why=f"no proved bound: {scope.why}") for name in tiers}
        return replace(cert, tiers=why)
    some = scope.of(masks)
    pruned = pruned_copy(q.network, some)
    there = cert if scope.whole else compare_logits(dense, logits(pruned, images), labels, q.split.name, indices)
    slider = Slider(lambda s: scope.of(q.masks_at(s)), min(sparsity, q.limit), min(sparsity + WIDTH, q.limit))
    options = Options(cancelled=cancelled)
    results = tier_results(there, q.network, pruned, images, tiers, DELTA, slider, options=options, prepared=ready)
    broken = replace(there, tiers=results).violations
    if broken:
        raise DataError(f"{broken} certified predictions changed: a bound is wrong here; please report this network")
    return replace(cert, tiers=results)


def _curves(found: list[Certificate], split: str, positions: int) -> dict[str, TierCurve]:
    curves = {
        "measured": TierCurve(
            "measured", "measured", "this mask, these samples", np.array([one.coverage for one in found])
        ),
        "unchanged": TierCurve(
            "unchanged", "measured", "the same prediction", np.array([one.unchanged for one in found])
        ),
    }
    if split == "test":
        low = [population_share(~one.changed, DELTA, positions, split=split).low for one in found]
        about = f"unchanged in all data, at all {positions} positions together, with probability {1 - DELTA:g}"
        curves["population"] = TierCurve("population", "population", about, np.array(low))
    abouts = {
        "slider": f"every slider position within the next {100 * WIDTH:g} %",
        "path": "every θ of the path",
        "sub-masks": "every sub-mask of the budget",
    }
    for name in CURVE_TIERS:
        results = [one.tiers[name] for one in found]
        why = next((result.why for result in results if result.why), "")
        curves[name] = TierCurve(name, "bound", abouts[name], np.array([r.coverage for r in results]), why)
    return curves


def _samples(
    cert: Certificate, dense: Tensor, pruned: Tensor, images: Tensor, layers: tuple[str, ...], steps: np.ndarray
) -> SampleView:
    top = dense.topk(2, dim=1).indices
    own = pruned.double().gather(1, top[:, :1])
    rest = pruned.double().scatter(1, top[:, :1], -torch.inf).amax(dim=1, keepdim=True)
    left = (own - rest).squeeze(1).numpy()
    return SampleView(
        index=np.asarray(cert.indices),
        label=cert.labels,
        dense_top=top.numpy(),
        pruned_top=pruned.topk(2, dim=1).indices.numpy(),
        margin=cert.margin,
        pruned_margin=left,
        eta=cert.eta,
        lower={name: tier.lower for name, tier in cert.tiers.items() if tier.lower is not None},
        layers=layers,
        steps=steps,
        pictures={int(row): picture(images[int(row)]) for row in np.argsort(left, kind="stable")[:PICTURES]},
    )


def picture(image: Tensor) -> np.ndarray:
    """An image Float["c h w"] as grey or colour bytes, stretched over its own range."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise DataError(f"a picture has one channel or three; got shape {tuple(image.shape)}")
    low, high = float(image.min()), float(image.max())
    pixels = ((image - low) / max(high - low, 1e-12) * 255).round().to(torch.uint8)
    return pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy()


def unlocked_share(ranking: Ranking, weights: pd.Series) -> float:
    """The largest sparsity that the unlocked layers allow."""
    return min(float(ranking.sizes[[weights[name] > 0 for name in ranking.names]].sum()) / ranking.total, 0.999)


def ask(name: str, network: nn.Module, ranking: Ranking, weights: pd.Series, sparsity: float, split: Split,
        samples: int) -> Question:  # fmt: skip
    """The question of a plan: its layer weights stay frozen at its sparsity, so that the slider's masks are nested."""
    masks_at = lambda s: ranking.masks(ranking.counts(s, weights))  # noqa: E731
    return Question(name, network, masks_at, sparsity, unlocked_share(ranking, weights), split, samples)
