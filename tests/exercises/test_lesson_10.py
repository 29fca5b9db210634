"""Lesson 10: right answers that learners write, and wrong ones, each with what it is told."""

from pathlib import Path

import jupytext
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special, stats

import vaelab
from vaelab import distributions
from vaelab.reparametrization import gaussian, seeded
from vaelab.teaching.exercises import SEED

from .answers import verdict_on

# ------------------------------------------------------------------------------ right answers


def dice_entry_by_entry(u_w, u_y, u_h, library, rho, theta, pi):
    found = []
    for uw, uy, uh, size, r, t, p in zip(u_w, u_y, u_h, library, rho, theta, pi, strict=True):
        w = stats.gamma(t, scale=r / t).ppf(uw)
        found.append(0.0 if uh < p else float(stats.poisson(size * w).ppf(uy)))
    return found


def dice_with_size_in_the_gamma(u_w, u_y, u_h, library, rho, theta, pi):
    y = stats.poisson.ppf(u_y, stats.gamma.ppf(u_w, a=theta, scale=library * rho / theta))
    return torch.tensor(y * (u_h >= pi))


def dice_in_single_precision(*case):
    return dice_with_size_in_the_gamma(*case).float()


def prior_by_groups(library, batch, n_batches):
    groups = pd.Series(np.log(library)).groupby(batch)
    return groups.mean(), groups.var(ddof=0)


def prior_as_lists(library, batch, n_batches):
    logs = [np.log(library)[batch == b] for b in range(n_batches)]
    return [float(a.mean()) for a in logs], [float((a**2).mean() - a.mean() ** 2) for a in logs]


def prior_stacked(library, batch, n_batches):
    return np.stack([np.asarray(v) for v in prior_by_groups(library, batch, n_batches)])


def kl_of_log_normals(m, v, m0, v0):
    q, p = (torch.distributions.LogNormal(a, b.sqrt()) for a, b in ((m, v), (m0, v0)))
    return torch.distributions.kl_divergence(q, p)


def kl_in_arrays(*case):
    m, v, m0, v0 = map(np.asarray, case)
    return 0.5 * (v / v0 + (m - m0) ** 2 / v0 - 1 - np.log(v / v0))


def kl_as_a_list(*case):
    return kl_in_arrays(*case).tolist()


def mixing_by_cdist(latent, batch, cell_type, k):
    z = torch.as_tensor(latent)
    distance = torch.cdist(z, z)
    distance[torch.as_tensor(cell_type[:, None] != cell_type)] = torch.inf
    distance.fill_diagonal_(torch.inf)
    same = (cell_type[:, None] == cell_type).sum(1)
    rows = np.flatnonzero(same > k)
    near = distance.topk(k, largest=False).indices.numpy()
    found = (batch[near] != batch[:, None])[rows].mean()
    chance = [
        ((cell_type == cell_type[i]) & (batch != batch[i])).sum() / (same[i] - 1) for i in rows
    ]
    return float(found / np.mean(chance))


def mixing_in_single_precision(*case):
    return torch.tensor(mixing_by_cdist(*case), dtype=torch.float32)


def shares_in_arrays(logits):
    return special.softmax(np.asarray(logits), axis=-1).mean((0, 1))


def shares_by_flattening(logits):
    return torch.as_tensor(logits).flatten(0, 1).softmax(2).mean(0).float()


RIGHT = [
    ("10.1", dice_entry_by_entry),
    ("10.1", dice_with_size_in_the_gamma),
    ("10.1", dice_in_single_precision),
    ("10.2", prior_by_groups),
    ("10.2", prior_as_lists),
    ("10.2", prior_stacked),
    ("10.3", kl_of_log_normals),
    ("10.3", kl_in_arrays),
    ("10.3", kl_as_a_list),
    ("10.4", mixing_by_cdist),
    ("10.4", mixing_in_single_precision),
    ("10.5", shares_in_arrays),
    ("10.5", shares_by_flattening),
]


@pytest.mark.parametrize(
    ("name", "answer"), RIGHT, ids=lambda value: getattr(value, "__name__", value)
)
@pytest.mark.parametrize("seed", [SEED, 1])
def test_right_answers_pass(name, answer, seed):
    verdict = verdict_on(name, answer, seed)
    assert verdict.passed, str(verdict)


def run_cells(names, *starts):
    """Run the lesson's cells with these first words; ``names`` is what they find."""
    lesson = jupytext.read(Path(__file__).parents[2] / "course" / "10_scvi.py")
    for start in starts:
        (cell,) = (cell for cell in lesson.cells if cell.source.startswith(start))
        exec(cell.source, names)


@pytest.mark.parametrize("form", [list, torch.tensor, pd.Series, np.float32])
def test_the_cell_after_10_1_takes_a_right_answer_in_any_form(form, capsys):
    def count(u_w, u_y, u_h, library, rho, theta, pi):
        y = stats.poisson.ppf(u_y, library * stats.gamma.ppf(u_w, a=theta, scale=rho / theta))
        return form(np.where(u_h < pi, 0, y))

    names = {"count": count, "np": np, "torch": torch, "stats": stats}
    names |= {"distributions": distributions}
    run_cells(names, "library, ρ, θ, π = 2000.0", "entries = ")
    assert capsys.readouterr().out == "three dice draw from the ZINB: True\n"


@pytest.mark.parametrize("kl_library", [answer for name, answer in RIGHT if name == "10.3"])
def test_the_cell_after_10_3_takes_a_right_answer_in_any_form(kl_library):
    model = vaelab.SCVI(6, n_batches=2, n_latent=3, library="latent", likelihood="zinb").eval()
    x = np.random.default_rng(0).poisson(2, (20, 6)) + 1
    cells = vaelab.Cells.from_array(x, batch=["one", "other"] * 10)
    names = {"kl_library": kl_library, "models": {"full": model}, "told": cells, "np": np}
    names |= {"torch": torch, "distributions": distributions}
    run_cells(names | {"gaussian": gaussian, "seeded": seeded}, "def by_hand(model, part)")


# ------------------------------------------------------------------------------ wrong answers


def dice_with_scale_rho(u_w, u_y, u_h, library, rho, theta, pi):
    y = stats.poisson.ppf(u_y, library * stats.gamma.ppf(u_w, a=theta, scale=rho))
    return np.where(u_h < pi, 0, y)


def dice_without_the_first(u_w, u_y, u_h, library, rho, theta, pi):
    return np.where(u_h < pi, 0, stats.poisson.ppf(u_y, library * rho))


def prior_from(values, then=lambda moment: moment):
    def prior(library, batch, n_batches):
        groups = pd.Series(values(library)).groupby(batch)
        return then(groups.mean()), then(groups.var(ddof=0))

    return prior


def kl_without_halved_logarithms(m, v, m0, v0):
    return 0.5 * ((v + (m - m0) ** 2) / v0 - 1) + v0.log() - v.log()


def kl_without_minus_a_half(m, v, m0, v0):
    return 0.5 * ((v + (m - m0) ** 2) / v0 + v0.log() - v.log())


def mixing_where(counts, batches=lambda batch: batch):
    def mixing(latent, batch, cell_type, k):
        batch, found, chance = batches(batch), [], []
        for name in np.unique(cell_type):
            own = np.flatnonzero(cell_type == name)
            if counts(len(own), k):
                distance = np.linalg.norm(latent[own][:, None] - latent[own], axis=2)
                np.fill_diagonal(distance, np.inf)
                near = distance.argsort(1)[:, : min(k, len(own) - 1)]
                other = batch[own][:, None] != batch[own]
                found.append(np.take_along_axis(other, near, 1).mean(1))
                chance.append(other.sum(1) / (len(own) - 1))
        return np.concatenate(found).mean() / np.concatenate(chance).mean()

    return mixing


def mixing_type_by_type(latent, batch, cell_type, k):
    names, n = np.unique(cell_type, return_counts=True)
    own = [cell_type == name for name in names[n > k]]
    return np.mean([mixing_by_cdist(latent[o], batch[o], cell_type[o], k) for o in own])


def mixing_without_types(latent, batch, cell_type, k):
    return mixing_by_cdist(latent, batch, np.full(len(batch), "cell"), k)


def shares_of_mean_logits(over):
    return lambda logits: torch.as_tensor(logits).mean(over).softmax(-1).mean(0)


WRONG = [
    ("10.1", dice_with_scale_rho, "the mean of your w is θρ"),
    ("10.1", dice_without_the_first, "first die does not occur"),
    ("10.2", prior_from(np.asarray), "of ℓ itself"),
    ("10.2", prior_from(np.asarray, np.log), "a mean and of a variance"),
    ("10.3", kl_without_halved_logarithms, "what is its logarithm"),
    ("10.3", kl_without_minus_a_half, "a half too large"),
    ("10.4", mixing_where(lambda n, k: n >= k), "exactly k cells"),
    ("10.4", mixing_where(lambda n, k: n > k, lambda b: b == b.min()), "Here are three"),
    ("10.4", mixing_where(lambda n, k: n > 1), "Leave such types out"),
    ("10.4", mixing_type_by_type, "a rare type counts as much"),
    ("10.4", mixing_without_types, "You don't use the types"),
    ("10.5", shares_of_mean_logits(0), "over draws you still average logits"),
    ("10.5", shares_of_mean_logits(1), "over batches you still average logits"),
]


@pytest.mark.parametrize(("name", "answer", "said"), WRONG, ids=[said for _, _, said in WRONG])
@pytest.mark.parametrize("seed", [SEED, 1])
def test_wrong_answers_are_told_what_is_wrong(name, answer, said, seed):
    verdict = verdict_on(name, answer, seed)
    assert not verdict.passed and said in str(verdict), str(verdict)


def test_the_right_mixing_of_this_file_passes():
    assert verdict_on("10.4", mixing_where(lambda n, k: n > k)).passed
