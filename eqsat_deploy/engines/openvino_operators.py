"""Recurrent layers, which OpenVINO has and its frontend does not know in an exported graph.

Each is exported as one operator of our own that is never run, and converted into one of OpenVINO's. Taken apart
instead, it is a copy of its cell for every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table

aten = torch.ops.aten
# Where OpenVINO's gates stand among torch's, which are i, f, g, o and r, z, n: f, i, c, o and z, r, h
# (LSTMSequence-5, GRUSequence-5 and RNNSequence-5 of its operation specification).
GATES = {"lstm": (1, 0, 2, 3), "gru": (1, 0, 2), "rnn_tanh": (0,), "rnn_relu": (0,)}
KINDS = tuple(GATES)  # numbered: what the frontend hands on are numbers
Layers = tuple[Tensor, list[Tensor], list[Tensor]]


@torch.library.custom_op("eqsat_deploy::recurrent", mutates_args=())
def _recurrent(
    values: Tensor, hidden: Tensor, cell: Tensor, inputs: Tensor, states: Tensor, biases: Tensor, kind: int,
    ways: int, result: int,
) -> Tensor:  # fmt: skip
    """One of the results of a layer: of all steps (batch, ways, steps, size), or the last state (batch, ways, size)."""
    raise NotImplementedError("exists for conversion only")


@_recurrent.register_fake
def _(
    values: Tensor, hidden: Tensor, cell: Tensor, inputs: Tensor, states: Tensor, biases: Tensor, kind: int,
    ways: int, result: int,
) -> Tensor:  # fmt: skip
    batch, steps, _ = values.shape
    size = states.shape[-1]
    return values.new_empty((batch, ways, size) if result else (batch, ways, steps, size))


def _layers(
    kind: str, values: Tensor, start: Sequence[Tensor], parameters: Sequence[Tensor], biased: bool, depth: int,
    dropout: float, train: bool, bidirectional: bool, batch_first: bool,
) -> Layers:  # fmt: skip
    """A recurrent network, layer by layer: results of all steps, and the last states and cells of each layer."""
    if train and dropout:
        raise ValueError("a recurrent layer with dropout that is in training mode")
    ways, each = 1 + bidirectional, 4 if biased else 2
    values = values if batch_first else values.transpose(0, 1)
    states: list[Tensor] = []
    cells: list[Tensor] = []
    for layer in range(depth):
        own = [parameters[i * each : (i + 1) * each] for i in range(layer * ways, (layer + 1) * ways)]
        hidden, cell = (s[layer * ways : (layer + 1) * ways].transpose(0, 1) for s in (start[0], start[-1]))
        weights = [torch.stack([_ordered(kind, p[i]) for p in own]) for i in (0, 1)]
        bias = torch.stack([_bias(kind, p) for p in own])
        given = (values, hidden, cell, *weights, bias, KINDS.index(kind), ways)
        steps = _recurrent(*given, 0)
        states.append(_recurrent(*given, 1).transpose(0, 1))
        if kind == "lstm":
            cells.append(_recurrent(*given, 2).transpose(0, 1))
        values = (
            steps.permute(0, 2, 1, 3).clone(memory_format=torch.contiguous_format).view(*values.shape[:2], -1)
        )
    return values if batch_first else values.transpose(0, 1), states, cells


def _ordered(kind: str, parameter: Tensor) -> Tensor:
    size = parameter.shape[0] // len(GATES[kind])
    return torch.cat([parameter[i * size : (i + 1) * size] for i in GATES[kind]])


def _bias(kind: str, parameters: Sequence[Tensor]) -> Tensor:
    """The biases of input and state, which are added up except at a GRU's new state, where the gate stands between."""
    if len(parameters) == 2:
        gates = len(GATES[kind]) + (kind == "gru")
        return parameters[1].new_zeros(gates * parameters[1].shape[1])
    of_input, of_state = (_ordered(kind, p) for p in parameters[2:])
    if kind != "gru":
        return of_input + of_state
    size = of_input.shape[0] // 3
    return torch.cat(
        [of_input[: 2 * size] + of_state[: 2 * size], of_input[2 * size :], of_state[2 * size :]]
    )


def _lstm(
    values: Tensor, start: Sequence[Tensor], parameters: Sequence[Tensor], *rest: Any
) -> tuple[Tensor, ...]:
    if start[0].shape[-1] != start[1].shape[-1]:  # OpenVINO has no projection of the state
        unrolled: tuple[Tensor, ...] = decomposition_table[aten.lstm.input](values, start, parameters, *rest)
        return unrolled
    steps, states, cells = _layers("lstm", values, start, parameters, *rest)
    return steps, torch.cat(states), torch.cat(cells)


def _one_state(kind: str) -> Callable[..., tuple[Tensor, Tensor]]:
    def network(values: Tensor, start: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        steps, states, _ = _layers(kind, values, [start], *rest)
        return steps, torch.cat(states)

    return network


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.lstm.input: _lstm,
    **{getattr(aten, kind).input: _one_state(kind) for kind in ("gru", "rnn_tanh", "rnn_relu")},
}


def extensions() -> list[Any]:
    """What teaches OpenVINO's frontend the operators of this file."""
    from openvino.frontend.pytorch import ConversionExtension

    return [
        ConversionExtension("eqsat_deploy.recurrent.default", _translate_recurrent),
    ]


def _translate_recurrent(context: Any) -> Any:
    from openvino import opset13

    values, hidden, cell, inputs, states, biases = (context.get_input(i) for i in range(6))
    number, ways, result = (int(context.get_values_from_const_input(i)) for i in (6, 7, 8))
    kind = KINDS[number]
    shape = opset13.shape_of(values)
    batch, steps = (opset13.gather(shape, opset13.constant([i]), opset13.constant(0)) for i in (0, 1))
    lengths = opset13.broadcast(steps, batch)
    size = states.get_partial_shape()[2].get_length()
    given = (lengths, inputs, states, biases, size, "bidirectional" if ways == 2 else "forward")
    if kind == "lstm":
        layer = opset13.lstm_sequence(values, hidden, cell, *given)
    elif kind == "gru":
        layer = opset13.gru_sequence(values, hidden, *given, linear_before_reset=True)
    else:
        layer = opset13.rnn_sequence(values, hidden, *given, activations=[kind.removeprefix("rnn_")])
    return [layer.output(result)]
