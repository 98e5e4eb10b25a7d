"""What all models share: parameters that a constructor only stores, and the checks of what they are given.

Follows scikit-learn's conventions (get_params, set_params, names with a trailing underscore after fit) without
importing it.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

from ..data.checks import check_count, check_data, check_labels, check_real, check_widths

__all__ = [
    "DivergedError",
    "Estimator",
    "NotFittedError",
    "available_if",
    "check_count",
    "check_data",
    "check_labels",
    "check_real",
    "check_widths",
    "not_fitted",
]  # fmt: skip


class NotFittedError(ValueError, AttributeError):
    """A fitted model is needed, and this one is not fitted yet."""


def not_fitted(where: str) -> NotFittedError:
    """The error to raise; it is scikit-learn's NotFittedError too where that is loaded, so that either is caught."""
    kind: Any = NotFittedError
    theirs = sys.modules.get("sklearn.exceptions")
    if theirs is not None:
        reduced = lambda self: (NotFittedError, self.args)
        kind = type("NotFittedError", (kind, theirs.NotFittedError), {"__reduce__": reduced})
    return kind(f"{where}: the model is not fitted yet; call fit first")


class DivergedError(RuntimeError):
    """Training stopped because the loss was no longer finite; the model keeps its last good weights."""


class available_if:
    """A method that a model has if check(model); otherwise asking for it is an AttributeError that says why."""

    def __init__(self, check: Any, why: str) -> None:
        self.check, self.why = check, why

    def __call__(self, method: Any) -> Any:
        self.method, self.__doc__ = method, method.__doc__
        return self

    def __get__(self, model: Any, owner: Any = None) -> Any:
        if model is not None and not self.check(model):
            raise AttributeError(f"{owner.__name__}.{self.method.__name__}: {self.why}")
        return self.method.__get__(model, owner)


class Estimator:
    """Parameters by name: a subclass's constructor assigns its keyword arguments to attributes and does no more."""

    @classmethod
    def _parameters(cls) -> dict[str, Any]:
        found = list(inspect.signature(cls.__init__).parameters.values())[1:]
        return {p.name: p.default for p in found}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments; if deep, those of estimators among them too, as name__argument."""
        found = {name: getattr(self, name) for name in self._parameters()}
        for name, value in list(found.items()):
            if deep and hasattr(value, "get_params") and not isinstance(value, type):
                found |= {f"{name}__{inner}": v for inner, v in value.get_params().items()}
        return found

    def set_params(self, **params: Any) -> Any:
        """Change constructor arguments, name__argument for those of an estimator among them; returns the model."""
        known = self._parameters()
        for name in params:
            first, nested, _ = name.partition("__")
            if first not in known or (nested and not hasattr(params.get(first, getattr(self, first)), "set_params")):
                raise ValueError(f"{type(self).__name__} has no parameter {name!r}; it has {', '.join(known)}")
        for name in sorted(params, key=lambda name: "__" in name):  # the estimator before what is inside
            first, nested, inner = name.partition("__")
            if nested:
                getattr(self, first).set_params(**{inner: params[name]})
            else:
                setattr(self, name, params[name])
        return self

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks of estimators that do not inherit from its own."""
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags  # type: ignore[import-untyped]

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=(
                TransformerTags(preserves_dtype=["float64", "float32"]) if hasattr(self, "transform") else None
            ),
            input_tags=InputTags(three_d_array=True),
        )

    def __repr__(self) -> str:
        changed = [
            f"{name}={getattr(self, name)!r}"
            for name, default in self._parameters().items()
            if getattr(self, name) is not default and getattr(self, name) != default
        ]
        return f"{type(self).__name__}({', '.join(changed)})"
