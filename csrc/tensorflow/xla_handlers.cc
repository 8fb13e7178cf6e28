// What a compiled program calls on the CPU: XLA's buffers and threads handed to the core.
//
// The only header of XLA here is that of its C interface for such calls. A handler for another
// platform registers itself under the same targets; the kernels need not know.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "cpu/isa.h"
#include "host/arguments.h"
#include "host/environment.h"
#include "host/huge_pages.h"
#include "host/kernel_calls.h"
#include "host/parallel_region.h"
#include "lstm.h"
#include "tensorflow/xla_call.h"
#include "xla/ffi/api/ffi.h"

namespace xla::ffi {
const XLA_FFI_Api* GetXlaFfiApi();  // TensorFlow's; its own header would bring all of XLA
}

namespace masked_lstm {
namespace {

namespace ffi = xla::ffi;

ffi::Error ToFfi(const Status& status) {
  if (status.ok()) return ffi::Error::Success();
  return ffi::Error(status.code == StatusCode::kUnsupported ? ffi::ErrorCode::kUnimplemented
                                                            : ffi::ErrorCode::kInvalidArgument,
                    status.message);
}

#define RETURN_IF_FFI_ERROR(expression)    \
  do {                                     \
    const ffi::Error error = (expression); \
    if (!error.success()) return error;    \
  } while (false)

// Memory of one compiled call, kept for its next run: fresh pages cost more than a small call. Runs
// at the same time have one block each; the larger one is kept.
class SpareMemory {
 public:
  struct Block {
    std::unique_ptr<void, void (*)(void*)> data{nullptr, std::free};
    size_t bytes = 0;
  };

  // A block of at least `bytes`; data is null when there is no memory.
  Block Take(size_t bytes) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (kept_.data != nullptr && kept_.bytes >= bytes) return std::exchange(kept_, Block());
    }
    constexpr size_t kAlignment = 64;
    Block block;
    block.bytes = (std::max<size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
    block.data.reset(std::aligned_alloc(kAlignment, block.bytes));
    AdviseHugePages(block.data.get(), block.bytes);
    return block;
  }
  void GiveBack(Block block) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (block.bytes > kept_.bytes) kept_ = std::move(block);
  }

  static ffi::TypeId id;  // XLA's number of this type

 private:
  std::mutex mutex_;
  Block kept_;
};
ffi::TypeId SpareMemory::id = {};

ffi::ErrorOr<std::unique_ptr<SpareMemory>> MakeSpareMemory(ffi::Dictionary) {
  return std::make_unique<SpareMemory>();
}

void RunOnPool(void* context, int workers, void (*body)(void*, int), void* argument) {
  auto* pool = static_cast<ffi::ThreadPool*>(context);
  ParallelRegion::Run(workers, body, argument,
                      [pool](auto closure) { pool->Schedule(std::move(closure)); });
}

// The program's intra-op pool; the calling thread is one of the workers.
Threads ThreadsOf(ffi::ThreadPool* pool) {
  Threads threads;
  threads.workers = static_cast<int>(std::max<int64_t>(1, pool->num_threads()));
  threads.context = pool;
  threads.run = RunOnPool;
  return threads;
}

ArgumentShape ShapeOf(const ffi::AnyBuffer& buffer) {
  ArgumentShape shape;
  shape.rank = static_cast<int>(buffer.dimensions().size());
  for (int i = 0; i < shape.rank && i < 3; ++i) shape.dims[i] = buffer.dimensions()[i];
  return shape;
}

void* Data(const ffi::AnyBuffer& buffer) { return buffer.untyped_data(); }

void* FreshData(const ffi::AnyBuffer& buffer) {
  AdviseHugePages(buffer.untyped_data(), buffer.size_bytes());
  return buffer.untyped_data();
}

DType DTypeOf(const ffi::AnyBuffer& buffer) {
  switch (buffer.element_type()) {
    case ffi::DataType::F64:
      return DType::kFloat64;
    case ffi::DataType::F16:
      return DType::kFloat16;
    case ffi::DataType::BF16:
      return DType::kBFloat16;
    default:
      return DType::kFloat32;
  }
}

// The buffers of a call. Their number was set by xla_kernels.cc, and XLA has compared it.
struct Buffers {
  ffi::RemainingArgs arguments;
  ffi::RemainingRets results;

  ffi::AnyBuffer Argument(int index) const { return arguments.get<ffi::AnyBuffer>(index).value(); }
  ffi::AnyBuffer Result(int index) const { return *results.get<ffi::AnyBuffer>(index).value(); }
};

struct Attributes {
  int32_t flags, activation, recurrent_activation;
};

// Fills in *p, and N in *steps, from the inputs that both passes begin with.
Status ReadProblem(const Buffers& buffers, const Attributes& attributes, LstmProblem* p,
                   int64_t* steps) {
  ArgumentShapes shapes;
  ArgumentShape* const in_order[] = {&shapes.x,    &shapes.kernel, &shapes.recurrent_kernel,
                                     &shapes.bias, &shapes.h0,     &shapes.c0};
  for (int i = kX; i <= kC0; ++i) *in_order[i] = ShapeOf(buffers.Argument(i));
  const ffi::AnyBuffer mask = buffers.Argument(kMask);
  if (mask.element_type() == ffi::DataType::PRED) {
    shapes.mask = ShapeOf(mask);
    p->mask = static_cast<const uint8_t*>(Data(mask));
  } else if (mask.element_type() == ffi::DataType::S64) {
    shapes.row_splits = ShapeOf(mask);
    p->row_splits = static_cast<const int64_t*>(Data(mask));
  } else if (mask.dimensions().size() > 0) {
    shapes.sequence_lengths = ShapeOf(mask);
    p->sequence_lengths = static_cast<const int32_t*>(Data(mask));
  }
  const struct {
    int input;
    ArgumentShape* shape;
    const void** data;
  } factors[] = {{kInputFactors, &shapes.input_factors, &p->input_factors},
                 {kRecurrentFactors, &shapes.recurrent_factors, &p->recurrent_factors}};
  for (const auto& factor : factors) {
    const ffi::AnyBuffer buffer = buffers.Argument(factor.input);
    if (buffer.dimensions().size() == 1) continue;  // (0,): none are given
    *factor.shape = ShapeOf(buffer);
    *factor.data = Data(buffer);
  }
  MASKED_LSTM_RETURN_IF_ERROR(CheckArguments(shapes, p));
  MASKED_LSTM_RETURN_IF_ERROR(IsaFromEnvironment(&p->isa));
  p->dtype = DTypeOf(buffers.Argument(kX));
  p->go_backwards = (attributes.flags & kGoBackwards) != 0;
  p->zero_output_for_mask = (attributes.flags & kZeroOutputForMask) != 0;
  p->return_sequences = (attributes.flags & kReturnSequences) != 0;
  p->activation = static_cast<Activation>(attributes.activation);
  p->recurrent_activation = static_cast<Activation>(attributes.recurrent_activation);
  p->x = Data(buffers.Argument(kX));
  p->kernel = Data(buffers.Argument(kKernel));
  p->recurrent_kernel = Data(buffers.Argument(kRecurrentKernel));
  p->bias = Data(buffers.Argument(kBias));
  p->h0 = Data(buffers.Argument(kH0));
  p->c0 = Data(buffers.Argument(kC0));
  return CountValidSteps(*p, steps);
}

Status CheckReserve(const LstmProblem& p, int64_t steps, size_t bytes) {
  const size_t need = static_cast<size_t>(steps * 5 * p.units * ComputeBytes(p.dtype));
  if (bytes >= need) return OkStatus();
  return Error(StatusCode::kInvalidArgument,
               "reserve: expected %zu bytes as MaskedLstm gave for the same inputs, got %zu", need,
               bytes);
}

// Runs `call`, of either pass, with its workspace.
template <typename Call>
ffi::Error RunWithWorkspace(Call* call, Status (*run)(const Call&, const Threads&),
                            const Threads& threads, SpareMemory* spare) {
  SpareMemory::Block workspace = spare->Take(call->workspace_bytes);
  if (workspace.data == nullptr) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      "out of memory: " + std::to_string(workspace.bytes) + " bytes of workspace");
  }
  call->workspace = workspace.data.get();
  const Status status = run(*call, threads);
  spare->GiveBack(std::move(workspace));
  return ToFfi(status);
}

ffi::Error Forward(SpareMemory* spare, ffi::ThreadPool pool, int32_t flags, int32_t activation,
                   int32_t recurrent_activation, ffi::RemainingArgs arguments,
                   ffi::RemainingRets results) {
  const Buffers buffers{arguments, results};
  LstmForward call;
  LstmProblem& p = call.problem;
  int64_t steps = 0;
  RETURN_IF_FFI_ERROR(
      ToFfi(ReadProblem(buffers, {flags, activation, recurrent_activation}, &p, &steps)));
  call.outputs = FreshData(buffers.Result(0));
  call.h = Data(buffers.Result(1));
  call.c = Data(buffers.Result(2));
  const ffi::AnyBuffer reserve = buffers.Result(3);
  if (reserve.size_bytes() > 0) {
    RETURN_IF_FFI_ERROR(ToFfi(CheckReserve(p, steps, reserve.size_bytes())));
    call.reserve = FreshData(reserve);
  }
  const Threads threads = ThreadsOf(&pool);
  RETURN_IF_FFI_ERROR(ToFfi(LstmForwardWorkspaceBytes(p, threads.workers, &call.workspace_bytes)));
  RETURN_IF_FFI_ERROR(RunWithWorkspace<LstmForward>(&call, RunLstmForward, threads, spare));
  CountCpuCall(ForwardIsa(p), p.dtype, Pass::kForward);
  return ffi::Error::Success();
}

ffi::Error Backward(SpareMemory* spare, ffi::ThreadPool pool, int32_t flags, int32_t activation,
                    int32_t recurrent_activation, int32_t skip, ffi::RemainingArgs arguments,
                    ffi::RemainingRets results) {
  const Buffers buffers{arguments, results};
  LstmBackward call;
  LstmProblem& p = call.problem;
  int64_t steps = 0;
  RETURN_IF_FFI_ERROR(
      ToFfi(ReadProblem(buffers, {flags, activation, recurrent_activation}, &p, &steps)));
  const int64_t padded_steps =
      p.row_splits != nullptr ? buffers.Argument(kX).dimensions()[0] : p.batch * p.timesteps;
  RETURN_IF_FFI_ERROR(
      ToFfi(CheckResultGradients(p, padded_steps, ShapeOf(buffers.Argument(kDOutputs)),
                                 ShapeOf(buffers.Argument(kDH)), ShapeOf(buffers.Argument(kDC)))));
  const ffi::AnyBuffer reserve = buffers.Argument(kReserve);
  if (reserve.size_bytes() > 0) {
    RETURN_IF_FFI_ERROR(ToFfi(CheckReserve(p, steps, reserve.size_bytes())));
    call.reserve = Data(reserve);
  }
  call.d_outputs = Data(buffers.Argument(kDOutputs));
  call.d_h = Data(buffers.Argument(kDH));
  call.d_c = Data(buffers.Argument(kDC));
  void** const gradients[kGradients] = {&call.dx,     &call.d_kernel, &call.d_recurrent_kernel,
                                        &call.d_bias, &call.dh0,      &call.dc0};
  for (int i = 0; i < kGradients; ++i) {
    if ((skip >> i & 1) == 0) *gradients[i] = FreshData(buffers.Result(i));
  }
  const ffi::AnyBuffer scratch = buffers.Result(kGradients);
  RETURN_IF_FFI_ERROR(ToFfi(CheckReserve(p, steps, scratch.size_bytes())));
  call.scratch = FreshData(scratch);
  const Threads threads = ThreadsOf(&pool);
  RETURN_IF_FFI_ERROR(ToFfi(LstmBackwardWorkspaceBytes(p, call.reserve != nullptr, threads.workers,
                                                       &call.workspace_bytes)));
  RETURN_IF_FFI_ERROR(RunWithWorkspace<LstmBackward>(&call, RunLstmBackward, threads, spare));
  CountCpuCall(BackwardIsa(p), p.dtype, Pass::kBackward);
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER(InstantiateHandler, MakeSpareMemory, ffi::Ffi::BindInstantiate().Attrs());
XLA_FFI_DEFINE_HANDLER(ForwardHandler, Forward,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::State<SpareMemory>>()
                           .Ctx<ffi::ThreadPool>()
                           .Attr<int32_t>("flags")
                           .Attr<int32_t>("activation")
                           .Attr<int32_t>("recurrent_activation")
                           .RemainingArgs()
                           .RemainingRets());
XLA_FFI_DEFINE_HANDLER(BackwardHandler, Backward,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::State<SpareMemory>>()
                           .Ctx<ffi::ThreadPool>()
                           .Attr<int32_t>("flags")
                           .Attr<int32_t>("activation")
                           .Attr<int32_t>("recurrent_activation")
                           .Attr<int32_t>("skip")
                           .RemainingArgs()
                           .RemainingRets());

// Registers both handlers; what went wrong, else empty. XLA's own macro would swallow it.
std::string RegisterHandlers() {
  const XLA_FFI_Api* api = ffi::GetXlaFfiApi();
  const auto message = [api](XLA_FFI_Error* error) {
    std::string text = ffi::internal::GetErrorMessage(api, error);
    ffi::internal::DestroyError(api, error);
    return text;
  };
  static const ffi::TypeInfo type = ffi::MakeTypeInfo<SpareMemory>();
  if (XLA_FFI_Error* error =
          ffi::Ffi::RegisterTypeId(api, "masked_lstm.SpareMemory", &SpareMemory::id, &type)) {
    return message(error);
  }
  const struct {
    const char* target;
    XLA_FFI_Handler* execute;
  } handlers[] = {{kXlaForward, ForwardHandler}, {kXlaBackward, BackwardHandler}};
  for (const auto& handler : handlers) {
    const XLA_FFI_Handler_Bundle bundle{InstantiateHandler, nullptr, nullptr, handler.execute};
    if (XLA_FFI_Error* error =
            ffi::Ffi::RegisterStaticHandler(api, handler.target, "Host", bundle)) {
      return message(error);
    }
  }
  return "";
}

const std::string& RegistrationError() {
  static const std::string error = RegisterHandlers();
  return error;
}

const bool registered = RegistrationError().empty();  // when the library is loaded

}  // namespace
}  // namespace masked_lstm

// Why a program compiled by XLA cannot call the handlers; empty when it can. For Python.
extern "C" __attribute__((visibility("default"))) const char* masked_lstm_xla_error() {
  return masked_lstm::registered ? "" : masked_lstm::RegistrationError().c_str();
}
