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
# # 02 · A bound on what can't be computed
#
# A model of cells should find real cells probable. But the probability that it gives to a cell is
# an integral over everything that the model does not see, and nobody can do that integral.
# **How can we raise a number that we can't compute, and how would we know how far off we are?**
#
# **Objectives.** After this lesson you can
#
# - read and draw the plate diagram of a latent-variable model;
# - say when the evidence p(x) can be computed, when not, and what is to blame;
# - compute a KL divergence, notice when one is wrong, and say what its asymmetry does;
# - derive the evidence lower bound (ELBO) in three ways;
# - measure the gap between bound and evidence where both are known, and close it;
# - say which of its two objectives a step up the bound has served.
#
# **You need** Python, means and logarithms, and the normal, Poisson and gamma distributions.
# Lesson 01 is of help, but nothing from it is used. **Time:** about 60 minutes. **Data:** none.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import optimize, stats
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import vaelab
from vaelab import plotting

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)  # we are going to look at the tenth decimal

# %% [markdown]
# ## 1 · Cells that come from somewhere
#
# In an experiment on single cells, each cell gives a row of counts: how many messenger RNA
# molecules of each gene were caught. Say there are 10,000 genes. To describe such rows directly we
# need a distribution for each gene, its *marginal*, and how every two genes go together. Or we
# suppose that few things differ between cells: their type, their age, how stressed they are. Say
# twenty numbers. We never see them, so they are called **latent**, and each gene's mean is a
# function of them. The simplest such function has one weight for each gene and latent variable.

# %%
n_genes, n_latent = 10_000, 20
pairs = n_genes * (n_genes - 1) // 2
print(f"directly:   {n_genes:>7,} marginals and {pairs:,} correlations")
print(f"by latents: {n_genes:>7,} means     and {n_genes * n_latent:,} weights")

# %% [markdown]
# A **latent-variable model** tells how a cell comes about. First its latent variables z are drawn
# from a **prior** p(z). Then its counts x are drawn from p(x|z), which is called the
# **likelihood**, and in this course also the *decoder*. Together they give
# the **joint** distribution p(x, z) = p(z) p(x|z): all that the model says.
#
# Such a story is drawn as a graph. Every model of this package carries its own:

# %%
_ = plotting.graphical_model(vaelab.VAE.graph)

# %% [markdown]
# A circle is a variable, and shaded if it is observed. A solid arrow means *is drawn given*. What
# stands on a **plate** (a box) is there once for each cell, or for each gene of each cell. So in a
# variational autoencoder each cell has its own z and its own library size ℓ, its total of counts;
# given these two, its genes are independent. The dashed arrow goes the other way and is no part of
# the story. It is the guess that this lesson is about.
#
# ### A tiny model
#
# To learn how bounds behave we need a model in which everything is known. Here a cell is of one
# of three types, z, and we count one gene, x, which follows a Poisson distribution. A graph is
# described by a dictionary: each variable with its place, its parents in the story (`p`), and the
# plates on which it stands.

# %%
tiny = {
    "z": {"at": (0, 0), "plates": ("cells",)},
    "x": {"at": (1, 0), "p": ("z",), "observed": True, "plates": ("cells",)},
}
_ = plotting.graphical_model(tiny)

# %%
types = ["alpha", "beta", "delta"]
prior = np.array([0.25, 0.6, 0.15])  # p(z): how common each type is
rate = np.array([2.0, 9.0, 5.0])  # p(x | z) is Poisson: each type's mean count

counts = np.arange(22)
joint = prior[:, None] * stats.poisson.pmf(counts, rate[:, None])  # p(x, z): (types, counts)
evidence = joint.sum(0)  # p(x), whatever the type
posterior = joint / evidence  # p(z | x), by Bayes

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
bottom = np.zeros(len(counts))
for i, name in enumerate(types):
    colour = plotting.COLOURS[i]
    left.bar(counts, joint[i], bottom=bottom, color=colour, label=f"p(x, z = {name})", width=0.9)
    bottom += joint[i]
    right.plot(counts, posterior[i], color=colour, marker="o", ms=4, label=f"p(z = {name} | x)")
left.set_title("Generative: the joint, which adds up to p(x)")
right.set_title("Discriminative: p(z | x) only")
for ax in (left, right):
    ax.set(xlabel="x, counts of the gene", ylabel="probability")
    ax.legend(frameon=False, fontsize=9)

# %% [markdown]
# The right picture follows from the left one by **Bayes' rule**:
#
# $$\underbrace{p(z\,|\,x)}_{\text{posterior}} = \frac{p(x\,|\,z)\;p(z)}{p(x)},\qquad
# \underbrace{p(x)}_{\text{evidence}} = \sum_z p(x\,|\,z)\,p(z)
# \quad\text{or}\quad \int p(x\,|\,z)\,p(z)\,dz$$
#
# There is no way back. A **discriminative** model has only p(z|x): show it a cell, and it names a
# type. A **generative** model has p(x, z), and so can do three things more:
#
# 1. **Density.** How probable is this cell? p(x) is small for a cell like none of these, while
#    p(z|x) goes on naming types.
# 2. **Sampling.** What do such cells look like? Draw z, then x.
# 3. **Unsupervised learning.** Without any z to learn from, make the observed x probable: raise
#    Σ log p(x). This is what the rest of the lesson is for.

# %%
rng = np.random.default_rng(0)
odd = 60
named = prior * stats.poisson.pmf(odd, rate)
print(f"x = 8:  log p(x) = {np.log(evidence[8]):6.1f}   {types[posterior[:, 8].argmax()]}")
print(f"x = 60: log p(x) = {np.log(named.sum()):6.1f}   {types[named.argmax()]}, and quite sure: "
      f"p(z|x) = {named.max() / named.sum():.4f}")  # fmt: skip
z = rng.choice(3, size=6, p=prior)
print("six new cells:", [f"{types[k]} {n}" for k, n in zip(z, rng.poisson(rate[z]), strict=True)])

# %% [markdown]
# ## 2 · When the integral can be done, and when not
#
# With three types the evidence is a sum of three terms. With a continuous z it is an integral.
# For some pairs of prior and likelihood the posterior has the prior's form, with other numbers in
# it; the pair is then called **conjugate**, and there is nothing to integrate. Let a gene's rate λ
# have a gamma prior with shape *a* and rate *b*, and let x be Poisson(λ). The posterior is
# Gamma(a + x, b + 1). Bayes' rule, turned around, then gives the evidence *at any λ you like*:
#
# $$p(x) = \frac{p(x\,|\,\lambda)\;p(\lambda)}{p(\lambda\,|\,x)}$$

# %%
a, b, x = 2.0, 0.5, 7
for λ in (0.5, 4.0, 20.0):
    log_likelihood = stats.poisson.logpmf(x, λ)
    log_prior = stats.gamma.logpdf(λ, a, scale=1 / b)
    log_posterior = stats.gamma.logpdf(λ, a + x, scale=1 / (b + 1))
    print(f"λ = {λ:4.1f}: log p(x) = {log_likelihood + log_prior - log_posterior:.6f}")
print(f"negative binomial:   {stats.nbinom.logpmf(x, a, b / (b + 1)):.6f}")

# %% [markdown]
# The same each time. On the right-hand side everything depends on λ, on the left nothing does.
# (And what comes out is a *negative binomial* distribution, the likelihood that most models of
# single cells use. Lesson 05 is about it.)
#
# ### Exercise 02.1 · A prior for the negative binomial
# ★★☆ · 7 minutes · 2 points
#
# **Spot the error.** A tutorial says that for counts the evidence is intractable because the
# negative binomial "does not have a conjugate prior". Refute it with a number.
#
# One p is drawn from a Beta(a, b), and then the counts x of n cells from a negative binomial with
# known r, `stats.nbinom.logpmf(x, r, p)`. Its probability of a count x is proportional to
# $p^r (1-p)^x$. Write `log_evidence(x, r, a, b)`: the log-probability of all n counts together.
#
# <details><summary>Hint</summary>A Beta(a, b) density is proportional to
# $p^{a-1}(1-p)^{b-1}$. Multiply it by what n cells contribute, and read off the posterior's two
# numbers. Then use Bayes turned around, at p = ½ or wherever you like. scipy has
# <code>stats.beta.logpdf(p, a, b)</code>.</details>


# %% nbgrader={"grade_id": "02-1", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def log_evidence(x, r, a, b):
    """log ∫ Π NB(x_n; r, p) Beta(p; a, b) dp, for counts x of shape (n,)."""
    ### BEGIN SOLUTION
    p = 0.5
    log_likelihood = stats.nbinom.logpmf(x, r, p).sum()
    log_prior = stats.beta.logpdf(p, a, b)
    log_posterior = stats.beta.logpdf(p, a + r * len(x), b + x.sum())
    return log_likelihood + log_prior - log_posterior
    ### END SOLUTION


# %% nbgrader={"grade_id": "02-1-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("02.1", log_evidence)

# %% [markdown]
# So it is not the negative binomial's fault. Then whose? Take the tamest likelihood there is, a
# normal one, and a normal prior. If the mean of x is a *linear* function of z, the pair is
# conjugate, and we come back to it in section 5. Now let the mean be a small **network**, with two
# hidden units:


# %%
def decoder(z):
    hidden = np.tanh(2.0 * z[:, None] + np.array([1.5, -1.5]))  # (n, 2), two hidden units
    return hidden @ [1.5, -1.2]


x_seen, noise = 1.4, 0.4
grid = np.linspace(-4, 4, 4001)
step = grid[1] - grid[0]
log_prior_z = stats.norm.logpdf(grid)
log_joint_z = log_prior_z + stats.norm.logpdf(x_seen, decoder(grid), noise)
p_x = np.exp(log_joint_z).sum() * step  # the integral, by brute force
posterior_z = np.exp(log_joint_z) / p_x

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
left.plot(grid, decoder(grid), color=plotting.COLOURS[0], label="mean of x given z: a network")
left.axhline(x_seen, color=plotting.COLOURS[5], ls="--", label="the observed x")
left.set(xlabel="latent z", ylabel="x", ylim=(-0.6, 3.9), title="The decoder")
right.plot(grid, np.exp(log_prior_z), color="0.6", label="prior p(z)")
right.plot(grid, posterior_z, color=plotting.COLOURS[2], label="posterior p(z | x)")
right.set(xlabel="latent z", ylabel="density", title=f"log p(x) = {np.log(p_x):.3f}")
for ax in (left, right):
    ax.legend(frameon=False, fontsize=9, loc="upper left")

# %% [markdown]
# Normal prior, normal likelihood, and a posterior with two humps that is in no table of
# distributions. The network did this. In one dimension we can still add up 4,001 points. With ten
# latent dimensions, 100 points along each make $100^{10} = 10^{20}$ decodings: at a million a
# second, three million years, for each cell and each step of training. That is what
# **intractable** means here.
#
# Why not draw z from the prior a few thousand times, and average p(x|z)? We try it on a linear
# model, where the answer is known: 200 genes, ten latent dimensions.

# %%
wide = rng.standard_normal((200, 10))
cell = wide @ rng.standard_normal(10) + 0.5 * rng.standard_normal(200)
exact = stats.multivariate_normal(cov=wide @ wide.T + 0.25 * np.eye(200)).logpdf(cell)
draws = rng.standard_normal((20_000, 10)) @ wide.T  # decoded draws from the prior
log_likelihoods = stats.norm.logpdf(cell, draws, 0.5).sum(1)
estimate = np.logaddexp.reduce(log_likelihoods) - np.log(len(draws))
print(f"exact log p(x):        {exact:9,.0f}")
print(f"from 20,000 draws:     {estimate:9,.0f}")

# %% [markdown]
# Wrong by hundreds: not one of 20,000 draws came near a z that explains this cell. We have to draw
# where the posterior is. But the posterior is what we can't compute. So we *choose* a
# distribution q(z), from a family that we can handle, and bring it near the posterior. "Near"
# needs a measure.
#
# ## 3 · A distance that is none: KL
#
# The **Kullback–Leibler divergence** from q to p is an average under q:
#
# $$\mathrm{KL}(q\,\|\,p) = \mathbb E_q\big[\log q(z) - \log p(z)\big]$$
#
# It is never negative, and 0 only if q = p. With natural logarithms its unit is the **nat**; one
# nat is 1.44 bits. If z is drawn from q, log q(z) − log p(z) says how much better q foresaw it than
# p did, and the KL is that on average.
#
# For two normal distributions the average has a closed form. For q = N(m, s²) and the prior
# p = N(0, 1):
#
# $$\mathrm{KL} = \tfrac12\big(m^2 + s^2 - 1 - \log s^2\big)$$

# %%
m, s = 1.2, 0.5
log_q = stats.norm.logpdf(grid, m, s)
added_up = (np.exp(log_q) * (log_q - log_prior_z)).sum() * step
by_torch = kl_divergence(Normal(m, s), Normal(0.0, 1.0)).item()
print(f"E_q[log q − log p], added up: {added_up:.6f}")
print(f"closed form:                  {(m**2 + s**2 - 1 - np.log(s**2)) / 2:.6f}")
print(f"torch:                        {by_torch:.6f}")

# %% [markdown]
# ### Exercise 02.2 · Fix a KL
# ★☆☆ · 5 minutes · 2 points
#
# **A bug hunt.** A published package of three VAEs for counts has, in all of them, in effect this:
#
# ```python
# def kl_to_prior(mean, std):
#     return (0.5 * (1 - 2 * torch.log(std) + mean**2 + std**2)).sum(-1)
# ```
#
# Its tests looked at shapes only. Find a q for which you know the answer without computing, try
# it, and write `kl_to_prior(mean, std)` anew: both have shape (n_cells, n_latent), and what comes
# back is KL(q‖p) of each cell, with p = N(0, I).
#
# <details><summary>Hint</summary>What is the KL from the prior to itself? And what does the code
# above give for mean 0 and std 1?</details>


# %% nbgrader={"grade_id": "02-2", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def kl_to_prior(mean, std):
    """KL(N(mean, std²) ‖ N(0, I)) of each cell, in nats; shape (n_cells,)."""
    ### BEGIN SOLUTION
    return 0.5 * (mean**2 + std**2 - 1 - 2 * torch.log(std)).sum(-1)
    ### END SOLUTION


# %% nbgrader={"grade_id": "02-2-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("02.2", kl_to_prior)

# %% [markdown]
# Nobody noticed, since a constant has no gradient: the models train as they should. But each
# bound that they report is too low by one nat for each latent dimension. Compare a model of 3
# dimensions with one of 10, and the second is punished by seven nats for nothing.
#
# ### Which way round?
#
# KL(q‖p) and KL(p‖q) differ, and each makes its own kind of compromise. Here is the posterior with
# two humps, and the normal q that is best in each sense.


# %%
def kl_on_grid(log_a, log_b):
    return (np.exp(log_a) * (log_a - log_b)).sum() * step


log_p = np.log(posterior_z)


def kl_of(v):
    """KL(q‖p) for q = N(v₀, exp(v₁)²)."""
    return kl_on_grid(stats.norm.logpdf(grid, v[0], np.exp(v[1])), log_p)


from_each_hump = [optimize.minimize(kl_of, [at, -1.0], method="Nelder-Mead") for at in (-0.7, 0.7)]
best = min(from_each_hump, key=lambda found: found.fun)
mean = (posterior_z * grid).sum() * step  # KL(p‖q) is least where mean and variance are p's
std = np.sqrt((posterior_z * (grid - mean) ** 2).sum() * step)
fits = {"least KL(q‖p)": (best.x[0], np.exp(best.x[1])), "least KL(p‖q)": (mean, std)}

fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
ax.fill_between(grid, posterior_z, color="0.85", label="posterior p(z | x)")
for colour, (name, (centre, width)) in zip(plotting.COLOURS, fits.items(), strict=False):
    log_q = stats.norm.logpdf(grid, centre, width)
    ax.plot(grid, np.exp(log_q), color=colour, label=name)
    there, back = kl_on_grid(log_q, log_p), kl_on_grid(log_p, log_q)
    print(f"{name}: KL(q‖p) = {there:.2f}, KL(p‖q) = {back:.2f}")
ax.set(xlabel="latent z", ylabel="density", xlim=(-3, 3), title="Two ways to be near")
_ = ax.legend(frameon=False, fontsize=9)

# %% [markdown]
# KL(q‖p) averages under q, and log p is very low between the humps: q keeps away from where p has
# nothing, and takes one hump. KL(p‖q) averages under p, and punishes a q that has nothing where p
# has something: it covers both, and much of it lies where
# there is next to no posterior.
#
# Only the first is an average over something that we can draw from, q. That, and no preference
# for single humps, is why variational inference uses it. Remember the price: **q is too narrow
# rather than too wide.**
#
# ## 4 · One bound, derived three times
#
# We want log p(x), and we have p(x, z) and a q of our choice. Each derivation is a chain of few
# lines, and you write the ones that matter. Your lines are functions of densities, and the check
# puts numbers into them: models for which log p(x) is known.
#
# Here is the form, with the tiny model of section 1 and a cell with x = 7 counts. A density is a
# function of z, and `E` takes a function of z and averages it under q.

# %%
x, q = 7, np.array([0.1, 0.5, 0.4])  # our guess for the cell's type


def log_prior(z):
    return np.log(prior[z])


def log_likelihood(z):
    return stats.poisson.logpmf(x, rate[z])


def log_q(z):
    return np.log(q[z])


def E(f):
    """E_q[f(z)] = Σ_z q(z) f(z)."""
    return (q * f(np.arange(3))).sum()


print(f"E_q[log p(x|z)] = {E(log_likelihood):.4f}")
print(f"KL(q‖p(z))      = {E(lambda z: log_q(z) - log_prior(z)):.4f}")
print(f"log p(x)        = {np.log(evidence[x]):.4f}, which we know here because there are 3 types")

# %% [markdown]
# ### Exercise 02.3 · First derivation: Jensen
# ★★☆ · 5 minutes · 2 points
#
# The logarithm is concave: its chords lie below it. So the log of an average is at least the
# average of the logs, log E[w] ≥ E[log w]. This is *Jensen's inequality*.
#
# $$\begin{aligned}
# \log p(x) &= \log \sum_z p(x\,|\,z)\,p(z) && \text{(a)}\\
# &= \log \mathbb E_q[\;?\;] && \text{(b)}\\
# &\ge \mathbb E_q[\;?\;] && \text{(c)}
# \end{aligned}$$
#
# Write `jensen(E, log_prior, log_likelihood, log_q)`, which returns the values of lines (b) and
# (c), in this order.
#
# <details><summary>Hint</summary>E_q[f] is Σ q(z) f(z). What must f be, so that
# q(z) f(z) = p(x|z) p(z)? And line (c) is line (b) with two things exchanged.</details>


# %% nbgrader={"grade_id": "02-3", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def jensen(E, log_prior, log_likelihood, log_q):
    """log E_q[p(x, z) / q(z)], and the bound; each one number."""

    ### BEGIN SOLUTION
    def log_weight(z):
        return log_likelihood(z) + log_prior(z) - log_q(z)

    line_b = np.log(E(lambda z: np.exp(log_weight(z))))
    line_c = E(log_weight)
    return line_b, line_c
    ### END SOLUTION


# %% nbgrader={"grade_id": "02-3-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("02.3", jensen)

# %%
line_b, line_c = jensen(E, log_prior, log_likelihood, log_q)
print(f"(b) {line_b:.4f}   (c) {line_c:.4f}   given up: {line_b - line_c:.4f} nats")

# %% [markdown]
# Line (c) is the **evidence lower bound**, the ELBO. It holds for every q. Why would we give
# something up? Because line (b) has the logarithm outside: to estimate it from draws we need very
# many, as section 2 showed. Line (c) is a plain average, and any number of draws from q, even one,
# estimates it without bias.
#
# This derivation does not say *what* was given up. The next one does.
#
# ### Exercise 02.4 · Second derivation: from the KL to the posterior
# ★★☆ · 7 minutes · 3 points
#
# We start from what we want to be small, and use Bayes' rule for the posterior.
#
# $$\begin{aligned}
# \mathrm{KL}\big(q\,\|\,p(z|x)\big) &= \mathbb E_q[\log q(z) - \log p(z\,|\,x)] && \text{(a)}\\
# &= \mathbb E_q[\log q(z) - \log p(x\,|\,z) - \log p(z)] + \log p(x) && \text{(b)}\\
# \log p(x) &= \underbrace{\mathbb E_q[\;?\;]}_{\text{reconstruction}} -
# \underbrace{\mathrm{KL}(q\,\|\;?\;)}_{\text{what }z\text{ costs}} +
# \underbrace{\mathrm{KL}(q\,\|\;?\;)}_{\text{gap}} && \text{(c)}
# \end{aligned}$$
#
# Write `by_kl(E, log_prior, log_likelihood, log_q, log_posterior)`, which returns the three terms
# of line (c): reconstruction, KL, gap.
#
# <details><summary>Hint</summary>Line (b) has one average of three logarithms. Two of them make a
# KL, the third is left alone. Only the gap may use the posterior.</details>


# %% nbgrader={"grade_id": "02-4", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def by_kl(E, log_prior, log_likelihood, log_q, log_posterior):
    """Reconstruction, KL to the prior, and gap: three numbers, in nats."""
    ### BEGIN SOLUTION
    reconstruction = E(log_likelihood)
    kl = E(lambda z: log_q(z) - log_prior(z))
    gap = E(lambda z: log_q(z) - log_posterior(z))
    return reconstruction, kl, gap
    ### END SOLUTION


# %% nbgrader={"grade_id": "02-4-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("02.4", by_kl)

# %%
reconstruction, kl, gap = by_kl(
    E, log_prior, log_likelihood, log_q, lambda z: np.log(posterior[z, x])
)
bound = reconstruction - kl
print(f"bound:    {reconstruction:.4f} − {kl:.4f} = {bound:.4f}")
print(f"log p(x): {bound:.4f} + {gap:.4f} = {bound + gap:.4f}, and {np.log(evidence[x]):.4f}")

# %% [markdown]
# Now we know what was given up: **the gap is KL(q‖posterior)**. And two terms of three can be
# computed without the posterior. The **reconstruction** asks that z drawn from q explain the cell.
# The **KL to the prior** is what it costs, in nats, to say of this cell more than the prior says.
#
# > **Spot the error.** Two sentences from texts on this bound. (1) "KL > 0", and therefore
# > log p(x) > ELBO. (2) The likelihood p(x|z) is known "from the data".
# >
# > <details><summary>Solution</summary>(1) ≥, in both. The KL is 0 if q is the posterior, and then
# > the bound <i>is</i> log p(x). Section 5 has such a case. (2) Data are numbers. The likelihood is
# > a part of the model: somebody chose its form, and training finds its parameters.</details>
#
# ### Exercise 02.5 · Third derivation: multiply by one, and sum over cells
# ★★☆ · 6 minutes · 2 points
#
# The third is the shortest. log p(x) does not depend on z, so it is its own average. And
# p(x) = p(x, z)/p(z|x), whatever z is.
#
# $$\log p(x) = \mathbb E_q\Big[\log \frac{p(x,z)}{p(z\,|\,x)}\Big]
# = \mathbb E_q\Big[\log \Big(\frac{p(x,z)}{?}\cdot\frac{?}{p(z\,|\,x)}\Big)\Big]
# = \underbrace{\mathbb E_q[\;?\;]}_{\text{bound}} + \underbrace{\mathbb E_q[\;?\;]}_{\text{gap}}$$
#
# This time for a data set: several cells x₁ … x_N, **independent** of each other given the
# model, each with a z and a q of its own. The densities give a row for each cell, and `E` gives
# an array with a number for each cell. Write `of_cells(E, log_joint, log_posterior, log_q)`, which
# returns the bound on log p(x₁, …, x_N), and its gap.
#
# <details><summary>Hint</summary>What is the probability of independent cells together, and what
# is its logarithm?</details>


# %% nbgrader={"grade_id": "02-5", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def of_cells(E, log_joint, log_posterior, log_q):
    """The bound on log p of all cells, and its gap; each one number."""
    ### BEGIN SOLUTION
    bound = E(lambda z: log_joint(z) - log_q(z))  # (n_cells,)
    gap = E(lambda z: log_q(z) - log_posterior(z))
    return bound.sum(), gap.sum()
    ### END SOLUTION


# %% nbgrader={"grade_id": "02-5-check", "solution": false, "grade": true, "locked": true, "points": 2, "task": false, "schema_version": 3}
vaelab.check("02.5", of_cells)

# %% [markdown]
# A sum over cells: so a small random part of the cells (a *minibatch*), scaled up, estimates the
# whole. This is what makes training on a million cells possible, and it rests on independence.
#
# > **Spot the error.** "It follows" from log p(x_m) ≥ ELBO(x_m), a tutorial says, that
# > log p(x₁, …, x_M) = Σ log p(x_m) ≥ Σ ELBO(x_m). What else is needed? Can you think of cells
# > for which it fails?
# >
# > <details><summary>Solution</summary>The equality is an assumption: cells are independent, given
# > the parameters. Daughters of one cell are not, nor are neighbours in a slice of tissue, nor are
# > cells of one mouse if the model does not know of mice. (In lesson 10 it does.)</details>
#
# ## 5 · A gap that can be measured
#
# So far z had three values. Now we let it be continuous, and choose a model in which all is
# still known. The decoder is linear:
#
# $$z \sim \mathcal N(0, I),\qquad x \sim \mathcal N(Wz + b,\ \sigma^2 I)$$
#
# This is **probabilistic PCA** (Tipping and Bishop 1999): the best W spans the space of the first
# principal components. Sums of normal variables are normal, so evidence and posterior are
#
# $$p(x) = \mathcal N(b,\ WW^\top + \sigma^2 I),\qquad
# p(z\,|\,x) = \mathcal N\big(M^{-1}W^\top(x-b),\ \sigma^2M^{-1}\big),\quad
# M = W^\top W + \sigma^2 I$$
#
# and as q we take N(m, diag s²), a mean and a standard deviation for each latent dimension of each
# cell. Such a q, independent across dimensions, is called **mean-field**.


# %%
def exact_evidence(x, W, b, sigma):
    """log p(x) of each cell; shape (n_cells,)."""
    return MultivariateNormal(b, W @ W.T + sigma**2 * torch.eye(len(b))).log_prob(x)


def exact_posterior(x, W, b, sigma):
    """p(z | x) of each cell."""
    M = W.T @ W + sigma**2 * torch.eye(W.shape[1])
    return MultivariateNormal(torch.linalg.solve(M, W.T @ (x - b).T).T, sigma**2 * M.inverse())


torch.manual_seed(0)
W = torch.tensor([[1.5, 1.2], [0.2, 1.0], [-0.6, -0.3], [0.9, 0.6]])
b, sigma = torch.randn(4), torch.tensor(0.8)
x = torch.randn(100, 2) @ W.T + b + sigma * torch.randn(100, 4)  # 100 cells, 4 genes

# %% [markdown]
# ### Exercise 02.6 · The bound of a linear model, without a draw
# ★★★ · 10 minutes · 3 points
#
# Here the reconstruction term E_q[log p(x|z)] needs no draws from q: z appears in it as a square,
# and the mean of a square is known. Write `linear_bound(x, W, b, sigma, m, s)`, the ELBO of each
# cell, shape (n_cells,). All are tensors: x (n_cells, n_genes), W (n_genes, n_latent), b
# (n_genes,), sigma a single number, m and s (n_cells, n_latent). Take the logarithms from torch,
# since we shall want gradients.
#
# The check will never look at your formula. It compares your bound with log p(x) minus the gap. The
# rest of the lesson climbs this bound, so do not go on without it.
#
# <details><summary>Hint</summary>For one gene, x − b − w·z has mean x − b − w·m under q and
# variance Σ_d w_d² s_d². The mean of its square is the square of the mean, plus the
# variance. Do not forget the constant of the normal distribution, −½ log 2πσ² for each
# gene. The KL you have already.</details>


# %% nbgrader={"grade_id": "02-6", "solution": true, "grade": false, "locked": false, "task": false, "schema_version": 3}
def linear_bound(x, W, b, sigma, m, s):
    """E_q[log N(x; Wz + b, σ²I)] − KL(q ‖ N(0, I)) with q = N(m, diag s²), of each cell."""
    ### BEGIN SOLUTION
    squared_error = (x - b - m @ W.T) ** 2 + s**2 @ (W**2).T  # E_q[(x − b − Wz)²], per gene
    log_constant = torch.log(2 * torch.pi * sigma**2)
    reconstruction = -0.5 * (log_constant + squared_error / sigma**2).sum(-1)
    return reconstruction - 0.5 * (m**2 + s**2 - 1 - 2 * torch.log(s)).sum(-1)
    ### END SOLUTION


# %% nbgrader={"grade_id": "02-6-check", "solution": false, "grade": true, "locked": true, "points": 3, "task": false, "schema_version": 3}
vaelab.check("02.6", linear_bound)

# %% [markdown]
# Now the claim of this lesson, for 100 cells, each with a q drawn at random: bound and gap, which
# come from different formulas, must add up to the evidence. To ten decimals.

# %%
m, s = torch.randn(100, 2), torch.rand(100, 2) + 0.1
bound = linear_bound(x, W, b, sigma, m, s)
log_p_x = exact_evidence(x, W, b, sigma)
q = MultivariateNormal(m, torch.diag_embed(s**2))
gap = kl_divergence(q, exact_posterior(x, W, b, sigma))

worst = (bound + gap - log_p_x).abs().max().item()
print(f"largest gap {gap.max().item():.1f} nats, smallest {gap.min().item():.2f}")
print(f"bound + gap differs from log p(x) by less than 1e-10: {worst < 1e-10}")

# %% [markdown]
# ### A gap that will not close, and how to close it
#
# Give q the best mean there is, the posterior's, and the best standard deviations. (They are one
# over the roots of the diagonal of the posterior's *inverse* covariance.) Is the gap gone?


# %%
def best_mean_field(posterior):
    """m and s of the q nearest to a normal posterior, in KL(q‖posterior)."""
    s = posterior.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
    return posterior.mean, s.expand_as(posterior.mean)


def remaining_gap(W):
    posterior = exact_posterior(x, W, b, sigma)
    bound = linear_bound(x, W, b, sigma, *best_mean_field(posterior))
    return (exact_evidence(x, W, b, sigma) - bound).mean().item()


_, _, axes = torch.linalg.svd(W, full_matrices=False)
turned = W @ axes.T  # the same model, its latent axes turned: now the columns are orthogonal
print(f"as it is:     log p(x) = {exact_evidence(x, W, b, sigma).mean():.4f}, "
      f"gap {remaining_gap(W):.4f}")  # fmt: skip
print(f"axes turned:  log p(x) = {exact_evidence(x, turned, b, sigma).mean():.4f}, "
      f"gap {abs(remaining_gap(turned)):.4f}")  # fmt: skip

# %%
fig, panels = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
around = np.linspace(0, 2 * np.pi, 200)
circle = np.stack([np.cos(around), np.sin(around)])
for ax, weights, title in zip(panels, [W, turned], ["as it is", "latent axes turned"], strict=True):
    posterior = exact_posterior(x[:1], weights, b, sigma)
    centre, width = (v[0].numpy() for v in best_mean_field(posterior))
    aslant = centre[:, None] + posterior.scale_tril.squeeze().numpy() @ circle
    upright = centre[:, None] + width[:, None] * circle
    ax.plot(*aslant, color=plotting.COLOURS[2], lw=2, label="posterior p(z | x)")
    ax.plot(*upright, color=plotting.COLOURS[0], ls="--", lw=2, label="best q")
    ax.set(aspect="equal", xlabel="z₁")
    ax.set_title(f"{title}: gap {abs(remaining_gap(weights)):.2f} nats")
panels[0].set_ylabel("z₂")
_ = panels[0].legend(frameon=False, fontsize=9)

# %% [markdown]
# Left, the posterior of one cell (one standard deviation around its mean) lies aslant, because
# both dimensions act on the same genes: more of one can be made up for by less of the other. A
# mean-field q stands upright. Along each axis it is narrower than the posterior, as section 3
# foretold, and no amount of training q will close the gap.
#
# Right, the cure. Turning the latent axes changes W but not WWᵀ, and so not p(x): the data can't
# tell these two models apart. The *bound* can. Between the two it prefers the turned model,
# where q can be the posterior. This is a general truth about VAEs: a bound also chooses, among
# models that explain the data equally well, one whose posterior its q can match.
#
# And where q *is* the posterior, log p(x, z) − log q(z) is log p(x) for every single z. Five draws:

# %%
q = exact_posterior(x[:1], turned, b, sigma)
z = q.sample((5,)).squeeze(1)  # (5, 2)
log_p_z = Normal(0.0, 1.0).log_prob(z).sum(-1)
log_p_x_given_z = Normal(z @ turned.T + b, sigma).log_prob(x[0]).sum(-1)
weights = log_p_x_given_z + log_p_z - q.log_prob(z)
print("log p(x,z) − log q(z):", *[f"{v:.6f}" for v in weights])
print(f"log p(x):              {exact_evidence(x[:1], turned, b, sigma).item():.6f}")

# %% [markdown]
# ## 6 · Two objectives, one bound
#
# The bound has two sets of parameters: θ of the model (here W, b, σ), and φ of q (here m, s).
#
# $$\text{bound}(\theta, \varphi) =
# \log p_\theta(x) - \mathrm{KL}\big(q_\varphi\,\|\,p_\theta(z\,|\,x)\big)$$
#
# Moving φ can't change log p(x), so it can raise the bound only by lowering the KL: it makes
# **q a better posterior**. Moving θ to raise log p(x) makes **a better model**. Two objectives, and
# one number to climb for both.
#
# For a picture we need one θ and one φ. One gene, one latent dimension, one cell with x = 1.5: θ is
# the weight w, φ the mean m of q. The standard deviation of q is kept at its best.

# %%
one_x, one_b, noise = torch.tensor([[1.5]]), torch.zeros(1), 0.5  # noise is σ


def bound_of(w, m, s):
    """The bound for arrays w, m and s, one by one."""
    w, m, s = torch.broadcast_tensors(*(torch.as_tensor(v, dtype=torch.float64) for v in (w, m, s)))
    each = [  # linear_bound wants a W; here it has one gene and one dimension
        linear_bound(one_x, w_i, one_b, torch.tensor(noise), m_i, s_i)
        for w_i, m_i, s_i in zip(*(v.reshape(-1, 1, 1) for v in (w, m, s)), strict=True)
    ]
    return torch.cat(each).reshape(w.shape)


def best_s(w):
    return noise / (w**2 + noise**2) ** 0.5


def log_p_of(w):
    return stats.norm.logpdf(1.5, 0, np.sqrt(w**2 + noise**2))


v = torch.tensor([0.8, -0.6], requires_grad=True)  # w and m, where the climb begins
path = []
for _ in range(100):
    climbed = bound_of(v[0], v[1], best_s(v[0]))
    path.append([*v.tolist(), climbed.item()])
    (gradient,) = torch.autograd.grad(climbed, v)
    v = (v + 0.01 * gradient).detach().requires_grad_()
path = np.array(path)

# %%
w_axis, m_axis = np.linspace(0.02, 2.4, 60), np.linspace(-1.6, 2.0, 60)
w_grid, m_grid = np.meshgrid(w_axis, m_axis)
surface = bound_of(w_grid, m_grid, best_s(w_grid)).numpy()

fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
drawn = left.contourf(w_grid, m_grid, surface, levels=np.linspace(-9, -1, 17), extend="min")
fig.colorbar(drawn, ax=left, label="bound (nats)", format="%.0f")
no_gap = w_axis * 1.5 / (w_axis**2 + noise**2)  # the posterior mean of z
left.plot(w_axis, no_gap, color="white", ls="--", label="q is the posterior: no gap")
left.plot(*path[:, :2].T, color=plotting.COLOURS[5], lw=2, label="the climb")
left.plot(*path[0, :2], "o", color=plotting.COLOURS[5])
left.set(xlabel="w (θ, the model)", ylabel="m (φ, the mean of q)", ylim=(-1.6, 2.0))
left.set_title("One bound, two directions")
left.legend(fontsize=9, loc="lower right", labelcolor="white", facecolor="0.25")
right.plot(log_p_of(path[:, 0]), color=plotting.COLOURS[2], label="log p(x)")
right.plot(path[:, 2], color=plotting.COLOURS[5], label="bound")
right.fill_between(range(len(path)), path[:, 2], log_p_of(path[:, 0]), color="0.9", label="gap")
right.set(xlabel="step of the climb", ylabel="nats", ylim=(-6, -1), title="What the climb raises")
_ = right.legend(frameon=False, fontsize=9)

# %% [markdown]
# On the dashed line the gap is zero and the surface has the height of log p(x). The climb goes
# towards that ridge (q gets better), and along it (the model gets better).
#
# > **Spot the error.** A course says that maximising the bound improves the model "by increasing
# > the marginal", p(x). Look at the right-hand figure.
# >
# > <details><summary>Solution</summary>What increases is the <i>bound</i>. For two dozen steps
# > log p(x) falls, from −2.1 to −3.5, while the bound rises: as long as q is wrong, the model bends
# > towards what q can explain. Only from where q <i>is</i> the posterior (the dashed line) does
# > a step up the bound have to raise p(x).</details>
#
# > **Spot the error.** The same course writes that
# > min over θ of KL(p_data ‖ p_θ) *equals* the max over θ of E_data[log p_θ(x)].
# >
# > <details><summary>Solution</summary>The two have the same <i>best θ</i>, but not the same value.
# > KL(p_data ‖ p_θ) = E_data[log p_data] − E_data[log p_θ], and the first term, in which there is
# > no θ, is lost. One is a divergence, at best 0; the other is a log-probability.</details>
#
# ### Climb it yourself
#
# Now the model stays, unless you move it, and q has both its parameters. When the grey bar
# is gone, you are done.


# %%
def draw_bound(m, s, w):
    centre, width = w * 1.5 / (w**2 + noise**2), best_s(w)
    bound, log_p = bound_of(w, m, s).item(), log_p_of(w)
    fig, (left, middle, right) = plt.subplots(
        1, 3, figsize=(9.5, 3.6), layout="constrained", width_ratios=(1.2, 1.2, 0.8)
    )
    z = np.linspace(-3.5, 3.5, 300)
    left.plot(z, stats.norm.pdf(z), color="0.6", label="prior p(z)")
    exact = stats.norm.pdf(z, centre, width)
    left.plot(z, exact, color=plotting.COLOURS[2], label="posterior p(z | x)")
    left.plot(z, stats.norm.pdf(z, m, s), color=plotting.COLOURS[0], ls="--", label="q(z)")
    left.set(xlabel="latent z", ylabel="density", ylim=(0, 2), title="Where is z?")
    left.legend(frameon=False, fontsize=9, loc="upper left")
    m_grid, s_grid = np.meshgrid(np.linspace(-1, 2.5, 36), np.geomspace(0.1, 2, 36))
    height = bound_of(w, m_grid, s_grid).numpy()
    drawn = middle.contourf(m_grid, s_grid, height, levels=np.linspace(-10, -1, 19), extend="both")
    fig.colorbar(drawn, ax=middle, label="bound (nats)", format="%.0f")
    middle.plot(m, s, "o", color=plotting.COLOURS[5], ms=9)
    middle.set(yscale="log", xlabel="m, mean of q", ylabel="s, standard deviation of q")
    middle.set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
    middle.minorticks_off()
    middle.set_title("The surface over q")
    bars = {"log p(x)": log_p, "bound": bound, "−gap": bound - log_p}
    colours = [plotting.COLOURS[2], plotting.COLOURS[5], "0.7"]
    shown = right.bar(list(bars), list(bars.values()), color=colours)
    right.bar_label(shown, fmt="%.2f", padding=3)
    right.set(ylim=(-10, 0.5), ylabel="nats", title="bound = log p(x) − gap")
    return fig


_ = draw_bound(m=0.0, s=1.0, w=1.0)

# %% [markdown]
# This is the start: q is the prior. With a kernel running, move *m* and *s* until the gap is gone.
# Then move *w*, and see the posterior walk away from q.

# %% tags=["nbval-ignore-output"]
from ipywidgets import FloatLogSlider, FloatSlider

plotting.interactive(
    draw_bound,
    alt=(
        "Three panels: the posterior and q of z; the bound as a map over the mean and the "
        "standard deviation of q, with the chosen pair as a dot; and log p(x) as the sum of "
        "the bound and the KL."
    ),
    m=FloatSlider(0.0, min=-1, max=2.5, step=0.05, description="m", continuous_update=False),
    s=FloatLogSlider(1.0, min=-1, max=0.3, step=0.02, description="s", continuous_update=False),
    w=FloatSlider(1.0, min=0.1, max=2.4, step=0.05, description="w", continuous_update=False),
)

# %% [markdown]
# > **Spot the error.** A text on training a VAE says that the encoder's parameters φ are learned
# > by minimising the KL between q(z|x) and the *prior*. Which q is that?
# >
# > <details><summary>Solution</summary>The prior itself, as in the figure above: the same q for
# > every cell, which says nothing about any of them. This is <i>posterior collapse</i>. φ has to
# > raise both terms of the bound; the reconstruction pulls q away from the prior.</details>
#
# ## 7 · Variational inference in three steps
#
# Everything is there now. The recipe:
#
# 1. **Pick a family** of distributions q_φ(z|x) that you can evaluate and draw from.
# 2. **Optimise** the bound, in φ and θ together.
# 3. **Use** q_φ(z|x) wherever you would have used the posterior.
#
# One thing is new: if each of a million cells had its own m and s, φ would be long. So let a
# function of x give them, the **encoder**, with the same φ for all cells. This is called
# *amortised* inference, and it is what the dashed arrow of the diagram is. For a linear decoder
# the right encoder is linear too, m = Ax + c. Let us do it: 300 cells of three kinds, 20 genes. The
# model is told neither the kinds nor that there are any.

# %%
torch.manual_seed(1)
kind = torch.arange(300) % 3
true_W = torch.randn(20, 2)
corners = torch.tensor([[1.4, 0.0], [-0.7, 1.2], [-0.7, -1.2]])
x = (corners[kind] + 0.4 * torch.randn(300, 2)) @ true_W.T + 2 + 0.7 * torch.randn(300, 20)

θ = {"W": 0.1 * torch.randn(20, 2), "b": torch.zeros(20), "log_sigma": torch.zeros(())}
φ = {"A": 0.1 * torch.randn(2, 20), "c": torch.zeros(2), "log_s": torch.zeros(2)}  # 1. the family
for parameter in (*θ.values(), *φ.values()):
    parameter.requires_grad_()


def encode():
    return x @ φ["A"].T + φ["c"], φ["log_s"].exp().expand(300, 2)


def train():
    """2. optimise; every tenth step's number, bound and evidence."""
    optimiser = torch.optim.Adam([*θ.values(), *φ.values()], lr=0.05)
    smaller_steps = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.998)
    history = []
    for i in range(2001):
        bound = linear_bound(x, θ["W"], θ["b"], θ["log_sigma"].exp(), *encode()).mean()
        if i % 10 == 0:
            with torch.no_grad():
                log_p_x = exact_evidence(x, θ["W"], θ["b"], θ["log_sigma"].exp()).mean()
            history.append([i, bound.item(), log_p_x.item()])
        optimiser.zero_grad()
        (-bound).backward()
        optimiser.step()
        smaller_steps.step()
    return np.array(history).T


# %% [markdown]
# How good can it get? For this model the highest evidence is known from the eigenvalues of the
# data's covariance (Tipping and Bishop 1999, section 3). We draw how far below it we are.

# %%
steps, bounds, evidences = train()
λ = np.linalg.eigvalsh(np.cov(x.numpy(), rowvar=False, bias=True))[::-1]
log_det = np.log(λ[:2]).sum() + 18 * np.log(λ[2:].mean())
most = -0.5 * (20 * np.log(2 * np.pi) + log_det + 20)

fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8), layout="constrained")
left.plot(steps, most - evidences, color=plotting.COLOURS[2], label="the most possible − log p(x)")
left.plot(steps, most - bounds, color=plotting.COLOURS[5], label="the most possible − bound")
left.set(xlabel="step", ylabel="nats per cell", yscale="log", title="What is missing")
left.legend(frameon=False, fontsize=9)
means = encode()[0].detach().numpy()  # 3. use q
for k in range(3):
    style = {"color": plotting.COLOURS[k], "marker": plotting.MARKERS[k], "s": 18}
    right.scatter(*means[kind.numpy() == k].T, label=f"kind {k + 1}", **style)
right.set(xlabel="mean of q, z₁", ylabel="mean of q, z₂", title="Kinds that nobody told it of")
right.legend(frameon=False, fontsize=9)
print(f"bound {bounds[-1]:.2f}, log p(x) {evidences[-1]:.2f}, the most possible {most:.2f}")
# %% [markdown]
# The three agree to two decimals: the bound has found the best model, *and* its latent axes have
# turned so that a mean-field q can be the posterior. And since the model is generative, it
# answers all three questions of section 1: the kinds came out without a label; new cells can be
# drawn; and cells can be compared with what the model expects. Take a real cell, and the same
# cell with its genes shuffled:

# %%
with torch.no_grad():
    fitted = θ["W"], θ["b"], θ["log_sigma"].exp()
    shuffled = x[:1, torch.randperm(20)]
    new = torch.randn(1, 2) @ fitted[0].T + fitted[1] + fitted[2] * torch.randn(1, 20)
    for name, cell in {"of the data": x[:1], "its genes shuffled": shuffled, "new": new}.items():
        print(f"{name:20s} log p(x) = {exact_evidence(cell, *fitted).item():6.1f}")

# %% [markdown]
# ## 8 · The same two terms in the package
#
# `vaelab.VAE` has networks in place of A and W, and counts in place of normal values. Nothing else
# changes. Only the reconstruction has no closed form any more, and is an average over draws of z.
# We write the bound out, from the model's own words, and compare.

# %%
cells = vaelab.Cells.from_anndata(vaelab.simulate.dataset(n_cells=100, n_genes=50, seed=0)).to()
model = vaelab.VAE(n_genes=50, n_latent=5, likelihood="nb", seed=0).to(torch.float64).eval()
cells = cells.to(dtype=torch.float64)

torch.manual_seed(0)
with torch.no_grad():
    bound = model.elbo(cells)

torch.manual_seed(0)
with torch.no_grad():
    q = model.encode(cells)  # q(z | x)
    z = q.mean + q.stddev * torch.randn(1, 100, 5)  # one draw for each cell: lesson 03
    reconstruction = model.decode(z, cells).log_prob(cells.x).sum(-1).mean(0)
    by_hand = reconstruction - kl_to_prior(q.mean, q.stddev)
print("the same for each of 100 cells:", torch.allclose(by_hand, bound.per_cell(), atol=1e-9))
bound.ledger().round({"nats": 1})

# %% [markdown]
# The **ledger** lists a bound term by term: each row is a quantity, its sign in the bound, and its
# value. A KL is never below zero, and its sign is −. (The model is not trained yet.) Every model of
# this package gives its bound in this form, however many terms it has. The bound is the sum of the
# values, each with its sign.
#
# ## What was not used, and why
#
# *Draws from q inside the training*: with a linear decoder all averages have closed forms. How a
# gradient gets through a draw is lesson 03. *Many draws inside the logarithm*, which make a
# tighter bound: lesson 09. *Markov chains*, which draw from the posterior itself, given time for
# each cell: with a million cells there is none. *A weight on the KL* (β-VAE): with a weight below 1
# the sum is no bound. Lesson 04 says when one uses it nevertheless.
#
# ## What to take along
#
# - log p(x) = ELBO + KL(q‖posterior). Jensen gives only the ≥; the other two derivations say
#   what the gap is, the third in one line.
# - ELBO = reconstruction − KL to the prior. Both can be computed without the posterior.
# - A network between z and x loses the integral, whatever the likelihood. (It is not the only
#   way: with a normal z, Poisson counts of mean exp(w·z) have no closed form either.)
# - Test a KL where you know it: q = p gives 0. Test a bound where you know log p(x).
# - A step up the bound may improve q or the model. It need not improve p(x).
# - A mean-field q is too narrow, and the model bends to suit it.
#
# **Read on.** The bound of a VAE: D. Kingma and M. Welling, *Auto-Encoding Variational Bayes*
# (2014), §2.2, equations 1–3; the KL of section 3 is its appendix B. Variational inference at
# length: D. Blei, A. Kucukelbir and J. McAuliffe, *Variational Inference: A Review for
# Statisticians*, JASA 112 (2017) 859–877, §2.2 (the bound) and §2.3 (mean field). Probabilistic
# PCA: M. Tipping and C. Bishop, J. R. Stat. Soc. B 61 (1999) 611–622, §3. A linear VAE finds it:
# J. Lucas et al., *Don't Blame the ELBO!*, NeurIPS 2019. The same bound as the free energy of
# physics: D. MacKay, *Information Theory, Inference, and Learning Algorithms* (2003), chapter 33.
# This lesson follows
# the first half of a blog post, *Variational Autoencoders for Modeling Single-Cell Data* (2022),
# of the section "Two optimization objectives" of Harvard's MCB128 (2026), and of H. Gangloff's
# tutorial (2023). The bug is from the code behind A. Sarkar's notes (2019).
