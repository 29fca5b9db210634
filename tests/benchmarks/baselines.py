"""What a model that names cells must beat: tuned methods on principal components."""

import warnings

import numpy as np

PENALTIES = np.logspace(-4, 1, 11)  # C of logistic regression
NEIGHBOURS = (1, 3, 5, 10, 15)


def components(adata) -> np.ndarray:
    """30 principal components of the log-normalised counts of all cells, (n_cells, 30)."""
    import scanpy as sc

    return sc.pp.pca(adata.layers["log_normalized"], n_comps=30, random_state=0)


def log_score(model, x, types) -> float:
    """Minus the log loss of cells among which some types may be missing."""
    from sklearn.metrics import log_loss

    return -log_loss(types, model.predict_proba(x), labels=model.classes_)


def _chosen(model, grid: dict, adata, scoring) -> np.ndarray:
    """The types of all cells by the setting that five-fold cross-validation prefers."""
    from sklearn.model_selection import GridSearchCV

    pca, known = components(adata), adata.obs["known"].to_numpy(dtype=str)
    labelled = known != "unknown"
    with warnings.catch_warnings():  # a type with fewer than five labels is not in every fold
        warnings.filterwarnings("ignore", message="The least populated class")
        search = GridSearchCV(model, grid, scoring=scoring, cv=5)
        return search.fit(pca[labelled], known[labelled]).predict(pca)


def logistic_regression(adata, **options) -> np.ndarray:
    """The types of all cells; C is chosen on the labelled cells by the log loss."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=2000, **options)
    return _chosen(model, {"C": PENALTIES}, adata, log_score)


def nearest_neighbours(adata) -> np.ndarray:
    """The types of all cells; the number of neighbours is chosen on the labelled cells."""
    from sklearn.neighbors import KNeighborsClassifier

    return _chosen(KNeighborsClassifier(), {"n_neighbors": NEIGHBOURS}, adata, "accuracy")


def nearest_mean(adata) -> np.ndarray:
    """The type of each cell whose labelled cells have the nearest mean in the components."""
    from sklearn.neighbors import NearestCentroid

    pca, known = components(adata), adata.obs["known"].to_numpy(dtype=str)
    labelled = known != "unknown"
    return NearestCentroid().fit(pca[labelled], known[labelled]).predict(pca)
