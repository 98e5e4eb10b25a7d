// The module `_cuda`: the kernels of csrc/cuda, called with addresses. It knows neither CuPy nor NumPy.
//
//   kernels()                                  rows by name ("matmul.f32")
//   scratch(kernel, ins, outs, attrs)          bytes of scratch a call wants
//   launch(kernel, ins, outs, attrs, stream, scratch)   one call; an array is None or (address, dtype number, shape)
//   Program                                    calls in order on buffers, and `capture`, which makes one CUDA graph of them
//   devices()                                  what the driver says, or why it says nothing
//
// Compiled by a C++ compiler without CUDA (GENERANT_CUDA=HOST) it is the module `_cuda_host`, over simulator.h.
#include <pybind11/pybind11.h>

#include <string>
#include <unordered_map>
#include <vector>

#include "device.h"
#include "plan.h"

namespace py = pybind11;
using generant::Operand;
using generant::Row;

extern "C" const Row __start_generant_rows_cuda[] __attribute__((visibility("hidden")));
extern "C" const Row __stop_generant_rows_cuda[] __attribute__((visibility("hidden")));

#ifdef GENERANT_SIMULATED
#define GENERANT_CUDA_MODULE _cuda_host
#else
#define GENERANT_CUDA_MODULE _cuda
#endif

namespace {

std::vector<Row> rows_of_module;
std::unordered_map<std::string, int> number_of_name;

constexpr int kMaxArrays = generant::Program::kArrays, kMaxAttrs = 48;

// ---- errors ----

#ifdef GENERANT_SIMULATED
void check(const char*) {}
#else
void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();                                // it is told once: the next call is not to find it
  const std::string message = std::string(what) + ": " + cudaGetErrorString(error);
  if (error == cudaErrorMemoryAllocation) {
    PyErr_SetString(PyExc_MemoryError, message.c_str());
    throw py::error_already_set();
  }
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion || error == cudaErrorInvalidDeviceFunction)
    throw std::runtime_error(message + "; this build has no code for this GPU, which is older than compute capability 7.5 "
                                       "or needs a newer driver (generant info tells)");
  throw std::runtime_error(message);
}
void check(const char* what) { check(cudaGetLastError(), what); }
#endif

// ---- calls ----

struct Parsed {
  Array ins[kMaxArrays], outs[kMaxArrays];
  double attrs[kMaxAttrs];
  generant::Call call;
};

int32_t parse_arrays(const py::tuple& given, Array* arrays) {
  if (given.size() > size_t(kMaxArrays)) throw py::value_error("launch: too many arrays");
  for (size_t i = 0; i < given.size(); ++i) {
    Array& a = arrays[i];
    a.data = nullptr, a.ndim = 0, a.dtype = -1;
    if (given[i].is_none()) continue;
    const py::tuple fields(py::reinterpret_borrow<py::tuple>(given[i])), shape(py::reinterpret_borrow<py::tuple>(py::handle(fields[2])));
    if (shape.size() > size_t(generant::kMaxDims)) throw py::value_error("launch: an array has more than 6 dimensions");
    a.data = reinterpret_cast<void*>(fields[0].cast<uintptr_t>());
    a.dtype = fields[1].cast<int32_t>(), a.ndim = int32_t(shape.size());
    bool empty = false;
    for (size_t k = 0; k < shape.size(); ++k) a.shape[k] = shape[k].cast<int64_t>(), empty = empty || a.shape[k] == 0;
    if (!a.data && empty) a.data = &a;               // null means absent; nothing is read of an array without elements
  }
  return int32_t(given.size());
}

const Row& parse(Parsed& p, size_t kernel, const py::tuple& ins, const py::tuple& outs, const py::tuple& attrs) {
  if (attrs.size() > size_t(kMaxAttrs)) throw py::value_error("launch: too many attributes");
  for (size_t i = 0; i < attrs.size(); ++i) p.attrs[i] = attrs[i].cast<double>();
  const int32_t n_in = parse_arrays(ins, p.ins), n_out = parse_arrays(outs, p.outs);
  p.call = {p.ins, p.outs, p.attrs, nullptr, n_in, n_out, 1, nullptr};
  return rows_of_module.at(kernel);
}

int64_t scratch(size_t kernel, const py::tuple& ins, const py::tuple& outs, const py::tuple& attrs) {
  Parsed p;
  const Row& row = parse(p, kernel, ins, outs, attrs);
  return row.scratch ? row.scratch(p.call) : 0;
}

void launch_row(size_t kernel, const py::tuple& ins, const py::tuple& outs, const py::tuple& attrs, uintptr_t stream, uintptr_t scratch) {
  Parsed p;
  const Row& row = parse(p, kernel, ins, outs, attrs);
  p.call.stream = reinterpret_cast<void*>(stream), p.call.scratch = reinterpret_cast<void*>(scratch);
  row.run(p.call);
  check(row.name);
}

// ---- recorded steps ----

std::vector<Operand> operands(const py::list& given) {
  std::vector<Operand> made;
  if (given.size() > size_t(kMaxArrays)) throw py::value_error("Program: too many arrays");
  for (py::handle o : given) {
    Operand& operand = made.emplace_back();
    operand.array.dtype = -1;
    if (o.is_none()) continue;
    const auto fields = o.cast<py::tuple>(), shape = fields[3].cast<py::tuple>();
    operand.buffer = fields[0].cast<int32_t>(), operand.offset = fields[1].cast<int64_t>();
    operand.array.dtype = fields[2].cast<int32_t>(), operand.array.ndim = int32_t(shape.size());
    for (size_t k = 0; k < shape.size(); ++k) operand.array.shape[k] = shape[k].cast<int64_t>();
  }
  return made;
}

std::vector<char*> addresses(const py::list& buffers) {
  std::vector<char*> found;
  for (py::handle b : buffers) found.push_back(reinterpret_cast<char*>(b.cast<uintptr_t>()));
  return found;
}

void run_program(const generant::Program& program, const py::list& buffers, uintptr_t scratch, uintptr_t stream) {
  program.run(addresses(buffers).data(), 1, reinterpret_cast<void*>(scratch), reinterpret_cast<void*>(stream));
  check("a recorded step");
}

// A program on fixed addresses, replayed with one call.
class Graph {
 public:
#ifdef GENERANT_SIMULATED
  Graph(const generant::Program& program, std::vector<char*> buffers, void* scratch)
      : program_(program), buffers_(std::move(buffers)), scratch_(scratch) {}
  void replay(void* stream) const { program_.run(buffers_.data(), 1, scratch_, stream); }

 private:
  generant::Program program_;
  std::vector<char*> buffers_;
  void* scratch_;
#else
  Graph(const generant::Program& program, std::vector<char*> buffers, void* scratch) {
    cudaStream_t stream;
    cudaGraph_t graph = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "recording a CUDA graph");
    // Relaxed: a kernel that has not run yet is loaded when it is captured, which the stricter modes may refuse.
    cudaError_t error = cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed);
    if (error == cudaSuccess) {
      program.run(buffers.data(), 1, scratch, stream);
      error = cudaGetLastError();
      const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
      if (error == cudaSuccess) error = ended;
    }
    if (error == cudaSuccess) error = cudaGraphInstantiate(&executable_, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    check(error, "recording a CUDA graph");
  }
  Graph(const Graph&) = delete;
  ~Graph() {
    if (executable_) cudaGraphExecDestroy(executable_);
  }
  void replay(void* stream) const { check(cudaGraphLaunch(executable_, static_cast<cudaStream_t>(stream)), "replaying a CUDA graph"); }

 private:
  cudaGraphExec_t executable_ = nullptr;
#endif
};

// ---- the machine ----

py::dict devices() {
  py::dict answer;
  py::list found;
  answer["devices"] = found;
#ifdef GENERANT_SIMULATED
  answer["driver"] = 0, answer["reason"] = "";
  py::dict d;
  d["name"] = "simulator", d["capability"] = py::make_tuple(9, 0), d["memory"] = int64_t(0), d["multiprocessors"] = 1;
  found.append(d);
#else
  int driver = 0, count = 0;
  cudaDriverGetVersion(&driver);
  const cudaError_t error = cudaGetDeviceCount(&count);
  answer["driver"] = driver;
  answer["reason"] = driver == 0 ? "no NVIDIA driver was found" : error == cudaSuccess ? "" : cudaGetErrorString(error);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return answer;
  }
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, i) != cudaSuccess) continue;
    py::dict d;
    d["name"] = p.name, d["capability"] = py::make_tuple(p.major, p.minor), d["memory"] = int64_t(p.totalGlobalMem);
    d["multiprocessors"] = p.multiProcessorCount;
    found.append(d);
  }
#endif
  return answer;
}

}  // namespace

PYBIND11_MODULE(GENERANT_CUDA_MODULE, m) {
  m.doc() = "CUDA kernels of generant and the way to call them.";
  for (const Row* row = __start_generant_rows_cuda; row != __stop_generant_rows_cuda; ++row) {
    number_of_name.emplace(row->name, int(rows_of_module.size()));
    rows_of_module.push_back(*row);
  }
#ifdef GENERANT_SIMULATED
  m.attr("simulated") = true;
  m.def("set_reverse", &generant::simulator::set_reverse, "Run threads and blocks from the last to the first.");
#else
  m.attr("simulated") = false;
#endif
  m.def("kernels", [] {
    py::dict names;
    for (const auto& [name, number] : number_of_name) names[py::str(name)] = number;
    return names;
  }, "Kernel numbers by name.");
  m.def("scratch", &scratch);
  m.def("launch", &launch_row);
  m.def("devices", &devices, "GPUs, driver version, and why there are none.");
  py::class_<Graph>(m, "Graph", "A recorded step on fixed addresses.")
      .def("replay", [](const Graph& graph, uintptr_t stream) { graph.replay(reinterpret_cast<void*>(stream)); });
  py::class_<generant::Program>(m, "Program", py::module_local(), "Kernels to be run in order on given buffers.")
      .def(py::init<>())
      .def("add", [](generant::Program& program, size_t kernel, const py::list& ins, const py::list& outs, const py::list& attrs) {
        std::vector<double> values;
        for (py::handle v : attrs) values.push_back(v.cast<double>());
        program.add({rows_of_module.at(kernel), operands(ins), operands(outs), std::move(values)});
      })
      .def("scratch", [](const generant::Program& program) { return program.scratch(1); })
      .def("run", &run_program)
      .def("capture", [](const generant::Program& program, const py::list& buffers, uintptr_t scratch) {
        return std::make_unique<Graph>(program, addresses(buffers), reinterpret_cast<void*>(scratch));
      })
      .def("__len__", &generant::Program::size);
}
