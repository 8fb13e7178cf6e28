// A random problem of the LSTM in any dtype with any mask, and what the CPU core makes of it. For
// tests of the Hopper kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/scalar.cuh"
#include "lstm.h"

namespace masked_lstm {

enum class Mask { kNone, kLengths, kHoles, kEmpty, kRagged };

struct CaseShape {
  int64_t batch, timesteps, input_dim, units;
};

// Bits of `options`.
constexpr int kBackwards = 1, kZeroOutput = 2, kLastOnly = 4, kBare = 8;  // kBare: no bias, states

template <typename T>
constexpr DType kDType = DType::kFloat32;
template <>
constexpr DType kDType<Float16> = DType::kFloat16;
template <>
constexpr DType kDType<BFloat16> = DType::kBFloat16;

template <typename T>
struct Case {
  CaseShape shape;
  std::vector<T> x, kernel, recurrent_kernel, bias, h0, c0, d_outputs, d_h, d_c;
  std::vector<uint8_t> mask;
  std::vector<int32_t> lengths;
  std::vector<int64_t> row_splits;
  LstmProblem p;
  int64_t x_rows, steps;

  Case(const CaseShape& s, Mask kind, int options) : shape(s) {
    std::mt19937 random(11);
    const auto normal = [&](int64_t n, double scale) {
      std::normal_distribution<double> distribution(0, scale);
      std::vector<T> values(n);
      for (T& value : values) {
        value = cuda::Narrow<T>(static_cast<Compute<T>>(distribution(random)));
      }
      return values;
    };
    const int64_t B = s.batch, time = s.timesteps, D = s.input_dim, U = s.units;
    lengths.resize(B);
    for (int32_t& length : lengths) length = static_cast<int32_t>(random() % (time + 1));
    if (B > 1) lengths[0] = static_cast<int32_t>(time), lengths[1] = 0;
    row_splits = {0};
    for (int32_t length : lengths) row_splits.push_back(row_splits.back() + length);
    x_rows = kind == Mask::kRagged ? row_splits.back() : B * time;
    mask.resize(B * time);
    for (uint8_t& valid : mask) valid = kind == Mask::kHoles && random() % 2 == 0;
    x = normal(x_rows * D, 1);
    kernel = normal(D * 4 * U, 1 / std::sqrt(D + 1.0));
    recurrent_kernel = normal(U * 4 * U, 1 / std::sqrt(U));
    bias = normal(4 * U, 0.5);
    h0 = normal(B * U, 0.5), c0 = normal(B * U, 1);
    p.dtype = kDType<T>;
    p.batch = B, p.timesteps = time, p.input_dim = D, p.units = U;
    p.go_backwards = options & kBackwards;
    p.zero_output_for_mask = options & kZeroOutput;
    p.return_sequences = !(options & kLastOnly);
    p.isa = Isa::kGeneric;
    p.x = x.data(), p.kernel = kernel.data(), p.recurrent_kernel = recurrent_kernel.data();
    if (!(options & kBare)) p.bias = bias.data(), p.h0 = h0.data(), p.c0 = c0.data();
    if (kind == Mask::kHoles || kind == Mask::kEmpty) p.mask = mask.data();
    if (kind == Mask::kLengths) p.sequence_lengths = lengths.data();
    if (kind == Mask::kRagged) {
      p.timesteps = *std::max_element(lengths.begin(), lengths.end());
      p.row_splits = row_splits.data();
    }
    if (!CountValidSteps(p, &steps).ok()) std::abort();
    PoisonMasked();
    d_outputs = normal(p.return_sequences ? x_rows * U : B * U, 1);
    d_h = normal(B * U, 1), d_c = normal(B * U, 1);
  }

  // NaN wherever x must not be read.
  void PoisonMasked() {
    for (int64_t at = 0; at < x_rows && p.row_splits == nullptr; ++at) {
      const bool valid = p.mask != nullptr ? mask[at] != 0
                                           : p.sequence_lengths == nullptr ||
                                                 at % p.timesteps < lengths[at / p.timesteps];
      if (!valid) std::memset(&x[at * p.input_dim], 0xff, p.input_dim * sizeof(T));
    }
  }
};

template <typename T>
struct CaseResults {
  std::vector<T> outputs, h, c, dx, d_kernel, d_recurrent_kernel, d_bias, dh0, dc0;
  std::vector<Compute<T>> reserve;

  // Results start as garbage.
  explicit CaseResults(const Case<T>& one, int64_t steps) {
    T garbage;
    std::memset(&garbage, 0x7f, sizeof(garbage));
    const int64_t U = one.p.units, D = one.p.input_dim, B = one.p.batch;
    outputs.assign(one.d_outputs.size(), garbage);
    h.assign(B * U, garbage), c = h, dh0 = h, dc0 = h;
    dx.assign(one.x.size(), garbage);
    reserve.resize(steps * 5 * U);
    if (U > 200) return;  // weight gradients take too long
    d_kernel.assign(D * 4 * U, garbage);
    d_recurrent_kernel.assign(4 * U * U, garbage), d_bias.assign(4 * U, garbage);
  }
  LstmForward Forward(const Case<T>& one, bool save) {
    LstmForward call;
    call.problem = one.p;
    call.outputs = outputs.data(), call.h = h.data(), call.c = c.data();
    if (save) call.reserve = reserve.data();
    return call;
  }
  // `scratch` null: the reserve's own memory.
  LstmBackward Backward(const Case<T>& one, Compute<T>* scratch) {
    LstmBackward call;
    call.problem = one.p;
    call.reserve = reserve.data(), call.scratch = scratch == nullptr ? reserve.data() : scratch;
    call.d_outputs = one.d_outputs.data();
    call.d_h = one.d_h.data(), call.d_c = one.d_c.data();
    call.dx = dx.data();
    if (!d_bias.empty()) {
      call.d_kernel = d_kernel.data(), call.d_bias = d_bias.data();
      call.d_recurrent_kernel = d_recurrent_kernel.data();
    }
    call.dh0 = dh0.data(), call.dc0 = dc0.data();
    return call;
  }
  static constexpr int kForward = 3;  // of All()
  std::vector<const std::vector<T>*> All() const {
    return {&outputs, &h, &c, &dx, &d_kernel, &d_recurrent_kernel, &d_bias, &dh0, &dc0};
  }
};

template <typename T>
CaseResults<T> OnCpu(const Case<T>& one) {
  CaseResults<T> r(one, one.steps);
  size_t bytes = 0;
  (void)LstmForwardWorkspaceBytes(one.p, 1, &bytes);
  std::vector<char> workspace(bytes);
  LstmForward forward = r.Forward(one, true);
  forward.workspace = workspace.data(), forward.workspace_bytes = bytes;
  if (!RunLstmForward(forward, Threads()).ok()) std::abort();
  (void)LstmBackwardWorkspaceBytes(one.p, true, 1, &bytes);
  workspace.assign(bytes, 0);
  std::vector<Compute<T>> scratch(r.reserve.size());
  LstmBackward backward = r.Backward(one, scratch.data());
  backward.workspace = workspace.data(), backward.workspace_bytes = bytes;
  if (!RunLstmBackward(backward, Threads()).ok()) std::abort();
  return r;
}

// The largest difference, over the largest value (at least 1); infinite for NaN.
template <typename T>
double Difference(const std::vector<T>& a, const std::vector<T>& b) {
  double largest = 1, difference = 0;
  for (T value : b) largest = std::max<double>(largest, std::abs(cuda::Widen(value)));
  for (size_t i = 0; i < a.size(); ++i) {
    const double one = std::abs(double{cuda::Widen(a[i])} - double{cuda::Widen(b[i])});
    if (!(one <= 1e30)) return 1e30;
    difference = std::max(difference, one);
  }
  return difference / largest;
}

template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

}  // namespace masked_lstm
