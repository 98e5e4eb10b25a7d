"""Run under qemu-user on an emulated CPU: does the library import, choose what that CPU has, and compute?"""

import sys

import numpy as np

import generant
from generant import _native, grad, ops

wanted = {"Nehalem": "base", "Haswell": "avx2"}[sys.argv[1]]
assert _native.isa == wanted, f"chose {_native.isa}, wanted {wanted}"

x = np.linspace(-2, 2, 37 * 53, dtype=np.float32).reshape(37, 53)
w = np.linspace(1, -1, 53 * 29, dtype=np.float32).reshape(53, 29)
np.testing.assert_allclose(ops.matmul(x, w), x.astype(np.float64) @ w, rtol=1e-4, atol=1e-4)
np.testing.assert_allclose(grad(lambda x: ops.sum(ops.silu(ops.matmul(x, w))))(x).shape, x.shape)
z = ops.normal(np.array([1, 2], np.uint64), shape=(10_001,))
assert abs(z.mean()) < 0.05 and abs(z.std() - 1) < 0.05
distance, index = ops.knn(x, k=3)
assert (distance >= 0).all() and index.shape == (37, 3)
assert float(ops.kernel_sum(x, bandwidth=2.0)) > 37
print(f"{sys.argv[1]}: {len(_native.kernels())} kernels, instruction set {_native.isa}, version {generant.__version__}")
