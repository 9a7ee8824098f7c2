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
from mpviz.certificates.first_order import first_order
from mpviz.certificates.gaussian_masks import gaussian_certified
from mpviz.certificates.margins import Certificate, TierResult, compare_logits
from mpviz.certificates.population import population_share
from mpviz.certificates.scope import Scope, find_scope
from mpviz.certificates.walk import prepare
from mpviz.errors import DataError, ModelError
from mpviz.nets.data import Split
from mpviz.nets.forward import logits, pruned_copy
from mpviz.prune.masks import Ranking
from mpviz.workbench.names import TIERS
from mpviz.workbench.proof_views import DELTA, CertificateView, SampleView, TierCurve

Masks = Mapping[str, Tensor]
PROVED = ("slider", "path", "bracket", "sub-masks")
POSITIONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
WIDTH = 0.01
SMALLEST = 0.05  # sparsity at which the reach of bounds is tried when the plan removes less
PICTURES = 60


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


class _Prover:
    """One question with all that its positions share: samples, dense logits, how far bounds reach."""

    def __init__(self, question: Question, cancelled: Callable[[], bool]) -> None:
        self.q, self.cancelled = question, cancelled
        count = min(question.samples, len(question.split))
        self.images, self.labels = question.split.sample(count, question.seed)
        self.indices = question.split.indices(count, question.seed)
        self.dense = logits(question.network, self.images, cancelled=cancelled)
        self.options = Options(cancelled=cancelled)
        self.scope: Scope = find_scope(
            question.network, question.masks_at(max(question.sparsity, SMALLEST)), self.images, self.options
        )
        inner = self.scope.network
        self.ready = prepare(inner, self.scope.layers, self.images) if inner is not None and self.scope.layers else None

    def at(self, sparsity: float) -> Certificate:
        """All tiers at one sparsity, the bounds of the family around it among them."""
        masks = self.q.masks_at(sparsity)
        after = logits(self.q.network, self.images, masks, cancelled=self.cancelled)
        cert = compare_logits(self.dense, after, self.labels, self.q.split.name, self.indices)
        tiers = self._bounds(cert, masks, sparsity) | {"ball": self._ball(cert, masks)}
        tiers["first order"] = self._first_order(masks)
        tiers["gaussian"] = self._gaussian(masks, cert.margin)
        return replace(cert, tiers=tiers)

    def _bounds(self, cert: Certificate, masks: Masks, sparsity: float) -> dict[str, TierResult]:
        scope, q = self.scope, self.q
        if not scope.layers:
            return {name: TierResult(name, "bound", "", why=f"no proved bound: {scope.why}") for name in PROVED}
        pruned = pruned_copy(q.network, scope.of(masks))
        there = cert
        if not scope.whole:
            there = compare_logits(self.dense, logits(pruned, self.images), self.labels, q.split.name, self.indices)
        slider = Slider(lambda s: scope.of(q.masks_at(s)), min(sparsity, q.limit), min(sparsity + WIDTH, q.limit))
        results = tier_results(
            there, q.network, pruned, self.images, PROVED, DELTA, slider, options=self.options, prepared=self.ready
        )
        return _sound(there, results)

    def _ball(self, cert: Certificate, masks: Masks) -> TierResult:
        """Both networks agree within one grey level; only where bounds reach back to the images."""
        level, inner = self.q.split.grey_level, self.scope.network
        if level is None or inner is None or inner.entry is not None or not self.scope.whole:
            why = "one grey level of these images is unknown" if level is None else "bounds do not reach the images"
            return TierResult("ball", "bound", "", why=f"no proved bound: {why}")
        pruned = pruned_copy(self.q.network, masks)
        found = tier_results(cert, self.q.network, pruned, self.images, ("ball",), radius=level, options=self.options)
        about = "dense and pruned agree on every input within one grey level a pixel"
        return replace(_sound(cert, found)["ball"], about=about)

    def _first_order(self, masks: Masks) -> TierResult:
        moving = {name: mask for name, mask in masks.items() if not bool(mask.all())}
        about = "the margin of the two top classes stays positive, to first order in the removed weights"
        try:
            left = first_order(self.q.network, self.images, moving or masks, cancelled=self.cancelled).predicted
        except ModelError as error:
            return TierResult("first order", "estimate", about, why=f"no first order: {error}")
        return TierResult("first order", "estimate", about, low=float((left > 0).mean()))

    def _gaussian(self, masks: Masks, margin: np.ndarray) -> TierResult:
        about = (
            "if the removed weights were Gaussian and independent, all of these together, with probability "
            f"{1 - DELTA:g}; products of norms"
        )
        try:
            held = gaussian_certified(self.q.network, masks, self.images, margin, DELTA, self.cancelled)
        except ModelError as error:
            return TierResult("gaussian", "gaussian", about, why=f"no gaussian statement: {error}")
        return TierResult("gaussian", "gaussian", about, low=float(held.mean()))


def _sound(cert: Certificate, results: dict[str, TierResult]) -> dict[str, TierResult]:
    """The results. Raises DataError when one of them certifies a prediction that changed."""
    broken = replace(cert, tiers=results).violations
    if broken:
        raise DataError(f"{broken} certified predictions changed: a bound is wrong here; please report this network")
    return results


def prove(
    question: Question,
    tell: Callable[[float, str], None] = lambda share, what: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> CertificateView:
    """All tiers at the plan and along the slider. Raises Cancelled, and the errors of `certify`."""
    q = question
    positions = [s for s in POSITIONS if s < q.limit]
    tell(0.01, "looking how far bounds reach")
    prover = _Prover(q, cancelled)
    found = []
    for i, s in enumerate([q.sparsity, *positions]):
        tell(0.05 + 0.65 * i / (1 + len(positions)), f"proving at {100 * s:.0f} % sparsity")
        found.append(prover.at(s))
    cert, along = found[0], found[1:]
    tell(0.7, "what each layer changes")
    masks = q.masks_at(q.sparsity)
    some = {name: mask for name, mask in masks.items() if not bool(mask.all())} or dict(masks)
    parts = attribute(
        q.network, prover.images, some, progress=lambda f: tell(0.7 + 0.25 * f, "what each layer changes"),
        cancelled=cancelled,
    )  # fmt: skip
    pruned = logits(q.network, prover.images, masks, cancelled=cancelled)
    steps = np.abs(parts.step).sum(axis=0)
    known = {"measured": cert.coverage, "unchanged": cert.unchanged}
    if q.split.name == "test":
        known["population"] = population_share(~cert.changed, DELTA, split="test").low
    return CertificateView(
        model=q.name,
        split=q.split.name,
        classes=tuple(q.split.classes),
        sparsity=q.sparsity,
        positions=np.array(positions),
        curves=_curves(along, q.split.name),
        here=known | {name: _share(tier) for name, tier in cert.tiers.items()},
        about={name: tier.about for name, tier in cert.tiers.items()},
        why={name: tier.why for name, tier in cert.tiers.items() if tier.why},
        scope=prover.scope.words,
        scope_why=prover.scope.why,
        samples=_samples(cert, prover.dense, pruned, prover.images, parts.layers, parts.margin),
        attribution=dict(zip(parts.layers, np.abs(parts.margin).mean(axis=0).tolist(), strict=True)),
        eta_share=dict(zip(parts.layers, (steps / max(steps.sum(), 1e-300)).tolist(), strict=True)),
        violations=0,  # `_sound` stops at the first
    )


def _share(tier: TierResult) -> float:
    """What a tier says of all samples together; NaN where it says nothing."""
    if tier.why:
        return float("nan")
    return tier.coverage if tier.certified is not None else tier.low


_ABOUT = {
    "slider": f"every slider position within the next {100 * WIDTH:g} %",
    "path": "every θ of the path",
    "bracket": f"every mask between here and {100 * WIDTH:g} % more, in any order",
    "sub-masks": "every sub-mask of the budget",
}


def _curves(found: list[Certificate], split: str) -> dict[str, TierCurve]:
    """One curve a tier, from the certificates along the slider."""

    def curve(name: str, tier: str, about: str, values: list[float], why: str = "") -> TierCurve:
        return TierCurve(name, tier, about, np.array(values), why)

    curves = [
        curve("unchanged", "measured", "the same prediction", [one.unchanged for one in found]),
        curve("measured", "measured", "this mask, these samples", [one.coverage for one in found]),
    ]
    if split == "test":
        low = [population_share(~one.changed, DELTA, len(found), split=split).low for one in found]
        about = f"unchanged in all data, at all {len(found)} positions together, with probability {1 - DELTA:g}"
        curves.append(curve("population", "population", about, low))
    for name, tier in found[0].tiers.items() if found else ():
        results = [one.tiers[name] for one in found]
        why = next((result.why for result in results if result.why), "")
        about = _ABOUT.get(name) or next((result.about for result in results if result.about), "")
        curves.append(curve(name, tier.tier, about, [_share(result) for result in results], why))
    by_name = {one.name: one for one in curves}
    return {name: by_name[name] for name in TIERS if name in by_name}


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
