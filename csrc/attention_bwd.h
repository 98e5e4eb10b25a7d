// Softmax attention, backward (Dao et al. 2022): the weights are made again from the log-sum-exp, one block of keys
// against one block of queries at a time, and enter five products while they are in cache.
//
// As in attention.h queries lie in the lanes, so that per query numbers (log-sum-exp, <g_i, out_i>) are vectors. A task
// is one head; it packs its queries once, and then
//   for every block of keys: dk, dv = 0
//     for every block of queries: per panel   s = k q^T, p = 2^(s - lse), ds = p (v g^T - <g, out>), dq^T += k^T ds
//                                 then        dv += p g, dk += ds q
// dq is summed in parts, each of every parts-th block of keys, so that where there are few heads a task can be one part
// of one. The number of parts, and with it the order of every sum, depends on the shape of a sample alone.
// Where the gradient of the bias is wanted it is a pass of its own over tasks of queries, each of which sums whatever
// shares its rows of the bias, in order.
#pragma once
#include "attention.h"

namespace {

constexpr int64_t kQueryBlock = 96;                  // queries of a block, a multiple of every panel
constexpr int64_t kBackwardKeys = 128;               // most keys of a block
constexpr int64_t kSampleTasks = 16;                 // heads times parts of one sample
constexpr int64_t kMostShared = 32;                  // dq of parts that wait for others

// p = 2^(s - low) over s, and ds = p (dp - centre) over dp, for `rows` keys.
template <class T>
__attribute__((noinline)) static void weights(T* s, T* dp, int64_t ld, int64_t rows, const T* low, const T* centre) {
  constexpr int L = kLanes<T>;
  const vec<T> l0 = load(low), l1 = load(low + L), c0 = load(centre), c1 = load(centre + L);
  auto one = [](T* s, T* dp, vec<T> low, vec<T> centre) __attribute__((always_inline)) {
    const vec<T> p = exp2_negative(load(s) - low);
    store(s, p);
    store(dp, p * (load(dp) - centre));
  };
  for (int64_t j = 0; j < rows; ++j, s += ld, dp += ld) one(s, dp, l0, c0), one(s + L, dp + L, l1, c1);
}

// to[i * ld + j] += from[j][i] for i < lanes, j < rows.
template <class T>
static void add_transposed(const T* from, int64_t from_ld, int64_t rows, int64_t lanes, T* to, int64_t ld) {
  constexpr int L = kLanes<T>;
  for (int64_t i = 0; i < lanes; i += L)
    for (int64_t j = 0; j < rows; j += L) {
      vec<T> r[L];
#pragma GCC unroll 16
      for (int u = 0; u < L; ++u) r[u] = j + u < rows ? load(from + (j + u) * from_ld + i) : vec<T>{};
      transpose<T>(r);
#pragma GCC unroll 16
      for (int u = 0; u < L; ++u)
        if (T* q = to + (i + u) * ld + j; i + u < lanes) store_up_to(q, load_up_to(q, rows - j) + r[u], rows - j);
    }
}

// sums[i] = <a_i, b_i> for `lanes` rows of `columns` numbers, the rows `ld` apart.
template <class T>
static void row_products(const T* a, const T* b, int64_t ld, int64_t columns, int64_t lanes, T* sums) {
  constexpr int L = kLanes<T>;
  for (int64_t i = 0; i < kTileCols<T>; i += L) {
    vec<T> r[L];
#pragma GCC unroll 16
    for (int u = 0; u < L; ++u) {
      r[u] = vec<T>{};
      if (i + u < lanes)
        for (int64_t c = 0; c < columns; c += L)
          r[u] = fma(load_up_to(a + (i + u) * ld + c, columns - c), load_up_to(b + (i + u) * ld + c, columns - c), r[u]);
    }
    transpose<T>(r);
#pragma GCC unroll 16
    for (int u = 1; u < L; ++u) r[0] += r[u];
    store(sums + i, r[0]);
  }
}

template <class T> struct AttentionBackward : Heads<T> {
  static constexpr int L = kLanes<T>, W = kTileCols<T>;
  static constexpr int64_t kBlockPanels = kQueryBlock / W, kLd = kQueryBlock + 16;   // rows of an odd number of lines
  static_assert(kQueryBlock % W == 0, "whole panels");
  using Heads<T>::n, Heads<T>::t, Heads<T>::s, Heads<T>::heads, Heads<T>::d, Heads<T>::e;

  const T *g, *out, *lse;
  T *dq, *dk, *dv, *dbias;
  int64_t block, blocks, panels, padded, d_panels, e_panels, parts;
  bool serial, split;                                // split: tasks are parts
  // Of worker 0. Panels of queries: query, grad and d_query (twice if there are parts) [panels][columns][W]; rows: query_rows and grad_rows
  // [columns / W][padded][W]; of a block of keys: keys, values, d_keys and d_values likewise; p, ds [block][kLd].
  T *query, *grad, *query_rows, *grad_rows, *d_query, *low, *centre, *keys, *values, *d_keys, *d_values, *p, *ds;
  T* shared;                                         // d_query of every head and part, if split
  int64_t per_worker;

  AttentionBackward(const Call& c, Carve& scratch) : Heads<T>(c, 1) {
    g = in<T>(c, 0), out = in<T>(c, 5), lse = in<T>(c, 6);
    dq = ::out<T>(c, 0), dk = ::out<T>(c, 1), dv = ::out<T>(c, 2), dbias = ::out<T>(c, 3);
    const int64_t bytes = (d + e) * int64_t(sizeof(T));
    int64_t most = (int64_t(96) << 10) / (bytes > 0 ? bytes : 1) / kTileRows * kTileRows;
    most = most > kBackwardKeys ? kBackwardKeys : most < 4 * kTileRows ? 4 * kTileRows : most;
    block = s > 0 ? ceil_div(s, ceil_div(s, most)) : 1;
    blocks = ceil_div(s, block);
    panels = ceil_div(t, W), padded = panels * W, d_panels = ceil_div(d, W), e_panels = ceil_div(e, W);
    parts = least(kSampleTasks / (heads > 0 ? heads : 1), blocks);
    if (parts < 1) parts = 1;
    split = parts > 1 && n * heads * parts <= kMostShared;
    serial = c.threads <= 1 || double(n * heads) * double(t) * double(s) * double(d + e) < 5e5;

    Carve one{scratch.base};
    query = one.template take<T>(padded * d);
    grad = one.template take<T>(padded * e);
    query_rows = one.template take<T>(dk ? padded * d_panels * W : 0);
    grad_rows = one.template take<T>(dv ? padded * e_panels * W : 0);
    d_query = one.template take<T>(dq && !split ? (parts > 1 ? 2 : 1) * padded * d : 0);
    low = one.template take<T>(padded);
    centre = one.template take<T>(padded);
    keys = one.template take<T>(block * d);
    values = one.template take<T>(block * e);
    d_keys = one.template take<T>(dk ? block * d_panels * W : 0);
    d_values = one.template take<T>(dv ? block * e_panels * W : 0);
    p = one.template take<T>(block * kLd);
    ds = one.template take<T>(block * kLd);
    per_worker = one.used / int64_t(sizeof(T));
    scratch.used += one.used * (serial ? 1 : c.threads);
    shared = scratch.template take<T>(dq && split ? n * heads * parts * padded * d : 0);
  }

  void run(const Call& call) const {
    Call c = call;
    if (serial) c.threads = 1;
    const int64_t tasks = n * heads * (split ? parts : 1), size = padded * d;
    if (dq || dk || dv)
      parallel(c, tasks, [&](int64_t task, int worker) {
        const int64_t shift = worker * per_worker, head = split ? task / parts : task;
        pack_head(head / heads, head % heads, shift);
        if (split) return part_of_head(head / heads, head % heads, task % parts, shift, dq ? shared + task * size : dq);
        T *const sum = dq ? d_query + shift : dq, *const more = dq ? sum + size : dq;
        for (int64_t part = 0; part < parts; ++part) {
          part_of_head(head / heads, head % heads, part, shift, part ? more : sum);
          if (dq && part)
            for (int64_t i = 0; i < size; i += L) store(sum + i, load(sum + i) + load(more + i));
        }
        for (int64_t panel = 0; dq && panel < panels; ++panel) finish_queries(head, panel, sum);
      });
    if (dq && split)
      parallel(c, n * heads * panels, [&](int64_t task, int) {
        const int64_t head = task / panels, panel = task % panels;
        T* sum = shared + head * parts * size;
        for (int64_t part = 1; part < parts; ++part)
          for (int64_t i = panel * d * W; i < (panel + 1) * d * W; i += L)
            store(sum + i, load(sum + i) + load(sum + part * size + i));
        finish_queries(head, panel, sum);
      });
    if (dbias) bias_gradient(c);
  }

 private:
  // Packs panel `panel` of a head: q^T with the factor of the scores, g^T, the log-sum-exp in base 2 and <g, out>.
  void pack_queries(int64_t sample, int64_t head, int64_t panel, int64_t shift, int64_t to) const {
    const int64_t i0 = panel * W, lanes = least(W, t - i0), row = i0 * heads;
    const T* gi = g + this->at(sample, t, head, e) + row * e;
    pack_panel<T>(d, this->q + this->at(sample, t, head, d) + row * d, heads * d, lanes, T(this->scale * kLog2E),
                  query + shift + to * d * W);
    pack_panel<T>(e, gi, heads * e, lanes, T(1), grad + shift + to * e * W);
    row_products(gi, out + this->at(sample, t, head, e) + row * e, heads * e, e, lanes, centre + shift + to * W);
    for (int64_t i = 0; i < W; ++i) {                // 2^(s - inf) = 0 where there is no query, or it sees no key
      const T sum = i < lanes ? lse[(sample * heads + head) * t + i0 + i] : T(-__builtin_inf());
      low[shift + to * W + i] = sum == T(-__builtin_inf()) ? T(__builtin_inf()) : sum * T(kLog2E);
    }
  }

  // Rows of the lanes' own order, `columns` numbers each, in panels of columns.
  void pack_rows(const T* from, int64_t columns, T* to) const {
    for (int64_t c = 0; c < columns; c += W, to += padded * W) {
      copy_rows(t, least(W, columns - c), from + c, heads * columns, to, W);
      memset(to + t * W, 0, size_t((padded - t) * W) * sizeof(T));
    }
  }

  void copy_keys(int64_t sample, int64_t head, int64_t j0, int64_t size, int64_t shift) const {
    copy_rows(size, d, this->k + this->at(sample, s, head, d) + j0 * heads * d, heads * d, keys + shift, d);
    copy_rows(size, e, this->v + this->at(sample, s, head, e) + j0 * heads * e, heads * e, values + shift, e);
  }

  // p and ds of the packed panel `from` (which is panel `panel` of its head) and a block of keys, in columns `column`.
  void scores(int64_t sample, int64_t head, int64_t panel, int64_t from, int64_t j0, int64_t size, int64_t shift,
              int64_t column) const {
    T *const pp = p + shift + column, *const pds = ds + shift + column;
    Store<T> f;
    multiply<T, true>(size, d, keys + shift, d, query + shift + from * d * W, W, pp, kLd, f);
    multiply<T, true>(size, e, values + shift, e, grad + shift + from * e * W, W, pds, kLd, f);
    const int64_t i0 = panel * W;
    if (const T* bias = this->bias_of(sample, head))
      add_bias(pp, kLd, size, bias + i0 * s + j0, s, least(W, t - i0));
    if (this->causal && j0 + size > i0 + 1) hide_later_keys(pp, kLd, size, j0, i0);
    weights(pp, pds, kLd, size, low + shift + from * W, centre + shift + from * W);
  }

  // sums[c][j][..] += sum_i a[j][i] rows[c][i][..]: a (size, count) of ld kLd, rows and sums in panels of columns.
  void add_product(const T* a, int64_t size, int64_t count, const T* rows, int64_t panels_of_columns, T* sums) const {
    Add<T> f;
    for (int64_t c = 0; c < panels_of_columns; ++c)
      multiply<T, true>(size, count, a, kLd, rows + c * padded * W, W, sums + c * block * W, W, f);
  }

  // Rows of panels of columns to where they belong.
  void store_rows(const T* from, int64_t size, int64_t columns, T factor, T* to) const {
    for (int64_t j = 0; j < size; ++j)
      for (int64_t c = 0; c < columns; c += L)
        store_up_to(to + j * heads * columns + c, load(from + (c / W) * block * W + j * W + c % W) * factor,
                    columns - c);
  }

  void finish_queries(int64_t head, int64_t panel, const T* sum) const {
    const vec<T> factor[2] = {broadcast(T(this->scale)), broadcast(T(this->scale))};
    unpack_panel(d, sum + panel * d * W, factor, least(W, t - panel * W),
                 dq + this->at(head / heads, t, head % heads, d) + panel * W * heads * d, heads * d);
  }

  void pack_head(int64_t sample, int64_t head, int64_t shift) const {
    for (int64_t panel = 0; panel < panels; ++panel) pack_queries(sample, head, panel, shift, panel);
    if (dk) pack_rows(this->q + this->at(sample, t, head, d), d, query_rows + shift);
    if (dv) pack_rows(g + this->at(sample, t, head, e), e, grad_rows + shift);
  }

  void part_of_head(int64_t sample, int64_t head, int64_t part, int64_t shift, T* sum) const {
    if (sum) memset(sum, 0, size_t(padded * d) * sizeof(T));
    Add<T> f;
    for (int64_t b = part; b < blocks; b += parts) {
      const int64_t j0 = b * block, size = least(block, s - j0);
      copy_keys(sample, head, j0, size, shift);
      if (dk) memset(d_keys + shift, 0, size_t(d_panels * block * W) * sizeof(T));
      if (dv) memset(d_values + shift, 0, size_t(e_panels * block * W) * sizeof(T));
      // the first panel that sees a key of this block
      for (int64_t first = this->causal ? j0 / W : 0; first < panels; first += kBlockPanels) {
        const int64_t end = least(first + kBlockPanels, panels);
        for (int64_t panel = first; panel < end; ++panel) {
          const int64_t column = (panel - first) * W;
          scores(sample, head, panel, panel, j0, size, shift, column);
          if (sum)
            multiply<T, false>(d, size, keys + shift, d, ds + shift + column, kLd, sum + panel * d * W, W, f);
        }
        const int64_t count = (end - first) * W, row = first * W * W;
        if (dv) add_product(p + shift, size, count, grad_rows + shift + row, e_panels, d_values + shift);
        if (dk) add_product(ds + shift, size, count, query_rows + shift + row, d_panels, d_keys + shift);
      }
      if (dk)
        store_rows(d_keys + shift, size, d, T(this->scale), dk + this->at(sample, s, head, d) + j0 * heads * d);
      if (dv) store_rows(d_values + shift, size, e, T(1), dv + this->at(sample, s, head, e) + j0 * heads * e);
    }
  }

  // Tasks of one block of queries of one matrix of the bias, which sum the heads and samples that share it.
  void bias_gradient(const Call& c) const {
    const int64_t samples = this->bias_n ? n : 1, matrices = this->bias_h ? heads : 1;
    const int64_t chunks = ceil_div(panels, kBlockPanels);
    parallel(c, samples * matrices * chunks, [&](int64_t task, int worker) {
      const int64_t shift = worker * per_worker, first = task % chunks * kBlockPanels;
      const int64_t end = least(first + kBlockPanels, panels);
      const int64_t matrix = task / chunks % matrices, sample0 = task / chunks / matrices;
      T* const to = dbias + (sample0 * matrices + matrix) * t * s;
      memset(to + first * W * s, 0, size_t((least(end * W, t) - first * W) * s) * sizeof(T));
      for (int64_t sample = sample0; sample < (samples > 1 ? sample0 + 1 : n); ++sample)
        for (int64_t head = matrix; head < (matrices > 1 ? matrix + 1 : heads); ++head) {
          for (int64_t panel = first; panel < end; ++panel) pack_queries(sample, head, panel, shift, panel - first);
          for (int64_t j0 = 0; j0 < this->visible(end * W); j0 += block) {
            const int64_t size = least(block, s - j0);
            copy_keys(sample, head, j0, size, shift);
            for (int64_t panel = first; panel < end; ++panel) {
              scores(sample, head, panel, panel - first, j0, size, shift, 0);
              add_transposed(ds + shift, kLd, size, least(W, t - panel * W), to + panel * W * s + j0, s);
            }
          }
        }
    });
  }
};

}  // namespace
