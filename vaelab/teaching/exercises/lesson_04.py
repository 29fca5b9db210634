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
        case = {
            "weights": rng.normal(0, 0.5, (2, n_genes, n_latent)),  # of m and of log s
            "to_genes": rng.normal(0, 1, (n_latent, n_genes)),
            "sigma": rng.uniform(0.5, 2.0, n_genes),
            "x": rng.normal(0, 1, (n_cells, n_genes)),
            "noise": rng.normal(0, 1, (n_cells, n_latent)),
            "weight": rng.uniform(0.5, 1.5, (2, n_cells)),  # of each number, in the gradient
        }
        cases.append({name: value.astype(kind) for name, value in case.items()})
    return cases


def two_terms(weights, to_genes, sigma, x, noise, weight, over_genes=np.sum, over_latent=np.sum,
              s_power=1, use_noise=True, log_s=2.0, kl_sign=1, z_of=None):  # fmt: skip
    """Log-densities from scipy; the KL as cross-entropy minus entropy. z_of: weights that give z"""
    from scipy import stats

    def moments(of):
        return x @ of[0], np.exp(x @ of[1])

    m, s = moments(weights)
    mean, std = moments(weights if z_of is None else z_of)
    z = mean + std**s_power * noise * use_noise
    log_px = over_genes(stats.norm.logpdf(x, z @ to_genes, sigma), axis=1)
    cross_entropy = 0.5 * np.log(2 * np.pi) + 0.5 * (m**2 + s**2)
    kl = cross_entropy - stats.norm.entropy(m, s) + (1 - log_s / 2) * np.log(s)
    return np.stack([log_px, kl_sign * over_latent(kl, axis=1)])


def terms_and_gradient(detach=False, no_gradient=False, **case):
    """The terms, and the gradient of their weighted sum in the encoder's weights, by differences.

    With ``detach``, z does not move with the weights.
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
    return value, gradient * (not no_gradient)


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
    """Two variances, one on each side of σ²; then many, none within a tenth of it."""
    cases = [{"eigenvalues": np.array([4.0, 0.5]), "sigma": 1.0}]
    for sigma in 10 ** rng.uniform(-1, 1, 3):
        ratio = 10 ** np.concatenate([rng.uniform(0.05, 3, 6), rng.uniform(-2, -0.05, 4)])
        cases.append({"eigenvalues": -np.sort(-ratio) * sigma**2, "sigma": float(sigma)})
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
    """One molecule; a few cells of different depth; shares that underflow; and float32."""
    cases = [{"x": np.array([[0.0, 1.0, 0.0]]), "logits": np.zeros((1, 3))}]
    depth = rng.integers(2, 60, 5)
    logits = rng.normal(0, 1.5, (5, 7)) + rng.normal(0, 3, (5, 1))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    x = np.array([rng.multinomial(n, p) for n, p in zip(depth, shares, strict=True)], dtype=float)
    cases.append({"x": x, "logits": logits})
    low = logits.copy()
    low[:, -1] -= 900.0
    cases.append({"x": x * (np.arange(7) < 6), "logits": low})
    cases.append({"x": x.astype(np.float32), "logits": logits.astype(np.float32)})
    return cases


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


def summaries(w, b, theta, n_cells, given_mean=None, uniform=False, spread=1.0):
    """Each gene's mean, variance and share of zeros, by quadrature over the log-mean.

    ``given_mean`` gives mean, variance and P(0) of what is returned for a cell of some mean.
    """
    if given_mean is None:

        def given_mean(mean, theta):
            return mean, mean + mean**2 / theta, (theta / (theta + mean)) ** theta

    if uniform:  # z from 0 to 1 in each dimension
        middle = (np.arange(40) + 0.5) / 40
        z = np.stack(np.meshgrid(*[middle] * len(w)), -1).reshape(-1, len(w))
        u, weights = z @ w, np.full((len(z), 1), 1 / len(z))
    else:
        at = np.linspace(-8, 8, 4001)[:, None]
        u = at * spread * np.sqrt((w**2).sum(0))
        weights = np.exp(-0.5 * at**2) / np.exp(-0.5 * at**2).sum()
    mean, variance, zero = given_mean(np.exp(u + b), theta)
    total = (weights * mean).sum(0)
    return total, (weights * (variance + (mean - total) ** 2)).sum(0), (weights * zero).sum(0)


def of_means(change, **case):
    """The same of cells that are not drawn: ``change`` of the mean is returned."""

    def given_mean(mean, _):
        value = change(mean)
        return value, 0 * value, (value == 0).astype(float)

    return summaries(**case, given_mean=given_mean)


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
            results=("log p(x|z) and the KL, stacked", "their gradient in the encoder's weights"),
            rtol=1e-5,  # differences
            atol=1e-6,
            verified="Agrees with scipy for 16 cells of four VAEs: both terms, and the gradient "
            "that reaches the encoder.",
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
                    lambda **case: terms_and_gradient(kl_sign=-1, **case),
                    "The second number should be the KL itself, which is not below 0. The minus "
                    "comes later, in the bound.",
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
                    lambda **case: terms_and_gradient(no_gradient=True, **case),
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
            verified="Agrees with the best model that a search finds, on 32 axes.",
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
            oracle=multinomial,
            returns="tensor with gradient in logits",
            rtol32=1e-4,
            verified="Agrees with products of 50 digits for 16 cells, down to shares of e^−900.",
            misconceptions=(
                Misconception(
                    "Bernoulli",
                    bernoulli,
                    "This is a Bernoulli for each gene, with a sigmoid. The genes of a cell "
                    "compete: their shares sum to 1.",
                ),
                Misconception(
                    "no ways to order",
                    lambda x, logits: log_shares(x, logits).sum(1),
                    "This is the probability of one order in which the molecules came. The counts "
                    "do not say which: how many orders give the same counts?",
                ),
                Misconception(
                    "one molecule per cell",
                    divided_by_total,
                    "You divided by the cell's total: a cell with 1,000 molecules would then weigh "
                    "as much as a cell with one.",
                ),
                Misconception(
                    "mean over genes",
                    lambda x, logits: log_shares(x, logits).mean(1),
                    "You averaged over genes. The molecules are independent: do their "
                    "log-probabilities add up, or do they average?",
                ),
                Misconception(
                    "shares that underflow",
                    underflowing,
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
            results=("mean", "variance", "share of zeros"),
            rtol=0.1,  # of draws: about six standard errors
            atol=0.005,
            verified="Mean, variance and share of zeros of four genes agree with quadrature.",
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
