// The LSTM that computes only the timesteps that exist: the only public header of the core.
//
// Letters, used everywhere in csrc/:
//   B batch, T timesteps (as padded), D input_dim, U units, N valid timesteps of the whole batch.
// Layouts (all dense, row-major):
//   x (B,T,D)   kernel (D,4U)   recurrent_kernel (U,4U)   bias (4U)   h, c (B,U)
//   The 4U columns are four blocks of U in Keras' order i, f, c, o.
// Cell:
//   i, f, o = sigmoid(x.W + h.R + b), g = tanh(...),  c' = f*c + i*g,  h' = o*tanh(c')
// or with other functions for sigmoid (recurrent_activation) and tanh (activation).
//
// The core allocates nothing, keeps no state between calls, starts no thread and never throws. The
// caller gives buffers, workspace and threads. x, d_outputs and the like are never read at a masked
// step where the contract (docs/contract.md) says so: NaN in padding reaches no result.
#pragma once

#include <cstddef>
#include <cstdint>

#include "status.h"

namespace masked_lstm {

// float16 and bfloat16 are how values are stored; all arithmetic and the cell state are float32.
enum class DType { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };
constexpr int kDTypes = 4;

// Bytes of a value in the caller's buffers, and of one that is computed with (and kept in reserve).
constexpr int64_t StoredBytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}
constexpr int64_t ComputeBytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }
constexpr const char* DTypeName(DType dtype) {
  return dtype == DType::kFloat64   ? "float64"
         : dtype == DType::kFloat32 ? "float32"
         : dtype == DType::kFloat16 ? "float16"
                                    : "bfloat16";
}

// hard_sigmoid: clip(x/6 + 1/2, 0, 1); softsign: x/(1 + |x|).
enum class Activation { kTanh = 0, kSigmoid, kRelu, kHardSigmoid, kLinear, kSoftsign };
constexpr int kActivations = 6;

// The last two are kAvx512 with products of bfloat16 in the forward pass of that dtype.
enum class Isa { kAuto = -1, kGeneric = 0, kAvx2, kAvx512, kAvx512Bf16, kAmxBf16 };
constexpr int kIsas = 5;

// The recurrences of csrc/cuda/, as kernel_calls() names them.
enum class CudaKernel { kGroups = 0, kClusters, kGrid };
constexpr int kCudaKernels = 3;
constexpr const char* CudaKernelName(CudaKernel kernel) {
  return kernel == CudaKernel::kGroups     ? "groups"
         : kernel == CudaKernel::kClusters ? "clusters"
                                           : "grid";
}
// What a CUDA call asks for: kClusters or kGrid in float16 and bfloat16 (kHopper), in float32 too
// with products of tf32 (kHopperTf32); kHopperGrid is that with kGrid even where kClusters would
// do. kGroups serves whatever device, shape or options rule that out.
enum class CudaChoice { kGroups = 0, kHopper, kHopperTf32, kHopperGrid };

// Threads lent by the caller for one core call.
//
// `run(context, workers, body, argument)` calls body(argument, worker) with worker = 0 on the
// calling thread and, as threads come free, with distinct 1 <= worker < workers on others; it
// returns once every body that began has returned. A body that never begins is not waited for, so a
// pool with one thread, or a busy one, costs time but cannot hang. `workers` may be 1: a call uses
// fewer than it was lent where it has too little work.
struct Threads {
  int workers = 1;          // upper bound, >= 1
  void* context = nullptr;  // handed to run
  void (*run)(void* context, int workers, void (*body)(void* argument, int worker),
              void* argument) = nullptr;  // null: all is done by the caller
  // How many workers, the caller included, are worth using in a small call: those that need not be
  // woken, or all, where calls follow so closely that those woken now will be awake for the next.
  // Null: all.
  int (*awake)(void* context) = nullptr;
};

// What is computed; shared by the forward and the backward call. All pointers are host memory.
struct LstmProblem {
  DType dtype = DType::kFloat32;
  int64_t batch = 0, timesteps = 0, input_dim = 0, units = 0;
  // Steps are walked from the last valid one to the first; outputs stand in processing order.
  bool go_backwards = false;
  // Output at a masked step: zeros, instead of the previous output.
  bool zero_output_for_mask = false;
  // outputs is (B,T,U), else (B,U): the last valid step's output, zeros for a row with none.
  bool return_sequences = true;
  Activation activation = Activation::kTanh;
  Activation recurrent_activation = Activation::kSigmoid;
  Isa isa = Isa::kAuto;                          // of a CPU call
  CudaChoice cuda_choice = CudaChoice::kHopper;  // of a CUDA call

  const void* x = nullptr;                 // (B,T,D) dtype, in
  const void* kernel = nullptr;            // (D,4U) dtype, in
  const void* recurrent_kernel = nullptr;  // (U,4U) dtype, in
  const void* bias = nullptr;              // (4U) dtype, in; null: zeros
  const void* h0 = nullptr;                // (B,U) dtype, in; null: zeros
  const void* c0 = nullptr;                // (B,U) dtype, in; null: zeros
  // Factors of x_t and h_{t-1}, constant over time, for each gate's product: i gets (x*m[0]).W_i.
  // Dropout, as Keras has it. Null: ones. No gradient is computed for them.
  const void* input_factors = nullptr;      // (4,B,D) dtype, in
  const void* recurrent_factors = nullptr;  // (4,B,U) dtype, in
  // At most one of the three; with none every step is valid.
  const uint8_t* mask = nullptr;              // (B,T) bytes, nonzero = use the step, in
  const int32_t* sequence_lengths = nullptr;  // (B), in; each in [0,T], else an error
  // (B+1), in, from 0 on, not falling: a ragged batch. Row b is x[row_splits[b], row_splits[b+1]);
  // x is then (N,D), outputs and d_outputs (N,U), dx (N,D), and T the length of the longest row.
  const int64_t* row_splits = nullptr;
};

struct LstmForward {
  LstmProblem problem;
  void* outputs = nullptr;  // (B,T,U) or (B,U) dtype, out; null: not wanted
  void* h = nullptr;        // (B,U) dtype, out; null: not wanted; may not alias h0
  void* c = nullptr;        // (B,U) dtype, out; null: not wanted; may not alias c0
  // What the backward pass needs: N*5U values of ComputeBytes, out; null for inference. Activated
  // gates (for softsign: what it is applied to), then cell states, rows compact in batch order;
  // their layout is the core's own.
  void* reserve = nullptr;
  void* workspace = nullptr;  // LstmForwardWorkspaceBytes bytes, any alignment
  size_t workspace_bytes = 0;
};

struct LstmBackward {
  LstmProblem problem;
  const void* reserve = nullptr;       // N*5U values from the forward call, in; null: recomputed
  void* scratch = nullptr;             // as much, overwritten; may be the reserve's own memory
  const void* d_outputs = nullptr;     // like outputs, in; null: zeros
  const void* d_h = nullptr;           // (B,U), in; null: zeros
  const void* d_c = nullptr;           // (B,U), in; null: zeros
  void* dx = nullptr;                  // (B,T,D), out, 0 at masked steps; null: not wanted
  void* d_kernel = nullptr;            // (D,4U), out; null: not wanted
  void* d_recurrent_kernel = nullptr;  // (U,4U), out; null: not wanted
  void* d_bias = nullptr;              // (4U), out; null: not wanted
  void* dh0 = nullptr;                 // (B,U), out; null: not wanted; may not alias d_h
  void* dc0 = nullptr;                 // (B,U), out; null: not wanted; may not alias d_c
  void* workspace = nullptr;           // LstmBackwardWorkspaceBytes bytes, any alignment
  size_t workspace_bytes = 0;
};

// Checks sizes, pointers of the schedule and every length; on success *steps = N.
// Errors: kInvalidArgument (a size below 0 or units = 0, a product that overflows, more than one
// of mask, lengths and row splits, a length or a row outside [0,T]); nothing has been computed
// then.
Status CountValidSteps(const LstmProblem& problem, int64_t* steps) noexcept;

// Bytes of workspace for a call with Threads::workers = `workers`. Same errors as above, and
// kUnsupported when this CPU lacks problem.isa.
Status LstmForwardWorkspaceBytes(const LstmProblem& problem, int workers, size_t* bytes) noexcept;
Status LstmBackwardWorkspaceBytes(const LstmProblem& problem, bool have_reserve, int workers,
                                  size_t* bytes) noexcept;

// Outputs, states, dx, dh0 and dc0 of a sequence do not depend, bit by bit, on the rest of the
// batch, the padding or the threads; weight gradients do not depend on the threads.
Status RunLstmForward(const LstmForward& call, const Threads& threads) noexcept;
Status RunLstmBackward(const LstmBackward& call, const Threads& threads) noexcept;

}  // namespace masked_lstm
