"""Which predictions pruning has left alone, tier by tier: what was measured, and what is proved for whole sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from mpviz.certificates.bounds import MarginBound, Options, margin_bound, path_bound, slider_bound
from mpviz.certificates.exhaustive import every_position
from mpviz.certificates.families import Family, Masks, ball, bracket, sub_masks
from mpviz.certificates.margins import Certificate, TierResult, compare_logits
from mpviz.certificates.population import check_delta, check_held_out, population_share
from mpviz.certificates.walk import Inputs, Start, centre_logits, check_faithful
from mpviz.errors import ModelError, MpvizError, nearest
from mpviz.nets.data import Split
from mpviz.nets.forward import logits
from mpviz.nets.graph import Network, check_plain, trace
from mpviz.nets.last_block import last_block

TIERS = ("measured", "population", "path", "sub-masks", "bracket", "slider", "every position", "ball")
_NOTHING = "no proved bound: "


@dataclass(frozen=True)
class Slider:
    """A nested family of masks and the stretch of it that is asked about.

    masks_at: sparsity → masks; start, stop: sparsities in [0, 1), start ≤ stop.
    """

    masks_at: Callable[[float], Masks]
    start: float
    stop: float


def certify(
    dense: nn.Module,
    pruned: nn.Module,
    split: Split,
    tiers: Sequence[str] = ("measured",),
    delta: float = 0.05,
    samples: int | None = None,
    seed: int = 0,
    *,
    slider: Slider | None = None,
    radius: float = 0.01,
    options: Options | None = None,
) -> Certificate:
    """Which predictions on `split` pruning has certainly left alone, as far as each tier can tell.

    tiers, each answered in `.tiers`:

    - "measured": this mask, these samples, exact. Always there: the certificate itself is this tier.
    - "population": a lower limit, at confidence 1 − delta, for the share of unchanged predictions among all samples
      (Clopper & Pearson 1934). `split` must be held out.
    - "path": proved for every θ of the way from pruned to dense weights, all layers together.
    - "sub-masks": proved for every mask that removes some of what was removed.
    - "bracket": proved for every mask between those at both ends of `slider`, in any order.
    - "slider": proved for every position of `slider`.
    - "every position": measured at every position of `slider`, each of its masks run; for any network, in some minutes.
    - "ball": proved that both networks predict the same for every input within ±radius of each sample (ℓ∞, in the
      network's input units).

    Proofs are for ReLU networks of fully connected, convolution and batch-norm layers and, when only weights after the
    last attention changed, for vision transformers; for others the tier says "no proved bound" and why, instead of 0 %.
    samples: take a sample by `seed` instead of the whole split. options: how the proved tiers are computed.
    Raises DataError for an empty split or logits that are not finite, MpvizError for unknown tiers, BudgetError for
    masks that are not nested, ModelError for two networks that do not fit, Cancelled.
    """
    tiers = _checked(tiers, slider)
    check_delta(delta)
    images, labels = split.sample(samples, seed)
    if "population" in tiers:
        check_held_out(split.name)
    z_dense, z_pruned = logits(dense, images), logits(pruned, images)
    cert = compare_logits(z_dense, z_pruned, labels, split.name, split.indices(samples, seed))
    return replace(cert, tiers=tier_results(cert, dense, pruned, images, tiers, delta, slider, radius, options))


def tier_results(
    cert: Certificate,
    dense: nn.Module,
    pruned: nn.Module,
    images: Tensor,
    tiers: Sequence[str],
    delta: float = 0.05,
    slider: Slider | None = None,
    radius: float = 0.01,
    options: Options | None = None,
    prepared: tuple[Network, Start] | None = None,
) -> dict[str, TierResult]:
    """What the tiers beyond the measured one say about a certificate's samples; arguments and errors of `certify`.

    prepared: of `walk.prepare`, where several certificates share the fixed first part of a network.
    """
    results: dict[str, TierResult] = {}
    proofs: _Proofs | None = None
    for tier in _checked(tiers, slider):
        if tier == "population":
            same = ~cert.changed
            found = population_share(same, delta, split=cert.split)
            results[tier] = TierResult(
                tier, "population", f"unchanged predictions of all data, with probability {1 - delta:g}",
                low=found.low, high=found.high,
            )  # fmt: skip
        elif tier == "every position":
            assert slider is not None
            results[tier] = _run_all(dense, slider, images, options or Options())
        elif tier != "measured":
            proofs = proofs or _Proofs(dense, pruned, images, options or Options(), prepared)
            results[tier] = proofs.tier(tier, slider, radius)
    return results


def _checked(tiers: Sequence[str], slider: Slider | None) -> list[str]:
    tiers = [tiers] if isinstance(tiers, str) else list(tiers)
    if not tiers:
        raise MpvizError("no tier was asked for; give tiers=('measured',)")
    for tier in tiers:
        if tier not in TIERS:
            raise MpvizError(f"unknown tier '{tier}'; {nearest(tier, TIERS)}")
        if tier in ("bracket", "slider", "every position") and slider is None:
            raise MpvizError(f"the tier '{tier}' speaks about a stretch of a slider; give slider=Slider(…)")
    if slider is not None and not 0 <= slider.start <= slider.stop < 1:
        raise MpvizError(
            f"a slider runs from a sparsity to a later one, both in [0, 1); got {slider.start} to {slider.stop}"
        )
    return tiers


def _run_all(dense: nn.Module, slider: Slider, images: Tensor, options: Options) -> TierResult:
    target = logits(dense, images, cancelled=options.cancelled).argmax(dim=1)
    found = every_position(
        dense, slider.masks_at, slider.start, slider.stop, images, target,
        progress=options.progress, cancelled=options.cancelled,
    )  # fmt: skip
    return TierResult("every position", "measured", found.about, certified=found.certified, lower=found.lower)


class _Proofs:
    """The bound tiers of one pair of networks on one set of samples."""

    def __init__(
        self,
        dense: nn.Module,
        pruned: nn.Module,
        images: Inputs,
        options: Options,
        prepared: tuple[Network, Start] | None,
    ) -> None:
        self._options = options
        self._changed = changed_weights(dense, pruned)
        self._network: Network | None
        if prepared is None:
            self._network, self._why = _readable(dense, self._changed)
        else:
            (self._network, images), self._why = prepared, ""
        if prepared is None and self._network is not None and isinstance(images, Tensor):
            check_faithful(self._network, images)
            check_plain(pruned)
            check_faithful(self._network, images, self._changed, pruned)
        self._images = images
        if self._network is not None:
            with torch.no_grad():
                parts = [
                    centre_logits(self._network, images[i : i + options.batch]).argmax(dim=1)
                    for i in range(0, len(images), options.batch)
                ]
            self._target = torch.cat(parts)

    def tier(self, name: str, slider: Slider | None, radius: float) -> TierResult:
        if self._network is None:
            return TierResult(name, "bound", "", why=_NOTHING + self._why)
        bound = self._bound(self._network, name, slider, radius)
        if isinstance(bound, str):
            return TierResult(name, "bound", "", why=_NOTHING + bound)
        return TierResult(
            name, "bound", bound.name, certified=bound.certified, lower=bound.margin, rounding=bound.rounding
        )

    def _bound(self, network: Network, name: str, slider: Slider | None, radius: float) -> MarginBound | str:
        images, target, options = self._images, self._target, self._options
        if name == "path":
            return path_bound(network, self._changed, images, target, options)
        if name in ("bracket", "slider"):
            assert slider is not None
            return _slider(network, name, slider, images, target, options)
        if name == "sub-masks":
            masks = _masks_of(network.model, self._changed)
            if isinstance(masks, str):
                return masks
            return _one(network, sub_masks(network.model, masks), images, target, options)
        both = [_one(network, ball(radius, weights), images, target, options) for weights in ({}, self._changed)]
        worst = np.minimum(both[0].lower, both[1].lower)
        spent = np.maximum(both[0].rounding, both[1].rounding)
        return MarginBound(f"both networks, every input within ±{radius:g}", both[0].target, worst,
                           np.minimum(both[0].centre, both[1].centre), spent)  # fmt: skip


def _one(network: Network, family: Family, images: Inputs, target: Tensor, options: Options) -> MarginBound:
    return margin_bound(
        network, family, images, target, options.arithmetic, options.batch, options.progress, options.cancelled
    )


def _slider(
    network: Network, name: str, slider: Slider, images: Inputs, target: Tensor, options: Options
) -> MarginBound | str:
    denser, sparser = slider.masks_at(slider.start), slider.masks_at(slider.stop)
    outside = _moving(sparser) - set(network.weights)
    if outside:
        return f"{sorted(outside)[0]} is no weight of {network.part}"
    keep = lambda masks: {key: mask for key, mask in masks.items() if key in network.weights}  # noqa: E731
    if name == "bracket":
        return _one(network, bracket(network.model, keep(denser), keep(sparser)), images, target, options)
    return slider_bound(
        network, lambda s: keep(slider.masks_at(s)), (slider.start, slider.stop), images, target, options
    )


def _moving(masks: Masks) -> set[str]:
    """Layers from which something is removed."""
    return {name for name, mask in masks.items() if not bool(mask.all())}


def changed_weights(dense: nn.Module, pruned: nn.Module) -> dict[str, Tensor]:
    """The parameters of `pruned` that differ from those of `dense`, by name.

    Raises ModelError when the two have other parameters, shapes or buffers: they are then not one network pruned.
    """
    ours, theirs = dict(dense.named_parameters()), dict(pruned.named_parameters())
    if set(ours) != set(theirs):
        name = sorted(set(ours) ^ set(theirs))[0]
        raise ModelError(f"{name} is in one network only; compare a network with a pruned copy of itself")
    for name, values in ours.items():
        if values.shape != theirs[name].shape:
            raise ModelError(
                f"{name} has shape {tuple(values.shape)} in the dense and {tuple(theirs[name].shape)} in the pruned "
                "network; compare a network with a pruned copy of itself"
            )
    buffers = dict(pruned.named_buffers())
    for name, value in dense.named_buffers():
        if name not in buffers or not torch.equal(value, buffers[name]):
            raise ModelError(f"the buffer {name} differs between the networks, which is more than pruning does")
    return {
        name: theirs[name].detach() for name, values in ours.items() if not torch.equal(values.detach(), theirs[name])
    }


def _readable(dense: nn.Module, changed: Mapping[str, Tensor]) -> tuple[Network | None, str]:
    """The network, or its end, as operations with rules; else why there are none."""
    try:
        network = trace(dense)
    except ModelError as error:
        if dense.training:
            raise
        why = str(error)
        try:
            network = last_block(dense)
        except ModelError:
            return None, why
    outside = sorted(set(changed) - set(network.weights))
    if outside:
        return None, f"{outside[0]} changed, which is no weight of {network.part}"
    return network, ""


def _masks_of(model: nn.Module, changed: Mapping[str, Tensor]) -> dict[str, Tensor] | str:
    """The masks that turn the dense weights into the pruned ones; why there are none otherwise."""
    masks = {}
    for name, values in changed.items():
        own = model.get_parameter(name).detach()
        masks[name] = values == own
        if not bool(((values == 0) | masks[name]).all()):
            return f"the pruned values of {name} are not the dense ones under a mask (they were trained again)"
    return masks
