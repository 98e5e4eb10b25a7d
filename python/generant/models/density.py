"""Models whose density can be worked out: score_samples and score, in nats, conditional or not."""

from __future__ import annotations

from typing import Any

import numpy as np

from .generative import GenerativeModel

__all__ = ["DensityModel"]


class DensityModel(GenerativeModel):
    """A generative model with a likelihood: `_score` gives log p(x | class) of scaled rows."""

    def _score(self, x: np.ndarray, codes: np.ndarray | None) -> np.ndarray:
        """log p of scaled rows x (m, d) given their classes, (m,) float64 nats, in the unit of scaled rows."""
        raise TypeError(f"{type(self).__name__} does not say what its likelihood is")

    def _log_density(self) -> float:
        """What to add to `_score`: the change of unit from scaled rows to X; 0 for a likelihood of discrete data."""
        return self.scaling_.log_density

    @property
    def _log_priors(self) -> np.ndarray:
        """log p(class), (classes,): -inf for one that was announced and has not been seen."""
        with np.errstate(divide="ignore"):
            return np.log(self.priors_)

    def class_scores(self, X: Any) -> np.ndarray:
        """log p(x | class) for every class of `classes_`, (n, classes), in nats."""
        self._fitted("class_scores")
        if self.classes_ is None:
            raise ValueError(f"{type(self).__name__}.class_scores: the model was fitted without labels")
        return self._exact_class_scores(self._scaled(f"{type(self).__name__}.class_scores", X))

    def _exact_class_scores(self, x: np.ndarray) -> np.ndarray:
        scores = [self._score(x, np.full(len(x), c, np.int64)) for c in range(self._n_classes)]
        return np.stack(scores, axis=1) + self._log_density()

    def score_samples(self, X: Any, y: Any = None) -> np.ndarray:
        """log p(x) of every row in nats, (n,); log p(x | y) if labels y (n,) are given.

        A model that was fitted without labels takes no notice of y, as scikit-learn's pipelines expect.

        A conditional model without y gives log sum_c p(c) p(x | c), p(c) as often as in training.
        """
        self._fitted("score_samples")
        where = f"{type(self).__name__}.score_samples"
        x = self._scaled(where, X)
        if self.classes_ is None:
            return self._score(x, None) + self._log_density()
        if y is not None:
            return self._score(x, self._encode(where, y, len(x))) + self._log_density()
        joint = self.class_scores(X) + self._log_priors
        top = joint.max(axis=1, keepdims=True)
        return top[:, 0] + np.log(np.exp(joint - top).sum(axis=1))

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of `score_samples`, in nats per row."""
        return float(np.mean(self.score_samples(X, y)))
