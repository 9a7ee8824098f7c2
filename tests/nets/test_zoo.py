"""Models by name: bundled, from timm, from files; and what is said when there is no such thing."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import mpviz as mp
from mpviz.errors import CheckpointError, DataError, ModelError
from mpviz.nets.timm_import import import_timm
from mpviz.nets.zoo import Source, bundled_names, model_card, source_of

TINY = "test_resnet"  # a timm architecture of half a million weights


@pytest.fixture
def no_network(monkeypatch):
    """The hub and every other server are out of reach, at once instead of after a minute of retries."""
    import_timm()
    from timm.models import _builder

    def unreachable(*_, **__):
        raise ConnectionError("Name or service not known")

    for name in ("load_state_dict_from_hf", "load_state_dict_from_url", "download_cached_file"):
        monkeypatch.setattr(_builder, name, unreachable)


def same(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_a_bundled_network_is_what_its_file_holds():
    model = mp.load_model("fashion-mlp")
    assert not model.training and source_of(model) == Source("fashion-mlp")
    images, labels = mp.load_data("fashion-mnist").test.sample()
    with torch.no_grad():
        accuracy = float((model(images).argmax(1) == labels).float().mean())
    assert accuracy == pytest.approx(model_card("fashion-mlp")["test_accuracy"], abs=1e-4)


def test_every_bundled_name_can_be_built_at_random_and_twice_the_same():
    assert {"fashion-mlp", "fashion-mlp-l1", "fashion-vit", "fashion-resnet"} == set(bundled_names())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    for name in bundled_names():
        assert same(mp.load_model(name, pretrained=False), mp.load_model(name, pretrained=False))
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers are untouched


@pytest.mark.parametrize(
    ("name", "near"),
    [("fashion-vti", "fashion-vit"), ("resnet19", "resnet1"), ("vit_bse_patch16_224", "vit_base_patch16_224")],
)
def test_an_unknown_name_suggests_the_nearest(name, near):
    with pytest.raises(ModelError, match=f"unknown model '{name}'; did you mean '{near}"):
        mp.load_model(name)


def test_names_like_nothing_are_refused():
    for name in ("", "hf-hub:someone/something", "..", "fashion-mlp.txt"):
        with pytest.raises(ModelError, match="unknown model"):
            mp.load_model(name)


@pytest.mark.parametrize("options", [{"no_such_option": 1}, {"num_classes": "ten"}])
def test_options_that_an_architecture_does_not_take(options):
    for pretrained in (True, False):
        with pytest.raises(ModelError, match=f"timm cannot build '{TINY}' with {next(iter(options))}="):
            mp.load_model(TINY, pretrained=pretrained, **options)


def test_an_unknown_tag_and_options_for_a_bundled_network_are_refused():
    with pytest.raises(ModelError, match="nonsense"):
        mp.load_model(f"{TINY}.nonsense", pretrained=False)
    with pytest.raises(ModelError, match="fashion-mlp takes no options; got num_classes"):
        mp.load_model("fashion-mlp", num_classes=3)


def test_pretrained_weights_out_of_reach_name_the_remedy(no_network):
    with pytest.raises(
        ModelError, match=rf"'{TINY}' cannot be had \(.*\); open a checkpoint.*give weights=FILE.*pretrained=False"
    ):
        mp.load_model(TINY)


def test_an_architecture_without_pretrained_weights_is_never_random_in_silence(no_network):
    with pytest.raises(ModelError, match="cannot be had"):
        mp.load_model("efficientnet_b0_gn")


# --- weights from a file --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory):
    """A safetensors file as others write them: a state dict, and no metadata of ours."""
    timm = import_timm()
    torch.manual_seed(11)
    model = timm.create_model(TINY, num_classes=5)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


def test_local_weights_fill_a_timm_architecture_without_the_network(tiny_weights, no_network):
    model = mp.load_model(TINY, weights=tiny_weights, num_classes=5)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in load_file(tiny_weights).items())
    assert not model.training and source_of(model) == Source(TINY, {"num_classes": 5})
    assert len(mp.analyze(model)) > 5


def test_weights_that_do_not_fit_are_refused(tiny_weights):
    with pytest.raises(ModelError, match=r"tiny\.safetensors do not fit ResNet.*size mismatch for fc"):
        mp.load_model(TINY, weights=tiny_weights)
    with pytest.raises(ModelError, match=r"tiny\.safetensors do not fit MLP.*Missing key"):
        mp.load_model("fashion-mlp", weights=tiny_weights)


def test_weights_files_that_cannot_be_read(tmp_path, tiny_weights):
    with pytest.raises(CheckpointError, match="no weights at"):
        mp.load_model(TINY, weights=tmp_path / "nothing.safetensors")
    (tmp_path / "half.safetensors").write_bytes(tiny_weights.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=r"half\.safetensors is no whole safetensors file"):
        mp.load_model(TINY, weights=tmp_path / "half.safetensors")


def test_a_path_leads_to_a_checkpoint_and_takes_nothing_beside_it(tmp_path, tiny_weights):
    model = mp.load_model("fashion-mlp", pretrained=False)
    path = mp.save(tmp_path / "a", model)
    assert same(mp.load_model(str(path)), model)
    for beside in ({"pretrained": False}, {"weights": tiny_weights}, {"num_classes": 3}):
        with pytest.raises(ModelError, match="give its path alone"):
            mp.load_model(path, **beside)
    with pytest.raises(CheckpointError, match=r"not written by mp\.save"):
        mp.load_model(str(tiny_weights))
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        mp.load_model(str(tmp_path / "nothing.safetensors"))


# --- cards and bundled files ----------------------------------------------------------------------------------------


def test_cards(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="no bundled network 'fashion-mpl'; did you mean 'fashion-mlp'"):
        model_card("fashion-mpl")
    (tmp_path / "fashion-mnist").mkdir()
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("MPVIZ_DATA", str(tmp_path))
    with pytest.raises(ModelError, match="card of fashion-mlp cannot be read"):
        model_card("fashion-mlp")
    (tmp_path / "models" / "fashion-mlp.json").write_text("{")
    with pytest.raises(ModelError, match="card of fashion-mlp cannot be read"):
        model_card("fashion-mlp")
    (tmp_path / "models" / "fashion-mlp.json").write_text(json.dumps({"test_accuracy": 0.9}))
    assert model_card("fashion-mlp") == {"test_accuracy": 0.9}
    with pytest.raises(CheckpointError, match=r"no weights at .*fashion-mlp\.safetensors"):
        mp.load_model("fashion-mlp")


def test_bundled_files_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("MPVIZ_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"gone; set MPVIZ_DATA"):
        mp.load_model("fashion-mlp")
    assert mp.load_model("fashion-mlp", pretrained=False) is not None
