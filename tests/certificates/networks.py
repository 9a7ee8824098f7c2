"""Small networks of every shape that has rules, with weights that make units change sides."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Convolutions, batch norms, a residual block with its own shortcut, both kinds of pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.conv2, self.bn2 = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.short = nn.Conv2d(4, 6, 1, stride=2)
        self.relu = nn.ReLU()
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        x = self.relu(self.bn2(self.conv2(x)) + self.short(x))
        return self.fc(self.mean(x).flatten(1))


class Overlapping(nn.Module):
    """Max-pool windows that overlap, an average pool, grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.mean = nn.AvgPool2d(2)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.pool(self.conv(x)))
        return self.fc(torch.flatten(self.mean(torch.relu(self.grouped(x))), 1))


class Dilated(nn.Module):
    """Max-pool windows whose entries lie apart and interleave, although they do not overlap as ranges."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, dilation=1)
        self.pool = nn.MaxPool2d(2, stride=2, dilation=2)
        self.fc = nn.Linear(36, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.conv(x)).flatten(1))


def mlp() -> nn.Module:
    """64-20-16-4."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))


KINDS = {"mlp": mlp, "residual": Residual, "overlapping": Overlapping, "dilated": Dilated}


def build(kind: str, seed: int) -> nn.Module:
    """A network of a kind with random weights and batch-norm statistics, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    model = KINDS[kind]().eval()
    with torch.no_grad():
        for p in model.parameters():
            fan = p[0].numel() if p.ndim > 1 else 4
            p.copy_(torch.randn(p.shape, generator=generator) * (1.6 / fan**0.5))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(0.3 * torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(0.2 + torch.rand(module.num_features, generator=generator))
    return model


def images(n: int, seed: int) -> Tensor:
    """Float32["n 1 8 8"]."""
    return torch.randn((n, 1, 8, 8), generator=torch.Generator().manual_seed(seed))


def threshold_masks(model: nn.Module, sparsity: float) -> dict[str, Tensor]:
    """Masks of a nested family: the smallest magnitudes of all weights together go."""
    weights = {name: p.detach() for name, p in model.named_parameters() if p.ndim > 1}
    cut = torch.cat([w.abs().flatten() for w in weights.values()]).quantile(sparsity)
    return {name: w.abs() >= cut for name, w in weights.items()}
