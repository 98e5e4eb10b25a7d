"""Arrays and images from files: .npy, .npz, and pictures through pillow. Never pickle.

Not here: safetensors (generant.io), and what an array means (dataset.py).
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

__all__ = ["image_paths", "read_arrays", "read_image", "read_images"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
GREY, COLOUR = {"1", "L", "LA", "La"}, {"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name, or of an .npy file under the name of the file.

    Raises ValueError for a file that is damaged, foreign, or holds Python objects.
    """
    head = b""
    try:
        with path.open("rb") as file:  # np.load leaves a file that it cannot read open
            head = file.read(1)
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            return {path.stem: loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, KeyError) as error:
        why = str(error)
        if "pickle" in why:  # so NumPy says of whatever it does not know
            if head in (b"\x93", b"P", b"\x80"):  # .npy, .npz, pickle
                what = "holds Python objects, and unpickling runs what is in the file; save a plain numeric array"
                raise ValueError(f"{path} {what}") from None
            why = "its first bytes are of another format"
        raise ValueError(f"{path} is not a readable {path.suffix} file: {why}") from None


def image_paths(folder: Path, *, required: bool = True) -> list[Path]:
    """The images of a folder in the order of their names; hidden files are left out. Raises ValueError if there are
    none, unless not `required`."""
    found = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    if required and not found:
        raise ValueError(f"{folder} holds no images ({' '.join(sorted(SUFFIXES))})")
    return sorted(found, key=lambda p: p.name)


def read_images(paths: list[Path]) -> np.ndarray:
    """Images of one size, grey (n, h, w) or colour (n, h, w, 3), float32 in 0 ... 1."""
    out: np.ndarray | None = None
    for i, path in enumerate(paths):
        image = read_image(path)
        if out is None:
            out = np.empty((len(paths), *image.shape), np.float32)
        if image.shape != out.shape[1:]:
            raise ValueError(f"images differ in shape: {path} has {image.shape}, {paths[0]} {out.shape[1:]}")
        out[i] = image
    if out is None:
        raise ValueError("read_images: got no paths")
    return out


def read_image(path: Path) -> np.ndarray:
    """One image, grey (h, w) or colour (h, w, 3), float32 in 0 ... 1; transparency is dropped."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ImportError("reading images needs pillow: pip install pillow") from None
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):
                return np.asarray(image, np.float32) / np.float32(65535)
            if image.mode not in GREY | COLOUR:
                raise ValueError(f"{path}: pixels of mode {image.mode} are not read; save it as 8 bit grey or RGB")
            return np.asarray(image.convert("L" if image.mode in GREY else "RGB"), np.float32) / np.float32(255)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from None
