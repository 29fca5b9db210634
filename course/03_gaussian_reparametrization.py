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
# A bound on log p(x) is an average over draws of a latent variable z. To raise it we have to know
# how each draw would change if the parameters of the dice did. But dice have no slope.
# **How does a gradient get through a random draw, and how noisy is it when it arrives?**
#
# **Objectives.** After this lesson you can
#
# - say what blocks the gradient at a draw, and recognise a model that was trained that way;
# - write z = m + s·ε, and test its gradient against known numbers;
# - derive the score-function estimator, which needs no slope at all;
# - test an estimator by its mean and its variance, and say how both ways compare as draws and
#   dimensions grow;
# - write the algorithm of the VAE (AEVB), and choose the number of draws;
# - find the errors that a draw invites: a variance for a standard deviation, a z drawn twice.
#
# **You need** the bound of lesson 02, and PyTorch's `backward`. No biology.
# **Time:** about 60 minutes, three quarters of it for six exercises (15 points). **Data:** none.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from torch.distributions import Bernoulli, Beta, Categorical, Gamma, Normal, Poisson, kl_divergence

import vaelab
from vaelab import plotting
from vaelab.plotting import BLUE, GREEN, ORANGE, PINK, RED
from vaelab.reparametrization import gaussian, score_function

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## 1 · What blocks the gradient
#
# Take one gene, one latent variable z, and a decoder that is not linear. A cell with x = 1.8 was
# seen. The **reconstruction** term of the bound is the average of f(z) = log p(x|z) under
# q = N(m, s²), where m and s are what the encoder says of this cell.


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
# These numbers we want. With ten latent dimensions there is no adding up, so we draw. A thousand
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
# random generator for numbers, and hands them over as if they had fallen from the sky: from z no
# way leads back to m.
#
# An error is the lucky case. In a bound there is a second term, the KL, which *has* a gradient in
# m and s. Then nothing complains. We train q for our one cell, twice: once with `sample`, and once
# in another way, which is the subject of this lesson.


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
for name, path in {"sample": blocked, "m + s·ε": free}.items():
    m_end, s_end = path[-100:].mean(0)  # the last steps' average: single ones are noisy
    kl = kl_divergence(Normal(m_end, s_end), Normal(0.0, 1.0)).item()
    print(f"{name:8s} m = {abs(m_end):.1f}, s = {s_end:.1f}, KL to the prior {abs(kl):.1f} nats, "
          f"bound {exactly(m_end, s_end).item() - kl:.1f}")  # fmt: skip

# %%
fig, (left, middle) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for path, colour, name in ((blocked, RED, "sample: blocked"), (free, BLUE, "m + s·ε")):
    left.plot(path[:, 0], color=colour, label=f"m, {name}")
    left.plot(path[:, 1], color=colour, ls=":", label=f"s, {name}")
    q = Normal(*path[-100:].mean(0))
    middle.plot(grid, q.log_prob(grid).exp(), color=colour, label=f"q, {name}")
left.set(
    xlabel="step of training", ylabel="m, s", title="One cell's q, trained twice", ylim=(-1, 1.2)
)
middle.fill_between(grid, posterior, color="0.88", label="posterior p(z | x)")
middle.plot(grid, Normal(0.0, 1.0).log_prob(grid).exp(), color="black", ls="--", label="prior p(z)")
middle.set(xlabel="latent z", ylabel="density", xlim=(-3, 3), title="Where q ended")
left.legend(frameon=False, fontsize=9, ncols=2, loc="lower center")
_ = middle.legend(frameon=False, fontsize=9)

# %% [markdown]
# With `sample` the only force on q is the KL, and it does its work: q becomes the prior, and says
# nothing about the cell. The cell's data never reached the encoder. If you meet a VAE whose KL goes
# to zero in the first epochs, look for this before you blame the model: a `sample`, a `detach`, a
# `torch.no_grad()` between encoder and decoder.
#
# > **Spot the error.** A text explains why all this is needed: "stochastic nodes cannot be
# > differentiable". Was it the randomness that stopped us?
# >
# > <details><summary>Solution</summary>The average E_q[f(z)] is a smooth function of m and s: its
# > two slopes stand under the first cell. And the cure draws just as many random numbers. What has
# > no slope is a number that was drawn <i>by a procedure which hides</i> how m and s went into it.
# > </details>
#
# ## 2 · z = m + s·ε
#
# A normal variable with mean m and standard deviation s can be made from one with mean 0 and
# standard deviation 1: draw ε ~ N(0, 1), and let
#
# $$z = m + s\,\varepsilon .$$
#
# The distribution of z is the same as before. But the dice are thrown *outside*: ε does not depend
# on m or s. Given ε, z is an ordinary function of m and s, with slopes ∂z/∂m = 1 and
# ∂z/∂s = ε. This is the **reparametrisation** (its estimate of a gradient is called **pathwise**).


# %%
def draw_graph(ax, free):
    at = {"m, s": (0, 1), "z": (1.5, 1), "f(z)": (3, 1)} | ({"ε": (1.5, 0)} if free else {})
    arrows = [("m, s", "z"), ("z", "f(z)")] + ([("ε", "z")] if free else [])
    for name, (x, y) in at.items():
        random = name == ("ε" if free else "z")
        ax.text(x, y, name, ha="center", va="center", fontsize=12, zorder=3, bbox={
            "boxstyle": "circle,pad=0.45" if random else "round,pad=0.5",
            "fc": "#FBE6C2" if random else "white", "ec": "black",
        })  # fmt: skip
    for start, end in arrows:
        style = {"arrowstyle": "-|>", "color": "black", "shrinkA": 24, "shrinkB": 22}
        ax.annotate("", at[end], at[start], arrowprops=style)
    for x, passes in ((2.25, True), (0.75, free)):
        way = {"arrowstyle": "-|>", "color": BLUE if passes else RED, "ls": "--", "lw": 1.8}
        ax.annotate("", (x - 0.4, 1.5), (x + 0.4, 1.5), arrowprops=way)
        ax.text(x, 1.62, "gradient" if passes else "✘ none", color=way["color"], ha="center")
    ax.set(
        xlim=(-0.5, 3.5), ylim=(-0.4, 2), title="z = m + s·ε" if free else "z drawn from N(m, s²)"
    )
    ax.set_axis_off()


fig, panels = plt.subplots(1, 2, figsize=(10, 2.8), layout="constrained")
draw_graph(panels[0], free=False)
draw_graph(panels[1], free=True)

# %% [markdown]
# Orange and round is what is random. On the left it stands in the gradient's way, on the right
# beside it. Then a gradient goes through every single draw, and the average of these gradients is
# the gradient that we want:
#
# $$\nabla_{m,s}\ \mathbb E_{q}[f(z)] = \nabla_{m,s}\ \mathbb E_{\varepsilon}[f(m + s\varepsilon)]
# = \mathbb E_{\varepsilon}\big[\nabla_{m,s}\, f(m + s\varepsilon)\big]
# \approx \frac1L \sum_{l=1}^L \nabla_{m,s}\, f(m + s\varepsilon^{(l)})$$
#
# Look at each sign. The first two steps are equalities: the same average, written in another
# variable; then gradient and average exchanged, which is allowed since the distribution of ε
# has no parameter (and f has no jumps). Only the last step is an approximation, by L draws.
#
# > **Spot the error.** A tutorial writes E_q[log p(x|z)] ≈ E_ε[f(g(ε, x))] for the first step, and
# > an = before the average of L draws, in which z has no index. What should stand there?
# >
# > <details><summary>Solution</summary>The other way round: = for the change of variables, ≈ for the
# > draws, and z⁽ˡ⁾ under the sum. With one z for all l, L terms would be L times the same.</details>
#
# > **Spot the error.** One slip in each of these, all from texts on VAEs.
# > (1) q(x|z) = N(z; μ(x), σ²(x)). (2) (z − μ)/σ ~ N(0.1). (3) z ~ N(μ, σ) and z = μ + σ·ε,
# > where N(0, I) has the identity *matrix* in the second place. (4) q(z|x) = N(m(z), diag S(z)).
# > (5) N(z; μ, σ²I) with σ² a vector. (6) "We take a sample … in the input layer".
# >
# > <details><summary>Solution</summary>(1) q(z|x): z is drawn, x is given. (2) N(0, 1). (3) In
# > N(·, ·) the second place is a variance, here σ²: else one reads z = μ + √σ·ε. (4) m(x) and S(x);
# > and in the code of that text S is a standard deviation, so that S² belongs there. (5) diag(σ²):
# > σ²I has one variance for all dimensions. (6) ε enters at the latent layer, after the encoder has
# > read its cell; the input layer gets x as it is.</details>
#
# ### Testing a gradient
#
# Test it where the answer is known. For f(z) = z², the average is m² + s², with slopes 2m and 2s.
# And test it against a **finite difference**: move m a little, and see how the average moves. Here
# the dice matter. Throw them anew for the second average, and the difference drowns in noise. Keep
# the *same* ε for both, and you get the pathwise gradient.

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
    fresh = (((m + h + s * ε) ** 2).mean() - ((m - h + s * other) ** 2).mean()) / (2 * h)
print(f"difference, the same ε:   {same.item():.3f}")
print(f"difference, ε drawn anew: off by more than 10: {abs(fresh.item() - 3) > 10}")

# %% [markdown]
# The package's `gaussian` is this one line, with a first dimension for the draws; torch's own word
# is `rsample`, with an r for *reparametrised*. They agree:

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
# often gives the *logarithm of the variance*. For years the VAE among the examples of a
# well-known library had this, and its copies are still about:
#
# ```python
# def draw(noise, mean, log_var):
#     return mean + torch.exp(log_var) * noise
# ```
#
# while its KL took `torch.exp(log_var)` as the variance. Somebody sent a correction, and was told
# that `log_var` is the output of a Dense layer, whose scale "is irrelevant". Mend `draw`. Noise,
# mean and log_var have one shape; the check looks at z and at its slope in log_var.
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
# is used in two: where z is drawn, and in the KL. So let us see both codes where log p(x) is
# known: z ~ N(0, 1), and x ~ N(2z, 0.5²), with q at the posterior's mean.

# %%
x, w, σ = 1.5, 2.0, 0.5
log_p_x = Normal(0.0, (w**2 + σ**2) ** 0.5).log_prob(torch.tensor(x))
centre, log_var = w * x / (w**2 + σ**2), torch.linspace(-5.5, 0.5, 200)


def reported(s_drawn, variance_in_kl):
    """Reconstruction minus KL, in closed form, if the two use different scales."""
    reconstruction = Normal(w * centre, σ).log_prob(torch.tensor(x)) - (w * s_drawn / σ) ** 2 / 2
    return reconstruction - 0.5 * (centre**2 + variance_in_kl - 1 - torch.log(variance_in_kl))


mended = reported(torch.exp(0.5 * log_var), torch.exp(log_var))
published = reported(torch.exp(log_var), torch.exp(log_var))

fig, ax = plt.subplots(figsize=(7, 3.3), layout="constrained")
ax.axhline(log_p_x, color="black", lw=1, label="log p(x)")
ax.plot(log_var, mended, color=BLUE, label="mended: a bound")
ax.plot(log_var, published, color=RED, label="as published")
ax.set(
    xlabel="log_var, the encoder's output", ylabel="nats", ylim=(-4.5, -1), title="Is it a bound?"
)
ax.legend(frameon=False)
print(f"log p(x) {log_p_x.item():.2f}; best bound {mended.max().item():.2f}; "
      f"best value of the published code {published.max().item():.2f}")  # fmt: skip

# %% [markdown]
# The published sum rises *above* log p(x), so it is no bound. It draws from one q and pays for a
# wider one, which is cheaper. Nothing crashes and pictures come out. Only the numbers lie, and the
# numbers are what models are compared by.
#
# ### Exercise 03.2 · A pathwise estimator of your own
# ★★☆ · 8 minutes · 3 points
#
# Write `pathwise_gradient(f, mean, std, n_samples)`. For each cell it estimates the gradient of
# E_q[f(z)], with q = N(mean, diag std²), in `mean` and in `std`, from `n_samples` draws of z.
# `mean` and `std` have shape (n_cells, n_latent), and so have the two gradients. f takes z of shape
# (…, n_latent) and gives values of shape (…): one for each draw of each cell.
#
# The check knows neither your code nor your ε. It calls you for 100,000 cells that are all alike,
# and looks at four numbers in each latent dimension: the **variance** over cells of both
# gradients, and their **means**. (If a number is wrong, it is named in this order.)
#
# <details><summary>Hint</summary><code>torch.autograd.grad(number, (mean, std))</code> returns both
# gradients, if <code>mean</code> and <code>std</code> require one: <code>mean.requires_grad_()</code>.
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
# Twelve draws of ε, top, and what becomes of them. Each z slides along its own line as m and s
# move, and f at z goes up or down with the slope that is drawn there. The pathwise gradient in m is
# the average of these slopes. In s, each is weighted by its ε: a draw far out moves most.


# %%
def draw_same_noise(m, s, throw):
    torch.manual_seed(int(throw))
    ε = torch.randn(12)
    z = (m + s * ε).requires_grad_()
    (slope,) = torch.autograd.grad(f(z).sum(), z)
    z = z.detach()
    fig, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 4.6), sharex=True, layout="constrained", height_ratios=(1, 2)
    )
    top.plot(ε, np.ones(12), "o", color=ORANGE, ms=7)
    top.plot(z, np.zeros(12), "o", color=BLUE, ms=7)
    top.plot(np.stack([ε, z]), [[1] * 12, [0] * 12], color="0.75", lw=1, zorder=0)
    top.set(yticks=[0, 1], yticklabels=["z = m + s·ε", "ε"], ylim=(-0.4, 1.4), xlim=(-4, 4))
    bottom.plot(grid, f(grid), color="0.7", lw=1.5)
    for at, rise in zip(z, slope, strict=True):
        width = 0.45 / (1 + rise.abs() / 12)  # steep ones shorter, to be told apart
        ends = torch.stack([at - width, at + width])
        bottom.plot(ends, f(at) + rise * (ends - at), color=RED, lw=1.5)
    bottom.plot(z, f(z), "o", color=BLUE, ms=5)
    in_m, in_s = slope.mean().item(), (slope * ε).mean().item()
    bottom.set(xlabel="ε and z", ylabel="f(z) (nats)", ylim=(-32, 2))
    bottom.set_title(
        f"mean of f = {f(z).mean().item():.2f}, slope in m = {in_m:+.2f}, in s = {in_s:+.2f}"
    )
    return fig


_ = draw_same_noise(m=0.3, s=0.8, throw=0)

# %% [markdown]
# With a kernel running, move *m* and *s* and see where the slopes cancel. Then keep m and s, and
# move *throw*: the dice are thrown anew, and the gradient differs. How much is what
# section 4 is about.

# %% tags=["nbval-ignore-output"]
from ipywidgets import FloatSlider, IntSlider

plotting.interactive(
    draw_same_noise,
    alt=(
        "Above, draws from q as dots on a line; below, the function f with the slope at each "
        "draw. Both move with the mean m and the standard deviation s of q, while the noise "
        "stays the same."
    ),
    m=FloatSlider(0.3, min=-2, max=2, step=0.05, description="m", continuous_update=False),
    s=FloatSlider(0.8, min=0.05, max=1.5, step=0.05, description="s", continuous_update=False),
    throw=IntSlider(0, min=0, max=20, description="throw", continuous_update=False),
)

# %% [markdown]
# ## 3 · The other way: weigh the draws
#
# There is an older way, which leaves z where it fell. If m moves, the same z becomes more or less
# *probable*. So do not ask how z moves; ask how its weight does. In one dimension, and for the
# slope in m:
#
# $$\frac{\partial}{\partial m}\,\mathbb E_q[f(z)] = \int f(z)\,\frac{\partial q(z)}{\partial m}\,dz
# = \int f(z)\; q(z)\,\frac{\partial \log q(z)}{\partial m}\,dz
# = \mathbb E_q\Big[f(z)\,\frac{\partial \log q(z)}{\partial m}\Big]$$
#
# The step in the middle is the slope of a logarithm, (log q)′ = q′/q, turned around. The slope of
# log q in a parameter is called the **score**, and this estimator the **score-function** estimator
# (in reinforcement learning: REINFORCE). It asks nothing of f but its values.
#
# ### Exercise 03.3 · The score-function estimator
# ★★☆ · 8 minutes · 3 points
#
# Finish the derivation for q = N(m, s²), once for m and once for s. Write
# `score_estimates(f_z, z, mean, std)`: what stands inside the last average, for each single draw.
# `f_z` has shape (n_draws,), z (n_draws, n_latent), mean and std (n_latent,). Dimensions
# are independent under q. What comes back are two arrays of z's shape, for mean and for std.
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
# average of R independent estimates scatters around the truth with a **standard error** of
# (their standard deviation)/√R. Off by more than four standard errors happens to a right estimator
# once in 16,000 times. We take the f of section 1, whose slopes we know by adding up.

# %%
torch.manual_seed(3)
m, s = torch.tensor([0.3]), torch.tensor([0.8])
R = 200_000
ε = torch.randn(R, 1)
z = (m + s * ε).requires_grad_()
f_z = f(z.squeeze())
(slope,) = torch.autograd.grad(f_z.sum(), z)
by_path = slope, slope * ε
by_score = score_estimates(f_z.detach(), z.detach(), m, s)

print("                  mean   right   within 4 standard errors   standard deviation")
for name, pair in {"pathwise": by_path, "score": by_score}.items():
    for parameter, estimates, known in zip("ms", pair, right, strict=True):
        mean, sd = estimates.mean().item(), estimates.std().item()
        fine = abs(mean - known.item()) < 4 * sd / R**0.5
        print(f"{name:9s} in {parameter}: {mean:8.1f} {known.item():7.1f} {fine!s:>16s} {sd:24.0f}")

# %% [markdown]
# No bias in either. The standard deviations are another matter, and they are what it costs: to
# halve a standard error takes four times the draws.
#
# ## 4 · Two variances
#
# Here f is the log-probability of one gene of a cell, about −5 on average. In real data there are
# thousands of genes, and f is −500 for one z and −510 for the next. The pathwise estimator looks
# at the slope, and does not notice the −500. The score-function estimator multiplies every score
# by it. Below, f with a constant added, which changes no gradient; and more and more draws.

# %%
draws = 2 ** np.arange(0, 11)


def spread_of_means(estimates):
    """Standard deviation of the mean of n estimates, for each n of draws."""
    flat = estimates.detach().flatten()[: 200 * 1000]
    return [flat[: len(flat) // n * n].reshape(-1, n).mean(1).std().item() for n in draws]


fig, (left, right_panel) = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained")
left.loglog(draws, spread_of_means(by_path[0]), "o-", color=BLUE, label="pathwise, any constant")
for level, colour, marker in ((0, ORANGE, "^"), (-50, PINK, "s"), (-500, RED, "D")):
    scores = score_estimates(f_z.detach() + level, z.detach(), m, s)[0]
    left.loglog(
        draws,
        spread_of_means(scores),
        marker + "-",
        color=colour,
        label=f"score, f − {-level}" if level else "score, f",
    )
left.axhline(abs(right[0].item()), color="black", lw=1, ls=":", label="the gradient itself")
left.set(xlabel="L, number of draws", ylabel="standard deviation (nats)", title="More draws")
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
_ = right_panel.legend(frameon=False)

# %% [markdown]
# Left, all lines fall as 1/√L, and where they start is the difference. At −500 a thousand draws of
# the score function scatter more than the gradient itself is large. Right, the gradient in *one*
# coordinate: the pathwise estimator looks at the slope along it, and is not disturbed by the
# others. The score function hears them all, since f is a sum over them.
#
# ### Exercise 03.4 · Spot the error: what has a high variance?
# ★★★ · 9 minutes · 2 points
#
# **Spot the error.** A tutorial motivates the reparametrisation so: "the expectation … has a high
# variance". Which thing has? Answer with three numbers, for the right-hand figure: q = N(0, I) in
# d dimensions, f(z) = z₁² + … + z_d², and the gradient in m₁.
#
# Write `variances(n_latent, n_samples)`. It returns (1) the variance of the expectation E_q[f];
# (2) the variance of the score-function estimate, averaged over `n_samples` draws; (3) the same for
# the pathwise estimate. In closed form: no draws.
#
# <details><summary>Hint</summary>(1) is a question of words. For (2), the estimate from one draw is
# f(z)·z₁, its mean is 0, and its variance is E[f² z₁²]. No coordinate is special: E[f² z₁²] =
# E[f² z₂²] = …, and all d of them together are E[f³]. Under q, f is chi-squared with d degrees of
# freedom: E[f] = d, E[f²] = d(d + 2), and E[f³] goes on in the same way.</details>


# %% nbgrader={"grade_id": "03-4", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def variances(n_latent, n_samples):
    """Of the expectation, of the score-function estimate, of the pathwise estimate."""
    ### BEGIN SOLUTION
    d = n_latent
    of_expectation = 0.0  # it is a number, and not random
    of_score = (d + 2) * (d + 4) / n_samples  # E[f³]/d = d (d + 2) (d + 4)/d
    of_pathwise = 4 / n_samples  # the slope is 2 z₁
    return of_expectation, of_score, of_pathwise
    ### END SOLUTION


# %% nbgrader={"grade_id": "03-4-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("03.4", variances)

# %%
for d in (1, 10, 100):
    _, of_score, of_pathwise = variances(d, 1)
    print(
        f"{d:3d} dimensions: the score function needs {of_score / of_pathwise:6.0f} times the draws"
    )

# %% [markdown]
# ### Not a law
#
# Is the pathwise estimator always better? No: it looks at slopes, and slopes can be worse than
# values. Give f a fine ripple, or a jump:

# %%
torch.manual_seed(4)
z = torch.randn(500_000, 1, requires_grad=True)  # m = 0, s = 1
functions = {
    "z": lambda z: z,
    "z + ripple": lambda z: z + 0.01 * torch.sin(1000 * z),
    "1 if z > 0": lambda z: torch.where(z > 0, 1.0, 0.0) + 0 * z,
}
exact = {"z": 1.0, "z + ripple": 1.0, "1 if z > 0": 1 / np.sqrt(2 * np.pi)}
print("f             right |  pathwise: mean, sd |  score: mean, sd")
for name, function in functions.items():
    values = function(z).squeeze()
    (slope,) = torch.autograd.grad(values.sum(), z)
    scores, _ = score_estimates(values.detach(), z.detach(), torch.zeros(1), torch.ones(1))
    row = [v.item() for v in (slope.mean(), slope.std(), scores.mean(), scores.std())]
    print(
        f"{name:12s} {exact[name]:6.1f} | {row[0]:12.1f}, {row[1]:4.1f}  | {row[2]:9.1f}, {row[3]:4.1f}"
    )

# %% [markdown]
# With the ripple the pathwise estimator is the noisier one. With the jump it is *wrong*: its slope
# is 0 wherever one looks, its variance is 0 too, and it is sure of a false answer. This is the fine
# print of section 2, "f has no jumps". A decoder made of smooth layers, or of ReLUs, which have
# kinks but no jumps, is safe. Whatever is rounded, thresholded or counted between z and f is not.
# Then the score function is what there is, and its variance has to be cured.
#
# ### Exercise 03.5 · Only values: an estimator with a baseline
# ★★★ · 10 minutes · 3 points
#
# The score is 0 on average, whatever q. So E[b · score] = 0 for each number b, and
#
# $$\mathbb E\big[(f(z) - b)\cdot \text{score}\big] = \mathbb E\big[f(z)\cdot\text{score}\big].$$
#
# Such a b is called a **baseline**. It changes no mean, and if b is near the level of f it takes
# the level out of the variance. But b must be found, from the same few draws, and must not bring
# in a bias.
#
# Write `baseline_gradient(f, mean, std, n_samples)`, which estimates the gradient in `mean` alone.
# Shapes are as in 03.2, but now f gives values only, without a gradient: think of a simulator. Its
# level is somewhere between −400 and −50, you do not know where. From 4 or 6 draws, your estimate
# must have no bias, and at most twice the variance of a good solution. (The check names the
# variance first, then the mean.)
#
# <details><summary>Hint</summary>The mean of a cell's draws is a good level. But a draw that
# is in its own baseline pulls the baseline towards itself, and that is the bias. Each draw may
# have a baseline of its own: which draws may it be made of?</details>


# %% nbgrader={"grade_id": "03-5", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def baseline_gradient(f, mean, std, n_samples):
    """An estimate of ∇_mean E[f(z)] from values of f, of shape (n_cells, n_latent)."""
    ### BEGIN SOLUTION
    z = mean + std * torch.randn(n_samples, *mean.shape)
    values = f(z)  # (n_samples, n_cells)
    of_others = (values.sum(0) - values) / (n_samples - 1)
    score = (z - mean) / std**2
    return ((values - of_others)[..., None] * score).mean(0)
    ### END SOLUTION


# %% nbgrader={"grade_id": "03-5-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("03.5", baseline_gradient)

# %% [markdown]
# Now the f of section 1, 500 nats lower, and eight draws for each estimate. Three estimators:

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
    print(f"{name:24s} standard deviation {estimate(low, *many, 8).std().item():6.1f} nats")

# %% [markdown]
# The baseline saves most of it, and the slope, where it may be used, saves more.
#
# ## 5 · The algorithm
#
# All parts are there now: the bound of lesson 02, networks for the means, and a gradient through
# the draw. Put together they are **auto-encoding variational Bayes** (AEVB), the algorithm of the
# VAE:
#
# 1. Take a minibatch of M cells.
# 2. Encode: m and s of each. *(φ)*
# 3. Draw ε, L times for each cell; z = m + s·ε.
# 4. Decode: log p(x|z). *(θ)*
# 5. Bound = the average over draws of log p(x|z), minus the KL in closed form. Sum over genes and
#    latent dimensions, average over cells.
# 6. One step up its gradient, in θ and φ together. Begin again.
#
# A toy to try it on: 500 cells that ripen, from young to old, seen at 200 genes. Forty of the genes
# are switched on, each at its own age; the others say nothing, as most genes do. Nobody tells the
# model the ages. Its decoder is a network, so that nothing here has a closed form but the KL.

# %%
torch.manual_seed(6)
age = torch.rand(500)
onset, height = torch.linspace(-0.1, 1.1, 200), 2.0 * (torch.arange(200) % 5 == 0)
x = height * torch.sigmoid(12 * (age[:, None] - onset)) + 0.5 * torch.randn(500, 200)
x = x - x.mean(0)


class ToyVAE(nn.Module):
    """N(0, I) → a network → N(·, 0.5²) for each gene; q(z | x) from another network."""

    def __init__(self, n_genes=200, n_latent=2, n_hidden=32):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(n_genes, n_hidden), nn.Tanh(), nn.Linear(n_hidden, 2 * n_latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(n_latent, n_hidden), nn.Tanh(), nn.Linear(n_hidden, n_genes)
        )

    def encode(self, x):
        m, log_var = self.encoder(x).chunk(2, dim=-1)
        return m, torch.exp(0.5 * log_var)

    def log_likelihood(self, x, z):
        return (
            Normal(self.decoder(z), 0.5, validate_args=False).log_prob(x).sum(-1)
        )  # (n_samples, n_cells)


# %% [markdown]
# Four ways to get the reconstruction term, and nothing else differs. `score_function` is the
# package's: it returns the average of f over draws, with the gradient of section 3.


# %% tags=["not-in-grading"]
def reconstruction(model, x, m, s, way, L):
    def f(z):
        return model.log_likelihood(x, z)

    if way == "pathwise":
        ε = torch.randn(L, *m.shape)
        return f(m + s * ε).mean(0)
    if way == "blocked":
        return f(Normal(m, s).sample((L,))).mean(0)
    return score_function(f, Normal(m, s), n_samples=L, baseline=way == "score, baseline")


def aevb(way, L=2, M=100, n_steps=300):
    torch.manual_seed(7)
    model = ToyVAE()
    optimiser, trace = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for step in range(n_steps):
        batch = x[torch.randint(len(x), (M,))]  # 1
        m, s = model.encode(batch)  # 2
        kl = 0.5 * (m**2 + s**2 - 1 - 2 * torch.log(s)).sum(-1)
        bound = (reconstruction(model, batch, m, s, way, L) - kl).mean()  # 3, 4, 5
        optimiser.zero_grad()
        (-bound).backward()
        optimiser.step()  # 6
        if step % 10 == 0:
            with torch.no_grad():
                m, s = model.encode(x)
                kl = 0.5 * (m**2 + s**2 - 1 - 2 * torch.log(s)).sum(-1)
                trace.append((reconstruction(model, x, m, s, "pathwise", 5) - kl).mean().item())
    return model, trace


ways = {"pathwise": BLUE, "score, baseline": GREEN, "score": ORANGE, "blocked": RED}
trained = {way: aevb(way) for way in ways}

# %% tags=["not-in-grading"]
fig, (left, right_panel) = plt.subplots(1, 2, figsize=(10.5, 3.8), layout="constrained")
for way, colour in ways.items():
    left.plot(np.arange(0, 300, 10), trained[way][1], color=colour, label=way)
left.set(
    xlabel="step",
    ylabel="bound (nats per cell)",
    ylim=(-190, -145),
    title="The same model, four gradients",
)
left.legend(frameon=False, fontsize=9, loc="lower right")
with torch.no_grad():
    means = trained["pathwise"][0].encode(x)[0]
plotting.embedding(
    means,
    age.numpy(),
    ax=right_panel,
    title="Pathwise: the cells in latent space",
    name="age (0 young, 1 old)",
)
right_panel.set(xlabel="mean of z₁", ylabel="mean of z₂")
for way in ways:
    with torch.no_grad():
        m, s = trained[way][0].encode(x)
        kl = 0.5 * (m**2 + s**2 - 1 - 2 * torch.log(s)).sum(-1).mean().item()
    print(
        f"{way:16s} bound {np.mean(trained[way][1][-10:]):4.0f}, of which the KL {abs(kl):.1f} nats"
    )

# %% [markdown]
# Nobody gave the ages, and along the latent curve the cells stand in their order. With the
# gradient *blocked* the KL is zero in the end. The decoder has learned the mean of each gene, and
# nothing else: section 1 again, and not one message on the way. The score function alone does
# learn, but noise keeps it nine nats below the pathwise one. With a baseline, from two draws a
# cell, it nearly keeps up here, with a latent space of two dimensions.
#
# ## 6 · How many draws?
#
# L draws for each of M cells: what do they buy? A gradient from a minibatch is random in two ways:
# *which* cells were taken, and where *their z* fell. By the law of total variance
#
# $$\mathrm{Var} = \frac{V_\text{cells}}{M} + \frac{V_\text{draws}}{M\,L}$$
#
# and L acts on the second part alone. Measured for the trained model, on all its encoder's weights:


# %% tags=["not-in-grading"]
def gradient_variance(L, M, repeats):
    model, gradients = trained["pathwise"][0], []
    for _ in range(repeats):
        batch = x[torch.randint(len(x), (M,))]
        m, s = model.encode(batch)
        kl = 0.5 * (m**2 + s**2 - 1 - 2 * torch.log(s)).sum(-1)
        bound = (reconstruction(model, batch, m, s, "pathwise", L) - kl).mean()
        parts = torch.autograd.grad(bound, tuple(model.encoder.parameters()))
        gradients.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(gradients).var(0).sum().item()


torch.manual_seed(8)
L_values = [1, 2, 5, 10, 30]
fig, ax = plt.subplots(figsize=(7, 3.3), layout="constrained")
for M, colour, marker in ((1, ORANGE, "o"), (10, GREEN, "^"), (100, BLUE, "s")):
    variance = [gradient_variance(L, M, repeats=int(400 / M**0.4)) for L in L_values]
    ax.loglog(L_values, variance, marker + "-", color=colour, label=f"M = {M} cells")
ax.set(xlabel="L, draws for each cell", ylabel="variance of the gradient", title="Draws or cells?")
ax.set_xticks(L_values, L_values)
ax.minorticks_off()
_ = ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))

# %% [markdown]
# More draws flatten out at what the choice of cells leaves. Ten times the cells gives a tenth, and
# goes on. With the same number of decodings, M·L, cells are the better buy. This is why nearly every
# VAE is trained with **L = 1** and a minibatch of a hundred cells or so, as the first paper
# proposed. (For *reporting* a bound, more draws do no harm.)
#
# ## 7 · One ε, two places
#
# A draw is often used twice, and then it must be the *same* draw. In lesson 02 the bound was
# E_q[log w] with the **weight** w = p(z) p(x|z) / q(z). Since E_q[w] = p(x), one can also
# average the weights themselves and take the logarithm afterwards:
#
# $$\log p(x) \approx \log \frac1S \sum_{s=1}^S \frac{p(z_s)\;p(x\,|\,z_s)}{q(z_s)},\qquad
# z_s \sim q$$
#
# This is **importance sampling**, used to compare finished models by their log p(x) (lesson 09
# comes back to it). Each z_s stands in three places.
#
# ### Exercise 03.6 · A bug hunt: z drawn twice
# ★★☆ · 6 minutes · 2 points
#
# The first releases of a package for single cells computed this "marginal log-likelihood" from a z
# of their own, but for p(x|z) they called the model, which drew *another* z from the same q:
#
# ```python
# z = gaussian(m, s, S)
# weight = log_prior(z) - log_q(z)
# z_again = gaussian(m, s, S)              # inside the model
# result = logsumexp(weight + log_likelihood(x, z_again), 0) - log(S)
# ```
#
# What does it compute? Take the model z ~ N(0, 1), x ~ N(z, σ²), with q = N(m, s²). Write
# `drawn_twice(x, sigma, mean, std)`: the number that `result` approaches as S grows, for each
# cell; x, mean and std have shape (n_cells,).
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
# The prior has dropped out, and with it the price of z. Watch both codes for one cell with x = 2.5
# and σ = 1. To be fair to both, q is a little wider than the posterior N(x/2, ½).

# %%
torch.manual_seed(9)
x_one, sigma, m, s = torch.tensor(2.5), 1.0, torch.tensor(1.25), torch.tensor(0.9)
z, z_again = gaussian(m, s, 100_000), gaussian(m, s, 100_000)
price = Normal(0.0, 1.0).log_prob(z) - Normal(m, s).log_prob(z)
once = price + Normal(z, sigma).log_prob(x_one)
twice = price + Normal(z_again, sigma).log_prob(x_one)
S = torch.arange(1, 100_001)
truth = Normal(0.0, 2**0.5).log_prob(x_one).item()
limit = drawn_twice(x_one[None], sigma, m[None], s[None]).item()

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

# %% [markdown]
# The wrong code has less to explain and so looks *better* than the truth: for this cell by more
# than a nat, in a single latent dimension. Models have ten or thirty. It was mended two releases
# later. Test such code where q is the posterior: then every single weight is p(x), and a first draw
# tells.
#
# > **Spot the error.** Notes on incomplete data write the weights as p(x, z_s)/q(z_s|x), where the
# > encoder was given f(x), the cell with its holes filled; and they say nothing of how the z_s are
# > drawn. What must be said?
# >
# > <details><summary>Solution</summary>The density in the denominator has to be that of the
# > distribution which drew z_s: q(z | f(x)), in both places. And the z_s are drawn from it
# > independently of each other.</details>
#
# ## 8 · In the package
#
# `vaelab.VAE.elbo` is steps 2 to 5 of section 5, with counts in place of normal values. One draw,
# written out with the same ε:

# %%
cells = vaelab.Cells.from_anndata(vaelab.simulate.dataset(n_cells=100, n_genes=50, seed=0)).to()
model = vaelab.VAE(n_genes=50, n_latent=5, likelihood="nb", seed=0).to(torch.float64).eval()
cells = cells.to(dtype=torch.float64)

torch.manual_seed(10)
bound = model.elbo(cells, n_samples=1).per_cell().mean()
(theirs,) = torch.autograd.grad(bound, model.encoder.parameters().__next__())

torch.manual_seed(10)
q = model.encode(cells)
z = q.mean + q.stddev * torch.randn(1, 100, 5)
log_px = model.decode(z, cells).log_prob(cells.x).sum(-1).mean(0)
by_hand = (log_px - kl_divergence(q, model.prior()).sum(-1)).mean()
(ours,) = torch.autograd.grad(by_hand, model.encoder.parameters().__next__())
print("the same bound:   ", torch.allclose(bound, by_hand))
print("the same gradient:", torch.allclose(theirs, ours, atol=1e-12))

# %% [markdown]
# The encoder gives a standard deviation by way of *softplus*, log(1 + eᵛ), plus 1e-4, in place of
# exp(v/2). The exponential of a large output overflows, and of a very negative one is 0, whose
# logarithm is −∞: early releases of scVI had no such floor, and got one later.
#
# ## What was not used, and why
#
# *Draws of the KL*: normal distributions have it in closed form, and a closed form has no variance.
# *Antithetic draws* (ε and −ε together) and *learned baselines*: they lower variances further, and
# with L = 1 and a slope nobody needs them. *Relaxed categories*: a normal z has no jumps; for
# categories see lesson 07. *More flexible q*, made by several reparametrised steps (flows): the
# encoder is rarely what limits these models.
#
# ## What to take along
#
# - A draw hides how its parameters went into it. z = m + s·ε throws the dice outside.
# - A blocked gradient, with a KL beside it, gives no error. It gives a KL of zero.
# - s is a standard deviation: with a log-variance v it is exp(v/2), in the draw *and* in the KL.
# - Pathwise: average of slopes; small variance; f must not jump. Score function: values times
#   scores; anything goes; its variance grows with the level of f and the dimensions.
# - Judge an estimator by its mean *and* its variance. A baseline must not know its own draw.
# - L = 1 will do: spend on cells. And a draw that is used twice must be the same draw.
#
# **Read on.** The reparametrisation and AEVB: D. Kingma and M. Welling, *Auto-Encoding Variational
# Bayes* (2014), §2.3 (algorithm 1; M = 100 and L = 1) and §2.4; at the same time D. Rezende,
# S. Mohamed and D. Wierstra, *Stochastic Backpropagation …* (2014), §3. The score function:
# R. Williams, Machine Learning 8 (1992) 229–256; in variational inference R. Ranganath, S. Gerrish
# and D. Blei, *Black Box Variational Inference* (2014). The baseline of 03.5: W. Kool, H. van Hoof
# and M. Welling, *Buy 4 REINFORCE Samples, Get a Baseline for Free!* (2019). Everything about
# both, and where each wins: S. Mohamed, M. Rosca, M. Figurnov and A. Mnih, *Monte Carlo Gradient
# Estimation in Machine Learning*, JMLR 21:132 (2020), §§3–5 and 7. This lesson follows the
# section "Auto-encoding Variational Bayes" of a blog post, *Variational Autoencoders for Modeling
# Single-Cell Data* (2022), and "The reparameterization trick" of Harvard's MCB128 (2026). The
# bug of 03.1: Keras, issue 3283 (2016) and pull request 9972 (2018); that of 03.6: scVI before 0.4.
