# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: vaelab
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
# # 07 · Drawing a cell type, with a gradient
#
# A cell is an alpha cell or a beta cell, and nothing between. Lesson 03 let gradients pass through
# a draw from a normal, by moving the noise aside: z = m + s·ε. A draw from a list has no such
# form: nudge the probabilities, and the drawn type stays as it is, until it jumps.
# **How can a network learn through a choice, and what does it pay for it?**
#
# **Objectives.** After this lesson you can
#
# - draw from a categorical distribution with nothing but an argmax (Gumbel-max), and test that it
#   does;
# - relax that draw so that it has a gradient, and say what the temperature trades: bias for
#   variance;
# - write a straight-through estimator, and say what of it is exact and what is not;
# - measure all of these against the score function with a baseline, and against summing over all
#   types, and choose;
# - recognise the mistakes that published code and a tutorial have made here.
#
# **You need** lessons 02 (the ELBO and its gap) and 03 (reparametrisation and the score function).
# **Time:** about 60 minutes. **Data:** none to download.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import stats

import vaelab
from vaelab import plotting
from vaelab.plotting import BLACK, BLUE, GREEN, ORANGE, PINK, RED, SKY
from vaelab.reparametrization import gumbel_softmax, score_function, seeded

torch.set_num_threads(1)

# %% [markdown]
# ## 1 · One cell, three types
#
# The smallest model that has the problem. A cell of the pancreas has one of three types *y*, each
# as likely as the others. We count three marker genes, and know how many molecules to expect of
# each in each type. Some of every marker is found in every type: RNA that floats in from burst
# cells. Given the type, counts are Poisson.
#
# Our cell has 3, 4 and 2 molecules. What is it?

# %%
types, genes = ["alpha", "beta", "delta"], ["Gcg", "Ins2", "Sst"]
rates = torch.tensor([[8.0, 2, 1], [2, 8, 1], [1, 2, 6]])  # expected counts: types × genes
x = torch.tensor([3.0, 4, 2])


def log_likelihood(y):
    """log p(x|y), for y of shape (…, 3): one-hot, a row of ones and zeros, for one type."""
    return torch.distributions.Poisson(y @ rates).log_prob(x).sum(-1)


log_p_x = log_likelihood(torch.eye(3))  # log p(x|y=k) for each k
log_joint = log_p_x + math.log(1 / 3)
log_evidence = log_joint.logsumexp(0)  # log p(x) = log Σ_k p(y=k) p(x|y=k)
posterior = (log_joint - log_evidence).exp()
print(f"log p(x) = {log_evidence:.3f}")
print("p(y|x)  :", ", ".join(f"{t} {p:.2f}" for t, p in zip(types, posterior, strict=True)))

# %% [markdown]
# Probably a beta cell, perhaps an alpha cell. Here three sums give the answer. In a VAE, a network
# has to find it: an encoder looks at *x* and gives a distribution **q(y|x) = π**, by three numbers,
# the **logits**, of which π is the softmax. It learns by climbing a bound on log p(x), and for that
# it needs the bound's gradient. One may think that *y* has to be drawn first. But a draw
# is the end of the road:

# %%
logits = torch.zeros(3, requires_grad=True)
y = torch.distributions.Categorical(logits=logits).sample()
print("the logits ask for a gradient:", logits.requires_grad)
print("their draw passes one on:     ", y.requires_grad)

# %% [markdown]
# ### Exercise 07.1 · Spot the error: a bound that needs no draw
# ★★☆ · 7 minutes · 3 points
#
# A tutorial prints this bound for a model with clusters, with *q_k* = q(y=k|x) and π_k = p(y=k)
# (its π is the prior, and not the π above):
#
# $$\sum_k q_k \Big[ \log p(x\,|\,y{=}k) \;-\; \mathrm{KL}\big(q(y{=}k|x)\,\|\,p(y{=}k)\big) \Big]$$
#
# and says under it that since y is categorical, "a particular reparametrization trick is needed".
# (In the tutorial there is also a continuous z, inside log p(x|y=k). We leave it out.) Two things
# are wrong. One is the sentence: what would have to be drawn? The other is the place of the KL.
# Read as it is printed, with q_k·log(q_k/π_k) for each k, what comes out?
#
# Write `bound(logits, log_p_x, log_prior)` for `n` cells and `K` types. `logits` and `log_p_x`
# have shape (n, K), `log_prior` has shape (K,); what comes back is the bound of each cell. Draw
# nothing.
#
# <details><summary>Hint</summary>Start from log p(x) ≥ E_q[log p(x|y) + log p(y) − log q(y)] and
# write the mean over q as a sum. How often does q_k stand before each logarithm?</details>


# %% nbgrader={"grade_id": "07-1", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def bound(logits, log_p_x, log_prior):
    """Σ_k q_k log p(x|k) − KL(q ‖ prior) for each cell; shape (n,)."""
    ### BEGIN SOLUTION
    log_q = logits.log_softmax(-1)  # (n, K)
    return (log_q.exp() * (log_p_x + log_prior - log_q)).sum(-1)
    ### END SOLUTION


# %% nbgrader={"grade_id": "07-1-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("07.1", bound)

# %% [markdown]
# (As printed, each logarithm has q_k before it twice: Σ q_k² log(q_k/π_k) is no KL.)
#
# The sum over types is a smooth function of the logits, and autograd needs nothing more. **With one
# choice among a few types, sum. There is no trick to play.** This is **exact enumeration**, and in
# this lesson it is the truth against which all else is measured.
#
# So why go on? Because of the price: the sum asks the decoder K times, once for each type. Under a
# microscope slide's *spot*, with six cells in it whose counts come mixed, there are 3⁶ = 729
# combinations; with twenty cells, more than three thousand million. Then we have to draw.
#
# ## 2 · A race of clocks
#
# To get a gradient through a draw, lesson 03 wrote it as a smooth function of parameters and of
# noise that knows nothing of them. Let us look for such a form.
#
# Give each type a clock that rings once, after a random time. The time is exponential, with rate
# π_k: within any short dt it rings with probability π_k·dt. **Which clock rings first?** Type *k*
# rings at *t* while all others are still silent with probability
#
# $$\int_0^\infty \underbrace{\pi_k e^{-\pi_k t}}_{k\text{ rings at }t}\ \prod_{j\ne k}
# \underbrace{e^{-\pi_j t}}_{j\text{ silent}}\,dt \;=\; \pi_k \int_0^\infty e^{-t\sum_j \pi_j} dt
# \;=\; \frac{\pi_k}{\sum_j \pi_j} \;=\; \pi_k$$
#
# The winner of the race is a draw from π. (Who has simulated chemical reactions knows it as
# Gillespie's *first-reaction method*.) An exponential with rate π_k is an exponential with rate 1,
# divided by π_k. So all chance is in *e*, which knows nothing of π:

# %%
π = torch.tensor([0.2, 0.5, 0.3])
with seeded(7):
    e = torch.empty(100_000, 3).exponential_()  # waiting times at rate 1
wait = e / π
winner = wait.argmin(-1)

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for k, (name, colour) in enumerate(zip(types, [ORANGE, BLUE, GREEN], strict=True)):
    for race in range(8):
        won = winner[race] == k
        left.plot(wait[race, k], race + 1, "o", ms=8, color=colour, mfc=colour if won else "white")
    left.plot([], [], "o", color=colour, label=name)
left.set(
    xscale="log", xlabel="time until the clock rings", ylabel="race", title="Filled: the first"
)
left.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
share = torch.bincount(winner, minlength=3) / len(winner)
right.bar(types, share, color=[ORANGE, BLUE, GREEN], width=0.6)
right.hlines(π, np.arange(3) - 0.4, np.arange(3) + 0.4, color="black", lw=2, label="π")
right.set(ylabel="share of the races won", ylim=(0, 0.6), title="100,000 races")
_ = right.legend(frameon=False)

# %% [markdown]
# They look alike. A test says how alike: Pearson's χ² adds up the squared differences between
# numbers drawn and numbers expected. We ask for a p-value above 10⁻⁶: a right sampler would fail
# for one seed in a million.

# %%
n_won = torch.bincount(winner, minlength=3).numpy()
print("the race draws from π:", stats.chisquare(n_won, [20_000, 50_000, 30_000]).pvalue > 1e-6)

# %% [markdown]
# Networks speak in logits, so take the logarithm. Order is kept if we put a minus before it, and
# the first becomes the largest:
#
# $$\operatorname*{argmin}_k \frac{e_k}{\pi_k} \;=\; \operatorname*{argmax}_k
# \big(\log \pi_k + g_k\big), \qquad g_k = -\log e_k = -\log(-\log u_k)$$
#
# with *u* uniform between 0 and 1, since −log u is exponential. The noise *g* has a
# **Gumbel** distribution, and the recipe is called **Gumbel-max**. A constant added to all
# logits moves all scores alike and changes no winner, so logits need not be normalised.
#
# ### Exercise 07.2 · Gumbel-max
# ★☆☆ · 5 minutes · 2 points
#
# Write `gumbel_max(logits, u)`: `logits` has shape (K,), `u` shape (S, K) with values between 0
# and 1; what comes back is the drawn type of each of the S draws.
#
# This line has been copied from program to program since 2016, often as `-log(-log(u + 1e-20) +
# 1e-20)`. The small number keeps a logarithm finite if u is 0. What else does it do? And a
# generator of molecules added the noise to π in place of log π (AITRICS/FREED, pull request 4,
# 2022). The check looks for both.
#
# <details><summary>Hint</summary>Three steps: waiting times from u, scores from waiting times and
# logits, and the place of the largest in each row.</details>


# %% nbgrader={"grade_id": "07-2", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def gumbel_max(logits, u):
    """The type that wins each race; shape (S,)."""
    ### BEGIN SOLUTION
    gumbel = -(-u.log()).log()
    return (logits + gumbel).argmax(-1)
    ### END SOLUTION


# %% nbgrader={"grade_id": "07-2-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("07.2", gumbel_max)

# %% [markdown]
# An epsilon puts a floor and a ceiling to the noise: with 10⁻²⁰, *g* stays between −3.8 and 46;
# with 10⁻⁵, between −2.4 and 11.5, so that a type whose logit lies 14 below another's is never
# drawn. Our package takes *e* from `exponential_`, which never gives 0, and needs no epsilon.
#
# ## 3 · The relaxation
#
# Now all chance stands apart from π, and one step is left that has no gradient: the argmax. As
# ever in this field, put a softmax in its place, and a **temperature** τ to say how soft:
#
# $$y \;=\; \operatorname{softmax}\!\Big(\frac{\log \pi + g}{\tau}\Big)$$
#
# This is the **Gumbel-softmax**. Two groups found it in the same weeks of 2016: one gave it this
# name, the other called the distribution *concrete*. In code it is one line. It agrees with the package, given
# the same noise:


# %%
def relax(logits, e, temperature):
    """y, shape (S, K), from waiting times e at rate 1."""
    return ((logits - e.log()) / temperature).softmax(-1)


logits = π.log()
with seeded(0):
    y = relax(logits, torch.empty(1000, 3).exponential_(), temperature=0.5)
with seeded(0):
    torch.testing.assert_close(y, gumbel_softmax(logits, 0.5, n_samples=1000))
print("each draw sums to 1:", torch.allclose(y.sum(-1), torch.ones(1000)))

# %% [markdown]
# A draw is no longer a type but a mixture of types: three numbers that sum to 1, a point in a
# triangle. Its corners are the pure types, its middle is a third of each.

# %%
corners = torch.tensor([[0, 0], [1, 0], [0.5, math.sqrt(3) / 2]])


def draw_triangle(ax, logits, temperature, e):
    """Relaxed draws, coloured by their largest entry; a cross at π, a disc at their mean."""
    y, π = relax(logits, e, temperature), logits.softmax(-1)
    colours = np.array([ORANGE, BLUE, GREEN])[y.argmax(-1)]
    ax.fill(*corners.T, fc="none", ec="0.6")
    ax.scatter(*(y @ corners).T, s=7, c=colours, alpha=0.5, lw=0)
    ax.plot(*(π @ corners), "kx", ms=10, mew=2, label="π")
    ax.plot(*(y.mean(0) @ corners), "o", ms=8, mfc="white", mec="black", label="mean of the draws")
    for corner, name, side in zip(corners, types, ["right", "left", "center"], strict=True):
        ax.annotate(name, corner, (0, 6 if side == "center" else -14), ha="center",
                    textcoords="offset points")  # fmt: skip
    ax.set_title(f"τ = {temperature:g}", pad=18)
    ax.set_aspect("equal")
    ax.axis("off")


fig, axes = plt.subplots(1, 4, figsize=(13, 3.3), layout="constrained")
for ax, temperature in zip(axes, [0.1, 0.5, 1, 5], strict=True):
    draw_triangle(ax, logits, temperature, e[:800])
_ = fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)

# %% [markdown]
# The same 800 races in all four. When it is cold, nearly every draw sits in a corner; when it is
# hot, all crowd into the middle, whatever π is. For τ below 1/(K − 1), here ½, the density has no
# peak inside the triangle.
#
# Two things can be read off. The **colours** are the same at every temperature: which entry is
# the largest depends on the race alone, so its frequencies are π, always. But the **mean of the
# draws** leaves π and walks to the middle. We come to that next.
#
# With a kernel running, move the temperature and the logits yourself (delta's logit is 0):

# %% tags=["nbval-ignore-output"]
from ipywidgets import FloatLogSlider, FloatSlider


def draw_one(temperature, alpha, beta):
    fig, ax = plt.subplots(figsize=(5, 4.6))
    draw_triangle(ax, torch.tensor([alpha, beta, 0.0]), temperature, e[:1500])
    ax.legend(frameon=False, loc="upper left", fontsize=9)
    return fig


plotting.interactive(
    draw_one,
    alt=(
        "Relaxed draws as dots in the triangle of three types. At a low temperature they lie "
        "in the corners, at a high one in the middle."
    ),
    temperature=FloatLogSlider(0.5, min=-1.5, max=1, step=0.05, description="τ"),
    alpha=FloatSlider(-0.4, min=-4, max=4, description="logit alpha"),
    beta=FloatSlider(0.5, min=-4, max=4, description="logit beta"),
)

# %% [markdown]
# ## 4 · The mean of a relaxed draw
#
# For two types one can say exactly how far the mean goes. Only the difference of the scores
# matters, δ + s with δ = log π₁ − log π₂, and *s* the difference of two Gumbels. Such a difference
# has a **logistic** distribution, whose density is σ(s)·σ(−s), and a softmax of two is a sigmoid σ
# of their difference. So
#
# $$\mathbb E[y_1] \;=\; \int \sigma\!\Big(\frac{\delta + s}{\tau}\Big)\,\sigma(s)\,\sigma(-s)\,ds$$
#
# ### Exercise 07.3 · The mean of a relaxed draw
# ★★☆ · 8 minutes · 3 points
#
# Write `mean_of_relaxed(difference, temperature)`, both of them numbers. Three correct digits are
# enough, and any way is right: `scipy.integrate.quad`, or a sum over a fine grid of s.
#
# <details><summary>Hint</summary>The logistic density has all but 10⁻¹³ of its mass between −30
# and 30. On a grid, multiply by the distance of its points. With <code>quad</code>, a sigmoid
# that does not overflow is <code>scipy.special.expit</code>.</details>


# %% nbgrader={"grade_id": "07-3", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def mean_of_relaxed(difference, temperature):
    """E[y₁] for two types with δ = `difference` between their logits."""
    ### BEGIN SOLUTION
    s = torch.linspace(-30, 30, 20_001, dtype=torch.float64)
    y = ((difference + s) / temperature).sigmoid()
    return (y * s.sigmoid() * (-s).sigmoid()).sum() * (s[1] - s[0])
    ### END SOLUTION


# %% nbgrader={"grade_id": "07-3-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("07.3", mean_of_relaxed)

# %%
differences = np.linspace(-5, 5, 41)
π_1 = 1 / (1 + np.exp(-differences))
fig, ax = plt.subplots(figsize=(5.5, 4), layout="constrained")
ax.plot([0, 1], [0, 1], color="0.5", ls="--", label="no bias")
for temperature, colour in zip([0.2, 0.5, 1, 2, 5], plotting.COLOURS, strict=False):
    means = [mean_of_relaxed(δ, temperature) for δ in differences]
    ax.plot(π_1, means, color=colour, label=f"τ = {temperature:g}")
ax.set(xlabel="π₁, the probability of type 1", ylabel="E[y₁], the mean of relaxed draws")
ax.set_title("Heat pulls the mean to the middle")
_ = ax.legend(frameon=False)

# %% [markdown]
# **E[y] ≠ π for any τ > 0**, except where π is uniform. At τ = 0.2 one hardly sees it: the
# bias shrinks as τ². At τ = 1, the default of many programs, a type with probability 0.9 has a
# mean of about 0.8.
#
# > **Spot the error.** An issue in PyTorch's tracker (77053, from 2022) asks that `gumbel_softmax`
# > normalise its logits with a log-softmax first, since the formula in the paper has log π.
# > Would any draw change?
# >
# > <details><summary>Solution</summary>None. log-softmax subtracts the same number from all
# > logits, and softmax does not see it. <b>Softmax</b> in place of log-softmax is the real
# > mistake: logits 0 and 4.6 (π = 0.01, 0.99) become 0.01 and 0.99, which are then read as logits
# > of 0.27 and 0.73. A program that was sure goes on to guess.</details>
#
# ## 5 · Bias against variance
#
# What we want is not y, but the gradient of E[log p(x|y)] with respect to the logits. (The KL of
# q(y|x) to the prior needs no draw: it is a sum of K terms. Only the reconstruction is estimated
# here.) The exact gradient is a sum over types. The relaxation offers this instead: draw y, ask
# the decoder **for the mixture y** what it thinks of x, and let autograd go back.
#
# We look at two problems. The first is our cell. The second is a spot of six cells whose counts
# come mixed: each has its own type and its own logits, and the expected counts are the sum over
# cells. It can still be enumerated, with 729 terms, so that the truth is known.


# %%
class Spot:
    """`n_cells` cells with a type each; their counts x come together."""

    def __init__(self, n_cells, seed=5):
        self.x = n_cells * x
        with seeded(seed):  # not at the start of a training: some cells have made up their mind
            self.logits = 0.7 * torch.randn(n_cells, 3) if n_cells > 1 else torch.zeros(1, 3)
        self.every = torch.eye(3)[torch.cartesian_prod(*n_cells * [torch.arange(3)])]
        self.every = self.every.reshape(-1, n_cells, 3)  # (3ⁿ, n_cells, 3)

    def log_likelihood(self, y):
        """log p(x|y), y of shape (…, n_cells, 3)."""
        return torch.distributions.Poisson((y @ rates).sum(-2)).log_prob(self.x).sum(-1)

    def exact_gradient(self):
        """Of Σ_y q(y) log p(x|y), the sum over all combinations of types."""
        logits = self.logits.clone().requires_grad_()
        log_q = (self.every * logits.log_softmax(-1)).sum((-2, -1))  # (3ⁿ,)
        mean = (log_q.exp() * self.log_likelihood(self.every)).sum()
        return torch.autograd.grad(mean, logits)[0]


spots = {"one cell": Spot(1), "a spot of six cells": Spot(6)}
assert torch.allclose(spots["one cell"].log_likelihood(torch.eye(3)[:, None]), log_p_x)

# %% [markdown]
# An estimator is judged by two numbers. Its **bias** is how far its mean lies from the exact
# gradient: no number of draws mends it. Its **standard deviation** is how far one draw lies from
# its mean: over S draws it shrinks as 1/√S. The squared error of a mean of S draws is the sum of
# both, bias² + sd²/S. We take the length of the whole gradient vector in each.


# %%
def relaxed_gradients(spot, temperature, n, hard=False):
    """n single-draw estimates of the gradient; shape (n, n_cells, 3)."""
    logits = spot.logits.repeat(n, 1, 1).requires_grad_()  # a copy for each draw
    y = gumbel_softmax(logits, temperature, hard)
    return torch.autograd.grad(spot.log_likelihood(y).sum(), logits)[0]


def judge(gradients, exact):
    """The bias and the standard deviation of one draw."""
    bias = (gradients.mean(0) - exact).norm()
    return bias.item(), gradients.var(0).sum().sqrt().item()


temperatures = [0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1, 1.4, 2, 3, 5]
N, S = 50_000, 10
judged = {}
with seeded(0):
    for name, spot in spots.items():
        exact = spot.exact_gradient()
        judged[name] = np.array([judge(relaxed_gradients(spot, t, N), exact) for t in temperatures])


# %%
def log_axes(ax, **labels):
    ax.set(xscale="log", yscale="log", **labels)
    ax.set_xticks([0.05, 0.1, 0.2, 0.5, 1, 2, 5], labels=["0.05", "0.1", "0.2", "0.5", *"125"])
    ax.set_yticks(
        [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5], labels=["0.02", "0.05", "0.1", "0.2", "0.5", *"125"]
    )
    ax.minorticks_off()


def root_mean_square(bias_and_sd):
    """The error of a mean of S draws."""
    bias, sd = np.moveaxis(np.asarray(bias_and_sd), -1, 0)
    return np.sqrt(bias**2 + sd**2 / S)


fig, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharey=True)
for ax, (name, values) in zip(axes, judged.items(), strict=True):
    ax.plot(temperatures, values[:, 0], color=ORANGE, label="bias")
    ax.plot(temperatures, values[:, 1] / math.sqrt(S), color=SKY, label=f"sd of {S} draws' mean")
    ax.plot(temperatures, root_mean_square(values), color=BLACK, lw=2.5, label="error, from both")
    ax.axhline(spots[name].exact_gradient().norm(), color="0.6", ls=":")
    ax.annotate("length of the exact gradient", (5, spots[name].exact_gradient().norm()),
                (0, 4), textcoords="offset points", ha="right", color="0.45")  # fmt: skip
    log_axes(ax, xlabel="temperature τ", title=name)
axes[0].set_ylabel("nats per unit of logit")
axes[0].set_ylim(0.006, 5)
_ = axes[1].legend(frameon=False, loc="lower left")

# %% [markdown]
# That is the bargain. Cooling removes the bias, and the variance grows without limit, about as
# 1/τ: a draw that is nearly one-hot changes suddenly or not at all, so that its gradient is huge
# or nearly zero. Between them lies a best temperature, and it depends on how many draws are
# averaged: more draws, colder. (The bias itself is measured from 50,000 draws, so that at the
# cold end it is known to about 0.02 on the left and 0.05 on the right, and no better.)
#
# The dotted line is a useful measure: who answers "zero" to every question about the gradient has
# an error of just that. For our one cell the bargain is a poor one. At its best, the error of ten
# draws is three quarters of the gradient itself, and we could have summed three terms.
#
# ## 6 · The rival: the score function, with a baseline
#
# Lesson 03 had another way, which needs no derivative of f(y) = log p(x|y) at all:
#
# $$\nabla\, \mathbb E_q[f(y)] \;=\; \mathbb E_q\big[\, f(y)\; \nabla \log q(y) \,\big],
# \qquad \frac{\partial \log q(y)}{\partial\, \text{logit}_k} \;=\; 1[y = k] - \pi_k$$
#
# It is unbiased. Its trouble is variance: f is −7 or so whichever type is drawn, and each draw
# pushes with all of it. Take away a **baseline** b that does not depend on the draw. The mean of
# b·∇log q is b·∇Σq = b·∇1 = 0, so nothing is biased, and f − b may be small.
#
# ### Exercise 07.4 · A baseline from the other draws
# ★★★ · 8 minutes · 3 points
#
# Where does a baseline come from? With S draws, take for each of them the mean f of the S − 1
# *others*. Write `score_gradient(logits, drawn, f)` for logits of shape (K,), S drawn types and
# their S values f: the mean over draws of (f_s − b_s)·∇log q(y_s), of shape (K,).
#
# <details><summary>Hint</summary>The sum of the others is the sum of all, less its own. Rows of
# <code>torch.eye(K)[drawn]</code> are the one-hot draws; mind its precision:
# <code>dtype=f.dtype</code>.
# </details>


# %% nbgrader={"grade_id": "07-4", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def score_gradient(logits, drawn, f):
    """The gradient of E[f] with respect to the logits; shape (K,)."""
    ### BEGIN SOLUTION
    baseline = (f.sum() - f) / (len(f) - 1)
    score = torch.eye(len(logits), dtype=f.dtype)[drawn] - logits.softmax(-1)  # (S, K)
    return ((f - baseline)[:, None] * score).mean(0)
    ### END SOLUTION


# %% nbgrader={"grade_id": "07-4-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("07.4", score_gradient)

# %% [markdown]
# The check knows it by another name: the exact gradient is the *covariance* of f(y) and 1[y = k],
# and this estimator is the sample covariance, divided by S − 1. The package has it, for any
# distribution, as `score_function` of lesson 03. Given the same draws, both agree:

# %%
logits = π.log().requires_grad_()
q = torch.distributions.Categorical(logits=logits)
with seeded(5):
    score_function(lambda y: log_p_x[y], q, n_samples=10, baseline=True).backward()
with seeded(5):
    drawn = q.sample((10,))
by_hand = score_gradient(logits.detach(), drawn, log_p_x[drawn])
print("ours and the package's agree:", torch.allclose(by_hand, logits.grad, atol=1e-5))

# %% [markdown]
# ## 7 · Straight-through
#
# A relaxed draw has one more fault: the decoder sees a cell that is 60 % alpha and 40 % beta, and
# there is none. **Straight-through** gives it a true type, one-hot, and lies only on the way
# back: the decoder's slope, taken at the true type, goes on to the logits through the relaxed draw.
#
# ### Exercise 07.5 · Straight-through
# ★★☆ · 6 minutes · 2 points
#
# Write `straight_through(logits, e, temperature)` for logits and waiting times of shape (n, K):
# forward the winner of each race, one-hot; backward the gradient of `relax`. The check
# compares two results: the value, and the gradient of a weighted sum of its entries, with weights
# of the check's own, that comes back to the logits.
#
# <details><summary>Hint</summary><code>tensor.detach()</code> has the value of a tensor and none
# of its gradient. Can you make a tensor with it that is 0 everywhere, and has the gradient of
# y?</details>


# %% nbgrader={"grade_id": "07-5", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def straight_through(logits, e, temperature):
    """One-hot, with the gradient of the relaxation; shape (n, K)."""
    ### BEGIN SOLUTION
    y = ((logits - e.log()) / temperature).softmax(-1)
    one_hot = torch.eye(y.shape[-1], dtype=y.dtype)[y.argmax(-1)]
    return one_hot + (y - y.detach())
    ### END SOLUTION


# %% nbgrader={"grade_id": "07-5-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("07.5", straight_through)

# %% [markdown]
# In the package it is `hard=True`. Every value that it gives is a draw from π, at any
# temperature. Its *gradient* is neither that of the hard draw, which has none, nor that of the soft
# one, since the decoder was asked at another point. It is biased in its own way, which cooling
# need not cure.
#
# Now all four side by side, in the error of a mean of ten draws. The baseline here is the mean of
# f, which a training would carry along as a running mean.


# %%
def score_gradients(spot, n, baseline):
    """n single-draw estimates of the gradient by the score function; shape (n, n_cells, 3)."""
    q = torch.distributions.Categorical(logits=spot.logits)
    one_hot = torch.eye(3)[q.sample((n,))]
    f = spot.log_likelihood(one_hot)
    f = f - f.mean() if baseline else f
    return f[:, None, None] * (one_hot - q.probs)


fig, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
for ax, (name, spot) in zip(axes, spots.items(), strict=True):
    exact = spot.exact_gradient()
    with seeded(1):
        hard = [judge(relaxed_gradients(spot, t, N, hard=True), exact) for t in temperatures]
        plain, helped = (
            root_mean_square(judge(score_gradients(spot, N, b), exact)) for b in (0, 1)
        )
    ax.plot(temperatures, root_mean_square(judged[name]), color=BLACK, label="Gumbel-softmax")
    ax.plot(temperatures, root_mean_square(hard), color=PINK, label="straight-through")
    ax.axhline(plain, color=RED, ls="--", label="score function")
    ax.axhline(helped, color=BLUE, ls="--", label="score function, baseline")
    ax.axhline(exact.norm(), color="0.6", ls=":", label="length of the exact gradient")
    log_axes(ax, xlabel="temperature τ", title=name)
axes[0].set(ylabel=f"error of a mean of {S} draws", ylim=(0.1, 9))
_ = axes[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))

# %% [markdown]
# Left, **one cell: the score function with a baseline beats everything**, at every temperature,
# and without bias. Leave
# the baseline out, and the order is turned: a comparison without it is no comparison.
#
# Right, **six cells: the order turns.** The score function sees one number f for six decisions. For
# each cell, what the other five did is noise, and it grows with their number. The relaxation gets,
# through the decoder's derivative, an answer of its own for each cell. And one cell of six that is
# half alpha bends the expected counts little, so its bias weighs less. Around τ = 1 it now leads,
# and the score function is worse than answering zero.
#
# Straight-through, each at its best temperature, trails in both. It follows the slope of log p at
# the pure types, and log p is too curved here for the slope to hold as far as the next type. With
# decoders that are less curved it does better, and some models can't do without a hard choice.
#
# | | needs | biased | variance | decoder calls |
# |---|---|---|---|---|
# | enumeration | few combinations | no | none | K, or Kⁿ |
# | score function + baseline | values of f | no | grows with the number of choices | 1 a draw |
# | Gumbel-softmax | f of mixtures, a derivative | yes, if τ > 0 | grows as τ → 0 | 1 a draw |
# | straight-through | a derivative of f | yes | larger still | 1 a draw |
#
# ## 8 · A failure: a bound that isn't one
#
# Let us fit q(y|x) to our one cell, each way, and measure what remains of the **gap**: log p(x)
# minus the true bound, which is KL(q(y|x) ‖ p(y|x)) and is 0 when q is the posterior (lesson
# 02). We train 100 copies at once, each with its own luck. A step uses one draw, or two where the
# score function takes its baseline from the other.
#
# **Annealing** starts hot, where the gradients are calm, and cools as it goes. The usual schedule
# is τ = max(τ_min, τ₀·exp(−rate·step)).

# %%
STEPS, COPIES = 1000, 100


def annealed(step, start=2.0, end=0.1):
    """From `start` down to `end` at 60 % of the steps, and constant from there."""
    return max(end, start * math.exp(-step / (0.6 * STEPS) * math.log(start / end)))


def gap(logits):
    """log p(x) − the true bound = KL(q(y|x) ‖ p(y|x)), for each copy."""
    log_q = logits.log_softmax(-1)
    return (log_q.exp() * (log_q - posterior.log())).sum(-1)


def kl(logits):
    """KL(q(y|x) ‖ p(y)) for a uniform prior: the part of the bound that needs no draw."""
    log_q = logits.log_softmax(-1)
    return (log_q.exp() * (log_q - math.log(1 / 3))).sum(-1)


# %% [markdown]
# Now the ways to estimate the reconstruction, E_q[log p(x|y)], or its gradient. Each takes logits
# of shape (copies, 3) and the number of the step.


# %%
def by_enumeration(logits, step):
    return logits.softmax(-1) @ log_p_x


def by_score(logits, step):
    q = torch.distributions.Categorical(logits=logits)
    return score_function(lambda drawn: log_p_x[drawn], q, n_samples=2, baseline=True)


def by_relaxation(schedule, hard=False):
    return lambda logits, step: log_likelihood(gumbel_softmax(logits, schedule(step), hard))


# %%
def fit(reconstruction, rate=0.1):
    """Gradient ascent with falling steps; the logits, and the gap on the way."""
    logits = torch.zeros(COPIES, 3, requires_grad=True)
    gaps = []
    for step in range(STEPS):
        objective = (reconstruction(logits, step) - kl(logits)).sum()
        (gradient,) = torch.autograd.grad(objective, logits)
        with torch.no_grad():
            logits += rate * (1 - step / STEPS) * gradient
            gaps.append(gap(logits).mean().item())
    return logits.detach(), gaps


ways = {
    "enumeration": by_enumeration,
    "score function, baseline": by_score,
    "Gumbel-softmax, τ = 2": by_relaxation(lambda step: 2.0),
    "Gumbel-softmax, τ = 0.1": by_relaxation(lambda step: 0.1),
    "Gumbel-softmax, annealed": by_relaxation(annealed),
    "straight-through, τ = 0.5": by_relaxation(lambda step: 0.5, hard=True),
}
with seeded(0):
    fits = {name: fit(way) for name, way in ways.items()}

# %%
fig, ax = plt.subplots(figsize=(8, 3.8), layout="constrained")
colours = [BLACK, BLUE, RED, ORANGE, GREEN, PINK]
for (name, (_, gaps)), colour in zip(fits.items(), colours, strict=True):
    ax.plot(gaps, color=colour, label=name)
ax.set(yscale="log", ylim=(5e-4, 0.6), xlabel="step", ylabel="gap to log p(x), nats")
ax.set_title("How far from the truth, mean of 100 copies")
_ = ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))

# %% [markdown]
# Enumeration and the score function find the posterior. The hot relaxation stops a quarter of a nat
# away and stays there: no patience helps, since this is bias. What does it believe of itself? We
# take the q that it found, and ask for its bound in three ways.

# %%
hot = fits["Gumbel-softmax, τ = 2"][0]  # logits, (copies, 3)
claims = {"summed": float(log_evidence - gap(hot).mean())}
with seeded(2):
    for name, hard in {"from hard draws": True, "from relaxed draws, τ = 2": False}.items():
        y = gumbel_softmax(hot, 2.0, hard, n_samples=200)
        claims[name] = float((log_likelihood(y) - kl(hot)).mean())

fig, ax = plt.subplots(figsize=(8, 2.2), layout="constrained")
ax.axvspan(log_evidence, -4, color="0.93")
ax.text(-6.9, 1, "above log p(x): no lower bound can be here", va="center", color="0.4")
ax.scatter(list(claims.values()), list(claims), s=90, color=[BLACK, SKY, RED], zorder=3)
ax.set(xlabel="“bound” of the hot fit, nats", xlim=(-8, -4), ylim=(-0.5, 2.5))
print("from relaxed draws it is above log p(x):", claims[name] > log_evidence.item())

# %% [markdown]
# Its own objective is two nats **above** log p(x), where no lower bound can be. The relaxed model
# is another model, in which a cell may be a mixture of types, and a mixture of alpha and beta
# explains 3, 4, 2 better than any pure cell. Watched on the training curve, the failure looks like
# success.
#
# The cure has three parts, each of which you can check:
#
# - **Cool down.** Annealed, the fit ends about six times closer than the hot one. It ends as close
#   as the one that was cold all the way, or hardly closer: with three logits, a calm start gains
#   nothing. Measure before you copy a schedule.
# - **Judge by what is true.** Report bounds from hard draws, or summed, never relaxed ones. The
#   lower two points agree.
# - **Sum if you can.** Here nothing comes near the two lowest curves.
#
# ## 9 · Torch's own
#
# PyTorch has the relaxation twice: `torch.nn.functional.gumbel_softmax` gives draws, and
# `torch.distributions.RelaxedOneHotCategorical` has a density too. If ours is right, all three
# draw from one distribution. Histograms against torch's density, for two types with π₁ = 0.7:

# %%
log_π = torch.tensor([0.7, 0.3]).log()
fig, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
at = torch.linspace(0.0005, 0.9995, 1999)
for ax, temperature in zip(axes, [0.3, 0.8, 2.0], strict=True):
    theirs = torch.distributions.RelaxedOneHotCategorical(torch.tensor(temperature), logits=log_π)
    density = theirs.log_prob(torch.stack([at, 1 - at], -1)).exp()
    with seeded(3):
        y_1 = gumbel_softmax(log_π, temperature, n_samples=50_000)[:, 0]
    ax.hist(y_1, 60, range=(0, 1), density=True, color="0.8", label="our draws")
    ax.plot(at, density, color=BLUE, label="torch's density")
    ax.set(xlabel="y₁", ylim=(0, min(6, 1.3 * density.max())), title=f"τ = {temperature:g}")
axes[0].set_ylabel("density")
_ = axes[1].legend(frameon=False)

# %% [markdown]
# And as a test, with three types: the Kolmogorov–Smirnov statistic is the largest distance between
# two empirical distribution functions. Once more a p-value above 10⁻⁶ passes.

# %%
with seeded(4):
    ours = gumbel_softmax(π.log(), 0.7, n_samples=20_000)
    relaxed_ = torch.distributions.RelaxedOneHotCategorical(torch.tensor(0.7), logits=π.log())
    others = {
        "functional.gumbel_softmax": torch.nn.functional.gumbel_softmax(
            π.log().expand(20_000, 3), tau=0.7
        ),
        "RelaxedOneHotCategorical": relaxed_.sample((20_000,)),
    }
for name, theirs in others.items():
    p = [stats.ks_2samp(ours[:, k], theirs[:, k]).pvalue for k in range(3)]
    print(f"{name:26s} agrees in each coordinate: {min(p) > 1e-6}")

# %% [markdown]
# The curve on the left shows one more trap. It is a **density**, and a density may be as high as it
# likes: near the corners it goes to infinity. It is not the probability of a type, and its
# logarithm may not stand where log q(y) stands in a KL. Relaxed on both sides, in q *and* in the
# prior, a bound is again a bound, though on another model (Maddison et al., §3.3 and appendix C).
# The usual way, and ours, is to relax only the reconstruction and to keep the KL as the sum over
# types.
#
# ## 10 · A bug hunt
#
# ### Exercise 07.6 · Bug hunt: a KL below zero
# ★☆☆ · 5 minutes · 2 points
#
# A public implementation of a Gaussian-mixture VAE with Gumbel-softmax (jariasf/GMVAE, file
# `pytorch/model/GMVAE.py`, commit 3f7af05) computes the KL of q(y|x) to a uniform prior as minus
# the entropy of q, minus `np.log(0.1)`. Its number of classes is an option, `num_classes`. With
# twenty, the KL of an undecided cell comes out below zero. Can a KL be that? What is 0.1? And does
# the mistake change the fit, or only the reported bound, and so the choice of the number of
# clusters?
#
# Write `kl_to_uniform(logits)` for logits of shape (n, K), any K: a KL for each cell. It must not
# give NaN for a cell that is certain, with logits in the thousands.
#
# <details><summary>Hint</summary>KL(q‖p) = Σ_k q_k (log q_k − log p_k), and p_k = 1/K.
# <code>q.log()</code> of a softmax that has become 0 is −∞, and 0·∞ is NaN;
# <code>log_softmax</code> stays finite.</details>


# %% nbgrader={"grade_id": "07-6", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def kl_to_uniform(logits):
    """KL(q ‖ uniform), q = softmax(logits), for each cell; shape (n,)."""
    ### BEGIN SOLUTION
    log_q = logits.log_softmax(-1)
    return (log_q.exp() * log_q).sum(-1) + math.log(logits.shape[-1])
    ### END SOLUTION


# %% nbgrader={"grade_id": "07-6-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("07.6", kl_to_uniform)

# %%
for n_classes in (3, 10, 20):
    right_one = kl_to_uniform(torch.zeros(1, n_classes)).item()  # of an undecided cell
    hard_coded = right_one - math.log(n_classes) - math.log(0.1)
    right_one, hard_coded = (round(kl, 2) + 0.0 for kl in (right_one, hard_coded))
    print(
        f"{n_classes:2d} classes, q = prior: KL = {right_one:.2f}; with log(0.1): {hard_coded:.2f}"
    )

# %% [markdown]
# A constant has no gradient, so every fit is the same. But the reported bound is wrong by
# log(K/10): with 20 classes each cell gets 0.69 nats for nothing, with 3 it pays 1.20 too much.
# Whoever chooses the number of clusters by that bound is told to take more. **A KL below zero is
# never small noise: it is a bug**, and an `assert` on it costs one line.
#
# ## What was not used, and why
#
# *A learned temperature*, or one for each cell: the bound of a relaxed model may like heat for the
# wrong reasons, as §8 showed. *Lower-variance relatives*: REBAR and RELAX combine the score function
# with the relaxation, Gumbel–Rao averages the relaxation over races with the same winner, VIMCO
# takes baselines from the other draws of a many-draw bound; worth the reading once you need them.
# *A network*: everything here is in the logits of one
# spot, and an encoder only adds a chain rule. Lesson 08 puts q(y|x) into a VAE for sorted blood
# cells, and compares summing y out with drawing it.
#
# ## What to take along
#
# - The first of K exponential clocks is a draw from π; in logits, argmax(log π + g). It is exact.
# - Softmax in place of argmax gives a gradient, and E[y] ≠ π. Cooling trades the bias for
#   variance. Which entry is largest stays exact.
# - Straight-through is exact forward and biased backward.
# - One choice among a few: sum. Few choices, or no derivative: the score function with a baseline.
#   Many choices behind one smooth decoder: relax, anneal, and report bounds from hard draws.
# - A relaxed "bound" above log p(x), and a KL below zero, are not good news.
#
# **Read on.** Gumbel-softmax: E. Jang, S. Gu and B. Poole (2017), equations 1–2, §2.1 (the
# temperature) and §2.2 (straight-through). Concrete: C. Maddison, A. Mnih and Y. W. Teh (2017),
# definition 1 for the density, proposition 1 for rounding and the temperature, §3.3 and appendix C
# for the KL. The argmax form: Maddison, Tarlow and Minka, *A\* sampling* (2014). First-reaction
# method: D. Gillespie (1976). Straight-through: Y. Bengio, N. Léonard and A. Courville (2013).
# Baselines from other draws: A. Mnih and D. Rezende, *VIMCO* (2016); W. Kool, H. van Hoof and M.
# Welling (2019). The bound of exercise 07.1: H. Gangloff's tutorial (INRAE, 2023), second part; D.
# Kingma et al. (2014), equation 7, sum y out as we did.
