"""Files are there whole or not at all: every step of a write is made to fail, and nothing may change."""

from __future__ import annotations

import builtins
import errno
import os
import pathlib
from collections.abc import Callable
from pathlib import Path

import pytest

from mpviz import files
from mpviz.files import replacing, write_text, write_together

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Failing:
    """A module in which one function fails at its nth call, from then on or once, and all else works."""

    def __init__(self, module: object, name: str, nth: int = 1, once: bool = False) -> None:
        self._module, self._name, self._nth, self._once = module, name, nth, once
        self.calls = 0

    def __getattr__(self, name: str) -> object:
        real = getattr(self._module, name)
        if name != self._name:
            return real

        def maybe(*args: object, **options: object) -> object:
            self.calls += 1
            if self.calls == self._nth or (self.calls > self._nth and not self._once):
                raise FULL
            return real(*args, **options)

        return maybe


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fail(monkeypatch: pytest.MonkeyPatch, step: str, nth: int = 1, once: bool = False) -> None:
    module, name = step.split(".")
    if step == "builtins.open":
        monkeypatch.setattr(files, "open", Failing(builtins, "open", nth, once).open, raising=False)
    elif module == "Path":
        monkeypatch.setattr(pathlib.Path, name, _unable)
    else:
        monkeypatch.setattr(files, module, Failing(getattr(files, module), name, nth, once))


def _unable(*_: object, **__: object) -> None:
    raise FULL


STEPS = ["tempfile.mkstemp", "os.close", "builtins.open", "os.fsync", "Path.chmod", "os.replace"]


@pytest.mark.parametrize("step", STEPS)
def test_a_failing_step_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "b.txt").write_text("other")
    before = contents(tmp_path)
    fail(monkeypatch, step)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "a.txt", "new")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("step", ["Path.mkdir", *STEPS])
def test_a_failing_step_leaves_no_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    fail(monkeypatch, step)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "deep" / "deeper" / "a.txt", "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_what_stops_a_writer_half_way_leaves_the_old_file(tmp_path: Path, stop: type[BaseException]) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(stop), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half of the n")
        raise stop
    assert contents(tmp_path) == {"a.txt": b"old"}


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    for text in ("old", "new: σ₊\n"):
        write_text(tmp_path / "new" / "a.txt", text)
        assert contents(tmp_path) == {"new/a.txt": text.encode()}
    assert (tmp_path / "new" / "a.txt").stat().st_mode & 0o777 == 0o644


def _writers(texts: dict[str, str]) -> dict[str, Callable[[Path], object]]:
    return {name: (lambda path, text=text: path.write_text(text)) for name, text in texts.items()}


def test_files_written_together_arrive_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    real = os.replace

    class Noting(Failing):
        def __getattr__(self, name: str) -> object:
            if name == "replace":
                return lambda a, b: (order.append(Path(b).name), real(a, b))
            return getattr(os, name)

    monkeypatch.setattr(files, "os", Noting(os, ""))
    write_together(tmp_path / "run", _writers({"z": "1", "a": "2", "last": "3"}))
    assert order == ["z", "a", "last"]
    assert contents(tmp_path) == {"run/z": b"1", "run/a": b"2", "run/last": b"3"}


EACH = [(step, nth) for step in ("builtins.open", "os.fsync", "os.replace") for nth in (1, 2, 3)]


@pytest.mark.parametrize(("step", "nth"), [("tempfile.mkdtemp", 1), ("Path.chmod", 1), *EACH])
def test_of_files_written_together_all_change_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, nth: int
) -> None:
    for name in ("a", "b", "mine"):  # c is new
        (tmp_path / name).write_text(f"old {name}")
    before = contents(tmp_path)
    fail(monkeypatch, step, nth, once=True)
    with pytest.raises(OSError, match="No space left"):
        write_together(tmp_path, _writers({"a": "new a", "c": "new c", "b": "new b"}))
    assert contents(tmp_path) == before


def test_a_folder_that_was_made_for_them_goes_again(tmp_path: Path) -> None:
    def stops(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_together(tmp_path / "x" / "y", {**_writers({"a": "whole"}), "b": stops})
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_hard_links_is_good_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        (tmp_path / name).write_text(f"old {name}")

    class NoLinks(Failing):
        def __getattr__(self, name: str) -> object:
            return _unable if name == "link" else super().__getattr__(name)

    monkeypatch.setattr(files, "os", NoLinks(os, "replace", 2, once=True))
    with pytest.raises(OSError, match="No space left"):
        write_together(tmp_path, _writers({"a": "new a", "b": "new b"}))
    assert contents(tmp_path) == {"a": b"old a", "b": b"old b"}
