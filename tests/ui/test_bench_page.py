"""The dashboard's page of the 2:4 benchmark: committed cells alone, each number with its label, and the paper's."""

from __future__ import annotations

import asyncio
import html as entities
import json
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from mpviz.benchmark.ledger import Arm, Cell, cells_table
from mpviz.benchmark.timing import Timing
from mpviz.errors import CheckpointError
from mpviz.paper import paper_rows
from mpviz.two_four import benchmark_cells, layers_of, route
from mpviz.ui import bench_page, dashboard_pages, theme
from mpviz.ui.bench_figures import layers_figure, steps_figure, throughput_figure
from tests.ui.bench_cells import CPU, ON_CPU, VIT, arm, cell, committed
from tests.ui.pages import Reader, fetches_nothing, without_library

EVIL = "\"'><img src=x onerror=hacked=1></select></script><script>hacked=1</script>&amp;$x$"
ON_GPU = {"network": VIT, "hardware": "Example GPU", "run": "batch 64"}


@pytest.fixture(autouse=True)
def cells(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """What has come with mpviz; change the list to change that."""
    found = committed()
    monkeypatch.setattr(bench_page, "benchmark_cells", lambda: found)
    return found


def page_of(**asked: str) -> tuple[bool, Reader, str]:
    known, page = bench_page.bench_page(asked)
    return known, Reader(page), page


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def selected(page: str) -> dict[str, str]:
    """What the form's fields stand at."""
    form = page[page.index("<form") : page.index("</form>")]
    found = {}
    for field in form.split("<select ")[1:]:
        chosen = [option for option in field.split("<option ")[1:] if " selected>" in option]
        assert len(chosen) == 1
        found[field.split('name="')[1].split('"')[0]] = entities.unescape(chosen[0].split('value="')[1].split('"')[0])
    return found


def rows_of(table: str) -> list[list[str]]:
    rows = [row.split("<td")[1:] for row in table.split("<tr")[1:]]
    return [[said(cell.split("</td>")[0].split(">", 1)[1]) for cell in row] for row in rows if row]


def said(part: str) -> str:
    """Text in the order in which it stands, without elements."""
    out, inside = "", False
    for letter in part.replace("<br>", " "):
        inside = letter == "<" or (inside and letter != ">")
        out += "" if inside or letter == ">" else letter
    return entities.unescape(out).strip()


def tables_of(page: str) -> list[list[list[str]]]:
    return [rows_of(part.split("</table>")[0]) for part in page.split("<table")[1:]]


def test_the_network_of_the_page_that_led_here_is_shown_where_it_was_timed(cells: list[Cell]) -> None:
    networks = list(dict.fromkeys(cell.model for cell in cells))
    assert len(networks) > 1
    for seen, shown in ((networks[-1], networks[-1]), ("resnet18", networks[0]), ("", networks[0])):
        known, _, page = page_of(seen=seen)
        assert known and selected(page)["network"] == shown


# --- what is shown --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["light", "dark"])
def test_the_page_is_whole_by_itself_in_both_themes(name: str, cells: list[Cell]) -> None:
    known, reader, page = page_of(**ON_GPU, theme=name)
    assert known and fetches_nothing(page) and "{{" not in without_library(page)
    assert f"color-scheme: {name}" in page and f"--paper: {theme.THEMES[name].paper};" in page
    assert selected(page) == ON_GPU and "<section hidden>" not in page and "<div hidden>" not in page
    drawn = reader.drawn
    assert drawn["throughput"] == as_json(throughput_figure(cells_table(cells[2:4]), name)), "of this hardware alone"
    assert drawn["steps"] == as_json(steps_figure(route(cells[2]), name))
    assert drawn["layers"] == as_json(layers_figure(layers_of(cells[2]), name))
    links = [str(attributes["href"]) for tag, attributes in reader.tags if tag == "a"]
    assert links[:5] == ["./", *(f"./{page}?theme={name}" for page in ("run", "compare", "patterns", "sweep"))]
    other = "light" if name == "dark" else "dark"
    assert dict(parse_qsl(links[5].removeprefix("?"))) == {**ON_GPU, "theme": other}


def test_all_endpoints_stand_in_a_table_with_their_reason() -> None:
    shown = tables_of(page_of(**ON_GPU)[2])[0]
    assert len(shown) == 14, "two runs of seven endpoints"
    assert shown[0] == ["fp32", "float32", "64", "–", "80.0 (80.0–80.0)", "800", "4.0e-03", ""]
    assert shown[5] == ["2:4 compiled", "bfloat16", "64", "–", "10.0 (10.0–10.0)", "6 400".replace(" ", "\u202f"),
                        "4.0e-03", ""]  # fmt: skip
    assert shown[6] == ["2:4 selective compiled", "bfloat16", "64", "–", "–", "–", "–", "out of <memory>"]
    assert [row[3] for row in shown] == ["–"] * 7 + ["8"] * 7


def test_memory_and_energy_have_columns_where_a_gpu_told_them(cells: list[Cell]) -> None:
    samples = (0.01,) * 5
    told = Arm("bf16", "bfloat16", Timing(samples, samples, 1, 512 * 2**20, 3.2), 0.004)
    cells.append(cell((told, arm("2:4", 20.0)), "another", 64))
    page = page_of(network="another")[2]
    assert "<th" in page and "memory of a call, MiB" in page and "J/image" in page
    shown = tables_of(page)[0]
    assert [row[5:9] for row in shown] == [
        ["6\u202f400", "512", "0.0500", "4.0e-03"],
        ["3\u202f200", "–", "–", "4.0e-03"],
    ]
    assert "J/image" not in page_of(**ON_GPU)[2]


def test_ratios_name_both_sides_and_how_they_are_known() -> None:
    page = page_of(**ON_GPU)[2]
    part = said(page[page.index('<div id="steps"') : page.index("Layer by layer")])
    for words in (
        "measured Number type: 4.00 × (4.00–4.00): bf16 against fp32 at batch 64; bfloat16 against float32, not",
        "measured Compiled: 1.25 × (1.25–1.25): bf16 compiled against bf16 at batch 64",
        "measured 2:4: 1.60 × (1.60–1.60): 2:4 compiled against bf16 compiled at batch 64",
        "measured Altogether: 8.00 × (8.00–8.00): 2:4 compiled against fp32 at batch 64; bfloat16 against float32",
        "estimate By multiply–adds alone 2:4 makes this network 1.60 × as fast as itself dense",
        "layers that pack hold 75\u202f% of the multiply–adds",
        "measured Reached: 1.60 ×",
    ):
        assert words in part
    assert part.count("Altogether") == 1, "what lies between is no whole"


def test_where_no_two_four_ran_the_page_says_so() -> None:
    known, reader, page = page_of(network="fashion-vit", run="batch 8, 4 merged")
    assert known and selected(page) == {
        "network": "fashion-vit", "hardware": "Example CPU, 2 threads", "run": "batch 8, 4 merged"
    }  # fmt: skip
    assert "No 2:4 endpoint was timed beside its dense counterpart" in page and "Reached" not in without_library(page)
    assert "layers" not in reader.drawn and "<div hidden>" in page, "no shapes were timed in that run"
    assert "network 1.80 ×" in page and "What each step is worth, batch 8, 4 merged" in reader.all("h2")


def test_a_run_without_fp32_has_no_steps(cells: list[Cell]) -> None:
    cells[:] = [cell((arm("bf16", 4.0),))]
    known, reader, _ = page_of()
    assert known and reader.drawn["steps"] is None and "has no timing of fp32" in reader.all("p")
    cells[:] = [cell((arm("fp32", None, "float32", why="no memory"),))]
    known, reader, page = page_of()
    assert known and "throughput" not in reader.drawn and "no memory" in page


def test_the_hardware_is_told() -> None:
    about = page_of(**ON_GPU)[1].all("p")
    assert (
        "Timed on Example GPU, with Example CPU, 2 threads, load 0.5 when it ended, driver 550.1, PyTorch 2.9.0, "
        "2026-01-02. Images 3 × 224 × 224. All 8 layers were 2:4."
    ) in about
    assert "Timed on Example CPU, 2 threads, load" in page_of(network="fashion-vit")[1].all("p")


@pytest.mark.parametrize(
    ("gpu", "why", "words"),
    [
        ("", "2:4 needs a CUDA GPU", "This server has no CUDA GPU, so nothing of 2:4 is timed here; below are the"),
        ("Old <GPU>", "too old", "This server has a CUDA GPU (Old <GPU>) that cannot run 2:4 (too old); below are"),
        (
            "New <GPU>",
            "",
            "This server has a CUDA GPU, New <GPU>: mpviz bench times 2:4 on it. This page times nothing",
        ),
    ],
)
def test_the_server_says_what_it_has(monkeypatch: pytest.MonkeyPatch, gpu: str, why: str, words: str) -> None:
    monkeypatch.setattr(bench_page, "gpu_here", lambda: gpu)
    monkeypatch.setattr(bench_page, "missing_here", lambda: why)
    assert words in page_of()[1].all("p")


def test_without_cells_the_page_invites(cells: list[Cell]) -> None:
    cells.clear()
    known, reader, page = page_of()
    assert known and page.count("<section hidden>") == 1 and "<p >No measurements have come with mpviz yet." in page
    assert set(reader.drawn) == {"config"} and "<form" not in page
    assert {row[5] for row in tables_of(page)[-1]} == {"not timed"}
    known, reader, _ = page_of(network="fashion-vit")
    assert not known and "no network 'fashion-vit' here; no measurements have come" in reader.all("p")


# --- the paper's endpoints ------------------------------------------------------------------------------------------


def test_the_papers_endpoints_stand_beside_ours() -> None:
    page = page_of()[2]
    rows = {row[0]: row for row in tables_of(page)[-1]}
    theirs = [one for one in paper_rows() if one.speedup is not None]
    assert list(rows) == [f"{one.row}. {one.architecture}" for one in theirs] and len(theirs) == 12
    assert rows["1. ViT-B/16"][1:4] == ["8", "1.388 ×", "dense, same ToMe graph, type not named"]
    assert rows["1. ViT-B/16"][4:6] == ["1.50 × estimate", "1.60 × measured Example GPU, batch 64"]
    assert rows["22. ViT-B/16"][1:4] == ["–", "2.705 ×", "dense, not bf16"]
    assert rows["22. ViT-B/16"][4:6] == ["1.60 × estimate", "1.60 × measured Example GPU, batch 64"]
    assert rows["10. ResNet50"][2:6] == ["1.700 ×", "dense im2col, type not named", "–", "not timed"]
    assert [row[6] for row in rows.values()] == [one.endpoint for one in theirs], "as it is printed"
    part = page[page.rindex("<table") :]
    assert part.count("<i>") == len(theirs), "theirs are slanted, and nothing else is"


def test_ours_are_of_the_same_network_and_merges(cells: list[Cell]) -> None:
    cells[:] = [cell(ON_CPU, "deit_small_patch16_224.fb_in1k", tome=8, machine=CPU, limit=1.7), cell(tome=4)]
    rows = {row[0]: row[4:6] for row in tables_of(page_of()[2])[-1]}
    assert rows.pop("7. DeiT-S") == ["1.70 × estimate", "not timed"]
    assert set(map(tuple, rows.values())) == {("–", "not timed")}, "nothing was timed with 0 or 8 pairs merged"


# --- what is asked for ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"network": "fashion-vti"}, "no network 'fashion-vti' here; did you mean 'fashion-vit'?"),
        ({"network": "../../etc/passwd"}, "no network '../../etc/passwd' here"),
        ({"network": ""}, "no network '' here"),
        ({"hardware": "Example GPU 2"}, "no hardware 'Example GPU 2' here; did you mean 'Example GPU'?"),
        ({"run": "batch 9"}, "no run 'batch 9' here"),
        ({"run": "8"}, "no run '8' here"),
    ],
)
def test_other_names_are_unknown(asked: dict[str, str], words: str) -> None:
    known, reader, page = page_of(**asked)
    assert not known and words in reader.all("p") and reader.all("h1") == "No such benchmark here"
    assert fetches_nothing(page) and "plotly" not in page
    links = [attributes["href"] for tag, attributes in reader.tags if tag == "a"]
    assert links[:4] == ["./", *(f"./{page}?theme=light" for page in ("run", "compare", "patterns"))]


@pytest.mark.parametrize("key", ["network", "hardware", "run"])
def test_what_is_asked_for_is_never_markup(key: str) -> None:
    known, reader, page = page_of(**{"theme": "dark", key: EVIL})
    assert not known and f"no {key} '{EVIL}' here" in reader.all("p")
    assert fetches_nothing(page) and {"img", "script", "select"}.isdisjoint(tag for tag, _ in reader.tags)
    link = next(str(a["href"]) for tag, a in reader.tags if tag == "a" and str(a["href"]).startswith("?"))
    assert dict(parse_qsl(link[1:])) == {key: EVIL, "theme": "light"}


def test_what_a_cell_says_is_never_markup(cells: list[Cell]) -> None:
    evil = Cell(EVIL, 8, 0, (1, 2, 3), (arm("fp32", 1.0, EVIL), arm("bf16", None, why=EVIL)), 1.5,
                {"hardware": EVIL, "date": EVIL}, EVIL, EVIL)  # fmt: skip
    cells[:] = [evil]
    known, reader, page = page_of()
    assert known and fetches_nothing(page)
    assert "img" not in {tag for tag, _ in reader.tags} and "onerror=hacked=1>" not in without_library(page)
    assert selected(page) == {"network": EVIL, "hardware": EVIL, "run": "batch 8"}


def test_another_network_is_shown_with_what_it_has() -> None:
    """The form sends all of its fields: hardware and run may still be those of the network before."""
    for asked, shown in (
        ({**ON_GPU, "network": "fashion-vit"}, ["Example CPU, 2 threads", "batch 8"]),
        ({**ON_GPU, "hardware": "Example CPU, 2 threads"}, ["Example CPU, 2 threads", "batch 8"]),
        ({**ON_GPU, "run": "batch 64, 8 merged"}, ["Example GPU", "batch 64, 8 merged"]),
    ):
        known, _, page = page_of(**asked)
        found = selected(page)
        assert known and found["network"] == asked["network"] and [found["hardware"], found["run"]] == shown


def test_a_broken_file_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Cell]:
        raise CheckpointError("cannot read a.json: this is no cell")

    monkeypatch.setattr(bench_page, "benchmark_cells", broken)
    known, reader, _ = page_of()
    assert not known and "cannot read a.json: this is no cell" in reader.all("p")


def test_the_committed_cells_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = benchmark_cells()
    monkeypatch.setattr(bench_page, "benchmark_cells", lambda: measured)  # the record may be at work just now
    for network in sorted({one.model for one in measured}):
        known, reader, page = page_of(network=network)
        assert known and selected(page)["network"] == network
        assert reader.drawn["throughput"]["layout"]["title"]["text"].startswith(network)


# --- served ---------------------------------------------------------------------------------------------------------


def served(queries: list[str]) -> list[HTTPResponse]:
    """What the server answers to all of them at once."""

    async def ask() -> list[HTTPResponse]:
        server = HTTPServer(Application([("/bench", dashboard_pages.BenchPage)]))
        sockets = bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        address = f"http://127.0.0.1:{sockets[0].getsockname()[1]}/bench"
        client = AsyncHTTPClient(force_instance=True)
        try:
            return list(await asyncio.gather(*(client.fetch(address + query, raise_error=False) for query in queries)))
        finally:
            client.close()
            server.stop()

    return asyncio.run(ask())


def test_the_page_is_served_whole_or_with_404() -> None:
    good, bad, evil = served(
        ["?" + urlencode({**ON_GPU, "theme": "dark"}), "?network=../x", "?" + urlencode({"run": EVIL})]
    )
    assert (good.code, bad.code, evil.code) == (200, 404, 404)
    for answer in (good, bad, evil):
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert answer.headers["Cache-Control"] == "no-store"
    page = good.body.decode()
    assert selected(page) == ON_GPU and "color-scheme: dark" in page
    assert "no network &#39;../x&#39; here" in bad.body.decode()


def test_only_known_arguments_reach_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    def made(asked: dict[str, str]) -> tuple[bool, str]:
        seen.append(asked)
        return True, "page"

    monkeypatch.setattr(dashboard_pages, "_bench", made)
    assert [answer.code for answer in served(["?network=a&hardware=&run=c&theme=d&secret=x"])] == [200]
    assert seen == [{"network": "a", "hardware": "", "run": "c", "theme": "d"}]
