// What the convolutions share: strips of padded input, which the micro-kernels of tile.h read through pointers and runs.
//
// A convolution is a product whose left matrix is never formed. In NHWC the numbers that one filter tap reads are a run
// of memory, at a fixed distance from where the pixel starts; so MR pointers and a list of runs describe MR rows of that
// matrix. A strip is a block of the input copied with its zeros around it, so no run needs a test for the border. The
// copy costs one load and store per number, against one multiplication per tap and output channel.
#pragma once
#include "parallel.h"
#include "tile.h"

namespace {

inline int64_t round64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// ---- strips ------------------------------------------------------------------------------------------------------

// A window of a grid of pixels: `samples` whole planes, or `rows` x `columns` of one plane.
struct Window {
  int64_t samples, rows, columns;
  int64_t pixels() const { return samples * rows * columns; }
};

// Windows of at most `most` pixels over p x q: several small samples, some full rows, or a part of one row. Sizes are
// as even as they come.
inline Window window_of(int64_t n, int64_t p, int64_t q, int64_t most) {
  if (p * q <= most) return {least(n, most / (p * q)), p, q};
  if (q <= most) return {1, ceil_div(p, ceil_div(p, most / q)), q};
  return {1, 1, ceil_div(q, ceil_div(q, most))};
}

// How a strip lies in memory, and which part of the input a window reads. The window's pixel (i, j) reads rows
// i * step_h + [0, span_h) and columns j * step_w + [0, span_w) of the strip.
struct Strip {
  int64_t h, w, c;                  // of the input
  int64_t step_h, step_w, first_h, first_w, span_h, span_w;
  int64_t rows, columns, pitch;     // of the strip, per sample; terms from one pixel to the next
  int64_t groups = 1;               // of channels, each of whole terms
  int64_t size(const Window& a) const { return a.samples * rows * columns * pitch; }
};

// pitch: pixels that lie a power of two apart share cache sets.
template <class T> inline int64_t pitch_of(int64_t c) {
  constexpr int64_t line = 64 / int64_t(sizeof(T));
  return c % (8 * line) == 0 ? c + line : c;
}

template <class T> inline void put_pixels(const Strip& s, const T* from, int64_t pixels, T* to) {
  memcpy(to, from, size_t(pixels * s.c) * sizeof(T));
}

// Copy what the window at (sample, row, column) reads, zeros outside the input. wanted(r): whether row r of the strip
// is read at all.
template <class T, class U, class F>
static void copy_strip(const Strip& s, const T* x, int64_t sample, int64_t samples, int64_t row, int64_t n_rows,
                       int64_t column, int64_t n_columns, F wanted, U* to) {
  const int64_t terms = s.groups * Terms<U>::count(s.c / s.groups);   // of a pixel
  const int64_t h0 = row * s.step_h + s.first_h, w0 = column * s.step_w + s.first_w;
  const int64_t rows = (n_rows - 1) * s.step_h + s.span_h, columns = (n_columns - 1) * s.step_w + s.span_w;
  const int64_t left = w0 < 0 ? least(-w0, columns) : 0;
  const int64_t inside = s.w - w0 < left ? left : least(columns, s.w - w0);        // columns [left, inside) are in x
  for (int64_t k = 0; k < samples; ++k)
    for (int64_t r = 0; r < rows; ++r) {
      if (!wanted(r)) continue;
      U* q = to + (k * s.rows + r) * s.columns * s.pitch;
      const int64_t h = h0 + r;
      if (h < 0 || h >= s.h || left == inside) {
        memset(q, 0, size_t(columns * s.pitch) * sizeof(U));
        continue;
      }
      memset(q, 0, size_t(left * s.pitch) * sizeof(U));
      const T* from = x + (((sample + k) * s.h + h) * s.w + w0 + left) * s.c;
      if (s.pitch == terms) {
        put_pixels(s, from, inside - left, q + left * s.pitch);
      } else {
        for (int64_t j = left; j < inside; ++j, from += s.c) {
          put_pixels(s, from, 1, q + j * s.pitch);
          memset(q + j * s.pitch + terms, 0, size_t(s.pitch - terms) * sizeof(U));
        }
      }
      memset(q + inside * s.pitch, 0, size_t((columns - inside) * s.pitch) * sizeof(U));
    }
}

}  // namespace
