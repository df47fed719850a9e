"""Sweeps that are cut off, continued and shared: the same figures as one that ran through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from repq.errors import QuantizationError
from repq.layers import LayerId
from repq.quant.sensitivity import Entry, Journal
from repq.quant.sensitivity.sweep import shard, sweep

LAYERS = tuple(LayerId(f"layer{i}") for i in range(11))


class KilledError(Exception):
    pass


def figures(items: Sequence[LayerId]) -> dict[LayerId, dict[str, float]]:
    return {item: {"ap": len(item) + 1 / int(item[5:] or 1) if item != "layer0" else float("inf")} for item in items}


def values(journal: Journal) -> Mapping[tuple[str, str], Mapping[str, float]]:
    return {place: entry.values for place, entry in journal.entries().items()}


@pytest.fixture
def unbroken() -> Mapping[tuple[str, str], Mapping[str, float]]:
    journal = Journal(None, "key")
    sweep("ap", LAYERS, figures, journal, group=4)
    assert len(journal.entries()) == len(LAYERS)
    return values(journal)


@pytest.mark.parametrize("groups", [0, 1, 2])
def test_a_killed_sweep_goes_on(
    tmp_path: Path, groups: int, unbroken: Mapping[tuple[str, str], Mapping[str, float]]
) -> None:
    left = groups

    def dying(items: Sequence[LayerId]) -> dict[LayerId, dict[str, float]]:
        nonlocal left
        if not left:
            raise KilledError
        left -= 1
        return figures(items)

    with pytest.raises(KilledError):
        sweep("ap", LAYERS, dying, Journal(tmp_path, "key"), group=4)
    with (tmp_path / "sweep-0.jsonl").open("a") as file:
        file.write('{"kind": "ap", "item": "layer9", "val')  # killed in the middle of a line
    asked: list[LayerId] = []

    def watching(items: Sequence[LayerId]) -> dict[LayerId, dict[str, float]]:
        asked.extend(items)
        return figures(items)

    journal = Journal(tmp_path, "key")
    sweep("ap", LAYERS, watching, journal, group=4)
    assert asked == list(LAYERS[4 * groups :])
    assert values(journal) == values(Journal(tmp_path, "key")) == unbroken


@pytest.mark.parametrize("world_size", [1, 2, 3, 16])
def test_shards_together_are_the_whole(
    tmp_path: Path, world_size: int, unbroken: Mapping[tuple[str, str], Mapping[str, float]]
) -> None:
    shares = [shard(LAYERS, rank, world_size) for rank in range(world_size)]
    assert sorted(layer for share in shares for layer in share) == sorted(LAYERS)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for rank, share in enumerate(shares):
        sweep("ap", share, figures, Journal(tmp_path, "key", rank), group=2)
    assert values(Journal(tmp_path, "key")) == unbroken


def test_other_processes_work_is_taken_over(tmp_path: Path) -> None:
    """A sweep of three processes that is continued by one measures only what is missing."""
    for rank in (1, 2):
        sweep("ap", shard(LAYERS, rank, 3), figures, Journal(tmp_path, "key", rank), group=2)
    asked: list[LayerId] = []
    sweep("ap", LAYERS, lambda items: (asked.extend(items), figures(items))[1], Journal(tmp_path, "key"), group=2)
    assert asked == list(shard(LAYERS, 0, 3))


def test_another_measurement_is_not_mixed_in(tmp_path: Path) -> None:
    Journal(tmp_path, "one").append(Entry("ap", "layer0", {"ap": 0.5}, 1.0))
    with pytest.raises(QuantizationError, match="another measurement"):
        Journal(tmp_path, "two")
    (tmp_path / "sweep-1.jsonl").write_text('{"key": "one"}\nnonsense\n')
    with pytest.raises(QuantizationError, match="no journal"):
        Journal(tmp_path, "one")


def test_what_another_measurement_left_gives_way_where_it_may(
    tmp_path: Path, unbroken: Mapping[tuple[str, str], Mapping[str, float]]
) -> None:
    sweep("ap", LAYERS[:3], figures, Journal(tmp_path, "another"), group=4)
    (tmp_path / "sweep-1.jsonl").write_text("no journal\n")
    with pytest.raises(QuantizationError):
        Journal(tmp_path, "key")
    journal = Journal(tmp_path, "key", replaces_others=True)
    assert not journal.entries()
    sweep("ap", LAYERS, figures, journal, group=4)
    assert values(Journal(tmp_path, "key", replaces_others=True)) == values(Journal(tmp_path, "key")) == unbroken
