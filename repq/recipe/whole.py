"""The recipe: the settings of all stages in one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field, create_model, model_validator

from repq.recipe.ablation import merged
from repq.recipe.base import AnyPath, Config, Device, ImageSize, Name, Seed, resolve, setting
from repq.recipe.budget import Budget, follow_budget, for_target
from repq.recipe.data import DataConfig, EvalConfig, GraphConfig
from repq.recipe.deployment import EngineName


@dataclass(frozen=True)
class Section:
    """A part of a recipe that belongs to one stage; an optional one is absent unless the recipe names it."""

    kind: type[Config]
    optional: bool = False


class Listed(Protocol):
    """What the recipe needs to know of a stage (`repq.stages.stage.Stage`)."""

    @property
    def sections(self) -> Mapping[str, Section]: ...
    @property
    def reads(self) -> tuple[str, ...]: ...
    @property
    def check(self) -> Callable[[Recipe], None]: ...


class Recipe(Budget):
    """The whole job: what concerns all stages. `recipe_class` adds the sections of the stages.

    ``weights`` starts from a checkpoint, ``train`` trains first; one of the two is needed.
    """

    name: Name = setting(help="Name of the run, and of its folder.")
    data: DataConfig = setting(help="The data set.")
    imgsz: ImageSize = setting((640, 640), help="Height and width of the network input; one number for a square.")
    weights: AnyPath | None = setting(None, help="Checkpoint or float ONNX file to start from.")
    graph: GraphConfig = setting(GraphConfig(), help="What the file of ``weights`` does not say of itself.")
    target: EngineName | None = setting(
        None, help="The runtime to ship: scheme, scales, types and lint's rules follow it where they are not given."
    )
    device: Device = setting("cpu", help="Where torch runs: auto, cpu, cuda, cuda:1 …")
    seed: Seed = setting(0, help="Seed of everything random.")
    eval: EvalConfig = setting(EvalConfig(), help="How accuracy is measured, in every stage.")

    @model_validator(mode="before")
    @classmethod
    def _as_the_target_wants(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return _follow_seed(follow_budget(for_target(values.get("target"), values), ("plan", "check")))

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for stage in stages():
            stage.check(self)
        return self

    if TYPE_CHECKING:

        def __getattr__(self, section: str) -> Any: ...


def _follow_seed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe; what it draws has its seed unless it says otherwise, but for the drawn data set."""
    if "seed" not in values:
        return dict(values)
    own: dict[str, Any] = {"seed": values["seed"]}
    given = [name for name in ("sensitivity", "plan") if isinstance(values.get(name), Mapping)]
    return merged({"ptq": {"calibration": own}, **dict.fromkeys(given, own)}, values)


def stages() -> Sequence[Any]:
    """The stages as they are listed now, those that read every artifact last."""
    listed: list[Listed] = resolve("repq.stages:STAGES")
    return sorted(listed, key=lambda stage: "*" in stage.reads)


def recipe_class() -> type[Recipe]:
    """The recipe with a section for every stage that is listed."""
    return _recipe_class(tuple(stages()))


@functools.cache
def _recipe_class(listed: tuple[Listed, ...]) -> type[Recipe]:
    fields: dict[str, Any] = {}
    for stage in listed:
        for name, section in stage.sections.items():
            made_anew = Field(default_factory=section.kind)  # with the lists as they are then
            fields[name] = (section.kind | None, None) if section.optional else (section.kind, made_anew)
    made: type[Recipe] = create_model("Recipe", __base__=Recipe, __doc__=Recipe.__doc__, **fields)
    return made
