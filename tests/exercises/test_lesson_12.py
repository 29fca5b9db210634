"""Lesson 12: right answers that learners write, wrong ones with what they are told, the map, and
the functions that the evidence has in common with the lesson."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special

from vaelab.teaching.exercises.core import plain
from vaelab.teaching.exercises.lesson_12 import WHICH, map_of

from .answers import verdict_on

COURSE = Path(__file__).parents[2] / "course"
NAMES = ("x", "library", "z1", "c", "z2")


# ------------------------------------------------------------------------------ right answers


def joint_and_q(tables):
    tables = [torch.as_tensor(t) for t in tables]
    return sum(tables[:5]), tables[5] + tables[6], tables[7], tables[8]


def labelled_by_loop(c, *tables):
    p, q12, _, q2 = joint_and_q(tables)
    total = 0.0
    n_l, n_1, _, n_2 = torch.broadcast_shapes(p.shape, q2.shape)
    p, q = torch.broadcast_tensors(p, q12 + q2)
    for i in range(n_l):
        for j in range(n_1):
            for k in range(n_2):
                total += float(q[i, j, c, k].exp() * (p[i, j, c, k] - q[i, j, c, k]))
    return total


def labelled_one_type_first(c, px, pl, p1, pc, p2, q1, ql, qc, q2):
    p1, q2 = p1[:, :, c : c + 1], q2[:, :, c : c + 1]
    q = q1 + ql + q2
    return pc[0, 0, c, 0] + (q.exp() * (px + pl + p1 + p2 - q)).sum()


def labelled_in_arrays(c, *tables):
    px, pl, p1, pc, p2, q1, ql, _, q2 = (np.asarray(t) for t in tables)
    q = q1 + ql + q2
    return (np.exp(q) * (px + pl + p1 + pc + p2 - q)).sum((0, 1, 3))[c]


def labelled_by_one_hot(c, *tables):
    p, q12, _, q2 = joint_and_q(tables)
    q = q12 + q2
    chosen = torch.nn.functional.one_hot(torch.tensor(c), q2.shape[2])[:, None]
    return (chosen * q.exp() * (p - q)).sum()


def labelled_by_terms(c, px, pl, p1, pc, p2, q1, ql, qc, q2):
    e1, el, e2 = q1.exp(), ql.exp(), q2[:, :, c].exp()
    return (
        (e1 * el * px).sum() + (el * (pl - ql)).sum() - (e1 * q1).sum() + pc[0, 0, c, 0]
        + (e1[:, :, 0] * e2 * (p1[:, :, c] + p2[:, :, 0] - q2[:, :, c])).sum()
    )  # fmt: skip


def hidden_in_arrays(*tables):
    px, pl, p1, pc, p2, q1, ql, qc, q2 = (np.asarray(t) for t in tables)
    q = q1 + ql + qc + q2
    return (np.exp(q) * (px + pl + p1 + pc + p2 - q)).sum()


def hidden_by_identity(*tables):
    p, q12, qc, q2 = joint_and_q(tables)
    q = q12 + q2
    value = (q2 + tables[6]).exp() * (p - q)
    value = value.sum((0, 3))
    weight = tables[5][0, :, :, 0].exp() * qc[0, :, :, 0].exp()
    return (weight * (value - qc[0, :, :, 0])).sum()


def hidden_by_types(*tables):
    p, q12, qc, q2 = joint_and_q(tables)
    q = q12 + q2 + qc
    return sum((q.exp() * (p - q))[:, :, c].sum() for c in range(q2.shape[2]))


def hidden_by_evidence(*tables):
    p, q12, qc, q2 = joint_and_q(tables)
    q, evidence = q12 + q2 + qc, p.logsumexp((0, 1, 2, 3))
    return evidence - (q.exp() * (q - (p - evidence))).sum()


def hidden_as_mean(*tables):
    p, q12, qc, q2 = joint_and_q(tables)
    q, p = torch.broadcast_tensors(q12 + q2 + qc, p)
    return np.average((p - q).numpy().ravel(), weights=q.exp().numpy().ravel())


def best_by_logsumexp(value, log_q_z1):
    top = torch.logsumexp(value, 1, keepdim=True)
    return value - top, torch.dot(log_q_z1.exp(), top[:, 0])


def best_in_lists(value, log_q_z1):
    log_q = special.log_softmax(value.numpy(), axis=1)
    u = (np.exp(log_q_z1.numpy()) * special.logsumexp(value.numpy(), axis=1)).sum()
    return [log_q.tolist(), float(u)]


def best_by_entropy(value, log_q_z1):
    q = torch.softmax(value, -1)
    inside = (q * value).sum(-1) + torch.special.entr(q).sum(-1)
    return value.log_softmax(-1), (log_q_z1.exp() * inside).sum()


def terms_by_where(w, log_q_z1, log_p_z1, mean, variance, log_p_c):
    log_w = torch.where(w > 0, w, torch.ones_like(w)).log()
    kl = 0.5 * (mean.square() + variance - 1 - torch.log(variance)).sum(2)
    return (
        (w * (log_p_z1 - log_q_z1[:, None])).sum(1),
        -(w * kl).sum(1),
        (w * (log_p_c - log_w)).sum(1),
    )


def terms_in_arrays(w, log_q_z1, log_p_z1, mean, variance, log_p_c):
    w, q1, p1, m, v, pc = (np.asarray(a) for a in (w, log_q_z1, log_p_z1, mean, variance, log_p_c))
    kl = (m**2 + v - 1 - np.log(v)).sum(-1) / 2
    return (w * p1).sum(1) - q1, -(w * kl).sum(1), -(special.xlogy(w, w) - w * pc).sum(1)


def terms_nan_to_num(w, log_q_z1, log_p_z1, mean, variance, log_p_c):
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, variance.sqrt()), torch.distributions.Normal(0.0, 1.0)
    )
    kl_c = torch.nan_to_num(w * w.log()).sum(-1) - w @ log_p_c
    return [w.mul(log_p_z1).sum(-1) - log_q_z1, -(w * kl.sum(-1)).sum(-1), -kl_c]


def terms_by_loop(w, log_q_z1, log_p_z1, mean, variance, log_p_c):
    found = []
    for n in range(len(w)):
        z1, z2, c = -float(log_q_z1[n]), 0.0, 0.0
        for k in range(w.shape[1]):
            if weight := float(w[n, k]):
                m, v = mean[n, k].double().numpy(), variance[n, k].double().numpy()
                z1 += weight * float(log_p_z1[n, k])
                z2 -= weight * float((m**2 + v - 1 - np.log(v)).sum() / 2)
                c += weight * (float(log_p_c[k]) - np.log(weight))
        found.append((z1, z2, c))
    return tuple(np.array(found).T)


def line_by_match(line):
    match line:
        case 1:
            return 0, "reconstruction"
        case 2:
            return True, "kl_z2"
        case 3 | 4:
            return False, "log_p_z1" if line == 3 else "log_q_z1"
        case 5:
            return 1.0, "kl_c"
        case 6 | 7:
            return 1, "kl_library"
        case 8:
            return [0, "outside"]
        case 9 | 10:
            return 0, "unknown"
    return 0, "log_p_c"


def twice_in_arrays(px, pz, qz):
    px, pz, qz = (np.asarray(a) for a in (px, pz, qz))
    return special.logsumexp(px + pz, axis=1), special.logsumexp(px + qz, axis=1)


def twice_by_matmul(px, pz, qz):
    top = px.amax(1, keepdim=True)
    p = (px - top).exp()
    return [top[:, 0] + (p @ pz.exp()).log(), top[:, 0] + (p * qz.exp()).sum(1).log()]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("12.1", labelled_by_loop),
        ("12.1", labelled_one_type_first),
        ("12.1", labelled_in_arrays),
        ("12.1", labelled_by_one_hot),
        ("12.1", labelled_by_terms),
        ("12.2", hidden_in_arrays),
        ("12.2", hidden_by_identity),
        ("12.2", hidden_by_types),
        ("12.2", hidden_by_evidence),
        ("12.2", hidden_as_mean),
        ("12.3", best_by_logsumexp),
        ("12.3", best_in_lists),
        ("12.3", best_by_entropy),
        ("12.4", terms_by_where),
        ("12.4", terms_in_arrays),
        ("12.4", terms_nan_to_num),
        ("12.4", terms_by_loop),
        ("12.5", line_by_match),
        ("12.5", lambda line: list(WHICH[line])),
        ("12.6", twice_in_arrays),
        ("12.6", twice_by_matmul),
    ],
)
def test_a_right_answer_passes(name, answer):
    verdict = verdict_on(name, answer)
    assert verdict.passed, str(verdict)


# ------------------------------------------------------------------------------ wrong answers


def labelled_with_q(*names):
    """E of log p − log q under the product of these factors of q, at the type that was seen."""

    def answer(c, *tables):
        q = dict(zip(("z1", "library", "c", "z2"), tables[5:], strict=True))
        log_q = sum(q[name] for name in names)
        return (log_q.exp() * (sum(tables[:5]) - log_q)).sum((0, 1, 3))[c]

    return answer


def labelled_without(place):
    """log p without the table at this place."""

    def answer(c, *tables):
        _, q12, _, q2 = joint_and_q(tables)
        p = sum(t for i, t in enumerate(tables[:5]) if i != place)
        return ((q12 + q2).exp() * (p - q12 - q2)).sum((0, 1, 3))[c]

    return answer


def labelled_averaged(c, *tables):
    p, q12, _, q2 = joint_and_q(tables)
    return ((q12 + q2).exp() * (p - q12 - q2)).mean((0, 1, 3))[c]


def hidden_without(place):
    def answer(*tables):
        _, q12, qc, q2 = joint_and_q(tables)
        p, q = sum(t for i, t in enumerate(tables[:5]) if i != place), q12 + qc + q2
        return (q.exp() * (p - q)).sum()

    return answer


def hidden_with_weights(place):
    """The weights of the types from this table."""

    def answer(*tables):
        p, q12, qc, q2 = joint_and_q(tables)
        return ((q12 + q2 + tables[place]).exp() * (p - q12 - q2 - qc)).sum()

    return answer


def labelled_weighted(c, *tables):
    p, q12, _, q2 = joint_and_q(tables)
    return ((q12 + q2).exp() * (p - tables[5] - q2)).sum((0, 1, 3))[c]


def all_types(c, *tables):
    p, q12, _, q2 = joint_and_q(tables)
    q = q12 + q2
    return (q.exp() * (p - q)).sum()


def terms_per_row(w, log_q_z1, log_p_z1, mean, variance, log_p_c):
    right = terms_by_where(w, log_q_z1, log_p_z1, mean, variance, log_p_c)
    return *right[:2], w @ log_p_c - torch.nan_to_num((w * w.log()).sum(-1))


def line_but(**changes):
    changed = {int(key[1:]): value for key, value in changes.items()}
    return lambda line: (WHICH | changed)[line]


@pytest.mark.parametrize(
    ("name", "answer", "says"),
    [
        ("12.1", labelled_with_q("z1", "library", "c", "z2"), "has the classifier"),
        ("12.1", labelled_weighted, "its logarithm is not subtracted"),
        ("12.1", all_types, "sum of L over all types"),
        ("12.1", labelled_without(1), "no factor of ℓ"),
        ("12.1", labelled_without(2), "no factor of z1"),
        ("12.1", labelled_without(4), "no factor of z2"),
        ("12.1", labelled_averaged, "as .mean() does"),
        (
            "12.1",
            lambda c, *t: (joint_and_q(t)[0] - t[5] - t[6] - t[8]).sum((0, 1, 3))[c],
            "each with weight 1",
        ),
        ("12.1", lambda c, *t: labelled_by_one_hot(c, *t)[None], "should be a single number"),
        ("12.2", hidden_without(0), "no factor of x"),
        ("12.2", hidden_without(4), "no factor of z2"),
        ("12.2", hidden_with_weights(3), "weight the types by p(c)"),
        ("12.2", lambda *t: all_types(0, *t) / t[3].shape[2], "same weight for each type"),
        ("12.1", lambda c, *t: labelled_by_one_hot((c - 1) % t[3].shape[2], *t), "counts from 0"),
        ("12.1", lambda c, *t: -labelled_by_one_hot(c, *t), "a loss"),
        ("12.1", lambda c, *t: labelled_by_one_hot(c, *t) - t[3][0, 0, c, 0], "log p(x | c)"),
        ("12.2", lambda *t: -hidden_in_arrays(*t), "a loss"),
        (
            "12.2",
            lambda *t: torch.stack(
                [labelled_by_one_hot(c, *t) for c in range(t[3].shape[2])]
            ).logsumexp(0),
            "a valid bound on log p(x), but not U",
        ),
        (
            "12.2",
            lambda *t: all_types(0, *t) - (t[5].exp() * t[7]).sum(),
            "do not weight the types",
        ),
        ("12.3", lambda v, q: (v.softmax(-1), best_by_logsumexp(v, q)[1]), "holds probabilities"),
        ("12.3", lambda v, q: (v, best_by_logsumexp(v, q)[1]), "do not sum to 1"),
        ("12.4", terms_per_row, "per type, before the sum over types"),
        ("12.4", lambda *a: [-t for t in terms_by_where(*a)], ""),
        ("12.5", line_but(l3=(0, "kl_z1")), "You call line 3 'kl_z1'"),
        ("12.5", line_but(l4=(0, "kl_z1")), "You call line 4 'kl_z1'"),
        ("12.5", line_but(l3=(0, "log_q_z1"), l4=(0, "log_p_z1")), "exchanged"),
        ("12.5", line_but(l9=(0, "outside")), "a reason for line 9"),
        ("12.5", line_but(l11=(0, "kl_c")), "about a cell with a label"),
        ("12.5", line_but(l11=(0, "unknown")), "a term that is not there"),
        ("12.5", line_but(l6=(1, "kl_z2")), "line"),
        ("12.6", lambda *a: twice_in_arrays(*a)[::-1], "wrong order"),
        ("12.6", lambda px, pz, qz: twice_in_arrays(px - pz + qz, pz, qz), ""),
    ],
)
def test_a_wrong_answer_is_named(name, answer, says):
    verdict = verdict_on(name, answer)
    assert not verdict.passed
    assert says in plain(str(verdict)), str(verdict)


# ------------------------------------------------------------------------------------- the map


def test_the_map_appears_for_who_has_passed():
    shown = map_of(line_by_match).data
    for line in WHICH:
        assert f">{line}<" in shown or f" {line}<" in shown or f">{line} " in shown
    assert "absent" in shown


@pytest.mark.parametrize("line", WHICH)
def test_the_map_gives_nothing_away(line):
    hidden = map_of(line_but(**{f"l{line}": (0, "kl_z1")})).data
    assert "table" not in hidden and "absent" not in hidden
    assert "table" not in map_of(lambda line: None).data


# ------------------------------------------------------------------------ lesson and evidence


def definitions(path):
    tree = ast.parse("".join(
        line for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
        if not line.startswith("%")
    ))  # fmt: skip
    return {n.name: ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}


@pytest.mark.parametrize("name", ["terms", "loss", "train", "own_guess"])
def test_the_evidence_trains_what_the_lesson_shows(name):
    lesson = definitions(COURSE / "12_elbo_challenge.py")
    evidence = definitions(COURSE / "evidence/12_elbo_challenge.py")
    assert lesson[name] == evidence[name]
