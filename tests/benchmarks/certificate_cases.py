"""The sets of networks and inputs that the certificate benchmarks look at, for each bundled network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import mpviz as mp
from mpviz.certificates import families
from mpviz.certificates.bounds import MarginBound as Bound
from mpviz.certificates.bounds import Options, margin_bound, path_bound, slider_bound
from mpviz.certificates.walk import Inputs, centre_logits, prepare
from mpviz.nets.forward import masked_parameters
from mpviz.nets.graph import Network, trace
from mpviz.nets.last_block import last_block
from mpviz.prune.masks import Ranking

WIDTH = 0.01


@dataclass(frozen=True, eq=False)
class Case:
    """One network on some samples. scope: which of its weights may change, in words; prefixes: their names' starts."""

    name: str
    scope: str
    network: Network
    images: Inputs
    target: Tensor
    ranking: Ranking
    prefixes: tuple[str, ...]

    def masks(self, sparsity: float) -> dict[str, Tensor]:
        """Masks of the nested global-magnitude family, of the weights of the scope."""
        masks = self.ranking.masks(self.ranking.counts(sparsity))
        return {name: mask for name, mask in masks.items() if name.startswith(self.prefixes)}

    def pruned(self, sparsity: float) -> dict[str, Tensor]:
        """The weights of the scope under these masks."""
        return masked_parameters(self.network.model, self.masks(sparsity))

    def family(self, which: str, sparsity: float) -> families.Family:
        """One of the sets at a sparsity."""
        model = self.network.model
        if which == "bracket":
            return families.bracket(model, self.masks(sparsity), self.masks(sparsity + WIDTH))
        if which == "sub-masks":
            return families.sub_masks(model, self.masks(sparsity))
        return families.path(model, self.pruned(sparsity))

    def bound(self, which: str, sparsity: float, options: Options | None = None) -> Bound:
        """The bound of one tier at a sparsity."""
        if which == "slider":
            ends = (sparsity, sparsity + WIDTH)
            return slider_bound(self.network, self.masks, ends, self.images, self.target, options)
        if which == "path":
            return path_bound(self.network, self.pruned(sparsity), self.images, self.target, options)
        return margin_bound(self.network, self.family(which, sparsity), self.images, self.target)


def samples(n: int, seed: int = 0) -> tuple[Tensor, Tensor, float]:
    """Test images, their labels, and one grey level (1/255) in the units of the network's inputs."""
    test = mp.load_data("fashion-mnist").test
    images, labels = test.sample(n, seed)
    return images, labels, 1 / (255 * float(getattr(test.dataset, "std")))  # noqa: B009 - only image files lack it


def case(name: str, network: Network, images: Tensor, scope: str, prefixes: tuple[str, ...]) -> Case:
    """A case with the dense predictions as targets."""
    ranking = Ranking(network.model)
    layers = [layer for layer in ranking.names if layer.startswith(prefixes)]
    target = torch.cat([centre_logits(network, part).argmax(dim=1) for part in images.split(32)])
    if prefixes == ("",):  # balls need the images themselves
        return Case(name, scope, network, images, target, ranking, prefixes)
    part, start = prepare(network, layers, images)
    return Case(name, scope, part, start, target, ranking, prefixes)


def cases(n: int, n_resnet: int) -> Iterator[Case]:
    """The bundled networks: all of the MLPs, the ViT's last block, the ResNet by its last stage and as a whole."""
    images, _, _ = samples(n)
    for name in ("fashion-mlp", "fashion-mlp-l1"):
        yield case(name, trace(mp.load_model(name)), images, "all layers", ("",))
    vit: nn.Module = mp.load_model("fashion-vit")
    last = ("blocks.5.attn.proj", "blocks.5.mlp")
    yield case("fashion-vit", last_block(vit), images, "last block after its attention", last)
    resnet = trace(mp.load_model("fashion-resnet"))
    yield case("fashion-resnet", resnet, images[:n_resnet], "stage 4", ("layer4",))
    yield case("fashion-resnet", resnet, images[: max(4, n_resnet // 16)], "all layers", ("",))


torch.set_num_threads(1)
