// gemm(): C = op(A) op(B) for row-major matrices, with an epilogue on tiles that are still in the first-level cache.
//
// One idea: a micro-kernel (tile.h) holds an MR x NR tile of C in registers and walks over k; everything else only
// feeds it.
// Every element of C is, for each block of kDepth values of k, one chain of fma from zero in rising k; the block sums
// are added in order. The chain is the same in full tiles, edge tiles and tiny problems, whoever computes it, so the
// bits of an element depend on its row of op(A), its column of op(B) and k alone. That is why, unlike elsewhere, the
// split into tasks below may look at the number of threads.
//
// Not here: a batch of products, alpha and beta, and splitting k over threads.
#pragma once
#include "epilogue.h"
#include "parallel.h"
#include "tile.h"

namespace {

constexpr int64_t kDepth = 256;            // k per block: a panel of B is 32 KiB; fixed, since it decides bits
constexpr int64_t kSuper = 1536;           // rows and columns of C worked on at a time: they stay in L3 over all k

// ---- packing -----------------------------------------------------------------------------------------------------

// Several full panels of B side by side: a row of them is one run of memory, which the prefetcher and the TLB like.
template <class T> static void pack_copy_panels(int64_t k, const T* from, int64_t ld, int64_t panels, T* to) {
  constexpr int L = kLanes<T>, NR = kTileCols<T>;
  for (int64_t p = 0; p < k; ++p, from += ld, to += NR)
    for (int64_t j = 0; j < panels; ++j) {
      const vec<T> x = load(from + j * NR), y = load(from + j * NR + L);
      __builtin_prefetch(from + 8 * ld + j * NR);
      __builtin_prefetch(from + 8 * ld + j * NR + L);
      store(to + j * NR * k, x);
      store(to + j * NR * k + L, y);
    }
}

// ---- blocking ----------------------------------------------------------------------------------------------------

// A product: op(A) is m x k, op(B) k x n. a_rows: A is stored m x k, else k x m; b_rows: B is stored k x n, else n x k.
template <class T> struct Product {
  int64_t m, n, k;
  const T* a; int64_t lda; bool a_rows;
  const T* b; int64_t ldb; bool b_rows;
  T* c; int64_t ldc;
  // Called once per finished tile: rows [i, i + m) and columns [j, j + n) of C are final.
  Finish finish;
  const void* context;
};

struct Plan {
  bool serial;             // too little work to wake another thread
  bool simple;             // one pass: each task reads A in place, and B too or packs the panel it is about to use
  bool pack_a, pack_b;
  int64_t rows, cols;      // of C in one task, a multiple of the tile (but for the edge)
  int64_t worker_bytes, bytes;
};

// n cut into equal pieces of at most kSuper, whole tiles each.
inline int64_t even(int64_t n, int64_t tile) { return ceil_div(ceil_div(n, ceil_div(n, kSuper)), tile) * tile; }

// How to go about a product. The numbers are measurements (benchmarks/lab/gemm.md); none of them touches a bit.
template <class T> Plan plan_of(int64_t m, int64_t n, int64_t k, bool a_rows, bool b_rows, int threads) {
  constexpr int NR = kTileCols<T>;
  const int64_t panels = ceil_div(n, NR), depth = least(k, kDepth);
  Plan s{};
  s.serial = threads <= 1 || double(m) * double(n) * double(k) < 1e6;
  const int64_t workers = s.serial ? 1 : threads;
  const bool near = n * int64_t(sizeof(T)) <= 8192;        // rows of B close enough not to share cache sets
  s.pack_b = !b_rows || (n > NR && m > (near ? 16 : 5) * kTileRows);
  s.simple = (m <= 16 * kTileRows || (m <= 640 && n * k <= 1 << 18)) &&
             (s.serial || panels >= 2 * workers || m <= 4 * kTileRows);
  if (s.simple) {
    const int64_t tasks = s.serial ? 1 : least(panels, 4 * workers);
    s.rows = m;
    s.cols = least(ceil_div(panels, tasks), 16) * NR;
    s.worker_bytes = s.pack_b || (kPadEdge && n % NR) ? depth * NR * int64_t(sizeof(T)) : 0;
    s.bytes = s.worker_bytes * workers;
    return s;
  }
  s.pack_b = true;
  s.pack_a = a_rows && n > 16 * NR;
  s.rows = 16 * kTileRows;
  s.cols = 32 * NR;
  const int64_t sm = even(m, kTileRows), sn = even(n, NR);
  while (s.rows > 2 * kTileRows && ceil_div(sm, s.rows) * ceil_div(sn, s.cols) < 10 * workers) {
    if (s.cols > 4 * NR) s.cols /= 2;
    else s.rows /= 2;
  }
  const int64_t a_size = s.pack_a ? sm / kTileRows * kTileStride<T> : 0;
  s.bytes = (sn + a_size) * depth * int64_t(sizeof(T));
  return s;
}

// Pack the columns [j0, j1) of B, panel after panel.
template <class T>
static void pack_b_panels(const Product<T>& g, int64_t p, int64_t depth, int64_t j0, int64_t j1, T* to) {
  constexpr int NR = kTileCols<T>;
  int64_t j = j0;
  if (g.b_rows) {
    const int64_t full = (j1 - j0) / NR;
    pack_copy_panels<T>(depth, g.b + p * g.ldb + j, g.ldb, full, to);
    j += full * NR;
  }
  for (; j < j1; j += NR) {
    const int64_t w = least(NR, j1 - j);
    T* q = to + (j - j0) * depth;
    if (g.b_rows) pack_copy<T>(depth, g.b + p * g.ldb + j, g.ldb, w, NR, q);
    else pack_transpose<T>(depth, g.b + j * g.ldb + p, g.ldb, w, NR, NR, q);
  }
}

// Rows [i0, i1) of C times the panel of columns at j. `a`: packed tiles of those rows, or null to read A in place.
template <class T>
static void panel(const Product<T>& g, int64_t p, int64_t depth, int64_t i0, int64_t i1, int64_t j, const T* a,
                  const T* b, int64_t ldb) {
  constexpr int L = kLanes<T>, NR = kTileCols<T>;
  const int64_t w = least(NR, g.n - j), last = w > L ? w - L : w;
  const bool finish = g.finish && p + depth == g.k;
  const int64_t tiles = ceil_div(i1 - i0, kTileRows);
  const bool by_rows = !a && g.a_rows;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t i = i0 + tile_start(i1 - i0, tiles, t), rows = i0 + tile_start(i1 - i0, tiles, t + 1) - i;
    const Micro<T> f = w > L ? (by_rows ? micro_of<T, 2, true>(rows) : micro_of<T, 2, false>(rows))
                             : (by_rows ? micro_of<T, 1, true>(rows) : micro_of<T, 1, false>(rows));
    const T* from = a ? a + t * kTileStride<T> * depth : g.a_rows ? g.a + i * g.lda + p : g.a + p * g.lda + i;
    // What a dense left matrix has next in memory is fetched meanwhile: the next tile, or a share of the next block of k.
    constexpr int64_t line = 64 / int64_t(sizeof(T));
    const bool streams = !a && j == 0 && (by_rows ? g.lda == depth : g.lda == g.m && p + depth < g.k);
    const T* next = by_rows ? from + rows * g.lda : g.a + (p + depth) * g.lda + i / kTileRows * depth * line;
    f(depth, from, a ? kTileStride<T> : g.lda, b, ldb, g.c + i * g.ldc + j, g.ldc, last, p > 0, streams ? next : from,
      streams ? line : 0);
    if (finish) g.finish(g.context, i, j, rows, w);
  }
}

// All rows of C, at most kFewRows, times kWideCols columns of B in place.
template <class T> static void wide_panel(const Product<T>& g, int64_t p, int64_t depth, int64_t j, const T* b) {
  const Micro<T> f = g.a_rows ? micro_of<T, 8, true>(g.m) : micro_of<T, 8, false>(g.m);
  f(depth, g.a_rows ? g.a + p : g.a + p * g.lda, g.lda, b, g.ldb, g.c + j, g.ldc, kLanes<T>, p > 0, nullptr, 0);
  if (g.finish && p + depth == g.k) g.finish(g.context, 0, j, g.m, kWideCols<T>);
}

// Pack the tiles of rows [i0, i1) of an A stored by rows, which `panel` will be given as `a`.
template <class T>
static void pack_a_tiles(const Product<T>& g, int64_t p, int64_t depth, int64_t i0, int64_t i1, T* to) {
  constexpr int S = kTileStride<T>;
  const int64_t tiles = ceil_div(i1 - i0, kTileRows);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t i = i0 + tile_start(i1 - i0, tiles, t), rows = i0 + tile_start(i1 - i0, tiles, t + 1) - i;
    pack_transpose<T>(depth, g.a + i * g.lda + p, g.lda, rows, S, rows, to + t * S * depth);
  }
}

// Bytes of scratch for a Product of these sizes.
template <class T>
static int64_t gemm_scratch(const Call& c, int64_t m, int64_t n, int64_t k, bool a_rows, bool b_rows) {
  if (m == 0 || n == 0 || k == 0) return 0;
  return plan_of<T>(m, n, k, a_rows, b_rows, c.threads).bytes;
}

template <class T> static void gemm(const Call& c, const Product<T>& g) {
  constexpr int NR = kTileCols<T>;
  if (g.m == 0 || g.n == 0) return;
  if (g.k == 0) {
    for (int64_t i = 0; i < g.m; ++i) {
      memset(g.c + i * g.ldc, 0, size_t(g.n) * sizeof(T));
      for (int64_t j = 0; g.finish && j < g.n; j += NR) g.finish(g.context, i, j, 1, least(NR, g.n - j));
    }
    return;
  }
  const Plan s = plan_of<T>(g.m, g.n, g.k, g.a_rows, g.b_rows, c.threads);
  Call call = c;
  if (s.serial) call.threads = 1;

  if (s.simple) {
    parallel(call, ceil_div(g.n, s.cols), [&](int64_t task, int worker) {
      T* packed = reinterpret_cast<T*>(static_cast<char*>(c.scratch) + worker * s.worker_bytes);
      const int64_t j0 = task * s.cols, j1 = least(j0 + s.cols, g.n);
      for (int64_t p = 0; p < g.k; p += kDepth) {
        const int64_t depth = least(kDepth, g.k - p);
        const T *a = nullptr, *b = g.b + p * g.ldb;
        int64_t j = j0;
        if (!s.pack_b && g.m <= kFewRows)
          for (; j1 - j >= kWideCols<T>; j += kWideCols<T>) wide_panel(g, p, depth, j, b + j);
        for (; j < j1; j += NR) {
          if (s.pack_b || (kPadEdge && g.n - j < NR)) {
            pack_b_panels(g, p, depth, j, least(j + NR, j1), packed);
            panel(g, p, depth, 0, g.m, j, a, packed, NR);
          } else {
            panel(g, p, depth, 0, g.m, j, a, b + j, g.ldb);
          }
        }
      }
    });
    return;
  }

  const int64_t super_rows = even(g.m, kTileRows), super_cols = even(g.n, NR);
  for (int64_t i0 = 0; i0 < g.m; i0 += super_rows)
    for (int64_t j0 = 0; j0 < g.n; j0 += super_cols)
      for (int64_t p = 0; p < g.k; p += kDepth) {
        const int64_t depth = least(kDepth, g.k - p);
        const int64_t i1 = least(i0 + super_rows, g.m), j1 = least(j0 + super_cols, g.n);
        const int64_t tiles = ceil_div(i1 - i0, kTileRows), panels = ceil_div(j1 - j0, NR);
        const int64_t row_blocks = ceil_div(i1 - i0, s.rows), col_blocks = ceil_div(j1 - j0, s.cols);
        T *const packed_b = static_cast<T*>(c.scratch), *const packed_a = packed_b + panels * NR * depth;
        const auto first_tile = [&](int64_t r) { return tile_start(tiles, row_blocks, r); };   // of block r
        const auto row_of = [&](int64_t r) { return least(i0 + first_tile(r) * kTileRows, i1); };
        const auto a_of = [&](int64_t r) { return packed_a + first_tile(r) * kTileStride<T> * depth; };

        constexpr int64_t group = 8;                       // panels of B per packing task
        const int64_t b_tasks = ceil_div(panels, group);
        parallel(call, b_tasks + (s.pack_a ? row_blocks : 0), [&](int64_t task, int) {
          const int64_t r = task - b_tasks, j = j0 + task * group * NR;
          if (r >= 0) pack_a_tiles(g, p, depth, row_of(r), row_of(r + 1), a_of(r));
          else pack_b_panels(g, p, depth, j, least(j + group * NR, j1), packed_b + (j - j0) * depth);
        });
        parallel(call, row_blocks * col_blocks, [&](int64_t task, int) {
          const int64_t r = task / col_blocks, first = j0 + task % col_blocks * s.cols, end = least(first + s.cols, j1);
          const T* a = s.pack_a ? a_of(r) : nullptr;
          for (int64_t j = first; j < end; j += NR)
            panel(g, p, depth, row_of(r), row_of(r + 1), j, a, packed_b + (j - j0) * depth, NR);
        });
      }
}

}  // namespace
