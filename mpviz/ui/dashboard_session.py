"""One browser session of the dashboard: what its controls do to the Workbench, which is loaded in the background."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mpviz.errors import AccessError, MpvizError
from mpviz.ui import dashboard_files as files
from mpviz.ui import dashboard_parts as parts
from mpviz.ui.dashboard_actions import Actions
from mpviz.ui.dashboard_address import ADDRESSED, Address, read_address
from mpviz.ui.dashboard_bridge import Bridge
from mpviz.ui.dashboard_paint import EVERYTHING, OWN_BETA, SETTINGS, Seen, paint
from mpviz.ui.dashboard_words import taken_html
from mpviz.workbench.jobs import Job
from mpviz.workbench.views import JobStatus
from mpviz.workbench.visits import Visit, Visits

if TYPE_CHECKING:
    from bokeh.document import Document

    from mpviz.workbench.state import Workbench

Report = Callable[["Workbench"], str]


class Session(Actions):
    """The page of one browser and the Workbench behind it.

    folder: of `data`. report: makes the HTML of a report; None leaves its button out. document: of the browser
    session; None paints at once, in the calling thread. visit: what this session may do on a server; else anything.
    asked: the query of the address, a list of texts a name. roots: the parts of the page by their names in the
    template.
    """

    def __init__(
        self,
        model: str = "fashion-vit",
        data: str = "fashion-mnist",
        folder: str | None = None,
        report: Report | None = None,
        document: Document | None = None,
        visit: Visit | None = None,
        asked: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._visit = Visits().enter() if visit is None else visit
        self.wb: Workbench | None = None
        self._error, self._edit = "", 0
        try:
            self._asked = read_address(asked or {})
            named = self._asked.text("model") or model, self._asked.text("data") or data
            if self._asked.asked:
                self._visit.admit("open", named[0], (named[1], folder if named[1] == data else None))
        except MpvizError as error:
            self._asked, self._error = Address(), str(error)
        self.roots = parts.page_parts(
            self._asked.text("model") or model, self._asked.text("data") or data, report is not None
        )
        self._first_data, self._folder, self._report = data, folder, report
        self._theme, self._lower, self._right = self._asked.theme, self._asked.lower, self._asked.right
        for name in ("lower", "right"):
            self.roots[name].value = getattr(self._asked, name)
        self.roots["theme"].value = self._theme == "dark"
        self._loading: Job | None = None
        self._address = ""
        self._bridge = Bridge(document, self._paint)
        self._visit.end = self.close
        self._visit.show_error = lambda message: self._bridge.soon(lambda: self._show_error(message))
        self._visit.plan = self._plan_text
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
            "apply": self._apply,
            "undo": lambda: self._with(lambda wb: wb.undo()),
            "redo": lambda: self._with(lambda wb: wb.redo()),
            "dismiss": self._dismiss,
        }
        for name, action in actions.items():
            on(name, "clicks", partial(_without_argument, action))
        on("session_file", "value", self._open_session)
        made = {
            "checkpoint": files.checkpoint,
            "recipe": files.recipe,
            "session": files.session,
            "report": self._report_html,
        }
        for name, make in made.items():
            if name in self.roots:
                self.roots[name].callback = self._making(name, make)

    # --- the network ----------------------------------------------------------------------------------------------

    def open(self, model: str | None = None, data: str | None = None) -> None:
        """Load a network or a data set in the background; on an error everything stays as it is."""
        if self.job.busy:
            return
        if self._loading is not None:
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
        if self._asked.asked:
            self._restore(lambda wb: {**self._asked.state_asked(), **self._sources(wb)})
        wb.param.watch(lambda *events: self._bridge.mark([event.name for event in events]), names)
        wb.param.watch(lambda event: self._visit.follow(event.new, wb.model), ["job"])
        wb.start_preview()

    def _sources(self, wb: Workbench) -> dict[str, str]:
        """What is loaded, as a state says it."""
        return {"model": wb.model, "data": wb.data, "folder": wb.state.get("folder", "")}

    @property
    def job(self) -> JobStatus:
        """What runs in the background of this session."""
        if self.wb is not None:
            return self.wb.job
        return JobStatus() if self._loading is None else self._loading.status

    def _plan_text(self) -> str:
        if self.wb is None:
            raise MpvizError("the network of this page is still being loaded; try again in a moment")
        return self.wb.recipe_text

    def close(self) -> None:
        """End the session's background work."""
        self._bridge.close()
        if self._loading is not None:
            self._loading.cancel()
        if self.wb is not None:
            self.wb.close()
        self._visit.close()

    # --- files to take away ---------------------------------------------------------------------------------------

    def _making(self, name: str, make: Callable[[Workbench], bytes]) -> Callable[[], Any]:
        """A coroutine function that makes a file on another thread; after an error, which is shown, it gives None."""

        async def made() -> io.BytesIO | None:
            if self.wb is None:
                return None
            try:
                file = await asyncio.to_thread(make, self.wb)
                self.roots["taken"].object = taken_html(self.roots[name].filename, len(file))
                return io.BytesIO(file)
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
        self._write_address(changed)

    def _write_address(self, changed: set[str]) -> None:
        """Let the browser's address say what is set."""
        if self.wb is None or not changed & ADDRESSED:
            return
        search = Address(self._theme, self._lower, self._right, self.wb.state).query()
        if search != self._address:
            self._address = search
            self.roots["courier"].send({"kind": "address", "search": search})


def _without_argument(action: Callable[[], Any], _: Any) -> None:
    action()
