// Scores of blocks of pairs, the engine of nearest.h, knn.h and balls.h. A score rules a pair out, or surely in, by a
// rigorous error bound; what it leaves open is measured from the raw rows in float64. So what a search finds is exact
// and depends neither on schedule nor on threads.
//
// Notation: h = |x - y|^2 / 2 of the raw rows, N = |x|^2 + |y|^2 of the packed ones, u = Limits<T>::unit.
// Difference form (d <= kDifferenceDims): the score is v = |x - y|^2, its relative error below (d + 2) u; low = v.
// Expanded form: rows are centred at the common mean, and v = <x, y> - (1/2 - e)|y|^2. Each of its d + 1 roundings and
// those of centring cost at most u N, and e = (2d + 32) u covers them twice over. So low = (1/2 - e)|x|^2 - v satisfies
//     low <= h <= low + 3/2 e N    and, with |y|^2 <= 2|x|^2 + 4h,    h <= (low + 9/2 e |x|^2) / (1 - 6e).
// Rows whose norm is not finite or could overflow are packed as zeros; scores of such a row of y are better than any
// other, and `low` of such a row of x is NaN, so every pair of them is measured.
#pragma once
#include "pairwise_tile.h"
#include "score_bound.h"

namespace {

template <class T> constexpr int64_t kChunk = 2048 / int64_t(sizeof(T));  // columns of a block of scores
constexpr int64_t kScoreSlab = 288;                       // coordinates at a time: more than that of a panel leaves L1
constexpr int64_t kFewDims = 16;                     // up to here, scores of one tile of rows at a time stay in L1

constexpr int64_t kMostSamples = 384;                 // columns that knn looks at beforehand
constexpr int64_t kLeastPhase = 2048;                 // columns: every phase packs all of x again

// The better of two scores, and the lanes that are not worse than `limit`.
template <bool kGemm, class V> inline V better(V a, V b) { return kGemm ? vmax(a, b) : vmin(a, b); }
template <bool kGemm, class V> inline uint32_t lanes_within(V v, V limit) {
  return kGemm ? lanes_not_above(limit, v) : lanes_not_above(v, limit);
}

// What a search looks at: rows [i, i + rows) against columns [j, j + columns). Scores of whole panels exist, the ones
// that are too many worse than any other.
template <class T> struct ScoreBlock {
  int64_t i, rows;
  const T *low_x, *scores;                           // of row i + r: low_x[r], scores[r * chunk ...]
  int64_t j, columns;
};

// One call's problem: rows of x in blocks (the tasks), rows of y packed in phases, scores in chunks of columns.
template <class T> struct Scores {
  const T *x, *y;
  int64_t n, m, d;
  bool self, gemm;
  Bound<T> bound;
  int64_t block_rows, blocks, chunk, phase;          // rows of a task; columns of a chunk; columns of a phase
  int64_t workers;
  T *packed_y, *side_y;                              // a phase of y
  T *packed_x, *scores, *low_x;                      // per worker: a block of x, its scores, what turns scores to lows
  T* slack;                                          // of all rows of x, see Bound
  T* centre;
  double* sums;

  Scores(const Call& c, const Array& other, bool absent, Carve& scratch) {
    self = absent;
    x = in<T>(c, 0), y = self ? x : static_cast<const T*>(other.data);
    n = c.in[0].shape[0], d = c.in[0].shape[1], m = self ? n : other.shape[0];
    gemm = d > kDifferenceDims;
    bound = Bound<T>((2.0 * double(d) + 32) * double(Limits<T>::unit), gemm);
    workers = c.threads > 1 ? c.threads : 1;
    block_rows = kBlockRows;
    while (!self && block_rows > kTileRows && n < 4 * workers * block_rows)   // enough tasks for all
      block_rows = ceil_div(block_rows / kTileRows, 2) * kTileRows;
    blocks = ceil_div(n, block_rows);
    constexpr int64_t columns = kTileColumns<T>;
    const int64_t padded = ceil_div(m, columns) * columns;
    chunk = self ? kBlockRows : kChunk<T> < padded ? kChunk<T> : padded;
    phase = kPanelBytes / ((d > 0 ? d : 1) * int64_t(sizeof(T)));
    if (phase < kLeastPhase) phase = kLeastPhase;
    phase = chunk > 0 && phase < padded ? phase / chunk * chunk : padded;
    packed_y = scratch.take<T>(phase * d);
    side_y = scratch.take<T>(phase);
    packed_x = scratch.take<T>(workers * block_rows * d);
    scores = scratch.take<T>(workers * score_size());
    low_x = scratch.take<T>(workers * block_rows);
    slack = scratch.take<T>(n);
    centre = scratch.take<T>(gemm ? d : 0);
    sums = scratch.take<double>(gemm ? 2 * kCentreBlocks * d : 0);
    if (!gemm) centre = nullptr;
  }
  int64_t pass_rows() const { return d <= kFewDims && !self ? kTileRows : block_rows; }
  int64_t score_size() const { return pass_rows() * (self && chunk < kMostSamples ? kMostSamples : chunk); }
  int64_t phases() const { return phase > 0 ? ceil_div(m, phase) : 0; }
  int64_t phase_end(int64_t first) const { return first + phase < m ? first + phase : m; }

  void find_centre(const Call& c) const {
    if (centre) common_mean(c, x, n, y, m, d, sums, centre);
  }

  // Zeros for a row that has no usable norm.
  bool usable(double norm, T* row, int stride) const {
    if (norm < double(Limits<T>::huge)) return true;
    for (int64_t k = 0; k < d; ++k) row[k * stride] = 0;
    return false;
  }

  // Packs rows [first, end) of `rows` as columns; each(j, norm, usable) sees all of them, and padded ones with norm 0.
  template <class F> void pack_columns(const Call& c, const T* rows, int64_t first, int64_t end, F&& each) const {
    constexpr int w = kTileColumns<T>;
    parallel(c, ceil_div(end - first, w), [&](int64_t t, int) {
      const int64_t j0 = first + t * w;
      T* to = packed_y + t * w * d;
      pack<w>(rows, j0, end - j0, d, centre, to);
      pack_sides<w>(to, j0, d, [&](double norm, T* row, int stride, int64_t j) {
        const T best = gemm ? T(__builtin_inf()) : -T(__builtin_inf());
        const bool good = usable(norm, row, stride);
        each(j, norm, good);
        if (j >= end) return -best;
        return !good ? best : gemm ? T(-norm * (0.5 - bound.e)) : T(0);
      }, side_y + t * w);
    });
  }
  // Packs a block of x; low_x is what `low` adds to -score (expanded form) or score.
  void pack_rows(int64_t block, int worker, bool keep_slack) const {
    T *to = packed_x + worker * block_rows * d, *low = low_x + worker * block_rows;
    for (int64_t t = 0, i = block * block_rows; t < block_rows && i < n; t += kTileRows, i += kTileRows) {
      pack<kTileRows>(x, i, n - i, d, centre, to + t * d);
      pack_sides<kTileRows>(to + t * d, i, d, [&](double norm, T* row, int stride, int64_t r) {
        if (keep_slack && r < n) slack[r] = bound.slack(norm);
        if (!usable(norm, row, stride)) return T(__builtin_nan(""));
        return gemm ? T(norm * (0.5 - bound.e)) : T(0);
      }, low + t);
    }
  }

  // to[row * stride + column]: scores of `rows` packed rows (whole tiles) and `columns` packed columns (whole panels).
  template <bool kGemm>
  __attribute__((noinline)) void score(const T* px, int64_t rows, const T* py, const T* side, int64_t columns, T* to,
                                       int64_t stride) const {
    constexpr int lanes = kLanes<T>, w = kTileColumns<T>;
    const int64_t slabs = d > 0 ? ceil_div(d, kScoreSlab) : 1;
    for (int64_t s = 0; s < slabs; ++s) {
      const int64_t k0 = d * s / slabs, k1 = d * (s + 1) / slabs;
      for (int64_t j = 0; j < columns; j += w)
        for (int64_t i = 0; i < rows; i += kTileRows) {
          Tile<T> tile;
          T* at = to + i * stride + j;
          if (s == 0) {
            const vec<T> s0 = load(side + j), s1 = load(side + j + lanes);
#pragma GCC unroll 16
            for (int r = 0; r < kTileRows; ++r) tile.at[r][0] = s0, tile.at[r][1] = s1;
          } else {
#pragma GCC unroll 16
            for (int r = 0; r < kTileRows; ++r)
              tile.at[r][0] = load(at + r * stride), tile.at[r][1] = load(at + r * stride + lanes);
          }
          accumulate<kGemm ? kInner : kSquare>(tile, px + i * d + k0 * kTileRows, py + j * d + k0 * w, k1 - k0);
#pragma GCC unroll 16
          for (int r = 0; r < kTileRows; ++r)
            store(at + r * stride, tile.at[r][0]), store(at + r * stride + lanes, tile.at[r][1]);
        }
    }
  }

  // A block of x, packed by pack_rows, against all of the packed columns: each(row of the block, its scores).
  template <bool kGemm, class F> void each_row(int64_t block, int worker, int64_t columns, F&& each) const {
    const int64_t left = n - block * block_rows, rows = left < block_rows ? left : block_rows;
    T* to = scores + worker * score_size();
    score<kGemm>(packed_x + worker * block_rows * d, ceil_div(rows, kTileRows) * kTileRows, packed_y, side_y, columns,
                 to, columns);
    for (int64_t r = 0; r < rows; ++r) each(r, to + r * columns);
  }

  // A block of x against chunk after chunk of the packed columns [first, end); of x with itself, those not left of it.
  template <bool kGemm, class F>
  void each_chunk(int64_t block, int worker, int64_t first, int64_t end, F&& scan) const {
    const int64_t i0 = block * block_rows, i1 = i0 + block_rows < n ? i0 + block_rows : n, pass = pass_rows();
    const T *px = packed_x + worker * block_rows * d, *low = low_x + worker * block_rows;
    T* to = scores + worker * score_size();
    for (int64_t j = self && i0 > first ? i0 : first; j < end; j += chunk) {
      const int64_t columns = end - j < chunk ? end - j : chunk;
      const int64_t padded = ceil_div(columns, kTileColumns<T>) * kTileColumns<T>;
      for (int64_t i = i0; i < i1; i += pass) {
        const int64_t count = i1 - i < pass ? i1 - i : pass;
        score<kGemm>(px + (i - i0) * d, ceil_div(count, kTileRows) * kTileRows, packed_y + (j - first) * d,
                     side_y + (j - first), padded, to, chunk);
        scan(ScoreBlock<T>{i, count, low + (i - i0), to, j, columns});
      }
    }
  }
};

// Few pairs are not worth waking a thread for.
inline Call few_threads(const Call& c, double n, double m, double d) {
  Call call = c;
  if (n * m * (d + 8) < 3e5) call.threads = 1;
  return call;
}

}  // namespace
