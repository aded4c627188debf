// Rows of signed bytes times a packed matrix of unsigned ones (8 bits with an offset of 128, or 4-bit codes).
//
// Weights come in pairs of 16 columns: for every 4 inputs 64 bytes of the first column block, then 64 of the second.
// Sums are exact integers within a group of inputs, and groups are added in order: a row's result does not depend on
// the rows beside it.
#pragma once
#include <algorithm>
#include <cstring>

#include "rows.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace simd {

enum class Epilogue {
  kStore,    // out = y
  kAdd,      // out += y
  kSilu,     // columns are (16 of gate, 16 of up): out = silu(gate) * up
  kGateUp,   // the same columns, stored apart: gate, then up
};

struct Target {
  Epilogue epilogue;
  float* out;
  int width;  // floats from one row to the next
};

inline int32_t four_bytes(const int8_t* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return x;
}

// Sums over the inputs [start, end) of one group. `x` is a panel: for every 4 inputs, 4 bytes of each row.
template <int Rows>
ALWAYS_INLINE void sum_group_8(const uint8_t* w, const int8_t* x, int inputs, I16 (&sums)[Rows][2]) {
  I16 acc[Rows][2];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) acc[r][0] = sums[r][0], acc[r][1] = sums[r][1];
  if constexpr (Rows <= 2) {
    // Few rows wait for memory: more chains of additions, and the weights are asked for early.
    I16 other[Rows][2];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) other[r][0] = other[r][1] = broadcast_int(0);
    for (int k = 0; k < inputs; k += 8, w += 256, x += 8 * Rows) {
      for (int line = 0; line < 256; line += 64) _mm_prefetch(reinterpret_cast<const char*>(w + 2048 + line), _MM_HINT_T0);
      const Weights w0 = load_weights(w), w1 = load_weights(w + 64);
      const Weights w2 = load_weights(w + 128), w3 = load_weights(w + 192);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        const int32_t x0 = four_bytes(x + 4 * r), x1 = four_bytes(x + 4 * (Rows + r));
        acc[r][0] = dot(acc[r][0], w0, x0);
        acc[r][1] = dot(acc[r][1], w1, x0);
        other[r][0] = dot(other[r][0], w2, x1);
        other[r][1] = dot(other[r][1], w3, x1);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      acc[r][0] = add_int(acc[r][0], other[r][0]);
      acc[r][1] = add_int(acc[r][1], other[r][1]);
    }
  } else {
    for (int k = 0; k < inputs; k += 4, w += 128, x += 4 * Rows) {
      const Weights w0 = load_weights(w), w1 = load_weights(w + 64);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        const int32_t x0 = four_bytes(x + 4 * r);
        acc[r][0] = dot(acc[r][0], w0, x0);
        acc[r][1] = dot(acc[r][1], w1, x0);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) sums[r][0] = acc[r][0], sums[r][1] = acc[r][1];
}

// The same for 4-bit codes: 128 bytes hold 8 inputs, the low nibbles the first four, the high nibbles the others.
template <int Rows>
ALWAYS_INLINE void sum_group_4(const uint8_t* w, const int8_t* x, int inputs, I16 (&sums)[Rows][2]) {
  I16 acc[Rows][2];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) acc[r][0] = sums[r][0], acc[r][1] = sums[r][1];
  for (int k = 0; k < inputs; k += 8, w += 128, x += 8 * Rows) {
    if constexpr (Rows <= 2) {
      for (int line = 0; line < 128; line += 64) _mm_prefetch(reinterpret_cast<const char*>(w + 2048 + line), _MM_HINT_T0);
    }
    const Weights both0 = load_weights(w), both1 = load_weights(w + 64);
    const Weights low0 = low_nibbles(both0), low1 = low_nibbles(both1);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const int32_t x0 = four_bytes(x + 4 * r);
      acc[r][0] = dot(acc[r][0], low0, x0);
      acc[r][1] = dot(acc[r][1], low1, x0);
    }
    const Weights high0 = high_nibbles(both0), high1 = high_nibbles(both1);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const int32_t x1 = four_bytes(x + 4 * (Rows + r));
      acc[r][0] = dot(acc[r][0], high0, x1);
      acc[r][1] = dot(acc[r][1], high1, x1);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) sums[r][0] = acc[r][0], sums[r][1] = acc[r][1];
}

template <int Rows, bool FourBits>
void multiply_tile(const Linear& linear, const Quantised& x, int row, int pair, const Target& to) {
  const int64_t pair_bytes = static_cast<int64_t>(linear.inputs) * (FourBits ? 16 : 32);
  const uint8_t* w = linear.weights + pair * pair_bytes;
  const int8_t* panel = x.bytes + static_cast<int64_t>(row) * x.width;
  F16 y[Rows][2];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) y[r][0] = y[r][1] = broadcast(0.0f);
  for (int start = 0, group = 0; start < linear.inputs; start += linear.group, ++group) {
    const int32_t* sums = x.sums + row * x.groups + group;
    const float* scales = x.scales + row * x.groups + group;
    I16 acc[Rows][2];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) acc[r][0] = acc[r][1] = broadcast_int(FourBits ? 0 : -128 * sums[r * x.groups]);
    if constexpr (FourBits) sum_group_4<Rows>(w + start * 16, panel + start * Rows, linear.group, acc);
    else sum_group_8<Rows>(w + start * 32, panel + start * Rows, linear.group, acc);
    const int64_t column = static_cast<int64_t>(group) * linear.columns + pair * 32;
    const F16 column_scales[2] = {load(linear.scales + column), load(linear.scales + column + 16)};
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const F16 row_scale = broadcast(scales[r * x.groups]);
      for (int j = 0; j < 2; ++j) {
        y[r][j] = fma(to_float(acc[r][j]), mul(column_scales[j], row_scale), y[r][j]);
        if constexpr (FourBits) {
          const F16 row_sum = mul(row_scale, broadcast(static_cast<float>(sums[r * x.groups])));
          y[r][j] = fma(load(linear.minima + column + 16 * j), row_sum, y[r][j]);
        }
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    float* out = to.out + static_cast<int64_t>(row + r) * to.width;
    switch (to.epilogue) {
      case Epilogue::kStore:
        store(out + pair * 32, y[r][0]), store(out + pair * 32 + 16, y[r][1]);
        break;
      case Epilogue::kAdd:
        store(out + pair * 32, add(load(out + pair * 32), y[r][0]));
        store(out + pair * 32 + 16, add(load(out + pair * 32 + 16), y[r][1]));
        break;
      case Epilogue::kSilu:
        store(out + pair * 16, mul(silu(y[r][0]), y[r][1]));
        break;
      case Epilogue::kGateUp:
        store(out + pair * 16, y[r][0]), store(out + linear.columns / 2 + pair * 16, y[r][1]);
        break;
    }
  }
}

template <bool FourBits, int Rows = kMaxRows>
inline void multiply_panel(const Linear& linear, const Quantised& x, int row, int rows, int pair, const Target& to) {
  if (rows == Rows) multiply_tile<Rows, FourBits>(linear, x, row, pair, to);
  else if constexpr (Rows > 1) multiply_panel<FourBits, Rows - 1>(linear, x, row, rows, pair, to);
}

// All rows times the column pairs [first, last). The columns are the outer loop: each weight is read once.
inline void multiply(const Linear& linear, const Quantised& x, int rows, int first, int last, const Target& to) {
  for (int pair = first; pair < last; ++pair) {
    for (int row = 0; row < rows; row += x.panel) {
      const int count = std::min(x.panel, rows - row);
      if (linear.minima != nullptr) multiply_panel<true>(linear, x, row, count, pair, to);
      else multiply_panel<false>(linear, x, row, count, pair, to);
    }
  }
}

}  // namespace simd
