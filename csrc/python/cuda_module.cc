// masked_lstm._cuda: the CUDA calls over DLPack. Thin: python/masked_lstm/cuda.py makes the
// results' arrays with the caller's own library and gives everything as DLPack capsules.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "cuda/cuda_lstm.h"
#include "host/arguments.h"
#include "python/dlpack.h"

namespace py = pybind11;

namespace masked_lstm {
namespace {

void ThrowIfError(const Status& status) {
  if (status.ok()) return;
  if (status.code == StatusCode::kUnsupported) throw std::runtime_error(status.message);
  throw py::value_error(status.message);
}

// A device tensor for as long as this lives.
class DeviceTensor {
 public:
  // `capsule`: from __dlpack__, or None.
  DeviceTensor(const char* name, const py::object& capsule) : name_(name) {
    if (capsule.is_none()) return;
    managed_ = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    if (managed_ == nullptr) throw py::error_already_set();
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");  // it is ours to delete from here on
    const DLTensor& t = managed_->dl_tensor;
    if (t.device.device_type != 2) Refuse("expected a CUDA array, got one of another device");
    int64_t stride = 1;
    for (int i = t.ndim - 1; i >= 0; --i) {
      if (t.strides != nullptr && t.shape[i] > 1 && t.strides[i] != stride) {
        Refuse("expected a C-contiguous array, got a strided one");
      }
      stride *= t.shape[i];
    }
    if (reinterpret_cast<uintptr_t>(data()) % (t.dtype.bits / 8) != 0) {
      Refuse("expected memory aligned to its values, got a misaligned address");
    }
  }
  ~DeviceTensor() {
    if (managed_ != nullptr && managed_->deleter != nullptr) managed_->deleter(managed_);
  }
  DeviceTensor(const DeviceTensor&) = delete;
  DeviceTensor& operator=(const DeviceTensor&) = delete;

  void* data() const {
    if (managed_ == nullptr) return nullptr;
    return static_cast<char*>(managed_->dl_tensor.data) + managed_->dl_tensor.byte_offset;
  }
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
  void Expect(uint8_t code, uint8_t bits, const char* what) const {
    if (managed_ == nullptr) return;
    const DLDataType type = managed_->dl_tensor.dtype;
    if (type.code != code || type.bits != bits) Refuse((std::string("expected ") + what).c_str());
  }
  void ExpectLike(const DeviceTensor& other) const {
    if (managed_ == nullptr) return;
    if (dtype() != other.dtype()) Refuse("expected the dtype of inputs, got another");
    if (managed_->dl_tensor.device.device_id != other.managed_->dl_tensor.device.device_id) {
      Refuse("expected the device of inputs, got another");
    }
  }

 private:
  [[noreturn]] void Refuse(const char* sentence) const {
    throw py::value_error(std::string(name_) + ": " + sentence);
  }

  const char* name_;
  DLManagedTensor* managed_ = nullptr;
};

// The arrays and options of every call, in cuda.py's order.
struct Inputs {
  DeviceTensor x, kernel, recurrent_kernel, bias, h0, c0, mask, lengths;

  explicit Inputs(const py::tuple& a)
      : x("inputs", a[0]),
        kernel("kernel", a[1]),
        recurrent_kernel("recurrent_kernel", a[2]),
        bias("bias", a[3]),
        h0("initial_state[0] (h)", a[4]),
        c0("initial_state[1] (c)", a[5]),
        mask("mask", a[6]),
        lengths("sequence_lengths", a[7]) {}

  LstmProblem Problem(const py::tuple& options) const {
    LstmProblem p;
    p.dtype = x.dtype();
    for (const DeviceTensor* t : {&kernel, &recurrent_kernel, &bias, &h0, &c0}) t->ExpectLike(x);
    mask.Expect(1, 8, "dtype uint8, got another");
    lengths.Expect(0, 32, "dtype int32, got another");
    p.go_backwards = options[0].cast<bool>();
    p.zero_output_for_mask = options[1].cast<bool>();
    p.return_sequences = options[2].cast<bool>();
    ThrowIfError(
        ParseActivation("activation", options[3].cast<std::string>().c_str(), &p.activation));
    ThrowIfError(ParseActivation("recurrent_activation", options[4].cast<std::string>().c_str(),
                                 &p.recurrent_activation));
    ThrowIfError(CheckArguments({x.shape(), kernel.shape(), recurrent_kernel.shape(), bias.shape(),
                                 h0.shape(), c0.shape(), mask.shape(), lengths.shape()},
                                &p));
    p.x = x.data();
    p.kernel = kernel.data();
    p.recurrent_kernel = recurrent_kernel.data();
    p.bias = bias.data();
    p.h0 = h0.data();
    p.c0 = c0.data();
    p.mask = static_cast<const uint8_t*>(mask.data());
    p.sequence_lengths = static_cast<const int32_t*>(lengths.data());
    return p;
  }
};

CUstream_st* Stream(uintptr_t handle) { return reinterpret_cast<CUstream_st*>(handle); }

// Bytes of workspace; `save`: gates are saved.
size_t ForwardWorkspace(const py::tuple& arrays, const py::tuple& options, bool save) {
  const Inputs inputs(arrays);
  LstmForward call;
  call.problem = inputs.Problem(options);
  if (save) call.reserve = &call;  // not followed: only whether there is one counts
  size_t bytes = 0;
  ThrowIfError(
      CudaForwardWorkspaceBytes(call, call.problem.batch * call.problem.timesteps, &bytes));
  return bytes;
}

void Forward(const py::tuple& arrays, const py::tuple& options, const py::tuple& results,
             const py::object& workspace, size_t workspace_bytes, uintptr_t stream) {
  const Inputs inputs(arrays);
  const DeviceTensor outputs("outputs", results[0]), h("h", results[1]), c("c", results[2]),
      reserve("reserve", results[3]), memory("workspace", workspace);
  LstmForward call;
  call.problem = inputs.Problem(options);
  call.outputs = outputs.data();
  call.h = h.data();
  call.c = c.data();
  call.reserve = reserve.data();
  call.workspace = memory.data();
  call.workspace_bytes = workspace_bytes;
  const int64_t steps = call.problem.batch * call.problem.timesteps;
  ThrowIfError(RunCudaForward(call, steps, nullptr, Stream(stream)));
}

size_t BackwardWorkspace(const py::tuple& arrays, const py::tuple& options) {
  const Inputs inputs(arrays);
  LstmBackward call;
  call.problem = inputs.Problem(options);
  size_t bytes = 0;
  ThrowIfError(
      CudaBackwardWorkspaceBytes(call, call.problem.batch * call.problem.timesteps, &bytes));
  return bytes;
}

void Backward(const py::tuple& arrays, const py::tuple& options, const py::object& reserve,
              const py::tuple& upstream, const py::tuple& results, const py::object& scratch,
              const py::object& workspace, size_t workspace_bytes, uintptr_t stream) {
  const Inputs inputs(arrays);
  const DeviceTensor saved("reserve", reserve), d_outputs("d_outputs", upstream[0]),
      d_h("d_h", upstream[1]), d_c("d_c", upstream[2]), dx("dx", results[0]),
      d_kernel("d_kernel", results[1]), d_recurrent_kernel("d_recurrent_kernel", results[2]),
      d_bias("d_bias", results[3]), dh0("dh0", results[4]), dc0("dc0", results[5]),
      space("scratch", scratch), memory("workspace", workspace);
  for (const DeviceTensor* t : {&d_outputs, &d_h, &d_c}) t->ExpectLike(inputs.x);
  LstmBackward call;
  call.problem = inputs.Problem(options);
  ThrowIfError(CheckResultGradients(call.problem, d_outputs.shape(), d_h.shape(), d_c.shape()));
  call.reserve = saved.data();
  call.scratch = space.data();
  call.d_outputs = d_outputs.data();
  call.d_h = d_h.data();
  call.d_c = d_c.data();
  call.dx = dx.data();
  call.d_kernel = d_kernel.data();
  call.d_recurrent_kernel = d_recurrent_kernel.data();
  call.d_bias = d_bias.data();
  call.dh0 = dh0.data();
  call.dc0 = dc0.data();
  call.workspace = memory.data();
  call.workspace_bytes = workspace_bytes;
  const int64_t steps = call.problem.batch * call.problem.timesteps;
  ThrowIfError(RunCudaBackward(call, steps, nullptr, Stream(stream)));
}

}  // namespace
}  // namespace masked_lstm

PYBIND11_MODULE(_cuda, m) {
  using namespace masked_lstm;
  m.doc() = "The masked LSTM on a CUDA device; use masked_lstm.cuda.";
  m.def("forward_workspace", ForwardWorkspace);
  m.def("forward", Forward);
  m.def("backward_workspace", BackwardWorkspace);
  m.def("backward", Backward);
}
