"""FP32 against INT8, engine by engine: the figures of the headline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from repq.recipe import engine_title as engine_title
from repq.report.blocks import Level
from repq.report.numbers import difference
from repq.report.summary import BENCH, BUILD, EVAL, PTQ, QAT, Key, ReportSummary
from repq.results import (
    UNKNOWN,
    Accuracy,
    BenchRow,
    Contender,
    EngineDescription,
    LayerPrecision,
    ModelInfo,
    change_interval,
)

NOT_INT8_BAD_SHARE = 0.25

TORCH = "torch"
_VARIANT_TITLES = {"float32": "FP32", "float16": "FP16", "int8": "INT8"}


def variant_title(variant: str) -> str:
    return _VARIANT_TITLES.get(variant, variant)


def built_title(name: str) -> str:
    """ENGINE-VARIANT in words: ``OpenVINO INT8``."""
    engine, variant = _parts(name)
    return f"{engine_title(engine)} {variant_title(variant)}"


def row_title(row: ModelInfo | Contender) -> str:
    """The engine and the variant of a model in words."""
    return f"{engine_title(row.engine)} {variant_title(row.variant)}"


def names_of(summary: ReportSummary, key: Key[dict[str, Any]]) -> list[tuple[str, str]]:
    """Engine and variant of results that are kept by ENGINE-VARIANT."""
    return [_parts(name) for name in summary.get(key) or ()]


def _parts(name: str) -> tuple[str, str]:
    engine, _, variant = name.rpartition("-")
    return engine, variant


@dataclass(frozen=True)
class Comparison:
    """FP32 and INT8 of one engine.

    Attributes:
        max_drop: AP that INT8 may lose.
        min_speedup: how many times as fast as FP32 INT8 has to be.
        float_engine: where the FP32 accuracy was measured: this engine, or torch where the engine has none.
        float_latency, int8_latency: rows of one and the same setting, inference only.
        int8_layers: executed in INT8; None: there is no engine, or it does not tell of any layer.
        not_int8: layers that the plan has in INT8 and the engine executed otherwise.
        unreported: layers that the plan has in INT8 and of which the engine does not tell how it executed them.
    """

    engine: str
    float_accuracy: Accuracy | None
    float_engine: str
    int8_accuracy: Accuracy | None
    float_latency: BenchRow | None
    int8_latency: BenchRow | None
    float_size_bytes: int | None
    int8_size_bytes: int | None
    int8_layers: int | None
    layers: int | None
    max_drop: float
    min_speedup: float
    not_int8: tuple[LayerPrecision, ...] = ()
    unreported: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return "torch (simulation)" if self.engine == TORCH else engine_title(self.engine)

    def metric_change(self, metric: str = "ap") -> float | None:
        """INT8 minus FP32: negative is a loss."""
        if self.float_accuracy is None or self.int8_accuracy is None:
            return None
        return difference(self.float_accuracy.defined(metric), self.int8_accuracy.defined(metric))

    @property
    def ap_interval(self) -> tuple[float, float] | None:
        """What that of AP may be on other images of the kind (`repq.results.change_interval`)."""
        if self.float_accuracy is None or self.int8_accuracy is None:
            return None
        return change_interval(self.float_accuracy, self.int8_accuracy)

    @property
    def in_noise(self) -> bool:
        """Whether these images can't tell the change of AP from none."""
        return self.ap_interval is not None and self.ap_interval[0] <= 0 <= self.ap_interval[1]

    @property
    def ap_change(self) -> float | None:
        """INT8 AP minus FP32 AP."""
        return self.metric_change()

    @property
    def speedup(self) -> float | None:
        """FP32 median latency over INT8 median latency."""
        if self.float_latency is None or self.int8_latency is None:
            return None
        before, after = self.float_latency.latency_ms_median, self.int8_latency.latency_ms_median
        return before / after if after > 0 else None

    @property
    def size_ratio(self) -> float | None:
        """INT8 bytes over FP32 bytes."""
        if not self.float_size_bytes or self.int8_size_bytes is None:
            return None
        return self.int8_size_bytes / self.float_size_bytes

    @property
    def accuracy_level(self) -> Level:
        if self.ap_change is None:
            return ""
        if -self.ap_change <= self.max_drop:
            return "good"
        return "warn" if self.in_noise else "bad"

    @property
    def speed_level(self) -> Level:
        if self.speedup is None:
            return ""
        if self.speedup < self.min_speedup:
            return "warn"
        return "good" if self.speedup >= 1 else ""  # slower, as it may be

    @property
    def precision_level(self) -> Level:
        if self.layers is None:
            return ""
        if not self.not_int8 and not self.unreported:
            return "good"
        return "bad" if len(self.not_int8) > NOT_INT8_BAD_SHARE * self.layers else "warn"

    @property
    def level(self) -> Level:
        return worst(self.accuracy_level, self.speed_level, self.precision_level)

    def figures(self) -> dict[str, Any]:
        """The headline as plain values, for the JSON form."""
        return {
            "engine": self.engine,
            "ap_float": self.float_accuracy.defined() if self.float_accuracy else None,
            "ap_float_engine": self.float_engine if self.float_accuracy else None,
            "ap_int8": self.int8_accuracy.defined() if self.int8_accuracy else None,
            "ap_change": self.ap_change,
            "ap_change_interval": self.ap_interval,
            "latency_ms_float": self.float_latency.latency_ms_median if self.float_latency else None,
            "latency_ms_int8": self.int8_latency.latency_ms_median if self.int8_latency else None,
            "speedup": self.speedup,
            "size_bytes_float": self.float_size_bytes,
            "size_bytes_int8": self.int8_size_bytes,
            "layers": self.layers,
            "layers_int8": self.int8_layers,
            "layers_not_int8": [layer.layer for layer in self.not_int8],
            "level": self.level,
        }


def worst(*levels: Level) -> Level:
    """The most severe of some levels."""
    order: tuple[Level, ...] = ("", "muted", "good", "warn", "bad")
    return max(levels, key=order.index, default="")


def comparisons(summary: ReportSummary) -> tuple[Comparison, ...]:
    """Compare FP32 with INT8 in every engine that has INT8 results; torch's simulation comes first."""
    names = [*names_of(summary, EVAL), *names_of(summary, BUILD)]
    names += [(row.engine, str(row.variant)) for row in _bench_rows(summary)]
    engines = dict.fromkeys(engine for engine, variant in names if variant == "int8")
    simulated = TORCH in engines or summary.get(PTQ) is not None
    others = [engine for engine in engines if engine != TORCH]
    return tuple(_compare(summary, engine) for engine in ([TORCH] if simulated else []) + others)


def accuracy_of(summary: ReportSummary, engine: str, variant: str) -> Accuracy | None:
    """The measured accuracy; torch's also come with the report of the quantization."""
    if found := (summary.get(EVAL) or {}).get(f"{engine}-{variant}"):
        return found
    ptq, qat = summary.get(PTQ), summary.get(QAT)
    if engine != TORCH or ptq is None:
        return None
    quantized = ptq.accuracy_quantized if qat is None else qat.accuracy
    return {"float32": ptq.accuracy_float, "int8": quantized}.get(variant)


def _compare(summary: ReportSummary, engine: str) -> Comparison:
    own_float = accuracy_of(summary, engine, "float32")
    float_row, int8_row = _latencies(summary, engine)
    built: Mapping[str, EngineDescription] = summary.get(BUILD) or {}
    float_engine, int8_engine = built.get(f"{engine}-float32"), built.get(f"{engine}-int8")
    not_int8, unreported = _strayed(summary, int8_engine)
    return Comparison(
        engine=engine,
        float_accuracy=own_float or accuracy_of(summary, TORCH, "float32"),
        float_engine=engine if own_float else TORCH,
        int8_accuracy=accuracy_of(summary, engine, "int8"),
        float_latency=float_row,
        int8_latency=int8_row,
        float_size_bytes=float_engine.size_bytes if float_engine else float_row.size_bytes if float_row else None,
        int8_size_bytes=int8_engine.size_bytes if int8_engine else int8_row.size_bytes if int8_row else None,
        int8_layers=int8_engine.int8_layers if int8_engine else None,
        layers=len(int8_engine.layers) if int8_engine else None,
        max_drop=summary.max_drop,
        min_speedup=summary.min_speedup,
        not_int8=not_int8,
        unreported=unreported,
    )


def _bench_rows(summary: ReportSummary) -> tuple[BenchRow, ...]:
    bench = summary.get(BENCH)
    return bench.rows if bench is not None else ()


def _latencies(summary: ReportSummary, engine: str) -> tuple[BenchRow | None, BenchRow | None]:
    """The first inference setting that was timed for both variants."""
    rows = [row for row in _bench_rows(summary) if row.engine == engine]
    rows = [row for row in rows if row.scope == "infer"] or rows
    for quick in (row for row in rows if row.variant == "int8"):
        for slow in (row for row in rows if row.variant == "float32"):
            if (slow.batch, slow.threads, slow.scope) == (quick.batch, quick.threads, quick.scope):
                return slow, quick
    return None, None


def _strayed(
    summary: ReportSummary, description: EngineDescription | None
) -> tuple[tuple[LayerPrecision, ...], tuple[str, ...]]:
    ptq = summary.get(PTQ)
    if description is None or ptq is None:
        return (), ()
    planned = {layer.layer for layer in ptq.layers if layer.precision == "int8"}
    told = {layer.layer for layer in description.layers if layer.precision != UNKNOWN}
    strayed = (layer for layer in description.layers if layer.layer in planned & told and layer.precision != "int8")
    unreported = (layer.layer for layer in ptq.layers if layer.layer in planned - told)
    return tuple(strayed), tuple(unreported)
