"""Exercises of lesson 04: what a VAE's numbers do."""

from __future__ import annotations

import numpy as np

from .core import Exercise, Misconception

__all__ = ["EXERCISES"]


# 04.1: the two terms of the bound


def draw_vaes(rng: np.random.Generator) -> list[dict]:
    """One cell, two genes and one latent dimension; then two VAEs of linear maps, and float32."""
    cases = []
    for n_cells, n_genes, n_latent, kind in (
        (1, 2, 1, np.float64),
        (6, 5, 2, np.float64),
        (4, 7, 3, np.float64),
        (5, 4, 2, np.float32),
    ):
        weights = rng.normal(0, 0.5, (4, n_genes, n_latent))  # of m, log s, the decoder; log σ
        weights[3] = np.log(rng.uniform(0.5, 2.0, (n_genes, 1)))
        case = {
            "weights": weights,
            "x": rng.normal(0, 1, (n_cells, n_genes)),
            "noise": rng.normal(0, 1, (n_cells, n_latent)),
            "weight": rng.uniform(0.5, 1.5, (2, n_cells)),  # of each number, in the gradient
        }
        cases.append({name: value.astype(kind) for name, value in case.items()})
    return cases


def two_terms(weights, x, noise, weight, over_genes=np.sum, over_latent=np.sum, s_power=1,
              use_noise=True, log_s=2.0, square_of_s=2, change=lambda terms: terms,
              z_of=None):  # fmt: skip
    """Log-densities from scipy; the KL as cross-entropy minus entropy. z_of: weights that give z"""
    from scipy import stats

    def moments(of):
        return x @ of[0], np.exp(x @ of[1])

    m, s = moments(weights)
    mean, std = moments(weights if z_of is None else z_of)
    z = mean + std**s_power * noise * use_noise
    sigma = np.exp(weights[3].mean(1))
    log_px = over_genes(stats.norm.logpdf(x, z @ weights[2].T, sigma), axis=1)
    cross_entropy = 0.5 * np.log(2 * np.pi) + 0.5 * (m**2 + s**square_of_s)
    kl = cross_entropy - stats.norm.entropy(m, s) + (1 - log_s / 2) * np.log(s)
    return change(np.stack([log_px, over_latent(kl, axis=1)]))


def terms_and_gradient(detach=False, cut=(), **case):
    """The terms, and the gradient of their weighted sum in the weights, by differences.

    With ``detach``, z does not move with the weights. ``cut``: weights without a gradient.
    """
    case = {k: v.astype(float) if isinstance(v, np.ndarray) else v for k, v in case.items()}
    weights = case.pop("weights")
    value, gradient = two_terms(weights, **case), np.zeros(weights.shape)
    for at in np.ndindex(weights.shape):
        step = np.zeros(weights.shape)
        step[at] = 1e-5
        ends = [
            two_terms(weights + d, z_of=weights if detach else None, **case) for d in (step, -step)
        ]
        gradient[at] = (case["weight"] * (ends[0] - ends[1])).sum() / 2e-5
    gradient[list(cut)] = 0.0
    return value, gradient


def in_terms(factors, **case):
    """With each of the two terms times its factor."""
    return terms_and_gradient(change=lambda terms: terms * np.array(factors)[:, None], **case)


# 04.2: embedding in evaluation mode


def draw_encoders(rng: np.random.Generator) -> list[dict]:
    """One minibatch without dropout; several with dropout; and these in evaluation mode."""
    cases = []
    n_genes, n_hidden, n_latent = 6, 8, 2
    for n_cells, batch_size, dropout_rate, training in (
        (4, 4, 0.0, True),
        (50, 20, 0.3, True),
        (50, 20, 0.3, False),
    ):
        in_order = np.sort(rng.normal(0, 1, (n_cells, 1)), axis=0)  # minibatches differ
        cases.append(
            {
                "x": in_order + rng.normal(0, 1, (n_cells, n_genes)),
                "w1": rng.normal(0, 0.5, (n_hidden, n_genes)),
                "b1": rng.normal(0, 0.5, n_hidden),
                "scale": rng.uniform(0.5, 1.5, n_hidden),
                "shift": rng.normal(0.3, 0.5, n_hidden),
                "running_mean": rng.normal(0, 0.5, n_hidden),
                "running_var": rng.uniform(0.5, 4.0, n_hidden),
                "w2": rng.normal(0, 0.5, (2 * n_latent, n_hidden)),
                "b2": rng.normal(0, 0.5, 2 * n_latent),
                "batch_size": batch_size,
                "dropout_rate": dropout_rate,
                "training": training,
                "seed": int(rng.integers(2**31)),
            }
        )
    return cases


def embedded(**case):
    """The means by matrix products and running statistics, and the mode that the encoder was in."""
    return network_outputs(**case)[:, :2], np.asarray(float(case["training"]))


def network_outputs(x, w1, b1, scale, shift, running_mean, running_var, w2, b2, **_):
    hidden = x @ w1.T + b1
    hidden = scale * (hidden - running_mean) / np.sqrt(running_var + 1e-5) + shift
    return np.maximum(hidden, 0) @ w2.T + b2


def embedded_in_present_mode(at_once=False, **case):
    """The means in the encoder's present mode, with the dropout that torch would draw."""
    import torch

    size = len(case["x"]) if at_once else case["batch_size"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case["seed"])
        parts = []
        for start in range(0, len(case["x"]), size):
            part = {**case, "x": case["x"][start : start + size]}
            hidden = part["x"] @ case["w1"].T + case["b1"]
            mean, var = case["running_mean"], case["running_var"]
            if case["training"]:
                mean, var = hidden.mean(0), hidden.var(0)
            hidden = case["scale"] * (hidden - mean) / np.sqrt(var + 1e-5) + case["shift"]
            hidden = torch.from_numpy(np.maximum(hidden, 0))
            hidden = torch.dropout(hidden, case["dropout_rate"], case["training"]).numpy()
            parts.append(hidden @ case["w2"].T + case["b2"])
    return np.concatenate(parts)[:, :2], np.asarray(float(case["training"]))


# 04.3: which σ a loss stands for


def draw_losses(rng: np.random.Generator) -> list[dict]:
    """All sums, then every combination of sums and means, with other weights."""
    cases = [{"n_genes": 8, "n_latent": 2, "error": "sum", "kl": "sum", "weight": 1.0}]
    for error in ("sum", "mean"):
        for kl in ("sum", "mean"):
            for _ in range(3):
                sizes = int(rng.integers(20, 3000)), int(rng.integers(2, 40))
                weight = float(10 ** rng.uniform(-4, 1))
                cases.append(dict(zip(("n_genes", "n_latent"), sizes, strict=True)))
                cases[-1] |= {"error": error, "kl": kl, "weight": weight}
    return cases


def sigma_of_loss(n_genes, n_latent, error, kl, weight):
    """Build the loss, and measure what one squared error and one nat of KL add to it."""
    reductions = {"sum": np.sum, "mean": np.mean}

    def loss(errors, kls):
        return reductions[error](errors) + weight * reductions[kl](kls)

    errors, kls = np.zeros(n_genes), np.zeros(n_latent)
    one_error, one_kl = errors.copy(), kls.copy()
    one_error[0] = one_kl[0] = 1.0
    # In −ELBO, one squared error is worth 1/(2σ²) and one nat of KL is worth 1.
    return np.sqrt(loss(errors, one_kl) / loss(one_error, kls) / 2)


# 04.4: the rate of a linear VAE


def draw_spectrum(rng: np.random.Generator) -> list[dict]:
    """Two variances, one on each side of σ²; then many in any order, none within a tenth of it."""
    cases = [{"eigenvalues": np.array([4.0, 0.5]), "sigma": 1.0}]
    for n, sigma in zip((5, 10, 15), 10 ** rng.uniform(-1, 1, 3), strict=True):
        ratio = 10 ** np.concatenate([rng.uniform(0.05, 3, n), rng.uniform(-2, -0.05, n)])
        cases.append({"eigenvalues": rng.permutation(ratio) * sigma**2, "sigma": float(sigma)})
    return cases


def rate_of_best_model(eigenvalues, sigma):
    """Find the best weight of each axis by its evidence, then E[KL] of the exact posterior."""
    from scipy import optimize

    rates = []
    for variance in eigenvalues / sigma**2:  # in units of the noise

        def minus_evidence(w, variance=variance):
            total = w**2 + 1
            return 0.5 * (np.log(total) + variance / total)

        ends = (0.0, 2 * np.sqrt(variance) + 1)
        found = optimize.minimize_scalar(
            minus_evidence, bounds=ends, method="bounded", options={"xatol": 1e-12}
        )
        w = found.x if minus_evidence(found.x) < minus_evidence(0.0) - 1e-9 else 0.0
        precision = w**2 + 1
        squared_mean = (w / precision) ** 2 * variance  # of the posterior mean, over cells
        rates.append(0.5 * (squared_mean + 1 / precision - 1 + np.log(precision)))
    return np.array(rates)


def rate_by_formula(eigenvalues, sigma, power=2, factor=0.5, least=1.0):
    with np.errstate(all="ignore"):
        return factor * np.log(np.maximum(eigenvalues / sigma**power, least))


# 04.5: a categorical decoder


def draw_molecules(rng: np.random.Generator) -> list[dict]:
    """One molecule; a few cells of different depth; shares that underflow; and float32.

    In the third case, gene 6 has a share of about e^−40, and a count.
    """
    cases = [{"logits": np.zeros((1, 3)), "x": np.array([[0.0, 1.0, 0.0]])}]
    depth = rng.integers(2, 60, 5)
    logits = rng.normal(0, 1.5, (5, 7)) + rng.normal(0, 3, (5, 1))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    x = np.array([rng.multinomial(n, p) for n, p in zip(depth, shares, strict=True)], dtype=float)
    cases.append({"logits": logits, "x": x})
    low, rare = logits.copy(), x * (np.arange(7) < 6)
    low[:, -1] -= 900.0
    low[:, 5] -= 40.0
    rare[:, 5] = 2.0
    cases.append({"logits": low, "x": rare})
    cases.append({"logits": logits.astype(np.float32), "x": x.astype(np.float32)})
    for case in cases:  # of each cell, in the gradient
        case["weight"] = rng.uniform(0.5, 1.5, len(case["x"])).astype(case["x"].dtype)
    return cases


def with_gradient(of, logits, x, weight):
    """A log-probability, and the gradient of its weighted sum in the logits, by differences."""
    logits, x, gradient = logits.astype(float), x.astype(float), np.zeros(logits.shape)
    for g in range(logits.shape[1]):
        step = 1e-4 * (np.arange(logits.shape[1]) == g)
        gradient[:, g] = weight * (of(x, logits + step) - of(x, logits - step)) / 2e-4
    return of(x, logits), gradient


def log_factorial(n):
    from scipy.special import gammaln

    return gammaln(n + 1)


def orders(x):
    return log_factorial(x.sum(1)) - log_factorial(x).sum(1)


def multinomial(x, logits):
    """In 50 digits: shares to the power of their counts, times the number of orders."""
    from mpmath import mp

    with mp.workdps(50):
        result = []
        for counts, outputs in zip(x.tolist(), logits.tolist(), strict=True):
            total = sum(mp.exp(v) for v in outputs)
            p, n = mp.mpf(1), int(sum(counts))
            for k, v in zip(counts, outputs, strict=True):
                p *= mp.binomial(n, int(k)) * (mp.exp(v) / total) ** int(k)
                n -= int(k)
            result.append(float(mp.log(p)))
    return np.array(result)


def log_shares(x, logits):
    from scipy.special import log_softmax

    return x.astype(float) * log_softmax(logits.astype(float), axis=1)


def divided_by_total(x, logits):
    return (log_shares(x, logits) / x.sum(1, keepdims=True)).sum(1)


def underflowing(x, logits):
    from scipy.special import softmax

    with np.errstate(all="ignore"):
        broken = np.isnan(x * np.log(softmax(logits, axis=1))).any(1)
    return np.where(broken, np.nan, multinomial(x, logits))


def bernoulli(x, logits):
    """Log-probability of a Bernoulli per gene: minus the binary cross-entropy with a sigmoid."""
    from scipy.special import log_expit

    x, logits = x.astype(float), logits.astype(float)
    return (x * log_expit(logits) + (1 - x) * log_expit(-logits)).sum(1)


# 04.6: new cells


def draw_decoders(rng: np.random.Generator) -> list[dict]:
    """Negative binomials whose log-mean is linear in z: one gene, then several."""
    return [
        {
            "w": rng.uniform(0.4, 0.6, (n_latent, n_genes)) / n_latent**0.5,
            "b": rng.uniform(-1.0, 0.7, n_genes),
            "theta": rng.uniform(1.5, 3.0, n_genes),
            "n_cells": 50_000,
        }
        for n_latent, n_genes in ((1, 1), (2, 3))
    ]


def summaries(w, b, theta, n_cells, given_mean=None, uniform=False, spread=1.0, not_whole=0.0):
    """What the check computes of the new cells, by quadrature over z, and its limits.

    ``given_mean`` gives mean, variance and P(0) of what is returned for a cell of some mean.
    """
    if given_mean is None:

        def given_mean(mean, theta):
            return mean, mean + mean**2 / theta, (theta / (theta + mean)) ** theta

    at = np.linspace(0, 1, 301) if uniform else np.linspace(-8, 8, 401)
    one = np.ones_like(at) if uniform else np.exp(-0.5 * at**2)
    z = np.stack(np.meshgrid(*[at] * len(w)), -1).reshape(-1, len(w))
    weights = np.prod(np.stack(np.meshgrid(*[one] * len(w)), -1).reshape(-1, len(w)), 1)
    weights = (weights / weights.sum())[:, None]
    mean, variance, zero = given_mean(np.exp(spread * z @ w + b), theta)
    total = (weights * mean).sum(0)
    of_genes = total, (weights * (variance + (mean - total) ** 2)).sum(0), (weights * zero).sum(0)
    with_first = (weights * mean[:, :1] * mean).sum(0)
    with_first[0] += (weights * variance).sum(0)[0]
    from_prior = not uniform and spread == 1.0
    limit = np.full(len(w), 5.0 if from_prior else np.inf)
    return *of_genes, with_first, np.asarray(not_whole), limit, limit, np.asarray(0.0)


def of_means(change, **case):
    """The same of cells that are not drawn: ``change`` of the mean is returned."""

    def given_mean(mean, _):
        value = change(mean)
        return value, 0 * value, (value == 0).astype(float)

    whole = (change(np.array([0.3, 1.6])) % 1 == 0).all()
    return summaries(**case, given_mean=given_mean, not_whole=0.0 if whole else 1.0)


EXERCISES = {
    exercise.name: exercise
    for exercise in (
        Exercise(
            name="04.1",
            title="Write the two terms of the bound",
            points=3,
            draw=draw_vaes,
            oracle=terms_and_gradient,
            call="gradient",
            results=(
                "log p(x|z) and the KL, stacked",
                "their gradient in the weights and in log σ",
            ),
            rtol=1e-5,  # differences
            atol=1e-6,
            verified="Agrees with scipy for 16 cells of four VAEs: both terms, and their gradients "
            "in the weights and in σ.",
            misconceptions=(
                Misconception(
                    "mean over genes",
                    lambda **case: terms_and_gradient(over_genes=np.mean, **case),
                    "Your log p(x|z) is a mean over genes. Genes are independent given z: what "
                    "happens to their log-probabilities?",
                ),
                Misconception(
                    "mean over latent dimensions",
                    lambda **case: terms_and_gradient(over_latent=np.mean, **case),
                    "Your KL is a mean over latent dimensions. They are independent: do their KLs "
                    "add up, or do they average?",
                ),
                Misconception(
                    "two means",
                    lambda **case: terms_and_gradient(
                        over_genes=np.mean, over_latent=np.mean, **case
                    ),
                    "You took a mean over genes and a mean over latent dimensions. What does the "
                    "bound of one cell have in these two places?",
                ),
                Misconception(
                    "no draw",
                    lambda **case: terms_and_gradient(use_noise=False, **case),
                    "Your z is m itself. The decoder must get a draw from q(z|x): where does the "
                    "noise enter?",
                ),
                Misconception(
                    "s as a variance",
                    lambda **case: terms_and_gradient(s_power=0.5, **case),
                    "Your draw has variance s. But s is a standard deviation.",
                ),
                Misconception(
                    "s squared",
                    lambda **case: terms_and_gradient(s_power=2, **case),
                    "Your draw has the standard deviation s². But s is the standard deviation.",
                ),
                Misconception(
                    "log s for log s²",
                    lambda **case: terms_and_gradient(log_s=1.0, **case),
                    "log p(x|z) is right. In the KL, look at the logarithm: is it of the standard "
                    "deviation or of the variance?",
                ),
                Misconception(
                    "minus the KL",
                    lambda **case: in_terms((1, -1), **case),
                    "The second number should be the KL itself, which is not below 0. The minus "
                    "comes later, in the bound.",
                ),
                Misconception(
                    "minus log p(x|z)",
                    lambda **case: in_terms((-1, 1), **case),
                    "The first number has the wrong sign. log p(x|z) itself is asked for, not the "
                    "error that a loss has.",
                ),
                Misconception(
                    "terms swapped",
                    lambda **case: terms_and_gradient(change=lambda terms: terms[::-1], **case),
                    "Both numbers are right, but log p(x|z) comes first and the KL second.",
                ),
                Misconception(
                    "no half in the KL",
                    lambda **case: in_terms((1, 2), **case),
                    "log p(x|z) is right. Your KL is twice too large.",
                ),
                Misconception(
                    "s for s² in the KL",
                    lambda **case: terms_and_gradient(square_of_s=1, **case),
                    "log p(x|z) is right. In the KL, look at the term with s: is it a standard "
                    "deviation or a variance?",
                ),
                Misconception(
                    "encoded twice",  # the check makes NaN of it
                    lambda **case: tuple(v * np.nan for v in terms_and_gradient(**case)),
                    "You called encode more than once. With dropout each call gives another "
                    "q(z|x), so that z and the KL would not belong together. Call it once.",
                ),
                Misconception(
                    "σ without a gradient",
                    lambda **case: terms_and_gradient(cut=(3,), **case),
                    "Both numbers are right, but no gradient reaches the decoder's σ, so it would "
                    "never be learned.",
                ),
                Misconception(
                    "z without a gradient",
                    lambda **case: terms_and_gradient(detach=True, **case),
                    "Both numbers are right, but the encoder learns nothing from log p(x|z): the "
                    "gradient does not pass through your draw. Something cuts it off, such as "
                    "detach(), no_grad() or sample().",
                ),
                Misconception(
                    "no gradient",
                    lambda **case: terms_and_gradient(cut=range(4), **case),
                    "Both numbers are right, but no gradient comes back to the encoder, so nothing "
                    "could be trained. Something cuts it off, such as detach() or no_grad().",
                ),
            ),
        ),
        Exercise(
            name="04.2",
            title="Embed a cell the same way twice",
            points=2,
            draw=draw_encoders,
            oracle=embedded,
            call="encoder",
            verified="Agrees with matrix products for 104 cells, and leaves the encoder's mode as "
            "it was.",
            misconceptions=(
                Misconception(
                    "training mode",
                    embedded_in_present_mode,
                    "Dropout and batch normalisation still work as in training: a cell's embedding "
                    "depends on chance and on the other cells of its minibatch. (torch.no_grad() "
                    "changes neither.) In which mode is the encoder while you use it?",
                ),
                Misconception(
                    "training mode, all cells at once",
                    lambda **case: embedded_in_present_mode(at_once=True, **case),
                    "One large minibatch does not help: batch normalisation still uses the "
                    "minibatch's mean, and dropout is still random. In which mode is the encoder "
                    "while you use it?",
                ),
                Misconception(
                    "left in evaluation mode",
                    lambda **case: (embedded(**case)[0], np.asarray(0.0)),
                    "The embedding is right. But afterwards the encoder is in another mode than "
                    "before. If you embed in the middle of training, it goes on without dropout.",
                ),
                Misconception(
                    "left in training mode",
                    lambda **case: (embedded(**case)[0], np.asarray(1.0)),
                    "The embedding is right. But an encoder that was in evaluation mode is now in "
                    "training mode. In which mode did you get it?",
                ),
                Misconception(
                    "s for m",
                    lambda **case: (
                        network_outputs(**case)[:, 2:],
                        np.asarray(float(case["training"])),
                    ),
                    "This is the other half of the encoder's outputs, from which s is computed.",
                ),
                Misconception(
                    "both halves",
                    lambda **case: (network_outputs(**case), np.asarray(float(case["training"]))),
                    "You returned all outputs of the encoder. Only one half of them is m.",
                ),
            ),
        ),
        Exercise(
            name="04.3",
            title="Which σ did you just choose?",
            points=2,
            draw=draw_losses,
            oracle=sigma_of_loss,
            verified="Agrees with what one squared error and one nat weigh in 13 losses.",
            misconceptions=(
                Misconception(
                    "σ² for σ",
                    lambda **case: sigma_of_loss(**case) ** 2,
                    "This is σ², a variance. The standard deviation is asked for.",
                ),
                Misconception(
                    "no 2",
                    lambda **case: sigma_of_loss(**case) * np.sqrt(2),
                    "Off by √2: in log p(x|z) the squared error is not divided by σ² alone.",
                ),
                Misconception(
                    "upside down",
                    lambda **case: 1 / sigma_of_loss(**case),
                    "Your σ falls as the weight of the KL grows. A large weight means that the "
                    "data are noisy and a reconstruction error matters less. Is σ then large or "
                    "small?",
                ),
                Misconception(
                    "reductions forgotten",
                    lambda n_genes, n_latent, error, kl, weight: np.sqrt(weight / 2),
                    "Right where both are sums. A mean divides by a number: by which one, in each "
                    "case?",
                ),
                Misconception(
                    "weight ignored",
                    lambda n_genes, n_latent, error, kl, weight: sigma_of_loss(
                        n_genes, n_latent, error, kl, 1.0
                    ),
                    "Right where the weight is 1. What does a larger weight do to the KL?",
                ),
                Misconception(
                    "N and P swapped",
                    lambda n_genes, n_latent, error, kl, weight: sigma_of_loss(
                        n_latent, n_genes, error, kl, weight
                    ),
                    "Right where both are sums. Of how many numbers is the mean of the errors, and "
                    "of how many that of the KLs?",
                ),
                Misconception(
                    "the errors' mean forgotten",
                    lambda n_genes, n_latent, error, kl, weight: sigma_of_loss(
                        n_genes, n_latent, "sum", kl, weight
                    ),
                    "The KLs are right. But a squared error averaged over genes weighs less than "
                    "one in a sum.",
                ),
                Misconception(
                    "the KL's mean forgotten",
                    lambda n_genes, n_latent, error, kl, weight: sigma_of_loss(
                        n_genes, n_latent, error, "sum", weight
                    ),
                    "The genes are right. But a KL averaged over latent dimensions is smaller than "
                    "the KL of the bound too.",
                ),
            ),
        ),
        Exercise(
            name="04.4",
            title="The rate of a linear VAE",
            points=3,
            draw=draw_spectrum,
            oracle=rate_of_best_model,
            rtol=1e-4,  # the oracle's weight is found to 1e-8 of its size
            atol=1e-6,
            verified="Agrees with the best model that a search finds, on 62 axes.",
            misconceptions=(
                Misconception(
                    "σ for σ²",
                    lambda eigenvalues, sigma: rate_by_formula(eigenvalues, sigma, power=1),
                    "An eigenvalue is a variance. With what should it be compared?",
                ),
                Misconception(
                    "no half",
                    lambda eigenvalues, sigma: rate_by_formula(eigenvalues, sigma, factor=1.0),
                    "Your rates are twice too large. Insert s² into the KL again: does the KL "
                    "contain log s or log s²?",
                ),
                Misconception(
                    "bits",
                    lambda eigenvalues, sigma: rate_by_formula(
                        eigenvalues, sigma, factor=0.5 / np.log(2)
                    ),
                    "These are bits. In this course a rate is in nats.",
                ),
                Misconception(
                    "negative rates",
                    lambda eigenvalues, sigma: rate_by_formula(eigenvalues, sigma, least=0.0),
                    "Right where a dimension is used. But a KL is never negative: what happens to "
                    "an axis along which the data vary less than the noise?",
                ),
                Misconception(
                    "signal for total",
                    lambda eigenvalues, sigma: 0.5 * np.log1p(eigenvalues / sigma**2),
                    "You took the eigenvalue for w². It is the variance of the data: signal and "
                    "noise, w² + σ².",
                ),
            ),
        ),
        Exercise(
            name="04.5",
            title="Spot the error: which distribution goes with softmax?",
            points=2,
            draw=draw_molecules,
            oracle=lambda **case: with_gradient(multinomial, **case),
            call="gradient",
            results=("log-probability", "its gradient in the logits"),
            atol=1e-5,  # differences
            rtol32=1e-4,
            atol32=1e-3,
            verified="Agrees with products of 50 digits for 16 cells, down to shares of e^−900.",
            misconceptions=(
                Misconception(
                    "Bernoulli",
                    lambda **case: with_gradient(bernoulli, **case),
                    "This is a Bernoulli for each gene, with a sigmoid. The genes of a cell "
                    "compete: their shares sum to 1.",
                ),
                Misconception(
                    "no ways to order",
                    lambda **case: with_gradient(lambda x, g: log_shares(x, g).sum(1), **case),
                    "This is the probability of one order in which the molecules came. The counts "
                    "do not say which: how many orders give the same counts?",
                ),
                Misconception(
                    "one molecule per cell",
                    lambda **case: with_gradient(divided_by_total, **case),
                    "You divided by the cell's total: a cell with 1,000 molecules would then weigh "
                    "as much as a cell with one.",
                ),
                Misconception(
                    "mean over genes",
                    lambda **case: with_gradient(lambda x, g: log_shares(x, g).mean(1), **case),
                    "You averaged over genes. The molecules are independent: do their "
                    "log-probabilities add up, or do they average?",
                ),
                Misconception(
                    "mean over genes, with the orders",
                    lambda **case: with_gradient(
                        lambda x, g: orders(x) + log_shares(x, g).mean(1), **case
                    ),
                    "You averaged over genes. The molecules are independent: do their "
                    "log-probabilities add up, or do they average?",
                ),
                Misconception(
                    "ℓ! forgotten",
                    lambda **case: with_gradient(
                        lambda x, g: multinomial(x, g) - log_factorial(x.sum(1)), **case
                    ),
                    "The gradient is right. In the number of orders, ℓ! is missing: ℓ is the "
                    "cell's total.",
                ),
                Misconception(
                    "no logarithm",
                    lambda **case: with_gradient(
                        lambda x, g: (
                            orders(x) + (x * np.exp(log_shares(np.ones_like(x), g))).sum(1)
                        ),
                        **case,
                    ),
                    "You took the shares themselves, not their logarithms.",
                ),
                Misconception(
                    "minus",
                    lambda **case: with_gradient(lambda x, g: -multinomial(x, g), **case),
                    "The sign is wrong: this is a loss. The log-probability is asked for.",
                ),
                Misconception(
                    "the softmax's sum without a gradient",
                    lambda logits, x, weight: (multinomial(x, logits), weight[:, None] * x),
                    "The numbers are right, but the gradient is not: it does not pass through "
                    "the sum in the softmax. Is there a detach?",
                ),
                Misconception(
                    "shares that underflow",
                    lambda **case: with_gradient(underflowing, **case),
                    "Right, except where a share underflows to 0: 0 · log 0 is NaN. Stay in logs; "
                    "torch has a log_softmax.",
                ),
            ),
        ),
        Exercise(
            name="04.6",
            title="Make new cells",
            points=2,
            draw=draw_decoders,
            oracle=summaries,
            results=(
                "mean",
                "variance",
                "share of zeros",
                "mean of its product with the first gene",
                "share of values that are not whole numbers",
                "distance of z's mean from the prior's, in standard errors",
                "distance of z's variance from the prior's, in standard errors",
                "cells too many or too few",
            ),
            at_most=(
                "share of values that are not whole numbers",
                "distance of z's mean from the prior's, in standard errors",
                "distance of z's variance from the prior's, in standard errors",
            ),
            rtol=0.1,  # of draws: about six standard errors
            atol=0.005,
            verified="Mean, variance, share of zeros and products of four genes agree with "
            "quadrature. The counts are whole, and z is from the prior.",
            misconceptions=(
                Misconception(
                    "means for cells",
                    lambda **case: of_means(lambda mean: mean, **case),
                    "Your cells are means of p(x|z): no count is a whole number and none is zero. "
                    "Which step of the generative model comes after the decoder?",
                ),
                Misconception(
                    "rounded means",
                    lambda **case: of_means(np.round, **case),
                    "Your cells are rounded means. They are whole numbers, but they vary too "
                    "little: which step of the generative model comes after the decoder?",
                ),
                Misconception(
                    "Poisson for any distribution",
                    lambda **case: summaries(
                        **case, given_mean=lambda mean, _: (mean, mean, np.exp(-mean))
                    ),
                    "You drew from a Poisson with the right mean. But decode(z) may be another "
                    "distribution, here a wider one. It can draw by itself.",
                ),
                Misconception(
                    "the same z for all cells",
                    lambda **case: summaries(**case, spread=0.0),
                    "All your cells come from z = 0, the mean of the prior. Where does z come "
                    "from?",
                ),
                Misconception(
                    "uniform z",
                    lambda **case: summaries(**case, uniform=True),
                    "Your z lie between 0 and 1, as torch.rand draws them. Which prior was the "
                    "decoder trained with?",
                ),
            ),
        ),
    )
}
