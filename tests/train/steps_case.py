"""A small pruning in steps, for one process or several at once."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from mpviz.nets.architectures import MLP
from mpviz.train.ser import Gradual, StepPlan, prune_in_steps
from tests.train.recovery_case import digits


def network(seed: int = 0) -> nn.Module:
    """Four prunable layers, so that their standardised signals are not ±1 for whatever network."""
    torch.manual_seed(seed)
    return MLP((64, 40, 32, 24, 16, 10)).eval()


def prune(folder: Path) -> Gradual:
    plan = StepPlan("hybrid", targets=(0.2, 0.5, 0.7), selection=1.0)
    return prune_in_steps(
        network(), digits(), 0.7, plan, out=folder, optimizer="sgd", learning_rate=0.05, batch=64, device="cpu"
    )
