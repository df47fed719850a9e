"""The whole measurement: which images and settings, what each process does, and the result."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from repq.data import Batch, DetectionDataset, ImageRecord, batches, demand_objects, image_hashes
from repq.errors import QuantizationError
from repq.evaluate import Matcher
from repq.identity import Identity, identify
from repq.layers import LayerId
from repq.model import Detector, count_macs, layer_ids
from repq.progress import Progress, silent
from repq.quant.sensitivity.assess import Judge, snr_judge
from repq.quant.sensitivity.journal import Entry, Journal
from repq.quant.sensitivity.layer_errors import ap_with_changes, end_to_end_similarity, local_errors
from repq.quant.sensitivity.ranking import rank_correlations
from repq.quant.sensitivity.sweep import UNCHANGED, Change, shard, sweep
from repq.quant.similarity import similarity
from repq.quant.state import quantized_layers, scale_table
from repq.recipe import EvalConfig, SensitivityConfig
from repq.results import LayerSensitivity, Sensitivity, Similarity

_LOCAL, _END_TO_END = "local", "end_to_end"
_Entries = Mapping[tuple[str, str], Entry]


@dataclass(frozen=True)
class Measurement:
    """What is to be measured.

    Attributes:
        model: calibrated, in eval mode, with quantizers in all layers (``quantize`` with an empty ``keep_float``).
        records: the images for the similarities; they need no labels.
        dataset: the images for AP; needed if ``config.ap`` names a sweep.
        imgsz: height and width of the network input.
    """

    model: Detector
    records: Sequence[ImageRecord]
    imgsz: tuple[int, int]
    config: SensitivityConfig
    eval_config: EvalConfig
    dataset: DetectionDataset | None = None

    @cached_property
    def layers(self) -> tuple[LayerId, ...]:
        """All layers of the model.

        Raises:
            QuantizationError: a layer holds no quantizers.
        """
        layers = layer_ids(self.model)
        lacking = [layer for layer in layers if layer not in quantized_layers(self.model)]
        if lacking:
            raise QuantizationError(
                "every layer must hold quantizers to be measured",
                found=f"{len(lacking)} float layers, such as {lacking[0]}",
                fix="quantize the model without keep_float",
            )
        return layers

    @cached_property
    def image_hashes(self) -> dict[str, str]:
        return image_hashes(self.records)

    @cached_property
    def ap_image_hashes(self) -> dict[str, str]:
        return image_hashes(self.ap_set.records) if self.config.ap else {}

    @property
    def ap_set(self) -> DetectionDataset:
        """The images to measure AP on.

        Raises:
            QuantizationError: there is no data set for AP.
            DataError: no image of it has a labelled object.
        """
        if self.dataset is None:
            raise QuantizationError("AP needs a labelled data set", fix="give one, or leave the AP sweeps out")
        demand_objects(self.dataset)
        return self.dataset

    @property
    def settings(self) -> dict[str, object]:
        """The settings that the figures depend on, as plain values."""
        parts = {"sensitivity": self.config, "eval": self.eval_config}
        return {"imgsz": list(self.imgsz), **{name: part.model_dump(mode="json") for name, part in parts.items()}}

    @cached_property
    def snr_db(self) -> Judge:
        """The SNR in dB of boxes and scores with some layers in float, on the images of the similarities."""
        return cache(snr_judge(self.model, (batch.images for batch in _load(self, self.records))))

    @cached_property
    def identity(self) -> Identity:
        """Of the measurement: weights, scales, images, what they are labelled with, and the settings."""
        inputs = {
            "model": [self.model, scale_table(self.model)],
            "images": self.image_hashes, "ap_set": self.ap_set if self.config.ap else None,
        }  # fmt: skip
        return identify("sensitivity", self.settings, inputs)

    @property
    def key(self) -> str:
        return self.identity.key


def measure_layers(
    job: Measurement, journal: Journal, *, rank: int = 0, world_size: int = 1, progress: Progress = silent
) -> None:
    """Do this process's share of the measurement, but for what the journal already holds.

    Layers are dealt out in turn; the local measures, one pass for all layers, belong to rank 0. No process waits for
    another: ``collect`` is for when all are done.

    Raises:
        QuantizationError: no images, a layer without quantizers, or values that are not finite.
        DataError: AP is asked for on images without labelled objects.
    """
    config, layers = job.config, job.layers
    if rank == 0 and config.local:
        _measure_local(job, journal, progress)
    if config.end_to_end:

        def end_to_end(items: Sequence[LayerId]) -> dict[LayerId, dict[str, float]]:
            found = end_to_end_similarity(job.model, items, (batch.images for batch in _load(job, job.records)))
            return {layer: _flat("neck", neck) | _flat("head", head) for layer, (neck, head) in found.items()}

        mine = shard(layers, rank, world_size)
        sweep(_END_TO_END, mine, end_to_end, journal, group=config.group, progress=progress)
    if config.ap:
        dataset = job.ap_set
        matcher = Matcher(dataset)
        for change in config.ap:

            def ap(items: Sequence[LayerId], change: Change = change) -> dict[LayerId, dict[str, float]]:
                found = ap_with_changes(
                    job.model, change, items, dataset, lambda: _load(job, dataset.records), job.eval_config, matcher
                )
                return {item: {"ap": value} for item, value in found.items()}

            mine = shard((UNCHANGED, *layers), rank, world_size)
            sweep(f"ap.{change}", mine, ap, journal, group=config.group, progress=progress)


def collect(job: Measurement, journal: Journal, notes: Sequence[str] = ()) -> Sensitivity:
    """Put together what all processes measured.

    Raises:
        QuantizationError: a layer was not measured; it is named.
    """
    entries = journal.entries()
    kinds = [kind for kind, wanted in ((_LOCAL, job.config.local), (_END_TO_END, job.config.end_to_end)) if wanted]
    kinds += [f"ap.{change}" for change in job.config.ap]
    lacking = [(kind, layer) for kind in kinds for layer in job.layers if (kind, layer) not in entries]
    lacking += [(kind, UNCHANGED) for kind in kinds if kind.startswith("ap.") and (kind, UNCHANGED) not in entries]
    if lacking:
        raise QuantizationError(
            "the measurement is not complete",
            found=f"{len(lacking)} figures missing, such as {lacking[0][0]} of {lacking[0][1] or 'the whole model'}",
            fix="start it again with the same settings: what is there is kept",
        )
    macs = count_macs(job.model, job.imgsz)
    rows = tuple(_row(layer, macs[layer], entries) for layer in job.layers)
    return Sensitivity(
        model=job.model.spec.name,
        scheme=quantized_layers(job.model)[job.layers[0]].scheme,
        layers=rows,
        images=job.image_hashes,
        ap_images=job.ap_image_hashes,
        ap_float=_ap(entries, "only_int8", UNCHANGED),
        ap_int8=_ap(entries, "only_float", UNCHANGED),
        seconds={kind: round(sum(e.seconds for (k, _), e in entries.items() if k == kind), 3) for kind in kinds},
        correlations=rank_correlations(rows),
        settings=job.settings,
        notes=(
            *notes,
            *(
                f"{layer}: its output was zero on all images; its figures mean nothing"
                for (kind, layer), entry in entries.items()
                if kind == _LOCAL and entry.values["signal"] == 0
            ),
        ),
    )


def _measure_local(job: Measurement, journal: Journal, progress: Progress) -> None:
    known = journal.entries()
    if all((_LOCAL, layer) in known for layer in job.layers):
        return
    started = time.perf_counter()
    loaded = (batch.images for batch in _load(job, job.records))
    errors = local_errors(job.model, job.layers, loaded, progress)
    seconds = (time.perf_counter() - started) / len(job.layers)
    for layer, sums in errors.items():
        values = _flat("local", similarity([sums])) | {"signal": sums.signal}
        journal.append(Entry(_LOCAL, layer, values, seconds))


def _load(job: Measurement, records: Sequence[ImageRecord]) -> Iterator[Batch]:
    preprocessing = job.model.spec.preprocessing
    return batches(records, job.imgsz, job.config.batch, job.eval_config.letterbox, preprocessing)


def _flat(place: str, value: Similarity) -> dict[str, float]:
    return {f"{place}.{name}": number for name, number in value}


def _row(layer: LayerId, macs: int, entries: _Entries) -> LayerSensitivity:
    return LayerSensitivity(
        layer=layer,
        macs=macs,
        local=_similarity(entries.get((_LOCAL, layer)), "local"),
        neck=_similarity(entries.get((_END_TO_END, layer)), "neck"),
        head=_similarity(entries.get((_END_TO_END, layer)), "head"),
        ap_only_int8=_ap(entries, "only_int8", layer),
        ap_only_float=_ap(entries, "only_float", layer),
    )


def _similarity(entry: Entry | None, place: str) -> Similarity | None:
    if entry is None:
        return None
    return Similarity(**{name: entry.values[f"{place}.{name}"] for name in Similarity.model_fields})


def _ap(entries: _Entries, change: Change, item: LayerId) -> float | None:
    entry = entries.get((f"ap.{change}", item))
    return None if entry is None else entry.values["ap"]
