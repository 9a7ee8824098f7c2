"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

Writer = Callable[[Path], object]


@contextlib.contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Make `folder` where it is missing; what was made goes again when the block fails."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for part in missing:
            with contextlib.suppress(OSError):
                part.rmdir()
        raise


def _settle(path: Path, place: Path) -> None:
    """Force a file to disk and give it the rights of the one whose place it takes: temporary files are private."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    path.chmod(place.stat().st_mode & 0o777 if place.exists() else 0o666 & ~_UMASK)


def _umask() -> int:
    mask = os.umask(0o077)  # the only way to read it is to set it
    os.umask(mask)
    return mask


_UMASK = _umask()  # once, at import: two threads that set it at the same time would leave it private


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`; it takes the place of `path` when the block ends without an error.

    The file is forced to disk before the name changes hands, so that a killed process or a full disk leaves the old
    file, or none, but never half of one. The temporary file is removed whatever happens.
    """
    path = Path(path)
    with _folder(path.parent):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        temporary = Path(name)
        try:
            os.close(handle)
            yield temporary
            _settle(temporary, path)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_with(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_with(path: str | Path, write: Writer) -> None:
    """Let `write` fill a temporary file that then becomes `path`."""
    with replacing(path) as temporary:
        write(temporary)


def write_together(folder: str | Path, writers: Mapping[str, Writer], gone: Sequence[str] = ()) -> None:
    """Write several files {name: writer} of one folder: all of them take their places, in this order, or none does.

    gone: names that must not be there afterwards, unless they are written.

    Everything is written and forced to disk in a temporary folder first. When a file cannot take its place after all,
    those before it give theirs back to the files that were there.
    """
    folder = Path(folder)
    with _folder(folder):
        stage = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=folder))
        try:
            for name, write in writers.items():
                write(stage / name)
                _settle(stage / name, folder / name)
            _move(stage, folder, list(writers), [name for name in gone if name not in writers])
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def _move(stage: Path, folder: Path, names: Sequence[str], gone: Sequence[str]) -> None:
    moved: list[str] = []
    try:
        for name in gone:
            if (folder / name).exists():
                moved.append(name)
                os.replace(folder / name, stage / f"{name}.old")
        for name in names:
            if (folder / name).exists():
                _keep(folder / name, stage / f"{name}.old")
            moved.append(name)
            os.replace(stage / name, folder / name)
    except BaseException:
        for name in reversed(moved):
            _give_back(stage, folder, name)
        raise


def _keep(path: Path, copy: Path) -> None:
    try:
        os.link(path, copy)
    except OSError:  # a file system without hard links
        shutil.copy2(path, copy)


def _give_back(stage: Path, folder: Path, name: str) -> None:
    with contextlib.suppress(OSError):
        if (stage / f"{name}.old").exists():
            os.replace(stage / f"{name}.old", folder / name)
        elif not (stage / name).exists():  # it had taken a place where nothing was
            (folder / name).unlink()
