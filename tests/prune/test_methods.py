"""Every method against an oracle of its own, and that what sets it apart changes the mask."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import mpviz as mp
from mpviz.errors import BudgetError, Cancelled
from mpviz.nets.calibrate import Moments, second_moments
from mpviz.nets.factors import ranks_of
from mpviz.prune.magnitude import even_counts, regime
from mpviz.prune.masks import Ranking
from mpviz.prune.methods import LOOK_AT_DATA, LOOK_AT_SPECTRA, METHODS, prune_once
from mpviz.prune.pruning import smallest
from mpviz.prune.scores import obs, output_error


class Net(nn.Module):
    """A stem, three prunable layers, one of them a convolution, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.fc1 = nn.Linear(96, 40)
        self.fc2 = nn.Linear(40, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.fc2(torch.relu(self.fc1(x.flatten(1))))))


@cache
def setting() -> tuple[Net, pd.DataFrame, dict[str, Moments], Tensor]:
    torch.manual_seed(5)
    net = Net().eval()
    with torch.no_grad():  # a spike and uneven columns, so that spectra and data have something to say
        net.fc1.weight.add_(torch.outer(torch.randn(40), torch.randn(96)) * 0.05)
        net.fc2.weight.mul_(torch.linspace(0.4, 2, 40))
    x = torch.randn(60, 1, 8, 8)
    return net, mp.analyze(net), second_moments(net, x), x


def pruned(method: str, sparsity: float = 0.5, **options):  # type: ignore[no-untyped-def]
    net, table, moments, _ = setting()
    return prune_once(net, method, sparsity, table=table, calibration=moments, **options)


def ordered(values: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Oracle: sort all (value, layer, index), drop the first `count`."""
    entries = [(v, i, j) for i, one in enumerate(values.values()) for j, v in enumerate(one.flatten().tolist())]
    gone = {(i, j) for _, i, j in sorted(entries)[:count]}
    return {name: torch.tensor([(i, j) not in gone for j in range(one.numel())]).reshape(one.shape)
            for i, (name, one) in enumerate(values.items())}  # fmt: skip


def weights() -> dict[str, Tensor]:
    net = setting()[0]
    return {name: net.get_parameter(name).detach().double() for name in Ranking(net).names}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0.0, 0.137, 0.5, 0.93])
def test_each_method_removes_exactly_its_share_and_leaves_the_network(method: str, sparsity: float) -> None:
    net = setting()[0]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = pruned(method, sparsity)
    ranking = Ranking(net)
    assert found.removed == round(sparsity * ranking.total)
    assert list(found.masks) == ranking.names and "head.weight" not in found.masks
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    copy = found.of(net)
    for name, mask in found.masks.items():
        weight = copy.get_parameter(name).detach()
        assert bool((weight[~mask] == 0).all())
        if not found.values:
            assert torch.equal(weight[mask], net.get_parameter(name).detach()[mask])
    log = found.log
    assert log["layer"].tolist() == ranking.names and log["removed"].sum() == found.removed
    assert {"step", "role", "params", "sparsity"} <= set(log)


def test_layerwise_magnitude_is_a_quantile_of_each_layer() -> None:
    found = pruned("magnitude", 0.4, scope="layer")
    for name, weight in weights().items():
        share = float((~found.masks[name]).double().mean())
        assert abs(share - 0.4) <= 1 / weight.numel()
        assert weight.abs()[~found.masks[name]].max() <= weight.abs()[found.masks[name]].min()
    assert not same(found.masks, pruned("magnitude", 0.4).masks), "the scope changes the mask"


def test_even_counts_add_up() -> None:
    ranking = Ranking(setting()[0])
    for sparsity in np.linspace(0, 0.99, 37):
        counts = even_counts(ranking, float(sparsity))
        assert sum(counts.values()) == round(sparsity * ranking.total)
        assert all(abs(counts[n] - sparsity * s) < 1 for n, s in zip(ranking.names, ranking.sizes, strict=True))


@pytest.mark.parametrize(
    ("sparsity", "signal", "beta", "end", "mlp"),
    [(0.05, "alpha", 0.5, 0.3, 0.5), (0.2, "alpha", 0.5, 0.3, 0.5), (0.21, "sigma_plus", 1.0, 0.5, 1.0),
     (0.4, "sigma_plus", 1.0, 0.5, 1.0), (0.41, "sigma_plus", 1.25, 0.7, 1.25), (0.55, "sigma_plus", 1.25, 0.7, 1.25),
     (0.56, "sigma_plus", 1.25, 0.85, 2.0), (0.8, "sigma_plus", 1.25, 0.85, 2.0)],
)  # fmt: skip
def test_regimes_are_the_table(sparsity: float, signal: str, beta: float, end: float, mlp: float) -> None:
    _, table, _, _ = setting()
    rows = table[table["prunable"]]
    z = ((rows[signal] - rows[signal].mean()) / rows[signal].std(ddof=0)).fillna(0.0)
    strength = np.where(rows["role"] == "mlp", mlp, beta)
    w = np.maximum(0.1, 1 + strength * max(0.0, 1 - sparsity / end) * z)
    scores = {name: values.abs() / w[name] for name, values in weights().items()}
    found = pruned("regimes", sparsity)
    assert same(found.masks, ordered(scores, round(sparsity * Ranking(setting()[0]).total)))
    assert not same(found.masks, pruned("magnitude", sparsity).masks), "the spectra change the mask"
    assert regime(sparsity).signal == signal


def test_beyond_the_last_regime_each_type_has_its_strength() -> None:
    torch.manual_seed(0)
    vit = mp.load_model("fashion-vit")
    table = mp.analyze(vit)
    rows = table[table["prunable"]]
    z = (rows["sigma_plus"] - rows["sigma_plus"].mean()) / rows["sigma_plus"].std(ddof=0)
    strength = rows["role"].map({"attention": 1.0, "mlp": 2.0})
    assert set(rows["role"]) == {"attention", "mlp"}
    expected = np.maximum(0.1, 1 + strength * (1 - 0.6 / 0.85) * z)
    log = prune_once(vit, "regimes", 0.6, table=table).log.set_index("layer")
    assert log["weight"].to_dict() == pytest.approx(expected.to_dict())


def test_sub_edge_drops_small_singular_values_and_thins_vectors() -> None:
    _, table, _, _ = setting()
    found = pruned("sub-edge", 0.3, drop=0.5, theta=20.0, factors=True)
    recomposed = {}
    for name, weight in weights().items():
        u, s, vt = np.linalg.svd(weight.reshape(len(weight), -1).numpy(), full_matrices=False)
        edge = table.loc[name, "sigma_plus"]
        below = int((s < edge).sum())
        total = np.zeros((u.shape[0], vt.shape[1]))
        for i in range(len(s) - round(0.5 * below)):
            t = 20.0 * max(1 / 750, max(0.0, 1 - s[i] / edge) ** 30) if edge > 0 else 0.0
            total += s[i] * np.outer(u[:, i] * (abs(u[:, i]) >= t), vt[i] * (abs(vt[i]) >= t))
        recomposed[name] = torch.from_numpy(total).reshape(weight.shape).float()
    expected = ordered({name: one.abs() for name, one in recomposed.items()}, found.removed)
    agree = sum(int((expected[name] == found.masks[name]).sum()) for name in expected)
    assert agree >= 0.999 * Ranking(setting()[0]).total  # singular vectors come in either sign, with their rounding
    for name, mask in found.masks.items():
        torch.testing.assert_close(found.values[name][mask], recomposed[name][mask], atol=1e-5, rtol=1e-4)
    assert not same(found.masks, pruned("magnitude", 0.3).masks)
    assert not same(found.masks, pruned("sub-edge", 0.3, drop=0.5, theta=0.0).masks), "thin vectors change the mask"
    assert not same(found.masks, pruned("sub-edge", 0.3, drop=0.0, theta=20.0).masks), "dropped values change the mask"
    deep = pruned("sub-edge", 0.0, drop=1.0, theta=0.0, factors=True)
    assert deep.factors, "a low rank is smaller as two factors"
    for name, (left, right) in deep.factors.items():
        matrix = deep.values[name].reshape(len(deep.values[name]), -1).double()
        torch.testing.assert_close((left @ right), matrix, atol=1e-5, rtol=1e-4)
        assert left.numel() + right.numel() < matrix.numel()


def test_two_factors_are_stored_reload_and_are_smaller(tmp_path: Path) -> None:
    model = mp.load_model("fashion-mlp")
    found = prune_once(model, "sub-edge", 0.0, table=mp.analyze(model), drop=1.0, theta=0.0, factors=True)
    assert set(found.factors) == {"features.fc1.weight", "features.fc2.weight"}
    network, x = found.of(model, factored=True), torch.randn(8, 1, 28, 28)
    assert set(ranks_of(network)) == {"features.fc1", "features.fc2"} and not ranks_of(found.of(model))
    torch.testing.assert_close(network(x), found.of(model)(x), atol=1e-4, rtol=1e-3)
    path = mp.save(tmp_path / "a", network, found.masks_in(network))
    back = mp.load(path)
    assert torch.equal(back.model(x), network(x))
    assert path.stat().st_size < mp.save(tmp_path / "dense", model).stat().st_size / 2
    assert found.masks_in(found.of(model)).keys() == found.masks.keys()


def test_thin_factors_keep_their_zeros_and_large_ones_are_not_stored() -> None:
    net, _, _, x = setting()
    found = pruned("sub-edge", 0.0, drop=1.0, theta=20.0, factors=True)
    network = found.of(net, factored=True)
    left, right = found.factors["fc1.weight"]
    masks = found.masks_in(network)
    assert torch.equal(masks["fc1.second.weight"], left != 0) and torch.equal(masks["fc1.first.weight"], right != 0)
    assert not masks["fc1.second.weight"].all() and "fc1.weight" not in masks and "head.weight" not in masks
    torch.testing.assert_close(network(x), found.of(net)(x), atol=1e-4, rtol=1e-3)
    large = dataclasses.replace(found, factors={"fc1.weight": (torch.eye(40, 40), torch.zeros(40, 96))})
    assert not ranks_of(large.of(net, factored=True)), "40 · 136 numbers are more than 40 · 96"


def test_haar_drops_small_coordinates_of_singular_vectors() -> None:
    found, recomposed = pruned("haar", 0.3, z0=0.7), {}
    for name, weight in weights().items():
        u, s, vt = np.linalg.svd(weight.reshape(len(weight), -1).numpy(), full_matrices=False)
        u[np.sqrt(u.shape[0]) * abs(u) < 0.7] = 0
        vt[np.sqrt(vt.shape[1]) * abs(vt) < 0.7] = 0
        recomposed[name] = torch.from_numpy(u @ np.diag(s) @ vt).reshape(weight.shape).float()
        mask = found.masks[name]
        torch.testing.assert_close(found.values[name][mask], recomposed[name][mask], atol=1e-5, rtol=1e-4)
    expected = ordered({name: one.abs() for name, one in recomposed.items()}, found.removed)
    agree = sum(int((expected[name] == found.masks[name]).sum()) for name in expected)
    assert agree >= 0.999 * Ranking(setting()[0]).total  # singular vectors come in either sign, with their rounding
    assert not same(found.masks, pruned("magnitude", 0.3).masks)
    assert not same(found.masks, pruned("haar", 0.3, z0=0.7, spikes=False).masks)


def test_support_ranks_by_the_threshold_of_each_layer() -> None:
    _, table, _, _ = setting()
    fitted = {name: w for name, w in weights().items() if np.isfinite(table.loc[name, "variance"])}
    limits = {name: math.sqrt(2 * table.loc[name, "variance"] * math.log(2 * w.numel() / 0.1))
              for name, w in fitted.items()}  # fmt: skip
    found = pruned("support", 0.6, delta=0.1)
    assert set(found.masks) - set(fitted) == {"conv.weight"} and found.masks["conv.weight"].all()
    expected = ordered({n: w.abs() / limits[n] for n, w in fitted.items()}, found.removed)
    assert same({n: found.masks[n] for n in fitted}, expected)
    assert found.log.set_index("layer")["threshold"].dropna().to_dict() == pytest.approx(limits)
    assert not same(found.masks, pruned("magnitude", 0.6).masks), "the noise level changes the mask"


def test_support_keeps_no_noise_more_often_than_delta() -> None:
    from mpviz.prune.bulk import threshold

    rng = np.random.default_rng(0)
    noise = rng.normal(size=(400, 30, 20))
    limit = threshold(1.0, 600, 0.2)
    wrong = int((np.abs(noise).max(axis=(1, 2)) > limit).sum())
    assert 0 < wrong <= 0.2 * 400 + 3 * math.sqrt(400 * 0.2 * 0.8)


def test_wanda_compares_within_rows() -> None:
    net, _, _, x = setting()
    found = pruned("wanda", 0.5)
    hidden = torch.relu(net.conv(torch.relu(net.stem(x)))).flatten(1).detach()
    scores = net.fc1.weight.detach().abs() * hidden.norm(dim=0)
    for row, mask in zip(scores, found.masks["fc1.weight"], strict=True):
        assert int((~mask).sum()) == 48
        assert row[~mask].max() <= row[mask].min()
    kernel = nn.functional.unfold(torch.relu(net.stem(x)).detach(), 3, padding=1, stride=2)
    norms = kernel.transpose(1, 2).reshape(-1, 36).norm(dim=0)
    for row, mask in zip(net.conv.weight.detach().abs().flatten(1) * norms, found.masks["conv.weight"].flatten(1),
                         strict=True):  # fmt: skip
        assert row[~mask].max() <= row[mask].min() * (1 + 1e-5)
    assert not same(found.masks, pruned("magnitude", 0.5, scope="layer").masks), "the inputs change the mask"


def test_sparsegpt_is_the_exact_update_column_by_column() -> None:
    torch.manual_seed(0)
    w, h = torch.randn(6, 8, dtype=torch.float64), torch.randn(50, 8, dtype=torch.float64)
    gram = h.T @ h / 50
    new, mask = obs(w, gram, 19, block=3, damping=1e-9)
    assert int((~mask).sum()) == 19
    damped = gram + 1e-9 * gram.diagonal().mean() * torch.eye(8, dtype=torch.float64)
    expected = w.clone()  # oracle: fix one column after the other, solve the rest by least squares
    for j in range(8):
        error = torch.where(mask[:, j], 0.0, expected[:, j])
        rest = damped[j:, j:].inverse()
        expected[:, j:] -= (error / rest[0, 0])[:, None] * rest[0]
        expected[:, j] = torch.where(mask[:, j], expected[:, j], 0.0)
    torch.testing.assert_close(new, expected, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("block", [1, 3, 8])
def test_sparsegpt_removes_what_the_others_can_make_up_for(block: int) -> None:
    """Oracle: within each block the least w² / [H⁻¹]_jj, H of the columns from j on, at the block's beginning."""
    torch.manual_seed(3)
    h = torch.randn(50, 8, dtype=torch.float64) @ torch.diag(torch.logspace(-1, 1, 8, dtype=torch.float64)).flip(0)
    w, gram = torch.randn(6, 8, dtype=torch.float64), h.T @ h / 50
    damped, left, expected = gram + 0.01 * gram.diagonal().mean() * torch.eye(8), w.clone(), torch.ones(6, 8).bool()
    for start in range(0, 8, block):
        columns = range(start, min(start + block, 8))
        scores = torch.stack([left[:, j] ** 2 / damped[j:, j:].inverse()[0, 0] for j in columns], dim=1)
        take = round(19 * min(start + block, 8) / 8) - int((~expected).sum())
        expected[:, columns] = ordered({"": scores}, take)[""]
        for j in columns:
            error = torch.where(expected[:, j], 0.0, left[:, j])
            rest = damped[j:, j:].inverse()
            left[:, j:] -= (error / rest[0, 0])[:, None] * rest[0]
    _, mask = obs(w, gram, 19, block=block, damping=0.01)
    assert torch.equal(mask, expected)
    assert not torch.equal(mask, ordered({"": w.abs()}, 19)[""]), "the data change the mask"


def test_sparsegpt_makes_up_for_what_it_removes() -> None:
    found, plain = pruned("sparsegpt", 0.6, block=16), pruned("wanda", 0.6)
    net, _, moments, _ = setting()
    for name, error in found.log.set_index("layer")["output_error"].items():
        dense = net.get_parameter(name).detach().double().flatten(1)
        assert error < 0.8 * output_error(dense, dense * found.masks[name].flatten(1), moments[name].gram)
    kept = found.masks["fc1.weight"]
    assert not torch.equal(found.values["fc1.weight"][kept], net.fc1.weight.detach()[kept])
    assert not same(found.masks, plain.masks)


@pytest.mark.parametrize("block", [1, 2, 4, 6])
def test_dead_inputs_are_removed_first_and_cost_nothing(block: int) -> None:
    torch.manual_seed(0)
    h = torch.randn(50, 6, dtype=torch.float64)
    h[:, [1, 4]] = 0.0  # the largest weights are on what never says anything
    w = torch.randn(3, 6, dtype=torch.float64)
    w[:, [1, 4]] = 100.0
    gram = h.T @ h / 50
    for count in range(19):
        new, mask = obs(w, gram, count, block, damping=1e-6)
        dead = int((~mask[:, [1, 4]]).sum())
        assert int((~mask).sum()) == count and dead == min(count, 6)
        if count <= 6:
            assert output_error(w, new, gram) == 0.0
            assert torch.equal(new, torch.where(mask, w, 0.0)), "nothing is to be made up for"
    live = [0, 2, 3, 5]
    alone, kept = obs(w[:, live], gram[live][:, live], 5, 4, damping=1e-6)
    new, mask = obs(w, gram, 11, 6, damping=1e-6 * 6 / 4)  # of a mean over two columns of zeros more
    assert torch.equal(mask[:, live], kept)
    torch.testing.assert_close(new[:, live], alone)


@pytest.mark.parametrize("method", LOOK_AT_SPECTRA)
def test_without_spectra_the_remedy_is_named(method: str) -> None:
    with pytest.raises(BudgetError, match=r"give table=mp\.analyze"):
        prune_once(setting()[0], method, 0.5)


@pytest.mark.parametrize("method", [*LOOK_AT_SPECTRA, "haar"])
def test_spectra_of_another_network_are_refused(method: str) -> None:
    net, table, _, _ = setting()
    options = {"spikes": False} if method == "haar" else {}
    other = table.rename(index={"fc1.weight": "other.weight"})
    with pytest.raises(BudgetError, match=r"no row for fc1\.weight.*give table="):
        prune_once(net, method, 0.5, table=other, **options)
    wider = table.assign(params=table["params"] + 1)
    with pytest.raises(BudgetError, match=r"no row for conv\.weight, or one of another size; give table="):
        prune_once(net, method, 0.5, table=wider, **options)


@pytest.mark.parametrize("method", LOOK_AT_DATA)
def test_without_calibration_the_remedy_is_named(method: str) -> None:
    net, table, moments, _ = setting()
    with pytest.raises(BudgetError, match="second_moments"):
        prune_once(net, method, 0.5, table=table)
    wrong = dict(moments) | {"fc1.weight": moments["fc2.weight"]}
    with pytest.raises(BudgetError, match=r"fc1\.weight is of another network"):
        prune_once(net, method, 0.5, calibration=wrong)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("magnitud", 0.5, {}), "did you mean 'magnitude'"), (("seb", 0.5, {"betta": 1.0}), "did you mean 'beta'"),
     (("regimes", 0.5, {"beta": 1.0}), "has no option 'beta'"), (("magnitude", 1.0, {}), r"\[0, 1\)"),
     (("magnitude", 0.5, {"scope": "row"}), "unknown scope"), (("sub-edge", 0.5, {"drop": 2.0}), "share 0 … 1"),
     (("haar", 0.5, {"z0": -1.0}), "standard deviations"), (("support", 0.5, {"delta": 0.0}), "probability"),
     (("seb", 0.5, {"beta": "strong"}), "beta = 'strong'; give a number"),
     (("haar", 0.5, {"spikes": 1}), "give true or false"), (("seb", 0.5, {"locked": [3]}), "a list of texts"),
     (("sparsegpt", 0.5, {"block": 2.5}), "give a whole number"),
     (("sparsegpt", 0.5, {"damping": 0.0}), "damping above 0"), (("wanda", float("nan"), {}), r"\[0, 1\)")],
)  # fmt: skip
def test_bad_input_is_a_sentence(arguments: tuple, words: str) -> None:
    method, sparsity, options = arguments
    with pytest.raises(BudgetError, match=words):
        pruned(method, sparsity, **options)


def test_methods_can_be_cancelled_and_refuse_broken_networks() -> None:
    net, table, moments, _ = setting()
    for method in ("sub-edge", "haar", "wanda", "sparsegpt"):
        with pytest.raises(Cancelled):
            prune_once(net, method, 0.5, table=table, calibration=moments, cancelled=lambda: True)
    broken = Net().eval()
    with torch.no_grad():
        broken.fc1.weight[0, 0] = float("nan")
    with pytest.raises(BudgetError, match=r"fc1\.weight has NaN"):
        prune_once(broken, "magnitude", 0.5)
    with pytest.raises(BudgetError, match="do not fit this model"):
        pruned("haar").of(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))


# --- the smallest of all --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
def test_the_smallest_are_those_of_a_stable_sort(levels: int) -> None:
    """Few levels make many ties, which go by layer, then index."""
    draws = torch.Generator().manual_seed(levels)
    shapes = {"a": (7, 5), "b": (1,), "c": (3, 2, 2, 2), "d": (40,), "none": (0,)}
    scores = {
        name: torch.randint(levels, shape, generator=draws).float() - levels // 2 for name, shape in shapes.items()
    }
    scores["b"] = -0.0 * scores["b"].abs()  # −0 is no smaller than 0
    flat = torch.cat([values.flatten() for values in scores.values()]).numpy()
    order = np.argsort(flat, kind="stable")
    for count in range(len(flat) + 1):
        masks = smallest(scores, count)
        assert {name: mask.shape for name, mask in masks.items()} == {n: torch.Size(s) for n, s in shapes.items()}
        kept = torch.cat([mask.flatten() for mask in masks.values()]).numpy()
        expected = np.ones(len(flat), dtype=bool)
        expected[order[:count]] = False
        assert np.array_equal(kept, expected), count
    assert same(smallest(scores, 30), ordered(scores, 30))


def test_the_smallest_are_told_apart_in_double_precision_and_gradients_do_not_matter() -> None:
    close = {"a": torch.tensor([1.0 + 1e-12, 1.0], dtype=torch.float64), "b": torch.tensor([1.0], requires_grad=True)}
    masks = smallest(close, 2)
    assert masks["a"].tolist() == [True, False] and masks["b"].tolist() == [False]
    kept = {name: values.clone() for name, values in close.items()}
    smallest(close, 1)
    assert all(torch.equal(values, kept[name]) for name, values in close.items()), "the scores are as they were"


def test_scores_that_cannot_be_ranked_are_sentences() -> None:
    scores = {"a": torch.zeros(3), "b": torch.tensor([1.0, math.nan])}
    with pytest.raises(BudgetError, match="the scores of b hold NaN or infinite values"):
        smallest(scores, 1)
    with pytest.raises(BudgetError, match="the scores of b hold NaN"):
        smallest({"a": torch.zeros(3), "b": torch.tensor([-math.inf])}, 1)
    for count in (-1, 4):
        with pytest.raises(BudgetError, match=f"{count} entries cannot be removed from 3"):
            smallest({"a": torch.zeros(3)}, count)
