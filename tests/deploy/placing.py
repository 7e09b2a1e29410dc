"""Hand-made inputs of quantization and engines: a traced module, and INT8 placed by simple fixed rules."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.passes.shape_prop import ShapeProp

from eqsat_deploy.deployment import InputSpec, PlacedKernel, Placement, Quantizer, deployment, record
from eqsat_deploy.language import (
    SLOTS,
    avg_pool2d,
    conv2d,
    conv_transpose2d,
    layer_norm,
    linear,
    max_pool2d,
    packed_attention,
    standardize,
    unary,
)
from eqsat_deploy.language.attention import PackedAttention
from eqsat_deploy.language.normalization import Standardize
from eqsat_deploy.scales import Applied, Read, free_scales

WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, F.linear, F.conv2d)
ADDS = (torch.add, operator.add, operator.iadd)
MATMULS = (torch.matmul, operator.matmul)
POOLS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, F.avg_pool2d, F.adaptive_avg_pool2d)
CHANNELS: dict[Any, int] = {
    F.conv2d: 0, torch.conv2d: 0, F.linear: 0, F.conv_transpose2d: 1, torch.conv_transpose2d: 1, torch.matmul: -1,
}  # fmt: skip
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
VIEWS = (
    *(torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze),
    *(F.max_pool2d, nn.MaxPool2d, nn.Flatten, nn.Identity, nn.Dropout, operator.getitem, torch.cat),
    *("flatten", "view", "reshape", "permute", "transpose", "contiguous", "chunk"),
)


class Rectifier(nn.ReLU):
    """By the function that rebuilt modules have, which engines write themselves."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)


class Rectifier6(nn.ReLU6):
    """Likewise."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(x, 0.0, 6.0)


REBUILT: dict[type[nn.Module], Callable[[], nn.Module]] = {nn.ReLU: Rectifier, nn.ReLU6: Rectifier6}


def traced(model: nn.Module, *example: Tensor, fold: bool = True) -> fx.GraphModule:
    """`model` in eval mode as a graph with its record, BatchNorm folded into convolutions."""
    module = fuse(model.eval(), inplace=True) if fold else model.eval()
    if not isinstance(module, fx.GraphModule):
        module = fx.symbolic_trace(module)
    for name, layer in list(module.named_modules()):
        if type(layer) in REBUILT:
            module.set_submodule(name, REBUILT[type(layer)]())
    names = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    inputs = tuple(
        InputSpec(name, (None, *value.shape[1:]), value.dtype)
        for name, value in zip(names, example, strict=True)
    )
    record(module, inputs=inputs)
    return module


def kind(module: fx.GraphModule, node: fx.Node) -> Any:
    """What a node computes: a module type, a function, or a method's name."""
    return type(module.get_submodule(str(node.target))) if node.op == "call_module" else node.target


def place(
    module: fx.GraphModule,
    readers: Collection[Any] = WEIGHTED,
    where: Callable[[fx.Node], bool] = lambda node: True,
) -> Placement:
    """INT8 for what nodes of the kinds in `readers` read, quantized above the views before it."""
    reads: dict[str, dict[str, None]] = {}
    kernels = []
    for node in module.graph.nodes:
        if kind(module, node) not in readers or not where(node):
            continue
        operands = [operand for operand in node.all_input_nodes if operand.op != "get_attr"]
        for operand in operands:
            source, reader = operand, node
            while kind(module, source) in VIEWS and len(source.all_input_nodes) == 1:
                source, reader = source.all_input_nodes[0], source
            reads.setdefault(source.name, {}).setdefault(reader.name)
        kernels.append(
            PlacedKernel(node.name, (node.name,), "int8", "float32", 0.0, CHANNELS.get(kind(module, node)))
        )
    order = [node.name for node in module.graph.nodes if node.name in reads]
    quantizers = tuple(Quantizer(name, tuple(reads[name])) for name in order)
    users = {node.name: len(node.users) for node in module.graph.nodes}
    scales = free_scales(applied(module), users, {q.tensor: q.readers for q in quantizers})
    return Placement(quantizers, tuple(kernels), shared(module, quantizers), scales=scales)


def applied(module: fx.GraphModule) -> dict[str, Applied]:
    """What the nodes compute that scales may move through or into, in the language."""
    inputs = (torch.zeros(2, *spec.shape[1:], dtype=spec.dtype) for spec in deployment(module).inputs)
    with torch.no_grad():
        ShapeProp(module).propagate(*inputs)
    found = {node.name: _applied(module, node) for node in module.graph.nodes}
    return {name: known for name, known in found.items() if known is not None}


def _applied(module: fx.GraphModule, node: fx.Node) -> Applied | None:
    if len(node.all_input_nodes) != 1 or node.op not in ("call_module", "call_function"):
        return None
    (operand,) = node.all_input_nodes
    meta = operand.meta["tensor_meta"]
    x = Read(operand.name, tuple(meta.shape), meta.dtype)
    if node.op == "call_function":
        return _function(node, x)
    match layer := module.get_submodule(str(node.target)):
        case nn.Conv2d():
            window = (layer.stride, layer.padding, layer.dilation, layer.groups)
            return Applied(conv2d, (x, *_held(layer, layer.out_channels), *window))
        case nn.ConvTranspose2d():
            window = (layer.stride, layer.padding, layer.output_padding, layer.dilation, layer.groups)
            return Applied(conv_transpose2d, (x, *_held(layer, layer.out_channels), *window))
        case nn.Linear():
            return Applied(linear, (x, *_held(layer, layer.out_features)))
        case nn.LayerNorm(elementwise_affine=True):
            return Applied(layer_norm, (x, *_held(layer, *layer.normalized_shape), layer.eps))
        case Standardize():
            return Applied.of(standardize, (x, SLOTS + layer.axis, layer.eps))
        case PackedAttention():
            return Applied(packed_attention, (x, layer.heads, layer.scale))
        case nn.ReLU():
            return Applied(unary, ("relu", x))
        case nn.ReLU6():
            return Applied(unary, ("clamp(0.0,6.0)", x))
    return None


def _held(layer: Any, *size: int) -> tuple[Read, Read]:
    """A layer's weight and bias; one that is missing has zeros in the language."""
    weight = layer.weight
    return Read(None, tuple(weight.shape), weight.dtype), Read(None, size, weight.dtype)


def _function(node: fx.Node, x: Read) -> Applied | None:
    """Functions without parameters, with the arguments that the tests have."""
    arguments = (*node.args[1:], *node.kwargs.values())
    match node.target:
        case torch.relu | F.relu:
            return Applied(unary, ("relu", x))
        case F.hardswish:
            return Applied(unary, ("hardswish", x))
        case F.relu6:
            return Applied(unary, ("clamp(0.0,6.0)", x))
        case torch.clamp if len(arguments) == 2:
            return Applied(unary, (f"clamp({arguments[0]},{arguments[1]})", x))
        case F.leaky_relu:
            return Applied(unary, (f"leaky_relu({arguments[0]})", x))
        case F.max_pool2d:
            return Applied(max_pool2d, (x, *_window(arguments[0]), (1, 1), 0))
        case F.avg_pool2d:
            return Applied(avg_pool2d, (x, *_window(arguments[0]), 0, 1))
    return None


def _window(size: Any) -> tuple[tuple[int, int], ...]:
    return (size, size), (size, size), (0, 0)


def shared(module: fx.GraphModule, quantizers: Sequence[Quantizer]) -> tuple[tuple[str, ...], ...]:
    """Quantized tensors whose codes one concatenation joins, at once or after views."""
    nodes = {node.name: node for node in module.graph.nodes}
    groups: list[tuple[set[fx.Node], list[str]]] = []
    for quantizer in quantizers:
        joins = joined(module, [nodes[name] for name in quantizer.readers])
        met = [group for group in groups if group[0] & joins]
        names = [*(name for group in met for name in group[1]), quantizer.tensor]
        groups = [group for group in groups if group not in met]
        groups.append((joins.union(*(group[0] for group in met)), names))
    return tuple(tuple(names) for _, names in groups if len(names) > 1)


def joined(module: fx.GraphModule, readers: Sequence[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for reader in readers:
        if reader.target in CONCATENATIONS:
            found.add(reader)
        if kind(module, reader) in VIEWS:
            found |= joined(module, list(reader.users))
    return found


def int8(module: fx.GraphModule, readers: Collection[Any] = WEIGHTED) -> fx.GraphModule:
    """`module` with that placement in its record."""
    record(module, placement=place(module, readers))
    return module


class Residual(nn.Module):
    """Convolution, depthwise convolution, residual add, pool, linear."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))  # functions that rebuilt modules have: a lane writes them itself
        y = self.pointwise(torch.clamp(self.depthwise(x), 0.0, 6.0))
        return self.head(torch.relu(x + y).mean((2, 3)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        width = self.out.in_features
        packed = self.qkv(self.norm1(x)).reshape(-1, x.size(1), 3 * self.heads, width // self.heads)
        packed = torch.permute(packed, (0, 2, 1, 3))
        query, key, value = (torch.narrow(packed, 1, part * self.heads, self.heads) for part in range(3))
        attended = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(torch.transpose(attended, 1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Attention(nn.Module):
    """Patch embedding, transformer blocks, mean over the tokens, linear head."""

    def __init__(
        self, width: int = 32, heads: int = 4, depth: int = 1, size: int = 32, patch: int = 8
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, stride=patch)
        self.position = nn.Parameter(torch.randn(1, (size // patch) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.transpose(torch.flatten(self.embed(x), 2), 1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


def torchvision_model(name: str, seed: int = 0) -> nn.Module:
    """A torchvision model in eval mode, its weights and BatchNorm statistics random but seeded.

    A torchvision wheel made for another build of torch cannot load its own operators; models do not need
    them, but the import does, so they are declared first.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator_name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator_name):
            library.define(f"{operator_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    DECLARED.append(library)
    import torchvision

    torch.manual_seed(seed)
    return calibrate_norms(getattr(torchvision.models, name)(weights=None))


DECLARED: list[torch.library.Library] = []  # an operator library lives as long as its object


def calibrate_norms(model: nn.Module) -> nn.Module:
    """BatchNorm statistics from a batch of images, so that activations stay in range through any depth."""
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None
    if norms:
        with torch.no_grad():
            model.train()(images(1, size=224, batch=4)[0])
    return model.eval()


def images(count: int, size: int = 32, batch: int = 4, seed: int = 0) -> Sequence[Tensor]:
    """Batches of smooth random images."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randn(count, batch, 3, size // 4, size // 4, generator=generator)
    return [F.interpolate(x, size=(size, size), mode="bilinear") for x in small]
