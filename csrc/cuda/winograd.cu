// Convolutions by Winograd's algorithm on float32: transform tiles of the input, multiply matrices, transform back
// (csrc/winograd_transform.h); filters transformed ahead, and the convolution that takes them.
//
// A thread transforms one channel of one tile, neighbours have neighbouring channels, and the products of a position in the
// tiles are one product of matrices each, which run as one launch. What lies between goes through scratch, samples at a
// time, so that it stays limited.
#include "convolve.h"
#include "winograd_scalar.h"

namespace {

constexpr int kThreads = 128;
constexpr int64_t kColumns = 32;                     // of a block of a filter transformed ahead, kFilterColumns of csrc/winograd.h
constexpr int64_t kBetween = 256 << 20;              // bytes of transformed tiles, or one sample

// ---- transforms ----

// u[k * plane + (o / block * c + channel) * block + o % block] for channels < c and o < columns, 0 beyond `made`. Element
// (i, j, channel, o) of the filter is at w[i * row + j * column + channel * ld + o].
template <class F>
__global__ void __launch_bounds__(kThreads) transform_filter(const float* w, int64_t row, int64_t column, int64_t ld, int c, int made,
                                                             int columns, int block, float* u, int64_t plane) {
  constexpr int N = F::kN, R = F::kR;
  const int64_t at = global_thread();
  if (at >= int64_t(c) * columns) return;
  const int channel = int(at / columns), o = int(at % columns);
  float f[R * R], g[R * N], r[N];
  GENERANT_UNROLL
  for (int i = 0; i < R; ++i)
    GENERANT_UNROLL
    for (int j = 0; j < R; ++j) f[i * R + j] = o < made ? w[i * row + j * column + channel * ld + o] : 0.0f;
  GENERANT_UNROLL
  for (int i = 0; i < R; ++i) F::filter(f + i * R, 1, g + i * N, 1);
  u += (int64_t(o / block) * c + channel) * block + o % block;
  GENERANT_UNROLL
  for (int j = 0; j < N; ++j) {
    F::filter(g + j, N, r, 1);
    GENERANT_UNROLL
    for (int i = 0; i < N; ++i) u[(i * N + j) * plane] = r[i];
  }
}

struct Source {                                      // pixel (n, i, j) at x + n * sample + i * row + j * pixel
  const float* x;
  int64_t sample, row, pixel;
  int h, w, top, left;
};

struct Tiles {
  int rows, columns;
  int64_t per_sample, all;
  Tiles(int64_t n, int64_t p, int64_t q, int m)
      : rows(int(ceil_div(p, m))), columns(int(ceil_div(q, m))), per_sample(int64_t(rows) * columns), all(n * per_sample) {}
};

// v[k * plane + tile * ld + channel]
template <class F>
__global__ void __launch_bounds__(kThreads) transform_input(Source s, Tiles tiles, int c, float* v, int64_t plane, int ld) {
  constexpr int N = F::kN;
  const int64_t at = global_thread(), tile = at / c;
  if (tile >= tiles.all) return;
  const int channel = int(at - tile * c);
  const int64_t sample = tile / tiles.per_sample;
  const int in_sample = int(tile - sample * tiles.per_sample), tile_row = in_sample / tiles.columns;
  const int y0 = tile_row * F::kM - s.top, x0 = (in_sample - tile_row * tiles.columns) * F::kM - s.left;
  const float* image = s.x + (sample * s.sample + channel);
  float t[N * N], d[N];
  GENERANT_UNROLL
  for (int j = 0; j < N; ++j) {
    GENERANT_UNROLL
    for (int i = 0; i < N; ++i) {
      const bool inside = unsigned(y0 + i) < unsigned(s.h) && unsigned(x0 + j) < unsigned(s.w);
      d[i] = inside ? image[(y0 + i) * s.row + (x0 + j) * s.pixel] : 0.0f;
    }
    F::input(d, 1, t + j, N);
  }
  v += tile * ld + channel;
  GENERANT_UNROLL
  for (int i = 0; i < N; ++i) {
    F::input(t + i * N, 1, d, 1);
    GENERANT_UNROLL
    for (int j = 0; j < N; ++j) v[(i * N + j) * plane] = d[j];
  }
}

// The outputs of m[k * plane + tile * o + channel], given to the layer; `first` is the first sample.
template <class F>
__global__ void __launch_bounds__(kThreads) transform_output(const float* m, int64_t plane, Tiles tiles, int64_t first, int p, int q, int o,
                                                             Layer<float> layer) {
  constexpr int N = F::kN, M = F::kM;
  const int64_t at = global_thread(), tile = at / o;
  if (tile >= tiles.all) return;
  const int channel = int(at - tile * o);
  const int64_t sample = tile / tiles.per_sample;
  const int in_sample = int(tile - sample * tiles.per_sample), tile_row = in_sample / tiles.columns;
  const int p0 = tile_row * M, q0 = (in_sample - tile_row * tiles.columns) * M;
  float d[N], t[M * N], y[M];
  m += tile * o + channel;
  GENERANT_UNROLL
  for (int j = 0; j < N; ++j) {
    GENERANT_UNROLL
    for (int i = 0; i < N; ++i) d[i] = m[(i * N + j) * plane];
    F::output(d, 1, t + j, N);
  }
  const float bias = layer.bias ? layer.bias[channel] : 0.0f;
  const int64_t to = (((first + sample) * p + p0) * q + q0) * o + channel;
  GENERANT_UNROLL
  for (int i = 0; i < M; ++i) {
    F::output(t + i * N, 1, y, 1);
    GENERANT_UNROLL
    for (int j = 0; j < M; ++j) {
      if (p0 + i >= p || q0 + j >= q) continue;
      const int64_t place = to + (int64_t(i) * q + j) * o;
      if (layer.bias) y[j] += bias;
      if (layer.residual) y[j] += layer.residual[place];
      if (layer.h) layer.h[place] = y[j];
      t[i * M + j] = y[j];                           // t's first rows have been read by now: M <= N
    }
  }
  if (layer.activation) with_activation(layer.activation, [&](auto f) {
    GENERANT_UNROLL
    for (int i = 0; i < M * M; ++i) t[i] = f.template f<float>(t[i]);
    return 0;
  });
  GENERANT_UNROLL
  for (int i = 0; i < M; ++i)
    GENERANT_UNROLL
    for (int j = 0; j < M; ++j)
      if (p0 + i < p && q0 + j < q) layer.y[to + (int64_t(i) * q + j) * o] = t[i * M + j];
}

// A filter transformed ahead, (sources * positions, m, c, 32), as (positions, sources * c, o).
struct Repack {
  const float* u;
  float* to;
  int64_t positions, sources, c, o, plane;
  __device__ void operator()(int64_t i) const {
    const int64_t column = i % o, line = i / o, channel = line % c, rest = line / c, source = rest % sources, k = rest / sources;
    to[i] = u[(source * positions + k) * plane + (column / kColumns * c + channel) * kColumns + column % kColumns];
  }
};

// ---- a convolution of sources whose filter is transformed ----

// Its result is (n, p, q, o); channels: of all sources together.
template <class F> struct Between {
  static constexpr int64_t kPositions = F::kN * F::kN;
  int64_t channels, o, filter, samples, v, m;        // floats of parts of scratch; samples at a time
  Between(int64_t n, int64_t p, int64_t q, int64_t channels_, int64_t o_) : channels(channels_), o(o_) {
    const int64_t tiles = Tiles(1, p, q, F::kM).all, one = kPositions * tiles * (channels + o) * int64_t(sizeof(float));
    samples = one > 0 ? kBetween / one : 1;
    if (samples > n) samples = n;
    if (samples < 1) samples = 1;
    filter = padded(kPositions * channels * o, 64), v = padded(kPositions * samples * tiles * channels, 64);
    m = kPositions * samples * tiles * o;
  }
  int64_t bytes() const { return (filter + v + m) * int64_t(sizeof(float)); }
};

template <class F>
inline void convolve(const Call& c, const Between<F>& a, const Source* source, int sources, int64_t n, int64_t p, int64_t q, bool turned,
                     const Layer<float>& layer, float* scratch) {
  float *const u = scratch, *const v = u + a.filter, *const m = v + a.v;
  const int64_t each_source = a.channels / sources;
  for (int64_t first = 0; first < n; first += a.samples) {
    const Tiles tiles(n - first < a.samples ? n - first : a.samples, p, q, F::kM);
    for (int k = 0; k < sources; ++k) {
      Source s = source[k];
      s.x += first * s.sample;
      launch(c, transform_input<F>, grid_of(ceil_div(tiles.all * each_source, kThreads)), kThreads, 0, s, tiles, each_source,
             v + k * each_source, tiles.all * a.channels, a.channels);
    }
    products(c, a.kPositions, tiles.all, a.channels, a.o, v, u, turned, m);
    launch(c, transform_output<F>, grid_of(ceil_div(tiles.all * a.o, kThreads)), kThreads, 0, static_cast<const float*>(m), tiles.all * a.o,
           tiles, first, p, q, a.o, layer);
  }
}

template <class F> inline Between<F> between(const Conv& s, bool gradient) {
  return gradient ? Between<F>(s.n, s.h, s.w, s.o, s.c) : Between<F>(s.n, s.p, s.q, s.c, s.o);
}

// w (3, 3, c, o) as (positions, c, o); turned by half a turn for the gradient.
template <class F> inline void dense_filter(const Call& c, const Conv& s, const float* w, bool gradient, float* u) {
  const int64_t column = s.c * s.o, row = s.kw * column, sign = gradient ? -1 : 1;
  launch(c, transform_filter<F>, grid_of(ceil_div(s.c * s.o, kThreads)), kThreads, 0, gradient ? w + 2 * row + 2 * column : w, sign * row,
         sign * column, s.o, s.c, s.o, s.o, s.o, u, s.c * s.o);
}

template <class F>
inline void forward(const Call& c, const Conv& s, const float* x, const float* w, const Layer<float>& layer, float* scratch) {
  dense_filter<F>(c, s, w, false, scratch);
  const Source source = {x, s.h * s.w * s.c, s.w * s.c, s.c, int(s.h), int(s.w), int(s.top), int(s.left)};
  convolve<F>(c, between<F>(s, false), &source, 1, s.n, s.p, s.q, false, layer, scratch);
}

template <class F> inline void gradient_x(const Call& c, const Conv& s, const float* g, const float* w, float* dx, float* scratch) {
  dense_filter<F>(c, s, w, true, scratch);
  const Source source = {g, s.p * s.q * s.o, s.q * s.o, s.o, int(s.p), int(s.q), int(2 - s.top), int(2 - s.left)};
  convolve<F>(c, between<F>(s, true), &source, 1, s.n, s.h, s.w, true, {nullptr, nullptr, dx, nullptr, 0}, scratch);
}

}  // namespace

namespace generant::GENERANT_NAMESPACE {

int64_t winograd_bytes(const Conv& s, ConvAlgorithm variant, bool gradient) {
  return variant == kWinograd4 ? between<Winograd<4, 3>>(s, gradient).bytes() : between<Winograd<2, 3>>(s, gradient).bytes();
}
void winograd_forward(const Call& c, const Conv& s, ConvAlgorithm variant, const float* x, const float* w, const Layer<float>& layer,
                      void* scratch) {
  if (variant == kWinograd4) forward<Winograd<4, 3>>(c, s, x, w, layer, static_cast<float*>(scratch));
  else forward<Winograd<2, 3>>(c, s, x, w, layer, static_cast<float*>(scratch));
}
void winograd_dx(const Call& c, const Conv& s, ConvAlgorithm variant, const float* g, const float* w, float* dx, void* scratch) {
  if (variant == kWinograd4) gradient_x<Winograd<4, 3>>(c, s, g, w, dx, static_cast<float*>(scratch));
  else gradient_x<Winograd<2, 3>>(c, s, g, w, dx, static_cast<float*>(scratch));
}

}  // namespace generant::GENERANT_NAMESPACE

// ---- the ops ----

namespace {

// body(F{}, number of sources)
template <class Body> inline auto with_transforms(const Call& c, Body body) {
  const int64_t positions = c.in[1].shape[0];
  return positions == 100 ? body(Winograd<4, 2>{}, 4) : positions == 36 ? body(Winograd<4, 3>{}, 1) : body(Winograd<2, 3>{}, 1);
}

template <class T> int64_t winograd_conv2d_bytes(const Call& c) {
  const Conv s = of_x_u(c);
  return with_transforms(c, [&](auto f, int sources) { return Between<decltype(f)>(s.n, s.p, s.q, sources * s.c, s.o).bytes(); });
}

template <class T> int64_t no_bytes(const Call&) { return 0; }

template <class F> inline void filter_ahead(const Call& c, const float* w, int64_t row, int64_t column, float* u) {
  const int64_t channels = c.in[0].shape[2], o = c.in[0].shape[3], width = padded(o, kColumns);
  launch(c, transform_filter<F>, grid_of(ceil_div(channels * width, kThreads)), kThreads, 0, w, row, column, o, channels, o, width, kColumns, u,
         channels * width);
}

}  // namespace

KERNEL_SCRATCH_F32(winograd_filter, no_bytes) {
  const Array& w = c.in[0];
  const int64_t column = w.shape[2] * w.shape[3], row = w.shape[1] * column;
  if (w.shape[0] == 3) {
    if (c.out[0].shape[0] == 36) return filter_ahead<Winograd<4, 3>>(c, in<T>(c, 0), row, column, out<T>(c));
    return filter_ahead<Winograd<2, 3>>(c, in<T>(c, 0), row, column, out<T>(c));
  }
  int64_t padding[4];
  read_tuple(c.attr, padding, 4);
  const int64_t of_phase = size(c.out[0]) / 4;
  for (int k = 0; k < 4; ++k) {
    const Phase a(4, padding[0], k / 2), b(4, padding[2], k % 2);
    filter_ahead<Winograd<4, 2>>(c, in<T>(c, 0) + a.first * row + b.first * column, 2 * row, 2 * column, out<T>(c) + k * of_phase);
  }
}

KERNEL_SCRATCH_F32(winograd_conv2d, winograd_conv2d_bytes) {
  const Conv s = of_x_u(c);
  if (s.empty()) return;
  int64_t padding[4];
  const int activation = int(*read_tuple(c.attr + 1, padding, 4));
  Source source[4] = {{in<T>(c, 0), s.h * s.w * s.c, s.w * s.c, s.c, int(s.h), int(s.w), int(s.top), int(s.left)}};
  if (s.kh == 4)
    for (int k = 0; k < 4; ++k) {
      const Phase a(s.h, s.top, k / 2), b(s.w, s.left, k % 2);
      source[k] = {in<T>(c, 0) + (k / 2 * s.w + k % 2) * s.c, s.h * s.w * s.c, 2 * s.w * s.c, 2 * s.c, int(a.size), int(b.size), int(-a.shift),
                   int(-b.shift)};
    }
  float* const scratch = static_cast<float*>(c.scratch);
  with_transforms(c, [&](auto f, int sources) {
    using F = decltype(f);
    const Between<F> a(s.n, s.p, s.q, sources * s.c, s.o);
    each(c, a.kPositions * a.channels * s.o,
         Repack{in<T>(c, 1), scratch, a.kPositions, sources, s.c, s.o, s.c * padded(s.o, kColumns)});
    convolve<F>(c, a, source, sources, s.n, s.p, s.q, false, {in<T>(c, 2), in<T>(c, 3), out<T>(c), nullptr, activation}, scratch);
    return 0;
  });
}
