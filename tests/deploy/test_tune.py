from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import torch.utils._pytree as pytree

import eqsat_deploy
from eqsat_deploy.cache import _of_this_process, cache_folder
from eqsat_deploy.deployment import Batch, Signature, deployment, record
from eqsat_deploy.engines import Engine
from eqsat_deploy.errors import EngineError, InputError, VerificationError
from eqsat_deploy.journal import TRIES, Journal, journal
from eqsat_deploy.module import OptimizedModule
from eqsat_deploy.price import Floating
from eqsat_deploy.rebuild import rebuild
from eqsat_deploy.report.tuning import tuning_table
from eqsat_deploy.search import explore
from eqsat_deploy.selection import plain_rules
from eqsat_deploy.tune import DIVERSITY, Form, contestants, fastest
from eqsat_extraction.cost_models import find_cost_model
from eqsat_extraction.kbest import distance
from tests.deploy.test_build import Halves
from tests.support.models import Residual, image, randomized


class Clocked(Engine):
    """Runs the module as it is, on a clock of its own: each takes what `times` says, in the order they are built."""

    name = "clocked"
    now: ClassVar[float] = 0.0
    times: ClassVar[list[float]] = []
    built: ClassVar[list[object]] = []
    loaded: ClassVar[list[str]] = []
    fails: ClassVar[dict[int, BaseException]] = {}
    wrong: ClassVar[set[int]] = set()
    release = "1"

    @classmethod
    def unavailable(cls):
        return None

    @classmethod
    def build(cls, module, *, batch=None, options=None):
        cls.built.append(module)
        number = len(cls.built) - 1
        if number in cls.fails:
            raise cls.fails[number]
        return cls.of(number, Signature.of(module, batch or Batch()))

    @classmethod
    def of(cls, number, signature):
        engine = cls(signature)
        engine.number, engine.module = number, cls.built[number]
        return engine

    def run(self, inputs, batch):
        type(self).now += self.times[self.number] * 1e-6
        with torch.no_grad():
            found = pytree.tree_leaves(self.module(*inputs))
        return [value + 1 for value in found] if self.number in self.wrong else found

    def save_files(self, folder):
        (folder / "number").write_text(str(self.number))

    @classmethod
    def load_files(cls, folder, signature, options):
        cls.loaded.append(folder.parent.name)
        return cls.of(int((folder / "number").read_text()), signature)

    def layers(self, *inputs):
        return ()

    @property
    def device(self):
        return "here"

    @property
    def version(self):
        return self.release


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("EQSAT_DEPLOY_CACHE", str(tmp_path))
    monkeypatch.setattr("eqsat_deploy.tune.COPIES", 1)
    monkeypatch.setattr("eqsat_deploy.engines.race.time", SimpleNamespace(perf_counter=lambda: Clocked.now))
    for name, value in {"now": 0.0, "built": [], "loaded": [], "fails": {}, "wrong": set(), "release": "1",
                        "times": [300.0, 200.0, 500.0, 400.0, 900.0, 900.0]}.items():  # fmt: skip
        monkeypatch.setattr(Clocked, name, value)


@pytest.fixture(scope="module")
def searches():
    model = randomized(Residual())
    options = {"cost": Halves(), "time_limit": None, "work_limit": 10**6}
    kept = explore(model, image(), **options)
    return kept, explore(model, image(), **options, rules=plain_rules().rules)


def made(found):
    rebuilt = rebuild(found)
    module = OptimizedModule(rebuilt.root, rebuilt.graph, "Form").eval()
    samples = tuple(image(2, *spec.shape[1:]) for spec in rebuilt.inputs)
    record(module, inputs=rebuilt.inputs, placement=rebuilt.placement, samples=samples)
    return module


@pytest.fixture
def forms(searches):
    return contestants(*searches, 2, made)


def run(forms, check=id, key="key"):
    return fastest(forms, Clocked, Batch(), check, key)


def names(tuning, failed=False):
    return [row["form"] for row in tuning["forms"] if ("failed" in row) == failed]


def test_contestants_are_distinct_and_the_plain_form_is_among_them(searches, forms):
    kept, plain = searches
    assert [form.name for form in forms] == ["form 1", "form 2", "plain", "plain in float"]
    assert forms[0].found.solution.cost == kept.solution.cost <= forms[1].found.solution.cost
    assert distance(forms[0].found.solution, forms[1].found.solution) >= DIVERSITY
    assert forms[1].found.solution.bound <= kept.solution.cost
    assert not forms[3].integer
    assert forms[2].integer
    assert forms[3].found.solution.cost > plain.solution.cost
    assert len({form.identity for form in forms}) == len(forms)


def test_what_is_the_same_to_an_engine_runs_once():
    options = {"cost": find_cost_model("openvino_fp32"), "rules": plain_rules().rules}
    plain = explore(randomized(Residual()), image(), **options)
    assert [form.name for form in contestants(plain, plain, 1, made)] == ["form 1"]


def test_the_fastest_form_wins_and_the_table_has_all(forms):
    winner, tuning = run(forms)
    assert winner is forms[1]
    assert tuning["winner"] == "form 2"
    assert [row["us"] for row in tuning["forms"]] == pytest.approx([300.0, 200.0, 500.0, 400.0])
    assert tuning["forms"][0]["over"][1] == pytest.approx(1.5)
    assert tuning["forms"][3]["int8"] == 0
    assert (tuning["engine"], tuning["version"], tuning["device"], tuning["batch"]) == (
        "clocked",
        "1",
        "here",
        1,
    )
    json.dumps(tuning)
    text = eqsat_deploy.report.render.to_text(tuning_table(tuning, "us"), 150)
    assert "form 2 *" in text
    assert "1.500 (1.500 .. 1.500)" in text


def test_a_form_takes_what_its_copies_take(forms, monkeypatch):
    monkeypatch.setattr("eqsat_deploy.tune.COPIES", 3)
    lucky = iter([100.0, 400.0, 420.0])

    def load(folder, signature, options):
        engine = Clocked.of(int((folder / "number").read_text()), signature)
        if engine.number == 0:  # the first copy of the first form is faster than any other
            engine.number = len(Clocked.times)
            Clocked.times.append(next(lucky))
        return engine

    monkeypatch.setattr(Clocked, "load_files", load)
    Clocked.times[0] = 400.0
    _, tuning = run(forms)
    assert tuning["copies"] == 3
    assert tuning["winner"] == "form 2"
    assert tuning["forms"][0]["us"] > 200.0


def test_a_form_that_fails_costs_itself(forms):
    Clocked.fails[0] = RuntimeError("no kernel")
    Clocked.wrong.add(1)
    winner, tuning = run(forms)
    assert names(tuning, failed=True) == ["form 1", "form 2"]
    assert "no kernel" in tuning["forms"][0]["failed"]
    assert "departs from its module" in tuning["forms"][1]["failed"]
    assert winner.name == "plain in float"
    assert "no kernel" in eqsat_deploy.report.render.to_text(tuning_table(tuning, "us"), 150)


def test_a_form_that_is_not_the_original_is_not_built(forms):
    def check(module):
        if module is forms[1].module:
            raise VerificationError("differs")

    winner, tuning = run(forms, check)
    assert winner.name == "plain"  # the second that is built
    assert tuning["forms"][1]["failed"] == "VerificationError: differs"
    assert len(Clocked.built) == 3


def test_where_nothing_is_built_the_cheapest_is_kept(forms):
    Clocked.fails = dict.fromkeys(range(10), RuntimeError("no kernel"))
    with pytest.warns(UserWarning, match="no form could be built"):
        winner, tuning = run(forms)
    assert winner is forms[0]
    assert names(tuning) == []


def test_an_interrupted_tuning_goes_on(forms, monkeypatch):
    Clocked.fails = {1: RuntimeError("no kernel"), 2: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run(forms)
    assert len(Clocked.built) == 3
    Clocked.fails = {}
    Clocked.times += [250.0]
    rounds = itertools.count()
    keep = Journal.keep

    def interrupted(self, taken):
        keep(self, taken)
        if next(rounds) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "keep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(forms)
    assert Clocked.loaded == ["form_1"]
    assert len(Clocked.built) == 5  # the one that was interrupted, and the one after it
    monkeypatch.setattr(Journal, "keep", keep)
    _, tuning = run(forms)
    assert Clocked.loaded[1:] == ["form_1", "plain", "plain_in_float"]
    assert len(Clocked.built) == 5
    assert names(tuning, failed=True) == ["form 2"]  # known, and not tried again
    assert {row["rounds"] for row in tuning["forms"] if "rounds" in row} == {8}  # six of them before
    run(forms)
    assert len(Clocked.built) > 5  # a tuning that is complete leaves nothing


def test_engines_of_another_version_are_built_again(forms):
    Clocked.fails = {2: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run(forms)
    Clocked.fails, Clocked.release = {}, "2"
    _, tuning = run(forms)
    assert len(Clocked.built) == 3 + 4
    assert tuning["version"] == "2"


def test_other_forms_are_another_tuning(forms):
    Clocked.fails = {2: KeyboardInterrupt()}
    for attempt in (forms, forms[1:]):
        with pytest.raises(KeyboardInterrupt):
            run(attempt)
        Clocked.built.clear()
    Clocked.fails = {0: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run(forms, key="other weights")
    assert Clocked.loaded == []


def test_a_form_that_kills_the_process_is_given_up(tmp_path):
    for attempt in range(TRIES):
        state = Journal(tmp_path).building("form 1")
        state.__enter__()  # and the process is gone
        del state
        (tmp_path / "form_1" / "tries").write_text(str(attempt + 1))
    with (
        pytest.raises(EngineError, match="died while it was built, 2 times"),
        Journal(tmp_path).building("form 1"),
    ):
        pass
    for _ in range(TRIES + 1):  # what raises has not died
        with pytest.raises(KeyboardInterrupt), Journal(tmp_path).building("form 2"):
            raise KeyboardInterrupt


def test_two_at_once_have_journals_of_their_own():
    with journal("key") as one, journal("key") as other:
        assert one.folder != other.folder
        one.failed("form 1", "why")
        assert other.known("form 1") is None
    with journal("key") as again:
        assert again.known("form 1") == {"failed": "why"}


def test_nothing_is_kept_where_the_cache_is_switched_off(monkeypatch):
    monkeypatch.setenv("EQSAT_DEPLOY_CACHE", "")
    folder = cache_folder("tune")
    assert folder == cache_folder("tune")
    assert folder.parent == Path(_of_this_process().name)
    (folder / "file").touch()
    monkeypatch.setenv("EQSAT_DEPLOY_CACHE", str(folder / "file" / "cache"))
    assert cache_folder("tune") == folder  # as where nothing can be written
    monkeypatch.delenv("EQSAT_DEPLOY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "home"))
    assert cache_folder("tune") == folder / "home" / "eqsat-deploy" / "tune"


def test_a_round_that_was_being_written_is_none(tmp_path):
    state = Journal(tmp_path)
    state.keep({"form 1": 1.0})
    with (tmp_path / "rounds.jsonl").open("a") as stream:
        stream.write('{"form 1": 2')
    assert state.rounds() == [{"form 1": 1.0}]
    state.keep({"form 1": 3.0})
    assert state.rounds() == [{"form 1": 1.0}, {"form 1": 3.0}]


def test_a_model_in_float_has_the_prices_of_its_model():
    model = find_cost_model("openvino_int8")
    floating = Floating(model)
    assert (floating.name, floating.unit, floating.float_dtype) == (model.name, model.unit, model.float_dtype)
    assert not floating.int8


def test_optimize_tunes_and_reports(monkeypatch):
    monkeypatch.setattr("eqsat_deploy.engines.race.time", time)
    monkeypatch.setattr("eqsat_deploy.tune.SECONDS", 1.0)
    found = eqsat_deploy.optimize(randomized(Residual()), image(), cost="openvino_int8", tune=2)
    tuning = found.report.tuning
    assert tuning["engine"] == "openvino"
    assert names(tuning)[0] == "form 1"
    assert tuning["winner"] in names(tuning)
    row = next(row for row in tuning["forms"] if row["form"] == tuning["winner"])
    assert found.report.cost == pytest.approx(row["predicted"], abs=1e-3)
    assert found.report.bound <= found.report.cost
    assert "over the fastest" in str(found.report)
    assert json.loads(json.dumps(found.report.to_dict()))["tuning"]["rule"]
    assert deployment(found).plain is not None
    assert isinstance(Form("one", found.report.searches.found, found).identity, str)


def test_how_many_forms_is_a_whole_number():
    with pytest.raises(InputError, match="tune"):
        eqsat_deploy.optimize(randomized(Residual()), image(), tune=0)
