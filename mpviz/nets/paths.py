"""Where the bundled data and models lie."""

from __future__ import annotations

import os
from pathlib import Path

from mpviz.errors import DataError


def data_root() -> Path:
    """The folder of bundled data: $MPVIZ_DATA, else `data/` of the source tree, else the installed copy.

    Raises DataError when none of them is there.
    """
    package = Path(__file__).resolve().parent.parent
    asked = os.environ.get("MPVIZ_DATA")
    candidates = [Path(asked)] if asked else [package.parent / "data", package / "_data"]
    for folder in candidates:
        if (folder / "fashion-mnist").is_dir():
            return folder
    tried = " or ".join(str(folder) for folder in candidates)
    raise DataError(
        f"the bundled data are missing: no folder 'fashion-mnist' in {tried}; set MPVIZ_DATA to where they are"
    )
