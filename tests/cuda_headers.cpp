// Checks of what CPU and GPU code share, without a GPU: csrc/philox_one.h against csrc/philox.h, the number formats of
// csrc/cuda/mma.h, its products and the sums of block.h over the simulator, parts of softmax, tiles of pairs. Prints
// what is wrong; compiled and run by test_cuda_headers.py.
#include <stdio.h>

#include <cmath>
#include <initializer_list>
#include <limits>
#include <vector>

#include "cuda/mma.h"
#include "tile_index.h"  // before simd.h, whose sqrt is of vectors

#include "philox.h"
#include "quantile.h"
#include "sampler_step.h"
#include "softmax_merge.h"

namespace {

uint32_t bits_of(float x) { return same_bits<uint32_t>(x); }

int failures;

#define CHECK(condition, ...)                                                    \
  do {                                                                           \
    if (!(condition) && ++failures <= 20) {                                      \
      printf("line %d: %s: ", __LINE__, #condition), printf(__VA_ARGS__), puts(""); \
    }                                                                            \
  } while (0)

uint64_t state = 1;
uint64_t next_word() { return (state = state * 6364136223846793005u + 1442695040888963407u) >> 11; }
double next_number() { return double(int64_t(next_word() % 2000001) - 1000000) / 1e6; }  // in [-1, 1]

// ---- random numbers ----

void check_philox() {
  const uint32_t cases[3][10] = {
      {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
      {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
      {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}};
  for (const auto& k : cases) {
    uint32_t x[4] = {k[0], k[1], k[2], k[3]};
    philox4x32(x, k[4], k[5]);
    for (int i = 0; i < 4; ++i) CHECK(x[i] == k[6 + i], "word %d is %08x", i, x[i]);
  }
}

// One counter at a time and vectors of them, from element `begin` on: the upper word of the counter changes at 2^34.
template <class T, class One, class Many> void check_stretch(const char* name, uint64_t seed, uint64_t stream, int64_t begin) {
  constexpr int64_t n = 512;
  const uint64_t key[2] = {seed, stream};
  T many[n];
  generate<T, Many>(key, begin, begin + n, [&](int64_t e, vec<T> z, int m) { store_first(many + (e - begin), z, m); });
  for (int64_t e = 0; e < n; e += 4) {
    T one[4];
    One::draw(seed, stream, uint64_t(begin + e) / 4, one);
    CHECK(memcmp(one, many + e, sizeof one) == 0, "%s%d, element %lld: %.17g and %.17g", name, int(8 * sizeof(T)), (long long)(begin + e),
          double(one[0]), double(many[e]));
  }
}

void check_stretches() {
  const int64_t boundary = int64_t(1) << 34;
  for (int64_t begin : {int64_t(0), boundary - 512, boundary, 5 * boundary - 512, 5 * boundary, (int64_t(1) << 62) - 512})
    for (uint64_t seed : {uint64_t(0), uint64_t(0x0123456789abcdef), ~uint64_t(0)})
      for (uint64_t stream : {uint64_t(0), uint64_t(0xfedcba9876543210)}) {
        check_stretch<float, NormalOne, Normal>("normal", seed, stream, begin);
        check_stretch<double, NormalOne, Normal>("normal", seed, stream, begin);
        check_stretch<float, UniformOne, Uniform>("uniform", seed, stream, begin);
        check_stretch<double, UniformOne, Uniform>("uniform", seed, stream, begin);
      }
}

// Words about the ends and the eighths of their range.
template <class U> std::vector<U> corners() {
  std::vector<U> words;
  for (int eighth = 0; eighth < 8; ++eighth)
    for (int off = -2; off <= 2; ++off) words.push_back((U(eighth) << (8 * sizeof(U) - 3)) + U(off));
  return words;
}

void check_corners() {
  for (uint32_t a : corners<uint32_t>())
    for (uint32_t b : corners<uint32_t>()) {
      float x, y;
      vf many_x, many_y;
      normal_pair(a, b, x, y);
      Normal::pair(a - vu{}, b - vu{}, many_x, many_y);
      CHECK(bits_of(x) == bits_of(many_x[0]) && bits_of(y) == bits_of(many_y[0]), "words %08x %08x: %.9g %.9g", a, b, x, y);
    }
  for (uint64_t a : corners<uint64_t>())
    for (uint64_t b : corners<uint64_t>()) {
      double x, y;
      vd many_x, many_y;
      normal_pair(a, b, x, y);
      Normal::pair(a - vw{}, b - vw{}, many_x, many_y);
      const double mx = many_x[0], my = many_y[0];
      CHECK(memcmp(&x, &mx, 8) == 0 && memcmp(&y, &my, 8) == 0, "words %016llx %016llx: %.17g %.17g", (unsigned long long)a,
            (unsigned long long)b, x, y);
    }
}

// ---- formats ----

bool same(float a, float b) { return bits_of(a) == bits_of(b) || (a != a && b != b); }

// x rounded to `digits` bits of mantissa with round(), which says what becomes of ties; what is too large becomes infinite.
template <class Round> float rounded(float x, int digits, Round round) {
  if (x != x || std::isinf(x) || x == 0) return x;
  int exponent;
  std::frexp(x, &exponent);
  if (exponent < -125) exponent = -125;               // subnormal
  const int unit = exponent - digits;
  const double y = std::ldexp(round(std::ldexp(double(x), -unit)), unit);
  if (std::fabs(y) > double(std::numeric_limits<float>::max())) return float(std::copysign(HUGE_VAL, x));
  return std::copysign(float(y), x);
}

void check_formats() {
  const uint32_t lows[] = {0, 1, 0x7ff, 0xfff, 0x1000, 0x1001, 0x17ff, 0x1fff,
                           0x2000, 0x3000, 0x7fff, 0x8000, 0x8001, 0xefff, 0xf000, 0xffff};
  for (uint32_t high = 0; high < 0x10000; ++high)
    for (uint32_t low : lows) {
      const float x = same_bits<float>(high << 16 | low), tf32 = to_tf32(x), bf16 = from_bf16(to_bf16(x));
      CHECK(same(tf32, rounded(x, 11, [](double v) { return std::round(v); })), "to_tf32(%08x) is %08x", bits_of(x), bits_of(tf32));
      CHECK(same(bf16, rounded(x, 8, [](double v) { return std::nearbyint(v); })), "to_bf16(%08x) is %08x", bits_of(x), bits_of(bf16));
      CHECK(x != x || (bits_of(tf32) & 0x1fff) == 0, "to_tf32(%08x) is %08x", bits_of(x), bits_of(tf32));
    }
  const uint32_t pair = pack_bf16(1.5f, -2.0f);
  CHECK(from_bf16(pair & 0xffff) == 1.5f && from_bf16(pair >> 16) == -2.0f, "pack_bf16: %08x", pair);
}

// ---- products of a warp ----

constexpr int kM = 16, kN = 8;
double A[kM][16], B[16][kN], C[kM][kN], D[kM][kN];
enum Product { kTf32, kBf16, kThreeTf32 };

void multiply_in_a_warp(Product product) {
  generant::simulator::run(dim3(1), dim3(32), 0, [&] {
    const int g = int(threadIdx.x) / 4, t = int(threadIdx.x) % 4;
    float c[4] = {float(C[g][2 * t]), float(C[g][2 * t + 1]), float(C[g + 8][2 * t]), float(C[g + 8][2 * t + 1])};
    if (product == kBf16) {
      const auto a_of = [&](int i, int k) { return pack_bf16(float(A[i][k]), float(A[i][k + 1])); };
      const auto b_of = [&](int k) { return pack_bf16(float(B[k][g]), float(B[k + 1][g])); };
      const uint32_t a[4] = {a_of(g, 2 * t), a_of(g + 8, 2 * t), a_of(g, 2 * t + 8), a_of(g + 8, 2 * t + 8)};
      const uint32_t b[2] = {b_of(2 * t), b_of(2 * t + 8)};
      mma_bf16(c, a, b);
    } else {
      const float a[4] = {float(A[g][t]), float(A[g + 8][t]), float(A[g][t + 4]), float(A[g + 8][t + 4])};
      const float b[2] = {float(B[t][g]), float(B[t + 4][g])};
      if (product == kTf32) mma_tf32(c, a, b);
      else mma_3xtf32(c, a, b);
    }
    D[g][2 * t] = c[0], D[g][2 * t + 1] = c[1], D[g + 8][2 * t] = c[2], D[g + 8][2 * t + 1] = c[3];
  });
}

// The largest error, in units of sum |a| |b| + |c|.
double error_of(int depth) {
  double worst = 0;
  for (int i = 0; i < kM; ++i)
    for (int j = 0; j < kN; ++j) {
      double sum = C[i][j], size = std::fabs(C[i][j]);
      for (int k = 0; k < depth; ++k) sum += A[i][k] * B[k][j], size += std::fabs(A[i][k] * B[k][j]);
      worst = std::fmax(worst, std::fabs(D[i][j] - sum) / size);
    }
  return worst;
}

template <class Number> void fill(Number number) {
  for (auto& row : A)
    for (double& x : row) x = number();
  for (auto& row : B)
    for (double& x : row) x = number();
  for (auto& row : C)
    for (double& x : row) x = number();
}

void check_products() {
  for (int reverse = 0; reverse < 2; ++reverse) {
    generant::simulator::set_reverse(reverse != 0);
    for (Product product : {kTf32, kBf16, kThreeTf32}) {  // small integers: every sum is exact
      fill([] { return double(int(next_word() % 17) - 8); });
      multiply_in_a_warp(product);
      CHECK(error_of(product == kBf16 ? 16 : 8) == 0, "product %d of integers is off by %g", product, error_of(product == kBf16 ? 16 : 8));
    }
  }
  generant::simulator::set_reverse(false);
  for (int trial = 0; trial < 20; ++trial) {
    fill([] { return double(float(next_number() * std::ldexp(1, int(next_word() % 9) - 4))); });
    multiply_in_a_warp(kThreeTf32);
    CHECK(error_of(8) < std::ldexp(1, -21), "3xTF32 is off by %g", error_of(8));
    multiply_in_a_warp(kTf32);
    CHECK(error_of(8) < std::ldexp(1, -9), "TF32 is off by %g", error_of(8));
    multiply_in_a_warp(kBf16);
    CHECK(error_of(16) < std::ldexp(1, -7), "bfloat16 is off by %g", error_of(16));
  }
}

// ---- sums and extrema of a block ----

void check_reductions() {
  for (unsigned threads : {32u, 96u, 256u, 1024u}) {
    double sums[2] = {}, most = 0, least = 0;
    float with_nan = 0;
    for (int reverse = 0; reverse < 2; ++reverse) {
      generant::simulator::set_reverse(reverse != 0);
      generant::simulator::run(dim3(1), dim3(threads), 0, [&] {
        static double room[32];
        static float narrow[32];
        const double mine = 1.0 / (1 + threadIdx.x);
        sums[reverse] = block_sum(mine, room);
        most = block_reduce(mine, Max{}, -double(INFINITY), room);
        least = block_reduce(mine, Min{}, double(INFINITY), room);
        with_nan = block_reduce(threadIdx.x == 7 ? NAN : float(threadIdx.x), Max{}, -INFINITY, narrow);
      });
    }
    generant::simulator::set_reverse(false);
    double sum = 0;
    for (unsigned t = 0; t < threads; ++t) sum += 1.0 / (1 + t);
    CHECK(sums[0] == sums[1] && std::fabs(sums[0] - sum) < 1e-14 * sum, "the sum of %u threads is %.17g", threads, sums[0]);
    CHECK(most == 1 && least == 1.0 / threads && with_nan != with_nan, "extrema of %u threads: %g %g %g", threads, most, least,
          double(with_nan));
  }
}

// ---- steps of a sampler ----

void check_steps() {
  CHECK(step_limit(0.5f, 2.0f) == 1 && step_limit(1.5f, 2.0f) == 1.5f && step_limit(9.0f, 2.0f) == 2, "limits");
  CHECK(std::isnan(step_limit(NAN, 2.0f)), "the limit of NaN");
  CHECK(step_rescale(4, 16, 1.0) == 0.5 && step_rescale(4, 16, 0.5) == 0.75, "rescale");
  CHECK(step_rescale(0, 0, 1.0) == 1 && step_rescale(-1e-9, 16, 1.0) == 0, "rescale of samples without spread");
  CHECK((Spread{6, 14}.value(3)) == 2, "spread");
  const QuantilePlace place = quantile_place(5, 0.625);
  CHECK(place.rank == 2 && place.weight == 0.5 && quantile_between(1.0f, 2.0f, place.weight) == 1.5f, "place of a quantile");
  double coef[kStepCoefficients] = {};
  coef[kNumber] = 5;
  CHECK(kStepCoefficients == 13 && kGD == 12 && kNumber == 10 && step_stream(coef) == 5, "coefficients");
}

// ---- softmax in parts ----

struct Part { double top = -INFINITY, sum = 0; };
Part merged(const Part& a, const Part& b) {
  const double top = larger(a.top, b.top), base = base_of(top);
  return {top, a.sum * std::exp2(a.top - base) + b.sum * std::exp2(b.top - base)};
}

// Any split of the scores gives one sum; hidden keys (-inf) count nothing, and with nothing seen every share is 0.
void check_softmax() {
  for (int hidden = 0; hidden < 3; ++hidden)
    for (int trial = 0; trial < 50; ++trial) {
      double scores[12], top = -INFINITY, sum = 0;
      for (double& x : scores) x = hidden == 2 || (hidden == 1 && next_word() % 2) ? -INFINITY : 40 * next_number();
      for (double x : scores) top = std::fmax(top, x);
      for (double x : scores) sum += x == -INFINITY ? 0 : std::exp2(x - top);
      Part parts[3];
      for (int i = 0; i < 12; ++i) {
        Part& p = parts[next_word() % 3];
        p = merged(p, {scores[i], scores[i] == -INFINITY ? 0.0 : 1.0});
      }
      const Part all = merged(merged(parts[0], parts[1]), parts[2]);
      CHECK(all.top == top && std::fabs(all.sum - sum) <= 1e-14 * sum, "top %g, sum %.17g; wanted %g, %.17g", all.top, all.sum, top, sum);
      CHECK(sum == 0 ? share_of(all.sum) == 0 : share_of(all.sum) == 1 / all.sum, "share of %g", all.sum);
    }
  CHECK(std::isnan(merged(merged({}, {INFINITY, 1}), {0, 1}).sum), "a score of infinity is not lost");
  CHECK(std::isnan(merged({1, 1}, {NAN, 1}).sum) && base_of(-INFINITY) == 0, "a score that is NaN is not lost");
}

// ---- tiles of a table of pairs ----

void check_tile(int64_t t, int64_t n) {
  const TileIndex i = triangle_tile(t, n);
  const bool inside = 0 <= i.row && i.row <= i.column && i.column < n;
  const int64_t back = triangle_size(n) - triangle_size(n - i.row) + i.column - i.row;
  CHECK(inside && back == t, "tile %lld of %lld: (%lld, %lld)", (long long)t, (long long)n, (long long)i.row, (long long)i.column);
}

void check_tiles() {
  for (int64_t n = 1; n < 50; ++n)
    for (int64_t t = 0; t < triangle_size(n); ++t) check_tile(t, n);
  for (int64_t n : {int64_t(94906266), int64_t(1) << 30, int64_t(1518500249)})    // sums beyond 2^52 and up to 2^60
    for (int64_t row = 0; row < n; row += n / 9973)
      for (int64_t off = -1; off <= 1; ++off) {
        const int64_t t = triangle_size(n) - triangle_size(n - row) + off;        // about the ends of rows
        if (t >= 0 && t < triangle_size(n)) check_tile(t, n);
      }
  for (int trial = 0; trial < 200; ++trial) {
    const int64_t n = 1 + int64_t(next_word() % 100000), m = 1 + int64_t(next_word() % 100000), most = 4 + int64_t(next_word() % 5000);
    const auto squares = [=](int64_t side) { return ceil_div(n, side) * ceil_div(m, side); };
    const int64_t side = square_side(n, m, 64, most);
    CHECK(side % 64 == 0 && squares(side) <= most && (side == 64 || squares(side / 2) > most), "side %lld", (long long)side);
  }
}

}  // namespace

int main() {
  check_philox();
  check_stretches();
  check_corners();
  check_formats();
  check_products();
  check_reductions();
  check_steps();
  check_softmax();
  check_tiles();
  if (failures) printf("%d checks failed\n", failures);
  return failures != 0;
}
