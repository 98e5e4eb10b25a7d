// Packs of 16 bytes from rows of any length and address, and rows of numbers held by the lanes that share them.
//
// `wide` says that every pack is aligned and whole: one access of 16 bytes; otherwise its numbers are read one by one.
// Either way the same thread gets the same numbers, so that results do not depend on addresses.
#pragma once
#include "block.h"
#include "elementwise.h"

#include <type_traits>

namespace {

template <class T> constexpr int kPack = 16 / int(sizeof(T));
template <class T> using PackOf = Pack<T, kPack<T>>;

// Whether rows of `n` numbers at these addresses (null: absent) consist of aligned packs.
template <class T, class... P> inline bool wide_rows(int64_t n, const P*... p) {
  return n % kPack<T> == 0 && (uintptr_t(0) | ... | reinterpret_cast<uintptr_t>(p)) % 16 == 0;
}

// The first n (any number) of the pack at p, zeros after them.
template <class T, class N> __device__ inline PackOf<T> load_pack(const T* p, N n, bool wide) {
  PackOf<T> v;
  if (wide) {
    if (n > 0) v = *reinterpret_cast<const PackOf<T>*>(p);
    else for (int k = 0; k < kPack<T>; ++k) v.v[k] = T(0);
  } else {
    GENERANT_UNROLL
    for (int k = 0; k < kPack<T>; ++k) v.v[k] = k < n ? p[k] : T(0);
  }
  return v;
}

template <class T, class N> __device__ inline void store_pack(T* p, const PackOf<T>& v, N n, bool wide) {
  if (wide) {
    if (n > 0) *reinterpret_cast<PackOf<T>*>(p) = v;
  } else {
    GENERANT_UNROLL
    for (int k = 0; k < kPack<T>; ++k)
      if (k < n) p[k] = v.v[k];
  }
}

// ---- rows ----
//
// A row is shared by `lanes` neighbouring threads: a power of two up to 32, or the whole block (kBlock). Each holds V packs
// of it in registers; V = 0: any number, read again whenever they are wanted.

template <bool kBlock, class Op, class A> __device__ inline A row_reduce(A v, Op op, A identity, int lanes, A* shared) {
  if constexpr (kBlock) return block_reduce(v, op, identity, shared);
  else return warp_reduce(v, op, lanes);
}

template <class T, int V> struct RowPacks {
  using Index = std::conditional_t<V == 0, int64_t, int>;
  PackOf<T> held[V > 0 ? V : 1];
  const T* p;                                        // the first pack of this lane
  Index left;                                        // numbers of the row from there on; 0 or less: none
  int first, step;                                   // offset of the first pack, and from one to the next
  bool wide;

  __device__ RowPacks(const T* row, int64_t d, int lane, int lanes, bool wide_)
      : p(row + lane * kPack<T>), left(Index(d - lane * kPack<T>)), first(lane * kPack<T>), step(lanes * kPack<T>), wide(wide_) {
    if constexpr (V > 0) {
      GENERANT_UNROLL
      for (int i = 0; i < V; ++i) held[i] = load_pack(p + i * step, left - i * step, wide);
    }
  }

  // f(pack, offset, how many of its numbers are of the row). f may change packs that stay in registers.
  template <class F> __device__ void each(F f) {
    if constexpr (V > 0) {
      GENERANT_UNROLL
      for (int i = 0; i < V; ++i) f(held[i], first + i * step, left - i * step);
    } else {
      for (Index j = 0; j < left; j += step) {
        PackOf<T> v = load_pack(p + j, left - j, wide);
        f(v, first + j, left - j);
      }
    }
  }
};

// f(pack, pack of `b`, offset, count) for two rows of one shape.
template <class T, int V, class F> __device__ inline void each_pair(RowPacks<T, V>& a, RowPacks<T, V>& b, F f) {
  if constexpr (V > 0) {
    GENERANT_UNROLL
    for (int i = 0; i < V; ++i) f(a.held[i], b.held[i], a.first + i * a.step, a.left - i * a.step);
  } else {
    for (int64_t j = 0; j < a.left; j += a.step) {
      PackOf<T> v = load_pack(a.p + j, a.left - j, a.wide), w = load_pack(b.p + j, a.left - j, b.wide);
      f(v, w, a.first + j, a.left - j);
    }
  }
}

// f(k) for the numbers of a pack that are of the row.
template <class T, class N, class F> __device__ inline void each_lane(N n, F f) {
  GENERANT_UNROLL
  for (int k = 0; k < kPack<T>; ++k)
    if (k < n) f(k);
}

// run(V, kBlock, threads, lanes, grid): the shape of a launch over `rows` rows of d numbers. The first two, and `lanes`
// where V is not 1 (else 0), are Constants.
template <int N> struct Constant { static constexpr int value = N; };
template <class T, class Run> inline void for_rows(int64_t rows, int64_t d, Run run) {
  constexpr int N = kPack<T>, block = 256;
  int lanes = 1;
  while (lanes < kWarp && lanes * N < d) lanes *= 2;
  if (d <= kWarp * N) run(Constant<1>{}, Constant<0>{}, block, lanes, grid_of(ceil_div(rows, block / lanes)));
  else if (d <= 8 * kWarp * N) run(Constant<8>{}, Constant<0>{}, block, kWarp, grid_of(ceil_div(rows, block / kWarp)));
  else if (d <= 8 * block * N) run(Constant<8>{}, Constant<1>{}, block, block, grid_of(rows));
  else run(Constant<0>{}, Constant<1>{}, 512, 512, grid_of(rows));
}

// In the kernel: how many lanes share a row, the row of this thread and its place in it.
template <int V, bool kBlock> struct RowPlace {
  int lanes, lane;
  int64_t row;
  __device__ RowPlace(int lanes_) : lanes(V == 1 ? lanes_ : !kBlock ? kWarp : V == 0 ? 512 : 256), lane(threadIdx.x % lanes) {
    row = kBlock ? int64_t(blockIdx.x) : int64_t(blockIdx.x) * (blockDim.x / lanes) + threadIdx.x / lanes;
  }
};

}  // namespace
