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
# # 05 · Nine zeros in ten
#
# Of all the numbers in a table of single cells and their genes, nine in ten are zero. Whole
# families of methods were built on the belief that these are too many, that the experiment loses
# molecules in a way which ordinary counting can't explain. **Are there too many zeros? And what
# distribution should a model give to a count?** To answer that you need the distributions
# themselves, and you need them right: the same formula goes by many names, and each name has its
# own way of going wrong.
#
# **Objectives.** After this lesson you can
#
# - write and test the Poisson, the negative binomial (NB), their zero-inflated forms (ZIP, ZINB),
#   and the continuous Bernoulli (CB);
# - turn any common parametrisation of the NB into any other;
# - say how many zeros a distribution expects, and compare that with a real gene;
# - choose a distribution for a gene by numbers, and say what the choice does not tell;
# - write these functions so that they hold where probabilities are tiny and parameters huge.
#
# **You need** Python, some PyTorch, and what a likelihood is. No biology.
# **Time:** about 60 minutes, more than half of it for seven exercises (18 points).
# **Data:** 1.5 MB, Baron et al. (2016), mouse 1.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.nn.functional import logsigmoid

import vaelab
from vaelab import plotting
from vaelab.distributions import ContinuousBernoulli, NegativeBinomial, Poisson, ZeroInflated
from vaelab.plotting import BLACK, BLUE, GREEN, ORANGE, PINK, RED, SKY

torch.set_num_threads(1)  # a machine with many cores sums in another order: other last digits
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## 1 · What is counted
#
# A cell makes messenger RNA from the genes that it uses. In this experiment each cell of a mouse
# pancreas sat in a droplet of its own, and each RNA molecule that was caught there got a random
# tag, a *unique molecular identifier* (UMI), before it was copied a thousand times. A count is a
# number of different tags: **molecules caught, not copies read**.

# %%
adata = vaelab.datasets.pancreas(mouse=1)
print(f"{adata.n_obs} cells × {adata.n_vars:,} genes")
print(f"{1 - adata.X.nnz / np.prod(adata.shape):.1%} of the entries are zero")

# %% [markdown]
# Cells of different kinds use different genes, and that alone makes zeros. We don't want to
# explain these now. So we keep to one kind, the 343 **beta cells**, which make insulin, and ask
# whether chance explains how cells of *one* kind differ.
#
# One cause of difference is known: some droplets caught six times as many molecules as others.
# The **depth** of a cell is its total count over the average total. If a gene has the mean μ in
# a cell of average depth, we expect depth · μ in the others.

# %%
beta = adata[adata.obs["cell_type"] == "beta"]
counts = torch.as_tensor(beta.X.toarray(), dtype=torch.float64)  # (n_cells, n_genes)
depth = counts.sum(1) / counts.sum(1).mean()  # (n_cells,)
gene = {name: counts[:, i] for i, name in enumerate(beta.var_names)}
low, high = depth.quantile(torch.tensor([0.05, 0.95]))
print(f"{len(depth)} beta cells; nine in ten have a depth between {low:.1f} and {high:.1f}")

# %% [markdown]
# ## 2 · The simplest model, and how it fails
#
# A cell holds very many molecules, and each is caught with a small probability, independently of
# the rest. Then the number caught is a **Poisson**, with one parameter, its mean:
#
# $$p(x;\mu) = \frac{\mu^x e^{-\mu}}{x!},\qquad \text{variance} = \mu$$


# %%
def poisson_log_prob(x, mean):
    return x * mean.log() - mean - torch.lgamma(x + 1)  # Γ(x+1) = x!


x = torch.arange(6.0)
assert torch.allclose(
    poisson_log_prob(x, torch.tensor(2.5)), Poisson(torch.tensor(2.5)).log_prob(x)
)
print(
    "probabilities of 0, 1, … at mean 2.5:",
    poisson_log_prob(x, torch.tensor(2.5)).exp().numpy().round(3),
)

# %% [markdown]
# Take *Gapdh*, a gene of the sugar metabolism that every cell uses. Each cell has its own mean,
# depth · μ, so what we hold against the histogram is the average of the cells' distributions.


# %%
def expected_share(distribution, largest):
    """Share of cells expected to have 0, 1, …, `largest` counts; the batch is the cells."""
    k = torch.arange(largest + 1.0)[:, None]
    return distribution.log_prob(k).exp().mean(1)  # (largest + 1,)


def draw_shares(ax, name, distributions, largest=30):
    """The observed counts of a gene as bars, and what distributions expect as lines."""
    k = np.arange(largest + 1)
    observed = [(gene[name] == i).double().mean() for i in k]
    ax.bar(k, observed, color="0.8", label=f"{name} in {len(gene[name])} cells")
    for (label, distribution), colour in zip(distributions.items(), plotting.COLOURS, strict=False):
        share = expected_share(distribution, largest)
        ax.plot(k, share, color=colour, marker="o", ms=3, label=f"{label}: {share[0]:.0%} zeros")
    ax.set(xlabel=f"counts of {name}", ylabel="share of cells")
    ax.legend(frameon=False)


mean = depth * gene["Gapdh"].sum() / depth.sum()  # (n_cells,); the most likely one
fig, ax = plt.subplots(figsize=(7, 3.4))
draw_shares(ax, "Gapdh", {"Poisson": Poisson(mean)})
ax.set_title("A Poisson is too narrow, and knows of no zeros")
fig.tight_layout()

# %% [markdown]
# The real cells crowd at 0, 1 and 2, where the Poisson has few, and some lie far out beyond the edge
# of the picture. We see it in one number as well. If a Poisson were right, (x − mean)²/mean would be
# near 1 on average:

# %%
for name in ["Gapdh", "Pcsk1n", "Xist"]:
    mean = depth * gene[name].sum() / depth.sum()
    print(f"{name:7s}  mean {gene[name].mean():4.1f}   "
          f"(x − mean)²/mean: {((gene[name] - mean) ** 2 / mean).mean():4.1f}")  # fmt: skip

# %% [markdown]
# ## 3 · Cells differ: the negative binomial
#
# What is missing is biology. Two beta cells do not hold the same number of *Gapdh* molecules,
# however alike they are. So let the Poisson's rate vary from cell to cell, λ = μw, where w has
# mean 1. The convenient choice for w is a **Gamma** with shape θ, whose variance is 1/θ:
#
# $$w \sim \mathrm{Gamma}(\text{shape } \theta,\ \text{rate } \theta),\qquad
# x \sim \mathrm{Poisson}(\mu w)$$
#
# Average over w, and what comes out is the **negative binomial**, with variance μ + μ²/θ: the first
# part from counting, the second from the cells. θ is called the *inverse dispersion*. Small θ:
# wild. θ → ∞: every w is 1, and the Poisson is back. Before we use a formula, let us watch it
# happen.

# %%
torch.manual_seed(0)
μ, θ, n = torch.tensor(4.0), torch.tensor(0.8), 200_000
w = torch.distributions.Gamma(θ, θ).sample((n,))
drawn = torch.poisson(μ * w)
variance = μ + μ**2 / θ
print(f"mean {drawn.mean():.1f} (formula {μ:.1f}), variance {drawn.var():.0f} (formula {variance:.0f}), "
      f"zeros {(drawn == 0).double().mean():.2f}")  # fmt: skip

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2))
left.hist(μ * w, bins=np.linspace(0, 20, 41), density=True, color=SKY)
left.set(xlabel="rate λ = μw of a cell", ylabel="density", title="Cells have different rates …")
k = np.arange(21)
right.bar(
    k, [(drawn == i).double().mean() for i in k], color="0.8", label="drawn: Gamma, then Poisson"
)
right.plot(
    k,
    NegativeBinomial(μ, θ).log_prob(torch.as_tensor(k)).exp(),
    "o-",
    ms=4,
    color=BLUE,
    label="NB(μ = 4, θ = 0.8)",
)
right.set(
    xlabel="count", ylabel="share of cells", title="… so their counts are a negative binomial"
)
right.legend(frameon=False)
fig.tight_layout()

# %% [markdown]
# > **Spot the error.** A well-known assignment writes *w ~ Gamma(f, θ)* and says that θ is an
# > inverse dispersion and that averaging over w gives a negative binomial. Two readings of
# > Gamma(a, b) are in use. What is the mean of w in each, and which one is meant?
# >
# > <details><summary>Hint</summary>The second number is a <i>rate</i> for some (mean a/b), a
# > <i>scale</i> for others (mean ab). Which of f and θ should be the mean?</details>
# > <details><summary>Solution</summary>Neither. f is meant to be the mean and θ the shape, so in
# > the usual order it is Gamma(shape θ, rate θ/f), with mean f and variance f²/θ. Read literally
# > the mean would be f/θ or fθ, and a Gamma of shape f gives an NB of inverse dispersion f, a
# > different one in each cell.</details>
#
# Books print the result in letters of their own, r and p:
#
# $$p(x;r,p) = \frac{\Gamma(x+r)}{\Gamma(r)\,x!}\;p^{\,r}\,(1-p)^x,\qquad
# \text{mean} = \frac{r(1-p)}{p}$$
#
# If you toss a coin that succeeds with probability p until it has succeeded r times, x is the
# number of failures on the way. Here r = θ needn't be whole, and no coin is meant. In code:


# %%
def nb_of_r_and_p(x, r, p):
    """log p(x; r, p), letter by letter."""
    ways = torch.lgamma(x + r) - torch.lgamma(r) - torch.lgamma(x + 1)
    return ways + r * p.log() + x * (1 - p).log()


print(
    "p(0), p(1), … for r = 2, p = 0.25:",
    nb_of_r_and_p(torch.arange(5.0), torch.tensor(2.0), torch.tensor(0.25)).exp().numpy().round(3),
)

# %% [markdown]
# ### Exercise 05.1 · The negative binomial by mean and inverse dispersion
# ★★☆ · 6 minutes · 3 points
#
# A model wants to say *how much* and *how spread*, μ and θ, and not r and p. Write log p(x; μ, θ)
# for tensors of one shape. Find p from the two expressions for the mean.
#
# <details><summary>Hint</summary>
#
# r = θ, and μ = θ(1−p)/p; solve for p. For the logarithm of p think of `torch.log1p`: it
# knows log(1 + a) where a is so small that 1 + a is 1 to the computer.
# </details>


# %% nbgrader={"grade_id": "05-1", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def nb_log_prob(x, mean, theta):
    """log NB(x; mean, inverse dispersion theta), in nats; the shape of x."""
    ### BEGIN SOLUTION
    ways = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    log_p = -torch.log1p(mean / theta)  # p = θ/(θ+μ)
    log_1_minus_p = mean.log() - theta.log() + log_p
    return ways + theta * log_p + x * log_1_minus_p
    ### END SOLUTION


# %% nbgrader={"grade_id": "05-1-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("05.1", nb_log_prob)

# %% [markdown]
# The package has it as `NegativeBinomial(mean, inverse_dispersion)`. It agrees with the formula
# printed above, and from here on we use it:

# %%
p = θ / (θ + μ)
assert torch.allclose(NegativeBinomial(μ, θ).log_prob(drawn), nb_of_r_and_p(drawn, θ, p))
print("agrees on", len(drawn), "draws")

# %% [markdown]
# ## 4 · One distribution, six names
#
# Nothing has cost this field more hours than what follows. Each row is the **same**
# distribution:
#
# | where | arguments | in terms of μ and θ |
# |---|---|---|
# | here, scVI | mean, inverse dispersion | μ, θ |
# | books, scVAE: pʳ(1−p)ˣ | r, p | r = θ, p = θ/(θ+μ) |
# | `scipy.stats.nbinom` | n, p | the same: n = θ, p = θ/(θ+μ) |
# | `torch.distributions.NegativeBinomial` | total_count, probs | total_count = θ, probs = μ/(θ+μ), **one minus** the p above |
# | the same | total_count, logits | logits = log μ − log θ |
# | DESeq2, edgeR | mean, dispersion | μ, 1/θ |
# | R: `dnbinom` | size, mu | θ, μ |
#
# Mix up two rows, and nothing crashes. You get a valid distribution with another mean:

# %%
r, p = torch.tensor(2.0), torch.tensor(0.2)
right = torch.distributions.NegativeBinomial(r, probs=1 - p)
wrong = torch.distributions.NegativeBinomial(r, probs=p)
print(f"pʳ(1−p)ˣ with r = 2, p = 0.2 has mean {r * (1 - p) / p:.1f}")
print(f"torch with probs = 1 − p: {right.mean:.1f};  with probs = p: {wrong.mean:.1f}")

# %% [markdown]
# ### Exercise 05.2 · From (r, p) to everybody else's
# ★☆☆ · 4 minutes · 2 points
#
# **Spot the error.** A tutorial prints pʳ(1−p)ˣ on its slide; a reader's decoder puts out r and p,
# and hands them to torch as `NegativeBinomial(r, probs=p)`. Write the conversion that was
# needed: from r and p *of the slide* to three results, the mean, the inverse dispersion, and what
# torch calls `probs`.
#
# <details><summary>Hint</summary>
#
# Torch's `probs` is what is raised to the power x. The table above has the rest.
# </details>


# %% nbgrader={"grade_id": "05-2", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def convert(r, p):
    """(mean, inverse dispersion, torch's probs) of p^r (1−p)^x."""
    ### BEGIN SOLUTION
    return r * (1 - p) / p, r, 1 - p
    ### END SOLUTION


# %% nbgrader={"grade_id": "05-2-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("05.2", convert)

# %% [markdown]
# ## 5 · How many zeros should there be?
#
# At x = 0 the formula shrinks to almost nothing:
#
# $$\text{Poisson: } p(0) = e^{-\mu},\qquad
# \text{NB: } p(0) = \Big(\frac{\theta}{\theta+\mu}\Big)^{\theta} = e^{-\theta\log(1+\mu/\theta)}$$
#
# A mean of 0.1 gives nine zeros in ten with *either*. Most genes have a mean below that, and we
# need no other explanation for their zeros: few molecules, few caught. The question is only alive
# for genes with larger means.
#
# ### Exercise 05.3 · How many zeros should there be?
# ★☆☆ · 4 minutes · 2 points
#
# Cells differ in depth, so each has its own mean. Write the share of cells, one number, that
# an NB expects to have a zero.
#
# <details><summary>Hint</summary>
#
# First p(0) of each cell, by the formula above. Then the share.
# </details>


# %% nbgrader={"grade_id": "05-3", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def expected_zeros(mean, theta):
    """Expected share of zeros; `mean` has shape (n_cells,), `theta` is a number."""
    ### BEGIN SOLUTION
    return torch.exp(-theta * torch.log1p(mean / theta)).mean()
    ### END SOLUTION


# %% nbgrader={"grade_id": "05-3-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("05.3", expected_zeros)

# %% [markdown]
# Now the picture that the question asks for: every gene as a point, its mean against its share of
# zeros, and beside it what chance allows.

# %%
seen = counts.sum(0) >= 10  # genes with ten molecules or more in all beta cells
mean_of_gene, zeros = counts[:, seen].mean(0), (counts[:, seen] == 0).double().mean(0)
grid = torch.logspace(-1.6, 2, 100)
cells_by_grid = depth[:, None] * grid  # (n_cells, 100)

fig, ax = plt.subplots(figsize=(7.5, 4.2))
ax.plot(
    mean_of_gene, zeros, ".", ms=3, color="0.7", label=f"{int(seen.sum()):,} genes in beta cells"
)
ax.plot(grid, Poisson(cells_by_grid).log_prob_zero().exp().mean(0), color=BLUE, label="Poisson")
for value, dash in [(2.0, "--"), (0.5, ":")]:
    nb = NegativeBinomial(cells_by_grid, torch.tensor(value))
    ax.plot(grid, nb.log_prob_zero().exp().mean(0), dash, color=RED, label=f"NB, θ = {value:g}")
for name in ["Xist", "Meg3", "Neat1", "Gapdh", "Iapp"]:
    at = gene[name].mean(), (gene[name] == 0).double().mean()
    ax.plot(*at, "o", ms=5, color=BLACK)
    left = name == "Neat1"  # or it would stand on Xist
    ax.annotate(name, at, (-6 if left else 6, 4), textcoords="offset points", style="italic",
                ha="right" if left else "left")  # fmt: skip
ax.set(
    xscale="log",
    xlim=(0.025, 300),
    xlabel="mean count of the gene",
    ylabel="share of cells with a zero",
)
ax.set_title("Most genes have the zeros that counting gives")
ax.legend(frameon=False)
fig.tight_layout()

# %% [markdown]
# On the left the curves and the genes fall together: there, zeros say nothing about the
# distribution. To the right genes spread upwards from the Poisson curve, and a smaller θ takes
# most of them along. But is *Xist*, with a mean of six and no molecule in three cells of ten, an NB
# with a very small θ, or something else?
#
# ## 6 · Zero inflation
#
# The something else in the textbooks is **zero inflation**. With probability π a count is lost
# and we see 0 (a *dropout*); otherwise it comes from the base, a Poisson (ZIP) or an NB (ZINB):
#
# $$p(0) = \pi + (1-\pi)\,\mathrm{base}(0),\qquad p(x) = (1-\pi)\,\mathrm{base}(x)\ \text{ for } x>0$$
#
# Here is ZIP, letter by letter. (Papers write π or ρ for the probability; in others ρ is
# something else again, the share of a gene among a cell's molecules. We keep π.)


# %%
def zip_log_prob(x, mean, pi):
    base = poisson_log_prob(x, mean).exp()
    return torch.log(torch.where(x == 0, pi + (1 - pi) * base, (1 - pi) * base))


x, pi = torch.arange(8.0), torch.tensor(0.3)
ours = zip_log_prob(x, torch.tensor(4.0), pi)
assert torch.allclose(ours, ZeroInflated.from_probs(Poisson(torch.tensor(4.0)), pi).log_prob(x))
print("ZIP of mean 4 and dropout 0.3:", ours.exp().numpy().round(3))

# %% [markdown]
# > **Spot the error.** Lecture notes say of a figure with both that, "everything else being equal",
# > the ZINB has many more zeros *and* more large counts. With the same μ and θ, can a ZINB give any
# > large count more probability than the NB?
# >
# > <details><summary>Hint</summary>Look at the second formula above.</details>
# > <details><summary>Solution</summary>No: for every x > 0 it is the NB's probability times
# > 1 − π. Only zeros gain. The sentence is true if the <i>means</i> are equal, since then the ZINB
# > has a larger μ: its mean is (1−π)μ.</details>
#
# ### The failure, and its cure
#
# Written like this the function breaks. A network can put out any number g, so we let
# π = σ(g) = 1/(1+e⁻ᵍ): g is the *logit* of π. For a gene with a large mean, base(0) is tiny; and
# if the network has learned that dropout is rare, so is π. What then is the logarithm of their sum?

# %%
g, big = torch.tensor([-10.0, -50.0, -120.0]), torch.tensor(400.0)
for dtype in (torch.float64, torch.float32):
    π = torch.sigmoid(g.to(dtype))
    log_p = zip_log_prob(torch.zeros(3, dtype=dtype), big.to(dtype), π)
    print(f"{str(dtype)[6:]}, log p(0):             ", *(f"{v:9.2f}" for v in log_p))
with_epsilon = torch.log(torch.sigmoid(g) + torch.exp(-big) + 1e-8)
print("float64 with 1e-8 inside the log:", *(f"{v:9.2f}" for v in with_epsilon))

# %% [markdown]
# In float32, in which networks are trained, e⁻¹²⁰ is 0 and its logarithm −∞, with NaN for a
# gradient. The usual patch, + 1e-8 inside the logarithm, turns −∞ into −18 and makes the middle
# value, which was right, wrong by 32 nats. It is no better elsewhere: a well-known library took
# the logarithm of μ + 1e-8, and where μ *is* 1e-8 every molecule counts log 2 too much.
#
# The cure is never to leave the logarithms. We know log π = log σ(g) and log(1−π) = log σ(−g)
# without computing π, and `torch.logaddexp(a, b)` is log(eᵃ + eᵇ) without computing eᵃ or eᵇ.

# %%
log_p = torch.logaddexp(logsigmoid(g.float()), logsigmoid(-g.float()) - big.float())
print("float32, in logs, log p(0):      ", *(f"{v:9.2f}" for v in log_p))

# %% [markdown]
# ### Exercise 05.4 · Zero inflation, in logits
# ★★★ · 8 minutes · 3 points
#
# Write the log-probability of the ZINB from its logits, with no epsilon. The base's log-probability
# is `NegativeBinomial(mean, theta).log_prob(x)`, or your own. The check goes where
# probabilities have hundreds of zeros after the point.
#
# <details><summary>Hint</summary>
#
# Two cases, and `torch.where(x == 0, …, …)`. In each the answer needs only `logsigmoid(logits)`,
# `logsigmoid(-logits)`, the base, and sums.
# </details>


# %% nbgrader={"grade_id": "05-4", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def zinb_log_prob(x, mean, theta, logits):
    """log ZINB(x; mean, theta, π = σ(logits)), in nats; the shape of x."""
    ### BEGIN SOLUTION
    not_dropped = logsigmoid(-logits) + NegativeBinomial(mean, theta).log_prob(x)
    return torch.where(x == 0, torch.logaddexp(logsigmoid(logits), not_dropped), not_dropped)
    ### END SOLUTION


# %% nbgrader={"grade_id": "05-4-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("05.4", zinb_log_prob)

# %% [markdown]
# In the package zero inflation goes around any base: `ZeroInflated(Poisson(mean), logits)`,
# `ZeroInflated(NegativeBinomial(mean, theta), logits)`.
#
# ### Try to fit *Xist* by hand
#
# With a kernel running, move the sliders until the dots sit on the bars. The title has the zeros
# that were seen and the mean log-likelihood of a cell, which you want high. First leave the dropout
# at zero. (Without a kernel, the three tries below must do.)

# %% tags=["nbval-ignore-output"]
from ipywidgets import Dropdown, FloatLogSlider, FloatSlider


def fit_by_hand(name, mean, theta, dropout):
    base = NegativeBinomial(depth * mean, torch.tensor(theta))
    zinb = ZeroInflated.from_probs(base, torch.tensor(dropout))
    fig, ax = plt.subplots(figsize=(8, 3.6))
    draw_shares(ax, name, {"your ZINB" if dropout else "your NB": zinb}, largest=40)
    observed = (gene[name] == 0).double().mean()
    ax.set_title(f"zeros observed: {observed:.0%};  log-likelihood of a cell: "
                 f"{zinb.log_prob(gene[name]).mean():.3f} nats")  # fmt: skip
    return fig


def slider(kind, value, low, high, step, text):
    return kind(
        value=value, min=low, max=high, step=step, description=text, continuous_update=False
    )


plotting.interactive(
    fit_by_hand,
    alt=(
        "Counts of one gene as grey bars, and over them the distribution with the chosen "
        "mean, inverse dispersion and dropout."
    ),
    name=Dropdown(options=["Xist", "Meg3", "Gapdh", "Pcsk1n"], description="gene"),
    mean=slider(FloatLogSlider, 6.0, -1, 2, 0.02, "mean μ"),
    theta=slider(FloatLogSlider, 2.0, -1, 2, 0.02, "inverse disp. θ"),
    dropout=slider(FloatSlider, 0.0, 0, 0.9, 0.01, "dropout π"),
)

# %%
tries = [(6.0, 2.0, 0.0), (6.0, 0.5, 0.0), (8.2, 2.0, 0.27)]
xist = {
    f"μ = {m:g}, θ = {t:g}, π = {d:g}": ZeroInflated.from_probs(
        NegativeBinomial(depth * m, torch.tensor(t)), torch.tensor(d)
    )
    for m, t, d in tries
}
fig, ax = plt.subplots(figsize=(8, 3.6))
draw_shares(ax, "Xist", xist)
ax.set_title("Xist by hand, three tries")
fig.tight_layout()
for label, d in xist.items():
    print(f"{label}: {d.log_prob(gene['Xist']).mean():.2f} nats a cell")

# %% [markdown]
# The first NB has a third of the zeros. The second has all of them, and in return too few cells
# between 5 and 15. The third comes nearest to both.
#
# ## 7 · Does a real gene need it?
#
# Now let the computer turn the sliders, for many genes at once. Each gene has its own μ, θ and g,
# and Adam climbs the likelihood. Nothing joins the genes: their sum is as high as it can be when
# each of them is.


# %%
def distribution(name, depth, log_mean, log_theta, logits):
    """Of shape (n_cells, n_genes); each parameter has shape (n_genes,)."""
    mean = depth[:, None] * log_mean.exp()
    base = NegativeBinomial(mean, log_theta.exp()) if "nb" in name else Poisson(mean)
    return ZeroInflated(base, logits) if name.startswith("z") else base


def fit(name, x, depth, steps=120):
    """Maximum likelihood, gene by gene: log-likelihoods (n_genes,) and parameters."""
    log_mean = (x.sum(0) / depth.sum()).log()
    parameters = [log_mean, torch.zeros_like(log_mean), torch.full_like(log_mean, -4.0)]
    parameters = [p.requires_grad_() for p in parameters]
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        log_likelihood = distribution(name, depth, *parameters).log_prob(x).sum(0)
        (-log_likelihood.sum()).backward()
        optimizer.step()
        schedule.step()
    return log_likelihood.detach(), [p.detach() for p in parameters]


# %% tags=["not-in-grading"]
models = ["poisson", "zip", "nb", "zinb"]
frequent = counts.mean(0) >= 1  # below, the four can hardly be told apart
names, x = beta.var_names.to_numpy()[frequent.numpy()], counts[:, frequent]
fits = {name: fit(name, x, depth) for name in models}
log_likelihood = torch.stack([fits[name][0] for name in models], dim=1)  # (n_genes, 4)
zeros = [distribution(n, depth, *fits[n][1]).log_prob_zero().exp().mean() for n in models]
print(f"{len(names)} genes. Zeros: {(x == 0).double().mean():.1%} observed,",
      ", ".join(f"{z:.1%} {n}" for n, z in zip(models, zeros, strict=True)))  # fmt: skip

# %% [markdown]
# A Poisson misses a third of the zeros. The plain NB, which was told nothing about zeros, misses
# one in thirty. So much for the average gene.
#
# For single genes we need a rule, as a ZINB never fits worse than an NB: it can set π = 0. A
# further parameter should pay for itself. The **Bayesian information criterion** charges
# ½ log n nats for each, with n the number of cells:
#
# $$\mathrm{BIC} = k \log n - 2 \log L$$
#
# for k parameters and the largest likelihood L; smaller is better.

# %%
gain = log_likelihood[:, 3] - log_likelihood[:, 2]  # what dropout brings to an NB, in nats
price = 0.5 * np.log(len(depth))
fig, ax = plt.subplots(figsize=(7.5, 3.8))
ax.plot(x.mean(0), gain, ".", color="0.5")
ax.axhline(price, color=RED, ls="--", lw=1)
ax.annotate("½ log n: what a parameter costs", (900, price + 1), color=RED, ha="right")
for name in ["Xist", "Meg3", "Neat1"]:
    at = x.mean(0)[names == name].item(), gain[names == name].item()
    ax.annotate(name, at, (5, -3), textcoords="offset points", style="italic")
ax.set(xscale="log", xlabel="mean count of the gene", ylabel="gain of ZINB over NB (nats)")
ax.set_title("Few genes pay for a dropout")
fig.tight_layout()
print(
    f"{int((gain > price).sum())} of {len(names)} genes gain more than {price:.1f} nats; Xist gains {gain[names == 'Xist'].item():.0f}"
)

# %% [markdown]
# ### Exercise 05.5 · A likelihood for each gene
# ★★☆ · 6 minutes · 3 points
#
# Choose among all four. Given the log-likelihoods of the fitted models, one row a gene and one
# column a model, write which column has the smallest BIC for each gene.
#
# <details><summary>Hint</summary>
#
# The BIC is a table of the same shape; `n_parameters` has one entry for each column.
# </details>


# %% nbgrader={"grade_id": "05-5", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def choose(log_likelihood, n_parameters, n_cells):
    """Index of the best model of each gene, shape (n_genes,).

    log_likelihood (n_genes, n_models), n_parameters (n_models,), n_cells a number.
    """
    ### BEGIN SOLUTION
    bic = n_parameters * np.log(n_cells) - 2 * log_likelihood
    return bic.argmin(1)
    ### END SOLUTION


# %% nbgrader={"grade_id": "05-5-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("05.5", choose)

# %%
choice = choose(log_likelihood, torch.tensor([1.0, 2.0, 2.0, 3.0]), len(depth))
for i, name in enumerate(models):
    print(
        f"{name:8s}{int((choice == i).sum()):4d} genes, such as",
        ", ".join(names[(choice == i).numpy()][:5]),
    )

# %% [markdown]
# ### What *Xist* was trying to say
#
# One gene in twelve does pay for zero inflation, *Xist* more than any. Dropout says: in three
# cells of ten, *Xist* was lost, at random, gene by gene. If that is so, the cells that lost it should be
# no different in *Meg3* or *Gapdh*. Let us ask them.

# %%
lost = gene["Xist"] == 0
for name in ["Meg3", "Neat1", "Igf1r", "Gapdh", "Iapp"]:
    y = gene[name] / depth
    print(f"{name:6s} zeros: {(gene[name][lost] == 0).double().mean():4.0%} where Xist is lost, "
          f"{(gene[name][~lost] == 0).double().mean():4.0%} elsewhere;  mean at average depth: "
          f"{y[lost].mean():6.1f} and {y[~lost].mean():6.1f}")  # fmt: skip

# %% [markdown]
# They *are* different. *Meg3* and *Neat1* are gone from the same cells, though their genes sit on
# other chromosomes. What they share with *Xist* is a place: these RNAs stay in the **nucleus**.
# Perhaps these droplets caught a cell without its nucleus. Perhaps the cells were in another state:
# *Igf1r*, the gene of a receptor, makes ordinary messenger RNA, and it is rarer there too, while
# *Gapdh* and *Iapp* nearly double. Counts alone can't say which. But they do say that most zeros
# of *Xist* are not a loss at random, gene by gene. There seem to be two groups of cells, and if we
# tell them apart by the *other* two genes, most
# of the need for dropout is gone:

# %% tags=["not-in-grading"]
nuclear = (gene["Meg3"] + gene["Neat1"]) / counts.sum(1)  # their share; Xist has no say in it
with_nucleus = nuclear > 5e-4  # 64 cells have none at all
xist = gene["Xist"][:, None]
fig, axes = plt.subplots(1, 2, figsize=(11, 3.6))
for ax, group, title in [
    (axes[0], torch.ones_like(lost), "beta cells, all of them"),
    (axes[1], with_nucleus, "cells with Meg3 or Neat1"),
]:
    fitted = {name.upper(): fit(name, xist[group], depth[group]) for name in ["nb", "zinb"]}
    gained = (fitted["ZINB"][0] - fitted["NB"][0]).item()
    shown = {
        n: distribution(n.lower(), depth[group], *p).expand((int(group.sum()), 1))
        for n, (_, p) in fitted.items()
    }
    k = np.arange(31)
    ax.bar(k, [(xist[group] == i).double().mean() for i in k], color="0.8", label="Xist")
    for (label, d), colour in zip(shown.items(), (BLUE, ORANGE), strict=True):
        share = torch.stack([d.log_prob(torch.tensor(float(i))).exp().mean() for i in k])
        ax.plot(k, share, "o-", ms=3, color=colour, label=f"{label}: {share[0]:.0%} zeros")
    ax.set(xlabel="counts of Xist", ylabel="share of cells", title=f"{int(group.sum())} {title}")
    ax.legend(frameon=False)
    print(f"{int(group.sum())} {title}: dropout brings {gained:.0f} nats")
fig.tight_layout()

# %% [markdown]
# The gain falls from 47 nats to 9. Fewer cells alone would leave 36 (47 · 265/343). It does not fall
# to nothing, and 9 is still more than a parameter costs, since a threshold is a crude way to sort
# cells, but four fifths of it are gone. **A zero-inflated distribution can be the symptom of groups that the model
# has no word for.** A VAE has a word: z. It lets μ differ between cells, so that less is left for π
# to explain. Remember it in lesson 06, where the ZINB's bound turns out to be little better than
# the NB's.
#
# So, are nine zeros in ten too many? No. Counting explains nearly all of them, and most of the
# rest is biology. V. Svensson came to the same conclusion from droplets filled with the *same* RNA.
#
# ## 8 · In the machine
#
# **Zeros are cheap.** Look again at log p(0) = −θ log(1 + μ/θ): no Γ at all. The textbook formula
# spends two log-gammas on every entry only to see them cancel at zero, and their derivatives are
# slower still. The package computes them where x > 0 and nowhere else, with the same result (and in
# about a third of the time, if you run the second cell):

# %%
everything = counts.float()
parameters = (
    (depth[:, None] * everything.mean(0).clamp(min=1e-3)).float(),
    torch.full((counts.shape[1],), 2.0).float(),
)
nb = NegativeBinomial(*parameters)
dense, sparse = nb.log_prob_textbook(everything), nb.log_prob(everything)
print(f"log-gammas needed at {(everything > 0).double().mean():.0%} of the entries; "
      f"both agree: {torch.allclose(dense, sparse, atol=1e-2, rtol=1e-4)}")  # fmt: skip

# %% tags=["not-in-grading", "nbval-ignore-output"]
import time


def milliseconds(log_prob, repeats=5):
    """Of one training step's share: the log-probabilities and their gradient."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        log_prob(everything).sum().backward()
        times.append(1000 * (time.process_time() - start))
    return np.median(times)


nb = NegativeBinomial(*(p.requires_grad_() for p in parameters))
print(f"textbook {milliseconds(nb.log_prob_textbook):.0f} ms, "
      f"zeros apart {milliseconds(nb.log_prob):.0f} ms")  # fmt: skip

# %% [markdown]
# **Large θ is dangerous.** For a gene that scatters like a Poisson the best θ is infinite, and
# training pushes θ up and up. Now log Γ(x+θ) and log Γ(θ) are huge and almost equal. At θ = 10⁶ both
# are near 1.3 · 10⁷, float32 keeps seven digits, and their difference is off by as much as a
# whole unit. The cure is to subtract on paper what would cancel in the computer: the
# package takes Stirling's series for both log-gammas and writes down the difference.

# %%
θs = torch.logspace(0, 7, 200)
x, mean = torch.tensor(3.0), torch.tensor(2.0)
truth = NegativeBinomial(mean, θs).log_prob(x)  # in float64
single = NegativeBinomial(mean.float(), θs.float())
error_textbook = (single.log_prob_textbook(x.float()) - truth).abs()
error_package = (single.log_prob(x.float()) - truth).abs()
print(f"worst error, float32: textbook more than 0.1 nat: {bool(error_textbook.max() > 0.1)}; "
      f"package less than 0.0001: {bool(error_package.max() < 1e-4)}")  # fmt: skip

fig, ax = plt.subplots(figsize=(7, 3.2))
ax.plot(θs, error_textbook.clamp(min=1e-9), ".", ms=4, color=RED, label="log Γ(x+θ) − log Γ(θ)")
ax.plot(θs, error_package.clamp(min=1e-9), ".", ms=4, color=BLUE, label="the difference on paper")
ax.set(xscale="log", yscale="log", xlabel="inverse dispersion θ", ylabel="error (nats)")
ax.set_title("log NB(3; μ = 2, θ) in float32: the textbook loses it all")
ax.legend(frameon=False)
fig.tight_layout()

# %% [markdown]
# ## 9 · What was the rate?
#
# A count is a noisy reading of a rate λ = μu, with u the cell's own factor (the w of §3). Having
# seen x, what should we believe of λ? This is called *denoising*. Gamma and Poisson fit together so
# well that the answer is short. Multiply the densities, and what is left is a Gamma in u again,
# of shape x + θ and rate μ + θ:
#
# $$\mathbb E[u\,|\,x] = \frac{x+\theta}{\mu+\theta}$$
#
# With x = 0 it is below 1, with x > μ above. For a zero-inflated model, let a dropped count have
# the rate 0.
#
# ### Exercise 05.6 · Spot the error: denoising
# ★★★ · 8 minutes · 3 points
#
# A published notebook compares models by how well they predict a second draw from the same λ. For
# its zero-inflated model the denoised rate is
#
# $$\hat\lambda = (1-\pi)\,\frac{x+\theta}{\mu+\theta}$$
#
# and NB and ZINB come out far *behind* the Poisson, which the notebook puts down to shrinkage.
# Shrinkage is there, as it should be, and not to blame: the formula has two errors (one of them
# hurts the NB too). Write the posterior mean E[λ|x] of the ZINB.
#
# <details><summary>Hint</summary>
#
# (1) Units: is this u or λ? (2) A count above zero was not dropped. For a zero, Bayes: how likely
# is it that a zero was *not* dropped, when it would have come up with probability (1−π)·NB(0), and
# zeros have the probability π + (1−π)·NB(0) in all? In logs this is a sigmoid.
# </details>


# %% nbgrader={"grade_id": "05-6", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def denoise(x, mean, theta, logits):
    """E[λ|x] under the ZINB with π = σ(logits), in counts; logits = −∞ is the NB."""
    ### BEGIN SOLUTION
    log_zero = NegativeBinomial(mean, theta).log_prob_zero()
    not_dropped = torch.where(x > 0, 1.0, torch.sigmoid(log_zero - logits))
    return not_dropped * mean * (x + theta) / (mean + theta)
    ### END SOLUTION


# %% nbgrader={"grade_id": "05-6-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("05.6", denoise)

# %% [markdown]
# How much does it matter? We draw λ, and from it two counts, as the notebook does. Predict the
# second from the first:

# %%
torch.manual_seed(1)
μ, θ = torch.tensor(8.0), torch.tensor(0.5)
λ = μ * torch.distributions.Gamma(θ, θ).sample((100_000,))
first, second = torch.poisson(λ), torch.poisson(λ)
shrunk = (first + θ) / (μ + θ)
for name, rate in {"the mean μ, for all": μ.expand_as(λ), "E[u|x], as published": shrunk,
                   "E[λ|x] = μ E[u|x]": μ * shrunk, "the true λ": λ}.items():  # fmt: skip
    print(f"{name:21s} {Poisson(rate.clamp(min=1e-6)).log_prob(second).mean():6.1f} nats a count")

# %% [markdown]
# One missing μ, and the best model is beaten by a constant. In lesson 09 we compute that whole
# published table again.
#
# ## 10 · When the data are not counts
#
# Many pipelines divide each cell by its depth, take logarithms, and scale each gene into [0, 1].
# A popular loss for such values is **binary cross-entropy** (BCE), made for coin tosses:
# −x log λ − (1−x) log(1−λ). For x = 0.3 it runs without complaint. But is it minus the logarithm of
# a density?


# %%
def bce(x, lam):
    return -x * lam.log() - (1 - x) * (1 - lam).log()


t = (torch.arange(20_000) + 0.5) / 20_000  # midpoints
for lam in torch.tensor([0.02, 0.2, 0.5]):
    print(f"λ = {lam:.2f}: exp(−BCE) integrates to {torch.exp(-bce(t, lam)).mean():.3f}")

# %% [markdown]
# It never integrates to more than a half. Divide by the integral, and you have the **continuous
# Bernoulli**, p(x; λ) = C(λ) λˣ(1−λ)¹⁻ˣ, with
#
# $$C(\lambda) = \frac{2\,\mathrm{artanh}(1-2\lambda)}{1-2\lambda}\ \ge\ 2$$
#
# Is the constant a pedantry? It depends on λ, so it changes the gradient, and with it what λ means:

# %%
lam = torch.linspace(0.001, 0.999, 400)
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
for value, colour in [(0.05, BLUE), (0.3, ORANGE), (0.5, GREEN), (0.9, PINK)]:
    cb = ContinuousBernoulli.from_probs(torch.tensor(value))
    left.plot(t[::100], cb.log_prob(t[::100]).exp(), color=colour, label=f"λ = {value:g}")
left.set(xlabel="x", ylabel="density (per unit of x)", title="Continuous Bernoulli")
left.legend(frameon=False)
right.plot(lam, ContinuousBernoulli.from_probs(lam).mean, color=BLUE, label="continuous Bernoulli")
right.plot([0, 1], [0, 1], "--", color=RED, label="mean = λ, as users of BCE have it")
right.set(xlabel="λ", ylabel="mean of x", title="λ is not the mean")
right.legend(frameon=False)
fig.tight_layout()

# %% [markdown]
# Take the values of one gene, *Sst*, in beta cells, and the best λ by each:

# %%
scaled = adata.copy()
vaelab.log_normalize(scaled)
at = adata.var_names.get_loc("Sst")
x = torch.as_tensor(
    np.asarray(scaled.layers["unit_interval"][:, [at]].todense()).ravel()[
        adata.obs["cell_type"] == "beta"
    ],
    dtype=torch.float64,
)
candidates = torch.linspace(0.001, 0.999, 999)
by_bce = candidates[bce(x[:, None], candidates).mean(0).argmin()]
by_cb = candidates[ContinuousBernoulli.from_probs(candidates).log_prob(x[:, None]).mean(0).argmax()]
print(f"mean of the values: {x.mean():.2f}")
for name, best in [("BCE", by_bce), ("continuous Bernoulli", by_cb)]:
    cb = ContinuousBernoulli.from_probs(best)
    print(
        f"{name:21s} λ = {best:.2f}, whose density has mean {cb.mean:.2f}: {cb.log_prob(x).mean():6.3f} nats a cell"
    )

# %% [markdown]
# BCE finds the λ that *equals* the mean; as the parameter of a density it is a poor one. A decoder
# trained with BCE and then sampled from gives values too near to a half.
#
# ### Exercise 05.7 · Spot the error: the constant that is undefined at ½
# ★★☆ · 7 minutes · 2 points
#
# A tutorial prints C(λ) as above, for λ ∈ [0, 1]. At λ = ½, where every untrained sigmoid starts,
# it is 0/0, and at 0 and 1 there is no density. Write the log-density for λ in the open interval,
# right at ½ too. **The check looks at two results: the value, and its slope in λ.** With
# u = 1 − 2λ, near u = 0
#
# $$\log C = \log 2 + \frac{u^2}{3} + \frac{13\,u^4}{90} + \dots$$
#
# <details><summary>Hint</summary>
#
# `torch.where(near, series, closed)`; but autograd goes through both branches, and NaN times 0 is
# NaN. Let the closed form see some other number wherever `near` is true. With the two terms above,
# "near" may reach as far as |u| < 0.02.
# </details>


# %% nbgrader={"grade_id": "05-7", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def cb_log_prob(x, lam):
    """log C(λ) + x log λ + (1−x) log(1−λ), per unit of x; the shape of x."""
    ### BEGIN SOLUTION
    u = 1 - 2 * lam
    near = u.abs() < 0.02
    away = torch.where(near, 0.5, u)
    series = np.log(2) + u**2 / 3 + 13 * u**4 / 90
    log_c = torch.where(near, series, torch.log(2 * torch.atanh(away) / away))
    return log_c + x * torch.log(lam) + (1 - x) * torch.log1p(-lam)
    ### END SOLUTION


# %% nbgrader={"grade_id": "05-7-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("05.7", cb_log_prob)

# %% [markdown]
# The package takes the logit η of λ, as networks put it out. Then the density is
# x·η − log((e^η − 1)/η), with one series near η = 0 and nothing to clamp at the ends:

# %%
η = torch.tensor([-40.0, -3.0, 0.0, 1e-9, 5.0], requires_grad=True)
value = ContinuousBernoulli(η).log_prob(torch.tensor(0.25))
value.sum().backward()
print("log-density", value.detach().numpy().round(3) + 0.0)
print("slope in η ", η.grad.numpy().round(3))

# %% [markdown]
# ## What was not used, and why
#
# *A test for zero inflation with a p-value*: π = 0 lies on the edge of what π can be, where the
# usual χ² does not hold, and with a thousand genes one wants a ranking and not a verdict. *Imputing
# zeros*: we saw that most are what counting gives; filling them in invents data. *The multinomial*:
# given a cell's total, independent Poissons become a multinomial (Townes et al. 2019), and
# giving each cell the mean depth · μ, as we did, is nearly that. *Other widths*: Poisson–log-normal and others
# fit about as well; the NB is the one whose integral can be done.
#
# ## What to take along
#
# - **Poisson** for counting, **NB** for cells that differ: variance μ + μ²/θ, zeros
#   (θ/(θ+μ))^θ. Start with the NB.
# - One NB has six names. Before you pass parameters on, compute the mean.
# - **Zero inflation** multiplies every positive count by 1 − π. Ask a gene whether it pays for it;
#   if it does, look for groups of cells before you believe in dropout.
# - Logits and logs, no epsilon; at zero no log-gamma; at large θ a difference on paper.
# - **E[λ|x] = μ (x+θ)/(μ+θ)**; a positive count was never dropped.
# - On [0, 1]: continuous Bernoulli, not BCE; λ is not its mean; C(½) = 2.
#
# ## Read on
#
# | about | read |
# |---|---|
# | the five likelihoods, as a tutorial has them | H. Gangloff (2023), the slides headed "likelihood": mind exercises 05.2 and 05.7 |
# | Gamma, Poisson, dropout as steps of one model | R. Lopez (2018), the SCANVI assignment, its generative model of w, y, h, x; R. Lopez et al., *scVI*, Nature Methods 15 (2018) 1053–1058, Methods |
# | NB against ZINB in a picture | MCB128 (2026), the section on scVI, its figure 15: mind "everything else being equal" |
# | random effects u, denoising | A. Sarkar (2019), *Variational autoencoders for scRNA-seq data*, first display of the introduction; A. Sarkar and M. Stephens, Nature Genetics 53 (2021) 770–777; H. Robbins (1956), whose formula is the oracle of 05.6 |
# | are there too many zeros? | V. Svensson, *Droplet scRNA-seq is not zero-inflated*, Nature Biotechnology 38 (2020) 147–150 |
# | given the total: multinomial | F. W. Townes et al., Genome Biology 20 (2019) 295 |
# | count likelihoods in VAEs | C. Grønbech et al., *scVAE*, Bioinformatics 36 (2020) 4415–4422 |
# | the continuous Bernoulli | G. Loaiza-Ganem and J. Cunningham (2019), §3 for the distribution, §4 for what BCE does |
# | the data | M. Baron et al., Cell Systems 3 (2016) 346–360 |
#
# Next: lesson 06 puts these likelihoods at the end of a network.
