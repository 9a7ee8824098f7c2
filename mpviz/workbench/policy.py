"""What visitors of a served dashboard may open: what comes with mpviz, what its keeper has listed, and nothing else."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mpviz.errors import AccessError
from mpviz.nets.paths import data_root

DATA = ("fashion-mnist", "digits")
SUFFIX = ".safetensors"
MOST_FILES = 500  # of one folder that are offered: a list that nobody reads to its end
_SHOWN = 12


def bundled_models() -> list[str]:
    """Names of the networks in data/models, read from the files: the zoo would load torch."""
    return sorted(path.stem for path in (data_root() / "models").glob(f"*{SUFFIX}"))


def is_local(address: str) -> bool:
    """Whether this address is reached from the same machine alone. Names other than localhost are not looked up.

    >>> is_local("localhost"), is_local("127.0.0.1"), is_local("0.0.0.0"), is_local("")
    (True, True, False, False)
    """
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Policy:
    """Names, files and folders that visitors may open beside what comes with mpviz.

    restricted: False lets everything be opened, as on one's own machine. models: timm names, .safetensors files, or
    folders whose .safetensors files are offered. data: data set names, or folders of images. folder: of the data set
    that the server was started with; no other is accepted.
    """

    restricted: bool = False
    models: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    folder: str | None = None

    def __post_init__(self) -> None:
        for one in (*self.models, *self.data):
            if one.startswith((".", "/", "~")) and not Path(one).expanduser().exists():
                raise AccessError(f"there is no {one} to offer to visitors; make it, or leave it out")

    def models_offered(self) -> dict[str, str]:
        """{name that is shown: name or real path that is opened}, read from the folders as they are now."""
        found = {name: name for name in bundled_models()}
        for one in self.models:
            found |= dict(_files_of(one)) if _is_place(one) else {one: one}
        return found

    def data_offered(self) -> dict[str, str]:
        """The same of data sets."""
        found = {name: name for name in DATA}
        for one in self.data:
            found |= {_name_of(one): _real(one)} if _is_place(one) else {one: one}
        return found

    def data_folders(self) -> list[Path]:
        """Folders of data that are listed, links resolved."""
        return [Path(_real(one)) for one in self.data if _is_place(one)]

    def model(self, name: str) -> str:
        """What to open for this name. Raises AccessError, whether or not there is such a file, when it is not offered.

        A path is taken for what it is after `..` and links are resolved, and only where that is offered.
        """
        return _opened(name, self.models_offered(), "network") if self.restricted else name

    def data_set(self, name: str, folder: str | None = None) -> tuple[str, str | None]:
        """The same of a data set and the folder it is in; of folders only the one that the server was started with."""
        if not self.restricted:
            return name, folder
        opened = _opened(name, self.data_offered(), "data set")
        if (folder or None) not in (None, "bundled", self.folder):
            raise AccessError(f"this server reads the data set {_quoted(name)} from its own folder alone; leave it out")
        return opened, folder


def _is_place(one: str) -> bool:
    """Whether the keeper, who is trusted, means a place on the disk and no name."""
    return one.endswith(SUFFIX) or Path(one).expanduser().exists()


def _real(one: str) -> str:
    return os.path.realpath(Path(one).expanduser())


def _name_of(one: str) -> str:
    return Path(_real(one)).name


def _files_of(one: str) -> Iterator[tuple[str, str]]:
    place = Path(_real(one))
    if not place.is_dir():
        yield place.name, str(place)
        return
    for path in sorted(place.rglob(f"*{SUFFIX}"))[:MOST_FILES]:
        target = Path(os.path.realpath(path))  # of a circle of links too, where resolve() raises
        # a link that leads out of the folder is not what its keeper listed
        if target.is_relative_to(place) and target.is_file():
            yield f"{place.name}/{path.relative_to(place).as_posix()}", str(target)


def _opened(name: str, offered: Mapping[str, str], what: str) -> str:
    if name in offered:
        return offered[name]
    try:
        target = os.path.realpath(name)
    except (OSError, ValueError):  # too long, a zero byte
        target = ""
    if target and Path(name).name and target in offered.values():
        return target
    raise AccessError(f"this server does not open the {what} {_quoted(name)}; it offers {_list(offered)}")


def _quoted(name: str) -> str:
    """A visitor's words, short and on one line."""
    shown = "".join(letter if letter.isprintable() else "·" for letter in name[:80])
    return f"'{shown}{'…' if len(name) > 80 else ''}'"


def _list(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


@dataclass
class Gate:
    """The policy for one session, which may open what it has uploaded itself as well. uploads: {name: path}."""

    policy: Policy = field(default_factory=Policy)
    uploads: dict[str, str] = field(default_factory=dict)

    @property
    def restricted(self) -> bool:
        """Whether only what is offered can be opened."""
        return self.policy.restricted

    def model(self, name: str) -> str:
        """What to open for this name. Raises AccessError when it is not offered."""
        return self.uploads[name] if name in self.uploads else self.policy.model(name)

    def data_set(self, name: str, folder: str | None = None) -> tuple[str, str | None]:
        """What to open for a data set, and its folder. Raises AccessError when they are not offered."""
        return self.policy.data_set(name, folder)
