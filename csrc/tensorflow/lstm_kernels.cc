// CPU OpKernels: TensorFlow's tensors and threads handed to the core.
#include <algorithm>
#include <memory>
#include <mutex>
#include <utility>

#include "cpu/isa.h"
#include "host/arguments.h"
#include "host/environment.h"
#include "host/huge_pages.h"
#include "host/kernel_calls.h"
#include "host/parallel_region.h"
#include "lstm.h"
#include "tensorflow/attributes.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/lib/core/threadpool.h"

namespace masked_lstm {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

ArgumentShape ShapeOf(const Tensor& tensor) {
  ArgumentShape shape;
  shape.rank = tensor.dims();
  for (int i = 0; i < shape.rank && i < 3; ++i) shape.dims[i] = tensor.dim_size(i);
  return shape;
}

DType DTypeOf(const Tensor& tensor) {
  switch (tensor.dtype()) {
    case tensorflow::DT_DOUBLE:
      return DType::kFloat64;
    case tensorflow::DT_HALF:
      return DType::kFloat16;
    case tensorflow::DT_BFLOAT16:
      return DType::kBFloat16;
    default:
      return DType::kFloat32;
  }
}

const void* Data(const Tensor& tensor) { return tensor.data(); }
void* MutableData(Tensor* tensor) { return tensor->data(); }
// Of a tensor just allocated.
void* FreshData(Tensor* tensor) {
  AdviseHugePages(tensor->data(), tensor->TotalBytes());
  return tensor->data();
}

void RunOnPool(void* context, int workers, void (*body)(void*, int), void* argument) {
  auto* pool = static_cast<tensorflow::thread::ThreadPool*>(context);
  ParallelRegion::Run(workers, body, argument,
                      [pool](auto closure) { pool->Schedule(std::move(closure)); });
}

// The device's intra-op pool; the calling thread is one of the workers.
Threads ThreadsOf(OpKernelContext* context) {
  const auto* device_threads = context->device()->tensorflow_cpu_worker_threads();
  Threads threads;
  threads.workers = std::max(1, device_threads->num_threads);
  threads.context = device_threads->workers;
  threads.run = RunOnPool;
  return threads;
}

// The workspace of one call, kept by the op for its next: fresh pages cost more than a small call.
// Calls that run at once have one each; the larger one is kept.
class SpareWorkspace {
 public:
  absl::Status Take(OpKernelContext* context, size_t bytes, Tensor* workspace) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (kept_.TotalBytes() >= bytes) {
        *workspace = std::move(kept_);
        kept_ = Tensor();
        return absl::OkStatus();
      }
    }
    const absl::Status status = context->allocate_temp(
        tensorflow::DT_UINT8, TensorShape({static_cast<int64_t>(bytes)}), workspace);
    if (status.ok()) FreshData(workspace);
    return status;
  }
  void GiveBack(Tensor workspace) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (workspace.TotalBytes() > kept_.TotalBytes()) kept_ = std::move(workspace);
  }

 private:
  std::mutex mutex_;
  Tensor kept_;
};

// What the forward op and its gradient share: attributes and the first nine inputs.
class LstmOpBase : public OpKernel {
 public:
  explicit LstmOpBase(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, attributes_.Read(construction));
  }

 protected:
  absl::Status ReadProblem(OpKernelContext* context, LstmProblem* p, int64_t* steps) const {
    const Tensor& mask = context->input(6);
    ArgumentShapes shapes{ShapeOf(context->input(0)),
                          ShapeOf(context->input(1)),
                          ShapeOf(context->input(2)),
                          ShapeOf(context->input(3)),
                          ShapeOf(context->input(4)),
                          ShapeOf(context->input(5)),
                          {},
                          {},
                          {},
                          {},
                          {}};
    if (mask.dtype() == tensorflow::DT_BOOL) {
      shapes.mask = ShapeOf(mask);
      p->mask = static_cast<const uint8_t*>(Data(mask));
    } else if (mask.dtype() == tensorflow::DT_INT64) {
      shapes.row_splits = ShapeOf(mask);
      p->row_splits = static_cast<const int64_t*>(Data(mask));
    } else if (mask.dims() > 0) {
      shapes.sequence_lengths = ShapeOf(mask);
      p->sequence_lengths = static_cast<const int32_t*>(Data(mask));
    }
    const Tensor &input_factors = context->input(7), &recurrent_factors = context->input(8);
    const bool scale_x = input_factors.shape() != TensorShape({0});
    const bool scale_h = recurrent_factors.shape() != TensorShape({0});
    if (scale_x) shapes.input_factors = ShapeOf(input_factors);
    if (scale_h) shapes.recurrent_factors = ShapeOf(recurrent_factors);
    TF_RETURN_IF_ERROR(ToAbsl(CheckArguments(shapes, p)));
    TF_RETURN_IF_ERROR(ToAbsl(IsaFromEnvironment(&p->isa)));
    p->dtype = DTypeOf(context->input(0));
    attributes_.WriteTo(p);
    if (scale_x) p->input_factors = Data(input_factors);
    if (scale_h) p->recurrent_factors = Data(recurrent_factors);
    p->x = Data(context->input(0));
    p->kernel = Data(context->input(1));
    p->recurrent_kernel = Data(context->input(2));
    p->bias = Data(context->input(3));
    p->h0 = Data(context->input(4));
    p->c0 = Data(context->input(5));
    return ToAbsl(CountValidSteps(*p, steps));
  }

  static int64_t ReserveBytes(const LstmProblem& p, int64_t steps) {
    return steps * 5 * p.units * ComputeBytes(p.dtype);
  }

  // Of x, and of outputs: every step of every row.
  static TensorShape SequencesShape(const LstmProblem& p, int64_t width) {
    if (p.row_splits != nullptr) return TensorShape({p.row_splits[p.batch], width});
    return TensorShape({p.batch, p.timesteps, width});
  }

  static TensorShape StateShape(const LstmProblem& p) { return TensorShape({p.batch, p.units}); }

 protected:
  SpareWorkspace spare_;

 private:
  LstmAttributes attributes_;
};

class LstmOp : public LstmOpBase {
 public:
  explicit LstmOp(OpKernelConstruction* construction) : LstmOpBase(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("save_reserve", &save_reserve_));
  }

  void Compute(OpKernelContext* context) override {
    LstmForward call;
    LstmProblem& p = call.problem;
    int64_t steps = 0;
    OP_REQUIRES_OK(context, ReadProblem(context, &p, &steps));

    // In a graph the executor knows whether a gradient or anybody else reads an output.
    const bool save = save_reserve_ && context->output_required(3);
    const bool write_outputs = context->output_required(0);
    Tensor *outputs = nullptr, *h = nullptr, *c = nullptr, *reserve = nullptr, workspace;
    if (write_outputs) {
      OP_REQUIRES_OK(
          context,
          context->allocate_output(
              0, p.return_sequences ? SequencesShape(p, p.units) : StateShape(p), &outputs));
      call.outputs = FreshData(outputs);
    }
    OP_REQUIRES_OK(context, context->allocate_output(1, StateShape(p), &h));
    OP_REQUIRES_OK(context, context->allocate_output(2, StateShape(p), &c));
    OP_REQUIRES_OK(context,
                   context->allocate_output(
                       3, TensorShape({save ? ReserveBytes(p, steps) : int64_t{0}}), &reserve));
    call.h = MutableData(h);
    call.c = MutableData(c);
    if (save) call.reserve = FreshData(reserve);

    const Threads threads = ThreadsOf(context);
    OP_REQUIRES_OK(context,
                   ToAbsl(LstmForwardWorkspaceBytes(p, threads.workers, &call.workspace_bytes)));
    OP_REQUIRES_OK(context, spare_.Take(context, call.workspace_bytes, &workspace));
    call.workspace = MutableData(&workspace);
    const Status status = RunLstmForward(call, threads);
    spare_.GiveBack(std::move(workspace));
    OP_REQUIRES_OK(context, ToAbsl(status));
    CountCpuCall(ForwardIsa(p), p.dtype, Pass::kForward);
  }

 private:
  bool save_reserve_;
};

class LstmGradOp : public LstmOpBase {
 public:
  explicit LstmGradOp(OpKernelConstruction* construction) : LstmOpBase(construction) {
    OP_REQUIRES_OK(construction, ReadSkip(construction, &skip_));
  }

  void Compute(OpKernelContext* context) override {
    constexpr int kReserve = 9, kDOutputs = 10, kDH = 11, kDC = 12;
    LstmBackward call;
    LstmProblem& p = call.problem;
    int64_t steps = 0;
    OP_REQUIRES_OK(context, ReadProblem(context, &p, &steps));
    OP_REQUIRES_OK(context, ToAbsl(CheckResultGradients(p, ShapeOf(context->input(kDOutputs)),
                                                        ShapeOf(context->input(kDH)),
                                                        ShapeOf(context->input(kDC)))));
    const Tensor& reserve = context->input(kReserve);
    const int64_t needed = ReserveBytes(p, steps);
    if (reserve.NumElements() > 0) {
      OP_REQUIRES(context, reserve.NumElements() >= needed,
                  absl::InvalidArgumentError(absl::StrCat(
                      "reserve: expected ", needed, " bytes as MaskedLstm gave",
                      " for the same inputs, got shape ", reserve.shape().DebugString())));
      call.reserve = Data(reserve);
    }
    const TensorShape scratch_shape({std::max(needed, reserve.NumElements())});
    call.d_outputs = Data(context->input(kDOutputs));
    call.d_h = Data(context->input(kDH));
    call.d_c = Data(context->input(kDC));

    const struct {
      TensorShape shape;
      void** data;
    } results[] = {{SequencesShape(p, p.input_dim), &call.dx},
                   {TensorShape({p.input_dim, 4 * p.units}), &call.d_kernel},
                   {TensorShape({p.units, 4 * p.units}), &call.d_recurrent_kernel},
                   {TensorShape({4 * p.units}), &call.d_bias},
                   {StateShape(p), &call.dh0},
                   {StateShape(p), &call.dc0}};
    for (int i = 0; i < 6; ++i) {
      if (!context->output_required(i)) continue;
      Tensor* result = nullptr;
      const TensorShape shape = skip_[i] ? TensorShape({0}) : results[i].shape;
      OP_REQUIRES_OK(context, context->allocate_output(i, shape, &result));
      if (!skip_[i]) *results[i].data = FreshData(result);
    }

    // The reserve itself is the scratch memory when nobody else holds it.
    Tensor scratch;
    std::unique_ptr<Tensor> reused = context->forward_input(
        kReserve, OpKernelContext::Params::kNoReservation, tensorflow::DT_UINT8, scratch_shape,
        tensorflow::DEVICE_MEMORY, tensorflow::AllocatorAttributes());
    if (reused != nullptr) {
      scratch = *reused;
    } else {
      OP_REQUIRES_OK(context,
                     context->allocate_temp(tensorflow::DT_UINT8, scratch_shape, &scratch));
      FreshData(&scratch);
    }
    call.scratch = MutableData(&scratch);

    const Threads threads = ThreadsOf(context);
    Tensor workspace;
    OP_REQUIRES_OK(context,
                   ToAbsl(LstmBackwardWorkspaceBytes(p, call.reserve != nullptr, threads.workers,
                                                     &call.workspace_bytes)));
    OP_REQUIRES_OK(context, spare_.Take(context, call.workspace_bytes, &workspace));
    call.workspace = MutableData(&workspace);
    const Status status = RunLstmBackward(call, threads);
    spare_.GiveBack(std::move(workspace));
    OP_REQUIRES_OK(context, ToAbsl(status));
    CountCpuCall(BackwardIsa(p), p.dtype, Pass::kBackward);
  }

 private:
  SkippedGradients skip_;
};

#define REGISTER_CPU(T)                                                                  \
  REGISTER_KERNEL_BUILDER(                                                               \
      Name("MaskedLstm").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), LstmOp); \
  REGISTER_KERNEL_BUILDER(                                                               \
      Name("MaskedLstmGrad").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), LstmGradOp)
REGISTER_CPU(float);
REGISTER_CPU(double);
REGISTER_CPU(Eigen::half);
REGISTER_CPU(Eigen::bfloat16);
#undef REGISTER_CPU

}  // namespace
}  // namespace masked_lstm
