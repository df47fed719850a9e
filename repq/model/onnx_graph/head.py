"""Where the head of a detector begins: the feature maps that it reads.

Found from the graph alone. The last convolutions of a level are those on a map of the input's aspect behind which no
other such convolution comes: what a head predicts with. Of all values through which everything goes that they depend
on, the nearest is the level's map: what the head reads, or the part of the head that the level has for itself.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import reduce
from operator import and_

from repq.errors import GraphError
from repq.layers import CONVOLUTIONS
from repq.model.onnx_graph.program import Program, Step, with_frees

_RANKS = frozenset({"TopK", "NonMaxSuppression"})


@dataclass(frozen=True, eq=False)
class Split:
    """The steps of a program before and in the head, and the values that go from the ones to the others.

    Maps of the levels come first among these, finest first; what else the head reads follows. ``unranked`` are the
    values that rows are picked from by their rank, such as all boxes and all scores.
    """

    body: tuple[Step, ...]
    head: tuple[Step, ...]
    crossing: tuple[int, ...]
    unranked: tuple[int, ...] = ()

    def __deepcopy__(self, memo: object) -> Split:
        return self


def split(program: Program, imgsz: tuple[int, int]) -> Split:
    """Find the head.

    Args:
        imgsz: height and width of the network input.

    Raises:
        GraphError: it has no convolution.
    """
    ancestors = _ancestors(program)
    maps = _level_maps(program, imgsz, ancestors) or [_last_layer(program).reads[0]]
    needed = reduce(lambda bits, number: bits | ancestors[number] | 1 << number, maps, 0)
    body = [step for step in program.steps if any(needed >> number & 1 for number in step.writes)]
    head = [step for step in program.steps if not any(needed >> number & 1 for number in step.writes)]
    made = {*program.inputs, *(number for step in body for number in step.writes)}
    unranked = _unranked(program)
    read = {number for step in head for number in step.reads}.union(program.outputs, unranked)
    further = [number for number in sorted(made & read) if number not in maps]
    crossing = (*maps, *further)
    kept = (*program.outputs, *unranked)
    return Split(with_frees(body, crossing), with_frees(head, kept), crossing, unranked)


def _unranked(program: Program) -> tuple[int, ...]:
    """What rows are gathered from by the indices of a TopK or a suppression, in order."""
    ranked: set[int] = set()
    found: dict[int, None] = {}
    for step in program.steps:
        data, *indices = (*step.reads, -1)
        picks = step.kind.startswith("Gather") and ranked.intersection(indices)
        if picks and data not in ranked and data not in program.constants:
            found[data] = None
        if step.kind in _RANKS or ranked.intersection(step.reads):
            ranked.update(step.writes)
    return tuple(found)


def _ancestors(program: Program) -> dict[int, int]:
    """For each value the set of values that it hangs on, as bits."""
    found: dict[int, int] = {}
    for step in program.steps:
        bits = reduce(lambda bits, number: bits | found.get(number, 0) | 1 << number, step.reads, 0)
        found |= dict.fromkeys(step.writes, bits)
    return dict.fromkeys((*program.inputs, *program.constants), 0) | found


def _dominators(program: Program) -> dict[int, int]:
    """For each value the set of values through which all goes that it hangs on, itself among them, as bits."""
    found = {number: 1 << number for number in program.inputs}
    for step in program.steps:
        before = [found[number] for number in step.reads if number in found]
        common = reduce(and_, before) if before else 0
        found |= {number: common | 1 << number for number in step.writes}
    return found


def _level_maps(program: Program, imgsz: tuple[int, int], ancestors: dict[int, int]) -> list[int]:
    """The map of each level, finest first; none where no convolution works on a map of the input's aspect."""
    layers = [step for step in _convolutions(program) if _stride(program, step.writes[0], imgsz)]
    inside = reduce(lambda bits, step: bits | ancestors[step.writes[0]], layers, 0)
    last: dict[int, list[Step]] = defaultdict(list)
    for step in layers:
        if not inside >> step.writes[0] & 1:
            last[_stride(program, step.writes[0], imgsz)].append(step)
    dominators, order = _dominators(program), {n: i for i, step in enumerate(program.steps) for n in step.writes}
    maps = []
    for stride in sorted(last):
        common = reduce(and_, (dominators[step.reads[0]] for step in last[stride]))
        chain = sorted((n for n in order if common >> n & 1), key=order.__getitem__)
        own = [number for number in chain if _stride(program, number, imgsz) == stride]
        maps += (own or chain)[-1:]
    return list(dict.fromkeys(maps))


def _stride(program: Program, number: int, imgsz: tuple[int, int]) -> int:
    """Input pixels per cell of a map (1, C, h, w); 0 where it is none of the input's aspect."""
    shape = program.shapes[number]
    if len(shape) != 4 or shape[0] != 1 or min(shape) < 1:
        return 0
    down, across = imgsz[0] / shape[2], imgsz[1] / shape[3]
    return round(down) if down == across and down >= 2 else 0


def _convolutions(program: Program) -> list[Step]:
    """The layers that work on maps."""
    return [step for step in program.steps if step.layer is not None and step.kind in CONVOLUTIONS]


def _last_layer(program: Program) -> Step:
    layers = _convolutions(program)
    if not layers:
        raise GraphError("no output of the graph hangs on a convolution", fix="export the whole detector")
    return layers[-1]


def strides(program: Program, crossing: tuple[int, ...], imgsz: tuple[int, int]) -> tuple[int, ...]:
    """Input pixels per cell of each level."""
    found = (_stride(program, number, imgsz) for number in crossing)
    return tuple(sorted({stride for stride in found if stride})) or (1,)
