"""Where a model's time goes, node by node."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Collection, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repq.api.measuring import demand_size
from repq.api.service import service_of
from repq.files import write_text
from repq.machine.cpu import bound_cores
from repq.machine.environment import capture_environment
from repq.machine.load import OtherLoad
from repq.recipe import default_engines
from repq.recipe.deployment import RuntimeName
from repq.results import NodeTime, ProfileReport

if TYPE_CHECKING:
    from repq.api.model import Model

WARMUP = 3
_LAYER = "layer "


def profiled(
    model: Model, imgsz: tuple[int, int], *, engine: RuntimeName | None = None, batch: int = 1, runs: int = 20
) -> ProfileReport:
    """Run a model on noise and ask its runtime for the time of every node.

    Args:
        engine: of a checkpoint or an ONNX file, as for `repq.load`.

    Raises:
        EngineError: the runtime is missing, or does not tell.
        RepqError: the model does not take this size or batch.
    """
    demand_size(model, imgsz)
    load = OtherLoad()
    on_torch = model.weights is not None and engine in (None, "torch")
    if not on_torch and model.kind != "engine":
        model = model.build(engine or default_engines()[0], imgsz=imgsz, batch=batch)
    noise = np.random.default_rng(0).integers(0, 256, (*(model.preprocess.source or imgsz), 3), dtype=np.uint8)
    (images,) = service_of(model, imgsz).prepare([noise] * batch).parts
    infer = model.running.infer
    times = []
    for _ in range(WARMUP + runs):
        start = time.perf_counter()
        infer(images)
        times.append(1e3 * (time.perf_counter() - start))
    nodes = _in_torch(model, images, runs) if model.engine is None else model.engine.profile(images, runs)
    return ProfileReport(
        model=model.label, engine=model.running.engine, imgsz=imgsz, batch=batch, runs=runs,
        total_ms=float(np.median(times[WARMUP:])), nodes=nodes, environment=capture_environment(),
        **dict(load.so_far(model.options.threads or bound_cores())),
    )  # fmt: skip


def _in_torch(model: Model, images: Any, runs: int) -> tuple[NodeTime, ...]:
    """By torch's profiler: every layer with all that it calls, and the operators outside of layers."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    assert model.weights is not None
    network = model.weights.model
    open_: list[Any] = []

    def enter(name: str) -> Any:
        def hook(*_: Any) -> None:
            open_.append(record_function(f"{_LAYER}{name}"))
            open_[-1].__enter__()

        return hook

    def leave(*_: Any) -> None:
        open_.pop().__exit__(None, None, None)

    handles: list[Any] = []
    for place, layer in _places(dict(network.named_modules()), model.layers).items():
        module = network.get_submodule(place)
        handles += [module.register_forward_pre_hook(enter(layer)), module.register_forward_hook(leave)]
    on_gpu = torch.cuda.is_available() and model.options.device.startswith("cuda")
    try:
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as found:
            for _ in range(runs):
                model.running.infer(images)
    finally:
        for handle in handles:
            handle.remove()
    outer = [event for event in found.events() if event.cpu_parent is None or event.name.startswith(_LAYER)]
    outer.sort(key=lambda event: event.time_range.start)
    spent = [(event.device_time_total if on_gpu else event.cpu_time_total) / 1e3 for event in outer]
    dtype = model.running.precision
    return tuple(
        NodeTime(
            name=name.removeprefix(_LAYER), kind="layer" if name.startswith(_LAYER) else name, ms=ms,
            layer=name.removeprefix(_LAYER) if name.startswith(_LAYER) else None,
            precision=dtype if name.startswith(_LAYER) else "",
        )
        for name, ms in _mean_run([event.name for event in outer], spent, runs)
    )  # fmt: skip


def _places(modules: Collection[str], layers: Iterable[str]) -> dict[str, str]:
    """Layers by the module that computes them: in an unfused model the block of which fusing makes the layer."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        place = layer
        while place not in modules:
            place = place.rpartition(".")[0]  # "" is the whole model
        found.setdefault(place, []).append(layer)
    inside = {place for place in found for other in found if other.startswith(f"{place}.")}
    return {place: own[0] for place, own in found.items() if place and len(own) == 1 and place not in inside}


def _mean_run(names: Sequence[str], spent: Sequence[float], runs: int) -> list[tuple[str, float]]:
    """The mean of runs that follow each other; by name where they do not do the same in the same order."""
    length = len(names) // runs
    if list(names) == list(names[:length]) * runs:
        return [(names[place], sum(spent[place::length]) / runs) for place in range(length)]
    found: dict[str, float] = {}
    for name, ms in zip(names, spent, strict=True):
        found[name] = found.get(name, 0.0) + ms / runs
    return list(found.items())


def nsight_lines(arguments: list[str], out: Path) -> tuple[str, ...]:
    """Command lines of Nsight Systems that trace ``repq`` with these arguments; none where it is not installed."""
    tool = shutil.which("nsys")
    if tool is None:
        return ()
    report = out / "nsight"
    trace = [tool, "profile", "--trace=cuda,nvtx,osrt", "--force-overwrite=true", "-o", str(report), *arguments]
    stats = [tool, "stats", "--report", "cuda_gpu_kern_sum", f"{report}.nsys-rep"]
    return shlex.join(trace), shlex.join(stats)


def chrome_trace(report: ProfileReport) -> dict[str, Any]:
    """The nodes one after the other, as a mean run, in Chrome's Trace Event Format (microseconds)."""
    start = 0.0
    events: list[dict[str, Any]] = []
    for node in report.nodes:
        about = {"layer": node.layer, "precision": node.precision}
        events.append(
            {"name": node.layer or node.name, "cat": node.kind, "ph": "X", "pid": 1, "tid": 1, "ts": start,
             "dur": 1e3 * node.ms, "args": about}
        )  # fmt: skip
        start += 1e3 * node.ms
    process = {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": f"{report.model} in {report.engine}"}}
    return {"displayTimeUnit": "ms", "traceEvents": [process, *events]}


def write_profile(report: ProfileReport, out: Path) -> None:
    """Write ``profile.json``, ``trace.json`` (for chrome://tracing or Perfetto) and the report into a folder."""
    from repq.report import ReportSummary, render_report

    write_text(out / "profile.json", report.model_dump_json(indent=1) + "\n")
    write_text(out / "trace.json", json.dumps(chrome_trace(report)) + "\n")
    summary = ReportSummary(
        title=f"Profile of {report.model}", created=date.today().isoformat(), environment=report.environment,
        imgsz=report.imgsz, results={"profile": report},
    )  # fmt: skip
    render_report(summary, out)
