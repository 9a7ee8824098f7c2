"""Checkpoints give the same bits however a model computes, and know the classes that its head has by now."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import mpviz as mp
from mpviz.nets.layout import layout_of

IMAGES = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(1))
PROGRAM = """
import sys, torch, mpviz as mp
torch.set_num_threads(1)
with torch.inference_mode():
    for path in sys.argv[2:]:
        torch.save(mp.load(path).model(torch.load(sys.argv[1])), path + ".out")
"""


def channels_last():
    return mp.load_model("fashion-resnet").to(memory_format=torch.channels_last)


def unfused():
    model = mp.load_model("fashion-vit")
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


MAKERS = {"channels_last": (channels_last, "fashion-resnet"), "unfused": (unfused, "fashion-vit")}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Both as files, and beside each what a fresh process gets from it."""
    folder = tmp_path_factory.mktemp("layouts")
    torch.save(IMAGES, folder / "images.pt")
    files = {name: mp.save(folder / name, make()) for name, (make, _) in MAKERS.items()}
    subprocess.run([sys.executable, "-c", PROGRAM, folder / "images.pt", *files.values()], check=True, timeout=120)
    return files


@pytest.mark.parametrize("name", MAKERS)
def test_a_fresh_process_gives_the_same_bits(name, kept):
    make, plain_name = MAKERS[name]
    model = make()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            expected = model(IMAGES)
            plain = mp.load_model(plain_name)(IMAGES)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.load(f"{kept[name]}.out"), expected)
    assert not torch.equal(plain, expected), "else this test would say nothing"
    assert layout_of(mp.load(kept[name]).model) == layout_of(model) != {}


def test_a_plain_model_has_no_layout():
    assert layout_of(mp.load_model("fashion-resnet")) == {} == layout_of(mp.load_model("fashion-vit"))


def test_a_head_with_other_classes_comes_back(tmp_path):
    model = mp.load_model("vit_tiny_patch16_224", pretrained=False, img_size=32, patch_size=8, depth=1)
    model.reset_classifier(5)
    again = mp.load(mp.save(tmp_path / "five", model)).model
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(again(x), model.eval()(x)) and again(x).shape == (2, 5)


def test_images_from_files_have_the_size_that_the_model_was_built_for(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.new("RGB", (50, 40), (40 * i, 10, 200)).save(tmp_path / name / f"{i}.png")
    model = mp.load_model("vit_tiny_patch16_224", pretrained=False, img_size=32, patch_size=8, depth=1, num_classes=2)
    splits = mp.load_data(str(tmp_path), model=model)
    images, _ = splits.test.sample()
    assert images.shape[1:] == (3, 32, 32)
    with torch.inference_mode():
        assert model(images).shape[1] == 2
