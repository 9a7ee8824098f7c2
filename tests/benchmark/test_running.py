"""A benchmark from end to end: right answers before timings, nothing changed, nothing run twice."""

import json

import pytest
import torch
from torch import nn

import mpviz as mp
from mpviz.benchmark import endpoints, running
from mpviz.benchmark.endpoints import ENDPOINTS, build, chosen, convert, convertible, missing
from mpviz.benchmark.packing import best_two
from mpviz.errors import Cancelled, CheckpointError, ModelError, PatternError

CPU = torch.device("cpu")
QUICK = {"rounds": 3, "warmup": 1, "layers": False, "device": "cpu"}


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return mp.load_model("fashion-vit")


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_dense_endpoints_are_timed_and_the_model_stays(vit):
    before, told = state(vit), []
    found = mp.bench(vit, batches=(2, 4), tome=(0, 4), rounds=3, warmup=1, device="cpu", name="a vit",
                     progress=lambda share, what: told.append((share, what)))  # fmt: skip
    assert all(torch.equal(before[name], value) for name, value in vit.state_dict().items())
    assert not hasattr(vit, "schedule") and type(vit.blocks).__name__ == "Sequential"
    table = found.table
    assert sorted(set(zip(table["batch"], table["tome"], strict=True))) == [(2, 0), (2, 4), (4, 0), (4, 4)]
    assert list(table["endpoint"].unique()) == ["fp32", "autocast", "bf16"]
    assert (table["median_ms"] > 0).all() and (table["error"] < 0.1).all() and not table["why"].any()
    assert (table[table["endpoint"] == "fp32"]["error"] == 0).all()
    assert found.packing["exact"].dropna().all() and found.packing["packs"].sum() == 24
    assert set(zip(found.layers["batch"], found.layers["tome"], strict=True)) == {(2, 0), (2, 4), (4, 0), (4, 4)}
    assert (found.layers["dense_s"] > 0).all() and found.layers["speedup"].isna().all()
    assert found.cell(2).rates["operations"] > 1e8 and found.about["model"] == "a vit"
    assert [share for share, _ in told] == sorted(share for share, _ in told)
    assert found.cell(4, 4).limit < found.cell(4).limit < 2


def test_all_arms_run_the_two_of_four_weights(vit):
    found: list[nn.Module] = []

    def watch(endpoint, model, *rest):
        found.append(model)
        return build(endpoint, model, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "build", watch)
        mp.bench(vit, batches=(1,), endpoints=["fp32"], **QUICK)
    weight = vit.blocks[0].mlp.fc1.weight.detach()
    assert torch.equal(found[0].blocks[0].mlp.fc1.weight, torch.where(best_two(weight), weight, 0.0))
    assert torch.equal(found[0].head.weight, vit.head.weight)


def test_a_projected_network_is_timed_as_it_is_and_others_can_be_refused():
    model = mp.load_model("fashion-mlp")
    images = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    made = mp.project(model, "2:4", images, permute="greedy")
    assert made.permutations
    found = mp.bench(made.model, batches=(1,), permutations=made.permutations, prune=False, **QUICK)
    assert found.about["weights"] == "all 2 layers that pack were 2:4"
    with pytest.raises(PatternError, match=r"of 2 layers are not 2:4: features.fc1.weight has \d+"):
        mp.bench(made.model, batches=(1,), prune=False, **QUICK)  # in the layer's own order the groups are others
    with pytest.raises(PatternError, match=r"features\.fc1\.weight has 100352"):
        mp.bench(model, batches=(1,), prune=False, **QUICK)


def test_wrong_answers_are_never_timed(vit, monkeypatch):
    def broken(endpoint, *rest):
        call = build(endpoint, *rest)
        return (lambda: call().flip(1)) if endpoint.name == "bf16" else call

    timed = []
    real = running.time_arms
    monkeypatch.setattr(running, "build", broken)
    monkeypatch.setattr(running, "time_arms", lambda calls, *rest: timed.append(list(calls)) or real(calls, *rest))
    found = mp.bench(vit, batches=(2,), **QUICK)
    arm = found.cell(2).arm("bf16")
    assert arm.timing is None and "so it was not timed" in arm.why and arm.error > 0.1
    assert timed == [["fp32", "autocast"]]


def test_logits_that_are_no_numbers_are_never_timed(vit, monkeypatch):
    def broken(endpoint, *rest):
        call = build(endpoint, *rest)
        return (lambda: call() * float("nan")) if endpoint.name == "bf16" else call

    monkeypatch.setattr(running, "build", broken)
    assert mp.bench(vit, batches=(1,), **QUICK).cell(1).arm("bf16").timing is None


def test_a_batch_without_memory_is_reported_and_the_next_goes_on(vit, monkeypatch):
    def greedy(endpoint, model, images, *rest):
        if endpoint.name == "bf16" and len(images) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB\nmore")
        return build(endpoint, model, images, *rest)

    monkeypatch.setattr(running, "build", greedy)
    found = mp.bench(vit, batches=(4, 2), **QUICK)
    assert found.cell(4).arm("bf16").why == "out of memory: CUDA out of memory. Tried to allocate 80 GiB"
    assert found.cell(4).arm("fp32").timing and found.cell(2).arm("bf16").timing


def test_cells_that_are_there_are_not_run_again(vit, tmp_path, monkeypatch):
    first = mp.bench(vit, batches=(1,), out=tmp_path, name="vit", **QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["vit-cpu-b1.json"]
    ran = []
    real = running.time_arms
    monkeypatch.setattr(running, "time_arms", lambda *all_of: ran.append(1) or real(*all_of))
    again = mp.bench(vit, batches=(1, 2), out=tmp_path, name="vit", **QUICK)
    assert ran == [1] and again.cell(1) == first.cell(1)
    with pytest.raises(CheckpointError, match=r"vit-cpu-b1\.json has no fp32 compiled; name another folder"):
        mp.bench(vit, batches=(1,), out=tmp_path, name="vit", endpoints=["fp32 compiled"], **QUICK)
    other = first.cell(1).to_json() | {"machine": {"hardware": "a GPU of another house"}}
    (tmp_path / "vit-cpu-b1.json").write_text(json.dumps(other))
    with pytest.raises(CheckpointError, match="is of a GPU of another house"):
        mp.bench(vit, batches=(1,), out=tmp_path, name="vit", **QUICK)
    (tmp_path / "vit-cpu-b1.json").write_text("no cell")
    with pytest.raises(CheckpointError, match=r"vit-cpu-b1\.json"):
        mp.bench(vit, batches=(1,), out=tmp_path, name="vit", **QUICK)


def test_convolutions_are_timed_in_their_forms():
    found = mp.bench(mp.load_model("fashion-resnet"), batches=(1,), **QUICK)
    assert list(found.table["endpoint"]) == ["fp32", "autocast", "bf16", "bf16 channels-last", "fp32 im2col"]
    assert found.table["error"].max() < 0.1 and found.cell(1).arm("fp32 im2col").error < 1e-4


def test_endpoints_of_a_gpu_say_why_they_do_not_run(vit, monkeypatch):
    found = mp.bench(vit, batches=(1,), endpoints=["fp32", "tf32", "2:4 compiled"], **QUICK).cell(1)
    assert [arm.why for arm in found.arms] == ["", "tf32 needs a CUDA GPU", "2:4 compiled needs a CUDA GPU"]
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert missing(ENDPOINTS["2:4"], cuda) == "2:4 products need compute capability 8.0 or more; this GPU has 7.5"
    assert missing(ENDPOINTS["bf16"], cuda) == ""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: False)
    assert missing(ENDPOINTS["2:4"], cuda) == "this build of PyTorch has no cuSPARSELt"


def test_an_endpoint_that_would_run_nothing_as_two_of_four_is_none():
    resnet, vit = mp.load_model("fashion-resnet"), mp.load_model("fashion-vit")
    conv, linear = "layer1.0.conv1.weight", "blocks.0.mlp.fc1.weight"
    assert convertible(ENDPOINTS["2:4"], resnet, [conv]) == []
    assert convertible(ENDPOINTS["2:4 im2col"], resnet, [conv]) == [conv]
    assert convertible(ENDPOINTS["2:4"], vit, [linear]) == [linear]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "missing", lambda *_: "")
        found = mp.bench(resnet, batches=(1,), endpoints=["2:4", "2:4 selective compiled"], **QUICK).cell(1)
    assert [arm.why for arm in found.arms] == [
        "no Linear layer packs, so nothing of it would be 2:4",
        "no layer was faster as 2:4 by itself, so nothing of it would be 2:4",
    ]
    assert not any(arm.converted for arm in found.arms)


def test_a_batch_of_which_not_even_float32_fits_is_reported(vit, monkeypatch):
    def greedy(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB\nmore")

    monkeypatch.setattr(running, "build", greedy)
    found = mp.bench(vit, batches=(4,), endpoints=["fp32", "2:4"], **QUICK).cell(4)
    assert [arm.why for arm in found.arms] == [
        "out of memory: CUDA out of memory. Tried to allocate 80 GiB", "2:4 needs a CUDA GPU",
    ]  # fmt: skip


def test_endpoints_suit_the_network():
    names = [one.name for one in chosen(None, torch.device("cuda"), convs=False)]
    assert "2:4 selective compiled" in names and not [one for one in names if "im2col" in one]
    assert [one.name for one in chosen(["bf16", "fp32", "bf16"], CPU, False)] == ["bf16", "fp32"]


def test_sparse_layers_are_searched_with_their_own_inputs(vit, monkeypatch):
    """What the GPU path hands to cuSPARSELt, on a CPU: each weight in its order, and the rows that it multiplies."""
    given = []
    monkeypatch.setattr(endpoints, "sparse_weight", lambda weight, inputs: given.append(tuple(inputs.shape)) or weight)
    network = mp.load_model("fashion-vit")
    x = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    names = [f"blocks.0.{part}.weight" for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(x)
        convert(ENDPOINTS["2:4"], network, x, names, {names[0]: order})
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)
    assert given == [(3, 50, 128), (3, 50, 128), (3, 50, 128), (3, 50, 512)]
    assert torch.equal(network.blocks[0].attn.qkv.linear.weight, vit.blocks[0].attn.qkv.weight[:, order])


def test_bad_input_is_one_sentence(vit):
    for asked, error, words in (
        ({"pattern": "8:16"}, PatternError, "no hardware multiplies 8:16 faster than dense"),
        ({"endpoints": ["bf17"]}, ModelError, "did you mean 'bf16'"),
        ({"batches": (0,)}, ModelError, "whole numbers of images"),
        ({"batches": ()}, ModelError, "whole numbers of images"),
        ({"permutations": {"blocks.9.attn.qkv": torch.arange(4)}}, PatternError, "belongs to no layer"),
        ({"tome": 40}, ModelError, "more merges than tokens"),
        ({"device": "cuda:9"}, ModelError, "no device is called 'cuda:9' here"),
        ({"device": "gpu"}, ModelError, "no device is called 'gpu' here"),
        ({"rounds": 1}, ModelError, "take 3 rounds"),
        ({"cancelled": lambda: True}, Cancelled, "cancelled"),
    ):
        before = state(vit)
        with pytest.raises(error, match=words):
            mp.bench(vit, **{"batches": (1,), **QUICK, **asked})
        assert all(torch.equal(before[name], value) for name, value in vit.state_dict().items())
    with pytest.raises(PatternError, match="no layer of Sequential packs as 2:4"):
        mp.bench(nn.Sequential(nn.Flatten(), nn.Linear(9, 7)).eval(), batches=(1,), input_size=(1, 3, 3), **QUICK)
    merging = mp.merged_tokens(vit, 4)
    try:
        with pytest.raises(ModelError, match="merges r = "):
            mp.bench(vit, batches=(1,), tome=(2,), **QUICK)
    finally:
        merging.remove()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_sparse_products_are_right_on_a_gpu(vit):
    found = mp.bench(vit, batches=(8,), rounds=3, endpoints=["fp32", "bf16", "2:4"], device="cuda").cell(8)
    assert found.arm("2:4").timing is not None, found.arm("2:4").why
    assert found.arm("2:4").error < 0.1 and found.arm("2:4").timing.peak_bytes > 0
