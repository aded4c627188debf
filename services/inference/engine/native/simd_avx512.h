// Sixteen lanes of AVX512 with VNNI; bf16 dot products where the CPU has them, else in fp32.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace simd {

constexpr int kMaxRows = 6;  // rows of a GEMM tile; more gained nothing
constexpr int kMaxQueries = 8;

using F16 = __m512;
using I16 = __m512i;
using Weights = __m512i;  // 16 columns x 4 inputs, unsigned bytes

inline F16 load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F16 x) { _mm512_storeu_ps(p, x); }
inline F16 broadcast(float x) { return _mm512_set1_ps(x); }
inline F16 add(F16 a, F16 b) { return _mm512_add_ps(a, b); }
inline F16 sub(F16 a, F16 b) { return _mm512_sub_ps(a, b); }
inline F16 mul(F16 a, F16 b) { return _mm512_mul_ps(a, b); }
inline F16 div(F16 a, F16 b) { return _mm512_div_ps(a, b); }
inline F16 fma(F16 a, F16 b, F16 c) { return _mm512_fmadd_ps(a, b, c); }
inline F16 max(F16 a, F16 b) { return _mm512_max_ps(a, b); }
inline F16 abs(F16 a) { return _mm512_abs_ps(a); }
inline float sum(F16 a) { return _mm512_reduce_add_ps(a); }
inline float largest(F16 a) { return _mm512_reduce_max_ps(a); }

// The first `count` lanes of a; the others are `rest`.
inline F16 keep(F16 a, int count, float rest) {
  const auto mask = static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1);
  return _mm512_mask_blend_ps(mask, _mm512_set1_ps(rest), a);
}

// 2^n for integral n in the range of normal exponents.
inline F16 scale_by_power(F16 x, F16 n) { return _mm512_scalef_ps(x, n); }
inline F16 round(F16 x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// One stage of a Walsh-Hadamard transform: (a, b) -> (a + b, a - b) for lanes `Stride` apart.
template <int Stride>
inline F16 butterfly(F16 x) {
  F16 other;
  if constexpr (Stride == 8) other = _mm512_shuffle_f32x4(x, x, 0x4e);
  if constexpr (Stride == 4) other = _mm512_shuffle_f32x4(x, x, 0xb1);
  if constexpr (Stride == 2) other = _mm512_permute_ps(x, 0x4e);
  if constexpr (Stride == 1) other = _mm512_permute_ps(x, 0xb1);
  constexpr __mmask16 upper = Stride == 8 ? 0xff00 : Stride == 4 ? 0xf0f0 : Stride == 2 ? 0xcccc : 0xaaaa;
  return _mm512_add_ps(other, _mm512_mask_sub_ps(x, upper, _mm512_setzero_ps(), x));
}

inline I16 broadcast_int(int32_t x) { return _mm512_set1_epi32(x); }
inline F16 to_float(I16 x) { return _mm512_cvtepi32_ps(x); }
inline I16 to_int(F16 x) { return _mm512_cvtps_epi32(x); }
inline I16 add_int(I16 a, I16 b) { return _mm512_add_epi32(a, b); }
inline int32_t sum_int(I16 a) { return _mm512_reduce_add_epi32(a); }
inline void store_bytes(int8_t* p, I16 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(x));
}

inline Weights load_weights(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline Weights low_nibbles(Weights w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
inline Weights high_nibbles(Weights w) { return low_nibbles(_mm512_srli_epi16(w, 4)); }

// acc += for every column, the dot product of its 4 weights with 4 signed bytes.
inline I16 dot(I16 acc, Weights w, int32_t x) { return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x)); }

inline void store_bf16(uint16_t* p, F16 x) {
#ifdef __AVX512BF16__
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(x));
#else
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
#endif
}

inline F16 load_bf16(const uint16_t* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// acc += for every lane, the dot product of its pair of bf16 with one pair.
inline F16 dot_bf16(F16 acc, const uint16_t* pairs, uint32_t pair) {
#ifdef __AVX512BF16__
  return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_loadu_si512(pairs), (__m512bh)_mm512_set1_epi32(pair));
#else
  const __m512i bits = _mm512_loadu_si512(pairs);
  const __m512i high = _mm512_set1_epi32(0xffff0000);
  const F16 x0 = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  const F16 x1 = _mm512_castsi512_ps(_mm512_and_si512(bits, high));
  const F16 y0 = _mm512_castsi512_ps(_mm512_set1_epi32(pair << 16));
  const F16 y1 = _mm512_castsi512_ps(_mm512_set1_epi32(pair & 0xffff0000));
  return _mm512_fmadd_ps(x1, y1, _mm512_fmadd_ps(x0, y0, acc));
#endif
}

}  // namespace simd
