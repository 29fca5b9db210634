"""The machinery of checks: which forms of an answer pass, and what is said of it, and how.

Exercises of the course are in test_exercises.py; those made up here keep their meaning when a
lesson changes.
"""

import inspect
import json
import re
from collections import namedtuple
from dataclasses import replace
from functools import wraps

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbclient import NotebookClient

import vaelab
from vaelab.teaching import exercises, grading
from vaelab.teaching.exercises import CheckFailed, box, find, graded
from vaelab.teaching.exercises.calls import Outcome, as_data
from vaelab.teaching.exercises.core import Exercise, Misconception, Verdict, plain

from .test_exercises import NAMES, checked, every_exercise, judged, shaped, solution_of

GRADIENT = "tensor with gradient"


def made_up(**about) -> Exercise:
    """y = Wx, from four cases: W and x in rows of 2."""

    def draw(rng):
        return [{"x": rng.normal(size=(n, 2)), "w": rng.normal(size=2)} for n in (1, 3, 4, 9)]

    return Exercise(
        **{
            "name": "05.90",
            "title": "Made up",
            "points": 1,
            "draw": draw,
            "oracle": lambda x, w: x @ w,
            "verified": "Right.",
        }
        | about
    )


# --------------------------------------------------------------------- forms of a right answer


def numbers(part):
    data = as_data(part)
    return data if isinstance(data, str) else data.tolist()


def array(part):
    return part if isinstance(part, str) else as_data(part)


def tensor_of(dtype):
    def convert(part):
        if isinstance(part, torch.Tensor):
            return part.to(dtype)
        return part if isinstance(part, str) else torch.as_tensor(np.asarray(part)).to(dtype)

    return convert


def table(part):
    data = array(part)
    makes = {1: pd.Series, 2: pd.DataFrame}
    return makes.get(getattr(data, "ndim", 0), lambda it: it)(data)


def stacked(parts):
    parts = [array(part) for part in parts]
    alike = {np.shape(p) for p in parts if not isinstance(p, str)}
    words = any(isinstance(part, str) for part in parts)
    return parts if words or len(alike) > 1 else np.stack(parts)


FORMS = {  # of a result, and of several of them
    "lists": (numbers, list),
    "tuples": (lambda part: tuple(part) if np.ndim(array(part)) == 1 else numbers(part), tuple),
    "arrays": (array, tuple),
    "one array": (array, stacked),
    "a list of tensors": (tensor_of(torch.float64), list),
    "float32": (tensor_of(torch.float32), tuple),
    "float64": (tensor_of(torch.float64), tuple),
    "float32 arrays": (lambda part: array(tensor_of(torch.float32)(part)), list),
    "pandas": (table, tuple),
    "named": (
        tensor_of(torch.float64),
        lambda parts: namedtuple("Answer", [f"r{i}" for i in range(len(parts))])(*parts),
    ),
}
TENSORS = {"a list of tensors", "float32", "float64", "named"}


def needed(exercise) -> str:
    if exercise.call in ("slope", "slopes", "gradient"):
        return GRADIENT
    return exercise.returns


@pytest.mark.parametrize("form", FORMS)
@every_exercise
def test_a_right_answer_passes_in_every_form_that_later_cells_can_use(name, form):
    exercise, solution = find(name), solution_of(name)
    of_part, together = FORMS[form]

    @wraps(solution)
    def answer(*args, **kwargs):
        result = solution(*args, **kwargs)
        if isinstance(result, tuple):
            return together([of_part(part) for part in result])
        return of_part(result)

    verdict = checked(exercise, answer)
    usable = form in TENSORS if "tensor" in needed(exercise) else True
    if needed(exercise) == "array":
        usable = "array" in form
    assert verdict.passed == usable, str(verdict)
    if not usable and not verdict.misconception:  # some exercises have a hint of their own
        who = "later cells need a" if exercise.returns else "this exercise needs a"
        assert who in verdict.message, verdict


@every_exercise
def test_single_precision_makes_no_mistake_right(name):
    exercise = find(name)

    def single(data):
        return shaped(data, lambda a: a.astype(np.float32) if a.dtype.kind == "f" else a)

    for known in exercise.misconceptions:
        verdict = judged(exercise, lambda known=known, **case: single(known.wrong(**case)))
        assert verdict.misconception == known.name, f"{known.name}: {verdict}"


@every_exercise
def test_a_case_has_the_names_of_the_answers_arguments(name):
    """Messages show a case; so its names have to be those that the learner reads."""
    exercise, solution = find(name), solution_of(name)
    shown = [key.partition("(")[0] for key in exercise._shown(exercise.cases(0)[0])]
    shown = ["E", *shown] if exercise.call == "densities" else shown
    assert shown == list(inspect.signature(solution).parameters)


def test_a_single_answer_is_judged_in_single_precision():
    exercise = made_up(rtol=1e-9, atol=0.0)
    assert checked(exercise, lambda x, w: x.float() @ w.float()).passed
    off = checked(exercise, lambda x, w: (x @ w) * (1 + 1e-6))
    assert not off.passed  # the same error in double precision


def test_as_data_keeps_words_and_ragged_lists_apart():
    assert as_data([1, "kl"]) == (np.asarray(1), "kl")
    ragged = as_data([torch.zeros(2), np.zeros(3)])
    assert [part.shape for part in ragged] == [(2,), (3,)]
    stacked_ = as_data([torch.ones(2, dtype=torch.float32)] * 3)
    assert (stacked_.shape, stacked_.dtype) == ((3, 2), np.float32)
    assert as_data(torch.ones(2, dtype=torch.bfloat16)).tolist() == [1, 1]


def test_a_number_in_brackets_is_no_number():
    exercise = made_up(oracle=lambda x, w: (x @ w).sum())
    assert "has shape (1,)" in checked(exercise, lambda x, w: [(x @ w).sum()]).message
    assert "one result, but your answer returned 2" in (
        checked(exercise, lambda x, w: ((x @ w).sum(), 1.0)).message
    )


def test_an_answer_that_takes_tables_by_name_is_called_so():
    by_name = checked(made_up(), lambda **given: given["x"] @ given["w"])
    assert by_name.passed, by_name
    by_position = checked(made_up(), lambda a, b: a @ b)
    assert by_position.passed, by_position
    assert "raised TypeError" in checked(made_up(), lambda a, b, c: a).message


# ----------------------------------------------------- answers that later cells could not use


@pytest.mark.parametrize(
    ("returns", "answer", "said"),
    [
        (GRADIENT, lambda x, w: x @ w, None),
        (GRADIENT, lambda x, w: x.detach() @ w, "no gradient flows back to x,"),
        (
            GRADIENT,
            lambda x, w: x @ torch.tensor(w.tolist(), dtype=torch.float64),
            "no gradient flows back to w,",
        ),
        (GRADIENT, lambda x, w: (x @ w).detach(), "no gradient flows back to x, w,"),
        (GRADIENT, lambda x, w: torch.from_numpy(x.numpy() @ w.numpy()), "it raised RuntimeError"),
        (GRADIENT + " in w", lambda x, w: x.detach() @ w, None),
        (GRADIENT + " in w", lambda x, w: (x @ w).detach().numpy(), "gave an array"),
        ("tensor", lambda x, w: (x @ w).detach(), None),
        ("tensor", lambda x, w: (x @ w).numpy(), "gave an array"),
        ("tensor", lambda x, w: (x @ w).tolist(), "gave a list"),
        ("tensor", lambda x, w: pd.Series((x @ w).numpy()), "gave a Series"),
        ("tensor without gradient", lambda x, w: x @ w, None),
        ("tensor without gradient", lambda x, w: (x @ w).requires_grad_(), "no_grad"),
        ("array", lambda x, w: (x @ w).numpy(), None),
        ("array", lambda x, w: x @ w, "gave a tensor"),
    ],
)
def test_what_later_cells_lack_is_named(returns, answer, said, tmp_path, monkeypatch):
    exercise = made_up(returns=returns, rtol32=1e-6)
    verdicts = [
        checked(exercise, answer),
        through_the_grader(exercise, answer, tmp_path, monkeypatch),
    ]
    for verdict in verdicts:
        assert verdict.passed == (said is None), verdict
        if said:
            assert "The numbers are right" in verdict.message
            assert said in plain(verdict.message)


def test_an_extreme_case_may_give_a_plain_number():
    def empty_last(x, w):
        return np.zeros(9) if len(x) == 9 else x @ w

    exercise = made_up(returns=GRADIENT, oracle=empty_last)
    assert "gave an array" in checked(exercise, empty_last).message
    assert checked(replace(exercise, extreme=1), empty_last).passed
    detached = checked(replace(exercise, extreme=1), lambda x, w: empty_last(x.detach(), w))
    assert "no gradient flows back to x," in detached.message


def through_the_grader(exercise, answer, folder, monkeypatch):
    """The verdict on what a run wrote down of an answer; no notebook is needed for that."""
    monkeypatch.setattr(exercises, "find", lambda name: exercise)
    monkeypatch.setenv("VAELAB_GRADING", str(folder))
    cases = {kind: exercise.cases(seed) for seed, kind in enumerate(("seen", "hidden"))}
    inputs = json.dumps(grading._inputs(exercise, cases))
    (folder / f"{exercise.name}.inputs").write_text(inputs)
    graded.check(exercise.name, answer)
    outcomes = grading._outcomes(folder, exercise.name)
    return exercise.judge(cases["hidden"], outcomes["hidden"])


def test_a_run_can_not_leave_the_type_of_an_answer_out(tmp_path):
    exercise = made_up(returns="tensor")
    cases = exercise.cases(1)
    given = [["value", graded.pack(exercise.oracle(**case)), "", [], []] for case in cases]
    (tmp_path / "05.90.outcomes").write_text(json.dumps({"hidden": given}))
    verdict = exercise.judge(cases, grading._outcomes(tmp_path, "05.90")["hidden"])
    assert not verdict.passed


@pytest.mark.parametrize("call", ["slope", "gradient"])
def test_a_missing_gradient_is_not_called_a_wrong_number(call):
    def draw(rng):
        return [{"x": rng.normal(size=n), "weight": rng.normal(size=n)} for n in (2, 5)]

    def oracle(x, weight):
        return (x * weight, x) if call == "slope" else (2 * x, 2 * weight)

    exercise = made_up(draw=draw, oracle=oracle, call=call)

    def right(x, weight=None):
        return 2 * x if weight is None else x * weight

    assert checked(exercise, right).passed
    for cut in (lambda t: t.detach(), lambda t: t.detach().numpy(), lambda t: t.tolist()):
        for returns, who in (("", "this exercise needs"), (GRADIENT, "later cells need")):
            asked = replace(exercise, returns=returns)
            verdict = checked(asked, lambda *given, cut=cut: cut(right(*given)))
            assert not verdict.passed and "The numbers are right" in verdict.message, verdict
            assert re.findall("this exercise needs|later cells need", verdict.message) == [who]
    assert "should be" in checked(exercise, lambda *given: 3 * right(*given).detach()).message


def test_a_wrong_declaration_is_refused():
    with pytest.raises(ValueError, match="returns is 'a tensor'"):
        made_up(returns="a tensor")
    with pytest.raises(ValueError, match="at_most names"):
        made_up(at_most=("variance",))


# ------------------------------------------------------------------------- what is said


def test_the_failing_row_is_shown_with_its_own_inputs():
    def third_row_off(x, w):
        result = x @ w
        if len(x) == 9:
            result[2] += 1
        return result

    exercise = made_up()
    case = exercise.cases(0)[-1]
    verdict = checked(exercise, third_row_off)
    x, w = ([float(f"{v:.6g}") for v in row] for row in (case["x"][2], case["w"]))
    assert plain(verdict.message).startswith(f"For x = {x}, w = {w} the answer should be")
    assert "(1 of 9 differ.)" in verdict.message


def of_rows(rows) -> Exercise:
    """y = 1 where x is −∞, else x²; x is a tensor of the given numbers."""
    return made_up(
        draw=lambda rng: [{"x": np.array(rows)}, {"x": np.array(rows[:2])}],
        oracle=lambda x: np.where(np.isfinite(x), x**2, 1.0),
    )


def test_the_row_shown_is_one_that_differs():
    """Where every wrong row has an infinite input, no row is the smallest."""
    exercise = of_rows([3.0, 2.0, -np.inf, -np.inf])
    off = checked(exercise, lambda x: torch.where(x.isfinite(), x**2, 1.001))
    assert plain(off.message).startswith("For x = -inf the answer should be 1; yours is 1.001")
    assert "(2 of 4 differ.)" in off.message


def test_where_values_are_nan_such_a_row_is_shown():
    def off(x):
        return torch.where(x > 3, torch.nan, x**2 + 0.5)

    said = plain(checked(of_rows([1.0, 5.0, 4.0, 2.0]), off).message)
    assert said.startswith("2 of 4 values are NaN or infinite. For x = 4 the answer should be 16")
    assert "yours is nan" in said and "(4 of 4 differ.)" in said


def test_a_mistake_is_named_even_if_it_rounds_differently_in_an_extreme_case():
    exercise = made_up(
        draw=lambda rng: [{"x": rng.normal(size=3)}, {"x": np.full(2, 1e-300)}],
        oracle=lambda x: np.log(np.abs(x)),
        misconceptions=(Misconception("halved", lambda x: np.log(np.abs(x)) / 2, "Halved."),),
    )

    def halved(x):
        return (x**2).log() / 4  # −∞ for 1e-300

    assert checked(exercise, halved).misconception is None
    assert checked(replace(exercise, extreme=1), halved).misconception == "halved"

    def raises(x):
        if (x**2 == 0).any():
            raise ValueError("by hand")
        return halved(x)

    assert "by hand" in checked(exercise, raises).message
    assert checked(replace(exercise, extreme=1), raises).misconception == "halved"
    right_but_there = checked(replace(exercise, extreme=1), lambda x: (x**2).log() / 2)
    assert not right_but_there.passed and right_but_there.misconception is None


def test_an_input_that_is_only_as_long_as_the_result_by_chance_is_not_cut():
    """w has 2 numbers, and in the first case the result has 2 rows."""

    def draw(rng):
        return [{"x": rng.normal(size=(n, 2)), "w": rng.normal(size=2)} for n in (2, 3)]

    exercise = made_up(draw=draw)
    x, w = exercise.cases(0)[0].values()
    row = x[np.abs(x).sum(1).argmin()]
    row, w = ([float(f"{v:.6g}") for v in values] for values in (row, w))
    said = plain(checked(exercise, lambda x, w: x @ w + 1).message)
    assert said.startswith(f"For x = {row}, w = {w} the answer should be")


def test_a_row_is_not_shown_alone_if_the_result_depends_on_the_others():
    def centred(x, w):
        return x @ w - (x @ w).mean()

    exercise = made_up(oracle=centred)
    said = plain(checked(exercise, lambda x, w: centred(x, w) + (len(x) > 1)).message)
    x = [[float(f"{v:.6g}") for v in row] for row in exercise.cases(0)[1]["x"]]
    assert f"x = {x}" in said and "entry [" in said


def test_two_numbers_are_printed_until_they_differ():
    said = checked(made_up(rtol=1e-12, atol=0.0), lambda x, w: (x @ w) * (1 + 1e-9)).message
    right, yours = re.search(r"should be (\S+); yours is (\S+)\. ?", said + " ").groups()
    assert right != yours and float(right) == pytest.approx(float(yours), rel=1e-8)


def test_results_have_names_and_limits_are_called_so():
    exercise = made_up(
        oracle=lambda x, w: (x @ w, np.asarray(2.0)),
        results=("mean", "variance of your estimate"),
        at_most=("variance of your estimate",),
    )
    assert checked(exercise, lambda x, w: (x @ w, 1.5)).passed
    said = checked(exercise, lambda x, w: (x @ w, 7421.51)).message
    assert said.startswith("Variance of your estimate: For")
    assert "yours is 7421.51; allowed is 2 at most" in said
    assert checked(exercise, lambda x, w: (x @ w + 1, 1.5)).message.startswith("Mean: For")
    alone = made_up(
        oracle=lambda x, w: np.asarray(2.0), results=("variance",), at_most=("variance",)
    )
    assert checked(alone, lambda x, w: 1.0).passed
    assert "at most" in checked(alone, lambda x, w: 3.0).message


def test_a_message_is_no_wall_of_numbers():
    exercise = made_up(
        draw=lambda rng: [{name: rng.normal(size=(2, 5)) for name in "abcdefgh"}],
        oracle=lambda **given: sum(table.sum() for table in given.values()),
    )
    said = checked(exercise, lambda *given: 0.0).message
    assert len(said) < 500 and "a, a tensor of shape (2, 5)" in said
    in_numpy = checked(replace(exercise, call="arrays"), lambda *given: 0.0).message
    assert "a, an array of shape (2, 5)" in in_numpy


def test_a_slow_answer_is_told_from_one_that_never_ended():
    def slow(x, w):
        while len(x) > 3:
            pass
        return x @ w

    def never(x, w):
        while True:
            pass

    exercise = made_up(seconds=0.1)
    slow, never = checked(exercise, slow).message, checked(exercise, never).message
    assert "still running after 0.1 s" in slow and "still running after 0.1 s" in never
    assert "in time for the 2 inputs before, so it is probably too slow" in slow
    assert "Either it is too slow" in never and "never ends" in never
    assert "one tensor operation" in slow and "one tensor operation" in never


def test_the_word_that_is_wrong_is_said_with_its_input():
    exercise = made_up(oracle=lambda x, w: (np.asarray(len(x)), "kl"), results=("n", "term"))
    said = checked(exercise, lambda x, w: [len(x), "kl" if len(x) < 4 else "bound"]).message
    assert said.startswith("Term: For") and "'bound' is not the right word" in said


# ------------------------------------------------------------------------- how it is shown


HINTED = made_up(
    misconceptions=(
        Misconception(
            "twice", lambda x, w: 2 * x @ w, "The *other* cells, `a * b` <b>, 2 * x * y."
        ),
    )
)


def test_marks_of_emphasis_and_code_are_rendered_or_left_out():
    verdict = checked(HINTED, lambda x, w: 2 * x @ w)
    assert "The other cells, a * b <b>, 2 * x * y." in str(verdict)
    page = box.html_of(verdict)
    assert "The <em>other</em> cells, <code>a * b</code> &lt;b&gt;, 2 * x * y." in page


def test_lines_break_between_words():
    text = box.as_text(checked(find("05.1"), solution_of("05.1")))
    assert all(len(line) <= 88 for line in text.splitlines())
    words = "It is longer than a line by far, " * 10
    text = box.as_text(checked(made_up(verified=words), lambda x, w: x @ w))
    assert len(text.splitlines()) > 4 and words.split() == text.split("\n", 1)[1].split()[:-8]


def by_row(axes, case, expected, got):
    axes.plot(expected, label="right")
    axes.plot(got, label="yours")


def test_a_box_has_the_sentence_then_the_picture_then_what_is_next():
    exercise = made_up(
        picture=by_row,
        draw=lambda rng: [{"x": rng.normal(size=(5, 2)), "w": np.full(2, 0.5)}],
    )
    page = box.html_of(checked(exercise, lambda x, w: x @ w + 1))
    parts = ["✘ 05.90 Made up", "should be", "<img ", "Next: change your answer"]
    assert sorted(parts, key=page.index) == parts
    assert 'alt="A chart of the right answer and of yours: Made up, w = 0.5.' in page
    figure = box.picture_of(checked(exercise, lambda x, w: x @ w + 1))
    assert figure.axes[0].get_title() == "w = 0.5"


def test_the_sentence_on_what_is_next_ends_once():
    right = {name: Verdict(find(name), passed=True) for name in ("09.2", "09.3")}
    assert "Next exercise: 09.3 A bound that does not look.<" in box.html_of(right["09.2"])
    assert "Next exercise: 09.4 Spot the error: which entries?<" in box.html_of(right["09.3"])


def test_colour_is_not_the_only_sign_of_a_state():
    def undone(x, w):
        raise NotImplementedError

    answers = (lambda x, w: x @ w, lambda x, w: 0, undone)
    pages = [box.html_of(checked(made_up(), answer)) for answer in answers]
    assert [re.search("<b>(.)", page)[1] for page in pages] == ["✔", "✘", "○"]
    assert len({re.search("border: 1px solid (#......)", page)[1] for page in pages}) == 3


def test_who_has_passed_sees_the_model_solution_where_the_lesson_is(monkeypatch, tmp_path):
    name = NAMES[0]
    passed, failed = (checked(find(name), f) for f in (solution_of(name), lambda *_: 0.0))
    assert passed.passed and not failed.passed
    assert "<summary>Model solution</summary>" in box.html_of(passed)
    assert "SOLUTION" not in box.html_of(passed)
    assert "Model solution" not in box.html_of(failed)
    monkeypatch.setattr(box, "COURSE", tmp_path)
    assert "Model solution" not in box.html_of(passed)


@pytest.mark.parametrize("name", NAMES)
def test_every_model_solution_is_found(name):
    solution = box.solution_of(name)
    assert solution and "SOLUTION" not in solution
    compile(solution, name, "exec")


class Attended(NotebookClient):
    """As a reader's front end, it says that somebody could be asked."""

    async def async_start_new_kernel_client(self):
        client = await super().async_start_new_kernel_client()
        client.allow_stdin = True
        return client


UNDONE = "def answer(*_):\n    raise NotImplementedError('Exercise')"


@pytest.mark.parametrize("client", [Attended, NotebookClient])
def test_run_all_goes_on_past_what_is_undone_if_somebody_is_there(client):
    cells = [
        "import torch, numpy as np\nimport vaelab\nfrom scipy import stats",
        f"{UNDONE}\nvaelab.check('02.1', answer)",
        "def answer(*_):\n    return 7.0\nvaelab.check('02.1', answer)",
        box.solution_of("02.2"),
        "vaelab.check('02.2', kl_to_prior)",
        "vaelab.check('02.2', lambda mean, std: kl_to_prior(mean, std) + 0)",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client(book, timeout=120, kernel_name="python3", allow_errors=True).execute()
    undone, wrong, _, same, other = (cell.outputs for cell in book.cells[1:])
    attended = client is Attended
    assert [o.output_type for o in undone] == ["display_data" if attended else "error"]
    assert [o.output_type for o in wrong] == ["display_data"] * attended + ["error"]
    assert wrong[-1].ename == "CheckFailed"
    assert len(wrong[-1].traceback) == 1 or not attended
    assert wrong[-1].traceback[0] == "✘ 02.1 A prior for the negative binomial"
    for [output] in (same, other):
        assert (
            output.data["text/plain"].startswith("✔ 02.2") and "✔ 02.2" in output.data["text/html"]
        )
    assert "Model solution" not in same[0].data["text/html"]
    assert "Model solution" in other[0].data["text/html"]


def test_without_a_notebook_everything_is_text(capsys):
    vaelab.check("02.2", solution_of("02.2"))
    assert capsys.readouterr().out.startswith("✔ 02.2")
    exec(UNDONE, here := {})
    with pytest.raises(CheckFailed, match=r"○ 02\.2"):
        vaelab.check("02.2", here["answer"])


def test_no_outcome_is_judged_by_a_type_that_nobody_saw():
    """Tests and older records have no types: their numbers are judged alone."""
    exercise = made_up(returns="tensor")
    cases = exercise.cases(0)
    outcomes = [Outcome("value", exercise.oracle(**case)) for case in cases]
    assert exercise.judge(cases, outcomes).passed
