"""A quantization plan as a small YAML file that a person can read and edit.

    model: yolov6lite_s
    float:                                # these layers stay in float, all others run in INT8
      - backbone.lite_effiblock_2.0.conv_dw_2.block.conv   # head.snr 3.1, 0.2 % of the multiply-adds
      - detect.stems.*                    # globs are allowed

Every layer that the file does not name runs in INT8.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from repq.errors import RecipeError
from repq.files import write_text
from repq.layers import LayerId, QuantPlan
from repq.reading import read_yaml

_KEYS = ("model", "float")
_HEAD = "# Layers (ids or globs) that stay in float; every other layer runs in INT8.\n"


def write_plan(
    path: Path, plan: QuantPlan, model: str, *, remarks: Mapping[LayerId, str] | None = None, title: str = ""
) -> None:
    """Write the plan, atomically.

    Args:
        model: the model that it is for.
        remarks: a comment behind a layer, such as why it is there.
        title: a comment at the top, such as how the plan was found.
    """
    lines = [*(f"# {line}\n" for line in title.splitlines()), _HEAD, f"model: {_scalar(model)}\n"]
    lines.append("float:\n" if plan.float_ else "float: []\n")
    width = max((len(layer) for layer in plan.float_), default=0)
    for layer in plan.float_:
        remark = " ".join((remarks or {}).get(layer, "").split())
        text = f"  - {_scalar(layer):<{width}}" + (f"  # {remark}" if remark else "")
        lines.append(text.rstrip() + "\n")
    write_text(path, "".join(lines))


@dataclass(frozen=True)
class PlanFile:
    """What a plan file says, before it meets a model.

    Attributes:
        model: the model that it is for; None: any.
        selectors: ids or globs of the layers that stay in float.
    """

    path: Path
    model: str | None
    selectors: tuple[str, ...]

    def plan(self, layers: Sequence[LayerId], model: str | None = None) -> QuantPlan:
        """The plan for a model with these layers.

        Raises:
            RecipeError: it is for another model than ``model``.
            SelectorError: a layer or glob matches nothing; the message names the closest ids.
        """
        if None not in (self.model, model) and self.model != model:
            raise RecipeError(
                f"{self.path} is a plan for {self.model}", found=f"the model {model}", fix="make a plan for this model"
            )
        return QuantPlan.keeping_float(layers, self.selectors)


def read_plan(path: Path) -> PlanFile:
    """Read a plan file.

    Raises:
        RecipeError: it cannot be read, or has an unknown key or a value of another kind.
    """
    values = read_yaml(path, error=RecipeError)
    for key in values:
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key)[:60], _KEYS, n=1, cutoff=0.0)
            raise RecipeError(
                f"{path} is no valid plan",
                found=f"the unknown key {str(key)!r}",
                fix=f"the keys are {' and '.join(_KEYS)}; the closest is {close[0]!r}",
            )
    selectors, model = values.get("float"), values.get("model")
    if not isinstance(selectors, list) or not all(isinstance(entry, str) for entry in selectors):
        raise RecipeError(
            f"{path} is no valid plan",
            found="no list of layers under 'float'" if "float" in values else "no key 'float'",
            fix="write 'float: []', or 'float:' and one line '  - LAYER' for each layer that stays in float",
        )
    return PlanFile(path, None if model is None else str(model), tuple(selectors))


def _scalar(text: str) -> str:
    """A string as YAML, quoted where it must be."""
    return yaml.safe_dump(text, width=10_000).removesuffix("...\n").strip()
