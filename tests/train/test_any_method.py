"""One call for every unstructured method: masks, values, log and certificates of one form, refusals in sentences."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mpviz as mp
from mpviz.certificates.certify import certify
from mpviz.errors import BudgetError, Cancelled, CheckpointError, DataError, TrainingError
from mpviz.nets.data import Split, Splits
from mpviz.nets.forward import logits
from mpviz.prune.magnitude import SEB
from mpviz.prune.masks import Ranking
from mpviz.prune.methods import METHODS
from mpviz.prune.pruning import Pruning
from mpviz.train.any_method import GRADUAL, split_options
from mpviz.train.ser import StepPlan, prune_in_steps
from mpviz.train.step_plan import RESTORING
from tests.train.recovery_case import digest, mlp, stem_vit

FAST = {"optimizer": "sgd", "learning_rate": 0.05, "batch": 128, "step": 0.3}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@cache
def digits() -> Splits:
    return mp.load_data("digits")


@cache
def inputs() -> dict[str, Any]:
    model = mlp(0)
    return {"table": mp.analyze(model), "calibration": mp.second_moments(model, digits().calibration)}


def prune(method: str, sparsity: float = 0.5, steps: bool = False, **more: Any) -> Pruning:
    given = {"data": digits().train, "check": digits().calibration, **FAST} if steps else {}
    return mp.prune_model(mlp(0), method, sparsity, **(inputs() | given | more))


CASES = [*((method, False) for method in METHODS), *((method, True) for method in (*GRADUAL, *RESTORING))]


@pytest.mark.parametrize(("method", "steps"), CASES)
def test_every_method_gives_the_same_things(method: str, steps: bool, tmp_path: Path) -> None:
    model = mlp(0)
    found = prune(method, steps=steps, certify=digits().test)
    assert isinstance(found, Pruning) and (found.method, found.sparsity) == (method, 0.5)
    ranking = Ranking(model)
    assert list(found.masks) == ranking.names and found.removed == round(0.5 * ranking.total)
    network = found.of(model)
    images, _ = digits().test.sample()
    assert set(found.certificates) == ({"pruned", "recovered"} if steps else {"pruned"})
    last = found.certificates["recovered" if steps else "pruned"]
    assert len(last) == len(digits().test) and last.split == "test"
    assert last.pruned_prediction.tolist() == logits(network, images).argmax(1).tolist()
    assert last.dense_prediction.tolist() == logits(model, images).argmax(1).tolist()
    log = found.log
    assert {"step", "layer", "role", "params", "removed", "sparsity"} <= set(log)
    assert log.groupby("step", sort=False)["removed"].sum().iloc[-1] == found.removed
    assert log["step"].unique().tolist()[-1] == ("50 %" if steps else log["step"].iloc[0])
    path = mp.save(tmp_path / "a", network, found.masks)
    assert torch.equal(logits(mp.load(path, model).model, images), logits(network, images))
    assert digest(model) == digest(mlp(0)), "the model is left as it is"


def test_certificates_are_of_the_network_before_and_after_its_last_training() -> None:
    seen: list[tuple[float, nn.Module]] = []
    plan, options = StepPlan("ser", step=0.3), {name: FAST[name] for name in ("optimizer", "learning_rate", "batch")}
    prune_in_steps(mlp(0), digits().train, 0.5, plan, before_recovery=lambda *both: seen.append(both), **options)
    found = prune("ser", steps=True, certify=digits().test)
    expected = certify(mlp(0), seen[-1][1], digits().test)
    assert (found.certificates["pruned"].eta == expected.eta).all()
    assert not (found.certificates["recovered"].eta == expected.eta).all()
    assert not prune("ser", steps=True).certificates, "nothing is measured that was not asked for"


def test_the_log_says_what_went_and_came_back_in_each_layer() -> None:
    log = prune("hybrid", steps=True, targets=(0.2, 0.5), certify=digits().test).log
    assert log["step"].tolist() == ["20 %", "20 %", "50 %", "50 %"]
    assert log["role"].tolist() == ["mlp"] * 4 and (log["removed"] / log["params"] == log["sparsity"]).all()
    assert log["restored"].iloc[:2].tolist() == [0, 0] and log["restored"].iloc[2:].sum() > 0
    assert log["reservoir"].iloc[:2].tolist() == [0, 0]
    gained = log["removed"].iloc[2:].to_numpy() - log["removed"].iloc[:2].to_numpy()
    assert (log["reservoir"].iloc[2:] == gained + log["restored"].iloc[2:]).all()
    assert log["weight"].iloc[:2].isna().all() and log["weight"].iloc[2:].notna().all()
    assert log["spectral"].tolist() == [False, False, True, True]


def test_biases_and_statistics_are_among_the_values() -> None:
    model, data = stem_vit(0), mp.load_data("fashion-mnist", folder="bundled")
    few = Split("train", torch.utils.data.Subset(data.train.dataset, range(128)), data.classes)
    options = {"learning_rate": 1e-2, "batch": 32, "targets": (0.4,), "data": few}
    found = mp.prune_model(model, "magnitude", 0.4, **options)
    gradual = prune_in_steps(model, few, 0.4, StepPlan("magnitude", targets=(0.4,)), learning_rate=1e-2, batch=32)
    assert digest(found.of(model)) == digest(gradual.model)
    assert any("running_mean" in name for name in found.values) and "blocks.0.mlp.fc1.bias" in found.values
    untrained = mp.prune_model(model, "magnitude", 0.4, **options, recovery=0)
    assert not untrained.values and untrained.removed == found.removed
    with pytest.raises(BudgetError, match=r"new values of .* do not fit this model"):
        found.of(mlp(0))


def test_a_folder_goes_on_and_gives_the_same_again(tmp_path: Path) -> None:
    asked = iter([False] * 12 + [True])
    with pytest.raises(Cancelled):
        prune("ser", steps=True, out=tmp_path, every=2, cancelled=lambda: next(asked))
    told: list[float] = []
    found = prune("ser", steps=True, out=tmp_path, every=2, certify=digits().test, progress=lambda s, _: told.append(s))
    again = prune("ser", steps=True, out=tmp_path, every=2, certify=digits().test)
    assert told[-1] == pytest.approx(1.0)
    assert set(again.certificates) == {"pruned", "recovered"}
    for phase, cert in found.certificates.items():
        assert (cert.eta == again.certificates[phase].eta).all()
    assert digest(found.of(mlp(0))) == digest(again.of(mlp(0))) == digest(prune("ser", steps=True).of(mlp(0)))
    with pytest.raises(CheckpointError, match="another run: seed"):
        prune("ser", steps=True, out=tmp_path, seed=1)


def test_options_find_their_places() -> None:
    plan, rest = split_options("hybrid", {"ratio": 1.2, "signal": "alpha", "batch": 64, "every": 5, "augment": None})
    assert plan == StepPlan("hybrid", ratio=1.2, seb=SEB("alpha"))
    assert rest == {"batch": 64, "every": 5, "augment": None}
    assert split_options("seb", {})[0] == StepPlan("seb", seb=SEB()), "as the method that prunes at once"
    assert split_options("seb", {"seb": None})[0].seb is None
    assert split_options("regimes", {})[0] == StepPlan("seb")
    assert split_options("ser", {})[0] == StepPlan("ser")
    assert split_options("ser", {"seb": SEB(beta=2.0)})[0].seb == SEB(beta=2.0)
    one_shot, gradual = prune("seb", 0.3), prune("seb", 0.3, steps=True, recovery=0)
    assert all(torch.equal(one_shot.masks[name], gradual.masks[name]) for name in one_shot.masks)


def test_nothing_to_remove_is_no_error() -> None:
    for method in ("ser", "magnitude"):
        found = prune(method, 0.0, steps=True, certify=digits().test)
        assert found.removed == 0 and set(found.certificates) == {"pruned"} and not found.values


def test_a_model_in_training_mode_is_measured_in_eval_mode() -> None:
    found = mp.prune_model(mlp(0).train(), "magnitude", 0.5, certify=digits().test)
    expected = prune("magnitude", certify=digits().test)
    assert (found.certificates["pruned"].eta == expected.certificates["pruned"].eta).all()


@pytest.mark.parametrize(
    ("method", "more", "error", "words"),
    [("hybird", {}, BudgetError, "unknown method 'hybird'; did you mean 'hybrid'"),
     ("hybrid", {}, BudgetError, r"trains on the way; give data=splits\.train"),
     ("wanda", {"data": "train"}, BudgetError, "prunes at once and takes no data; leave it out"),
     ("haar", {"out": "here"}, BudgetError, "prunes at once and takes no out"),
     ("ser", {"data": "test", "recovery": 0}, DataError, "pruning in steps refuses the test split"),
     ("drop-threshold", {"data": "train"}, TrainingError, "give check="),
     ("drop-threshold", {"data": "train", "check": "test"}, TrainingError, "give check="),
     ("ser", {"data": "train", "betta": 1.0}, BudgetError, "in steps, has no option 'betta'; did you mean 'beta'"),
     ("magnitude", {"data": "train", "beta": 1.0}, BudgetError, "in steps, has no option 'beta'"),
     ("magnitude", {"beta": 1.0}, BudgetError, "has no option 'beta'; "),
     ("ser", {"data": "train", "schedule": "seb"}, BudgetError, "has no option 'schedule'"),
     ("ser", {"data": "train", "beta": 1.0, "seb": SEB()}, BudgetError, "both seb and beta"),
     ("ser", {"data": "train", "beta": "strong"}, TrainingError, "beta = 'strong'; give a number"),
     ("ser", {"data": "train", "temperature": "hot"}, TrainingError, "temperature = 'hot'; give a number"),
     ("magnitude", {"certify": 3}, DataError, r"certify is a int; give a split such as splits\.test")],
)  # fmt: skip
def test_what_does_not_fit_together_is_a_sentence(method: str, more: dict, error: type, words: str) -> None:
    named = {name: getattr(digits(), value) for name, value in more.items() if name in ("data", "check")}
    with pytest.raises(error, match=words):
        mp.prune_model(mlp(0), method, 0.5, **(more | named))


def test_a_sparsity_that_is_none_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"\[0, 1\)"):
        prune("ser", 1.2, steps=True, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
