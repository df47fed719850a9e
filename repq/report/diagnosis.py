"""A diagnosis as text for the terminal."""

from __future__ import annotations

from repq.report.text import span, table_text
from repq.results import Diagnosis

ADVICE = {
    "ptq": "plain post-training quantization is enough",
    "corrected": "post-training quantization with corrections is enough",
    "partial": "keep a few layers in float",
    "repopt": "retrain with RepOptimizer: the fused weights are to blame",
    "qat": "quantization-aware training: the loss is spread over weights and activations",
}


def diagnosis_table(diagnosis: Diagnosis) -> str:
    """All layers, what is wrong with some, the ways with their evidence, and the advice."""
    layers = [
        (row.layer, f"{row.weight_channel_ratio:.1f}", f"{row.weight_crest:.1f}", _decibel(row.weight_snr_db),
         span(row.activation_range), f"{row.activation_tail:.1f}", f"{row.activation_channel_ratio:.1f}",
         _decibel(row.activation_snr_db))
        for row in diagnosis.layers
    ]  # fmt: skip
    columns = ("layer", "W ratio", "W crest", "W dB", "inputs", "tail", "channels", "in dB")
    findings = [(row.layer, "; ".join(row.findings)) for row in diagnosis.layers if row.findings]
    ways = [
        ("*" if way.name == diagnosis.advice else "", way.name, _decibel(way.head_snr_db),
         {True: "yes", False: "no", None: "not tried"}[way.sufficient], way.evidence, way.command)
        for way in diagnosis.ways
    ]  # fmt: skip
    tables = (
        table_text(f"{diagnosis.model}, {diagnosis.scheme}, {diagnosis.images} images", columns, layers),
        table_text("findings", ("layer", "what"), findings, left=2),
        table_text(
            f"ways to INT8; enough is a head SNR of {diagnosis.threshold_db:.0f} dB",
            ("", "way", "head dB", "enough", "evidence", "how"),
            ways,
            left=6,
        ),
    )
    return "\n".join([*tables, f"advice: {ADVICE[diagnosis.advice]}"])


def _decibel(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
