"""First-order effect of every layer's removed entries on the top-2 margin, from one backward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpviz.certificates.margins import compare_logits
from mpviz.errors import Cancelled, DataError, ModelError
from mpviz.nets.forward import masked_copy, masked_parameters

BATCH = 64


@dataclass(frozen=True)
class Agreement:
    """First order against measured margins of the same two classes.

    same_sign: share of samples on which both say that the top class stays above the second, or both that it does not.
    correlation: of the two changes of the margin. optimism: mean of predicted minus measured margin, in logits;
    above 0 the first order promises too much.
    """

    same_sign: float
    correlation: float
    optimism: float


@dataclass(frozen=True, eq=False)
class FirstOrder:
    """effects: Float64["n layers"], in logits: how much the margin z_top − z_second gains when the layer's entries go.

    top, second: Int["n"], classes of the dense network. margin: Float64["n"], dense. tier: always "estimate".
    """

    layers: tuple[str, ...]
    effects: np.ndarray
    top: np.ndarray
    second: np.ndarray
    margin: np.ndarray
    tier: str = "estimate"

    @property
    def predicted(self) -> np.ndarray:
        """Float64["n"]: the margin after pruning, to first order."""
        return self.margin + self.effects.sum(axis=1)

    def against(self, pruned: Tensor) -> Agreement:
        """Compare with logits Float["n classes"] of the pruned network on the same samples."""
        if len(pruned) != len(self.top) or not torch.isfinite(pruned).all():
            raise DataError(f"{len(self.top)} samples need as many finite logits; got shape {tuple(pruned.shape)}")
        values, rows = pruned.double().numpy(), np.arange(len(self.top))
        left = values[rows, self.top] - values[rows, self.second]
        changes = self.predicted - self.margin, left - self.margin
        known = len(left) > 1 and all(change.std() > 0 for change in changes)
        return Agreement(
            same_sign=float(((self.predicted > 0) == (left > 0)).mean()),
            correlation=float(np.corrcoef(*changes)[0, 1]) if known else float("nan"),
            optimism=float((self.predicted - left).mean()),
        )


def _removed(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """R = W − S: the entries that go, zero elsewhere."""
    kept = masked_parameters(model, masks)
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach() - values for name, values in kept.items()}


def _ready(model: nn.Module, images: Tensor, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if len(images) == 0:
        raise DataError("no images; the first order needs one sample at least")
    if not masks:
        raise DataError("no masks; name one layer at least whose entries go")
    if model.training:
        raise ModelError(f"{type(model).__name__} is in training mode, its samples mix; call .eval()")
    return _removed(model, masks)


def _finish(layers: list[str], values: list[Tensor], effects: list[Tensor]) -> FirstOrder:
    dense = torch.cat(values)
    two = dense.topk(2, dim=1)
    return FirstOrder(
        tuple(layers),
        torch.cat(effects).numpy(),
        two.indices[:, 0].numpy(),
        two.indices[:, 1].numpy(),
        (two.values[:, 0] - two.values[:, 1]).numpy(),
    )


def _checked(out: Tensor) -> Tensor:
    compare_logits(out.detach().cpu(), out.detach().cpu(), torch.zeros(len(out), dtype=torch.long))
    return out


class _Probe:
    """Inputs of one layer and a zero added to each of its outputs, whose gradient is the output's."""

    def __init__(self, name: str, module: nn.Module, removed: Tensor) -> None:
        self.name, self.seen = name, []  # type: ignore[var-annotated]
        self.linear = copy.deepcopy(module)  # before the hook: linear in its weight, so that it gives R x
        self.linear.weight = nn.Parameter(removed, requires_grad=False)
        self.linear.bias = None  # type: ignore[assignment]
        module.register_forward_hook(self._hook)

    def _hook(self, _module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        zero = torch.zeros_like(out, requires_grad=True)
        self.seen.append((inputs[0].detach().clone(), zero))  # what follows may write into the input
        return out + zero

    def effect(self, gradients: Mapping[int, Tensor], n: int) -> Tensor:
        """−Σ ⟨∂margin/∂output, R x⟩ of each sample, Float64["n"]."""
        total = torch.zeros(n, dtype=torch.float64)
        for x, zero in self.seen:
            if len(x) != n:
                raise ModelError(
                    f"{self.name} sees {len(x)} rows for {n} samples, so its samples cannot be told apart; "
                    "use first_order_jvp"
                )
            with torch.no_grad():
                product = (gradients[id(zero)] * self.linear(x)).reshape(n, -1)
            total -= product.double().sum(dim=1).cpu()
        return total


def first_order(
    model: nn.Module,
    images: Tensor,
    masks: Mapping[str, Tensor],
    batch: int = BATCH,
    cancelled: Callable[[], bool] | None = None,
) -> FirstOrder:
    """Every layer's signed effect on the margin, from one forward and one backward a batch for all layers together.

    With R_l the removed entries of layer l, o_l = W_l x_l its output and g_l = ∂(z_top − z_second)/∂o_l:
        effect_l = −Σ_ij R_ij ∂(z_top − z_second)/∂W_ij = −⟨g_l, R_l x_l⟩,
    since an output is linear in its weight; no weight's gradient is formed. An estimate: the second order is left out,
    and with many entries removed it rules. masks: {parameter name: Bool, True = kept} of Linear and convolution
    weights. The model is left as found. Raises ModelError for a weight that is not used by its own module (use
    first_order_jvp), DataError for no samples or logits that are not finite, Cancelled.
    """
    removed = _ready(model, images, masks)
    network = masked_copy(model, {})
    for name, parameter in model.named_parameters():  # a frozen twin: only the probes carry gradients
        _freeze(network, name, parameter)
    modules = dict(network.named_modules())
    probes = []
    for name, values in removed.items():
        path, _, leaf = name.rpartition(".")
        module = modules[path]
        if leaf != "weight" or not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            raise ModelError(f"{name} is no weight of a Linear or convolution; use first_order_jvp")
        probes.append(_Probe(name, module, values))
    device = next(model.parameters()).device
    values_of, effects = [], []
    for part in images.split(batch):
        if cancelled is not None and cancelled():
            raise Cancelled("the first order was cancelled")
        for probe in probes:
            probe.seen.clear()
        with torch.enable_grad():
            out = _checked(network(part.to(device)))
            two = out.topk(2, dim=1).values
            for probe in probes:
                if not probe.seen:
                    raise ModelError(f"{probe.name} is not used by its own module; use first_order_jvp")
            zeros = [zero for probe in probes for _, zero in probe.seen]
            # of a zero that the margin does not depend on, the gradient is zero
            gradients = torch.autograd.grad(
                (two[:, 0] - two[:, 1]).sum(), zeros, allow_unused=True, materialize_grads=True
            )
        found = {id(zero): gradient for zero, gradient in zip(zeros, gradients, strict=True)}
        effects.append(torch.stack([probe.effect(found, len(part)) for probe in probes], dim=1))
        values_of.append(out.detach().double().cpu())
    return _finish(list(removed), values_of, effects)


def _freeze(network: nn.Module, name: str, parameter: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(path), leaf, nn.Parameter(parameter.detach(), requires_grad=False))


def first_order_jvp(
    model: nn.Module,
    images: Tensor,
    masks: Mapping[str, Tensor],
    batch: int = BATCH,
    cancelled: Callable[[], bool] | None = None,
) -> FirstOrder:
    """The same by forward-mode derivatives, one pass a layer: for networks whose layers share or transform weights.

    Fused attention has no forward-mode rule, so that attention is written out meanwhile. The model is left as found.
    """
    removed = _ready(model, images, masks)
    network = masked_copy(model, {})
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    device = next(model.parameters()).device
    values_of, effects = [], []
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for part in images.split(batch):
            x = part.to(device)
            columns = []
            for name, values in removed.items():
                if cancelled is not None and cancelled():
                    raise Cancelled("the first order was cancelled")

                def run(weight: Tensor, x: Tensor = x, name: str = name) -> Tensor:
                    return functional_call(network, weights | {name: weight}, (x,))

                out, change = jvp(run, (weights[name],), (-values,))[:2]
                two = _checked(out).topk(2, dim=1).indices
                both = change.gather(1, two).double().cpu()
                columns.append(both[:, 0] - both[:, 1])
            effects.append(torch.stack(columns, dim=1))
            values_of.append(out.detach().double().cpu())
    return _finish(list(removed), values_of, effects)
