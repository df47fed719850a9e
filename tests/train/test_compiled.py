"""Passes that torch compiles are those that it launches one by one, to rounding."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from small_training import QUICK, SIZE, interrupted_after, same_weights, tiny_model
from torch import Tensor, nn

from repq.model import TrainOutput
from repq.train import train
from repq.train.compiled import compiled_answer
from repq.train.cuda_graphs import Answers
from repq.train.precision import computing_in
from repq.train.update import LAYOUT

CPU = torch.device("cpu")
COMPILED = QUICK.model_copy(update={"compile": True})
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler"
)


class Small(nn.Module):
    """What a detector has, in few kernels: each takes a compiler three seconds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        depthwise = nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), depthwise, nn.BatchNorm2d(8), nn.SiLU())
        self.ends = nn.Conv2d(8, 6, 1)

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.body(x),)

    def answer(self, maps: tuple[Tensor, ...]) -> TrainOutput:
        return TrainOutput(maps, self.ends(maps[0]).flatten(2).transpose(1, 2), maps[0].flatten(2), None)


def learned(model: nn.Module, answer: Callable[[Tensor], TrainOutput], steps: int = 3) -> dict[str, Tensor]:
    """The entries of a model after some steps of gradient descent."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        output = answer(torch.rand(2, 3, 32, 32, generator=generator).to(memory_format=LAYOUT))
        (output.scores.square().sum() + output.distances.square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


@needs_compiler
def test_compiled_steps_are_the_same_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.config import cpp  # takes a second and a half

    monkeypatch.setattr(cpp, "vec_isa_ok", False)  # looking for the CPU's instructions takes six compilations
    own, other = (Small().to(memory_format=LAYOUT).train() for _ in range(2))
    answers = Answers(own, CPU, compiled=True)  # type: ignore[arg-type]
    found = learned(own, answers)
    wanted = learned(other, lambda pixels: other.answer(other.features(pixels)))
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: name + text)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile all but the last step: torch traces and derives the passes; writing C++ of a detector takes minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()


@pytest.mark.usefixtures("traced")
def test_a_compiled_training_resumes_and_ends_as_another(data, tmp_path: Path) -> None:
    plain = train(tiny_model(), *data, SIZE, QUICK)
    whole = train(tiny_model(), *data, SIZE, COMPILED)
    path = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model(), *data, SIZE, COMPILED, state_path=path, progress=interrupted_after(7))
    resumed = train(tiny_model(), *data, SIZE, COMPILED, state_path=path)
    assert same_weights(whole, resumed)
    found = whole.model.state_dict()
    assert list(found) == list(plain.model.state_dict())
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: name + text)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_shape_is_compiled_once(precision: str) -> None:
    """Also where a layer is computed in float32 in the place of bfloat16."""
    model = Small().train()
    answer = compiled_answer(model)  # type: ignore[arg-type]
    torch._dynamo.utils.counters.clear()
    for size in (64, 64, 64, 96, 64, 96):
        with computing_in(precision, model, CPU):
            answer(torch.rand(2, 3, size, size)).scores.sum().backward()
    counted = torch._dynamo.utils.counters
    assert counted["stats"]["unique_graphs"] == 2
    assert not counted["graph_break"]


def test_compiled_passes_record_no_graphs() -> None:
    """Whatever is set about CUDA graphs: no device is touched before the first pass."""
    cuda = torch.device("cuda")
    assert Answers(tiny_model(), cuda).graphs
    assert not Answers(tiny_model(), cuda, compiled=True).graphs


WITHOUT = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
from test_compiled import CPU, Answers, Small
from repq.errors import TrainingError

try:
    Answers(Small(), CPU, compiled=True)(torch.rand(1, 3, 32, 32))
except TrainingError as error:
    print(error)
"""


def test_without_a_compiler_it_says_what_to_do(tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(Path(__file__).parent)],
        capture_output=True, text=True, timeout=200, env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "torch.compile cannot compile this model here" in run.stdout
    assert "no-compiler" in run.stdout and "TORCH" not in run.stdout
    assert "CXX" in run.stdout and "compile=false" in run.stdout
