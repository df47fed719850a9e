"""Calibration: watch activations on real images, then choose their ranges.

`CALIBRATORS` lists the ways to choose a range. One that is appended is a choice of ``--method``, of recipes and of
``--auto``. `observation` gathers what they look at and sets the scales.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from pydantic import create_model

from repq.recipe.base import marks, setting

if TYPE_CHECKING:
    from torch import Tensor

    from repq.quant.calibration.histogram import Histogram
    from repq.quant.scaling import Scheme
    from repq.recipe import CalibrationConfig
    from repq.results import Range

O = TypeVar("O", bound="Observer")  # noqa: E741


class Observer(Protocol):
    """What a calibrator sees of one tensor, in memory that does not grow with the number of images."""

    def add(self, values: Tensor) -> None:
        """Take in the values of one batch, of any shape."""

    @classmethod
    def joint(cls: type[O], several: Sequence[O]) -> O:
        """What one observer of several tensors together would have seen."""


class Calibrator:
    """A way to choose the range of an activation.

    Attributes:
        name: its choice in settings.
        title: what reports call it.
        fields: settings of its own: name to type and `repq.recipe.base.setting`.
        for_outliers: whether it cuts off rare large values where that lowers the error; `diagnose` then advises it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    fields: ClassVar[Mapping[str, tuple[Any, Any]]] = {}
    for_outliers: ClassVar[bool] = False

    def observer(self, tensor: str, bins: int) -> Observer | None:
        """What watches one tensor, named for messages; None: the `Histogram` that every tensor has."""
        return None

    def range(self, seen: Any, scheme: Scheme, config: CalibrationConfig) -> Range:
        """The range that the tensor's integers should cover.

        Args:
            seen: the tensor's histogram, or its own observer.
            config: holds the values of ``fields``.
        """
        raise NotImplementedError


class Max(Calibrator):
    name, title = "max", "all values, none clipped"

    def range(self, seen: Histogram, scheme: Scheme, config: CalibrationConfig) -> Range:
        return seen.minimum, seen.maximum  # exact: it does not go through the bins


class Percentile(Calibrator):
    name, title, for_outliers = "percentile", "percentile of the values", True
    fields: ClassVar = {
        "percentile": (float, setting(99.99, gt=50, le=100, flag="--percentile", help="For --method percentile."))
    }

    def range(self, seen: Histogram, scheme: Scheme, config: CalibrationConfig) -> Range:
        from repq.quant.calibration.ranges import percentile_range

        return percentile_range(seen, scheme, config.percentile)


class Mse(Calibrator):
    name, title, for_outliers = "mse", "least squared error", True

    def range(self, seen: Histogram, scheme: Scheme, config: CalibrationConfig) -> Range:
        from repq.quant.calibration.ranges import mse_range

        return mse_range(seen, scheme)


class Entropy(Calibrator):
    name, title = "entropy", "least relative entropy"

    def range(self, seen: Histogram, scheme: Scheme, config: CalibrationConfig) -> Range:
        from repq.quant.calibration.entropy import entropy_range

        return entropy_range(seen, scheme)


CALIBRATORS: list[Calibrator] = [Max(), Percentile(), Mse(), Entropy()]


def calibrator(name: str) -> Calibrator:
    """The calibrator of this name."""
    return next(entry for entry in CALIBRATORS if entry.name == name)


def settings_class() -> type[CalibrationConfig]:
    """The settings of a calibration, with those of every calibrator in the list."""
    return _settings_class(tuple(CALIBRATORS))


@cache  # not forgotten: settings of two classes are never equal
def _settings_class(calibrators: tuple[Calibrator, ...]) -> type[CalibrationConfig]:
    from repq.recipe import CalibrationConfig

    fields: dict[str, Any] = {name: field for entry in calibrators for name, field in entry.fields.items()}
    made = create_model("CalibrationConfig", __base__=CalibrationConfig, **fields)
    for entry in calibrators:
        for name in entry.fields:
            noted = marks(made.model_fields[name])
            needs = noted["needs"] or f"--method {entry.name}"
            made.model_fields[name].json_schema_extra = {**noted, "needs": needs}
    return made
