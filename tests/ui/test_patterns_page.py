"""The dashboard's page of patterns: bundled networks alone, what is measured as it is drawn, and the paper's rows."""

from __future__ import annotations

import asyncio
import html as entities
import json
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np
import pandas as pd
import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

import mpviz as mp
from mpviz import structured
from mpviz.nets.paths import data_root
from mpviz.paper import paper_rows
from mpviz.structured import committed_cells, explore, mac_stages, pattern_layers
from mpviz.ui import dashboard_pages, patterns_page, theme
from mpviz.ui.pattern_figures import macs_figure, pattern_figure, patterns_figure
from mpviz.ui.patterns_page import NETWORKS, ORDERS, PATTERNS, rows_table
from tests.ui.pages import Reader, fetches_nothing, without_library

EVIL = "\"'><img src=x onerror=hacked=1></select></script><script>hacked=1</script>&amp;$x$"
MLP = {"network": "fashion-mlp", "layer": "features.fc2.weight"}


def page_of(**asked: str) -> tuple[bool, Reader, str]:
    known, page = patterns_page.patterns_page(asked)
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


# --- what is shown --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["light", "dark"])
def test_the_page_is_whole_by_itself_in_both_themes(name: str) -> None:
    known, reader, page = page_of(**MLP, theme=name)
    assert known and fetches_nothing(page) and "{{" not in without_library(page)
    colours, other = theme.THEMES[name], "light" if name == "dark" else "dark"
    assert f"color-scheme: {name}" in page and f"--paper: {colours.paper};" in page
    for figure in ("groups", "macs"):
        assert reader.drawn[figure]["layout"]["paper_bgcolor"] == colours.paper
    assert ("input", {"type": "hidden", "name": "theme", "value": name}) in reader.tags
    links = [str(attributes["href"]) for tag, attributes in reader.tags if tag == "a"]
    assert links[:5] == ["./", *(f"./{page}?theme={name}" for page in ("run", "compare", "bench", "sweep"))]
    assert dict(parse_qsl(links[5].removeprefix("?"))) == {
        **MLP,
        "pattern": "2:4",
        "order": "hungarian",
        "theme": other,
    }
    assert f"{other} colours" in reader.all("a")


def test_the_explorer_draws_the_view_of_that_layer() -> None:
    asked = {"network": "fashion-mlp", "pattern": "4:8", "order": "snake", "layer": "features.fc1.weight"}
    known, reader, page = page_of(**asked, theme="dark")
    assert known and selected(page) == asked
    expected = pattern_figure(explore("fashion-mlp", "4:8", "snake", "features.fc1.weight"), "dark")
    expected["layout"]["height"] = 520
    assert reader.drawn["groups"] == as_json(expected)
    assert reader.drawn["macs"] == as_json(macs_figure(mac_stages("fashion-mlp", "4:8"), "dark"))
    other = page_of(**asked | {"layer": "features.fc2.weight"})[1].drawn["groups"]
    assert other != reader.drawn["groups"] and "features.fc2 at 4:8" in other["layout"]["title"]["text"]


def test_a_transformer_merges_tokens_as_well() -> None:
    known, reader, page = page_of(network="fashion-vit", order="none")
    assert known and selected(page)["layer"] == pattern_layers("fashion-vit")[12]
    assert reader.drawn["macs"] == as_json(macs_figure(mac_stages("fashion-vit", "2:4", 4)))
    assert any(str(name).startswith("merging 4") for name in reader.drawn["macs"]["data"][0]["x"])


def test_the_first_page_is_of_the_first_of_each() -> None:
    known, _, page = page_of()
    layers = pattern_layers(NETWORKS[0])
    assert known and selected(page) == {
        "network": NETWORKS[0], "pattern": PATTERNS[0], "order": ORDERS[0], "layer": layers[len(layers) // 2]
    }  # fmt: skip
    form = page[page.index("<form") : page.index("</form>")]
    for one in (*NETWORKS, *PATTERNS, *ORDERS, *layers):
        assert form.count(f'value="{one}"') == 1


def test_the_network_of_the_page_that_led_here_is_shown_where_it_is_one_of_ours() -> None:
    for seen, shown in (("fashion-mlp", "fashion-mlp"), ("vit_tiny", NETWORKS[0]), ("", NETWORKS[0])):
        known, _, page = page_of(seen=seen)
        assert known and selected(page)["network"] == shown
    assert selected(page_of(seen="fashion-mlp", network="fashion-resnet")[2])["network"] == "fashion-resnet"


def cells() -> pd.DataFrame:
    rows = []
    for epochs, tome, accuracy in ((0, 0, 0.8), (0, 4, 0.7), (3, 0, 0.9)):
        for seed in (0, 1) if epochs else (0,):
            for pattern, order in (("2:4", "none"), ("8:16", "none"), ("2:4", "best")):
                if (tome, pattern) == (4, "8:16"):
                    continue
                rows.append({"network": "fashion-mlp", "pattern": pattern, "criterion": "cast", "order": order,
                             "tome": tome, "repair": False, "damping": 0.0, "renew": False, "seed": seed,
                             "epochs": epochs, "share": 0.1,
                             "accuracy": accuracy + 0.01 * seed + 0.02 * (order == "best"),
                             "dense_accuracy": 0.91})  # fmt: skip
    rows.insert(3, {**rows[0], "renew": True, "accuracy": 0.85})
    return pd.DataFrame([*rows, {**rows[0], "network": "fashion-vit", "accuracy": 0.5}])


def test_the_grid_is_drawn_by_training_and_merging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns_page, "committed_cells", cells)
    _, reader, page = page_of(**MLP)
    drawn = reader.drawn
    assert drawn["choices"] == ["no training", "no training, batch norms renewed",
                                "no training, 4 pairs merged a block", "3 epochs of distillation"]  # fmt: skip
    expected = [patterns_figure(cells(), "fashion-mlp", "light", *at)
                for at in ((0, 0), (0, 0, True), (0, 4), (3, 0))]  # fmt: skip
    assert drawn["grids"] == as_json(expected) and "<section hidden>" not in page
    table = page[page.index("accuracy, %") : page.index("What runs then")]
    shown = [[entities.unescape(cell.split("</td>")[0].split(">", 1)[1]) for cell in row.split("<td")[1:]]
             for row in table.split("<tr")[1:]]  # fmt: skip
    std = f"{100 * np.std([0.9, 0.91], ddof=1):.2f}"
    assert shown == [
        ["CAST", "0", "80.00", "80.00"], ["CAST, reordered", "0", "82.00", "–"],
        ["CAST, norms renewed", "0", "85.00", "–"],
        ["CAST, merged 4", "0", "70.00", "–"], ["CAST, reordered, merged 4", "0", "72.00", "–"],
        ["CAST", "3", f"90.50 ± {std}", f"90.50 ± {std}"], ["CAST, reordered", "3", f"92.50 ± {std}", "–"],
    ]  # fmt: skip


def test_without_a_record_the_grid_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns_page, "committed_cells", lambda: cells().iloc[:0])
    known, reader, page = page_of(**MLP)
    assert known and reader.drawn["grids"] == [] == reader.drawn["choices"] and page.count("<section hidden>") == 1


def test_the_committed_grid_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = committed_cells()
    monkeypatch.setattr(patterns_page, "committed_cells", lambda: measured)  # the record may be at work just now
    for network in sorted(set(measured["network"])):
        here = measured[measured["network"] == network]
        drawn = page_of(network=network, order="none")[1].drawn
        assert len(drawn["grids"]) == len(drawn["choices"]) == here.groupby(["epochs", "tome", "renew"]).ngroups > 0


# --- the paper's rows -----------------------------------------------------------------------------------------------


def table_rows() -> list[list[str]]:
    rows = [row.split("<td")[1:] for row in rows_table("light").split("<tr")[1:]]
    texts = [[Reader("<p" + cell.split("</td>")[0] + "</p>").texts for cell in row] for row in rows if row]
    return [["".join(part for parts in cell.values() for part in parts) for cell in row] for row in texts]


def test_the_papers_rows_stand_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [{"row": 2, "reduction_pct": 61.0967, "paper_reduction_pct": 59.807, "steps": 2,
             "reloads_bit_identical": True},
            {"row": 3, "reduction_pct": 50.0, "paper_reduction_pct": 49.5, "steps": 0,
             "reloads_bit_identical": False}]  # fmt: skip
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "paper-rows.json").write_text(json.dumps({"rows": ours}))
    monkeypatch.setattr(patterns_page, "data_root", lambda: tmp_path)
    rows = table_rows()
    assert [row[0] for row in rows] == [f"{one.row}. {one.architecture}" for one in paper_rows()] and len(rows) == 22
    assert rows[1][1:] == ["2:4", "CAST, ser@0.35, merged 8", "85.11", "83.41", "59.81", "61.10", "59.81",
                           "same bits"]  # fmt: skip
    assert rows[2][1:] == ["6:12", "CAST, ser@0.35, permuted", "85.11", "83.74", "50.00", "50.00", "49.50",
                           "other bits"]  # fmt: skip
    assert rows[21][3:] == ["85.11", "–", "50.00", "–", "–", "–"], "not run: nothing is said of it"
    assert rows_table("light").count("<i>") == sum(
        number is not None for one in paper_rows() for number in (one.dense_top1, one.top1, one.mac_reduction)
    ), "theirs are slanted, and nothing else is"
    (tmp_path / "benchmarks" / "paper-rows.json").unlink()
    assert all(row[6:] == ["–", "–", "–"] for row in table_rows())


def test_our_rows_are_those_of_the_record() -> None:
    path = data_root() / "benchmarks" / "paper-rows.json"
    ours = {row["row"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    for row in table_rows():
        mine = ours.get(int(row[0].split(".")[0]))
        assert row[6] == ("–" if mine is None else f"{mine['reduction_pct']:.2f}")


# --- what is asked for ----------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the networks that are opened."""
    names: list[str] = []

    def load(name: str) -> Any:
        names.append(name)
        return mp.load_model(name)

    monkeypatch.setattr(structured, "load_model", load)
    return names


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"network": "fashion-vti"}, "no network 'fashion-vti' here; did you mean 'fashion-vit'?"),
        ({"network": "fashion-mlp-l1"}, "no network 'fashion-mlp-l1' here"),
        ({"network": "resnet18"}, "no network 'resnet18' here; known: fashion-vit, fashion-resnet, fashion-mlp"),
        ({"network": "../../etc/passwd"}, "no network '../../etc/passwd' here"),
        ({"network": ""}, "no network '' here"),
        ({"pattern": "1:2"}, "no pattern '1:2' here"),
        ({"pattern": "2:4 "}, "no pattern '2:4 ' here; did you mean '2:4'?"),
        ({"order": "best"}, "no order 'best' here"),
        ({"network": "fashion-mlp", "layer": "features.fc1"}, "no layer 'features.fc1' here; did you mean"),
        ({"network": "fashion-mlp", "layer": "head.weight"}, "no layer 'head.weight' here"),
    ],
)
def test_other_names_are_unknown_and_nothing_else_is_opened(
    opened: list[str], asked: dict[str, str], words: str
) -> None:
    known, reader, page = page_of(**asked)
    assert not known and words in reader.all("p") and reader.all("h1") == "No such pattern here"
    assert fetches_nothing(page) and "plotly" not in page and set(opened) <= set(NETWORKS)
    links = [attributes["href"] for tag, attributes in reader.tags if tag == "a"]
    assert links[:3] == ["./", "./run?theme=light", "./compare?theme=light"]


@pytest.mark.parametrize("key", ["network", "pattern", "order", "layer"])
def test_what_is_asked_for_is_never_markup(opened: list[str], key: str) -> None:
    known, reader, page = page_of(**{"network": "fashion-mlp", "theme": "dark"} | {key: EVIL})
    assert not known and f"no {key} '{EVIL}' here" in reader.all("p")
    assert fetches_nothing(page) and {"img", "script", "select"}.isdisjoint(tag for tag, _ in reader.tags)
    link = next(str(a["href"]) for tag, a in reader.tags if tag == "a" and str(a["href"]).startswith("?"))
    assert dict(parse_qsl(link[1:]))[key] == EVIL and dict(parse_qsl(link[1:]))["theme"] == "light"
    assert set(opened) <= set(NETWORKS) and "color-scheme: dark" in page


def test_an_unknown_theme_is_the_light_one() -> None:
    known, reader, page = page_of(**MLP, theme=EVIL)
    assert known and "color-scheme: light" in page and "onerror" not in without_library(page)
    assert "img" not in {tag for tag, _ in reader.tags}


def test_another_network_is_shown_with_a_layer_of_its_own() -> None:
    """The form sends all of its fields: the layer is then still one of the network before."""
    for network, before in (("fashion-mlp", "fashion-vit"), ("fashion-resnet", "fashion-mlp")):
        known, _, page = page_of(network=network, layer=pattern_layers(before)[0], order="none")
        layers = pattern_layers(network)
        assert known and selected(page)["layer"] == layers[len(layers) // 2]


def test_a_view_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"network": "fashion-mlp", "pattern": "12:16", "order": "none", "layer": "features.fc2.weight"}
    first = page_of(**asked)[1].drawn["groups"]
    monkeypatch.setattr(patterns_page, "explore", lambda *_: pytest.fail("it is made again"))
    assert page_of(**asked)[1].drawn["groups"] == first


# --- served ---------------------------------------------------------------------------------------------------------


def served(queries: list[str]) -> list[HTTPResponse]:
    """What the server answers to all of them at once."""

    async def ask() -> list[HTTPResponse]:
        server = HTTPServer(Application([("/patterns", dashboard_pages.PatternsPage)]))
        sockets = bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        address = f"http://127.0.0.1:{sockets[0].getsockname()[1]}/patterns"
        client = AsyncHTTPClient(force_instance=True)
        try:
            return list(await asyncio.gather(*(client.fetch(address + query, raise_error=False) for query in queries)))
        finally:
            client.close()
            server.stop()

    return asyncio.run(ask())


def test_the_page_is_served_whole_or_with_404() -> None:
    query = urlencode({**MLP, "pattern": "2:4", "order": "none", "theme": "dark"})
    good, bad, evil = served([f"?{query}", "?network=../x", "?" + urlencode({"layer": EVIL, "network": "fashion-mlp"})])
    assert (good.code, bad.code, evil.code) == (200, 404, 404)
    for answer in (good, bad, evil):
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert answer.headers["Cache-Control"] == "no-store"
    page = good.body.decode()
    assert selected(page) == {**MLP, "pattern": "2:4", "order": "none"} and "color-scheme: dark" in page
    assert "no network &#39;../x&#39; here" in bad.body.decode()
    assert Reader(evil.body.decode()).all("p").count(f"no layer '{EVIL}' here") == 1


def test_pages_are_made_beside_the_loop_from_known_arguments_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    both, seen = threading.Barrier(2, timeout=20), []

    def made(asked: dict[str, str]) -> tuple[bool, str]:
        both.wait()  # the second is begun while the first is not done
        seen.append((asked, threading.current_thread() is threading.main_thread()))
        return True, "page"

    monkeypatch.setattr(dashboard_pages, "_patterns", made)
    answers = served(["?network=a&order=&theme=c&secret=x&grid=y", "?pattern=b&layer=d"])
    assert [answer.code for answer in answers] == [200, 200]
    assert sorted((asked for asked, _ in seen), key=len) == [
        {"pattern": "b", "layer": "d"}, {"network": "a", "order": "", "theme": "c"}
    ]  # fmt: skip
    assert not any(main for _, main in seen)
