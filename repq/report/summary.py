"""All that one run measured, as one frozen value: the input of every form of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from repq.recipe import Budget, engine_title
from repq.report.blocks import Block
from repq.results import (
    Accuracy,
    BenchReport,
    CheckReport,
    EngineDescription,
    Environment,
    ExportReport,
    FusionReport,
    Pictures,
    PlanReport,
    PruneReport,
    PtqReport,
    QatReport,
    Result,
    Sensitivity,
    TrainReport,
    Verdict,
)

R = TypeVar("R", covariant=True)


@dataclass(frozen=True)
class Key(Generic[R]):
    """A result in ``ReportSummary.results``: the stage that gives it, and its type."""

    stage: str
    type: type[R]

    def parse(self, value: Any) -> R:
        """The result, or its plain values read back.

        Raises:
            ValueError: they are of another type.
        """
        try:
            parsed: R = TypeAdapter(self.type).validate_python(value)
        except ValidationError as error:
            raise ValueError(f"the result of {self.stage!r} is not what the report needs: {error}") from None
        return parsed


TRAIN = Key("train", TrainReport)
PRUNE = Key("prune", PruneReport)
FUSE = Key("fuse", FusionReport)
SENSITIVITY = Key("sensitivity", Sensitivity)
PLAN = Key("plan", PlanReport)
PTQ = Key("ptq", PtqReport)
QAT = Key("qat", QatReport)
EXPORT = Key("export", ExportReport)  # of the INT8 file that TensorRT gets
BUILD = Key("build", dict[str, EngineDescription])  # by ENGINE-VARIANT, such as openvino-int8
EVAL = Key("eval", dict[str, Accuracy])  # likewise; the engine torch is the model itself, or its simulation
CHECK = Key("check", CheckReport)
BENCH = Key("bench", BenchReport)
MACHINES = Key("machines", dict[str, BenchReport])  # timings of several machines, by the machine's name
SIZES = Key("sizes", dict[str, int])  # bytes on disk, by what it is
PICTURES = Key("pictures", Pictures)
VERDICT = Key("verdict", Verdict)  # which engine to ship


class ReportSummary(Result):
    """What a report is made of. All but the title, the date and the environment may be absent.

    Attributes:
        max_drop: AP that INT8 may lose.
        min_speedup: how many times as fast as FP32 INT8 has to be.
        target: the runtime that the run was for; None: for all alike.
        plan_command: the command that quantizes with the plan.
        created: ISO date of the run, given by the caller, so that equal input gives equal bytes.
        results: by stage; those that sections know are checked for their type, None is left out.
        manifests: the manifests of the run's artifacts, as they are on disk.
    """

    title: str
    created: str
    environment: Environment
    recipe: str | None = None
    model: str | None = None
    data: str | None = None
    imgsz: tuple[int, int] | None = None
    max_drop: float = Budget().max_drop
    min_speedup: float = Budget().min_speedup
    target: str | None = None
    plan_command: str | None = None
    results: Mapping[str, Any] = Field(default_factory=dict)
    manifests: tuple[dict[str, Any], ...] = ()

    @field_validator("results", mode="before")
    @classmethod
    def _typed(cls, results: Mapping[str, Any]) -> dict[str, Any]:
        from repq.report.sections import SECTIONS

        keys = {key.stage: key for section in SECTIONS for key in (*section.needs, *section.uses)}
        return {
            stage: keys[stage].parse(value) if stage in keys else value
            for stage, value in results.items()
            if value is not None
        }

    def __getitem__(self, key: Key[R]) -> R:
        """The result of a stage.

        Raises:
            KeyError: there is none.
        """
        found: R = self.results[key.stage]
        return found

    def subject(self, section: Section) -> str:
        """The model, the engines and the threads that a section is about, for its title."""
        keys = {key.stage for key in (*section.needs, *section.uses)} & set(self.results)
        bench = self.get(BENCH)
        parts = [self.model or ""] if keys else []
        if "machines" not in keys and keys & {"build", "eval", "check", "bench"}:
            built = self.get(BUILD) or {}
            names = [*(row.engine for row in built.values()), *(row.engine for row in (bench.rows if bench else ()))]
            parts.append(", ".join(engine_title(name) for name in dict.fromkeys(names)))
        if "machines" not in keys and bench is not None and "bench" in keys:
            threads = dict.fromkeys(str(row.threads) for row in bench.rows)
            parts.append(f"{' and '.join(threads)} thread{'s' * (list(threads) != ['1'])}")
        return " · ".join(filter(None, parts))

    def get(self, key: Key[R]) -> R | None:
        """The result of a stage; None where there is none."""
        return self.results.get(key.stage)


@dataclass(frozen=True)
class Section:
    """One part of the report.

    Attributes:
        name: its id in links.
        blocks: what it shows of a summary; nothing where it has nothing to say.
        needs: results without which it is left out.
        uses: results that it shows where they are there.
        short: its title in the list of sections; default: its title.
    """

    name: str
    title: str
    blocks: Callable[[ReportSummary], Sequence[Block]]
    needs: tuple[Key[Any], ...] = ()
    uses: tuple[Key[Any], ...] = ()
    short: str = ""


FilledSection = tuple[Section, Sequence[Block]]
