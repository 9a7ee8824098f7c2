"""Data-path budgets: no input, no point of the path breaks one, and each ingredient of the constants is needed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mpviz as mp
from mpviz.certificates import budgets, lipschitz
from mpviz.certificates.budgets import (
    data_path_budget,
    gain_of,
    ordered_budgets,
    segment_change,
)
from mpviz.certificates.cross_entropy import exact_change, loss_path_bound, measured_change, softmax_bound
from mpviz.certificates.layer_input import record_input, removed_part
from mpviz.certificates.margins import top_margin
from mpviz.certificates.objective import Penalty, ordered_certificate
from mpviz.errors import BudgetError, Cancelled, DataError, ModelError, MpvizError
from mpviz.nets.forward import pruned_copy
from mpviz.nets.graph import trace

SEEDS = st.integers(0, 10**6)


class Residual(nn.Module):
    """conv–norm–ReLU with a bottleneck around which the input is added, average pool, two linear layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv1, self.bn1 = nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 4, 3, padding=1, stride=1), nn.BatchNorm2d(4)
        self.pool, self.fc, self.head = nn.AvgPool2d(2), nn.Linear(36, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.bn0(self.stem(x)))
        y = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(y)) + x)
        return self.head(torch.relu(self.fc(self.pool(x).flatten(1))))


def network(kind, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "mlp":
            model = nn.Sequential(
                nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)
            )
        else:
            model = Residual()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(), module.running_var.uniform_(0.1, 2.0)
                nn.init.uniform_(module.weight, -2.0, 2.0), nn.init.normal_(module.bias)
        x = torch.randn(6, 1, 6, 6)
        masks = {
            name: torch.rand(p.shape) > 0.4 for name, p in model.named_parameters() if p.ndim > 1 and "stem" not in name
        }
    return model.eval(), x, masks


@torch.no_grad()
def at(model, weight, removed, theta, x):
    """Logits in float64 with the weight at S + θR."""
    copy = pruned_copy(model, {}).double()
    dict(copy.named_parameters())[weight].sub_((1 - theta) * removed)
    return copy(x.double())


def attack(model, weight, removed, x, steps=15):
    """Inputs at which removing R does most to a logit."""
    dense, pruned = pruned_copy(model, {}).double(), pruned_copy(model, {}).double()
    with torch.no_grad():
        dict(pruned.named_parameters())[weight].sub_(removed)
    x = x.double().clone()
    for _ in range(steps):
        x.requires_grad_()
        (g,) = torch.autograd.grad((pruned(x) - dense(x)).abs().amax(1).sum(), x)
        x = (x + 0.1 * g.sign()).detach()
    return x


@pytest.mark.parametrize("kind", ["mlp", "residual"])
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS, pieces=st.integers(1, 3))
def test_no_point_of_the_path_breaks_a_budget_not_even_at_attacked_inputs(kind, seed, pieces):
    model, x, masks = network(kind, seed)
    for weight, mask in masks.items():
        removed = removed_part(model, weight, mask)
        for images in (x, attack(model, weight, removed, x)):
            sharp = data_path_budget(model, weight, removed, images, "segment", pieces=pieces)
            loose = data_path_budget(model, weight, removed, images, "norms")
            assert (sharp.lipschitz <= loose.lipschitz * (1 + 1e-9)).all()
            assert (sharp.slack >= -1e-10).all() and sharp.least_budget <= sharp.budget + 1e-10
            dense = at(model, weight, removed, 1.0, images)
            for theta in (0.0, 0.25, 0.5, 0.9):
                z = at(model, weight, removed, theta, images)
                moved = (z - dense).abs().amax(1).numpy()
                assert (moved <= (1 - theta) * sharp.eta + 1e-10).all()
                kept = sharp.certified(top_margin(dense).numpy())
                assert (z.argmax(1) == dense.argmax(1)).numpy()[kept].all()
                y = torch.zeros(len(z), dtype=torch.long)
                bound = loss_path_bound(torch.from_numpy(sharp.eta), theta)
                assert (np.abs(exact_change(dense, z, y).change) <= bound.upper + 1e-10).all()


@pytest.mark.parametrize("kind", ["mlp", "residual"])
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_the_change_of_each_difference_stays_inside(kind, seed):
    model, x, masks = network(kind, seed)
    y = torch.arange(len(x)) % 3
    for weight, mask in masks.items():
        removed = removed_part(model, weight, mask)
        x = attack(model, weight, removed, x, steps=3)
        fall, rise = segment_change(model, weight, removed, x, y)
        dense, pruned = at(model, weight, removed, 1.0, x), at(model, weight, removed, 0.0, x)
        change = measured_change(dense, pruned, y)
        assert (change <= rise + 1e-10).all() and (change >= fall - 1e-10).all()
        bound = softmax_bound(dense, y, rise, fall)
        exact = exact_change(dense, pruned, y).change
        assert (exact <= bound.upper + 1e-10).all() and (exact >= bound.lower - 1e-10).all()


def test_more_pieces_are_sharper_and_a_piece_left_out_would_lie(monkeypatch):
    model, x, masks = network("mlp", 4)
    removed = removed_part(model, "1.weight", masks["1.weight"])
    widths, etas = [], []
    for pieces in (1, 4, 64):
        fall, rise = segment_change(model, "1.weight", removed, x, torch.zeros(6, dtype=torch.long), pieces=pieces)
        widths.append(float((rise - fall).mean()))
        etas.append(data_path_budget(model, "1.weight", removed, x, pieces=pieces).eta)
    assert widths[0] > widths[1] > widths[2] and (etas[0] >= etas[1]).all() and (etas[1] >= etas[2]).all()
    change = measured_change(*(at(model, "1.weight", removed, theta, x) for theta in (1, 0)), torch.zeros(6).long())
    assert (change <= rise + 1e-10).all() and (change >= fall - 1e-10).all()
    monkeypatch.setattr(budgets, "_pieces", lambda count: [(k / count, (k + 1) / count) for k in range(1, count)])
    fall, rise = segment_change(model, "1.weight", removed, x, torch.zeros(6).long(), pieces=4)
    assert ((change > rise + 1e-6) | (change < fall - 1e-6)).any()


@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_ordered_budgets_add_up_to_a_bound_of_the_whole(seed):
    model, x, masks = network("residual", seed)
    for order in (list(masks), list(masks)[::-1]):
        found = ordered_budgets(model, masks, x, order=order)
        total = np.sum([one.eta for one in found], axis=0)
        pruned = pruned_copy(model, masks).double()
        with torch.no_grad():
            moved = (pruned(x.double()) - pruned_copy(model, {}).double()(x.double())).abs().amax(1).numpy()
        assert (moved <= total + 1e-10).all()
        assert [one.before for one in found] == [tuple(order[:i]) for i in range(len(order))]
        terms = [one.term(gain_of(model, one.weight, masks[one.weight], Penalty(1e-3))) for one in found]
        assert ordered_certificate(terms).eta == pytest.approx(total.mean())


def broken(monkeypatch, method, kinds=("mlp", "residual")):
    """Whether a mutated constant is below what was measured somewhere."""
    for kind in kinds:
        for seed in range(12):
            model, x, masks = network(kind, seed)
            for weight, mask in masks.items():
                removed = removed_part(model, weight, mask)
                inputs = attack(model, weight, removed, x)
                found = data_path_budget(model, weight, removed, inputs, method, pieces=1)
                if (found.slack < -1e-9).any():
                    return True
    return False


def test_a_jacobian_of_the_dense_end_alone_would_lie(monkeypatch):
    """Slopes taken at one point of the segment instead of over it."""
    original = lipschitz._boxes

    def point(network, start, removed, x, piece):
        boxes, step, error = original(network, start, torch.zeros_like(removed), x, piece)
        return boxes, step, error

    monkeypatch.setattr(lipschitz, "_boxes", point)
    assert broken(monkeypatch, "segment")


def test_a_forgotten_radius_would_lie(monkeypatch):
    monkeypatch.setattr(lipschitz.TailJacobian, "lipschitz", lambda self: self.centre.flatten(2).abs().sum(2).amax(1))
    assert broken(monkeypatch, "segment")


def test_a_dropped_absolute_value_would_lie(monkeypatch):
    monkeypatch.setattr(
        lipschitz.TailJacobian, "lipschitz", lambda self: (self.centre + self.radius).flatten(2).sum(2).amax(1)
    )
    assert broken(monkeypatch, "segment")


@pytest.mark.parametrize("left_out", ["norm", "linear"])
def test_a_layer_left_out_of_the_product_would_lie(monkeypatch, left_out):
    original = lipschitz._gain

    def gain(network, node):
        return 0.02 if node.op == left_out else original(network, node)

    monkeypatch.setattr(lipschitz, "_gain", gain)
    assert broken(monkeypatch, "norms", kinds=("residual",))


def test_a_residual_branch_left_out_would_lie():
    """x + w·relu(x): the product along one branch misses the other."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.branch = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
            self.first.weight.data.fill_(1.0), self.branch.weight.data.fill_(0.5)

        def forward(self, x):
            x = self.first(x.flatten(1))
            return x + self.branch(torch.relu(x))

    model = Sum().eval()
    assert lipschitz.global_lipschitz(trace(model), "first.weight") == pytest.approx(1.5)
    found = data_path_budget(model, "first.weight", torch.ones(1, 1), torch.ones(1, 1))
    assert found.eta_measured[0] == pytest.approx(1.5) == pytest.approx(found.eta[0])


@pytest.mark.parametrize("kind", ["mlp", "residual"])
def test_the_coarser_norm_pairs_are_bounds_and_the_proxy_is_not(kind):
    below = False
    for seed in range(20):
        model, x, masks = network(kind, seed)
        for weight, mask in masks.items():
            found = data_path_budget(model, weight, removed_part(model, weight, mask), x, "norms")
            assert (found.moved <= found.row_sums * (1 + 1e-9)).all()
            assert (found.moved <= found.row_lengths * (1 + 1e-9)).all()
            below |= bool((found.moved > found.proxy).any())
    flat = nn.Sequential(nn.Linear(9, 1)).eval()
    flat[0].weight.data.fill_(1.0)
    one = data_path_budget(flat, "0.weight", torch.ones(1, 9), torch.ones(1, 9), "norms")
    assert one.proxy == pytest.approx(3.0) and one.moved[0] == pytest.approx(9.0), "the proxy is three times too small"
    assert budgets.PROXY_LABEL == "paper's proxy, not a bound"


def test_patches_are_measured_as_unfold_does():
    model, x, masks = network("residual", 1)
    removed = removed_part(model, "conv2.weight", masks["conv2.weight"])
    found = record_input(model, "conv2.weight", removed, x)
    copy = pruned_copy(model, {}).double()
    with torch.no_grad():
        h = torch.relu(copy.bn1(copy.conv1(torch.relu(copy.bn0(copy.stem(x.double()))))))
    columns = torch.nn.functional.unfold(h, 3, padding=1)
    np.testing.assert_allclose(found.lengths, columns.norm(dim=1), rtol=1e-9)
    np.testing.assert_allclose(found.moved, (removed.flatten(1) @ columns).abs().flatten(1).amax(1), rtol=1e-9)
    np.testing.assert_allclose(found.largest, h.abs().flatten(1).amax(1), rtol=1e-12)


def test_perfect_pruning_is_found_and_named():
    model, x, _ = network("mlp", 3)
    x[:, :, 0] = 0.0  # a dark border, as in images: what reads only it can go
    removed = removed_part(
        model, "1.weight", torch.ones(12, 36, dtype=torch.bool).index_fill(1, torch.arange(6), False)
    )
    found = data_path_budget(model, "1.weight", removed, x)
    assert removed.abs().sum() > 0
    assert found.perfect and found.budget == 0.0 == found.least_budget
    assert found.certified(np.full(6, 1e-9)).all()
    x[2, 0, 0, 0] = 1e-3
    assert not data_path_budget(model, "1.weight", removed, x).perfect


def test_transformers_are_recorded_but_get_no_bound():
    model = mp.load_model("fashion-vit")
    images, _ = mp.load_data("fashion-mnist").test.sample(4)
    weight = "blocks.5.mlp.fc1.weight"
    removed = removed_part(model, weight, mp.magnitude_masks(model, 0.3)[weight])
    found = record_input(model, weight, removed, images)
    assert found.lengths.shape == (4, 50) and (found.moved > 0).all()
    with pytest.raises(ModelError, match="measured"):
        data_path_budget(model, weight, removed, images)


def test_the_model_is_left_as_it_was():
    model, x, masks = network("residual", 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ordered_budgets(model, masks, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_bad_input():
    model, x, masks = network("mlp", 0)
    weight = "1.weight"
    removed = removed_part(model, weight, masks[weight])
    with pytest.raises(DataError, match="refuted"):
        data_path_budget(model, weight, removed, x, torch.full((6,), 1e-6))
    claimed = data_path_budget(model, weight, removed, x, torch.full((6,), 1e3))
    assert claimed.tier == "estimate" and claimed.method == "given", "nobody has checked it over the path"
    assert data_path_budget(model, weight, removed, x, "norms").tier == "bound"
    sick = pruned_copy(model, {})
    sick[5].weight.data[0, 0] = torch.nan
    with pytest.raises(DataError, match="NaN or infinite logits"):
        data_path_budget(sick, weight, removed, x)
    with pytest.raises(ModelError, match="not finite"):
        data_path_budget(sick, weight, removed, x, "norms")
    with pytest.raises(DataError, match="give 6 finite ones"):
        data_path_budget(model, weight, removed, x, torch.ones(5))
    with pytest.raises(MpvizError, match="did you mean 'segment'"):
        data_path_budget(model, weight, removed, x, "segmnt")
    with pytest.raises(BudgetError, match=r"did you mean '1\.weight'"):
        data_path_budget(model, "1.weigt", removed, x)
    with pytest.raises(BudgetError, match="must agree"):
        data_path_budget(model, weight, removed[:, :3], x)
    with pytest.raises(BudgetError, match="True = kept"):
        removed_part(model, weight, masks[weight].float())
    with pytest.raises(BudgetError, match="NaN"):
        data_path_budget(model, weight, removed * torch.nan, x)
    with pytest.raises(DataError, match="one at least"):
        data_path_budget(model, weight, removed, x[:0])
    with pytest.raises(DataError, match="images hold NaN"):
        data_path_budget(model, weight, removed, x * torch.nan)
    with pytest.raises(MpvizError, match="1 at least"):
        data_path_budget(model, weight, removed, x, pieces=0)
    with pytest.raises(BudgetError, match="pruned before"):
        data_path_budget(model, weight, removed, x, before={weight: masks[weight]})
    told = []
    ordered_budgets(model, masks, x, "norms", progress=lambda share, name: told.append((share, name)))
    assert told[-1] == (1.0, list(masks)[-1])
    with pytest.raises(Cancelled):
        ordered_budgets(model, masks, x, cancelled=lambda: True)
    with pytest.raises(BudgetError, match="each masked layer once"):
        ordered_budgets(model, masks, x, order=[weight])
    with pytest.raises(DataError, match="labels run from 3"):
        segment_change(model, weight, removed, x, torch.full((6,), 3))
    with pytest.raises(MpvizError, match="training mode"):
        data_path_budget(model.train(), weight, removed, x)
    shared = nn.Sequential(nn.Flatten(), linear := nn.Linear(36, 36), linear).eval()
    with pytest.raises(BudgetError, match="used 2 times"):
        record_input(shared, "1.weight", linear.weight.detach(), x)
