"""A training step recorded once and replayed: `record(step, state)`."""

from .recorded import Recorded, record

__all__ = ["Recorded", "record"]
