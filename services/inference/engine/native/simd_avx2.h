// Sixteen lanes as two AVX2 registers, in the same terms as simd_avx512.h.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace simd {

constexpr int kMaxRows = 2;  // 16 registers only
constexpr int kMaxQueries = 4;

struct F16 { __m256 a, b; };
struct I16 { __m256i a, b; };
struct Weights { __m256i a, b; };

inline F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F16 x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
inline F16 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F16 add(F16 x, F16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F16 sub(F16 x, F16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F16 mul(F16 x, F16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F16 div(F16 x, F16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F16 fma(F16 x, F16 y, F16 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F16 max(F16 x, F16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F16 abs(F16 x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline float sum(F16 x) {
  const __m256 eight = _mm256_add_ps(x.a, x.b);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}
inline float largest(F16 x) {
  const __m256 eight = _mm256_max_ps(x.a, x.b);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}
inline F16 keep(F16 x, int count, float rest) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256 other = _mm256_set1_ps(rest);
  const __m256 a = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane));
  const __m256 b = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count - 8), lane));
  return {_mm256_blendv_ps(other, x.a, a), _mm256_blendv_ps(other, x.b, b)};
}
inline __m256 scale_half(__m256 x, __m256 n) {
  return _mm256_mul_ps(
      x, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)));
}
inline F16 scale_by_power(F16 x, F16 n) { return {scale_half(x.a, n.a), scale_half(x.b, n.b)}; }
inline F16 round(F16 x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}

template <int Stride>
inline __m256 butterfly_half(__m256 x) {
  __m256 other;
  if constexpr (Stride == 4) other = _mm256_permute2f128_ps(x, x, 1);
  if constexpr (Stride == 2) other = _mm256_permute_ps(x, 0x4e);
  if constexpr (Stride == 1) other = _mm256_permute_ps(x, 0xb1);
  constexpr int upper = Stride == 4 ? 0xf0 : Stride == 2 ? 0xcc : 0xaa;
  return _mm256_add_ps(other, _mm256_blend_ps(x, _mm256_sub_ps(_mm256_setzero_ps(), x), upper));
}
template <int Stride>
inline F16 butterfly(F16 x) {
  if constexpr (Stride == 8) return {_mm256_add_ps(x.a, x.b), _mm256_sub_ps(x.a, x.b)};
  else return {butterfly_half<Stride>(x.a), butterfly_half<Stride>(x.b)};
}

inline I16 broadcast_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline F16 to_float(I16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline I16 to_int(F16 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline I16 add_int(I16 x, I16 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline int32_t sum_int(I16 x) {
  const __m256i eight = _mm256_add_epi32(x.a, x.b);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
inline void store_bytes(int8_t* p, I16 x) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

inline Weights load_weights(const uint8_t* p) {
  const auto* q = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline Weights low_nibbles(Weights w) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(w.a, mask), _mm256_and_si256(w.b, mask)};
}
inline Weights high_nibbles(Weights w) { return low_nibbles({_mm256_srli_epi16(w.a, 4), _mm256_srli_epi16(w.b, 4)}); }

// Two products of a full byte with a signed one do not fit the 16 bits of `maddubs`: even and odd bytes go through
// 16-bit products instead, which are exact.
inline __m256i dot_half(__m256i acc, __m256i w, __m256i x) {
  const __m256i low = _mm256_set1_epi16(255);
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(w, low), _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(w, 8), _mm256_srai_epi16(x, 8));
  return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}
inline I16 dot(I16 acc, Weights w, int32_t x) {
  const __m256i four = _mm256_set1_epi32(x);
  return {dot_half(acc.a, w.a, four), dot_half(acc.b, w.b, four)};
}

inline __m128i bf16_half(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}
inline void store_bf16(uint16_t* p, F16 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bf16_half(x.a));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), bf16_half(x.b));
}
inline __m256 widen(const uint16_t* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline F16 load_bf16(const uint16_t* p) { return {widen(p), widen(p + 8)}; }

inline __m256 dot_bf16_half(__m256 acc, const uint16_t* pairs, __m256 y0, __m256 y1) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs));
  const __m256 x0 = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  const __m256 x1 = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(0xffff0000)));
  return _mm256_fmadd_ps(x1, y1, _mm256_fmadd_ps(x0, y0, acc));
}
inline F16 dot_bf16(F16 acc, const uint16_t* pairs, uint32_t pair) {
  const __m256 y0 = _mm256_castsi256_ps(_mm256_set1_epi32(pair << 16));
  const __m256 y1 = _mm256_castsi256_ps(_mm256_set1_epi32(pair & 0xffff0000));
  return {dot_bf16_half(acc.a, pairs, y0, y1), dot_bf16_half(acc.b, pairs + 16, y0, y1)};
}

}  // namespace simd
