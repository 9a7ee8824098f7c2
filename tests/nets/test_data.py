"""Data sets as three splits that share no image, and a sentence for every file that is missing or broken."""

from __future__ import annotations

import gzip
import hashlib
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mpviz as mp
from mpviz.errors import DataError
from mpviz.nets import data
from mpviz.nets.data import FASHION_CLASSES, ImageArrays, Split
from mpviz.nets.idx import read_idx, write_idx
from mpviz.nets.timm_import import import_timm


@pytest.fixture(scope="module")
def fashion():
    return mp.load_data("fashion-mnist", folder="bundled")


def labels_of(split: Split) -> np.ndarray:
    return split.sample()[1].numpy()


def fingerprints(split: Split) -> list[str]:
    return [hashlib.sha1(image.numpy().tobytes()).hexdigest() for image in split.sample()[0]]


# --- the bundled sets -----------------------------------------------------------------------------------------------


def test_fashion_mnist_is_balanced_and_whole(fashion):
    assert [len(s) for s in (fashion.train, fashion.calibration, fashion.test)] == [9000, 1000, 10000]
    assert [s.name for s in (fashion.train, fashion.calibration, fashion.test)] == ["train", "calibration", "test"]
    for split, per_class in ((fashion.train, 900), (fashion.calibration, 100), (fashion.test, 1000)):
        assert np.bincount(labels_of(split)).tolist() == [per_class] * 10
        assert split.classes == FASHION_CLASSES
    images, _ = fashion.train.sample()
    assert images.shape == (9000, 1, 28, 28) and images.dtype == torch.float32
    assert abs(float(images.mean())) < 0.02 and abs(float(images.std()) - 1) < 0.02


def test_fashion_mnist_splits_share_no_image(fashion):
    train, calibration, test = (set(fingerprints(s)) for s in (fashion.train, fashion.calibration, fashion.test))
    assert not train & calibration and not train & test and not calibration & test
    assert len(calibration) == 1000


def test_digits():
    splits = mp.load_data("digits")
    assert [len(s) for s in (splits.train, splits.calibration, splits.test)] == [1097, 200, 500]
    assert np.bincount(labels_of(splits.calibration)).tolist() == [20] * 10
    assert splits.test.sample()[0].shape == (500, 1, 8, 8) and splits.classes == tuple("0123456789")
    assert fingerprints(splits.test) == fingerprints(mp.load_data("digits").test)
    assert fingerprints(splits.test) != fingerprints(mp.load_data("digits", seed=1).test)


def test_a_sample_is_drawn_once_by_its_seed(fashion):
    images, labels = fashion.test.sample(50, seed=3)
    again, same_labels = fashion.test.sample(50, seed=3)
    assert torch.equal(images, again) and torch.equal(labels, same_labels)
    assert not torch.equal(images, fashion.test.sample(50, seed=4)[0])
    indices = fashion.test.indices(50, 3)
    assert (np.diff(indices) > 0).all() and torch.equal(images[7], fashion.test.dataset[int(indices[7])][0])
    assert len(fashion.test.sample(10**6)[1]) == 10_000
    for n in (0, -3):
        with pytest.raises(DataError, match=f"asked for {n} samples of the test split"):
            fashion.test.sample(n)


def test_a_loader_gives_every_image_once(fashion):
    in_order = torch.cat([labels for _, labels in fashion.calibration.loader(batch=300)])
    assert torch.equal(in_order, fashion.calibration.sample()[1])
    shuffled = [torch.cat([y for _, y in fashion.calibration.loader(300, seed=seed)]) for seed in (1, 1, 2)]
    assert torch.equal(shuffled[0], shuffled[1]) and not torch.equal(shuffled[0], shuffled[2])
    assert sorted(shuffled[0].tolist()) == sorted(in_order.tolist())


def test_an_empty_split_says_so():
    empty = ImageArrays(np.zeros((0, 8, 8), np.uint8), np.zeros(0, np.uint8), 0.0, 1.0, 1.0)
    with pytest.raises(DataError, match="the train split is empty"):
        Split("train", empty, ()).sample()


@pytest.mark.parametrize("calibration", [0, -1, 5, 10_000])
def test_a_calibration_split_that_cannot_be_set_aside(calibration):
    with pytest.raises(DataError, match="calibration"):
        mp.load_data("fashion-mnist", folder="bundled", calibration=calibration)


# --- all of Fashion-MNIST from a folder -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def idx_images():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (3000, 28, 28), dtype=np.uint8), np.arange(3000, dtype=np.uint8) % 10


@pytest.fixture
def idx_folder(tmp_path, idx_images):
    for part, array in zip(("images-idx3", "labels-idx1"), idx_images, strict=True):
        raw = b"\x00\x00\x08" + bytes([array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (tmp_path / f"train-{part}-ubyte.gz").write_bytes(gzip.compress(raw + array.tobytes(), 1))
    return tmp_path


def test_a_folder_brings_all_training_images(idx_folder, idx_images, fashion):
    splits = mp.load_data("fashion-mnist", folder=idx_folder)
    assert [len(s) for s in (splits.train, splits.calibration, splits.test)] == [2000, 1000, 10000]
    assert str(idx_folder) in splits.source
    first, label = splits.calibration.dataset[0]
    assert torch.allclose(first[0] * 0.3530 + 0.2860, torch.from_numpy(idx_images[0][0] / 255.0).float(), atol=1e-6)
    assert int(label) == idx_images[1][0]
    assert not set(fingerprints(splits.train)) & set(fingerprints(splits.calibration))
    assert torch.equal(splits.test.sample(9)[0], fashion.test.sample(9)[0])


def test_folders_that_lack_something(tmp_path, idx_folder):
    with pytest.raises(DataError, match=r"no train-images-idx3-ubyte\.gz in .*gone; give the folder"):
        mp.load_data("fashion-mnist", folder=tmp_path / "gone")
    (idx_folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"no data file at .*train-labels-idx1-ubyte\.gz"):
        mp.load_data("fashion-mnist", folder=idx_folder)


def test_labels_that_do_not_fit_the_images(idx_folder):
    write_idx(idx_folder / "train-labels-idx1-ubyte.gz", np.zeros(2999, np.uint8))
    with pytest.raises(DataError, match=r"2999 labels do not fit images of shape \(3000, 28, 28\)"):
        mp.load_data("fashion-mnist", folder=idx_folder)


def test_bundled_data_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("MPVIZ_DATA", str(tmp_path))
    for name in ("fashion-mnist", "digits"):
        with pytest.raises(DataError, match=r"bundled data are missing: .*set MPVIZ_DATA"):
            mp.load_data(name)
    (tmp_path / "fashion-mnist").mkdir()
    with pytest.raises(DataError, match="no data file at"):
        mp.load_data("fashion-mnist", folder="bundled")


# --- broken IDX files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_idx_there_and_back(tmp_path, suffix):
    array = np.random.default_rng(1).integers(0, 256, (5, 3, 2), dtype=np.uint8)
    path = tmp_path / f"a.idx{suffix}"
    write_idx(path, array)
    once = path.read_bytes()
    write_idx(path, array)
    assert path.read_bytes() == once and np.array_equal(read_idx(path), array)


BROKEN = {
    "empty": b"",
    "another format": b"\x89PNG\r\n\x1a\n",
    "floats": b"\x00\x00\x0d\x01\x00\x00\x00\x00",
    "ends in its header": b"\x00\x00\x08\x03\x00\x00\x00\x05\x00",
    "too short": b"\x00\x00\x08\x01\x00\x00\x00\x05abcd",
    "too long": b"\x00\x00\x08\x01\x00\x00\x00\x05abcdef",
    "sizes whose product overflows": b"\x00\x00\x08\x03" + b"\xff\xff\xff\xff" * 3,
}


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_idx_file(tmp_path, kind, suffix):
    packed = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix](BROKEN[kind])
    path = tmp_path / f"a.idx{suffix}"
    path.write_bytes(packed)
    with pytest.raises(DataError, match=r"a\.idx"):
        read_idx(path)


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_damaged_compressed_file(tmp_path, suffix):
    path = tmp_path / f"a.idx{suffix}"
    write_idx(path, np.random.default_rng(2).integers(0, 256, 5000, dtype=np.uint8))
    whole = path.read_bytes()
    damaged = [b"", b"no archive", whole[:-1], whole[:-20], whole[: len(whole) // 2]]
    damaged += [whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :] for at in range(12, len(whole), 251)]
    for raw in damaged:
        path.write_bytes(raw)
        with pytest.raises(DataError, match=r"a\.idx"):
            read_idx(path)


# --- folders of images ----------------------------------------------------------------------------------------------

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def paint(folder: Path, count: int, classes: dict[str, tuple[int, int, int]] = COLOURS) -> Path:
    for name, colour in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (12, 12), tuple(max(0, channel - i) for channel in colour)).save(
                folder / name / f"{i}.png"
            )
    return folder


def right(split: Split) -> bool:
    """The label of every image is the channel that is brightest: blue 0, green 1, red 2."""
    images, labels = split.sample()
    brightest = 2 - images.mean(dim=(2, 3)).argmax(dim=1)
    return torch.equal(brightest, labels)


@pytest.mark.parametrize("evaluation", ["val", "validation", "test"])
def test_an_image_folder_with_train_and_evaluation(tmp_path, evaluation):
    paint(tmp_path / "train", 8)
    paint(tmp_path / evaluation, 3)
    splits = mp.load_data(str(tmp_path))
    assert [len(s) for s in (splits.train, splits.calibration, splits.test)] == [22, 2, 9]
    assert splits.classes == splits.train.classes == ("blue", "green", "red")
    assert right(splits.train) and right(splits.calibration) and right(splits.test)
    assert not set(fingerprints(splits.train)) & set(fingerprints(splits.calibration))


def test_the_whole_training_set_has_each_image_once(fashion, tmp_path):
    whole = fashion.whole_train
    assert (whole.name, len(whole)) == ("train", 10_000) and whole.grey_level == fashion.train.grey_level
    assert len(fashion.train) == 9_000, "as it was"
    images, labels = whole.sample()
    for part, place in ((fashion.train, slice(0, 9_000)), (fashion.calibration, slice(9_000, None))):
        assert torch.equal(images[place], part.sample()[0]) and torch.equal(labels[place], part.sample()[1])
    paint(tmp_path / "train", 8)
    paint(tmp_path / "val", 3)
    for splits in (mp.load_data(str(tmp_path)), mp.load_data("torch/image_folder", folder=tmp_path)):
        both = fingerprints(splits.train) + fingerprints(splits.calibration)
        assert len(splits.whole_train) == 24 and sorted(fingerprints(splits.whole_train)) == sorted(both)
        assert right(splits.whole_train)


def test_a_flat_image_folder_is_split_by_seed(tmp_path):
    paint(tmp_path, 10)
    splits = mp.load_data(str(tmp_path), seed=1)
    sizes = [len(s) for s in (splits.train, splits.calibration, splits.test)]
    assert sizes == [22, 2, 6] and "80/20 by seed 1" in splits.source
    prints = [set(fingerprints(s)) for s in (splits.train, splits.calibration, splits.test)]
    assert len(set.union(*prints)) == 30 == sum(map(len, prints))
    assert all(map(right, (splits.train, splits.calibration, splits.test)))
    assert set(fingerprints(mp.load_data(str(tmp_path), seed=1).test)) == prints[2]
    assert set(fingerprints(mp.load_data(str(tmp_path), seed=2).test)) != prints[2]


def test_images_take_size_and_normalisation_from_the_model(tmp_path):
    paint(tmp_path, 4)
    model = mp.load_model("test_resnet", pretrained=False)
    images, _ = mp.load_data(str(tmp_path), model=model).test.sample()
    assert images.shape[1:] == (3, 160, 160)
    assert mp.load_data(str(tmp_path)).test.sample()[0].shape[1:] == (3, 224, 224)


def test_image_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match=r"no image folder at .*gone"):
        mp.load_data(str(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"cannot open the images at .*empty"):
        mp.load_data(str(tmp_path / "empty"))
    paint(tmp_path / "other" / "train", 2)
    paint(tmp_path / "other" / "val", 2, {"cyan": (0, 255, 255), "red": (255, 0, 0)})
    with pytest.raises(DataError, match="different class folders"):
        mp.load_data(str(tmp_path / "other"))
    paint(tmp_path / "one", 1, {"red": (255, 0, 0)})
    with pytest.raises(DataError, match="at least 2 are needed"):
        mp.load_data(str(tmp_path / "one"))


# --- what timm opens ------------------------------------------------------------------------------------------------


def test_a_data_set_of_timm(tmp_path):
    paint(tmp_path / "train", 8)
    paint(tmp_path / "val", 3)
    splits = mp.load_data("torch/image_folder", folder=tmp_path)
    assert [len(s) for s in (splits.train, splits.calibration, splits.test)] == [22, 2, 9]
    assert splits.classes == ("blue", "green", "red") and right(splits.test)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("torch/no_such_set", None),
        ("torch/cifar10", None),
        ("torch/cifar10", "here"),
        ("nobody/knows", None),
        ("nobody/knows", "here"),
        ("some/path/of/images", None),
    ],
)
def test_what_timm_cannot_open(tmp_path, name, folder):
    with pytest.raises(DataError, match=f"timm cannot open the data set '{name}' (at|without a folder).*\\(.+\\)"):
        mp.load_data(name, folder=tmp_path if folder else None)


def test_a_stream_is_refused(monkeypatch):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(())

    monkeypatch.setattr(import_timm().data, "create_dataset", lambda *_, **__: Stream())
    with pytest.raises(DataError, match="'wds/set' is a stream"):
        mp.load_data("wds/set")


@pytest.mark.parametrize(("name", "near"), [("fashion-mnsit", "fashion-mnist"), ("digit", "digits"), ("", "digits")])
def test_an_unknown_name_suggests_the_nearest(name, near):
    with pytest.raises(DataError, match=f"unknown data set '{name}'; .*{near}.*folder of images"):
        mp.load_data(name)


def test_a_broken_image_is_an_error_not_its_neighbour(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.new("RGB", (8, 8), (i * 20, 0, 0)).save(tmp_path / name / f"{i}.png")
    splits = mp.load_data(str(tmp_path))
    assert len(splits.train) + len(splits.calibration) + len(splits.test) == 20
    for file in (tmp_path / "a").iterdir():
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match=r"cannot read the image .*\.png"):
        splits.train.sample()


def test_debian_s_package_is_used_when_it_is_there(tmp_path, monkeypatch):
    import mpviz.nets.data as module

    monkeypatch.setattr(module, "_DEBIAN", tmp_path)
    assert len(mp.load_data("fashion-mnist").train) == 9000
    labels = np.repeat(np.arange(10, dtype=np.uint8), 120)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", labels)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", np.zeros((1200, 28, 28), np.uint8))
    assert len(mp.load_data("fashion-mnist").train) == 200
    assert len(mp.load_data("fashion-mnist", folder="bundled").train) == 9000
    with pytest.raises(DataError, match="takes no folder"):
        mp.load_data("digits", folder=tmp_path)


def test_a_file_that_comes_with_mpviz_is_unpacked_once_and_again_when_it_changes(tmp_path, monkeypatch) -> None:
    unpacked = []
    monkeypatch.setattr(data, "read_idx", lambda path: unpacked.append(path) or read_idx(path))
    path = tmp_path / "x.idx.xz"
    write_idx(path, np.arange(12, dtype=np.uint8).reshape(3, 4))
    first = data._unpacked(path)
    assert data._unpacked(path) is first and len(unpacked) == 1
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1
    write_idx(path, np.arange(20, dtype=np.uint8).reshape(5, 4))
    assert data._unpacked(path).shape == (5, 4) and len(unpacked) == 2
    path.unlink()
    with pytest.raises(DataError, match="no data file at"):
        data._unpacked(path)
