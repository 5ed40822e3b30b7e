"""What a linear classifier sees in pictures and labels: suspect labels, outliers, a map, a learning curve.

`x` are standardised pooled features [N, C] and `labels` the classes [N], 0 to `classes` - 1. Everything is float64 and
without iteration where possible, so that rounded results do not depend on the last bits of matrix products.
"""

import math
from collections.abc import Callable

from landmarks import split
from landmarks.determinism import stream
from landmarks.metrics import resample

import numpy as np
import pandas as pd

FOLDS = 5
NEIGHBOURS = 5
COMPONENTS, ITERATIONS, PERPLEXITY = 32, 500, 30  # settings of PCA and t-SNE for the map
FRACTIONS = (0.1, 0.2, 0.4, 0.7, 1.0)  # shares of the training pictures
REPEATS = 5  # random subsets for each fraction
DRAWS = 1000  # bootstrap resamples
BLOCK = 1 << 12  # pictures whose scores are in memory at a time


def pool(features: np.ndarray, views: pd.DataFrame) -> np.ndarray:
    """The mean features of each picture over positions and over its `views` (`id`, `row`), in id order, [N, C].

    Each channel is standardised over the pictures. Sums of float16 are exact in float64, in any order.
    """
    pictures, ids = pd.factorize(views["id"], sort=True)
    x = np.zeros((len(ids), features.shape[1]))
    for picture, row in zip(pictures, views["row"], strict=True):
        x[picture] += features[row].sum((1, 2), dtype=np.float64)
    x /= np.bincount(pictures)[:, None]
    x /= np.prod(features.shape[2:])
    x -= x.mean(0)
    spread = np.sqrt(np.einsum("nc,nc->c", x, x) / len(x))  # x.std(0) would take a copy of x
    x /= np.where(spread > 0, spread, 1)
    return x


def members(labels: np.ndarray, classes: int) -> list[np.ndarray]:
    """The positions of each class, ascending."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(classes + 1)))[1:-1]


def fit(x: np.ndarray, labels: np.ndarray, classes: int) -> Callable[[np.ndarray], np.ndarray]:
    """Trains linear discriminant analysis on the pictures whose label is not -1.

    It has a closed form: classes are Gaussian with one covariance, which is shrunk by the formula of Ledoit and Wolf
    (Journal of Multivariate Analysis 88, 2004). scikit-learn's shrinks one matrix per class, which takes ten times as
    long. A class without pictures is improbable. Returns a function that maps pictures [M, C] to the log-probabilities
    of the classes [M, classes], up to a constant.
    """
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    means = np.stack([x[rows].sum(0) for rows in members(labels, classes)]) / np.maximum(counts, 1)[:, None]
    covariance = shrunk_covariance(x, labels, means)
    covariance[np.diag_indices(len(covariance))] += 1e-6  # with one picture per class, it is 0
    weights = np.linalg.solve(covariance, means.T)
    prior = np.log(np.maximum(counts, 1e-9) / counts.sum())
    offset = prior - (means * weights.T).sum(1) / 2
    return lambda rows: rows @ weights + offset


def shrunk_covariance(x: np.ndarray, labels: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The covariance [C, C] of `x` around the `means` of the classes [K, C], shrunk towards a multiple of the identity.

    Leaves out pictures whose label is -1. scikit-learn's `ledoit_wolf` gives the same, but holds four copies of `x`.
    """
    count, size, fourth = (labels >= 0).sum(), x.shape[1], 0.0
    scatter = np.zeros((size, size))
    for rows, mean in zip(members(labels, len(means)), means, strict=True):
        centred = x[rows] - mean
        scatter += centred.T @ centred
        fourth += np.square(np.square(centred).sum(1)).sum()
    covariance = scatter / count
    variance, squares = np.trace(covariance) / size, np.square(covariance).sum()
    distance, noise = squares / size - variance**2, (fourth / count - squares) / (count * size)
    shrinkage = min(noise / distance, 1) if distance > 0 else 0
    return (1 - shrinkage) * covariance + shrinkage * variance * np.identity(size)


def blocks(rows: np.ndarray) -> list[np.ndarray]:
    """`rows` in parts that limit the memory for scores."""
    return np.array_split(rows, math.ceil(len(rows) / BLOCK))


def suspects(x: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: int, seed: int) -> pd.DataFrame:
    """For each picture, `score`, the probability of the given label, and `suggested`, the most probable other class.

    The probabilities come from a classifier that has not seen the picture. There are five folds. Near-duplicates
    (`groups` [N]) share one, except if they are more than half of a class: a classifier would lack most of it. The
    logits are divided by one temperature, which maximises the likelihood of the labels of at most `BLOCK` pictures
    (Guo et al., arXiv 1706.04599, section 4.2); otherwise most probabilities would be 0 or 1. The score is the
    "self-confidence" of Northcutt et al. (arXiv 1911.00068), the default of the package cleanlab.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax, softmax

    shares = {str(fold): 1 / FOLDS for fold in range(FOLDS)}
    counts = pd.Series(labels).groupby([labels, groups]).transform("size")
    majority = 2 * counts > np.bincount(labels)[labels]
    groups = np.where(majority, groups.max() + 1 + np.arange(len(x)), groups)
    folds = split.assign(labels, groups, shares, seed)
    classifiers = {fold: fit(x, np.where(folds == fold, -1, labels), classes) for fold in np.unique(folds)}

    def scores(rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), classes))
        for fold, classifier in classifiers.items():
            own = folds[rows] == fold
            found[own] = classifier(x[rows[own]])
        return found

    everything = np.arange(len(x))
    some = everything[:: math.ceil(len(x) / BLOCK)]
    found, truth = scores(some), (np.arange(len(some)), labels[some])

    def loss(temperature: float) -> float:
        return -log_softmax(found / temperature, axis=1)[truth].mean()

    temperature = round(minimize_scalar(loss, bounds=(0.5, 100), method="bounded").x, 1)
    tables = []
    for rows in blocks(everything):
        logits, given = scores(rows) / temperature, (np.arange(len(rows)), labels[rows])
        score = softmax(logits, axis=1)[given].round(6)
        others = logits.round(6)  # not their probabilities: beside a certain label they may all be 0
        others[given] = -np.inf
        tables.append(pd.DataFrame({"suggested": others.argmax(1), "score": score}))
    return pd.concat(tables, ignore_index=True)


def suspect_score(classes: int) -> float:
    """A label with a lower score is counted as suspect: 0.01, or a fifth of chance with many classes."""
    return min(0.01, 0.2 / classes)


def outlier_distances(x: np.ndarray, labels: np.ndarray, trains: np.ndarray) -> np.ndarray:
    """The mean distance of each picture to the 5 nearest others of its class, divided by the class's median: [N].

    They are divided again by the median of the training pictures (`trains` [N], bool) or of the others, because the
    features of training pictures are means of several views and therefore nearer to each other. So 1 is usual. Nearest
    pictures, not the mean, are the measure, because a class may have several kinds of pictures, such as inside and
    outside. A single picture has 1.
    """
    from sklearn.neighbors import NearestNeighbors

    distances = np.ones(len(labels))
    for members in pd.Series(labels).groupby(labels).indices.values():
        if len(members) > 1:
            nearest = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(members) - 1)).fit(x[members])
            distances[members] = nearest.kneighbors()[0].mean(1)
            distances[members] /= np.median(distances[members]) or 1
    for part in (trains, ~trains):
        distances[part] /= np.median(distances[part]) or 1
    return distances


def embed(x: np.ndarray) -> np.ndarray:
    """A map of the pictures on which similar ones are neighbours: t-SNE of the first principal components, [N, 2].

    t-SNE amplifies every difference. Both run in one thread, so that their bits are the same for any number of cores.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        components = PCA(min(COMPONENTS, *x.shape), svd_solver="covariance_eigh").fit_transform(x).round(6)
        start = (components[:, :2] / (components[:, 0].std() or 1) * 1e-4).astype(np.float32)
        tsne = TSNE(perplexity=min(PERPLEXITY, (len(x) - 1) / 3), init=start, max_iter=ITERATIONS, n_jobs=1)
        return tsne.fit_transform(components)


def learning_curve(x: np.ndarray, labels: np.ndarray, trains: np.ndarray, classes: int, seed: int) -> pd.DataFrame:
    """Accuracy on the other pictures for growing parts of the training pictures (`trains` [N], bool).

    Columns: `share`, `pictures`, `accuracy` (mean over random subsets, each with the same share of every class), `low`
    and `high` (95 % bootstrap interval over the pictures), `trend`. The last row, share 2, is a prediction: `trend` and
    its interval. The trend is error = a * pictures ** -b (Hestness et al., arXiv 1712.00409), a straight line of
    logarithms by least squares.
    """
    training, judged = np.flatnonzero(trains), np.flatnonzero(~trains)
    right, sizes = np.zeros((len(judged), len(FRACTIONS))), np.zeros(len(FRACTIONS))
    everything = np.arange(len(x))
    for repeat in range(REPEATS):
        order = pd.Series(stream(seed, "learning-curve", repeat).permutation(training))
        classmates = order.groupby(labels[order])
        rank, size = classmates.cumcount(), classmates.transform("size")
        for column, fraction in enumerate(FRACTIONS):
            chosen = order[rank < np.ceil(fraction * size)]
            classifier = fit(x, np.where(np.isin(everything, chosen), labels, -1), classes)
            answers = np.concatenate([classifier(x[rows]).argmax(1) for rows in blocks(judged)])
            right[:, column] += (answers == labels[judged]) / REPEATS
            sizes[column] = len(chosen)
    sizes = np.append(sizes, 2 * sizes[-1])

    def trend(accuracy: np.ndarray) -> np.ndarray:
        error = np.log(np.maximum(1 - accuracy, 1 / len(judged)))
        degree = min(1, len(np.unique(sizes[:-1])) - 1)  # 0 if every class has one training picture
        *slope, start = np.polyfit(np.log(sizes[:-1]), error.T, degree)
        return 1 - np.minimum(np.exp(start + sum(slope) * np.log(sizes[:, None])), 1)

    means = resample(right.round(6).T, DRAWS, stream(seed, "bootstrap")) / len(judged)
    draws = np.column_stack([means, trend(means)[-1]])
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    accuracy = right.mean(0)
    columns = {"share": [*FRACTIONS, 2.0], "pictures": sizes.astype(int), "accuracy": [*accuracy, np.nan]}
    return pd.DataFrame(columns | {"low": low, "high": high, "trend": trend(accuracy[None])[:, 0]})
