"""The gaussian tier of a plan: what would hold if the entries that masks remove were Gaussian noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor, nn

from mpviz.certificates.gaussian import gaussian_budget
from mpviz.certificates.layer_input import check_images, float64_copy, record, removed_part
from mpviz.certificates.lipschitz import global_lipschitz
from mpviz.certificates.population import check_delta
from mpviz.errors import Cancelled, DataError
from mpviz.nets.graph import trace


def gaussian_certified(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    images: Tensor,
    margin: np.ndarray,
    delta: float = 0.05,
    cancelled: Callable[[], bool] | None = None,
) -> np.ndarray:
    """Bool["n"]: margin > 2 Σ_ℓ η_ℓ, with η_ℓ of the Gaussian corollary at δ / (number of layers).

    Each layer's removed entries are replaced, in thought, by independent N(0, v) entries, v their mean square over the
    layer; L is the product of norms behind the layer, the only constant here that does not depend on them. The layers
    are pruned in the order of the masks, each η measured on the inputs of the network in which the earlier ones are
    pruned. Trained weights that a mask removes are not Gaussian, so this says nothing about the network at hand.
    margin: Float["n"], top logit minus runner-up of the dense network.

    Σ η only grows from layer to layer: as soon as no sample can be certified any more, the other layers are left out,
    which changes nothing. Source: Gaussian corollaries of arXiv:2606.02608; the proof sketch is that of
    `gaussian_budget_of_layers`. Raises ModelError for a network with an operation that has no norm, DataError for no
    samples or margins that do not fit, Cancelled.
    """
    share = check_delta(delta)
    if len(margin) != len(images):
        raise DataError(f"{len(margin)} margins do not fit {len(images)} images")
    network, inputs = trace(model), check_images(images, model)
    moving = {name: mask for name, mask in masks.items() if not bool(mask.all())}
    total, before = np.zeros(len(images)), dict[str, Tensor]()
    for name, mask in moving.items():
        if cancelled is not None and cancelled():
            raise Cancelled("the gaussian tier was cancelled")
        removed = removed_part(model, name, mask)
        found = record(float64_copy(model, before), name, removed, inputs, batch=64)
        rows = len(removed)
        g = rows * float(removed.square().mean())
        constant = global_lipschitz(network, name)
        total += gaussian_budget(found.lengths, constant, g, rows, share / len(moving)).eta
        if not (margin > 2 * total).any():
            break
        before[name] = mask
    return np.asarray(margin > 2 * total)
