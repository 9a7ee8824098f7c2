"""Names that the state and its faces share; importing them costs nothing."""

VIEWS = ("histogram", "distribution", "quantiles", "tail")
PLAN = ("sparsity", "signal", "beta", "decay_end", "beta_attention", "beta_mlp", "locked")  # settings that make a plan
