"""Exercises of lesson 01: autoencoders."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from .core import Exercise, Misconception

__all__ = ["EXERCISES"]


# 01.1: counts that can be compared


def draw_counts(rng: np.random.Generator) -> list[dict]:
    """One cell that was read twice as deeply as the other, then cells of any depth."""
    cases = [{"counts": np.array([[2.0, 0.0, 8.0], [4.0, 0.0, 16.0]])}]
    for n_cells, n_genes in ((5, 30), (12, 200)):
        share = rng.dirichlet(np.full(n_genes, 0.3), size=n_cells)
        depth = 10 ** rng.uniform(2.5, 4, (n_cells, 1))
        counts = rng.poisson(depth * share).astype(float)
        counts[:, 0] += 1  # no cell is empty
        cases.append({"counts": counts})
    return cases


def cell_by_cell(counts, scale=1e4, log=math.log1p):
    rows = []
    for row in counts:
        total = math.fsum(row)
        rows.append([log(scale * count / total) for count in row])
    return np.array(rows)


def by_gene(counts):
    return cell_by_cell(counts.T).T if (counts.sum(0) > 0).all() else _nan_genes(counts)


def _nan_genes(counts):
    result = np.full(counts.shape, np.nan)
    seen = counts.sum(0) > 0
    result[:, seen] = cell_by_cell(counts[:, seen].T).T
    return result


def log_before_scaling(counts):
    return np.array([[1e4 * math.log1p(c) / math.fsum(row) for c in row] for row in counts])


# 01.2: through the bottleneck and back


def draw_networks(rng: np.random.Generator) -> list[dict]:
    """One cell of two genes through a code of one number, then more of everything."""
    cases = []
    for n_cells, n_genes, n_hidden, n_latent in ((1, 2, 2, 1), (4, 6, 5, 2), (9, 12, 8, 3)):
        sizes = (n_genes, n_hidden, n_latent, n_hidden, n_genes)
        case = {"x": rng.normal(size=(n_cells, n_genes))}
        for i, (n_in, n_out) in enumerate(pairwise(sizes), start=1):
            case[f"W{i}"] = rng.normal(size=(n_out, n_in))
            case[f"b{i}"] = rng.normal(size=n_out)
        cases.append(case)
    cases[0] |= {"W1": np.array([[1.0, -2.0], [-1.0, 1.0]]), "x": np.array([[3.0, 1.0]])}
    cases[0] |= {"W2": np.array([[-2.0, 1.0]]), "b2": np.array([-0.5])}  # so that the code is < 0
    return cases


def pass_through(hidden=True, code=False, output=False, bias=True):
    """Cell by cell and unit by unit; ``hidden``, ``code`` and ``output`` say where a ReLU is."""

    def layer(inputs, weights, biases, bend):
        units = []
        for row, shift in zip(weights, biases, strict=True):
            unit = math.fsum(w * v for w, v in zip(row, inputs, strict=True)) + bias * shift
            units.append(max(unit, 0.0) if bend else unit)
        return units

    def both(x, W1, b1, W2, b2, W3, b3, W4, b4):
        codes, reconstructions = [], []
        for cell in x:
            codes.append(layer(layer(cell, W1, b1, hidden), W2, b2, code))
            reconstructions.append(layer(layer(codes[-1], W3, b3, hidden), W4, b4, output))
        return np.array(codes), np.array(reconstructions)

    return both


# 01.3: two losses


def draw_shares(rng: np.random.Generator) -> list[dict]:
    """The lesson's cell of three genes; then any, and one with scores far from zero."""
    lesson = {"x": np.array([[0.5, 0.25, 0.25]]), "scores": np.log([[1.0, 1.0, 2.0]])}
    cases = [lesson]
    for n_cells, n_genes in ((4, 6), (7, 40)):
        x = rng.dirichlet(np.full(n_genes, 0.5), size=n_cells)
        cases.append({"x": x, "scores": rng.normal(0, 2, (n_cells, n_genes))})
    far = rng.normal(0, 1, (3, 5)) + np.array([900.0, 0, 0, 0, -900.0])
    return [*cases, {"x": rng.dirichlet(np.ones(5), size=3), "scores": far}]


def log_shares(scores):
    """The logs of softmax shares, one cell and one gene at a time."""
    rows = []
    for row in scores:
        top = max(row)
        total = top + math.log(math.fsum(math.exp(s - top) for s in row))
        rows.append([s - total for s in row])
    return np.array(rows)


def losses_with(mean=True, per_gene=False, sign=-1.0, log=log_shares, share=None):
    def both(x, scores):
        shares = np.exp(log_shares(scores)) if share is None else share(scores)
        squares = (x - shares) ** 2
        n_genes = x.shape[1]
        crossed = sign * np.einsum("ng,ng->n", x, log(scores))
        return np.einsum("ng->n", squares) / (n_genes if mean else 1), (
            crossed / n_genes if per_gene else crossed
        )

    return both


def softmax_twice(scores):
    return log_shares(np.exp(log_shares(scores)))


def from_bits(scores):
    return log_shares(scores) / math.log(2)


# 01.4: denoising


def draw_noisy(rng: np.random.Generator) -> list[dict]:
    """One cell of two genes and a network that is a ReLU alone, then others."""
    plain = {"w": np.eye(2), "x": np.array([[1.0, -1.0]]), "noise": np.array([[0.5, 0.0]])}
    cases = [plain]
    for n_cells, n_genes in ((3, 4), (20, 10)):
        w = np.eye(n_genes) * 0.7 + 0.2 * rng.normal(size=(n_genes, n_genes))
        x = rng.normal(size=(n_cells, n_genes))
        cases.append({"w": w, "x": x, "noise": 0.8 * rng.normal(size=x.shape)})
    return cases


def denoising_with(inputs, target, total=False):
    """The mean square in numpy; ``inputs`` and ``target`` are functions of x and the noise."""

    def loss(w, x, noise):
        out = np.maximum(np.einsum("ng,gh->nh", inputs(x, noise), w), 0)
        squares = (out - target(x, noise)) ** 2
        return np.asarray(squares.sum() / (len(x) if total else squares.size))

    return loss


# 01.5: the angle between two subspaces


def draw_bases(rng: np.random.Generator) -> list[dict]:
    """One plane in two bases; a line at 60°; then planes and spaces that share a part or none."""
    a = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    cases = [{"A": a, "B": a @ np.array([[2.0, 1.0], [1.0, 3.0]])}]
    cases.append({"A": np.array([[1.0], [0.0]]), "B": np.array([[1.0], [math.sqrt(3)]])})
    for n_genes, n_latent in ((5, 2), (30, 3)):
        A = rng.normal(size=(n_genes, n_latent))
        B = A @ rng.normal(size=(n_latent, n_latent))
        B = B + rng.uniform(0.3, 0.6) * rng.normal(size=B.shape)
        cases.append({"A": A, "B": B})
    shared = rng.normal(size=(8, 2))
    other = np.column_stack([shared[:, 0] + shared[:, 1], rng.normal(size=8)])
    return [*cases, {"A": shared, "B": other}, *equal_lines(rng)]


N_LINES = 60


def equal_lines(rng: np.random.Generator) -> list[dict]:
    """Lines, each in two scales. About a third of their cosines round above 1, others elsewhere."""
    lines = (rng.normal(size=(50, 1)) for _ in range(N_LINES))
    return [{"A": line, "B": line * rng.uniform(0.5, 2)} for line in lines]


def angle_by_scipy(A, B):
    from scipy.linalg import subspace_angles

    return np.asarray(subspace_angles(A, B).max())


def smallest_angle(A, B):
    from scipy.linalg import subspace_angles

    return np.asarray(subspace_angles(A, B).min())


def in_degrees(A, B):
    return np.degrees(angle_by_scipy(A, B))


def its_cosine(A, B):
    return np.cos(angle_by_scipy(A, B))


def axis_by_axis(A, B):
    """The largest angle between the first axes, the second axes, and so on."""
    pairs = zip(A.T, B.T, strict=True)
    return np.asarray(
        max(math.acos(min(1.0, abs(a @ b) / math.sqrt((a @ a) * (b @ b)))) for a, b in pairs)
    )


def lengths_alone(A, B):
    """The axes get length 1, but no right angles."""
    A, B = (V / np.sqrt((V**2).sum(0)) for V in (A, B))
    values = np.sqrt(np.abs(np.linalg.eigvalsh(A.T @ B @ B.T @ A)))
    return np.asarray(math.acos(min(1.0, values.min())))


EXERCISES = {
    exercise.name: exercise
    for exercise in (
        Exercise(
            name="01.1",
            title="Counts that can be compared",
            points=2,
            draw=draw_counts,
            oracle=cell_by_cell,
            verified="Two cells of equal shares agree at any depth, and 19 cells are right.",
            misconceptions=(
                Misconception(
                    "no 10,000",
                    lambda counts: cell_by_cell(counts, scale=1.0),
                    "These are logs of 1 + a *share*. Shares are so far below 1 that the logarithm "
                    "changes nothing: section 1 shows it. Bring the shares to counts per 10,000 "
                    "first.",
                ),
                Misconception(
                    "total of a gene",
                    by_gene,
                    "You divided by the total of each *gene* over cells. Two cells become "
                    "comparable through the total of each *cell*: which axis do the genes have?",
                ),
                Misconception(
                    "logarithm first",
                    log_before_scaling,
                    "The logarithm came before the scaling. Then a cell that was read twice as "
                    "deeply is still another cell: compare the two rows of the first input.",
                ),
                Misconception(
                    "per million",
                    lambda counts: cell_by_cell(counts, scale=1e6),
                    "These are counts per *million*. A cell in a droplet has thousands of "
                    "molecules, and the lesson scales them to 10,000.",
                ),
                Misconception(
                    "another base",
                    lambda counts: cell_by_cell(counts, log=lambda v: math.log1p(v) / math.log(2)),
                    "The logarithm has base 2. The lesson's is the natural one.",
                ),
                Misconception(
                    "no logarithm",
                    lambda counts: cell_by_cell(counts, log=float),
                    "The counts per 10,000 are right. The logarithm of 1 + them is still to come.",
                ),
            ),
            call="arrays",
        ),
        Exercise(
            name="01.2",
            title="Through the bottleneck and back",
            points=3,
            draw=draw_networks,
            oracle=pass_through(),
            verified="Codes and reconstructions of 14 cells agree; gradients reach all weights.",
            misconceptions=(
                Misconception(
                    "ReLU at the code",
                    pass_through(code=True),
                    "The code went through a ReLU too, so that half of each axis is cut off. The "
                    "ReLU stands after *hidden* layers.",
                ),
                Misconception(
                    "ReLU at the output",
                    pass_through(output=True),
                    "The reconstruction went through a ReLU, so that it cannot be below zero, but "
                    "x can. The last layer of a decoder has the output that fits the data; here it "
                    "is linear.",
                ),
                Misconception(
                    "ReLU everywhere",
                    pass_through(code=True, output=True),
                    "A ReLU stands after every layer. Only the hidden layers have one: neither the "
                    "code nor the reconstruction is a hidden layer.",
                ),
                Misconception(
                    "no ReLU",
                    pass_through(hidden=False),
                    "No layer has a ReLU. Four linear layers in a row are one linear map: section "
                    "5 says what such an autoencoder can find.",
                ),
                Misconception(
                    "no biases",
                    pass_through(bias=False),
                    "The biases are missing: each layer is W v + b.",
                ),
            ),
            # each by itself: a decoder cut off from the code would leave the encoder untrained
            returns="tensor with gradient in x, W1, b1, W2, b2; x, W1, b1, W2, b2, W3, b3, W4, b4",
            results=("the code", "the reconstruction"),
        ),
        Exercise(
            name="01.3",
            title="Two losses",
            points=3,
            draw=draw_shares,
            oracle=losses_with(),
            verified="Both losses agree for 15 cells, also where the scores are 900 apart.",
            misconceptions=(
                Misconception(
                    "softmax twice",
                    losses_with(log=softmax_twice),
                    "The cross-entropy applied the softmax *twice*. torch's `cross_entropy` and "
                    "`log_softmax` take scores, not shares. A released model of this field had the "
                    "same bug: lesson 12.",
                ),
                Misconception(
                    "cross-entropy over genes",
                    losses_with(per_gene=True),
                    "The cross-entropy was divided by the number of genes. Some texts do that. But "
                    "the x are shares, so the sum over genes is already a mean: of −log x̂ over the "
                    "cell's molecules.",
                ),
                Misconception(
                    "sum of squares",
                    losses_with(mean=False),
                    "The first loss is the *mean* over genes of the squares. Yours is their sum.",
                ),
                Misconception(
                    "sign",
                    losses_with(sign=1.0),
                    "The cross-entropy has the wrong sign. A loss falls when the reconstruction "
                    "gets better.",
                ),
                Misconception(
                    "bits",
                    losses_with(log=from_bits),
                    "The cross-entropy is in bits. The lesson uses natural logarithms: nats.",
                ),
                Misconception(
                    "scores as shares",
                    losses_with(share=lambda scores: scores),
                    "The first loss compares x with the *scores*. The reconstruction is "
                    "softmax(scores).",
                ),
            ),
            extreme=1,
            results=("the mean squared error", "the cross-entropy"),
        ),
        Exercise(
            name="01.4",
            title="Teach it to remove noise",
            points=2,
            draw=draw_noisy,
            oracle=denoising_with(lambda x, noise: x + noise, lambda x, noise: x),
            verified="The loss of three networks agrees, and gradients reach their weights.",
            misconceptions=(
                Misconception(
                    "noisy target",
                    denoising_with(lambda x, noise: x + noise, lambda x, noise: x + noise),
                    "The output was compared with the *noisy* input. Then the network learns to "
                    "keep the noise. What should come out?",
                ),
                Misconception(
                    "no noise",
                    denoising_with(lambda x, noise: x, lambda x, noise: x),
                    "The noise never got into the network: this is the plain autoencoder.",
                ),
                Misconception(
                    "noise as the target",
                    denoising_with(lambda x, noise: x, lambda x, noise: x + noise),
                    "Input and target changed places: the network sees x and is asked for the "
                    "noisy version, which nobody can know.",
                ),
                Misconception(
                    "sum over genes",
                    denoising_with(lambda x, noise: x + noise, lambda x, noise: x, total=True),
                    "The squares are summed over genes. Take the mean over cells *and* genes.",
                ),
            ),
            returns="tensor with gradient in w",
        ),
        Exercise(
            name="01.5",
            title="The angle between two subspaces",
            points=3,
            draw=draw_bases,
            oracle=angle_by_scipy,
            verified="Agrees with scipy for five pairs of subspaces; equal ones have angle 0.",
            misconceptions=(
                Misconception(
                    "smallest angle",
                    smallest_angle,
                    "This is the *smallest* angle. Two planes that share one line have 0 there and "
                    "may still be far apart. Which singular value belongs to the largest angle?",
                ),
                Misconception(
                    "lengths alone",
                    lengths_alone,
                    "The columns have length 1, but are not at right angles to each other. The "
                    "cosines need *orthonormal* bases: see the hint.",
                ),
                Misconception(
                    "axis by axis",
                    axis_by_axis,
                    "You compared the first axis with the first, the second with the second. But "
                    "one plane has many pairs of axes: see the first input.",
                ),
                Misconception(
                    "degrees",
                    in_degrees,
                    "The angle is in degrees. Give it in radians, as `arccos` does.",
                ),
                Misconception(
                    "cosine",
                    its_cosine,
                    "This is the cosine of the angle: the angle itself is still to come.",
                ),
            ),
            extreme=N_LINES,
            atol=1e-5,
            call="arrays",
        ),
    )
}
