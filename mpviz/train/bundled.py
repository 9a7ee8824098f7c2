"""How the bundled networks were trained: ``python -m mpviz.train.bundled fashion-vit --data FOLDER --out data/models``.

FOLDER holds the four original Fashion-MNIST files (60 000 + 10 000 images, ``*-ubyte.gz``). The test images are read
once, after the last epoch, for the accuracy in the model card.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from mpviz.files import write_together
from mpviz.nets.architectures import build
from mpviz.nets.data import FASHION_MEAN, FASHION_STD
from mpviz.nets.forward import logits
from mpviz.nets.idx import read_idx
from mpviz.train.loop import Schedule, fit

SCHEDULES = {
    "fashion-mlp": Schedule(learning_rate=0.05, epochs=40, lambda2=5e-5, bfloat16=False, shift=0),
    "fashion-mlp-l1": Schedule(learning_rate=0.05, epochs=40, lambda1=2e-6, lambda2=2e-5, bfloat16=False, shift=0),
    "fashion-resnet": Schedule(learning_rate=0.1, epochs=18, lambda2=2e-4),
    "fashion-vit": Schedule(optimizer="adam", learning_rate=1e-3, epochs=14, batch=64, lambda2=5e-6, shift=1),
}


def _tensors(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.from_numpy(read_idx(folder / f"{part}-images-idx3-ubyte.gz").copy())
    labels = torch.from_numpy(read_idx(folder / f"{part}-labels-idx1-ubyte.gz").copy()).long()
    return ((pixels.float() / 255 - FASHION_MEAN) / FASHION_STD)[:, None], labels


def _accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    return float((logits(model, images).argmax(1) == labels).double().mean())


def train(name: str, data: Path, out: Path) -> dict:
    """Train one bundled network, write ``name.safetensors`` and ``name.json`` into `out`, return the card."""
    schedule = SCHEDULES[name]
    started = time.monotonic()
    model = build(name, seed=schedule.seed)
    for module in model.modules():
        if hasattr(module, "fused_attn"):  # its bfloat16 backward pass on CPUs takes more than half of a step
            module.fused_attn = False  # type: ignore[assignment]
    images, labels = _tensors(data, "train")
    history: list[dict] = []

    def after_epoch(row: dict) -> None:
        history.append({k: round(v, 5) for k, v in row.items()})
        print(name, history[-1], flush=True)

    fit(model, images, labels, schedule, after_epoch)
    test_images, test_labels = _tensors(data, "t10k")
    card = {
        "name": name,
        "data": "Fashion-MNIST, 60 000 training images; test accuracy on all 10 000 test images",
        "classes": 10,
        "input": {"size": [1, 28, 28], "mean": FASHION_MEAN, "std": FASHION_STD},
        "parameters": sum(p.numel() for p in model.parameters()),
        "test_accuracy": _accuracy(model, test_images, test_labels),
        "train_accuracy": _accuracy(model, images, labels),
        "objective": "cross-entropy + lambda1·sum|A| + lambda2·sum A² over weights with two or more axes (coupled)",
        "recipe": asdict(schedule),
        "history": history,
        "command": f"python -m mpviz.train.bundled {name} --data FOLDER",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "cpu": platform.machine(),
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.monotonic() - started),
        "licence": "MIT (weights, as mpviz); Fashion-MNIST: MIT, Zalando SE",
    }
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
    write_together(
        out,
        {
            f"{name}.safetensors": lambda path: save_file(weights, path),
            f"{name}.json": lambda path: path.write_text(text, encoding="utf-8"),
        },
    )
    return card


def main() -> None:
    """Train the networks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=sorted(SCHEDULES))
    parser.add_argument("--data", type=Path, required=True, help="folder of the four original IDX files")
    parser.add_argument("--out", type=Path, default=Path("data/models"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.names:
        card = train(name, arguments.data, arguments.out)
        print(f"{name}: test accuracy {card['test_accuracy']:.4f} after {card['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
