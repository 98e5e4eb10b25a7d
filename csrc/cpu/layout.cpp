// Moving without computing, at the speed of memory: copies of rows put together, permutations of axes, other float types.
//
// Rows move as words of four bytes, whatever the type. concat, slice_axis and pad_axis are one loop: every row of the
// output is pieces of rows of the inputs, or zeros. A permutation is first written in its fewest axes. If the last one
// stays, rows move whole; else the axis that is last in the input and the one that is last in the output span matrices,
// which are transposed in registers.
#include <string.h>

#include "../parallel.h"
#include "../transpose.h"

namespace {

constexpr int64_t kGrain = 1 << 15;                 // words per task
constexpr int64_t kBlock = 64;                      // rows of a matrix that are read again for the next columns
constexpr int64_t kLong = 1 << 10;                  // words from where memcpy is faster
using generant::kMaxDims;

inline void copy(float* to, const float* from, int64_t n) {
  constexpr int L = kLanes<float>;
  if (n >= kLong) {
    memcpy(to, from, size_t(n) * 4);
  } else if (n >= L) {
    for (int64_t i = 0; i + L < n; i += L) store(to + i, load(from + i));
    store(to + n - L, load(from + n - L));
  } else {
    for (int64_t i = 0; i < n; ++i) memcpy(to + i, from + i, 4);
  }
}

void copy_all(const Call& c, float* to, const float* from, int64_t n) {
  parallel_range(c, n, kGrain, [&](int64_t begin, int64_t end) { copy(to + begin, from + begin, end - begin); });
}

template <class T> constexpr int64_t kWords = int64_t(sizeof(T)) / 4;
inline float* words(const Array& a) { return static_cast<float*>(a.data); }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t bounded(int64_t i, int64_t n) { return i < 0 ? 0 : i < n ? i : n; }

struct Piece {                                      // of a row; null: zeros
  const float* from;
  int64_t step, width;                              // from a row to the next, and of the piece
};

// Every row of the output is the pieces' rows, one after the other.
void join(const Call& c, const Piece* pieces, int count, int64_t width) {
  float* y = words(c.out[0]);
  const int64_t n = size(c.out[0]) * (c.out[0].dtype == generant::kFloat64 ? 2 : 1);
  parallel_range(c, n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin / width, at = begin % width; begin < end; ++row, at = 0) {
      const int64_t stop = at + end - begin < width ? at + end - begin : width;
      int64_t first = 0;
      for (const Piece* p = pieces; p < pieces + count; first += p->width, ++p) {
        const int64_t i = bounded(at - first, p->width), m = bounded(stop - first, p->width) - i;
        if (m == 0) continue;
        float* to = y + row * width + first + i;
        if (p->from) copy(to, p->from + row * p->step + i, m);
        else memset(to, 0, size_t(m) * 4);
      }
      begin += stop - at;
    }
  });
}

// Words in one step along the axis that is attribute i of the call.
template <class T> inline int64_t inner(const Call& c, int i) {
  const Array& a = c.in[0];
  int64_t n = kWords<T>;
  for (int k = a.ndim - 1, axis = int(c.attr[i]) + (c.attr[i] < 0 ? a.ndim : 0); k > axis; --k) n *= a.shape[k];
  return n;
}
inline int64_t along(const Call& c, const Array& a, int i) { return a.shape[int(c.attr[i]) + (c.attr[i] < 0 ? a.ndim : 0)]; }

template <class T> struct Other { using type = double; };
template <> struct Other<double> { using type = float; };

struct Permutation {                                // in the order of the output
  int ndim = 0;
  int64_t shape[kMaxDims], from[kMaxDims], to[kMaxDims];  // elements in one step, in the input and in the output

  // attr: NaN for the axes reversed, or their number and the axes.
  Permutation(const Array& x, const double* attr) {
    int64_t step[kMaxDims + 1];
    step[x.ndim] = 1;
    for (int i = x.ndim; i-- > 0;) step[i] = step[i + 1] * x.shape[i];
    for (int i = 0; i < x.ndim; ++i) {
      const int given = attr[0] == attr[0] ? int(attr[1 + i]) : -1 - i, axis = given < 0 ? given + x.ndim : given;
      const int64_t n = x.shape[axis];
      if (n == 1) continue;
      if (ndim > 0 && from[ndim - 1] == step[axis]) shape[ndim - 1] *= n;
      else shape[ndim++] = n;
      from[ndim - 1] = step[axis + 1];
    }
    if (ndim == 0) shape[0] = 1, from[0] = 1, ndim = 1;
    int64_t n = 1;
    for (int i = ndim; i-- > 0; n *= shape[i]) to[i] = n;
  }

  // Adds the offsets of place i among all axes but the last and `without`.
  void locate(int64_t i, int without, int64_t& a, int64_t& b) const {
    for (int k = ndim - 1; k-- > 0;) {
      if (k == without) continue;
      a += i % shape[k] * from[k], b += i % shape[k] * to[k];
      i /= shape[k];
    }
  }
};

template <class T> inline void transpose_tile(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows, int64_t columns) {
  constexpr int L = kLanes<T>;
  vec<T> r[L];
  if (rows == L && columns == L) {
    for (int i = 0; i < L; ++i) r[i] = load(x + i * ldx);
    transpose<T>(r);
    for (int i = 0; i < L; ++i) store(y + i * ldy, r[i]);
    return;
  }
  for (int i = 0; i < L; ++i) r[i] = i < rows ? load_first(x + i * ldx, columns) : vec<T>{};
  transpose<T>(r);
  for (int i = 0; i < L; ++i)
    if (i < columns) store_first(y + i * ldy, r[i], rows);
}

}  // namespace

KERNEL(assign_) { copy_all(c, words(c.in[0]), words(c.in[1]), size(c.in[0]) * kWords<T>); }

KERNEL(concat) {
  const int64_t n = inner<T>(c, 0), a = along(c, c.in[0], 0) * n, b = along(c, c.in[1], 0) * n;
  const Piece pieces[] = {{words(c.in[0]), a, a}, {words(c.in[1]), b, b}};
  join(c, pieces, 2, a + b);
}

KERNEL(slice_axis) {
  const int64_t n = inner<T>(c, 2), start = int64_t(c.attr[0]), width = (int64_t(c.attr[1]) - start) * n;
  const Piece piece{words(c.in[0]) + start * n, along(c, c.in[0], 2) * n, width};
  join(c, &piece, 1, width);
}

KERNEL(pad_axis) {
  const int64_t n = inner<T>(c, 2), before = int64_t(c.attr[0]) * n, after = int64_t(c.attr[1]) * n;
  const int64_t own = along(c, c.in[0], 2) * n;
  const Piece pieces[] = {{nullptr, 0, before}, {words(c.in[0]), own, own}, {nullptr, 0, after}};
  join(c, pieces, 3, before + own + after);
}

KERNEL(transpose) {
  if (size(c.in[0]) == 0) return;
  const Permutation p(c.in[0], c.attr);
  const int64_t all = size(c.in[0]), m = p.shape[p.ndim - 1], step = p.from[p.ndim - 1];
  if (p.ndim == 1) return copy_all(c, words(c.out[0]), words(c.in[0]), all * kWords<T>);
  const T* x = in<T>(c, 0);
  T* y = out<T>(c);
  if (step == 1) {
    const int k = p.ndim - 2;
    parallel_range(c, all / m, ceil_div(kGrain, m), [&](int64_t begin, int64_t end) {
      while (begin < end) {
        int64_t a = 0, b = 0, row = begin % p.shape[k];
        p.locate(begin, -1, a, b);
        for (; begin < end && row < p.shape[k]; ++row, ++begin, a += p.from[k], b += m)
          copy(words(c.out[0]) + b * kWords<T>, words(c.in[0]) + a * kWords<T>, m * kWords<T>);
      }
    });
    return;
  }
  constexpr int L = kLanes<T>;
  int j = 0;
  while (p.from[j] != 1) ++j;                       // the axis that is last in the input
  const int64_t n = p.shape[j], strips = ceil_div(n, L), blocks = ceil_div(m, kBlock), strip_size = L * least(m, kBlock);
  parallel_range(c, all / n / m * blocks * strips, ceil_div(kGrain, strip_size), [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) {
      const int64_t column = begin % strips * L, first = begin / strips % blocks * kBlock;
      int64_t a = column + first * step, b = column * p.to[j] + first;
      p.locate(begin / strips / blocks, j, a, b);
      const int64_t rows = least(kBlock, m - first);
      for (int64_t i = 0; i < rows; i += L)
        transpose_tile<T>(x + a + i * step, step, y + b + i, p.to[j], least(L, rows - i), least(L, n - column));
    }
  });
}

KERNEL(cast) {
  if (c.in[0].dtype == c.out[0].dtype) return copy_all(c, words(c.out[0]), words(c.in[0]), size(c.in[0]) * kWords<T>);
  using From = typename Other<T>::type;
  const From* x = in<From>(c, 0);
  T* y = out<T>(c);
  constexpr int L = kLanes<double>;
  typedef From Read __attribute__((vector_size(L * sizeof(From)), aligned(sizeof(From)), may_alias));
  typedef T Written __attribute__((vector_size(L * sizeof(T)), aligned(sizeof(T)), may_alias));
  parallel_range(c, size(c.in[0]), kGrain, [&](int64_t i, int64_t end) {
    for (; i + L <= end; i += L)
      *reinterpret_cast<Written*>(y + i) = __builtin_convertvector(*reinterpret_cast<const Read*>(x + i), Written);
    for (; i < end; ++i) y[i] = T(x[i]);
  });
}
