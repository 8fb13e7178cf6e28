// csrc/cuda/hopper/ptx.cuh on the host: clusters by cluster_host.h, warp operations by all lanes
// meeting, tensor cores as chains of multiply-adds in the order of k.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cluster_host.h"
#include "cuda_host.h"

#define MASKED_LSTM_GRID_CONSTANT

namespace masked_lstm {
namespace cuda {
namespace hopper {

typedef uintptr_t SharedAddress;

inline int ClusterRank() { return cuda_host::ClusterRank(); }
inline void SyncBlock() { cuda_host::SyncBlock(); }
inline void SyncCluster() { cuda_host::SyncCluster(); }

struct Shuffled {
  uint32_t value;
  int source;
  uint32_t result;
};

inline uint32_t ShuffleFrom(uint32_t value, int source) {
  Shuffled mine = {value, source, 0};
  cuda_host::Collective(&mine, [](void* const* lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      Shuffled* const one = static_cast<Shuffled*>(lanes[lane]);
      one->result = static_cast<Shuffled*>(lanes[one->source % 32])->value;
    }
  });
  return mine.result;
}
inline uint32_t ShuffleXor(uint32_t value, int mask) {
  return ShuffleFrom(value, ThreadIndex() % 32 ^ mask);
}
inline uint32_t Ballot(bool vote) {
  Shuffled mine = {vote, 0, 0};
  cuda_host::Collective(&mine, [](void* const* lanes) {
    uint32_t votes = 0;
    for (int lane = 0; lane < 32; ++lane) {
      votes |= static_cast<Shuffled*>(lanes[lane])->value << lane;
    }
    for (int lane = 0; lane < 32; ++lane) static_cast<Shuffled*>(lanes[lane])->result = votes;
  });
  return mine.result;
}
inline void SyncWarp() { (void)Ballot(true); }
inline int CountBits(uint32_t bits) { return __builtin_popcount(bits); }

inline int Forget(int value) { return value; }

inline float Reciprocal(float x) { return 1 / x; }
inline float Exp2(float x) { return std::exp2(x); }

// To nearest, ties away from zero; 10 bits of fraction.
inline uint32_t ToTf32(float value) {
  const uint32_t bits = FloatBits(value);
  if ((bits & 0x7f800000) == 0x7f800000) return bits & 0xffffe000;
  return (bits + 0x1000) & 0xffffe000;
}

struct MmaOperands {
  float* sum;  // 4
  const uint32_t *a, *b;
};

typedef float MmaRow __attribute__((vector_size(32)));  // 8 columns

// The operands' values as k runs over a fragment's words: what value(word, part) reads. The
// products of such short values are exact, but for bfloat16's below the smallest float32: adding
// them is a multiply-add.
template <int kPerWord, float (*kValue)(uint32_t, int)>
void MmaOfWarp(void* const* lanes) {
  const auto lane = [&](int i) { return static_cast<MmaOperands*>(lanes[i]); };
  float a[16][8 * kPerWord];
  MmaRow b[8 * kPerWord], c[16];
  for (int i = 0; i < 32; ++i) {
    const int group = i / 4, member = i % 4;
    for (int word = 0; word < 4; ++word) {
      for (int part = 0; part < kPerWord; ++part) {
        const int k = (word / 2 * 4 + member) * kPerWord + part;
        a[group + word % 2 * 8][k] = kValue(lane(i)->a[word], part);
        if (word < 2)
          b[(word * 4 + member) * kPerWord + part][group] = kValue(lane(i)->b[word], part);
      }
      c[group + word / 2 * 8][member * 2 + word % 2] = lane(i)->sum[word];
    }
  }
  for (int row = 0; row < 16; ++row) {
    MmaRow sum = c[row];
    for (int k = 0; k < 8 * kPerWord; ++k) sum += a[row][k] * b[k];
    c[row] = sum;
  }
  for (int i = 0; i < 32; ++i) {
    for (int word = 0; word < 4; ++word) {
      lane(i)->sum[word] = c[i / 4 + word / 2 * 8][i % 4 * 2 + word % 2];
    }
  }
}

inline float HalfOfWord(uint32_t word, int part) {
  return HalfToFloat(static_cast<uint16_t>(word >> (16 * part)));
}
inline float BFloatOfWord(uint32_t word, int part) {
  return FloatFromBits(word >> (16 * part) << 16);
}
inline float Tf32OfWord(uint32_t word, int) { return FloatFromBits(word & 0xffffe000); }

inline void MmaF16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaOperands mine = {sum, a, b};
  cuda_host::Collective(&mine, MmaOfWarp<2, HalfOfWord>);
}
inline void MmaBF16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaOperands mine = {sum, a, b};
  cuda_host::Collective(&mine, MmaOfWarp<2, BFloatOfWord>);
}
inline void MmaTf32(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaOperands mine = {sum, a, b};
  cuda_host::Collective(&mine, MmaOfWarp<1, Tf32OfWord>);
}

inline SharedAddress AddressOf(const void* shared) { return reinterpret_cast<uintptr_t>(shared); }
inline SharedAddress MapToBlock(SharedAddress address, int rank) {
  return cuda_host::MapToBlock(address, rank);
}
inline void BarrierInit(uint64_t* barrier, int arrivals) {
  cuda_host::BarrierInit(barrier, arrivals);
}
inline void BarrierInitFence() {}
inline void BarrierArriveExpect(uint64_t* barrier, int bytes) {
  cuda_host::BarrierArriveExpect(barrier, bytes);
}
inline void BarrierWait(uint64_t* barrier, unsigned parity) {
  cuda_host::BarrierWait(barrier, static_cast<int>(parity));
}
template <int kWords>
void StoreAsync(SharedAddress address, const uint32_t (&words)[kWords], SharedAddress barrier) {
  cuda_host::StoreAsync(address, words, 4 * kWords, barrier);
}
template <int kBytes>
void CopyAsync(unsigned char* shared, const void* from, bool valid) {
  if (kBytes == 2) {
    std::memset(shared, 0, kBytes);
    if (valid) std::memcpy(shared, from, kBytes);
  } else {
    cuda_host::CopyAsync(shared, valid ? from : nullptr, kBytes);
  }
}
inline void CommitCopies() { cuda_host::CommitCopies(); }
template <int kLeft>
void WaitForCopies() {
  cuda_host::WaitForCopies(kLeft);
}

struct MatrixRows {
  const unsigned char* row;
  uint32_t* words;
};
template <bool kTransposed>
void LoadMatricesOfWarp(void* const* lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t pair[2];
      for (int part = 0; part < 2; ++part) {
        const int along = lane % 4 * 2 + part, across = lane / 4;
        const int row = kTransposed ? along : across, column = kTransposed ? across : along;
        const auto* const source = static_cast<MatrixRows*>(lanes[matrix * 8 + row]);
        std::memcpy(&pair[part], source->row + 2 * column, 2);
      }
      std::memcpy(&static_cast<MatrixRows*>(lanes[lane])->words[matrix], pair, 4);
    }
  }
}
inline void LoadMatrices(const unsigned char* row, uint32_t (&words)[4]) {
  MatrixRows mine = {row, words};
  cuda_host::CheckShared(row, 16);
  cuda_host::Collective(&mine, LoadMatricesOfWarp<false>);
}
inline void LoadMatricesTransposed(const unsigned char* row, uint32_t (&words)[4]) {
  MatrixRows mine = {row, words};
  cuda_host::CheckShared(row, 16);
  cuda_host::Collective(&mine, LoadMatricesOfWarp<true>);
}

template <int kWords>
void GridStore(unsigned char* to, const uint32_t (&words)[kWords]) {
  cuda_host::GridStore(to, words, 4 * kWords);
}
inline void GridLoad(const unsigned char* from, uint32_t (&words)[4]) {
  std::memcpy(words, from, sizeof(words));
}
inline void ReleaseFlag(unsigned* flag, unsigned value) { cuda_host::ReleaseFlag(flag, value); }
inline void WaitForFlag(const unsigned* flag, unsigned value) {
  cuda_host::WaitForFlag(flag, value);
}

}  // namespace hopper
}  // namespace cuda
}  // namespace masked_lstm
