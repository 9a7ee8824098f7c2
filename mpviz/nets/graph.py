"""A network as a list of operations: what bounds walk along, forwards and backwards."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from mpviz.errors import ModelError

Op = Literal[
    "input", "linear", "conv", "norm", "layernorm", "relu", "gelu", "add", "flatten", "avgpool", "maxpool", "identity",
    "first", "second",
]  # fmt: skip
_TRACING = threading.Lock()  # two at a time would put back what the other has put in place
RULES = "Linear, Conv2d, BatchNorm, ReLU, addition, flatten, average and max pooling"

_MODULES: dict[type[nn.Module], Op] = {
    nn.Linear: "linear",
    nn.Conv2d: "conv",
    nn.BatchNorm1d: "norm",
    nn.BatchNorm2d: "norm",
    nn.ReLU: "relu",
    nn.ReLU6: "relu",  # refused below; named here so that the message can say which kind it is
    nn.Flatten: "flatten",
    nn.AvgPool2d: "avgpool",
    nn.AdaptiveAvgPool2d: "avgpool",
    nn.MaxPool2d: "maxpool",
    nn.Identity: "identity",
    nn.Dropout: "identity",
    nn.Dropout2d: "identity",
}
_FUNCTIONS: dict[Any, Op] = {
    operator.add: "add",
    operator.iadd: "add",
    torch.add: "add",
    torch.relu: "relu",
    nn.functional.relu: "relu",
    torch.flatten: "flatten",
    "flatten": "flatten",
    "relu": "relu",
    "relu_": "relu",
    "contiguous": "identity",
}


@dataclass(frozen=True)
class Node:
    """One operation. inputs: names of the nodes it reads; module: where its weights live, "" for a function.

    weight, bias: parameter names in the model, "" where there are none.
    """

    name: str
    op: Op
    inputs: tuple[str, ...]
    module: str = ""
    weight: str = ""
    bias: str = ""


@dataclass(frozen=True, eq=False)
class Network:
    """Nodes in an order in which every node comes after its inputs; the last one gives the logits.

    model: the traced module itself, in eval mode; its tensors are read when they are needed, never changed. part: what
    the nodes cover. entry: images → what the first node takes, Float64["n ..."]; the images themselves when None.
    """

    model: nn.Module
    nodes: tuple[Node, ...]
    part: str = "the whole network"
    entry: Callable[[Tensor], Tensor] | None = None

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def start(self, images: Tensor) -> Tensor:
        """What the first node takes, in double precision."""
        return (images if self.entry is None else self.entry(images)).double()

    @property
    def output(self) -> str:
        """Name of the node that gives the logits."""
        return self.nodes[-1].name

    @property
    def weights(self) -> dict[str, str]:
        """{parameter name: name of the node it belongs to}, in order."""
        return {node.weight: node.name for node in self.nodes if node.weight}

    def module(self, node: Node) -> Any:
        """The module of a node."""
        return self.model.get_submodule(node.module)

    def after(self, name: str) -> tuple[Node, ...]:
        """The nodes that depend on node `name`, without it."""
        reached = {name}
        later = []
        for node in self.nodes:
            if reached & set(node.inputs):
                reached.add(node.name)
                later.append(node)
        return tuple(later)


class _Tracer(fx.Tracer):
    """While fx traces, it takes over the calls of all modules of the process: those of other threads go on as ever."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in _MODULES or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> Network:
    """The operations of a network of fully connected or conv–norm–ReLU layers, residual additions included.

    Raises ModelError for a model in training mode and for an operation without a rule, which it names.
    """
    kind = type(model).__name__
    check_plain(model)
    if any(module.training for module in model.modules()):
        raise ModelError(f"{kind} is in training mode, its batch norms depend on the batch; call .eval()")
    try:
        with _TRACING:
            graph = _Tracer().trace(model)
    except Exception as error:  # what user code raises on symbolic values cannot be told in advance
        raise ModelError(
            f"{kind} cannot be read as a list of operations ({type(error).__name__}: {error}), so no bound is proved "
            "for it; the measured, population and estimate tiers remain"
        ) from error
    if sum(step.op == "placeholder" for step in graph.nodes) != 1:
        raise _no_rule("a forward pass of several arguments; wrap the network so that it takes images alone")
    nodes: dict[str, Node] = {}
    output = ""
    for step in graph.nodes:
        if step.op == "output":
            output = _single(step, kind)
        elif step.op != "get_attr":
            nodes[step.name] = _node(model, step)
    needed, kept = {output}, []
    for node in reversed(nodes.values()):
        if node.name in needed:
            needed |= set(node.inputs)
            kept.append(node)
    return Network(model, tuple(reversed(kept)))


def check_plain(model: nn.Module) -> None:
    """Refuse what a list of operations would not show: hooks, replaced methods, one tensor under two names, half types.

    Raises ModelError, which names the module or the parameter.
    """
    for path, module in model.named_modules():
        if "forward" in vars(module):
            raise _no_rule(f"the forward method put on {path or type(module).__name__} itself; make it a class's own")
        if module._forward_hooks or module._forward_pre_hooks:
            raise _no_rule(f"the forward hooks of {path or type(module).__name__}; remove them first")
    for name, parameter in model.named_parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise ModelError(
                f"{name} is {parameter.dtype}, whose rounding no bound covers; prove it for model.float(); the "
                "measured, population and estimate tiers remain"
            )
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = names.setdefault(id(parameter), name)
        same_module = other.rpartition(".")[0], name.rpartition(".")[0]
        if other != name and model.get_submodule(same_module[0]) is not model.get_submodule(same_module[1]):
            raise _no_rule(f"weights that two layers share ({other} and {name})")


def _check_in_place(model: nn.Module, step: fx.Node) -> None:
    """An operation that overwrites its input may only do so where nobody else reads it, also through a view."""
    arg = step.args[0]
    while isinstance(arg, fx.Node):
        if len(arg.users) > 1:
            raise _no_rule(f"an operation in place on a value that is read again (step {step.name})")
        if arg.op == "placeholder" or not arg.args:
            return
        view = arg.op == "call_function" and _FUNCTIONS.get(arg.target) in ("flatten", "identity")
        view |= arg.op == "call_method" and _FUNCTIONS.get(arg.target) in ("flatten", "identity")
        if arg.op == "call_module":
            view = _MODULES.get(type(model.get_submodule(str(arg.target)))) in ("flatten", "identity")
        if not view:
            return
        arg = arg.args[0]


def _single(step: fx.Node, kind: str) -> str:
    if not isinstance(step.args[0], fx.Node):
        raise ModelError(f"{kind} gives several outputs; wrap it so that it gives logits alone")
    return step.args[0].name


def _no_rule(what: str) -> ModelError:
    return ModelError(
        f"no rule for {what}, so no bound is proved for this network; there are rules for {RULES}; "
        "the measured, population and estimate tiers remain"
    )


def _node(model: nn.Module, step: fx.Node) -> Node:
    inputs = tuple(arg.name for arg in step.all_input_nodes)
    if any(arg.op == "get_attr" for arg in step.all_input_nodes):
        raise _no_rule(f"a parameter or buffer used outside a layer (step {step.name})")
    if step.op == "placeholder":
        return Node(step.name, "input", ())
    if step.op == "call_module":
        return _module_node(model, step, inputs)
    op = _FUNCTIONS.get(step.target)
    if step.target in (operator.iadd, "relu_") or step.kwargs.get("inplace") or step.args[1:] == (True,):
        _check_in_place(model, step)
    if op is None:
        name = step.target if isinstance(step.target, str) else getattr(step.target, "__name__", str(step.target))
        raise _no_rule(f"the function '{name}' (step {step.name})")
    if op == "add" and (len(inputs) != 2 or step.kwargs):
        raise _no_rule(f"an addition of anything but two results (step {step.name})")
    if op == "flatten" and (tuple(step.args[1:]) != (1,) or step.kwargs):
        raise _no_rule(f"a flatten other than flatten(1) (step {step.name})")
    return Node(step.name, op, inputs)


def _module_node(model: nn.Module, step: fx.Node, inputs: tuple[str, ...]) -> Node:
    path = str(step.target)
    module: Any = model.get_submodule(path)
    op = _MODULES.get(type(module))
    kind = type(module).__name__
    if op is None or isinstance(module, nn.ReLU6):
        raise _no_rule(f"{kind} ({path})")
    if len(inputs) != 1:
        raise _no_rule(f"{kind} of {len(inputs)} inputs ({path})")
    _check_options(module, path)
    if getattr(module, "inplace", False):
        _check_in_place(model, step)
    weight = f"{path}.weight" if op in ("linear", "conv") else ""
    bias = f"{path}.bias" if weight and module.bias is not None else ""
    return Node(step.name, op, inputs, path, weight, bias)


def _check_options(module: Any, path: str) -> None:
    """Refuse what the rules do not cover, by name."""
    kind = type(module).__name__
    if isinstance(module, nn.Conv2d) and (isinstance(module.padding, str) or module.padding_mode != "zeros"):
        raise _no_rule(f"{kind} with padding '{module.padding}', mode '{module.padding_mode}' ({path})")
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        raise _no_rule(f"{kind} without running statistics ({path})")
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        raise _no_rule(f"Flatten({module.start_dim}, {module.end_dim}) ({path})")
    if isinstance(module, nn.AvgPool2d) and module.divisor_override is not None:
        raise _no_rule(f"{kind} with divisor_override ({path})")
    if isinstance(module, nn.MaxPool2d) and (module.return_indices or module.ceil_mode):
        raise _no_rule(f"{kind} with indices or ceil_mode ({path})")
    if isinstance(module, (nn.Linear, nn.Conv2d)) and hasattr(module, "parametrizations"):
        raise _no_rule(f"a parametrised {kind} ({path})")
