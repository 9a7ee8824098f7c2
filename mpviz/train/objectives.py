"""What recovery minimises: smoothed cross-entropy on the labels and the teacher's softened answers."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def recovery_loss(
    student: Tensor,
    target: Tensor,
    teacher: Tensor | None = None,
    weight: float = 0.5,
    temperature: float = 2.0,
    smoothing: float = 0.1,
) -> Tensor:
    """(1 − a)·CE_smooth(student, y) + a·τ²·KL(softmax(teacher/τ) ‖ softmax(student/τ)), one value a sample, in nats.

    student, teacher: logits Float["n classes"]. target: labels Int["n"] or class shares Float["n classes"].
    weight: a. Without a teacher only the cross-entropy is left, whatever `weight` says. Returns Float32["n"].
    Hinton, Vinyals & Dean (2015); arXiv:2606.02608.

    >>> import torch
    >>> logits = torch.tensor([[2.0, 0.0]])
    >>> float(recovery_loss(logits, torch.tensor([0]), teacher=logits, weight=1.0))
    0.0
    """
    student = student.float()
    if teacher is None:
        weight = 0.0
    loss = student.new_zeros(len(student))
    if weight < 1.0:
        loss = (1.0 - weight) * F.cross_entropy(student, target, reduction="none", label_smoothing=smoothing)
    if teacher is not None and weight > 0.0:
        ours = F.log_softmax(student / temperature, dim=-1)
        theirs = F.log_softmax(teacher.float() / temperature, dim=-1)
        divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
        loss = loss + weight * temperature**2 * divergence
    return loss
