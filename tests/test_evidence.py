"""Evidence: what is stored is fresh and decides each claim as said, lessons and claims agree, and a
few claims, other ones each day, are run again.

VAELAB_EVIDENCE names the claims to run again, "E04.name E05.name" or "all", in place of the day's.
"""

import ast
import json
import os
import random
import re
import shutil
import signal
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from vaelab import __main__ as cli
from vaelab import datasets
from vaelab.teaching import evidence, experiments
from vaelab.teaching.evidence import claim, every, more, near, share
from vaelab.teaching.experiments import differences, digest, load, measure, prove, read_results

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "course" / "evidence").glob("[0-9]*.py"))
LESSONS = sorted((ROOT / "course").glob("[0-9]*.py"))
SECONDS = 60  # of the processor, for the claims that are run again
SECONDS_OF_A_LESSON = 600  # for all claims with all seeds

LINK = re.compile(r"\[(E\d\d\.\w+)\]\(evidence/(\w+)\.py\)")
MENTION = re.compile(r"\bE\d\d\.[A-Za-z]\w*")


# --------------------------------------------------------------------- what every file must satisfy


def outdated(path: Path) -> list[str]:
    """What in the results of an evidence file is not as the file says now."""
    claims, results = load(path), read_results(path)
    found = [f"{id} is not a claim any more" for id in results.keys() - claims.keys()]
    for id, one in claims.items():
        if id not in results:
            found.append(f"{id} was never run")
            continue
        if results[id]["digest"] != digest(path, one):
            found.append(f"{id} rests on code that has changed")
        stored = [results[id][key] for key in ("sentence", "condition", "seeds")]
        if stored != [one.sentence, one.holds.words, [*one.seeds]]:
            found.append(f"{id} is declared in other words")
    return found


def undecided(path: Path) -> list[str]:
    """The claims whose stored numbers do not satisfy the condition, or are summarised wrongly."""
    claims, found = load(path), []
    for id, result in read_results(path).items():
        numbers = {name: np.array(values) for name, values in result["numbers"].items()}
        if {len(values) for values in numbers.values()} != {len({*result["seeds"]})}:
            found.append(f"{id} has not one number per seed")
        elif len(result["seeds"]) < evidence.FEWEST_SEEDS:
            found.append(f"{id} has {len(result['seeds'])} seeds")
        elif not (result["holds"] and claims[id].holds.is_met(numbers)):
            found.append(f"{id} does not hold")
        for name, values in numbers.items():
            summary = result["mean"][name], result["sd"][name]
            if not np.allclose(summary, (values.mean(), values.std(ddof=1)), rtol=1e-5):
                found.append(f"{id}: mean and sd of {name} are not those of its numbers")
    return found


def uncited(stem: str, text: str, claims: dict[str, set[str]]) -> list[str]:
    """Where a lesson and the claims disagree.

    ``claims`` has the ids of each evidence file, by its stem; ``stem`` is the lesson's.
    """
    known, links, own = set().union(*claims.values()), LINK.findall(text), claims.get(stem, set())
    found = [f"{id} is not a claim" for id in sorted({*MENTION.findall(text)} - known)]
    found += [f"{id} is not in {f}.py" for id, f in links if id not in claims.get(f, set())]
    found += [f"{id} is not cited by a link" for id in sorted(own - {id for id, _ in links})]
    if own and f'evidence.table("{stem[:2]}")' not in text:
        found.append("the lesson does not end with the table of its claims")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_results_are_fresh(path):
    lesson = path.stem[:2]
    assert not outdated(path), f"vaelab evidence {lesson} (or with --renew) makes them again"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_claim_holds_with_its_stored_numbers(path):
    assert not undecided(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_claims_of_a_lesson_are_soon_run(path):
    seconds = {id: result["seconds"] for id, result in read_results(path).items()}
    assert sum(map(sum, seconds.values())) <= SECONDS_OF_A_LESSON, seconds
    assert max(map(max, seconds.values())) <= SECONDS, "no day could run this claim again"


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_cites_its_claims_and_no_other(path):
    claims = {file.stem: {*load(file)} for file in FILES}
    assert not uncited(path.stem, path.read_text(encoding="utf-8"), claims)


def test_each_evidence_file_is_of_a_lesson():
    assert {path.stem for path in FILES} <= {path.stem for path in LESSONS}
    results = {path.stem for path in (ROOT / "course" / "evidence").glob("*.json")}
    assert results == {path.stem for path in FILES}


# ------------------------------------------------------------------------------------ run again


def chosen(files: list[Path], day: int, wanted: str = "") -> list[tuple[Path, str, int]]:
    """The claims to run again on a day, each with one seed, in at most SECONDS."""
    stored = [(path, id, result) for path in files for id, result in read_results(path).items()]
    rng, left, found = random.Random(day), SECONDS, []
    rng.shuffle(stored)
    for path, id, result in stored:
        row = rng.randrange(len(result["seeds"]))
        if wanted:
            fits = wanted == "all" or id in wanted.split()
        else:
            fits = result["seconds"][row] <= left
        if fits:
            left -= result["seconds"][row]
            found.append((path, id, result["seeds"][row]))
    return found


def absent_data(path: Path) -> list[str]:
    """The data sets that an evidence file or its lesson names, and that are not here."""
    text = path.read_text(encoding="utf-8")
    lesson = path.parents[1] / path.name
    if lesson.exists():
        text += "\n".join(re.findall(r"^#\s+data: (.*)$", lesson.read_text("utf-8"), re.M))
    named = [name for name in datasets.DATASETS if re.search(rf"\b{name}\b", text)]
    return [name for name in named if "source" in datasets.locate(name).values()]


TODAY = chosen(FILES, date.today().toordinal(), os.environ.get("VAELAB_EVIDENCE", ""))


@pytest.mark.filterwarnings("default")  # of what a claim calls: no learner sees it, numbers count
@pytest.mark.parametrize(("path", "id", "seed"), TODAY, ids=[f"{i}-{s}" for _, i, s in TODAY])
def test_a_claim_gives_the_same_again(path, id, seed):
    if absent := absent_data(path):
        pytest.skip(f"needs data; get them with: vaelab data fetch {' '.join(absent)}")
    one = load(path)[id]
    numbers, _ = measure(one, seed, path.parents[1])
    assert not differences(one, read_results(path)[id], seed, numbers)


# ------------------------------------------------------------------- the checks, on seeded faults

MINI = '''\
"""Evidence for lesson 04."""

import math

import vaelab
from vaelab.teaching.evidence import claim, more, near

SCALE = 2.0
OTHER = 5.0
CALLS = []


def noise(seed: int) -> float:
    """A number."""
    if seed < 0:
        raise ValueError("negative")
    return math.sin(seed)


@claim("E04.higher", "The scale makes it higher.", holds=more("with_scale", "without"))
def higher(seed: int) -> dict[str, float]:
    # Both have the same noise.
    CALLS.append(seed)
    print("a training")
    return {"with_scale": noise(seed) + SCALE, "without": noise(seed)}


@claim("E04.bound", "A KL is zero.", holds=near("kl", 0, 0.1))
def bound(seed):
    if False:
        vaelab.fit(vaelab.VAE, None)
    return {"kl": 0.0}
'''
LESSON = """\
# %% [markdown]
# It is higher by 2 [E04.higher](evidence/04_mini.py), and the KL is
# zero ([E04.bound](evidence/04_mini.py)).
# %%
measured["E04.higher"]
# %%
evidence.table("04")
"""


@pytest.fixture
def mini(tmp_path, monkeypatch):
    """An evidence file in a course of its own."""
    folder = tmp_path / "course" / "evidence"
    folder.mkdir(parents=True)
    path = folder / "04_mini.py"
    path.write_text(MINI, encoding="utf-8")
    monkeypatch.setattr(cli, "EVIDENCE", folder)
    monkeypatch.setattr(evidence, "CHECKOUT", tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path / "course")
    return path


@pytest.fixture
def proven(mini):
    assert invoke("evidence", "04").exit_code == 0
    return mini


def invoke(*words: str):
    result = CliRunner().invoke(cli.app, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def calls(path: Path, action) -> list[int]:
    """The seeds with which the first claim was called meanwhile."""
    seen = []
    real = experiments.load

    def noting(file):
        claims = real(file)
        claims["E04.higher"].function.__globals__["CALLS"] = seen
        return claims

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "load", noting)
        action()
    return seen


def test_right_results_are_accepted(proven):
    assert outdated(proven) == [] and undecided(proven) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("SCALE = 2.0", "SCALE = 2.5", "E04.higher rests on code that has changed"),
        ("makes it higher", "makes it much higher", "E04.higher is declared in other words"),
        ('"without")', '"without", by=1)', "E04.higher is declared in other words"),
        ("KL is zero.", "KL is zero.", ""),
        ('E04.bound"', 'E04.bond"', "E04.bond was never run"),
    ],
)
def test_results_that_are_out_of_date_are_seen(proven, old, new, complaint):
    change(proven, old, new)
    if "bond" in new:
        change(proven, "def bound", "def bond")
    found = outdated(proven)
    assert complaint in found if complaint else found == []


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        (("numbers", "with_scale"), [0.0, 1, 1, 0, -1], "E04.higher does not hold"),
        (("holds",), False, "E04.higher does not hold"),
        (("mean", "without"), 0.3, "E04.higher: mean and sd of without are not those of"),
        (("seeds",), [0, 1, 2, 3], "E04.higher has not one number per seed"),
        (("seeds",), [0, 1, 2, 3, 3], "E04.higher has not one number per seed"),
    ],
)
def test_results_that_do_not_decide_are_seen(proven, key, value, complaint):
    results = read_results(proven)
    place = results["E04.higher"]
    for name in key[:-1]:
        place = place[name]
    place[key[-1]] = value
    experiments.write_results(proven, results)
    assert any(found.startswith(complaint) for found in undecided(proven))


def test_four_seeds_do_not_decide(proven):
    results = read_results(proven)
    one = results["E04.bound"]
    one["seeds"], one["numbers"]["kl"] = one["seeds"][:4], one["numbers"]["kl"][:4]
    experiments.write_results(proven, results)
    assert "E04.bound has 4 seeds" in undecided(proven)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("", "", None),
        ('measured["E04.higher"]', 'measured["E04.hihger"]', "E04.hihger is not a claim"),
        ("[E04.bound](evidence/04_mini.py)", "no source", "E04.bound is not cited by a link"),
        ("[E04.bound](evidence/04_mini.py)", "E04.bound", "E04.bound is not cited by a link"),
        ("bound](evidence/04_mini", "bound](evidence/05_mini", "E04.bound is not in 05_mini.py"),
        ('table("04")', 'table("05")', "the lesson does not end with the table of its claims"),
    ],
)
def test_a_lesson_that_disagrees_with_the_claims_is_seen(old, new, complaint):
    claims = {"04_mini": {"E04.higher", "E04.bound"}, "05_mini": {"E05.zeros"}}
    found = uncited("04_mini", LESSON.replace(old, new), claims)
    assert complaint in found if complaint else found == []
    assert uncited("06_mini", LESSON, claims) == []  # another lesson may cite them too


def test_each_day_runs_others_again_within_the_time(proven):
    results = read_results(proven)
    one = results["E04.higher"] | {"seconds": [25.0] * 5}
    names = [f"E04.n{i}" for i in range(20)]
    experiments.write_results(proven, dict.fromkeys(names, one))
    days = [chosen([proven], day) for day in range(60)]
    assert {len(day) for day in days} == {2}
    assert {id for day in days for _, id, _ in day} == {*names}
    assert {seed for day in days for *_, seed in day} == {0, 1, 2, 3, 4}
    assert len(chosen([proven], 0, "all")) == 20
    assert [id for _, id, _ in chosen([proven], 0, "E04.n3")] == ["E04.n3"]


def test_absent_data_are_seen(mini, monkeypatch):
    monkeypatch.setattr(datasets, "locate", lambda name: {name: "source"})
    assert absent_data(mini) == []
    change(mini, "OTHER = 5.0", "OTHER = vaelab.datasets.pbmc_small")
    (mini.parents[1] / mini.name).write_text("# ---\n#   vaelab:\n#     data: [pancreas]\n")
    assert absent_data(mini) == ["pancreas", "pbmc_small"]


# ---------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize(
    ("condition", "numbers", "met"),
    [
        # In pairs the difference is clear, although the seeds differ more.
        (more("a", "b"), {"a": [1.1, 11.2, 21.1, 31, 41.1], "b": [1, 11, 21, 30.9, 41]}, True),
        (more("b", "a"), {"a": [1.1, 11.2, 21.1, 31, 41.1], "b": [1, 11, 21, 30.9, 41]}, False),
        (more("a", "b", by=0.2), {"a": [1.1, 2.2, 3.1, 4.3, 5.1], "b": [1, 2, 3, 4, 5]}, False),
        (more("a", "b"), {"a": [2.0] * 5, "b": [1.0] * 5}, True),
        (more("a", "b"), {"a": [1.0] * 5, "b": [1.0] * 5}, False),
        # Differences 1, 1, 1, 1, −1.6: the mean 0.48 is below twice its standard error 0.52.
        (more("a", "b"), {"a": [1.0, 1, 1, 1, -1.6], "b": [0.0] * 5}, False),
        # Differences 1, 1, 1, 1, −0.5: the mean 0.7 is above twice its standard error 0.3.
        (more("a", "b"), {"a": [1.0, 1, 1, 1, -0.5], "b": [0.0] * 5}, True),
        (near("a", 3, 0.5), {"a": [2.5, 3.5, 3, 3, 3]}, True),
        (near("a", 3, 0.5), {"a": [3, 3, 3, 3, 3.6]}, False),
        (near("a", 3, 0.5), {"a": [3, 3, 3, 3, 2.4]}, False),
        (share("a"), {"a": [1, 1, 1, 1, 0]}, True),
        (share("a"), {"a": [1, 1, 1, 0, 0]}, False),
        (share("a", at_least=1), {"a": [1, 1, 1, 1, 0]}, False),
        (every(near("a", 0, 1), share("b")), {"a": [0] * 5, "b": [1] * 5}, True),
        (every(near("a", 0, 1), share("b")), {"a": [0] * 5, "b": [0] * 5}, False),
        (every(near("a", 0, 1), share("b")), {"a": [2] * 5, "b": [1] * 5}, False),
    ],
)  # fmt: skip
def test_a_condition(condition, numbers, met):
    assert condition.is_met(numbers) is met
    assert condition.is_met(pd.DataFrame(numbers)) is met


def test_two_standard_errors_are_those_of_a_t_statistic():
    from scipy import stats

    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = rng.normal(0.8, 1, size=(2, 5))
        t = stats.ttest_rel(a, b - 0.3).statistic
        assert more("a", "b", by=-0.3).is_met({"a": a, "b": b}) == (t > 2)


def test_a_condition_in_words():
    assert more("a", "b").words == "a − b is above 0, by more than twice its standard error"
    assert "above 0.5" in more("a", "b", by=0.5).words
    assert near("kl", 0, 0.1).words == "kl is within 0.1 of 0 for every seed"
    assert share("collapsed").words == "collapsed for at least 80% of the seeds"
    both = every(more("a", "b"), share("c"))
    assert both.words == f"{more('a', 'b').words}; {share('c').words}"
    assert both.names == ("a", "b", "c")


def test_a_condition_that_cannot_be_judged():
    with pytest.raises(ValueError, match=r"reads b, but the claim returns a\."):
        more("a", "b").is_met({"a": [1.0] * 5})
    with pytest.raises(ValueError, match="must be 0 or 1"):
        share("a").is_met({"a": [0.5] * 5})
    with pytest.raises(ValueError, match="at least one"):
        every()


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        (("E04.other", "It is so."), {}, "E04.f"),
        (("04.f", "It is so."), {}, "E04.f"),
        (("E04.f", "It is so"), {}, "full stop"),
        (("E04.f", "It is so."), {"seeds": range(4)}, "at least 5"),
        (("E04.f", "It is so."), {"seeds": [0, 1, 2, 3, 3]}, "different"),
        (("E04.f", "It is so."), {"seeds": [0, 1, 2, 3, 4, 4]}, "different"),
    ],
)
def test_a_wrong_declaration_is_refused(arguments, options, says):
    def f(seed):
        return {"a": 1.0}

    with pytest.raises(ValueError, match=says):
        claim(*arguments, holds=share("a"), **options)(f)
    assert claim("E04.f", "It is so.", holds=share("a"))(f)(0) == {"a": 1.0}


def test_a_claim_of_another_lesson_or_none_is_refused(mini):
    change(mini, '"E04.bound"', '"E05.bound"')
    with pytest.raises(ValueError, match=r"E05\.bound; its ids must start with E04"):
        load(mini)
    mini.write_text("x = 1\n")
    with pytest.raises(ValueError, match="no claims"):
        load(mini)


# ----------------------------------------------------------------------------------------- runs


def one_claim(function, **options):
    name = function.__name__
    return claim(f"E04.{name}", "It is so.", holds=share("a"), **options)(function)


def test_a_seed_gives_the_same_whatever_ran_before(tmp_path, capsys):
    def f(seed):
        print("seen by nobody")
        return {
            "a": torch.rand(()), "b": np.random.rand(), "c": random.random(),
            "d": torch.get_num_threads(), "e": Path.cwd() == tmp_path,
        }  # fmt: skip

    torch.set_num_threads(2)
    first, seconds = measure(one_claim(f), 0, tmp_path)
    torch.rand(3), np.random.rand(3), random.random()
    assert measure(one_claim(f), 0, tmp_path)[0] == first != measure(one_claim(f), 1, tmp_path)[0]
    assert first["d"] == first["e"] == 1 and seconds >= 0
    assert torch.get_num_threads() == 2 and Path.cwd() != tmp_path
    torch.set_num_threads(1)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("value", [{"a": float("nan")}, {"a": "x"}, {"a": [1, 2]}, 3.0, {}, None])
def test_a_claim_must_return_numbers(value, tmp_path):
    def f(seed):
        return value

    with pytest.raises(ValueError, match="expected a dictionary from names to finite numbers"):
        measure(one_claim(f), 0, tmp_path)


def test_an_interrupt_that_a_training_takes_is_still_an_interrupt(tmp_path):
    def f(seed):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:  # as vaelab.fit does, to keep the model so far
            return {"a": 1.0}

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        measure(one_claim(f), 0, tmp_path)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_difference_is_judged_by_the_spread_over_seeds():
    def f(seed):
        return {}

    stored = {"seeds": [0, 1, 2, 3, 4], "numbers": {"a": [10.0, 11, 12, 13, 14], "b": [5.0] * 5}}
    assert differences(one_claim(f), stored, 1, {"a": 12.5, "b": 5.004}, spread=1) == []
    (found,) = differences(one_claim(f), stored, 1, {"a": 12.7, "b": 5.0}, spread=1)
    assert "seed 1: a is 12.7, stored is 11; the tolerance is 1.58" in found
    assert differences(one_claim(f), stored, 1, {"a": 18.9, "b": 5.0}) == []
    (found,) = differences(one_claim(f), stored, 1, {"a": 19.0, "b": 5.0})
    assert "a is 19, stored is 11; the tolerance is 7.91" in found
    (found,) = differences(one_claim(f), stored, 1, {"a": 11.0, "b": 5.006})
    assert "b is 5.006" in found
    assert differences(one_claim(f, tolerance=0.1), stored, 1, {"a": 11.2, "b": 5.0})
    assert differences(one_claim(f, tolerance=2), stored, 1, {"a": 12.9, "b": 6.9}) == []
    assert differences(one_claim(f, tolerance={"a": 3}), stored, 1, {"a": 13.9, "b": 5.0}) == []
    assert differences(one_claim(f, tolerance={"a": 3}), stored, 1, {"a": 11.0, "b": 5.1})
    (found,) = differences(one_claim(f), stored, 1, {"a": 11.0})
    assert "now returns ['a']" in found


# --------------------------------------------------------------------------------- the command


def test_the_command_runs_each_claim_and_writes_its_numbers(mini):
    result = invoke("evidence", "4")
    assert result.exit_code == 0
    assert "E04.higher: The scale makes it higher.\n" in result.stdout
    assert "with_scale 2.23 ± 0.68, without 0.23 ± 0.68 (mean ± sd, 5 seeds)\n" in result.stdout
    assert "Holds: with_scale − without is above 0, by more than" in result.stdout
    assert "a training" not in result.stdout
    content = json.loads(mini.with_suffix(".json").read_text(encoding="utf-8"))
    assert content["lesson"] == "04" and content["command"] == "vaelab evidence 04"
    one = content["claims"]["E04.higher"]
    assert one["numbers"]["without"] == [float(f"{np.sin(seed):.6g}") for seed in range(5)]
    assert one["seeds"] == [0, 1, 2, 3, 4] and one["holds"] is True and len(one["seconds"]) == 5
    assert one["versions"].keys() == {"python", "torch", "numpy", "scanpy", "vaelab"}
    assert {path.name for path in mini.parent.iterdir()} - {"__pycache__"} == {
        "04_mini.py", "04_mini.json",
    }  # fmt: skip


def test_what_has_not_changed_is_kept(proven):
    assert calls(proven, lambda: invoke("evidence", "04")) == []
    assert calls(proven, lambda: invoke("evidence", "04", "--again")) == [0, 1, 2, 3, 4]
    change(proven, "makes it higher", "makes it much higher")
    change(proven, '"without")', '"without", by=1)')
    assert calls(proven, lambda: invoke("evidence", "04")) == []
    result = read_results(proven)["E04.higher"]
    assert result["sentence"] == "The scale makes it much higher."
    assert "above 1" in result["condition"]
    change(proven, "SCALE = 2.0", "SCALE = 2.5")
    assert calls(proven, lambda: invoke("evidence", "04", "bound")) == []
    assert calls(proven, lambda: invoke("evidence", "04")) == [0, 1, 2, 3, 4]
    assert outdated(proven) == []


def test_renewing_runs_one_seed_or_all_if_it_differs(proven):
    before = read_results(proven)["E04.higher"]
    change(proven, "noise(seed) + SCALE", "SCALE + noise(seed)")
    assert calls(proven, lambda: invoke("evidence", "04", "--renew")) == [0]
    after = read_results(proven)["E04.higher"]
    assert after == before | {"digest": after["digest"]} and after["digest"] != before["digest"]
    assert calls(proven, lambda: invoke("evidence", "04", "--renew")) == []
    change(proven, "SCALE = 2.0", "SCALE = 4.0")
    assert calls(proven, lambda: invoke("evidence", "04", "--renew")) == [0, 1, 2, 3, 4]
    result = read_results(proven)["E04.higher"]
    assert result["numbers"]["with_scale"][0] == 4 and outdated(proven) == []


def test_other_seeds_are_run(proven):
    change(proven, '"without"))', '"without"), seeds=range(6))')
    assert calls(proven, lambda: invoke("evidence", "04", "--renew")) == [0, 1, 2, 3, 4, 5]


def test_a_claim_that_fails_gives_exit_code_1_and_is_written(mini):
    change(mini, "SCALE = 2.0", "SCALE = -2.0")
    result = invoke("evidence", "04")
    assert result.exit_code == 1 and "DOES NOT HOLD: with_scale − without" in result.stdout
    assert read_results(mini)["E04.higher"]["holds"] is False
    assert read_results(mini)["E04.bound"]["holds"] is True


def test_ctrl_c_keeps_the_claims_that_are_finished(mini):
    change(mini, 'return {"kl": 0.0}', "raise KeyboardInterrupt")
    result = invoke("evidence", "04")
    assert result.exit_code == 130 and "Finished claims are kept" in result.stderr
    assert [*read_results(mini)] == ["E04.higher"]


def test_a_claim_that_is_gone_leaves_the_results(proven):
    change(proven, '"E04.bound"', '"E04.zero"')
    change(proven, "def bound", "def zero")
    assert invoke("evidence", "04").exit_code == 0
    assert [*read_results(proven)] == ["E04.higher", "E04.zero"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("05",), "The lessons with evidence are: 04."),
        (("04", "hihger"), "There is no claim E04.hihger. The claims are E04.higher, E04.bound."),
    ],
)
def test_unknown_names_are_refused_in_a_sentence(mini, words, says):
    result = invoke("evidence", *words)
    assert result.exit_code == 1 and says in result.stderr
    assert not mini.with_suffix(".json").exists()


def test_a_claim_that_cannot_run_is_named(mini):
    change(mini, 'return {"kl": 0.0}', "return {}")
    result = invoke("evidence", "04")
    assert result.exit_code == 1 and "E04.bound returned {} for seed 0" in result.stderr


def test_names_that_differ_between_seeds_are_refused(mini):
    change(mini, 'return {"kl": 0.0}', 'return {"kl": 0.0} if seed else {"kl": 0.0, "more": 1.0}')
    result = invoke("evidence", "04")
    assert result.exit_code == 1 and "the same names for every seed" in result.stderr


def test_a_list_of_all_claims(mini):
    assert "E04.higher" in (listed := invoke("evidence").stdout) and "never run" in listed
    invoke("evidence", "04")
    change(mini, "SCALE = 2.0", "SCALE = 2.5")
    higher, bound = invoke("evidence").stdout.splitlines()
    assert "stale" in higher and "holds" in bound and "A KL is zero." in bound


# ------------------------------------------------------------------------------------ freshness


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("# Both have", "# Now both have", False),
        ('"""A number."""', '"""Some number."""', False),
        ("noise(seed) + SCALE", "(noise(seed) +\n        SCALE)", False),
        ("def noise(seed: int) -> float:", "def noise(seed):", False),
        ('ValueError("negative")', 'ValueError("seed is negative")', False),
        ("OTHER = 5.0", "OTHER = 6.0", False),
        ('{"kl": 0.0}', '{"kl": 0.01}', False),
        ("claim, more, near", "claim, more, near, share", False),
        ("makes it higher", "makes it lower", False),
        ('"without"))', '"without", by=1))', False),
        ("import math\n", "import math\nimport os\n", False),
        ("SCALE = 2.0", "SCALE = 2.1", True),
        ("math.sin", "math.cos", True),
        ("seed < 0", "seed < 1", True),
        ('"without": noise', '"without": -noise', True),
        ("import math\n", "import cmath as math\n", True),
        ("CALLS = []", "CALLS = []\nimport random\nrandom.seed(1)", True),
        ('"without"))', '"without"), seeds=range(7))', True),
        ("return math.sin(seed)", "import vaelab.metrics\n    return math.sin(seed)", True),
    ],
)  # fmt: skip
def test_what_makes_a_result_stale_in_its_file(mini, old, new, changes):
    before = digest(mini, load(mini)["E04.higher"])
    change(mini, old, new)
    assert (digest(mini, load(mini)["E04.higher"]) != before) is changes


@pytest.mark.parametrize(
    ("module", "changes"),
    [
        ("training.py", True),
        ("models/vae.py", True),
        ("models/base.py", True),  # through vae.py
        ("_internal/negative_binomial.py", True),  # through likelihoods.py and distributions.py
        ("models/gmvae.py", False),
        ("simulate.py", False),
        ("plotting.py", False),  # history.py imports it
        ("__init__.py", False),
        ("__main__.py", False),
        ("teaching/recipes.py", False),
        ("teaching/evidence.py", False),
    ],
)
def test_what_makes_a_result_stale_in_the_package(mini, tmp_path, monkeypatch, module, changes):
    copy = tmp_path / "vaelab"
    shutil.copytree(experiments.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(experiments, "PACKAGE", copy)
    both = load(mini)
    before = {id: digest(mini, one) for id, one in both.items()}
    with open(copy / module, "a") as file:
        file.write('\n# a comment\n"""A text."""\n')
    assert {id: digest(mini, one) for id, one in both.items()} == before
    with open(copy / module, "a") as file:
        file.write("\nADDED = 1\n")
    after = {id: digest(mini, one) for id, one in both.items()}
    assert (after["E04.bound"] != before["E04.bound"]) is changes
    assert after["E04.higher"] == before["E04.higher"]  # it uses nothing of the package


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        ("import vaelab\nvaelab.VAE", {"vaelab.models.vae"}),
        ("import vaelab as v\nv.fit(v.VAE)", {"vaelab.training", "vaelab.models.vae"}),
        ("import vaelab\nvaelab.metrics.kmeans(1).x", {"vaelab.metrics"}),
        ("import vaelab.metrics", {"vaelab.metrics"}),
        ("import vaelab.metrics as m\nm.kmeans", {"vaelab.metrics"}),
        ("from vaelab import metrics, SCVI", {"vaelab.metrics", "vaelab.models.scvi"}),
        ("from vaelab.models import GMVAE", {"vaelab.models.gmvae"}),
        ("from vaelab.teaching.recipes import RECIPES", {"vaelab.teaching.recipes"}),
        ("import vaelab\nvaelab.teaching.recipes.RECIPES", {"vaelab.teaching.recipes"}),
        ("import vaelab\nvaelab.models.VAE.graph", {"vaelab.models.vae"}),
        ("import numpy as np\nnp.sum(vaelab.x)", set()),
    ],
)
def test_the_modules_that_code_imports(code, modules):
    assert experiments._imported([ast.parse(code)], None) - {"vaelab"} == modules


def test_a_saved_model_that_a_claim_reads_counts(mini, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "PACKAGE", tmp_path / "vaelab")
    saved = tmp_path / "saved_model_parameters"
    saved.mkdir()
    (saved / "one.json").write_text("1")
    plain = digest(mini, load(mini)["E04.higher"])
    (saved / "one.json").write_text("2")
    assert digest(mini, load(mini)["E04.higher"]) == plain
    change(mini, "SCALE = 2.0", 'SCALE = len("../saved_model_parameters/one")')
    before = digest(mini, load(mini)["E04.higher"])
    (saved / "one.json").write_text("3")
    assert digest(mini, load(mini)["E04.higher"]) != before


# -------------------------------------------------------------------------------- in the lesson


def test_a_lesson_reads_the_numbers(proven, monkeypatch):
    frame = evidence.read("04")["E04.higher"]
    assert [*frame.columns] == ["with_scale", "without"] and frame.index.name == "seed"
    assert [*frame.index] == [0, 1, 2, 3, 4]
    assert frame["without"].tolist() == [float(f"{np.sin(seed):.6g}") for seed in range(5)]
    (proven.parents[1] / "exercises").mkdir()
    monkeypatch.chdir(proven.parents[1] / "exercises")  # where the learner's edition lies
    assert evidence.read("04")["E04.higher"].equals(frame)
    monkeypatch.chdir("/")
    with pytest.raises(FileNotFoundError, match=r"no evidence for lesson 04: .*vaelab evidence 04"):
        evidence.read("04")
    monkeypatch.setattr(evidence, "CHECKOUT", proven.parents[1])
    measured = evidence.read("04")
    with pytest.raises(KeyError, match=r"no claim 'E04\.x' here; the claims are E04\.higher"):
        measured["E04.x"]


def test_the_table_of_a_lesson(proven):
    shown = evidence.table("04")
    assert repr(shown).splitlines() == [
        "E04.higher: The scale makes it higher.",
        "    with_scale 2.23 ± 0.68, without 0.23 ± 0.68 (mean ± sd, 5 seeds)",
        "    Holds: with_scale − without is above 0, by more than twice its standard error.",
        "",
        "E04.bound: A KL is zero.",
        "    kl 0 ± 0 (mean ± sd, 5 seeds)",
        "    Holds: kl is within 0.1 of 0 for every seed.",
    ]
    text = shown._repr_html_()
    assert text.count("<tr>") == 3 and ">with_scale 2.23 ± 0.68</span>" in text
    results = read_results(proven)
    results["E04.bound"] |= {"sentence": "A < b.", "holds": False}
    text = evidence.Table(results)._repr_html_()
    assert "A &lt; b." in text and "<b>no</b>" in text


@pytest.mark.parametrize(
    ("mean", "sd", "text"),
    [
        (1234.567, 12.3, "1,235 ± 12"),
        (1234.567, 123.4, "1,235 ± 123"),
        (0.12345, 0.0123, "0.123 ± 0.012"),
        (-5.5, 1.26, "-5.5 ± 1.3"),
        (3.0, 0.0, "3 ± 0"),
        (1e-9, 2.5e-10, "1e-09 ± 2.5e-10"),
    ],
)
def test_a_mean_has_the_decimals_of_its_spread(mean, sd, text):
    assert evidence._rounded(mean, sd) == text


def test_prove_returns_what_is_stored(mini):
    one = load(mini)["E04.bound"]
    result, how = prove(mini, one)
    assert how == "run" and prove(mini, one, json.loads(json.dumps(result))) == (result, "kept")
