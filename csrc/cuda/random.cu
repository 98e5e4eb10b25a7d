// Arrays of random numbers, with the bits of csrc/cpu/random.cpp: a counter per thread and store, several in flight.
#include "quad.h"

namespace {

constexpr int kAhead = 4;                            // counters of a thread: they share the keys of ten rounds

// y[0, n) = Draw's numbers of the key.
template <class T, class Draw>
__global__ void __launch_bounds__(kQuadThreads) fill_random(const uint64_t* key, T* y, int64_t n, bool aligned) {
  const uint64_t seed = key[0], stream = key[1];
  const uint64_t first = uint64_t(blockIdx.x) * (kAhead * kQuadThreads);  // below a multiple of itself: no carry into the upper word
  T z[kAhead][4];
  GENERANT_UNROLL
  for (int a = 0; a < kAhead; ++a) Draw::draw(seed, stream, first | (unsigned(a) * kQuadThreads + threadIdx.x), z[a]);
  GENERANT_UNROLL
  for (int a = 0; a < kAhead; ++a) {
    const int64_t e = 4 * int64_t(first | (unsigned(a) * kQuadThreads + threadIdx.x));
    if (e < n) write(y + e, Quad<T>{z[a][0], z[a][1], z[a][2], z[a][3]}, left(e, n), aligned);
  }
}

template <class T, class Draw> void fill(const Call& c) {
  T* y = out<T>(c);
  const int64_t n = size(c.out[0]);
  launch(c, fill_random<T, Draw>, grid_of(ceil_div(n, 4 * kAhead * kQuadThreads)), kQuadThreads, 0, in<uint64_t>(c, 0), y, n, on_quad(y));
}

// Row i: the sum over j of weights[j] normal(keys[i] + (0, streams[j])).
template <class T>
__global__ void __launch_bounds__(kQuadThreads)
sum_of_normals(const uint64_t* keys, const uint64_t* streams, const double* weights, int64_t m, T* y, Rows r, bool aligned) {
  const int64_t quad = global_thread();
  if (quad >= r.quads()) return;
  const int64_t i = r.row_of(quad), at = quad - i * r.each;
  const uint64_t seed = keys[2 * i], stream = keys[2 * i + 1];
  Quad<T> sum{};
  for (int64_t j = 0; j < m; ++j) {
    T z[4];
    NormalOne::draw(seed, stream + streams[j], uint64_t(at), z);
    const T w = T(weights[j]);
    GENERANT_UNROLL
    for (int k = 0; k < 4; ++k) sum.v[k] = sum.v[k] + w * z[k];
  }
  write(y + i * r.row + 4 * at, sum, left(4 * at, r.row), aligned);
}

__global__ void philox_blocks(const uint32_t* counter, const uint32_t* key, uint32_t* y, int64_t n) {
  const int64_t i = global_thread();
  if (i >= n) return;
  uint32_t x[4];
  for (int k = 0; k < 4; ++k) x[k] = counter[4 * i + k];
  philox4x32(x, key[0], key[1]);
  for (int k = 0; k < 4; ++k) y[4 * i + k] = x[k];
}

__global__ void advance(uint64_t* key) {
  if (threadIdx.x == 0) key[1] += 1;
}

}  // namespace

KERNEL(normal) { fill<T, NormalOne>(c); }
KERNEL(uniform) { fill<T, UniformOne>(c); }

KERNEL(normals) {
  T* y = out<T>(c);
  const int64_t n = c.out[0].shape[0], row = n ? size(c.out[0]) / n : 0;
  const Rows r = Rows::of(n, row);
  launch(c, sum_of_normals<T>, grid_of(ceil_div(r.quads(), kQuadThreads)), kQuadThreads, 0, in<uint64_t>(c, 0), in<uint64_t>(c, 1),
         in<double>(c, 2), c.in[1].shape[0], y, r, on_quad(y) && row % 4 == 0);
}

KERNEL(philox) {
  const int64_t n = c.in[0].shape[0];
  launch(c, philox_blocks, grid_of(ceil_div(n, kQuadThreads)), kQuadThreads, 0, in<uint32_t>(c, 0), in<uint32_t>(c, 1),
         out<uint32_t>(c), n);
}

KERNEL(advance_) { launch(c, advance, 1, kWarp, 0, static_cast<uint64_t*>(c.in[0].data)); }
