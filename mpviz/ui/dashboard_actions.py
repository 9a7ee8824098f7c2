"""What people do on the dashboard, and what it does to the Workbench."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpviz.errors import MpvizError
from mpviz.ui import dashboard_files as files
from mpviz.ui import text
from mpviz.ui.dashboard_faces import RIGHT
from mpviz.ui.dashboard_paint import RESETS
from mpviz.ui.rows import toggled
from mpviz.ui.takeaway import take
from mpviz.workbench.jobs import Job

if TYPE_CHECKING:
    from mpviz.ui.dashboard_bridge import Bridge
    from mpviz.workbench.state import Workbench
    from mpviz.workbench.visits import Visit


class Actions:
    """The half of a session that reacts to controls; the other half loads, makes files and paints."""

    wb: Workbench | None
    roots: dict[str, Any]
    _bridge: Bridge
    _visit: Visit
    _loading: Job | None
    _theme: str
    _error: str
    _lower: str
    _right: str
    _edit: int

    def _with(self, action: Callable[[Workbench], Any]) -> None:
        """Do it to the Workbench; what goes wrong is shown as a sentence."""
        if self.wb is None:
            return
        try:
            action(self.wb)
        except (MpvizError, ValueError) as error:
            self._show_error(str(error))
        else:
            if self._error:
                self._show_error("")

    def _start(self, job: Callable[[Workbench], Any]) -> None:
        """Start a job, where the server takes one more."""
        self._with(lambda wb: self._visit.start(lambda: job(wb)))

    def _apply(self) -> None:
        self._with(lambda wb: wb.apply(self.roots["recipe_text"].value or ""))

    def _open_session(self, value: bytes | None) -> None:
        if value:
            self._restore(lambda _: files.read_session(value))

    def _restore(self, state: Callable[[Workbench], dict[str, Any]]) -> None:
        """Set what a state says, with no more images than this server measures."""

        def limited(wb: Workbench) -> dict[str, Any]:
            wanted, limit = state(wb), self._visit.limits.samples
            samples = wanted.get("samples", wb.param["samples"].default)
            return wanted if limit is None else {**wanted, "samples": min(samples, limit)}

        self._with(lambda wb: wb.restore(limited(wb)))

    def _show_error(self, message: str) -> None:
        self._error = message
        self._bridge.mark(["error"])

    def _set(self, name: str, value: Any) -> None:
        if self.wb is None or getattr(self.wb, name) == value:
            return
        if value is not None:  # else an emptied number field
            self._with(lambda wb: wb.change(**{name: value}))
        self._bridge.mark([name])  # what was refused goes back to what holds

    def _set_samples(self, value: int | None) -> None:
        """As many as the split has, and at least one; what was typed is put right where it was typed."""
        if self.wb is None or value is None:
            self._bridge.mark(["samples"])
            return
        limit = self._visit.limits.samples
        most = self.wb.available if limit is None else min(self.wb.available, limit)
        within = min(max(value, 1), most)
        self._set("samples", within)
        if within != value:
            self._bridge.mark(["samples"])
            images = text.plural(most, "image")
            there = f"the {self.wb.split} split has" if most == self.wb.available else "this server measures up to"
            self._show_error(f"{text.count(value)} images asked for; {there} {images}")

    def _set_own_beta(self, setting: str, box: str, value: float) -> None:
        if not self.roots[box].value:
            self._set(setting, value)

    def _set_same(self, setting: str, same: bool) -> None:
        if self.wb is not None and same != (getattr(self.wb, setting) is None):
            value = None if same else self.roots[setting].value
            self._with(lambda wb: wb.change(**{setting: value}))

    def _set_lock(self, lock: bool) -> None:
        if self.wb is None or lock == (self.wb.layer in self.wb.locked):
            return
        self._set("locked", toggled(self.wb.locked, self.wb.layer))

    def _set_theme(self, dark: bool) -> None:
        self._theme = "dark" if dark else "light"
        self._bridge.mark(["theme"])

    def _set_right(self, shown: str) -> None:
        self._right = shown
        self._bridge.mark(["right"])

    def _prove(self) -> None:
        if self._right == RIGHT[0]:
            self.roots["right"].value = RIGHT[1]  # where the proofs will appear
        self._start(lambda wb: wb.certify())

    def _set_lower(self, shown: str) -> None:
        self._lower = shown
        self._bridge.mark(["lower"])

    def _in_layers(self, said: dict[str, Any]) -> None:
        row = str(said.get("row", ""))
        what = said.get("what")
        if what == "pick":
            self._with(lambda wb: wb.select(row))
        elif what == "lock":
            self._with(lambda wb: wb.change(locked=toggled(wb.locked, row)))
        else:
            self._send("layers", "layers", str(what))

    def _on_courier(self, said: dict[str, Any]) -> None:
        what, form = str(said.get("what", "")), str(said.get("form", ""))
        if form == "step":
            self._with(lambda wb: wb.redo() if what == "redo" else wb.undo())
        elif form != "reset":
            self._send("courier", what, form)
        elif what in RESETS and self.wb is not None and not self.roots[what].disabled:
            default = self.wb.param[what].default
            self._set(what, self.wb.beta if default is None else default)

    def _in_spikes(self, said: dict[str, Any]) -> None:
        if said.get("what") != "pick":
            self._send("spikes", "spikes", str(said.get("what")))

    def _in_samples(self, said: dict[str, Any]) -> None:
        row, what = str(said.get("row", "")), str(said.get("what"))
        if what != "pick":
            self._send("sample_rows", "samples", what)
        elif row.isdigit():
            if self._right in RIGHT[:2]:
                self.roots["right"].value = "margins"  # where the sample is marked and explained
            self._with(lambda wb: wb.change(sample=int(row)))

    def _click_layer(self, click: Any) -> None:
        name = _clicked(click)
        if name is not None:
            self._with(lambda wb: wb.select(str(name)))

    def _click_position(self, click: Any) -> None:
        sparsity = _clicked(click)
        if isinstance(sparsity, (int, float)):
            self._set("sparsity", float(sparsity))

    def _drag_position(self, moved: Any) -> None:
        x = (moved or {}).get("shapes[0].x0")
        if isinstance(x, (int, float)):
            self._set("sparsity", round(min(max(x / 100, 0.0), 0.99), 2))
            self._edit += 1
            self._bridge.mark(["curve"])  # straight again, even where the sparsity stays the same

    def _cancel(self) -> None:
        if self.wb is not None:
            self.wb.cancel()
        elif self._loading is not None:
            self._loading.cancel()

    def _dismiss(self) -> None:
        self._show_error("")
        if self.wb is not None:
            self.wb.change(error="")

    def _send(self, part: str, what: str, form: str) -> None:
        """A file to the page, through the part of it that asked."""
        self._with(lambda wb: self.roots[part].send(take(wb, what, form, self._theme).message))


def _clicked(click: Any) -> Any:
    """What the clicked mark stands for: the customdata of its point."""
    points = (click or {}).get("points") or [{}]
    return points[0].get("customdata")
