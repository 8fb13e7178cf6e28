// What the tensor cores multiply, and how its fragments lie in registers and shared memory.
//
// A chunk is what 16 bytes of each of a row's four lanes hold: 32 values of 16 bits, 16 of tf32,
// two multiplications deep. The order of values within the depth of a multiplication is free as
// long as both operands have the same: lane `member` holds the chunk's 16 bytes number `member`. So
// a row of h or dG lies in shared memory as it is, and a lane reads it with one 16-byte load for
// each chunk; rows begin 64 bytes apart (mod 128), which keeps those loads free of bank conflicts.
#pragma once

#include "cuda/hopper/ptx.cuh"
#include "cuda/scalar.cuh"

namespace masked_lstm {
namespace cuda {
namespace hopper {

constexpr int kLanes = 32;
constexpr int kColumns = 8;                         // of a multiplication: slots
constexpr int kChunkBytes = 64;                     // of one row
constexpr int kFragmentBytes = 2 * 4 * 4 * kLanes;  // a tile of 16 rows, one chunk

template <typename Stored>
struct Operand;

template <>
struct Operand<Float16> {
  static constexpr int kPerWord = 2;
  static MASKED_LSTM_DEVICE uint32_t Bits(Float16 value) { return value.bits; }
  static MASKED_LSTM_DEVICE uint32_t Round(float value) { return Narrow<Float16>(value).bits; }
  static MASKED_LSTM_DEVICE void Mma(float (&sum)[4], const uint32_t (&a)[4],
                                     const uint32_t (&b)[2]) {
    MmaF16(sum, a, b);
  }
};
template <>
struct Operand<BFloat16> {
  static constexpr int kPerWord = 2;
  static MASKED_LSTM_DEVICE uint32_t Bits(BFloat16 value) { return value.bits; }
  static MASKED_LSTM_DEVICE uint32_t Round(float value) { return Narrow<BFloat16>(value).bits; }
  static MASKED_LSTM_DEVICE void Mma(float (&sum)[4], const uint32_t (&a)[4],
                                     const uint32_t (&b)[2]) {
    MmaBF16(sum, a, b);
  }
};
// float32 in its tf32 form: only where the caller allows it.
template <>
struct Operand<float> {
  static constexpr int kPerWord = 1;
  static MASKED_LSTM_DEVICE uint32_t Bits(float value) { return ToTf32(value); }
  static MASKED_LSTM_DEVICE uint32_t Round(float value) { return ToTf32(value); }
  static MASKED_LSTM_DEVICE void Mma(float (&sum)[4], const uint32_t (&a)[4],
                                     const uint32_t (&b)[2]) {
    MmaTf32(sum, a, b);
  }
};

// Words as they lie in memory, made operands: float32 is rounded to tf32.
template <typename Stored>
MASKED_LSTM_DEVICE void RoundWords(uint32_t (&words)[4]) {
  if constexpr (Operand<Stored>::kPerWord == 1) {
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = ToTf32(FloatFromBits(words[i]));
  }
}

template <typename Stored>
constexpr int kOperandBytes = 4 / Operand<Stored>::kPerWord;
// Values of one row in a chunk.
template <typename Stored>
constexpr int kChunkValues = kChunkBytes / kOperandBytes<Stored>;

// Bytes of a row of `values` in shared memory.
template <typename Stored>
constexpr int RowBytes(int values) {
  const int chunks = (values + kChunkValues<Stored> - 1) / kChunkValues<Stored>;
  return (chunks % 2 == 1 ? chunks : chunks + 1) * kChunkBytes;
}

struct alignas(16) Words {
  uint32_t word[4];
};

// This lane's fragments of chunk `chunk` of a tile: weight(row, k) of the tile's 16 rows, for both
// multiplications of the chunk.
template <typename Stored, typename Weight>
MASKED_LSTM_DEVICE void LoadFragment(int chunk, Weight weight, uint32_t (&fragment)[2][4]) {
  constexpr int kPerWord = Operand<Stored>::kPerWord;
  const int lane = ThreadIndex() % kLanes, group = lane / 4, member = lane % 4;
#pragma unroll
  for (int step = 0; step < 2; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = group + i % 2 * 8, word = 2 * step + i / 2;
      const int k = chunk * kChunkValues<Stored> + (4 * member + word) * kPerWord;
      uint32_t bits = 0;
#pragma unroll
      for (int part = 0; part < kPerWord; ++part) bits |= weight(row, k + part) << (16 * part);
      fragment[step][i] = bits;
    }
  }
}

// This lane's part of chunk `chunk` of the row of its column: b of the chunk's two multiplications
// are words 0, 1 and 2, 3. `rows`: kColumns rows of row_bytes.
MASKED_LSTM_DEVICE Words LoadChunk(const unsigned char* rows, int row_bytes, int chunk) {
  const int lane = ThreadIndex() % kLanes;
  return *reinterpret_cast<const Words*>(rows + lane / 4 * row_bytes + chunk * kChunkBytes +
                                         lane % 4 * 16);
}

// A fragment in shared memory: 16 bytes for each lane and multiplication.
MASKED_LSTM_DEVICE void StoreFragment(unsigned char* to, const uint32_t (&fragment)[2][4]) {
  Words* const words = reinterpret_cast<Words*>(to) + ThreadIndex() % kLanes;
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    words[step * kLanes] = {
        {fragment[step][0], fragment[step][1], fragment[step][2], fragment[step][3]}};
  }
}

// sum += tile . chunk, for step 0 or 1 of the chunk.
template <typename Stored>
MASKED_LSTM_DEVICE void MultiplyStep(float (&sum)[4], const uint32_t (&a)[4], const Words& chunk,
                                     int step) {
  const uint32_t b[2] = {chunk.word[2 * step], chunk.word[2 * step + 1]};
  Operand<Stored>::Mma(sum, a, b);
}
template <typename Stored>
MASKED_LSTM_DEVICE void MultiplyStored(float (&sum)[4], const unsigned char* fragment,
                                       const Words& chunk, int step) {
  const Words a = reinterpret_cast<const Words*>(fragment)[step * kLanes + ThreadIndex() % kLanes];
  MultiplyStep<Stored>(sum, a.word, chunk, step);
}

MASKED_LSTM_DEVICE float ShuffleXorFloat(float value, int mask) {
  return FloatFromBits(ShuffleXor(FloatBits(value), mask));
}

// Within 1e-6; FastTanh of small values within 1e-5 of themselves.
MASKED_LSTM_DEVICE float FastSigmoid(float x) {
  constexpr float kLog2E = 1.44269504f;
  return Reciprocal(1.0f + Exp2(-kLog2E * x));
}
MASKED_LSTM_DEVICE float FastTanh(float x) {
  constexpr float kSmall = 1.0f / 64;
  const float small = MulAdd(x * x * x, -1.0f / 3, x);
  return x < kSmall && x > -kSmall ? small : MulAdd(2.0f, FastSigmoid(2.0f * x), -1.0f);
}

}  // namespace hopper
}  // namespace cuda
}  // namespace masked_lstm
