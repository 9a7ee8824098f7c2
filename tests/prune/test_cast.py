"""Projection of whole networks: against an oracle in ten lines, with its priors, orders, merged tokens and refusals."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpviz as mp
from mpviz.errors import BudgetError, Cancelled, DataError, ModelError, PatternError
from mpviz.nets.batch_norms import norm_inputs, renew_batch_norms
from mpviz.nets.calibrate import second_moments
from mpviz.nets.kn_pattern import KN
from mpviz.nets.layers import list_layers, weight_of
from mpviz.nets.tome import merged_tokens, schedule_of
from mpviz.prune.cast import Projected, project
from mpviz.prune.cast_job import pattern_unit
from mpviz.prune.cast_source import chosen_layers
from mpviz.prune.fold import channel_order, column_order, fold_permutations
from mpviz.prune.pattern import check_legal, layout


class Small(nn.Module):
    """A 3×3 convolution, a 1×1 and a Linear layer between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.point = nn.Conv2d(8, 16, 1)
        self.fc = nn.Linear(16, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.point(torch.relu(self.conv(torch.relu(self.stem(x))))))
        return self.head(torch.relu(self.fc(x.mean(dim=(2, 3)))))


@pytest.fixture
def small() -> tuple[Small, Tensor]:
    torch.manual_seed(0)
    return Small().eval(), torch.randn(24, 1, 6, 6)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return mp.load_data("fashion-mnist").calibration.sample(32)[0]


def oracle(
    weight: Tensor, gram: Tensor, pattern: KN, columns: Tensor, penalty: Tensor | None = None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Row, columns and mask of each group, every pattern tried."""
    flat = weight.flatten(1).double()
    for row in range(len(flat)):
        for group in columns:
            best, kept = torch.inf, None
            for mask in pattern.masks():
                r = flat[row, group] * ~mask
                cost = float(r @ gram[group][:, group] @ r)
                cost += 0.0 if penalty is None else float(penalty[row, group] @ (~mask).double())
                if cost < best - 1e-12:
                    best, kept = cost, mask
            assert kept is not None
            yield row, group, kept


@pytest.mark.parametrize("conv", ["flattened", "native"])
@pytest.mark.parametrize("rule", ["none", "hungarian"])
def test_every_group_keeps_what_the_oracle_keeps(small: tuple[Small, Tensor], conv: str, rule: str) -> None:
    net, x = small
    found = project(net, "2:4", x, conv=conv, permute=rule)
    grams = second_moments(net, x)
    assert set(found.masks) == {"conv.weight", "point.weight", "fc.weight"}
    for name, mask in found.masks.items():
        weight = weight_of(net, name)
        where = layout(name, tuple(weight.shape), KN(2, 4), conv, found.permutations.get(name))
        cost = 0.0
        for row, group, kept in oracle(weight, grams[name].gram, KN(2, 4), where.columns):
            assert torch.equal(mask.flatten(1)[row, group], kept)
            r = weight.flatten(1)[row, group].double() * ~kept
            cost += float(r @ grams[name].gram[group][:, group] @ r)
        assert found.cost.loc[name, "cost"] == pytest.approx(cost, rel=1e-4)
        power = float((weight.flatten(1).double().square() @ grams[name].gram.diagonal()).sum())
        assert found.cost.loc[name, "power"] == pytest.approx(power, rel=1e-4)
        assert torch.equal(weight_of(found.model, name), torch.where(mask, weight, 0.0))
    found.check(found.model)


@pytest.mark.parametrize("prior", ["text", "code"])
def test_the_source_masks_pull_by_their_prior(small: tuple[Small, Tensor], prior: str) -> None:
    net, x = small
    ser = mp.prune_model(net, "magnitude", 0.4)
    source = ser.of(net)
    found = project(net, "2:4", x, source=source, source_masks=ser.masks, alpha_ser=0.7, prior=prior)
    name = "fc.weight"
    values = torch.where(ser.masks[name], weight_of(source, name), weight_of(net, name))
    gram = second_moments(source, x)[name].gram
    where = layout(name, (12, 16), KN(2, 4))
    unit = pattern_unit(where.cells(values), where.blocks(gram), KN(2, 4), prior)
    by_hand = _unit_by_hand(where.cells(values).double(), where.blocks(gram), prior)
    torch.testing.assert_close(unit.squeeze(2), by_hand, rtol=1e-6, atol=1e-9)
    differs = 0.7 * unit * (2.0 * where.cells(ser.masks[name]) - 1)  # of removing; the Hamming distance but a constant
    penalty = where.weight(differs)
    for row, group, kept in oracle(values, gram, KN(2, 4), where.columns, penalty):
        gone, best = (~found.masks[name][row, group]).double(), (~kept).double()
        u, c = values[row, group].double(), gram[group][:, group]
        ours, least = ((u * g) @ c @ (u * g) + penalty[row, group] @ g for g in (gone, best))
        assert float(ours) <= float(least) + 1e-9  # several may be as good, where an input never comes
    assert found.cost.loc[name, "restored"] == int((found.masks[name] & ~ser.masks[name]).sum())
    assert found.cost.loc[name, "dropped"] == int((~found.masks[name] & ser.masks[name]).sum())


def _unit_by_hand(u: Tensor, blocks: Tensor, prior: str) -> Tensor:
    rows, groups, n = u.shape
    unit = torch.empty(rows, groups, dtype=torch.float64)
    for row in range(rows):
        for group in range(groups):
            if prior == "text":
                unit[row, group] = (u[:, group].square() * blocks[group].diagonal()).mean()
            else:
                costs = [(u[row, group] * ~m) @ blocks[group] @ (u[row, group] * ~m) for m in KN(2, n).masks()]
                unit[row, group] = sum(costs) / len(costs)
    return unit


def test_a_strong_prior_keeps_a_legal_source_and_a_dense_source_ignores_it(small: tuple[Small, Tensor]) -> None:
    net, x = small
    first = project(net, "2:4", torch.randn(24, 1, 6, 6))
    again = project(net, "2:4", x, source=first.model, source_masks=first.masks, alpha_ser=1e6)
    assert all(torch.equal(again.masks[name], mask) for name, mask in first.masks.items())
    plain, asked = project(net, "2:4", x), project(net, "2:4", x, alpha_ser=1e6)
    assert all(torch.equal(asked.masks[name], mask) for name, mask in plain.masks.items())


def test_without_free_restoration_removed_entries_stay_zero(small: tuple[Small, Tensor]) -> None:
    net, x = small
    ser = mp.prune_model(net, "magnitude", 0.7)
    source = ser.of(net)
    bound = project(net, "2:4", x, source=source, source_masks=ser.masks, free_restoration=False)
    free = project(net, "2:4", x, source=source, source_masks=ser.masks)
    for name, mask in ser.masks.items():
        assert not bool(weight_of(bound.model, name)[~mask].any())
        back = free.masks[name] & ~mask
        assert torch.equal(weight_of(free.model, name)[back], weight_of(net, name)[back]) and bool(back.any())


def test_calibration_runs_on_the_merged_graph(images: Tensor) -> None:
    vit = mp.load_model("fashion-vit")
    found = project(vit, "2:4", images, tome=8, layers=["blocks.5.mlp.fc2"])
    assert found.tome == (8,) * 3 + found.tome[3:] == schedule_of(found.model) and not schedule_of(vit)
    name = "blocks.5.mlp.fc2.weight"
    with merged_tokens(vit, 8):
        gram = second_moments(vit, images, [name])[name].gram
    where = layout(name, (128, 512), KN(2, 4))
    r = where.cells(weight_of(vit, name) * ~found.masks[name]).double()
    cost = torch.einsum("rga,gab,rgb->", r, where.blocks(gram), r)
    assert found.cost.loc[name, "cost"] == pytest.approx(float(cost), rel=1e-4)


@pytest.mark.parametrize("name", ["fashion-mlp", "fashion-vit", "fashion-resnet"])
def test_the_best_order_never_costs_more_than_none(name: str, images: Tensor) -> None:
    model = mp.load_model(name)
    none, best = (project(model, "2:4", images, permute=rule) for rule in ("none", "best"))
    assert bool((best.cost["cost"] <= none.cost["cost"] * (1 + 1e-9)).all())
    assert best.cost["cost"].sum() < none.cost["cost"].sum()
    assert set(best.permutations) == set(best.cost.index[best.cost["order"] != "none"])


@pytest.mark.parametrize("conv", ["flattened", "native"])
@pytest.mark.parametrize("name", ["fashion-mlp", "fashion-vit", "fashion-resnet"])
def test_foldable_orders_fold_and_the_groups_then_stand_side_by_side(name: str, conv: str, images: Tensor) -> None:
    model = mp.load_model(name)
    found = project(model, "2:4", images, permute="hungarian", foldable=True, conv=conv)
    folded = fold_permutations(found.model, found.masks, found.permutations, "2:4", conv)
    assert folded.permutations == {} and bool(folded.table["folded"].all()) and found.permutations
    for layer, mask in folded.masks.items():
        check_legal(layer, mask, KN(2, 4), conv)  # without any order
        assert torch.equal(weight_of(folded.model, layer) != 0, mask & (weight_of(folded.model, layer) != 0))
    with torch.no_grad():
        torch.testing.assert_close(folded.model(images), found.model(images), rtol=1e-4, atol=1e-4)
    found.check(found.model)  # the one that was folded is as it was


def test_what_cannot_be_folded_stays_a_buffer_with_its_reason(images: Tensor) -> None:
    vit, resnet = mp.load_model("fashion-vit"), mp.load_model("fashion-resnet")
    free = project(vit, "2:4", images, permute="hungarian")
    folded = fold_permutations(free.model, free.masks, free.permutations)
    why = folded.table["why"]
    assert why["blocks.0.mlp.fc2.weight"] == "folded into hidden units of blocks.0.mlp"
    assert "want different orders" in why["blocks.0.attn.qkv.weight"]
    assert "leaves the 4 heads" in why["blocks.0.attn.proj.weight"]
    assert set(folded.permutations) == set(folded.table.index[~folded.table["folded"]])
    for layer, mask in folded.masks.items():
        check_legal(layer, mask, KN(2, 4), order=folded.permutations.get(layer))
    with torch.no_grad():
        torch.testing.assert_close(folded.model(images), free.model(images), rtol=1e-4, atol=1e-4)
    free = project(resnet, "2:4", images, permute="hungarian")
    why = fold_permutations(free.model, free.masks, free.permutations).table["why"]
    assert "takes single pixels of a kernel apart" in why["layer1.0.conv2.weight"]


def test_orders_of_channels_and_of_columns_are_each_others_inverse() -> None:
    channels, shape = torch.tensor([2, 0, 1]), (5, 3, 2, 2)
    columns = column_order(channels, shape, "flattened")
    assert columns.tolist() == [8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7]
    back = channel_order(columns, shape, "flattened")
    assert back is not None and torch.equal(back, channels)
    assert channel_order(columns.roll(1), shape, "flattened") is None


def test_the_baselines_keep_the_largest_scores_and_are_billed_alike(small: tuple[Small, Tensor]) -> None:
    net, x = small
    grams = second_moments(net, x)
    costs = {}
    for criterion in ("cast", "wanda", "magnitude"):
        found = project(net, "2:4", x, criterion=criterion)
        costs[criterion] = found.cost["cost"]
        for name, mask in found.masks.items():
            weight, gram = weight_of(net, name).flatten(1).double(), grams[name].gram
            where = layout(name, tuple(mask.shape), KN(2, 4))
            gone = where.cells(weight.reshape(mask.shape) * ~mask)
            cost = float(torch.einsum("rga,gab,rgb->", gone, where.blocks(gram), gone))
            assert found.cost.loc[name, "cost"] == pytest.approx(cost, rel=1e-4)
            if criterion == "cast":
                continue
            score = weight.abs() if criterion == "magnitude" else weight.abs() * gram.diagonal().sqrt()
            cells, kept = where.cells(score.reshape(mask.shape)), where.cells(mask)
            least = cells.masked_fill(~kept, torch.inf).amin(dim=2)
            most = cells.masked_fill(kept, 0).amax(dim=2)
            assert bool((least >= most).all())
    assert bool((costs["cast"] <= costs["wanda"] * (1 + 1e-9)).all())
    assert costs["wanda"].sum() < costs["magnitude"].sum()


@pytest.mark.parametrize("text", ["2:4", "4:8"])
def test_repaired_values_are_the_least_squares_of_each_group(small: tuple[Small, Tensor], text: str) -> None:
    net, x = small
    pattern = KN.parse(text)
    plain, found = project(net, text, x), project(net, text, x, repair=True)
    grams = second_moments(net, x)
    for name, mask in found.masks.items():
        assert torch.equal(mask, plain.masks[name])
        where = layout(name, tuple(mask.shape), pattern)
        old, new = where.cells(weight_of(net, name)).double(), where.cells(weight_of(found.model, name)).double()
        kept, blocks = where.cells(mask), where.blocks(grams[name].gram)
        left = 0.0
        for row in range(len(old)):
            for group in range(old.shape[1]):
                k, c = kept[row, group], blocks[group]
                c = c + 1e-3 * c.diagonal().mean() * torch.eye(pattern.n, dtype=torch.float64)
                if float(c.diagonal().mean()) == 0:
                    continue
                best = old[row, group][k] + torch.linalg.solve(c[k][:, k], c[k][:, ~k] @ old[row, group][~k])
                torch.testing.assert_close(new[row, group][k], best, rtol=1e-4, atol=1e-5)
                assert not bool(new[row, group][~k].any())
                r = old[row, group] - new[row, group]
                left += float(r @ blocks[group] @ r)
        assert found.cost.loc[name, "left"] == pytest.approx(left, rel=1e-3)
        assert found.cost.loc[name, "left"] < found.cost.loc[name, "cost"] == plain.cost.loc[name, "left"]
    found.check(found.model)


def test_the_model_is_as_it_was_and_the_seed_decides(small: tuple[Small, Tensor]) -> None:
    net, x = small
    before = {name: value.clone() for name, value in net.state_dict().items()}
    one, same = (project(net, "4:8", x, permute="hungarian", seed=3, layers=["conv", "point", "fc"]) for _ in range(2))
    assert all(torch.equal(one.masks[name], same.masks[name]) for name in one.masks)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    said: list[float] = []
    project(net, "2:4", x, permute="best", progress=lambda share, words: said.append(share))
    assert said == sorted(said) and said[-1] == 1.0


def refused(kind: type[Exception], words: str, net: nn.Module, *args: Any, **options: Any) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(kind, match=words) as caught:
        project(net, *args, **options)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_what_is_refused(small: tuple[Small, Tensor]) -> None:
    net, x = small
    refused(PatternError, "3:5 needs a multiple of 5 inputs; conv.weight has 72, point.weight has 8", net, "3:5", x)
    refused(PatternError, "4:2 is no k:n pattern", net, "4:2", x)
    refused(PatternError, "head.weight cannot be projected: the head", net, "2:4", x, layers=["head"])
    refused(PatternError, "did you mean 'hungarian'", net, "2:4", x, permute="hungary")
    refused(PatternError, "did you mean 'text'", net, "2:4", x, prior="texts")
    refused(PatternError, "did you mean 'wanda'", net, "2:4", x, criterion="wand")
    refused(PatternError, "alpha_ser is a strength", net, "2:4", x, alpha_ser=-1.0)
    refused(PatternError, "did you mean 'native'", net, "2:4", x, conv="natives")
    refused(DataError, "give calibration=", net, "2:4")
    refused(DataError, "no images", net, "2:4", x[:0])
    refused(DataError, "NaN or infinite values enter", net, "2:4", x * torch.nan)
    refused(DataError, "the test split only measures", mp.load_model("fashion-mlp"), "2:4",
            mp.load_data("fashion-mnist").test)  # fmt: skip
    refused(ModelError, r"cannot take images of shape \(3, 6, 6\)", net, "2:4", torch.randn(2, 3, 6, 6))
    refused(ModelError, "is no VisionTransformer", net, "2:4", x, tome=8)
    refused(
        ModelError, "more merges than tokens", mp.load_model("fashion-vit"), "2:4", torch.randn(2, 1, 28, 28), tome=99
    )
    refused(BudgetError, "source is 'dense' or a pruned network", net, "2:4", x, source="ser")
    refused(BudgetError, "needs its masks", net, "2:4", x, source=net)
    refused(BudgetError, "another architecture", net, "2:4", x, source=mp.load_model("fashion-mlp"),
            source_masks={"fc.weight": torch.ones(12, 16, dtype=torch.bool)})  # fmt: skip
    refused(BudgetError, "has shape", net, "2:4", x, source=net,
            source_masks={"fc.weight": torch.ones(3, 16, dtype=torch.bool)})  # fmt: skip
    refused(Cancelled, "cancelled", net, "2:4", x, cancelled=lambda: True)


def test_layers_that_do_not_fit_can_stay_dense(small: tuple[Small, Tensor]) -> None:
    net, x = small
    found = project(net, "8:16", x, layers="fitting")
    assert set(found.masks) == {"fc.weight"}
    assert found.cost.loc["conv.weight", "why"] == "72 inputs, no multiple of 16"


def test_weights_that_grew_back_are_told(small: tuple[Small, Tensor]) -> None:
    net, x = small
    found: Projected = project(net, "2:4", x)
    with torch.no_grad():
        found.model.fc.weight += 1.0
    with pytest.raises(PatternError, match=r"fc.weight has 96 weights outside its 2:4 pattern"):
        found.check(found.model)


# --- which layers ---------------------------------------------------------------------------------------------------


def names(net: nn.Module, layers: Any, pattern: str = "2:4") -> list[str]:
    chosen, left = chosen_layers(net, KN.parse(pattern), "flattened", layers)
    assert left == []
    return list(chosen)


def test_layers_may_be_named_by_their_role() -> None:
    vit, resnet = mp.load_model("fashion-vit", pretrained=False), mp.load_model("fashion-resnet", pretrained=False)
    attention, mlp = ([f"blocks.{i}.{part}.weight" for i in range(6) for part in parts]
                      for parts in (("attn.qkv", "attn.proj"), ("mlp.fc1", "mlp.fc2")))  # fmt: skip
    assert names(vit, "mlp") == names(vit, ["mlp"]) == names(vit, ("mlp", "mlp")) == mlp
    assert names(vit, ["attention"]) == attention
    assert names(vit, ["mlp", "attention"]) == names(vit, None)
    # each once, in the order of the network, whatever the order they are asked in
    assert names(vit, ["mlp", "blocks.3.attn.qkv", mlp[2], "blocks.0.attn.proj.weight"]) == [
        "blocks.0.attn.proj.weight", *mlp[:6], "blocks.3.attn.qkv.weight", *mlp[6:]
    ]  # fmt: skip
    assert names(resnet, "conv") == names(resnet, None), "the stem is no layer to prune, though it is a convolution"
    assert names(vit, "fitting", "8:16") == names(vit, ["fitting"], "8:16") == names(vit, None)


def test_of_a_role_only_those_that_are_pruned_are_meant() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))  # computed: there is nothing to mask
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Linear(8, 8), normed, nn.Linear(8, 2))
    assert {info.name: info.prunable for info in list_layers(net) if info.role == "mlp"} == {
        "1.weight": True, "2.weight": False
    }  # fmt: skip
    assert names(net, ["mlp"]) == ["1.weight"]
    grouped = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1), nn.Linear(8, 2))
    with pytest.raises(PatternError, match="no prunable layer of the role 'depthwise'"):
        names(grouped, ["depthwise"])
    assert names(grouped, ["conv"]) == ["2.weight"]


def test_a_layer_that_is_called_like_a_role_is_meant(small: tuple[Small, Tensor]) -> None:
    net = small[0]
    assert names(net, "conv") == names(net, ["conv.weight"]) == ["conv.weight"]
    assert names(net, ["mlp", "conv"]) == ["conv.weight", "fc.weight"]


def test_roles_that_no_layer_has_are_sentences(small: tuple[Small, Tensor]) -> None:
    net = small[0]
    for layers, words in (
        (["depthwise"], "Small has no prunable layer of the role 'depthwise'"),
        (["attention", "depthwise"], "Small has no prunable layer of the role 'attention'"),
        (["head"], "head.weight cannot be projected: the head is left out"),
        (["mlp", "stem.weight"], "stem.weight cannot be projected: the stem is left out"),
    ):
        with pytest.raises(PatternError, match=words):
            names(net, layers)
    with pytest.raises(ModelError, match="unknown layer 'cnv'; did you mean 'conv"):
        names(net, ["mlp", "cnv"])


def test_only_the_layers_of_a_role_are_projected(small: tuple[Small, Tensor]) -> None:
    net, x = small
    found, whole = project(net, "2:4", x, layers=["mlp"]), project(net, "2:4", x)
    assert list(found.masks) == ["fc.weight"] == list(found.cost.index)
    assert all(torch.equal(mask, whole.masks[name]) for name, mask in found.masks.items())
    assert torch.equal(weight_of(found.model, "conv.weight"), weight_of(net, "conv.weight"))


def test_settings_that_mean_nothing_are_told_before_the_calibration(small: tuple[Small, Tensor]) -> None:
    net, _ = small
    for options, words in (
        ({"conv": "flat"}, "unknown way to group a convolution 'flat'"),
        ({"criterion": "cats"}, "unknown criterion 'cats'"), ({"permute": "snakes"}, "unknown permutation 'snakes'"),
    ):  # fmt: skip
        with pytest.raises(PatternError, match=words):
            project(net, "2:4", None, **options)  # type: ignore[arg-type]


def test_renewed_norms_give_back_what_the_old_ones_cost() -> None:
    net, data = mp.load_model("fashion-resnet"), mp.load_data("fashion-mnist", folder="bundled")
    images, labels = data.test.sample(300, seed=0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = [project(net, "2:4", data.calibration, renew=renew, images=64) for renew in (False, True)]
    plain, renewed = (one.model for one in found)
    with torch.no_grad():
        right = [int((one(images).argmax(1) == labels).sum()) for one in (plain, renewed)]
    assert right[1] > right[0] + 60 and right[1] > 0.85 * len(labels)
    changed = {name.rsplit(".", 1)[1] for name, value in renewed.state_dict().items()
               if not torch.equal(value, plain.state_dict()[name])}  # fmt: skip
    assert changed == {"running_mean", "running_var"}
    assert found[1].settings["renew"] and found[1].settings["images"] == 64
    assert not any(module.training for module in renewed.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    # the same images as the search saw
    again = copy.deepcopy(plain)
    renew_batch_norms(again, *(norm_inputs(one, data.calibration, 64, 0) for one in (net, plain)))
    assert all(torch.equal(value, renewed.state_dict()[name]) for name, value in again.state_dict().items())
    refused(ModelError, "no batch norms to renew", mp.load_model("fashion-mlp"), "2:4", images, renew=True)


def test_settings_tell_how_many_images_were_seen(small: tuple[Small, Tensor]) -> None:
    net, x = small
    assert project(net, "2:4", x[:3]).settings["images"] == 3
    split = mp.load_data("digits").calibration
    folded = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).eval()
    assert project(folded, "2:4", split, images=10**6).settings["images"] == len(split)
    assert project(folded, "2:4", split, free_restoration=False).settings["free_restoration"] is False


def test_damping_leads_from_the_criterion_to_magnitude(small: tuple[Small, Tensor]) -> None:
    net, x = small
    plain, none, much, magnitude = (
        project(net, "2:4", x, **options)
        for options in ({}, {"damping": 0.0}, {"damping": 1e9}, {"criterion": "magnitude"})
    )
    gram = second_moments(net, x)["fc.weight"].gram
    assert all(torch.equal(plain.masks[name], none.masks[name]) for name in plain.masks)
    assert all(torch.equal(much.masks[name], magnitude.masks[name]) for name in much.masks)
    some = project(net, "2:4", x, damping=0.5)
    where = layout("fc.weight", (12, 16), KN(2, 4))
    damped = gram + 0.5 * gram.diagonal().mean() * torch.eye(16, dtype=torch.float64)
    for row, group, kept in oracle(weight_of(net, "fc.weight"), damped, KN(2, 4), where.columns):
        assert torch.equal(some.masks["fc.weight"][row, group], kept)
    # what is told stays the cost under C itself
    gone = where.cells(weight_of(net, "fc.weight") * ~some.masks["fc.weight"]).double()
    cost = float(torch.einsum("rga,gab,rgb->", gone, where.blocks(gram), gone))
    assert (
        some.cost.loc["fc.weight", "cost"] == pytest.approx(cost, rel=1e-4)
        and cost >= plain.cost.loc["fc.weight", "cost"]
    )
    refused(PatternError, "damping is a share", net, "2:4", x, damping=-0.1)


def test_a_network_that_merges_already_is_projected_as_it_merges() -> None:
    net, x = mp.load_model("fashion-vit"), mp.load_data("fashion-mnist", folder="bundled").calibration.sample(8)[0]
    merged = project(net, "2:4", x, tome=4)
    twice = project(merged.model, "2:4", x)
    assert twice.tome == merged.tome == (4,) * 6 == schedule_of(merged.model)
    assert all(torch.equal(twice.masks[name], merged.masks[name]) for name in merged.masks)
    again = project(net, "2:4", x, source=merged.model, source_masks=merged.masks, tome=4)
    assert again.tome == (4,) * 6 and schedule_of(net) == ()
    with merged_tokens(net, 4):
        inside = project(net, "2:4", x)
        assert schedule_of(net) == (4,) * 6
    assert all(torch.equal(inside.masks[name], merged.masks[name]) for name in merged.masks)
    with pytest.raises(ModelError, match="not 2; leave tome at 0"):
        project(merged.model, "2:4", x, tome=2)
    assert schedule_of(merged.model) == (4,) * 6
