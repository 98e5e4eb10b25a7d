// concat, slice_axis and pad_axis as one job: every row of the output is pieces of rows of the inputs, or zeros.
//
// Rows are counted in words of four bytes, whatever the type. W is what the words are called.
#pragma once
#include "kernel.h"

namespace {

template <class W> struct RowPieces {
  struct Piece {                             // null: zeros
    const W* from;
    int64_t step, width;                     // from a row to the next, and of the piece
  };
  Piece piece[3];
  int count;
  int64_t width;                             // of an output row
};

template <class T> constexpr int64_t kWords = int64_t(sizeof(T)) / 4;

// Words in one step along the axis that is attribute i of the call.
template <class T> inline int64_t inner(const Call& c, int i) {
  const Array& a = c.in[0];
  int64_t n = kWords<T>;
  for (int k = a.ndim - 1, axis = int(c.attr[i]) + (c.attr[i] < 0 ? a.ndim : 0); k > axis; --k) n *= a.shape[k];
  return n;
}
inline int64_t along(const Call& c, const Array& a, int i) { return a.shape[int(c.attr[i]) + (c.attr[i] < 0 ? a.ndim : 0)]; }

template <class T, class W> inline RowPieces<W> concat_pieces(const Call& c) {
  const int64_t n = inner<T>(c, 0), a = along(c, c.in[0], 0) * n, b = along(c, c.in[1], 0) * n;
  return {{{in<W>(c, 0), a, a}, {in<W>(c, 1), b, b}, {}}, 2, a + b};
}

template <class T, class W> inline RowPieces<W> slice_pieces(const Call& c) {
  const int64_t n = inner<T>(c, 2), start = int64_t(c.attr[0]), width = (int64_t(c.attr[1]) - start) * n;
  return {{{in<W>(c, 0) + start * n, along(c, c.in[0], 2) * n, width}, {}, {}}, 1, width};
}

template <class T, class W> inline RowPieces<W> pad_pieces(const Call& c) {
  const int64_t n = inner<T>(c, 2), before = int64_t(c.attr[0]) * n, after = int64_t(c.attr[1]) * n;
  const int64_t own = along(c, c.in[0], 2) * n;
  return {{{nullptr, 0, before}, {in<W>(c, 0), own, own}, {nullptr, 0, after}}, 3, before + own + after};
}

}  // namespace
