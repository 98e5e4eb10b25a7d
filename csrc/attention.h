// Softmax attention, forward: one pass over the keys with a running maximum (Milakov and Gimelshein 2018; Dao et al.
// 2022), the products being those of attention_tile.h.
//
// A task is a chunk of panels of queries of one head. For every block of keys it copies keys and values to where they
// lie densely, and takes every panel through scores, maximum, exponentials and their product with the values, all of
// which stay in the first-level cache. Scores are in base 2 (log2(e) scale is a factor of the packed q). When the
// maximum grows, what has been summed is scaled down by the same instruction that adds the next block's share. With few
// keys there is one block, and nothing is ever scaled.
//
// The block of keys depends on shapes alone and a panel on nothing but its own queries, so bits depend neither on the
// batch nor on the number of threads, although the size of a chunk does.
#pragma once
#include "attention_shape.h"
#include "attention_tile.h"
#include "carve.h"
#include "exp2.h"
#include "vmath.h"

namespace {

// Keys in a block: even pieces of at most so many that keys and values are in the second-level cache.
template <class T> inline int64_t key_block(int64_t s, int64_t d, int64_t e) {
  const int64_t bytes = (d + e) * int64_t(sizeof(T));
  int64_t most = (int64_t(96) << 10) / (bytes > 0 ? bytes : 1) / kTileRows * kTileRows;
  most = most > 256 ? 256 : most < 4 * kTileRows ? 4 * kTileRows : most;
  return s > 0 ? ceil_div(s, ceil_div(s, most)) : 1;
}

// ---- scores ------------------------------------------------------------------------------------------------------

// scores[j][i] += log2(e) bias[i * ld + j] for j < rows and the `lanes` queries that exist.
template <class T>
static void add_bias(T* scores, int64_t ld_scores, int64_t rows, const T* bias, int64_t ld, int64_t lanes) {
  constexpr int L = kLanes<T>;
  const vec<T> log2e = broadcast(T(kLog2E));
  for (int64_t i = 0; i < lanes; i += L)
    for (int64_t j = 0; j < rows; j += L) {
      vec<T> r[L];
      const T* from = bias + i * ld + j;
#pragma GCC unroll 16
      for (int u = 0; u < L; ++u) r[u] = i + u < lanes ? load_up_to(from + u * ld, rows - j) : vec<T>{};
      transpose<T>(r);
      T* to = scores + j * ld_scores + i;
#pragma GCC unroll 16
      for (int u = 0; u < L; ++u)
        if (j + u < rows) store(to + u * ld_scores, fma(r[u], log2e, load(to + u * ld_scores)));
    }
}

// -inf where key j0 + j comes after query i0 + i.
template <class T> static void hide_later_keys(T* scores, int64_t ld, int64_t rows, int64_t j0, int64_t i0) {
  for (int64_t j = i0 + 1 > j0 ? i0 + 1 - j0 : 0; j < rows; ++j)
    for (int64_t i = 0; i < kTileCols<T> && i0 + i < j0 + j; ++i) scores[j * ld + i] = T(-__builtin_inf());
}

template <class T> inline void column_max(const T* scores, int64_t rows, vec<T>* top) {
  constexpr int L = kLanes<T>;
  for (int64_t j = 0; j < rows; ++j) {
    top[0] = vmax(load(scores + j * 2 * L), top[0]);
    top[1] = vmax(load(scores + j * 2 * L + L), top[1]);
  }
}

// Scores become 2^(score - top); their sums per column.
template <class T>
__attribute__((noinline)) static void exponentials(T* scores, int64_t rows, const vec<T>* top, vec<T>* sum) {
  constexpr int L = kLanes<T>;
  const vec<T> t0 = top[0], t1 = top[1];
  vec<T> a0{}, a1{}, b0{}, b1{};
  auto one = [&](T* p, vec<T> t, vec<T>& s) __attribute__((always_inline)) {
    const vec<T> v = exp2_negative(load(p) - t);
    store(p, v);
    s += v;
  };
  int64_t j = 0;
  for (; j + 2 <= rows; j += 2, scores += 4 * L)
    one(scores, t0, a0), one(scores + L, t1, a1), one(scores + 2 * L, t0, b0), one(scores + 3 * L, t1, b1);
  if (j < rows) one(scores, t0, a0), one(scores + L, t1, a1);
  sum[0] = a0 + b0, sum[1] = a1 + b1;
}

template <class T> inline void fetch(const T* from, int64_t begin, int64_t end, int64_t ld, int64_t columns) {
  for (int64_t i = begin; i < end; ++i)
    for (int64_t c = 0; c < columns; c += 64 / int64_t(sizeof(T))) __builtin_prefetch(from + i * ld + c);
}

// ---- forward -----------------------------------------------------------------------------------------------------

constexpr int64_t kChunkPanels = 16;

// How the operands of both products are kept: as they are. attention_bf16.h has the other way.
template <class T> struct AsTheyAre {
  using type = T;                                    // of an operand: as large as T
  static constexpr bool kKeyRows = true;             // the tiles' kRows for keys
  static constexpr int kKeysAtOnce = 1;              // blocks are multiples of it
  static int64_t lines(int64_t k) { return k; }      // of a panel, for a product over k values
  static int64_t key_stride(int64_t, int64_t d) { return d; }
  static int64_t value_stride(int64_t e) { return e; }
  static void keys(int64_t rows, int64_t d, const T* from, int64_t ld, T* to, int64_t stride) {
    copy_rows(rows, d, from, ld, to, stride);
  }
  static void values(int64_t rows, int64_t e, const T* from, int64_t ld, T* to, int64_t stride) {
    copy_rows(rows, e, from, ld, to, stride);
  }
  // A panel of queries; there is room for d rows of it in `spare`.
  static void query(int64_t d, const T* from, int64_t ld, int64_t lanes, T factor, T*, T* to) {
    pack_panel<T>(d, from, ld, lanes, factor, to);
  }
  static void weights(T* scores, int64_t rows, const vec<T>* top, vec<T>* sum) { exponentials(scores, rows, top, sum); }
};

template <class T, class Operands = AsTheyAre<T>> struct AttentionForward : Heads<T> {
  static constexpr int L = kLanes<T>, W = kTileCols<T>;
  using Operand = typename Operands::type;
  using Heads<T>::n, Heads<T>::t, Heads<T>::s, Heads<T>::heads, Heads<T>::d, Heads<T>::e;
  T *out, *lse;
  int64_t block, panels, group, chunks;
  bool serial;
  Operand *keys, *values;                            // of worker 0
  T *scores, *state;                                 // likewise
  int64_t key_stride, value_stride, per_worker, per_panel;

  AttentionForward(const Call& c, Carve& scratch) : Heads<T>(c, 0), out(::out<T>(c, 0)), lse(::out<T>(c, 1)) {
    block = padded(key_block<T>(s, d, e), Operands::kKeysAtOnce);
    panels = ceil_div(t, W);
    serial = c.threads <= 1 || double(n * heads) * double(t) * double(s) * double(d + e) < 1e6;
    const int64_t workers = serial ? 1 : c.threads;
    group = least(panels, kChunkPanels);
    while (workers > 1 && group > 2 && n * heads * ceil_div(panels, group) < 4 * workers) group = ceil_div(group, 2);
    chunks = group > 0 ? ceil_div(panels, group) : 0;
    key_stride = Operands::key_stride(block, d), value_stride = Operands::value_stride(e);
    per_panel = (Operands::lines(d) + e + 2) * W;
    Carve one{scratch.base};
    keys = one.template take<Operand>((Operands::kKeyRows ? block : Operands::lines(d)) * key_stride);
    values = one.template take<Operand>(Operands::lines(block) * value_stride);
    scores = one.template take<T>((block > d ? block : d) * W);
    state = one.template take<T>(group * per_panel);
    per_worker = one.used / int64_t(sizeof(T));
    scratch.used += one.used * workers;
  }

  void run(const Call& call) const {
    Call c = call;
    if (serial) c.threads = 1;
    parallel(c, n * heads * chunks, [&](int64_t task, int worker) {
      const int64_t head = task / chunks % heads, sample = task / chunks / heads;
      chunk(sample, head, task % chunks * group, worker * per_worker);
    });
  }

 private:
  // Asks for part `part` of `parts` of what is needed next, a block of keys and values of this head or all of the next
  // one: heads lie far apart in memory, so that every block would begin by waiting.
  void fetch_next(int64_t sample, int64_t head, int64_t j0, int64_t rows, int64_t part, int64_t parts) const {
    if (j0 + block >= rows) {
      const int64_t next = sample * heads + head + 1;
      if (chunks > 1 || next >= n * heads) return;
      sample = next / heads, head = next % heads, j0 = -block, rows = this->visible(s);
      fetch(this->q + this->at(sample, t, head, d), t * part / parts, t * (part + 1) / parts, heads * d, d);
    }
    j0 += block;
    const int64_t size = least(block, rows - j0), begin = j0 + size * part / parts, end = j0 + size * (part + 1) / parts;
    fetch(this->k + this->at(sample, s, head, d), begin, end, heads * d, d);
    fetch(this->v + this->at(sample, s, head, e), begin, end, heads * e, e);
  }

  void chunk(int64_t sample, int64_t head, int64_t first, int64_t shift) const {
    const int64_t end = least(first + group, panels), rows = this->visible(least(end * W, t));
    Operand *const kb = keys + shift, *const vb = values + shift;
    for (int64_t j0 = 0; j0 < rows || j0 == 0; j0 += block) {
      const int64_t size = least(block, rows - j0), from = j0 * heads;
      Operands::keys(size, d, this->k + this->at(sample, s, head, d) + from * d, heads * d, kb, key_stride);
      Operands::values(size, e, this->v + this->at(sample, s, head, e) + from * e, heads * e, vb, value_stride);
      for (int64_t p = first; p < end; ++p) {
        fetch_next(sample, head, j0, rows, p - first, end - first);
        const int64_t seen = this->visible(least((p + 1) * W, t));
        if (seen > j0 || j0 == 0)
          panel(sample, head, p, j0, least(size, seen - j0), seen <= j0 + block,
                state + shift + (p - first) * per_panel, shift);
      }
    }
  }

  // One block of `size` keys from j0; `last`: there are no further ones.
  void panel(int64_t sample, int64_t head, int64_t p, int64_t j0, int64_t size, bool last, T* mine,
             int64_t shift) const {
    const int64_t i0 = p * W, lanes = least(W, t - i0);
    const int64_t lines = Operands::lines(d);
    T *const average = mine + lines * W, *const tops = average + e * W, *const sums = tops + W;
    T* const score = scores + shift;
    Operand *const query = reinterpret_cast<Operand*>(mine), *const weights = reinterpret_cast<Operand*>(score);
    const vec<T> none = broadcast(T(-__builtin_inf()));
    if (j0 == 0)
      Operands::query(d, this->q + this->at(sample, t, head, d) + i0 * heads * d, heads * d, lanes,
                      T(this->scale * kLog2E), score, query);
    vec<T> old[2] = {none, none};
    if (j0 > 0) old[0] = load(tops), old[1] = load(tops + L);

    StoreMax<T> high{{old[0], old[1]}};
    multiply<T, Operands::kKeyRows>(size, lines, keys + shift, key_stride, query, W, score, W, high);
    const T* bias = this->bias_of(sample, head);
    const bool meets = this->causal && j0 + size > i0 + 1;
    if (bias || meets) {
      if (bias) add_bias(score, W, size, bias + i0 * s + j0, s, lanes);
      if (meets) hide_later_keys(score, W, size, j0, i0);
      high.top[0] = old[0], high.top[1] = old[1];
      column_max(score, size, high.top);
    }
    vec<T> from[2], sum[2];                          // a query that has seen nothing yet: -inf - 0, not -inf - -inf
    for (int h = 0; h < 2; ++h) from[h] = high.top[h] == none ? vec<T>{} : high.top[h];
    if (last)
      for (int64_t i = i0; i < i0 + lanes; ++i)
        for (int64_t c = 0; c < e; c += 64 / int64_t(sizeof(T)))
          __builtin_prefetch(out + this->at(sample, t, head, e) + i * heads * e + c, 1);
    Operands::weights(score, size, from, sum);
    const int64_t steps = Operands::lines(size);
    if (j0 == 0) {
      Store<T> f;
      multiply<T, false>(e, steps, values + shift, value_stride, weights, W, average, W, f);
    } else {
      ScaleAdd<T> f;
      for (int h = 0; h < 2; ++h) {
        f.factor[h] = exp2_negative(old[h] - from[h]);
        sum[h] = fma(load(sums + h * L), f.factor[h], sum[h]);
      }
      multiply<T, false>(e, steps, values + shift, value_stride, weights, W, average, W, f);
    }
    if (!last) {
      for (int h = 0; h < 2; ++h) store(tops + h * L, high.top[h]), store(sums + h * L, sum[h]);
      return;
    }
    vec<T> share[2];
    for (int h = 0; h < 2; ++h) {
      share[h] = sum[h] == T(0) ? vec<T>{} : T(1) / sum[h];
      if (lse)
        store_up_to(lse + (sample * heads + head) * t + i0 + h * L, fma(from[h], broadcast(T(kLn2)), vlog(sum[h])),
                    lanes - h * L);
    }
    unpack_panel(e, average, share, lanes, out + this->at(sample, t, head, e) + i0 * heads * e, heads * e);
  }
};

}  // namespace
