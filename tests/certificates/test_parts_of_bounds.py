"""The small parts that bounds are made of, each against brute force: what a loose bound above would hide."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from mpviz.certificates import families, rules
from mpviz.certificates.bounds import MarginBound
from mpviz.certificates.boxes import State
from mpviz.certificates.certify import certify
from mpviz.certificates.exhaustive import every_position
from mpviz.certificates.gaussian import gaussian_budget
from mpviz.certificates.lipschitz import global_lipschitz
from mpviz.errors import ModelError
from mpviz.nets.data import Split
from mpviz.nets.graph import trace


def test_the_magnitude_of_a_box_is_its_farther_end() -> None:
    state = State(torch.zeros(1, 2), torch.tensor([[-3.0, -1.0]]), torch.tensor([[1.0, 2.0]]))
    assert state.magnitude().tolist() == [[3.0, 2.0]]


def test_a_bracket_reaches_from_one_mask_to_the_other_exactly() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5))
    weight = model[0].weight.detach().double()
    denser, sparser = {"0.weight": weight.abs() > 0.1}, {"0.weight": weight.abs() > 0.2}
    box = families.bracket(model, denser, sparser)
    centre, radius = box.centre["0.weight"], box.radius["0.weight"]
    ends = torch.stack([centre - radius, centre + radius])
    for mask in (denser, sparser):
        kept = weight * mask["0.weight"]
        assert ((ends[0] <= kept) & (kept <= ends[1])).all()
        assert ((ends[0] == kept) | (ends[1] == kept)).all()


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(3, 1), nn.MaxPool2d(3, 2, padding=1), nn.MaxPool2d(2, 2, dilation=2), nn.MaxPool2d(2),
             nn.MaxPool2d((3, 2), (2, 1), padding=(1, 0))],
)  # fmt: skip
def test_the_rivals_of_a_window_are_all_its_other_entries(pool: nn.MaxPool2d) -> None:
    torch.manual_seed(1)
    for _ in range(6):
        centre = torch.randn(2, 3, 7, 6, dtype=torch.float64)
        x = State(centre, -torch.rand_like(centre), torch.rand_like(centre))
        _, where = nn.functional.max_pool2d(
            centre, pool.kernel_size, pool.stride, pool.padding, pool.dilation, return_indices=True
        )
        winners = where.flatten(2)
        high = centre + x.high
        struck = high.flatten(2).scatter(2, winners, -torch.inf).reshape(centre.shape)
        found = rules._window_max(pool, struck, x, where)
        places = torch.arange(42.0, dtype=torch.float64).expand(2, 3, 42).reshape(2, 3, 7, 6)
        pad = rules._sides(pool)
        options = {"kernel_size": pool.kernel_size, "stride": pool.stride, "dilation": pool.dilation}
        padded = [nn.functional.pad(high, pad, value=-1e300), nn.functional.pad(places, pad, value=-1.0)]
        columns = [nn.functional.unfold(one, **options).reshape(2, 3, -1, winners.shape[2]) for one in padded]
        others = columns[0].masked_fill(columns[1] == winners[:, :, None], -1e300).amax(dim=2)
        torch.testing.assert_close(found.flatten(2).clamp(min=-1e300), others)


def test_a_margin_of_zero_is_not_certified() -> None:
    bound = MarginBound("one", np.array([0]), np.array([[np.inf, 0.0]]), np.array([[0.0, 0.0]]), np.zeros(1))
    assert not bound.certified[0]


def test_a_ball_is_about_both_networks() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.1, 10.0], [0.0, 0.0]]))
        model[1].bias.copy_(torch.tensor([0.0, 0.08]))
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        pruned[1].weight[0, 1] = 0.0
    split = Split(
        "test", torch.utils.data.TensorDataset(torch.ones(1, 1, 1, 2), torch.zeros(1, dtype=torch.long)), ("a", "b")
    )
    wide = certify(model, pruned, split, ("ball",), radius=0.5).tiers["ball"]
    near = certify(model, pruned, split, ("ball",), radius=0.1).tiers["ball"]
    assert wide.certified is not None and near.certified is not None
    assert not wide.certified[0] and near.certified[0]  # the dense network alone would hold to 0.98
    other = certify(pruned, model, split, ("ball",), radius=0.5).tiers["ball"]
    assert other.certified is not None and not other.certified[0]


def test_gaussian_labels_need_twice_eta() -> None:
    budget = gaussian_budget(np.array([1.0, 1.0]), 1.0, 0.5, 4)
    eta = budget.eta
    assert budget.certified(np.array([1.9 * eta[0], 2.1 * eta[1]])).tolist() == [False, True]


def test_the_last_mask_of_a_stretch_is_run() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, 2.0]))

        def forward(self, x: Tensor) -> Tensor:
            left = torch.where((self.w == 0).all(), -1.0, 1.0)
            return torch.stack([x[:, 0], x[:, 0] - left], dim=1)

    def at(s: float) -> dict[str, Tensor]:
        return {"w": torch.tensor([s < 0.2, s < 0.4])}

    x, target = torch.ones(1, 1), torch.zeros(1, dtype=torch.long)
    assert not every_position(Both().eval(), at, 0.1, 0.5, x, target).certified[0]
    assert every_position(Both().eval(), at, 0.1, 0.3, x, target).certified[0]


def test_a_layer_that_is_used_twice_has_no_bound_of_its_own() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(torch.relu(self.a(x)))))

    network = trace(Twice().eval())
    with pytest.raises(ModelError, match=r"a\.weight is used 2 times"):
        global_lipschitz(network, "a.weight")


class Meddler(nn.Module):
    """Has another thread run a network, and read this one's weights, while it is being traced."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.found: list[object] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(x, fx.Proxy):
            other, images = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.ones(2, 4)

            def work() -> None:
                try:
                    self.found.extend([other(images), self.fc(images), self.fc.weight])
                except Exception as error:  # noqa: BLE001 - told by the test
                    self.found.append(error)

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        return self.fc(x)


def test_tracing_leaves_the_forward_passes_of_other_threads_alone() -> None:
    model = Meddler().eval()
    network = trace(model)
    assert [node.op for node in network.nodes] == ["input", "linear"]
    assert [type(one) for one in model.found] == [torch.Tensor, torch.Tensor, nn.Parameter], model.found


def test_networks_are_traced_by_several_threads_and_calls_are_put_back() -> None:
    call, read = nn.Module.__call__, nn.Module.__getattr__
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: trace(Meddler().eval()), range(40)))
    assert all(len(network.nodes) == 2 for network in found)
    assert (nn.Module.__call__, nn.Module.__getattr__) == (call, read)
