"""What is read of a run while it runs: new lines only, bounded curves, cells, the end of a log, the status."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from mpviz.errors import CheckpointError
from mpviz.run_status import PAUSE, Pace, RunStatus, StatusFile, read_status
from mpviz.train.metrics import Metrics
from mpviz.workbench import run_curve
from mpviz.workbench.run_curve import POINTS, Curve, CurveFile, Epoch, RunCurve, Tail, grid_cells, last_lines


def row(step: int, epoch: int = 1, loss: float = 1.0, accuracy: float = 0.5) -> dict[str, float]:
    return {"step": step, "epoch": epoch, "learning_rate": 0.1, "loss": loss, "accuracy": accuracy}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


# --- the end of a file that grows -----------------------------------------------------------------------------------


def test_only_what_is_new_is_read_and_half_a_line_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    tail = Tail(path)
    assert tail.lines() == (False, [])
    path.write_text("one\ntw")
    assert tail.lines() == (True, ["one"])
    with path.open("a") as file:
        file.write("o\nthree\n")
    # what was read before cannot be read again: other bytes stand there by now
    with path.open("r+") as file:
        file.write("XXX")
    assert tail.lines() == (False, ["two", "three"]) and tail.lines() == (False, [])


def test_a_file_that_was_replaced_or_cut_is_read_anew(tmp_path: Path) -> None:
    path, other = tmp_path / "a.csv", tmp_path / "b.csv"
    tail = Tail(path)
    path.write_text("one\ntwo\n")
    assert tail.lines() == (True, ["one", "two"])
    other.write_text("three\nfour\nfive\n")
    os.replace(other, path)
    assert tail.lines() == (True, ["three", "four", "five"])
    os.truncate(path, 6)
    assert tail.lines() == (True, ["three"])
    path.unlink()
    assert tail.lines() == (False, [])


def test_a_long_file_is_caught_up_with_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_curve, "LARGEST_READ", 10)
    path = tmp_path / "a.csv"
    path.write_text("".join(f"{i:03d}\n" for i in range(20)))
    tail = Tail(path)
    found = [line for _ in range(8) for line in tail.lines()[1]]
    assert found == [f"{i:03d}" for i in range(20)]


# --- curves ---------------------------------------------------------------------------------------------------------


def test_a_curve_follows_what_a_training_writes(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    curve = CurveFile(tmp_path / "metrics.csv")
    assert curve.look() == Curve()
    metrics.add(**row(1, 1, 4.0, 0.25))
    metrics.add(**row(2, 1, 2.0, 0.75))
    found = curve.look()
    assert (found.steps, found.loss, found.accuracy) == ([1, 2], [4.0, 2.0], [0.25, 0.75])
    assert found.last == Epoch(1, 2, 3.0, 0.5) and found.ends == {} and found.rows == 2
    metrics.add(**row(3, 2, 1.0, 1.0))
    found = curve.look()
    assert found.last == Epoch(2, 1, 1.0, 1.0) and found.ends == {1: 2} and found.steps == [1, 2, 3]
    metrics.close()
    # a resumed training takes out what came after its checkpoint
    again = Metrics(tmp_path, until=1)
    again.add(**row(2, 1, 3.0, 0.5))
    found = curve.look()
    assert (found.steps, found.loss) == ([1, 2], [4.0, 3.0]) and found.ends == {}
    again.close()


def test_a_long_curve_keeps_its_means_and_no_more_points_than_it_says(tmp_path: Path) -> None:
    path, steps = tmp_path / "metrics.csv", 9 * POINTS
    lines = [f"{i},{1 + i // 4000},0.1,{math.sin(i)},{i / steps}" for i in range(1, steps + 1)]
    path.write_text("step,epoch,learning_rate,loss,accuracy\n" + "\n".join(lines) + "\n")
    found = CurveFile(path).look()
    assert found.width == 8 and POINTS <= len(found.steps) < 2 * POINTS and found.rows == steps
    assert found.steps[0] == 8 and found.steps[-1] == steps and found.steps == sorted(set(found.steps))
    assert found.accuracy[0] == pytest.approx(4.5 / steps)
    assert sum(found.loss) * 8 == pytest.approx(sum(math.sin(i) for i in range(1, steps + 1)), abs=1e-6)
    assert found.ends == {1: 3999, 2: 7999}


def test_lines_that_are_none_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(
        "step,epoch,learning_rate,loss,accuracy\n1,1,0.1,1.0,0.5\n2,1\n\n3,1,0.1,nan,0.5\nx,1,0.1,1,1\n4,1,0.1,3.0,0.5\n"
    )
    found = CurveFile(path).look()
    assert (found.steps, found.rows) == ([1, 4], 2) and found.last == Epoch(1, 2, 2.0, 0.5)
    path.write_text("other,columns\n1,2\n")
    assert CurveFile(path).look() == Curve()


def test_the_training_that_is_at_work_is_the_one_that_is_shown(tmp_path: Path) -> None:
    run = RunCurve(tmp_path)
    assert run.look() == Curve()
    for seed, moment in ((0, 100), (1, 200)):
        folder = tmp_path / "cells" / "hybrid" / f"seed-{seed}" / "recovery-0.5000"
        metrics = Metrics(folder.parent if folder.mkdir(parents=True) else folder)
        metrics.add(**row(1, loss=float(seed)))
        metrics.close()
        os.utime(folder / "metrics.csv", (moment, moment))
    found = run.look()
    assert (found.name, found.loss) == ("hybrid, seed 1, 50 %", [1.0])
    (tmp_path / "metrics.csv").write_text("a table of the finished grid\n")
    assert run.look().name == "hybrid, seed 1, 50 %"
    # a plan's training leaves one table when it is over
    (tmp_path / "recovery.csv").write_text("step,epoch,learning_rate,loss,accuracy\n7,1,0.1,0.5,0.9\n")
    assert (run.look().name, run.look().steps) == ("", [7])


def test_cells_of_a_grid_come_in_the_order_in_which_they_ended(tmp_path: Path) -> None:
    assert grid_cells(tmp_path) == []
    for moment, (method, text) in enumerate(
        (("seb", json.dumps({"metrics": [{"method": "seb"}, 3]})), ("a", "{"), ("b", '{"metrics": [{"method": "b"}]}'))
    ):
        path = tmp_path / "cells" / method / "seed-0" / "cell-0.5000.json"
        path.parent.mkdir(parents=True)
        path.write_text(text)
        os.utime(path, (moment, moment))
    assert grid_cells(tmp_path) == [{"method": "seb"}, {"method": "b"}]


def test_the_end_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    assert last_lines(path) == []
    path.write_bytes(b"\xff first\n" + b"".join(b"line %d\n" % i for i in range(1000)))
    assert last_lines(path, 3) == ["line 997", "line 998", "line 999"] and len(last_lines(path)) == 200
    assert last_lines(path, 5000, most=30) == ["96", "line 997", "line 998", "line 999"]


# --- what a run says of itself --------------------------------------------------------------------------------------


def test_the_status_is_written_now_and_then_and_at_the_end_at_once(tmp_path: Path) -> None:
    path, clock = tmp_path / "deep" / "status.json", Clock()
    status = StatusFile(path, clock)
    assert read_status(path) == status.status and status.status.message == "starting"
    status.tell(0.1, "soon")
    assert getattr(read_status(path), "message", "") == "starting"
    clock.now = PAUSE
    status.tell(0.2, "now")
    told = read_status(path)
    assert told is not None and (told.state, told.progress, told.message) == ("running", 0.2, "now")
    status.end("failed", "failed at 20 %", error="too bad; try again", traceback="x" * 50_000 + "end")
    told = read_status(path)
    assert told is not None and (told.state, told.progress, told.error) == ("failed", 0.2, "too bad; try again")
    assert told.traceback.endswith("end") and len(told.traceback) == 20_000
    status.end("done", "done")
    assert read_status(path) == RunStatus("done", 1.0, "done", None, status.status.told)
    assert [one.name for one in path.parent.iterdir()] == ["status.json"]


@pytest.mark.parametrize(
    "change",
    [{"state": "flying"}, {"progress": "half"}, {"message": None}, {"seconds_left": []}, {"told": "today"}],
)
def test_what_is_no_status_is_none(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "status.json"
    assert read_status(path) is None
    StatusFile(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert read_status(path) is None
    for text in ("", "[]", "{}", "\xff"):
        path.write_text(text)
        assert read_status(path) is None


def test_a_status_that_cannot_be_begun_is_a_sentence_and_later_nothing_stops(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write .*name another file"):
        StatusFile(tmp_path / "file" / "status.json")
    folder = tmp_path / "gone"
    status = StatusFile(folder / "status.json")
    (folder / "status.json").unlink()
    folder.rmdir()
    folder.write_text("")  # where its folder was there is a file now
    status.end("done", "done")
    assert status.status.state == "done"


def test_time_left_follows_the_pace_of_the_last_minute() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.left(0.0) is None
    clock.now = 10.0
    assert pace.left(0.05) == pytest.approx(190.0)
    clock.now = 11.0
    assert pace.left(0.6) is None, "work that was done before says nothing of the pace"
    clock.now = 21.0
    assert pace.left(0.65) == pytest.approx(70.0)
    for second in range(22, 200):
        clock.now = second
        left = pace.left(0.65 + (second - 21) * 0.001)
    assert left == pytest.approx((1 - 0.65 - 178 * 0.001) / 0.001, rel=0.02), "the slow minute alone counts"
