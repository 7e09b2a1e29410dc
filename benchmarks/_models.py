"""Models by name without downloads, and parameters that hide no error.

A freshly created network hides mistakes: heads that start at zero output zero, LayerScale starts at 1e-6,
BatchNorm statistics are 0 and 1. `rerandomize` gives every parameter a value that matters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# torchvision refuses to be imported where its binary operators are missing or built for another torch: no model
# here calls them, so they are declared.
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
for _signature in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
                   "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"):  # fmt: skip
    try:
        _OPERATORS.define(_signature)
    except RuntimeError:  # declared already, by torchvision itself
        break

from eqsat_deploy.specs import load_model  # noqa: E402

IMAGE = {"image_size": 64}
WIDTH = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 128}
PYRAMID = {"depths": [1, 1, 2, 1]}
# transformers' configurations, small: (class of the configuration, class of the model, options, kind of input)
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "vit": ("ViTConfig", "ViTModel", {**IMAGE, **WIDTH}, "image"),
    "deit": ("DeiTConfig", "DeiTModel", {**IMAGE, **WIDTH}, "image"),
    "convnext": ("ConvNextConfig", "ConvNextModel", {**PYRAMID, "hidden_sizes": [16, 32, 64, 128]}, "image"),
    "swin": ("SwinConfig", "SwinModel", {"image_size": 56, "embed_dim": 16, "depths": [2, 2],
             "num_heads": [2, 4], "window_size": 7}, "image"),
    "bert": ("BertConfig", "BertModel", {**WIDTH, "vocab_size": 200}, "tokens"),
    "distilbert": ("DistilBertConfig", "DistilBertModel",
                   {"dim": 64, "n_heads": 4, "n_layers": 3, "hidden_dim": 128, "vocab_size": 200}, "tokens"),
    "clip_vision": ("CLIPVisionConfig", "CLIPVisionModel", {**IMAGE, **WIDTH, "patch_size": 16}, "image"),
    "segformer": ("SegformerConfig", "SegformerForSemanticSegmentation",
                  {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64], "decoder_hidden_size": 32}, "image"),
    "dinov2": ("Dinov2Config", "Dinov2Model", {"image_size": 56, **{k: v for k, v in WIDTH.items()
               if k != "intermediate_size"}}, "image"),
}  # fmt: skip


def load(spec: str, seed: int = 0) -> nn.Module:
    """The model of `torchvision:NAME`, `timm:NAME`, `transformers:NAME` or a factory, random weights, in eval mode."""
    torch.manual_seed(seed)
    source, _, name = spec.partition(":")
    if source == "transformers" and name in TRANSFORMERS:
        import transformers

        config, model, options, _ = TRANSFORMERS[name]
        return getattr(transformers, model)(getattr(transformers, config)(**options)).eval()  # type: ignore[no-any-return]
    if source == "torchvision":
        return _torchvision(name)
    loaded = load_model(spec)
    assert isinstance(loaded, nn.Module)
    return loaded


def bert_base() -> nn.Module:
    """BERT-base from its configuration, random weights, as many parameters as the real one has: 110 million."""
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig()).eval()


def _torchvision(name: str) -> nn.Module:
    """Without pretrained backbones, which segmentation models fetch, and without heads that only training reads."""
    import torchvision

    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": False}
    if name in torchvision.models.list_models(torchvision.models.segmentation):
        options = {"weights_backbone": None}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            module.reset_parameters()  # the heads of vision transformers begin at zero, and so would every output
    return model.eval()


def transformers_names() -> list[str]:
    """SPECs of the transformers configurations."""
    return [f"transformers:{name}" for name in TRANSFORMERS]


def timm_names() -> list[str]:
    """SPECs of the smallest timm model of every family of every module, smallest first."""
    lines = (Path(__file__).parent / "zoo_timm.txt").read_text(encoding="utf-8").splitlines()
    return [f"timm:{line}" for line in lines if line and not line.startswith("#")]


def torchvision_names() -> list[str]:
    """SPECs of every torchvision classification and segmentation model, smallest first."""
    from torchvision import models

    names = models.list_models(models) + models.list_models(models.segmentation)
    sizes = {name: models.get_model_weights(name).DEFAULT.meta["num_params"] for name in names}  # type: ignore[attr-defined]
    return [f"torchvision:{name}" for name in sorted(names, key=lambda n: (sizes[n], n))]


def inputs(spec: str, seed: int = 0, model: nn.Module | None = None, side: int | None = None) -> Any:
    """Example inputs of batch 2 where the model does not tell them itself, else None.

    With `model` and `side`, images of that height and width where the model runs on them, else of the next multiple of
    14, the patches of many transformers.
    """
    source, _, name = spec.partition(":")
    generator = torch.Generator().manual_seed(seed)
    if name == "bert_base":
        return torch.randint(0, 30000, (2, 64), generator=generator)
    if source != "transformers" and model is not None and side is not None:
        for size in (side, side + -side % 14):
            smaller = torch.randn((2, 3, size, size), generator=generator)
            if _runs(model, smaller):
                return smaller
    if source == "torchvision":
        segments = any(part in name for part in ("fcn", "deeplab", "lraspp"))
        side = 299 if name == "inception_v3" else 128 if segments else 224
        return torch.randn((2, 3, side, side), generator=generator)
    if source == "transformers" and name in TRANSFORMERS:
        options, kind = TRANSFORMERS[name][2:]
        if kind == "tokens":
            return {"input_ids": torch.randint(0, 200, (2, 16), generator=generator)}
        side = options.get("image_size", 64)
        return {"pixel_values": torch.randn((2, 3, side, side), generator=generator)}
    return None


def _runs(model: nn.Module, x: Tensor) -> bool:
    try:
        with torch.no_grad():
            model(x)
    except Exception:  # whatever somebody else's forward raises
        return False
    return True


def rerandomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and every BatchNorm statistic of `model` a value that matters, in place; returns it.

    Weights of two or more axes become normal with variance 1 / fan-in, scales lie around one (LayerScale too),
    biases, class tokens and position embeddings are no zeros. The values follow from `seed` and the names' order.
    """
    generator = torch.Generator().manual_seed(seed)
    owners = {id(p): m for m in model.modules() for p in m.parameters(recurse=False)}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.copy_(_value(parameter, owners.get(id(parameter)), generator))
        for module in model.modules():
            mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
            if isinstance(mean, Tensor) and isinstance(variance, Tensor):
                mean.copy_(_normal(mean, 0.2, generator))
                variance.copy_(_around(variance, 1.0, 0.5, generator))
    return model


def _value(parameter: Tensor, owner: nn.Module | None, generator: torch.Generator) -> Tensor:
    weighted = isinstance(owner, nn.Linear | nn.modules.conv._ConvNd) or (
        owner is not None and parameter.dim() >= 2 and type(owner).__name__.endswith(("Linear", "Conv2d", "Attention"))
    )  # fmt: skip
    constant = float(parameter.flatten()[0]) if parameter.numel() else 0.0
    is_constant = bool((parameter == constant).all())
    if parameter.dim() >= 2 and weighted:
        return _normal(parameter, parameter[0].numel() ** -0.5, generator)
    if not is_constant:  # a random start of its own; tables of embeddings start too small to be seen
        return parameter if parameter.std() > 0.1 else _normal(parameter, 0.3, generator)
    if constant == 0:
        return _normal(parameter, 0.2, generator)
    return _around(parameter, constant if abs(constant) > 0.1 else 1.0, 0.3, generator)


def _normal(like: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return (torch.randn(like.shape, generator=generator) * deviation).to(like.dtype)


def _around(like: Tensor, center: float, spread: float, generator: torch.Generator) -> Tensor:
    return (center * (1 + spread * (2 * torch.rand(like.shape, generator=generator) - 1))).to(like.dtype)


def with_statistics(model: nn.Module, data: Tensor) -> nn.Module:
    """`model` in eval mode with the statistics that its BatchNorms see on `data`, which random weights have none of."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    if norms:
        with torch.no_grad():
            model(data)
    return model.eval()


def mutate(module: nn.Module, seed: int = 0) -> str:
    """Plant an error: noise as large as the weight itself on one weight of `module`, in place. Returns its name.

    Noise and not a factor, which a normalization after the weight would undo.
    """
    generator = torch.Generator().manual_seed(seed)
    weights: list[tuple[str, Tensor]] = [
        (n, p) for n, p in module.named_parameters() if p.dim() >= 2 and p.numel() > 8
    ]
    name, weight = weights[int(torch.randint(len(weights), (1,), generator=generator))]
    with torch.no_grad():
        weight.add_(_normal(weight, float(weight.float().std()), generator))
    return name
