// Kernel matrices times vectors, without the matrices: kernel_matvec, its gradient with respect to rows of x, and the
// backward of that. What a tile of scores becomes is in kernel_weights.h, what multiplies it in row_products.h.
#include "kernel_gradient_bwd.h"
#include "kernel_weights.h"
#include "row_products.h"

namespace {

// ---- gradients from differences ----

// Float32 weights wait in registers while coordinates pass through the shared memory they came from; float64 ones stay.
template <class T> constexpr int kWeightsKept = sizeof(T) == 8 ? kTileRows<T> * kScoreStride : 0;
template <class T> constexpr size_t kDifferenceBytes = kWeightsKept<T> ? (kWeightsKept<T> + kSlabSize<T>) * sizeof(T) : kTileBytes<T>;

// sums[part][i][k] += sum_j W_ij (x_ik - y_jk), or times the sign of that for |x - y|_1: directly, so nothing cancels.
template <class T>
__global__ void __launch_bounds__(kTileThreads<T>, kTileBlocks)
multiply_differences(KernelWeights<1, T> weights, int64_t share, double* sums) {
  DYNAMIC_SHARED(T, shared);
  const Points<T>& p = weights.points;
  const bool signs = p.form == kManhattan;
  const int64_t i0 = int64_t(blockIdx.x) * kTileRows<T>;
  const int first = int(blockIdx.y * share), last = int(min(p.column_tiles(), first + share));
  const T* own = own_scores(shared);
  const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
  for (int tile = first; tile < last; ++tile) {
    const int64_t j0 = int64_t(tile) * kTileColumns;
    weights.tile(i0, j0, shared);
    T w[2][kStrips][2];
    if (!kWeightsKept<T>)
      GENERANT_UNROLL
      for (int h = 0; h < 2; ++h)
        GENERANT_UNROLL
        for (int strip = 0; strip < kStrips; ++strip) {
          const Pack<T, 2> pair = *reinterpret_cast<const Pack<T, 2>*>(own + own_offset(h, strip));
          w[h][strip][0] = pair.v[0], w[h][strip][1] = pair.v[1];
        }
    auto weight = [&](int h, int strip, int c) { return kWeightsKept<T> ? own[own_offset(h, strip) + c] : w[h][strip][c]; };
    T* const slab = shared + kWeightsKept<T>;
    for (int64_t k0 = 0; k0 < p.width; k0 += kSlab) {
      __syncthreads();
      load_slab(slab, p.packed_x + i0 * p.width, p.width, p.packed_y + j0 * p.width, p.width, k0, p.width);
      copies_done();
      __syncthreads();
      const T *x = slab + (threadIdx.x / kWarp * 16 + g) * kSlabStride, *y = slab + (kTileRows<T> + 2 * t) * kSlabStride;
#pragma unroll 1
      for (int k = 0; k < kSlab && k0 + k < p.d; ++k) {
        const T x0 = x[k], x1 = x[8 * kSlabStride + k];
        T s0 = 0, s1 = 0;
        GENERANT_UNROLL
        for (int strip = 0; strip < kStrips; ++strip)
          GENERANT_UNROLL
          for (int c = 0; c < 2; ++c) {
            const T at = y[(8 * strip + c) * kSlabStride + k], u0 = x0 - at, u1 = x1 - at;
            const T w0 = weight(0, strip, c), w1 = weight(1, strip, c);
            if (signs) {
              s0 += u0 > 0 ? w0 : u0 < 0 ? -w0 : w0 * 0, s1 += u1 > 0 ? w1 : u1 < 0 ? -w1 : w1 * 0;
            } else if (j0 + own_column(strip) + c < p.m) {
              s0 = fused(w0, u0, s0), s1 = fused(w1, u1, s1);
            }
          }
        const double sum0 = warp_sum(double(s0), 4), sum1 = warp_sum(double(s1), 4);
        if (t < 2) {                                 // one lane of the four for each row
          const int64_t i = i0 + own_row(t);
          if (i < p.n) sums[(blockIdx.y * p.n + i) * p.d + k0 + k] += t ? sum1 : sum0;
        }
      }
    }
  }
}

// x_i sum_j W_ij - sum_j W_ij y_j of centred rows, times 2.
template <class T> struct Expanded {
  static constexpr bool kOwnColumn = true;
  const T *x, *centre;
  int64_t d;
  __device__ T finish(int64_t i, int64_t k, double sum, double weight, T) const {
    return T(2 * (double(x[i * d + k] - centre[k]) * weight - sum));
  }
};
struct Scaled {
  static constexpr bool kOwnColumn = false;
  double factor;
  template <class T> __device__ T finish(int64_t, int64_t, double sum, double, T) const { return T(factor * sum); }
};

// ---- plans ----

template <class T> struct MatvecPlan {
  Carve scratch;
  KernelWeights<0, T> weights;
  ProductPlan<T> product;
  MatvecPlan(const Call& c, void* memory)
      : scratch{static_cast<char*>(memory)}, weights(c, -1, 3, scratch),
        product(weights.points, c.in[2].shape[1], false, false, scratch) {}
};

template <class T> struct GradientPlan {
  Carve scratch;
  KernelWeights<1, T> weights;
  bool differences;
  int64_t parts, share;
  double* sums;
  GradientPlan(const Call& c, void* memory) : scratch{static_cast<char*>(memory)}, weights(c, 2, 4, scratch) {
    const Points<T>& p = weights.points;
    differences = p.form != kInner;
    parts = parts_of(p.row_tiles(), p.column_tiles()), share = ceil_div(p.column_tiles(), parts);
    sums = scratch.take<double>(differences ? parts * p.n * p.d : 0);
  }
  ProductPlan<T> product(Carve& rest) const {
    return ProductPlan<T>(weights.points, weights.points.d, weights.points.expanded, true, rest);
  }
};

template <class T> int64_t matvec_scratch(const Call& c) { return MatvecPlan<T>(c, nullptr).scratch.used; }
template <class T> int64_t gradient_scratch(const Call& c) {
  const GradientPlan<T> plan(c, nullptr);
  Carve rest = plan.scratch;
  if (!plan.differences) plan.product(rest);
  return rest.used;
}

}  // namespace

KERNEL_SCRATCH(kernel_matvec, matvec_scratch) {
  const MatvecPlan<T> plan(c, c.scratch);
  plan.weights.prepare(c);
  plan.product.run(c, plan.weights, in<T>(c, 2), AsItIs{}, out<T>(c));
}

KERNEL_SCRATCH(kernel_matvec_dx, gradient_scratch) {
  const GradientPlan<T> plan(c, c.scratch);
  const Points<T>& p = plan.weights.points;
  plan.weights.prepare(c);
  if (plan.differences) {
    clear(c, plan.sums, sizeof(double) * plan.parts * p.n * p.d);
    launch(c, multiply_differences<T>, grid_of(p.row_tiles(), plan.parts), kTileThreads<T>, kDifferenceBytes<T>, plan.weights, plan.share,
           plan.sums);
    launch(c, finish_products<T, Scaled>, grid_of(ceil_div(p.n * p.d, 256)), 256, 0, plan.sums, plan.parts, p.n, p.d, 0, p.n, p.d,
           Scaled{p.form == kSquare ? 2.0 : 1.0}, out<T>(c));
    return;
  }
  Carve rest = plan.scratch;
  const ProductPlan<T> product = plan.product(rest);
  if (p.expanded) product.run_many(c, plan.weights, p.y, Expanded<T>{p.x, p.centre, p.d}, out<T>(c));
  else product.run_many(c, plan.weights, p.y, AsItIs{}, out<T>(c));
}
