"""The jobs that make certificates and previews of a workbench's plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from mpviz.certificates.anchored import AnchoredPreview
from mpviz.pipeline import plan_weights
from mpviz.recipe import BudgetPlan
from mpviz.workbench.jobs import Job
from mpviz.workbench.layer import LayerInView
from mpviz.workbench.measure import Measurer
from mpviz.workbench.proofs import ask, prove, unlocked_share
from mpviz.workbench.sources import Subject

PROVED_ON = 300  # samples


class Proving(LayerInView):
    """What a workbench needs to prove and to preview; its other half loads, plans and prunes."""

    _measurer: Measurer
    _subject: Subject
    _splits: Any
    _counts: Callable[[float, BudgetPlan, Subject], tuple[pd.Series, dict[str, int]]]
    _run: Callable[..., Job]
    _proved_at: tuple[BudgetPlan, str, str] | None = None

    @property
    def plan(self) -> BudgetPlan:
        """The budget part of the recipe."""
        raise NotImplementedError

    def precompute(self, **options: Any) -> Job:
        """Make the tables that tell at once what any layer budgets do, in the background; kept on disk by content.

        options: of `AnchoredPreview`, such as its grid. From then on, a position that is not measured yet shows
        their estimate, with its error on held-out budgets, until its measurement is done.
        """
        plan, subject = self.plan, self._subject

        def work(job: Job) -> AnchoredPreview:
            job.tell(0.0, "drawing samples")
            samples = self._measurer.samples()
            tables = AnchoredPreview(
                subject.network, samples.images, samples.labels, subject.ranking,
                lambda s: self._counts(s, plan, subject)[1], dense=samples.dense,
                limit=unlocked_share(subject.ranking, plan_weights(subject.table, plan)),
                progress=job.tell, cancelled=job.cancelled, **options,
            )  # fmt: skip
            job.claim()
            self._measurer.use_tables(samples, tables)
            self._set(curve=self._measurer.curve())
            return tables

        return self._run("precompute", work)

    def certify(self, samples: int | None = None) -> Job:
        """Prove what can be proved for the present plan, on so many samples of the split, in the background.

        samples: as many as the preview is measured on when None, `PROVED_ON` at most: a proof costs more than a look.
        The layer weights stay frozen at the plan's sparsity, so that the slider's masks are nested. `proofs` is set
        when the job is done, and `sample` to the one with the least margin; when it is cancelled, what was there stays.
        """
        plan, subject, split = self.plan, self._subject, getattr(self._splits, self.split)
        weights = plan_weights(subject.table, plan)
        number = min(self.samples, PROVED_ON) if samples is None else samples
        question = ask(subject.name, subject.network, subject.ranking, weights, plan.sparsity, split, number)

        def work(job: Job) -> None:
            view = prove(question, job.tell, job.cancelled)
            job.claim()
            self._proved_at = (plan, split.name, subject.name)
            self._set(proofs=view, sample=int(view.samples.pruned_margin.argmin()))

        return self._run("prove", work)

    @property
    def proofs_are_current(self) -> bool:
        """False when plan, split or network are no longer those that `proofs` speaks about."""
        return self.proofs is None or self._proved_at == (self.plan, self.split, self.model)
