// Values as the caller's buffers hold them: of the type they are computed in, or of half its width.
// float16 and bfloat16 are widened as they are read and rounded (to nearest, ties to even) as they
// are written; everything between is float32. Denormal halves
// are read and written as they are, whatever the thread's mode.
#pragma once

#include <cstring>

#include "stored_types.h"
#include "vec.h"

namespace masked_lstm {
namespace MASKED_LSTM_ISA_NAMESPACE {

typedef uint16_t Halves __attribute__((vector_size(MASKED_LSTM_VECTOR_BYTES / 2)));
typedef uint32_t Words __attribute__((vector_size(MASKED_LSTM_VECTOR_BYTES)));

MASKED_LSTM_INLINE Vec<float> WidenBits(Halves bits, BFloat16) {
  return (Vec<float>)(__builtin_convertvector(bits, Words) << 16);
}

MASKED_LSTM_INLINE Halves NarrowBits(Vec<float> values, BFloat16) {
  const Words bits = (Words)values;
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Words nan = (bits >> 16) | 0x40;
  return __builtin_convertvector((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded, Halves);
}

#if MASKED_LSTM_VECTOR_BYTES == 64 && defined(__AVX512F__)
MASKED_LSTM_INLINE Vec<float> WidenBits(Halves bits, Float16) {
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, (__m256i)bits);
}
MASKED_LSTM_INLINE Halves NarrowBits(Vec<float> values, Float16) {
  return (Halves)_mm512_maskz_cvtps_ph(0xffff, (__m512)values,
                                       _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif MASKED_LSTM_VECTOR_BYTES == 32 && defined(__F16C__)
MASKED_LSTM_INLINE Vec<float> WidenBits(Halves bits, Float16) {
  return (Vec<float>)_mm256_cvtph_ps((__m128i)bits);
}
MASKED_LSTM_INLINE Halves NarrowBits(Vec<float> values, Float16) {
  return (Halves)_mm256_cvtps_ph((__m256)values, _MM_FROUND_TO_NEAREST_INT);
}
#else
MASKED_LSTM_INLINE Vec<float> WidenBits(Halves bits, Float16) {
  const Words word = __builtin_convertvector(bits, Words);
  const Words magnitude = word & 0x7fff, sign = (word & 0x8000) << 16;
  const Words normal = (magnitude << 13) + (112u << 23);
  const Words infinite = (magnitude << 13) | 0x7f800000;
  // 2^23 + magnitude as a float: no denormal appears on the way, which would be flushed.
  const Vec<float> denormal = ((Vec<float>)(magnitude | 0x4b000000) - 8388608.0f) * 0x1p-24f;
  const Words finite = magnitude < 0x400 ? (Words)denormal : normal;
  return (Vec<float>)((magnitude >= 0x7c00 ? infinite : finite) | sign);
}
MASKED_LSTM_INLINE Halves NarrowBits(Vec<float> values, Float16) {
  const Words bits = (Words)values;
  const Words magnitude = bits & 0x7fffffff, sign = (bits >> 16) & 0x8000;
  const Words normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
  // Below 2^-14: the sum with 0.5 is rounded to multiples of 2^-24, the smallest half.
  const Words denormal = (Words)((Vec<float>)magnitude + 0.5f) - 0x3f000000;
  const Words finite = magnitude < 0x38800000 ? denormal : normal;
  const Words infinite =
      magnitude > 0x7f800000 ? (magnitude & 0) + 0x7e00 : (magnitude & 0) + 0x7c00;
  return __builtin_convertvector((magnitude >= 0x47800000 ? infinite : finite) | sign, Halves);
}
#endif

// As Load, Store, LoadFirst and StoreFirst of vec.h.
template <typename Stored>
MASKED_LSTM_INLINE Halves LoadBits(const Stored* p, int64_t n) {
  Halves bits = {};
  if (n >= kWidth<float>) {
    std::memcpy(&bits, p, sizeof(bits));
  } else {
    for (int64_t lane = 0; lane < n; ++lane) bits[lane] = p[lane].bits;
  }
  return bits;
}

template <typename Stored>
MASKED_LSTM_INLINE Vec<float> LoadHalves(const Stored* p, int64_t n) {
  return WidenBits(LoadBits(p, n), Stored());
}

template <typename Stored>
MASKED_LSTM_INLINE void StoreHalves(Stored* p, Vec<float> v, int64_t n) {
  const Halves bits = NarrowBits(v, Stored());
  if (n >= kWidth<float>) {
    std::memcpy(p, &bits, sizeof(bits));
  } else {
    for (int64_t lane = 0; lane < n; ++lane) p[lane].bits = bits[lane];
  }
}

MASKED_LSTM_INLINE Vec<float> LoadFirst(const Float16* p, int64_t n) { return LoadHalves(p, n); }
MASKED_LSTM_INLINE Vec<float> LoadFirst(const BFloat16* p, int64_t n) { return LoadHalves(p, n); }
MASKED_LSTM_INLINE void StoreFirst(Float16* p, Vec<float> v, int64_t n) { StoreHalves(p, v, n); }
MASKED_LSTM_INLINE void StoreFirst(BFloat16* p, Vec<float> v, int64_t n) { StoreHalves(p, v, n); }

// to[0,n) = from[0,n), into or out of the type of computation.
template <typename To, typename From>
MASKED_LSTM_INLINE void Convert(To* to, const From* from, int64_t n) {
  if (sizeof(To) == sizeof(From)) {
    std::memcpy(to, from, n * sizeof(To));
    return;
  }
  constexpr int kStep = kWidth<Compute<From>>;
  for (int64_t at = 0; at < n; at += kStep)
    StoreFirst(to + at, LoadFirst(from + at, n - at), n - at);
}

// to[0,n) = a[0,n) * b[0,n).
template <typename A, typename B>
MASKED_LSTM_INLINE void Multiply(Compute<A>* to, const A* a, const B* b, int64_t n) {
  for (int64_t at = 0; at < n; at += kWidth<Compute<A>>) {
    StoreFirst(to + at, LoadFirst(a + at, n - at) * LoadFirst(b + at, n - at), n - at);
  }
}

// to[0,n) = from[offset, offset + n), or zeros when from is null.
template <typename Stored, typename To>
static void ConvertOrZero(To* to, const void* from, int64_t offset, int64_t n) {
  if (from != nullptr) {
    Convert(to, static_cast<const Stored*>(from) + offset, n);
  } else {
    std::memset(to, 0, n * sizeof(*to));
  }
}

}  // namespace MASKED_LSTM_ISA_NAMESPACE
}  // namespace masked_lstm
