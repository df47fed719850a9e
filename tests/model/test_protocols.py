"""What blocks can do is found out by protocols, on every Python version."""

from __future__ import annotations

import inspect

import pytest
from torch import nn

from repq.model import Foldable, Plain, Searched, algebra, build

PROTOCOLS = [
    found for _, found in inspect.getmembers(algebra, inspect.isclass) if getattr(found, "_is_runtime_protocol", False)
]


def test_all_protocols_are_here() -> None:
    assert set(PROTOCOLS) == {Foldable, Plain, Searched}


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda found: found.__name__)
def test_they_ask_for_methods_alone(protocol: type) -> None:
    """From Python 3.12 on ``isinstance`` finds neither submodules nor parameters, which hide behind ``__getattr__``."""
    own = {name for name in vars(protocol) if not name.startswith("_")}
    assert own and not getattr(protocol, "__annotations__", {})
    assert all(inspect.isfunction(vars(protocol)[name]) for name in own)


@pytest.mark.parametrize(
    ("name", "protocol"), [("yolov6n_v2", Foldable), ("yolov6n_v2_hs", Searched), ("yolov6n_v2_opt", Plain)]
)
def test_a_static_look_finds_the_blocks(name: str, protocol: type) -> None:
    """The lookup of Python 3.12, whatever runs the test."""
    wanted = [method for method in vars(protocol) if not method.startswith("_")]

    def has(module: nn.Module) -> bool:
        return all(inspect.getattr_static(module, method, None) is not None for method in wanted)

    modules = list(build(name, 2).modules())
    found = [module for module in modules if isinstance(module, protocol)]
    assert found and found == [module for module in modules if has(module)]
