"""Undo and redo, recipes that are pasted, and sessions that are opened elsewhere."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import mpviz as mp
from mpviz.errors import BudgetError, ModelError, MpvizError, RecipeError
from mpviz.recipe import ModelPlan, Recipe, parse_recipe
from mpviz.workbench import history, session_file
from mpviz.workbench.history import History
from mpviz.workbench.names import TIERS_SHOWN, to_query
from mpviz.workbench.session_file import checked_state, from_query, parse_session, session_text


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wb(monkeypatch):
    monkeypatch.setattr(history, "MERGE", 0.0)  # each change is a step
    bench = mp.Workbench("fashion-mlp", samples=50)
    yield bench
    bench.close()


# --- steps ------------------------------------------------------------------------------------------------------------


def test_a_pull_of_a_slider_is_one_step():
    clock = Clock()
    steps = History({"a": 0, "b": 0}, clock)
    for value in (1, 2, 3):
        clock.now += 0.1
        steps.record({"a": value, "b": 0})
    steps.record({"a": 3, "b": 1})  # another setting is another step, however quick
    clock.now += 5
    steps.record({"a": 4, "b": 1})
    clock.now += 5
    steps.record({"a": 5, "b": 1})  # as is the same one later
    found = []
    while (step := steps.undo()) is not None:
        found.append(step["a"])
    assert found == [4, 3, 3, 0] and steps.undo() is None and not steps.undoable


def test_what_is_set_after_an_undo_forgets_what_was_undone():
    clock = Clock()
    steps = History({"a": 0}, clock)
    for value in (1, 2):
        clock.now += 5
        steps.record({"a": value})
    assert steps.undo() == {"a": 1} and steps.redoable
    steps.record({"a": 1})  # the undo itself arrives as a change
    assert steps.redoable
    steps.record({"a": 7})  # at once, but no part of the step before
    assert not steps.redoable and steps.undo() == {"a": 1}


@given(st.lists(st.sampled_from([0, 1, 2, 3, "undo", "redo"]), max_size=40))
def test_undo_and_redo_walk_the_list_that_was_made(moves):
    """Against the plain model: a list and a place in it."""
    clock, made, at = Clock(), [0], 0
    steps = History({"a": 0}, clock)
    for move in moves:
        clock.now += 10
        if move == "undo":
            at = max(0, at - 1)
            steps.undo()
        elif move == "redo":
            at = min(len(made) - 1, at + 1)
            steps.redo()
        elif move != made[at]:
            made, at = [*made[: at + 1], move], at + 1
            steps.record({"a": move})
        assert (steps.undoable, steps.redoable) == (at > 0, at + 1 < len(made))
    assert steps.undo() == (None if at == 0 else {"a": made[at - 1]})


def test_only_so_many_steps_are_kept():
    clock = Clock()
    steps = History({"a": 0}, clock)
    for value in range(1, 3 * history.MOST):
        clock.now += 5
        steps.record({"a": value})
    count = 0
    while steps.undo() is not None:
        count += 1
    assert count == history.MOST - 1


def test_a_workbench_goes_back_and_forth(wb):
    assert not wb.undoable and not wb.redoable and not wb.undo() and not wb.redo()
    first = wb.budgets["removed"].copy()
    wb.sparsity = 0.55
    wb.change(locked=["features.fc2.weight"], beta=0.5)  # one step
    wb.split = "calibration"
    assert wb.undo() and wb.split == "test" and wb.locked
    assert wb.undo() and (wb.sparsity, wb.beta, wb.locked) == (0.55, 1.25, [])
    assert wb.undo() and wb.sparsity == 0.5 and not wb.undoable and wb.redoable
    assert (wb.budgets["removed"] == first).all()
    assert wb.redo() and wb.redo() and (wb.beta, wb.locked) == (0.5, ["features.fc2.weight"])
    wb.sparsity = 0.2
    assert not wb.redoable and not wb.redo()


def test_what_is_looked_at_is_no_step(wb):
    wb.view, wb.layer = "tail", wb.layers[1]
    assert not wb.undoable
    wb.sparsity = 0.9
    wb.undo()
    assert wb.view == "tail" and wb.layer == wb.layers[1]


def test_a_plan_that_is_refused_is_no_step(wb):
    wb.locked = ["features.fc2.weight"]
    wb.sparsity = 0.9  # more than the other layer has
    assert wb.error and wb.sparsity == 0.5
    assert wb.undo() and wb.locked == [] and not wb.undoable


def test_another_network_begins_anew(wb):
    wb.sparsity = 0.7
    wb.open("fashion-resnet").wait()
    assert not wb.undoable and wb.sparsity == 0.7


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_the_text_of_the_recipe_sets_everything_it_says(wb):
    wb.change(sparsity=0.31, beta=0.4, beta_mlp=2.0, locked=["features.fc2.weight"], split="calibration")
    text, plan = wb.recipe_text, wb.plan
    assert parse_recipe(text) == wb.recipe
    wb.change(sparsity=0.9, beta=2.0, beta_mlp=None, beta_attention=1.0, locked=[], split="test", decay_end=0.3)
    assert wb.apply(text) is None
    assert wb.plan == plan and wb.recipe_text == text and wb.split == "calibration"
    assert wb.undo() and wb.sparsity == 0.9, "a recipe is one step"


def test_what_a_text_leaves_out_stays(wb):
    wb.change(beta=0.4, locked=["features.fc2.weight"])
    wb.apply("[budget]\nsparsity = 0.25\n")
    assert (wb.sparsity, wb.beta, wb.locked, wb.model) == (0.25, 0.4, ["features.fc2.weight"], "fashion-mlp")
    wb.apply("[budget]\nlocked = []\nbeta_by_role = {mlp = 0.5}\n")
    assert (wb.sparsity, wb.locked, wb.beta_mlp) == (0.25, [], 0.5)


def test_a_whole_recipe_takes_back_what_it_has_not(wb):
    wb.change(beta=0.4, beta_mlp=0.1)
    wb.apply(Recipe(model=ModelPlan(name="fashion-mlp")))
    assert (wb.beta, wb.beta_mlp) == (1.25, None)


def test_a_recipe_of_another_network_loads_it_and_sets_the_rest_then(wb):
    job = wb.apply('[model]\nname = "fashion-resnet"\n[budget]\nsparsity = 0.6\nlocked = ["layer1.0.conv1"]\n')
    assert wb.wait(60).state == "done" and job is not None
    assert (wb.model, wb.sparsity, wb.locked) == ("fashion-resnet", 0.6, ["layer1.0.conv1.weight"])
    assert wb.budgets.loc["layer1.0.conv1.weight", "removed"] == 0 and not wb.undoable
    assert wb.budgets["removed"].sum() == round(0.6 * wb.budgets["params"].sum())


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("[budget\n", RecipeError, "not valid TOML"),
        ("[budget]\nsparsty = 0.3\n", RecipeError, "did you mean 'sparsity'"),
        ("[budget]\nsparsity = 1.5\n", RecipeError, "sparsity"),
        ("[budget]\nsparsity = 0.995\n", RecipeError, "'sparsity' must be between 0.0 and 0.99; got 0.995"),
        ("[budget]\nbeta = 7.0\n", RecipeError, "'beta' must be between 0.0 and 3.0; got 7.0"),
        ('[budget]\nsignal = "beta"\n', RecipeError, "'signal' must be 'sigma_plus' or 'alpha'; got 'beta'"),
        ('[budget]\nlocked = ["features.fc9"]\n', BudgetError, "features.fc9"),
        ('[budget]\nlocked = ["features.fc1", "features.fc2"]\n', BudgetError, "lock"),
        ("[budget.beta_by_role]\nhead = 1.0\n", RecipeError, "'budget.beta_by_role.head' has no control here"),
        ('[grid]\nmethods = ["magnitude"]\n', RecipeError, "'grid.methods' has no control here; run it with mpviz run"),
        ("[recover]\nepochs = 1.0\n", RecipeError, "'recover.epochs' has no control here"),
        ('[project]\npattern = "2:4"\n', RecipeError, "'project.pattern' has no control here"),
        ("[certify]\nsamples = 9\n", RecipeError, "'certify.samples' has no control here"),
        ("budget = 3\n", RecipeError, "must be a table of keys"),
    ],
)
def test_a_recipe_that_cannot_be_set_changes_nothing(wb, text, error, words):
    wb.change(sparsity=0.4)
    before = wb.state
    with pytest.raises(error, match=words):
        wb.apply(text)
    assert wb.state == before and not wb.error and not wb.job.busy


def test_an_unknown_network_is_told_and_what_is_there_stays(wb):
    before = wb.state
    wb.apply('[model]\nname = "fashion-mlpp"\n[budget]\nsparsity = 0.1\n')
    assert wb.wait(60).state == "failed" and "fashion-mlpp" in wb.error
    wb.apply('[model]\nname = "fashion-resnet"\n[budget]\nlocked = ["features.fc1"]\n')
    assert wb.wait(60).state == "failed" and "features.fc1" in wb.error
    assert wb.state == before


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_a_session_opens_elsewhere(wb, tmp_path):
    wb.change(sparsity=0.31, beta_mlp=2.0, locked=["features.fc2.weight"], split="calibration", samples=60)
    wb.change(view="tail", log_y=True, tiers=["measured"], layer="head.weight", scale="eigenvalue")
    path = wb.save_session(tmp_path / "mine.json")
    assert json.loads(path.read_text())["state"]["model"] == "fashion-mlp"
    other = mp.Workbench("fashion-resnet", samples=50)
    try:
        other.change(beta=3.0, shuffled=True)
        other.open_session(path)
        assert other.wait(60).state == "done"
        assert other.state == wb.state and other.recipe == wb.recipe
        assert other.spectrum.layer == "head.weight" and (other.budgets == wb.budgets).all(axis=None)
        assert other.preview and other.curve.n_samples == 60
    finally:
        other.close()


def test_a_session_of_a_module_says_what_is_missing(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
    bench = mp.Workbench(model, samples=20)
    try:
        with pytest.raises(ModelError, match="given as a module"):
            bench.save_session(tmp_path / "mine.json")
        assert not list(tmp_path.iterdir())
        bench.apply("[budget]\nsparsity = 0.2\n")
        assert bench.sparsity == 0.2
        bench.restore({"model": "Sequential", "beta": 0.5})
        assert (bench.sparsity, bench.beta) == (0.5, 0.5)
        bench.restore({"data": "digits", "beta": 0.7})
        assert bench.wait(60).state in ("done", "failed") and bench.network is model
    finally:
        bench.close()


STATES = st.fixed_dictionaries(
    {"model": st.text(min_size=1, max_size=20), "data": st.text(min_size=1)},
    optional={
        "sparsity": st.floats(0, 0.99), "beta_mlp": st.none() | st.floats(0, 3),
        "locked": st.lists(st.text(min_size=1)),
        "samples": st.integers(1, 10**9), "log_y": st.booleans(), "signal": st.sampled_from(["sigma_plus", "alpha"]),
        "tiers": st.lists(st.sampled_from(TIERS_SHOWN), unique=True), "folder": st.text(), "layer": st.text(),
    },
)  # fmt: skip


@given(STATES)
def test_a_file_and_an_address_give_back_what_was_set(state):
    assert parse_session(session_text(state)) == state
    if state.get("beta_mlp", 0) is not None:
        assert from_query("?" + to_query(state)) == state


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("sparsty=0.5", "did you mean 'sparsity'"),
        ("sparsity=half", "'sparsity=half', which is no number"),
        ("sparsity=nan", "between 0.0 and 0.99"),
        ("sparsity=0.1&sparsity=0.2", "says 'sparsity' 2 times"),
        ("samples=1.5", "which is no integer"),
        ("samples=0", "at least 1"),
        ("log_y=maybe", "which is no boolean"),
        ("view=3d", "must be 'histogram' or"),
        ("job=1", "unknown setting 'job'"),
        ("network=x", "unknown setting 'network'"),
    ],
)
def test_an_address_that_cannot_be_read_is_one_sentence(query, words):
    with pytest.raises(RecipeError, match=words):
        from_query(query)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", "[" * 5000, '{"mpviz session": 1}', '{"mpviz session": 1, "state": 3}',
     '{"mpviz session": 2, "state": {}}', '{"mpviz session": 1, "state": {"job": 1}}',
     '{"mpviz session": 1, "state": {"locked": "all"}}', '{"mpviz session": 1, "state": {"model": 3}}',
     '{"mpviz session": 1, "state": {"folder": 3}}', '{"mpviz session": 1, "state": {"sparsity": true}}',
     '{"mpviz session": 1, "state": {"tiers": [3]}}', " " * (session_file.LARGEST + 1)],
)  # fmt: skip
def test_a_file_that_is_no_session_is_refused(text, tmp_path):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(RecipeError, match=r"bad\.json"):
        session_file.read_session(tmp_path / "bad.json")


def test_files_that_cannot_be_read_or_written_are_named(tmp_path):
    (tmp_path / "image.json").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "none.json", tmp_path / "image.json"):
        with pytest.raises(RecipeError, match="cannot read the session"):
            session_file.read_session(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="nothing was changed"):
        session_file.write_session(tmp_path / "file" / "in.json", {})


def test_a_state_that_cannot_be_set_changes_nothing(wb):
    wb.change(sparsity=0.4)
    before = wb.state
    for state, error in (
        ({"sparsity": 0.1, "beta": 9.0}, RecipeError),
        ({"sparsity": 0.1, "layer": "features.fc9"}, MpvizError),
        ({"sparsity": 0.1, "locked": ["features.fc1", "features.fc2"]}, BudgetError),
        ({"sparsity": 0.1, "colour": "red"}, RecipeError),
    ):
        with pytest.raises(error):
            wb.restore(state)
        assert wb.state == before
    assert checked_state({"beta": 2}) == {"beta": 2.0}
