"""What visitors may run: networks and data that are offered, so much training, and their own runs alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mpviz.errors import AccessError
from mpviz.recipe import (
    DataPlan,
    GridPlan,
    ModelPlan,
    ProjectPlan,
    Recipe,
    RecoverPlan,
    parse_recipe,
)
from mpviz.workbench.policy import Policy
from mpviz.workbench.run_policy import MOST_CELLS, MOST_EPOCHS, WAITING, admitted, check_room, seen_by, trained
from mpviz.workbench.run_store import Run
from mpviz.workbench.visits import Limits, Visits

PUBLIC = Policy(restricted=True)


def run(owner: str, state: str = "queued") -> Run:
    words = ("", "", "plan", 0.0, owner, state, 0, 0.0, "", None, "", "", 0.0, 0.0, 0.0, Path("x"))
    return Run(*words)  # type: ignore[arg-type]


def test_on_ones_own_machine_a_recipe_stays_as_it_is() -> None:
    recipe = replace(Recipe(), model=ModelPlan("anything", weights="a.safetensors", options={"x": 1}))
    assert admitted(recipe, Policy()) is recipe


def test_visitors_run_what_is_offered_under_its_real_place(tmp_path: Path) -> None:
    file = tmp_path / "models" / "net.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"")
    policy = Policy(True, (str(file.parent),), (str(tmp_path),))
    recipe = replace(Recipe(), model=ModelPlan("models/net.safetensors"), data=DataPlan(tmp_path.name))
    found = admitted(recipe, policy)
    assert found.model.name == str(file.resolve()) and found.data == DataPlan(str(tmp_path.resolve()))
    assert admitted(Recipe(), PUBLIC) == Recipe()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('model.name = "resnet50"', "does not open the network 'resnet50'"),
        ('model.name = "../../etc/passwd"', "does not open the network"),
        ('model.weights = "/etc/passwd"', "does not open the network"),
        ('data.name = "/etc"', "does not open the data set"),
        ('data.folder = "/etc"', "reads the data set 'fashion-mnist' from its own folder alone"),
        ("model.options.num_classes = 10", "no model.options"),
        ("recover.options.workers = 64", "no recover.options.workers"),
        ('recover.options.device = "cuda:7"', "no recover.options.device"),
        ('project.source = "/etc/x.safetensors"', "does not open the network"),
        ('project.source = "ser"\nproject.source_options.step = 0.01', "no project.source_options"),
        ("recover.epochs = 1000.0", "trains 1000 epochs in all"),
        ('recover.epochs = 5.0\ngrid.methods = ["seb", "ser"]', "trains 48 epochs in all"),
        ('grid.methods = ["seb"]\ngrid.seeds = [' + ",".join(map(str, range(30))) + "]", "this grid has 90 cells"),
    ],
)
def test_all_else_is_refused(text: str, words: str) -> None:
    with pytest.raises(AccessError) as refused:
        admitted(parse_recipe(text), PUBLIC)
    assert words in str(refused.value)


def test_training_is_counted_over_cells_and_steps() -> None:
    grid = GridPlan(["magnitude", "hybrid"], [0.3, 0.5, 0.7], [0, 1])
    assert trained(Recipe()) == 0 and trained(replace(Recipe(), recover=RecoverPlan(epochs=2))) == 2
    assert trained(replace(Recipe(), grid=GridPlan(["magnitude", "seb"]))) == 0
    assert trained(replace(Recipe(), grid=grid)) == 16, "selection alone trains too"
    assert trained(replace(Recipe(), grid=grid, recover=RecoverPlan(epochs=2))) == 48
    assert trained(replace(Recipe(), project=ProjectPlan("2:4", source="ser"), recover=RecoverPlan(epochs=2))) == 12
    assert MOST_CELLS >= 12 and MOST_EPOCHS >= 16


def test_visitors_see_their_own_runs_and_have_so_many() -> None:
    runs = [run("ada"), run("eve", "running"), run("ada", "done"), run("")]
    assert [one.owner for one in seen_by(runs, "ada", True)] == ["ada", "ada"]
    assert seen_by(runs, "", True) == [] and seen_by(runs, "", False) == runs
    check_room(runs, "ada")
    with pytest.raises(AccessError, match=f"you have {WAITING} runs in the queue"):
        check_room([*runs, run("ada"), run("ada", "running")], "ada")
    with pytest.raises(AccessError, match="queue of this server is full"):
        check_room([run(str(number)) for number in range(50)], "ada")


def test_a_run_takes_the_place_of_a_job() -> None:
    visits = Visits(PUBLIC, Limits(jobs=1))

    class Queue:
        running = True

    assert visits.room() and visits.jobs() == 0
    visits.runs = Queue()  # type: ignore[assignment]
    assert not visits.room() and visits.health()["jobs_running"] == 1
    with pytest.raises(AccessError, match="one job at a time"):
        visits.enter().start(lambda: None)
