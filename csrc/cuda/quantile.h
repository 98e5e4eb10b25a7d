// The quantile of every row of numbers >= 0, by counting digits of their bits as csrc/quantile.h does: the same numbers
// come out, whoever counted first. Atomic additions here are of integers.
//
// A block counts a row of up to kQuantilePiece numbers by itself. Longer rows are counted in pieces by many blocks, digit
// by digit: count() adds to a histogram per row, choose() reads it.
#pragma once
#include "../carve.h"
#include "../quantile.h"
#include "pieces.h"

namespace {

constexpr int kQuantileThreads = 256, kDigitValues = 1 << kDigit;
constexpr int64_t kQuantilePiece = 1 << 14;

// What is known of a row's number `rank`: all bits from `known` on, and where it stands among the numbers that share them.
template <class T> struct Sought {
  typedef typename BitsOf<T>::type U;
  static constexpr int kBits = int(sizeof(T)) * 8;

  U prefix = 0;
  int32_t known = kBits;                             // 0: the number is found
  int64_t rest, equal;

  __device__ explicit Sought(int64_t rank, int64_t n) : rest(rank), equal(n) {}
  __device__ int low() const { return known > kDigit ? known - kDigit : 0; }
};

// Counts the next digit of a[begin, end) where the digits before it are those sought; returns the least number above
// them that this thread saw. counts: shared.
template <class T, class U>
__device__ inline U count_digits(const T* a, int64_t begin, int64_t end, const Sought<T>& s, uint32_t* counts, U above) {
  const int low = s.low(), width = s.known - low;
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    const U u = same_bits<U>(a[i]), prefix = s.known == Sought<T>::kBits ? U(0) : u >> s.known;
    if (prefix == s.prefix) atomicAdd(counts + (u >> low & ((U(1) << width) - 1)), 1u);
    else if (prefix > s.prefix && u < above) above = u;
  }
  return above;
}

// Finds the digit sought in the counts of all of the row; with the last one `above`, so far the least number above those
// that share all other digits, becomes the least above the number itself. For every thread of the block.
struct ChoiceRoom {                                  // shared
  uint32_t sums[kQuantileThreads / kWarp], next, digit;
  int64_t rest, equal;
};
template <class T, class U> __device__ inline void choose_digit(Sought<T>& s, U& above, const uint32_t* counts, ChoiceRoom& room) {
  constexpr int kEach = kDigitValues / kQuantileThreads;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, first = int(threadIdx.x) * kEach, low = s.low(), width = s.known - low;
  uint32_t mine = 0;
  for (int k = 0; k < kEach; ++k) mine += counts[first + k];
  uint32_t until = mine;                             // within the warp, this thread included
  for (int step = 1; step < kWarp; step *= 2) {
    const uint32_t other = __shfl_up_sync(0xffffffffu, until, unsigned(step));
    if (lane >= step) until += other;
  }
  if (lane == kWarp - 1) room.sums[warp] = until;
  if (threadIdx.x == 0) room.next = kDigitValues;
  __syncthreads();
  int64_t before = int64_t(until) - int64_t(mine);
  for (int w = 0; w < warp; ++w) before += room.sums[w];
  if (before <= s.rest && s.rest < before + mine) {  // one thread
    int64_t rest = s.rest - before;
    int k = 0;
    while (rest >= int64_t(counts[first + k])) rest -= counts[first + k++];
    room.digit = uint32_t(first + k), room.rest = rest, room.equal = counts[first + k];
  }
  __syncthreads();
  const uint32_t digit = room.digit;
  if (low == 0) {
    uint32_t next = kDigitValues;
    for (int k = kEach - 1; k >= 0; --k)
      if (uint32_t(first + k) > digit && counts[first + k]) next = uint32_t(first + k);
    if (next != uint32_t(kDigitValues)) atomicMin(&room.next, next);
    __syncthreads();
    if (room.next != uint32_t(kDigitValues)) above = U(s.prefix << width | room.next);
  }
  s.prefix = U(s.prefix << width | digit), s.rest = room.rest, s.equal = room.equal, s.known = low;
}

template <class T, class U> __device__ inline T finish_quantile(const Sought<T>& s, U above, int64_t n, const QuantilePlace& place) {
  const T found = same_bits<T>(s.prefix);
  const T next = s.rest + 1 >= s.equal && place.rank + 1 < n ? same_bits<T>(above) : found;
  return quantile_between(found, next, place.weight);
}

// f(row, quantile), in thread 0 of a block per row.
template <class T, class F>
__global__ void __launch_bounds__(kQuantileThreads) quantile_of_row(const T* a, int64_t n, QuantilePlace place, F f) {
  typedef typename BitsOf<T>::type U;
  __shared__ uint32_t counts[kDigitValues];
  __shared__ ChoiceRoom room;
  __shared__ U least[kWarp];
  a += int64_t(blockIdx.x) * n;
  Sought<T> s(place.rank, n);
  U above = ~U(0);
  while (s.known > 0) {
    for (int k = int(threadIdx.x); k < kDigitValues; k += kQuantileThreads) counts[k] = 0;
    __syncthreads();
    above = count_digits(a, 0, n, s, counts, ~U(0));
    __syncthreads();
    if (s.low() == 0) above = block_reduce(above, Min{}, ~U(0), least);
    choose_digit(s, above, counts, room);
    __syncthreads();
  }
  if (threadIdx.x == 0) f(int64_t(blockIdx.x), finish_quantile(s, above, n, place));
}

// ---- rows in pieces ----

__device__ inline void lower(uint32_t* p, uint32_t v) { atomicMin(p, v); }
__device__ inline void lower(uint64_t* p, uint64_t v) {
  using Wide = unsigned long long;                   // the one type of 64 bits that CUDA's atomics know
  atomicMin(reinterpret_cast<Wide*>(p), Wide(v));
}

template <class T, class U> __global__ void begin_quantiles(Sought<T>* sought, U* above, int64_t rows, int64_t n, int64_t rank) {
  const int64_t i = global_thread();
  if (i < rows) sought[i] = Sought<T>(rank, n), above[i] = ~U(0);
}

template <class T, class U>
__global__ void __launch_bounds__(kQuantileThreads)
count_piece(const T* a, int64_t n, int64_t pieces, const Sought<T>* sought, U* above, uint32_t* counts) {
  __shared__ uint32_t own[kDigitValues];
  __shared__ U least[kWarp];
  const Piece p = piece_of_block(n, pieces, kQuantilePiece);
  for (int k = int(threadIdx.x); k < kDigitValues; k += kQuantileThreads) own[k] = 0;
  __syncthreads();
  const Sought<T> s = sought[p.row];
  U seen = count_digits(a + p.row * n, p.begin, p.end, s, own, ~U(0));
  __syncthreads();
  for (int k = int(threadIdx.x); k < kDigitValues; k += kQuantileThreads)
    if (own[k]) atomicAdd(counts + p.row * kDigitValues + k, own[k]);
  if (s.low() == 0) {
    seen = block_reduce(seen, Min{}, ~U(0), least);
    if (threadIdx.x == 0) lower(above + p.row, seen);
  }
}

template <class T, class U, class F>
__global__ void __launch_bounds__(kQuantileThreads)
choose(int64_t n, QuantilePlace place, Sought<T>* sought, const U* above, uint32_t* counts, F f) {
  __shared__ ChoiceRoom room;
  const int64_t i = blockIdx.x;
  Sought<T> s = sought[i];
  U next = above[i];
  choose_digit(s, next, counts + i * kDigitValues, room);
  __syncthreads();
  for (int k = int(threadIdx.x); k < kDigitValues; k += kQuantileThreads) counts[i * kDigitValues + k] = 0;
  if (threadIdx.x != 0) return;
  sought[i] = s;
  if (s.known == 0) f(i, finish_quantile(s, next, n, place));
}

// Memory of `rows` rows of n numbers.
template <class T> struct QuantileRoom {
  typedef typename BitsOf<T>::type U;
  Sought<T>* sought = nullptr;
  U* above = nullptr;
  uint32_t* counts = nullptr;

  QuantileRoom(Carve& carve, int64_t rows, int64_t n) {
    if (n <= kQuantilePiece) return;
    sought = carve.take<Sought<T>>(rows), above = carve.take<U>(rows), counts = carve.take<uint32_t>(rows * kDigitValues);
  }
};

// f(row, quantile) for every row of a: rows x n.
template <class T, class F>
inline void quantiles(const Call& c, const T* a, int64_t rows, int64_t n, double probability, const QuantileRoom<T>& room, F f) {
  typedef typename BitsOf<T>::type U;
  const QuantilePlace place = quantile_place(n, probability);
  if (n <= kQuantilePiece) {
    launch(c, quantile_of_row<T, F>, grid_of(rows), kQuantileThreads, 0, a, n, place, f);
    return;
  }
  const int64_t pieces = ceil_div(n, kQuantilePiece);
  clear(c, room.counts, size_t(rows) * kDigitValues * sizeof(uint32_t));
  launch(c, begin_quantiles<T, U>, grid_of(ceil_div(rows, kQuantileThreads)), kQuantileThreads, 0, room.sought, room.above, rows, n,
         place.rank);
  for (int known = Sought<T>::kBits; known > 0; known -= kDigit) {
    launch(c, count_piece<T, U>, grid_of(rows * pieces), kQuantileThreads, 0, a, n, pieces, room.sought, room.above, room.counts);
    launch(c, choose<T, U, F>, grid_of(rows), kQuantileThreads, 0, n, place, room.sought, room.above, room.counts, f);
  }
}

}  // namespace
