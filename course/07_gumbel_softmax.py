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
#   vaelab:
#     data:
#     - pancreas
# ---

# %% [markdown]
# # 07 · Drawing a cell type, with a gradient
#
# An islet cell of the pancreas is an alpha cell, or a beta cell, or a delta cell. It is not half
# of each. A network's guess lies between: 20 % alpha, 70 % beta, 10 % delta. To try its guess on
# a decoder, we may have to *draw* one type. In lesson 03 a gradient passed through a draw from a
# normal distribution, because $z = m + s\,\varepsilon$ keeps the noise apart. A draw from a list
# has no such form. If we change the probabilities a little, the drawn type stays the same, until
# it jumps. **How can a network learn through a choice, and what does that cost?**
#
# **Objectives.** After this lesson you can
#
# - draw from a categorical distribution with an argmax (Gumbel-max), and test that draw;
# - relax that draw so that it has a gradient, and say what the temperature trades: bias for
#   variance;
# - write REINFORCE with a leave-one-out baseline (RLOO), and say what a baseline can hide;
# - write a straight-through estimator, and say which part of it is exact;
# - choose between these, summing over all types, and the middle way;
# - recognise the mistakes that published code and a tutorial have made here.
#
# **You need** [lesson 02](02_elbo.ipynb) (the ELBO and its gap) and
# [lesson 03](03_gaussian_reparametrization.ipynb) (reparametrisation and the score function).
# **Time:** about two hours and three quarters: 75 minutes to the marked stop in the middle, 90
# after it. **Data:** 1.5 MB and 2.3 MB, two mice of Baron et al. (2016).

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import stats

import vaelab
from vaelab import plotting
from vaelab.plotting import BLACK, PINK, RED, SKY
from vaelab.reparametrization import gumbel_softmax, score_function, seeded
from vaelab.teaching import evidence

torch.set_num_threads(1)

# %% [markdown]
# ## 1 · One cell, three types
#
# Alpha cells make glucagon (gene *Gcg*), beta cells insulin (*Ins2*), delta cells somatostatin
# (*Sst*). Of each cell's molecules of these three, what share belongs to each? Three shares that
# sum to 1 are a point in a triangle. A corner means that all belong to one gene.

# %%
types, genes = ["alpha", "beta", "delta"], ["Gcg", "Ins2", "Sst"]
colour_of = {name: plotting.look(types)[name]["color"] for name in types}
corners = torch.tensor([[0, 0], [1, 0], [0.5, math.sqrt(3) / 2]])


def hormones(mouse):
    """Counts of the three genes, (cells, 3), and each cell's type by the authors."""
    adata = vaelab.datasets.pancreas(mouse=mouse)
    adata = adata[adata.obs["cell_type"].isin(types)]
    return torch.tensor(adata[:, genes].X.toarray()).float(), adata.obs["cell_type"].to_numpy()


def triangle(ax, points, colours, names, title):
    """Points, (n, 3) with rows that sum to 1, between three named corners."""
    ax.fill(*corners.T, fc="none", ec="0.6")
    ax.scatter(*(points @ corners).T, s=7, c=colours, alpha=0.5, lw=0)
    for corner, name, dy in zip(corners, names, [-14, -14, 6], strict=True):
        ax.annotate(name, corner, (0, dy), ha="center", textcoords="offset points")
    ax.set_title(title, pad=18)
    ax.set_aspect("equal")
    ax.axis("off")


counts, label = hormones(mouse=2)
shares = counts / counts.sum(1, keepdim=True)
fig, ax = plt.subplots(figsize=(5, 4), layout="constrained")
triangle(ax, shares, [colour_of[t] for t in label], genes, f"{len(shares)} islet cells of a mouse")
for name, colour in colour_of.items():
    ax.plot([], [], "o", color=colour, label=f"{name} cells")
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(0.85, 0.7))
plotting.show(
    alt="A triangle whose corners are the genes Gcg, Ins2 and Sst. Nearly all cells lie at or near "
    "a corner, alpha cells at Gcg, beta cells at Ins2, delta cells at Sst."
)
most = (shares.max(1).values > 0.8).float().mean()
print(f"{most:.0%} of the cells have more than 80 % of these molecules from one gene")

# %% [markdown]
# Real cells sit in the corners. Keep this picture in mind: in section 3 a popular trick will fill
# the middle.
#
# With so many molecules there is little to guess. So we take the smallest model that has the
# problem. A cell has one of three types $y$, each equally likely. We count the three genes, and
# know how many molecules of each to expect in each type. Some of every hormone is found in every
# type, because RNA floats in from burst cells. Given the type, counts are Poisson. Our cell has
# 3, 4 and 2 molecules. What is it?

# %%
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
# Probably a beta cell, perhaps an alpha cell. Here three sums give the answer. In a VAE a network
# has to find it. An encoder looks at $x$ and gives three numbers, the **logits**. Their softmax is
# $q(y \mid x)$, with probabilities $q_1, q_2, q_3$. It learns by climbing a bound on
# $\log p(x)$, and needs the bound's gradient. It seems that $y$ has to be drawn first. But a draw
# ends the path of the gradient:

# %%
undecided = torch.zeros(3, requires_grad=True)
drawn_type = torch.distributions.Categorical(logits=undecided).sample()
print("the logits ask for a gradient:", undecided.requires_grad)
print("their draw passes one on:     ", drawn_type.requires_grad)

# %% [markdown]
# ### Exercise 07.1 · Spot the error: a bound that needs no draw
# ★★☆ · 7 minutes · 3 points
#
# A tutorial prints this bound for a model with clusters, with $q_k = q(y{=}k \mid x)$ and a prior
# $\pi_k = p(y{=}k)$:
#
# $$\sum_k q_k \Big[ \log p(x\,|\,y{=}k) \;-\; \mathrm{KL}\big(q(y{=}k|x)\,\|\,p(y{=}k)\big) \Big]$$
#
# and says under it that since $y$ is categorical, "a particular reparametrization trick is
# needed". (In the tutorial there is also a continuous $z$, inside $\log p(x \mid y{=}k)$. We leave
# it out.) The sentence is wrong: the sum already holds every value of $y$. Is anything left to be
# drawn? And the KL stands in a place that invites a mistake. If it is the full KL, one number per
# cell, the formula is right, since $\sum_k q_k = 1$. But inside a sum over $k$ it is easily read as
# the term of one $k$, $q_k \log(q_k/\pi_k)$. What comes out then?
#
# Write `bound(logits, log_p_x, log_prior)` for $n$ cells and $K$ types. `logits` and `log_p_x`
# have shape (n, K), `log_prior` has shape (K,). Return the bound of each cell, without any draw.
# Some cells are certain, with logits in the hundreds: no cell's bound may be NaN. (The check looks
# at the bounds, not at their gradients.)
#
# <details><summary>Hint</summary>
#
# Start from $\log p(x) \ge \mathbb E_q[\log p(x \mid y) + \log p(y) - \log q(y)]$ and write the mean
# over $q$ as a sum. How often does $q_k$ stand before each logarithm? If you see NaN: what is the
# logarithm of a softmax that was rounded to 0?
#
# </details>


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
# (Nothing is left to be drawn: $y$ is summed out. And with the term of one $k$ inside the sum, $q_k$
# stands before each logarithm twice: $\sum_k q_k^2 \log(q_k/\pi_k)$ is not a KL.)
#
# The sum over types is a smooth function of the logits, and autograd needs nothing more. **With one
# choice among a few types, sum: no trick is needed.** This is **exact enumeration**. In this lesson
# it is the truth with which we compare everything else.
#
# So why go on? Because of the price: the sum asks the decoder $K$ times, once for each type. In
# spatial transcriptomics a slide is divided into *spots*, and a spot catches the RNA of several
# cells together. With six cells there are $3^6 = 729$ combinations of types; with twenty cells,
# 3.5 billion. Then we have to draw.
#
# ## 2 · A race of clocks
#
# To get a gradient through a draw, lesson 03 wrote it as a smooth function of the parameters and
# of noise that does not depend on them. Let us look for such a form.
#
# Give each type a clock that rings once, after a random time. The time is exponential with rate
# $q_k$: within any short $dt$ the clock rings with probability $q_k\,dt$. **Which clock rings
# first?** Type $k$ rings at $t$, while all others are still silent, with probability
#
# $$\int_0^\infty \underbrace{q_k e^{-q_k t}}_{k\text{ rings at }t}\ \prod_{j\ne k} \underbrace{e^{-q_j t}}_{j\text{ silent}}\,dt \;=\; q_k \int_0^\infty e^{-t\sum_j q_j} dt \;=\; \frac{q_k}{\sum_j q_j} \;=\; q_k$$
#
# The winner of the race is a draw from $q$. (If you have simulated chemical reactions, you know
# this as Gillespie's *first-reaction method*.) An exponential with rate $q_k$ is an exponential
# $e_k$ with rate 1, divided by $q_k$. So all chance is in $e$, which does not depend on $q$.
# (Inside `with seeded(7):` torch draws from seed 7, so that you get the draws that are shown here.)

# %%
q = torch.tensor([0.2, 0.5, 0.3])
with seeded(7):
    e = torch.empty(100_000, 3).exponential_()  # waiting times at rate 1
wait = e / q
winner = wait.argmin(-1)

fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
for k, (name, colour) in enumerate(colour_of.items()):
    for race in range(8):
        won = winner[race] == k
        face = colour if won else "white"
        left.plot(wait[race, k], race + 1.2 - 0.2 * k, "o", ms=8, color=colour, mfc=face)
    left.plot([], [], "o", color=colour, label=name)
left.set(xscale="log", xlabel="time until the clock rings (its unit does not matter)")
left.set(ylabel="race", title="The winner of each race is filled")
left.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
share = torch.bincount(winner, minlength=3) / len(winner)
right.bar(types, share, color=colour_of.values(), width=0.6)
right.hlines(q, np.arange(3) - 0.4, np.arange(3) + 0.4, color="black", lw=2, label="q")
right.set(ylabel="share of the races won", ylim=(0, 0.6), title="100,000 races")
right.legend(frameon=False)
plotting.show(
    alt="Left: eight races of three clocks, each with the first clock filled. Right: the shares of "
    "races won by alpha, beta and delta, 0.2, 0.5 and 0.3, equal the probabilities q."
)

# %% [markdown]
# The shares look right. A test says how right: Pearson's $\chi^2$ adds up the squared differences
# between numbers drawn and numbers expected. We ask for a p-value above $10^{-6}$: a right sampler
# would fail for one seed in a million.

# %%
n_won = torch.bincount(winner, minlength=3).numpy()
print("the race draws from q:", stats.chisquare(n_won, [20_000, 50_000, 30_000]).pvalue > 1e-6)

# %% [markdown]
# Networks speak in logits, so take the logarithm. With a minus before it, the first becomes the
# largest:
#
# $$\operatorname*{argmin}_k \frac{e_k}{q_k} \;=\; \operatorname*{argmax}_k \big(\log q_k + g_k\big), \qquad g_k = -\log e_k = -\log(-\log u_k)$$
#
# with $u$ uniform between 0 and 1, since $-\log u$ is exponential. The noise $g$ has a **Gumbel**
# distribution, and the recipe is called **Gumbel-max**. A constant added to all logits moves all
# scores equally and does not change the winner, so logits need not be normalised.
#
# ### Exercise 07.2 · Gumbel-max
# ★☆☆ · 5 minutes · 2 points
#
# Write `gumbel_max(logits, u)`: `logits` has shape (K,), `u` has shape (S, K) with values between
# 0 and 1. Return the drawn type of each of the $S$ draws, as a number from 0 to $K - 1$. All chance
# is in `u`, so your function draws nothing itself.
#
# This line has been copied from program to program since 2016, often as `-log(-log(u + 1e-20) +
# 1e-20)`. The small number keeps a logarithm finite if $u$ is 0. What else does it do? And a
# generator of molecules added the noise to $q$ in place of $\log q$ (AITRICS/FREED, pull request 4,
# 2022). The check looks for both, with $u$ down to $10^{-300}$ and up to $1 - 10^{-16}$.
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
# An epsilon puts a floor and a ceiling to the noise: with $10^{-20}$, $g$ stays between −3.8 and
# 46; with $10^{-5}$, between −2.4 and 11.5, so that a type whose logit lies 14 below another's is
# never drawn. Our package takes $e$ from `exponential_`, which never gives 0, and needs no epsilon.
#
# ## 3 · The relaxation
#
# Now all chance stands apart from $q$, and one step is left that has no gradient: the argmax. Put
# a softmax in its place:
#
# $$y \;=\; \operatorname{softmax}\!\Big(\frac{\log q + g}{\tau}\Big)$$
#
# The **temperature** $\tau$ says how soft it is. The word comes from physics, where a hot system
# visits its states nearly evenly, and a cold one stays in the best. This is the **Gumbel-softmax**.
# Two groups found it in the same weeks of 2016. One gave it this name, the other called the
# distribution *concrete*, for a *con*tinuous relaxation of a dis*crete* one. In code it is one
# line. It agrees with the package, given the same noise:


# %%
def relax(logits, e, temperature):
    """y, shape (S, K), from waiting times e at rate 1."""
    return ((logits - e.log()) / temperature).softmax(-1)


with seeded(0):
    relaxed = relax(q.log(), torch.empty(1000, 3).exponential_(), temperature=0.5)
with seeded(0):
    torch.testing.assert_close(relaxed, gumbel_softmax(q.log(), 0.5, n_samples=1000))
print("each draw sums to 1:", torch.allclose(relaxed.sum(-1), torch.ones(1000)))

# %% [markdown]
# A draw is no longer a type but a mixture of types: a point in the triangle. The next figure shows
# the same 800 races at four temperatures.
#
# > **Predict first.** As $\tau$ grows, does the winner of a race change? Does the mean of the draws
# > stay at $q$?
# >
# > <details><summary>Answer</summary>The winner stays: dividing all scores by one number does not
# > change their order. The mean does not stay: look at the white disc.</details>


# %%
def relaxed_triangle(ax, logits, temperature, e):
    """Relaxed draws, coloured by their largest entry; the first race is ringed."""
    y, q = relax(logits, e, temperature), logits.softmax(-1)
    triangle(ax, y, np.array([*colour_of.values()])[y.argmax(-1)], types, f"τ = {temperature:.2g}")
    ax.plot(*(y[0] @ corners), "o", ms=11, mfc="none", mec=RED, mew=2, label="the same race")
    ax.plot(*(q @ corners), "kx", ms=10, mew=2, label="q")
    ax.plot(*(y.mean(0) @ corners), "o", ms=8, mfc="white", mec="black", label="mean of the draws")


fig, axes = plt.subplots(1, 4, figsize=(9.5, 3), layout="constrained")
for ax, temperature in zip(axes, [0.1, 0.5, 1, 5], strict=True):
    relaxed_triangle(ax, q.log(), temperature, e[:800])
fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
plotting.show(
    alt="Four triangles with the same 800 relaxed draws. At temperature 0.1 the draws sit in the "
    "corners and their mean is at q; at 5 all crowd into the middle, and so does their mean."
)

# %% [markdown]
# When it is cold, nearly every draw sits in a corner, as real cells do. When it is hot, all crowd
# into the middle, whatever $q$ is. For $\tau$ below $1/(K-1)$, here ½, the density (the share
# of the draws per area) has no highest point inside the triangle: it rises towards the edges.
#
# The **colours** are the same at every temperature: which entry is the largest depends on the race
# alone, so its frequencies are $q$, always. But the **mean of the draws** leaves $q$ and moves to
# the middle.
#
# With a kernel running, move the temperature and the logits yourself (delta's logit is 0):

# %% tags=["nbval-ignore-output"]
from ipywidgets import FloatLogSlider, FloatSlider


def draw_one(temperature, alpha, beta):
    fig, ax = plt.subplots(figsize=(5, 4.6))
    relaxed_triangle(ax, torch.tensor([alpha, beta, 0.0]), temperature, e[:1500])
    ax.legend(frameon=False, loc="upper left", fontsize=9)
    return fig


plotting.interactive(
    draw_one,
    alt="A triangle with 1,500 relaxed draws, their mean, and q. Sliders move the temperature and the "
    "logits.",
    temperature=FloatLogSlider(0.5, min=-1.5, max=1, step=0.05, description="temperature τ"),
    alpha=FloatSlider(-0.4, min=-4, max=4, description="logit of alpha"),
    beta=FloatSlider(0.5, min=-4, max=4, description="logit of beta"),
)

# %% [markdown]
# ## 4 · The mean of a relaxed draw
#
# For two types we can say exactly how far the mean moves. Only the difference of the scores
# matters. It is $\delta + s$, with $\delta = \log q_1 - \log q_2$ and $s$ the difference of two
# Gumbels. Such a difference has a **logistic** distribution, whose density is
# $\sigma(s)\,\sigma(-s)$, and a softmax of two is a sigmoid $\sigma$ of their difference. So
#
# $$\mathbb E[y_1] \;=\; \int \sigma\!\Big(\frac{\delta + s}{\tau}\Big)\,\sigma(s)\,\sigma(-s)\,ds$$
#
# ### Exercise 07.3 · The mean of a relaxed draw
# ★★☆ · 8 minutes · 3 points
#
# Write `mean_of_relaxed(difference, temperature)` for two numbers, $\delta$ and $\tau$. Three
# correct digits are enough, and any way is right: `scipy.integrate.quad`, or a sum over a fine grid
# of $s$.
#
# <details><summary>Hint</summary>
#
# The logistic density has nearly all of its mass between −30 and 30. On a grid, multiply by the
# distance of its points. With `quad`, a sigmoid that does not overflow is `scipy.special.expit`.
#
# </details>


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
fig, ax = plt.subplots(figsize=(5.5, 4), layout="constrained")
ax.plot([0, 1], [0, 1], color="0.5", ls="--", label="no bias")
shades = plt.get_cmap("inferno")(np.linspace(0, 0.85, 5))  # from cold to hot
for temperature, shade in zip([0.2, 0.5, 1, 2, 5], shades, strict=True):
    means = [float(mean_of_relaxed(d, temperature)) for d in differences]
    ax.plot(1 / (1 + np.exp(-differences)), means, color=shade, label=f"τ = {temperature:g}")
ax.set(xlabel="q₁, the probability of type 1", ylabel="E[y₁], the mean of relaxed draws")
ax.set_title("Heat pulls the mean to the middle")
ax.legend(frameon=False)
plotting.show(
    alt="The mean of relaxed draws against the probability of type 1, for five temperatures. At 0.2 "
    "the curve nearly follows the diagonal; at 5 it is nearly flat at one half."
)

# %% [markdown]
# **$\mathbb E[y] \ne q$ for any $\tau > 0$**, except where $q$ is uniform. At $\tau = 0.2$ the bias
# is hardly visible: it shrinks as $\tau^2$. At $\tau = 1$, the default of many programs, a type
# with probability 0.9 has a mean of about 0.8.
#
# > **Spot the error.** An issue in PyTorch's tracker (77053, from 2022) asks that `gumbel_softmax`
# > normalise its logits with a log-softmax first, since the formula in the paper has the logarithm
# > of probabilities. Would any draw change?
# >
# > <details><summary>Solution</summary>No draw changes. log-softmax subtracts the same number from
# > all logits, and softmax does not see it. <b>Softmax</b> in place of log-softmax is the real
# > mistake: logits 0 and 4.6 (q = 0.01, 0.99) become 0.01 and 0.99, which are then read as logits
# > of 0.27 and 0.73. A confident network becomes an undecided one.</details>
#
# **Stop here** if you want two sittings. You have a draw with a gradient. What comes next is what
# that gradient is worth.

# %% [markdown]
# ## 5 · Bias against variance
#
# We do not want $y$, but the gradient of $\mathbb E[\log p(x \mid y)]$ with respect to the logits.
# (The KL of $q(y \mid x)$ to the prior needs no draw: it is a sum of $K$ terms.) The exact gradient
# is a sum over types. Its unit is nats per unit of logit: it says by how many nats the mean rises
# for each unit that a logit rises, for small steps. The relaxation offers this instead: draw $y$,
# ask the decoder **for the mixture $y$** what it thinks of $x$, and let autograd go back.
#
# We look at two problems. The first is our cell. The second is a spot of six cells: each has its
# own type and its own logits, and the expected counts are the sum over cells. It can still be
# enumerated, with 729 terms, so that the truth is known.


# %%
class Spot:
    """`n_cells` cells with a type each; their counts x come together."""

    def __init__(self, n_cells, seed=5):
        self.x = n_cells * x
        with seeded(seed):  # as in mid-training: some cells are more certain than others
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
# gradient: more draws do not fix it. Its **standard deviation** (sd) is how far one draw lies from
# its mean: over $S$ draws it shrinks as $1/\sqrt S$. The squared error of a mean of $S$ draws is
# the sum of both, $\text{bias}^2 + \text{sd}^2/S$. We take the length of the whole gradient vector
# in each.


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
N = 50_000
judged = {}
with seeded(0):
    for name, spot in spots.items():
        exact = spot.exact_gradient()
        judged[name] = np.array([judge(relaxed_gradients(spot, t, N), exact) for t in temperatures])


# %%
def log_axes(ax, **labels):
    ticks = [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]
    ax.set(xscale="log", yscale="log", **labels)
    ax.set_xticks(ticks[1:], labels=[f"{t:g}" for t in ticks[1:]])
    ax.set_yticks(ticks, labels=[f"{t:g}" for t in ticks])
    ax.minorticks_off()


def root_mean_square(bias_and_sd, draws):
    """The error of a mean of so many draws."""
    bias, sd = np.moveaxis(np.asarray(bias_and_sd), -1, 0)
    return np.sqrt(bias**2 + sd**2 / draws)


def trade(draws):
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 4.2), layout="constrained", sharey=True)
    for ax, (name, values) in zip(axes, judged.items(), strict=True):
        bias, sd = values.T
        total, length = root_mean_square(values, draws), spots[name].exact_gradient().norm()
        ax.fill_between(temperatures, 1e-3, sd / N**0.5, color="0.9", label="bias not measurable")
        ax.plot(temperatures, bias, color=RED, ls="--", label="bias")
        ax.plot(temperatures, sd / draws**0.5, color=RED, ls=":", label="sd of the mean")
        ax.plot(temperatures, total, color=RED, lw=2.5, label="error, from both")
        ax.plot(temperatures[total.argmin()], total.min(), "v", ms=10, color=BLACK, label="best τ")
        ax.axhline(length, color="0.6", ls=":")
        ax.annotate("length of the exact gradient", (5, length), (0, 4),
                    textcoords="offset points", ha="right", color="0.4")  # fmt: skip
        log_axes(ax, xlabel="temperature τ", title=f"{name}, mean of {draws} draws")
        ax.set(xlim=(0.045, 5.5), ylim=(0.006, 5))
    axes[0].set_ylabel("nats per unit of logit")
    handles = axes[1].get_legend_handles_labels()
    fig.legend(*handles, loc="outside lower center", ncols=5, frameon=False)
    return fig


trade(10)
plotting.show(
    alt="Bias, standard deviation and error of the relaxed gradient against temperature, for one "
    "cell and for six. Bias falls and deviation grows as it gets colder; the error is smallest "
    "near temperature 1."
)

# %% [markdown]
# **Cooling removes the bias, and the variance grows without limit**, about as $1/\tau$. With six
# cells, from $\tau = 2$ to 0.2, the bias falls from 0.73 ± 0.07 to 0.10 ± 0.04 of the gradient's
# length, and the sd of one draw rises from 0.40 ± 0.09 to 4.8 ± 0.9
# ([E07.cooling](evidence/07_gumbel_softmax.py)): a draw that is nearly one-hot changes suddenly or
# not at all. Between them lies a best temperature. (In the grey area 50,000 draws can't tell the bias
# from 0.)
#
# The dotted line is a useful measure: an estimator that always answers "zero" has exactly this
# error. For our one cell the relaxation is a poor choice. At its best, the error of ten draws is
# about three quarters of the gradient itself, and we could have summed three terms.
#
# > **Predict first.** With more draws, should the temperature go up or down?
# >
# > <details><summary>Answer</summary>Down. More draws shrink the sd and leave the bias, so that it
# > pays to accept more variance for less bias. Move the slider.</details>

# %% tags=["nbval-ignore-output"]
from ipywidgets import SelectionSlider

plotting.interactive(
    trade,
    alt="The figure above, with a slider for the number of draws. With more draws the best "
    "temperature moves to the left.",
    draws=SelectionSlider(value=10, options=[1, 3, 10, 30, 100, 300, 1000], description="draws S"),
)

# %% [markdown]
# ## 6 · The rival: REINFORCE, and RLOO
#
# Lesson 03 had another way, the score function, also called **REINFORCE**. It needs no derivative
# of $f(y) = \log p(x \mid y)$ at all:
#
# $$\nabla\, \mathbb E_q[f(y)] \;=\; \mathbb E_q\big[\, f(y)\; \nabla \log q(y) \,\big], \qquad \frac{\partial \log q(y)}{\partial\, \text{logit}_k} \;=\; 1[y = k] - q_k$$
#
# It is unbiased. Its trouble is variance: $f$ is far below zero whichever type is drawn, and each
# draw is multiplied by the whole of $f$. Subtract a **baseline** $b$ that does not depend on the
# draw. The mean of $b\,\nabla \log q$ is $b\,\nabla \sum_k q_k = b\,\nabla 1 = 0$, so there is no
# bias, and $f - b$ may be small.
#
# Where does a baseline come from? With $S$ draws, take for each of them the mean $f$ of the $S - 1$
# *others*. This is REINFORCE with a **leave-one-out baseline**, in short **RLOO**.
#
# ### Exercise 07.4 · RLOO: a baseline from the other draws
# ★★★ · 8 minutes · 3 points
#
# Write `rloo_terms(logits, drawn, f)` for logits of shape (K,), `S` drawn types (whole numbers) and
# their `S` values of $f$. Return the $S$ terms $(f_s - b_s)\,\nabla \log q(y_s)$, **before** their
# mean is taken: shape (S, K).
#
# <details><summary>Hint</summary>The sum of the others is the sum of all, less its own. Rows of
# <code>torch.eye(K)[drawn]</code> are the one-hot draws. What is left of the gradient of log q(y)
# if you forget that softmax divides by a sum?</details>


# %% nbgrader={"grade_id": "07-4", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def rloo_terms(logits, drawn, f):
    """(f_s − b_s)·∇log q(y_s) for each draw s; shape (S, K)."""
    ### BEGIN SOLUTION
    baseline = (f.sum() - f) / (len(f) - 1)
    score = torch.eye(len(logits))[drawn] - logits.softmax(-1)  # (S, K)
    return (f - baseline)[:, None] * score
    ### END SOLUTION


# %% nbgrader={"grade_id": "07-4-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("07.4", rloo_terms)

# %% [markdown]
# > **Predict first.** Somebody forgets the $-q_k$, and uses $1[y = k]$ for $\nabla \log q$. By how
# > much does the mean over ten draws change?
# >
# > <details><summary>Answer</summary>
# >
# > Not at all, for any draws. The ten baselines have the same sum as the ten values, so
# > $\sum_s (f_s - b_s) = 0$, and whatever is the same in every row drops out: $-q_k$ too. Look at
# > the rows, as the check above does, or the mistake stays hidden until somebody takes the
# > baseline from elsewhere. What is left is the sample *covariance* of $f(y)$ and $1[y = k]$. The
# > exact gradient is their covariance under $q$.
# >
# > </details>

# %%
at = q.log().requires_grad_()
sampler = torch.distributions.Categorical(logits=at)
with seeded(5):
    drawn = sampler.sample((10,))
f = log_p_x[drawn]
terms = rloo_terms(at.detach().clone(), drawn.clone(), f.clone())  # they may be written into
mean = torch.stack([torch.as_tensor(term) for term in terms]).float().mean(0)
without_q = ((f - (f.sum() - f) / 9)[:, None] * torch.eye(3)[drawn]).mean(0)
print("−q forgotten, the mean is the same:", torch.allclose(mean, without_q, atol=1e-5))
with seeded(5):  # the same draws, in the package
    score_function(lambda y: log_p_x[y], sampler, n_samples=10, baseline=True).backward()
print("score_function of lesson 03 too:   ", torch.allclose(mean, at.grad, atol=1e-5))

# %% [markdown]
# ## 7 · Straight-through, and the middle way
#
# A relaxed draw has one more fault: the decoder sees a cell that is 60 % alpha and 40 % beta, and
# there is no such cell. **Straight-through** gives it a true type, one-hot, and is wrong only in
# the backward pass: the decoder's slope, taken at the true type, goes on to the logits through the
# relaxed draw.
#
# ### Exercise 07.5 · Straight-through
# ★★☆ · 6 minutes · 2 points
#
# Write `straight_through(logits, e, temperature)` for logits and waiting times of shape (n, K),
# and return one tensor of that shape: forward the winner of each race, one-hot; backward the
# gradient of `relax`. All chance is in `e`, so your function draws nothing itself. The check
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
# In the package it is `hard=True`. Every value that it gives is a draw from $q$, at any
# temperature. Its *gradient* is biased in its own way, which cooling need not cure.
#
# **The middle way.** "Sum if you can" has an answer even for six cells: draw all types, then sum
# over the three types of *one* cell while the other five stay as drawn, for each cell in turn.
# These are **local expectation gradients**. They are unbiased, and each draw costs
# $6 \times 3 = 18$ calls of the decoder.

# %%
S = 10


def score_gradients(spot, n, rloo):
    """n terms of REINFORCE, or of RLOO in groups of S; shape (n, n_cells, 3)."""
    q = torch.distributions.Categorical(logits=spot.logits)
    one_hot = torch.eye(3)[q.sample((n,))]
    f = spot.log_likelihood(one_hot)
    if rloo:
        f = f.unflatten(0, (-1, S))
        f = (f - (f.sum(1, keepdim=True) - f) / (S - 1)).flatten()
    return f[:, None, None] * (one_hot - q.probs)


def local_expectation_gradients(spot, n):
    """n estimates, each summed over one cell's types while the other cells stay as drawn."""
    q = spot.logits.softmax(-1)  # (n_cells, 3)
    drawn = torch.eye(3)[torch.distributions.Categorical(q).sample((n,))]
    f = torch.empty_like(drawn)  # f[s, i, k]: draw s with cell i changed to type k
    for i in range(len(q)):
        for k in range(3):
            changed = drawn.clone()
            changed[:, i] = torch.eye(3)[k]
            f[:, i, k] = spot.log_likelihood(changed)
    return q * (f - (q * f).sum(-1, keepdim=True))  # the gradient of Σ_k q_k f_k


def error(gradients, exact):
    """Root mean square distance of a mean of S terms from the exact gradient."""
    means = gradients.unflatten(0, (-1, S)).mean(1)
    return (means - exact).square().sum((-2, -1)).mean().sqrt().item()


# %% [markdown]
# > **Predict first.** Which of the five is best for one cell, and which for six?

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.5, 4.6), layout="constrained", sharey=True)
for ax, (name, spot) in zip(axes, spots.items(), strict=True):
    exact = spot.exact_gradient()
    with seeded(1):
        hard = [judge(relaxed_gradients(spot, t, N, hard=True), exact) for t in temperatures]
        flat = {
            "REINFORCE": (error(score_gradients(spot, N, rloo=False), exact), SKY, ":"),
            "RLOO": (error(score_gradients(spot, N, rloo=True), exact), SKY, "-"),
            "local expectation (18 calls a draw)": (
                error(local_expectation_gradients(spot, N // 5), exact), BLACK, "--",
            ),
        }  # fmt: skip
    ax.plot(temperatures, root_mean_square(judged[name], S), color=RED, label="Gumbel-softmax")
    ax.plot(temperatures, root_mean_square(hard, S), color=PINK, label="straight-through")
    for way, (height, colour, dashes) in flat.items():
        if height > 1e-3:
            ax.axhline(height, color=colour, ls=dashes, lw=2)
        else:
            ax.text(0.05, 0.11, "local expectation is enumeration here: error 0")
        ax.plot([], [], color=colour, ls=dashes, lw=2, label=way)
    ax.axhline(exact.norm(), color="0.6", ls=":", label="length of the exact gradient")
    log_axes(ax, xlabel="temperature τ", title=name)
    ax.set_ylim(0.1, 9)
axes[0].set(ylabel=f"error of a mean of {S} draws (nats per unit of logit)")
fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
plotting.show(
    alt="Errors of five gradient estimators against temperature. For one cell RLOO is far below all "
    "others. For six cells the relaxation near temperature 1 and local expectation gradients are "
    "below RLOO, and REINFORCE is far above."
)

# %% [markdown]
# The errors of ten draws, in units of the exact gradient's length, over five seeds (mean ± sd). The
# relaxed ways have their best temperature:
#
# | | one cell | six cells |
# |---|---|---|
# | RLOO | 0.36 ± 0.01 | 2.0 ± 0.4 |
# | Gumbel-softmax | 0.73 ± 0.00 | 0.60 ± 0.09 |
# | straight-through | 0.97 ± 0.01 | 0.76 ± 0.11 |
# | REINFORCE | 3.89 ± 0.02 | 7.3 ± 1.5 |
# | local expectation | 0 (it is enumeration) | 0.71 ± 0.15 |
#
# **One cell: RLOO beats the relaxation at its best temperature**, and has no bias
# ([E07.one_cell](evidence/07_gumbel_softmax.py)). Leave the baseline out, and the order turns: a
# comparison with plain REINFORCE says little.
#
# **Six cells: the order turns** ([E07.six_cells](evidence/07_gumbel_softmax.py), with other logits
# for each seed). RLOO sees one number $f$ for six decisions. For each cell, what the other five did
# is noise, and RLOO is now worse than answering zero. The relaxation gets, through the decoder's
# derivative, an answer of its own for each cell. Its bias stays what it was: 0.53 of the gradient at
# $\tau = 1$ for one cell, 0.49 ± 0.07 for six. Straight-through is behind it in both, though some
# models need a true choice in the forward pass.
#
# **Local expectation gradients** need neither a temperature nor a derivative. But with the same 180
# calls of the decoder, RLOO comes to 0.45 ± 0.08 and the relaxation to 0.29 ± 0.07
# ([E07.local_expectation](evidence/07_gumbel_softmax.py)). They pay only where many calls cost
# little more than one.
#
# | | needs | biased | variance | decoder calls |
# |---|---|---|---|---|
# | enumeration | few combinations | no | none | $K$, or $K^n$ |
# | local expectation | values of $f$ | no | small | $nK$ a draw |
# | RLOO | values of $f$ | no | grows with the number of choices | 1 a draw |
# | Gumbel-softmax | $f$ of mixtures, a derivative | yes, if $\tau > 0$ | grows as $\tau \to 0$ | 1 a draw |
# | straight-through | a derivative of $f$ | yes | larger still | 1 a draw |
#
# ## 8 · A failure: a bound that isn't one
#
# Let us fit $q(y \mid x)$ to our one cell, each way, and measure what remains of the **gap**:
# $\log p(x)$ minus the true bound, which is $\mathrm{KL}(q(y \mid x) \,\|\, p(y \mid x))$ and is 0
# when $q$ is the posterior (lesson 02). We train 100 copies at once, each with its own luck. A step
# uses one draw; RLOO needs two.
#
# **Annealing** starts hot, where the variance is small, and cools down along the way. The usual
# schedule is $\tau = \max(\tau_{\min},\ \tau_0\, e^{-\text{rate} \cdot \text{step}})$.

# %%
STEPS, COPIES = 1000, 100


def annealed(done, start=2.0, end=0.1):
    """τ when this share of the steps is done: from `start` to `end` at 60 %, then constant."""
    return max(end, start * (end / start) ** (done / 0.6))


def gap(logits):
    """log p(x) − the true bound = KL(q(y|x) ‖ p(y|x)), for each copy."""
    log_q = logits.log_softmax(-1)
    return (log_q.exp() * (log_q - posterior.log())).sum(-1)


def kl(logits):
    """KL(q(y|x) ‖ p(y)) for a uniform prior: the part of the bound that needs no draw."""
    log_q = logits.log_softmax(-1)
    return (log_q.exp() * (log_q - math.log(1 / 3))).sum(-1)


# %% [markdown]
# Now the ways to estimate the reconstruction $\mathbb E_q[\log p(x \mid y)]$, or its gradient. Each
# takes logits of shape (n, 3), the values $f$ of the three types, $f$ as a function of one-hot or
# relaxed $y$, and the share of the steps that is done.


# %%
def summed(logits, values, f, done):
    return (logits.softmax(-1) * values).sum(-1)


def rloo(logits, values, f, done):
    q = torch.distributions.Categorical(logits=logits)
    return score_function(lambda y: values.gather(-1, y.T).T, q, n_samples=2, baseline=True)


def relaxation(schedule, hard=False):
    return lambda logits, values, f, done: f(gumbel_softmax(logits, schedule(done), hard))


# %%
def fit(reconstruction, rate=0.1):
    """Gradient ascent with falling steps; the logits, and the gap on the way."""
    logits = torch.zeros(COPIES, 3, requires_grad=True)
    values, gaps = log_p_x.expand(COPIES, 3), []
    for step in range(STEPS):
        objective = reconstruction(logits, values, log_likelihood, step / STEPS) - kl(logits)
        (gradient,) = torch.autograd.grad(objective.sum(), logits)
        with torch.no_grad():
            logits += rate * (1 - step / STEPS) * gradient
            gaps.append(gap(logits).mean().item())
    return logits.detach(), gaps


ways = {
    "enumeration": (summed, BLACK, "-"),
    "RLOO": (rloo, SKY, "-"),
    "Gumbel-softmax, τ = 2": (relaxation(lambda done: 2.0), RED, "-"),
    "Gumbel-softmax, τ = 0.1": (relaxation(lambda done: 0.1), RED, ":"),
    "Gumbel-softmax, annealed": (relaxation(annealed), RED, "--"),
    "straight-through, τ = 0.5": (relaxation(lambda done: 0.5, hard=True), PINK, "-"),
}
with seeded(0):
    fits = {name: fit(way) for name, (way, *_) in ways.items()}

# %%
fig, ax = plt.subplots(figsize=(8, 3.8), layout="constrained")
for name, (_, colour, dashes) in ways.items():
    ax.plot(fits[name][1], color=colour, ls=dashes, label=name)
ax.set(yscale="log", ylim=(5e-4, 0.6), xlabel="step", ylabel="gap to log p(x), nats")
ax.set_title("How far from the truth, mean of 100 copies")
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plotting.show(
    alt="The gap to log p(x) against steps for six ways to fit q. Enumeration and RLOO go to "
    "zero; the relaxation at temperature 2 stays near 0.25; cold and annealed ones are between."
)

# %% [markdown]
# Enumeration and RLOO find the posterior. The hot relaxation stops a quarter of a nat away and
# stays there. Longer training does not help, since this is bias: 0.242 after 1,000 steps, and 0.242
# after 3,000 ([E07.false_bound](evidence/07_gumbel_softmax.py)). What does it believe of itself? We
# take the $q$ that it found, and ask for its bound in three ways.
#
# > **Predict first.** $\log p(x)$ is −7.04. Where can the three bounds lie?
# >
# > <details><summary>Answer</summary>A bound lies below log p(x). So one of the three is not a
# > bound.</details>

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
ax.scatter(list(claims.values()), list(claims), s=90, color=[BLACK, PINK, RED], zorder=3)
ax.set(xlabel="“bound” of the hot fit, nats", xlim=(-8, -4), ylim=(-0.5, 2.5))
plotting.show(
    alt="Three bounds of the hot fit. Summed and from hard draws it is just below log p(x) = −7.0; "
    "from relaxed draws it is near −5, where no lower bound can be."
)
print("from relaxed draws it is above log p(x):", claims[name] > log_evidence.item())

# %% [markdown]
# Its own objective is two nats **above** $\log p(x)$, where no lower bound can be. The relaxed
# model is another model, in which a cell may be a mixture of types, and a mixture of alpha and beta
# explains 3, 4, 2 better than any pure cell. On the training curve, the failure looks like success.
#
# The cure has three parts, each of which you can check:
#
# - **Cool down.** Annealed, the fit ends about six times closer than the hot one, at 0.038 ± 0.006
#   ([E07.annealing](evidence/07_gumbel_softmax.py)). Cold all the way it ends at 0.049 ± 0.004: with
#   three logits, a calm start gains little. Measure before you copy a schedule.
# - **Judge by what is true.** Report bounds from hard draws, or summed, never relaxed ones.
# - **Sum if you can.** Here nothing comes near the two lowest curves.
#
# > **One more trap.** PyTorch's `RelaxedOneHotCategorical` has a `log_prob`. It is the logarithm of a
# > *density* over the triangle, which goes to infinity in the corners when $\tau$ is small. It is not
# > the probability of a type, and may not stand where $\log q(y)$ stands in the KL. If both $q$ and
# > the prior are relaxed, a bound is again a bound, though on another model (Maddison et al., §3.3 and
# > appendix C). The usual way, and ours, is to relax only the reconstruction and to keep the KL as a
# > sum over types.
#
# ## 9 · An encoder for real cells
#
# Now a network, and the islet cells of section 1. Mouse 1 gives the decoder: the profile of each
# type, the share of each hormone in its cells' molecules. Mouse 2 gives the cells. To make them
# worth a guess, we keep one molecule in a hundred, as a shallow experiment would; about 14 are left
# in a cell. The encoder sees them and gives logits. The decoder stays fixed, so that only the
# gradient differs between the ways, and so that the gap is known.

# %%
reference, reference_label = hormones(mouse=1)
profile = torch.stack([reference[reference_label == t].sum(0) for t in types])
profile /= profile.sum(1, keepdim=True)  # types × genes
kept = np.random.default_rng(0).binomial(counts.int().numpy(), 0.01)
has_any = kept.sum(1) > 0
cells, cell_label = torch.tensor(kept[has_any]).float(), label[has_any]


def log_p_cells(y):
    """log p(x|y) of each cell, given its number of molecules; y of shape (n, 3) or (3,)."""
    expected = cells.sum(1, keepdim=True) * (y @ profile)
    return torch.distributions.Poisson(expected).log_prob(cells).sum(-1)


values = torch.stack([log_p_cells(one_hot) for one_hot in torch.eye(3)], 1)  # (n, 3)
log_p_of_cells = (values - math.log(3)).logsumexp(1)


def fit_encoder(reconstruction, rate, steps=400):
    """The encoder's logits, their gap, and its last objective; both in nats per cell."""
    encoder = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
    adam = torch.optim.Adam(encoder.parameters())
    for step in range(steps):
        adam.param_groups[0]["lr"] = rate * (1 - step / steps)
        logits = encoder(cells.log1p())
        objective = (reconstruction(logits, values, log_p_cells, step / steps) - kl(logits)).mean()
        adam.zero_grad()
        (-objective).backward()
        adam.step()
    logits = encoder(cells.log1p()).detach()
    true_bound = summed(logits, values, None, None) - kl(logits)
    return logits, (log_p_of_cells - true_bound).mean(), objective - log_p_of_cells.mean()


# %%
encoders = {  # the way, its learning rate (the best of four on other seeds), its name in evidence
    "enumeration": (summed, 0.06, "summed"),
    "RLOO": (rloo, 0.06, "rloo"),
    "Gumbel-softmax, annealed": (relaxation(annealed), 0.06, "annealed"),
    "Gumbel-softmax, τ = 2": (relaxation(lambda done: 2.0), 0.01, "hot"),
    "straight-through, τ = 0.1": (
        relaxation(lambda done: 0.1, hard=True), 0.03, "straight_through"
    ),
}  # fmt: skip
guesses = {}
for name, (way, rate, _) in encoders.items():
    with seeded(0):
        guesses[name], *_ = fit_encoder(way, rate)
    right = (np.array(types)[guesses[name].argmax(1)] == cell_label).mean()
    print(f"{name:26s} {right:.2f} of the cells as the authors named them")

# %% [markdown]
# Nearly all cells get the authors' name whichever way the encoder learned. The largest entry of $q$
# is easy here. But is $q$ the posterior, so that 0.7 means 0.7? The gap tells:

# %%
measured = evidence.read("07")["E07.real_cells"]
posterior_of_cells = (values - math.log(3) - log_p_of_cells[:, None]).exp()
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
left.plot([0, 1], [0, 1], color="0.6", ls="--", lw=1)
for row, (name, (_, _, column)) in enumerate(encoders.items()):
    style = {"color": [BLACK, SKY, RED, RED, PINK][row], "mfc": "none", "mew": 1.5, "ls": ""}
    if name in ("enumeration", "Gumbel-softmax, τ = 2"):
        guess = guesses[name].softmax(1).flatten()
        left.plot(posterior_of_cells.flatten(), guess, "o", ms=5, label=name, **style)
    right.plot(measured[column], [row] * len(measured), "o", **style)
left.set(xlabel="p(y|x), exact", ylabel="q(y|x), the encoder", title="Each cell and type, seed 0")
left.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
right.set_yticks(range(len(encoders)), labels=encoders)
right.invert_yaxis()
right.set(xscale="log", xlabel="gap to log p(x), nats per cell", title="Five seeds each")
plotting.show(
    alt="Left: the encoder's q against the exact posterior; enumeration lies on the diagonal, the hot "
    "relaxation far off. Right: gaps over five seeds; enumeration and RLOO are smallest, then the "
    "annealed relaxation, the hot one, and straight-through."
)

# %% [markdown]
# **Enumeration and RLOO find the posterior**, to 0.0016 ± 0.0007 and 0.0020 ± 0.0013 nats per cell
# ([E07.real_cells](evidence/07_gumbel_softmax.py)). The annealed relaxation ends at 0.010 ± 0.007,
# the hot one at 0.05 ± 0.02, and straight-through at 0.4 ± 0.2. The hot encoder hesitates about cells
# that are certain, and is certain about some that are not. The failure of section 8 is here too: its
# own objective lies 0.27 ± 0.03 nats per cell *above* $\log p(x)$.
#
# ## 10 · A bug hunt
#
# ### Exercise 07.6 · Bug hunt: a KL below zero
# ★☆☆ · 5 minutes · 2 points
#
# A public implementation of a Gaussian-mixture VAE with Gumbel-softmax (jariasf/GMVAE, file
# `pytorch/model/GMVAE.py`, commit 3f7af05) computes the KL of $q(y \mid x)$ to a uniform prior as
# minus the entropy of $q$, minus `np.log(0.1)`. Its number of classes is an option, `num_classes`.
# With twenty, the KL of an undecided cell comes out at −0.69. Can a KL be that? What is 0.1? And
# does the mistake change the fit, or only the reported bound, and so the choice of the number of
# clusters?
#
# Write `kl_to_uniform(logits)` for logits of shape (n, K), any K: a KL for each cell. It must not
# give NaN for a cell that is certain, with logits in the thousands, and it needs no epsilon for that.
#
# <details><summary>Hint</summary>
#
# $\mathrm{KL}(q \,\|\, p) = \sum_k q_k (\log q_k - \log p_k)$, and $p_k = 1/K$. `q.log()` of a
# softmax that has become 0 is −∞, and 0·∞ is NaN; `log_softmax` stays finite.
#
# </details>


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
undecided_kl = {k: float(kl_to_uniform(torch.zeros(1, k))[0]) for k in range(2, 51)}
for n_classes in (3, 10, 20):
    right_one = round(undecided_kl[n_classes], 2) + 0.0
    hard_coded = round(right_one - math.log(n_classes) - math.log(0.1), 2) + 0.0
    print(
        f"{n_classes:2d} classes, q = prior: KL = {right_one:.2f}; with log(0.1): {hard_coded:.2f}"
    )
print("the right KL, 2 to 50 classes: some below zero:", min(undecided_kl.values()) < 0)
print("                         any below −0.00001:   ", min(undecided_kl.values()) < -1e-5)

# %% [markdown]
# A constant has no gradient, so every fit is the same. But the reported bound is wrong by
# $\log(K/10)$: with 20 classes each cell gets 0.69 nats for nothing, with 3 it pays 1.20 too much.
# If you choose the number of clusters by that bound, it tells you to take more.
#
# The right KL is 0 here, and float32 may round it to something like $-4 \cdot 10^{-7}$. For which
# $K$, and whether at all, depends on how the function is written, so the line "some below zero" may
# differ for yours. An `assert kl >= 0` can stop a right program. **A KL below zero by more than
# rounding is a bug**: write `assert kl > -1e-5`.
#
# ## What was not used, and why
#
# *A learned temperature*, or one for each cell: the bound of a relaxed model may prefer heat for
# the wrong reasons, as section 8 showed. *Lower-variance relatives*: REBAR (Tucker et al. 2017) and
# RELAX (Grathwohl et al. 2018) combine REINFORCE with the relaxation, Gumbel–Rao (Paulus, Maddison
# and Krause 2021) averages the relaxation over races with the same winner, VIMCO takes baselines
# from the other draws of a many-draw bound. Read them when you need them.
#
# ## What to take along
#
# - The first of $K$ exponential clocks is a draw from $q$. In logits it is the argmax of
#   $\log q + g$. It is exact.
# - Softmax in place of argmax gives a gradient, and $\mathbb E[y] \ne q$. Cooling trades the bias
#   for variance. Which entry is largest stays exact.
# - Straight-through is exact forward and biased backward.
# - One choice among a few: sum. Few choices, or no derivative: RLOO. Many choices behind one smooth
#   decoder: relax, cool, and report bounds from hard draws; or local expectation gradients, if calls
#   are cheap.
# - A relaxed "bound" above $\log p(x)$, and a KL below zero by more than rounding, are not good news.
#
# ## What the claims rest on

# %%
evidence.table("07")

# %% [markdown]
# **Next.** [Lesson 08](08_gmvae_pbmc.ipynb) puts $q(y \mid x)$ into a VAE for sorted blood cells,
# and compares summing $y$ out with drawing it.
#
# **Read on.** Gumbel-softmax: E. Jang, S. Gu and B. Poole (2017), equations 1–2, §2.1 (the
# temperature) and §2.2 (straight-through). Concrete: C. Maddison, A. Mnih and Y. W. Teh (2017),
# definition 1 for the density, proposition 1 for rounding and the temperature, §3.3 and appendix C
# for the KL. A review of both and their relatives: I. Huijben, W. Kool, M. Paulus and R. van Sloun
# (2022). The argmax form: E. Gumbel (1954), and J. Yellott (1977) for choices; made popular in
# machine learning by Maddison, Tarlow and Minka, *A\* sampling* (2014). First-reaction method: D.
# Gillespie (1976). Straight-through: Y. Bengio, N. Léonard and A. Courville (2013). REINFORCE: R.
# Williams (1992). Leave-one-out baselines: A. Mnih and D. Rezende, *VIMCO* (2016); W. Kool, H. van
# Hoof and M. Welling (2019). Local expectation gradients: M. Titsias and M. Lázaro-Gredilla (2015).
# The bound of exercise 07.1: H. Gangloff's tutorial (INRAE, 2023), second part; D. Kingma et al.
# (2014), equation 7, sum $y$ out as we did.
