"""What INT8 may cost and where it is to run: what a run, its commands and its report share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from repq.recipe.ablation import merged
from repq.recipe.base import Config, Share, resolve, setting


def max_drop(help: str = "AP that INT8 may lose, in the engines.") -> Any:
    """The budget, as a field of every settings class that it rules. Sections of a recipe take the recipe's own."""
    return setting(0.005, flag="--max-drop", help=help)


def ap_drop(before: float, after: float) -> float | None:
    """AP that is lost, 0..1; None where there was none before: a model that finds nothing has nothing to lose."""
    return before - after if before > 0 else None


def holds(drop: float | None, max_drop: float) -> bool:
    """Whether a loss is within the bound; one that could not be measured is within a bound of 1, which is none."""
    return max_drop >= 1 if drop is None else drop <= max_drop


NOTHING_TO_LOSE = "the float model finds no object in these images (AP 0): what INT8 loses cannot be measured"


class Budget(Config):
    """What is good enough to ship, and what may be done to get there."""

    max_drop: Share = max_drop()
    min_speedup: float = setting(
        1.0, ge=0, le=1000, flag="--min-speedup",
        help="How many times as fast as FP32 INT8 has to be in an engine to be worth it there; 0: it need not.",
    )  # fmt: skip
    allow_qat: bool = setting(
        False, flag="--allow-qat", help="Train (QAT) where neither corrections nor a plan hold --max-drop."
    )


def follow_budget(values: Mapping[str, Any], sections: tuple[str, ...]) -> dict[str, Any]:
    """The values of a recipe; its sections have its ``max_drop`` unless they say otherwise."""
    found = dict(values)
    for name in sections if "max_drop" in values else ():
        own = values.get(name, {} if name == "check" else None)
        if isinstance(own, Mapping) and not {"top", "max_drop", "max_float"} & set(own):
            found[name] = {**own, "max_drop": values["max_drop"]}
    return found


def for_target(name: str | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by section, and where they do not say otherwise, those that suit a runtime (`Runtime.settings`).

    Args:
        name: of the runtime; None or an unknown one changes nothing.
    """
    target = next((entry for entry in resolve("repq.engine:ENGINES") if entry.name == name), None)
    if target is None:
        return dict(values)
    wanted = merged(target.settings, {"export": {"target": name}})
    if (values.get("export") or {}).get("nms") is not None:
        wanted = merged(wanted, {"export": {"nms": target.nms}})
    return merged(wanted, values)
