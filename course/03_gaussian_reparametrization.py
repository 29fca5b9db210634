# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · A gradient through dice
#
# Below are 700 blood cells in the latent space of a VAE, twice. Both times the same program ran on
# the same counts, from the same seed. For the right map, one function of one line was replaced.
# There was no error and no warning.

# %%
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.distributions import Bernoulli, Beta, Categorical, Gamma, Normal, Poisson, kl_divergence

import vaelab
from vaelab import plotting
from vaelab.plotting import BLUE, GREEN, ORANGE, PINK, RED
from vaelab.reparametrization import gaussian, score_function

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)

# %%
blood = vaelab.datasets.pbmc_small()
coarse = {"CD14+ Monocyte": "monocyte", "Dendritic": "dendritic", "CD19+ B": "B cell",
          "CD56+ NK": "NK cell", "CD34+": "progenitor"}  # fmt: skip
groups = np.array([coarse.get(name, "T cell") for name in blood.obs["cell_type"]])
cells = vaelab.Cells.from_anndata(blood)


def replaced(mean, std, n_samples):
    return Normal(mean, std).sample((n_samples,))  # in place of gaussian(mean, std, n_samples)


fig, panels = plt.subplots(1, 2, figsize=(9.5, 4), sharex=True, sharey=True, layout="constrained")
for ax, draw_z, title in zip(panels, (gaussian, replaced), ("gaussian", "replaced"), strict=True):
    with mock.patch("vaelab.models.vae.gaussian", draw_z):  # puts draw_z in its place for a while
        model = vaelab.VAE(n_genes=cells.n_genes, n_latent=2, likelihood="nb", seed=0)
        history = vaelab.fit(model, cells, epochs=40, seed=0, progress=False)
    kl = history.frame["kl_z"].iloc[-1]
    plotting.embedding(model.embed(cells), groups, ax=ax)
    ax.set(xlabel="z₁", ylabel="z₂", title=f"{title}: KL to the prior {abs(kl):.1f} nats")
plotting.show(
    alt="Two maps of the same blood cells. Left, cell types lie apart, over several units. Right, "
    "after one function was replaced, all cells lie in one small spot."
)

# %% [markdown]
# Over five seeds the KL to the prior is 5.4 ± 0.1 nats with `gaussian`, and 0.007 with
# `replaced` ([E03.one_line](evidence/03_gaussian_reparametrization.py)). Both functions draw from the
# same normal distribution. What is different?
#
# A bound on $\log p(x)$ is an average over draws of $z$. To raise it we have to know how each draw
# would change if the parameters of the dice did. But dice have no slope.
# **How does a gradient get through a random draw, and how noisy is it when it arrives?**
#
# **Objectives.** After this lesson you can
#
# - say what blocks the gradient at a draw, and recognise a model that was trained that way;
# - write $z = m + s\,\varepsilon$, and test its gradient against known numbers;
# - derive the score-function estimator (REINFORCE), which needs no slope, and give it a baseline;
# - test an estimator by its mean and its variance, and say how both ways compare as draws and
#   dimensions grow;
# - write the algorithm of the VAE (AEVB), and choose the number of draws;
# - find the errors that a draw invites: a variance for a standard deviation, a $z$ drawn twice.
#
# **You need** [lesson 02](02_elbo.ipynb) (the bound), variances, and PyTorch's
# [`backward`](https://docs.pytorch.org/tutorials/beginner/blitz/autograd_tutorial.html). No biology.
# Greek names in code: type `\epsilon` and press Tab. **Time:** about 180 minutes in two parts:
# 85 up to the stop after section 3, and 95 after it.
# **Data:** the blood cells above; nothing is downloaded.
#
# ## 1 · What blocks the gradient
#
# Take one gene, one latent variable $z$, and a decoder that is not linear. A cell with $x = 1.8$ was
# seen. The **reconstruction** term of the bound is the average of $f(z) = \log p(x \mid z)$ under
# $q = \mathcal N(m, s^2)$, where $m$ and $s$ are what the encoder says about this cell.


# %%
def f(z):
    """log p(x | z) for x = 1.8: the decoder's mean is 3 tanh(0.7 z), the noise 0.6."""
    return Normal(3 * torch.tanh(0.7 * z), 0.6).log_prob(torch.tensor(1.8))


grid = torch.linspace(-8, 8, 4001)


def exactly(m, s):
    """E_q[f(z)], by adding up 4,001 points."""
    return (Normal(m, s).log_prob(grid).exp() * f(grid)).sum() * (grid[1] - grid[0])


m, s = torch.tensor(0.3, requires_grad=True), torch.tensor(0.8, requires_grad=True)
right = torch.autograd.grad(exactly(m, s), (m, s))
print(f"E_q[f(z)] = {exactly(m, s).item():.3f}; its slope in m {right[0].item():.3f}, "
      f"in s {right[1].item():.3f}")  # fmt: skip

# %% [markdown]
# We want these two slopes. With ten latent dimensions we can't add up a grid, so we draw. A thousand
# draws give the average. And its slope?

# %%
torch.manual_seed(0)
z = Normal(m, s).sample((1000,))
print(f"the average of f over 1,000 draws: {f(z).mean().item():.3f}")
try:
    f(z).mean().backward()
except RuntimeError as error:
    print("RuntimeError:", str(error).partition("\n")[0])

# %% [markdown]
# PyTorch computes gradients by going back along the operations that made a number. `sample` asks a
# random generator for numbers and hands them over without their history: from $z$ no path leads
# back to $m$.
#
# An error is the lucky case. A bound has a second term, the KL, which *has* a gradient in $m$ and
# $s$. Then nothing complains.
#
# > **Predict first.** We train $q$ for our one cell with `sample`. Where will $q$ end: at the
# > posterior, at the prior, or where it started?


# %%
def train_q(draw, n_steps=600):
    m, log_s = torch.tensor(-0.5, requires_grad=True), torch.tensor(-0.2, requires_grad=True)
    optimiser, path = torch.optim.Adam([m, log_s], lr=0.02), []
    torch.manual_seed(0)
    for _ in range(n_steps):
        s = log_s.exp()
        bound = f(draw(m, s)).mean() - kl_divergence(Normal(m, s), Normal(0.0, 1.0))
        optimiser.zero_grad()
        (-bound).backward()
        optimiser.step()
        path.append([m.item(), s.item()])
    return np.array(path)


blocked = train_q(lambda m, s: Normal(m, s).sample((20,)))
free = train_q(lambda m, s: m + s * torch.randn(20))

log_joint = f(grid) + Normal(0.0, 1.0).log_prob(grid)
posterior = log_joint.exp() / (log_joint.exp().sum() * (grid[1] - grid[0]))
fig, (left, middle) = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
for path, colour, name in ((blocked, RED, "sample"), (free, BLUE, "m + s·ε")):
    m_end, s_end = path[-100:].mean(0)  # the last steps' average: single ones are noisy
    kl = kl_divergence(Normal(m_end, s_end), Normal(0.0, 1.0)).item()
    print(f"{name:8s} m = {abs(m_end):.1f}, s = {s_end:.1f}, KL to the prior {abs(kl):.1f} nats, "
          f"bound {exactly(m_end, s_end).item() - kl:.1f}")  # fmt: skip
    left.plot(path[:, 0], color=colour, label=f"m, {name}")
    left.plot(path[:, 1], color=colour, ls=":", label=f"s, {name}")
    middle.plot(grid, Normal(m_end, s_end).log_prob(grid).exp(), color=colour, label=f"q, {name}")
left.set(xlabel="step of training", ylabel="m, s", title="One cell's q, twice", ylim=(-1, 1.2))
middle.fill_between(grid, posterior, color="0.88", label="posterior p(z | x)")
middle.plot(grid, Normal(0.0, 1.0).log_prob(grid).exp(), color="black", ls="--", label="prior p(z)")
middle.set(xlabel="latent z", ylabel="density", xlim=(-3, 3), title="Where q ended")
left.legend(frameon=False, fontsize=9, ncols=2, loc="lower center")
middle.legend(frameon=False, fontsize=9)
plotting.show(
    alt="Left: with sample, m goes to 0 and s to 1; with m + s·ε they go elsewhere. Right: with "
    "sample q lies on the prior, otherwise on the posterior."
)

# %% [markdown]
# <details><summary>Answer</summary>At the prior. With <code>sample</code> the only force on q is the
# KL. The cell's data never reach the encoder.</details>
#
# This is what happened to the second map. If you meet a VAE whose KL goes to zero in the first
# epochs, look for this before you blame the model: a `sample`, a `detach`, a `torch.no_grad()`
# between encoder and decoder.
#
# > **Spot the error.** A text explains why all this is needed: "stochastic nodes cannot be
# > differentiable". (A stochastic node is a random variable in the graph of a computation.) Was it the randomness that stopped us?
# >
# > <details><summary>Solution</summary>The average E_q[f(z)] is a smooth function of m and s: its
# > two slopes stand under the first cell of this section. And the cure draws just as many random
# > numbers. What has no slope is a number that was drawn <i>by a procedure which hides</i> how m and
# > s went into it.</details>
#
# ## 2 · Three ways to move m
#
# We want to know how the average of $f$ changes when $m$ moves. Watch twenty draws while it does.


# %%
torch.manual_seed(20)
m_values, s_film = torch.linspace(-0.6, 1.2, 25), 0.8
ε = torch.randn(20)
fresh = m_values[:, None] + s_film * torch.randn(25, 20)  # new dice for each m
same_ε = m_values[:, None] + s_film * ε
same_z = (m_values[0] + s_film * ε).expand(25, 20)
weights = (
    Normal(m_values[:, None], s_film).log_prob(same_z)
    - Normal(m_values[0], s_film).log_prob(same_z)
).exp()
ways = {
    "fresh dice: the dots jump": (fresh, torch.ones(25, 20), RED),
    "same ε: the dots slide": (same_ε, torch.ones(25, 20), BLUE),
    "same z: only weights change": (same_z, weights, ORANGE),
}
exact_average = [exactly(m, s_film).item() for m in m_values]


def draw_move(i):
    fig, panels = plt.subplots(
        2, 3, figsize=(9.5, 4.2), sharex="row", sharey="row", layout="constrained"
    )
    for (name, (z, w, colour)), top, bottom in zip(ways.items(), *panels, strict=True):
        top.plot(grid, f(grid), color="0.7", lw=1)
        top.scatter(z[i], f(z[i]), s=25 * w[i], color=colour, alpha=0.7, lw=0)
        top.axvline(m_values[i], color="0.5", lw=1, ls=":")
        top.set(xlim=(-3.2, 3.5), ylim=(-32, 2), title=name, xlabel="z (dotted: m)")
        bottom.plot(m_values, exact_average, color="black", lw=1, label="exact")
        average = (w * f(z)).mean(1)
        bottom.plot(m_values[: i + 1], average[: i + 1], "o-", color=colour, ms=3, label="20 draws")
        bottom.set(xlim=(-0.7, 1.3), ylim=(-20, 2), xlabel="m")
    panels[0, 0].set_ylabel("f(z) (nats)")
    panels[1, 0].set_ylabel("average of f (nats)")
    panels[1, 0].legend(frameon=False, fontsize=8, loc="lower right")
    return fig


plotting.film(
    draw_move,
    range(25),
    alt="A film: m moves right. With fresh dice the draws jump, and their average with them. With "
    "the same ε they slide along f, and the average is a smooth curve. With the same z the draws "
    "stand still and their weights change; the average is smooth, and rests on few draws.",
)

# %% [markdown]
# Left, with fresh dice, the average jumps, and a slope is lost in the noise. In the middle the noise
# is kept, each $z$ *slides*, and the average is a smooth curve: it has a slope. On the right $z$ is
# kept and its *weight* changes, by how probable $z$ becomes: again a smooth curve, though in the end
# a few dots carry all the weight. The middle is the **pathwise** way, the subject of this section. The
# right one is the **score function**, section 3.
#
# ### z = m + s·ε
#
# Draw $\varepsilon \sim \mathcal N(0, 1)$, and let
#
# $$z = m + s\,\varepsilon .$$
#
# The distribution of $z$ is $\mathcal N(m, s^2)$ as before. But the dice are thrown *outside*:
# $\varepsilon$ does not depend on $m$ or $s$. Given $\varepsilon$, $z$ is an ordinary function of $m$
# and $s$, with slopes $\partial z/\partial m = 1$ and $\partial z/\partial s = \varepsilon$. This is
# the **reparametrisation**. A gradient goes through every single draw, and the average of these
# gradients is the gradient that we want:
#
# $$\nabla_{m,s}\ \mathbb E_{q}[f(z)] = \nabla_{m,s}\ \mathbb E_{\varepsilon}[f(m + s\varepsilon)] = \mathbb E_{\varepsilon}\big[\nabla_{m,s}\, f(m + s\varepsilon)\big] \approx \frac1L \sum_{l=1}^L \nabla_{m,s}\, f(m + s\varepsilon^{(l)})$$
#
# Look at each sign. The first two steps are equalities: the same average, written in another
# variable; then gradient and average exchanged, which is allowed since the distribution of
# $\varepsilon$ has no parameter and $f$ has no jumps. Only the last step is an approximation.
#
# > **Spot the error.** One slip in each of these, all from texts on VAEs.
# > (1) $q(x \mid z) = \mathcal N(z; \mu(x), \sigma^2(x))$. (2) $z \sim \mathcal N(\mu, \sigma)$ and
# > $z = \mu + \sigma\varepsilon$, with $\mathcal N(0, I)$ in the same text.
# > (3) $\mathbb E_q[f] \approx \mathbb E_\varepsilon[f(g(\varepsilon))] = \frac1L\sum_l f(z)$.
# >
# > <details><summary>Solution</summary>(1) q(z|x): z is drawn, x is given. (2) In N(·, ·) the second
# > place is a variance, as the identity <i>matrix</i> shows: N(μ, σ²). (3) The other way round: = for
# > the change of variables, ≈ for the draws, and z⁽ˡ⁾ under the sum. With one z for all l, the L terms
# > would all be the same.</details>
#
# ### Testing a gradient
#
# Test it where the answer is known. For $f(z) = z^2$ the average is $m^2 + s^2$, with slopes $2m$ and
# $2s$. And test it against a **finite difference**: move $m$ a little, and see how the average
# moves, with the *same* $\varepsilon$ or with fresh dice, as in the film.

# %%
m, s = torch.tensor(1.5, requires_grad=True), torch.tensor(0.5, requires_grad=True)
torch.manual_seed(1)
ε = torch.randn(10_000)
pathwise = torch.autograd.grad(((m + s * ε) ** 2).mean(), (m, s))
print(f"known:                    {2 * m.item():.3f}  {2 * s.item():.3f}")
print(f"pathwise:                 {pathwise[0].item():.3f}  {pathwise[1].item():.3f}")

h = 1e-4
with torch.no_grad():
    same = (((m + h + s * ε) ** 2).mean() - ((m - h + s * ε) ** 2).mean()) / (2 * h)
    other = torch.randn(10_000)
    jumping = (((m + h + s * ε) ** 2).mean() - ((m - h + s * other) ** 2).mean()) / (2 * h)
print(f"difference, the same ε:   {same.item():.3f}")
print(f"difference, fresh dice:   off by more than 10: {abs(jumping.item() - 3) > 10}")

# %% [markdown]
# The package's `gaussian` is this one line, with a first dimension for the draws. PyTorch's
# distributions have both ways: `sample` blocks the gradient, and `rsample` (r for *reparametrised*)
# lets it through.

# %%
mean, std = torch.randn(3, 2), torch.rand(3, 2) + 0.1
torch.manual_seed(2)
by_hand = mean + std * torch.randn(5, 3, 2)
torch.manual_seed(2)
print("vaelab:", torch.equal(by_hand, gaussian(mean, std, n_samples=5)))
torch.manual_seed(2)
print("torch: ", torch.allclose(by_hand, Normal(mean, std).rsample((5,))))
for kind in (Normal, Gamma, Beta, Poisson, Bernoulli, Categorical):
    print(f"{kind.__name__:12s} rsample: {'yes' if kind.has_rsample else 'no'}")

# %% [markdown]
# Shift and scale is one way to throw the dice outside; gamma and beta distributions have others.
# Counts and categories have none: a count can't move a little. For them there is section 3, and
# lesson 07.
#
# ### Exercise 03.1 · A bug hunt: the scale of a Dense layer
# ★☆☆ · 5 minutes · 2 points
#
# A standard deviation must be positive, and a network's output may be anything. So the encoder
# often gives the *logarithm of the variance*. For years the VAE among the examples of Keras had
# this, and copies are still in use:
#
# ```python
# def draw(noise, mean, log_var):
#     return mean + torch.exp(log_var) * noise
# ```
#
# while its KL took `torch.exp(log_var)` as the variance. A user sent a correction. The maintainer
# replied that `log_var` is the output of a Dense layer, whose scale "is irrelevant". Fix `draw`.
# Noise, mean and log_var have one shape; the check looks at $z$ and at its slope in log_var.
#
# <details><summary>Hint</summary>If v is the logarithm of the variance s², what is s? Try
# v = log 4: the standard deviation should then be 2. What does the code above give?</details>


# %% nbgrader={"grade_id": "03-1", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def draw(noise, mean, log_var):
    """z ~ N(mean, exp(log_var)), made from noise ~ N(0, 1)."""
    ### BEGIN SOLUTION
    return mean + torch.exp(0.5 * log_var) * noise
    ### END SOLUTION


# %% nbgrader={"grade_id": "03-1-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("03.1", draw)

# %% [markdown]
# Was the reply right, is the scale irrelevant? It would be if `log_var` were used in one place. It
# is used in two: where $z$ is drawn, and in the KL. So let us see both codes where $\log p(x)$ is
# known: $z \sim \mathcal N(0, 1)$ and $x \sim \mathcal N(2z, 0.5^2)$, with $q$ at the posterior's
# mean.

# %%
x, w, σ = 1.5, 2.0, 0.5
log_p_x = Normal(0.0, (w**2 + σ**2) ** 0.5).log_prob(torch.tensor(x))
centre, log_var = w * x / (w**2 + σ**2), torch.linspace(-5.5, 0.5, 200)


def reported(s_drawn, variance_in_kl):
    """Reconstruction minus KL, in closed form, if the two use different scales."""
    reconstruction = Normal(w * centre, σ).log_prob(torch.tensor(x)) - (w * s_drawn / σ) ** 2 / 2
    return reconstruction - 0.5 * (centre**2 + variance_in_kl - 1 - torch.log(variance_in_kl))


corrected = reported(torch.exp(0.5 * log_var), torch.exp(log_var))
published = reported(torch.exp(log_var), torch.exp(log_var))

fig, ax = plt.subplots(figsize=(7, 3.3), layout="constrained")
ax.axhline(log_p_x, color="black", lw=1, label="log p(x)")
ax.plot(log_var, corrected, color=BLUE, label="corrected: a bound")
ax.plot(log_var, published, color=RED, label="as published")
ax.set(
    xlabel="log_var, the encoder's output", ylabel="nats", ylim=(-4.5, -1), title="Is it a bound?"
)
ax.legend(frameon=False)
print(f"log p(x) {log_p_x.item():.2f}; best bound {corrected.max().item():.2f}; "
      f"best value of the published code {published.max().item():.2f}")  # fmt: skip
plotting.show(
    alt="Against log_var: the corrected bound stays below log p(x) and touches it once; the published sum "
    "rises above log p(x)."
)

# %% [markdown]
# The published sum rises *above* $\log p(x)$, so it is not a bound. It draws from one $q$ and pays
# for a wider one, which is cheaper. Nothing crashes, and pictures come out. Only the numbers are
# wrong, and models are compared by these numbers.
#
# ### Exercise 03.2 · A pathwise estimator of your own
# ★★☆ · 10 minutes · 3 points
#
# Write `pathwise_gradient(f, mean, std, n_samples)`. For each cell it estimates the gradient of
# $\mathbb E_q[f(z)]$, with $q = \mathcal N(\text{mean}, \mathrm{diag}\,\text{std}^2)$, in mean and
# in std, from `n_samples` independent draws of $z$. Both have shape (n_cells, n_latent), and so have
# the two gradients that you return. f takes z of shape (n_draws, n_cells, n_latent) and gives one
# value for each draw of each cell: shape (n_draws, n_cells).
#
# The check calls your function for 100,000 equal cells, and looks at the **variance** over cells of
# both gradients (at its logarithm), and at their **means**.
#
# <details><summary>Hint</summary><code>torch.autograd.grad(number, (mean, std))</code> returns both
# gradients, if <code>mean</code> and <code>std</code> require one. Ask for it in copies:
# <code>mean = mean.clone().requires_grad_()</code>. Otherwise the caller's own tensors change.
# It needs one number. A cell's values depend on no other cell's mean, so you may sum over
# cells: each cell's gradient comes out. But over draws you want the average.</details>


# %% nbgrader={"grade_id": "03-2", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def pathwise_gradient(f, mean, std, n_samples):
    """Estimates of ∇_mean E[f(z)] and of ∇_std E[f(z)], each of shape (n_cells, n_latent)."""
    ### BEGIN SOLUTION
    mean, std = mean.detach().requires_grad_(), std.detach().requires_grad_()
    ε = torch.randn(n_samples, *mean.shape)
    values = f(mean + std * ε)  # (n_samples, n_cells)
    return torch.autograd.grad(values.mean(0).sum(), (mean, std))
    ### END SOLUTION


# %% nbgrader={"grade_id": "03-2-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("03.2", pathwise_gradient)

# %% [markdown]
# ### The same ε, while m and s move
#
# Six draws. Each $z$ slides along the curve as $m$ and $s$ move, and the red line through it has the
# slope of $f$ there. The pathwise gradient in $m$ is the average of these slopes. In $s$, each slope
# is weighted by its $\varepsilon$: a draw far out moves most.


# %%
def draw_same_noise(m, s, throw):
    torch.manual_seed(int(throw))
    ε = torch.randn(6)
    z = (m + s * ε).requires_grad_()
    (slope,) = torch.autograd.grad(f(z).sum(), z)
    z = z.detach()
    fig, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 4.6), sharex=True, layout="constrained", height_ratios=(1, 2)
    )
    top.plot(ε, np.ones(6), "s", color=ORANGE, ms=7)
    top.plot(z, np.zeros(6), "o", color=BLUE, ms=7)
    top.plot(np.stack([ε, z]), [[1] * 6, [0] * 6], color="0.75", lw=1, zorder=0)
    top.set(yticks=[0, 1], yticklabels=["z = m + s·ε", "ε"], ylim=(-0.4, 1.4), xlim=(-4, 4))
    bottom.plot(grid, f(grid), color="0.6", lw=1.5)
    for at, rise in zip(z, slope, strict=True):
        width = 1.0 / (1 + rise.abs() / 6)  # steep ones shorter, to be told apart
        ends = torch.stack([at - width, at + width])
        bottom.plot(ends, f(at) + rise * (ends - at), color=RED, lw=1.5)
    bottom.plot(z, f(z), "o", color=BLUE, ms=5)
    in_m, in_s = slope.mean().item(), (slope * ε).mean().item()
    bottom.set(xlabel="ε and z", ylabel="f(z) (nats)", ylim=(-32, 4))
    bottom.set_title(
        f"mean of f = {f(z).mean().item():.2f}, slope in m = {in_m:+.2f}, in s = {in_s:+.2f}"
    )
    return fig


draw_same_noise(m=0.3, s=0.8, throw=0)
plotting.show(
    alt="Above, six draws of ε and the z that each becomes. Below, these z on the curve f, each with "
    "a red line of f's slope. The title gives their averages."
)

# %% [markdown]
# With a kernel running, move *m* and *s* and see where the slopes cancel. Then keep *m* and *s*, and
# move *throw*: fresh dice, and another gradient. Section 4 is about how much it differs.

# %% tags=["nbval-ignore-output"]
from ipywidgets import FloatSlider, IntSlider

plotting.interactive(
    draw_same_noise,
    alt="Above, draws of ε and the z that each becomes; below, these z on the curve f with the slope "
    "at each. Both move with m and s, while ε stays the same.",
    m=FloatSlider(0.3, min=-2, max=2, step=0.05, description="m"),
    s=FloatSlider(0.8, min=0.05, max=1.5, step=0.05, description="s"),
    throw=IntSlider(0, min=0, max=20, description="throw of the dice"),
)

# %% [markdown]
# ## 3 · The other way: weigh the draws
#
# The older way is the right-hand panel of the film. It leaves $z$ where it fell. If $m$ moves, the
# same $z$ becomes more or less *probable*. For the slope in $m$, in one dimension:
#
# $$\frac{\partial}{\partial m}\,\mathbb E_q[f(z)] = \int f(z)\,\frac{\partial q(z)}{\partial m}\,dz = \int f(z)\; q(z)\,\frac{\partial \log q(z)}{\partial m}\,dz = \mathbb E_q\Big[f(z)\,\frac{\partial \log q(z)}{\partial m}\Big]$$
#
# The step in the middle is the slope of a logarithm, $(\log q)' = q'/q$, turned around. The slope of
# $\log q$ in a parameter is called the **score**, and this estimator the **score-function**
# estimator. In reinforcement learning its name is **REINFORCE**. It needs only the values of $f$.
#
# ### Exercise 03.3 · The score-function estimator
# ★★☆ · 10 minutes · 3 points
#
# Finish the derivation for $q = \mathcal N(m, s^2)$, once for $m$ and once for $s$. Write
# `score_estimates(f_z, z, mean, std)`. For each draw it gives the term inside the last average:
# $f(z)$ times the score.
# `f_z` has shape (n_draws,), z (n_draws, n_latent), mean and std (n_latent,). Dimensions
# are independent under $q$. Return two tensors of z's shape, for mean and for std.
#
# <details><summary>Hint</summary>log q(z) = −½ log 2π − log s − (z − m)²/(2s²), in each dimension.
# Take its slope in m, then in s. <code>f_z[:, None]</code> has a dimension to be multiplied
# along.</details>


# %% nbgrader={"grade_id": "03-3", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def score_estimates(f_z, z, mean, std):
    """f(z) times the slope of log q(z) in mean, and in std; each of shape (n_draws, n_latent)."""
    ### BEGIN SOLUTION
    distance = z - mean
    in_mean = distance / std**2
    in_std = distance**2 / std**3 - 1 / std
    return f_z[:, None] * in_mean, f_z[:, None] * in_std
    ### END SOLUTION


# %% nbgrader={"grade_id": "03-3-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("03.3", score_estimates)

# %% [markdown]
# ### Both without bias?
#
# An estimator is **unbiased** if its average is what it estimates. A test needs a yardstick: the
# average of $R$ independent estimates scatters around the truth with a **standard error** of
# (their standard deviation)/$\sqrt R$. A right estimator is off by more than four standard errors
# once in 16,000 times. We take the $f$ of section 1, whose slopes we know by adding up.

# %%
torch.manual_seed(3)
m0, s0 = torch.tensor([0.3]), torch.tensor([0.8])
R = 200_000
ε = torch.randn(R, 1)
z0 = (m0 + s0 * ε).requires_grad_()
f_z = f(z0.squeeze())
(slope,) = torch.autograd.grad(f_z.sum(), z0)
by_path = slope, slope * ε
by_score = score_estimates(f_z.detach(), z0.detach(), m0, s0)

print("                  mean   right   within 4 standard errors   standard deviation")
for name, pair in {"pathwise": by_path, "score": by_score}.items():
    for parameter, estimates, known in zip("ms", pair, right, strict=True):
        mean, sd = estimates.mean().item(), estimates.std().item()
        fine = abs(mean - known.item()) < 4 * sd / R**0.5
        print(f"{name:9s} in {parameter}: {mean:8.1f} {known.item():7.1f} {fine!s:>16s} {sd:24.0f}")

# %% [markdown]
# Neither has a bias. The standard deviations differ, and they are the cost: to halve a standard
# error takes four times the draws.
#
# **Stop here** if you like: this is the middle of the lesson. You have both estimators. What follows
# compares their noise, and trains a VAE with each.
#
# ## 4 · Two variances
#
# Here $f$ is the log-probability of one gene, about −5 on average. In real data there are thousands
# of genes, and $f$ is −500 for one $z$ and −510 for the next.
#
# > **Predict first.** Subtract 500 from $f$, which changes no gradient. What happens to the noise of
# > each estimator? And if $z$ has 100 dimensions, and we want the slope in the first alone?

# %%
draws = 2 ** np.arange(0, 11)


def spread_of_means(estimates):
    """Standard deviation of the mean of n estimates, for each n of draws."""
    flat = estimates.detach().flatten()[: 200 * 1000]
    return [flat[: len(flat) // n * n].reshape(-1, n).mean(1).std().item() for n in draws]


fig, (left, right_panel) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
left.loglog(draws, spread_of_means(by_path[0]), "o-", color=BLUE, label="pathwise, any constant")
for level, colour, marker in ((0, ORANGE, "^"), (-50, PINK, "s"), (-500, RED, "D")):
    scores = score_estimates(f_z.detach() + level, z0.detach(), m0, s0)[0]
    left.loglog(
        draws,
        spread_of_means(scores),
        marker + "-",
        color=colour,
        label=f"score, f − {-level}" if level else "score, f",
    )
left.axhline(abs(right[0].item()), color="black", lw=1, ls=":", label="the gradient itself")
left.set(
    xlabel="L, number of draws",
    ylabel="standard deviation (nats per unit of m)",
    title="More draws",
)
left.set_ylim(bottom=0.01)
left.legend(frameon=False, fontsize=8, loc="lower left")

dimensions = np.array([1, 2, 5, 10, 20, 50, 100])
measured = {"path": [], "score": []}
for d in dimensions:
    z_d = torch.randn(20_000, d)  # f(z) = |z|², m = 0, s = 1; the slope in m₁
    measured["path"].append((2 * z_d[:, 0]).var().item())
    measured["score"].append(((z_d**2).sum(1) * z_d[:, 0]).var().item())
right_panel.loglog(dimensions, measured["path"], "o-", color=BLUE, label="pathwise")
right_panel.loglog(dimensions, measured["score"], "^-", color=ORANGE, label="score function")
right_panel.set(xlabel="d, latent dimensions", ylabel="variance of one draw", ylim=(1, None))
right_panel.set_title("More dimensions, f(z) = |z|²")
right_panel.legend(frameon=False)
plotting.show(
    alt="Left: the standard deviation of all estimators falls as one over the root of the number of draws; "
    "the score function starts higher, the more so the lower f. Right: with dimensions the variance "
    "of the score function grows, that of the pathwise estimator does not."
)

# %% [markdown]
# <details><summary>Answer</summary>The pathwise estimator looks at the slope along its own coordinate:
# neither the level nor the other coordinates matter. The score function multiplies every score by
# f. At −500, a thousand draws scatter more than the gradient itself is large. And f is a sum over all
# coordinates, so all of them add noise. In d dimensions the variances are (d + 2)(d + 4) and 4: with
# 100 dimensions the score function needs 2,652 times the draws.</details>
#
# (A tutorial motivates the reparametrisation with "the expectation has a high variance". An
# expectation is a number: its variance is 0. The *estimator of its gradient* has a variance.)
#
# ### Not a law
#
# Is the pathwise estimator always better? It looks at slopes, and slopes can be worse than values.
# Give $f$ a fine ripple, or a jump:

# %%
torch.manual_seed(4)
z_n = torch.randn(500_000, 1, requires_grad=True)  # m = 0, s = 1
functions = {
    "z": lambda z: z,
    "z + ripple": lambda z: z + 0.01 * torch.sin(1000 * z),
    "1 if z > 0": lambda z: torch.where(z > 0, 1.0, 0.0) + 0 * z,
}
exact = {"z": 1.0, "z + ripple": 1.0, "1 if z > 0": 1 / np.sqrt(2 * np.pi)}
print("f             right |  pathwise: mean, sd |  score: mean, sd")
for name, function in functions.items():
    values = function(z_n).squeeze()
    (slope,) = torch.autograd.grad(values.sum(), z_n)
    scores, _ = score_estimates(values.detach(), z_n.detach(), torch.zeros(1), torch.ones(1))
    row = [v.item() for v in (slope.mean(), slope.std(), scores.mean(), scores.std())]
    print(
        f"{name:12s} {exact[name]:6.1f} | {row[0]:12.1f}, {row[1]:4.1f}  | {row[2]:9.1f}, {row[3]:4.1f}"
    )

# %% [markdown]
# With the ripple the pathwise estimator is the noisier one. With the jump it is *wrong*: its slope is
# 0 almost everywhere, its variance is 0 too, and so it is sure of a false answer. This is the
# condition of section 2, "$f$ has no jumps". A decoder of smooth layers, or of ReLUs, which have
# kinks but no jumps, is safe. Whatever is rounded, thresholded or counted between $z$ and $f$ is not.
# Then we need the score function, with less variance.
#
# ### Exercise 03.4 · Only values: an estimator with a baseline
# ★★★ · 15 minutes · 3 points
#
# The score is 0 on average, whatever $q$ is. So $\mathbb E[b \cdot \text{score}] = 0$ for each number
# $b$, and
#
# $$\mathbb E\big[(f(z) - b)\cdot \text{score}\big] = \mathbb E\big[f(z)\cdot\text{score}\big].$$
#
# Such a $b$ is called a **baseline**. It changes no mean, and if $b$ is near the level of $f$ it takes
# the level out of the variance. But $b$ must be found from the same few draws, and must not bring in
# a bias.
#
# Write `baseline_gradient(f, mean, std, n_samples)`, which estimates the gradient in `mean` alone.
# Shapes are as in 03.2, but now f gives values only, without a gradient: think of a simulator. The
# values of a cell lie around a number of its own, its *level*, between −400 and −50; you do not know
# it. You get `n_samples` draws per cell (4 to 32), and may ask f for one more value. Differences of
# its values are allowed too. Your estimate must have no bias. Its variance may be at most twice that of our solution.
#
# <details><summary>Hint</summary>The mean of a cell's draws is a good level. But a draw that
# is in its own baseline pulls the baseline towards itself, and that is the bias. Each draw may
# have a baseline of its own: which draws may it be made of?</details>


# %% nbgrader={"grade_id": "03-4", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def baseline_gradient(f, mean, std, n_samples):
    """An estimate of ∇_mean E[f(z)] from values of f, of shape (n_cells, n_latent)."""
    ### BEGIN SOLUTION
    z = mean + std * torch.randn(n_samples, *mean.shape)
    values = f(z)  # (n_samples, n_cells)
    of_others = (values.sum(0) - values) / (n_samples - 1)
    score = (z - mean) / std**2
    return ((values - of_others)[..., None] * score).mean(0)
    ### END SOLUTION


# %% nbgrader={"grade_id": "03-4-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("03.4", baseline_gradient)

# %% [markdown]
# The usual answer, the mean of the *other* draws of the cell, is the **leave-one-out baseline**
# (RLOO). Now the $f$ of section 1, 500 nats lower, and eight draws for each estimate:

# %%
torch.manual_seed(5)
many = torch.full((20_000, 1), 0.3), torch.full((20_000, 1), 0.8)


def low(z):
    return f(z.squeeze(-1)) - 500


def plain_score_gradient(f, mean, std, n_samples):
    z = mean + std * torch.randn(n_samples, *mean.shape)
    return (f(z)[..., None] * (z - mean) / std**2).mean(0)


for name, estimate in {
    "pathwise": lambda *v: pathwise_gradient(*v)[0],
    "score, with a baseline": baseline_gradient,
    "score": plain_score_gradient,
}.items():
    gradients = torch.as_tensor(estimate(low, *many, 8))
    print(f"{name:24s} standard deviation {gradients.std().item():6.1f}")

# %% [markdown]
# The baseline saves most of it, and the slope, where it may be used, saves more.
#
# | | pathwise | score function |
# |---|---|---|
# | needs from $f$ | its slope in $z$; no jumps | its values |
# | needs from $q$ | $z$ as a smooth function of noise | $\log q(z)$ and its slope |
# | cost per draw | one pass forward, one back through $f$ | one pass forward |
# | noise grows with | the slopes of $f$ | the level of $f$ (without baseline) and the dimensions |
# | used for | normal $z$: VAEs | counts, categories, simulators |
#
# ## 5 · The algorithm
#
# All parts are there now: the bound of lesson 02, a network, and a gradient through the draw. Put
# together they are **auto-encoding variational Bayes** (AEVB), the algorithm of the VAE. The weights of
# the encoder are called φ, those of the decoder θ:
#
# 1. Take a minibatch of $M$ cells.
# 2. Encode: $m$ and $s$ of each. *(φ)*
# 3. Draw $\varepsilon$, $L$ times for each cell; $z = m + s\varepsilon$.
# 4. Decode: $\log p(x \mid z)$. *(θ)*
# 5. Bound = the average over draws of $\log p(x \mid z)$, minus the KL in closed form. Sum over genes
#    and latent dimensions, average over cells.
# 6. One step up its gradient, in θ and φ together. Begin again.
#
# ### Exercise 03.5 · AEVB, steps 2 to 5
# ★★★ · 15 minutes · 3 points
#
# Write `aevb_bound(encoder, W1, b1, W2, x, noise, sigma)`: one number, the bound averaged over the
# cells of a minibatch. Gradients must flow through it, into
# all four arrays of weights.
#
# - x (n_cells, n_genes) is the minibatch, and noise (n_draws, n_cells, n_latent) holds the ε.
# - The encoder is linear: `x @ encoder` has shape (n_cells, 2·n_latent). Its first half is $m$, its
#   second half is the *logarithm of the variance* $s^2$ (`.chunk(2, -1)` splits it).
# - The decoder is a network: the mean of x given z is `torch.tanh(z @ W1 + b1) @ W2`.
# - Each gene is normal around its mean with standard deviation sigma, a number. The prior is
#   $\mathcal N(0, I)$.
#
# <details><summary>Hint</summary>Six lines, one for each thing: m and the log-variance; z, of shape
# (n_draws, n_cells, n_latent); the mean of x; log p(x|z), summed over genes; the KL, summed over
# latent dimensions; the average. <code>Normal(mean, sigma).log_prob(x)</code> gives each gene's
# log-density, with its constant.</details>


# %% nbgrader={"grade_id": "03-5", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def aevb_bound(encoder, W1, b1, W2, x, noise, sigma):
    """The bound of a minibatch, averaged over its cells: a number with a gradient."""
    ### BEGIN SOLUTION
    m, log_var = (x @ encoder).chunk(2, dim=-1)  # 2
    z = m + torch.exp(0.5 * log_var) * noise  # 3
    mean = torch.tanh(z @ W1 + b1) @ W2  # 4
    log_likelihood = Normal(mean, sigma).log_prob(x).sum(-1)  # (n_draws, n_cells)
    kl = 0.5 * (m**2 + log_var.exp() - 1 - log_var).sum(-1)  # (n_cells,)
    return (log_likelihood.mean(0) - kl).mean()  # 5
    ### END SOLUTION


# %% nbgrader={"grade_id": "03-5-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("03.5", lambda weights, n_genes, x, noise, sigma: aevb_bound(
    weights[:n_genes], weights[2 * n_genes : -1], weights[-1], weights[n_genes : 2 * n_genes].T,
    x, noise, sigma))  # fmt: skip

# %% [markdown]
# Now we train it on the blood cells, with 100 genes and two latent dimensions, and with four
# gradients; nothing else differs. "Pathwise" is your function. The other three draw $z$ without a
# gradient, and two of them add the score function of section 3 (`score_function` is the package's).
#
# > **Predict first.** Put the four in order: pathwise, score, score with baseline, blocked.


# %% tags=["not-in-grading"]
per_10_000 = 1e4 * blood.X.toarray() / blood.obs["n_counts"].to_numpy()[:, None]
expression = np.log1p(per_10_000).astype(float)
chosen = np.argsort(-expression.var(0))[:100]
x_blood = torch.as_tensor(expression[:, chosen])
x_blood = (x_blood - x_blood.mean(0)) / x_blood.std(0)
sigma = 0.8


def bound_in(way, weights, x, noise):
    if way == "pathwise":
        return aevb_bound(*weights, x, noise, sigma)
    encoder, W1, b1, W2 = weights
    m, log_var = (x @ encoder).chunk(2, dim=-1)
    q = Normal(m, torch.exp(0.5 * log_var))

    def log_likelihood(z):
        return Normal(torch.tanh(z @ W1 + b1) @ W2, sigma).log_prob(x).sum(-1)

    if way == "blocked":
        reconstruction = log_likelihood(q.sample(noise.shape[:1])).mean(0)
    else:
        reconstruction = score_function(
            log_likelihood, q, n_samples=len(noise), baseline=way == "score, baseline"
        )
    return (reconstruction - kl_divergence(q, Normal(0.0, 1.0)).sum(-1)).mean()


def train(way, n_steps=400, M=100, L=2):
    torch.manual_seed(7)
    weights = [0.02 * torch.randn(100, 4), torch.randn(2, 32), torch.randn(32)]
    weights = [w.requires_grad_() for w in (*weights, 0.1 * torch.randn(32, 100))]
    optimiser, trace = torch.optim.Adam(weights, lr=1e-2), []
    for step in range(n_steps):
        batch = x_blood[torch.randint(len(x_blood), (M,))]  # 1
        bound = bound_in(way, weights, batch, torch.randn(L, M, 2))  # 2 to 5
        optimiser.zero_grad()
        (-bound).backward()
        optimiser.step()  # 6
        if step % 10 == 9:
            with torch.no_grad():
                noise = torch.randn(5, len(x_blood), 2)
                trace.append(bound_in("pathwise", weights, x_blood, noise).item())
    return weights, trace


styles = {
    "pathwise": {"color": BLUE},
    "score, baseline": {"color": GREEN, "ls": "--"},
    "score": {"color": ORANGE, "ls": "-."},
    "blocked": {"color": RED, "ls": ":"},
}

# %% tags=["not-in-grading"]
trained = {way: train(way) for way in styles}
fig, (left, right_panel) = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
for way, style in styles.items():
    left.plot(np.arange(10, 401, 10), trained[way][1], lw=2, label=way, **style)
left.set(xlabel="step", ylabel="bound (nats per cell)", ylim=(-165, -115))
left.set_title("The same model, four gradients")
left.legend(frameon=False, fontsize=9, loc="lower right")
with torch.no_grad():
    means = x_blood @ trained["pathwise"][0][0][:, :2]
plotting.embedding(means, groups, ax=right_panel, title="Pathwise: the cells in latent space")
right_panel.set(xlabel="mean of z₁", ylabel="mean of z₂")
for way in styles:
    print(f"{way:16s} bound {np.mean(trained[way][1][-5:]):4.0f}")
plotting.show(
    alt="Left: bounds during training; pathwise is highest, the score function with baseline a little "
    "lower, without baseline well below, and blocked lowest. Right: the cells in the latent space "
    "of the pathwise model, where types lie apart."
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Pathwise, score with baseline, score, blocked. Over five seeds the bounds
# are −120.3 ± 0.2, −121.3 ± 0.6, −130 ± 2 and −147.88 ± 0.04 nats
# ([E03.four_gradients](evidence/03_gaussian_reparametrization.py)). With the gradient blocked the KL
# is zero in the end: the decoder has learned the mean of each gene and nothing else, the second map
# of the opening again. The baseline nearly keeps up here, in two dimensions with two draws per cell.
#
# </details>
#
# ## 6 · How many draws?
#
# $L$ draws for each of $M$ cells: what do they buy? A gradient from a minibatch is random in two ways:
# *which* cells were taken, and where *their z* fell. These two variances add up:
#
# $$\mathrm{Var} = \frac{V_\text{cells}}{M} + \frac{V_\text{draws}}{M\,L}$$
#
# > **Predict first.** You can pay for 100 decodings per step. Is it better to take 100 cells with one
# > draw each, or ten cells with ten draws each?


# %% tags=["not-in-grading"]
def gradient_variance(weights, L, M, repeats):
    encoder, *decoder = weights
    gradients = []
    for _ in range(repeats):
        batch = x_blood[torch.randint(len(x_blood), (M,))]
        bound = aevb_bound(encoder, *decoder, batch, torch.randn(L, M, 2), sigma)
        gradients.append(torch.autograd.grad(bound, encoder)[0].flatten())
    return torch.stack(gradients).var(0).sum().item()


weights_now, _ = train("pathwise")
torch.manual_seed(8)
L_values = np.array([1, 2, 5, 10, 30])
fig, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
for M, colour, marker in ((1, ORANGE, "o"), (10, GREEN, "^"), (100, BLUE, "s")):
    variance = [gradient_variance(weights_now, L, M, repeats=int(400 / M**0.4)) for L in L_values]
    ax.loglog(M * L_values, variance, marker + "-", color=colour, label=f"M = {M} cells")
ax.set(xlabel="M·L, decodings per step", ylabel="variance of the gradient")
ax.set_title("Draws or cells?")
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plotting.show(
    alt="Variance of the encoder's gradient against M times L, for M of 1, 10 and 100 cells. Each line "
    "flattens as L grows; at equal M times L, more cells give a lower variance."
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# A hundred cells. More draws of the same cells flatten out at what the choice of cells leaves. At 100
# decodings, ten cells with ten draws have 1.91 ± 0.07 times the variance of 100 cells with one draw
# ([E03.cells_or_draws](evidence/03_gaussian_reparametrization.py)).
#
# </details>
#
# This is why nearly every VAE is trained with $L = 1$ and a minibatch of a hundred cells or so, as the
# first paper proposed. (For *reporting* a bound, more draws do no harm.)
#
# ## 7 · One ε, two places
#
# A draw is often used twice, and then it must be the *same* draw. In lesson 02 the bound was
# $\mathbb E_q[\log w]$ with the **weight** $w = p(z)\,p(x \mid z) / q(z)$. Since
# $\mathbb E_q[w] = p(x)$, one can also average the weights and take the logarithm afterwards:
#
# $$\log p(x) \approx \log \frac1S \sum_{s=1}^S \frac{p(z_s)\;p(x \mid z_s)}{q(z_s)},\qquad z_s \sim q$$
#
# This is **importance sampling**, used to compare finished models by their $\log p(x)$. Each $z_s$
# stands in three places.
#
# ### Exercise 03.6 · A bug hunt: z drawn twice
# ★★☆ · 8 minutes · 2 points
#
# The first releases of scVI computed this "marginal log-likelihood" from a $z$ of their own, but for
# $p(x \mid z)$ they called the model, which drew *another* $z$ from the same $q$:
#
# ```python
# z = gaussian(m, s, S)
# weight = log_prior(z) - log_q(z)
# z_again = gaussian(m, s, S)              # inside the model
# result = logsumexp(weight + log_likelihood(x, z_again), 0) - log(S)
# ```
#
# What does it compute? Take the model $z \sim \mathcal N(0, 1)$, $x \sim \mathcal N(z, \sigma^2)$,
# with $q = \mathcal N(m, s^2)$. Write `drawn_twice(x, sigma, mean, std)`: for each cell, the limit of
# `result` as $S$ grows. x, mean and std have shape (n_cells,).
#
# <details><summary>Hint</summary>The mean of a product of two independent things is the product of
# their means. What is E_q[p(z)/q(z)]? And x = z + noise, with z from q: what is its
# distribution?</details>


# %% nbgrader={"grade_id": "03-6", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def drawn_twice(x, sigma, mean, std):
    """The limit of the published code as S → ∞; shape (n_cells,)."""
    ### BEGIN SOLUTION
    # E_q[p(z)/q(z)] = ∫ p(z) dz = 1, so what remains is log E_q[p(x | z)]
    return Normal(mean, (sigma**2 + std**2) ** 0.5).log_prob(x)
    ### END SOLUTION


# %% nbgrader={"grade_id": "03-6-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("03.6", drawn_twice)

# %% [markdown]
# The prior has dropped out, and with it the price of $z$. Watch both codes for one cell with $x = 2.5$
# and $\sigma = 1$. To be fair to both, $q$ is a little wider than the posterior $\mathcal N(x/2, \tfrac12)$.

# %%
torch.manual_seed(9)
x_one, noise_sd, m_q, s_q = torch.tensor(2.5), 1.0, torch.tensor(1.25), torch.tensor(0.9)
z_first, z_again = gaussian(m_q, s_q, 100_000), gaussian(m_q, s_q, 100_000)
price = Normal(0.0, 1.0).log_prob(z_first) - Normal(m_q, s_q).log_prob(z_first)
once = price + Normal(z_first, noise_sd).log_prob(x_one)
twice = price + Normal(z_again, noise_sd).log_prob(x_one)
S = torch.arange(1, 100_001)
truth = Normal(0.0, 2**0.5).log_prob(x_one).item()
limit = float(drawn_twice(x_one[None], noise_sd, m_q[None], s_q[None])[0])

fig, ax = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
ax.semilogx(S, torch.logcumsumexp(once, 0) - S.log(), color=BLUE, label="the same z")
ax.semilogx(S, torch.logcumsumexp(twice, 0) - S.log(), color=RED, label="z drawn twice")
ax.axhline(truth, color="black", lw=1, label="log p(x)")
ax.axhline(limit, color=RED, lw=1, ls=":", label="its limit")
ax.set(
    xlabel="S, number of draws",
    ylabel="nats",
    ylim=(-4, -0.5),
    title="One cell, one latent dimension",
)
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
print(
    f"log p(x) {truth:.2f}, drawn twice {limit:.2f}: {limit - truth:.1f} nats too high in one dimension"
)
plotting.show(
    alt="Running estimates over 100,000 draws. With the same z they settle at log p(x); with z drawn twice "
    "they settle more than a nat above it."
)

# %% [markdown]
# The wrong code has less to explain and so looks *better* than the truth: for this cell by more than
# a nat, in a single latent dimension. Models have ten or thirty. It was fixed two releases later.
# Test such code where $q$ is the posterior: then every single weight is $p(x)$, and a first draw
# shows the error.
#
# ## What was not used, and why
#
# *Draws of the KL*: normal distributions have it in closed form, without variance. *Antithetic draws*
# ($\varepsilon$ and $-\varepsilon$ together) and *learned baselines*: they lower variances further,
# and with $L = 1$ and a slope nobody needs them. *Relaxed categories*: see lesson 07. *More flexible
# q*, made by several reparametrised steps (flows).
#
# ## What to take along
#
# - `sample` gives a number without its path back to $m$ and $s$. $z = m + s\,\varepsilon$ keeps the
#   path: the dice are thrown outside.
# - A blocked gradient, with a KL next to it, gives no error. It gives a KL of zero.
# - $s$ is a standard deviation: with a log-variance $v$ it is $\exp(v/2)$, in the draw *and* the KL.
# - Pathwise: average of slopes; small variance; $f$ must not jump. Score function (REINFORCE): values
#   times scores; any $f$ and any $q$; its variance grows with the level of $f$ and the dimensions.
# - Judge an estimator by its mean *and* its variance. A baseline must not depend on its own draw.
# - $L = 1$ is enough: spend on cells. And a draw that is used twice must be the same draw.
#
# ## What the claims rest on

# %% tags=["nbval-ignore-output"]
from vaelab.teaching import evidence

evidence.table("03")

# %% [markdown]
# **Next.** [Lesson 04](04_vae.ipynb): encoder and decoder become networks of any depth, and the numbers
# of a trained VAE say when it uses its latent space and when not.
#
# **Read on.** The reparametrisation and AEVB: D. Kingma and M. Welling, *Auto-Encoding Variational
# Bayes* (2014), §2.3 (algorithm 1; M = 100 and L = 1) and §2.4; at the same time D. Rezende,
# S. Mohamed and D. Wierstra, *Stochastic Backpropagation …* (2014), §3. The score function:
# R. Williams, Machine Learning 8 (1992) 229–256; in variational inference R. Ranganath, S. Gerrish
# and D. Blei, *Black Box Variational Inference* (2014). The leave-one-out baseline: W. Kool, H. van
# Hoof and M. Welling, *Buy 4 REINFORCE Samples, Get a Baseline for Free!* (2019). Everything about
# both, and where each wins: S. Mohamed, M. Rosca, M. Figurnov and A. Mnih, *Monte Carlo Gradient
# Estimation in Machine Learning*, JMLR 21:132 (2020), §§3–5 and 7. This lesson follows the
# section "Auto-encoding Variational Bayes" of a blog post, *Variational Autoencoders for Modeling
# Single-Cell Data* (2022), and "The reparameterization trick" of Harvard's MCB128 (2026); the errors
# to spot come from these two. The bug of 03.1: Keras, issue 3283 (2016) and pull request 9972 (2018);
# that of 03.6: scVI before 0.4.
