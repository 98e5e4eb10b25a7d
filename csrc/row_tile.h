// The engine of reductions over the rows of y for every row of x: rows of x lie in the lanes, rows of y are broadcast,
// so sums, maxima and the like over y need no horizontal operation, and outputs of many columns are a second matrix
// product with what the first has just left in L1.
//
// How to use it (cpu/kernel_matvec.cpp is the example):
//   RowTile<T> rows(c, form, x, n, y, m, d);      // what a pair of rows is reduced to: kSquare, kManhattan or kInner
//   rows.add_x(g, e);                             // more rows that go with x, packed like x in b.of_x[0]
//   rows.add_y(v, e);                             // more rows that go with y, packed like y in b.of_y[0]
//   rows.add_side(v, e, centred, ones);           // a right-hand side for multiply_columns, in b.side[0]
//   rows.plan(state, scratch);                    // `state` doubles for a panel of rows of x; takes scratch
//   rows.run(c, f);
// where f has, all const:
//   start(double* state)                          // before the first block
//   block(const RowBlock<T>& b, double* state)    // b.q: the scores of a block of y and a panel of x, free to change
//   merge(double* into, const double* from)       // the states of two parts of y; parts come in order
//   finish(int64_t i0, int lanes, const double* state)      // rows [i0, i0 + lanes) of x are done
// A state is usually [columns][kTileColumns]. Within a part, blocks of y come in rising order. What is packed, split
// and merged depends on shapes only, so results are the same bits for any number of threads. Only few panels of x make
// several parts of y. Scratch is O((n + m) (d + e)).
//
// Squared distances are sums of squared differences up to kDifferenceDims coordinates. Above, they are expanded over
// rows centred at the common mean, and pairs with |x - y|^2 < kNear (|x|^2 + |y|^2) are measured again from the raw
// rows in float64; `near` tells them apart. Inner products are of raw rows.
#pragma once
#include "pairwise_tile.h"

namespace {

constexpr int kRowBlock = 96;                        // rows of y whose scores are in L1 at a time
static_assert(kRowBlock % kTileRows == 0, "whole tiles");
constexpr int kMostExtras = 3;

// One block of rows of y against one panel of rows of x. Everything packed belongs to this block or panel.
template <class T> struct RowBlock {
  vec<T> (*q)[2];                                    // [kRowBlock][2] scores; rows >= `rows` are of no meaning
  const uint32_t* near;                              // bit l of near[r]: pair (i0 + l, j0 + r) was measured again
  bool any_near;
  int64_t i0, j0;                                    // first row of x, of y
  int rows, lanes;                                   // how many of them exist
  const T *x, *y;                                    // [d][kTileColumns]; tiles of [d][kTileRows]; centred if expanded
  const T *of_x[kMostExtras], *of_y[kMostExtras], *side[kMostExtras];

  // Whether a pair i = j is in it; set_diagonal gives these a value.
  bool meets_diagonal() const { return i0 < j0 + rows && j0 < i0 + lanes; }
  void set_diagonal(T value) const {
    T* at = reinterpret_cast<T*>(q);
    for (int64_t i = i0 > j0 ? i0 : j0; i < i0 + lanes && i < j0 + rows; ++i) {
      T* to = at + (i - j0) * kTileColumns<T> + (i - i0);
      memcpy(to, &value, sizeof(T));
    }
  }
};

// ---- sums over a block -------------------------------------------------------------------------------------------

// to[0..kTileColumns) += v, in float64. (GCC makes five instructions of a convertvector to 512 bits.)
#if defined(__AVX512F__)
inline vd low_half(vf v) {
  return _mm512_maskz_cvtps_pd(0xff, __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7));
}
inline vd high_half(vf v) {
  return _mm512_maskz_cvtps_pd(0xff, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
}
#elif defined(__AVX2__)
inline vd low_half(vf v) { return _mm256_cvtps_pd(_mm256_castps256_ps128(v)); }
inline vd high_half(vf v) { return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)); }
#else
inline vd low_half(vf v) { return vd{v[0], v[1]}; }
inline vd high_half(vf v) { return vd{v[2], v[3]}; }
#endif
template <class T> __attribute__((always_inline)) inline void add_panel(double* to, vec<T> v0, vec<T> v1) {
  constexpr int lanes = kLanes<double>;
  if constexpr (sizeof(T) == 8) {
    store(to, load(to) + v0);
    store(to + lanes, load(to + lanes) + v1);
  } else {
    store(to, load(to) + low_half(v0));
    store(to + lanes, load(to + lanes) + high_half(v0));
    store(to + 2 * lanes, load(to + 2 * lanes) + low_half(v1));
    store(to + 3 * lanes, load(to + 3 * lanes) + high_half(v1));
  }
}

// sums[c][..] += sum_r a[r][c] q[r][..] for c < kCount; kChains sums in T for every column.
template <int kCount, int kChains, class T>
inline void multiply_few(const vec<T> (*q)[2], const T* a, int rows, double* sums) {
  vec<T> s[kChains][kCount][2] = {};
  int r = 0;
  for (; r + kChains <= rows; r += kChains)
#pragma GCC unroll 8
    for (int u = 0; u < kChains; ++u) {
      const vec<T> q0 = q[r + u][0], q1 = q[r + u][1];
#pragma GCC unroll 8
      for (int c = 0; c < kCount; ++c) {
        const vec<T> w = broadcast(a[(r + u) * kCount + c]);
        s[u][c][0] = fma(w, q0, s[u][c][0]);
        s[u][c][1] = fma(w, q1, s[u][c][1]);
      }
    }
  for (; r < rows; ++r)
    for (int c = 0; c < kCount; ++c) {
      const vec<T> w = broadcast(a[r * kCount + c]);
      s[0][c][0] = fma(w, q[r][0], s[0][c][0]);
      s[0][c][1] = fma(w, q[r][1], s[0][c][1]);
    }
#pragma GCC unroll 8
  for (int c = 0; c < kCount; ++c) {
#pragma GCC unroll 8
    for (int u = 1; u < kChains; ++u) s[0][c][0] += s[u][c][0], s[0][c][1] += s[u][c][1];
    add_panel<T>(sums + c * kTileColumns<T>, s[0][c][0], s[0][c][1]);
  }
}

// A group of kTileRows columns is packed [rows][kTileRows]; the last group is as wide as it has to be: 1, 2, 3, 4, 6 or
// kTileRows.
constexpr int last_group(int64_t columns) {
  const int left = int(columns % kTileRows);
  return left <= 4 ? left : left <= 6 ? 6 : kTileRows;
}
constexpr int64_t packed_columns(int64_t columns) { return columns / kTileRows * kTileRows + last_group(columns); }

// sums[c][..] += sum_r column[r][c] q[r][..] for all `columns` of what add_side packed: sums in T over the block,
// float64 from block to block. sums has room for packed_columns(columns).
template <class T>
__attribute__((noinline)) void multiply_columns(const vec<T> (*q)[2], const T* column, int64_t columns, int rows,
                                                double* sums) {
  constexpr int w = kTileColumns<T>;
  int64_t c = 0;
  for (; c + kTileRows <= columns; c += kTileRows, column += kRowBlock * kTileRows, sums += kTileRows * w) {
    Tile<T> tile = {};
    accumulate<kInner>(tile, column, reinterpret_cast<const T*>(q), rows);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) add_panel<T>(sums + r * w, tile.at[r][0], tile.at[r][1]);
  }
  switch (columns - c == 0 ? 0 : last_group(columns)) {
    case 0: return;
    case 1: return multiply_few<1, 4>(q, column, rows, sums);
    case 2: return multiply_few<2, 2>(q, column, rows, sums);
    case 3: return multiply_few<3, 1>(q, column, rows, sums);
    case 4: return multiply_few<4, 1>(q, column, rows, sums);
    case 6: return multiply_few<6, 1>(q, column, rows, sums);
    default: {
      Tile<T> tile = {};
      accumulate<kInner>(tile, column, reinterpret_cast<const T*>(q), rows);
      for (int r = 0; r < kTileRows; ++r) add_panel<T>(sums + r * w, tile.at[r][0], tile.at[r][1]);
    }
  }
}

// Whether a > b in every lane of every pair given: false if there is a NaN.
template <class T> struct AllAbove {
#if defined(__AVX512F__)
  uint32_t all = (1u << kLanes<T>) - 1;
  __attribute__((always_inline)) void add(vec<T> a, vec<T> b) {
    if constexpr (sizeof(T) == 4) all = _mm512_mask_cmp_ps_mask(__mmask16(all), a, b, _CMP_GT_OQ);
    else all = _mm512_mask_cmp_pd_mask(__mmask8(all), a, b, _CMP_GT_OQ);
  }
  bool holds() const { return all == (1u << kLanes<T>) - 1; }
#else
  vmask<T> all = ~vmask<T>{};
  __attribute__((always_inline)) void add(vec<T> a, vec<T> b) { all &= a > b; }
  bool holds() const {
    const vec<T> one = broadcast(T(1));
    return lanes_not_above((vec<T>)(all & (vmask<T>)one), vec<T>{}) == 0;
  }
#endif
};

// ---- the engine --------------------------------------------------------------------------------------------------

template <class T> struct RowTile {
  static constexpr int kWidth = kTileColumns<T>;
  struct Extra {
    const T* rows;
    int64_t width, packed_width;
    bool ones, centred;                              // one more column, of ones; without the common mean
    const T* centre;
    T* packed;                                       // of a phase of y, or of a worker's panels of x
  };

  const T *x, *y;
  int64_t n, m, d;
  int form;                                          // of enum Form
  bool expanded, small;                              // small: not worth waking another thread
  Extra of_x[kMostExtras], of_y[kMostExtras], side[kMostExtras];   // rows that go with x, with y; right-hand sides
  int count_x = 0, count_y = 0, sides = 0;

  RowTile(const Call& c, int form, const T* x, int64_t n, const T* y, int64_t m, int64_t d)
      : x(x), y(y), n(n), m(m), d(d), form(form), expanded(form == kSquare && d > kDifferenceDims),
        threads(c.threads > 1 ? c.threads : 1) {}

  int add_x(const T* rows, int64_t width) {
    of_x[count_x] = {rows, width, width, false, false, nullptr, nullptr};
    return count_x++;
  }
  int add_y(const T* rows, int64_t width) {
    of_y[count_y] = {rows, width, width, false, false, nullptr, nullptr};
    return count_y++;
  }
  // `centred` takes the common mean off if distances are expanded (the rows must then be y).
  int add_side(const T* rows, int64_t width, bool centred = false, bool ones = false) {
    side[sides] = {rows, width, packed_columns(width + ones), ones, centred && expanded, nullptr, nullptr};
    return sides++;
  }

  // The common mean (null unless expanded): of use to who unpacks.
  const T* common_mean() const { return centre; }

  void plan(int64_t state_doubles, Carve& scratch) {
    state = (state_doubles + 7) / 8 * 8;
    panels = ceil_div(n, kWidth), blocks = ceil_div(m, kRowBlock);
    int64_t x_width = d, y_width = d + expanded;
    for (int i = 0; i < count_x; ++i) x_width += of_x[i].width;
    for (int i = 0; i < count_y; ++i) y_width += of_y[i].width;
    for (int i = 0; i < sides; ++i) y_width += side[i].packed_width;
    small = double(n) * double(m) * double(x_width + y_width + 16) < 2e6;

    // a task is up to four panels, so that a block of y is of use for longer than it takes to fetch it
    const int64_t panel_bytes = kWidth * (x_width > 0 ? x_width : 1) * int64_t(sizeof(T));
    group = panels / 16 < 4 ? panels / 16 : 4;
    if (group > (int64_t(256) << 10) / panel_bytes) group = (int64_t(256) << 10) / panel_bytes;
    if (group < 1) group = 1;
    tasks = ceil_div(panels, group);

    // y in phases, unless the states that have to wait for the next phase are larger than what phases save
    const int64_t block_bytes = kRowBlock * (y_width > 0 ? y_width : 1) * int64_t(sizeof(T));
    phase_blocks = kPanelBytes / block_bytes > 1 ? kPanelBytes / block_bytes : 1;
    if (double(panels) * double(state) * 8 > double(blocks) * double(block_bytes) || phase_blocks > blocks)
      phase_blocks = blocks > 0 ? blocks : 1;
    phases = blocks > 0 ? ceil_div(blocks, phase_blocks) : 1;

    parts = 1;
    if (tasks < 16 && tasks > 0 && !small) {
      parts = ceil_div(32, tasks);
      if (parts > phase_blocks) parts = phase_blocks;
      const int64_t most = kPanelBytes / (panels * state * 8);
      if (parts > most) parts = most > 1 ? most : 1;
    }
    waits = phases > 1 || parts > 1;

    const int64_t rows = phase_blocks * kRowBlock;
    packed_y = scratch.take<T>(rows * d);
    norm_y = scratch.take<T>(expanded ? rows : 0);
    packed_x = scratch.take<T>(threads * group * kWidth * d);
    norm_x = scratch.take<T>(expanded ? threads * group * kWidth : 0);
    centre = scratch.take<T>(expanded ? d : 0);
    sums = scratch.take<double>(expanded ? 2 * kCentreBlocks * d : 0);
    if (!expanded) centre = nullptr;
    for (int i = 0; i < count_x; ++i) of_x[i].packed = scratch.take<T>(threads * group * kWidth * of_x[i].width);
    for (int i = 0; i < count_y; ++i) of_y[i].packed = scratch.take<T>(rows * of_y[i].width);
    for (int i = 0; i < sides; ++i) {
      side[i].packed = scratch.take<T>(rows * side[i].packed_width);
      side[i].centre = side[i].centred ? centre : nullptr;
    }
    states = scratch.take<double>((waits ? panels * parts : threads * group) * state);
  }

  template <class F> void run(const Call& call, const F& f) const {
    if (n == 0) return;
    Call c = call;
    if (small) c.threads = 1;
    if (expanded) ::common_mean(c, x, n, y, m, d, sums, centre);
    for (int64_t phase = 0; phase < phases; ++phase) {
      const int64_t first = phase * phase_blocks, end = first + phase_blocks < blocks ? first + phase_blocks : blocks;
      parallel(c, end - first, [&](int64_t t, int) { pack_block(first, t); });
      parallel(c, tasks * parts, [&](int64_t t, int worker) {
        const int64_t part = t / tasks, begin_panel = t % tasks * group;
        const int64_t end_panel = begin_panel + group < panels ? begin_panel + group : panels;
        double* at = waits ? states + (part * panels + begin_panel) * state : states + worker * group * state;
        for (int64_t p = begin_panel; p < end_panel; ++p) pack_panel(p, worker * group + p - begin_panel);
        if (phase == 0)
          for (int64_t p = begin_panel; p < end_panel; ++p) f.start(at + (p - begin_panel) * state);
        const int64_t share = ceil_div(phase_blocks, parts), b0 = first + part * share;
        for (int64_t b = b0; b < b0 + share && b < end; ++b)
          for (int64_t p = begin_panel; p < end_panel; ++p)
            score(f, p, worker * group + p - begin_panel, b, b - first, at + (p - begin_panel) * state);
        if (!waits)
          for (int64_t p = begin_panel; p < end_panel; ++p) finish(f, p, at + (p - begin_panel) * state);
      });
    }
    if (waits)
      parallel(c, panels, [&](int64_t p, int) {
        double* at = states + p * state;
        for (int64_t part = 1; part < parts; ++part) f.merge(at, at + part * panels * state);
        finish(f, p, at);
      });
  }

 private:
  int64_t threads, state = 0, panels = 0, blocks = 0, group = 0, tasks = 0, phase_blocks = 0, phases = 0, parts = 0;
  bool waits = false;                                // whether states outlive their task
  T *packed_y = nullptr, *norm_y = nullptr, *packed_x = nullptr, *norm_x = nullptr, *centre = nullptr;
  double *sums = nullptr, *states = nullptr;

  template <class F> void finish(const F& f, int64_t panel, const double* at) const {
    const int64_t left = n - panel * kWidth;
    f.finish(panel * kWidth, int(left < kWidth ? left : kWidth), at);
  }

  template <int W> static void pack_tiles(const T* rows, int64_t begin, int64_t end, int64_t count, int64_t width,
                                          const T* centre, T* to) {
    for (int64_t i = begin; i < end; i += W, to += W * width) pack<W>(rows, i, count - i, width, centre, to);
  }
  static T keep_norm(double norm, const T*, int, int64_t) { return T(norm); }

  void pack_block(int64_t first, int64_t slot) const {
    const int64_t j0 = (first + slot) * kRowBlock;
    const int64_t j1 = j0 + kRowBlock < m ? j0 + kRowBlock : m, at = slot * kRowBlock;
    pack_tiles<kTileRows>(y, j0, j1, m, d, centre, packed_y + at * d);
    if (expanded)
      for (int64_t r = 0; r < j1 - j0; r += kTileRows)
        pack_sides<kTileRows>(packed_y + (at + r) * d, j0 + r, d, keep_norm, norm_y + at + r);
    for (int i = 0; i < count_y; ++i)
      pack_tiles<kTileRows>(of_y[i].rows, j0, j1, m, of_y[i].width, static_cast<const T*>(nullptr),
                            of_y[i].packed + at * of_y[i].width);
    for (int i = 0; i < sides; ++i) {
      const Extra& e = side[i];
      T* to = e.packed + at * e.packed_width;
      for (int64_t c = 0; c < e.packed_width; c += kTileRows) {
        const int64_t w = e.packed_width - c < kTileRows ? e.packed_width - c : kTileRows;
        const int64_t real = e.width - c < w ? (e.width > c ? e.width - c : 0) : w;
        T* row = to + c * kRowBlock;
        for (int64_t j = j0; j < j1; ++j, row += w) {
          const T* from = e.rows + j * e.width + c;
          if (e.centre)
            for (int64_t k = 0; k < real; ++k) row[k] = from[k] - e.centre[c + k];
          else
            for (int64_t k = 0; k < real; ++k) row[k] = from[k];
          for (int64_t k = real; k < w; ++k) row[k] = T(e.ones && c + k == e.width);
        }
      }
    }
  }

  void pack_panel(int64_t panel, int64_t slot) const {
    const int64_t i0 = panel * kWidth;
    pack<kWidth>(x, i0, n - i0, d, centre, packed_x + slot * kWidth * d);
    if (expanded) pack_sides<kWidth>(packed_x + slot * kWidth * d, i0, d, keep_norm, norm_x + slot * kWidth);
    for (int i = 0; i < count_x; ++i)
      pack<kWidth>(of_x[i].rows, i0, n - i0, of_x[i].width, static_cast<const T*>(nullptr),
                   of_x[i].packed + slot * kWidth * of_x[i].width);
  }

  // Scores of block `b` of y (packed in `y_slot`) against panel `p` of x, and what f makes of them.
  template <class F>
  void score(const F& f, int64_t p, int64_t x_slot, int64_t b, int64_t y_slot, double* at) const {
    vec<T> q[kRowBlock][2];
    uint32_t near[kRowBlock];
    RowBlock<T> block;
    block.q = q, block.near = near, block.any_near = false;
    block.i0 = p * kWidth, block.j0 = b * kRowBlock;
    block.lanes = int(n - block.i0 < kWidth ? n - block.i0 : kWidth);
    block.rows = int(m - block.j0 < kRowBlock ? m - block.j0 : kRowBlock);
    block.x = packed_x + x_slot * kWidth * d, block.y = packed_y + y_slot * kRowBlock * d;
    for (int i = 0; i < count_x; ++i) block.of_x[i] = of_x[i].packed + x_slot * kWidth * of_x[i].width;
    for (int i = 0; i < count_y; ++i) block.of_y[i] = of_y[i].packed + y_slot * kRowBlock * of_y[i].width;
    for (int i = 0; i < sides; ++i) block.side[i] = side[i].packed + y_slot * kRowBlock * side[i].packed_width;
    switch (form) {
      case kInner: fill<kInner>(block); break;
      case kManhattan: fill<kManhattan>(block); break;
      default:
        if (!expanded) {
          fill<kSquare>(block);
        } else {
          const T *of_x = norm_x + x_slot * kWidth, *of_y = norm_y + y_slot * kRowBlock;
          block.any_near = d > kSlab ? fill_expanded<true>(block, of_x, of_y, near)
                                     : fill_expanded<false>(block, of_x, of_y, near);
        }
    }
    f.block(static_cast<const RowBlock<T>&>(block), at);
  }

  template <int kForm> __attribute__((noinline)) void fill(const RowBlock<T>& b) const {
    if (d > kSlab) return fill_by_slabs<kForm>(b);
    for (int r0 = 0; r0 < b.rows; r0 += kTileRows) {
      Tile<T> tile = {};
      accumulate<kForm>(tile, b.y + r0 * d, b.x, d);
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) b.q[r0 + r][0] = tile.at[r][0], b.q[r0 + r][1] = tile.at[r][1];
    }
  }

  // Sums of slabs of coordinates, each from zero: that loses fewer digits.
  template <int kForm> __attribute__((noinline)) void fill_by_slabs(const RowBlock<T>& b) const {
    for (int r0 = 0; r0 < b.rows; r0 += kTileRows)
      for (int64_t k = 0; k < d; k += kSlab) {
        Tile<T> tile = {};
        accumulate<kForm>(tile, b.y + r0 * d + k * kTileRows, b.x + k * kWidth, d - k < kSlab ? d - k : kSlab);
#pragma GCC unroll 16
        for (int r = 0; r < kTileRows; ++r) {
          vec<T>(&q)[2] = b.q[r0 + r];
          q[0] = k ? q[0] + tile.at[r][0] : tile.at[r][0], q[1] = k ? q[1] + tile.at[r][1] : tile.at[r][1];
        }
      }
  }

  template <bool kSlabs>
  __attribute__((noinline)) bool fill_expanded(const RowBlock<T>& b, const T* of_x, const T* of_y,
                                               uint32_t* near) const {
    constexpr int lanes = kLanes<T>;
    const vec<T> x0 = load(of_x), x1 = load(of_x + lanes);
    const uint32_t real = b.lanes >= 32 ? ~0u : (1u << b.lanes) - 1;
    uint32_t any = 0;
    if (kSlabs) fill_by_slabs<kInner>(b);
    for (int r0 = 0; r0 < b.rows; r0 += kTileRows) {
      Tile<T> tile = {};
      if constexpr (kSlabs) memcpy(&tile, b.q[r0], sizeof tile);
      else accumulate<kInner>(tile, b.y + r0 * d, b.x, d);
      AllAbove<T> far0, far1;
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
        const vec<T> both0 = of_y[r0 + r] + x0, both1 = of_y[r0 + r] + x1;
        const vec<T> v0 = fma(tile.at[r][0], broadcast(T(-2)), both0), v1 = fma(tile.at[r][1], broadcast(T(-2)), both1);
        b.q[r0 + r][0] = v0, b.q[r0 + r][1] = v1;
        far0.add(v0, both0 * T(kNear)), far1.add(v1, both1 * T(kNear));
      }
      memset(near + r0, 0, kTileRows * sizeof *near);
      if (__builtin_expect(far0.holds() && far1.holds(), 1)) continue;
      for (int r = r0; r < r0 + kTileRows && r < b.rows; ++r) {
        const vec<T> both0 = of_y[r] + x0, both1 = of_y[r] + x1;
        near[r] = real & (lanes_not_above(b.q[r][0], both0 * T(kNear)) |
                          lanes_not_above(b.q[r][1], both1 * T(kNear)) << lanes);
        any |= near[r];
        if (near[r]) measure_again(b, r, near[r]);
      }
    }
    return any != 0;
  }

  __attribute__((noinline)) void measure_again(const RowBlock<T>& b, int r, uint32_t found) const {
    for (T* at = reinterpret_cast<T*>(b.q[r]); found; found &= found - 1) {
      const int l = __builtin_ctz(found);
      const T s = T(square_distance(x + (b.i0 + l) * d, y + (b.j0 + r) * d, d));
      memcpy(at + l, &s, sizeof(T));
    }
  }
};

}  // namespace
