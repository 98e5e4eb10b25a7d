// Elementwise rows: name(x), name_bwd(g, r) = g f'(r), name_bwd2(h, g, r) = h g f''(r), from functors of f, d, d2.
//
// One loop per number of inputs; a new row is a functor and one line. The loops are bound by memory for the cheap
// functions and by arithmetic for the others, which get smaller blocks so that small arrays are shared out too.
#include "../vmath.h"

#include "../activation_math.h"
#include "../epilogue.h"
#include "../parallel.h"

namespace {

constexpr int64_t kCheap = 16384, kCostly = 4096, kLibm = 1024;

// Elements per task, for functions made of float vectors and of libm calls respectively.
template <class T, bool costly> constexpr int64_t grain() {
  return !costly ? kCheap : sizeof(T) == 4 ? kCostly : kLibm;
}

template <class T, class F> inline void map1(const Call& c, int64_t block, F f) {
  const T* x = in<T>(c, 0);
  T* y = out<T>(c);
  parallel_range(c, size(c.out[0]), block, [&](int64_t i, int64_t end) {
    constexpr int L = kLanes<T>;
    for (; i + L <= end; i += L) store(y + i, f(load(x + i)));
    if (i < end) store_first(y + i, f(load_first(x + i, end - i)), end - i);
  });
}

template <class T, class F> inline void map2(const Call& c, int64_t block, F f) {
  const T *g = in<T>(c, 0), *x = in<T>(c, 1);
  T* y = out<T>(c);
  parallel_range(c, size(c.out[0]), block, [&](int64_t i, int64_t end) {
    constexpr int L = kLanes<T>;
    for (; i + L <= end; i += L) store(y + i, f(load(g + i), load(x + i)));
    if (i < end) store_first(y + i, f(load_first(g + i, end - i), load_first(x + i, end - i)), end - i);
  });
}

template <class T, class F> inline void map3(const Call& c, int64_t block, F f) {
  const T *h = in<T>(c, 0), *g = in<T>(c, 1), *x = in<T>(c, 2);
  T* y = out<T>(c);
  parallel_range(c, size(c.out[0]), block, [&](int64_t i, int64_t end) {
    constexpr int L = kLanes<T>;
    for (; i + L <= end; i += L) store(y + i, f(load(h + i), load(g + i), load(x + i)));
    const int64_t n = end - i;
    if (n > 0) store_first(y + i, f(load_first(h + i, n), load_first(g + i, n), load_first(x + i, n)), n);
  });
}

// A functor with parameters is made from the attributes; the others are empty.
template <class F> inline F make(const double* attr) {
  if constexpr (__is_constructible(F, const double*)) return F(attr);
  else return F{};
}

// Declares the ops of a row. `cost`, `dcost`: whether f and its derivatives are costly.
#define ROW1(op, F, cost)                                                                            \
  KERNEL(op) {                                                                                       \
    const F row = make<F>(c.attr);                                                                   \
    map1<T>(c, grain<T, cost>(), [&](vec<T> x) { return row.template f<T>(x); });                    \
  }
#define ROW2(op, F, cost, dcost)                                                                     \
  ROW1(op, F, cost)                                                                                  \
  KERNEL(op##_bwd) {                                                                                 \
    const F row = make<F>(c.attr);                                                                   \
    map2<T>(c, grain<T, dcost>(), [&](vec<T> g, vec<T> x) { return g * row.template d<T>(x); });     \
  }
#define ROW3(op, F, cost, dcost)                                                                     \
  ROW2(op, F, cost, dcost)                                                                           \
  KERNEL(op##_bwd2) {                                                                                \
    const F row = make<F>(c.attr);                                                                   \
    map3<T>(c, grain<T, dcost>(), [&](vec<T> h, vec<T> g, vec<T> x) { return h * g * row.template d2<T>(x); }); \
  }

}  // namespace

ROW2(relu, Relu, false, false)
ROW2(leaky_relu, SlopedRelu, false, false)
ROW3(sigmoid, Sigmoid, true, false)
ROW3(silu, Silu, true, true)
ROW3(gelu, Gelu, true, true)
ROW3(tanh, Tanh, true, false)
ROW3(softplus, Softplus, true, true)
ROW3(exp, Exp, true, false)
ROW3(log, Log, true, false)
ROW3(sqrt, Sqrt, false, false)
ROW3(rsqrt, Rsqrt, false, false)
ROW3(square, Square, false, false)
ROW3(reciprocal, Reciprocal, false, false)
ROW2(abs, Abs, false, false)
ROW3(sin, Sin, true, true)
ROW3(cos, Cos, true, true)
ROW3(erf, Erf, true, true)
ROW3(power, Power, true, true)
ROW2(clip, Clip, false, false)
ROW1(affine, Affine, false)

// ---- the epilogue of products and convolutions (epilogue.h) ----------------------------------------------------------

namespace {

template <class T, class F>
static void finish_layer(const void* context, int64_t i, int64_t j, int64_t m, int64_t n) {
  constexpr int L = kLanes<T>;
  const Layer<T>& s = *static_cast<const Layer<T>*>(context);
  for (int64_t q = 0; q < n; q += L) {
    const int64_t w = n - q;
    if (w >= L) {
      const vec<T> b = s.bias ? load(s.bias + j + q) : vec<T>{};
      for (int64_t r = i; r < i + m; ++r) {
        const int64_t at = r * s.ld + j + q;
        vec<T> v = load((s.h ? s.h : s.y) + at) + b;
        if (s.residual) v += load(s.residual + at);
        if (s.h) store(s.h + at, v);
        store(s.y + at, F::template f<T>(v));
      }
    } else {
      const vec<T> b = s.bias ? load_first(s.bias + j + q, w) : vec<T>{};
      for (int64_t r = i; r < i + m; ++r) {
        const int64_t at = r * s.ld + j + q;
        vec<T> v = load_first((s.h ? s.h : s.y) + at, w) + b;
        if (s.residual) v += load_first(s.residual + at, w);
        if (s.h) store_first(s.h + at, v, w);
        store_first(s.y + at, F::template f<T>(v), w);
      }
    }
  }
}

}  // namespace

namespace generant::GENERANT_NAMESPACE {

template <class T> Finish epilogue_of(int activation) {
  switch (activation) {
    case 0: return finish_layer<T, Identity>;
    case 1: return finish_layer<T, Relu>;
    case 2: return finish_layer<T, LeakyRelu>;
    case 3: return finish_layer<T, Silu>;
    case 4: return finish_layer<T, Gelu>;
    case 5: return finish_layer<T, Tanh>;
    case 6: return finish_layer<T, Sigmoid>;
    default: return finish_layer<T, Softplus>;
  }
}
template Finish epilogue_of<float>(int);
template Finish epilogue_of<double>(int);

}  // namespace generant::GENERANT_NAMESPACE
