"""What each pruning method does, in a sentence, for readers who meet only its name."""

from __future__ import annotations

from collections.abc import Iterable

from mpviz.ui import text

SEB = "Spectral Edge Budgeting: layers with a strong signal keep more, the smallest |W| / w of the network go"
METHODS: dict[str, str] = {
    "magnitude": "the smallest |W| of the whole network go",
    "magnitude, layer by layer": "the smallest |W| of each layer go, the same share of each",
    "seb": f"{SEB}; w from the edge σ₊ of the bulk",
    "seb σ₊": f"{SEB}; w from the edge σ₊ of the bulk",
    "seb α": f"{SEB}; w from the tail exponent α",
    "regimes": f"{SEB}; signal and strength change with the sparsity, in four regimes",
    "seb, four regimes": f"{SEB}; signal and strength change with the sparsity, in four regimes",
    "sub-edge": "half of the singular values below σ₊ and small entries of the vectors go, then the smallest |W| left",
    "haar": "entries of singular vectors that are small for a random direction go, then the smallest |W| that is left",
    "support": "the smallest |W| / t go, t the level that noise of the layer's bulk reaches",
    "wanda": "the smallest |W| · ‖x‖ of each output go, x its inputs on calibration images",
    "sparsegpt": "scores |W|² / [H⁻¹]ᵢᵢ from second moments of the inputs; what stays takes over what went",
    "ser": "prune–restore: more goes than shall, and what training wants back most comes back, in steps of 5 %",
    "hybrid": "magnitude up to 20 %, prune–restore from there",
    "drop-threshold": "magnitude until accuracy has dropped by 0.7 points, prune–restore from there",
}
MENDED = (
    "; mended: 1.2 instead of 1.6 times the step is over-pruned, old values come back by agreement with the movement, "
    "norms are renewed"
)


def method_words(name: str) -> str:
    """What a method does; "" for one that is unknown here. name: as grids and records spell it.

    >>> method_words("hybrid, mended").startswith("magnitude up to 20 %"), method_words("mine")
    (True, '')
    """
    plain = name.lower()
    mended = plain.removesuffix(", mended")
    words = METHODS.get(plain) or METHODS.get(mended, "")
    return words + MENDED if words and mended != plain else words


def glossary_html(methods: Iterable[str]) -> str:
    """The methods with their sentences behind a fold; "" where none is known. Names are escaped."""
    known = [(name, words) for name in methods if (words := method_words(name))]
    if not known:
        return ""
    lines = "".join(f"<dt>{text.escape(name)}</dt><dd>{text.escape(words)}</dd>" for name, words in known)
    return f"<details><summary>What the methods do</summary><dl>{lines}</dl></details>"
