"""Lesson 01: right answers that learners write, and wrong ones, each with the mistake it shows."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import linalg, special
from torch import nn

from vaelab.teaching.exercises import SEED

from .answers import fail_by_name, pass_all, verdict_on

SEEDS = [SEED, 1, 2]

# 01.1


def logs_by_loop(counts):
    return [np.log(1 + row / row.sum() * 10_000) for row in counts]


def logs_in_pandas(counts):
    table = pd.DataFrame(counts)
    return table.div(table.sum(axis=1), axis=0).mul(1e4).map(np.log1p)


def logs_in_torch(counts):
    x = torch.tensor(counts, dtype=torch.float32)
    return torch.log1p(x / x.sum(1, keepdim=True) * 1e4)


def logs_by_transposing(counts):
    return np.log1p((counts.T / counts.sum(1)).T * 1e4)


def logs_by_einsum(counts):
    return np.log1p(np.einsum("ng,n->ng", counts, 1e4 / counts.sum(1))).tolist()


@np.errstate(all="ignore")
def logs_of_genes(counts):
    return np.log1p(1e4 * counts / counts.sum(0))


WRONG_LOGS = [
    (lambda c: np.log1p(c / c.sum(1, keepdims=True)), "no 10,000"),
    (logs_of_genes, "total of a gene"),
    (lambda c: np.log1p(c) / c.sum(1, keepdims=True) * 1e4, "logarithm first"),
    (lambda c: np.log1p(1e6 * c / c.sum(1, keepdims=True)), "per million"),
    (lambda c: np.log2(1 + 1e4 * c / c.sum(1, keepdims=True)), "another base"),
    (lambda c: 1e4 * c / c.sum(1, keepdims=True), "no logarithm"),
]


def test_counts_that_can_be_compared():
    right = [logs_by_loop, logs_in_pandas, logs_in_torch, logs_by_transposing, logs_by_einsum]
    pass_all("01.1", right, SEEDS)
    fail_by_name("01.1", WRONG_LOGS, SEEDS)


# 01.2


def layers(activations, bias=True, linear=nn.functional.linear):
    """Four layers with a function after each."""

    def both(x, *parameters):
        outputs = []
        for W, b, bend in zip(parameters[::2], parameters[1::2], activations, strict=True):
            x = bend(linear(x, W, b if bias else None))
            outputs.append(x)
        return outputs[1], outputs[3]

    return both


def same(v):
    return v


def by_modules(x, W1, b1, W2, b2, W3, b3, W4, b4):
    h = (W1 @ x.T + b1[:, None]).clamp(min=0)
    z = W2 @ h + b2[:, None]
    return z.T, (W4 @ (W3 @ z + b3[:, None]).clamp(min=0) + b4[:, None]).T


def cell_by_cell(x, W1, b1, W2, b2, W3, b3, W4, b4):
    codes = torch.stack([W2 @ torch.relu(W1 @ cell + b1) + b2 for cell in x])
    return codes, torch.stack([W4 @ torch.relu(W3 @ z + b3) + b4 for z in codes])


def by_addmm(x, W1, b1, W2, b2, W3, b3, W4, b4):
    z = torch.addmm(b2, torch.addmm(b1, x, W1.T).relu(), W2.T)
    return [z, torch.addmm(b4, torch.addmm(b3, z, W3.T).relu(), W4.T)]


def by_where(x, W1, b1, W2, b2, W3, b3, W4, b4):
    def bend(v):
        return torch.where(v > 0, v, 0.0)

    z = bend(x @ W1.T + b1) @ W2.T + b2
    return z, bend(z @ W3.T + b3) @ W4.T + b4


relu = torch.relu
WRONG_PASSES = [
    (layers((relu, relu, relu, same)), "ReLU at the code"),
    (layers((relu, same, relu, relu)), "ReLU at the output"),
    (layers((relu, relu, relu, relu)), "ReLU everywhere"),
    (layers((same, same, same, same)), "no ReLU"),
    (layers((relu, same, relu, same), bias=False), "no biases"),
]


def test_through_the_bottleneck_and_back():
    right = [layers((relu, same, relu, same)), by_modules, cell_by_cell, by_addmm, by_where]
    pass_all("01.2", right, SEEDS)
    fail_by_name("01.2", WRONG_PASSES, SEEDS)


def third_layer_detached(x, W1, b1, W2, b2, W3, b3, W4, b4):
    z = relu(x @ W1.T + b1) @ W2.T + b2
    return z, relu(z @ W3.detach().T + b3) @ W4.T + b4


def decoder_cut_off(x, W1, b1, W2, b2, W3, b3, W4, b4):
    z = relu(x @ W1.T + b1) @ W2.T + b2
    return z, relu(z.detach() @ W3.T + b3) @ W4.T + b4


def code_detached(*inputs):
    z, reconstruction = layers((relu, same, relu, same))(*inputs)
    return z.detach(), reconstruction


def hidden_layer_without_gradient(x, W1, b1, W2, b2, W3, b3, W4, b4):
    z = relu(x @ W1.T + b1) @ W2.T + b2
    with torch.no_grad():
        h = relu(z @ W3.T + b3)
    return z, h @ W4.T + b4


@pytest.mark.parametrize(
    ("answer", "lost"),
    [
        (third_layer_detached, "W3, and"),
        (decoder_cut_off, "x, W1, b1, W2, b2, and"),
        (code_detached, "x, W1, b1, W2, b2, and"),
        (hidden_layer_without_gradient, "x, W1, b1, W2, b2, W3, b3, and"),
    ],
)
def test_weights_that_no_gradient_reaches_are_named(answer, lost):
    verdict = verdict_on("01.2", answer)
    assert not verdict.passed and f"flows back to {lost}" in verdict.message, str(verdict)


# 01.3


def losses(squares="mean", crossed="sum", sign=-1, log=torch.log_softmax, shares=None):
    def both(x, scores):
        log_shares = log(scores, -1)
        out = torch.softmax(scores, -1) if shares is None else shares(scores)
        first = getattr((x - out) ** 2, squares)(-1)
        return first, sign * getattr(x * log_shares, crossed)(-1)

    return both


def losses_by_torch(x, scores):
    mse = nn.functional.mse_loss(scores.softmax(-1), x, reduction="none").mean(1)
    return mse, nn.functional.cross_entropy(scores, x, reduction="none")


def losses_in_numpy(x, scores):
    log_shares = special.log_softmax(scores.numpy(), axis=1)
    x = x.numpy()
    return np.mean((np.exp(log_shares) - x) ** 2, axis=1), -np.sum(x * log_shares, axis=1)


def losses_by_logsumexp(x, scores):
    log_shares = scores - scores.logsumexp(1, keepdim=True)
    return [(log_shares.exp() - x).square().mean(1).tolist(), (-(x * log_shares)).sum(1).tolist()]


def losses_by_einsum(x, scores):
    log_shares = nn.LogSoftmax(dim=1)(scores)
    return (x - log_shares.exp()).pow(2).sum(1) / x.shape[1], -torch.einsum(
        "ng,ng->n", x, log_shares
    )


def softmax_twice(x, scores):
    shares = scores.softmax(-1)
    return ((x - shares) ** 2).mean(1), nn.functional.cross_entropy(shares, x, reduction="none")


WRONG_LOSSES = [
    (softmax_twice, "softmax twice"),
    (losses(crossed="mean"), "cross-entropy over genes"),
    (losses(squares="sum"), "sum of squares"),
    (losses(sign=1), "sign"),
    (losses(log=lambda s, d: s.log_softmax(d) / np.log(2)), "bits"),
    (losses(shares=lambda s: s), "scores as shares"),
]


def test_two_losses():
    right = [losses(), losses_by_torch, losses_in_numpy, losses_by_logsumexp, losses_by_einsum]
    pass_all("01.3", right, SEEDS)
    fail_by_name("01.3", WRONG_LOSSES, SEEDS)


def test_a_logarithm_of_a_share_that_is_zero_is_seen():
    verdict = verdict_on("01.3", losses(log=lambda s, d: s.softmax(d).log()))
    assert not verdict.passed and ("NaN" in verdict.message or "inf" in verdict.message)


# 01.4: as the lesson's check calls it


def mapped(loss):
    return lambda w, x, noise: loss(lambda v: torch.relu(v @ w), x, noise)


RIGHT_DENOISING = [
    lambda f, x, noise: nn.functional.mse_loss(f(x + noise), x),
    lambda f, x, noise: (f(x + noise) - x).square().mean(1).mean(),
    lambda f, x, noise: ((x - f(noise + x)) ** 2).sum() / x.numel(),
    lambda f, x, noise: torch.linalg.norm(f(x + noise) - x) ** 2 / x.numel(),
    lambda f, x, noise: torch.stack(
        [((f((x[i] + noise[i])[None])[0] - x[i]) ** 2).mean() for i in range(len(x))]
    ).mean(),
]
WRONG_DENOISING = [
    (lambda f, x, noise: ((f(x + noise) - (x + noise)) ** 2).mean(), "noisy target"),
    (lambda f, x, noise: ((f(x) - x) ** 2).mean(), "no noise"),
    (lambda f, x, noise: ((f(x) - (x + noise)) ** 2).mean(), "noise as the target"),
    (lambda f, x, noise: ((f(x + noise) - x) ** 2).sum(1).mean(), "sum over genes"),
    (lambda f, x, noise: nn.functional.mse_loss(f(x + noise), x + noise), "noisy target"),
]


def test_teach_it_to_remove_noise():
    pass_all("01.4", [mapped(loss) for loss in RIGHT_DENOISING], SEEDS)
    fail_by_name("01.4", [(mapped(loss), name) for loss, name in WRONG_DENOISING], SEEDS)


def test_noise_that_goes_through_the_network_by_itself_is_seen():
    def apart(f, x, noise):
        return ((f(x) + f(noise) - x) ** 2).mean()  # the same for a network without bends

    assert not verdict_on("01.4", mapped(apart)).passed


@pytest.mark.parametrize("end", [torch.Tensor.item, torch.Tensor.detach])
def test_a_loss_without_a_gradient_is_told_so(end):
    verdict = verdict_on("01.4", mapped(lambda f, x, noise: end(RIGHT_DENOISING[0](f, x, noise))))
    assert not verdict.passed and "gradient" in verdict.message, str(verdict)


# 01.5


def angle_by_projections(A, B):
    """The sine is the norm of what one projection leaves of the other basis."""
    Q = linalg.orth(B)
    left = Q - A @ np.linalg.lstsq(A, Q, rcond=None)[0]
    return np.arcsin(np.linalg.norm(left, 2).clip(0, 1))


def angle_in_torch(A, B):
    (A, _), (B, _) = (torch.linalg.qr(torch.as_tensor(v)) for v in (A, B))
    return torch.arccos(torch.linalg.svdvals(A.T @ B).clamp(max=1)[-1])


def angle_by_svd(A, B):
    A, B = (np.linalg.svd(v, full_matrices=False)[0] for v in (A, B))
    return float(np.arccos(np.minimum(1, np.linalg.svd(B.T @ A)[1])).max())


def angle_by_eigenvalues(A, B):
    A, B = linalg.orth(A), linalg.orth(B)
    return np.arccos(np.sqrt(np.linalg.eigvalsh(A.T @ B @ B.T @ A)[0].clip(0, 1)))


def angles(A, B, orthonormal=True):
    if orthonormal:
        A, B = linalg.orth(A), linalg.orth(B)
    return np.arccos(np.clip(np.linalg.svd(A.T @ B)[1], 0, 1))


def columns_of_length_one(A, B):
    return angles(A / np.linalg.norm(A, axis=0), B / np.linalg.norm(B, axis=0), False).max()


def pairs_of_axes(A, B):
    A, B = A / np.linalg.norm(A, axis=0), B / np.linalg.norm(B, axis=0)
    return np.arccos(np.abs((A * B).sum(0)).clip(0, 1)).max()


RIGHT_ANGLES = [
    lambda A, B: linalg.subspace_angles(A, B)[0],
    angle_by_projections,
    angle_in_torch,
    angle_by_svd,
    angle_by_eigenvalues,
]
WRONG_ANGLES = [
    (lambda A, B: angles(A, B).min(), "smallest angle"),
    (columns_of_length_one, "lengths alone"),
    (pairs_of_axes, "axis by axis"),
    (lambda A, B: np.degrees(angles(A, B).max()), "degrees"),
    (lambda A, B: np.cos(angles(A, B).max()), "cosine"),
]


def test_the_angle_between_two_subspaces():
    pass_all("01.5", RIGHT_ANGLES, SEEDS)
    fail_by_name("01.5", WRONG_ANGLES, SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("basis", [linalg.orth, lambda A: np.linalg.qr(A)[0]])
def test_an_arccos_of_a_cosine_above_one_is_seen(basis, seed):
    def unclipped(A, B):
        return np.arccos(np.linalg.svd(basis(A).T @ basis(B))[1].min())

    verdict = verdict_on("01.5", unclipped, seed)
    assert not verdict.passed and "NaN" in verdict.message, str(verdict)
