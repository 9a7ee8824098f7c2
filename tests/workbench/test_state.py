"""The state without a screen: sliders, background measuring, pruning, cancelling, errors."""

import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import mpviz as mp
from mpviz.errors import BudgetError, MpvizError
from mpviz.nets.forward import logits
from mpviz.workbench.jobs import Job


@pytest.fixture
def wb():
    bench = mp.Workbench("fashion-mlp", samples=200)
    yield bench
    bench.close()


def test_everything_is_there_at_once(wb):
    assert list(wb.table.index) == wb.layers
    assert wb.layer == "features.fc1.weight" and wb.spectrum.layer == wb.layer
    assert wb.spectrum.n_spikes == len(wb.spectrum.spikes) == (wb.spectrum.eigenvalues > wb.spectrum.threshold).sum()
    assert wb.budgets["removed"].sum() == round(0.5 * wb.budgets["params"].sum())
    assert wb.preview.tier == "measured" and wb.preview.coverage > 0.5


def test_a_slider_moves_the_budgets(wb):
    for sparsity in (0.0, 0.31, 0.77, 0.99):
        wb.sparsity = sparsity
        assert wb.budgets["removed"].sum() == round(sparsity * wb.budgets["params"].sum())
    wb.sparsity, wb.beta = 0.3, 0.0
    plain = wb.budgets["sparsity"].copy()
    wb.beta_mlp = 2.0
    assert not np.allclose(plain, wb.budgets["sparsity"])
    assert (wb.budgets["weight"] == mp.allocate(wb.table, 0.3, beta=0.0, beta_by_role={"mlp": 2.0})).all()


def test_a_slider_step_is_quick():
    bench = mp.Workbench("fashion-vit", samples=50)
    counted = []
    original = bench._subject.ranking.masks
    bench._subject.ranking.masks = lambda counts: counted.append(1) or original(counts)
    try:
        bench.sparsity = 0.42
        assert counted == [], "masks are built when they are measured, not while the slider moves"
    finally:
        bench._subject.ranking.masks = original
        bench.close()


@pytest.mark.parametrize("name", ["fashion-mlp", "fashion-vit", "fashion-resnet"])
def test_the_measured_value_equals_brute_force(name):
    bench = mp.Workbench(name, samples=64)
    try:
        bench.sparsity = 0.437
        assert bench.preview.sparsity == 0.437
        deadline = time.monotonic() + 60
        bench.start_preview()
        while (bench.curve.current or {}).get("tier") != "measured" and time.monotonic() < deadline:
            time.sleep(0.05)
        current = bench.curve.current
        assert current["tier"] == "measured" and current["sparsity"] == 0.437
    finally:
        bench.close()
    model, (x, y) = mp.load_model(name), mp.load_data("fashion-mnist").test.sample(64, 0)
    masks = mp.magnitude_masks(model, 0.437, mp.allocate(mp.analyze(model), 0.437))
    dense = logits(model, x)
    with mp.apply_masks(model, masks):
        pruned = logits(model, x)
    top2 = dense.double().topk(2).values
    certified = (top2[:, 0] - top2[:, 1]) > 2 * (pruned.double() - dense.double()).abs().amax(1)
    assert current["coverage"] == certified.double().mean().item()
    assert current["unchanged"] == pytest.approx((pruned.argmax(1) == dense.argmax(1)).double().mean().item())
    assert current["accuracy"] == pytest.approx((pruned.argmax(1) == y).double().mean().item())


def test_the_curve_fills_and_a_new_family_makes_it_stale(wb):
    wb.start_preview()
    assert wb.wait_preview(60)
    curve = wb.curve
    assert np.isfinite(curve.coverage).all() and not curve.stale and curve.n_samples == 200
    assert (curve.coverage <= curve.unchanged).all() and curve.coverage[0] == 1.0
    wb.sparsity = 0.52
    assert wb.curve.current["tier"] == "estimate"
    wb.beta = 0.3
    assert wb.curve.stale and wb.curve.current is None
    assert wb.wait_preview(60)
    assert not wb.curve.stale and np.isfinite(wb.curve.coverage).all()
    assert wb.curve.current["tier"] == "measured"


def test_prune_keeps_what_the_recipe_says(wb, tmp_path):
    wb.sparsity = 0.6
    states = []
    wb.param.watch(lambda event: states.append((event.new.state, event.new.progress)), "job")
    before = {k: v.clone() for k, v in wb.network.state_dict().items()}
    assert wb.prune().wait(120).state == "done"
    assert all(torch.equal(before[k], v) for k, v in wb.network.state_dict().items())
    progress = [p for state, p in states if state == "running"]
    assert progress == sorted(progress) and len(set(progress)) > 10 and states[-1] == ("done", 1.0)
    kept = sum(int(m.sum()) for m in wb.masks.values())
    assert kept == wb.comparison.set_index("quantity").loc["prunable weights", "pruned"]
    assert len(wb.certificate) == 10_000 and wb.certificate.violations == 0
    headless = mp.run(wb.recipe)
    assert headless.certificate.coverage == wb.certificate.coverage
    pd.testing.assert_frame_equal(headless.comparison, wb.comparison)
    loaded = mp.load(wb.save(tmp_path / "pruned"))
    x, _ = mp.load_data("fashion-mnist").test.sample(50)
    assert torch.equal(logits(loaded.model, x), logits(wb.pruned, x))
    assert loaded.results["coverage"] == wb.certificate.coverage


class Slow(nn.Module):
    """Takes a moment a batch, so that a job can be caught in the middle."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(784, 32), nn.Linear(32, 10)

    def forward(self, x):
        time.sleep(0.02)
        return self.head(torch.relu(self.body(x.flatten(1))))


def test_cancel_leaves_everything_as_it_was():
    bench = mp.Workbench(Slow().eval(), samples=100)
    try:
        job = bench.prune()
        while bench.job.progress < 0.1:
            time.sleep(0.005)
        with pytest.raises(MpvizError, match="running already"):
            bench.prune()
        bench.cancel()
        assert job.wait(20).state == "cancelled"
        assert bench.comparison is None and bench.pruned is None and bench.error == ""
        assert "cancelled" in bench.job.message
        with pytest.raises(MpvizError, match="nothing is pruned yet"):
            bench.save("unused")
    finally:
        bench.close()


def test_opening_another_model(wb):
    assert wb.open("fashion-mlp-l1").wait(60).state == "done"
    assert wb.model == "fashion-mlp-l1" and wb.table.equals(mp.analyze(mp.load_model("fashion-mlp-l1")))
    table = wb.table
    assert wb.open("fashion-vti").wait(60).state == "failed"
    assert "did you mean 'fashion-vit'" in wb.error
    assert wb.model == "fashion-mlp-l1" and wb.table is table
    wb.sparsity = 0.3
    assert wb.error == ""


def test_impossible_settings_are_refused_with_a_sentence(wb):
    with pytest.raises(ValueError):
        wb.sparsity = 1.0
    with pytest.raises(mp.MpvizError, match="did you mean"):
        wb.select("features.fc3.weight")
    with pytest.raises(mp.MpvizError, match="unknown layer"):
        wb.layer = "nothing"
    assert wb.layer == "features.fc1.weight"
    budgets = wb.budgets
    wb.sparsity = 0.2
    wb.locked = ["features.fc1.weight"]
    assert wb.budgets.loc["features.fc1.weight", "removed"] == 0
    wb.sparsity = 0.9
    assert "unlock a layer" in wb.error and wb.budgets["removed"].sum() == round(0.2 * wb.budgets["params"].sum())
    wb.locked = []
    assert wb.error == "" and not wb.budgets.equals(budgets)
    with pytest.raises(mp.MpvizError, match="unknown model"):
        mp.Workbench("fashion-mpl")


def test_layers_are_walked_in_a_circle(wb):
    names = [wb.layer]
    for _ in wb.layers:
        wb.next_layer()
        names.append(wb.spectrum.layer)
    assert names[0] == names[-1] and len(set(names)) == len(wb.layers)
    wb.previous_layer()
    assert wb.layer == wb.layers[-1]


def test_a_locked_family_is_measured_only_where_it_is_possible(wb):
    wb.change(sparsity=0.2, locked=["features.fc1.weight"])
    wb.start_preview()
    assert wb.wait_preview(60) and wb.error == ""
    possible = wb.curve.positions <= 262144 / 663552
    assert np.isfinite(wb.curve.coverage[possible]).all() and np.isnan(wb.curve.coverage[~possible]).all()


def test_many_threads_move_sliders_without_harm(wb):
    wb.start_preview()

    def shake(seed):
        rng = np.random.default_rng(seed)
        for _ in range(30):
            wb.sparsity = round(float(rng.uniform(0, 0.9)), 3)
            wb.change(beta=float(rng.uniform(0, 2)), decay_end=0.8)
            wb.next_layer()

    threads = [threading.Thread(target=shake, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    seen = []
    wb.param.watch(lambda event: seen.append(event.new["sparsity"].sum()), "budgets")
    wb.sparsity = 0.123
    assert len(seen) == 1, "events still arrive one by one"
    assert wb.budgets["removed"].sum() == round(0.123 * wb.budgets["params"].sum())


def test_a_failing_job_says_its_error():
    seen = []
    status = Job("work", lambda job: 1 / 0, seen.append).start().wait(10)
    assert status.state == "failed" and "ZeroDivisionError" in status.message
    refused = Job("work", lambda job: (_ for _ in ()).throw(BudgetError("too much")), seen.append).start().wait(10)
    assert refused.message == "too much"


def test_a_pruned_model_shares_nothing_with_the_dense_one(wb):
    assert wb.prune().wait(120).state == "done"
    dense = {t.data_ptr() for t in wb.network.state_dict().values()}
    assert not dense & {t.data_ptr() for t in wb.pruned.state_dict().values()}


def test_names_given_at_the_start_count_or_are_refused():
    bench = mp.Workbench("fashion-mlp", sparsity=0.2, locked=["features.fc1"], layer="features.fc2.weight")
    assert bench.layer == "features.fc2.weight" and bench.locked == ["features.fc1.weight"]
    assert bench.budgets.loc["features.fc1.weight", "removed"] == 0
    bench.close()
    for wrong in ({"locked": ["nope"]}, {"layer": "nope"}):
        with pytest.raises(MpvizError, match="unknown"):
            mp.Workbench("fashion-mlp", **wrong)


def test_a_refused_plan_is_taken_back(wb):
    wb.change(sparsity=0.2, locked=["features.fc1.weight"])
    wb.sparsity = 0.95
    assert wb.sparsity == 0.2 and "unlock a layer" in wb.error
    wb.locked = ["nope"]
    assert wb.locked == ["features.fc1.weight"] and "unknown locked layer" in wb.error
    with pytest.raises(MpvizError, match="unknown layer"):
        wb.change(layer="nope", sparsity=0.1)
    assert wb.sparsity == 0.2 and wb.plan.sparsity == 0.2


def test_a_module_in_hand_has_no_recipe_and_is_not_changed():
    with pytest.raises(MpvizError, match="training mode"):
        mp.Workbench(Slow().train())
    bench = mp.Workbench(Slow().eval())
    with pytest.raises(MpvizError, match=r"mp\.save it"):
        bench.export_recipe()
    bench.close()


def test_opening_another_model_keeps_the_data_folder():
    bench = mp.Workbench("fashion-mlp", folder="bundled", samples=50)
    assert bench.open("fashion-mlp-l1").wait(60).state == "done"
    assert bench.recipe.data.folder == "bundled"
    bench.close()


def test_one_job_at_a_time_however_they_start():
    bench = mp.Workbench(Slow().eval(), samples=50)
    jobs, refused = [], []

    def start():
        try:
            jobs.append(bench.prune())
        except MpvizError as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bench.cancel()
    assert len(jobs) == 1 and len(refused) == 5
    assert jobs[0].wait(20).state == "cancelled"
    bench.close()


def test_sliders_and_reports_at_once_never_freeze_the_state(wb):
    interval, done = sys.getswitchinterval(), threading.Event()
    sys.setswitchinterval(1e-5)

    def report():
        while not done.is_set():
            wb._set(error="", info={"at": time.monotonic()})

    threads = [threading.Thread(target=report) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        for i in range(150):
            wb.sparsity = 0.1 + 0.005 * (i % 100)
    finally:
        done.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join(20)
    wb.sparsity = 0.777
    assert wb.budgets["removed"].sum() == round(0.777 * wb.budgets["params"].sum())


def test_a_script_may_end_while_the_curve_is_measured():
    script = (
        "import time, mpviz as mp\nwb = mp.Workbench('fashion-vit', samples=400)\nwb.start_preview()\ntime.sleep(2)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_noise_of_a_slider_is_no_other_plan() -> None:
    wb = mp.Workbench("fashion-mlp", samples=20)
    before = wb.plan
    wb.sparsity, wb.beta, wb.decay_end = 0.1 + 0.4 + 1e-16, 1.2500000000000002, 0.7000000000000001
    assert wb.plan == before
    wb.close()
