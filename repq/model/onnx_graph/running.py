"""Runs the steps of a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from repq.layers import LayerId
from repq.model.onnx_graph.program import Program, Step

LayerCall = Callable[[LayerId, Tensor], Tensor]


def run_program(program: Program, inputs: Sequence[Tensor], layer: LayerCall | None = None) -> list[Tensor]:
    values: list[Any] = [None] * program.count
    for number, tensor in program.constants.items():
        values[number] = tensor
    for number, tensor in zip(program.inputs, inputs, strict=True):
        values[number] = tensor
    run_steps(program.steps, values, layer)
    return [values[number] for number in program.outputs]


def run_steps(steps: Sequence[Step], values: list[Any], layer: LayerCall | None = None) -> None:
    """Run steps one after the other; ``values`` are those by number, and what nobody reads any more is dropped."""
    for step in steps:
        if step.layer is not None and layer is not None:
            values[step.writes[0]] = layer(step.layer, values[step.reads[0]])
        else:
            result = step.run(*[values[number] for number in step.reads])
            if isinstance(result, Tensor):
                values[step.writes[0]] = result
            else:
                for number, tensor in zip(step.writes, result, strict=False):
                    values[number] = tensor
        for number in step.frees:
            values[number] = None


_ = torch
