"""``/run``: the page of the queue of runs, and what it asks for; behind the doors of the dashboard."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from tornado.ioloop import IOLoop

from mpviz.errors import AccessError, MpvizError, RecipeError
from mpviz.ui import text
from mpviz.ui.dashboard_doors import Door
from mpviz.ui.run_words import without_places
from mpviz.workbench.journal import note
from mpviz.workbench.run_policy import admitted, check_room, seen_by

if TYPE_CHECKING:
    from mpviz.ui.run_page import Watch
    from mpviz.workbench.run_queue import RunQueue
    from mpviz.workbench.run_store import Run

_VISITOR = "mpviz-visitor"
_DAYS = 365


class _Runs(Door):
    """What the handlers of this page share. watch: what all pages show of the queue."""

    def initialize(self, watch: Watch) -> None:
        """Take what the server was started with."""
        self.watch = watch

    @property
    def queue(self) -> RunQueue:
        """That of the server."""
        return self.watch.queue

    @property
    def restricted(self) -> bool:
        """Whether visitors see their own runs alone."""
        return self.house.visits.policy.restricted

    def owner(self) -> str:
        """Who asks: a user, or on a public server without logins a browser; "" on one's own machine."""
        user = self.current_user_name()
        if user is not None:
            return user
        if not self.restricted:
            return ""
        known = self.get_signed_cookie(_VISITOR, max_age_days=_DAYS)
        if known is not None:
            return f"visitor {known.decode()}"
        made = secrets.token_hex(8)
        secure = self.request.protocol == "https"
        self.set_signed_cookie(_VISITOR, made, _DAYS, httponly=True, samesite="Lax", secure=secure)
        return f"visitor {made}"

    def asked(self, *names: str) -> dict[str, str]:
        """Those of the query's arguments that are there."""
        return {name: value for name in names if (value := self.get_query_argument(name, None)) is not None}

    async def in_thread(self, make: Callable[..., Any], *arguments: Any) -> Any:
        """Make it in a thread, for the sessions must not wait."""
        return await IOLoop.current().run_in_executor(None, make, *arguments)

    def say(self, status: int, error: object) -> None:
        """Answer with a sentence as JSON."""
        words = str(error)
        self.set_status(status)
        self.answer({"message": without_places(words) if self.restricted else words})

    def answer(self, values: dict[str, Any]) -> None:
        """Answer with JSON."""
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps(values, allow_nan=False))

    def own(self, name: str) -> Run:
        """A run of who asks. Raises MpvizError, in the same words whether or not others have it."""
        for run in seen_by(self.queue.runs(), self.owner(), self.restricted):
            if run.name == name:
                return run
        raise MpvizError(f"there is no run '{name[:80]}' here")

    def page(self, known: bool, page: str) -> None:
        """Answer with a page."""
        self.set_status(200 if known else 404)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        self.finish(page)


class RunPage(_Runs):
    """``/run?run=…&theme=…``: all runs, and one of them from near."""

    async def get(self) -> None:
        """Answer with the page."""
        xsrf = self.xsrf_token.decode()
        made = self.watch.page, self.asked("run", "theme"), self.owner(), self.restricted, xsrf
        self.page(*await self.in_thread(*made))


class RunState(_Runs):
    """``/run/state?run=…&theme=…&seen=…``: what has changed on that page, as JSON."""

    async def get(self) -> None:
        """Answer with JSON; 404 for a run that is not there."""
        asked = self.asked("run", "theme", "seen")
        try:
            self.answer(await self.in_thread(self.watch.state, asked, self.owner(), self.restricted))
        except MpvizError as error:
            self.say(404 if "run" in asked else 500, error)


class RunReport(_Runs):
    """``/run/report?run=…&theme=…``: the report of a run; of a grid, its cells as far as they are."""

    async def get(self) -> None:
        """Answer with the page."""
        theme = "dark" if self.get_query_argument("theme", "") == "dark" else "light"
        try:
            run = self.own(self.get_query_argument("run", ""))
            self.page(True, await self.in_thread(_report, run, theme))
        except (MpvizError, OSError) as error:
            words = without_places(str(error)) if self.restricted else str(error)
            self.refuse(404, f"there is no report to show: {words}")


class RunAct(_Runs):
    """``POST /run/submit`` and the like, with a JSON object: what is done to the queue. Answers with JSON."""

    async def post(self, what: str) -> None:
        """Do it; 400 with a sentence for what cannot be done, 403 for what this visitor may not."""
        try:
            given = json.loads(self.request.body)
            if not isinstance(given, dict) or not all(isinstance(one, str) for one in given.values()):
                raise ValueError("no table of words")
        except (ValueError, RecursionError):
            self.say(400, "this is no request of the page; reload it and try again")
            return
        try:
            doing = {"submit": self._submit, "plan": self._plan, "recipe": self._recipe}.get(what)
            found = await (doing(given) if doing else self._change(what, given.get("run", "")))
            self.answer(found)
        except AccessError as error:
            note(f"run-{what}-refused", str(error), logging.WARNING, user=self.current_user_name())
            self.say(403, error)
        except (MpvizError, OSError) as error:
            self.say(400, error)

    async def _submit(self, given: dict[str, str]) -> dict[str, Any]:
        owner, policy = self.owner(), self.house.visits.policy
        words = given.get("recipe", "")
        run = await self.in_thread(_submitted, self.queue, policy, words, owner)
        note("run-submit", f"{run.name}: {run.title}", user=self.current_user_name())
        return {"run": run.name}

    async def _change(self, what: str, name: str) -> dict[str, Any]:
        run = self.own(name)
        if what == "resume" and self.restricted:
            check_room(self.queue.runs(), self.owner())
        await self.in_thread(getattr(self.queue, what), run.name)
        note(f"run-{what}", f"{run.name}: {run.title}", user=self.current_user_name())
        return {"run": run.name}

    async def _recipe(self, given: dict[str, str]) -> dict[str, Any]:
        words = self.queue.recipe_text(self.own(given.get("run", "")).name)
        policy = self.house.visits.policy
        if policy.restricted:  # by the names that visitors know
            for name, place in (policy.models_offered() | policy.data_offered()).items():
                words = words.replace(f'"{place}"', f'"{name}"')
            words = without_places(words)
        return {"recipe": words}

    async def _plan(self, given: dict[str, str]) -> dict[str, Any]:
        """The recipe of the workbench whose key the page was opened with, and the same with an epoch of training."""
        visit = self.house.visits.find(given.get("visit", ""))
        if visit is None or visit.user != self.current_user_name() or visit.plan is None:
            raise MpvizError(
                "the workbench that this page was opened from is gone (reloaded or closed); open Runs from it anew"
            )
        plan = await self.in_thread(visit.plan)
        return {"plan": plan, "trained": f"{plan}\n[recover]\nepochs = 1.0\n"}


def _submitted(queue: RunQueue, policy: Any, words: str, owner: str) -> Run:
    from mpviz.recipe import parse_recipe

    if not words.strip():
        raise RecipeError("there is no recipe yet; paste one, or press 'your plan' or 'example'")
    recipe = parse_recipe(words)
    if policy.restricted:
        if recipe.model.name.startswith("uploaded: "):
            raise AccessError("an uploaded checkpoint belongs to its session, and no run can open it")
        recipe = admitted(recipe, policy)
        check_room(queue.runs(), owner)
    return queue.submit(recipe, owner)


def _report(run: Run, theme: str) -> str:
    if run.kind == "grid":
        from mpviz.grid_results import read_grid
        from mpviz.ui.grid_page import grid_html  # torch comes with it

        query = text.escape(urlencode({"run": run.name, "theme": theme}))
        nav = f'<nav aria-label="Pages"><a href="../">Workbench</a><a href="../run?{query}">Run</a></nav>'
        return grid_html(read_grid(run.folder), theme, nav)
    return (run.folder / "report.html").read_text(encoding="utf-8")


def run_handlers(queue: RunQueue) -> list[tuple[str, type[Any], dict[str, Any]]]:
    """The handlers of the page for a server's tornado application."""
    from mpviz.ui.run_page import Watch

    watch = {"watch": Watch(queue)}
    return [
        (r"/run", RunPage, watch),
        (r"/run/state", RunState, watch),
        (r"/run/report", RunReport, watch),
        (r"/run/(submit|cancel|resume|remove|recipe|plan)", RunAct, watch),
    ]
