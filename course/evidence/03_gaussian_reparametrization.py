"""Evidence for lesson 03: what each claim rests on. Run with ``vaelab evidence 03``."""

from unittest import mock

import numpy as np
import torch
from torch.distributions import Normal, kl_divergence

import vaelab
from vaelab.reparametrization import gaussian, score_function
from vaelab.teaching.evidence import claim, every, more, near

SIGMA, N_GENES, N_HIDDEN = 0.8, 100, 32


@claim(
    "E03.one_line",
    "If the draw of z is replaced by one that blocks the gradient, the KL to the prior of a VAE of "
    "blood cells is almost zero after training, and several nats otherwise.",
    holds=every(more("free", "blocked", by=4), near("blocked", 0, 0.05)),
    tolerance={"free": 1.0, "blocked": 0.05},
)
def one_line(seed: int) -> dict[str, float]:
    cells, found = vaelab.Cells.from_anndata(vaelab.datasets.pbmc_small()), {}
    draws = {
        "free": gaussian,
        "blocked": lambda mean, std, n_samples: Normal(mean, std).sample((n_samples,)),
    }
    for name, draw in draws.items():
        with mock.patch("vaelab.models.vae.gaussian", draw):
            model = vaelab.VAE(n_genes=cells.n_genes, n_latent=2, likelihood="nb", seed=seed)
            history = vaelab.fit(model, cells, epochs=40, seed=seed, progress=False)
        found[name] = float(history.frame["kl_z"].iloc[-1])
    return found


def blood() -> torch.Tensor:
    """The 100 most variable genes of 700 blood cells, standardised."""
    adata = vaelab.datasets.pbmc_small()
    per_10_000 = 1e4 * adata.X.toarray() / adata.obs["n_counts"].to_numpy()[:, None]
    expression = np.log1p(per_10_000).astype(float)
    x = torch.as_tensor(expression[:, np.argsort(-expression.var(0))[:N_GENES]])
    return (x - x.mean(0)) / x.std(0)


def bound_of(weights, x, way: str, n_draws: int):
    encoder, W1, b1, W2 = weights
    m, log_var = (x @ encoder).chunk(2, dim=-1)
    q = Normal(m, torch.exp(0.5 * log_var), validate_args=False)

    def log_likelihood(z):
        mean = torch.tanh(z @ W1 + b1) @ W2
        return Normal(mean, SIGMA, validate_args=False).log_prob(x).sum(-1)

    if way == "pathwise":
        reconstruction = log_likelihood(q.rsample((n_draws,))).mean(0)
    elif way == "blocked":
        reconstruction = log_likelihood(q.sample((n_draws,))).mean(0)
    else:
        baseline = way == "score_baseline"
        reconstruction = score_function(log_likelihood, q, n_samples=n_draws, baseline=baseline)
    prior = Normal(torch.zeros(2).to(x), 1.0)
    return (reconstruction - kl_divergence(q, prior).sum(-1)).mean()


def trained(x, way: str, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weights = [0.02 * normal(N_GENES, 4), normal(2, N_HIDDEN), normal(N_HIDDEN)]
    weights = [w.requires_grad_() for w in (*weights, 0.1 * normal(N_HIDDEN, N_GENES))]
    optimiser = torch.optim.Adam(weights, lr=1e-2)
    torch.manual_seed(seed)
    for _ in range(400):
        optimiser.zero_grad()
        batch = x[torch.randint(len(x), (100,))]
        (-bound_of(weights, batch, way, n_draws=2)).backward()
        optimiser.step()
    return weights


@claim(
    "E03.four_gradients",
    "The same small VAE of blood cells ends with a higher bound by the pathwise gradient than by "
    "the score function with a leave-one-out baseline, by that than by the plain score function, "
    "and by that than with the gradient blocked.",
    holds=every(
        more("pathwise", "score_baseline"),
        more("score_baseline", "score", by=3),
        more("score", "blocked", by=3),
    ),
)
def four_gradients(seed: int) -> dict[str, float]:
    x, found = blood(), {}
    for way in ("pathwise", "score_baseline", "score", "blocked"):
        weights = trained(x, way, seed)
        torch.manual_seed(100)
        with torch.no_grad():
            found[way] = bound_of(weights, x, "pathwise", n_draws=20).item()
    return found


@claim(
    "E03.cells_or_draws",
    "With 100 decodings per step, the gradient from ten cells with ten draws each has nearly twice "
    "the variance of that from 100 cells with one draw each.",
    holds=more("ratio", "one", by=0.5),
)
def cells_or_draws(seed: int) -> dict[str, float]:
    """The variance of the encoder's gradient, summed over its weights, from 300 minibatches."""
    x = blood()
    weights, variance = trained(x, "pathwise", seed), {}
    for n_cells, n_draws in ((10, 10), (100, 1)):
        torch.manual_seed(1000 + seed)
        gradients = []
        for _ in range(300):
            batch = x[torch.randint(len(x), (n_cells,))]
            bound = bound_of(weights, batch, "pathwise", n_draws)
            gradients.append(torch.autograd.grad(bound, weights[0])[0].flatten())
        variance[n_cells] = torch.stack(gradients).var(0).sum().item()
    return {"ratio": variance[10] / variance[100], "one": 1.0}
