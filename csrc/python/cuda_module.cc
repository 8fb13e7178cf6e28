// masked_lstm._cuda: the CUDA calls over DLPack. Thin: python/masked_lstm/cuda.py makes the
// results' arrays with the caller's own library and gives everything as DLPack capsules.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>

#include "cuda/cuda_lstm.h"
#include "host/arguments.h"
#include "host/environment.h"
#include "host/kernel_calls.h"
#include "python/dlpack.h"

namespace py = pybind11;

namespace masked_lstm {
namespace {

void ThrowIfError(const Status& status) {
  if (status.ok()) return;
  if (status.code == StatusCode::kInvalidArgument) throw py::value_error(status.message);
  if (status.code == StatusCode::kOutOfMemory) {
    PyErr_SetString(PyExc_MemoryError, status.message);
    throw py::error_already_set();
  }
  throw std::runtime_error(status.message);
}

struct Delete {
  void operator()(DLManagedTensor* managed) const {
    if (managed->deleter != nullptr) managed->deleter(managed);
  }
};

// A device tensor for as long as this lives.
class DeviceTensor {
 public:
  // `capsule`: from __dlpack__, or None.
  DeviceTensor(const char* name, const py::object& capsule) : name_(name) {
    if (capsule.is_none()) return;
    managed_.reset(static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor")));
    if (managed_ == nullptr) throw py::error_already_set();
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");  // it is ours to delete from here on
    const DLTensor& t = managed_->dl_tensor;
    const int32_t device = t.device.device_type;
    if (device != kDLCUDA && device != kDLCUDAManaged) {
      Refuse("expected a CUDA array, got one of another device");
    }
    bool empty = false;  // then strides mean nothing
    for (int i = 0; i < t.ndim; ++i) empty |= t.shape[i] == 0;
    int64_t stride = 1;
    for (int i = t.ndim - 1; i >= 0 && !empty; --i) {
      if (t.strides != nullptr && t.shape[i] > 1 && t.strides[i] != stride) {
        Refuse("expected a C-contiguous array, got a strided one");
      }
      stride *= t.shape[i];
    }
    if (t.dtype.lanes != 1 || t.dtype.bits % 8 != 0 || t.dtype.bits == 0) {
      Refuse("expected plain values, got vectors or parts of bytes");
    }
    if (reinterpret_cast<uintptr_t>(data()) % (t.dtype.bits / 8) != 0) {
      Refuse("expected memory aligned to its values, got a misaligned address");
    }
  }

  void* data() const {
    if (managed_ == nullptr) return nullptr;
    return static_cast<char*>(managed_->dl_tensor.data) + managed_->dl_tensor.byte_offset;
  }
  int device() const { return managed_->dl_tensor.device.device_id; }
  ArgumentShape shape() const {
    ArgumentShape shape;
    if (managed_ == nullptr) return shape;
    shape.rank = managed_->dl_tensor.ndim;
    for (int i = 0; i < shape.rank && i < 3; ++i) shape.dims[i] = managed_->dl_tensor.shape[i];
    return shape;
  }
  // Values of one of the core's dtypes.
  DType dtype() const {
    const DLDataType type = managed_->dl_tensor.dtype;
    if (type.code == 4 && type.bits == 16) return DType::kBFloat16;
    if (type.code == 2 && type.bits == 16) return DType::kFloat16;
    if (type.code == 2 && type.bits == 32) return DType::kFloat32;
    if (type.code == 2 && type.bits == 64) return DType::kFloat64;
    Refuse("expected dtype float32, float64, float16 or bfloat16, got another");
  }
  // The dtype `code` of `bits`, on the device of `other`.
  void Expect(uint8_t code, uint8_t bits, const char* what, const DeviceTensor& other) const {
    if (managed_ == nullptr) return;
    const DLDataType type = managed_->dl_tensor.dtype;
    if (type.code != code || type.bits != bits) Refuse((std::string("expected ") + what).c_str());
    ExpectDevice(other);
  }
  void ExpectLike(const DeviceTensor& other) const {
    if (managed_ == nullptr) return;
    if (dtype() != other.dtype()) Refuse("expected the dtype of inputs, got another");
    ExpectDevice(other);
  }
  // `values` values of what a dtype is computed in, on the device of `other`.
  void ExpectReserve(DType dtype, int64_t values, const DeviceTensor& other) const {
    if (managed_ == nullptr) return;
    const uint8_t bits = static_cast<uint8_t>(8 * ComputeBytes(dtype));
    Expect(2, bits, bits == 64 ? "dtype float64, got another" : "dtype float32, got another",
           other);
    if (managed_->dl_tensor.ndim != 1 || managed_->dl_tensor.shape[0] < values) {
      Refuse("expected the array that forward gave for the same inputs, got one of another size");
    }
  }

 private:
  void ExpectDevice(const DeviceTensor& other) const {
    if (device() != other.device()) Refuse("expected the device of inputs, got another");
  }

  [[noreturn]] void Refuse(const char* sentence) const {
    throw py::value_error(std::string(name_) + ": " + sentence);
  }

  const char* name_;
  std::unique_ptr<DLManagedTensor, Delete> managed_;  // deleted also where the constructor throws
};

CUstream_st* Stream(uintptr_t handle) { return reinterpret_cast<CUstream_st*>(handle); }

// The arrays and options of a call, in cuda.py's order, checked once: what is asked of it follows.
class Call {
 public:
  Call(const py::tuple& a, const py::tuple& options)
      : x_("inputs", a[0]),
        kernel_("kernel", a[1]),
        recurrent_kernel_("recurrent_kernel", a[2]),
        bias_("bias", a[3]),
        h0_("initial_state[0] (h)", a[4]),
        c0_("initial_state[1] (c)", a[5]),
        mask_("mask", a[6]),
        lengths_("sequence_lengths", a[7]),
        input_factors_("input_factors", a[8]),
        recurrent_factors_("recurrent_factors", a[9]),
        row_splits_("row_splits", a[10]) {
    LstmProblem& p = problem_;
    p.dtype = x_.dtype();
    for (const DeviceTensor* t :
         {&kernel_, &recurrent_kernel_, &bias_, &h0_, &c0_, &input_factors_, &recurrent_factors_}) {
      t->ExpectLike(x_);
    }
    mask_.Expect(1, 8, "dtype uint8, got another", x_);
    lengths_.Expect(0, 32, "dtype int32, got another", x_);
    row_splits_.Expect(0, 64, "dtype int64, got another", x_);
    ThrowIfError(CudaChoiceFromEnvironment(&p.cuda_choice));
    p.go_backwards = options[0].cast<bool>();
    p.zero_output_for_mask = options[1].cast<bool>();
    p.return_sequences = options[2].cast<bool>();
    ThrowIfError(
        ParseActivation("activation", options[3].cast<std::string>().c_str(), &p.activation));
    ThrowIfError(ParseActivation("recurrent_activation", options[4].cast<std::string>().c_str(),
                                 &p.recurrent_activation));
    if (mask_.data() != nullptr && lengths_.data() != nullptr) {
      throw py::value_error("mask, sequence_lengths: expected at most one of them, got both");
    }
    p.row_splits = static_cast<const int64_t*>(row_splits_.data());
    ArgumentShapes shapes{x_.shape(),
                          kernel_.shape(),
                          recurrent_kernel_.shape(),
                          bias_.shape(),
                          h0_.shape(),
                          c0_.shape(),
                          mask_.shape(),
                          lengths_.shape(),
                          input_factors_.shape(),
                          recurrent_factors_.shape(),
                          row_splits_.shape()};
    shapes.row_splits_on_host = false;
    ThrowIfError(CheckArguments(shapes, &p));
    p.x = x_.data();
    p.kernel = kernel_.data();
    p.recurrent_kernel = recurrent_kernel_.data();
    p.bias = bias_.data();
    p.h0 = h0_.data();
    p.c0 = c0_.data();
    p.input_factors = input_factors_.data();
    p.recurrent_factors = recurrent_factors_.data();
    p.mask = static_cast<const uint8_t*>(mask_.data());
    p.sequence_lengths = static_cast<const int32_t*>(lengths_.data());
    ThrowIfError(CheckCudaSizes(p, 0));  // their product fits
    steps_ = p.row_splits != nullptr ? x_.shape().dims[0] : p.batch * p.timesteps;
  }

  int64_t batch() const { return problem_.batch; }
  int64_t ReserveValues() const { return steps_ * 5 * problem_.units; }

  // Bytes of workspace; `save`: gates are saved, `have_reserve`: they were.
  size_t ForwardWorkspace(bool save) const {
    LstmForward call;
    call.problem = problem_;
    if (save) call.reserve = &call;  // not followed: only whether there is one counts
    size_t bytes = 0;
    ThrowIfError(CudaForwardWorkspaceBytes(call, steps_, &bytes));
    return bytes;
  }

  size_t BackwardWorkspace(bool have_reserve) const {
    LstmBackward call;
    call.problem = problem_;
    if (have_reserve) call.reserve = &call;  // likewise
    size_t bytes = 0;
    ThrowIfError(CudaBackwardWorkspaceBytes(call, steps_, &bytes));
    return bytes;
  }

  const LstmProblem& problem() const { return problem_; }
  int64_t steps() const { return steps_; }
  const DeviceTensor& inputs() const { return x_; }

 private:
  const DeviceTensor x_, kernel_, recurrent_kernel_, bias_, h0_, c0_, mask_, lengths_,
      input_factors_, recurrent_factors_, row_splits_;
  LstmProblem problem_;
  int64_t steps_ = 0;
};

// What a forward call of `of` writes to: (results, workspace, its bytes).
class ForwardArrays {
 public:
  ForwardArrays(const Call& of, const py::tuple& given) : ForwardArrays(of, given, given[0]) {}

  LstmForward call;

 private:
  ForwardArrays(const Call& of, const py::tuple& given, const py::tuple& results)
      : outputs_("outputs", results[0]),
        h_("h", results[1]),
        c_("c", results[2]),
        reserve_("reserve", results[3]),
        workspace_("workspace", given[1]) {
    call.problem = of.problem();
    call.outputs = outputs_.data();
    call.h = h_.data();
    call.c = c_.data();
    call.reserve = reserve_.data();
    call.workspace = workspace_.data();
    call.workspace_bytes = given[2].cast<size_t>();
  }

  const DeviceTensor outputs_, h_, c_, reserve_, workspace_;
};

// What a backward call reads and writes: (reserve, upstream, results, scratch, workspace, its
// bytes).
class BackwardArrays {
 public:
  BackwardArrays(const Call& of, const py::tuple& given)
      : BackwardArrays(of, given, given[1], given[2]) {}

  LstmBackward call;

 private:
  BackwardArrays(const Call& of, const py::tuple& given, const py::tuple& upstream,
                 const py::tuple& results)
      : saved_("reserve", given[0]),
        d_outputs_("d_outputs", upstream[0]),
        d_h_("d_h", upstream[1]),
        d_c_("d_c", upstream[2]),
        dx_("dx", results[0]),
        d_kernel_("d_kernel", results[1]),
        d_recurrent_kernel_("d_recurrent_kernel", results[2]),
        d_bias_("d_bias", results[3]),
        dh0_("dh0", results[4]),
        dc0_("dc0", results[5]),
        scratch_("scratch", given[3]),
        workspace_("workspace", given[4]) {
    for (const DeviceTensor* t : {&d_outputs_, &d_h_, &d_c_}) t->ExpectLike(of.inputs());
    saved_.ExpectReserve(of.problem().dtype, of.ReserveValues(), of.inputs());
    ThrowIfError(CheckResultGradients(of.problem(), of.steps(), d_outputs_.shape(), d_h_.shape(),
                                      d_c_.shape()));
    call.problem = of.problem();
    call.reserve = saved_.data();
    call.scratch = scratch_.data();
    call.d_outputs = d_outputs_.data();
    call.d_h = d_h_.data();
    call.d_c = d_c_.data();
    call.dx = dx_.data();
    call.d_kernel = d_kernel_.data();
    call.d_recurrent_kernel = d_recurrent_kernel_.data();
    call.d_bias = d_bias_.data();
    call.dh0 = dh0_.data();
    call.dc0 = dc0_.data();
    call.workspace = workspace_.data();
    call.workspace_bytes = given[5].cast<size_t>();
  }

  const DeviceTensor saved_, d_outputs_, d_h_, d_c_, dx_, d_kernel_, d_recurrent_kernel_, d_bias_,
      dh0_, dc0_, scratch_, workspace_;
};

void CheckPair(const Call& first, const Call& second) {
  if (second.inputs().device() != first.inputs().device()) {
    throw py::value_error("second: expected arrays on the first call's device, got another");
  }
  if (second.steps() == first.steps()) return;
  throw py::value_error("second: expected as many timesteps as the first call has, got " +
                        std::to_string(second.steps()) + " for " + std::to_string(first.steps()));
}

// Runs what `launch` does; `calls`: what it serves. Without Python's lock: a launch waits where the
// stream's queue is full, perhaps for a callback in it that needs the lock.
template <typename Launch>
Status LaunchForward(std::initializer_list<const LstmForward*> calls, int32_t* bad_length,
                     CUstream_st* stream, int32_t* value, Launch launch) {
  const py::gil_scoped_release unlocked;
  if (bad_length != nullptr) MASKED_LSTM_RETURN_IF_ERROR(ClearCudaFlag(bad_length, stream));
  MASKED_LSTM_RETURN_IF_ERROR(launch());
  for (const LstmForward* call : calls) {
    CountCudaCall(ForwardCudaKernel(*call), call->problem.dtype, Pass::kForward);
  }
  return bad_length == nullptr ? OkStatus() : ReadCudaFlag(bad_length, stream, value);
}
template <typename Launch>
Status LaunchBackward(std::initializer_list<const LstmBackward*> calls, Launch launch) {
  const py::gil_scoped_release unlocked;
  MASKED_LSTM_RETURN_IF_ERROR(launch());
  for (const LstmBackward* call : calls) {
    CountCudaCall(BackwardCudaKernel(*call), call->problem.dtype, Pass::kBackward);
  }
  return OkStatus();
}

void RefuseBadLengths(const LstmProblem& p, int32_t bad) {
  if (bad == 0) return;
  throw py::value_error(
      p.row_splits != nullptr
          ? "row_splits: expected them to rise from 0 to the number of values, got others"
          : "sequence_lengths: expected values in [0, timesteps], got others");
}

// `flag`: int32, where lengths are to be checked, or None.
void Forward(const Call& of, const py::tuple& given, const py::object& flag, uintptr_t stream) {
  const ForwardArrays a(of, given);
  const DeviceTensor bad_length("bad_length", flag);
  int32_t* const bad = static_cast<int32_t*>(bad_length.data());
  int32_t value = 0;
  ThrowIfError(LaunchForward({&a.call}, bad, Stream(stream), &value, [&] {
    return RunCudaForward(a.call, of.steps(), bad, Stream(stream));
  }));
  RefuseBadLengths(of.problem(), value);
}

void ForwardPair(const Call& first, const Call& second, const py::tuple& given,
                 const py::tuple& given_second, const py::object& flag, uintptr_t stream) {
  CheckPair(first, second);
  const ForwardArrays a(first, given), b(second, given_second);
  const DeviceTensor bad_length("bad_length", flag);
  int32_t* const bad = static_cast<int32_t*>(bad_length.data());
  int32_t value = 0;
  ThrowIfError(LaunchForward({&a.call, &b.call}, bad, Stream(stream), &value, [&] {
    return RunCudaForwardPair({a.call, b.call}, first.steps(), bad, Stream(stream));
  }));
  RefuseBadLengths(first.problem(), value);
}

void Backward(const Call& of, const py::tuple& given, uintptr_t stream) {
  const BackwardArrays a(of, given);
  ThrowIfError(LaunchBackward(
      {&a.call}, [&] { return RunCudaBackward(a.call, of.steps(), nullptr, Stream(stream)); }));
}

void BackwardPair(const Call& first, const Call& second, const py::tuple& given,
                  const py::tuple& given_second, uintptr_t stream) {
  CheckPair(first, second);
  const BackwardArrays a(first, given), b(second, given_second);
  ThrowIfError(LaunchBackward({&a.call, &b.call}, [&] {
    return RunCudaBackwardPair({a.call, b.call}, first.steps(), nullptr, Stream(stream));
  }));
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

}  // namespace
}  // namespace masked_lstm

PYBIND11_MODULE(_cuda, m) {
  using namespace masked_lstm;
  m.doc() = "The masked LSTM on a CUDA device; use masked_lstm.cuda.";
  py::class_<Call>(m, "Call")
      .def(py::init<const py::tuple&, const py::tuple&>())
      .def_property_readonly("batch", &Call::batch)
      .def_property_readonly("reserve_values", &Call::ReserveValues)
      .def("forward_workspace", &Call::ForwardWorkspace)
      .def("backward_workspace", &Call::BackwardWorkspace)
      .def("forward", &Forward)
      .def("forward_pair", &ForwardPair)
      .def("backward", &Backward)
      .def("backward_pair", &BackwardPair);
  m.def("kernel_calls", Calls);
}
