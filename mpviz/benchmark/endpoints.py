"""What is timed: a network in one number type, eager or compiled, dense or 2:4. All run the same weights."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpviz.benchmark.modules import GatheredLinear, UnfoldedConv, replace_module, unfolds
from mpviz.errors import ModelError, nearest

OLDEST = (8, 0)  # compute capability that multiplies 2:4
TOLERANCE = {"float32": 1e-4, "tf32": 2e-2, "autocast bfloat16": 0.1, "bfloat16": 0.1}  # ‖Δ logits‖ / ‖logits‖


@dataclass(frozen=True)
class Endpoint:
    """One way to run a network.

    arithmetic: "float32", "tf32", "autocast bfloat16" (weights float32, cast in each call) or "bfloat16". sparse: ""
    (dense kernels), "all" layers that pack, or "selective": those that were faster by themselves. conv: "library", or
    "im2col": every ungrouped convolution as a matrix product. for_convs: of use only where there are convolutions
    behind the stem.
    """

    name: str
    arithmetic: str
    compiled: bool = False
    sparse: str = ""
    conv: str = "library"
    channels_last: bool = False
    needs_cuda: bool = False
    for_convs: bool = False


_ALL = (
    Endpoint("fp32", "float32"),
    Endpoint("fp32 compiled", "float32", compiled=True),
    Endpoint("tf32", "tf32", needs_cuda=True),
    Endpoint("autocast", "autocast bfloat16"),
    Endpoint("bf16", "bfloat16"),
    Endpoint("bf16 compiled", "bfloat16", compiled=True),
    Endpoint("bf16 channels-last", "bfloat16", channels_last=True, for_convs=True),
    Endpoint("bf16 channels-last compiled", "bfloat16", compiled=True, channels_last=True, for_convs=True),
    Endpoint("fp32 im2col", "float32", conv="im2col", for_convs=True),
    Endpoint("bf16 im2col", "bfloat16", conv="im2col", for_convs=True),
    Endpoint("2:4", "bfloat16", sparse="all", needs_cuda=True),
    Endpoint("2:4 compiled", "bfloat16", compiled=True, sparse="all", needs_cuda=True),
    Endpoint("2:4 selective compiled", "bfloat16", compiled=True, sparse="selective", needs_cuda=True),
    Endpoint("2:4 im2col", "bfloat16", sparse="all", conv="im2col", needs_cuda=True, for_convs=True),
)
ENDPOINTS = {one.name: one for one in _ALL}
FIRST = "fp32"  # whose logits all others must give
ON_CPU = ("fp32", "autocast", "bf16", "bf16 channels-last", "fp32 im2col")  # compiling takes minutes; ask for it


def chosen(names: Sequence[str] | None, device: torch.device, convs: bool) -> list[Endpoint]:
    """Endpoints by name, or all that suit the device and the network. Raises ModelError for an unknown name."""
    if names is None:
        return [one for one in _ALL if (one.name in ON_CPU or device.type == "cuda") and (convs or not one.for_convs)]
    for name in names:
        if name not in ENDPOINTS:
            raise ModelError(f"unknown endpoint '{name}'; {nearest(str(name), ENDPOINTS)}")
    return [ENDPOINTS[name] for name in dict.fromkeys(names)]


def missing(endpoint: Endpoint, device: torch.device) -> str:
    """Why this machine cannot run an endpoint; "" where it can."""
    if device.type != "cuda":
        return f"{endpoint.name} needs a CUDA GPU" if endpoint.needs_cuda else ""
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < OLDEST and (endpoint.sparse or endpoint.arithmetic == "tf32"):
        what = "2:4 products" if endpoint.sparse else "tf32"
        return f"{what} need compute capability {OLDEST[0]}.{OLDEST[1]} or more; this GPU has {major}.{minor}"
    if endpoint.sparse and not torch.backends.cusparselt.is_available():
        return "this build of PyTorch has no cuSPARSELt"
    return ""


def convertible(endpoint: Endpoint, network: nn.Module, layers: Sequence[str]) -> list[str]:
    """Those of the layers that run as 2:4 at a sparse endpoint: Linear ones, and convolutions only as im2col."""
    found = []
    for layer in layers:
        module = network.get_submodule(layer.removesuffix(".weight"))
        if isinstance(module, nn.Linear) or (endpoint.conv == "im2col" and unfolds(module)):
            found.append(layer)
    return found


def build(
    endpoint: Endpoint,
    model: nn.Module,
    images: Tensor,
    layers: Sequence[str] = (),
    orders: Mapping[str, Tensor] | None = None,
) -> Callable[[], Tensor]:
    """A call that gives the logits of `images`, Float["b c h w"] on the device that is timed. The model is only read.

    layers: weights that become 2:4 where the endpoint is sparse, of those that are `convertible`. orders: of the inputs
    of Linear layers in which their groups of four are formed; those gather their inputs first. The caller holds
    torch.inference_mode().
    """
    network = copy.deepcopy(model).eval().to(images.device)
    if endpoint.conv == "im2col":
        for path, module in list(network.named_modules()):
            if isinstance(module, nn.Conv2d) and unfolds(module):
                replace_module(network, path, UnfoldedConv(module))
    dtype = torch.bfloat16 if endpoint.arithmetic == "bfloat16" else torch.float32
    network, x = network.to(dtype), images.to(dtype)
    if endpoint.channels_last:
        network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if endpoint.sparse:
        make_sparse(network, x, layers, orders or {})
    if endpoint.compiled:
        mode = "max-autotune" if x.is_cuda else "default"
        run = torch.compile(network, mode=mode, dynamic=False)
    else:
        run = network

    def call() -> Tensor:
        with _arithmetic(endpoint, x.device):
            return run(x)

    return call


@contextlib.contextmanager
def _arithmetic(endpoint: Endpoint, device: torch.device) -> Iterator[None]:
    """tf32 only where it is asked for, and casts only under autocast."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allowed = endpoint.arithmetic == "tf32"
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=endpoint.arithmetic == "autocast bfloat16"):
            yield
    finally:
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def make_sparse(network: nn.Module, x: Tensor, layers: Sequence[str], orders: Mapping[str, Tensor]) -> None:
    """Turn weights into PyTorch's 2:4 tensors, with cuSPARSELt's algorithm searched for the inputs that each sees.

    Float["b c h w"] x runs through the network once, dense, to learn how many rows each layer multiplies.
    """
    found: dict[str, nn.Linear] = {}
    for layer in layers:
        path = layer.removesuffix(".weight")
        if layer in orders:
            linear: Any = network.get_submodule(path)
            replace_module(network, path, GatheredLinear(linear, orders[layer]))
        module: Any = network.get_submodule(path)
        found[layer] = module.linear if isinstance(module, (UnfoldedConv, GatheredLinear)) else module
    seen: dict[str, Tensor] = {}
    hooks = [
        linear.register_forward_pre_hook(lambda _, given, layer=layer: seen.update({layer: given[0].detach()}))
        for layer, linear in found.items()
    ]
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, linear in found.items():
        linear.weight = nn.Parameter(sparse_weight(linear.weight.detach(), seen[layer]), requires_grad=False)


def sparse_weight(weight: Tensor, inputs: Tensor) -> Tensor:
    """A CUDA weight Float["out in"] as PyTorch's 2:4 tensor, in the algorithm that is quickest for these inputs."""
    from torch.sparse import SparseSemiStructuredTensorCUSPARSELT as Sparse

    clean = torch.where(weight == 0, torch.zeros_like(weight), weight).contiguous()  # −0 counts as a value
    rows = inputs.reshape(-1, inputs.shape[-1])
    rows = nn.functional.pad(rows, (0, 0, 0, -len(rows) % 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch says once a process that this is a prototype
        sparse = Sparse.from_dense(clean)
    packed: Any = sparse.packed
    sparse.alg_id_cusparselt = int(torch._cslt_sparse_mm_search(packed, rows.t()))
    return sparse
