// masked_lstm._core: the core over NumPy arrays. python/masked_lstm/core.py copies the arrays that
// say which steps are valid; the others are checked here, where that takes less of a call of
// microseconds.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cpu/cpu_lstm.h"
#include "cpu/float_mode.h"
#include "host/arguments.h"
#include "host/block_pool.h"
#include "host/environment.h"
#include "host/kernel_calls.h"
#include "host/thread_pool.h"
#include "lstm.h"

namespace py = pybind11;

namespace masked_lstm {
namespace {

using Array = py::array;
using MaybeArray = std::optional<py::array>;

void ThrowIfError(const Status& status) {
  if (status.ok()) return;
  // It may end within a character of the caller's, or name bytes of the environment.
  const auto text = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(status.message, std::strlen(status.message), "replace"));
  if (text) PyErr_SetObject(PyExc_ValueError, text.ptr());
  throw py::error_already_set();
}

ArgumentShape ShapeOf(const Array& array) {
  ArgumentShape shape;
  shape.rank = static_cast<int>(array.ndim());
  for (int i = 0; i < shape.rank && i < 3; ++i) shape.dims[i] = array.shape(i);
  return shape;
}

ArgumentShape ShapeOf(const MaybeArray& array) { return array ? ShapeOf(*array) : ArgumentShape(); }

Array NewArray(const py::dtype& dtype, std::vector<py::ssize_t> shape) {
  size_t bytes = dtype.itemsize();
  for (py::ssize_t size : shape) bytes *= size;
  if (bytes < kSmallestPooled) return Array(dtype, std::move(shape));
  auto block = std::make_unique<ScopedBlock>(bytes);
  py::capsule owner(block.get(), [](void* pointer) { delete static_cast<ScopedBlock*>(pointer); });
  return Array(dtype, std::move(shape), block.release()->memory(), owner);
}

// False where the core does not know the dtype. NumPy itself has no bfloat16, a package adds it.
bool ParseDType(const py::dtype& dtype, DType* parsed) {
  if (dtype.is(py::dtype::of<float>())) {
    *parsed = DType::kFloat32;
    return true;
  }
  if (!dtype.attr("isnative").cast<bool>()) return false;
  const py::ssize_t bytes = dtype.itemsize();
  if (dtype.kind() == 'f') {
    *parsed = bytes == 8 ? DType::kFloat64 : bytes == 4 ? DType::kFloat32 : DType::kFloat16;
    return bytes == 8 || bytes == 4 || bytes == 2;
  }
  *parsed = DType::kBFloat16;
  return bytes == 2 && dtype.attr("name").cast<std::string>() == "bfloat16";
}

py::dtype ComputeDType(DType dtype) {
  return ComputeBytes(dtype) == 8 ? py::dtype::of<double>() : py::dtype::of<float>();
}

// Text, or what str() makes of something else: for an error's sentence. What C strings and UTF-8
// cannot hold comes escaped.
std::string TextOf(const py::handle& object) {
  const py::object text = py::isinstance<py::str>(object)
                              ? py::reinterpret_borrow<py::object>(object)
                              : py::str(object);
  const auto bytes = py::reinterpret_steal<py::bytes>(
      PyUnicode_AsEncodedString(text.ptr(), "utf-8", "backslashreplace"));
  if (!bytes) throw py::error_already_set();
  std::string result;
  for (const char character : std::string(bytes)) {
    if (character == '\0') {
      result += "\\x00";
    } else {
      result += character;
    }
  }
  return result;
}

bool TruthOf(const char* name, const py::handle& object) {
  const int truth = PyObject_IsTrue(object.ptr());
  if (truth >= 0) return truth != 0;
  const py::error_already_set error;
  if (!error.matches(PyExc_TypeError) && !error.matches(PyExc_ValueError)) throw error;
  throw py::type_error(std::string(name) + ": expected True or False, got " +
                       Py_TYPE(object.ptr())->tp_name);
}

// As numpy.asanyarray.
Array ArrayOf(const char* name, const py::handle& value) {
  if (value.is_none()) throw py::type_error(std::string(name) + ": expected an array, got None");
  try {
    return Array(py::reinterpret_borrow<py::object>(value));
  } catch (const py::error_already_set& error) {  // a ragged list
    if (!error.matches(PyExc_ValueError)) throw;
    throw py::value_error(std::string(name) +
                          ": expected an array, got an error: " + TextOf(error.value()));
  }
}

MaybeArray MaybeArrayOf(const char* name, const py::handle& value) {
  if (value.is_none()) return std::nullopt;
  return ArrayOf(name, value);
}

DType DTypeOf(const char* name, const Array& array) {
  DType dtype;
  if (ParseDType(array.dtype(), &dtype)) return dtype;
  throw py::type_error(std::string(name) +
                       ": expected dtype float32, float64, float16 or bfloat16, got " +
                       TextOf(array.dtype()));
}

// `as`: where the dtype comes from, in words.
void CheckDType(const char* name, const Array& array, const py::dtype& dtype,
                const char* as = "as inputs") {
  if (array.dtype().is(dtype) || array.dtype().equal(dtype)) return;
  throw py::type_error(std::string(name) + ": expected dtype " + TextOf(dtype) + ", " + as +
                       ", got " + TextOf(array.dtype()));
}

void CheckDType(const char* name, const MaybeArray& array, const py::dtype& dtype,
                const char* as = "as inputs") {
  if (array) CheckDType(name, *array, dtype, as);
}

// C-contiguous and aligned; a copy where the caller's array is not. No Python of the caller's runs:
// "E" makes an array of a subclass a plain one first.
const void* DataOf(Array* array) {
  constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if (!(array->flags() & Array::c_style) || !(array->flags() & kAligned)) {
    *array = py::module_::import("numpy").attr("require")(*array, py::none(), "CAE");
  }
  return array->data();
}

const void* DataOf(MaybeArray* array) { return *array ? DataOf(&**array) : nullptr; }

// The options every call has, in core.py's order.
struct Options {
  bool go_backwards, zero_output_for_mask, return_sequences;
  std::string activation, recurrent_activation;
  int threads;
  std::optional<std::string> isa;

  explicit Options(const py::tuple& o)
      : go_backwards(TruthOf("go_backwards", o[0])),
        zero_output_for_mask(TruthOf("zero_output_for_mask", o[1])),
        return_sequences(TruthOf("return_sequences", o[2])),
        activation(TextOf(o[3])),
        recurrent_activation(TextOf(o[4])),
        threads(o[5].cast<int>()),
        isa(o[6].is_none() ? std::nullopt : std::make_optional(TextOf(o[6]))) {}
};

// The arrays every call has, likewise. The caller's Python may run while they and the options are
// made, and could change an array that was looked at before: all are made first, then checked.
struct Inputs {
  Array x, kernel, recurrent_kernel;
  MaybeArray bias, h0, c0, mask, sequence_lengths, input_factors, recurrent_factors, row_splits;

  explicit Inputs(const py::tuple& a)
      : x(ArrayOf("inputs", a[0])),
        kernel(ArrayOf("kernel", a[1])),
        recurrent_kernel(ArrayOf("recurrent_kernel", a[2])),
        bias(MaybeArrayOf("bias", a[3])),
        h0(MaybeArrayOf("initial_state[0] (h)", a[4])),
        c0(MaybeArrayOf("initial_state[1] (c)", a[5])),
        mask(MaybeArrayOf("mask", a[6])),
        sequence_lengths(MaybeArrayOf("sequence_lengths", a[7])),
        input_factors(MaybeArrayOf("input_factors", a[8])),
        recurrent_factors(MaybeArrayOf("recurrent_factors", a[9])),
        row_splits(MaybeArrayOf("row_splits", a[10])) {}

  // The problem, without its float arrays, and its number of valid steps.
  LstmProblem Check(const Options& options, int64_t* steps) {
    LstmProblem p;
    p.dtype = DTypeOf("inputs", x);
    const py::dtype dtype = x.dtype();
    CheckDType("kernel", kernel, dtype);
    CheckDType("recurrent_kernel", recurrent_kernel, dtype);
    CheckDType("bias", bias, dtype);
    CheckDType("initial_state[0] (h)", h0, dtype);
    CheckDType("initial_state[1] (c)", c0, dtype);
    CheckDType("input_factors", input_factors, dtype);
    CheckDType("recurrent_factors", recurrent_factors, dtype);
    p.go_backwards = options.go_backwards;
    p.zero_output_for_mask = options.zero_output_for_mask;
    p.return_sequences = options.return_sequences;
    if (options.isa) {
      ThrowIfError(ParseIsa(options.isa->c_str(), &p.isa));
    } else {
      ThrowIfError(IsaFromEnvironment(&p.isa));
    }
    ThrowIfError(ParseActivation("activation", options.activation.c_str(), &p.activation));
    ThrowIfError(ParseActivation("recurrent_activation", options.recurrent_activation.c_str(),
                                 &p.recurrent_activation));
    p.row_splits = static_cast<const int64_t*>(DataOf(&row_splits));
    ThrowIfError(
        CheckArguments({ShapeOf(x), ShapeOf(kernel), ShapeOf(recurrent_kernel), ShapeOf(bias),
                        ShapeOf(h0), ShapeOf(c0), ShapeOf(mask), ShapeOf(sequence_lengths),
                        ShapeOf(input_factors), ShapeOf(recurrent_factors), ShapeOf(row_splits)},
                       &p));
    p.mask = static_cast<const uint8_t*>(DataOf(&mask));
    p.sequence_lengths = static_cast<const int32_t*>(DataOf(&sequence_lengths));
    ThrowIfError(CountValidSteps(p, steps));
    return p;
  }

  // The float arrays, to be set when all shapes are known to be right: what is not contiguous is
  // copied here.
  void SetData(LstmProblem* p) {
    p->x = DataOf(&x);
    p->kernel = DataOf(&kernel);
    p->recurrent_kernel = DataOf(&recurrent_kernel);
    p->bias = DataOf(&bias);
    p->h0 = DataOf(&h0);
    p->c0 = DataOf(&c0);
    p->input_factors = DataOf(&input_factors);
    p->recurrent_factors = DataOf(&recurrent_factors);
  }
};

// Runs f() -> Status with the GIL released. Not py::gil_scoped_release: taking the GIL back while
// the interpreter shuts down ends the thread by unwinding, which must not happen in a destructor.
template <typename F>
Status WithoutGil(F f) {
  PyThreadState* state = PyEval_SaveThread();
  Status status;
  bool out_of_memory = false;
  try {
    status = f();
  } catch (const std::bad_alloc&) {
    out_of_memory = true;
  }
  PyEval_RestoreThread(state);
  if (out_of_memory) throw std::bad_alloc();
  return status;
}

// Of x, and of outputs: every step of every row.
std::vector<py::ssize_t> SequencesShape(const LstmProblem& p, int64_t width) {
  if (p.row_splits != nullptr) return {p.row_splits[p.batch], width};
  return {p.batch, p.timesteps, width};
}

std::vector<py::ssize_t> OutputsShape(const LstmProblem& p) {
  if (!p.return_sequences) return {p.batch, p.units};
  return SequencesShape(p, p.units);
}

py::tuple Forward(const py::tuple& arrays, const py::tuple& more, const py::object& save) {
  const Options options(more);
  const bool save_reserve = TruthOf("save_reserve", save);
  Inputs inputs(arrays);
  const int threads = options.threads;
  LstmForward call;
  int64_t steps = 0;
  call.problem = inputs.Check(options, &steps);
  inputs.SetData(&call.problem);
  const LstmProblem& p = call.problem;
  size_t bytes = 0;
  ThrowIfError(LstmForwardWorkspaceBytes(p, threads, &bytes));
  const py::dtype dtype = inputs.x.dtype();
  Array outputs = NewArray(dtype, OutputsShape(p));
  Array h = NewArray(dtype, {p.batch, p.units}), c = NewArray(dtype, {p.batch, p.units});
  py::object reserve = py::none();
  if (save_reserve) {
    Array saved = NewArray(ComputeDType(p.dtype), {steps * 5 * p.units});
    call.reserve = saved.mutable_data();
    reserve = saved;
  }
  call.outputs = outputs.mutable_data();
  call.h = h.mutable_data();
  call.c = c.mutable_data();
  const ScopedBlock workspace(bytes);
  call.workspace = workspace.memory();
  call.workspace_bytes = bytes;
  ThrowIfError(WithoutGil([&] { return RunLstmForward(call, PoolThreads(threads)); }));
  CountCpuCall(ForwardIsa(p), p.dtype, Pass::kForward);
  return py::make_tuple(outputs, h, c, reserve);
}

py::tuple Backward(const py::tuple& arrays, const py::tuple& more, const py::object& saved,
                   const py::object& d_outputs_given, const py::object& d_h_given,
                   const py::object& d_c_given, const py::object& overwrite) {
  const Options options(more);
  const bool overwrite_reserve = TruthOf("overwrite_reserve", overwrite);
  Inputs inputs(arrays);
  MaybeArray reserve = MaybeArrayOf("reserve", saved);
  MaybeArray d_outputs = MaybeArrayOf("d_outputs", d_outputs_given);
  MaybeArray d_h = MaybeArrayOf("d_h", d_h_given), d_c = MaybeArrayOf("d_c", d_c_given);
  const int threads = options.threads;
  LstmBackward call;
  int64_t steps = 0;
  call.problem = inputs.Check(options, &steps);
  const LstmProblem& p = call.problem;
  const py::dtype dtype = inputs.x.dtype();
  CheckDType("reserve", reserve, ComputeDType(p.dtype), "as forward gave it");
  CheckDType("d_outputs", d_outputs, dtype);
  CheckDType("d_h", d_h, dtype);
  CheckDType("d_c", d_c, dtype);
  const int64_t padded_steps = p.row_splits ? p.row_splits[p.batch] : p.batch * p.timesteps;
  ThrowIfError(
      CheckResultGradients(p, padded_steps, ShapeOf(d_outputs), ShapeOf(d_h), ShapeOf(d_c)));
  if (reserve) {
    ThrowIfError(CheckShape("reserve", ShapeOf(reserve), 1, {steps * 5 * p.units, 0, 0},
                            "(5 * units * valid steps,)"));
  }
  inputs.SetData(&call.problem);
  size_t bytes = 0;
  ThrowIfError(LstmBackwardWorkspaceBytes(p, reserve.has_value(), threads, &bytes));
  const bool in_place = overwrite_reserve && reserve && reserve->writeable();
  const size_t scratch_bytes = in_place ? 0 : steps * 5 * p.units * ComputeBytes(p.dtype);
  Array dx = NewArray(dtype, SequencesShape(p, p.input_dim));
  Array d_kernel = NewArray(dtype, {p.input_dim, 4 * p.units});
  Array d_recurrent_kernel = NewArray(dtype, {p.units, 4 * p.units});
  Array d_bias = NewArray(dtype, {4 * p.units});
  Array dh0 = NewArray(dtype, {p.batch, p.units}), dc0 = NewArray(dtype, {p.batch, p.units});
  call.reserve = DataOf(&reserve);
  call.d_outputs = DataOf(&d_outputs);
  call.d_h = DataOf(&d_h);
  call.d_c = DataOf(&d_c);
  call.dx = dx.mutable_data();
  call.d_kernel = d_kernel.mutable_data();
  call.d_recurrent_kernel = d_recurrent_kernel.mutable_data();
  call.d_bias = d_bias.mutable_data();
  call.dh0 = dh0.mutable_data();
  call.dc0 = dc0.mutable_data();
  const ScopedBlock scratch(scratch_bytes), workspace(bytes);
  call.scratch = in_place ? reserve->mutable_data() : scratch.memory();
  call.workspace = workspace.memory();
  call.workspace_bytes = bytes;
  ThrowIfError(WithoutGil([&] { return RunLstmBackward(call, PoolThreads(threads)); }));
  CountCpuCall(BackwardIsa(p), p.dtype, Pass::kBackward);
  return py::make_tuple(dx, d_kernel, d_recurrent_kernel, d_bias, dh0, dc0);
}

std::map<std::string, int64_t> Calls() {
  std::map<std::string, int64_t> calls;
  char name[64];
  for (int i = 0;; ++i) {
    const int64_t count = KernelCalls(i, name, sizeof(name));
    if (count < 0) return calls;
    if (count > 0) calls[name] = count;
  }
}

std::vector<std::string> SupportedIsas() {
  std::vector<std::string> names;
  for (int isa = 0; isa < kIsas; ++isa) {
    if (IsaSupported(static_cast<Isa>(isa))) names.push_back(IsaName(static_cast<Isa>(isa)));
  }
  return names;
}

std::string IsaInUse() {
  Isa isa;
  ThrowIfError(IsaFromEnvironment(&isa));
  return IsaName(isa);
}

const CpuKernels& KernelsNamed(const py::object& name) {
  Isa isa;
  const CpuKernels* kernels = nullptr;
  ThrowIfError(ParseIsa(TextOf(name).c_str(), &isa));
  ThrowIfError(FindCpuKernels(isa, &kernels));
  return *kernels;
}

// sigmoid or tanh as the kernels compute it; for tests.
Array ApplyActivation(const std::string& name, Array x, const py::object& isa) {
  const CpuKernels& kernels = KernelsNamed(isa);
  if (name != "sigmoid" && name != "tanh") {
    throw py::value_error("name: expected sigmoid or tanh, got '" + name + "'");
  }
  const int dtype = static_cast<int>(DTypeOf("x", x));
  const auto apply = (name == "tanh" ? kernels.tanh : kernels.sigmoid)[dtype];
  const void* values = DataOf(&x);
  Array y = NewArray(x.dtype(), {x.size()});
  const ScopedFloatMode mode;
  apply(values, y.mutable_data(), x.size());
  return y;
}

double MultiplyAddRate(double seconds, int threads, bool float64, const py::object& isa) {
  const CpuKernels& kernels = KernelsNamed(isa);
  struct Measure {
    double (*loop)(int64_t);
    double seconds;
    std::mutex mutex;
    double rate = 0;
    static void Body(void* argument, int) {
      Measure& m = *static_cast<Measure*>(argument);
      using Clock = std::chrono::steady_clock;
      double flops = 0, elapsed = 0;
      for (const Clock::time_point start = Clock::now(); elapsed < m.seconds;) {
        flops += m.loop(20000);
        elapsed = std::chrono::duration<double>(Clock::now() - start).count();
      }
      std::lock_guard<std::mutex> lock(m.mutex);
      m.rate += flops / elapsed;
    }
  } measure;
  measure.loop = kernels.multiply_add_loop[float64];
  measure.seconds = seconds;
  ThrowIfError(WithoutGil([&] {
    const Threads pool = PoolThreads(threads);
    if (threads == 1) {
      Measure::Body(&measure, 0);
    } else {
      pool.run(pool.context, threads, Measure::Body, &measure);
    }
    return OkStatus();
  }));
  return measure.rate;
}

}  // namespace
}  // namespace masked_lstm

PYBIND11_MODULE(_core, m) {
  using namespace masked_lstm;
  m.doc() = "The masked LSTM core over NumPy arrays; use masked_lstm.core.";
  m.def("forward", Forward);
  m.def("backward", Backward);
  m.def("kernel_calls", Calls);
  m.def("isas", SupportedIsas);
  m.def("isa", IsaInUse);
  m.def("activation", ApplyActivation);
  m.def("multiply_add_rate", MultiplyAddRate);
}
