"""The exceptions of mpviz. Each message names the object and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MpvizError(Exception):
    """Base of every error that mpviz raises on purpose."""


class DataError(MpvizError, ValueError):
    """A data set, split or image file that cannot be used as asked."""


class ModelError(MpvizError, ValueError):
    """A model or layer that is unknown or does not fit."""


class SpectrumError(MpvizError, ValueError):
    """A matrix or spectrum for which no bulk can be fitted."""


class BudgetError(MpvizError, ValueError):
    """A sparsity, weight or mask outside what is possible."""


class PatternError(MpvizError, ValueError):
    """A k:n pattern that does not exist, does not fit a layer, or is not kept."""


class RecipeError(MpvizError, ValueError):
    """A recipe with an unknown key or an impossible value."""


class CheckpointError(MpvizError, OSError):
    """A checkpoint that cannot be written or read."""


class TrainingError(MpvizError, RuntimeError):
    """A training run that cannot go on, e.g. after a loss that is not finite."""


class AccessError(MpvizError):
    """Something that this server does not open or do for a visitor."""


class Cancelled(MpvizError):
    """Raised inside a long run when its caller asked it to stop."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A half-sentence for an unknown name: "did you mean 'x'?", or the list of what is known.

    >>> nearest("fashion-vti", ["fashion-vit", "fashion-mlp"])
    "did you mean 'fashion-vit'?"
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    shown = ", ".join(known[:12])
    return f"known: {shown}" + (", …" if len(known) > 12 else "")
