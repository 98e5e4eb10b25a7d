// cuBLAS where the process has it or the system finds it: no header, no link, looked for when it is first wanted.
//
// Which of its kernels runs depends on all sizes of a product, so the bits of a row depend on the rows it comes with. By default
// it is therefore used for sums over rows alone (matmul_dw), where nobody is promised otherwise, and there for float64 and
// for GPUs on which gemm.h has no tensor cores for float32. GENERANT_CUBLAS=1: for every product of matrices; 0: for
// none. Its workspace is the call's scratch, and the handle is made outside of graphs, so that calls can be captured;
// where it cannot be used the kernels of gemm.h serve.
#pragma once
#include "device.h"

#ifdef __CUDACC__
#include <dlfcn.h>
#include <stdlib.h>

#include <mutex>
#endif

namespace {

enum CublasUse { kSumOverRows, kRows };
constexpr int64_t kLeastProducts = 1 << 24;          // m n k, below which there is nothing to gain

#ifdef __CUDACC__

constexpr int kMostDevices = 64, kPedantic = 2, kPlainOperand = 0, kTurnedOperand = 1;
constexpr int64_t kWorkspace = 32 << 20, kWorkspaceAlignment = 256;

template <class T>
using CublasGemm = int (*)(void*, int, int, int, int, int, const T*, const T*, int, const T*, int, const T*, T*, int);

struct Cublas {
  int (*create)(void**) = nullptr;
  int (*set_stream)(void*, cudaStream_t) = nullptr;
  int (*set_workspace)(void*, void*, size_t) = nullptr;
  int (*set_math_mode)(void*, int) = nullptr;
  CublasGemm<float> sgemm = nullptr;
  CublasGemm<double> dgemm = nullptr;
  bool found = false, every = false;                 // every: for rows too
  std::mutex one_call;
  void* handles[kMostDevices] = {};

  Cublas() {
    const char* const wanted = getenv("GENERANT_CUBLAS");
    if (wanted && wanted[0] == '0') return;
    every = wanted && wanted[0] == '1';
    void* library = nullptr;
    for (int flag : {RTLD_NOLOAD, 0})                // CuPy and torch have loaded one
      for (const char* name : {"libcublas.so.13", "libcublas.so.12"})
        if (!library) library = dlopen(name, RTLD_NOW | RTLD_LOCAL | flag);
    found = library && load(library, "cublasCreate_v2", create) && load(library, "cublasSetStream_v2", set_stream) &&
            load(library, "cublasSetWorkspace_v2", set_workspace) && load(library, "cublasSetMathMode", set_math_mode) &&
            load(library, "cublasSgemm_v2", sgemm) && load(library, "cublasDgemm_v2", dgemm);
  }
  template <class F> static bool load(void* library, const char* name, F& f) {
    f = reinterpret_cast<F>(dlsym(library, name));
    return f != nullptr;
  }

  // The handle of the current device, or null where there is none yet and none can be made.
  void* handle(cudaStream_t stream) {
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess || device >= kMostDevices) return nullptr;
    if (handles[device]) return handles[device];
    cudaStreamCaptureStatus status;
    if (cudaStreamIsCapturing(stream, &status) != cudaSuccess || status != cudaStreamCaptureStatusNone) return nullptr;
    void* made = nullptr;
    if (create(&made) != 0 || set_math_mode(made, kPedantic) != 0) return nullptr;
    return handles[device] = made;
  }
};

inline Cublas& the_cublas() {
  static Cublas cublas;
  return cublas;
}

// GENERANT_TENSOR_FLOAT of gemm.h for the current device.
inline bool tensor_float() {
  int device = 0, major = 0, minor = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return false;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return (major == 8 && minor == 0) || major == 9 || major == 10 || major == 11;
}

template <class T> inline bool cublas_suits(CublasUse use, int64_t m, int64_t n, int64_t k) {
  if (m <= 0 || n <= 0 || k <= 0 || m > kMaxBlocks || n > kMaxBlocks || k > kMaxBlocks) return false;
  if (double(m) * double(n) * double(k) < double(kLeastProducts)) return false;
  const Cublas& cublas = the_cublas();
  return cublas.found && (cublas.every || (use == kSumOverRows && (sizeof(T) == 8 || !tensor_float())));
}

// Bytes of scratch it wants for to (m, n) = a (m, k) b (k, n).
template <class T> inline int64_t cublas_bytes(CublasUse use, int64_t m, int64_t n, int64_t k) {
  return cublas_suits<T>(use, m, n, k) ? kWorkspace + kWorkspaceAlignment : 0;
}

inline int call_gemm(const Cublas& c, void* h, int ta, int tb, int m, int n, int k, const float* a, int lda, const float* b,
                     int ldb, float* to) {
  const float one = 1, zero = 0;
  return c.sgemm(h, ta, tb, m, n, k, &one, a, lda, b, ldb, &zero, to, m);
}
inline int call_gemm(const Cublas& c, void* h, int ta, int tb, int m, int n, int k, const double* a, int lda, const double* b,
                     int ldb, double* to) {
  const double one = 1, zero = 0;
  return c.dgemm(h, ta, tb, m, n, k, &one, a, lda, b, ldb, &zero, to, m);
}

// to (m, n) = a (m, k) b (k, n), a (k, m) or b (n, k) in memory where turned; false where it did nothing. cuBLAS's matrices
// are column-major: it makes to' = b' a'.
template <class T>
inline bool cublas_product(const Call& c, CublasUse use, int64_t m, int64_t n, int64_t k, const T* a, bool turned_a, const T* b, bool turned_b,
                           T* to, void* scratch) {
  if (!scratch || !cublas_suits<T>(use, m, n, k)) return false;
  Cublas& cublas = the_cublas();
  const std::lock_guard<std::mutex> lock(cublas.one_call);
  const auto stream = static_cast<cudaStream_t>(c.stream);
  void* const handle = cublas.handle(stream);
  void* const workspace = reinterpret_cast<void*>(padded(int64_t(reinterpret_cast<uintptr_t>(scratch)), kWorkspaceAlignment));
  return handle && cublas.set_stream(handle, stream) == 0 && cublas.set_workspace(handle, workspace, kWorkspace) == 0 &&
         call_gemm(cublas, handle, turned_b ? kTurnedOperand : kPlainOperand, turned_a ? kTurnedOperand : kPlainOperand, int(n), int(m),
                   int(k), b, int(turned_b ? k : n), a, int(turned_a ? m : k), to) == 0;
}

#else

template <class T> inline int64_t cublas_bytes(CublasUse, int64_t, int64_t, int64_t) { return 0; }
template <class T>
inline bool cublas_product(const Call&, CublasUse, int64_t, int64_t, int64_t, const T*, bool, const T*, bool, T*, void*) {
  return false;
}

#endif

}  // namespace
