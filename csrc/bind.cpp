// The only file that knows Python: the module `_native`.
//
//   kernels() / kernel(name)      the rows of the chosen instruction set, by name ("matmul.f32")
//   launch(kernel, ins, outs, attrs)   one call on arrays that are ready
//   Runner(prepare, slow, ...)    what an op does on plain arrays: look up shapes and attributes in a memo, allocate,
//                                 launch. `prepare` (Python) checks a combination the first time it is seen,
//                                 `slow` (Python) takes every call that is not plain dense NumPy, and `check` looks
//                                 at values every time, for the few ops whose kernels cannot take all of them
//   Program                       kernels to be run in order on given buffers, without Python between them
//   empty(shape, dtype)           an array from the caching pool
//
// Typed pybind11 signatures cost 500 ns a call; launch and Runner use the vectorcall protocol instead.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <structmember.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "isa.h"
#include "kernel.h"
#include "parallel.h"
#include "plan.h"
#include "pool.h"
#include "threads.h"

namespace py = pybind11;
using generant::Row;

namespace {

std::vector<Row> active_rows;
std::unordered_map<std::string, int> row_of_name;
std::string isa_name;
generant::BlockPool block_pool;

void noop(const generant::Call&) {}

// ---------------------------------------------------------------- arrays

constexpr int kTypeNums[] = {11, 12, 7, 8, 2, 6};  // NumPy's type numbers of float32 float64 int64 uint64 uint8 uint32
constexpr size_t kItemSize[] = {4, 8, 8, 8, 1, 4};
constexpr int kAligned = 0x100, kContiguous = 0x1, kWriteable = 0x400;

int dtype_of_type_num(int num) {
  switch (num) {
    case 11: return generant::kFloat32;
    case 12: return generant::kFloat64;
    case 7: case 9: return generant::kInt64;       // long and long long
    case 8: case 10: return generant::kUint64;
    case 2: return generant::kUint8;
    case 6: return generant::kUint32;
    default: return -1;
  }
}

PyTypeObject* ndarray_type;
PyObject* descriptors[6];

// Read a plain dense array without touching reference counts; false if it is anything else.
bool read_array(PyObject* o, Array& a) {
  if (o == Py_None) {
    a.data = nullptr, a.ndim = 0, a.dtype = -1;
    return true;
  }
  if (Py_TYPE(o) != ndarray_type) return false;
  const auto* p = py::detail::array_proxy(o);
  constexpr int wanted = kAligned | kContiguous;
  if ((p->flags & wanted) != wanted || p->nd > generant::kMaxDims) return false;
  const auto* descr = py::detail::array_descriptor1_proxy(p->descr);
  const int dtype = dtype_of_type_num(descr->type_num);
  if (dtype < 0 || descr->byteorder == '>') return false;
  a.data = p->data, a.ndim = p->nd, a.dtype = dtype;
  for (int i = 0; i < p->nd; ++i) a.shape[i] = p->dimensions[i];
  return true;
}

void release_block(PyObject* capsule) {
  block_pool.give(PyCapsule_GetPointer(capsule, nullptr), reinterpret_cast<size_t>(PyCapsule_GetContext(capsule)));
}

// A new array; small ones from NumPy's own cache, larger ones from the pool. Null with a Python error set.
PyObject* new_array(int dtype, int ndim, const int64_t* shape) {
  size_t bytes = kItemSize[dtype];
  for (int i = 0; i < ndim; ++i) bytes *= size_t(shape[i]);
  auto& api = py::detail::npy_api::get();
  static_assert(sizeof(Py_intptr_t) == sizeof(int64_t), "64-bit platforms only");
  Py_INCREF(descriptors[dtype]);       // NewFromDescr takes it over
  void* block = nullptr;
  if (bytes > 1024 && !(block = block_pool.take(bytes))) {
    Py_DECREF(descriptors[dtype]);
    return PyErr_NoMemory();
  }
  PyObject* array = api.PyArray_NewFromDescr_(ndarray_type, descriptors[dtype], ndim, reinterpret_cast<const Py_intptr_t*>(shape), nullptr,
                                              block, block ? kAligned | kContiguous | kWriteable : 0, nullptr);
  if (!array || !block) return array;
  PyObject* owner = PyCapsule_New(block, nullptr, release_block);
  if (!owner) {
    Py_DECREF(array);
    return nullptr;
  }
  PyCapsule_SetContext(owner, reinterpret_cast<void*>(bytes));
  api.PyArray_SetBaseObject_(array, owner);
  return array;
}

// ---------------------------------------------------------------- running a kernel

size_t total_bytes(const Array* arrays, int n) {
  size_t bytes = 0;
  for (int i = 0; i < n; ++i)
    if (arrays[i].data) bytes += size_t(size(arrays[i])) * kItemSize[arrays[i].dtype];
  return bytes;
}

constexpr size_t kReleaseGil = 1 << 14;  // bytes touched above which other Python threads may run meanwhile

// False with a Python error set.
bool run_row(const Row& row, const Array* ins, int n_in, const Array* outs, int n_out, const double* attrs) {
  generant::Call call{ins, outs, attrs, nullptr, n_in, n_out, generant_get_num_threads(), nullptr};
  const int64_t scratch = row.scratch ? row.scratch(call) : 0;
  if (scratch > 0 && !(call.scratch = block_pool.take(size_t(scratch)))) {
    PyErr_NoMemory();
    return false;
  }
  if (total_bytes(ins, n_in) + total_bytes(outs, n_out) >= kReleaseGil) {
    PyThreadState* state = PyEval_SaveThread();
    row.run(call);
    PyEval_RestoreThread(state);
  } else {
    row.run(call);
  }
  if (call.scratch) block_pool.give(call.scratch, size_t(scratch));
  return true;
}

constexpr int kMaxArrays = 16, kMaxAttrs = 32;

// launch(kernel: int, ins: tuple, outs: tuple, attrs: tuple of floats)
PyObject* launch(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  if (nargs != 4 || !PyTuple_Check(args[1]) || !PyTuple_Check(args[2]) || !PyTuple_Check(args[3])) {
    PyErr_SetString(PyExc_TypeError, "launch: wanted (kernel, tuple of inputs, tuple of outputs, tuple of attributes)");
    return nullptr;
  }
  const long id = PyLong_AsLong(args[0]);
  if (id == -1 && PyErr_Occurred()) return nullptr;
  if (id < 0 || size_t(id) >= active_rows.size()) return PyErr_Format(PyExc_ValueError, "launch: no kernel has number %ld", id);
  Array arrays[2][kMaxArrays];
  int count[2];
  for (int side = 0; side < 2; ++side) {
    count[side] = int(PyTuple_GET_SIZE(args[1 + side]));
    if (count[side] > kMaxArrays) return PyErr_Format(PyExc_ValueError, "launch: at most %d arrays", kMaxArrays);
    for (int i = 0; i < count[side]; ++i)
      if (!read_array(PyTuple_GET_ITEM(args[1 + side], i), arrays[side][i]))
        return PyErr_Format(PyExc_TypeError, "launch: %s %d is not a dense NumPy array of a kernel dtype", side ? "output" : "input", i);
  }
  double attrs[kMaxAttrs];
  const Py_ssize_t n = PyTuple_GET_SIZE(args[3]);
  if (n > kMaxAttrs) return PyErr_Format(PyExc_ValueError, "launch: at most %d attributes", kMaxAttrs);
  for (Py_ssize_t i = 0; i < n; ++i) {
    attrs[i] = PyFloat_AsDouble(PyTuple_GET_ITEM(args[3], i));
    if (attrs[i] == -1.0 && PyErr_Occurred()) return nullptr;
  }
  if (!run_row(active_rows[size_t(id)], arrays[0], count[0], arrays[1], count[1], attrs)) return nullptr;
  Py_RETURN_NONE;
}

// ---------------------------------------------------------------- Runner

struct Wanted {                        // one output of a prepared call
  int dtype, ndim;
  bool wanted;
  int64_t shape[generant::kMaxDims];
};

struct Prepared {                      // everything a repeated call needs
  std::vector<Array> inputs;           // data unused: dtype and shape are the key
  std::vector<std::pair<PyObject*, PyObject*>> keywords;  // owned
  Row row;
  std::vector<Wanted> outs;
  std::vector<double> attrs;
  Prepared() = default;
  Prepared(const Prepared&) = delete;
  ~Prepared() {
    for (auto& [k, v] : keywords) Py_DECREF(k), Py_DECREF(v);
  }
};

struct Runner {
  PyObject_HEAD
  vectorcallfunc call;
  PyObject *prepare, *slow, *check;
  int all;                             // return every output as a tuple, not just the public ones
  int n_public, n_arrays;
  unsigned effects;                    // bit i: input i is changed in place
  std::vector<std::shared_ptr<Prepared>>* memo;
};

constexpr size_t kMemo = 64;           // combinations of shapes and attributes remembered per op

// Only immutable plain values are remembered; a list, say, could change under the memo.
bool is_attribute(PyObject* o) {
  return o == Py_None || PyLong_Check(o) || PyFloat_CheckExact(o) || PyUnicode_CheckExact(o) || PyTuple_CheckExact(o);
}

bool same_inputs(const Prepared& p, const Array* arrays, size_t n) {
  if (p.inputs.size() != n) return false;
  for (size_t i = 0; i < n; ++i) {
    const Array &a = arrays[i], &b = p.inputs[i];
    if (a.dtype != b.dtype || a.ndim != b.ndim || (a.data == nullptr) != (b.data == nullptr)) return false;
    for (int k = 0; k < a.ndim; ++k)
      if (a.shape[k] != b.shape[k]) return false;
  }
  return true;
}

// 1 equal, 0 not, -1 error. Values of different types never match: True is not 1.
int same_keywords(const Prepared& p, PyObject* const* values, PyObject* names, Py_ssize_t n) {
  if (Py_ssize_t(p.keywords.size()) != n) return 0;
  for (Py_ssize_t i = 0; i < n; ++i) {
    const auto& [name, value] = p.keywords[size_t(i)];
    if (PyTuple_GET_ITEM(names, i) != name) return 0;  // interned by the compiler; a miss only costs a prepare
    if (values[i] == value) continue;
    if (Py_TYPE(values[i]) != Py_TYPE(value)) return 0;
    const int equal = PyObject_RichCompareBool(values[i], value, Py_EQ);
    if (equal <= 0) return equal;
  }
  return 1;
}

// prepare(args, kwargs) -> (kernel, ((dtype, shape) | None, ...), attrs)
std::shared_ptr<Prepared> prepare_call(Runner* self, const Array* arrays, int n_in, PyObject* const* args, Py_ssize_t n, PyObject* names,
                                       Py_ssize_t n_names) {
  py::tuple positional{size_t(n)};
  for (Py_ssize_t i = 0; i < n; ++i) positional[size_t(i)] = py::handle(args[i]);
  py::dict keywords;
  for (Py_ssize_t i = 0; i < n_names; ++i) keywords[py::handle(PyTuple_GET_ITEM(names, i))] = py::handle(args[n + i]);
  py::object answer = py::reinterpret_steal<py::object>(PyObject_CallFunctionObjArgs(self->prepare, positional.ptr(), keywords.ptr(), nullptr));
  if (!answer) throw py::error_already_set();
  auto p = std::make_shared<Prepared>();
  const auto fields = answer.cast<py::tuple>();
  p->row = active_rows.at(fields[0].cast<size_t>());
  for (py::handle o : fields[1].cast<py::tuple>()) {
    Wanted w{};
    if (!o.is_none()) {
      const auto pair = o.cast<py::tuple>();
      const auto shape = pair[1].cast<py::tuple>();
      w.wanted = true, w.dtype = pair[0].cast<int>(), w.ndim = int(shape.size());
      if (w.ndim > generant::kMaxDims) throw py::value_error("an output has more than 6 dimensions");
      for (int k = 0; k < w.ndim; ++k) w.shape[k] = shape[size_t(k)].cast<int64_t>();
    }
    p->outs.push_back(w);
  }
  for (py::handle v : fields[2].cast<py::tuple>()) p->attrs.push_back(v.cast<double>());
  if (p->outs.size() > kMaxArrays) throw py::value_error("too many outputs");
  p->inputs.assign(arrays, arrays + n_in);
  for (Py_ssize_t i = 0; i < n_names; ++i) {
    PyObject *name = PyTuple_GET_ITEM(names, i), *value = args[n + i];
    p->keywords.emplace_back(Py_NewRef(name), Py_NewRef(value));
  }
  return p;
}

PyObject* run_prepared(Runner* self, const Prepared& p, const Array* ins, int n_in) {
  Array outs[kMaxArrays];
  PyObject* made[kMaxArrays];
  const int n_out = int(p.outs.size());
  for (int i = 0; i < n_out; ++i) {
    const Wanted& w = p.outs[size_t(i)];
    outs[i].data = nullptr, outs[i].ndim = 0, outs[i].dtype = w.dtype, made[i] = nullptr;
    if (!w.wanted) continue;
    if (!(made[i] = new_array(w.dtype, w.ndim, w.shape)) || !read_array(made[i], outs[i])) {
      for (int k = 0; k <= i; ++k) Py_XDECREF(made[k]);
      return nullptr;
    }
  }
  if (!run_row(p.row, ins, n_in, outs, n_out, p.attrs.data())) {
    for (int i = 0; i < n_out; ++i) Py_XDECREF(made[i]);
    return nullptr;
  }
  const int shown = self->all ? n_out : self->n_public;
  for (int i = shown; i < n_out; ++i) Py_XDECREF(made[i]);
  if (!self->all && shown == 1) return made[0];
  if (!self->all && shown == 0) Py_RETURN_NONE;
  PyObject* tuple = PyTuple_New(shown);
  for (int i = 0; i < shown; ++i) PyTuple_SET_ITEM(tuple, i, made[i] ? made[i] : Py_NewRef(Py_None));
  return tuple;
}

PyObject* runner_call(PyObject* callable, PyObject* const* args, size_t nargsf, PyObject* names) {
  auto* self = reinterpret_cast<Runner*>(callable);
  const Py_ssize_t n = PyVectorcall_NARGS(nargsf), n_names = names ? PyTuple_GET_SIZE(names) : 0;
  Array arrays[kMaxArrays];
  bool plain = n <= self->n_arrays;
  for (Py_ssize_t i = 0; plain && i < n; ++i) {
    plain = read_array(args[i], arrays[i]);
    if (plain && (self->effects >> i & 1) && args[i] != Py_None) plain = py::detail::array_proxy(args[i])->flags & kWriteable;
  }
  for (Py_ssize_t i = 0; plain && i < n_names; ++i) plain = is_attribute(args[n + i]);
  if (!plain) return PyObject_Vectorcall(self->slow, args, nargsf & ~PY_VECTORCALL_ARGUMENTS_OFFSET, names);
  const int n_in = self->n_arrays;     // optional ones that were left out are absent
  for (int i = int(n); i < n_in; ++i) read_array(Py_None, arrays[i]);
  try {
    auto& memo = *self->memo;
    std::shared_ptr<Prepared> found;
    for (size_t i = 0; i < memo.size(); ++i) {
      if (!same_inputs(*memo[i], arrays, size_t(n_in))) continue;
      const std::shared_ptr<Prepared> entry = memo[i];     // a comparison below may run Python code
      const int equal = same_keywords(*entry, args + n, names, n_names);
      if (equal < 0) return nullptr;
      if (equal) {
        found = entry;
        if (i > 0 && i < memo.size()) std::swap(memo[i], memo[i - 1]);  // used ones move forward
        break;
      }
    }
    if (!found) {
      found = prepare_call(self, arrays, n_in, args, n, names, n_names);
      if (memo.size() >= kMemo) memo.pop_back();
      memo.push_back(found);
    }
    if (self->check != Py_None) {
      PyObject* passed = PyObject_Vectorcall(self->check, args, nargsf & ~PY_VECTORCALL_ARGUMENTS_OFFSET, names);
      if (!passed) return nullptr;
      Py_DECREF(passed);
    }
    return run_prepared(self, *found, arrays, n_in);
  } catch (py::error_already_set& e) {
    e.restore();
  } catch (const std::exception& e) {
    PyErr_SetString(PyExc_RuntimeError, e.what());
  }
  return nullptr;
}

void runner_dealloc(PyObject* o) {
  auto* self = reinterpret_cast<Runner*>(o);
  PyTypeObject* type = Py_TYPE(o);
  Py_CLEAR(self->prepare);
  Py_CLEAR(self->slow);
  Py_CLEAR(self->check);
  delete self->memo;
  type->tp_free(o);
  Py_DECREF(type);
}

// Runner(prepare, slow, check, all, n_public, n_arrays, effects); check may be None
PyObject* runner_new(PyTypeObject* type, PyObject* args, PyObject*) {
  PyObject *prepare, *slow, *check;
  int all, n_public, n_arrays;
  unsigned effects;
  if (!PyArg_ParseTuple(args, "OOOpiiI", &prepare, &slow, &check, &all, &n_public, &n_arrays, &effects)) return nullptr;
  if (n_arrays > kMaxArrays) return PyErr_Format(PyExc_ValueError, "Runner: at most %d arrays", kMaxArrays);
  auto* self = reinterpret_cast<Runner*>(type->tp_alloc(type, 0));
  if (!self) return nullptr;
  self->call = runner_call;
  self->prepare = Py_NewRef(prepare), self->slow = Py_NewRef(slow), self->check = Py_NewRef(check);
  self->all = all, self->n_public = n_public, self->n_arrays = n_arrays, self->effects = effects;
  self->memo = new std::vector<std::shared_ptr<Prepared>>;
  return reinterpret_cast<PyObject*>(self);
}

PyMemberDef runner_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Runner, call), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr},
};
PyType_Slot runner_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(runner_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(runner_dealloc)},
    {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
    {Py_tp_members, runner_members},
    {Py_tp_doc, const_cast<char*>("What an op does on plain arrays: memo of checked calls, allocation, launch.")},
    {0, nullptr},
};
PyType_Spec runner_spec = {"generant._native.Runner", sizeof(Runner), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL, runner_slots};

// ---------------------------------------------------------------- Program

// operands: (buffer, offset in bytes, dtype, shape) or None, each
std::vector<generant::Operand> operands(const py::list& given) {
  std::vector<generant::Operand> made;
  if (given.size() > size_t(generant::Program::kArrays)) throw py::value_error("Program: too many arrays");
  for (py::handle o : given) {
    generant::Operand& operand = made.emplace_back();
    operand.array.dtype = -1;
    if (o.is_none()) continue;
    const auto fields = o.cast<py::tuple>(), shape = fields[3].cast<py::tuple>();
    operand.buffer = fields[0].cast<int32_t>(), operand.offset = fields[1].cast<int64_t>();
    operand.array.dtype = fields[2].cast<int32_t>(), operand.array.ndim = int32_t(shape.size());
    for (size_t k = 0; k < shape.size(); ++k) operand.array.shape[k] = shape[k].cast<int64_t>();
  }
  return made;
}

void run_program(const generant::Program& program, const py::list& arrays) {
  std::vector<char*> buffers;
  for (py::handle a : arrays) buffers.push_back(static_cast<char*>(py::detail::array_proxy(a.ptr())->data));
  const int threads = generant_get_num_threads();
  const auto bytes = size_t(program.scratch(threads));
  void* scratch = bytes ? block_pool.take(bytes) : nullptr;
  if (bytes && !scratch) throw std::bad_alloc();
  {
    py::gil_scoped_release released;
    generant_keep_awake(true);         // a step is many short kernels: waking a worker costs more than most of them
    program.run(buffers.data(), threads, scratch);
    generant_keep_awake(false);
  }
  if (scratch) block_pool.give(scratch, bytes);
}

PyMethodDef launch_method = {"launch", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(launch)), METH_FASTCALL,
                             "launch(kernel, inputs, outputs, attributes): run one kernel on dense arrays that fit it."};

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Compiled kernels of generant and the way to call them.";
  auto& api = py::detail::npy_api::get();
  ndarray_type = api.PyArray_Type_;
  for (int i = 0; i < 6; ++i) descriptors[i] = api.PyArray_DescrFromType_(kTypeNums[i]);

  const Isa& isa = choose_isa();
  isa_name = isa.name;
  const Isa& whole = isa.partial ? (&isa)[1] : isa;
  const auto add = [](const Row& row) {                        // a later row of the same name takes its place
    const auto [at, fresh] = row_of_name.emplace(row.name, int(active_rows.size()));
    if (fresh) active_rows.push_back(row);
    else active_rows[size_t(at->second)] = row;
  };
  std::for_each(whole.begin, whole.end, add);
  if (isa.partial) std::for_each(isa.begin, isa.end, add);
  add({"noop", noop, nullptr});                                // for measuring what a launch costs

  m.attr("isa") = isa_name;
  py::list supported;
  for (const Isa& i : kIsas)
    if (i.usable()) supported.append(i.name);
  m.attr("supported_isas") = py::tuple(supported);
  m.def("kernels", [] {
    py::dict names;
    for (const auto& [name, id] : row_of_name) names[py::str(name)] = id;
    return names;
  }, "Kernel numbers by name, for the instruction set in use.");
  m.def("empty", [](const py::tuple& shape, int dtype) {
    int64_t dims[generant::kMaxDims];
    if (shape.size() > generant::kMaxDims || dtype < 0 || dtype > 5) throw py::value_error("empty: at most 6 dimensions, and a dtype number");
    for (size_t i = 0; i < shape.size(); ++i)
      if ((dims[i] = shape[i].cast<int64_t>()) < 0) throw py::value_error("empty: negative dimension");
    PyObject* a = new_array(dtype, int(shape.size()), dims);
    if (!a) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(a);
  }, "An uninitialised array from the caching pool.");
  py::class_<generant::Program>(m, "Program", "Kernels to be run in order on given buffers.")
      .def(py::init<>())
      .def("add", [](generant::Program& program, size_t kernel, const py::list& ins, const py::list& outs, const py::list& attrs) {
        std::vector<double> values;
        for (py::handle v : attrs) values.push_back(v.cast<double>());
        program.add({active_rows.at(kernel), operands(ins), operands(outs), std::move(values)});
      })
      .def("run", &run_program)
      .def("__len__", &generant::Program::size);
  m.def("get_num_threads", &generant_get_num_threads);
  m.def("set_num_threads", &generant_set_num_threads);
  m.def("limit_threads", &generant_limit_threads);
  m.def("trim", [] { block_pool.trim(); }, "Give cached memory back to the system.");
  m.def("cached_bytes", [] { return block_pool.cached(); }, "Bytes the caching pool holds for reuse.");

  PyObject* runner = PyType_FromSpec(&runner_spec);
  PyObject* function = PyCFunction_New(&launch_method, nullptr);
  if (!runner || !function) throw py::error_already_set();
  m.add_object("Runner", py::reinterpret_steal<py::object>(runner));
  m.add_object("launch", py::reinterpret_steal<py::object>(function));
}
