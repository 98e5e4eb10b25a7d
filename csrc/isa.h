// Which kernels a process uses: those of the widest instruction set that was built and the CPU has, capped by GENERANT_ISA.
#pragma once
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernel.h"

// Weak: null for an instruction set that was not built.
#define GENERANT_ROWS(isa)                                                                                  \
  extern "C" const generant::Row __start_generant_rows_##isa[] __attribute__((visibility("hidden"), weak)); \
  extern "C" const generant::Row __stop_generant_rows_##isa[] __attribute__((visibility("hidden"), weak));
GENERANT_ROWS(base)
#if defined(__x86_64__)
GENERANT_ROWS(avx2)
GENERANT_ROWS(avx512)
GENERANT_ROWS(avx512bf16)
#endif

namespace {

using generant::Row;

struct Isa {
  const char* name;
  const Row *begin, *end;
  bool (*supported)();
  bool partial = false;                // its rows replace those of the next one, which serves for all others
  bool usable() const { return begin && (!partial || this[1].begin) && supported(); }
};

const Isa kIsas[] = {                  // widest first
#if defined(__x86_64__)
    {"avx512bf16", __start_generant_rows_avx512bf16, __stop_generant_rows_avx512bf16,
     [] { return __builtin_cpu_supports("x86-64-v4") && __builtin_cpu_supports("avx512bf16"); }, true},
    {"avx512", __start_generant_rows_avx512, __stop_generant_rows_avx512, [] { return bool(__builtin_cpu_supports("x86-64-v4")); }},
    {"avx2", __start_generant_rows_avx2, __stop_generant_rows_avx2, [] { return bool(__builtin_cpu_supports("x86-64-v3")); }},
#endif
    {"base", __start_generant_rows_base, __stop_generant_rows_base, [] { return true; }},
};

const Isa& choose_isa() {              // the widest one the CPU has, capped by GENERANT_ISA
  const char* cap = getenv("GENERANT_ISA");
  bool reached = cap == nullptr || *cap == '\0';
  for (const Isa& isa : kIsas) {
    reached = reached || std::strcmp(cap, isa.name) == 0;
    if (reached && isa.usable()) return isa;
  }
  throw std::invalid_argument(std::string("GENERANT_ISA is '") + cap + "', wanted one of base, avx2, avx512, avx512bf16");
}

}  // namespace
