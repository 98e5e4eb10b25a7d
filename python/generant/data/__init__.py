"""Data sets that need no download, and the order in which training sees rows."""

from .batches import batches, stratified_split
from .digits import Digits, digits

__all__ = ["Digits", "batches", "digits", "stratified_split"]
