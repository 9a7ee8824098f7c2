"""What visitors of a server may open, and what they learn of the rest: nothing."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from mpviz.errors import AccessError
from mpviz.workbench import journal, sources
from mpviz.workbench.policy import Gate, Policy
from mpviz.workbench.serving import Serving, cookie_secret
from mpviz.workbench.views import JobStatus
from mpviz.workbench.visits import Limits, Visits

HOSTILE = "<img src=x onerror=alert(1)>.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files that are offered, one behind a link that leads out, one outside."""
    inside = tmp_path / "models"
    (inside / "first").mkdir(parents=True)
    for name in ("first/a.safetensors", HOSTILE, "notes.txt"):
        (inside / name).write_bytes(b"x")
    (tmp_path / "secret.safetensors").write_bytes(b"x")
    (inside / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (inside / "circle.safetensors").symlink_to(inside / "circle.safetensors")
    return inside


def test_a_folder_offers_its_files_and_no_others(folder: Path) -> None:
    offered = Policy(True, (str(folder), "resnet18")).models_offered()
    ours = {name: place for name, place in offered.items() if name != place}
    assert ours == {
        "models/first/a.safetensors": str(folder / "first" / "a.safetensors"),
        f"models/{HOSTILE}": str(folder / HOSTILE),
    }
    assert {"fashion-vit", "fashion-mlp", "fashion-resnet", "resnet18"} <= set(offered)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd", "../../../../etc/passwd", "~/.ssh/id_rsa", "{inside}/../secret.safetensors",
        "{inside}/first/../../secret.safetensors", "{inside}/link.safetensors", "models/link.safetensors",
        "{inside}/circle.safetensors", "{inside}/notes.txt", "{inside}/none.safetensors", "{inside}", "models/../x",
        "resnet50", "hf-hub:someone/something", "local-dir:/etc", "", ".", "a\0b", "x" * 9000, "file:///etc/passwd",
        "fashion-vit/../../x", "data/models/fashion-vit.safetensors",
    ],
)  # fmt: skip
def test_all_else_is_refused_alike_whether_or_not_it_is_there(folder: Path, name: str) -> None:
    policy = Policy(True, (str(folder), "resnet18"))
    with pytest.raises(AccessError) as refused:
        policy.model(name.format(inside=folder))
    words = str(refused.value)
    assert words.startswith("this server does not open the network '") and "it offers fashion-mlp" in words
    assert "\n" not in words and "\0" not in words and len(words) < 500
    before = words.split("it offers")[0]
    with pytest.raises(AccessError) as other:
        policy.model("/no/such/file.safetensors")
    assert str(other.value).split("it offers")[1] == words.split("it offers")[1], "the same words for what is not there"
    assert "exist" not in before and "permission" not in before.lower()


def test_a_path_inside_is_taken_for_what_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, real = Policy(True, (str(folder),)), str(folder / "first" / "a.safetensors")
    monkeypatch.chdir(folder.parent)
    for name in (
        "models/first/a.safetensors",
        real,
        f"{folder}/first/../first/a.safetensors",
        "./models/first/a.safetensors",
    ):
        assert policy.model(name) == real


def test_data_are_restricted_too(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    policy = Policy(True, data=(str(images), "torch/cifar10"), folder="/srv/mnist")
    assert policy.data_set("images") == (str(images), None)
    assert policy.data_set("torch/cifar10") == ("torch/cifar10", None)
    assert policy.data_set("fashion-mnist", "/srv/mnist") == ("fashion-mnist", "/srv/mnist")
    for name in ("/etc", str(tmp_path), f"{images}/..", "torch/imagenet", "hfds/someone/x"):
        with pytest.raises(AccessError, match=r"does not open the data set .* it offers fashion-mnist, digits, images"):
            policy.data_set(name)
    with pytest.raises(AccessError, match="own folder"):
        policy.data_set("fashion-mnist", "/etc")


def test_who_is_restricted(tmp_path: Path) -> None:
    def restricted(address: str = "localhost", **given: object) -> bool:
        return Serving(**given).policy(address, "fashion-vit", "digits", None).restricted  # type: ignore[arg-type]

    assert not restricted() and not restricted("127.0.0.1") and not restricted("::1")
    assert restricted("0.0.0.0") and restricted("") and restricted("example.org") and restricted("10.0.0.1")
    assert restricted(public=True) and restricted(models=("resnet18",)) and restricted(data=("digits",))
    assert not restricted("0.0.0.0", public=False), "only when it is asked for"
    begun = Serving(public=True).policy("localhost", "resnet18", "torch/cifar10", "f")
    assert begun.model("resnet18") == "resnet18" and begun.data_set("torch/cifar10", "f") == ("torch/cifar10", "f")
    with pytest.raises(AccessError, match=r"no .*nowhere to offer"):
        Serving(models=(str(tmp_path / "nowhere"),)).policy("localhost", "fashion-vit", "digits", None)


def test_a_workbench_opens_nothing_past_its_gate(folder: Path) -> None:
    gate = Gate(Policy(True, (str(folder),)))
    with pytest.raises(AccessError):
        sources.open_subject("resnet18", gate=gate)
    with pytest.raises(Exception, match=r"models/first/a\.safetensors is no whole safetensors file") as refused:
        sources.open_subject("models/first/a.safetensors", gate=gate)
    assert str(folder) not in str(refused.value), "where the server keeps its files stays its own"


# --- logins ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "[]", "{}", '"secret"', '{"a": 1}', '{"a": ""}', "[" * 100_000])
def test_a_file_that_holds_no_passwords_is_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "users.json"
    path.write_text(text)
    with pytest.raises(AccessError) as refused:
        Serving(basic_auth=path).passwords()
    assert "secret" not in str(refused.value)


def test_passwords_and_oauth(tmp_path: Path) -> None:
    path = tmp_path / "users.json"
    path.write_text('{"ada": "x"}')
    assert Serving().passwords() is None and Serving(basic_auth=path).passwords() == {"ada": "x"}
    with pytest.raises(AccessError, match="exclude each other"):
        Serving(basic_auth=path, oauth="github").passwords()
    with pytest.raises(AccessError, match="cannot read"):
        Serving(basic_auth=tmp_path / "none").passwords()
    with pytest.raises(AccessError, match="PANEL_OAUTH_SECRET in the environment"):
        Serving(oauth="github").check_oauth({"PANEL_OAUTH_KEY": "k"})
    with pytest.raises(AccessError, match="PANEL_OAUTH_TOKEN_URL"):
        Serving(oauth="generic").check_oauth({"PANEL_OAUTH_KEY": "k", "PANEL_OAUTH_SECRET": "s"})
    assert cookie_secret({"BOKEH_COOKIE_SECRET": "b"}) == "b" and cookie_secret({}) != cookie_secret({})


# --- visits ---------------------------------------------------------------------------------------------------------


def test_a_server_has_so_many_places_and_jobs() -> None:
    visits = Visits(limits=Limits(sessions=2, jobs=1))
    one, two = visits.enter("a"), visits.enter("b", "ada")
    assert visits.full() == "all 2 places of this server are taken; try again in a few minutes"
    one.follow(JobStatus("prune", "running"), "fashion-mlp")
    assert {**visits.health(), "uptime_s": 0, "version": ""} == {
        "status": "ok", "version": "", "sessions": 2, "jobs_running": 1, "uptime_s": 0,
    }  # fmt: skip
    with pytest.raises(AccessError, match="one job at a time"):
        two.start(lambda: pytest.fail("must not start"))
    one.close()
    one.close()
    assert visits.full() == "" and visits.jobs() == 0 and two.start(lambda: 3) == 3
    assert visits.find(two.key) is two and visits.find(one.key) is None and visits.find("") is None


def test_what_happens_is_one_json_object_a_line(caplog: pytest.LogCaptureFixture) -> None:
    visits = Visits(Policy(True))
    visit = visits.enter("the-secret-id", "ada")
    with caplog.at_level(logging.INFO, journal.NAME):
        for status in (JobStatus("load", "running"), JobStatus("load", "running", 0.5), JobStatus("load", "done")):
            visit.follow(status, "fashion-mlp")
        visit.follow(JobStatus("prune", "failed", 0.2, "no room\nleft"), "fashion-mlp")
        with pytest.raises(AccessError):
            visit.admit("open", "/etc/passwd\n{}", ("digits", None))
        visit.close()
    lines = [journal.JsonLines().format(record) for record in caplog.records]
    found = [json.loads(line) for line in lines]
    assert not any("\n" in line or "the-secret-id" in line for line in lines)
    assert [one["event"] for one in found] == [
        "load-start",
        "load-end",
        "prune-failed",
        "open-refused",
        "session-close",
    ]
    assert {one["session"] for one in found} == {journal.short_id("the-secret-id")}
    assert {one["user"] for one in found} == {"ada"} and found[0]["model"] == "fashion-mlp"
    assert found[2]["level"] == "warning" and found[2]["message"] == "no room\nleft"
    assert set(found[0]) == {"time", "level", "event", "session", "user", "model", "message"}


def test_an_upload_is_its_sessions_alone_and_goes_with_it() -> None:
    visits = Visits(Policy(True))
    one, other = visits.enter("a"), visits.enter("b")
    names = []
    for i in range(3):
        path = one.folder() / f"{i}.safetensors"
        path.write_bytes(b"x")
        names.append(one.keep("net.safetensors", path, names[-1] if names else ""))
    assert names[0] == "uploaded: net.safetensors" and len(set(names[-2:])) == 2
    assert len(list(one.folder().iterdir())) == 2, "the open one and the new one"
    assert oct(one.folder().stat().st_mode & 0o777) == "0o700"
    assert one.gate.model(names[-1]) == str(one.folder() / "2.safetensors")
    with pytest.raises(AccessError):
        other.gate.model(names[-1])
    with pytest.raises(AccessError):
        other.gate.model(str(one.folder() / "2.safetensors"))
    where = one.folder()
    one.close()
    assert not os.path.exists(where)
    with pytest.raises(AccessError):
        one.gate.model(names[-1])
