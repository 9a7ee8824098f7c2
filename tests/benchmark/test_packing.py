"""2:4 weights as hardware stores them: out comes what went in, and what does not fit is told."""

import pytest
import torch
from torch import nn

import mpviz as mp
from mpviz.benchmark.packing import best_two, broken_groups, pack, packable
from mpviz.errors import ModelError, PatternError
from mpviz.nets.layers import as_matrix, weight_of


def two_of_four(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    matrix = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    return torch.where(best_two(matrix), matrix, 0.0)


def bits(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.view(torch.int16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(16, 16), (32, 64), (48, 144), (512, 784), (96, 32)])
def test_what_is_packed_comes_back_with_the_same_bits(shape, dtype):
    matrix = two_of_four(*shape).to(dtype)
    packed = pack(matrix)
    assert torch.equal(bits(packed.dense()), bits(matrix))
    assert packed.values.numel() >= matrix.numel() // 2


def test_whole_tiles_take_nine_sixteenths_of_the_bytes():
    matrix = two_of_four(64, 128).bfloat16()
    assert pack(matrix).bytes == matrix.nbytes * 9 // 16  # half of the values, and two bits for each of them


def test_groups_with_fewer_than_two_weights_pack_too():
    matrix = two_of_four(32, 64).bfloat16()
    matrix[:, ::8] = 0
    matrix[3] = 0
    assert torch.equal(bits(pack(matrix).dense()), bits(matrix))


def test_a_negative_zero_becomes_zero():
    matrix = two_of_four(32, 64).bfloat16()
    signed = torch.where(matrix == 0, torch.tensor(-0.0, dtype=torch.bfloat16), matrix)
    assert not torch.equal(bits(signed), bits(matrix))
    assert torch.equal(bits(pack(signed).dense()), bits(matrix))


def test_broken_groups_are_counted_one_by_one():
    matrix = torch.zeros(3, 10)
    matrix[0, :3] = 1  # one group of three
    matrix[1, 4:8] = 1  # one of four
    matrix[2, 2:6] = 1  # two and two
    matrix[0, 8:] = 1  # a rest of two
    assert broken_groups(matrix) == 2


def test_the_two_largest_stay_and_a_pattern_loses_nothing():
    matrix = torch.tensor([[1.0, -3.0, 2.0, 0.5, 0.0, 4.0, 0.0, -5.0]])
    assert best_two(matrix).tolist() == [[False, True, True, False, False, True, False, True]]
    made = two_of_four(8, 64)
    assert torch.equal(torch.where(best_two(made), made, 0.0), made)
    with pytest.raises(PatternError, match="multiple of 4 inputs; the matrix has 6"):
        best_two(torch.ones(2, 6))


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(PatternError, match="2 of 16 groups of four keep more than two"):
        broken = two_of_four(16, 4).bfloat16()
        broken[:2] = 1
        pack(broken)
    with pytest.raises(ModelError, match=r"bfloat16 and float16; the matrix is torch\.float32"):
        pack(two_of_four(16, 16))


def test_the_table_says_why_a_layer_stays_dense():
    network = nn.Sequential(
        nn.Conv2d(16, 32, 3, groups=4), nn.Conv2d(32, 16, 1), nn.Flatten(), nn.Linear(16, 24)
    ).eval()
    table = packable(network)
    assert table["packs"].tolist() == [False, True, False]
    assert "grouped" in table["why"].iloc[0] and "24 outputs: no multiple of 16" in table["why"].iloc[2]
    assert packable(network, torch.int8)["packs"].tolist() == [False, False, False]
    with pytest.raises(ModelError, match=r"no 2:4 kernels for torch.float32; known: bfloat16"):
        packable(network, torch.float32)


@pytest.mark.parametrize("name", ["fashion-mlp", "fashion-vit", "fashion-resnet", "deit_tiny_patch16_224", "resnet18",
                                  "convnextv2_atto"])  # fmt: skip
def test_every_layer_that_fits_packs_exactly(name):
    model = mp.load_model(name, pretrained=name.startswith("fashion"))
    fit = {
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and getattr(module, "groups", 1) == 1
        and not len(module.weight) % 16 and not module.weight[0].numel() % 16
    }  # fmt: skip
    table = packable(model)
    names = set(table.index[table["packs"]])
    assert names == fit and len(fit) >= 2
    for layer in names:
        weight = as_matrix(weight_of(model, layer))
        matrix = torch.where(best_two(weight), weight, 0.0).bfloat16()
        assert torch.equal(bits(pack(matrix).dense()), bits(matrix)), layer
