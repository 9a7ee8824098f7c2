"""8-bit products: what they round, what they multiply, and that both kinds give what the dense layer gives."""

import pytest
import torch
from torch import nn

import mpviz as mp
from mpviz.benchmark import eight_bit
from mpviz.benchmark.eight_bit import LARGEST, EightBitLinear, quantised
from mpviz.benchmark.endpoints import ENDPOINTS, build, convert, convertible, missing


def layer(inside=64, out=96, bias=True):
    torch.manual_seed(0)
    return nn.Linear(inside, out, bias=bias), torch.randn(5, 7, inside)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "most"), [("int8", 0.02), ("float8", 0.06)])
def test_products_are_near_those_of_the_layer(kind, most, bias):
    linear, x = layer(bias=bias)
    with torch.inference_mode():
        found, expected = EightBitLinear(linear, kind)(x), linear(x)
    assert found.shape == expected.shape and found.dtype == x.dtype
    assert 0 < (found - expected).norm() / expected.norm() < most


def test_int8_is_the_product_of_whole_numbers():
    linear, x = layer()
    rows = x.reshape(-1, 64)
    w_step, x_step = linear.weight.abs().amax(1) / 127, rows.abs().amax(1) / 127
    whole = (rows / x_step[:, None]).round().double() @ (linear.weight / w_step[:, None]).round().double().T
    expected = whole * x_step[:, None] * w_step + linear.bias
    with torch.inference_mode():
        found = EightBitLinear(linear, "int8")(rows)
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", list(LARGEST))
def test_rounding_errs_by_half_a_step_and_keeps_zeros(kind):
    torch.manual_seed(0)
    matrix = torch.randn(40, 128) * torch.logspace(-6, 6, 40)[:, None]
    matrix[:, ::2], matrix[3] = 0.0, 0.0
    matrix[5, 1:40:2] = -1e-9  # rounds to zero, which must not be −0: hardware takes that for a kept value
    values, scale = quantised(matrix, kind)
    back = values.float() * scale
    assert (back[matrix == 0] == 0).all() and torch.isfinite(back).all()
    assert not (values.view(torch.uint8) == 0x80).any() and values.float().abs().amax() == LARGEST[kind]
    error = (back - matrix).abs()
    if kind == "int8":
        assert (error <= scale * 0.5001).all()
    else:  # three bits behind the leading one, and steps of 2⁻⁹ · scale near zero
        assert (error <= torch.maximum(matrix.abs() / 16, scale * 2.0**-10) * 1.0001).all()


def test_only_layers_that_both_arms_can_take_are_converted():
    vit, int8 = mp.load_model("fashion-vit"), ENDPOINTS["int8"]
    names = ["blocks.0.mlp.fc1.weight", "head.weight"]
    assert convertible(int8, vit, names) == names[:1]
    odd = nn.Sequential(nn.Linear(48, 64))
    assert convertible(int8, odd, ["0.weight"]) == [] and convertible(ENDPOINTS["2:4"], odd, ["0.weight"])
    resnet = mp.load_model("fashion-resnet")
    assert convertible(ENDPOINTS["int8 2:4 compiled"], resnet, ["layer1.0.conv1.weight"]) == []


def test_a_network_in_int8_is_timed_beside_the_others():
    model = mp.load_model("fashion-vit")
    found = mp.bench(model, batches=(2,), endpoints=["fp32", "bf16", "int8", "fp8 compiled"], rounds=3, warmup=1,
                     layers=False, device="cpu").cell(2)  # fmt: skip
    arm = found.arm("int8")
    assert arm.converted == 24 and 0 < arm.error < 0.1 and arm.timing is not None
    assert found.arm("fp8 compiled").why == "fp8 compiled needs a CUDA GPU"
    assert str(found.ratio("int8", "bf16")).endswith("int8 against bfloat16, not the same number type")


def test_a_network_without_a_fitting_layer_is_not_called_int8():
    found = mp.bench(mp.load_model("fashion-resnet"), batches=(1,), endpoints=["fp32", "int8"], rounds=3, warmup=1,
                     layers=False, device="cpu").cell(1)  # fmt: skip
    assert found.arm("int8").timing is None
    assert found.arm("int8").why.endswith("multiples of 32, so nothing of it would be int8")


def test_two_of_four_in_eight_bits_hands_the_library_what_it_takes(monkeypatch):
    """The call that needs hardware, stood in for by a dense product: order gathered, rows padded, scales applied."""
    given = []

    def product(values, columns, out_dtype=None, transpose_result=False, alg_id=0):
        given.append((tuple(columns.shape), columns.is_contiguous(), alg_id))
        return torch._int_mm(columns.t(), values.t()).to(out_dtype)

    monkeypatch.setattr(torch, "_cslt_compress", lambda dense: dense)
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", lambda *_, **__: 7)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", product)
    network, x = mp.load_model("fashion-vit"), torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    names, order = ["blocks.0.attn.qkv.weight", "blocks.0.mlp.fc2.weight"], torch.randperm(128)
    with torch.inference_mode():
        expected = network(x)
        convert(ENDPOINTS["int8 2:4 compiled"], network, x, names, {names[0]: order})
        found = network(x)
    assert (found - expected).norm() / expected.norm() < 0.02
    rows = 3 * 50 + -(3 * 50) % eight_bit.ROWS
    assert given == [((128, rows), False, 7), ((512, rows), False, 7)]


def test_float8_needs_a_newer_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: True)
    cuda = torch.device("cuda")
    assert (
        missing(ENDPOINTS["fp8 compiled"], cuda)
        == "float8 products need compute capability 8.9 or more; this GPU has 8.6"
    )
    assert missing(ENDPOINTS["int8 2:4 compiled"], cuda) == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["int8", "int8 2:4 compiled", "fp8 compiled", "fp8 2:4 compiled"])
def test_eight_bit_products_are_right_on_a_gpu(name):
    found = mp.bench(mp.load_model("fashion-vit"), batches=(8,), rounds=3, endpoints=["fp32", name], device="cuda")
    arm = found.cell(8).arm(name)
    assert arm.timing is not None, arm.why


def test_the_model_given_is_left_alone():
    model, x = mp.load_model("fashion-mlp"), torch.rand(2, 1, 28, 28)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        build(ENDPOINTS["int8"], model, x, ["features.fc2.weight"])()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
