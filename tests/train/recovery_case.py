"""Small recoveries that tests run here, in other processes, and in several processes at once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mpviz as mp
from mpviz.nets.architectures import MLP, fashion_vit
from mpviz.nets.data import Split
from mpviz.nets.timm_import import import_timm
from mpviz.train.augment import FlipShift
from mpviz.train.distill import Recovery, distill


def mlp(seed: int, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return MLP((64, 32, 32, classes)).eval()


def vit(seed: int, dropout: float = 0.0) -> nn.Module:
    """A transformer with layer norms alone; without dropout and stochastic depth unless asked."""
    torch.manual_seed(seed)
    timm = import_timm()
    return timm.models.VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=10, embed_dim=32, depth=2, num_heads=2, proj_drop_rate=dropout
    ).eval()


def stem_vit(seed: int) -> nn.Module:
    """The bundled transformer in small; its convolutional stem has batch norms."""
    torch.manual_seed(seed)
    return fashion_vit(width=32, depth=2, heads=2).eval()


def digits() -> Split:
    return mp.load_data("digits").train


def fashion(samples: int) -> Split:
    whole = mp.load_data("fashion-mnist", folder="bundled").train
    return Split("train", torch.utils.data.Subset(whole.dataset, range(samples)), whole.classes)


CASES: dict[str, dict[str, Any]] = {
    # 1097 samples: the last batch of an epoch has 9
    "mlp": {"make": mlp, "batch": 64, "optimizer": "sgd", "learning_rate": 0.05, "epochs": 2},
    "mlp-mixed": {
        "make": mlp, "batch": 64, "optimizer": "adamw", "learning_rate": 3e-3, "epochs": 1, "mixup": 0.4, "cutmix": 1.0,
        "augment": FlipShift(flip=False, shift=1),
    },
    "vit": {"make": vit, "batch": 64, "optimizer": "adamw", "learning_rate": 1e-3, "epochs": 2},
    "stem-vit": {"make": stem_vit, "batch": 50, "optimizer": "adamw", "learning_rate": 1e-3, "epochs": 1, "data": 201},
    "dropout": {"make": lambda seed: vit(seed, 0.2), "batch": 128, "optimizer": "adamw", "learning_rate": 1e-3,
                "epochs": 2, "clip": 1.0, "augment": FlipShift(shift=1), "mixup": 0.2},
}  # fmt: skip


def recover(case: str, out: Path | None = None, **more: Any) -> Recovery:
    """One case of CASES: half of the student's weights removed, a teacher of the same kind."""
    options = dict(CASES[case])
    make, samples = options.pop("make"), options.pop("data", None)
    student, teacher = make(1), make(2)
    masks = mp.magnitude_masks(student, sparsity=0.5)
    data = digits() if samples is None else fashion(samples)
    return distill(student, teacher, data, masks=masks, device="cpu", out=out, **(options | more))


def digest(model: nn.Module) -> str:
    """Of every bit of a network's state."""
    state = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        state.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return state.hexdigest()
