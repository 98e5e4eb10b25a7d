// Moving without computing, at the speed of memory: copies of rows put together, permutations of axes, other float types.
//
// Rows move as words of four bytes, whatever the type. concat, slice_axis and pad_axis are one loop over the pieces of
// rows (row_pieces.h). A permutation is first written in its fewest axes (permutation.h). If the last one
// stays, rows move whole; else the axis that is last in the input and the one that is last in the output span matrices,
// which are transposed in registers.
#include <string.h>

#include "../parallel.h"
#include "../permutation.h"
#include "../row_pieces.h"
#include "../transpose.h"

namespace {

constexpr int64_t kGrain = 1 << 15;                 // words per task
constexpr int64_t kBlock = 64;                      // rows of a matrix that are read again for the next columns
constexpr int64_t kLong = 1 << 10;                  // words from where memcpy is faster

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

inline float* words(const Array& a) { return static_cast<float*>(a.data); }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t bounded(int64_t i, int64_t n) { return i < 0 ? 0 : i < n ? i : n; }

void join(const Call& c, const RowPieces<float>& row_pieces) {
  const auto *pieces = row_pieces.piece, *last = pieces + row_pieces.count;
  const int64_t width = row_pieces.width;
  float* y = words(c.out[0]);
  const int64_t n = size(c.out[0]) * (c.out[0].dtype == generant::kFloat64 ? 2 : 1);
  parallel_range(c, n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin / width, at = begin % width; begin < end; ++row, at = 0) {
      const int64_t stop = at + end - begin < width ? at + end - begin : width;
      int64_t first = 0;
      for (const auto* p = pieces; p < last; first += p->width, ++p) {
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

template <class T> struct Other { using type = double; };
template <> struct Other<double> { using type = float; };

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

KERNEL(concat) { join(c, concat_pieces<T, float>(c)); }
KERNEL(slice_axis) { join(c, slice_pieces<T, float>(c)); }
KERNEL(pad_axis) { join(c, pad_pieces<T, float>(c)); }

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
  const int j = p.last_of_input();
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
