"""Passes that go on at once give what one after the other gives."""

from __future__ import annotations

import threading

import pytest
import torch

from repq.machine.torch_threads import AT_ONCE, in_passes, passes_at_once, torch_threads


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_values_come_in_order_with_the_threads_and_the_gradients_of_the_caller(threads: int) -> None:
    def run(number: int) -> tuple[int, int, bool, int]:
        return number, torch.get_num_threads(), torch.is_grad_enabled(), threading.get_ident()

    with torch_threads(threads):
        at_once = passes_at_once("cpu")
        assert at_once == min(threads, AT_ONCE)
        with torch.no_grad():
            found = list(in_passes(run, range(7), "cpu"))
        assert torch.get_num_threads() == threads
        assert all(grad for _, _, grad, _ in in_passes(run, range(2), "cpu"))
    assert [number for number, *_ in found] == list(range(7))
    assert {(each, grad) for _, each, grad, _ in found} == {(threads // at_once, False)}
    assert (threading.get_ident() in {thread for *_, thread in found}) == (at_once == 1)


def test_on_a_gpu_they_follow_each_other() -> None:
    with torch_threads(4):
        assert passes_at_once("cuda:0") == 1


def test_an_error_of_a_pass_arrives() -> None:
    def run(number: int) -> int:
        if number == 2:
            raise ValueError("the third")
        return number

    with torch_threads(2), pytest.raises(ValueError, match="the third"):
        list(in_passes(run, range(9), "cpu"))
