// Noising data, the loss of denoising it and stepping a sampler: one pass over memory each, four elements and one Philox
// counter a thread. Noise is made in registers. Element by element the arithmetic is csrc/cpu/diffusion.cpp's, fma where
// that has fma, so that samples have the same bits. Sums over a sample are made in another order, in double.
#include "../sampler_step.h"
#include "quad.h"
#include "quantile.h"

namespace {

// ---- y = f(two coefficients per sample, x, noise) ----

// f.at(coefficients, x, z) for every element; z: normal(key), or other, or 0 where both are null.
template <class T, class F>
__global__ void __launch_bounds__(kQuadThreads)
combine(const T* x, const T* other, const uint64_t* key, const T* k0, const T* k1, T* y, int64_t n, int64_t row, F f, bool aligned) {
  const int64_t quad = global_thread(), e = 4 * quad;
  if (e >= n) return;
  const int m = left(e, n);
  const Quad<T> xe = read(x + e, m, aligned);
  Quad<T> z{}, r;
  if (other) z = read(other + e, m, aligned);
  if (key) NormalOne::draw(key[0], key[1], uint64_t(quad), z.v);
  int64_t i = quotient(e, row), end = (i + 1) * row;
  T a = k0[i], b = k1[i];
  GENERANT_UNROLL
  for (int k = 0; k < 4; ++k) {
    if (k < m && e + k >= end) ++i, end += row, a = k0[i], b = k1[i];
    r.v[k] = f.at(a, b, xe.v[k], z.v[k]);
  }
  write(y + e, r, m, aligned);
}

template <class T, class F>
void combined(const Call& c, const Array& x, const T* other, const uint64_t* key, const T* k0, const T* k1, F f) {
  const int64_t n = size(x);
  if (n == 0) return;
  const T* p = static_cast<const T*>(x.data);
  T* y = out<T>(c);
  launch(c, combine<T, F>, grid_of(ceil_div(n, 4 * kQuadThreads)), kQuadThreads, 0, p, other, key, k0, k1, y, n, n / x.shape[0], f,
         on_quad(p) && on_quad(y) && on_quad(other));
}

template <class T> struct Mix {
  __device__ T at(T a, T s, T x, T z) const { return fused(a, x, s * z); }
};
template <class T> struct Slope {
  T per_element;
  __device__ T at(T g, T weight, T residual, T) const { return g * weight * per_element * residual; }
};

}  // namespace

KERNEL(q_sample) { combined(c, c.in[0], static_cast<const T*>(nullptr), in<uint64_t>(c, 3), in<T>(c, 1), in<T>(c, 2), Mix<T>{}); }
KERNEL(add_noise) { combined(c, c.in[0], in<T>(c, 1), nullptr, in<T>(c, 2), in<T>(c, 3), Mix<T>{}); }

KERNEL(denoising_loss_bwd) {
  const Array& residual = c.in[2];
  const int64_t row = size(residual) / (residual.shape[0] ? residual.shape[0] : 1);
  combined(c, residual, static_cast<const T*>(nullptr), nullptr, in<T>(c, 0), in<T>(c, 1), Slope<T>{T(2.0 / double(row))});
}

// ---- the loss of denoising ----

namespace {

constexpr int64_t kShortRow = 1024, kPiece = 4096;   // rows a warp or less sums, and what a block sums of a longer one

template <class T> struct Loss {
  const T *prediction, *x, *b_x, *b_z, *weight;
  const uint64_t* key;
  T *y, *residual;
  int64_t count, row;
  bool aligned;

  // The squares of elements [begin, end), in row i, that fall to thread `lane` of `lanes`.
  __device__ double squares(int64_t i, int64_t begin, int64_t end, int lane, int lanes) const {
    const uint64_t seed = key[0], stream = key[1];
    const T from_x = b_x[i], from_z = b_z[i];
    double sum = 0;
    for (int64_t quad = begin / 4 + lane; 4 * quad < end; quad += lanes) {
      const int64_t e = 4 * quad;
      const int first = e < begin ? int(begin - e) : 0, m = left(e, end);
      const Quad<T> p = read(prediction + e, m, aligned, first), xe = read(x + e, m, aligned, first);
      Quad<T> d;
      T z[4];
      NormalOne::draw(seed, stream, uint64_t(quad), z);
      GENERANT_UNROLL
      for (int k = 0; k < 4; ++k) {
        d.v[k] = p.v[k] - fused(from_x, xe.v[k], from_z * z[k]);
        if (k >= first && k < m) sum += double(d.v[k] * d.v[k]);
      }
      if (residual) write(residual + e, d, m, aligned, first);
    }
    return sum;
  }
  __device__ void finish(int64_t i, double sum) const { y[i] = T(double(weight[i]) * (sum / double(row))); }
};

// `lanes` lanes per row.
template <class T> __global__ void __launch_bounds__(kQuadThreads) loss_of_rows(Loss<T> loss, int lanes) {
  const int64_t i = quotient(global_thread(), lanes);
  const int lane = int(threadIdx.x) % lanes;
  double sum = 0;
  if (i < loss.count) sum = loss.squares(i, i * loss.row, (i + 1) * loss.row, lane, lanes);
  sum = warp_sum(sum, lanes);
  if (i < loss.count && lane == 0) loss.finish(i, sum);
}

template <class T> __global__ void __launch_bounds__(kQuadThreads) loss_of_pieces(Loss<T> loss, int64_t pieces, double* partial) {
  __shared__ double room[kWarp];
  const Piece p = piece_of_block(loss.row, pieces, kPiece);
  const int64_t first = p.row * loss.row;
  const double sum = block_sum(loss.squares(p.row, first + p.begin, first + p.end, int(threadIdx.x), kQuadThreads), room);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <class T> __global__ void __launch_bounds__(kQuadThreads) finish_loss(Loss<T> loss, int64_t pieces, const double* partial) {
  const int64_t i = global_thread() / kWarp;
  if (i >= loss.count) return;                       // whole warps
  const double sum = sum_of_pieces(partial + i * pieces, pieces);
  if (threadIdx.x % kWarp == 0) loss.finish(i, sum);
}

int64_t row_of(const Array& x) { return x.shape[0] ? size(x) / x.shape[0] : 0; }

template <class T> int64_t loss_bytes(const Call& c) {
  const int64_t row = row_of(c.in[0]);
  return row <= kShortRow ? 0 : c.in[0].shape[0] * ceil_div(row, kPiece) * int64_t(sizeof(double));
}

}  // namespace

KERNEL_SCRATCH(denoising_loss, loss_bytes) {
  Loss<T> loss = {in<T>(c, 0), in<T>(c, 1), in<T>(c, 2), in<T>(c, 3), in<T>(c, 4), in<uint64_t>(c, 5), out<T>(c, 0), out<T>(c, 1),
                  c.in[0].shape[0], row_of(c.in[0]), false};
  loss.aligned = on_quad(loss.prediction) && on_quad(loss.x) && on_quad(loss.residual);
  if (loss.row <= kShortRow) {
    int lanes = 1;
    while (lanes < kWarp && lanes * 4 < loss.row) lanes *= 2;
    launch(c, loss_of_rows<T>, grid_of(ceil_div(loss.count * lanes, kQuadThreads)), kQuadThreads, 0, loss, lanes);
    return;
  }
  const int64_t pieces = ceil_div(loss.row, kPiece);
  double* partial = static_cast<double*>(c.scratch);
  launch(c, loss_of_pieces<T>, grid_of(loss.count * pieces), kQuadThreads, 0, loss, pieces, partial);
  launch(c, finish_loss<T>, grid_of(ceil_div(loss.count * kWarp, kQuadThreads)), kQuadThreads, 0, loss, pieces, partial);
}

// ---- one step of a sampler ----

namespace {

template <class T> struct Step {
  const T *x, *prediction, *uncond, *h[4];
  const uint64_t* keys;
  const double* coef;
  T *y, *kept;                                       // kept: g_x x + g_d D, or null
  const T *scale, *limit;                            // per sample, or null: of prediction and uncond; what bounds and divides D
  T clip;                                            // inf: none
  bool aligned;

  __device__ Quad<T> denoised(int64_t e, int m, T a_x, T a_p, T a_u, const Quad<T>& xe, const Quad<T>& p) const {
    Quad<T> d;
    GENERANT_UNROLL
    for (int k = 0; k < 4; ++k) d.v[k] = fused(a_p, p.v[k], a_x * xe.v[k]);
    if (uncond) {
      const Quad<T> u = read(uncond + e, m, aligned);
      GENERANT_UNROLL
      for (int k = 0; k < 4; ++k) d.v[k] = fused(a_u, u.v[k], d.v[k]);
    }
    return d;
  }
};

// The coefficients as T, one conversion of each per block.
template <class T> __device__ inline void read_coefficients(const double* coef, T* k) {
  if (threadIdx.x < kStepCoefficients) k[threadIdx.x] = T(coef[threadIdx.x]);
  __syncthreads();
}

template <class T> __global__ void __launch_bounds__(kQuadThreads) take_step(Step<T> s, Rows r) {
  __shared__ T k[kStepCoefficients];
  const int64_t quad = global_thread();
  const bool here = quad < r.quads();
  const int64_t i = here ? r.row_of(quad) : 0, at = here ? quad - i * r.each : 0, e = i * r.row + 4 * at;
  const int m = here ? left(4 * at, r.row) : 0;
  const Quad<T> xe = read(s.x + e, m, s.aligned), p = read(s.prediction + e, m, s.aligned);
  read_coefficients(s.coef, k);
  if (!here) return;

  const T scale = s.scale ? s.scale[i] : T(1);
  Quad<T> d = s.denoised(e, m, k[kAX], k[kAP] * scale, k[kAU] * scale, xe, p), r_;
  const T bound = s.limit ? s.limit[i] : s.clip;
  GENERANT_UNROLL
  for (int l = 0; l < 4; ++l) {
    const T below = -bound > d.v[l] ? -bound : d.v[l];  // a NaN of d stays
    d.v[l] = bound < below ? bound : below;
    if (s.limit) d.v[l] = d.v[l] / bound;
  }
  if (s.kept) {
    Quad<T> g;
    GENERANT_UNROLL
    for (int l = 0; l < 4; ++l) g.v[l] = fused(k[kGD], d.v[l], k[kGX] * xe.v[l]);
    write(s.kept + e, g, m, s.aligned);
  }
  GENERANT_UNROLL
  for (int l = 0; l < 4; ++l) r_.v[l] = fused(k[kCD], d.v[l], k[kCX] * xe.v[l]);
  GENERANT_UNROLL
  for (int j = 0; j < 4; ++j) {
    if (!s.h[j]) continue;
    const Quad<T> h = read(s.h[j] + e, m, s.aligned);
    GENERANT_UNROLL
    for (int l = 0; l < 4; ++l) r_.v[l] = fused(k[kCH + j], h.v[l], r_.v[l]);
  }
  if (s.keys && k[kCNoise] != 0) {
    T z[4];
    NormalOne::draw(s.keys[2 * i], s.keys[2 * i + 1] + step_stream(s.coef), uint64_t(at), z);
    GENERANT_UNROLL
    for (int l = 0; l < 4; ++l) r_.v[l] = fused(k[kCNoise], z[l], r_.v[l]);
  }
  write(s.y + e, r_, m, s.aligned);
}

// |D| of every element, before it is bounded.
template <class T> __global__ void __launch_bounds__(kQuadThreads) magnitudes(Step<T> s, Rows r, T* magnitude) {
  __shared__ T k[kStepCoefficients];
  read_coefficients(s.coef, k);
  const int64_t quad = global_thread();
  if (quad >= r.quads()) return;
  const int64_t i = r.row_of(quad), at = quad - i * r.each, e = i * r.row + 4 * at;
  const int m = left(4 * at, r.row);
  const Quad<T> xe = read(s.x + e, m, s.aligned), p = read(s.prediction + e, m, s.aligned);
  const T scale = s.scale ? s.scale[i] : T(1);
  Quad<T> d = s.denoised(e, m, k[kAX], k[kAP] * scale, k[kAU] * scale, xe, p);
  typedef typename BitsOf<T>::type U;
  GENERANT_UNROLL
  for (int l = 0; l < 4; ++l) d.v[l] = same_bits<T>(same_bits<U>(d.v[l]) & (~U(0) >> 1));
  write(magnitude + e, d, m, s.aligned);
}

// Of a piece of a row: sums of a_p p + a_u u and of (a_p + a_u) p and of their squares, both less their first value of the row.
template <class T>
__global__ void __launch_bounds__(kQuadThreads)
spread_of_pieces(const T* prediction, const T* uncond, const double* coef, int64_t row, int64_t pieces, double* partial) {
  __shared__ double room[kWarp];
  const Piece piece = piece_of_block(row, pieces, kPiece);
  const T *p = prediction + piece.row * row, *u = uncond + piece.row * row;
  const double a = coef[kAP], b = coef[kAU], both = a + b;
  const double guided = a * double(p[0]) + b * double(u[0]), alone = both * double(p[0]);
  double sums[4] = {};
  for (int64_t e = piece.begin + threadIdx.x; e < piece.end; e += blockDim.x) {
    const double v = a * double(p[e]) - guided + b * double(u[e]), w = both * double(p[e]) - alone;
    sums[0] += v, sums[1] += v * v, sums[2] += w, sums[3] += w * w;
  }
  GENERANT_UNROLL
  for (int k = 0; k < 4; ++k) {
    const double sum = block_sum(sums[k], room);
    if (threadIdx.x == 0) partial[int64_t(blockIdx.x) * 4 + k] = sum;
  }
}

template <class T>
__global__ void __launch_bounds__(kQuadThreads)
rescales(const double* partial, int64_t rows, int64_t row, int64_t pieces, double rescale, T* scale) {
  const int64_t i = global_thread() / kWarp;
  if (i >= rows) return;                             // whole warps
  double sums[4];
  for (int k = 0; k < 4; ++k) sums[k] = sum_of_pieces(partial + i * pieces * 4, pieces, 4, k);
  if (threadIdx.x % kWarp == 0)
    scale[i] = T(step_rescale(Spread{sums[2], sums[3]}.value(row), Spread{sums[0], sums[1]}.value(row), rescale));
}

template <class T> struct SetLimit {
  T* limit;
  T most;
  __device__ void operator()(int64_t i, T quantile) const { limit[i] = step_limit(quantile, most); }
};

// Memory of what depends on whole samples.
template <class T> struct StepRoom {
  bool rescaled, bounded;
  int64_t rows, row, pieces;
  Carve carve;
  T *scale = nullptr, *limit = nullptr, *magnitude = nullptr;
  double* partial = nullptr;

  StepRoom(const Call& c, void* scratch)
      : rescaled(c.attr[kRescale] != 0 && c.in[kUncond].data), bounded(c.attr[kThreshold] == c.attr[kThreshold]),
        rows(c.in[kX].shape[0]), row(row_of(c.in[kX])), pieces(ceil_div(row, kPiece)), carve{static_cast<char*>(scratch)} {
    if (rescaled) scale = carve.take<T>(rows), partial = carve.take<double>(rows * pieces * 4);
    if (bounded) limit = carve.take<T>(rows), magnitude = carve.take<T>(rows * row);
  }
};

template <class T> int64_t step_bytes(const Call& c) {
  StepRoom<T> room(c, nullptr);
  if (room.bounded) QuantileRoom<T>(room.carve, room.rows, room.row);
  return room.carve.used;
}

}  // namespace

KERNEL_SCRATCH(sampler_step, step_bytes) {
  const int64_t n = size(c.in[kX]);
  if (n == 0) return;
  StepRoom<T> room(c, c.scratch);
  const double clip = c.attr[kClip];
  Step<T> s{};
  s.x = in<T>(c, kX), s.prediction = in<T>(c, kPrediction), s.uncond = in<T>(c, kUncond), s.y = out<T>(c, 0), s.kept = out<T>(c, 1);
  s.keys = in<uint64_t>(c, kKeys), s.coef = in<double>(c, kCoef), s.clip = clip == clip ? T(clip) : T(__builtin_inf());
  s.aligned = on_quad(s.x) && on_quad(s.prediction) && on_quad(s.uncond) && on_quad(s.y) && on_quad(s.kept);
  for (int k = 0; k < 4; ++k) s.h[k] = in<T>(c, kH + k), s.aligned = s.aligned && on_quad(s.h[k]);

  const bool by_sample = s.keys || room.rescaled || room.bounded;
  const Rows r = by_sample ? Rows::of(room.rows, room.row) : Rows::of(1, n);
  if (r.count > 1 && r.row % 4 != 0) s.aligned = false;
  const dim3 grid = grid_of(ceil_div(r.quads(), kQuadThreads));
  if (room.rescaled) {
    launch(c, spread_of_pieces<T>, grid_of(room.rows * room.pieces), kQuadThreads, 0, s.prediction, s.uncond, s.coef, room.row,
           room.pieces, room.partial);
    launch(c, rescales<T>, grid_of(ceil_div(room.rows * kWarp, kQuadThreads)), kQuadThreads, 0, room.partial, room.rows, room.row,
           room.pieces, c.attr[kRescale], room.scale);
    s.scale = room.scale;
  }
  if (room.bounded) {
    const QuantileRoom<T> sorted(room.carve, room.rows, room.row);
    launch(c, magnitudes<T>, grid, kQuadThreads, 0, s, r, room.magnitude);
    quantiles(c, room.magnitude, room.rows, room.row, c.attr[kThreshold], sorted, SetLimit<T>{room.limit, T(c.attr[kThresholdMax])});
    s.limit = room.limit;
  }
  launch(c, take_step<T>, grid, kQuadThreads, 0, s, r);
}
