// One vector register of T for the instruction set this file is compiled for
// (MASKED_LSTM_VECTOR_BYTES wide). Written with the compilers' vector extensions: only the fused
// multiply-add needs intrinsics. No standard-library templates in the headers of csrc/cpu, for the
// reason force_inline.h gives.
#pragma once

#include <cstdint>

#include "force_inline.h"

#if defined(__FMA__)
#include <immintrin.h>
#endif

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {

template <typename T>
struct VecOf;

template <>
struct VecOf<float> {
  typedef float Type __attribute__((vector_size(MASKED_LSTM_VECTOR_BYTES)));
  typedef int32_t Bits __attribute__((vector_size(MASKED_LSTM_VECTOR_BYTES)));
};

template <>
struct VecOf<double> {
  typedef double Type __attribute__((vector_size(MASKED_LSTM_VECTOR_BYTES)));
  typedef int64_t Bits __attribute__((vector_size(MASKED_LSTM_VECTOR_BYTES)));
};

template <typename T>
using Vec = typename VecOf<T>::Type;
template <typename T>
using Bits = typename VecOf<T>::Bits;

template <typename T>
constexpr int kWidth = MASKED_LSTM_VECTOR_BYTES / static_cast<int>(sizeof(T));

template <typename T>
MASKED_LSTM_INLINE Vec<T> Load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <typename T>
MASKED_LSTM_INLINE void Store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// The first n < kWidth lanes; the others read as zero and are not written.
template <typename T>
MASKED_LSTM_INLINE Vec<T> LoadLanes(const T* p, int64_t n) {
  Vec<T> v = {};
  for (int64_t lane = 0; lane < n; ++lane) v[lane] = p[lane];
  return v;
}

template <typename T>
MASKED_LSTM_INLINE void StoreLanes(T* p, Vec<T> v, int64_t n) {
  for (int64_t lane = 0; lane < n; ++lane) p[lane] = v[lane];
}
// (AddressSanitizer does not look into masked loads and stores, but into the loops above.)
#if MASKED_LSTM_VECTOR_BYTES == 64 && defined(__AVX512F__) && !defined(__SANITIZE_ADDRESS__)
template <>
MASKED_LSTM_INLINE Vec<float> LoadLanes<float>(const float* p, int64_t n) {
  return (Vec<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
template <>
MASKED_LSTM_INLINE Vec<double> LoadLanes<double>(const double* p, int64_t n) {
  return (Vec<double>)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p);
}
template <>
MASKED_LSTM_INLINE void StoreLanes<float>(float* p, Vec<float> v, int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
}
template <>
MASKED_LSTM_INLINE void StoreLanes<double>(double* p, Vec<double> v, int64_t n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), (__m512d)v);
}
#endif

// The first n lanes, or all where n >= kWidth.
template <typename T>
MASKED_LSTM_INLINE Vec<T> LoadFirst(const T* p, int64_t n) {
  return n >= kWidth<T> ? Load(p) : LoadLanes<T>(p, n);
}

template <typename T>
MASKED_LSTM_INLINE void StoreFirst(T* p, Vec<T> v, int64_t n) {
  if (n >= kWidth<T>) return Store(p, v);
  StoreLanes<T>(p, v, n);
}

template <typename T>
MASKED_LSTM_INLINE Vec<T> Broadcast(T value) {
  return value - Vec<T>{};  // value - 0: every lane, exactly, -0 and NaN included
}

// a * b + c, rounded once where the instruction set can. Files are compiled with
// -ffp-contract=off, so that no other product is fused and bits do not depend on the optimiser.
template <typename T>
MASKED_LSTM_INLINE Vec<T> MulAdd(Vec<T> a, Vec<T> b, Vec<T> c) {
  return a * b + c;
}
#if MASKED_LSTM_VECTOR_BYTES == 64 && defined(__AVX512F__)
template <>
MASKED_LSTM_INLINE Vec<float> MulAdd<float>(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
template <>
MASKED_LSTM_INLINE Vec<double> MulAdd<double>(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
#elif MASKED_LSTM_VECTOR_BYTES == 32 && defined(__FMA__)
template <>
MASKED_LSTM_INLINE Vec<float> MulAdd<float>(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
template <>
MASKED_LSTM_INLINE Vec<double> MulAdd<double>(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#endif

// x kept within [-limit, limit]. A NaN stays one.
template <typename T>
MASKED_LSTM_INLINE Vec<T> Clamp(Vec<T> x, T limit) {
  const Vec<T> high = Broadcast<T>(limit), low = -high;
  x = low > x ? low : x;
  return high < x ? high : x;
}
// max and min return their second operand where one is a NaN. (Without a mask GCC 12 warns about
// its own header.)
#if MASKED_LSTM_VECTOR_BYTES == 64 && defined(__AVX512F__)
template <>
MASKED_LSTM_INLINE Vec<float> Clamp<float>(Vec<float> x, float limit) {
  return (Vec<float>)_mm512_maskz_min_ps(
      0xffff, _mm512_set1_ps(limit),
      _mm512_maskz_max_ps(0xffff, _mm512_set1_ps(-limit), (__m512)x));
}
template <>
MASKED_LSTM_INLINE Vec<double> Clamp<double>(Vec<double> x, double limit) {
  return (Vec<double>)_mm512_maskz_min_pd(
      0xff, _mm512_set1_pd(limit), _mm512_maskz_max_pd(0xff, _mm512_set1_pd(-limit), (__m512d)x));
}
#elif MASKED_LSTM_VECTOR_BYTES == 32 && defined(__FMA__)
template <>
MASKED_LSTM_INLINE Vec<float> Clamp<float>(Vec<float> x, float limit) {
  return (Vec<float>)_mm256_min_ps(_mm256_set1_ps(limit),
                                   _mm256_max_ps(_mm256_set1_ps(-limit), (__m256)x));
}
template <>
MASKED_LSTM_INLINE Vec<double> Clamp<double>(Vec<double> x, double limit) {
  return (Vec<double>)_mm256_min_pd(_mm256_set1_pd(limit),
                                    _mm256_max_pd(_mm256_set1_pd(-limit), (__m256d)x));
}
#endif

// numerator[v] /= denominator[v] within 2 ulp, for denominators of 1 or more.
template <typename T, int N>
MASKED_LSTM_INLINE void Divide(Vec<T> (&numerator)[N], const Vec<T> (&denominator)[N]) {
#if MASKED_LSTM_VECTOR_BYTES == 64 && defined(__AVX512F__)
  // A division of 16 floats blocks the divider for 16 cycles or so; 14 bits and one Newton step do
  // not.
  if constexpr (sizeof(T) == sizeof(float)) {
    Vec<T> estimate[N], error[N];
    for (int v = 0; v < N; ++v) {
      estimate[v] = (Vec<T>)_mm512_maskz_rcp14_ps(0xffff, (__m512)denominator[v]);
    }
    for (int v = 0; v < N; ++v) error[v] = MulAdd<T>(-denominator[v], estimate[v], Broadcast<T>(1));
    for (int v = 0; v < N; ++v) error[v] = MulAdd<T>(error[v], estimate[v], estimate[v]);
    for (int v = 0; v < N; ++v) numerator[v] *= error[v];
    return;
  }
#endif
  for (int v = 0; v < N; ++v) numerator[v] /= denominator[v];
}

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
