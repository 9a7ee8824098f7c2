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
    torch.save(mp.load(sys.argv[1]).model(torch.load(sys.argv[2])), sys.argv[3])
"""


def channels_last():
    return mp.load_model("fashion-resnet").to(memory_format=torch.channels_last)


def unfused():
    model = mp.load_model("fashion-vit")
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


@pytest.mark.parametrize("make", [channels_last, unfused])
def test_a_fresh_process_gives_the_same_bits(make, tmp_path):
    model = make()
    path, images, out = mp.save(tmp_path / "net", model), tmp_path / "images.pt", tmp_path / "out.pt"
    torch.save(IMAGES, images)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            expected = model(IMAGES)
            plain = mp.load_model("fashion-vit" if make is unfused else "fashion-resnet")(IMAGES)
    finally:
        torch.set_num_threads(threads)
    subprocess.run([sys.executable, "-c", PROGRAM, path, images, out], check=True, timeout=120)
    assert torch.equal(torch.load(out), expected)
    assert not torch.equal(plain, expected), "else this test would say nothing"
    assert layout_of(mp.load(path).model) == layout_of(model) != {}


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
