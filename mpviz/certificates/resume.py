"""Running a network again with one weight changed, from where that weight is first used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpviz.nets.forward import Masks, masked_copy

_FREE = (nn.Identity, nn.Dropout, nn.Flatten)  # cheaper to run than to record
_CLOSE = 1e-4  # of the largest logit: what differs by more was not resumed but changed


@dataclass(frozen=True, eq=False)
class Calls:
    """In which order the modules of a network ran: number of the event at which each began and ended, by path."""

    began: dict[str, int]
    ended: dict[str, int]
    times: Counter[str]
    tensors: frozenset[str]  # those that return one tensor

    def once(self, path: str) -> bool:
        """The module ran once and returned one tensor."""
        return self.times[path] == 1 and path in self.tensors


@torch.no_grad()
def trace(model: nn.Module, x: Tensor) -> Calls:
    """Run the model once on x and note its modules' calls; the model itself is left alone."""
    network = masked_copy(model, {})
    began: dict[str, int] = {}
    ended: dict[str, int] = {}
    times: Counter[str] = Counter()
    tensors: set[str] = set()

    def watch(path: str, module: nn.Module) -> None:
        def start(*_: object) -> None:
            times[path] += 1
            began.setdefault(path, len(began) + len(ended))

        def end(_module: nn.Module, _inputs: object, out: object) -> None:
            ended[path] = len(began) + len(ended)
            if isinstance(out, Tensor):
                tensors.add(path)

        module.register_forward_pre_hook(start)
        module.register_forward_hook(end)

    for path, module in network.named_modules():
        watch(path, module)
    network(x)
    return Calls(began, ended, times, frozenset(tensors))


def finished_before(model: nn.Module, calls: Calls, parameter: str) -> list[str]:
    """Paths of the largest modules that have ended when the weight's own module begins; [] where that is not known.

    Not known: the weight's module runs several times or never (its weight is used by other means), or the weight is
    shared between modules.
    """
    path = parameter.rpartition(".")[0]
    holders = [name for name, p in model.named_parameters(remove_duplicate=False) if p is _find(model, parameter)]
    if len(holders) != 1 or calls.times[path] != 1:
        return []
    return list(_finished(model, "", path, calls))


def _find(model: nn.Module, parameter: str) -> Tensor:
    path, _, leaf = parameter.rpartition(".")
    return getattr(model.get_submodule(path), leaf)


def _finished(module: nn.Module, at: str, target: str, calls: Calls) -> Iterator[str]:
    for name, child in module.named_children():
        path = f"{at}.{name}" if at else name
        if path == target:
            continue
        if target.startswith(path + ".") or calls.times[path] == 0:  # holds the layer, or is only a list of modules
            yield from _finished(child, path, target, calls)
        elif calls.once(path) and calls.ended[path] < calls.began[target] and not isinstance(child, _FREE):
            yield path


class Tail:
    """A network of which only what follows one weight is run again.

    Modules that ended before the weight's module give back what they gave for the same images when `record` ran; in a
    plain Sequential only the last of them has to. The model is not changed: this is a second module with its weights.
    """

    def __init__(self, model: nn.Module, calls: Calls, parameter: str) -> None:
        self.network = masked_copy(model, {})
        path, _, self._leaf = parameter.rpartition(".")
        self._owner = self.network.get_submodule(path)
        self._weight = self._owner._parameters[self._leaf]
        self._kept: dict[str, Tensor] = {}
        self._recording = False
        self.skipped = finished_before(model, calls, parameter)
        for i, name in enumerate(self.skipped):
            following = self.skipped[i + 1] if i + 1 < len(self.skipped) else ""
            self._replace(name, passing=self._same_chain(name, following, calls))

    def _same_chain(self, name: str, following: str, calls: Calls) -> bool:
        """The module's output goes to the following skipped module only."""
        parent = name.rpartition(".")[0]
        holder = self.network.get_submodule(parent)
        plain = isinstance(holder, nn.Sequential) and type(holder).forward is nn.Sequential.forward
        return plain and calls.once(parent) and bool(following) and following.rpartition(".")[0] == parent

    def _replace(self, name: str, passing: bool) -> None:
        module = self.network.get_submodule(name)
        run: Callable[..., Tensor] = module.forward

        def forward(*inputs: Tensor, **others: object) -> Tensor:
            if self._recording:
                out = run(*inputs, **others)
                if not passing:
                    self._kept[name] = out.clone()  # what follows may write into it
                return out
            return inputs[0] if passing else self._kept[name].clone()

        module.forward = forward

    @torch.no_grad()
    def record(self, x: Tensor) -> Tensor:
        """The dense logits; everything before the weight is kept for `run` on the same images."""
        self._recording = True
        try:
            self._owner._parameters[self._leaf] = self._weight
            return self.network(x)
        finally:
            self._recording = False

    @torch.no_grad()
    def run(self, x: Tensor, mask: Tensor) -> Tensor:
        """Logits of the recorded images x with the entries removed where the mask is False."""
        weight = self._weight
        assert weight is not None
        pruned = torch.where(mask.to(weight.device), weight.detach(), torch.zeros_like(weight))
        self._owner._parameters[self._leaf] = nn.Parameter(pruned, requires_grad=False)
        return self.network(x)


@torch.no_grad()
def layer_outputs(
    model: nn.Module,
    calls: Calls,
    parameter: str,
    masks: list[Tensor],
    batches: list[Tensor],
    step: Callable[[], None],
) -> Tensor:
    """Float32["masks n classes"]: logits with this one weight masked, for each of the masks, on the CPU.

    step runs before every forward (to cancel). Resumed where the network allows, which is tried on the first batch
    with the last mask: where the result differs from a whole forward, all forwards are whole.
    """
    tail: Tail | None = Tail(model, calls, parameter)
    parts = []
    for i, x in enumerate(batches):
        step()
        if tail is not None and not tail.skipped:
            tail = None
        if tail is not None:
            tail.record(x)
            if i == 0 and not _agrees(tail.run(x, masks[-1]), _whole(model, {parameter: masks[-1]}, x)):
                tail = None
        outs = []
        for mask in masks:
            step()
            out = _whole(model, {parameter: mask}, x) if tail is None else tail.run(x, mask)
            outs.append(out.float().cpu())
        parts.append(torch.stack(outs))
    return torch.cat(parts, dim=1)


def _whole(model: nn.Module, masks: Masks, x: Tensor) -> Tensor:
    return masked_copy(model, masks)(x)


def _agrees(resumed: Tensor, whole: Tensor) -> bool:
    return bool(torch.allclose(resumed, whole, rtol=0.0, atol=_CLOSE * max(1.0, float(whole.abs().max()))))
