"""A dashboard for visitors in a real browser: what they can choose, and a checkpoint of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import mpviz as mp
from tests.ui.served import Served

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser
START = 60_000  # milliseconds: the first page waits for torch


def test_a_visitor_uploads_a_checkpoint_and_is_told_what_is_refused(page: Page, page_log: Any, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    offered = "models/<b>first.safetensors"
    mp.save(tmp_path / offered, mp.load_model("fashion-mlp"))
    server = Served(tmp_path, "--allow-model", str(tmp_path / "models"), "--uploads", "--max-upload", "3")
    try:
        page.goto(f"http://localhost:{server.port}")
        network = page.get_by_role("combobox", name="network", exact=True)
        upload = page.get_by_label("upload a checkpoint")
        page.locator(".budgets .bars").first.wait_for(timeout=START)
        assert offered in network.locator("option").all_inner_texts()
        assert not page.get_by_role("textbox", name="timm name or checkpoint path").is_visible()
        assert not page.get_by_role("button", name="Open", exact=True).is_visible()

        upload.set_input_files(str(tmp_path / offered))
        page.get_by_text("took <b>first.safetensors").wait_for()
        page.wait_for_function("document.querySelector('.upload input').disabled === false")
        page.wait_for_timeout(500)
        network.locator("option", has_text="uploaded: <b>first.safetensors").wait_for(state="attached", timeout=START)
        assert network.input_value() == "uploaded: <b>first.safetensors"

        (tmp_path / "evil.safetensors").write_bytes(b"\x80\x04\x95" + bytes(100))
        upload.set_input_files(str(tmp_path / "evil.safetensors"))
        page.get_by_role("alert").get_by_text("a pickle or an archive of torch.save").wait_for()
        refused = [one for one in page_log.errors if "415" not in str(one)]  # the browser notes a refusal by itself
        assert refused == [] and page_log.outside == []
    finally:
        assert server.end()[0] == 0
