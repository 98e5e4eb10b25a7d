"""Makes a kernel read past the end of its input, which the sanitized build must report and the process not survive."""

import numpy as np

from generant import _native

_native.launch(_native.kernels()["square.f32"], (np.ones(4000, np.float32),), (np.empty(5000, np.float32),), ())
