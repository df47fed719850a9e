"""What each setting gains, and the choice of the best ones, on images of the train split alone.

A trial quantizes the model with some settings and compares its head's output with the float model's on images that it
was not calibrated on (``head_snr_db``: no labels, and smooth where AP on some hundred images jumps). First come the
calibration methods and the corrections of inputs alone, with weights in float: before they are corrected, weights may
cost so much that what inputs cost does not show. Then, with weights in INT8, the other corrections, one after the
other, each on top of what was kept so far. One that changes the engine's work has to gain more than one that only
changes numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from repq.distributed import told_by_first
from repq.errors import QuantizationError
from repq.model import Detector
from repq.progress import Progress, silent
from repq.quant.calibration import CALIBRATORS
from repq.quant.calibration.observation import Groups, Images
from repq.quant.corrections import CORRECTIONS, Correction, asked_for
from repq.quant.ptq import (
    Observed,
    QuantizedModel,
    add_last,
    apply,
    first_images,
    observe_corrected,
    observe_model,
    on_device_of,
    with_rows,
)
from repq.quant.similarity import head_snr_db, outputs_of
from repq.quant.state import quantized_layers, switched
from repq.recipe import CorrectionConfig, PtqConfig
from repq.results import PtqTrial
from repq.results.base import gained

FREE_GAIN_DB = 0.25
"""What a correction has to gain that costs nothing in the engine."""

COSTLY_GAIN_DB = 1.0
"""What a correction has to gain that gives the engine more to do."""

WITH_WEIGHTS = "+ weights in INT8"
"""The trial between those of inputs alone and the others."""

ApOnTrain = Callable[[Detector], float]


@dataclass(frozen=True)
class _Result:
    index: int  # of its trial
    config: PtqConfig
    outcome: QuantizedModel
    snr: float


@dataclass
class _Bench:
    """Runs trials and remembers what they have in common."""

    fused: Detector
    batches: Iterable[Images]
    judging: Sequence[Tensor]
    progress: Progress
    groups: Groups
    trials: list[PtqTrial] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._wanted = outputs_of(self.fused, self.judging)
        self._observed: dict[Any, Observed] = {}

    def observed(self, config: PtqConfig) -> Observed:
        """What the calibration images show of the model, with what acts before; each is run once."""
        before = asked_for(config.correct, "before")
        key = str(before)
        if key not in self._observed:
            self._observed[key] = (
                observe_corrected(self.observed(_plain(config)), self.batches, config, for_all=True) if before else
                observe_model(self.fused, self.batches, config, self.progress, groups=self.groups, for_all=True)
            )  # fmt: skip
        return self._observed[key]

    def run(self, name: str, config: PtqConfig, base: _Result | None, *, inputs_alone: bool = False) -> _Result:
        """Quantize with these settings, which add something to those of ``base``, and write the trial down.

        Args:
            inputs_alone: judge it with weights in float.
        """
        started = time.perf_counter()
        observed, last = self.observed(config), None if base is None else _added_last(base.config, config)
        if base is None or last is None:
            outcome = apply(observed, config, rows=False)
        else:
            outcome = add_last(with_rows(base.outcome, observed), observed, config, last)
        return self._judged(name, config, outcome, base, started, inputs_alone=inputs_alone)

    def with_weights(self, result: _Result) -> _Result:
        """The trial once more, with weights in INT8 where they were not."""
        return self._judged(WITH_WEIGHTS, result.config, result.outcome, result, time.perf_counter())

    def _judged(
        self, name: str, config: PtqConfig, outcome: QuantizedModel, base: _Result | None, started: float, *,
        inputs_alone: bool = False,
    ) -> _Result:  # fmt: skip
        off = [layer.weight_quantizer for layer in quantized_layers(outcome.model).values()] if inputs_alone else []
        with switched(dict.fromkeys(off, False)):
            # What processes decide has to be the same on hosts that round differently.
            snr = told_by_first(lambda: head_snr_db(outcome.model, self.judging, self._wanted))
        gain, seconds = None if base is None else gained(snr, base.snr), time.perf_counter() - started
        self.trials.append(
            PtqTrial(name=name, head_snr_db=snr, gain_db=gain, kept=False, seconds=seconds, inputs_alone=inputs_alone)
        )
        return _Result(len(self.trials) - 1, config, outcome, snr)

    def outcome_of(self, result: _Result) -> QuantizedModel:
        """What a trial made, with the rows that most are spared."""
        return with_rows(result.outcome, self.observed(result.config))

    def keep(self, result: _Result, ap: float | None = None) -> None:
        """Mark a trial as one that others build on."""
        self.trials[result.index] = self.trials[result.index].model_copy(update={"kept": True, "ap_train": ap})


def quantize_in_steps(
    fused: Detector, batches: Iterable[Images], config: PtqConfig, progress: Progress = silent, *, groups: Groups = ()
) -> QuantizedModel:
    """``quantize``, with what each correction that ``config`` asks for adds, one on top of the other, as trials.

    The SNR is on calibration images. Arguments and errors are those of ``quantize``.
    """
    judging = first_images(on_device_of(fused, batches), config.correct.images)
    bench = _Bench(fused, batches, judging, progress, groups)
    result = bench.run(config.calibration.method, _plain(config), None)
    bench.keep(result)
    for correction, value in asked_for(config.correct):
        result = bench.run(_name(correction, value), _with(result.config, correction, value), result)
        bench.keep(result)
    return replace(bench.outcome_of(result), config=config, trials=tuple(bench.trials))


def quantize_at_best(
    fused: Detector,
    batches: Iterable[Images],
    held_out: Sequence[Tensor],
    config: PtqConfig,
    *,
    ap_on_train: ApOnTrain | None = None,
    layers_alone: bool = False,
    progress: Progress = silent,
    groups: Groups = (),
) -> QuantizedModel:
    """Choose calibration method and corrections, and quantize with them. Scheme and plan are those of ``config``.

    Args:
        fused: a fused model; it is not changed.
        batches: what is calibrated on; it is gone through several times.
        held_out: other images of the train split, on which the settings are compared.
        groups: as for ``quantize``.
        layers_alone: leave out corrections that mislead where some layers run in float for a while
            (`Correction.by_layer`).
        ap_on_train: AP of a model on labelled images of the train split. It is noted for the first and the last trial
            with weights in INT8, so that one sees what the corrections are worth; it decides nothing.

    Raises:
        QuantizationError: as ``quantize``; or no images were held out.
    """
    if not held_out:
        raise QuantizationError(
            "settings cannot be chosen", found="no images to compare them on", fix="give more calibration images"
        )
    bench, plain = _Bench(fused, batches, held_out, progress, groups), _plain(config)
    tried = [entry for entry in CORRECTIONS if entry.tries and (entry.by_layer or not layers_alone)]
    best = max((bench.run(name, _by(plain, name), None, inputs_alone=True) for name in _methods()), key=_snr)
    bench.keep(best)
    first = bench.with_weights(_improved(bench, best, tried, inputs_alone=True))
    bench.keep(first)
    best = _improved(bench, first, tried, inputs_alone=False)
    if ap_on_train is not None:
        for result in {first.index: first, best.index: best}.values():
            bench.keep(result, ap_on_train(result.outcome.model))
    # what was chosen, as one could have asked for it
    chosen = best.config.model_copy(update={"auto": False, "calibration": best.config.calibration.of_the_method()})
    return replace(bench.outcome_of(best), config=chosen, trials=tuple(bench.trials))


def _improved(bench: _Bench, best: _Result, tried: Iterable[Correction], *, inputs_alone: bool) -> _Result:
    """The best with the first value that gains enough of each correction of this kind, by its best method."""
    methods: Sequence[str | None] = _methods() if inputs_alone else [None]
    for correction in tried:
        if correction.inputs_alone != inputs_alone or not _applies(correction, bench, best):
            continue
        for value in correction.tries:
            configs = {
                _name(correction, value, method): _by(_with(best.config, correction, value), method)
                for method in methods
            }
            found = max(
                (bench.run(name, config, best, inputs_alone=inputs_alone) for name, config in configs.items()), key=_snr
            )
            if gained(found.snr, best.snr) >= (COSTLY_GAIN_DB if correction.cost else FREE_GAIN_DB):
                best = found
                bench.keep(best)
                break
    return best


def _applies(correction: Correction, bench: _Bench, best: _Result) -> bool:
    return told_by_first(lambda: correction.applies(bench.fused, best.outcome.model))


def _methods() -> list[str]:
    return [entry.name for entry in CALIBRATORS]


def _snr(result: _Result) -> float:
    return result.snr


def _added_last(base: PtqConfig, config: PtqConfig) -> Correction | None:
    """The one correction that ``config`` has beside those of ``base``, if it acts after all of them."""
    added = asked_for(config.correct)[-1:]
    for correction, value in added:
        if correction.when == "after" and _with(base, correction, value) == config:
            return correction
    return None


def _plain(config: PtqConfig) -> PtqConfig:
    return config.model_copy(update={"correct": CorrectionConfig(images=config.correct.images)})


def _with(config: PtqConfig, correction: Correction, value: Any) -> PtqConfig:
    return config.model_copy(update={"correct": config.correct.model_copy(update={correction.name: value})})


def _by(config: PtqConfig, method: str | None) -> PtqConfig:
    """With another calibration method."""
    if method is None:
        return config
    return config.model_copy(update={"calibration": config.calibration.model_copy(update={"method": method})})


def _name(correction: Correction, value: Any, method: str | None = None) -> str:
    words = f"+ {correction.name}" if value is True else f"+ {correction.name}={value}"
    return words if method is None else f"{words} ({method})"
