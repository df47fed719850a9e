"""Which way to INT8 a checkpoint needs: plain PTQ, corrections, some layers in float, or training.

Each way that needs no training is tried, the cheapest first, and judged on images that were not calibrated on: by the
AP that it loses, and by the SNR of the head's output, which can refuse a way and never approve of one. Where none is
enough, the cause decides: weights that INT8 cannot hold, in blocks whose branches
were fused, call for RepOptimizer, which trains the fused form itself (Ding et al., "Re-parameterizing your optimizers
rather than architectures", 2023, section 4.3); anything else for QAT.

``TOO_LITTLE_DB`` comes from the reference checkpoints (``benchmarks/results/2026-11-21-ptq-auto.md``, AP on images of
the train split): below 10 dB, PTQ cost a quarter of the float model's AP and more; from 20 dB on still 1 to 4 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repq.amounts import percent
from repq.errors import QuantizationError
from repq.layers import LayerId
from repq.model import Detector, layer_ids
from repq.progress import Progress, silent
from repq.quant.calibration import CALIBRATORS
from repq.quant.calibration.histogram import Histogram
from repq.quant.calibration.observation import Images, channel_ranges
from repq.quant.calibration.ranges import percentile_range
from repq.quant.convolution import QuantizedLayer, is_depthwise
from repq.quant.corrections import CORRECTIONS, Symptom, asked_for
from repq.quant.ptq import Observed, apply, observe_model
from repq.quant.rows import channel_ratio, output_rows
from repq.quant.similarity import ErrorSums, Outputs, head_snr_db, outputs_of, similarity
from repq.quant.state import quantized_layers, quantizing, switched
from repq.recipe import CorrectionConfig, PtqConfig, ap_drop, holds
from repq.results import Diagnosis, LayerDiagnosis, Way, WayName, noise

TOO_LITTLE_DB = 10.0
PARTIAL_SHARE = 0.1  # of the layers, the ones of most noise, stay in float in the partial trial

LOW_SNR_DB = 20.0
LARGE_CREST = 16.0  # a thousand values of a Gaussian have 3.2; at 16 the rounding error is 29 dB below the signal
LARGE_TAIL = 4.0  # three quarters of the integers serve one value in a thousand
LARGE_CHANNEL_RATIO = 10.0  # the median channel has a dozen integers


def diagnose(
    fused: Detector,
    batches: Iterable[Images],
    held_out: Sequence[Tensor],
    config: PtqConfig,
    progress: Progress = silent,
    *,
    ap: Callable[[Detector], float] | None = None,
    max_drop: float = 0.0,
) -> Diagnosis:
    """Look at ranges and errors of every layer and try the ways that need no training.

    Args:
        fused: a fused model; it is not changed.
        batches: images to calibrate on.
        held_out: images to judge on, network inputs on the model's device.
        config: scheme and calibration of the plain trial, and the layers that stay in float in all of them.
        ap: AP of a model on labelled images to judge on; None: there are none, and no way is approved of.
        max_drop: AP that may be lost.

    Raises:
        QuantizationError: as ``quantize``; no layer is left to quantize; or the model's output is the same for every
            image.
        SelectorError: as ``quantize``.
    """
    plain = config.model_copy(update={"correct": CorrectionConfig(), "auto": False})
    wanted = outputs_of(fused, held_out)
    _demand_answers(fused, held_out, wanted)
    observed = observe_model(fused, batches, plain, progress, for_all=True)
    if not observed.plan.int8:
        raise QuantizationError(
            "there is nothing to diagnose", found="no layer in INT8", fix="keep fewer layers in float"
        )
    quantized = apply(observed, plain)
    corrected = plain.model_copy(update={"correct": _tried(fused, quantized.model)})
    layers = _layers(observed, quantized.model, held_out)
    with _only(quantized.model, "weight"):
        weights_only = head_snr_db(quantized.model, held_out, wanted)
    with _only(quantized.model, "input"):
        activations_only = head_snr_db(quantized.model, held_out, wanted)
    ap_float = None if ap is None else ap(fused)

    def measured(model: Detector) -> tuple[float, float | None]:
        drop = None if ap is None or ap_float is None else ap_drop(ap_float, ap(model))
        return head_snr_db(model, held_out, wanted), drop

    found: dict[WayName, tuple[float, float | None]] = {
        "ptq": measured(quantized.model),
        "corrected": measured(apply(observed, corrected).model),
    }
    worst = _worst([row for row in layers if row.layer in observed.plan.int8])
    rest = [layer for layer in observed.plan.int8 if layer not in worst]
    with quantizing(quantized.model, rest):
        found["partial"] = measured(quantized.model)
    merged = [row for row in layers if row.layer in fused.merged_layers()]
    titles = [entry.titled(value) for entry, value in asked_for(corrected.correct)]
    ways, advice = _judge(found, max_drop, layers, merged, worst, weights_only, activations_only, config, titles)
    return Diagnosis(
        model=fused.spec.name,
        scheme=config.scheme,
        images=observed.observation.images,
        layers=layers,
        weights_only_snr_db=weights_only,
        activations_only_snr_db=activations_only,
        ways=ways,
        advice=advice,
        threshold_db=TOO_LITTLE_DB,
        max_drop=max_drop,
        ap_float=ap_float,
    )


def _tried(fused: Detector, quantized: nn.Module) -> CorrectionConfig:
    """The corrections that are tried together: all that are meant for a diagnosis and can do something here."""
    possible = [entry for entry in CORRECTIONS if entry.diagnosed is not None and entry.applies(fused, quantized)]
    return CorrectionConfig(**{entry.name: entry.diagnosed for entry in possible})


def _demand_answers(model: Detector, images: Sequence[Tensor], found: Sequence[Outputs]) -> None:
    """Refuse a model whose boxes and scores are the same for all images and for an empty one: INT8 leaves them alone.

    Raises:
        QuantizationError: as above.
    """
    (empty,) = outputs_of(model, [torch.zeros_like(images[0][:1])])
    if any(bool((part != base).any()) for parts in found for part, base in zip(parts, empty, strict=True)):
        return
    raise QuantizationError(
        "nothing can be concluded from this model: its output is constant",
        found=f"the same boxes and scores for {sum(map(len, images))} images and an empty one, which any INT8 keeps",
        fix="look at what it finds (repq predict), and give trained weights",
    )


def _layers(observed: Observed, model: Detector, images: Sequence[Tensor]) -> tuple[LayerDiagnosis, ...]:
    channels, snrs = _channel_ratios(model, layer_ids(observed.reference), images), local_snrs(model, images)
    rows = []
    for layer in layer_ids(observed.reference):
        module, histogram = model.get_submodule(layer), observed.observation.histograms[layer]
        weight_db, input_db = snrs.get(layer, (None, None))  # nothing is lost of what stays in float
        row = LayerDiagnosis(
            layer=layer,
            macs=observed.macs[layer],
            weight_channel_ratio=channel_ratio(module),
            weight_crest=weight_crest(module),
            activation_range=(histogram.minimum, histogram.maximum),
            activation_tail=_tail(histogram),
            activation_channel_ratio=channels[layer],
            weight_snr_db=weight_db,
            activation_snr_db=input_db,
        )
        findings = _findings(row, is_depthwise(module)) if layer in snrs else ()
        rows.append(row.model_copy(update={"findings": tuple(findings)}))
    return tuple(rows)


def _findings(row: LayerDiagnosis, depthwise: bool) -> Iterator[str]:
    if row.weight_snr_db is not None and row.weight_snr_db < LOW_SNR_DB:
        yield "weights lose too much"
    if row.weight_crest > LARGE_CREST:
        yield "a few weights take the range"
    if row.activation_snr_db is not None and row.activation_snr_db < LOW_SNR_DB:
        yield "inputs lose too much"
        if row.activation_channel_ratio > LARGE_CHANNEL_RATIO:
            yield from _advised("its channels differ", depthwise)
        if row.activation_tail > LARGE_TAIL:
            methods = " or ".join(entry.name for entry in CALIBRATORS if entry.for_outliers)
            yield f"rare large inputs take the range: {methods}"


def _advised(symptom: Symptom, depthwise: bool) -> Iterator[str]:
    remedies = (entry.remedy(symptom, depthwise) for entry in CORRECTIONS)
    yield ": ".join([symptom, *([known] if (known := " or ".join(filter(None, remedies))) else [])])


@torch.no_grad()
def local_snrs(model: nn.Module, batches: Iterable[Tensor]) -> dict[LayerId, tuple[float | None, float | None]]:
    """SNR in dB of each layer's output with only its weight, and with only its input, in INT8; None: no error at all.

    The model runs in float, so that a layer's figures are its own.
    """
    layers = quantized_layers(model)
    sums = {layer: (ErrorSums(), ErrorSums()) for layer in layers}
    with ExitStack() as stack:
        stack.enter_context(quantizing(model, ()))
        for layer, module in layers.items():
            stack.enter_context(module.register_forward_hook(_comparing(*sums[layer])))
        for images in batches:
            model(images)
    return {layer: (_decibel(weight), _decibel(inputs)) for layer, (weight, inputs) in sums.items()}


def _comparing(weight: ErrorSums, inputs: ErrorSums) -> Any:
    def hook(module: QuantizedLayer, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        for kind, sums in (("weight", weight), ("input", inputs)):
            with _only(module, kind):
                sums.add(output, module.forward(arguments[0]))

    return hook


@contextmanager
def _only(model: nn.Module, kind: str) -> Iterator[None]:
    """Within the block only the weights, or only the inputs, are quantized."""
    quantizers = {
        quantizer: (which == kind)
        for module in quantized_layers(model).values()
        for which, quantizer in (("input", module.input_quantizer), ("weight", module.weight_quantizer))
    }
    with switched(quantizers):
        yield


def weight_crest(module: nn.Module) -> float:
    """Largest magnitude of an output channel's weights over their root mean square, in the worst channel.

    A channel's rounding error is ``s / sqrt(12)`` with ``s = max / 127``, so its SNR is ``52.9 dB - 20 log10(crest)``.
    """
    rows = output_rows(module)
    spread = rows.square().mean(1).sqrt()
    alive = spread > 0
    return float((rows.abs().amax(1)[alive] / spread[alive]).max()) if bool(alive.any()) else 1.0


def _tail(histogram: Histogram) -> float:
    _, edge = percentile_range(histogram, "symmetric", 99.9)
    return histogram.largest_magnitude / edge if edge > 0 else 1.0


def _channel_ratios(model: nn.Module, layers: Iterable[LayerId], batches: Iterable[Tensor]) -> dict[LayerId, float]:
    with quantizing(model, ()):
        ranges = channel_ranges(model, layers, batches)
    ratios = {}
    for layer, seen in ranges.items():
        low, high = seen.arrays()
        largest = np.maximum(-low, high)
        middle = float(np.median(largest))
        ratios[layer] = float(largest.max()) / middle if middle > 0 else 1.0
    return ratios


def _decibel(sums: ErrorSums) -> float | None:
    value = similarity([sums]).snr_db if sums.signal > 0 else np.inf
    return float(value) if np.isfinite(value) else None


def _worst(layers: Sequence[LayerDiagnosis]) -> set[LayerId]:
    count = max(1, round(PARTIAL_SHARE * len(layers)))
    return {LayerId(row.layer) for row in sorted(layers, key=noise, reverse=True)[:count]}


def _judge(
    found: Mapping[WayName, tuple[float, float | None]],
    max_drop: float,
    layers: Sequence[LayerDiagnosis],
    branches: Sequence[LayerDiagnosis],
    worst: set[LayerId],
    weights_only: float,
    activations_only: float,
    config: PtqConfig,
    corrections: Sequence[str],
) -> tuple[tuple[Way, ...], WayName]:
    total = sum(row.macs for row in layers)
    kept = sum(row.macs for row in layers if row.layer in worst) / total
    options = " ".join(config.integer_options)
    evidence: dict[WayName, str] = {
        "ptq": "every layer in INT8" if not config.keep_float else "every layer in INT8 that is not kept in float",
        "corrected": _listed(corrections),
        "partial": f"the {len(worst)} noisiest layers ({percent(kept)} of the MACs) in float",
    }
    commands: dict[WayName, str] = {
        "ptq": f"repq ptq {options} --plain",
        "corrected": f"repq ptq {options}",
        "partial": f"repq sensitivity {options} --max-drop {max_drop:g}, then repq ptq --plan",
        "repopt": "repq train with RepOptimizer (a hyper-search, then its plain model), then repq ptq",
        "qat": "repq qat, from the PTQ model",
    }
    ways = [
        Way(
            name=name,
            command=commands[name],
            head_snr_db=snr,
            ap_drop=drop,
            sufficient=_sufficient(snr, drop, max_drop),
            evidence=evidence[name],
        )
        for name, (snr, drop) in found.items()
    ]
    lost = [row for row in branches if row.weight_snr_db is not None and row.weight_snr_db < LOW_SNR_DB + 5]
    weights_to_blame = bool(branches) and (weights_only < activations_only or len(lost) > len(branches) / 4)
    causes = (
        f"weights alone leave {weights_only:.1f} dB, activations alone {activations_only:.1f} dB; "
        f"{len(lost)} of {len(branches)} fused blocks have weights under {LOW_SNR_DB + 5:.0f} dB"
    )
    training: WayName = "repopt" if weights_to_blame else "qat"
    untried: tuple[WayName, ...] = ("repopt", "qat")
    for name in untried:
        why = causes if name == training else "the other training fits the cause better"
        ways.append(Way(name=name, command=commands[name], head_snr_db=None, sufficient=None, evidence=why))
    approved = [way.name for way in ways if way.sufficient]
    unknown = [way.name for way in ways if way.name != "ptq" and way.sufficient is None and way.head_snr_db is not None]
    return tuple(ways), next(iter([*approved, *unknown]), training)


def _sufficient(snr: float, drop: float | None, max_drop: float) -> bool | None:
    return False if snr < TOO_LITTLE_DB else None if drop is None else holds(drop, max_drop)


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
