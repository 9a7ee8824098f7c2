"""What each tier claims, in plain words: the claim, what must hold for it, why it is true, and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpviz.ui import text
from mpviz.ui._certificates import TIER_WORDS

if TYPE_CHECKING:
    from mpviz.workbench.proof_views import CertificateView

PAPER = "Berlyand, Bourdais, Owhadi & Shmalo, arXiv:2606.02608"


@dataclass(frozen=True)
class Card:
    """One tier. name: as in the figures; tier: how its numbers are known; each other field is a sentence or two."""

    name: str
    tier: str
    title: str
    formula: str
    claim: str
    hypotheses: str
    proof: str
    source: str


CARDS = (
    Card(
        "unchanged", "measured", "The pruned network was run", "argmax z_S(x) = argmax z_A(x)",
        "This share of the samples keeps its prediction under this one mask.",
        "None. Nothing is said of another mask or another image.",
        "Both networks are run on every sample and compared.", "counting",
    ),
    Card(
        "measured", "measured", "Margin against twice the largest change", "top − runner-up > 2η, η = ‖z_S − z_A‖∞",
        "Where the margin is more than 2η, the prediction cannot have changed.",
        "η is measured on the same sample under the same mask.",
        "The top class loses at most η and any other gains at most η, so their distance shrinks by 2η at most. "
        "No constant L of the data-path budget can do better on a sample: L‖Rψ₁‖∞ is never below η.",
        f"margin certificate, {PAPER}",
    ),
    Card(
        "population", "population", "What the test images say about images never seen",
        "p ≥ BetaInv(α; k, n − k + 1), α = δ / positions",
        "At least this share of all images of this kind keeps its prediction, at every position drawn, except with "
        "probability δ over the choice of the test images.",
        "The images are an independent sample of the population and played no part in choosing the mask.",
        "The number of unchanged predictions is binomial. Its exact confidence limit is taken at δ divided by the "
        "number of positions, so that all limits hold together.",
        "Clopper & Pearson (1934); Bonferroni",
    ),
    Card(
        "first order", "estimate", "One backward pass", "Δ(z_a − z_b) ≈ −Σ_ℓ ⟨R_ℓ, ∂(z_a − z_b)/∂W_ℓ⟩",
        "For so many samples the top class would stay above the runner-up if the network were linear in its weights.",
        "None is checked: the second order is left out, and it rules where much is removed.",
        "No proof; an estimate. Compare it with the blue line.", "Taylor",
    ),
    Card(
        "slider", "bound", "Every position of the slider in a stretch",
        "min over s ∈ [p, p + 1 %], all rivals b: z_a − z_b > 0",
        "No position of the slider within the next point changes these predictions.",
        "The layer weights stay frozen along the stretch, so that its masks are nested; every operation on the way has "
        "a rule.",
        "The stretch is cut in pieces. In each piece, each weight lies between its values at both ends; linear lower "
        "and upper bounds of every neuron are carried to each pairwise margin, rounding is added against the claim, "
        "and pieces are halved where the least margin is not positive.",
        "linear bound propagation, Zhang et al. (2018), with weights as intervals",
    ),
    Card(
        "path", "bound", "Every mixture of pruned and dense", "A_θ = S + θR, θ ∈ [0, 1]",
        "None of the networks between the pruned one and the dense one changes these predictions.",
        "All layers move together by one θ; every operation on the way has a rule.",
        "As for the slider, on pieces of [0, 1]. With L over the segment this is the path of the paper's cross-entropy "
        "bound |CE(A_θ) − CE(A)| ≤ (1 − θ) B_T(R).",
        PAPER,
    ),
    Card(
        "bracket", "bound", "Every mask between two sparsities, in any order", "M(p + 1 %) ⊆ M ⊆ M(p)",
        "Any mask that removes what p removes and some of what p + 1 % removes leaves these predictions alone.",
        "The masks are nested: layer weights frozen at one sparsity; refused otherwise.",
        "Each weight in question lies between zero and its value, one by one; the margin's linear bound takes the "
        "worst of all combinations at once.",
        "linear bound propagation with weights as intervals",
    ),
    Card(
        "sub-masks", "bound", "Every mask inside the budget", "M(p) ⊆ M ⊆ all kept",
        "Whatever part of the removed weights is put back, in any combination, these predictions stay.",
        "Every operation on the way has a rule.",
        "The bracket between nothing removed and all of it. The set is so large that attacks alone often leave little.",
        "linear bound propagation with weights as intervals",
    ),
    Card(
        "ball", "bound", "Every image within one grey level", "‖x′ − x‖∞ ≤ 1 grey level",
        "On every input within one grey level a pixel, dense and pruned network agree with each other and with the "
        "prediction for the image itself.",
        "Bounds reach back to the images.",
        "The input is the interval; the linear bounds of both networks are carried to each pairwise margin.",
        "Zhang et al. (2018)",
    ),
    Card(
        "gaussian", "gaussian", "If what is removed were noise",
        "η_x ≤ Σ_ℓ L_ℓ ‖v_ℓ‖₂ √(2 v log(2 n |T| K / δ))",
        "If the removed weights were independent Gaussians of the same mean square, all of these predictions together "
        "would stay, with probability 1 − δ.",
        "Gaussian entries, independent of the inputs v of their layer and of L. Trained weights that a mask removes "
        "are not: this is a statement about a model of them.",
        "Each output of Rv is a Gaussian number; the largest of n|T| in each of K layers is bounded by a union bound, "
        "and L is a product of norms, which is why little is left on deep networks.",
        f"Gaussian corollaries, {PAPER}",
    ),
)  # fmt: skip


def tier_tips() -> dict[str, str]:
    """What each switch of a tier stands for in a sentence, by the word on it."""
    return {TIER_WORDS.get(card.name, card.name): f"{card.title} ({card.tier}). {card.claim}" for card in CARDS}


def html(shown: Sequence[str], view: CertificateView | None = None) -> str:
    """The cards of these tiers as HTML, each with its number at the plan, or why it has none. Words are escaped."""
    chosen = [card for card in CARDS if card.name in shown]
    if not chosen:
        return "<p class='quiet'>Switch a tier on to read what it claims.</p>"
    return "".join(_card(card, view) for card in chosen)


def _card(card: Card, view: CertificateView | None) -> str:
    e = text.escape
    lines = [f"<b>{e(card.title)}</b> <span class='chip {card.tier}'>{e(card.tier)}</span> {e(_number(card, view))}",
             f"<span class='formula'>{e(card.formula)}</span>",
             e(card.claim), f"<b>Needs:</b> {e(card.hypotheses)}", f"<b>Why:</b> {e(card.proof)}",
             f"<span class='quiet'>{e(card.name)} · {e(card.source)}</span>"]  # fmt: skip
    return f"<p class='theorem {card.tier}'>{'<br>'.join(lines)}</p>"


def _number(card: Card, view: CertificateView | None) -> str:
    """Its share at the plan, with the layers it speaks about; why there is none; nothing before the first proof."""
    if view is None:
        return ""
    share = view.here.get(card.name, math.nan)
    if math.isfinite(share):
        scope = "" if card.tier != "bound" or view.scope == "all layers" else f" ({view.scope})"
        return f"{text.percent(share)} at {text.percent(view.sparsity)} sparsity{scope}"
    return view.why.get(card.name, "nothing said here")
