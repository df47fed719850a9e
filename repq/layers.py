"""Layer identity, selectors and the quantization plan.

A ``LayerId`` is the path of a layer in the *fused* model, such as ``neck.Rep_p4.conv1.rbr_reparam``. Layers are
convolutions, and products with a stored matrix. It is the one key of every table, plan, ONNX node and engine report.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NewType

from repq.errors import SelectorError

LayerId = NewType("LayerId", str)

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
PRODUCTS = frozenset({"Gemm", "MatMul"})
"""The operators of ONNX that compute layers: a product is one where its second factor is a stored matrix."""

PLAIN_GEMM = {"alpha": 1.0, "beta": 1.0, "transA": 0}
"""Attributes of a Gemm that is a product and a sum alone, which is what a layer computes."""


def has_defaults(attributes: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
    """Whether a node's attributes are these where they are given, lists as lists."""
    return all(attributes.get(key, value) == value for key, value in defaults.items())


def select(layers: Sequence[LayerId], selectors: Iterable[str]) -> tuple[LayerId, ...]:
    """Return the layers that any selector names, in the order of ``layers``.

    A selector is an exact id or a glob (``*``, ``?``, ``[…]``); it is never a substring.

    Raises:
        SelectorError: a selector matches nothing; the message names the closest ids.
    """
    chosen: set[LayerId] = set()
    for selector in selectors:
        matches = [layer for layer in layers if layer == selector or fnmatch.fnmatchcase(layer, selector)]
        if not matches:
            close = difflib.get_close_matches(selector, layers, n=3, cutoff=0.0)
            raise SelectorError(
                f"the layer selector {selector!r} matches no layer",
                found=f"{len(layers)} layers; the closest are {', '.join(close) or 'none'}",
                fix="give an exact layer id or a glob such as 'neck.*' (`repq describe` lists the ids)",
            )
        chosen.update(matches)
    return tuple(layer for layer in layers if layer in chosen)


@dataclass(frozen=True)
class QuantPlan:
    """Which layers run in INT8 and which stay in float. The two tuples are disjoint and in model order."""

    int8: tuple[LayerId, ...]
    float_: tuple[LayerId, ...] = ()

    @classmethod
    def keeping_float(cls, layers: Sequence[LayerId], selectors: Iterable[str]) -> QuantPlan:
        """Quantize every layer but those that ``selectors`` name.

        Raises:
            SelectorError: a selector matches nothing.
        """
        kept = set(select(layers, selectors))
        return cls(
            int8=tuple(layer for layer in layers if layer not in kept),
            float_=tuple(layer for layer in layers if layer in kept),
        )
