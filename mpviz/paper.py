"""The rows of the paper's structured tables as recipes, and its printed numbers."""

from __future__ import annotations

import csv
from dataclasses import dataclass

from mpviz.errors import RecipeError
from mpviz.nets.paths import data_root
from mpviz.recipe import CertifyPlan, DataPlan, ModelPlan, ProjectPlan, Recipe, RecoverPlan

IMAGENET = "imagenet"  # the folder that a recipe names, until data.name says another


@dataclass(frozen=True)
class PaperRow:
    """One row as printed: what was done, and what came of it. Percentages and points; None where nothing is printed.

    source: "dense" or "ser@0.35". permute: "yes", "no" or "". tome: pairs of tokens merged a block. endpoint: what the
    speed was measured at.
    """

    row: int
    architecture: str
    checkpoint: str
    source: str
    method: str
    pattern: str
    tome: int
    permute: str
    alpha_ser: float | None
    dense_gmacs: float | None
    mac_reduction: float | None
    dense_top1: float | None
    top1: float | None
    speedup: float | None
    endpoint: str


def paper_rows() -> list[PaperRow]:
    """All 22 rows of arXiv:2606.02608's structured tables and endpoints, from data/paper/paper_rows.csv."""
    with (data_root() / "paper" / "paper_rows.csv").open(newline="", encoding="utf-8") as file:
        return [_row(line) for line in csv.DictReader(file)]


def _row(line: dict[str, str]) -> PaperRow:
    def number(name: str) -> float | None:
        return float(line[name]) if line[name] else None

    return PaperRow(
        row=int(line["row"]), architecture=line["architecture"], checkpoint=line["timm_checkpoint"],
        source=line["source"], method=line["method"], pattern=line["pattern"], tome=int(line["tome_r"] or 0),
        permute=line["permute"], alpha_ser=number("alpha_ser"), dense_gmacs=number("dense_gmacs"),
        mac_reduction=number("mac_reduction_pct"), dense_top1=number("dense_top1"), top1=number("top1"),
        speedup=number("measured_speedup"), endpoint=line["speedup_endpoint"],
    )  # fmt: skip


def paper_recipe(row: int | PaperRow, data: str = IMAGENET) -> Recipe:
    """The recipe of a row: model, source, pattern and training as the paper describes them.

    data: of `mp.load_data`: a folder with train/ and val/, or any timm data set. "yes" under permutation is the paper's
    interleaving. Distillation: three epochs; AdamW 1e-5, weight decay 0.01, batch 32 for transformers and ConvNeXt
    (1e-4, 0.05 and 256 for 6:12), SGD 1e-3, 1e-4 and 256 for ResNets. Calibration: 256 images, 64 for the 8:16 ResNets.
    ConvNeXtV2 projects its Linear layers, which is what the printed savings count. The endpoint row trains nothing.
    Raises RecipeError for a row that is not there.
    """
    rows = {one.row: one for one in paper_rows()}
    if not isinstance(row, PaperRow) and row not in rows:
        raise RecipeError(f"the paper's tables have no row {row}; give 1 to {max(rows)}")
    one = row if isinstance(row, PaperRow) else rows[row]
    resnet, convnext = one.architecture.startswith("ResNet"), one.architecture.startswith("ConvNeXt")
    source, _, sparsity = one.source.partition("@")
    plan = ProjectPlan(
        pattern=one.pattern, criterion="magnitude" if one.method == "magnitude" else "cast",
        permute="interleave" if one.permute == "yes" else "none", alpha_ser=one.alpha_ser or 0.0, tome=one.tome,
        layers=["mlp"] if convnext else [], images=64 if resnet and one.pattern == "8:16" else 256, source=source,
        source_sparsity=float(sparsity) if sparsity else ProjectPlan.source_sparsity,
    )  # fmt: skip
    epochs = 0.0 if one.top1 is None else 3.0
    wide = one.pattern == "6:12"
    recover = RecoverPlan(
        epochs=epochs, optimizer="sgd" if resnet else "adamw", learning_rate=1e-3 if resnet else 1e-4 if wide else 1e-5,
        batch=256 if resnet or wide else 32,
        options={"weight_decay": 1e-4 if resnet else 0.05 if wide else 0.01, "smoothing": 0.1, "precision": "no"},
    )  # fmt: skip
    return Recipe(ModelPlan(one.checkpoint), DataPlan(data), certify=CertifyPlan(), project=plan, recover=recover)
