"""The browser fixture sees what a page complains about, and keeps it on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.conftest import PageLog

pytestmark = pytest.mark.browser


def test_errors_and_requests_to_other_machines_are_noted(page: Page, page_log: PageLog) -> None:
    page.set_content(
        "<h1>page</h1><script>console.error('from the console'); setTimeout(() => { throw Error('uncaught') })</script>"
        "<img src='https://elsewhere.example/picture.png' onerror='document.title = \"refused\"'>"
    )
    page.wait_for_function("document.title == 'refused'")
    assert "from the console" in page_log.errors and "uncaught" in page_log.errors
    assert page_log.outside == ["https://elsewhere.example/picture.png"]


def test_a_quiet_page_has_an_empty_log(page: Page, page_log: PageLog) -> None:
    page.set_content("<h1>page</h1>")
    assert page.inner_text("h1") == "page"
    assert page_log.errors == [] and page_log.outside == []
