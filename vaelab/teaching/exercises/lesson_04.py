"""Exercises of lesson 04: what a VAE's numbers do."""

from __future__ import annotations

import numpy as np

from .core import Exercise, Misconception

__all__ = ["EXERCISES"]


# 04.1: embedding in evaluation mode


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


# 04.2: which σ a loss stands for


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


# 04.3: the rate of a linear VAE


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


# 04.4: free bits


def draw_terms(rng: np.random.Generator) -> list[dict]:
    """Two cells and two dimensions; then many, some below the free bits and some above."""
    cases = [
        {
            "free": 0.5,
            "reconstruction": np.array([-3.0, -5.0]),
            "kl": np.array([[0.0, 2.0], [0.2, 1.0]]),
        }
    ]
    for free in (0.1, 1.0):
        level = free * np.array([0.05, 0.5, 0.8, 1.3, 2.0, 6.0])
        kl = level * rng.gamma(2, 0.5, (40, 6))
        kl *= level / kl.mean(0)  # so that none is close to the limit
        cases.append({"free": free, "reconstruction": rng.normal(-300, 30, 40), "kl": kl})
    return cases


def free_bits(free, reconstruction, kl):
    """The loss by loops, and its derivative in each KL by hand."""
    loss, slope = 0.0, np.zeros(kl.shape)
    for n in range(len(kl)):
        loss -= reconstruction[n] / len(kl)
    for d in range(kl.shape[1]):
        held = sum(kl[n, d] for n in range(len(kl))) / len(kl)
        loss += held if held > free else free
        slope[:, d] = 1 / len(kl) if held > free else 0.0
    return np.asarray(loss), slope


def free_per_cell(free, reconstruction, kl):
    loss = np.maximum(kl, free).sum(1).mean() - reconstruction.mean()
    return np.asarray(loss), np.where(kl > free, 1 / len(kl), 0.0)


def free_in_total(free, reconstruction, kl):
    total = kl.sum(1).mean()
    loss = max(total, free) - reconstruction.mean()
    return np.asarray(loss), np.full(kl.shape, float(total > free) / len(kl))


def free_taken_off(free, reconstruction, kl):
    loss, slope = free_bits(free, reconstruction, kl)
    return loss - free * kl.shape[1], slope


def free_as_a_ceiling(free, reconstruction, kl):
    mean = kl.mean(0)
    slope = np.broadcast_to(np.where(mean < free, 1 / len(kl), 0.0), kl.shape)
    return np.asarray(np.minimum(mean, free).sum() - reconstruction.mean()), slope


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


EXERCISES = {
    exercise.name: exercise
    for exercise in (
        Exercise(
            name="04.1",
            title="Embed a cell the same way twice",
            points=2,
            draw=draw_encoders,
            oracle=embedded,
            call="encoder",
            returns="tensor without gradient",
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
            ),
        ),
        Exercise(
            name="04.2",
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
            name="04.3",
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
            name="04.4",
            title="Free bits",
            points=2,
            draw=draw_terms,
            oracle=free_bits,
            call="slope",
            verified="Value and gradient agree with loops, for 82 cells.",
            misconceptions=(
                Misconception(
                    "for each cell",
                    free_per_cell,
                    "You gave each cell its own free nats. Here a dimension has them on average. "
                    "What do you have to do before you take the larger of the two?",
                ),
                Misconception(
                    "for all dimensions together",
                    free_in_total,
                    "You compare the sum over dimensions with the free nats, so one dimension can "
                    "use up those of all others. Each dimension has its own.",
                ),
                Misconception(
                    "taken off",
                    free_taken_off,
                    "The gradient is right, so training would be the same. But the value is too "
                    "low: a dimension below its free nats does not count as 0. As what does it "
                    "count?",
                ),
                Misconception(
                    "a ceiling for a floor",
                    free_as_a_ceiling,
                    "You take the smaller of the two. Dimensions with a large KL can then grow at "
                    "no cost, and those with a small KL are punished.",
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
    )
}
