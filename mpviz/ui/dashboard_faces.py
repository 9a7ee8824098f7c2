"""What the cards of the dashboard can show; the first is shown first."""

LOWER = ("budgets", "layers", "spikes", "samples", "recipe")  # below the spectrum
RIGHT = ("coverage", "tiers", "margins", "attribution", "cards")  # beside it
