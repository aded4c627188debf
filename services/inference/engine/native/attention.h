// Attention over key/value tiles of 16 tokens, in bf16 with fp32 sums.
//
// A tile holds, for one key/value head, keys as pairs of dimensions x 16 tokens and values as pairs of tokens x
// dimensions, so that scores and weighted sums come out in vector lanes. Keys are taken in spans of 128 and segments of
// 1,024 at fixed positions, and segments are merged in order, whether one thread computes them or several: a row's result
// does not depend on the rows beside it, nor on how its prompt was cut.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "rows.h"

namespace simd {

constexpr int kTile = 16;
constexpr int kSpan = 128;
constexpr int kSpanTiles = kSpan / kTile;
constexpr int kSegment = 1024;
constexpr int kQueries = 16;  // query vectors (rows x query heads of one key head) that share each load

struct Cache {
  uint16_t* data;
  int64_t tiles;
  int kv_heads, head_dim;

  uint16_t* keys(int layer, int tile, int head) const {
    return data + ((layer * tiles + tile) * kv_heads + head) * (2 * kTile * static_cast<int64_t>(head_dim));
  }
  uint16_t* values(int layer, int tile, int head) const { return keys(layer, tile, head) + kTile * head_dim; }
};

// Keys and values of one token. The last row of a request that began this tile also clears the values behind it: their
// weights are zero, but what an earlier request left there need not be a number.
inline void write_token(const Cache& cache, int layer, int tile, int head, int place, const float* k, const float* v,
                        bool clear_rest) {
  const int width = cache.head_dim;
  uint16_t *keys = cache.keys(layer, tile, head), *values = cache.values(layer, tile, head);
  uint16_t* pair = values + place / 2 * width * 2;
  uint16_t narrow[16];
  for (int d = 0; d < width; d += 16) {
    store_bf16(narrow, load(k + d));
    for (int i = 0; i < 16; i += 2) std::memcpy(keys + ((d + i) / 2 * kTile + place) * 2, narrow + i, 4);
    store_bf16(narrow, load(v + d));
    for (int i = 0; i < 16; ++i) pair[(d + i) * 2 + place % 2] = narrow[i];
  }
  if (!clear_rest) return;
  if (place % 2 == 0) {
    for (int d = 0; d < width; ++d) pair[d * 2 + 1] = 0;
  }
  std::memset(pair + width * 2, 0, sizeof(uint16_t) * (kTile / 2 - 1 - place / 2) * width * 2);
}

// What some keys came to, for up to kQueries query vectors: the largest score, the sum of weights, the weighted values.
struct Partial {
  alignas(64) float sums[kQueries][256];
  float most[kQueries], total[kQueries];
};

struct AttentionScratch {
  alignas(64) float scores[kQueries][kSpan];
  alignas(64) uint16_t weights[kQueries][kSpan];
  Partial segment, whole;
};

inline uint32_t pair_at(const uint16_t* p) {
  uint32_t x;
  std::memcpy(&x, p, 4);
  return x;
}

template <int Count, int Tiles>
inline void score_tiles(const uint16_t* const* keys, const uint16_t* const* queries, int width, float* scores) {
  F16 acc[Tiles][Count];
  for (int t = 0; t < Tiles; ++t)
    for (int q = 0; q < Count; ++q) acc[t][q] = broadcast(0.0f);
  for (int d = 0; d < width / 2; ++d) {
    for (int q = 0; q < Count; ++q) {
      const uint32_t pair = pair_at(queries[q] + 2 * d);
      for (int t = 0; t < Tiles; ++t) acc[t][q] = dot_bf16(acc[t][q], keys[t] + d * 2 * kTile, pair);
    }
  }
  for (int t = 0; t < Tiles; ++t)
    for (int q = 0; q < Count; ++q) store(scores + q * kSpan + t * kTile, acc[t][q]);
}

// Tiles lie anywhere in memory: those that are needed soon are asked for early.
inline void prefetch_tile(const uint16_t* tile, int width) {
  for (int i = 0; i < kTile * width; i += 32) _mm_prefetch(reinterpret_cast<const char*>(tile + i), _MM_HINT_T0);
}

template <int Count>
void score(const uint16_t* const* keys, int tiles, const uint16_t* const* queries, int width, float* scores) {
  int t = 0;
  if constexpr (Count <= 4) {
    for (; t + 2 <= tiles; t += 2) {
      for (int next = t + 2; next < std::min(t + 4, tiles); ++next) prefetch_tile(keys[next], width);
      score_tiles<Count, 2>(keys + t, queries, width, scores + t * kTile);
    }
  }
  for (; t < tiles; ++t) score_tiles<Count, 1>(keys + t, queries, width, scores + t * kTile);
}

// sums += weights times values, `Lanes` x 16 dimensions of `Count` queries at a time.
template <int Count, int Lanes>
void weigh(const uint16_t* const* values, int keys, const uint16_t* weights, int width, int first, float* sums) {
  F16 acc[Count][Lanes];
  for (int q = 0; q < Count; ++q)
    for (int i = 0; i < Lanes; ++i) acc[q][i] = load(sums + q * 256 + first + 16 * i);
  for (int key = 0; key < keys; key += 2) {
    const uint16_t* v = values[key / kTile] + (key % kTile / 2 * width + first) * 2;
    for (int q = 0; q < Count; ++q) {
      const uint32_t pair = pair_at(weights + q * kSpan + key);
      for (int i = 0; i < Lanes; ++i) acc[q][i] = dot_bf16(acc[q][i], v + 32 * i, pair);
    }
  }
  for (int q = 0; q < Count; ++q)
    for (int i = 0; i < Lanes; ++i) store(sums + q * 256 + first + 16 * i, acc[q][i]);
}

template <int Count>
void weigh_all(const uint16_t* const* values, int keys, const uint16_t* weights, int width, float* sums) {
  constexpr int lanes = Count > 4 || kMaxQueries <= 4 ? 2 : 4;
  int first = 0;
  for (; first + 16 * lanes <= width; first += 16 * lanes) {
    weigh<Count, lanes>(values, keys, weights, width, first, sums);
  }
  for (; first < width; first += 16) weigh<Count, 1>(values, keys, weights, width, first, sums);
}

// Calls f.template operator()<n>() for a run-time n in 1..kMaxQueries.
template <int N = kMaxQueries, typename F>
inline void with_count(int n, const F& f) {
  if (n == N) f.template operator()<N>();
  else if constexpr (N > 1) with_count<N - 1>(n, f);
}

// One span's scores become weights; returns by how much earlier sums shrink.
inline float soften(float* scores, uint16_t* weights, int valid, int keys, float& most, float& total) {
  F16 largest_here = broadcast(-std::numeric_limits<float>::infinity());
  for (int i = 0; i < valid; i += 16) {
    largest_here = max(largest_here, keep(load(scores + i), valid - i, -std::numeric_limits<float>::infinity()));
  }
  const float before = most;
  most = std::max(before, largest(largest_here));
  F16 added = broadcast(0.0f);
  for (int i = 0; i < keys; i += 16) {
    const F16 p = keep(exp(sub(load(scores + i), broadcast(most))), std::max(valid - i, 0), 0.0f);
    added = add(added, p);
    store_bf16(weights + i, p);
  }
  const float shrink = before == most ? 1.0f : std::exp(before - most);
  total = total * shrink + sum(added);
  return shrink;
}

// Rows of one request that attend together, for one key head.
struct Attention {
  const Cache& cache;
  int layer, head;
  const int32_t* table;
  int start, rows;  // position of the first row, and how many there are
  int group;        // query heads per key head
  const uint16_t* queries;  // bf16, scaled; rows x heads x width
  int query_width;          // from one row to the next

  int count() const { return rows * group; }
  int segments() const { return (start + rows + kSegment - 1) / kSegment; }
  int64_t offset(int q) const {
    return static_cast<int64_t>(q / group) * query_width + (head * group + q % group) * cache.head_dim;
  }
};

// The keys of one segment.
inline void attend_segment(const Attention& work, int segment, AttentionScratch& scratch, Partial& to) {
  const int width = work.cache.head_dim, count = work.count();
  const int end = std::min((segment + 1) * kSegment, work.start + work.rows);
  const uint16_t* query[kQueries];
  for (int q = 0; q < count; ++q) {
    query[q] = work.queries + work.offset(q);
    to.most[q] = -std::numeric_limits<float>::infinity();
    to.total[q] = 0;
    std::memset(to.sums[q], 0, sizeof(float) * width);
  }
  for (int first = segment * kSegment; first < end; first += kSpan) {
    const int keys = std::min(kSpan, end - first), tiles = (keys + kTile - 1) / kTile;
    const uint16_t *key_tiles[kSpanTiles], *value_tiles[kSpanTiles];
    for (int t = 0; t < tiles; ++t) {
      key_tiles[t] = work.cache.keys(work.layer, work.table[first / kTile + t], work.head);
      value_tiles[t] = work.cache.values(work.layer, work.table[first / kTile + t], work.head);
    }
    const bool few = count <= kMaxQueries;  // then the work per key is small, and memory is what takes time
    if (few) {
      for (int t = 0; t < std::min(tiles, 2); ++t) prefetch_tile(key_tiles[t], width);
    }
    for (int q = 0; q < count; q += kMaxQueries) {
      with_count(std::min(kMaxQueries, count - q), [&]<int N>() {
        score<N>(key_tiles, tiles, query + q, width, scratch.scores[q]);
      });
    }
    if (few) {
      for (int t = 0; t < tiles; ++t) prefetch_tile(value_tiles[t], width);
    }
    for (int q = 0; q < count; ++q) {
      const int valid = std::min(std::max(work.start + q / work.group + 1 - first, 0), keys);
      const float shrink = soften(scratch.scores[q], scratch.weights[q], valid, keys, to.most[q], to.total[q]);
      if (shrink != 1.0f) {
        for (int d = 0; d < width; d += 16) store(to.sums[q] + d, mul(load(to.sums[q] + d), broadcast(shrink)));
      }
    }
    for (int q = 0; q < count; q += kMaxQueries) {
      with_count(std::min(kMaxQueries, count - q), [&]<int N>() {
        weigh_all<N>(value_tiles, keys, scratch.weights[q], width, to.sums[q]);
      });
    }
  }
}

// Adds a later segment; the first one is copied. A segment that lies behind a row changes nothing of it.
inline void merge(const Attention& work, int segment, const Partial& from, Partial& whole) {
  for (int q = 0; q < work.count(); ++q) {
    const bool seen = segment * kSegment <= work.start + q / work.group;
    if (segment > 0 && !seen) continue;
    const float most = segment == 0 ? from.most[q] : std::max(whole.most[q], from.most[q]);
    const float keep_share = segment == 0 ? 0.0f : std::exp(whole.most[q] - most);
    const float add_share = segment == 0 ? 1.0f : std::exp(from.most[q] - most);
    whole.total[q] = segment == 0 ? from.total[q] : whole.total[q] * keep_share + from.total[q] * add_share;
    whole.most[q] = most;
    for (int d = 0; d < work.cache.head_dim; d += 16) {
      const F16 added = mul(load(from.sums[q] + d), broadcast(add_share));
      store(whole.sums[q] + d, segment == 0 ? added : fma(load(whole.sums[q] + d), broadcast(keep_share), added));
    }
  }
}

// Writes the results, fp32, laid out as the queries are.
inline void finish(const Attention& work, const Partial& whole, float* out) {
  for (int q = 0; q < work.count(); ++q) {
    const F16 inverse = broadcast(1.0f / whole.total[q]);
    for (int d = 0; d < work.cache.head_dim; d += 16) {
      store(out + work.offset(q) + d, mul(load(whole.sums[q] + d), inverse));
    }
  }
}

inline void attend(const Attention& work, AttentionScratch& scratch, float* out) {
  for (int segment = 0; segment < work.segments(); ++segment) {
    attend_segment(work, segment, scratch, scratch.segment);
    merge(work, segment, scratch.segment, scratch.whole);
  }
  finish(work, scratch.whole, out);
}

}  // namespace simd
