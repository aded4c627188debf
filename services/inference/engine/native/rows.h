// What is done to single rows: normalise, rotate, quantise, turn by position, SiLU.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "model.h"

namespace simd {

// Relative error about 2e-7 in [-87, 88]; smaller arguments count as -87.
inline F16 exp(F16 x) {
  x = max(x, broadcast(-87.0f));
  const F16 n = round(mul(x, broadcast(1.44269504f)));
  F16 r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  F16 y = broadcast(1.0f / 720);
  y = fma(y, r, broadcast(1.0f / 120));
  y = fma(y, r, broadcast(1.0f / 24));
  y = fma(y, r, broadcast(1.0f / 6));
  y = fma(y, r, broadcast(0.5f));
  y = fma(y, r, broadcast(1.0f));
  y = fma(y, r, broadcast(1.0f));
  return scale_by_power(y, n);
}

inline F16 silu(F16 x) {
  // Beyond 80 the exponential would leave fp32 while x / (1 + e^-x) is 0 to all its digits.
  const F16 e = exp(sub(broadcast(0.0f), max(x, broadcast(-80.0f))));
  return div(x, add(broadcast(1.0f), e));
}

inline void rms_norm(const float* x, const float* gain, float eps, int width, float* out) {
  F16 squares = broadcast(0.0f);
  for (int i = 0; i < width; i += 16) {
    const F16 v = load(x + i);
    squares = fma(v, v, squares);
  }
  const F16 scale = broadcast(1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + eps));
  for (int i = 0; i < width; i += 16) store(out + i, mul(mul(load(x + i), scale), load(gain + i)));
}

// Orthonormal Walsh-Hadamard transform of every 64 numbers: spreads outliers, which would spoil a row's scale.
inline void rotate64(const float* x, float* out) {
  F16 a = load(x), b = load(x + 16), c = load(x + 32), d = load(x + 48);
  const F16 ab = add(a, b), a_b = sub(a, b), cd = add(c, d), c_d = sub(c, d);
  F16 v[4] = {add(ab, cd), add(a_b, c_d), sub(ab, cd), sub(a_b, c_d)};
  for (int i = 0; i < 4; ++i) {
    v[i] = butterfly<1>(butterfly<2>(butterfly<4>(butterfly<8>(v[i]))));
    store(out + 16 * i, mul(v[i], broadcast(0.125f)));
  }
}

// Rows as signed bytes, with one scale and the sum of the bytes per group.
//
// They lie in panels of some rows (the last one may have fewer): for every 4 inputs, 4 bytes of each of its rows.
struct Quantised {
  int8_t* bytes;
  float* scales;
  int32_t* sums;
  float* scratch;  // one row of fp32
  int width;       // room for bytes per row
  int groups;      // room for groups per row
  int rows, panel;
};

// Rows per panel: as many as a tile takes, evenly.
inline int panel_of(int rows) {
  const int panels = (rows + kMaxRows - 1) / kMaxRows;
  return panels == 0 ? 1 : (rows + panels - 1) / panels;
}

inline void quantise(const float* x, const Linear& linear, const Quantised& to, int row) {
  const float* source = x;
  if (linear.rotate) {
    for (int i = 0; i < linear.inputs; i += 64) rotate64(x + i, to.scratch + i);
    source = to.scratch;
  }
  const int first = row - row % to.panel, stride = std::min(to.panel, to.rows - first) * 4;
  int8_t* bytes = to.bytes + static_cast<int64_t>(first) * to.width + (row - first) * 4;
  for (int start = 0, group = 0; start < linear.inputs; start += linear.group, ++group) {
    F16 most = broadcast(0.0f);
    for (int i = start; i < start + linear.group; i += 16) most = max(most, abs(load(source + i)));
    const float scale = largest(most) / 127.0f;
    const F16 inverse = broadcast(scale > 0 ? 1.0f / scale : 0.0f);
    I16 total = broadcast_int(0);
    for (int i = start; i < start + linear.group; i += 16) {
      const I16 v = to_int(mul(load(source + i), inverse));
      total = add_int(total, v);
      int8_t sixteen[16];
      store_bytes(sixteen, v);
      for (int j = 0; j < 16; j += 4) std::memcpy(bytes + (i + j) / 4 * stride, sixteen + j, 4);
    }
    to.scales[row * to.groups + group] = scale;
    to.sums[row * to.groups + group] = sum_int(total);
  }
}

// Rotary embedding, half-split: pairs (i, i + H/2).
inline void turn(float* x, const float* cosine, const float* sine, int head_dim) {
  const int half = head_dim / 2;
  for (int i = 0; i < half; ++i) {
    const float left = x[i], right = x[i + half];
    x[i] = left * cosine[i] - right * sine[i];
    x[i + half] = right * cosine[i] + left * sine[i];
  }
}

inline float inner_product(const float* a, const float* b, int width) {
  F16 total = broadcast(0.0f);
  for (int i = 0; i < width; i += 16) total = fma(load(a + i), load(b + i), total);
  return sum(total);
}

// out += b (a x), one row.
inline void add_low_rank(const LowRank& pair, const float* x, int inputs, float* out, int outputs) {
  if (pair.a == nullptr) return;
  thread_local std::vector<float> inner;
  inner.resize(pair.rank);
  for (int r = 0; r < pair.rank; ++r) inner[r] = inner_product(pair.a + static_cast<int64_t>(r) * inputs, x, inputs);
  for (int o = 0; o < outputs; ++o) {
    const float* b = pair.b + static_cast<int64_t>(o) * pair.rank;
    float total = 0;
    for (int r = 0; r < pair.rank; ++r) total += b[r] * inner[r];
    out[o] += total;
  }
}

}  // namespace simd
