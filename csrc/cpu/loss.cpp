// Losses in one pass, and their gradients: mean squared error, cross-entropies from logits, divergence of Gaussians.
//
// Sums run in double over blocks that depend on the shape only, and blocks are merged in order. A loss over elements is
// a functor of two vectors (value and derivatives); runs of elements that share a sample's weight are handled as one.
#include "../parallel.h"
#include "../total.h"
#include "../vmath.h"

namespace {

constexpr int64_t kBlock = 8192;           // elements per task

// f(j, n) for the vectors of [begin, end): n lanes from offset j.
template <class T, class F> inline void each_vector(int64_t begin, int64_t end, F f) {
  constexpr int L = kLanes<T>;
  int64_t j = begin;
  for (; j + L <= end; j += L) f(j, int64_t(L));
  if (j < end) f(j, end - j);
}
template <class T> inline vec<T> load_n(const T* p, int64_t n) {
  return n == kLanes<T> ? load(p) : load_first(p, n);
}
template <class T> inline void store_n(T* p, vec<T> v, int64_t n) {
  if (n == kLanes<T>) store(p, v);
  else store_first(p, v, n);
}

// The first n lanes of x, `rest` in the others.
template <class T> inline vec<T> first_of(vec<T> x, int64_t n, T rest) {
  vmask<T> i;
  for (int k = 0; k < kLanes<T>; ++k) i[k] = k;
  return i < (vmask<T>{} + decltype(i[0] + 0)(n)) ? x : broadcast(rest);
}

// sum of f(j, n) over the vectors of [begin, end), two of them in flight.
template <class T, class F> inline double sum_of(int64_t begin, int64_t end, F f) {
  constexpr int L = kLanes<T>;
  Total<T> even, odd;
  int64_t j = begin;
  for (; j + 2 * L <= end; j += 2 * L) {
    even.add(f(j, int64_t(L)));
    odd.add(f(j + L, int64_t(L)));
  }
  for (; j < end; j += L) {
    const int64_t n = end - j;
    if (n >= L) even.add(f(j, int64_t(L)));
    else odd.add(first_of<T>(f(j, n), n, T(0)));
  }
  even.add(odd);
  return even.value();
}

// e^-|x| and from it 1 / (1 + e^-|x|): what the logistic functions are made of.
template <class T> struct Logistic {
  vec<T> e, large;
  explicit Logistic(vec<T> x) : e(vexp(-vabs(x))), large(broadcast(T(1)) / (e + T(1))) {}
};

// ---- means over elements --------------------------------------------------------------------------------------------

struct SquaredError {
  template <class T> static vec<T> value(vec<T> x, vec<T> t) { return (x - t) * (x - t); }
  template <class T> static vec<T> dx(vec<T> x, vec<T> t) { return (x - t) + (x - t); }
  template <class T> static vec<T> dt(vec<T> x, vec<T> t) { return (t - x) + (t - x); }
};

struct LogisticError {
  template <class T> static vec<T> value(vec<T> x, vec<T> t) {
    return ((x <= T(0) ? vec<T>{} : x) - x * t) + vlog1p_unit(vexp(-vabs(x)));
  }
  template <class T> static vec<T> dx(vec<T> x, vec<T> t) {
    const Logistic<T> s(x);
    const vec<T> rest = s.e * s.large;
    return (T(1) - t) * (x >= T(0) ? s.large : rest) - t * (x >= T(0) ? rest : s.large);
  }
  template <class T> static vec<T> dt(vec<T> x, vec<T>) { return -x; }
};

template <class T> int64_t mean_bytes(const Call& c) {
  return ceil_div(size(c.in[0]), kBlock) * int64_t(sizeof(double));
}

// Inputs x, target (n, ...), weight (n) or absent; output a scalar.
template <class T, class F> inline void mean_of(const Call& c) {
  const T *x = in<T>(c, 0), *t = in<T>(c, 1), *weight = in<T>(c, 2);
  const int64_t count = size(c.in[0]), each = weight ? count / c.in[0].shape[0] : count;
  double* partial = static_cast<double*>(c.scratch);
  const auto value = [&](int64_t j, int64_t n) { return F::template value<T>(load_n(x + j, n), load_n(t + j, n)); };
  parallel_range(c, count, kBlock, [&](int64_t begin, int64_t end) {
    double total = 0;
    if (weight && each == 1) {
      total = sum_of<T>(begin, end, [&](int64_t j, int64_t n) { return load_n(weight + j, n) * value(j, n); });
    } else {
      for (int64_t i = begin / each, j = begin, stop; j < end; j = stop, ++i) {
        stop = (i + 1) * each < end ? (i + 1) * each : end;
        total += sum_of<T>(j, stop, value) * (weight ? double(weight[i]) : 1.0);
      }
    }
    partial[begin / kBlock] = total;
  });
  double total = 0;
  for (int64_t b = 0; b < ceil_div(count, kBlock); ++b) total += partial[b];
  *out<T>(c) = T(total / double(count));
}

// Inputs g (scalar), x, target, weight or absent; outputs dx, dtarget, dweight, each of which may be absent.
template <class T, class F> inline void mean_gradients(const Call& c) {
  const T *x = in<T>(c, 1), *t = in<T>(c, 2), *weight = in<T>(c, 3);
  T *dx = out<T>(c, 0), *dt = out<T>(c, 1), *dweight = out<T>(c, 2);
  const int64_t count = size(c.in[1]), samples = c.in[1].shape[0], each = count / samples;
  const double scale = double(*in<T>(c, 0)) / double(count);
  const auto run = [&](int64_t begin, int64_t end, auto factor) {
    each_vector<T>(begin, end, [&](int64_t j, int64_t n) {
      const vec<T> xv = load_n(x + j, n), tv = load_n(t + j, n), f = factor(j, n);
      if (dx) store_n(dx + j, f * F::template dx<T>(xv, tv), n);
      if (dt) store_n(dt + j, f * F::template dt<T>(xv, tv), n);
    });
  };
  if (dx || dt) {
    const int64_t length = weight ? each : count;    // of elements with one factor
    parallel_range(c, count, kBlock, [&](int64_t begin, int64_t end) {
      if (weight && length == 1)
        return run(begin, end, [&](int64_t j, int64_t n) { return load_n(weight + j, n) * T(scale); });
      for (int64_t i = begin / length, j = begin, stop; j < end; j = stop, ++i) {
        stop = (i + 1) * length < end ? (i + 1) * length : end;
        const vec<T> f = broadcast(T(weight ? scale * double(weight[i]) : scale));
        run(j, stop, [&](int64_t, int64_t) { return f; });
      }
    });
  }
  if (!dweight) return;
  parallel_range(c, samples, ceil_div(kBlock, each), [&](int64_t i, int64_t end) {
    for (; i < end; ++i)
      dweight[i] = T(scale * sum_of<T>(i * each, (i + 1) * each, [&](int64_t j, int64_t n) {
        return F::template value<T>(load_n(x + j, n), load_n(t + j, n));
      }));
  });
}

// ---- cross-entropy of classes ---------------------------------------------------------------------------------------

// A row of k logits. Lanes beyond its end hold whatever is there; only the last row has to be read with care.
template <class T> struct Row {
  const T *x, *end;
  int64_t k;
  vec<T> at(int64_t j, int64_t n) const { return x + j + kLanes<T> <= end ? load(x + j) : load_first(x + j, n); }
};

template <class T> inline T largest(const Row<T>& row) {
  const T low = -T(__builtin_inff());
  vec<T> most = broadcast(low);
  each_vector<T>(0, row.k, [&](int64_t j, int64_t n) { most = vmax(first_of(row.at(j, n), n, low), most); });
  T lanes[kLanes<T>];
  store(lanes, most);
  for (int n = kLanes<T> / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) lanes[i] = lanes[i] > lanes[i + n] ? lanes[i] : lanes[i + n];
  return lanes[0];
}

// The target's mean of z = row - top. The loss is the log of the sum of exp(z) minus this.
template <class T> inline double mean_of_target(const Row<T>& row, T top, int64_t label, double smooth) {
  double mean = (1.0 - smooth) * double(row.x[label] - top);
  if (smooth != 0.0) {
    const vec<T> m = broadcast(top);
    mean += smooth / double(row.k) * sum_of<T>(0, row.k, [&](int64_t j, int64_t n) { return row.at(j, n) - m; });
  }
  return mean;
}

template <class T> int64_t class_rows(const Array& logits) { return ceil_div(kBlock / 2, logits.shape[1]); }
template <class T> int64_t class_bytes(const Call& c) {
  return ceil_div(c.in[0].shape[0], class_rows<T>(c.in[0])) * int64_t(sizeof(double));
}

}  // namespace

KERNEL_SCRATCH(mse, mean_bytes) { mean_of<T, SquaredError>(c); }
KERNEL(mse_bwd) { mean_gradients<T, SquaredError>(c); }
KERNEL_SCRATCH(bce_with_logits, mean_bytes) { mean_of<T, LogisticError>(c); }
KERNEL(bce_with_logits_bwd) { mean_gradients<T, LogisticError>(c); }

KERNEL_SCRATCH(cross_entropy, class_bytes) {
  const T *logits = in<T>(c, 0), *weight = in<T>(c, 2);
  const int64_t* labels = in<int64_t>(c, 1);
  T *shift = out<T>(c, 1), *totals = out<T>(c, 2);
  const int64_t samples = c.in[0].shape[0], k = c.in[0].shape[1], block = class_rows<T>(c.in[0]);
  const double smooth = c.attr[0];
  double* partial = static_cast<double*>(c.scratch);
  parallel_range(c, samples, block, [&](int64_t i, int64_t end) {
    const int64_t b = i / block;
    double sum = 0, factors = 1;                     // logs of eight rows at a time: each sum is in [1, k]
    for (int held = 0; i < end; ++i) {
      const Row<T> row = {logits + i * k, logits + samples * k, k};
      const T top = largest(row);
      const vec<T> m = broadcast(top);
      const double total = sum_of<T>(0, k, [&](int64_t j, int64_t n) { return vexp(row.at(j, n) - m); });
      const double target = mean_of_target(row, top, labels[i], smooth);
      if (weight) {
        sum += double(weight[i]) * (__builtin_log(total) - target);
      } else {
        sum -= target;
        factors *= total;
        if (++held == 8) sum += __builtin_log(factors), factors = 1, held = 0;
      }
      if (shift) shift[i] = top;
      if (totals) totals[i] = T(total);
    }
    partial[b] = sum + __builtin_log(factors);
  });
  double sum = 0;
  for (int64_t b = 0; b < ceil_div(samples, block); ++b) sum += partial[b];
  *out<T>(c) = T(sum / double(samples));
}

KERNEL(cross_entropy_bwd) {
  const T *logits = in<T>(c, 1), *weight = in<T>(c, 3), *shift = in<T>(c, 4), *totals = in<T>(c, 5);
  const int64_t* labels = in<int64_t>(c, 2);
  T *dlogits = out<T>(c, 0), *dweight = out<T>(c, 2);
  const int64_t samples = c.in[1].shape[0], k = c.in[1].shape[1];
  const double smooth = c.attr[0], scale = double(*in<T>(c, 0)) / double(samples);
  parallel_range(c, samples, class_rows<T>(c.in[1]), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const Row<T> row = {logits + i * k, logits + samples * k, k};
      const vec<T> m = broadcast(shift[i]);
      if (dlogits) {
        T* to = dlogits + i * k;
        const double factor = weight ? scale * double(weight[i]) : scale;
        const vec<T> f = broadcast(T(factor)), r = broadcast(T(1.0 / double(totals[i])));
        const vec<T> rest = broadcast(T(smooth / double(k)));
        each_vector<T>(0, k, [&](int64_t j, int64_t n) {
          store_n(to + j, f * (vexp(row.at(j, n) - m) * r - rest), n);
        });
        to[labels[i]] = T(double(to[labels[i]]) - factor * (1.0 - smooth));
      }
      if (dweight)
        dweight[i] = T(scale * (__builtin_log(double(totals[i])) - mean_of_target(row, shift[i], labels[i], smooth)));
    }
  });
}

// ---- divergence of Gaussians: inputs mu, logvar, mu2 or absent, logvar2 or absent -----------------------------------

namespace {

template <class T> struct Gaussians {
  const T *mu, *logvar, *mu2, *logvar2;
  Gaussians(const Call& c, int first)
      : mu(in<T>(c, first)), logvar(in<T>(c, first + 1)), mu2(in<T>(c, first + 2)), logvar2(in<T>(c, first + 3)) {}
  // Per element: the difference of the means and of logvar, exp of the latter, and exp(-logvar2).
  struct Pair { vec<T> d, u, r, precision; };
  Pair at(int64_t j, int64_t n) const {
    Pair p{load_n(mu + j, n), load_n(logvar + j, n), {}, broadcast(T(1))};
    if (mu2) p.d -= load_n(mu2 + j, n);
    if (logvar2) {
      const vec<T> v = load_n(logvar2 + j, n);
      p.u -= v;
      p.precision = vexp(-v);
    }
    p.r = vexp(p.u);
    return p;
  }
};

}  // namespace

KERNEL(gaussian_kl) {
  const Gaussians<T> of(c, 0);
  T* y = out<T>(c);
  const int64_t samples = c.in[0].shape[0], each = samples > 0 ? size(c.in[0]) / samples : 0;
  parallel_range(c, samples, ceil_div(kBlock / 2, each > 0 ? each : 1), [&](int64_t i, int64_t end) {
    for (; i < end; ++i)
      y[i] = T(0.5 * sum_of<T>(i * each, (i + 1) * each, [&](int64_t j, int64_t n) {
        const auto p = of.at(j, n);
        return ((p.r - T(1)) - p.u) + p.d * p.d * p.precision;
      }));
  });
}

KERNEL(gaussian_kl_bwd) {
  const Gaussians<T> of(c, 1);
  const T* g = in<T>(c, 0);
  T *dmu = out<T>(c, 0), *dlogvar = out<T>(c, 1), *dmu2 = out<T>(c, 2), *dlogvar2 = out<T>(c, 3);
  const int64_t samples = c.in[1].shape[0], each = samples > 0 ? size(c.in[1]) / samples : 0;
  parallel_range(c, samples, ceil_div(kBlock / 2, each > 0 ? each : 1), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const vec<T> gv = broadcast(g[i]), half = gv * T(0.5);
      each_vector<T>(i * each, (i + 1) * each, [&](int64_t j, int64_t n) {
        const auto p = of.at(j, n);
        const vec<T> slope = p.d * p.precision, less = p.r - T(1);
        if (dmu) store_n(dmu + j, gv * slope, n);
        if (dlogvar) store_n(dlogvar + j, half * less, n);
        if (dmu2) store_n(dmu2 + j, -(gv * slope), n);
        if (dlogvar2) store_n(dlogvar2 + j, -(half * (less + p.d * slope)), n);
      });
    }
  });
}
