"""Reading files that may be anything, and showing names that may hold anything."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from repq.errors import DataError, RepqError, reason
from repq.printable import first_names, printable
from repq.reading import (
    decode,
    expanded,
    lines,
    number,
    parse_yaml,
    read_bytes,
    read_json,
    read_text,
    read_yaml,
    whole,
)


@given(st.text(st.characters(codec=None), max_size=60))
def test_shown_text_steers_nothing(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert printable(shown) == shown
    assert all(character.isprintable() or character in "\u200c\u200d" or character.isspace() for character in shown)
    assert not set(shown) & {"\n", "\r", "\t", "\x1b", "\u2028", "\u202e"}


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=100))
def test_plain_text_is_shown_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_long_text_is_shortened() -> None:
    shown = printable("a" * 5000 + "b", 100)
    assert len(shown) == 100
    assert shown.startswith("aaa") and shown.endswith("aab")


def test_errors_hold_no_raw_control_characters() -> None:
    error = RepqError("cannot read \x1b[31mred", found="\u202eevil\x07", fix="two\nlines")
    assert "\x1b" not in str(error) and "\u202e" not in str(error) and "\x07" not in str(error)
    assert str(error).splitlines()[-1] == "lines"
    assert "\\x1b[31mred" in error.what


@given(st.lists(st.text(st.characters(codec=None), min_size=1, max_size=8)), st.integers(1, 6))
def test_of_many_names_the_first_are_told_and_how_many_there_are_more(names: list[str], show: int) -> None:
    told = first_names(names, show)
    listed, _, rest = told.partition(f" and {len(names) - show} more") if len(names) > show else (told, "", "")
    assert listed == (", ".join(map(printable, names[:show])) or "none") and not rest


@given(st.sampled_from([OSError, RuntimeError, ValueError, AssertionError]), st.text(st.characters(codec=None)))
def test_whatever_a_library_raises_is_told_in_one_line(kind: type[Exception], said: str) -> None:
    """Also what says nothing, or nothing but blank lines."""
    told = reason(kind(said))
    assert told and told == printable(told) and "\n" not in told
    assert told == kind.__name__ if not said.strip() else told == printable(said.strip().splitlines()[0])


def test_what_the_system_says_of_a_file_is_told_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing") as caught:
        (tmp_path / "missing").read_bytes()
    assert reason(caught.value) == "No such file or directory"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_byte_order_marks_are_understood(encoding: str) -> None:
    marks = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}
    assert decode(marks.get(encoding, b"") + "0 ä €\n".encode(encoding)) == "0 ä €\n"


def test_lines_end_at_line_breaks_alone() -> None:
    assert lines("a\u2028b\x0bc\r\nd\re\nf") == ["a\u2028b\x0bc", "d", "e", "f"]


class TestFiles:
    @pytest.fixture(params=["folder", "pipe", "device", "missing", "nul", "long", "below a file", "loop", "socket"])
    def odd(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        path = tmp_path / "odd"
        if request.param == "folder":
            path.mkdir()
        elif request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "device":
            return Path("/dev/zero")
        elif request.param == "nul":
            return tmp_path / "a\0b"
        elif request.param == "long":
            return tmp_path / ("a" * 5000)
        elif request.param == "below a file":
            path.write_text("")
            return path / "x"
        elif request.param == "loop":
            path.symlink_to(path)
        elif request.param == "socket":
            import socket

            socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))
        return path

    @pytest.mark.parametrize(
        "read", [read_text, read_yaml, read_json, lambda path, error: read_bytes(path, 9, error=error)]
    )
    def test_what_is_no_file_is_refused_at_once(self, odd: Path, read) -> None:
        started = time.perf_counter()
        with pytest.raises(DataError, match="cannot read") as caught:
            read(odd, error=DataError)
        assert caught.value.found and caught.value.fix
        assert time.perf_counter() - started < 1

    def test_size_is_bounded_and_a_variable_raises_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "a"
        path.write_bytes(b"x" * 100)
        assert read_bytes(path, 100) == b"x" * 100
        with pytest.raises(RepqError, match="REPQ_MAX_FILE_MIB"):
            read_bytes(path, 99)
        monkeypatch.setenv("REPQ_MAX_FILE_MIB", "1")
        assert len(read_bytes(path, 99)) == 100

    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux")
    def test_a_file_that_says_nothing_of_its_size_is_read_whole(self) -> None:
        assert b"Name:" in read_bytes(Path("/proc/self/status"), 1 << 20)

    def test_an_unknown_user_and_variable_stay_as_written(self) -> None:
        assert str(expanded("~nosuchuser_x/$NOSUCH_X")) == "~nosuchuser_x/$NOSUCH_X"
        assert expanded("~") == Path.home()


class TestYaml:
    @given(st.lists(st.sampled_from(["a", "b", "0", "1.0", "no", "é", "~"]), min_size=1, max_size=5), st.booleans())
    def test_a_key_given_twice_is_refused(self, keys: list[str], nested: bool) -> None:
        text = "\n".join(f"{'  ' * nested}{key}: {number}" for number, key in enumerate(keys))
        text = f"outer:\n{text}" if nested else text
        if len(set(keys)) < len(keys):
            with pytest.raises(DataError, match="is given twice"):
                parse_yaml(text, "x.yaml", error=DataError)
        else:
            assert parse_yaml(text, "x.yaml", error=DataError) == yaml.safe_load(text)

    def test_merged_keys_may_be_given_anew(self) -> None:
        assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}", "x.yaml")["b"] == {"x": 3, "y": 2}

    def refused(self, text: str, match: str) -> None:
        started = time.perf_counter()
        with pytest.raises(RepqError, match=match) as caught:
            parse_yaml(text, "here")
        assert time.perf_counter() - started < 5
        assert len(str(caught.value)) < 1000

    @pytest.mark.parametrize("form", ["list", "merge", "mapping"])
    @pytest.mark.parametrize("width", [2, 9])
    def test_aliases_are_counted_written_out(self, form: str, width: int) -> None:
        rows = ["a0: &a0 {x: 1}" if form != "list" else "a0: &a0 [1]"]
        for level in range(1, 30):
            inner = ", ".join([f"*a{level - 1}"] * width)
            body = {"list": f"[{inner}]", "merge": f"{{<<: [{inner}]}}"}.get(form) or (
                "{" + ", ".join(f"k{i}: *a{level - 1}" for i in range(width)) + "}"
            )
            rows.append(f"a{level}: &a{level} {body}")
        self.refused("\n".join(rows), "more than 1000000 values")

    def test_an_alias_inside_itself(self) -> None:
        self.refused("a: &a [*a]", "inside what it names")
        self.refused("a: &a {b: {c: *a}}", "inside what it names")

    @pytest.mark.parametrize("text", ["[" * 5000 + "]" * 5000, "{a: " * 500 + "1" + "}" * 500, "- " * 100 + "1"])
    def test_depth_is_bounded(self, text: str) -> None:
        self.refused(text, "levels deep")

    def test_depth_counts_what_aliases_bring(self) -> None:
        rows = ["a0: &a0 1", *(f"a{n}: &a{n} {'[' * 20}*a{n - 1}{']' * 20}" for n in range(1, 9))]
        self.refused("\n".join(rows), "levels deep")

    @pytest.mark.parametrize(
        "tag", ["int", "float", "bool", "timestamp", "binary", "omap", "set", "pairs", "null", "map"]
    )
    @given(text=st.text(st.characters(categories=["L", "N"]), max_size=8))
    def test_tags_on_anything_never_crash(self, tag: str, text: str) -> None:
        with suppress(RepqError):
            parse_yaml(f"a: !!{tag} '{text}'", "here")

    @pytest.mark.parametrize(
        "number",
        ["9" * 5000, "9" * 4000, "-" + "9" * 30, "0x" + "f" * 40, "0b" + "1" * 100, "0" + "7" * 50, "1:" * 40 + "1"],
    )
    def test_numbers_are_bounded(self, number: str) -> None:
        self.refused(f"nc: {number}", "no number")

    @pytest.mark.parametrize("text", ["0_1", "1_000", "1_0.5", "0x1_0", "+1_0"])
    def test_a_number_with_blanks_of_its_own_is_refused_with_its_line(self, text: str) -> None:
        self.refused(f"a: 1\nnc: {text}", "line 2")
        assert parse_yaml(f"nc: '{text}'", "here") == {"nc": text}
        assert parse_yaml(f"names: [{text}]", "here", as_written=("names",)) == {"names": [text]}

    def test_plain_values_are_those_of_pyyaml(self) -> None:
        text = (
            "a: [1, -2, 0x10, 010, 1.5, 1e3, .inf, yes, no, ~, 2001-01-01, 'x', \"\\x41\"]\n"
            "b: &b {c: [d], e: {}}\nf: {<<: *b, g: *b}\n"
        )
        assert parse_yaml(text, "here") == yaml.safe_load(text)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        )
    )
    def test_what_pyyaml_writes_is_read_back(self, value) -> None:
        assert parse_yaml(yaml.safe_dump(value), "here") == value

    def test_some_keys_keep_texts_as_they_are_written(self) -> None:
        words = ["no", "on", "Yes", "~", "null", "1.0", "007", "1e3", "2001-01-01", "0x1F", "1:30", "=", "<<", "'no'"]
        plain = [word.strip("'") for word in words]
        text = "names:\n" + "".join(f"  - {word}\n" for word in words) + "other: [no]\n"
        assert parse_yaml(text, "here", as_written=("names",)) == {"names": plain, "other": [False]}
        text = "names:\n" + "".join(f"  {n}: {word}\n" for n, word in enumerate(words))
        assert parse_yaml(text, "here", as_written=("names",)) == {
            "names": {str(n): word for n, word in enumerate(plain)}
        }


def test_json_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text in ("[" * 100_000, '{"a":' * 100_000, f"[{'9' * 5000}]", "{", "", "\0"):
        path.write_text(text)
        with pytest.raises(DataError, match="no valid JSON") as caught:
            read_json(path, error=DataError)
        assert caught.value.found
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(path) == [1]


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["", " ", "\t", "\n"]))
def test_what_python_prints_of_a_number_is_that_number(value: float, blank: str) -> None:
    assert number(f"{blank}{value}{blank}") == float(value)


@given(st.text("0123456789+-.eE_ naif\uff11\u0661x", max_size=8))
def test_what_is_read_as_a_number_is_one_for_python_and_has_no_other_signs(text: str) -> None:
    found = number(text)
    if found is not None:
        assert found == float(text) and set(text.strip()) <= set("0123456789+-.eE")
    count = whole(text, digits=4)
    assert count is None or (count == int(text) and set(text.strip()) <= set("0123456789") and len(text.strip()) <= 4)


@pytest.mark.parametrize(
    "text", ["0_1", "1_0.5", "nan", "inf", "-Infinity", "\uff11", "\u0661", "", " ", "1 2", "0x1", "1e", "."]
)
def test_what_is_no_number(text: str) -> None:
    assert number(text) is None and whole(text, digits=9) is None


def test_a_number_that_is_too_large_is_infinite() -> None:
    assert number("1e400") == float("inf") and number("-1e400") == -float("inf")
    assert whole(" 12 ", digits=2) == 12 and whole("123", digits=2) is None
