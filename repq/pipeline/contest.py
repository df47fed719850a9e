"""Every engine and precision of one checkpoint, side by side, and which of them to ship."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from repq.artifact import Artifact, Contents, RunFolder
from repq.errors import EngineError, RecipeError, RepqError
from repq.files import has_text, write_text
from repq.identity import identify
from repq.log import Log, quiet
from repq.machine.torch_settings import usual_torch
from repq.pipeline.runner import make_artifacts
from repq.pipeline.whole_run import sized
from repq.progress import Progress, silent
from repq.recipe import BenchConfig, as_overrides, engine_title, load_recipe
from repq.recipe.whole import Recipe
from repq.report.comparison import built_title, row_title
from repq.results import (
    Accuracies,
    Availability,
    BatchTiming,
    BenchReport,
    BuiltEngines,
    Choice,
    Contender,
    Contest,
    EngineDescription,
    PtqReport,
    joined_load,
)

RESULT = "compare.json"
TORCH = "torch-float32"


@dataclass(frozen=True)
class _Candidate:
    """A model that is on disk, before it is timed."""

    name: str
    path: Path
    ap: float
    ap50: float
    int8_macs_share: float | None
    setup: str


@usual_torch()
def compare(
    weights: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    engines: Sequence[str] = ("all",),
    recipe: str | Path = "compare",
    imgsz: int | tuple[int, int] | None = None,
    max_drop: float | None = None,
    max_ms: float | None = None,
    device: str | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    progress: Progress = silent,
    log: Log = quiet,
) -> Contest:
    """Quantize, build, evaluate and time a checkpoint in every engine, in float and INT8, beside torch.

    What is already in ``out`` is reused; a killed comparison goes on where it stopped. All are timed in one run, each
    batch size in turns. An engine that is not here, or cannot run the graph, is in ``missing`` with the reason.

    Args:
        out: folder of ``compare.json``, the report and the artifacts.
        engines: names; ``all``: every engine that works here.
        recipe: what every engine's run has in common; scheme, scales and types are those of its target.
        imgsz: in place of the recipe's own. Without any, the weights' own is taken.
        max_drop: AP that the one to ship may lose against torch in FP32. Default: the recipe's.
        max_ms: largest median latency of the one to ship at the smallest batch, in ms.

    Raises:
        RepqError: the checkpoint, the data or the recipe cannot be used, or no engine works here.
    """
    out = Path(out)
    given = as_overrides(weights=weights, data=data, imgsz=imgsz, max_drop=max_drop, device=device, seed=seed)
    load_one = functools.partial(load_recipe, Path(recipe))
    common = sized(load_one([*overrides, *given]), log)
    given += as_overrides(imgsz=common.imgsz) + _of_one_batch(common, log)
    common = load_one([*overrides, *given])
    if len(common.bench.threads) > 1:
        raise RecipeError(
            "a comparison has one number of threads", found=f"bench.threads = {list(common.bench.threads)}",
            fix="give one, such as --set bench.threads=[4]; `repq bench` times several",
        )  # fmt: skip
    usable, missing = _usable(engines)
    candidates: list[_Candidate] = []
    inputs: dict[str, str] = {}
    refused: RepqError | None = None
    for name, setup in usable.items():
        log(f"{engine_title(name)}:")
        own = [f"target={json.dumps(name)}", f"build.engines={json.dumps([name])}"]
        try:
            made = make_artifacts(load_one([*overrides, *given, *own]), out, "eval", progress, log)
        except RepqError as error:
            refused = error
            missing.append(_missing(name, f"{error.what}: {error.found}" if error.found else error.what, error.fix))
            continue
        candidates += ([] if candidates else [_in_torch(made)]) + _built(made, setup)
        inputs |= {f"{name} {stage}": made[stage].manifest.content for stage in ("fuse", "build", "eval")}
    if not candidates:
        raise refused or EngineError(
            "none of the engines works here", found="; ".join(f"{row.runtime}: {row.detail}" for row in missing),
            fix="repq doctor says how to get them",
        )  # fmt: skip
    identity = identify(
        "compare", {"bench": common.bench, "imgsz": common.imgsz}, inputs, seed=common.seed, on_machine=True
    )
    artifact = RunFolder(out).make(
        identity, functools.partial(_measure, candidates, common, progress, log),
        contents=Contents({RESULT: Contest}), on_wait=log,
    )  # fmt: skip
    measured = artifact.result(Contest, RESULT)
    bounds = common.max_drop, max_ms, common.min_speedup
    found = measured.model_copy(update={"missing": tuple(missing), "choice": chosen(measured.contenders, *bounds)})
    _write(found, common, out)
    return found


def chosen(
    contenders: Sequence[Contender], max_drop: float, max_ms: float | None = None, min_speedup: float = 1.0
) -> Choice:
    """The fastest that loses no more AP than allowed against the first; INT8 has to earn its place.

    Where the first finds nothing, nothing is chosen: equal zeros would pass any bound.

    Args:
        max_ms: bound of the median latency at the smallest batch.
        min_speedup: how many times as fast as the fastest float one INT8 has to be.
    """
    reference = contenders[0]
    if not reference.ap > 0:
        found = f"{row_title(reference)} has AP {reference.ap:g} on these images"
        reason = (f"{found}: what another loses cannot be measured",)
        return Choice(ship=None, int8_pays=False, max_drop=max_drop, max_ms=max_ms, reasons=reason)
    timed = sorted((row for row in contenders if row.first.p50_ms is not None), key=_ms)
    exact = [row for row in timed if reference.ap - row.ap <= max_drop]
    good = [row for row in exact if max_ms is None or _ms(row) <= max_ms]
    float_ = next((row for row in good if row.variant != "int8"), None)
    int8 = next((row for row in good if row.variant == "int8"), None)
    pays = int8 is not None and (float_ is None or _ms(float_) / max(_ms(int8), 1e-9) > min_speedup)
    best = int8 if pays else float_
    reasons = []
    if best is not None:
        reasons.append(f"to ship: {_facts(best, reference)}")
    else:
        reasons.append(f"none loses at most {max_drop:g} AP" + ("" if max_ms is None else f" within {max_ms:g} ms"))
        near = exact[:1] or sorted(timed, key=lambda row: -row.ap)[:1]
        reasons += [f"nearest: {_facts(row, reference)}" for row in near]
    if not pays and float_ is not None:
        rival = int8 or next((row for row in timed if row.variant == "int8"), None)
        if rival is not None:
            reasons.append(f"INT8 is not worth it here: {_why(rival, int8 is not None, reference, float_)}")
    return Choice(
        ship=None if best is None else best.model, int8_pays=pays, max_drop=max_drop, max_ms=max_ms,
        reasons=tuple(reasons),
    )  # fmt: skip


def _ms(row: Contender) -> float:
    assert row.first.p50_ms is not None
    return row.first.p50_ms


def _facts(row: Contender, reference: Contender) -> str:
    ap = f"AP {row.ap:.4f} ({row.ap - reference.ap:+.4f})"
    return f"{row_title(row)}, {ap}, {_ms(row):.3g} ms at batch {row.first.batch}"


def _why(rival: Contender, good: bool, reference: Contender, float_: Contender) -> str:
    against = f"{_ms(rival):.3g} ms against {_ms(float_):.3g} ms of {row_title(float_)}"
    return f"{row_title(rival)} needs {against}" if good else f"{_facts(rival, reference)} is outside the bounds"


def _of_one_batch(recipe: Recipe, log: Log) -> list[str]:
    """Overrides for an ONNX file that takes batches of one size: it is exported as it is, and timed with no other."""
    from repq.api.opening import load

    weights = recipe.weights
    if weights is None or weights.suffix != ".onnx" or not weights.exists() or (own := load(weights).batch) is None:
        return []
    if recipe.bench.batches != (own,):
        log(f"{weights.name} takes batches of {own} only: others are not timed")
    return [f"export.batch={own}", f"bench.batches=[{own}]"]


def _usable(engines: Sequence[str]) -> tuple[dict[str, str], list[Availability]]:
    """Engines that work here with what had to be installed, and the others with the reason."""
    from repq.engine import ENGINES
    from repq.engine.availability import guarded

    found: dict[str, str] = {}
    missing = []
    for entry in ENGINES:
        if "all" not in engines and entry.name not in engines:
            continue
        rows = guarded(entry.name, entry.availability)
        if any(row.usable for row in rows):
            found[entry.name] = f"{entry.install or entry.title} ({entry.version().partition('-')[0]})"
        else:
            missing += rows[:1] or [_missing(entry.name, "it does not say why")]
    return found, missing


def _missing(name: str, detail: str, fix: str | None = None) -> Availability:
    return Availability(runtime=name, device="", usable=False, version=None, detail=detail, fix=fix)


def _in_torch(made: Mapping[str, Artifact]) -> _Candidate:
    import torch

    accuracy = made["ptq"].result(PtqReport).accuracy_float
    assert accuracy is not None, "a run evaluates"
    path = made["fuse"] / "fused.safetensors"
    return _Candidate(TORCH, path, accuracy.ap, accuracy.ap50, 0.0, f"comes with repq (torch {torch.__version__})")


def _built(made: Mapping[str, Artifact], setup: str) -> list[_Candidate]:
    macs = {row.layer: row.macs for row in made["ptq"].result(PtqReport).layers}
    found = made["eval"].result(Accuracies).models
    return [
        _Candidate(name, made["build"] / name, found[name].ap, found[name].ap50, int8_share(about, macs), setup)
        for name, about in made["build"].result(BuiltEngines).engines.items()
    ]


def int8_share(about: EngineDescription, macs: Mapping[str, int]) -> float | None:
    """Share of the multiply-adds that an engine is known to run in INT8; None where it tells of no layer."""
    if about.int8_layers is None:
        return None
    int8 = sum(macs.get(row.layer, 0) for row in about.layers if row.precision == "int8")
    return int8 / max(sum(macs.get(row.layer, 0) for row in about.layers), 1)


def _measure(
    candidates: Sequence[_Candidate], recipe: Recipe, progress: Progress, log: Log, payload: Path, resume: Path
) -> None:
    """Memory of each in a process of its own, then latency of all that survive it, side by side."""
    from repq.api.footprint import footprint
    from repq.api.measuring import timed
    from repq.api.opening import load
    from repq.machine.environment import capture_environment

    config: BenchConfig = recipe.bench
    imgsz, threads, environment = recipe.imgsz, config.threads[0], capture_environment()
    models = {row.name: load(row.path, threads=threads, device=recipe.device) for row in candidates}
    timings: dict[str, list[BatchTiming]] = {row.name: [] for row in candidates}
    reports: list[BenchReport] = []
    for batch in sorted(config.batches):
        memory: dict[str, int] = {}
        for row in candidates:
            try:
                memory[row.name] = footprint(row.path, imgsz, batch, threads)
            except EngineError as error:
                timings[row.name].append(BatchTiming(batch=batch, reason=str(error.what)))
                log(f"  {built_title(row.name)} at batch {batch}: {error.what}")
        runs = max(2, config.runs_per_round // batch)
        once = config.model_copy(
            update={"batches": (batch,), "threads": (threads,), "runs_per_round": runs, "end_to_end": False}
        )
        rows = [(name, models[name]) for name in memory]
        if rows:
            reports.append(timed(rows, imgsz, once, seed=recipe.seed, progress=progress))
            for found in reports[-1].rows:
                timings[found.model].append(_timing(found.samples_ms, batch, memory[found.model]))
    contenders = tuple(
        Contender(
            **dict(models[row.name].info.model_copy(update={"model": row.name})), ap=row.ap, ap50=row.ap50,
            timings=tuple(timings[row.name]), int8_macs_share=row.int8_macs_share, setup=row.setup,
        )
        for row in candidates
    )  # fmt: skip
    images = len(_dataset(recipe))
    contest = Contest(
        contenders=contenders, environment=environment, imgsz=imgsz, threads=threads, images=images,
        **dict(joined_load(*reports)),
    )  # fmt: skip
    write_text(payload / RESULT, contest.model_dump_json(indent=1))


def _dataset(recipe: Recipe) -> Any:
    from repq.api.images import open_data

    assert recipe.data.path is not None
    return open_data(recipe.data.path, recipe.data.val)


def _timing(samples: Sequence[float], batch: int, memory: int) -> BatchTiming:
    from repq.bench import percentile

    p50 = float(np.median(samples))
    return BatchTiming(
        batch=batch, mean_ms=float(np.mean(samples)), std_ms=float(np.std(samples)), p50_ms=p50,
        p95_ms=percentile(samples, 95), p99_ms=percentile(samples, 99),
        images_per_s=1e3 * batch / p50 if p50 > 0 else None, runs=len(samples), memory_bytes=memory,
    )  # fmt: skip


def _write(found: Contest, recipe: Recipe, out: Path) -> None:
    from repq.report import ReportSummary, render_report

    text = found.model_dump_json(indent=1) + "\n"
    if has_text(out / RESULT, text) and (out / "report.html").is_file():  # which may lie on a read-only disk
        return
    summary = ReportSummary(
        title=f"{found.contenders[0].spec or 'One checkpoint'} in every engine", created=date.today().isoformat(),
        environment=found.environment, data=str(recipe.data.path), imgsz=found.imgsz, max_drop=recipe.max_drop,
        results={"compare": found},
    )  # fmt: skip
    render_report(summary, out)
    write_text(out / RESULT, text)
