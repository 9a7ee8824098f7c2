"""What a grid of methods came to: its finished cells, measured numbers, and the spectra before and after."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mpviz.certificates.cross_entropy import exact_change
from mpviz.certificates.margins import compare_logits
from mpviz.errors import CheckpointError, DataError, nearest
from mpviz.nets.layers import infos_of
from mpviz.nets.paths import data_root
from mpviz.nets.spectra import layer_spectra
from mpviz.nets.store import load
from mpviz.nets.weights import open_weights
from mpviz.nets.zoo import load_model
from mpviz.recipe import Recipe, read_recipe
from mpviz.recipe_parts import dense_model

COMMITTED = {"recovery-grid": "with recovery", "methods": "without recovery"}
PHASES = {"recovery-grid": "recovered", "methods": "pruned"}


@dataclass(frozen=True)
class GridResult:
    """metrics: one row a cell and phase ("pruned", "recovered"), all measured; layers: one row a cell and layer.

    Columns of layers: method, seed, sparsity, layer, role, params, and numbers of its entries: removed at the cell's
    sparsity, reservoir (might come back in the step that led there; NaN where it was not recorded), restored (did).

    log: what each step decided, one row a cell or step and layer: method, seed, target (the sparsity at its end), step,
    layer, removed, sparsity (of the layer) and what the method went by; empty where it was not recorded.
    spectra: those of `spectra_after` where they were measured with the grid, None where its checkpoints can tell.
    """

    recipe: Recipe
    metrics: pd.DataFrame
    layers: pd.DataFrame
    environment: Mapping[str, Any]
    folder: Path
    spectra: pd.DataFrame | None = None
    log: pd.DataFrame = field(default_factory=pd.DataFrame)


def measured_change(dense: Tensor, pruned: Tensor, labels: Tensor, split: str) -> dict[str, Any]:
    """A cell's numbers from logits Float["b k"] of both networks: all measured, coverage as in `mp.certify`.

    budget: 2·mean‖Δz‖∞, the least that any data-path budget B_T can be, whatever its constants. cross_entropy_change:
    of the pruned network over the dense one, nats.
    """
    cert = compare_logits(dense, pruned, labels, split)
    return {
        "accuracy": cert.accuracy,
        "dense_accuracy": cert.dense_accuracy,
        "coverage": cert.coverage,
        "unchanged": cert.unchanged,
        "budget": 2 * float(cert.eta.mean()),
        "cross_entropy_change": float(exact_change(dense, pruned, labels).mean),
        "samples": len(cert),
    }


def read_grid(
    folder: str | Path, recipe: Recipe | None = None, environment: Mapping[str, Any] | None = None
) -> GridResult:
    """What a grid came to so far: every finished cell of its folder, those of earlier calls too.

    recipe, environment: None reads them from the folder.
    Raises CheckpointError when the folder holds no cells or damaged ones.
    """
    folder = Path(folder)
    files = sorted(folder.glob("cells/*/*/cell-*.json"))
    if not files:
        raise CheckpointError(f"{folder} holds no finished cells of a grid; run a recipe with grid.methods into it")
    rows: dict[str, list[dict[str, Any]]] = {"metrics": [], "layers": [], "log": []}
    for path in files:
        try:
            cell = json.loads(path.read_text(encoding="utf-8"))
            for name, known in rows.items():
                known.extend(cell[name])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); delete it and run the recipe again") from error
    if environment is None:
        place = folder / "environment.json"
        try:
            environment = dict(json.loads(place.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{place} is missing or damaged ({error}); run the recipe again") from error
    metrics, layers, log = (pd.DataFrame(known) for known in rows.values())
    recipe = recipe or read_recipe(folder / "recipe.toml")
    return GridResult(recipe, metrics, layers, environment, folder, log=log)


def environment() -> dict[str, Any]:
    """What a run ran on: versions, processor, threads."""
    found = {"python": platform.python_version(), "system": platform.platform(), "processors": os.cpu_count()}
    for package in ("mpviz", "torch", "timm", "accelerate", "numpy", "scipy", "pandas"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return found | {"threads": torch.get_num_threads(), "cuda": cuda}


def spectra_after(
    result: GridResult, sparsity: float | None = None, layers: int = 6, seed: int | None = None
) -> pd.DataFrame:
    """Singular values before and after: the layers that lost most entries, in the dense network and after each method.

    sparsity: None takes the largest that most methods reached. layers: how many. seed: None takes the first of each
    method. Rows are those of `method_spectra`. They are measured on the checkpoints of the cells, which must still be
    there; a committed grid brings those that were measured with it, and the other arguments do not matter then.
    Raises DataError for a sparsity or seed that no method has, or a grid without checkpoints; CheckpointError for a
    checkpoint that cannot be read.
    """
    if result.spectra is not None:
        return result.spectra
    cells = result.layers
    if not (result.folder / "cells").is_dir():
        raise DataError("this grid comes without its checkpoints, so no spectra go with it")
    known = cells.groupby("sparsity")["method"].nunique()
    at = float(known[known == known.max()].index.max()) if sparsity is None else sparsity
    cells = cells[(cells["sparsity"] - at).abs() < 1e-9]
    if seed is not None:
        cells = cells[cells["seed"] == seed]
    if cells.empty:
        have = ", ".join(f"{value:g}" for value in known.index)
        raise DataError(f"the grid has no cell of sparsity {at:g} and that seed; its sparsities are {have}")
    most = cells.groupby("layer", sort=False)["removed"].sum().nlargest(layers).index.tolist()
    dense = dense_model(result.recipe)

    def networks() -> Iterator[tuple[str, nn.Module]]:
        yield "dense", dense
        for method, own in cells.groupby("method", sort=False):
            folder = result.folder / "cells" / str(method) / f"seed-{own['seed'].iloc[0]}"
            yield str(method), load(folder / f"stage-{at:.4f}.safetensors", dense).model

    return method_spectra(networks(), most, at)


def method_spectra(networks: Iterable[tuple[str, nn.Module]], layers: Sequence[str], sparsity: float) -> pd.DataFrame:
    """One row a layer and network: columns method, sparsity, layer, values, sigma_plus, grade, verdict.

    networks: names and networks, "dense" among them; each is looked at and let go before the next is asked for.
    values: singular values of the layer, ascending; sigma_plus: √(N λ₊) of the fit, NaN where there is none; grade and
    verdict: of the fit, as in `mp.analyze`. Raises ModelError for unknown layers.
    """
    found = {name: layer_spectra(network, layers) for name, network in networks}
    rows = []
    for layer in layers:
        for name, spectra in found.items():
            one = spectra[layer]
            values = np.sqrt(one.info.rows * np.clip(one.eigenvalues, 0.0, None))
            rows.append({
                "method": name, "sparsity": sparsity, "layer": layer, "values": values.tolist(),
                "sigma_plus": one.fit.sigma_plus, "grade": one.fit.grade, "verdict": one.fit.verdict,
            })  # fmt: skip
    return pd.DataFrame(rows)


def committed_grids() -> dict[str, str]:
    """Names and titles of the grids that come with mpviz as records of measurements."""
    found: dict[str, str] = {}
    for record, words in COMMITTED.items():
        cells = _record(record).get("cells", [])
        found |= {f"{record}/{name}": f"{name}, {words}" for name in dict.fromkeys(cell["network"] for cell in cells)}
    return found


def committed_grid(name: str) -> GridResult:
    """A grid that comes with mpviz, as measured on the day that its environment says; it has no checkpoints.

    name: of `committed_grids`, such as "methods/fashion-vit". Raises DataError for another one.
    """
    known = committed_grids()
    if name not in known:
        raise DataError(f"no grid '{name}' comes with mpviz; {nearest(name, known)}")
    record, _, network = name.partition("/")
    kept = _record(record)
    cells = [cell for cell in kept["cells"] if cell["network"] == network]
    frame = pd.DataFrame(cells).drop(columns=["network", "layers"], errors="ignore")
    # what is not trained is not random either, unless its cells say so
    missing = {"seed": 0, "budget": np.nan}
    metrics = frame.assign(phase=PHASES[record], **{k: v for k, v in missing.items() if k not in frame})
    recipe = replace(Recipe(), model=replace(Recipe().model, name=network))
    about = {key: kept[key] for key in ("command", "date", "hardware")} | dict(kept["versions"])
    spectra = kept.get("spectra", {}).get(network)
    layers = _committed_layers(network, [cell for cell in cells if "layers" in cell])
    return GridResult(
        recipe, metrics, layers, about, data_root() / "benchmarks", None if spectra is None else pd.DataFrame(spectra)
    )


def _committed_layers(network: str, cells: list[dict[str, Any]]) -> pd.DataFrame:
    infos = {one.name: one for one in infos_of(open_weights(load_model(network)).matrices)} if cells else {}
    reservoirs = _reservoirs(cells)
    return pd.DataFrame(
        [
            {"method": cell["method"], "seed": cell.get("seed", 0), "sparsity": cell["sparsity"], "layer": layer,
             "role": infos[layer].role, "params": infos[layer].params, "removed": removed,
             "reservoir": might.get(layer, np.nan), "restored": cell.get("restored_layers", {}).get(layer, 0)}
            for cell, might in zip(cells, reservoirs, strict=True) for layer, removed in cell["layers"].items()
        ],
        columns=["method", "seed", "sparsity", "layer", "role", "params", "removed", "reservoir", "restored"],
    )  # fmt: skip


def _reservoirs(cells: list[dict[str, Any]]) -> list[dict[str, int]]:
    """What might come back in the step to each cell, by layer: what the step removed, whether it then came back or not.

    A path of the record stops at its cells alone, and in its steps only what they remove themselves can come back.
    Empty where a cell says only in all how much came back.
    """
    ends = {(cell["method"], cell.get("seed", 0), cell["sparsity"]): cell["layers"] for cell in cells}
    found = []
    for cell in cells:
        method, seed, sparsity = cell["method"], cell.get("seed", 0), cell["sparsity"]
        back = cell.get("restored_layers", {} if cell.get("restored") else dict.fromkeys(cell["layers"], 0))
        before = max((s for m, k, s in ends if (m, k) == (method, seed) and s < sparsity), default=None)
        gone = {} if before is None else ends[method, seed, before]
        found.append({layer: cell["layers"][layer] + count - gone.get(layer, 0) if cell.get("restored") else 0
                      for layer, count in back.items()})  # fmt: skip
    return found


def _record(name: str) -> dict[str, Any]:
    path = data_root() / "benchmarks" / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
