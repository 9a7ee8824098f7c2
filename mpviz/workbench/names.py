"""Names that the state and its faces share; importing them costs nothing."""

VIEWS = ("histogram", "distribution", "quantiles", "tail")
PLAN = ("sparsity", "signal", "beta", "decay_end", "beta_attention", "beta_mlp", "locked")  # settings that make a plan
TIERS = ("unchanged", "measured", "population", "first order", "slider", "path", "bracket", "sub-masks", "ball",
         "gaussian")  # fmt: skip
TIERS_SHOWN = tuple(name for name in TIERS if name not in ("bracket", "ball", "gaussian"))  # until somebody chooses
