"""One browser session of the dashboard: what its controls do to the Workbench, which is loaded in the background."""

from __future__ import annotations

import asyncio
import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpviz.errors import AccessError, MpvizError
from mpviz.ui import dashboard_parts as parts
from mpviz.ui import text
from mpviz.ui.dashboard_paint import EVERYTHING, OWN_BETA, RESETS, SETTINGS, Seen, paint
from mpviz.ui.rows import toggled
from mpviz.ui.takeaway import take
from mpviz.workbench.jobs import Job
from mpviz.workbench.views import JobStatus
from mpviz.workbench.visits import Visit, Visits

if TYPE_CHECKING:
    from bokeh.document import Document

    from mpviz.workbench.state import Workbench

Report = Callable[["Workbench"], str]


class Session:
    """The page of one browser and the Workbench behind it.

    folder: of `data`. report: makes the HTML of a report; None leaves its button out. document: of the browser
    session; None paints at once, in the calling thread. visit: what this session may do on a server; else
    anything. roots: the parts of the page by their names in the template.
    """

    def __init__(
        self,
        model: str = "fashion-vit",
        data: str = "fashion-mnist",
        folder: str | None = None,
        report: Report | None = None,
        document: Document | None = None,
        visit: Visit | None = None,
    ) -> None:
        self._visit = Visits().enter() if visit is None else visit
        self.wb: Workbench | None = None
        self.roots = parts.page_parts(model, data, with_report=report is not None)
        self._first_data, self._folder, self._report = data, folder, report
        self._theme, self._error, self._edit, self._lower = "light", "", 0, parts.LOWER[0]
        self._right = parts.RIGHT[0]
        self._loading: Job | None = None
        self._bridge = parts.Bridge(document, self._paint)
        self._visit.end = self.close
        self._visit.show_error = lambda message: self._bridge.soon(lambda: self._show_error(message))
        self._visit.receive = lambda name: self._bridge.soon(lambda: self.open(model=name))
        parts.offer(self.roots, self._visit.gate)
        self._follow_controls()
        self._paint(set(EVERYTHING))

    def _follow_controls(self) -> None:
        def on(name: str, what: str, react: Callable[[Any], None]) -> None:
            self.roots[name].param.watch(lambda event: react(event.new), what)

        for name in SETTINGS:
            on(name, "value", self._set_samples if name == "samples" else partial(self._set, name))
        for setting, box in OWN_BETA.values():
            on(setting, "value", partial(self._set_own_beta, setting, box))
            on(box, "value", partial(self._set_same, setting))
        on("lock", "value", self._set_lock)
        on("theme", "value", self._set_theme)
        on("lower", "value", self._set_lower)
        on("right", "value", self._set_right)
        on("tiers", "value", lambda names: self._set("tiers", list(names)))
        on("layers", "said", self._in_layers)
        on("spikes", "said", self._in_spikes)
        on("sample_rows", "said", self._in_samples)
        on("courier", "said", self._on_courier)
        on("model", "value", lambda name: self.open(model=name))
        on("data", "value", lambda name: self.open(data=name))
        on("other", "enter_pressed", lambda _: self._open_other())
        on("strip", "click_data", self._click_layer)
        on("budgets", "click_data", self._click_layer)
        on("coverage", "click_data", self._click_position)
        on("coverage", "relayout_data", self._drag_position)
        actions: dict[str, Callable[[], Any]] = {
            "open": self._open_other,
            "previous": lambda: self._with(lambda wb: wb.previous_layer()),
            "next": lambda: self._with(lambda wb: wb.next_layer()),
            "prune": lambda: self._start(lambda wb: wb.prune()),
            "prove": self._prove,
            "precompute": lambda: self._start(lambda wb: wb.precompute()),
            "cancel": self._cancel,
            "dismiss": self._dismiss,
        }
        for name, action in actions.items():
            on(name, "clicks", partial(_without_argument, action))
        for name, make in {"checkpoint": _checkpoint, "recipe": _recipe, "report": self._report_html}.items():
            if name in self.roots:
                self.roots[name].callback = self._making(make)

    # --- the network ----------------------------------------------------------------------------------------------

    def open(self, model: str | None = None, data: str | None = None) -> None:
        """Load a network or a data set in the background; on an error everything stays as it is."""
        if self.job.busy:
            return
        self._show_error("")
        wb = self.wb
        name = model or (self.roots["model"].value if wb is None else wb.model)
        source = data or (self.roots["data"].value if wb is None else wb.data)
        folder = self._folder if source == self._first_data else None
        try:
            self._visit.admit("open", name, (source, folder))
        except AccessError as error:
            self._show_error(str(error))
            self._bridge.mark(["model", "data"])
            return
        if wb is None:
            # the import inside takes seconds the first time: the page is there before
            make = partial(self._visit.load, model=name, data=source, folder=folder)
            self._loading = Job("load", make, self._on_loading, True)
            self._loading.start()
        elif (name, source) != (wb.model, wb.data):
            self._with(lambda wb: wb.open(name, source, folder))

    def _open_other(self) -> None:
        name = (self.roots["other"].value_input or "").strip()
        if name:
            self.open(model=name)

    def _on_loading(self, status: JobStatus) -> None:
        self._visit.follow(status)
        if status.state == "failed":
            self._error = status.message
        self._bridge.mark(["job", "error"])

    def _adopt(self, wb: Workbench) -> None:
        self.wb = wb
        names = [name for name in wb.param if name != "name"]
        wb.param.watch(lambda *events: self._bridge.mark([event.name for event in events]), names)
        wb.param.watch(lambda event: self._visit.follow(event.new, wb.model), ["job"])
        wb.start_preview()

    @property
    def job(self) -> JobStatus:
        """What runs in the background of this session."""
        if self.wb is not None:
            return self.wb.job
        return JobStatus() if self._loading is None else self._loading.status

    def close(self) -> None:
        """End the session's background work."""
        self._bridge.close()
        if self._loading is not None:
            self._loading.cancel()
        if self.wb is not None:
            self.wb.close()
        self._visit.close()

    # --- what people do -------------------------------------------------------------------------------------------

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
        if self._right == parts.RIGHT[0]:
            self.roots["right"].value = parts.RIGHT[1]  # where the proofs will appear
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
        if form != "reset":
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
            if self._right in parts.RIGHT[:2]:
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

    # --- files to take away ---------------------------------------------------------------------------------------

    def _send(self, part: str, what: str, form: str) -> None:
        """A file to the page, through the part of it that asked."""
        self._with(lambda wb: self.roots[part].send(take(wb, what, form, self._theme).message))

    def _making(self, make: Callable[[Workbench], bytes]) -> Callable[[], Any]:
        """A coroutine function that makes a file on another thread; after an error, which is shown, it gives None."""

        async def made() -> io.BytesIO | None:
            if self.wb is None:
                return None
            try:
                return io.BytesIO(await asyncio.to_thread(make, self.wb))
            except (MpvizError, OSError) as error:
                self._show_error(str(error))
                return None

        return made

    def _report_html(self, wb: Workbench) -> bytes:
        assert self._report is not None
        return self._report(wb).encode()

    # --- painting -------------------------------------------------------------------------------------------------

    def _paint(self, changed: set[str]) -> None:
        if self.wb is None and self._loading is not None and self._loading.status.state == "done":
            self._adopt(self._loading.result)
            changed = set(EVERYTHING)
        page = (self._theme, self._edit, self._lower, self._right)
        paint(self.roots, Seen(self.wb, self.job, self._error, *page), changed)


def _without_argument(action: Callable[[], Any], _: Any) -> None:
    action()


def _checkpoint(wb: Workbench) -> bytes:
    with tempfile.TemporaryDirectory(prefix="mpviz-") as folder:
        return wb.save(Path(folder) / "pruned.safetensors").read_bytes()


def _recipe(wb: Workbench) -> bytes:
    return wb.export_recipe().encode()


def _clicked(click: Any) -> Any:
    """What the clicked mark stands for: the customdata of its point."""
    points = (click or {}).get("points") or [{}]
    return points[0].get("customdata")
