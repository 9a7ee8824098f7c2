"""The architectures of the bundled networks, built from timm where timm has the parts."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mpviz.nets.timm_import import import_timm


class MLP(nn.Module):
    """Fully connected ReLU network on flattened images: fc1, …, fc_k, head.

    widths: input size, hidden widths, number of classes, e.g. (784, 512, 512, 10).
    """

    def __init__(self, widths: tuple[int, ...] = (784, 512, 512, 10)) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.num_classes = widths[-1]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (n_in, n_out) in enumerate(pairwise(widths[:-1]), start=1):
            layers[f"fc{i}"] = nn.Linear(n_in, n_out)
            layers[f"relu{i}"] = nn.ReLU()
        self.features = nn.Sequential(layers)
        self.head = nn.Linear(widths[-2], widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Logits Float["n classes"] of images Float["n c h w"]."""
        return self.head(self.features(x.flatten(1)))


def fashion_mlp() -> nn.Module:
    """784-512-512-10, ReLU."""
    return MLP()


def _conv_stem(in_chans: int, width: int) -> nn.Sequential:
    """Three 3×3 convolutions, two of them strided, and a 1×1: patches of 4×4 that see their neighbours."""
    return nn.Sequential(
        nn.Conv2d(in_chans, 64, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 1),
    )


def fashion_vit(width: int = 128, depth: int = 6, heads: int = 4) -> nn.Module:
    """timm VisionTransformer for 28×28 grey images, patch 4 with a convolutional stem."""
    timm = import_timm()
    patch_embed = timm.layers.PatchEmbed

    class ConvPatchEmbed(patch_embed):  # type: ignore[misc, valid-type]
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.proj = _conv_stem(kwargs["in_chans"], kwargs["embed_dim"])

    return timm.models.VisionTransformer(
        img_size=28,
        patch_size=4,
        in_chans=1,
        num_classes=10,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=4,
        embed_layer=ConvPatchEmbed,
    )


def fashion_resnet() -> nn.Module:
    """timm ResNet of bottleneck blocks for 28×28 grey images: 3×3 stem of stride 1, no max-pool."""
    timm = import_timm()
    resnet = timm.models.resnet
    model = resnet.ResNet(
        resnet.Bottleneck,
        layers=(1, 2, 3, 1),
        channels=(16, 32, 64, 128),
        num_classes=10,
        in_chans=1,
        stem_width=32,
        zero_init_last=True,
    )
    model.conv1 = nn.Conv2d(1, model.bn1.num_features, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


ARCHITECTURES = {
    "fashion-mlp": fashion_mlp,
    "fashion-mlp-l1": fashion_mlp,
    "fashion-vit": fashion_vit,
    "fashion-resnet": fashion_resnet,
}


def build(name: str, seed: int | None = None) -> nn.Module:
    """A bundled architecture with random weights; `seed` leaves the global generator as found."""
    if seed is None:
        return ARCHITECTURES[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARCHITECTURES[name]()
