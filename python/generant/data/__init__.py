"""Data sets that need no download, data from files, and the order in which training sees rows."""

from .batches import batches, stratified_split
from .dataset import DataSet, load
from .digits import Digits, digits
from .files import image_paths, read_arrays, read_images
from .mnist import mnist5k
from .toys import Gaussians, checkerboard, grid25, ring8, swiss_roll, two_moons

__all__ = [
    "DataSet", "Digits", "Gaussians", "batches", "checkerboard", "digits", "grid25", "image_paths", "load", "mnist5k",
    "read_arrays", "read_images", "ring8", "stratified_split", "swiss_roll", "two_moons",
]
