// What a compiled program calls on the CPU: XLA's buffers and threads handed to the core.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "cpu/isa.h"
#include "host/environment.h"
#include "host/huge_pages.h"
#include "host/kernel_calls.h"
#include "host/thread_pool.h"
#include "tensorflow/xla_buffers.h"

namespace masked_lstm {
namespace {

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

// As many as the program's intra-op pool has; the calling thread is one of the workers.
Threads ThreadsOf(const ffi::ThreadPool& pool) {
  return PoolThreads(static_cast<int>(std::max<int64_t>(1, pool.num_threads())));
}

// Reads *p, and N into *steps.
Status ReadCpuProblem(const Buffers& buffers, const Attributes& attributes, LstmProblem* p,
                      int64_t* steps) {
  MASKED_LSTM_RETURN_IF_ERROR(ReadProblem(buffers, attributes, /*on_host=*/true, p));
  MASKED_LSTM_RETURN_IF_ERROR(IsaFromEnvironment(&p->isa));
  return CountValidSteps(*p, steps);
}

// Before they are written for the first time.
void AdviseResults(const Buffers& buffers) {
  for (size_t i = 0; i < buffers.results.size(); ++i) {
    const ffi::AnyBuffer result = buffers.Result(static_cast<int>(i));
    AdviseHugePages(result.untyped_data(), result.size_bytes());
  }
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
      ToFfi(ReadCpuProblem(buffers, {flags, activation, recurrent_activation}, &p, &steps)));
  RETURN_IF_FFI_ERROR(ToFfi(ReadForward(buffers, steps, &call)));
  AdviseResults(buffers);
  const Threads threads = ThreadsOf(pool);
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
      ToFfi(ReadCpuProblem(buffers, {flags, activation, recurrent_activation}, &p, &steps)));
  RETURN_IF_FFI_ERROR(ToFfi(ReadBackward(buffers, skip, steps, /*exact_reserve=*/false, &call)));
  AdviseResults(buffers);
  const Threads threads = ThreadsOf(pool);
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

// What went wrong, else empty.
std::string Register() {
  static const ffi::TypeInfo type = ffi::MakeTypeInfo<SpareMemory>();
  const std::string error = Words(ffi::Ffi::RegisterTypeId(
      ffi::GetXlaFfiApi(), "masked_lstm.SpareMemory", &SpareMemory::id, &type));
  if (!error.empty()) return error;
  return RegisterHandlers("Host", InstantiateHandler, ForwardHandler, BackwardHandler);
}

const std::string& RegistrationError() {
  static const std::string error = Register();
  return error;
}

const bool registered = RegistrationError().empty();  // when the library is loaded

}  // namespace
}  // namespace masked_lstm

// Why a program compiled by XLA cannot call the handlers; empty when it can. For Python.
extern "C" __attribute__((visibility("default"))) const char* masked_lstm_xla_error() {
  return masked_lstm::registered ? "" : masked_lstm::RegistrationError().c_str();
}
