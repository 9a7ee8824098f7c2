"""The dashboard goes back and forth, takes recipes and sessions, and says in its address what is set."""

import asyncio
import json
import time
from urllib.parse import parse_qs

import pytest

from mpviz.errors import RecipeError
from mpviz.recipe import parse_recipe
from mpviz.ui.dashboard_address import Address, read_address
from mpviz.ui.dashboard_session import Session
from mpviz.workbench import history


def opened(asked=None, model="fashion-mlp", visit=None):
    session = Session(model, visit=visit, asked=asked)
    session.sent = []
    session.roots["courier"].send = lambda message: session.sent.append(message["search"])
    session.open()
    end = time.monotonic() + 60
    while not session.sent and session.job.state != "failed":
        assert time.monotonic() < end
        time.sleep(0.02)
    return session


@pytest.fixture
def session(monkeypatch):
    monkeypatch.setattr(history, "MERGE", 0.0)
    found = opened()
    yield found
    found.close()


def press(session, name):
    session.roots[name].clicks += 1


def test_buttons_and_keys_undo_and_redo(session):
    roots = session.roots
    assert roots["undo"].disabled and roots["redo"].disabled
    roots["sparsity"].value = 0.7
    roots["beta"].value = 2.0
    press(session, "undo")
    assert session.wb.beta == roots["beta"].value == 1.25 and roots["sparsity"].value == 0.7
    assert not roots["undo"].disabled and not roots["redo"].disabled
    roots["courier"].said = {"what": "undo", "form": "step", "times": 1}
    assert roots["sparsity"].value == 0.5 and roots["undo"].disabled
    roots["courier"].said = {"what": "redo", "form": "step", "times": 2}
    press(session, "redo")
    assert session.wb.beta == 2.0 and roots["redo"].disabled


def test_the_recipe_follows_the_controls_and_sets_them(session):
    roots = session.roots
    assert not roots["recipe_text"].value, "what is not seen is not written"
    roots["lower"].value = "recipe"
    assert parse_recipe(roots["recipe_text"].value) == session.wb.recipe
    roots["sparsity"].value = 0.62
    assert "sparsity = 0.62" in roots["recipe_text"].value
    roots["recipe_text"].value = "[budget]\nsparsity = 0.3\nbeta_by_role = {mlp = 0.5}\n"
    press(session, "apply")
    assert roots["sparsity"].value == 0.3 and roots["beta_mlp"].value == 0.5 and not roots["same_mlp"].value
    assert parse_recipe(roots["recipe_text"].value) == session.wb.recipe, "the whole of it again"
    bad = "[budget]\nsparsty = 0.3\n"
    roots["recipe_text"].value = bad
    press(session, "apply")
    assert "did you mean &#39;sparsity&#39;" in roots["alert"].object and roots["recipe_text"].value == bad
    roots["recipe_text"].value = "[budget]\nsparsity = 0.4\n"
    press(session, "apply")
    assert "sparsty" not in roots["alert"].object and session.wb.sparsity == 0.4


def test_the_address_gives_another_session_the_same(session):
    session.wb.change(sparsity=0.31, beta_mlp=2.0, locked=["features.fc2.weight"], view="tail", samples=60)
    session.roots["lower"].value, session.roots["right"].value = "recipe", "tiers"
    session.roots["theme"].value = True
    search = session.sent[-1]
    assert search.startswith("?model=fashion-mlp&data=fashion-mnist&sparsity=0.31&")
    asked = parse_qs(search[1:])
    assert asked["theme"] == ["dark"] and asked["lower"] == ["recipe"] and asked["right"] == ["tiers"]
    other = opened(asked, model="fashion-vit")
    try:
        assert other.wb.state == session.wb.state and not other.roots["alert"].object
        assert (other.roots["theme"].value, other.roots["lower"].value) == (True, "recipe")
        assert other.roots["sparsity"].value == 0.31 and other.sent[-1] == search
        assert other.roots["recipe_text"].value == session.roots["recipe_text"].value
    finally:
        other.close()


def test_what_is_set_back_leaves_the_address(session):
    session.roots["sparsity"].value = 0.7
    count = len(session.sent)
    assert "sparsity=0.7" in session.sent[-1]
    session.roots["sparsity"].value = 0.5
    assert (
        session.sent[-1] == "?model=fashion-mlp&data=fashion-mnist&layer=features.fc1.weight"
        and len(session.sent) == count + 1
    )
    session.wb.param.trigger("curve")
    assert len(session.sent) == count + 1, "measurements change no address"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"sparsity": ["7"]}, "between 0.0 and 0.99"),
        ({"locked": ["features.fc9"]}, "features.fc9"),
        ({"layer": ["<img src=x>"]}, "&lt;img src=x&gt;"),
        ({"theme": ["pink"]}, "known: light, dark"),
        ({"folder": ["/etc"]}, "names no folder"),
        ({"evil": ["1"]}, "unknown setting"),
    ],
)
def test_an_address_that_says_nothing_sensible_is_told_and_the_page_opens(asked, words):
    session = opened(asked)
    try:
        assert session.wb is not None and session.wb.model == "fashion-mlp"
        assert words in session.roots["alert"].object and "<img" not in session.roots["alert"].object
        press(session, "dismiss")
        assert not session.roots["alert"].object and session.wb.sparsity == 0.5
    finally:
        session.close()


def test_an_address_of_an_unknown_network_says_so():
    session = opened({"model": ["no-such-net"]})
    try:
        time.sleep(0.2)  # the sentence is painted by the job's own thread
        assert session.wb is None and "no-such-net" in session.roots["alert"].object
    finally:
        session.close()


def test_an_address_opens_only_what_visitors_may_open(tmp_path):
    from mpviz.workbench.policy import Policy
    from mpviz.workbench.visits import Limits, Visits

    (tmp_path / "images" / "a").mkdir(parents=True)
    visits = Visits(Policy(restricted=True), Limits(samples=30))
    for asked in ({"model": ["vit_tiny_patch16_224"]}, {"model": [str(tmp_path / "x.safetensors")]},
                  {"data": [str(tmp_path / "images")]}):  # fmt: skip
        session = opened(asked, visit=visits.enter())
        try:
            assert (session.wb.model, session.wb.data) == ("fashion-mlp", "fashion-mnist")
            assert "this server" in session.roots["alert"].object
        finally:
            session.close()
    session = opened({"samples": ["5000"], "model": ["fashion-resnet"]}, visit=visits.enter())
    try:
        assert (session.wb.model, session.wb.samples) == ("fashion-resnet", 30)
        for text in ('[model]\nname = "vit_tiny_patch16_224"\n', f'[data]\nname = "{tmp_path}"\n',
                     f'[data]\nfolder = "{tmp_path}"\n'):  # fmt: skip
            session.roots["recipe_text"].value = text
            press(session, "apply")
            session.wb.wait(60)
            assert session.wb.job.state == "failed" and (session.wb.model, session.wb.data) == (
                "fashion-resnet",
                "fashion-mnist",
            )
        state = {"model": "fashion-resnet", "data": "fashion-mnist", "folder": str(tmp_path)}
        session.roots["session_file"].value = json.dumps({"mpviz session": 1, "state": state}).encode()
        session.wb.wait(60)
        assert session.wb.job.state == "failed"
        session.roots["session_file"].value = b'{"mpviz session": 1, "state": {"samples": 4000}}'
        assert session.wb.samples == 30
    finally:
        session.close()


def test_the_path_of_a_folder_is_no_part_of_an_address():
    state = {"model": "m", "data": "images", "folder": "/data/of-mine"}
    assert "folder" not in Address(state=state).query() and "of-mine" not in Address(state=state).query()
    with pytest.raises(RecipeError, match="names no folder"):
        read_address({"folder": ["/"]}).state_asked()


def test_a_session_is_saved_and_opened(session):
    session.wb.change(sparsity=0.2, scale="eigenvalue")
    made = session.roots["session"].callback
    content = asyncio.run(made()).getvalue()
    assert json.loads(content)["state"]["sparsity"] == 0.2
    session.wb.change(sparsity=0.9, beta=3.0, scale="singular")
    session.roots["session_file"].value = content
    assert (session.wb.sparsity, session.wb.beta, session.wb.scale) == (0.2, 1.25, "eigenvalue")
    for bad in (b"no session", b"\xff\xfe", b'{"mpviz session": 1, "state": {"sparsity": 9}}'):
        session.roots["session_file"].value = bad
        assert session.roots["alert"].object and session.wb.sparsity == 0.2
