"""What all models share: parameters that a constructor only stores, and the checks of what they are given.

Follows scikit-learn's conventions (get_params, set_params, names with a trailing underscore after fit) without
importing it.
"""

from __future__ import annotations

import inspect
from typing import Any

from ..data.checks import check_count, check_data, check_labels, check_real

__all__ = ["DivergedError", "Estimator", "NotFittedError", "check_count", "check_data", "check_labels", "check_real"]


class NotFittedError(ValueError, AttributeError):
    """A fitted model is needed, and this one is not fitted yet."""


class DivergedError(RuntimeError):
    """Training stopped because the loss was no longer finite; the model keeps its last good weights."""


class Estimator:
    """Parameters by name: a subclass's constructor assigns its keyword arguments to attributes and does no more."""

    @classmethod
    def _parameters(cls) -> dict[str, Any]:
        found = list(inspect.signature(cls.__init__).parameters.values())[1:]
        return {p.name: p.default for p in found}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments."""
        return {name: getattr(self, name) for name in self._parameters()}

    def set_params(self, **params: Any) -> Any:
        """Change constructor arguments; returns the model."""
        known = self._parameters()
        for name, value in params.items():
            if name not in known:
                raise ValueError(f"{type(self).__name__} has no parameter {name!r}; it has {', '.join(known)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        changed = [
            f"{name}={getattr(self, name)!r}"
            for name, default in self._parameters().items()
            if getattr(self, name) is not default and getattr(self, name) != default
        ]
        return f"{type(self).__name__}({', '.join(changed)})"
