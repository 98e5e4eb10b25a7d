// The kernel ABI: the one way Python reaches native code.
//
// A kernel is a function of a Call. Allocation, shape checks, dtype checks and contiguity happen before it runs
// (python/generant/ops), so a kernel cannot fail, never allocates and holds no state. KERNEL(op) defines
// `op` for float and double and puts a constant row into a linker section of its own per instruction set; bind.cpp
// walks those sections, so nothing is registered at run time and no translation unit has a static initialiser.
//
// The sources in csrc/cpu are compiled once per instruction set. Everything they include must therefore have
// internal linkage (an inline function shared by two units would be merged by the linker, and the AVX-512 copy
// would then run on a machine without AVX-512). Large functions that one unit compiles for all others (tile.h, epilogue.h,
// winograd_conv.h) are in the namespace of their instruction set instead, generant::GENERANT_NAMESPACE. A unit that is
// compiled again for a partial set (GENERANT_PARTIAL) calls those of the whole set beneath it, and has float32 rows only.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace generant {

constexpr int kMaxDims = 6;

enum Dtype : int32_t { kFloat32, kFloat64, kInt64, kUint64, kUint8, kUint32 };

struct Array {                     // dense and row-major; data is null for an optional argument that is absent
  void* data;
  int64_t shape[kMaxDims];
  int32_t ndim;
  int32_t dtype;
};

struct Call {
  const Array* in;
  const Array* out;
  const double* attr;              // keyword attributes in the order of the op's signature; strings by their index
  void* scratch;                   // 64-byte aligned, as many bytes as the row's `scratch` asked for
  int32_t n_in, n_out;
  int32_t threads;                 // upper limit of workers for this call
  void* stream;                    // CUDA only
};

using Kernel = void (*)(const Call&);
using Scratch = int64_t (*)(const Call&);

struct Row {
  const char* name;                // "matmul.f32"
  Kernel run;
  Scratch scratch;                 // bytes for this call, or null for none
};

}  // namespace generant

#ifndef GENERANT_ISA
#define GENERANT_ISA base
#endif
#ifndef GENERANT_NAMESPACE
#define GENERANT_NAMESPACE GENERANT_ISA
#endif
namespace generant::GENERANT_NAMESPACE {}

namespace {

using namespace generant::GENERANT_NAMESPACE;
using generant::Array;
using generant::Call;

template <class T> [[maybe_unused]] inline const T* in(const Call& c, int i) { return static_cast<const T*>(c.in[i].data); }
template <class T> [[maybe_unused]] inline T* out(const Call& c, int i = 0) { return static_cast<T*>(c.out[i].data); }

[[maybe_unused]] inline int64_t size(const Array& a) {
  int64_t n = 1;
  for (int i = 0; i < a.ndim; ++i) n *= a.shape[i];
  return n;
}

// Product of all dimensions but the last `tail`: the rows of "x: ... d".
[[maybe_unused]] inline int64_t rows(const Array& a, int tail = 1) {
  int64_t n = 1;
  for (int i = 0; i < a.ndim - tail; ++i) n *= a.shape[i];
  return n;
}

[[maybe_unused]] inline int64_t last(const Array& a) { return a.shape[a.ndim - 1]; }
[[maybe_unused]] inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
[[maybe_unused]] inline int64_t padded(int64_t n, int64_t to) { return ceil_div(n, to) * to; }

}  // namespace

#define GENERANT_STRING_(x) #x
#define GENERANT_STRING(x) GENERANT_STRING_(x)
#define GENERANT_ROW(id, name, run, bytes)                                                          \
  __attribute__((section("generant_rows_" GENERANT_STRING(GENERANT_ISA)), used, aligned(8)))        \
  static const generant::Row id = {name, run, bytes};

// KERNEL(op) { ... }: defines and registers op.f32 and op.f64. T is the element type, `c` the call.
#define KERNEL(op)                                                            \
  template <class T> static void op##_kernel(const generant::Call& c);        \
  GENERANT_ROW(op##_f32_row, #op ".f32", op##_kernel<float>, nullptr)         \
  GENERANT_ROW(op##_f64_row, #op ".f64", op##_kernel<double>, nullptr)        \
  template <class T> static void op##_kernel(const generant::Call& c)

// For an op whose arrays are float32 only; T is float. `bytes` is a function template int64_t bytes<T>(const Call&).
#define KERNEL_SCRATCH_F32(op, bytes)                                         \
  template <class T> static void op##_kernel(const generant::Call& c);        \
  GENERANT_ROW(op##_f32_row, #op ".f32", op##_kernel<float>, bytes<float>)    \
  template <class T> static void op##_kernel(const generant::Call& c)

// KERNEL with scratch.
#ifdef GENERANT_PARTIAL
#define KERNEL_SCRATCH KERNEL_SCRATCH_F32
#else
#define KERNEL_SCRATCH(op, bytes)                                             \
  template <class T> static void op##_kernel(const generant::Call& c);        \
  GENERANT_ROW(op##_f32_row, #op ".f32", op##_kernel<float>, bytes<float>)    \
  GENERANT_ROW(op##_f64_row, #op ".f64", op##_kernel<double>, bytes<double>)  \
  template <class T> static void op##_kernel(const generant::Call& c)
#endif
