"""Values of constant e-classes, and the parameters of the model that they are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eqsat_deploy.freeze import Space
from eqsat_deploy.language import parameter
from eqsat_deploy.lower import Lowered


class Constants:
    """Values of constant classes, each evaluated once in float64 and rounded to its class's dtype.

    What was a parameter of the model, or is made of one, is an `nn.Parameter`, trainable where one of these was; what
    was a buffer stays a plain tensor. One class is one tensor, so what was tied stays tied.
    """

    def __init__(self, lowered: Lowered, space: Space) -> None:
        self.lowered, self.space = lowered, space
        self.parameters = dict(lowered.captured.module.named_parameters(remove_duplicate=False))
        self._exact: dict[int, Tensor] = {}
        self._rounded: dict[int, Tensor] = {}
        self._names: dict[int, tuple[str, ...]] = {}

    def __getitem__(self, number: int) -> Tensor:
        if number not in self._rounded:
            known, exact = self.space.classes[number], self._evaluate(number)
            dtype = known.dtype if known.shape != () or known.dtype != torch.float64 else exact.dtype
            value = exact.to(dtype or exact.dtype).clone()
            made_of = [self.parameters[name] for name in self.names(number) if name in self.parameters]
            if made_of and value.is_floating_point():
                value = nn.Parameter(value, requires_grad=any(p.requires_grad for p in made_of))
            self._rounded[number] = value
        return self._rounded[number]

    def names(self, number: int) -> tuple[str, ...]:
        """Names of the model's parameters in the term of a constant class, depth first, each once."""
        if number not in self._names:
            term = self.space.terms[number]
            if term.operator is parameter:
                self._names[number] = (self.lowered.parameters[term.attributes[0]][0],)
            else:
                self._names[number] = tuple(dict.fromkeys(n for o in term.operands for n in self.names(o)))
        return self._names[number]

    def path(self, number: int) -> str:
        """Where the module that holds a weight lives: `layer1.0.conv1` for `layer1.0.conv1.weight`, and
        `self_attention.in_proj` for `self_attention.in_proj_weight`."""
        name = next(iter(self.names(number)), "constant")
        parent, _, leaf = name.rpartition(".")
        own = leaf.removesuffix("weight").rstrip("_")
        return ".".join(part for part in (parent, own) if part) or leaf

    def _evaluate(self, number: int) -> Tensor:
        if number not in self._exact:
            term = self.space.terms[number]
            if term.operator is parameter:
                value: Tensor = self.lowered.parameters[term.attributes[0]][1].detach()
            else:
                operands = tuple(map(self._evaluate, term.operands))
                value = term.operator.body(*term.operator.join(operands, term.attributes))
            self._exact[number] = value.double() if value.is_floating_point() else value
        return self._exact[number]
