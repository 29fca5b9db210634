"""Right and wrong answers to the exercises of lesson 04, as a learner may write them.

Each answer is called through the lesson's own check cell.
"""

from copy import deepcopy
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import jupytext
import numpy as np
import pytest
import torch
from torch.distributions import Independent, Multinomial, Normal, kl_divergence
from torch.nn import functional

from vaelab.teaching.exercises import SEED, find

LESSON = Path(__file__).parents[2] / "course" / "04_vae.py"


@cache
def check_cell(name: str) -> str:
    """The check cell, with the cell of code before it if that is not the answer's."""
    before = None
    for cell in jupytext.read(LESSON).cells:
        if cell.metadata.get("nbgrader", {}).get("grade_id") == f"{name.replace('.', '-')}-check":
            return cell.source if before is None else f"{before.source}\n\n\n{cell.source}"
        before = None if "nbgrader" in cell.metadata or cell.cell_type != "code" else cell
    raise AssertionError(f"no check of {name}")


def verdict_on(name: str, answer, seed: int = SEED):
    """The verdict on what the check cell hands to the check; float64, as in the lesson."""
    handed = []
    check = SimpleNamespace(check=lambda _, answer: handed.append(answer))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        exec(check_cell(name), {"torch": torch, "np": np, "vaelab": check, ANSWERED[name]: answer})
        exercise = find(name)
        cases = exercise.cases(seed)
        return exercise.judge(cases, exercise.outcomes(handed[0], cases))
    finally:
        torch.set_default_dtype(before)
        torch.set_grad_enabled(True)


ANSWERED = {
    "04.1": "terms",
    "04.2": "embed",
    "04.3": "implied_sigma",
    "04.4": "linear_rate",
    "04.5": "log_multinomial",
    "04.6": "new_cells",
}


# ------------------------------------------------------------------------------ 04.1: two terms


def terms(encode, decode, x, noise, s_power=1, over_genes="sum", over_latent="sum", log=2.0):
    m, s = encode(x)
    log_px = getattr(decode(m + s**s_power * noise).log_prob(x), over_genes)(-1)
    return log_px, getattr(0.5 * (m**2 + s**2 - 1 - log * torch.log(s)), over_latent)(-1)


def changed(*case, factors):
    return tuple(f * v for f, v in zip(factors, terms(*case), strict=True))


def terms_by_torch(encode, decode, x, noise):
    q = Normal(*encode(x))
    p = Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean))
    z = q.mean + q.stddev * noise
    return decode(z).log_prob(x).sum(1), kl_divergence(q, p).sum(1)


def terms_by_hand(encode, decode, x, noise):
    m, s = encode(x)
    p = decode(torch.addcmul(m, s, noise))
    squares = ((x - p.mean) / p.stddev) ** 2 + 2 * p.stddev.log() + np.log(2 * np.pi)
    return -squares.sum(-1) / 2, -0.5 * (1 + (s**2).log() - m**2 - s**2).sum(-1)


def terms_cell_by_cell(encode, decode, x, noise):
    m, s = encode(x)
    p = decode(m + s * noise)
    log_px = torch.stack([row.sum() for row in p.log_prob(x)])
    return [log_px, torch.stack([torch.sum(k) for k in 0.5 * (m * m + s * s) - 0.5 - s.log()])]


def terms_as_one_tensor(*inputs):
    return torch.stack(terms(*inputs))


def terms_of_independent_genes(encode, decode, x, noise):
    m, s = encode(x)
    kl = terms(lambda _: (m, s), decode, x, noise)[1]
    return Independent(decode(m + noise * s), 1).log_prob(x), kl


def detached(encode, decode, x, noise):
    m, s = encode(x)
    z = (m + s * noise).detach()
    return decode(z).log_prob(x).sum(-1), terms(lambda _: (m, s), decode, x, noise)[1]


@torch.no_grad()
def without_gradient(*inputs):
    return terms(*inputs)


def of_a_new_draw(encode, decode, x, noise):
    return terms(encode, decode, x, torch.randn_like(noise))


def encoded_twice(encode, decode, x, noise):
    z = encode(x)[0] + encode(x)[1] * noise
    m, s = encode(x)
    return decode(z).log_prob(x).sum(-1), 0.5 * (m**2 + s**2 - 1 - 2 * s.log()).sum(-1)


def with_a_fixed_sigma(encode, decode, x, noise):
    def decode_fixed(z):
        p = decode(z)
        return Normal(p.mean, p.stddev.detach())

    return terms(encode, decode_fixed, x, noise)


def with_the_wrong_kl(encode, decode, x, noise):
    m, s = encode(x)
    return terms(lambda _: (m, s), decode, x, noise)[0], 0.5 * (
        m**2 + s - 1 - 2 * torch.log(s)
    ).sum(-1)


def without_sums(encode, decode, x, noise):
    m, s = encode(x)
    return decode(m + s * noise).log_prob(x), 0.5 * (m**2 + s**2 - 1 - 2 * torch.log(s))


# ------------------------------------------------------------------------------ 04.2: embedding


def embed(encoder, x, batch_size, inside=True, after=None, half=0, with_gradient=False):
    mode = encoder.training
    encoder.train(mode and not inside)
    with torch.set_grad_enabled(with_gradient):
        parts = [encoder(part) for part in x.split(batch_size)]
    encoder.train(mode if after is None else after)
    found = torch.cat(parts)
    return found if half is None else found.chunk(2, dim=-1)[half]


def only_the_attribute(encoder, x, batch_size):
    mode = encoder.training
    encoder.eval()
    means = embed(encoder, x, batch_size)
    encoder.training = mode
    return means


def without_gradients_for_ever(encoder, x, batch_size):
    torch.set_grad_enabled(False)
    mode = encoder.training
    means = torch.cat([encoder.eval()(part).chunk(2, -1)[0] for part in x.split(batch_size)])
    encoder.train(mode)
    return means


def frozen(encoder, x, batch_size):
    encoder.requires_grad_(False)
    return embed(encoder, x, batch_size)


def without_dropout_for_ever(encoder, x, batch_size):
    for module in encoder.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    return embed(encoder, x, batch_size)


# ---------------------------------------------------------------------------- 04.4: linear rate


def rate(eigenvalues, sigma):
    return 0.5 * torch.log((eigenvalues / sigma**2).clamp(min=1))


# ---------------------------------------------------------------------------- 04.5: multinomial


def multinomial(x, logits):
    orders = torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1)
    return orders + (x * logits.log_softmax(-1)).sum(-1)


def orders_of(x):
    return torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1)


def multinomial_cell_by_cell(x, logits):
    return torch.stack([
        Multinomial(int(n.sum()), logits=g).log_prob(n) for n, g in zip(x, logits, strict=True)
    ])  # fmt: skip


# ------------------------------------------------------------------------------ 04.6: new cells


def batches(decode, n_cells, n_latent):
    return torch.cat([decode(torch.randn(n, n_latent)).sample() for n in (n_cells - 7, 7)])


def shuffled_by_gene(decode, n, p):
    x = decode(torch.randn(n, p)).sample()
    return torch.stack([column[torch.randperm(n)] for column in x.T], dim=1)


RIGHT = {
    "04.1": {
        "plain": terms,
        "by torch's KL": terms_by_torch,
        "by hand": terms_by_hand,
        "cell by cell, as a list": terms_cell_by_cell,
        "one tensor": terms_as_one_tensor,
        "independent genes": terms_of_independent_genes,
    },
    "04.2": {
        "plain": embed,
        "of a copy": lambda encoder, x, _: deepcopy(encoder).eval()(x).hsplit(2)[0].detach(),
        "with a gradient": lambda *case: embed(*case, with_gradient=True),
        "all at once": lambda encoder, x, _: embed(encoder, x, len(x)),
        "array": lambda *case: embed(*case).numpy(),
        "list": lambda *case: embed(*case).tolist(),
    },
    "04.3": {
        "plain": lambda n, p, error, kl, weight: (
            weight / 2 * (1 if error == "sum" else n) / (1 if kl == "sum" else p)
        ) ** 0.5,
        "tensor": lambda n, p, error, kl, weight: torch.tensor(
            weight / 2 * {"sum": 1, "mean": n}[error] / {"sum": 1, "mean": p}[kl]
        ).sqrt().double(),
        "numpy": lambda n, p, error, kl, weight: np.sqrt(
            weight / 2 * {"sum": 1, "mean": n}[error] / {"sum": 1, "mean": p}[kl]
        ),
        "by its logarithm": lambda n, p, error, kl, weight: np.exp(0.5 * (
            np.log(weight / 2) + (error == "mean") * np.log(n) - (kl == "mean") * np.log(p)
        )),
        "from beta": lambda n, p, error, kl, weight: np.sqrt(
            (weight / (p if kl == "mean" else 1)) * (n if error == "mean" else 1) / 2
        ),
    },
    "04.4": {
        "plain": rate,
        "array": lambda variance, sigma: rate(variance, sigma).numpy(),
        "list": lambda variance, sigma: rate(variance, sigma).tolist(),
        "numpy": lambda variance, sigma: np.maximum(0, np.log(np.sqrt(variance.numpy()) / sigma)),
        "loop": lambda variance, sigma: [
            np.log(v / sigma**2) / 2 if v > sigma**2 else 0.0 for v in variance.tolist()
        ],
        "relu": lambda variance, sigma: torch.relu(0.5 * (variance.log() - 2 * np.log(sigma))),
    },
    "04.5": {
        "plain": multinomial,
        "cell by cell": multinomial_cell_by_cell,
        "logsumexp": lambda x, logits: orders_of(x)
        + (x * (logits - logits.logsumexp(-1, keepdim=True))).sum(-1),
        "cross entropy": lambda x, logits: orders_of(x)
        - functional.cross_entropy(logits, x, reduction="none"),
        "einsum": lambda x, logits: orders_of(x)
        + torch.einsum("ng,ng->n", x, functional.log_softmax(logits, -1)),
    },
    "04.6": {
        "plain": lambda decode, n, p: decode(torch.randn(n, p)).sample(),
        "list": lambda decode, n, p: list(decode(torch.randn(n, p)).sample()),
        "normal": lambda decode, n, p: decode(Normal(0.0, 1.0).sample((n, p))).sample(),
        "double": lambda decode, n, p: decode(torch.randn(n, p, dtype=torch.float64)).sample(),
        "array": lambda decode, n, p: decode(torch.randn(n, p)).sample().numpy(),
        "numpy z": lambda decode, n, p: decode(
            torch.from_numpy(np.random.default_rng(0).standard_normal((n, p)))
        ).sample(),
        "one sample": lambda decode, n, p: decode(torch.randn(n, p)).sample((1,))[0],
        "integers": lambda decode, n, p: decode(torch.randn(n, p)).sample().long(),
    },
}  # fmt: skip
WRONG = {  # for each answer what the verdict says: a misconception, or a part of its message
    "04.1": {
        "mean over genes": lambda *case: terms(*case, over_genes="mean"),
        "mean over latent dimensions": lambda *case: terms(*case, over_latent="mean"),
        "two means": lambda *case: terms(*case, over_genes="mean", over_latent="mean"),
        "no draw": lambda encode, decode, x, noise: terms(encode, decode, x, 0 * noise),
        "s as a variance": lambda *case: terms(*case, s_power=0.5),
        "s squared": lambda *case: terms(*case, s_power=2),
        "log s for log s²": lambda *case: terms(*case, log=1.0),
        "minus the KL": lambda *case: changed(*case, factors=(1, -1)),
        "minus log p(x|z)": lambda *case: changed(*case, factors=(-1, 1)),
        "no half in the KL": lambda *case: changed(*case, factors=(1, 2)),
        "terms swapped": lambda *case: terms(*case)[::-1],
        "s for s² in the KL": with_the_wrong_kl,
        "encoded twice": encoded_twice,
        "σ without a gradient": with_a_fixed_sigma,
        "both should have": without_sums,
        "z without a gradient": detached,
        "no gradient": without_gradient,
        "should be": of_a_new_draw,
        "shape": lambda *case: tuple(v.mean() for v in terms(*case)),
    },
    "04.2": {
        "training mode": lambda *case: embed(*case, inside=False),
        "training mode, all cells at once": lambda encoder, x, _: embed(
            encoder, x, len(x), inside=False
        ),
        "left in evaluation mode": lambda *case: embed(*case, after=False),
        "left in training mode": lambda *case: embed(*case, after=True),
        "s for m": lambda *case: embed(*case, half=1),
        "both halves": lambda *case: embed(*case, half=None),
        "the mode of some parts": only_the_attribute,
        "is_grad_enabled": without_gradients_for_ever,
        "requires_grad": frozen,
        "the dropout rate": without_dropout_for_ever,
    },
    "04.3": {
        "σ² for σ": lambda *case: RIGHT["04.3"]["plain"](*case) ** 2,
        "no 2": lambda *case: RIGHT["04.3"]["plain"](*case) * 2**0.5,
        "upside down": lambda *case: 1 / RIGHT["04.3"]["plain"](*case),
        "reductions forgotten": lambda n, p, error, kl, weight: (weight / 2) ** 0.5,
        "weight ignored": lambda n, p, error, kl, weight: RIGHT["04.3"]["plain"](
            n, p, error, kl, 1.0
        ),
        "N and P swapped": lambda n, p, *loss: RIGHT["04.3"]["plain"](p, n, *loss),
        "the errors' mean forgotten": lambda n, p, error, *rest: RIGHT["04.3"]["plain"](
            n, p, "sum", *rest
        ),
        "the KL's mean forgotten": lambda n, p, error, kl, weight: RIGHT["04.3"]["plain"](
            n, p, error, "sum", weight
        ),
        "should be": lambda *case: RIGHT["04.3"]["plain"](*case) + 0.1,
    },
    "04.4": {
        "σ for σ²": lambda variance, sigma: 0.5 * torch.log((variance / sigma).clamp(min=1)),
        "no half": lambda *case: 2 * rate(*case),
        "bits": lambda *case: rate(*case) / np.log(2),
        "negative rates": lambda variance, sigma: 0.5 * torch.log(variance / sigma**2),
        "signal for total": lambda variance, sigma: 0.5 * torch.log1p(variance / sigma**2),
        "shape": lambda *case: rate(*case).sum(),
        "should be": lambda *case: rate(*case).sort(descending=True).values,
        "the answer": lambda *case: rate(*case).cummin(0).values,
        "should have": lambda *case: rate(*case)[:10],
    },
    "04.5": {
        "Bernoulli": lambda x, logits: -functional.binary_cross_entropy_with_logits(
            logits, x, reduction="none"
        ).sum(-1),
        "no ways to order": lambda x, logits: (x * logits.log_softmax(-1)).sum(-1),
        "one molecule per cell": lambda x, logits: (x * logits.log_softmax(-1)).sum(-1) / x.sum(-1),
        "mean over genes": lambda x, logits: (x * logits.log_softmax(-1)).mean(-1),
        "shares that underflow": lambda x, logits: orders_of(x)
        + (x * torch.log(logits.softmax(-1))).sum(-1),
        "gradient": lambda x, logits: multinomial(x, logits.detach()),
        "the softmax's sum without a gradient": lambda x, logits: orders_of(x)
        + (x * (logits - logits.detach().logsumexp(-1, keepdim=True))).sum(-1),
        "Its gradient in the logits": lambda x, logits: multinomial(
            x, logits.detach() + 0.5 * (logits - logits.detach())
        ),
        "should be": lambda x, logits: orders_of(x)
        + (x * (logits.softmax(-1) + 1e-10).log()).sum(-1),
        "yours is": lambda x, logits: orders_of(x)
        + (x * logits.softmax(-1).clamp(min=1e-8).log()).sum(-1),
        "mean over genes, with the orders": lambda x, logits: orders_of(x)
        + (x * logits.log_softmax(-1)).mean(-1),
        "ℓ! forgotten": lambda x, logits: multinomial(x, logits) - torch.lgamma(x.sum(-1) + 1),
        "no logarithm": lambda x, logits: orders_of(x) + (x * logits.softmax(-1)).sum(-1),
        "minus": lambda x, logits: -multinomial(x, logits),
        "tensor": lambda x, logits: multinomial(x, logits).tolist(),
    },
    "04.6": {
        "means for cells": lambda decode, n, p: decode(torch.randn(n, p)).mean,
        "rounded means": lambda decode, n, p: decode(torch.randn(n, p)).mean.round(),
        "Poisson for any distribution": lambda decode, n, p: torch.poisson(
            decode(torch.randn(n, p)).mean
        ),
        "the same z for all cells": lambda decode, n, p: decode(torch.zeros(n, p)).sample(),
        "uniform z": lambda decode, n, p: decode(torch.rand(n, p)).sample(),
        "should be": lambda decode, n, p: decode(torch.ones(n, p)).sample(),
        "s mean from the prior": lambda decode, n, p: decode(torch.randn(n, p) + 0.03).sample(),
        "s variance from the prior": lambda decode, n, p: decode(0.95 * torch.randn(n, p)).sample(),
        "variance from": lambda decode, n, p: decode(1.05 * torch.randn(n, p)).sample(),
        "not whole": lambda decode, n, p: 1.02 * decode(torch.randn(n, p)).sample(),
        "Mean of its product": shuffled_by_gene,
        "too few": lambda decode, n, p: decode(torch.randn(n, p)).sample()[:-1],
        "a NegativeBinomial": lambda decode, n, p: decode(torch.randn(n, p)),
        "raised": lambda decode, n, p: decode(torch.randn(n, p, dtype=torch.float32)).sample(),
        "Error": lambda decode, n, p: decode(np.random.randn(n, p)).sample(),
        "shape": lambda decode, n, p: decode(torch.randn(p)).sample(),
        "z should have": lambda decode, n, p: decode(torch.randn(n // 2, p)).sample(),
        "it has": batches,
    },
}  # fmt: skip


@pytest.mark.parametrize("name, how", [(n, how) for n, answers in RIGHT.items() for how in answers])
def test_right_answers_pass(name, how):
    for seed in (SEED, 1, 2):
        verdict = verdict_on(name, RIGHT[name][how], seed)
        assert verdict.passed, f"seed {seed}: {verdict}"


@pytest.mark.parametrize("name, what", [(n, w) for n, answers in WRONG.items() for w in answers])
def test_wrong_answers_are_named(name, what):
    for seed in (SEED, 1, 2):
        verdict = verdict_on(name, WRONG[name][what], seed)
        assert not verdict.passed
        named = {m.name for m in find(name).misconceptions}
        said = verdict.misconception if what in named else str(verdict)
        assert said is not None and what in said, f"seed {seed}: {verdict}"


def test_each_exercise_has_five_answers_of_either_kind():
    assert RIGHT.keys() == WRONG.keys() == {f"04.{i}" for i in range(1, 7)}
    assert min(len(answers) for table in (RIGHT, WRONG) for answers in table.values()) >= 5
