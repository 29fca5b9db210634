"""Evidence for lesson 13: what each claim rests on. Run with ``vaelab evidence 13``."""

import warnings
from functools import cache

import numpy as np
import scanpy as sc
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

import vaelab
from vaelab.teaching.evidence import Condition, claim, every, more, near
from vaelab.teaching.recipes import label_scores, sorted_blood

PENALTIES = np.logspace(-4, 1, 11)


def ahead(a, b, at_least=0.8):
    """``a`` exceeds ``b`` in this share of the seeds; the others may fail by any amount."""
    words = f"{a} is above {b} for at least {at_least:.0%} of the seeds"
    return Condition(words, (a, b), lambda numbers: (numbers[a] > numbers[b]).mean() >= at_least)


# ------------------------------------------------------------------------------ tuned baselines


def log_score(model, x, names):
    """Minus the log loss; a fold may lack a type."""
    return -log_loss(names, model.predict_proba(x), labels=model.classes_)


def tuned(model, grid, scoring, x, names):
    """Five-fold cross-validation on the labelled cells chooses the setting."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        return GridSearchCV(model, grid, scoring=scoring, cv=5).fit(x, names)


def regression(x, names):
    return tuned(LogisticRegression(max_iter=2000), {"C": PENALTIES}, log_score, x, names)


def neighbours(x, names):
    grid = {"n_neighbors": [1, 3, 5, 10, 15]}
    return tuned(KNeighborsClassifier(), grid, "accuracy", x, names)


def components(values):
    return sc.pp.pca(values, n_comps=30, random_state=0)


def found_by_baselines(x, names, known):
    """The types of all cells by each baseline that learns from the known ones."""
    return {
        "regression": regression(x[known], names[known]).predict(x),
        "neighbours": neighbours(x[known], names[known]).predict(x),
        "nearest_mean": NearestCentroid().fit(x[known], names[known]).predict(x),
    }


def fitted(cells, seed, fit=(), **options):
    sizes = {"n_labels": len(cells.label_names), "n_batches": len(cells.batch_names)}
    model = vaelab.SCANVI(cells.n_genes, likelihood="nb", seed=seed, **sizes | options)
    vaelab.fit(model, cells, seed=seed, progress=False, **dict(fit))
    return model


def named(model, cells):
    return np.array(model.label_names)[model.predict(cells).argmax(1)]


# ------------------------------------------------------------------------ one species to another


@cache
def two_species(labelled):
    """The cells, and what the baselines name; no randomness."""
    adata = vaelab.select_genes(vaelab.datasets.pancreas_species())
    names = adata.obs["cell_type"].to_numpy(dtype=str)
    known = (adata.obs["batch"] == labelled).to_numpy()
    adata.obs["known"] = np.where(known, names, "unknown")
    values = adata.layers["log_normalized"].toarray()
    found = found_by_baselines(components(values), names, known)
    for each in (known, ~known):  # the same, with every gene at mean 0 and variance 1 per species
        values[each] -= values[each].mean(0)
        values[each] /= np.maximum(values[each].std(0), 1e-3)
    x = components(values)
    found["standardised"] = regression(x[known], names[known]).predict(x)
    return adata, names, known, found


@cache
def opinions(labelled, seed):
    """The names of types, and q(c|x) of every cell by one training."""
    adata, *_ = two_species(labelled)
    cells = vaelab.Cells.from_anndata(
        adata, layer="counts", label="known", batch="batch", unlabelled="unknown"
    )
    model = fitted(cells, seed, {"validation_fraction": 0}, n_latent=20)
    return np.array(model.label_names), model.predict(cells)


def across(labelled, seed):
    _, names, known, found = two_species(labelled)
    types, q = opinions(labelled, seed)
    found = found | {"scanvi": types[q.argmax(1)]}
    scores = {method: label_scores(names[~known], f[~known]) for method, f in found.items()}
    return {f"{method}_{s}": value for method, of in scores.items() for s, value in of.items()}


@claim(
    "E13.to_mouse",
    "Mouse cells, named from human ones: four trainings of SCANVI in five name more cells rightly "
    "than regression, also after each gene was standardised; one in five fails.",
    holds=every(
        ahead("scanvi_accuracy", "regression_accuracy"),
        ahead("scanvi_accuracy", "standardised_accuracy"),
        more("regression_accuracy", "neighbours_accuracy"),
    ),
    seeds=range(5, 10),
)
def to_mouse(seed: int) -> dict[str, float]:
    return across("human", seed)


@claim(
    "E13.to_human",
    "Human cells, named from mouse ones: four trainings of SCANVI in five name more cells rightly "
    "than regression, also after each gene was standardised; one in five fails.",
    holds=every(
        ahead("scanvi_accuracy", "regression_accuracy"),
        ahead("scanvi_accuracy", "standardised_accuracy"),
    ),
    seeds=range(5, 10),
)
def to_human(seed: int) -> dict[str, float]:
    return across("mouse", seed)


def vote_of_three(labelled, seed):
    """This training's mean confidence, and the share of right names by its vote with the next two."""
    _, names, known, _ = two_species(labelled)
    three = [
        opinions(labelled, number) for number in (seed, 5 + (seed - 4) % 5, 5 + (seed - 3) % 5)
    ]
    types, truth, q = three[0][0], names[~known], np.array([q[~known] for _, q in three])
    return float(q[0].max(1).mean()), float((types[q.mean(0).argmax(1)] == truth).mean())


@claim(
    "E13.vote",
    "From one species to the other, the mean probabilities of three trainings name 98 % of the cells "
    "rightly or more, also if one of the three failed. A failed training is as certain as others.",
    holds=every(
        *(near(f"vote_{to}", 0.99, 0.0125) for to in ("to_mouse", "to_human")),
        *(near(f"confidence_{to}", 0.98, 0.025) for to in ("to_mouse", "to_human")),
    ),
    seeds=range(5, 10),  # the trainings of the two claims above
    # on another processor other trainings may fail, and then two of three
    tolerance={"vote_to_mouse": 0.45, "vote_to_human": 0.2},
)
def vote(seed: int) -> dict[str, float]:
    numbers = {}
    for to, labelled in (("to_mouse", "human"), ("to_human", "mouse")):
        numbers[f"confidence_{to}"], numbers[f"vote_{to}"] = vote_of_three(labelled, seed)
    return numbers


# ------------------------------------------------------------------------ sorted blood, 20 labels


def calibration_error(confidence, right, n_bins=10):
    of_bin = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    bins = [of_bin == b for b in np.unique(of_bin)]
    return sum(abs(confidence[b].sum() - right[b].sum()) for b in bins) / len(right)


def sets(p, is_true, mass=0.9):
    """Coverage and mean size of the smallest sets of names that hold this probability."""
    order = np.argsort(-p, axis=1)
    size = (np.cumsum(np.take_along_axis(p, order, 1), 1) < mass).sum(1) + 1
    place = np.take_along_axis(is_true, order, 1).argmax(1)  # of the true name
    return (place < size).mean(), size.mean()


@cache
def blood(seed):
    adata = vaelab.select_genes(sorted_blood(seed=seed))
    names, hidden = adata.obs["cell_type"].to_numpy(dtype=str), adata.obs["known"] == "unknown"
    hidden = hidden.to_numpy()
    x = components(adata.layers["log_normalized"])
    found = found_by_baselines(x, names, ~hidden)
    cells = vaelab.Cells.from_anndata(adata, layer="counts", label="known", unlabelled="unknown")
    model = fitted(cells, seed, {"kl_warmup": 200}, n_latent=20)  # as the saved model
    found["scanvi"] = named(model, cells)
    probabilities = {
        "mean_of_z1": model.predict(cells)[hidden],
        "draws_of_z1": model.predict(cells, n_samples=100)[hidden],
        "regression": regression(x[~hidden], names[~hidden]).predict_proba(x)[hidden],
    }
    return names[hidden], {m: f[hidden] for m, f in found.items()}, probabilities


@claim(
    "E13.blood_names",
    "Sorted blood, 20 labels per type: SCANVI and the plain nearest mean find more of each type than "
    "tuned regression does, and regression more than the nearest neighbours.",
    holds=every(
        more("scanvi_balanced_accuracy", "regression_balanced_accuracy"),
        more("nearest_mean_balanced_accuracy", "regression_balanced_accuracy"),
        more("regression_balanced_accuracy", "neighbours_balanced_accuracy"),
    ),
)
def blood_names(seed: int) -> dict[str, float]:
    names, found, _ = blood(seed)
    scores = {method: label_scores(names, f) for method, f in found.items()}
    return {f"{method}_{s}": value for method, of in scores.items() for s, value in of.items()}


@claim(
    "E13.calibration",
    "With 20 labels per type SCANVI is too sure; averaging over z1 takes a part of that back; tuned "
    "regression has the smallest calibration error.",
    holds=every(
        more("mean_of_z1_confidence", "mean_of_z1_right"),
        more("mean_of_z1_error", "draws_of_z1_error"),
        more("draws_of_z1_error", "regression_error"),
    ),
)
def calibration(seed: int) -> dict[str, float]:
    names, _, probabilities = blood(seed)
    types, numbers = np.unique(names), {}
    for way, p in probabilities.items():
        right = types[p.argmax(1)] == names
        numbers |= {f"{way}_right": right.mean(), f"{way}_confidence": p.max(1).mean()}
        numbers[f"{way}_error"] = calibration_error(p.max(1), right)
    return numbers


@claim(
    "E13.sets_of_names",
    "Sets of names that claim 90 % hold the true name less often if SCANVI classifies the mean of "
    "z1 than if it averages over z1, and then less often than those of tuned regression.",
    holds=every(
        more("draws_of_z1_holds", "mean_of_z1_holds"),
        more("regression_holds", "draws_of_z1_holds"),
    ),
)
def sets_of_names(seed: int) -> dict[str, float]:
    names, _, probabilities = blood(seed)
    is_true, numbers = names[:, None] == np.unique(names), {}
    for way, p in probabilities.items():
        numbers[f"{way}_holds"], numbers[f"{way}_names"] = sets(p, is_true)
    return numbers


@claim(
    "E13.soft",
    "A soft label that is right about CD8 in nine T cells of ten, multiplied into the "
    "probabilities, makes more names right.",
    holds=every(more("scanvi_with", "scanvi"), more("regression_with", "regression")),
)
def soft(seed: int) -> dict[str, float]:
    names, _, probabilities = blood(seed)
    types, numbers = np.unique(names), {}
    is_cd8, is_t = np.char.endswith(types, "cytotoxic T"), np.char.endswith(types, " T")
    of_cell = np.searchsorted(types, names)
    says_cd8 = is_cd8[of_cell] ^ (np.random.default_rng(seed).random(len(names)) < 0.1)
    r = np.where(is_cd8 == says_cd8[:, None], 0.9, 0.1)
    r[~is_t[of_cell]] = 1.0  # only T cells were stained
    for method, way in (("scanvi", "draws_of_z1"), ("regression", "regression")):
        p = probabilities[way]
        numbers[method] = (types[p.argmax(1)] == names).mean()
        numbers[f"{method}_with"] = (types[(p * r).argmax(1)] == names).mean()
    return numbers


# --------------------------------------------------------------- a small table, 40 labels per type


tubes = cache(vaelab.datasets.pbmc_sorted)


@cache
def small(seed):
    """A hundred cells of each blood type, 40 of them with a label; drawn again for each seed."""
    rng = np.random.default_rng(seed)
    names = tubes().obs["cell_type"].to_numpy(dtype=str)
    rows = [rng.choice(np.flatnonzero(names == t), 100, replace=False) for t in np.unique(names)]
    adata = vaelab.select_genes(tubes()[np.sort(np.concatenate(rows))].copy(), n_genes=500)
    names = adata.obs["cell_type"].to_numpy(dtype=str)
    kept = [rng.choice(np.flatnonzero(names == t), 40, replace=False) for t in np.unique(names)]
    has_label = np.isin(np.arange(len(names)), kept)
    return adata, names, has_label, components(adata.layers["log_normalized"])


def fitted_to_small(seed, labels, epochs, **options):
    cells = vaelab.Cells.from_array(
        small(seed)[0].layers["counts"], label=labels, unlabelled="unknown"
    )
    fit = {"validation_fraction": 0, "epochs": epochs}
    return fitted(cells, seed, fit, **options), cells


def flipped(names, share, seed):
    """Names of which a share is replaced by another type, at random."""
    rng, wrong = np.random.default_rng(1000 + seed), names.copy()
    for i in np.flatnonzero(rng.random(len(names)) < share):
        wrong[i] = rng.choice(np.setdiff1d(names, names[i]))
    return wrong


@cache
def regressed(seed):
    _, names, has_label, x = small(seed)
    return regression(x[has_label], names[has_label]).predict(x)


@cache
def noisy(seed, share, weight):
    """SCANVI on labels of which a share is wrong, each of this weight."""
    _, names, has_label, _ = small(seed)
    given = np.where(has_label, flipped(names, share, seed), "unknown")
    return fitted_to_small(seed, given, 100, classifier_weight=weight, classifier_mean=False)


@claim(
    "E13.weight",
    "With a weight of 1 per label SCANVI names more cells rightly than with 100 and than tuned "
    "regression does, is less too sure, and has the higher bound.",
    holds=every(
        more("excess_100", "excess_1"),
        more("bound_1", "bound_100"),
        more("accuracy_1", "accuracy_100"),
        more("accuracy_1", "regression"),
    ),
)
def weight(seed: int) -> dict[str, float]:
    _, names, has_label, _ = small(seed)
    numbers = {"regression": (regressed(seed) == names)[~has_label].mean()}
    for w in (1, 100):
        model, cells = noisy(seed, 0.0, float(w))
        p = model.predict(cells)[~has_label]
        right = np.array(model.label_names)[p.argmax(1)] == names[~has_label]
        numbers[f"accuracy_{w}"] = right.mean()
        numbers[f"excess_{w}"] = p.max(1).mean() - right.mean()
        numbers[f"bound_{w}"] = model.elbo_per_cell(cells.unlabelled()).mean()
    return numbers


@claim(
    "E13.noise",
    "With four labels in ten wrong at random, SCANVI loses less accuracy if a label weighs 1 than "
    "if it weighs 100, and calls more of the wrongly labelled cells by their true type.",
    holds=every(
        more("lost_100", "lost_1"),
        more("true_type_1", "true_type_100"),
        more("accuracy_1", "accuracy_neighbours"),
        more("found_1", "as_expected"),
    ),
)
def noise(seed: int) -> dict[str, float]:
    _, names, has_label, x = small(seed)
    wrong = flipped(names, 0.4, seed)
    is_wrong, numbers = has_label & (wrong != names), {}
    for method, fit in (("regression", regression), ("neighbours", neighbours)):
        after = fit(x[has_label], wrong[has_label]).predict(x)
        before = regressed(seed)
        if method == "neighbours":
            before = fit(x[has_label], names[has_label]).predict(x)
        numbers[f"lost_{method}"] = (before == names)[~has_label].mean() - (after == names)[
            ~has_label
        ].mean()
        numbers[f"accuracy_{method}"] = (after == names)[~has_label].mean()
        numbers[f"true_type_{method}"] = (after == names)[is_wrong].mean()
    for w in (1, 100):
        (clean, cells), (model, its_cells) = (noisy(seed, s, float(w)) for s in (0.0, 0.4))
        right = named(model, its_cells) == names
        numbers[f"accuracy_{w}"] = right[~has_label].mean()
        numbers[f"lost_{w}"] = (named(clean, cells) == names)[~has_label].mean() - right[
            ~has_label
        ].mean()
        numbers[f"true_type_{w}"] = right[is_wrong].mean()
        if w == 1:  # the fifth of the labels that is believed least
            p = model.predict(its_cells)
            of_label = p[np.arange(len(p)), np.searchsorted(model.label_names, wrong)][has_label]
            first = np.argsort(of_label)[: len(of_label) // 5]
            numbers["found_1"] = is_wrong[has_label][first].mean()
            numbers["as_expected"] = is_wrong[has_label].mean()
    return numbers


# ------------------------------------------------------------- wrong labels that look at the cell


def above(a, value):
    return Condition(f"{a} is above {value} for every seed", (a,), lambda n: n[a].min() > value)


@claim(
    "E13.lookalike",
    "Alpha and gamma cells of mouse 2, three labels in ten wrong: the measured accuracy is lower "
    "than the true one, but much less so if labels are wrong where the cell looks most like the "
    "other type. The correction for random errors, (measured − 0.3) / 0.4, is then above 1.",
    holds=every(
        more("random_true", "random_exam"),
        more("alike_exam", "random_exam"),
        above("alike_exam", 0.7),
    ),
)
def lookalike(seed: int) -> dict[str, float]:
    adata = vaelab.datasets.pancreas(mouse=2)
    islet = adata.obs["cell_type"].isin(["alpha", "beta", "delta", "gamma"])
    adata = vaelab.select_genes(adata[islet].copy(), n_genes=1000)
    names, rng = adata.obs["cell_type"].to_numpy(dtype=str), np.random.default_rng(seed)
    x = components(adata.layers["log_normalized"])
    has_label = np.isin(np.arange(len(names)), rng.permutation(len(names))[: len(names) // 2])
    pair = np.isin(names, ["alpha", "gamma"])
    other = np.where(names == "alpha", "gamma", "alpha")
    looks = LogisticRegression(max_iter=2000, C=0.01).fit(x[pair], names[pair])
    p_other = looks.predict_proba(x)[np.arange(len(x)), (names == "alpha").astype(int)]
    numbers = {}
    for kind in ("random", "alike"):
        given = names.copy()
        for name in ("alpha", "gamma"):
            of_type = np.flatnonzero(names == name)
            n_wrong = round(0.3 * len(of_type))
            order = (
                rng.permutation(of_type)
                if kind == "random"
                else of_type[np.argsort(-p_other[of_type])]
            )
            given[order[:n_wrong]] = other[order[:n_wrong]]
        cells = vaelab.Cells.from_array(
            adata.layers["counts"],
            label=np.where(has_label, given, "unknown"),
            unlabelled="unknown",
        )
        fit = {"validation_fraction": 0, "epochs": 60}
        model = fitted(cells, seed, fit, classifier_weight=1.0, classifier_mean=False)
        asked, found = pair & ~has_label, named(model, cells)
        numbers[f"{kind}_true"] = (found == names)[asked].mean()
        numbers[f"{kind}_exam"] = (found == given)[asked].mean()
        regressed = regression(x[has_label], given[has_label]).predict(x)
        numbers[f"{kind}_true_regression"] = (regressed == names)[asked].mean()
        numbers[f"{kind}_exam_regression"] = (regressed == given)[asked].mean()
    return numbers
