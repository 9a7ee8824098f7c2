"""The one state behind notebook, dashboard and tests: what is chosen, what follows from it, what runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import param
from torch import Tensor, nn

from mpviz.certificates.margins import Certificate
from mpviz.certificates.preview import Point
from mpviz.certificates.summary import compare_models, results_of
from mpviz.errors import ModelError, MpvizError
from mpviz.nets.store import save
from mpviz.pipeline import budget_table, plan_weights, prune_and_certify
from mpviz.prune.allocate import layer_names
from mpviz.recipe import BudgetPlan, Recipe
from mpviz.workbench.jobs import Job, sentence
from mpviz.workbench.measure import Aim, Measurer, Samples, open_samples
from mpviz.workbench.memory import Remembering
from mpviz.workbench.names import PLAN
from mpviz.workbench.policy import Gate
from mpviz.workbench.sources import Subject, open_data, open_subject
from mpviz.workbench.views import JobStatus


def _telling(subject: Subject) -> str:
    """The first of the prunable layers with most eigenvalues: there the law is seen best."""
    return max(subject.ranking.names, key=lambda name: len(subject.spectra[name].eigenvalues))


class Workbench(Remembering):
    """One network, one data set, one plan; every face shows and edits this.

    >>> wb = Workbench("fashion-mlp")             # doctest: +SKIP
    >>> wb.sparsity = 0.6                         # doctest: +SKIP
    >>> wb.prune().wait(); wb.comparison          # doctest: +SKIP

    Budgets, masks' counts and the estimate follow a slider at once; the comparison, before and after, is measured on
    the whole split.

    model: a name for `mp.load_model`, a checkpoint's path or an nn.Module in hand. data, folder: for `mp.load_data`.
    gate: of a served session, decides what may be opened. Raises the errors of those two, and AccessError where the
    gate refuses. All methods may be called from any thread.
    """

    def __init__(
        self,
        model: str | Path | nn.Module = "fashion-vit",
        data: str = "fashion-mnist",
        folder: str | None = None,
        gate: Gate | None = None,
        **settings: Any,
    ) -> None:
        subject = open_subject(model, gate=gate)
        if settings.get("layer"):
            settings["layer"] = layer_names([settings["layer"]], subject.spectra, "layer")[0]
        settings["locked"] = layer_names(settings.get("locked", ()), subject.ranking.names, "locked layer")
        splits = open_data(data, folder, subject.network, gate)
        self._gate = gate
        self._valid: dict[str, Any] = {}
        self._folder = folder
        self._job: Job | None = None
        self._adopting = False
        self._described: Samples | None = None
        self._measurer = Measurer(self._measured, lambda error: self._set(error=sentence(error)))
        self.certificate: Certificate | None = None
        self.masks: dict[str, Tensor] | None = None
        self.pruned: nn.Module | None = None
        self.pruned_at: tuple[BudgetPlan, str] | None = None  # plan and split of the comparison
        super().__init__(**settings)
        self._adopt(subject, data, splits)
        self.param.watch(self._plan, list(PLAN))
        self._follow_layer()
        self.param.watch(self._on_samples, ["split", "samples"])

    # --- what is loaded -------------------------------------------------------------------------------------------

    @property
    def network(self) -> nn.Module:
        """The dense network. Nothing here changes its weights."""
        return self._subject.network

    @property
    def available(self) -> int:
        """How many samples the chosen split has."""
        return len(getattr(self._splits, self.split))

    def open(
        self,
        model: str | Path | nn.Module,
        data: str | None = None,
        folder: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Job:
        """Load another network (and data set) in the background; on an error everything stays as it is.

        settings: set in the same step.
        """
        if data is None and folder is None:
            folder = self._folder

        def load(job: Job) -> None:
            job.tell(0.0, f"loading {model if isinstance(model, (str, Path)) else type(model).__name__}")
            subject = open_subject(model, job, self._gate)
            name = data or self.data
            job.tell(0.8, f"reading {name}")
            splits = open_data(name, folder, subject.network, self._gate)
            chosen = {} if settings is None else self._fitting(settings, subject)
            split, n = chosen.get("split", self.split), chosen.get("samples", self.samples)
            samples = open_samples(subject.network, getattr(splits, split), n, cancelled=job.cancelled)
            job.claim()
            self._folder = folder
            self._adopt(subject, name, splits, samples, chosen)

        return self._run("load", load, abandonable=True)

    def _adopt(
        self, subject: Subject, data: str, splits: Any, samples: Samples | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        with self._lock:
            self._subject, self._splits, self._history = subject, splits, None
            chosen = dict(settings or {})
            self.certificate = self.masks = self.pruned = self.pruned_at = None
            self._adopting = True
            prunable, layer = subject.ranking.names, chosen.pop("layer", self.layer)
            locked = chosen.pop("locked", self.locked)
            with param.parameterized.batch_call_watchers(self), param.edit_constant(self):
                self.param.update(
                    model=subject.name,
                    data=data,
                    locked=[name for name in locked if name in prunable],
                    table=subject.table,
                    comparison=None,
                    proofs=None,
                    error="",
                    layer=layer if layer in subject.spectra else _telling(subject),
                    **chosen,
                )
                self._use_samples(samples)
            self._adopting = False
            self._show_layer()
        self._plan()

    # --- the plan -------------------------------------------------------------------------------------------------

    @property
    def plan(self) -> BudgetPlan:
        """The budget part of the recipe, as the sliders stand."""
        roles = {"attention": self.beta_attention, "mlp": self.beta_mlp}
        present = set(self.table.loc[self.table["prunable"].astype(bool), "role"])  # others have no say here
        tidy = lambda value: round(float(value), 6)  # noqa: E731 - sliders count in floats: 0.2 is 0.20000000000000004
        return BudgetPlan(
            sparsity=tidy(self.sparsity),
            signal=self.signal,
            beta=tidy(self.beta),
            decay_end=tidy(self.decay_end),
            beta_by_role={role: tidy(v) for role, v in roles.items() if v is not None and role in present},
            locked=list(self.locked),
        )

    @property
    def recipe(self) -> Recipe:
        """The whole plan; `mp.run(wb.recipe)` does headless what Prune does here.

        Raises ModelError for a network that was given as a module: a recipe names what it loads.
        """
        if not self._subject.loadable:
            raise ModelError(
                f"{self.model} was given as a module, but a recipe names its network; mp.save it and open the file"
            )
        return self._controls()

    def export_recipe(self) -> str:
        """The plan as TOML text for `mpviz run`."""
        return self.recipe.to_toml()

    def _counts(self, sparsity: float, plan: BudgetPlan, subject: Subject) -> tuple[pd.Series, dict[str, int]]:
        weights = plan_weights(subject.table, replace(plan, sparsity=sparsity))
        return weights, subject.ranking.counts(sparsity, weights)

    def _plan(self, *_: Any) -> None:
        """What a slider step does: layer budgets, and the look-up of what is known there."""
        with self._lock:
            if self._adopting:  # it comes once all is set
                return
            plan, subject = self.plan, self._subject
            try:
                weights, counts = self._counts(plan.sparsity, plan, subject)
            except MpvizError as error:
                self.param.update(**self._valid)  # back to the last plan that is possible
                self.error = sentence(error)
                return
            self._valid = {name: getattr(self, name) for name in PLAN}
            budgets = budget_table(subject.table, weights, counts)
            unlocked = 1.0 - float(budgets["params"][budgets["locked"]].sum()) / subject.ranking.total
            self._measurer.aim(
                Aim(
                    plan.sparsity,
                    (subject.name, replace(plan, sparsity=0.0)),
                    lambda s: subject.ranking.masks(self._counts(s, plan, subject)[1]),
                    unlocked,
                    counts,
                )
            )
            self.param.update(budgets=budgets, error="", curve=self._measurer.curve(), **self._remember())

    # --- the preview ----------------------------------------------------------------------------------------------

    @property
    def preview(self) -> Point:
        """Coverage and accuracy at the chosen sparsity: measured now when nothing is known yet."""
        point = self._measurer.point()
        self._measured()
        return point

    def start_preview(self) -> None:
        """Measure the chosen position and the 21 of the curve in the background, now and after every change."""
        self._measurer.start()

    def wait_preview(self, timeout: float = 120.0) -> bool:
        """Block until the curve of the present plan is measured; False after `timeout` seconds."""
        return self._measurer.wait(timeout)

    def _use_samples(self, samples: Samples | None = None) -> None:
        network, split, n = self.network, getattr(self._splits, self.split), self.samples
        self._measurer.use(lambda: open_samples(network, split, n), samples)

    def _on_samples(self, *_: Any) -> None:
        with self._lock:
            if self._adopting:
                return
            self._use_samples()
        self._plan()

    def _measured(self) -> None:
        samples = self._measurer.samples()
        with self._lock:  # or a slower thread could put an older curve over a newer one
            outputs: dict[str, Any] = {"curve": self._measurer.curve()}
            if samples is not self._described and samples.network is self.network:
                self._described, outputs["info"] = samples, self._describe(samples)
            self.param.update(**outputs)

    def _describe(self, samples: Samples) -> dict[str, Any]:
        device = next(self.network.parameters()).device
        return {
            "device": str(device),
            "versions": f"torch {version('torch')} · timm {version('timm')} · mpviz {version('mpviz')}",
            "data": self._splits.source,
            "dense_accuracy": samples.dense_accuracy,
        }

    # --- jobs -----------------------------------------------------------------------------------------------------

    def prune(self) -> Job:
        """Prune a copy by the present plan and measure it on the whole split, in the background."""
        plan, subject = self.plan, self._subject
        recipe = self.recipe.to_dict() if subject.loadable else None
        split_name = self.split
        split = getattr(self._splits, split_name)

        def work(job: Job) -> None:
            job.tell(0.0, "choosing the weights to remove")
            weights, counts = self._counts(plan.sparsity, plan, subject)
            masks = subject.ranking.masks(counts)
            pruned, cert = prune_and_certify(
                subject.network,
                masks,
                split,
                progress=lambda f, what: job.tell(0.02 + 0.96 * f, what),
                cancelled=job.cancelled,
            )
            budgets = budget_table(subject.table, weights, counts)
            comparison = compare_models(subject.network, pruned, budgets, cert)
            job.tell(0.99, "comparing")
            job.claim()
            with self._lock:
                self.masks, self.pruned, self.certificate = masks, pruned, cert
                self._pruned_recipe, self._pruned_budgets = recipe, budgets
                self.pruned_at = (plan, split_name)
            self._set(comparison=comparison)

        return self._run("prune", work)

    @property
    def comparison_is_current(self) -> bool:
        """False when plan or split are no longer those that `comparison` was measured with; True when there is none."""
        measured = self.pruned_at  # no lock: a screen that paints must never wait for a job
        return measured is None or measured == (self.plan, self.split)

    def save(self, path: str | Path) -> Path:
        """Write the last pruned model with masks, recipe, results, and its proofs where `certify` made some.

        Raises ModelError when nothing was pruned yet.
        """
        with self._lock:
            if self.pruned is None or self.certificate is None or self.pruned_at is None:
                raise ModelError("nothing is pruned yet; call prune() and wait for it before saving")
            pruned, masks, recipe = self.pruned, self.masks, self._pruned_recipe
            results = results_of(self.certificate, self._pruned_budgets)
            if self.proofs is not None and self._proved_at == (*self.pruned_at, self.model):
                results["proofs"] = self.proofs.summary()
        return save(path, pruned, masks, recipe=recipe, results=results)

    def cancel(self) -> None:
        """Ask the running job to stop; what was there before it stays."""
        if self._job is not None:
            self._job.cancel()

    def wait(self, timeout: float | None = None) -> JobStatus:
        """Block until the running job has ended."""
        return self.job if self._job is None else self._job.wait(timeout)

    def close(self) -> None:
        """End background work; the state can still be read."""
        self.cancel()
        self._measurer.close()
        self._close_layer()

    def _run(self, name: str, work: Callable[[Job], None], abandonable: bool = False) -> Job:
        with self._lock:
            if self._job is not None and self._job.status.busy:
                raise MpvizError(f"a job is running already ({self._job.name}); cancel it or wait for it")
            self._job = job = Job(name, work, self._on_status, abandonable)
            self.error = ""
        return job.start()

    def _on_status(self, status: JobStatus) -> None:
        if status.state == "failed":
            self._set(job=status, error=status.message)
        else:
            self._set(job=status)

    def change(self, **settings: Any) -> None:
        """Set several settings as one step; the plan is worked out once. Raises ModelError for an unknown layer."""
        if "layer" in settings:
            self._known(settings["layer"])
        self._set(**settings)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        # the widgets live a floor above: asked for by name, and only when a notebook wants to show them
        return import_module("mpviz.ui.widgets").workbench_view(self)._repr_mimebundle_(**kwargs)
