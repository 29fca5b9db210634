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
# Nine in ten entries of a single-cell table are zero. Many methods assume that these are too many:
# that the experiment loses molecules in a way that ordinary counting can't explain. **Are there too
# many zeros? And which distribution should a model give to a count?** We answer the first question
# with a number. Then we follow one gene, *Xist*, whose zeros really are too many, and find out why.
#
# **Objectives.** After this lesson you can
#
# - write and test the Poisson, the negative binomial (NB), their zero-inflated forms (ZIP, ZINB),
#   and the continuous Bernoulli (CB);
# - convert any common parametrisation of the NB into any other;
# - say how many zeros a distribution expects, and compare that with a real table;
# - choose a distribution for a gene by numbers, and say what the choice does not tell;
# - write these functions so that they hold where probabilities are tiny and parameters huge.
#
# **You need** [PyTorch tensors](https://docs.pytorch.org/tutorials/beginner/basics/tensorqs_tutorial.html)
# with their [broadcasting](https://docs.pytorch.org/docs/stable/notes/broadcasting.html), and the idea
# of a [log-likelihood](https://en.wikipedia.org/wiki/Likelihood_function). For section 7 and the last
# exercise you also need to know how PyTorch computes
# [gradients](https://docs.pytorch.org/tutorials/beginner/basics/autogradqs_tutorial.html) (*autograd*)
# and follows them with an
# [optimizer](https://docs.pytorch.org/tutorials/beginner/basics/optimization_tutorial.html) such as
# Adam. You need no biology.
# **Time:** about 100 minutes to a marked stop, and 55 more after it. The six exercises (16 points) take
# about 40 of these 155 minutes.
# **Data:** 1.5 MB, Baron et al. (2016), mouse 1.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from ipywidgets import Dropdown, FloatLogSlider, FloatSlider
from torch.nn.functional import logsigmoid

import vaelab
from vaelab import plotting
from vaelab.distributions import ContinuousBernoulli, NegativeBinomial, Poisson, ZeroInflated
from vaelab.teaching import evidence

torch.set_num_threads(1)  # a machine with many cores sums in another order: other last digits
torch.set_default_dtype(torch.float64)
plt.rcParams.update({"figure.constrained_layout.use": True, "legend.frameon": False})
COLOUR = {"Poisson": plotting.BLUE, "NB": plotting.ORANGE, "ZINB": plotting.SKY}
MARK = {"Poisson": "o", "NB": "s", "ZINB": "^"}

# %% [markdown]
# Here are 343 cells of one kind, the **beta cells** of a mouse, which make insulin. For each we know
# how many RNA molecules of the gene *Xist* were caught. The table is an
# [AnnData](https://anndata.readthedocs.io): `adata.X` holds the counts, with a row per cell and a column
# per gene, and `adata.obs` holds what is known of each cell.

# %%
adata = vaelab.datasets.pancreas(mouse=1)
beta = adata[adata.obs["cell_type"] == "beta"]
counts = torch.as_tensor(beta.X.toarray(), dtype=torch.float64)  # (n_cells, n_genes)
gene = {name: counts[:, i] for i, name in enumerate(beta.var_names)}


def draw(ax, name, distributions, cells=None, largest=30):
    """The counts of a gene as bars and what distributions expect as lines. The last is the tail."""
    k = torch.arange(largest + 1.0)[:, None]
    seen = gene[name] if cells is None else gene[name][cells]
    ax.bar(k[:, 0], (seen.clamp(max=largest) == k).double().mean(1), color="0.8")
    for label, expected in distributions.items():
        share = expected.log_prob(k).exp().mean(1)  # (largest + 1,): the average over cells
        share[-1] = 1 - share[:-1].sum()
        ax.plot(k[:, 0], share, MARK[label] + "-", ms=3, color=COLOUR[label],
                label=f"{label}: {share[0]:.0%} zeros")  # fmt: skip
    ax.set(xlabel=f"counts of {name} (last: {largest} and more)", ylabel="share of cells")
    if distributions:
        ax.legend()


fig, ax = plt.subplots(figsize=(7, 3))
draw(ax, "Xist", {})
ax.set_title(f"Xist: none in {(gene['Xist'] == 0).sum()} of {len(counts)} beta cells, "
             f"{gene['Xist'][gene['Xist'] > 0].mean():.0f} on average in the rest")  # fmt: skip
plotting.show(
    alt="Histogram of Xist counts in beta cells: one tall bar at zero, then a low, wide hill."
)

# %% [markdown]
# Where is the *Xist* of the 98 cells? Before we accuse anybody, we must know what chance does.
#
# ## 1 · What is counted
#
# Each cell sat in its own droplet. Each RNA molecule that was caught there got a random tag, a
# *unique molecular identifier* (UMI), before it was copied a thousand times. A count is a number of
# different tags: **molecules caught, not copies read**. And only a small part of a cell's molecules is
# caught.
#
# **Predict first.** A cell holds three molecules of a gene. The experiment catches each with
# probability 0.1. How often is the count zero?
#
# <details><summary>Answer</summary>
#
# $0.9^3 = 0.73$. In three cells of four we see a zero, although the gene is in use and the experiment
# treated it like any other.
# </details>
#
# One cause of difference between cells is known: some droplets caught six times as many molecules as
# others. The **depth** of a cell is its total count divided by the average total. If a gene has mean
# $\mu$ in a cell of average depth, we expect depth · $\mu$ in the others.

# %%
total = counts.sum(1)
depth = total / total.mean()  # (n_cells,)
low, high = depth.quantile(torch.tensor([0.05, 0.95]))
print(f"{adata.n_obs} cells × {adata.n_vars:,} genes: "
      f"{1 - adata.X.nnz / np.prod(adata.shape):.1%} of the entries are zero")  # fmt: skip
print(f"{len(depth)} beta cells: {(counts == 0).double().mean():.1%} are zero")
print(f"nine in ten beta cells have a depth between {low:.1f} and {high:.1f}")

# %% [markdown]
# Cells of different kinds use different genes, and that alone makes zeros. So we stay with one kind.
#
# ## 2 · The simplest model, and how it fails
#
# A cell holds very many molecules, and each is caught with a small probability, independently of the
# rest. Then the number caught has a **Poisson** distribution, with one parameter, its mean:
#
# $$p(x;\mu) = \frac{\mu^x e^{-\mu}}{x!},\qquad \text{variance} = \mu$$


# %%
def poisson_log_prob(x, mean):
    return x * mean.log() - mean - torch.lgamma(x + 1)  # Γ(x+1) = x!


six, two_and_a_half = torch.arange(6.0), torch.tensor(2.5)
ours = poisson_log_prob(six, two_and_a_half)
assert torch.allclose(ours, Poisson(two_and_a_half).log_prob(six))
print("probabilities of 0, 1, … at mean 2.5:", ours.exp().numpy().round(3))

# %% [markdown]
# Take *Gapdh*, a gene of the sugar metabolism that every cell uses. On the left we keep cells of nearly
# average depth, so that all have nearly the same mean. On the right is every gene with 20 molecules
# or more. The average of $(x-\text{mean})^2/\text{mean}$ over cells is near 1 if a Poisson is right. Blue
# points are counts that we draw from that Poisson, with the same means.

# %%
mean_of_gene = counts.sum(0) / depth.sum()  # (n_genes,), the maximum-likelihood estimate
often = counts.sum(0) >= 20
means = depth[:, None] * mean_of_gene[often]
torch.manual_seed(0)


def spread(x):
    return ((x - means) ** 2 / means).mean(0)  # (n_genes,)


real, drawn = spread(counts[:, often]), spread(torch.poisson(means))
average_depth = (depth > 0.8) & (depth < 1.25)
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.5))
gapdh = Poisson(depth[average_depth] * mean_of_gene[beta.var_names.get_loc("Gapdh")])
draw(left, "Gapdh", {"Poisson": gapdh}, average_depth)
left.set_title(f"Gapdh in {average_depth.sum()} cells of average depth")
right.plot(mean_of_gene[often], real, ".", ms=3, color="0.6", label="real genes")
right.plot(mean_of_gene[often], drawn, ".", ms=3, color=COLOUR["Poisson"], label="drawn: Poisson")
right.set(xscale="log", yscale="log", xlabel="mean count of the gene", ylabel="(x − mean)² / mean")
right.set_title("A Poisson is too narrow")
right.legend(markerscale=3)
plotting.show(
    alt="Left: bars of Gapdh counts are much wider than the Poisson curve. Right: variance over mean "
    "of genes; Poisson draws lie around 1, real genes above, up to 100 for frequent genes."
)
frequent = mean_of_gene[often] >= 1
print(f"genes with a mean of 1 or more: {(real[frequent] > 1.5).double().mean():.0%} are above 1.5; "
      f"of the drawn ones {(drawn[frequent] > 1.5).double().mean():.0%}")  # fmt: skip

# %% [markdown]
# The bars have cells where the Poisson has almost none: at 0 to 2 and above 17. Nearly every frequent gene
# varies more than a Poisson. This is called **overdispersion**.
#
# ## 3 · Cells differ: the negative binomial
#
# Two beta cells do not hold the same number of *Gapdh* molecules, even if they are very similar. So let
# the rate of the Poisson vary from cell to cell: $\lambda = \mu w$, where $w$ has mean 1. The convenient choice
# for $w$ is a **Gamma** with shape $\theta$, whose variance is $1/\theta$:
#
# $$w \sim \mathrm{Gamma}(\text{shape } \theta,\ \text{rate } \theta),\qquad x \sim \mathrm{Poisson}(\mu w)$$
#
# Average over $w$, and the result is the **negative binomial**, with variance $\mu + \mu^2/\theta$. The first
# part comes from counting, the second from the cells. $\theta$ is called the *inverse dispersion*. A small
# $\theta$ means that cells differ a lot. As $\theta\to\infty$ every $w$ is 1, and the Poisson is back.
#
# **Predict first.** Keep $\mu = 4$. Does the share of zeros rise or fall as $\theta$ gets smaller? Then move
# the sliders.
#
# <details><summary>Answer</summary>
#
# It rises, from 2 % (Poisson) to 11 % at $\theta = 2$ and 33 % at $\theta = 0.5$. If rates vary, some are near
# zero. So **zeros alone are not a sign of a dropout**.
# </details>


# %% tags=["nbval-ignore-output"]
def gamma_poisson(mean, theta):
    """Draw rates from a Gamma, counts from Poissons with these rates, and compare with the NB."""
    torch.manual_seed(0)
    rate = mean * torch.distributions.Gamma(theta, theta).sample((20_000,))
    x, k = torch.poisson(rate), torch.arange(21.0)
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.2))
    left.hist(rate, bins=np.linspace(0, 20, 41), density=True, color="0.6")
    left.set(xlabel="rate λ of a cell", ylabel="density", ylim=(0, 0.8), title="Cells have rates …")
    right.bar(k, (x == k[:, None]).double().mean(1), color="0.8", label="counts, drawn")
    nb = NegativeBinomial(torch.tensor(mean), torch.tensor(theta)).log_prob(k).exp()
    right.plot(k, nb, "s-", ms=4, color=COLOUR["NB"], label=f"NB: {nb[0]:.0%} zeros")
    right.set(xlabel="count", ylabel="share of cells", ylim=(0, 0.6))
    right.set_title("… and their counts are a negative binomial")
    right.legend()
    return fig


plotting.interactive(
    gamma_poisson,
    alt="Left: a histogram of rates that falls from zero. Right: counts drawn with these rates lie on the "
    "curve of a negative binomial with 24% zeros.",
    mean=FloatSlider(4.0, min=0.5, max=10, step=0.1, description="mean μ"),
    theta=FloatLogSlider(0.8, min=-0.7, max=2, step=0.05, description="inverse dispersion θ"),
)

# %% [markdown]
# > **Spot the error.** In a well-known assignment a network predicts a mean f for each gene of a cell.
# > The assignment writes *w ~ Gamma(f, θ)*. It says that θ is an inverse dispersion and that averaging
# > over w gives a negative binomial. Gamma(a, b) is read in two ways. What is the mean of w in each, and
# > which one is meant?
# >
# > <details><summary>Hint</summary>The second number is a <i>rate</i> for some (mean a/b), a
# > <i>scale</i> for others (mean ab). Which of f and θ should be the mean?</details>
# > <details><summary>Solution</summary>Neither. f is meant to be the mean and θ the shape, so in
# > the usual order it is Gamma(shape θ, rate θ/f), with mean f and variance f²/θ. Read literally
# > the mean would be f/θ or fθ, and a Gamma of shape f gives an NB of inverse dispersion f, a
# > different one in each cell.</details>
#
# Books print the result with other letters, $r$ and $p$:
#
# $$p(x;r,p) = \frac{\Gamma(x+r)}{\Gamma(r)\,x!}\;p^{\,r}\,(1-p)^x,\qquad \text{mean} = \frac{r(1-p)}{p}$$
#
# If you toss a coin that succeeds with probability $p$ until it has succeeded $r$ times, $x$ is the
# number of failures on the way. Here $r = \theta$ needn't be whole, and no coin is meant. The function
# $\Gamma$ extends the factorial: $\Gamma(n+1) = n!$ for whole $n$, and it has a value for every positive
# number. `torch.lgamma` is its logarithm.


# %%
def nb_of_r_and_p(x, r, p):
    """log p(x; r, p), letter by letter."""
    ways = torch.lgamma(x + r) - torch.lgamma(r) - torch.lgamma(x + 1)
    return ways + r * p.log() + x * (1 - p).log()


first = nb_of_r_and_p(six, torch.tensor(2.0), torch.tensor(0.25)).exp()
print("p(0), p(1), … for r = 2, p = 0.25:", first.numpy().round(3))

# %% [markdown]
# ### Exercise 05.1 · The negative binomial by mean and inverse dispersion
# ★★☆ · 6 minutes · 3 points
#
# A model wants to say *how much* and *how spread*, $\mu$ and $\theta$, instead of $r$ and $p$. Write
# $\log p(x;\mu,\theta)$ for tensors of one shape, in natural logarithms (their unit is the *nat*). Find
# $p$ from the two expressions for the mean. The check also goes to means near $10^{-9}$, and there too it
# tries float32, in which networks are trained.
#
# <details><summary>Hint</summary>
#
# $r = \theta$, and $\mu = \theta(1-p)/p$; solve for $p$. For the logarithm of $p$ think of `torch.log1p`: it
# knows $\log(1 + a)$ where $a$ is so small that $1 + a$ is 1 to the computer. Where $p$ rounds to 1, the
# subtraction $1 - p$ gives 0: write $1-p$ as a fraction.
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
# The package has it as `NegativeBinomial(mean, inverse_dispersion)`, and from here on we use that.
#
# ## 4 · One distribution, six names
#
# This is a common source of bugs. Each row is the **same** distribution:
#
# | where | arguments | in terms of $\mu$ and $\theta$ |
# |---|---|---|
# | here, scVI | mean, inverse dispersion | $\mu$, $\theta$ |
# | books, scVAE: $p^r(1-p)^x$ | $r$, $p$ | $r = \theta$, $p = \theta/(\theta+\mu)$ |
# | `scipy.stats.nbinom` | `n`, `p` | the same: n = $\theta$, p = $\theta/(\theta+\mu)$ |
# | `torch.distributions.NegativeBinomial` | `total_count`, `probs` | $\theta$, and $\mu/(\theta+\mu)$: **one minus** the $p$ above |
# | the same | `total_count`, `logits` | $\theta$, $\log\mu - \log\theta$ |
# | DESeq2, edgeR | mean, dispersion | $\mu$, $1/\theta$ |
# | R: `dnbinom` | `size`, `mu` | $\theta$, $\mu$ |
#
# If you mix up two rows, nothing crashes. You get a valid distribution with another mean:

# %%
r, p = torch.tensor(2.0), torch.tensor(0.2)
right_one = torch.distributions.NegativeBinomial(r, probs=1 - p)
wrong_one = torch.distributions.NegativeBinomial(r, probs=p)
print(f"the slide's r = 2, p = 0.2 has mean {r * (1 - p) / p:.1f}")
print(f"torch with probs = 1 − p: {right_one.mean:.1f};  with probs = p: {wrong_one.mean:.1f}")

# %% [markdown]
# ### Exercise 05.2 · From (r, p) to everybody else's
# ★☆☆ · 4 minutes · 2 points
#
# **Spot the error.** A tutorial prints $p^r(1-p)^x$ on its slide. A reader's network puts out $r$ and $p$,
# and the reader passes them to torch as `NegativeBinomial(r, probs=p)`. Write the conversion that was
# needed: from $r$ and $p$ *of the slide* to three results, the mean, the inverse dispersion, and what
# torch calls `probs`.
#
# <details><summary>Hint</summary>
#
# Torch's `probs` is what is raised to the power $x$. The table above has the rest.
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
# ## 5 · Nine zeros in ten: too many?
#
# At $x = 0$ the formula shrinks to almost nothing:
#
# $$\text{Poisson: } p(0) = e^{-\mu},\qquad \text{NB: } p(0) = \Big(\frac{\theta}{\theta+\mu}\Big)^{\theta} = e^{-\theta\log(1+\mu/\theta)}$$
#
# ### Exercise 05.3 · How many zeros should a table have?
# ★★☆ · 5 minutes · 3 points
#
# Each gene has its own mean in a cell of average depth, and each cell has its own depth. Write the
# share of zeros, one number, that NBs with one common $\theta$ expect in the whole table. Some genes were
# never seen: their mean is 0, and so is every count. `depth` and `mean` are tensors; `theta` is a Python
# number, which `torch.log` does not take.
#
# <details><summary>Hint</summary>
#
# First the mean of each entry, a table with one row per cell and one column per gene. Then $p(0)$ of
# each entry, by the formula above. Then the share.
# </details>


# %% nbgrader={"grade_id": "05-3", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def expected_zeros(depth, mean, theta):
    """Expected share of zeros; depth (n_cells,), mean (n_genes,), theta a number."""
    ### BEGIN SOLUTION
    return torch.exp(-theta * torch.log1p(depth[:, None] * mean / theta)).mean()
    ### END SOLUTION


# %% nbgrader={"grade_id": "05-3-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("05.3", expected_zeros)

# %% [markdown]
# Now the question of the title. **Predict first:** 91.9 % of the beta cells' table are zero. How many would
# be zero if counting were the only cause? We give each gene its own mean and the NB the one
# $\theta$ that makes the whole table most likely. Nothing is fitted to the zeros.

# %%
entry_means = depth[:, None] * mean_of_gene  # (n_cells, n_genes)
ever = mean_of_gene > 0
thetas = torch.logspace(-1, 1, 21)
fits_of_theta = [
    NegativeBinomial(entry_means[:, ever], t).log_prob(counts[:, ever]).sum() for t in thetas
]
theta_of_all = thetas[torch.stack(fits_of_theta).argmax()]
all_nb = NegativeBinomial(entry_means, theta_of_all)
print(f"zeros observed {(counts == 0).double().mean():.1%}, "
      f"Poisson {Poisson(entry_means).log_prob_zero().exp().mean():.1%}, "
      f"NB with θ = {theta_of_all:.2f}: {all_nb.log_prob_zero().exp().mean():.1%}")  # fmt: skip
print(f"genes with a mean below 0.1: {(mean_of_gene < 0.1).double().mean():.0%}; "
      f"a mean of 0.1 gives {np.exp(-0.1):.0%} zeros")  # fmt: skip

# %% [markdown]
# **No: nine zeros in ten are not too many.** Counting alone expects 90.3 %. Let cells differ, and one
# $\theta$ for all genes gives as many zeros as there are: on random halves of the cells the shares differ
# by 0.0 ± 0.2 points ([E05.zeros_of_the_table](evidence/05_count_likelihoods.py)). The reason is simple:
# most genes have few molecules. So zeros can tell something only about genes with larger means.

# %%
seen = counts.sum(0) >= 10  # genes with ten molecules or more in all beta cells
zeros = (counts == 0).double().mean(0)
grid = torch.logspace(-1.6, 2.5, 120)
cells_by_grid = depth[:, None] * grid  # (n_cells, 120)
expected = {
    "Poisson": Poisson(cells_by_grid),
    f"NB, θ = {theta_of_all:.1f}": NegativeBinomial(cells_by_grid, theta_of_all),
    "NB, θ = 3": NegativeBinomial(cells_by_grid, torch.tensor(3.0)),
}
fig, ax = plt.subplots(figsize=(8, 4.2))
ax.plot(mean_of_gene[seen], zeros[seen], ".", ms=3, color="0.7", label=f"{seen.sum():,} genes")
for (label, curve), dash in zip(expected.items(), ["-", "--", ":"], strict=True):
    colour = COLOUR["Poisson" if label == "Poisson" else "NB"]
    ax.plot(grid, curve.log_prob_zero().exp().mean(0), dash, color=colour, label=label)
aside = {"Xist": (8, 2), "Meg3": (8, 2), "Gapdh": (8, 4), "Iapp": (-10, -14)}
for name in aside:
    at = gene[name].sum() / depth.sum(), (gene[name] == 0).double().mean()
    ax.plot(*at, "o", ms=5, color=plotting.BLACK)
    ax.annotate(name, at, aside[name], textcoords="offset points", style="italic")
ax.set(xscale="log", xlim=(0.025, 400), ylim=(-0.1, 1.05))
ax.set(xlabel="mean count of the gene", ylabel="share of zeros")
ax.set_title("Most genes have the zeros that a negative binomial gives")
ax.legend()
plotting.show(
    alt="Share of zeros against mean count, one point per gene. Points lie on or a little above the Poisson "
    "curve, most of them below the NB curve of θ = 0.6, on which Xist and Meg3 lie."
)

# %% [markdown]
# On the left the curves and the genes fall together: there, zeros say nothing about the
# distribution. To the right most genes have more zeros than the Poisson, and NBs take them along. But is
# *Xist*, with a mean of six and no molecule in three cells of ten, an NB with a very small $\theta$, or
# something else?
#
# ## 6 · Zero inflation
#
# The textbook answer is **zero inflation**. Think of a letter box. On some days nobody wrote, and on some
# days the postman did not come. With probability $\pi$ a count is lost and we see 0 (a *dropout*); otherwise
# it comes from the base, a Poisson (ZIP) or an NB (ZINB):
#
# $$p(0) = \pi + (1-\pi)\,\mathrm{base}(0),\qquad p(x) = (1-\pi)\,\mathrm{base}(x)\ \text{ for } x>0$$
#
# (Some papers write $\rho$ for $\pi$. Other papers use $\rho$ for something else: the part of a cell's
# molecules that comes from one gene.)


# %%
def zip_log_prob(x, mean, pi):
    base = poisson_log_prob(x, mean).exp()
    return torch.log(torch.where(x == 0, pi + (1 - pi) * base, (1 - pi) * base))


four, pi = torch.tensor(4.0), torch.tensor(0.3)
ours = zip_log_prob(six, four, pi)
assert torch.allclose(ours, ZeroInflated.from_probs(Poisson(four), pi).log_prob(six))
print("ZIP of mean 4 and dropout 0.3:", ours.exp().numpy().round(3))

# %% [markdown]
# **Predict first.** Lecture notes say that, "everything else being equal", a ZINB has many more
# zeros than an NB *and* more large counts. With the same $\mu$ and $\theta$, can a ZINB give any large count
# more probability?
#
# <details><summary>Answer</summary>
#
# No. By the second formula it is the NB's probability times $1-\pi$ for every $x > 0$: only zeros gain (left).
# The sentence is true if the *means* are equal (right), because the mean of a ZINB is $(1-\pi)\mu$, so
# that its $\mu$ must be larger.
# </details>

# %%
mean, theta, pi = (torch.tensor(v) for v in (8.0, 2.0, 0.3))
k = torch.arange(31.0)
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), sharey=True)
for ax, inner, title in zip(axes, [mean, mean / (1 - pi)], ["μ", "means"], strict=True):
    zinb = ZeroInflated.from_probs(NegativeBinomial(inner, theta), pi).log_prob(k).exp()
    nb = NegativeBinomial(mean, theta).log_prob(k).exp()
    for label, share in [("NB", nb), ("ZINB", zinb)]:
        tail = share[20:].sum()
        ax.plot(k, share, MARK[label] + "-", ms=3, color=COLOUR[label],
                label=f"{label}: {share[0]:.0%} zeros, {tail:.1%} from 20 to 30")  # fmt: skip
    ax.set(xlabel="count", title=f"equal {title} and θ")
    ax.legend()
axes[0].set_ylabel("probability")
plotting.show(
    alt="NB and ZINB probabilities. With equal parameters the ZINB is below the NB everywhere but at zero; "
    "with equal means it has more zeros and more large counts."
)

# %% [markdown]
# ### The failure, and its cure
#
# A network can put out any number $g$, so we let $\pi = \sigma(g) = 1/(1+e^{-g})$: $g$ is the *logit* of
# $\pi$. For a gene with a large mean, base(0) is tiny; and if the network has learned that dropout is
# rare, so is $\pi$. What is then the logarithm of their sum?

# %%
g, big = torch.tensor([-10.0, -50.0, -120.0]), torch.tensor(400.0)
for dtype in (torch.float64, torch.float32):
    log_p = zip_log_prob(torch.zeros(3, dtype=dtype), big.to(dtype), torch.sigmoid(g.to(dtype)))
    print(f"{str(dtype)[6:]}, log p(0):             ", *(f"{v:9.2f}" for v in log_p))
single = g.float().requires_grad_()
zip_log_prob(torch.zeros(3).float(), big.float(), torch.sigmoid(single)).sum().backward()
print("float32, its gradient in g:      ", *(f"{v:9.2f}" for v in single.grad))
with_epsilon = torch.log(torch.sigmoid(g) + torch.exp(-big) + 1e-8)
print("float64 with 1e-8 inside the log:", *(f"{v:9.2f}" for v in with_epsilon))

# %% [markdown]
# In float32, in which networks are trained, $e^{-120}$ is 0 and its logarithm $-\infty$. The gradient
# there is NaN. The usual patch, + 1e-8 inside the logarithm, turns $-\infty$ into −18 and makes the middle
# value, which was right, wrong by 32 nats.
#
# The cure is never to leave the logarithms. We know $\log\pi = \log\sigma(g)$ and
# $\log(1-\pi) = \log\sigma(-g)$ without computing $\pi$, and `torch.logaddexp(a, b)` is
# $\log(e^a + e^b)$ without computing $e^a$ or $e^b$.

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
# **Fit *Xist* by hand.** Move the sliders until the dots sit on the bars. The title has the mean
# *negative* log-likelihood of a cell, which you want low. First leave the dropout at zero.


# %% tags=["nbval-ignore-output"]
def zinb_of(mean, theta, dropout):
    base = NegativeBinomial(depth * mean, torch.tensor(theta))
    return ZeroInflated.from_probs(base, torch.tensor(dropout))


def fit_by_hand(name, mean, theta, dropout):
    zinb = zinb_of(mean, theta, dropout)
    fig, ax = plt.subplots(figsize=(8, 3.6))
    draw(ax, name, {"ZINB" if dropout else "NB": zinb}, largest=40)
    ax.set(ylim=(0, 0.4), title=f"observed: {(gene[name] == 0).double().mean():.0%} zeros;  "
           f"a cell's −log-likelihood: {-zinb.log_prob(gene[name]).mean():.3f} nats")  # fmt: skip
    return fig


plotting.interactive(
    fit_by_hand,
    alt="Bars: Xist counts, with a tall bar at zero. An NB with mean 6 and θ = 2 has a third of these zeros "
    "and too many counts of 1 to 4.",
    name=Dropdown(options=["Xist", "Meg3", "Gapdh", "Pcsk1n"], description="gene"),
    mean=FloatLogSlider(6.0, min=-1, max=2, step=0.02, description="mean μ"),
    theta=FloatLogSlider(2.0, min=-1, max=2, step=0.02, description="inverse dispersion θ"),
    dropout=FloatSlider(0.0, min=0, max=0.9, step=0.01, description="dropout π"),
)

# %%
for by_hand in [(6.0, 2.0, 0.0), (6.0, 0.5, 0.0), (8.2, 2.0, 0.27)]:
    zinb = zinb_of(*by_hand)
    print("μ = {:.1f}, θ = {:.1f}, π = {:.2f}:".format(*by_hand),
          f"{zinb.log_prob_zero().exp().mean():.0%} zeros, "
          f"{-zinb.log_prob(gene['Xist']).mean():.2f} nats per cell")  # fmt: skip

# %% [markdown]
# The first NB has too few zeros. The second has all of them, and in return too few cells
# between 5 and 15. The third, with a dropout, fits best.
#
# ## 7 · Does a real gene need it?
#
# Now let the computer turn the sliders, for many genes at once. Each gene has its own $\mu$, $\theta$ and
# $g$, and Adam climbs the likelihood: it follows the gradient, with a step size of its own for each
# parameter. (`OneCycleLR` lets the steps first grow and then shrink.) No parameter belongs to two genes.
# So we can add up the log-likelihoods of all genes: the sum is largest where each gene's own is largest.


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
many = (counts.mean(0) >= 1).numpy()  # below, the four can hardly be told apart
names, x_many = beta.var_names.to_numpy()[many], counts[:, many]
fits = {name: fit(name, x_many, depth) for name in models}
shares = [distribution(n, depth, *fits[n][1]).log_prob_zero().exp().mean() for n in models]
print(f"{len(names)} genes. Zeros: {(x_many == 0).double().mean():.1%} observed,",
      ", ".join(f"{z:.1%} {n}" for n, z in zip(models, shares, strict=True)))  # fmt: skip

# %% [markdown]
# A Poisson misses a third of the zeros of these genes (34.5 ± 1.4 % on random halves of the cells). The
# plain NB, which was told nothing about zeros, misses one in thirty (2.9 ± 0.6 %,
# [E05.zeros_of_frequent_genes](evidence/05_count_likelihoods.py)).
#
# For single genes we need a rule, because a ZINB contains the NB ($\pi = 0$) and so never fits worse.
# A further parameter should pay for itself. The **Bayesian information criterion** charges
# $\tfrac12\log n$ nats for each parameter, with $n$ the number of cells:
#
# $$\mathrm{BIC} = k \log n - 2 \log L$$
#
# for $k$ parameters and the largest likelihood $L$; smaller is better.
#
# **Predict first.** The price is 2.9 nats. We draw new counts for all 351 genes from their fitted *NBs*, in
# which nothing drops out. How many genes will pay for a dropout all the same?


# %% tags=["not-in-grading"]
def gain_of_dropout(x, depth):
    """What a dropout adds to the log-likelihood of an NB, in nats; shape (n_genes,)."""
    gain = fit("zinb", x, depth)[0] - fit("nb", x, depth)[0]
    return gain.clamp(min=0)  # π = 0 is the NB; Adam gets close to it, not there


torch.manual_seed(0)
no_dropout = distribution("nb", depth, *fits["nb"][1]).sample()
gain, by_chance = gain_of_dropout(x_many, depth), gain_of_dropout(no_dropout, depth)
price = 0.5 * np.log(len(depth))
fig, ax = plt.subplots(figsize=(8, 3.8))
ax.plot(x_many.mean(0), by_chance, "s", ms=3, color=COLOUR["NB"], label="drawn from the NBs")
ax.plot(x_many.mean(0), gain, "o", ms=3, color="0.4", label="real counts")
ax.axhline(price, color=plotting.BLACK, ls="--", lw=1, label="price of a parameter, ½ log n")
for name in ["Xist", "Meg3", "Neat1"]:
    at = x_many.mean(0)[names == name].item(), gain[names == name].item()
    ax.annotate(name, at, (5, -3), textcoords="offset points", style="italic")
ax.set(xscale="log", xlabel="mean count of the gene", ylabel="gain of ZINB over NB (nats)")
ax.set_title("Few genes pay for a dropout")
ax.legend()
plotting.show(
    alt="Gain of ZINB over NB against mean count. Nearly all genes lie near zero, as do counts drawn from NBs; "
    "Xist gains most, about 47 nats."
)
print(f"{(gain > price).sum()} of {len(names)} genes gain more than {price:.1f} nats; "
      f"by chance {(by_chance > price).sum()}; Xist gains {gain[names == 'Xist'].item():.0f}")  # fmt: skip
log_likelihood = torch.stack([fits[name][0] for name in models], dim=1)  # (n_genes, 4)
best = (torch.tensor([1, 2, 2, 3]) * np.log(len(depth)) - 2 * log_likelihood).argmin(1).numpy()
for i, name in enumerate(models):
    print(f"smallest BIC {name:8s}{(best == i).sum():4d} genes, such as",
          ", ".join(names[best == i][:5]))  # fmt: skip

# %% [markdown]
# One gene in twelve pays, 28 of 351; among drawn counts 4.2 ± 1.1 do
# ([E05.genes_that_pay](evidence/05_count_likelihoods.py)). So a few genes do have too many zeros for an
# NB, and *Xist* more than any. Is it dropout?
#
# ### Who took *Xist*?
#
# *Xist* is an RNA that silences one of the two X chromosomes in female cells. It makes no protein: it stays
# in the nucleus. Four suspects come to mind.
#
# 1. **The cells are male**, and never had any. Then they would use genes of the Y chromosome. The table has
#    one, *Eif2s3y*. Its partner on the X chromosome, *Eif2s3x*, shows what we could expect to catch.
# 2. **A bad batch.** The cells were prepared in three libraries. One of them may have failed.
# 3. **Shallow cells**: too few molecules were caught.
# 4. **Dropout**: in three cells of ten *Xist* was lost at random, gene by gene. Then cells without *Xist*
#    should be no different in *Meg3* and *Neat1*.

# %%
lost = (gene["Xist"] == 0).numpy()
for name in ["Eif2s3y", "Eif2s3x"]:
    print(f"1. {name}: {gene[name][lost].sum():.0f} molecules in the {lost.sum()} cells without Xist, "
          f"{gene[name][~lost].sum():.0f} in the rest")  # fmt: skip
library = beta.obs_names.str.extract(r"(lib\d)", expand=False)
print("2. without Xist:",
      ", ".join(f"{lost[library == n].mean():.0%} of {n}" for n in sorted(set(library))))  # fmt: skip
print(f"3. median total count: {total[lost].quantile(0.5):,.0f} without Xist, "
      f"{total[~lost].quantile(0.5):,.0f} in the rest")  # fmt: skip
for name in ["Meg3", "Neat1"]:
    print(f"4. {name}: zero in {(gene[name][lost] == 0).double().mean():.0%} of the cells without Xist, "
          f"in {(gene[name][~lost] == 0).double().mean():.0%} of the rest")  # fmt: skip

# %% [markdown]
# All four are cleared. There is no molecule of the Y gene where its partner has 41. All libraries have
# such cells. They are *deeper* than the rest, twice as deep. And the loss is not gene by gene: *Meg3* and
# *Neat1* are gone from the same cells, although they lie on other chromosomes.
#
# The three RNAs share a place: all stay in the **nucleus**. This suggests a fifth suspect: *these droplets
# hold no nuclear RNA*. A good suspicion predicts something new. Sort the cells by *Meg3* and *Neat1*
# alone, and look at genes that have had no say so far. *Malat1*, *Mirg* and *Rian* are RNAs of the
# nucleus. *Mlxipl* makes a protein, but in mouse tissues its messenger RNA was found mostly in the
# nucleus. The last four are messenger RNAs, which work outside it.
#
# **Predict first:** which of the eight will be missing?

# %%
nuclear = (1e4 * (gene["Meg3"] + gene["Neat1"]) / total).numpy()  # per 10,000 counts
with_nuclear = nuclear > 5
print(f"{with_nuclear.sum()} cells with nuclear RNA, {(~with_nuclear).sum()} without, "
      f"of which {(nuclear == 0).sum()} have none at all")  # fmt: skip
print(f"Xist is zero in {lost[with_nuclear].mean():.0%} of the first, "
      f"in {lost[~with_nuclear].mean():.0%} of the second")  # fmt: skip
ratio = total[~with_nuclear].sum() / total[with_nuclear].sum()
for name in ["Malat1", "Mirg", "Rian", "Mlxipl", "Gapdh", "Rps18", "Iapp", "Igf1r"]:
    print(f"{name:7s} in the cells without: {gene[name][~with_nuclear].sum():7,.0f} caught, "
          f"{ratio * gene[name][with_nuclear].sum():7,.0f} if its share were the same")  # fmt: skip

# %% [markdown]
# The four nuclear RNAs are almost absent. *Mlxipl* is the strictest test, because the other three are
# neighbours of *Meg3* and *Neat1* on their chromosomes. Three of the four messengers are not missing:
# their shares rise about twofold. Only *Igf1r*, the gene of a receptor, is a surprise. Now look at *Xist*
# against *Meg3* and *Neat1*, and fit *Xist* again among the cells that have nuclear RNA:

# %% tags=["not-in-grading"]
gains, models_of_xist = {}, {}
for group in [np.ones_like(lost), with_nuclear]:
    x, n_cells = gene["Xist"][group][:, None], int(group.sum())
    gains[n_cells] = gain_of_dropout(x, depth[group]).item()
    for name in ["NB", "ZINB"]:
        parameters = fit(name.lower(), x, depth[group])[1]
        xist_model = distribution(name.lower(), depth[group], *parameters)
        models_of_xist[name] = xist_model.take(torch.arange(n_cells))  # (n_cells,)
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8))
for group, colour, mark, label in [(with_nuclear, plotting.BLACK, "o", "with nuclear RNA"),
                                   (~with_nuclear, plotting.RED, "^", "without")]:  # fmt: skip
    left.plot(1 + nuclear[group], 1 + 1e4 * (gene["Xist"] / total)[group], mark, ms=4, alpha=0.6,
              color=colour, label=f"{group.sum()} cells {label}")  # fmt: skip
n_none = (lost & (nuclear == 0)).sum()
left.annotate(f"{n_none} cells in this point", (1, 1), (8, 8), textcoords="offset points")
left.set(xscale="log", yscale="log", xlabel="1 + Meg3 and Neat1 per 10,000 counts")
left.set(ylabel="1 + Xist per 10,000 counts", title="Two kinds of beta cells")
left.legend()
draw(right, "Xist", models_of_xist, with_nuclear)
right.set_title("Xist in the cells with nuclear RNA")
plotting.show(
    alt="Left: beta cells form two groups, one with Xist, Meg3 and Neat1, one with none of them. Right: among "
    "the first, an NB has about as many zeros of Xist as there are."
)
for n_cells, nats in gains.items():
    print(f"{n_cells} beta cells: a dropout gains {nats:.0f} nats")

# %% [markdown]
# The gain falls from 47 nats to 9. Fewer cells are not the reason: in 265 cells drawn at random it is
# 35.9 ± 1.8 nats ([E05.groups_not_dropout](evidence/05_count_likelihoods.py)). Some need remains; a
# threshold is a crude way to sort cells.
#
# So most of the missing *Xist* was not lost at random, gene by gene. **A zero-inflated distribution can
# be the symptom of groups of cells that the model has no word for.** What we can't say from counts is how
# these cells lost their nuclear RNA.
# A nucleus left behind when the tissue was taken apart would explain most of the list; it would not
# explain why these cells have twice the counts, or why *Igf1r* is gone too. A cell that has stopped
# making RNA is another possibility.
#
# **For lesson 06.** A VAE has a word for groups of cells: its latent variable $z$.
# [Lesson 06](06_pancreas.ipynb) trains one on 2,000 genes, without any label. *Xist* and *Meg3* are not
# among these genes. Will it put the 265 and the 78 beta cells in different places? Write down your guess.
#
# > **Stop here** if you like. You have the answer to the title: nine zeros in ten are what counting
# > gives, and much of the rest is biology. V. Svensson came to the same conclusion from droplets filled
# > with the *same* RNA. The second half is about computing: fast and exact code, denoising, and
# > values that are not counts.
#
# ## 8 · In the machine
#
# **Zeros are cheap.** Look again at $\log p(0) = -\theta\log(1+\mu/\theta)$: no $\Gamma$ at all. The textbook
# formula spends two log-gammas on every entry only to see them cancel at zero. The package computes
# them where $x > 0$ and nowhere else. The result is the same:

# %%
nb = NegativeBinomial(entry_means.clamp(min=1e-3), torch.tensor(2.0))
same = torch.allclose(nb.log_prob_textbook(counts), nb.log_prob(counts))
print(f"log-gammas needed at {(counts > 0).double().mean():.0%} of the entries; both agree: {same}")

# %% tags=["not-in-grading", "nbval-ignore-output"]
import time

with_gradient = entry_means.clamp(min=1e-3).float().requires_grad_()
nb = NegativeBinomial(with_gradient, torch.full_like(with_gradient, 2.0).requires_grad_())
for name in ["log_prob_textbook", "log_prob"]:
    times = []
    for _ in range(5):
        start = time.process_time()
        getattr(nb, name)(counts.float()).sum().backward()
        times.append(1000 * (time.process_time() - start))
    print(f"{name}: {np.median(times):.0f} ms with its gradient")

# %% [markdown]
# **Large $\theta$ is dangerous.** For a gene that scatters like a Poisson the best $\theta$ is infinite, and
# training pushes $\theta$ up and up. Now $\log\Gamma(x+\theta)$ and $\log\Gamma(\theta)$ are huge and almost equal. At
# $\theta = 10^6$ both are near $1.3\cdot10^7$, float32 keeps seven digits, and their difference is off by as
# much as a whole unit. The cure is to subtract on paper what would cancel in the computer: the
# package takes Stirling's series for both log-gammas and writes down the difference.

# %%
large = torch.logspace(0, 7, 200)
three, two = torch.tensor(3.0), torch.tensor(2.0)
truth = NegativeBinomial(two, large).log_prob(three)  # in float64
single = NegativeBinomial(two.float(), large.float())
textbook = (single.log_prob_textbook(three.float()) - truth).abs()
on_paper = (single.log_prob(three.float()) - truth).abs()
print(f"worst error, float32: textbook more than 0.1 nat: {bool(textbook.max() > 0.1)}; "
      f"package less than 0.0001: {bool(on_paper.max() < 1e-4)}")  # fmt: skip

fig, ax = plt.subplots(figsize=(7, 3.2))
for error, mark, colour, label in [(textbook, "^", plotting.RED, "log Γ(x+θ) − log Γ(θ)"),
                                   (on_paper, "o", plotting.BLACK, "the difference on paper")]:  # fmt: skip
    ax.plot(large, error.clamp(min=1e-9), mark, ms=3, color=colour, label=label)
ax.set(xscale="log", yscale="log", xlabel="inverse dispersion θ", ylabel="error (nats)")
ax.set_title("log NB(3; μ = 2, θ) in float32: the textbook loses all digits")
ax.legend()
plotting.show(
    alt="Error in float32 against θ. The textbook formula's error grows to several nats at θ = 10⁷; the package's "
    "stays near 10⁻⁵ or below."
)

# %% [markdown]
# ## 9 · What was the rate?
#
# A count is a noisy reading of a rate $\lambda = \mu u$, with $u$ the cell's own factor (the $w$ of section 3).
# Having seen $x$, what should we believe about $\lambda$? This is called *denoising*. The Gamma is **conjugate**
# to the Poisson: multiply the densities, and what is left is a Gamma in $u$ again, of shape $x + \theta$ and
# rate $\mu + \theta$:
#
# $$\mathbb E[u\,|\,x] = \frac{x+\theta}{\mu+\theta}$$
#
# With $x = 0$ it is below 1, with $x > \mu$ above. In a zero-inflated model the rate
# itself is 0 with probability $\pi$ (the count is dropped); otherwise it is $\lambda = \mu u$.
#
# ### Exercise 05.5 · Spot the error: denoising
# ★★★ · 8 minutes · 3 points
#
# A published notebook compares models by how well they predict a second draw from the same $\lambda$. For
# its zero-inflated model the denoised rate is
#
# $$\hat\lambda = (1-\pi)\,\frac{x+\theta}{\mu+\theta}$$
#
# and NB and ZINB come out far *behind* the Poisson, which the notebook explains by shrinkage.
# Shrinkage is there, as it should be, and it is not the cause: the formula has two errors (one of them
# hurts the NB too). Write the posterior mean $\mathbb E[\lambda|x]$ of the ZINB.
#
# <details><summary>Hint</summary>
#
# (1) Units: is this $u$ or $\lambda$? (2) A count above zero was not dropped. For a zero, Bayes: how likely
# is it that a zero was *not* dropped, if it would have come up with probability $(1-\pi)\,\mathrm{NB}(0)$, and
# zeros have probability $\pi + (1-\pi)\,\mathrm{NB}(0)$ in all? In logs this is a sigmoid.
# </details>


# %% nbgrader={"grade_id": "05-5", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def denoise(x, mean, theta, logits):
    """E[λ|x] under the ZINB with π = σ(logits), in counts; logits = −∞ is the NB."""
    ### BEGIN SOLUTION
    log_zero = NegativeBinomial(mean, theta).log_prob_zero()
    not_dropped = torch.where(x > 0, 1.0, torch.sigmoid(log_zero - logits))
    return not_dropped * mean * (x + theta) / (mean + theta)
    ### END SOLUTION


# %% nbgrader={"grade_id": "05-5-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("05.5", denoise)

# %% [markdown]
# How much does it matter? We draw $\lambda$, and from it two counts, as the notebook does. Predict the
# second from the first:

# %%
torch.manual_seed(1)
mean, theta = torch.tensor(8.0), torch.tensor(0.5)
rate = mean * torch.distributions.Gamma(theta, theta).sample((100_000,))
first, second = torch.poisson(rate), torch.poisson(rate)
shrunk = (first + theta) / (mean + theta)
for name, guess in {"the mean μ, for all": mean.expand_as(rate), "E[u|x], as published": shrunk,
                    "E[λ|x] = μ E[u|x]": mean * shrunk, "the true λ": rate}.items():  # fmt: skip
    print(f"{name:21s} {Poisson(guess.clamp(min=1e-6)).log_prob(second).mean():6.1f} nats a count")

# %% [markdown]
# One missing $\mu$, and the best model loses to a constant: −2.29 ± 0.01 nats per count becomes
# −11.92 ± 0.08, and the constant has −7.67 ± 0.05 ([E05.denoising](evidence/05_count_likelihoods.py)).
#
# ## 10 · When the data are not counts
#
# Many pipelines divide each cell by its depth, take logarithms, and scale each gene into $[0, 1]$.
# A popular loss for such values is **binary cross-entropy** (BCE), made for coin tosses:
# $-x\log\lambda - (1-x)\log(1-\lambda)$. For $x = 0.3$ it runs without complaint. But is it minus the logarithm
# of a density?


# %%
def bce(x, lam):
    return -x * lam.log() - (1 - x) * (1 - lam).log()


unit = (torch.arange(20_000) + 0.5) / 20_000  # midpoints
for lam in torch.tensor([0.02, 0.2, 0.5]):
    print(f"λ = {lam:.2f}: exp(−BCE) integrates to {torch.exp(-bce(unit, lam)).mean():.3f}")

# %% [markdown]
# It never integrates to more than a half. Divide by the integral, and you have the **continuous
# Bernoulli**, $p(x;\lambda) = C(\lambda)\,\lambda^x(1-\lambda)^{1-x}$, with
#
# $$C(\lambda) = \frac{2\,\mathrm{artanh}(1-2\lambda)}{1-2\lambda}\ \ge\ 2$$
#
# Does the constant matter? It depends on $\lambda$, so it changes the gradient, and with it what $\lambda$ means:

# %%
lams = torch.linspace(0.001, 0.999, 400)
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4))
for value, dash in [(0.05, "-"), (0.3, "--"), (0.5, "-."), (0.9, ":")]:
    density = ContinuousBernoulli.from_probs(torch.tensor(value)).log_prob(unit[::100]).exp()
    left.plot(unit[::100], density, dash, color=plotting.BLACK, label=f"λ = {value:g}")
left.set(xlabel="x", ylabel="density (per unit of x)", title="Continuous Bernoulli")
left.legend()
cb_mean = ContinuousBernoulli.from_probs(lams).mean
right.plot(lams, cb_mean, color=plotting.BLACK, label="continuous Bernoulli")
right.plot([0, 1], [0, 1], "--", color=plotting.RED, label="mean = λ, as BCE suggests")
right.set(xlabel="λ", ylabel="mean of x", title="λ is not the mean")
right.legend()
plotting.show(
    alt="Left: densities of the continuous Bernoulli rise or fall exponentially. Right: its mean against λ is an "
    "S-shaped curve that is nearer to a half than the diagonal."
)

# %% [markdown]
# Take the values of one gene, *Sst*, in beta cells, and the best $\lambda$ by each:

# %%
scaled = adata.copy()
vaelab.log_normalize(scaled)
values = scaled[adata.obs["cell_type"] == "beta", "Sst"].layers["unit_interval"].toarray()
values = torch.as_tensor(values.ravel(), dtype=torch.float64)
lams = torch.linspace(0.001, 0.999, 999)
likelihood = ContinuousBernoulli.from_probs(lams).log_prob(values[:, None]).mean(0)
print(f"mean of the values: {values.mean():.2f}")
for name, best_lam in [("BCE", lams[bce(values[:, None], lams).mean(0).argmin()]),
                       ("continuous Bernoulli", lams[likelihood.argmax()])]:  # fmt: skip
    cb = ContinuousBernoulli.from_probs(best_lam)
    print(f"{name:21s} λ = {best_lam:.2f}, whose density has mean {cb.mean:.2f}: "
          f"{cb.log_prob(values).mean():6.3f} nats a cell")  # fmt: skip

# %% [markdown]
# BCE finds the $\lambda$ that *equals* the mean; as the parameter of a density it is a poor one. If you train
# a network with BCE and then sample from the density, the values are too near to a half.
#
# ### Exercise 05.6 · Spot the error: the constant that is undefined at ½
# ★★☆ · 7 minutes · 2 points
#
# A tutorial prints $C(\lambda)$ as above, for $\lambda\in[0, 1]$. At $\lambda = \tfrac12$, where every untrained sigmoid
# starts, it is 0/0, and at 0 and 1 there is no density. Write the log-density for $\lambda$ in the open
# interval, right at ½ too, in PyTorch. **The check looks at the value and at the gradient in $\lambda$ that
# autograd finds, in float64 and float32.** It tries $\lambda = 10^{-6}$ from 0 and 1, and $\lambda$ next to
# ½: there the slope of the closed form is a small difference of huge numbers, and float32 loses its
# digits. With $u = 1 - 2\lambda$, near $u = 0$
#
# $$\log C = \log 2 + \frac{u^2}{3} + \frac{13\,u^4}{90} + \dots$$
#
# <details><summary>Hint</summary>
#
# `torch.where(near, series, closed)`; but autograd goes through both branches, and NaN times 0 is
# NaN. Let the closed form see some other number wherever `near` is true. With the two terms above,
# "near" may reach as far as $|u| < 0.02$. It should reach to $|u| < 0.01$ at least, for float32's sake.
# </details>


# %% nbgrader={"grade_id": "05-6", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
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


# %% nbgrader={"grade_id": "05-6-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("05.6", cb_log_prob)

# %% [markdown]
# The package takes the logit $\eta$ of $\lambda$, as networks put it out. Then the log-density is
# $x\eta - \log((e^\eta - 1)/\eta)$, with one series near $\eta = 0$ and nothing to clamp at the ends:

# %%
logits = torch.tensor([-40.0, -3.0, 0.0, 1e-9, 5.0], requires_grad=True)
value = ContinuousBernoulli(logits).log_prob(torch.tensor(0.25))
value.sum().backward()
print("log-density      ", value.detach().numpy().round(3) + 0.0)
print("slope in the logit", logits.grad.numpy().round(3))

# %% [markdown]
# ## What was not used, and why
#
# *A test for zero inflation with a p-value*: $\pi = 0$ lies on the edge of what $\pi$ can be, where the
# usual $\chi^2$ does not hold; the drawn counts of section 7 took its place. *Imputing
# zeros*: most are what counting gives, and filling them in invents data. *The multinomial*:
# given a cell's total, independent Poissons become a multinomial (Townes et al. 2019), and
# giving each cell the mean depth · $\mu$, as we did, is nearly that. *Other widths*: the Poisson–log-normal is
# another overdispersed choice; the NB is the one whose integral can be done.
#
# ## What to take along
#
# - **Poisson** for counting, **NB** for cells that differ: variance $\mu + \mu^2/\theta$, zeros
#   $(\theta/(\theta+\mu))^\theta$. Start with the NB.
# - Nine zeros in ten are what few molecules give.
# - One NB has six names. Before you pass parameters on, compute the mean.
# - **Zero inflation** multiplies every positive count by $1-\pi$. Ask whether a gene pays for it;
#   if it does, look for groups of cells before you believe in dropout.
# - Logits and logs, no epsilon; at zero no log-gamma; at large $\theta$ a difference on paper.
# - $\mathbb E[\lambda|x] = \mu\,(x+\theta)/(\mu+\theta)$; a positive count was never dropped.
# - On $[0, 1]$: continuous Bernoulli, not BCE; $\lambda$ is not its mean; $C(\tfrac12) = 2$.
#
# ## What the claims rest on

# %%
evidence.table("05")

# %% [markdown]
# ## Read on
#
# | about | read |
# |---|---|
# | the five likelihoods, as a tutorial has them | H. Gangloff (2023), the slides headed "likelihood": mind exercises 05.2 and 05.6 |
# | Gamma, Poisson, dropout as steps of one model | R. Lopez (2018), the SCANVI assignment, its generative model of w, y, h, x; R. Lopez et al., *scVI*, Nature Methods 15 (2018) 1053–1058, Methods |
# | NB against ZINB in a picture | MCB128 (2026), the section on scVI, its figure 15: mind "everything else being equal" |
# | random effects u, denoising | A. Sarkar (2019), *Variational autoencoders for scRNA-seq data*, first display of the introduction; A. Sarkar and M. Stephens, Nature Genetics 53 (2021) 770–777; H. Robbins (1956), for the formula $\mathbb E[\lambda \mid x] = (x+1)\,p(x+1)/p(x)$, by which the check of 05.5 computes |
# | are there too many zeros? | V. Svensson, *Droplet scRNA-seq is not zero-inflated*, Nature Biotechnology 38 (2020) 147–150 |
# | messenger RNA that stays in the nucleus, in mouse tissues | K. Bahar Halpern et al., *Nuclear retention of mRNA in mammalian tissues*, Cell Reports 13 (2015) 2653–2662 |
# | given the total: multinomial | F. W. Townes et al., Genome Biology 20 (2019) 295 |
# | count likelihoods in VAEs | C. Grønbech et al., *scVAE*, Bioinformatics 36 (2020) 4415–4422 |
# | the continuous Bernoulli | G. Loaiza-Ganem and J. Cunningham (2019), §3 for the distribution, §4 for what BCE does |
# | the data | M. Baron et al., Cell Systems 3 (2016) 346–360 |
#
# **Next:** [lesson 06](06_pancreas.ipynb) puts these likelihoods at the end of a network, and looks for
# the two kinds of beta cells.
