"""Second moments of layer inputs: what they are, on any module, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mpviz as mp
from mpviz.errors import Cancelled, DataError, ModelError
from mpviz.nets.calibrate import block_moments, layer_inputs, rows_of, second_moments
from mpviz.nets.timm_import import import_timm


class Tokens(nn.Module):
    def __init__(self, mode: str = "zeros", padding: int | str = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, (3, 2), stride=1, padding=padding, dilation=(1, 2), padding_mode=mode)
        self.fc = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.relu(self.conv(x)).flatten(2).transpose(1, 2)
        return self.head(torch.relu(self.fc(tokens)).mean(1))


@pytest.mark.parametrize(("mode", "padding"), [("zeros", 1), ("reflect", 1), ("zeros", "same")])
def test_rows_times_the_weight_are_the_outputs(mode: str, padding: int | str) -> None:
    net = Tokens(mode, padding).eval()
    x = torch.randn(3, 2, 7, 6)
    out = net.conv(x) - net.conv.bias[:, None, None]
    rows = rows_of(net.conv, x) @ net.conv.weight.flatten(1).T
    torch.testing.assert_close(rows, out.permute(0, 2, 3, 1).reshape(-1, 4), atol=1e-5, rtol=1e-4)


def test_a_convolution_that_pads_by_itself_is_read_as_it_pads() -> None:
    same = import_timm().layers.Conv2dSame
    for stride, kernel in ((2, 3), (2, 5), (1, 4)):
        conv, x = same(2, 4, kernel, stride=stride, bias=False), torch.randn(2, 2, 9, 8)
        rows = rows_of(conv, x) @ conv.weight.flatten(1).T
        torch.testing.assert_close(rows, conv(x).permute(0, 2, 3, 1).reshape(-1, 4), atol=1e-5, rtol=1e-4)


def test_moments_are_means_over_images_and_tokens_however_they_are_batched() -> None:
    torch.manual_seed(0)
    net, x = Tokens().eval(), torch.randn(11, 2, 7, 6)
    names = ["conv.weight", "fc.weight"]
    found = second_moments(net, x, names, batch=4)
    h = rows_of(net.conv, x).double()
    torch.testing.assert_close(found["conv.weight"].gram, h.T @ h / len(h))
    tokens = torch.relu(net.conv(x)).flatten(2).transpose(1, 2).reshape(-1, 4).double().detach()
    assert found["fc.weight"].count == len(tokens)
    torch.testing.assert_close(found["fc.weight"].norms, tokens.norm(dim=0), atol=1e-5, rtol=1e-5)
    small = second_moments(net, x, names, batch=3, memory=1)  # a pass a layer
    for name in names:
        torch.testing.assert_close(small[name].gram, found[name].gram)


def test_blocks_are_parts_of_the_whole_however_they_are_batched() -> None:
    torch.manual_seed(1)
    net, x = Tokens().eval(), torch.randn(11, 2, 7, 6)
    columns = {"conv.weight": torch.tensor([[3, 0, 11], [5, 6, 7]]), "fc.weight": torch.tensor([[2, 3], [1, 0]])}
    whole = second_moments(net, x, list(columns))
    for one in (block_moments(net, x, columns, batch=4), block_moments(net, x, columns, batch=11, memory=1)):
        for name, where in columns.items():
            gram = whole[name].gram
            torch.testing.assert_close(one[name].blocks, gram[where[:, :, None], where[:, None]], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(one[name].power, gram.diagonal(), rtol=1e-5, atol=1e-6)
            assert one[name].count == whole[name].count
    h = rows_of(net.conv, x)
    found = block_moments(net, x, columns)["conv.weight"].mean_abs
    torch.testing.assert_close(found, h.abs().mean(0).double(), rtol=1e-5, atol=1e-6)


def test_images_that_do_not_fit_are_a_sentence() -> None:
    with pytest.raises(ModelError, match=r"cannot take images of shape \(3, 7, 6\)"):
        second_moments(Tokens().eval(), torch.randn(2, 3, 7, 6))


def test_the_network_is_as_it_was_even_after_an_error() -> None:
    net, x = Tokens().eval(), torch.randn(4, 2, 7, 6)
    with pytest.raises(Cancelled):
        second_moments(net, x, ["fc.weight"], cancelled=lambda: True)
    with pytest.raises(DataError, match=r"enter conv\.weight"):
        second_moments(net, torch.full_like(x, torch.inf), ["conv.weight"])
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_what_is_refused() -> None:
    net, x = Tokens().eval(), torch.randn(4, 2, 7, 6)
    with pytest.raises(DataError, match="the test split only measures"):
        second_moments(net, mp.load_data("fashion-mnist").test)
    with pytest.raises(DataError, match="no images"):
        second_moments(net, x[:0])
    with pytest.raises(ModelError, match="did you mean"):
        second_moments(net, x, ["fcc.weight"])
    with pytest.raises(ModelError, match="training mode"):
        second_moments(net.train(), x)


def test_what_is_neither_images_nor_a_split_is_a_sentence() -> None:
    net, x = Tokens().eval(), torch.randn(4, 2, 7, 6)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x))
    for given, what in (
        (x.numpy(), "an object of type ndarray"), ([x], "an object of type list"), ((x, x), "an object of type tuple"),
        ("digits", "an object of type str"), (loader, "an object of type DataLoader"), (None, "type NoneType"),
        (torch.tensor(1.0), "a tensor of float32 of shape ()"), (x.long(), "a tensor of int64 of shape (4, 2, 7, 6)"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=r"are a split, such as data\.calibration, or a float tensor") as caught:
            second_moments(net, given)  # type: ignore[arg-type]
        assert str(caught.value).endswith(what) and "\n" not in str(caught.value)
    flat = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 2)).eval()
    assert second_moments(flat, torch.randn(6, 5), ["1.weight"])["1.weight"].count == 6  # networks of plain vectors


def test_a_split_is_drawn_by_its_seed() -> None:
    net, split = mp.load_model("fashion-mlp"), mp.load_data("fashion-mnist").calibration
    one, same, other = (second_moments(net, split, n=16, seed=seed)["features.fc1.weight"].gram for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("batch", [4, 32])
def test_what_enters_a_layer_is_told_image_by_image(batch: int) -> None:
    torch.manual_seed(2)
    net, x = Tokens().eval(), torch.randn(11, 2, 7, 6)
    patches, tokens, mean = (layer_inputs(net, f"{name}.weight", x, batch=batch) for name in ("conv", "fc", "head"))
    out = patches @ net.conv.weight.flatten(1).T + net.conv.bias
    torch.testing.assert_close(out.transpose(1, 2), net.conv(x).flatten(2), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tokens, torch.relu(net.conv(x)).flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4)
    assert patches.shape == (11, 42, 12) and tokens.shape == (11, 42, 4) and mean.shape == (11, 1, 6)
    torch.testing.assert_close(net.head(mean[:, 0]), net(x), atol=1e-5, rtol=1e-4)
    for name, found in (("conv.weight", patches), ("fc.weight", tokens)):
        h = found.flatten(0, 1).double()
        torch.testing.assert_close(second_moments(net, x, [name])[name].gram, h.T @ h / len(h))
    assert not patches.requires_grad


class Aside(Tokens):
    """Its first layer's weight is used, but not by the layer."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.relu(torch.conv2d(x, self.conv.weight, padding=1, dilation=(1, 2))).flatten(2).transpose(1, 2)
        return self.head(torch.relu(self.fc(tokens)).mean(1))


def test_inputs_of_a_layer_are_refused_as_moments_are() -> None:
    net, x = Tokens().eval(), torch.randn(4, 2, 7, 6)
    for words, error, model, name, images in (
        ("the test split only measures", DataError, net, "fc.weight", mp.load_data("fashion-mnist").test),
        ("no images", DataError, net, "fc.weight", x[:0]),
        ("did you mean 'fc.weight'", ModelError, net, "fcc.weight", x),
        (r"enter fc\.weight", DataError, net, "fc.weight", torch.full_like(x, torch.inf)),
        ("cannot take images", ModelError, net, "fc.weight", torch.randn(2, 3, 7, 6)),
        (r"conv\.weight is not used by its own module", ModelError, Aside().eval(), "conv.weight", x),
    ):
        with pytest.raises(error, match=words):
            layer_inputs(model, name, images)
        if "split" not in words:
            with pytest.raises(error, match=words):
                second_moments(model, images, [name])
    normed = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(126, 2)).train()
    before = normed[1].running_mean.clone()
    with pytest.raises(ModelError, match="training mode"):
        layer_inputs(normed, "3.weight", x)
    assert torch.equal(normed[1].running_mean, before), "no statistics are renewed in passing"
    assert not any(module._forward_pre_hooks for module in (*net.modules(), *normed.modules()))


def test_inputs_of_a_split_are_drawn_by_its_seed() -> None:
    net, split = mp.load_model("fashion-mlp"), mp.load_data("fashion-mnist").calibration
    one, other = (layer_inputs(net, "features.fc1.weight", split, 6, seed) for seed in (3, 4))
    assert torch.equal(one, split.sample(6, 3)[0].flatten(1)[:, None]) and not torch.equal(one, other)
