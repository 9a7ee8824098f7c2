"""What is timed: a network in one number type, eager or compiled, dense or 2:4. All run the same weights.

Biases and activations behind 2:4 products need no kernels of ours: cuSPARSELt adds the bias within the product, and the
compiled endpoints fuse the activation with what stands around it.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpviz.benchmark.eight_bit import LARGEST, EightBitLinear
from mpviz.benchmark.modules import GatheredLinear, UnfoldedConv, replace_module, unfolds
from mpviz.benchmark.packing import SIDES
from mpviz.errors import ModelError, nearest

OLDEST = (8, 0)  # compute capability that multiplies 2:4
OLDEST_FLOAT8 = (8, 9)
# ‖Δ logits‖ / ‖logits‖
TOLERANCE = {"float32": 1e-4, "tf32": 2e-2, "autocast bfloat16": 0.1, "bfloat16": 0.1, "int8": 0.1, "float8": 0.2}


@dataclass(frozen=True)
class Endpoint:
    """One way to run a network.

    arithmetic: "float32", "tf32", "autocast bfloat16" (weights float32, cast in each call), "bfloat16", or "int8" and
    "float8": products of the Linear layers that pack, see `EightBitLinear`, in a network of bfloat16. sparse: "" (dense
    kernels), "all" layers that pack, or "selective": those that were faster by themselves. conv: "library", or
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

    @property
    def eight_bit(self) -> bool:
        """Whether products of Linear layers are of 8-bit values."""
        return self.arithmetic in LARGEST

    @property
    def converts(self) -> bool:
        """Whether layers are turned into another form, so that without any it would be an endpoint of another name."""
        return bool(self.sparse) or self.eight_bit


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
    Endpoint("int8", "int8"),
    Endpoint("int8 compiled", "int8", compiled=True),
    Endpoint("fp8 compiled", "float8", compiled=True, needs_cuda=True),
    Endpoint("2:4", "bfloat16", sparse="all", needs_cuda=True),
    Endpoint("2:4 compiled", "bfloat16", compiled=True, sparse="all", needs_cuda=True),
    Endpoint("2:4 selective compiled", "bfloat16", compiled=True, sparse="selective", needs_cuda=True),
    Endpoint("2:4 im2col", "bfloat16", sparse="all", conv="im2col", needs_cuda=True, for_convs=True),
    Endpoint("int8 2:4 compiled", "int8", compiled=True, sparse="all", needs_cuda=True),
    Endpoint("fp8 2:4 compiled", "float8", compiled=True, sparse="all", needs_cuda=True),
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
    float8 = endpoint.arithmetic == "float8"
    oldest = OLDEST_FLOAT8 if float8 else OLDEST if endpoint.sparse or endpoint.arithmetic == "tf32" else (0, 0)
    if (major, minor) < oldest:
        what = "float8 products" if float8 else "2:4 products" if endpoint.sparse else "tf32 products"
        return f"{what} need compute capability {oldest[0]}.{oldest[1]} or more; this GPU has {major}.{minor}"
    if endpoint.sparse and not torch.backends.cusparselt.is_available():
        return "this build of PyTorch has no cuSPARSELt"
    return ""


def convertible(endpoint: Endpoint, network: nn.Module, layers: Sequence[str]) -> list[str]:
    """Those of the layers that an endpoint turns into 2:4 or 8 bits: Linear ones, and convolutions only as im2col.

    8-bit kernels take sides that are multiples of 32, dense ones here too, so that both multiply the same layers.
    """
    found = []
    for layer in layers:
        module = network.get_submodule(layer.removesuffix(".weight"))
        if endpoint.eight_bit:
            fits = isinstance(module, nn.Linear) and not any(side % SIDES[torch.int8] for side in module.weight.shape)
        else:
            fits = isinstance(module, nn.Linear) or (endpoint.conv == "im2col" and unfolds(module))
        if fits:
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

    layers: weights that become 2:4 or 8-bit where the endpoint says so, of those that are `convertible`. orders: of the
    inputs of Linear layers in which their groups of four are formed; those gather their inputs first. The caller holds
    torch.inference_mode().
    """
    network = copy.deepcopy(model).eval().to(images.device)
    if endpoint.conv == "im2col":
        for path, module in list(network.named_modules()):
            if isinstance(module, nn.Conv2d) and unfolds(module):
                replace_module(network, path, UnfoldedConv(module))
    dtype = torch.bfloat16 if endpoint.arithmetic == "bfloat16" or endpoint.eight_bit else torch.float32
    network, x = network.to(dtype), images.to(dtype)
    if endpoint.channels_last:
        network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if endpoint.converts:
        convert(endpoint, network, x, layers, orders or {})
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


def convert(
    endpoint: Endpoint, network: nn.Module, x: Tensor, layers: Sequence[str], orders: Mapping[str, Tensor]
) -> None:
    """Turn layers into what an endpoint multiplies: PyTorch's 2:4 tensors, 8-bit values, or both.

    Float["b c h w"] x runs through the network once, dense, so that cuSPARSELt's algorithm can be searched for the
    inputs that each layer sees. Only 2:4 layers gather their inputs in another order.
    """
    paths: dict[str, str] = {}
    for layer in layers:
        path = layer.removesuffix(".weight")
        if layer in orders and endpoint.sparse:
            linear: Any = network.get_submodule(path)
            replace_module(network, path, GatheredLinear(linear, orders[layer]))
        wrapped = isinstance(network.get_submodule(path), (UnfoldedConv, GatheredLinear))
        paths[layer] = f"{path}.linear" if wrapped else path
    inputs = _inputs(network, x, paths) if endpoint.sparse else {}
    for layer, path in paths.items():
        linear = network.get_submodule(path)
        if endpoint.eight_bit:
            made = EightBitLinear(linear, endpoint.arithmetic)
            if endpoint.sparse:
                made.pack(inputs[layer])
            replace_module(network, path, made)
        else:
            linear.weight = nn.Parameter(sparse_weight(linear.weight.detach(), inputs[layer]), requires_grad=False)


def _inputs(network: nn.Module, x: Tensor, paths: Mapping[str, str]) -> dict[str, Tensor]:
    """What enters each layer when x runs through the network."""
    seen: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(path).register_forward_pre_hook(
            lambda _, given, layer=layer: seen.update({layer: given[0].detach()})
        )
        for layer, path in paths.items()
    ]
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


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
