"""The proof of fusing: every block before and after."""

from __future__ import annotations

from repq.report.blocks import Block, Cell, Column, Figure, Section, Table
from repq.report.numbers import compact, plural
from repq.report.plots import weight_growth
from repq.report.summary import ReportSummary
from repq.results import BlockFusion, FusionReport


def fusion_section(summary: ReportSummary) -> Section | None:
    """One row per fused block, and the error of the whole model."""
    fusion = summary.fusion
    if fusion is None:
        return None
    lead = (
        f"Whole model on {plural(fusion.images, 'real image')}: largest error {compact(fusion.max_abs_error)}, "
        f"{compact(fusion.max_rel_error)} relative to the output's range; tolerance {compact(fusion.tolerance)}."
    )
    blocks: list[Block] = []
    if len(fusion.blocks) > 1:
        before = [_largest(block.weight_range_before) for block in fusion.blocks]
        after = [_largest(block.weight_range_after) for block in fusion.blocks]
        alt = "largest weight of every block before and after fusing, log scale"
        blocks.append(Figure("Weight range before and after", weight_growth(before, after), alt, wide=True))
    if fusion.blocks:
        blocks.append(_block_table(fusion))
    return Section("fusion", "Fusing", blocks, lead)


def _block_table(fusion: FusionReport) -> Table:
    columns = [
        Column("#"),
        Column("Block", numeric=False, code=True),
        Column("Kind", numeric=False),
        Column("Fused layer", numeric=False, code=True),
        Column("Largest error"),
        Column("Relative", hint="largest error over the range of the block's output"),
        Column("Weight min before"),
        Column("Weight max before"),
        Column("Weight min after"),
        Column("Weight max after"),
    ]
    rows = [_block_cells(number, block, fusion.tolerance) for number, block in enumerate(fusion.blocks, start=1)]
    return Table(f"All {len(rows)} blocks", columns, rows, collapsed=len(rows) > 12)


def _block_cells(number: int, block: BlockFusion, tolerance: float) -> list[Cell]:
    above = block.max_rel_error > tolerance
    return [
        Cell(str(number), number),
        Cell(block.block),
        Cell(block.kind),
        Cell(block.layer),
        Cell(compact(block.max_abs_error), block.max_abs_error),
        Cell(compact(block.max_rel_error), block.max_rel_error, "bad" if above else ""),
        *(Cell(compact(value), value) for value in (*block.weight_range_before, *block.weight_range_after)),
    ]


def _largest(limits: tuple[float, float]) -> float:
    return max(abs(limits[0]), abs(limits[1]))
