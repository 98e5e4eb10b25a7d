// A recorded step: kernels in order, over memory that was planned before.
//
// An operand is a place in a numbered buffer, so that one program runs on any arena and on whatever inputs a call
// brings. Scratch is one block, as large as the hungriest kernel wants it. run() knows no Python and may be called from
// several threads at once, on different arenas.
#pragma once
#include <algorithm>
#include <vector>

#include "kernel.h"

namespace generant {

struct Operand {
  int32_t buffer = -1;               // -1: absent
  int64_t offset = 0;                // bytes
  Array array{};                     // data unused
};

struct Step {
  Row row;
  std::vector<Operand> in, out;
  std::vector<double> attrs;
};

class Program {
 public:
  static constexpr int kArrays = 16;

  void add(Step step) { steps_.push_back(std::move(step)); }
  size_t size() const { return steps_.size(); }

  int64_t scratch(int threads) const {
    int64_t most = 0;
    for (const Step& s : steps_)
      if (s.row.scratch) with_call(s, nullptr, threads, nullptr, nullptr, [&](const Call& c) { most = std::max(most, s.row.scratch(c)); });
    return most;
  }

  void run(char* const* buffers, int threads, void* scratch, void* stream = nullptr) const {
    for (const Step& s : steps_) with_call(s, buffers, threads, scratch, stream, [&](const Call& c) { s.row.run(c); });
  }

 private:
  template <class F>
  static void with_call(const Step& s, char* const* buffers, int threads, void* scratch, void* stream, F&& body) {
    Array arrays[2][kArrays];
    for (int side = 0; side < 2; ++side) {
      const std::vector<Operand>& operands = side ? s.out : s.in;
      for (size_t i = 0; i < operands.size(); ++i) {
        Array& a = arrays[side][i] = operands[i].array;
        // without buffers any address will do: kernels only ask which arrays are there
        a.data = operands[i].buffer < 0 ? nullptr : buffers ? buffers[operands[i].buffer] + operands[i].offset : static_cast<void*>(&a);
      }
    }
    body(Call{arrays[0], arrays[1], s.attrs.data(), scratch, int32_t(s.in.size()), int32_t(s.out.size()), threads, stream});
  }

  std::vector<Step> steps_;
};

}  // namespace generant
