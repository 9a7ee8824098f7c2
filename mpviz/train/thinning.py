"""What MP training takes out of a weight matrix: part of its singular values below the fitted edge."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpviz.rmt.fit import fit_bulk


def kept_share(epoch: int, horizon: float = 200.0) -> float:
    """f(epoch) = max(0, 1 − epoch/horizon): the share of the singular values below the edge that stays.

    >>> kept_share(0), kept_share(50), kept_share(400)
    (1.0, 0.75, 0.0)
    """
    return max(0.0, 1.0 - epoch / horizon)


def thin_out(weight: Tensor, share: float) -> tuple[Tensor, dict[str, Any]]:
    """The matrix Float["out in"] without the smallest of its singular values below the fitted edge, and what was seen.

    Of the k singular values below σ₊ the largest round(share · k) stay. A matrix whose fit is poor, or has none, comes
    back as it is: its edge means nothing.
    """
    u, s, vt = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    values = np.sort((s.cpu().numpy() ** 2) / weight.shape[0])
    # what an earlier removal left at zero comes back as rounding, and must not be taken for a spectrum
    fit = fit_bulk(values.astype(np.float32), (weight.shape[0], weight.shape[1]), strict=False)
    seen: dict[str, Any] = {"grade": fit.grade, "fit_error": fit.fit_error, "edge": fit.sigma_plus,
                            "below": 0, "share": share, "removed": 0, "rank": int(fit.rank)}  # fmt: skip
    if fit.grade not in ("good", "fair"):
        return weight.detach().clone(), seen
    floor = s[0] * max(weight.shape) * torch.finfo(torch.float32).eps
    below = (s < fit.sigma_plus) & (s > floor)
    gone = int(below.sum()) - round(share * int(below.sum()))
    places = torch.nonzero(below).flatten()
    keep = s > floor
    if gone:
        keep[places[-gone:]] = False
    seen |= {"below": int(below.sum()), "removed": gone, "rank": int(keep.sum())}
    if not gone:
        return weight.detach().clone(), seen
    return ((u[:, keep] * s[keep]) @ vt[keep]).to(weight), seen
