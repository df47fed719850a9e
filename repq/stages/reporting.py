"""The timings of several machines as one report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from pydantic import ValidationError

from repq.errors import DataError
from repq.results import BenchReport


def report_benches(paths: Sequence[Path], out: Path, title: str) -> dict[str, Path]:
    """Join several ``bench.json`` into ``report.html``, ``.md`` and ``.json``.

    Raises:
        DataError: a file cannot be read or is none that ``repq bench -o`` wrote.
        RepqError: jinja2 or matplotlib is not installed.
    """
    from repq.report import ReportSummary, render_report

    benches = [read_bench(path) for path in paths]
    machines = dict(zip(_names(paths), benches, strict=True))
    only = benches[0] if len(benches) == 1 else None
    summary = ReportSummary(
        title=title,
        created=date.today().isoformat(),
        environment=benches[0].environment,
        results={"bench": only, "machines": machines},
    )
    return render_report(summary, out)


def read_bench(path: Path) -> BenchReport:
    """Read a ``bench.json``, or the one in a folder.

    Raises:
        DataError: it cannot be read, or is something else.
    """
    file = path / "bench.json" if path.is_dir() else path
    fix = "give a bench.json that `repq bench -o FOLDER` wrote, or its folder"
    try:
        return BenchReport.model_validate_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {file}", found=error.strerror or str(error), fix=fix) from None
    except (ValidationError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is no timing of repq", found=str(error).splitlines()[0], fix=fix) from None


def _names(paths: Sequence[Path]) -> list[str]:
    """What the tables call each file: its folder's name, or its own, numbered where two are alike."""
    plain = [path.name if path.is_dir() or path.stem != "bench" else path.resolve().parent.name for path in paths]
    counts = Counter(plain)
    return [f"{name} ({number})" if counts[name] > 1 else name for number, name in enumerate(plain, 1)]
