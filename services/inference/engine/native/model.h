// What Python hands over: the model's shape and weights, adapters, and the rows of one step. Plain C layouts; the
// mirror of every struct is in library.py.
#pragma once
#include <cstdint>

extern "C" {

struct Shape {
  int32_t vocab, dim, layers, heads, kv_heads, head_dim, ffn;
  int32_t tiles;  // blocks of 16 tokens that the key/value cache holds
  float norm_eps;
};

// One packed matrix; see pack.py for the order of its bytes.
struct Linear {
  const uint8_t* weights;
  const float* scales;   // groups x columns
  const float* minima;   // the same, of 4-bit weights; null for 8-bit ones
  int32_t inputs;        // a multiple of 64
  int32_t columns;       // padded to a multiple of 32
  int32_t group;         // inputs per scale
  int32_t rotate;        // whether inputs are rotated by 64 before they are quantised
};

struct Layer {
  const float* attention_norm;
  const float* ffn_norm;
  Linear qkv, out, gate_up, down;
};

struct Weights {
  const uint16_t* embedding;   // vocab x dim, bf16
  const float* norm;           // dim
  const float* frequencies;    // head_dim / 2, radians per position
  const Layer* layers;
  Linear head;
};

// One low-rank pair: out += b (a x). All null where the adapter leaves the matrix alone.
struct LowRank {
  const float* a;  // rank x inputs
  const float* b;  // outputs x rank, scale included
  int32_t rank;
};

// q, k, v, o, gate, up, down of one layer.
struct AdapterLayer {
  LowRank q, k, v, out, gate, up, down;
};

struct Step {
  int32_t parts;
  const int32_t* counts;         // rows of each part
  const int32_t* starts;         // position of each part's first row
  const int32_t* tables;         // tiles of all parts, one after the other
  const int32_t* table_starts;   // where each part's begin
  const int32_t* ids;            // token ids of all rows
  const uint8_t* wanted;         // of each part: whether its last row's logits are wanted
  const AdapterLayer* const* adapters;  // of each part; null for the base model
  float* logits;                 // wanted parts x head columns
};
}
