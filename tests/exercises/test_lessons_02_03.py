"""Lessons 02 and 03: answers that learners may write, right and wrong, and what the check says."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch.distributions import Normal, kl_divergence

from vaelab.teaching.exercises import find

from ..test_exercises import DIFFERENT, checked, namespace, solution_of

RIGHT, WRONG = {}, {}  # by exercise: answers, and for wrong ones a part of the message


def right(name):
    return lambda answer: RIGHT.setdefault(name, []).append(answer) or answer


def wrong(name, said):
    return lambda answer: WRONG.setdefault(name, []).append((answer, said)) or answer


def as_given(name, *converts):
    """The lesson's own answer in other forms: one call per conversion."""
    for convert in converts:
        RIGHT.setdefault(name, []).append(
            lambda *case, convert=convert: convert(solution_of(name)(*case))
        )


# 02.1

as_given("02.1", float, np.float32, torch.as_tensor, np.array)


@right("02.1")
def by_beta_functions(x, r, a, b):
    chosen = special.gammaln(x + r) - special.gammaln(r) - special.gammaln(x + 1)
    return chosen.sum() + special.betaln(a + len(x) * r, b + x.sum()) - special.betaln(a, b)


@wrong("02.1", "all cells share it")
def each_cell_alone(x, r, a, b):
    return sum(by_beta_functions(x[i : i + 1], r, a, b) for i in range(len(x)))


@wrong("02.1", "at one p")
def at_the_prior_mean(x, r, a, b):
    return stats.nbinom.logpmf(x, r, a / (a + b)).sum()


@wrong("02.1", "cancels in the posterior")
def without_the_coefficient(x, r, a, b):
    return special.betaln(a + len(x) * r, b + x.sum()) - special.betaln(a, b)


@wrong("02.1", "How often does r")
def posterior_without_n(x, r, a, b):
    log_posterior = stats.beta.logpdf(0.5, a + r, b + x.sum())
    return stats.nbinom.logpmf(x, r, 0.5).sum() + stats.beta.logpdf(0.5, a, b) - log_posterior


@wrong("02.1", "How often does r")
def beta_functions_without_n(x, r, a, b):
    lost = special.betaln(a + r, b + x.sum()) - special.betaln(a + len(x) * r, b + x.sum())
    return by_beta_functions(x, r, a, b) + lost


@wrong("02.1", "does a belong to")
def posterior_exchanged(x, r, a, b):
    log_posterior = stats.beta.logpdf(0.5, a + x.sum(), b + r * len(x))
    return stats.nbinom.logpmf(x, r, 0.5).sum() + stats.beta.logpdf(0.5, a, b) - log_posterior


@wrong("02.1", "shape")
def not_summed(x, r, a, b):
    return stats.nbinom.logpmf(x, r, 0.5)


# 02.2

own = solution_of("02.2")


@right("02.2")
def written_out(mean, std):
    return ((mean**2 + std**2) / 2 - 0.5 - std.log()).sum(dim=1)


@right("02.2")
def by_log_variance(mean, std):
    return -0.5 * torch.sum(1 + torch.log(std**2) - mean.pow(2) - std.pow(2), dim=-1)


@right("02.2")
def by_torch(mean, std):
    return kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum(-1)


@right("02.2")
def in_double(mean, std):
    return own(mean.double(), std.double())


@right("02.2")
def in_single(mean, std):
    return own(mean.float(), std.float()).double()


@right("02.2")
def by_loop(mean, std):
    return torch.stack([own(m, s) for m, s in zip(mean, std, strict=True)])


@wrong("02.2", "The numbers are right")
def as_list(mean, std):
    return own(mean, std).tolist()


@wrong("02.2", "The numbers are right")
def detached(mean, std):
    return own(mean, std).detach()


wrong("02.2", "Slope in std")(lambda mean, std: own(mean, std.detach()))
wrong("02.2", "Slope in mean")(
    lambda mean, std: (0.5 * (mean.detach() ** 2 + std**2 - 1 - 2 * torch.log(std))).sum(-1)
)
for square in (
    lambda mean: torch.tensor(mean.tolist(), dtype=mean.dtype) ** 2,
    lambda mean: mean.data**2,
    lambda mean: torch.tensor(np.square(mean.detach().numpy())),
):
    wrong("02.2", "Slope in mean")(
        lambda mean, std, square=square: (
            0.5 * (square(mean) + std**2 - 1 - 2 * torch.log(std))
        ).sum(-1)
    )


@wrong("02.2", "Can't call numpy")
def by_numpy(mean, std):
    return (0.5 * (mean**2 + std**2 - 1 - 2 * np.log(std.numpy()))).sum(-1)


@wrong("02.2", "distribution to itself")
def as_published(mean, std):
    return (0.5 * (1 - 2 * torch.log(std) + mean**2 + std**2)).sum(-1)


@wrong("02.2", "treats std as a variance")
def of_the_variance(mean, std):
    return 0.5 * (mean**2 + std - 1 - torch.log(std)).sum(-1)


@wrong("02.2", "sum or a mean")
def averaged(mean, std):
    return 0.5 * (mean**2 + std**2 - 1 - 2 * torch.log(std)).mean(-1)


@wrong("02.2", "should be")
def summed_over_cells(mean, std):
    return own(mean, std).sum().expand(len(mean))


# 02.3 to 02.5

for name in ("02.3", "02.4", "02.5"):
    as_given(
        name,
        list,
        np.array,
        lambda parts: torch.as_tensor(np.array(parts)),
        lambda parts: tuple(np.float32(v) for v in parts),
        lambda parts: [torch.as_tensor(v) for v in parts],
    )


def lines(log_ratio):
    """Lines (b) and (c) with another ratio."""

    def jensen(E, p, x, q):
        ratio = log_ratio(p, x, q)
        return np.log(E(lambda z: np.exp(ratio(z)))), E(ratio)

    return jensen


wrong("02.3", "divided by")(lines(lambda p, x, q: lambda z: p(z) + x(z)))
wrong("02.3", "alone is not p(x, z)")(lines(lambda p, x, q: lambda z: x(z) - q(z)))
wrong("02.3", "upside down")(lines(lambda p, x, q: lambda z: q(z) - p(z) - x(z)))
wrong("02.3", "corrects for drawing")(lines(lambda p, x, q: lambda z: x(z)))
wrong("02.3", "line (b) comes first")(lambda E, p, x, q: solution_of("02.3")(E, p, x, q)[::-1])
wrong("02.3", "Expected 2 results")(lambda E, p, x, q: E(lambda z: x(z) + p(z) - q(z)))


def terms(E, p, x, q, post):
    return E(x), E(lambda z: q(z) - p(z)), E(lambda z: q(z) - post(z))


wrong("02.4", "counted twice")(
    lambda E, p, x, q, t: (E(lambda z: x(z) + p(z)), *terms(E, p, x, q, t)[1:])
)
wrong("02.4", "negative, but a KL never is")(
    lambda E, p, x, q, t: (E(x), E(lambda z: p(z) - q(z)), terms(E, p, x, q, t)[2])
)
wrong("02.4", "gap is negative")(
    lambda E, p, x, q, t: (*terms(E, p, x, q, t)[:2], E(lambda z: t(z) - q(z)))
)
wrong("02.4", "KL to the prior")(
    lambda E, p, x, q, t: (*terms(E, p, x, q, t)[:2], terms(E, p, x, q, t)[1])
)
wrong("02.4", "in another order")(lambda E, p, x, q, t: terms(E, p, x, q, t)[::-1])
wrong("02.4", "in another order")(
    lambda E, p, x, q, t: (E(x), E(lambda z: q(z) - t(z)), E(lambda z: q(z) - p(z)))
)
wrong("02.4", "is the whole bound")(
    lambda E, p, x, q, t: (E(lambda z: x(z) + p(z) - q(z)), *terms(E, p, x, q, t)[1:])
)
wrong("02.4", "Expected 3 results")(lambda E, p, x, q, t: terms(E, p, x, q, t)[:2])


def sums(E, joint, post, q):
    return E(lambda z: joint(z) - q(z)), E(lambda z: q(z) - post(z))


wrong("02.5", "one number for the whole data set")(sums)
wrong("02.5", "mean of their bounds")(lambda *a: tuple(v.mean() for v in sums(*a)))
wrong("02.5", "gap is negative")(lambda *a: (sums(*a)[0].sum(), -sums(*a)[1].sum()))
wrong("02.5", "upside down")(lambda *a: (-sums(*a)[0].sum(), sums(*a)[1].sum()))
wrong("02.5", "divided by")(lambda E, j, p, q: (E(j).sum(), sums(E, j, p, q)[1].sum()))
wrong("02.5", "the bound comes first")(lambda *a: tuple(v.sum() for v in sums(*a))[::-1])

# 02.6

bound = solution_of("02.6")


@right("02.6")
def by_normals(x, W, b, m, s, sigma):
    at_mean = Normal(b + m @ W.T, sigma).log_prob(x).sum(1)
    return at_mean - (s**2 @ W.T**2).sum(1) / (2 * sigma**2) - by_torch(m, s)


@right("02.6")
def gene_by_gene(x, W, b, m, s, sigma):
    total = -by_log_variance(m, s)
    for g in range(x.shape[1]):
        error = (x[:, g] - b[g] - m @ W[g]) ** 2 + s**2 @ W[g] ** 2
        total = total - error / (2 * sigma**2) - sigma.log() - math.log(2 * math.pi) / 2
    return total


@right("02.6")
def by_einsum(x, W, b, m, s, sigma):
    rest = x - b - torch.einsum("gd,nd->ng", W, m)
    spread = torch.einsum("gd,nd->n", W**2, s**2)
    constant = x.shape[1] * torch.log(sigma * (2 * torch.pi) ** 0.5)
    return -(rest.square().sum(1) + spread) / (2 * sigma**2) - constant - written_out(m, s)


@right("02.6")
def cell_by_cell(x, W, b, m, s, sigma):
    return torch.cat(
        [bound(x[i : i + 1], W, b, m[i : i + 1], s[i : i + 1], sigma) for i in range(len(x))]
    )


@right("02.6")
def in_three_parts(x, W, b, m, s, sigma):
    squares = (x - b - m @ W.T).pow(2) + s.pow(2) @ W.pow(2).T
    each = -0.5 * torch.log(2 * torch.pi * sigma.pow(2)) - squares / (2 * sigma.pow(2))
    return each.sum(-1) - own(m, s)


@right("02.6")
def in_single_precision(*case):
    return bound(*(v.float() for v in case)).double()


def with_constant(log):
    """The bound with the logarithm of the constant taken elsewhere."""

    def answer(x, W, b, m, s, sigma):
        squares = (x - b - m @ W.T) ** 2 + s**2 @ (W**2).T
        return -(squares / (2 * sigma**2)).sum(-1) - x.shape[1] * log(sigma) - own(m, s)

    return answer


wrong("02.6", "through the logarithm of sigma")(
    with_constant(lambda sigma: 0.5 * math.log(2 * math.pi * sigma.item() ** 2))
)
wrong("02.6", "through the logarithm of sigma")(
    with_constant(lambda sigma: 0.5 * np.log(2 * np.pi * sigma.item() ** 2))
)
wrong("02.6", "Can't call numpy")(with_constant(lambda sigma: np.log(sigma.numpy())))
wrong("02.6", "The numbers are right")(lambda *case: bound(*case).detach())
wrong("02.6", "normal density")(with_constant(lambda sigma: 0.0))
wrong("02.6", "decodes only z = m")(
    lambda x, W, b, m, s, sigma: Normal(b + m @ W.T, sigma).log_prob(x).sum(1) - own(m, s)
)


def bound_with_cut(rest=lambda v: v, spread=lambda v: v, kl=lambda v: v, W2=lambda W: W**2):
    """The bound with one of its terms cut off from the gradient."""

    def answer(x, W, b, m, s, sigma):
        squares = rest(x - b - m @ W.T) ** 2 + spread(s**2 @ W2(W).T)
        each = -0.5 * torch.log(2 * torch.pi * sigma**2) - squares / (2 * sigma**2)
        return each.sum(-1) - kl(own(m, s))

    return answer


def cut(v):
    return torch.tensor(v.tolist(), dtype=v.dtype)


wrong("02.6", "Slope in W")(bound_with_cut(rest=cut))
wrong("02.6", "Slope in W")(bound_with_cut(spread=cut))
wrong("02.6", "Slope in W")(bound_with_cut(W2=lambda W: W.data**2))
wrong("02.6", "Slope in m")(bound_with_cut(kl=cut))
wrong("02.6", "Slope in s")(
    lambda x, W, b, m, s, sigma: bound(x, W, b, m, s, sigma) + (cut(s).log() - s.log()).sum(-1)
)
for at, name in enumerate(("W", "b", "m", "s", "sigma"), start=1):
    wrong("02.6", f"Slope in {name}: ")(
        lambda *case, at=at: bound(*case[:at], case[at].detach(), *case[at + 1 :])
    )
wrong("02.6", "right for one gene")(
    lambda x, W, b, m, s, sigma: (
        bound(x, W, b, m, s, sigma) + (x.shape[1] - 1) / 2 * torch.log(2 * torch.pi * sigma**2)
    )
)
wrong("02.6", "is the reconstruction")(lambda *case: bound(*case) + own(case[3], case[4]))
wrong("02.6", "added the KL")(lambda *case: bound(*case) + 2 * own(case[3], case[4]))
wrong("02.6", "too low by the same number")(lambda *case: bound(*case) - case[3].shape[1])


# 03.1


@right("03.1")
def by_root(noise, mean, log_var):
    return mean + log_var.exp().sqrt() * noise


right("03.1")(lambda noise, mean, v: noise * torch.exp(v / 2) + mean)
right("03.1")(lambda noise, mean, v: torch.addcmul(mean, noise, (0.5 * v).exp()))
right("03.1")(lambda noise, mean, v: mean + noise * torch.exp(v) ** 0.5)
right("03.1")(lambda noise, mean, v: mean.double() + noise * torch.exp(0.5 * v.double()))
wrong("03.1", "as it was published")(lambda noise, mean, v: mean + torch.exp(v) * noise)
wrong("03.1", "log_var itself")(lambda noise, mean, v: mean + v * noise)
wrong("03.1", "")(lambda noise, mean, v: mean + torch.exp(0.5 * v).detach() * noise)
wrong("03.1", "")(lambda noise, mean, v: (mean + torch.exp(0.5 * v) * noise).tolist())
wrong("03.1", "")(lambda noise, mean, v: mean + torch.exp(0.5 * v) * torch.randn_like(mean))

# 03.2

path = solution_of("03.2")
as_given("03.2", list, tuple, torch.stack, lambda g: [v.numpy() for v in g], lambda g: g)
wrong("03.2", "times too large")(lambda f, m, s, n: tuple(n * g for g in path(f, m, s, n)))
wrong("03.2", "different ε")(lambda f, m, s, n: path(f, m, s, 1))
wrong("03.2", "treat std as a variance")(
    lambda f, m, s, n: tuple(
        g / d for g, d in zip(path(f, m, s.sqrt(), n), (1, 2 * s.sqrt()), strict=True)
    )
)
wrong("03.2", "number of cells")(lambda f, m, s, n: tuple(g / len(m) for g in path(f, m, s, n)))
wrong("03.2", "")(lambda f, m, s, n: path(f, m, s, n)[::-1])
wrong("03.2", "")(lambda f, m, s, n: path(f, m, s, n)[0])

# 03.3

score = solution_of("03.3")
as_given("03.3", list, tuple, torch.stack, lambda g: [v.clone() for v in g])


@right("03.3")
def by_autograd(f_z, z, mean, std):
    m, s = (v.expand_as(z).clone().requires_grad_() for v in (mean, std))
    slopes = torch.autograd.grad(Normal(m, s).log_prob(z).sum(), (m, s))
    return tuple(f_z[:, None] * g for g in slopes)


wrong("03.3", "sign of the first")(lambda f, z, m, s: (-score(f, z, m, s)[0], score(f, z, m, s)[1]))
wrong("03.3", "depends on s too")(
    lambda f, z, m, s: (score(f, z, m, s)[0], f[:, None] * (z - m) ** 2 / s**3)
)
wrong("03.3", "score alone")(lambda f, z, m, s: score(torch.ones_like(f), z, m, s))
wrong("03.3", "powers of s")(lambda f, z, m, s: tuple(g * s for g in score(f, z, m, s)))
wrong("03.3", "shape")(lambda f, z, m, s: tuple(g.mean(0) for g in score(f, z, m, s)))

# 03.4

rloo = solution_of("03.4")
as_given("03.4", lambda g: g.numpy(), lambda g: g.clone(), lambda g: g.float())


@right("03.4")
def next_draw_as_baseline(f, mean, std, n_samples):
    z = mean + std * torch.randn(n_samples, *mean.shape)
    values, scores = f(z), (z - mean) / std**2
    others = (values.sum(0) - values) / (n_samples - 1)
    return ((values - others).unsqueeze(-1) * scores).sum(0) / n_samples


@right("03.4")
def sample_covariance(f, mean, std, n_samples):
    z = Normal(mean, std).sample((n_samples,))
    centred = f(z) - f(z).mean(0)
    return (centred[..., None] * (z - mean) / std**2).sum(0) / (n_samples - 1)


def with_level(level):
    def answer(f, mean, std, n_samples):
        z = mean + std * torch.randn(n_samples, *mean.shape)
        values = f(z)
        return ((values - level(values))[..., None] * (z - mean) / std**2).mean(0)

    return answer


wrong("03.4", "same number for all cells")(with_level(lambda values: values.mean()))
wrong("03.4", "whatever z is")(with_level(lambda values: 0.0))
wrong("03.4", "must not depend on that draw")(with_level(lambda values: values.mean(0)))
wrong("03.4", "")(with_level(lambda values: -225.0))
wrong("03.4", "times too large")(lambda f, m, s, n: n * rloo(f, m, s, n))
wrong("03.4", "power of std")(lambda f, m, s, n: s * rloo(f, m, s, n))

# 03.5

aevb = namespace("03")["aevb_bound"]


def of_weights(answer):
    """An answer as the check cell hands it over: with all weights in one tensor."""
    return lambda weights, n, *rest: answer(
        weights[:n], weights[2 * n : -1], weights[-1], weights[n : 2 * n].T, *rest
    )


@right("03.5")
def by_distributions(encoder, W1, b1, W2, x, noise, sigma):
    half = encoder.shape[1] // 2
    q = Normal((x @ encoder)[:, :half], torch.exp((x @ encoder)[:, half:] / 2))
    likelihood = Normal(torch.tanh((q.loc + q.scale * noise) @ W1 + b1) @ W2, sigma)
    return (likelihood.log_prob(x).sum(-1) - kl_divergence(q, Normal(0.0, 1.0)).sum(-1)).mean()


right("03.5")(lambda *case: aevb(*case).reshape(()))
right("03.5")(lambda *case: aevb(*(v.double() if hasattr(v, "double") else v for v in case)))
right("03.5")(lambda *case: torch.stack([by_distributions(*case), aevb(*case)]).mean())


def bound_with(
    scale=lambda v: torch.exp(v / 2), genes=torch.sum, kl=torch.sum, block=False, sign=1
):
    def answer(encoder, W1, b1, W2, x, noise, sigma):
        m, v = (x @ encoder).chunk(2, -1)
        z = m + scale(v) * noise
        z = z.detach() if block else z
        log_p = genes(Normal(torch.tanh(z @ W1 + b1) @ W2, sigma).log_prob(x), -1)
        return (log_p - sign * 0.5 * kl(m**2 + v.exp() - 1 - v, -1)).mean()

    return answer


wrong("03.5", "blocked between z and the encoder")(bound_with(block=True))
wrong("03.5", "multiplied by the variance")(bound_with(scale=torch.exp))
wrong("03.5", "sum or a mean")(bound_with(genes=torch.mean))
wrong("03.5", "their KL a sum or a mean")(bound_with(kl=torch.mean))
wrong("03.5", "wrong sign")(bound_with(sign=-1))
wrong("03.5", "minus the bound")(lambda *case: -aevb(*case))
wrong("03.5", "The numbers are right")(lambda *case: aevb(*case).item())
wrong("03.5", "")(lambda *case: aevb(*case[:5], torch.randn_like(case[5]), case[6]))
RIGHT["03.5"] = [DIFFERENT["03.5"][0], *map(of_weights, RIGHT["03.5"])]
WRONG["03.5"] = [(of_weights(answer), said) for answer, said in WRONG["03.5"]]

# 03.6

limit = solution_of("03.6")
as_given("03.6", lambda v: v.tolist(), lambda v: v.numpy(), lambda v: v.float(), tuple, list)
wrong("03.6", "should have given")(
    lambda x, sigma, m, s: Normal(0.0, (1 + sigma**2) ** 0.5).log_prob(x)
)
wrong("03.6", "varies around m")(lambda x, sigma, m, s: Normal(m, sigma).log_prob(x))
wrong("03.6", "moments add up")(lambda x, sigma, m, s: Normal(m, sigma + s).log_prob(x))
wrong("03.6", "taken after the mean")(
    lambda x, sigma, m, s: Normal(m, sigma).log_prob(x) - s**2 / (2 * sigma**2)
)
wrong("03.6", "shape")(lambda x, sigma, m, s: limit(x, sigma, m, s).mean())


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(name):
    assert len(RIGHT[name]) >= 5
    for i, answer in enumerate(RIGHT[name]):
        verdict = checked(find(name), answer)
        assert verdict.passed, f"number {i}: {verdict}"


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_are_told_why(name):
    assert len(WRONG[name]) >= 5
    for i, (answer, said) in enumerate(WRONG[name]):
        verdict = checked(find(name), answer)
        assert not verdict.passed, f"number {i} passed"
        assert said in verdict.message, f"number {i}: {verdict}"


def test_a_slope_of_zero_is_said_to_be_zero():
    moved = checked(find("02.2"), lambda mean, std: own(mean, std) + (std - 1).sum(-1))
    assert moved.message.startswith("Slope in std: ")
    assert "the answer should be 0; yours is 1" in moved.message, moved


def test_all_exercises_of_both_lessons_are_here():
    names = [f"{lesson}.{i}" for lesson in ("02", "03") for i in range(1, 7)]
    assert [*RIGHT] == [*WRONG] == names
