"""A detector's answers in training form, by kernels that torch writes and compiles for it (``torch.compile``).

What is compiled is what a `repq.model.Detector` computes, forward and backward: not the teacher, the assignment, the
losses or the optimizer. Neither module nor parameters are wrapped, so names in files stay. Every shape of the input is
compiled by itself; after eight, torch leaves further ones as they are.

Source: https://docs.pytorch.org/docs/stable/generated/torch.compile.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from repq.errors import TrainingError
from repq.model import Detector, TrainOutput


def compiled_answer(model: Detector) -> Callable[[Tensor], TrainOutput]:
    """``model.answer(model.features(pixels))``, compiled at its first call.

    The call raises TrainingError where it cannot be compiled.
    """

    def answer(pixels: Tensor) -> TrainOutput:
        return model.answer(model.features(pixels))

    compiled = torch.compile(answer, dynamic=False)

    def call(pixels: Tensor) -> TrainOutput:
        with told_of_compiler():
            found: TrainOutput = compiled(pixels)
        return found

    return call


@contextmanager
def told_of_compiler() -> Iterator[None]:
    """Say what to do where torch fails to compile, around a forward or a backward pass: both are compiled when called.

    Raises:
        TrainingError: as above.
    """
    try:
        yield
    except RuntimeError as error:
        # They take seconds to load.
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

        if not isinstance(error, (TorchDynamoException, CppCompileError, InvalidCxxCompiler)):
            raise
        said = [line.strip() for line in str(error).partition("Set TORCH")[0].splitlines() if line.strip()]
        raise TrainingError(
            "torch.compile cannot compile this model here",
            found=" ".join(said[:2]) or type(error).__name__,
            fix="install a C++ compiler such as g++ or name one in the variable CXX (a GPU needs Triton as well), "
            "or train with --set compile=false",
        ) from error
