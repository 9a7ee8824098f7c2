"""The table that a method looks at must be of the network that it prunes, and of all of it."""

from __future__ import annotations

import pandas as pd
import pytest

import mpviz as mp
from mpviz.errors import BudgetError

METHODS = [("seb", {}), ("regimes", {}), ("sub-edge", {}), ("haar", {"spikes": False}), ("support", {})]


@pytest.fixture(scope="module")
def foreign() -> pd.DataFrame:
    return mp.analyze(mp.load_model("fashion-vit"))


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_a_table_of_another_network_is_refused(method: str, options: dict, foreign: pd.DataFrame) -> None:
    with pytest.raises(BudgetError, match=r"features\.fc1\.weight.*give table=mp\.analyze\(model\)"):
        mp.prune_model(mp.load_model("fashion-mlp"), method, 0.5, table=foreign, **options)


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_a_table_of_a_part_of_the_network_is_refused(method: str, options: dict) -> None:
    mlp = mp.load_model("fashion-mlp")
    with pytest.raises(BudgetError, match=r"features\.fc2\.weight.*give table=mp\.analyze\(model\)"):
        mp.prune_model(mlp, method, 0.5, table=mp.analyze(mlp, ["features.fc1.weight"]), **options)
