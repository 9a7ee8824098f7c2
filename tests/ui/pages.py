"""A page as a parser sees it, for tests of what stands in one."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "img", "br", "input", "link", "hr"}


class Reader(HTMLParser):
    """The elements, texts and attributes of a page; raises when elements are not nested as they should be."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.ids: dict[str, str] = {}
        self._id = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._id = dict(attrs).get("id") or ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)
        if self._id:
            self.ids[self._id] = self.ids.get(self._id, "") + data

    def all(self, tag: str) -> str:
        return "".join(self.texts.get(tag, []))

    @property
    def drawn(self) -> dict[str, Any]:
        """The figures that the page draws."""
        return dict(json.loads(self.ids["figures"]))


def without_library(html: str) -> str:
    """The page without plotly.js."""
    start = html.index("<script>") + len("<script>")
    return html[:start] + html[html.index("</script>", start) :]


def fetches_nothing(html: str) -> bool:
    """Whether a page asks nobody for anything: its policy forbids it, and nothing in it would."""
    reader, own = Reader(html), without_library(html) if "plotly.js v" in html else html
    policy = next(a["content"] for _, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    asking = [
        tag for tag, attributes in reader.tags if "src" in attributes or tag in ("link", "iframe", "object", "base")
    ]
    return (
        str(policy).startswith("default-src 'none'")
        and not asking
        and not re.search(r"https?:|//cdn|@import|url\(", own)
    )
