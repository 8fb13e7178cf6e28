// The ops inside XLA, on every device that XLA compiles for: shapes are checked while the program
// is compiled, and the op becomes a call of one of the handlers of xla_call.h.
//
// Sizes of XLA are fixed, or fixed bounds with a size that only a run shows (of what
// tf.boolean_mask gives, say). For such a batch or number of timesteps the handlers compute up to
// the bound, and what lies behind the size is masked here.
#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "host/arguments.h"
#include "host/environment.h"
#include "lstm.h"
#include "tensorflow/attributes.h"
#include "tensorflow/compiler/tf2xla/xla_op_kernel.h"
#include "tensorflow/xla_call.h"
#include "xla/hlo/builder/lib/constants.h"

namespace masked_lstm {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::XlaOpKernel;
using tensorflow::XlaOpKernelContext;
using xla::XlaOp;

ArgumentShape ShapeOf(const xla::Shape& from) {
  ArgumentShape shape;
  shape.rank = static_cast<int>(from.dimensions().size());
  for (int i = 0; i < shape.rank && i < 3; ++i) shape.dims[i] = from.dimensions(i);
  return shape;
}

DType DTypeOf(const xla::Shape& shape) {
  switch (shape.element_type()) {
    case xla::F64:
      return DType::kFloat64;
    case xla::F16:
      return DType::kFloat16;
    case xla::BF16:
      return DType::kBFloat16;
    default:
      return DType::kFloat32;
  }
}

constexpr const char* kInputNames[kBackwardInputs] = {
    "inputs", "kernel",        "recurrent_kernel",  "bias",    "h0",        "c0",
    "mask",   "input_factors", "recurrent_factors", "reserve", "d_outputs", "d_h",
    "d_c"};

// As the handlers read and write them: dense, row-major.
xla::Shape Dense(xla::PrimitiveType type, absl::Span<const int64_t> dims) {
  return xla::ShapeUtil::MakeShapeWithDescendingLayout(type, dims);
}

// One call of the op: operands, their shapes (bounds in place of sizes), and the problem.
struct Call {
  std::vector<XlaOp> operands;
  std::vector<xla::Shape> shapes;
  LstmProblem problem;
  xla::PrimitiveType type;
  int64_t max_steps = 0;                  // enough for any mask
  int64_t reserve_bytes = 0;              // likewise
  std::optional<XlaOp> batch, timesteps;  // int32, where only a run shows them
  bool check_lengths = false;             // kCheckLengths

  bool Given(int factors) const {
    return shapes[factors].dimensions() != absl::Span<const int64_t>({0});
  }
  bool ragged() const { return shapes[kMask].element_type() == xla::S64; }

  std::vector<int64_t> Sequences(int64_t width) const {
    if (ragged()) return {shapes[kX].dimensions(0), width};
    return {problem.batch, problem.timesteps, width};
  }
  std::vector<int64_t> State() const { return {problem.batch, problem.units}; }
  std::vector<int64_t> Outputs() const {
    return problem.return_sequences ? Sequences(problem.units) : State();
  }
};

// What the forward op and its gradient share.
class LstmXlaBase : public XlaOpKernel {
 public:
  explicit LstmXlaBase(OpKernelConstruction* construction) : XlaOpKernel(construction) {
    OP_REQUIRES_OK(construction, attributes_.Read(construction));
    on_cuda_ = XlaCallsCuda(construction->device_type().type_string());
  }

 protected:
  absl::Status Read(XlaOpKernelContext* context, int inputs, Call* call) const {
    for (int i = 0; i < inputs; ++i) {
      call->operands.push_back(context->Input(i));
      TF_ASSIGN_OR_RETURN(xla::Shape shape, context->InputXlaShape(i));
      TF_RETURN_IF_ERROR(ReadSizes(i, shape, call));
      call->shapes.push_back(Dense(shape.element_type(), shape.dimensions()));
    }
    call->type = call->shapes[kX].element_type();
    TF_RETURN_IF_ERROR(ToAbsl(CheckShapes(call)));
    if (call->batch || call->timesteps) MaskWhatIsBehindTheSizes(context->builder(), call);
    return absl::OkStatus();
  }

  // Adds what the CUDA handlers want. core_call: LstmForward or LstmBackward without its problem.
  template <typename CoreCall>
  absl::Status AddWorkspace(const Call& call, CoreCall core_call, std::vector<xla::Shape>* results,
                            std::string* attributes) const {
    if (!on_cuda_) return absl::OkStatus();
    LstmProblem& p = core_call.problem = call.problem;
    const int64_t unread = 0;
    if (call.ragged()) p.row_splits = &unread;
    if (call.Given(kInputFactors)) p.input_factors = &unread;
    if (call.Given(kRecurrentFactors)) p.recurrent_factors = &unread;
    size_t bytes = 0;
    TF_RETURN_IF_ERROR(ToAbsl(XlaCudaWorkspace(call.max_steps, &core_call, &bytes)));
    results->push_back(Dense(xla::U8, {static_cast<int64_t>(bytes)}));
    absl::StrAppend(attributes, ", cuda_choice = ", static_cast<int>(p.cuda_choice), " : i32");
    return absl::OkStatus();
  }

  // The call itself: a tuple of results of these shapes.
  XlaOp Emit(XlaOpKernelContext* context, const char* target, const Call& call,
             const std::vector<xla::Shape>& results, const std::string& more_attributes,
             absl::Span<const std::pair<xla::ShapeIndex, std::pair<int64_t, xla::ShapeIndex>>>
                 aliases = {}) const {
    const int flags = (attributes_.go_backwards ? kGoBackwards : 0) |
                      (attributes_.zero_output_for_mask ? kZeroOutputForMask : 0) |
                      (attributes_.return_sequences ? kReturnSequences : 0) |
                      (call.check_lengths ? kCheckLengths : 0);
    const std::string attributes = absl::StrCat(
        "{flags = ", flags, " : i32, activation = ", static_cast<int>(attributes_.activation),
        " : i32, recurrent_activation = ", static_cast<int>(attributes_.recurrent_activation),
        " : i32", more_attributes, "}");
    return xla::CustomCallWithLayout(
        context->builder(), target, call.operands, xla::ShapeUtil::MakeTupleShape(results),
        call.shapes, attributes, /*has_side_effect=*/false, aliases, /*literal=*/nullptr,
        xla::CustomCallSchedule::SCHEDULE_NONE, xla::CustomCallApiVersion::API_VERSION_TYPED_FFI);
  }

  // `op`, whose first dimension is the batch and, with `steps`, the second the timesteps.
  static XlaOp WithSizes(const Call& call, XlaOp op, bool steps) {
    if (call.batch) op = xla::SetDimensionSize(op, *call.batch, 0);
    if (steps && call.timesteps) op = xla::SetDimensionSize(op, *call.timesteps, 1);
    return op;
  }

 private:
  // Notes the sizes of input `i` that only a run shows, and makes its bounds fixed sizes.
  absl::Status ReadSizes(int i, const xla::Shape& shape, Call* call) const {
    for (int dim = 0; dim < static_cast<int>(shape.dimensions().size()); ++dim) {
      if (!shape.is_dynamic_dimension(dim)) continue;
      if (i == kReserve) {  // through a tf.cond: none where the branch with its op is not taken
        call->operands[i] = xla::RemoveDynamicDimension(call->operands[i], dim);
        continue;
      }
      const bool factors = i == kInputFactors || i == kRecurrentFactors;
      const bool sequences = i == kX || i == kDOutputs || i == kMask;
      const bool is_batch = dim == (factors ? 1 : 0) &&
                            (sequences || factors || i == kH0 || i == kC0 || i == kDH || i == kDC);
      const bool is_timesteps = dim == 1 && sequences;
      const bool ragged = input_type(kMask) == tensorflow::DT_INT64;
      if (ragged || !(is_batch || is_timesteps) || (is_timesteps && attributes_.go_backwards)) {
        return absl::UnimplementedError(absl::StrCat(
            kInputNames[i], ": expected dimension ", dim,
            ragged         ? " of a ragged batch"
            : is_timesteps ? ", with go_backwards,"
                           : "",
            " to have a fixed size inside XLA, got one that only a run shows (at most ",
            shape.dimensions(dim), ")"));
      }
      std::optional<XlaOp>& size = is_batch ? call->batch : call->timesteps;
      if (!size) size = xla::GetDimensionSize(call->operands[i], dim);
      call->operands[i] = xla::RemoveDynamicDimension(call->operands[i], dim);
    }
    return absl::OkStatus();
  }

  // Checks every shape and sets the problem's sizes and the size of the reserve.
  Status CheckShapes(Call* call) const {
    const std::vector<xla::Shape>& in = call->shapes;
    LstmProblem& p = call->problem;
    ArgumentShapes shapes{ShapeOf(in[kX]),
                          ShapeOf(in[kKernel]),
                          ShapeOf(in[kRecurrentKernel]),
                          ShapeOf(in[kBias]),
                          ShapeOf(in[kH0]),
                          ShapeOf(in[kC0]),
                          {},
                          {},
                          {},
                          {},
                          {}};
    const int64_t unread = 0;  // values are the handler's to check
    shapes.row_splits_on_host = false;
    if (call->ragged()) {
      shapes.row_splits = ShapeOf(in[kMask]);
      p.row_splits = &unread;
    } else if (in[kMask].element_type() == xla::PRED) {
      shapes.mask = ShapeOf(in[kMask]);
    } else if (!in[kMask].dimensions().empty()) {
      shapes.sequence_lengths = ShapeOf(in[kMask]);
    }
    if (call->Given(kInputFactors)) shapes.input_factors = ShapeOf(in[kInputFactors]);
    if (call->Given(kRecurrentFactors)) shapes.recurrent_factors = ShapeOf(in[kRecurrentFactors]);
    MASKED_LSTM_RETURN_IF_ERROR(CheckArguments(shapes, &p));
    p.row_splits = nullptr;
    p.dtype = DTypeOf(in[kX]);
    attributes_.WriteTo(&p);
    MASKED_LSTM_RETURN_IF_ERROR(CountValidSteps(p, &call->max_steps));  // no mask: every step
    if (call->ragged()) call->max_steps = in[kX].dimensions(0);
    call->reserve_bytes = call->max_steps * 5 * p.units * ComputeBytes(p.dtype);
    return OkStatus();
  }

  // Masks rows from *call.batch and steps from *call.timesteps on.
  void MaskWhatIsBehindTheSizes(xla::XlaBuilder* builder, Call* call) const {
    const int64_t batch = call->problem.batch, timesteps = call->problem.timesteps;
    const auto within = [builder](const std::optional<XlaOp>& size,
                                  const std::vector<int64_t>& dims, int64_t dim) {
      const XlaOp position = xla::Iota(builder, xla::ShapeUtil::MakeShape(xla::S32, dims), dim);
      return size ? xla::Lt(position, *size)
                  : xla::Broadcast(xla::ConstantR0<bool>(builder, true), dims);
    };
    XlaOp& mask = call->operands[kMask];
    xla::Shape& shape = call->shapes[kMask];
    if (shape.element_type() == xla::S32 && shape.dimensions().size() == 1) {
      // Lengths. One above the size is made one above the bound, for the handler to refuse. Those
      // of CUDA would clamp it to the bound, and never refuse in the backward pass: there it is
      // made the size, but for a forward pass that is asked to check.
      if (call->timesteps) {
        call->check_lengths =
            on_cuda_ && call->operands.size() == kForwardInputs && CheckLengthsFromEnvironment();
        const XlaOp too_long =
            on_cuda_ && !call->check_lengths
                ? *call->timesteps
                : xla::ConstantR0<int32_t>(builder, static_cast<int32_t>(timesteps) + 1);
        mask =
            xla::Select(xla::Gt(mask, *call->timesteps), xla::Broadcast(too_long, {batch}), mask);
      }
      mask = xla::Select(within(call->batch, {batch}, 0), mask,
                         xla::Broadcast(xla::ConstantR0<int32_t>(builder, 0), {batch}));
    } else {
      const std::vector<int64_t> dims = {batch, timesteps};
      const XlaOp valid = xla::And(within(call->batch, dims, 0), within(call->timesteps, dims, 1));
      mask = shape.element_type() == xla::PRED ? xla::And(mask, valid) : valid;
      shape = Dense(xla::PRED, dims);
    }
    if (call->operands.size() == kBackwardInputs && call->problem.return_sequences &&
        call->timesteps) {
      // A gradient that arrives at a masked step belongs to the step it repeats: here, to none.
      XlaOp& d_outputs = call->operands[kDOutputs];
      const std::vector<int64_t> dims = {batch, timesteps, call->problem.units};
      const XlaOp valid = within(call->timesteps, dims, 1);
      const XlaOp zeros = xla::Broadcast(xla::Zero(builder, call->type), dims);
      d_outputs = xla::Select(valid, d_outputs, zeros);
    }
  }

  LstmAttributes attributes_;
  bool on_cuda_ = false;  // the handlers are those of CUDA
};

class LstmXla : public LstmXlaBase {
 public:
  explicit LstmXla(OpKernelConstruction* construction) : LstmXlaBase(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("save_reserve", &save_reserve_));
  }

  void Compile(XlaOpKernelContext* context) override {
    Call call;
    OP_REQUIRES_OK(context, Read(context, kForwardInputs, &call));
    std::vector<xla::Shape> shapes = {
        Dense(call.type, call.Outputs()), Dense(call.type, call.State()),
        Dense(call.type, call.State()),
        Dense(xla::U8, {save_reserve_ ? call.reserve_bytes : int64_t{0}})};
    std::string attributes;
    LstmForward core_call;
    if (save_reserve_) core_call.reserve = &core_call;  // not followed
    OP_REQUIRES_OK(context, AddWorkspace(call, core_call, &shapes, &attributes));
    const XlaOp results = Emit(context, kXlaForward, call, shapes, attributes);
    for (int i = 0; i < 4; ++i) {
      const XlaOp result = xla::GetTupleElement(results, i);
      const bool sequences = i == 0 && call.problem.return_sequences;
      context->SetOutput(i, i == 3 ? result : WithSizes(call, result, sequences));
    }
  }

 private:
  bool save_reserve_;
};

class LstmGradXla : public LstmXlaBase {
 public:
  explicit LstmGradXla(OpKernelConstruction* construction) : LstmXlaBase(construction) {
    OP_REQUIRES_OK(construction, ReadSkip(construction, &skip_));
  }

  void Compile(XlaOpKernelContext* context) override {
    Call call;
    OP_REQUIRES_OK(context, Read(context, kBackwardInputs, &call));
    const LstmProblem& p = call.problem;
    const std::vector<int64_t> dims[kGradients] = {call.Sequences(p.input_dim),
                                                   {p.input_dim, 4 * p.units},
                                                   {p.units, 4 * p.units},
                                                   {4 * p.units},
                                                   call.State(),
                                                   call.State()};
    std::vector<xla::Shape> results;
    int skip = 0;
    for (int i = 0; i < kGradients; ++i) {
      results.push_back(Dense(call.type, skip_[i] ? std::vector<int64_t>{0} : dims[i]));
      if (skip_[i]) skip |= 1 << i;
    }
    std::vector<std::pair<xla::ShapeIndex, std::pair<int64_t, xla::ShapeIndex>>> aliases;
    OP_REQUIRES(context, call.shapes[kReserve].dimensions().size() == 1,
                absl::InvalidArgumentError(absl::StrCat("reserve: expected shape (bytes,), got ",
                                                        call.shapes[kReserve].ToString())));
    const int64_t reserve_bytes = call.shapes[kReserve].dimensions(0);
    if (reserve_bytes > 0 && !IsParameter(context->builder(), call.operands[kReserve])) {
      aliases.resize(1);
      aliases[0].first = {kGradients};
      aliases[0].second.first = kReserve;
    }
    results.push_back(Dense(xla::U8, {reserve_bytes > 0 ? reserve_bytes : call.reserve_bytes}));
    std::string attributes = absl::StrCat(", skip = ", skip, " : i32");
    LstmBackward core_call;
    if (reserve_bytes > 0) core_call.reserve = &core_call;  // not followed
    core_call.d_outputs = &core_call;
    OP_REQUIRES_OK(context, AddWorkspace(call, core_call, &results, &attributes));
    const XlaOp gradients = Emit(context, kXlaBackward, call, results, attributes, aliases);
    for (int i = 0; i < kGradients; ++i) {
      const XlaOp gradient = xla::GetTupleElement(gradients, i);
      const bool of_rows = !skip_[i] && (i == 0 || i >= 4);
      context->SetOutput(i, of_rows ? WithSizes(call, gradient, i == 0) : gradient);
    }
  }

 private:
  // Whether `op` comes from outside. If not, the reserve itself is the scratch memory; if so, XLA
  // would have to copy it.
  static bool IsParameter(xla::XlaBuilder* builder, XlaOp op) {
    using Friend = xla::internal::XlaBuilderFriend;
    const xla::HloInstructionProto* instruction = Friend::GetInstruction(op);
    while (instruction->opcode() == "get-tuple-element" || instruction->opcode() == "reshape") {
      instruction = Friend::GetInstructionByHandle(builder, instruction->operand_ids(0));
    }
    return instruction->opcode() == "parameter";
  }

  SkippedGradients skip_;
};

// Not REGISTER_XLA_OP: TensorFlow collects those only once, and a library that is loaded after XLA
// has started would not be found.
#define REGISTER_XLA(DEVICE)                                           \
  REGISTER_KERNEL_BUILDER(Name("MaskedLstm").Device(DEVICE), LstmXla); \
  REGISTER_KERNEL_BUILDER(Name("MaskedLstmGrad").Device(DEVICE), LstmGradXla)
REGISTER_XLA("XLA_CPU_JIT");
REGISTER_XLA("XLA_GPU_JIT");
#undef REGISTER_XLA

}  // namespace
}  // namespace masked_lstm
