"""Classification by Bayes' rule: p(class | x) is proportional to p(x | class) p(class), the first from a fitted model.

Not here: the likelihoods (density.py and the models).
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from .estimator import Estimator, check_labels, not_fitted

__all__ = ["GenerativeClassifier"]


class GenerativeClassifier(Estimator):
    """p(class | x) from a class-conditional model with a likelihood: VAE, VQVAE, FSQ or Diffusion.

    model: is left as it is; `fit` fits a copy, `model_`. priors (classes,): the probability of each class, in sorted
    order; as often as in training if None. After fit: model_, classes_, priors_, n_features_in_.
    """

    def __init__(self, model: Any, *, priors: Any = None) -> None:
        self.model, self.priors = model, priors

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags  # type: ignore[import-untyped]

        tags = super().__sklearn_tags__()
        tags.estimator_type, tags.classifier_tags, tags.target_tags.required = "classifier", ClassifierTags(), True
        tags.transformer_tags = None
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> GenerativeClassifier:
        """Fit a copy of the model to rows or images X (n, ...) and labels y (n,).

        sample_weight (n,): how much each row counts, in the model and in the priors.
        """
        where = "GenerativeClassifier.fit"
        if isinstance(self.model, type) or not hasattr(self.model, "class_scores"):
            what = self.model.__name__ if isinstance(self.model, type) else type(self.model).__name__
            raise TypeError(
                f"{where}: model must be an estimator with a likelihood per class (class_scores), such as VAE() or "
                f"Diffusion(), got {'the class ' if isinstance(self.model, type) else 'a '}{what}"
            )
        if y is None:
            raise ValueError(f"{where}: requires y to be passed, but the target y is None")
        given = None if self.priors is None else self._given_priors(where, y)
        params = self.model.get_params(deep=False)
        model = type(self.model)(**copy.deepcopy(params)).fit(X, y, sample_weight)
        self.model_, self.classes_, self.n_features_in_ = model, model.classes_, model.n_features_in_
        self.priors_ = model.priors_ if given is None else given
        return self

    def _given_priors(self, where: str, y: Any) -> np.ndarray:
        priors, classes = np.asarray(self.priors, np.float64), len(np.unique(check_labels(where, y, len(y))))
        if priors.shape != (classes,):
            raise ValueError(f"{where}: priors must have one number per class, ({classes},), got shape {priors.shape}")
        if not (np.isfinite(priors).all() and (priors >= 0).all() and abs(priors.sum() - 1) < 1e-6):
            raise ValueError(f"{where}: priors must be at least 0 and sum to 1, got {priors.tolist()}")
        return priors

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """log p(class | x), (n, classes), in the order of `classes_`.

        A row to which no class gives a density (it underflows far from all data) has the priors.
        """
        if not hasattr(self, "model_"):
            raise not_fitted("GenerativeClassifier.predict")
        scores = np.asarray(self.model_.class_scores(X), np.float64)
        scores = np.where(np.isnan(scores), -np.inf, scores)
        scores[~np.isfinite(scores).any(axis=1)] = 0.0
        with np.errstate(divide="ignore"):
            joint = scores + np.log(self.priors_)
        joint -= joint.max(axis=1, keepdims=True)
        return joint - np.log(np.exp(joint).sum(axis=1, keepdims=True))

    def predict_proba(self, X: Any) -> np.ndarray:
        """p(class | x), (n, classes), in the order of `classes_`."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of every row, (n,)."""
        best = np.argmax(self.predict_log_proba(X), axis=1)
        return self.classes_[best]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The accuracy: the part of the rows (by sample_weight, if given) whose class is predicted."""
        found = self.predict(X)
        right = found == check_labels("GenerativeClassifier.score", y, len(found))
        return float(np.average(right, weights=sample_weight))
