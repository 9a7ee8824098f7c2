"""Projected, permuted and merged models: the same bits in a fresh process, and trained on as they are."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mpviz as mp
from mpviz.errors import CheckpointError, ModelError, PatternError
from mpviz.nets.tome import merge_tokens, merged_tokens, schedule_of
from mpviz.prune.cast import Projected, project
from mpviz.prune.fold import Folded, fold_permutations

FRESH = """
import sys, torch
from safetensors.torch import load_file, save_file
import mpviz as mp
torch.set_num_threads(1)
images = load_file(sys.argv[1])["images"]
for path in sys.argv[2:]:
    kept = mp.load(path)
    with torch.no_grad():
        logits = kept.model(images)
    order = {f"order/{name}": value for name, value in kept.permutations.items()}
    masks = {f"mask/{name}": value for name, value in kept.masks.items()}
    save_file({"logits": logits, "tome": torch.tensor(kept.tome), **order, **masks}, path + ".out")
    print(kept.pattern)
"""

CASES: list[tuple[str, dict[str, Any]]] = [
    ("fashion-mlp", {"permute": "hungarian"}),
    ("fashion-vit", {"permute": "best", "tome": 4}),
    ("fashion-vit", {"permute": "hungarian", "foldable": True, "repair": True, "tome": [0, 8, 8, 4, 0, 2]}),
    ("fashion-resnet", {"permute": "interleave", "conv": "native", "renew": True}),
]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return mp.load_data("fashion-mnist").calibration.sample(24)[0]


def answers(model: nn.Module, images: Tensor) -> Tensor:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            return model(images)
    finally:
        torch.set_num_threads(threads)


@dataclass
class Kept:
    """A model that was saved, and what a process begun afterwards found in the file."""

    made: Projected | Folded
    file: Path
    there: dict[str, Tensor] = field(default_factory=dict)
    said: str = ""


@pytest.fixture(scope="module")
def kept(images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> list[Kept]:
    """All cases, and at the end a folded model; one fresh process reads them all."""
    folder = tmp_path_factory.mktemp("kept")
    found: list[Kept] = []
    for number, (name, options) in enumerate(CASES):
        projected = project(mp.load_model(name), "2:4", images, **options)
        found.append(Kept(projected, mp.save(folder / f"projected-{number}", projected.model, **projected.saved_as)))
    resnet = mp.load_model("fashion-resnet")
    projected = project(resnet, "2:4", images, permute="hungarian", foldable=True, conv="native")
    folded = fold_permutations(projected.model, projected.masks, projected.permutations, "2:4", "native")
    found.append(Kept(folded, mp.save(folder / "folded", folded.model, folded.masks, folded.permutations)))
    save_file({"images": images}, folder / "images")
    command = [sys.executable, "-c", FRESH, str(folder / "images"), *(str(one.file) for one in found)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    for one, words in zip(found, said, strict=True):
        one.there, one.said = load_file(f"{one.file}.out"), words
    return found


@pytest.mark.parametrize("number", range(len(CASES)), ids=["-".join((name, *options)) for name, options in CASES])
def test_a_fresh_process_gives_the_same_bits(number: int, images: Tensor, kept: list[Kept]) -> None:
    options, found, there = CASES[number][1], kept[number].made, kept[number].there
    assert isinstance(found, Projected)
    assert torch.equal(there["logits"], answers(found.model, images))
    assert kept[number].said == str({"pattern": "2:4", "conv": options.get("conv", "flattened")})
    assert tuple(there["tome"].tolist()) == found.tome == schedule_of(found.model)
    assert bool(found.tome) == ("tome" in options)
    assert found.permutations and all(torch.equal(there[f"order/{n}"], o) for n, o in found.permutations.items())
    assert all(torch.equal(there[f"mask/{n}"], mask) for n, mask in found.masks.items())


def test_a_folded_model_gives_the_same_bits_too(images: Tensor, kept: list[Kept]) -> None:
    assert torch.equal(kept[-1].there["logits"], answers(kept[-1].made.model, images))


def test_a_file_merges_as_asked_and_a_given_architecture_too(images: Tensor, tmp_path: Path) -> None:
    vit = mp.load_model("fashion-vit")
    path = mp.save(tmp_path / "later", vit, tome=8)
    back = mp.load(path)
    with merged_tokens(vit, 8):
        expected = answers(vit, images)
        assert torch.equal(answers(back.model, images), expected)
        assert torch.equal(answers(mp.load(path, vit).model, images), expected)  # an architecture that merges already
    assert torch.equal(answers(mp.load(path, vit).model, images), expected)
    assert not torch.equal(answers(vit, images), expected)
    plain = mp.save(tmp_path / "plain", vit)
    assert schedule_of(mp.load(plain, merge_tokens(mp.load_model("fashion-vit"), 4)).model) == ()
    with pytest.raises(ModelError, match="leave tome at 0"):
        mp.save(tmp_path / "other", merge_tokens(mp.load_model("fashion-vit"), 4), tome=8)
    with pytest.raises(ModelError, match="is no VisionTransformer"):
        mp.save(tmp_path / "other", mp.load_model("fashion-mlp"), tome=8)
    assert not (tmp_path / "other.safetensors").exists()
    with pytest.raises((CheckpointError, ModelError)):
        mp.load(path, mp.load_model("fashion-mlp"))


def distilled(found: Projected, teacher: nn.Module, **options: Any) -> Any:
    data = mp.load_data("fashion-mnist", folder="bundled").train
    some = type(data)("train", torch.utils.data.Subset(data.dataset, range(64)), data.classes)
    return mp.distill(
        found.model, teacher, some, found.masks, epochs=1, batch=32, learning_rate=1e-3, check=found.check, **options
    )


def test_distillation_trains_the_merged_graph_and_keeps_the_pattern(images: Tensor, tmp_path: Path) -> None:
    teacher = mp.load_model("fashion-vit")
    found = project(teacher, "2:4", images, permute="hungarian", tome=4)
    run = distilled(found, teacher, out=tmp_path / "run")
    assert schedule_of(run.model) == found.tome
    found.check(run.model)
    moved = [n for n, p in run.model.named_parameters() if not torch.equal(p, found.model.get_parameter(n))]
    assert "blocks.0.attn.qkv.weight" in moved
    kept = mp.load(run.checkpoint)  # a checkpoint of the training merges as well
    assert schedule_of(kept.model) == found.tome
    assert torch.equal(answers(kept.model, images), answers(run.model, images))


def test_legality_is_looked_at_after_every_epoch(images: Tensor) -> None:
    teacher = mp.load_model("fashion-mlp")
    found = project(teacher, "2:4", images)
    looked = []

    def check(model: nn.Module) -> None:
        looked.append(model)
        with torch.no_grad():
            model.get_parameter("features.fc1.weight").fill_(1.0)
        found.check(model)

    data = mp.load_data("fashion-mnist", folder="bundled").train
    some = type(data)("train", torch.utils.data.Subset(data.dataset, range(64)), data.classes)
    with pytest.raises(PatternError, match="weights outside its 2:4 pattern"):
        mp.distill(found.model, teacher, some, found.masks, epochs=3, batch=32, check=check)
    assert len(looked) == 1
