"""Inside a block torch is as it was loaded; what the caller had set, it has again afterwards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from threading import Barrier

import pytest
import torch
from callers_torch import default_type

from repq.machine.torch_settings import usual_torch

CALLERS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "float64": lambda: default_type(torch.float64),
    "bfloat16": lambda: default_type(torch.bfloat16),
    "another device": lambda: torch.device("meta"),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def seen() -> tuple[object, ...]:
    """What a program notices of torch's settings."""
    made = torch.ones(2, 2, requires_grad=not torch.is_inference_mode_enabled())
    product = made @ made
    return made.dtype, made.device, product.dtype, product.requires_grad, made.is_inference()


USUAL = seen()


@pytest.mark.parametrize("caller", CALLERS)
def test_settings_of_the_caller_do_not_count_and_stay(caller: str) -> None:
    with CALLERS[caller]():
        before = seen()
        assert before != USUAL
        for _ in range(2):
            with usual_torch():
                assert seen() == USUAL
                with usual_torch():
                    assert seen() == USUAL
                assert seen() == USUAL
            assert seen() == before
        with pytest.raises(ValueError, match="in the block"), usual_torch():
            raise ValueError("in the block")
        assert seen() == before
    assert seen() == USUAL


def test_the_type_is_the_callers_again_when_the_last_thread_is_done() -> None:
    entered, left = Barrier(2, timeout=10), Barrier(2, timeout=10)

    def run(first: bool) -> torch.dtype:
        with usual_torch():
            entered.wait()
            if first:
                left.wait()
        if not first:
            left.wait()
        return torch.ones(1).dtype

    with default_type(torch.float64), ThreadPoolExecutor(2) as pool:
        list(pool.map(run, (True, False)))
        assert torch.ones(1).dtype == torch.float64


def test_a_thread_waits_for_another_that_is_loading_torch() -> None:
    code = """if True:
        import sys, threading, time
        from repq.machine.torch_settings import usual_torch

        with usual_torch():
            assert "torch" not in sys.modules
        loading = threading.Thread(target=__import__, args=("torch",))
        loading.start()
        while "torch" not in sys.modules:
            time.sleep(0.001)
        with usual_torch():
            assert sys.modules["torch"].ones(1).dtype == sys.modules["torch"].float32
        loading.join()
    """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
