"""What a list of operations does not show is refused: nothing is proved about another network than the one run."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn

from mpviz.certificates.bounds import margin_bound
from mpviz.certificates.certify import certify
from mpviz.certificates.families import Family
from mpviz.errors import ModelError
from mpviz.nets.data import Split
from mpviz.nets.graph import trace


class Switch(nn.Module):
    """The same weights under two forward passes."""

    def __init__(self, act: bool = True) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 3), act

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x.flatten(1))
        return self.b(torch.relu(h) if self.act else h)


def square(n: int = 12) -> Split:
    images = torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return Split("test", torch.utils.data.TensorDataset(images, torch.zeros(n, dtype=torch.long)), ("a", "b", "c"))


def refused(dense: nn.Module, pruned: nn.Module, words: str) -> None:
    try:
        found = certify(dense, pruned, square(), ("path", "sub-masks", "ball"), radius=1e-3).tiers
    except ModelError as error:
        assert re.search(words, str(error)), error
    else:
        assert all(tier.certified is None and re.search(words, tier.why) for tier in found.values())


def test_a_pruned_network_with_another_forward_pass_is_refused() -> None:
    dense, pruned = Switch().eval(), Switch(act=False).eval()
    pruned.load_state_dict(dense.state_dict())
    refused(dense, pruned, "the logits of the pruned network")


def test_a_hook_on_the_pruned_network_is_refused() -> None:
    dense = Switch().eval()
    pruned = copy.deepcopy(dense)
    pruned.a.register_forward_hook(lambda module, inputs, out: 2 * out)
    refused(dense, pruned, "hooks of a")


def test_a_method_put_on_an_instance_is_refused() -> None:
    dense = Switch().eval()
    dense.a.forward = lambda x: x.clamp(0, 1)  # type: ignore[method-assign]
    refused(dense, copy.deepcopy(dense), "forward method put on a")


def test_a_second_argument_is_not_read_as_the_images() -> None:
    class Two(Switch):
        def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
            return super().forward(x) if extra is None else extra

    refused(Two().eval(), Two().eval(), "several arguments")


def test_a_pass_that_changes_the_network_is_refused() -> None:
    class Counting(Switch):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    dense = Counting().eval()
    refused(dense, copy.deepcopy(dense), "changes the buffer calls|no rule|cannot be read")


def test_part_of_a_network_in_training_mode_is_refused_and_left_as_it_is() -> None:
    dense = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    dense[2].train()
    before = dense[2].running_mean.clone()
    with pytest.raises(ModelError, match="training mode"):
        certify(dense, copy.deepcopy(dense), square(), ("measured", "population"))
    assert torch.equal(dense[2].running_mean, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_and_not_proved(dtype: torch.dtype) -> None:
    dense = Switch().eval().to(dtype)
    images = square().sample()[0].to(dtype)
    split = Split("test", torch.utils.data.TensorDataset(images, torch.zeros(12, dtype=torch.long)), ("a", "b", "c"))
    tier = certify(dense, copy.deepcopy(dense), split, ("path",)).tiers["path"]
    assert tier.certified is None
    assert "whose rounding no bound covers" in tier.why


def test_double_precision_is_measured_in_double_precision() -> None:
    dense = Switch().eval().double()
    with torch.no_grad():
        dense.b.weight.zero_()
        dense.b.bias.copy_(torch.tensor([1.0, 1.0 + 1e-12, 0.0], dtype=torch.float64))
    pruned = copy.deepcopy(dense)
    with torch.no_grad():
        pruned.b.bias.copy_(torch.tensor([1.0 + 2e-12, 1.0 + 1e-12, 0.0], dtype=torch.float64))
    images = square().sample()[0].double()
    split = Split("test", torch.utils.data.TensorDataset(images, torch.zeros(12, dtype=torch.long)), ("a", "b", "c"))
    assert certify(dense, pruned, split).changed.all()


def test_cancelling_batch_norms_pay_for_the_rounding_of_both_terms() -> None:
    norm = nn.BatchNorm1d(2, eps=0.0).eval()
    with torch.no_grad():
        norm.running_var.fill_(3.0)
        norm.running_mean.fill_(1e4)
        norm.weight.copy_(torch.tensor([1.7, 1.3]))
        norm.bias.copy_(norm.running_mean * norm.weight / 3**0.5)
    last = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        last.weight.copy_(torch.eye(2))
    model = nn.Sequential(norm, last).eval()
    x = torch.zeros(1, 2)
    target = copy.deepcopy(model).double()(x.double()).argmax(dim=1)
    single = margin_bound(trace(model), Family("one network"), x, target, "float32")
    own = model(x)[0].detach()
    assert single.lower[0, 1 - target] <= float(own[target] - own[1 - target])
