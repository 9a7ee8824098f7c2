"""A file far larger than memory: only the layers that are asked for are read, and the rest is never touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import mpviz as mp

GIGABYTE = 10**9
BLOCKS = 120
ROWS, COLS = 8192, 16384  # of the layers that nobody reads, 268 MB each in half precision
REAL = {"blocks.3.attn.qkv.weight": (2304, 768), "blocks.77.mlp.fc1.weight": (4096, 2048)}


def _half_noise(name: str) -> np.ndarray:
    rng = np.random.default_rng(len(name))
    return (0.02 * rng.standard_normal(REAL[name], dtype=np.float32)).astype(np.float16)


@pytest.fixture(scope="module")
def big_file(tmp_path_factory) -> Path:
    """A safetensors file of 30 GB made of holes, with the real bytes of two layers."""
    path = tmp_path_factory.mktemp("big") / "model.safetensors"
    shapes = {f"blocks.{i}.mlp.fc2.weight": (ROWS, COLS) for i in range(BLOCKS)} | REAL
    shapes |= {"embed_tokens.weight": (32000, 4096), "norm.weight": (4096,)}
    header, offset = {}, 0
    for name in sorted(shapes):
        size = 2 * int(np.prod(shapes[name]))
        header[name] = {"dtype": "F16", "shape": list(shapes[name]), "data_offsets": [offset, offset + size]}
        offset += size
    words = json.dumps(header).encode()
    words += b" " * (-len(words) % 8)
    with open(path, "wb") as file:
        file.write(len(words).to_bytes(8, "little") + words)
        base = file.tell()
        try:
            file.truncate(base + offset)
        except OSError as error:
            pytest.skip(f"the file system of {path.parent} refuses a file of 30 GB: {error}")
        for name in REAL:
            file.seek(base + header[name]["data_offsets"][0])
            file.write(_half_noise(name).tobytes())
        file.flush()
        os.fsync(file.fileno())  # blocks are counted when they are on the disk
    status = path.stat()
    if status.st_blocks * 512 > GIGABYTE:
        path.unlink()
        pytest.skip(f"the file system of {path.parent} knows no sparse files: holes would be written to disk")
    assert status.st_size > 30 * GIGABYTE
    yield path
    path.unlink()


PROGRAM = """
    import json, pathlib, re, resource, sys
    import mpviz as mp
    from mpviz.nets.layers import list_layers
    def most():  # Linux hands a child the ru_maxrss of the process that started it; VmHWM is its own
        status = pathlib.Path("/proc/self/status")
        if status.exists():
            return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1])
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    listed = list_layers(sys.argv[1])
    table = mp.analyze(sys.argv[1], layers=sys.argv[2:])
    peak = most()
    print(json.dumps({
        "peak": peak, "listed": len(listed), "skipped": sorted(table.attrs["skipped"]),
        "rows": json.loads(table[["sigma_plus", "mp_like", "engine", "n_spikes"]].to_json(orient="index")),
    }))
"""


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="the peak of memory is asked from the Unix kernel")
def test_two_layers_of_a_30_gb_file_take_less_than_2_gb(big_file, tmp_path):
    blocks_before = big_file.stat().st_blocks
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPVIZ_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(big_file), *REAL],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["peak"] < 2 * GIGABYTE
    assert told["listed"] == BLOCKS + len(REAL) and told["skipped"] == ["embed_tokens.weight", "norm.weight"]
    assert set(told["rows"]) == set(REAL)
    for name, row in told["rows"].items():
        expected = mp.fit_bulk(mp.spectrum(_half_noise(name)), shape=REAL[name])
        assert row["mp_like"] and row["n_spikes"] == 0 and row["engine"] == "float64, cast from float16"
        assert row["sigma_plus"] == pytest.approx(expected.sigma_plus, rel=1e-9)
    assert big_file.stat().st_blocks == blocks_before
