"""Class names: kept apart, and compared where a model meets a data set or one split another."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repq.data import DetectionDataset, ImageRecord, demand_objects, fit_classes, fit_splits
from repq.data.classes import made_up_names, unique_names
from repq.errors import DataError

words = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=4), min_size=1, max_size=8)


def dataset(names: tuple[str, ...], classes: list[int], crowds: list[int] = (), split: str = "val") -> DetectionDataset:  # type: ignore[assignment]
    def rows(ids: list[int]) -> np.ndarray:
        return np.array([[index, 0.5, 0.5, 0.1 + 0.01 * n, 0.2] for n, index in enumerate(ids)], np.float32).reshape(
            -1, 5
        )

    record = ImageRecord("a.jpg", Path("a.jpg"), 10, 10, rows(classes), np.ones(len(classes), np.float32), rows(crowds))
    return DetectionDataset(Path(), split, names, (record,))


def named(data: DetectionDataset) -> list[tuple[str, float]]:
    return [(data.names[int(row[0])], float(row[3])) for row in data[0].labels]


@given(words)
def test_names_become_different_and_stay_so(names: list[str]) -> None:
    unique = unique_names(names)
    assert len(set(unique)) == len(names)
    assert unique_names(unique) == unique
    composed = tuple(unicodedata.normalize("NFC", name) for name in names)
    if len(set(composed)) == len(names) and all(name.isprintable() for name in names):
        assert unique == composed


@given(words)
def test_the_form_of_unicode_makes_no_other_class(names: list[str]) -> None:
    names = [*names, "caf\u00e9", "\u1100\u1161", "\u212b"]
    forms = {unique_names([unicodedata.normalize(form, name) for name in names]) for form in ("NFC", "NFD")}
    assert forms == {unique_names(names)}


@given(st.permutations(["dog", "cat", "bird", "no"]), st.permutations(["dog", "cat", "bird", "no"]))
def test_another_order_is_matched_by_name(own: list[str], wanted: list[str]) -> None:
    data = dataset(tuple(own), [0, 3, 1, 2, 0], [2])
    found, notes = fit_classes(data, wanted, "the model")
    assert found.names == tuple(wanted)
    assert named(found) == named(data)
    assert found.names[int(found[0].crowds[0, 0])] == own[2]
    assert bool(notes) == (own != wanted)
    assert found is data or own != wanted


@pytest.mark.parametrize("wanted", [("dog", "bird"), ("dog", "cat", "bird"), ("dog",), ("Dog", "cat"), ("dog", "cat ")])
def test_other_classes_are_refused_with_both_lists(wanted: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="different classes") as caught:
        fit_classes(dataset(("dog", "cat"), [0, 1]), wanted, "the model")
    for name in {"dog", "cat"} ^ set(wanted):
        assert repr(name) in (caught.value.found or "")


def test_classes_without_objects_that_the_model_lacks_are_left_out() -> None:
    data = dataset(("root", "dog", "cat"), [1, 2, 1])
    found, notes = fit_classes(data, ("cat", "dog"), "the model")
    assert named(found) == named(data)
    assert "root" in notes[0]
    for used in ([0, 1], [1, 2]):
        crowds = [0] if used == [1, 2] else []
        with pytest.raises(DataError, match="root"):
            fit_classes(dataset(("root", "dog", "cat"), used, crowds), ("dog", "cat"), "the model")


def test_made_up_names_and_none_say_only_how_many_there_are() -> None:
    data = dataset(("dog", "cat"), [0, 1])
    assert fit_classes(data, None, "the model") == (data, ())
    assert fit_classes(data, made_up_names(2), "the model") == (data, ())
    nameless = dataset(made_up_names(2), [0, 1])
    assert fit_classes(nameless, ("dog", "cat"), "the model") == (nameless, ())
    with pytest.raises(DataError):
        fit_classes(nameless, ("dog", "cat", "bird"), "the model")


def test_splits_get_the_classes_of_the_first() -> None:
    train, val = dataset(("root", "dog", "cat"), [1, 2], split="train"), dataset(("cat", "dog"), [0, 1, 1])
    for first, second in ((train, val), (val, train)):
        one, other, notes = fit_splits(first, second)
        assert set(one.names) == {"dog", "cat"} and one.names == other.names
        assert (named(one), named(other)) == (named(first), named(second))
        assert any("root" in note for note in notes)
    with pytest.raises(DataError, match="bird"):
        fit_splits(dataset(("dog", "cat", "bird"), [2]), val)


def test_nothing_is_measured_without_objects() -> None:
    demand_objects(dataset(("a",), [0]))
    with pytest.raises(DataError, match="without a labelled object"):
        demand_objects(dataset(("a",), [], [0]))
