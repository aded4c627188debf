// One step of a whole model: rows of any requests in, logits out.
//
// The work of a layer is a chain of phases with a barrier between them. Products take columns, everything else takes
// rows or (rows, head) pairs; shares are handed out while the phase runs, so that a busy core slows only itself.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#ifdef SIMD_AVX2
#include "simd_avx2.h"
#else
#include "simd_avx512.h"
#endif

#include "attention.h"
#include "gemm.h"
#include "pool.h"

#define EXPORT __attribute__((visibility("default")))

namespace {

using simd::Epilogue;
using simd::Quantised;
using simd::Target;

constexpr int kOwnRows = 2;  // up to so many rows every thread prepares all of them for itself, without a barrier

// Memory of one set of quantised rows.
struct QuantisedRows {
  std::vector<int8_t> bytes;
  std::vector<float> scales, scratch;
  std::vector<int32_t> sums;
  int width = 0, groups = 0;

  void reserve(int rows, int most_inputs, int most_groups) {
    width = most_inputs, groups = most_groups;
    bytes.resize(static_cast<size_t>(rows) * width);
    scales.resize(static_cast<size_t>(rows) * groups);
    sums.resize(static_cast<size_t>(rows) * groups);
    scratch.resize(width);
  }
  Quantised view(int rows, float* scratch_row) {
    return {bytes.data(), scales.data(), sums.data(), scratch_row, width, groups, rows, simd::panel_of(rows)};
  }
};

struct ThreadMemory {
  QuantisedRows own;
  std::vector<float> normed;
  std::vector<float> scratch;
  simd::AttentionScratch attention;
};

// One row's request.
struct Row {
  int position;
  bool clears;  // whether it is the last row of a request that begins its tile in this step
  const int32_t* table;
  const AdapterLayer* adapter;
};

struct Unit {  // rows of one request that attend together
  int row, count, start;
  const int32_t* table;
};

class Model {
 public:
  Model(const Shape& shape, const Weights& weights, int threads)
      : shape_(shape), weights_(weights), pool_(threads), group_(shape.heads / shape.kv_heads) {
    for (int i = 0; i < threads; ++i) memory_.push_back(std::make_unique<ThreadMemory>());
    std::vector<const Linear*> all{&weights.head};
    for (int i = 0; i < shape.layers; ++i) {
      const Layer& layer = weights.layers[i];
      all.insert(all.end(), {&layer.qkv, &layer.out, &layer.gate_up, &layer.down});
    }
    for (const Linear* linear : all) {
      most_inputs_ = std::max(most_inputs_, linear->inputs);
      most_groups_ = std::max(most_groups_, linear->inputs / linear->group);
    }
    cache_ = {nullptr, shape.tiles, shape.kv_heads, shape.head_dim};
    cache_bytes_ = sizeof(uint16_t) * shape.layers * cache_.tiles * shape.kv_heads * 2 * simd::kTile * shape.head_dim;
    // Pages that are never written are never resident.
    void* pages = mmap(nullptr, cache_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    madvise(pages, cache_bytes_, MADV_HUGEPAGE);
    cache_.data = static_cast<uint16_t*>(pages);
  }

  ~Model() { munmap(cache_.data, cache_bytes_); }

  void step(const Step& step) {
    prepare(step);
    pool_.run([&](int thread) { work(thread, step); });
  }

 private:
  int q_width() const { return shape_.heads * shape_.head_dim; }
  int kv_width() const { return shape_.kv_heads * shape_.head_dim; }

  void prepare(const Step& step) {
    rows_.clear(), units_.clear(), wanted_.clear();
    adapted_ = false, fused_ = true;
    const int rows_per_unit = std::max(1, simd::kQueries / group_);
    for (int part = 0; part < step.parts; ++part) {
      const int count = step.counts[part], start = step.starts[part], first = static_cast<int>(rows_.size());
      const int32_t* table = step.tables + step.table_starts[part];
      adapted_ = adapted_ || step.adapters[part] != nullptr;
      fused_ = fused_ && count == 1;
      for (int i = 0; i < count; i += rows_per_unit) {
        units_.push_back({first + i, std::min(rows_per_unit, count - i), start + i, table});
      }
      for (int i = 0; i < count; ++i) rows_.push_back({start + i, false, table, step.adapters[part]});
      const int last = start + count - 1;
      rows_.back().clears = start <= last / simd::kTile * simd::kTile;
      if (step.wanted[part]) wanted_.push_back(first + count - 1);
    }
    plan_attention();
    // Long rows first: whoever is done early takes the short ones.
    std::stable_sort(units_.begin(), units_.end(), [](const Unit& a, const Unit& b) { return a.start > b.start; });
    const size_t rows = rows_.size();
    const int half = shape_.head_dim / 2;
    own_rows_ = static_cast<int>(rows) <= kOwnRows;
    residual_.resize(rows * shape_.dim);
    qkv_.resize(rows * (q_width() + 2 * kv_width()));
    query_.resize(rows * q_width());
    attended_.resize(rows * q_width());
    inner_.resize(rows * shape_.ffn);
    cosine_.resize(rows * half), sine_.resize(rows * half);
    if (adapted_) normed_.resize(rows * shape_.dim), gate_up_.resize(rows * 2 * shape_.ffn);
    if (!own_rows_) shared_.reserve(static_cast<int>(rows), most_inputs_, most_groups_);
    for (auto& memory : memory_) {
      if (own_rows_) memory->own.reserve(kOwnRows, most_inputs_, most_groups_);
      memory->scratch.resize(most_inputs_);
      memory->normed.resize(shape_.dim);
    }
    tickets_ = std::vector<std::atomic<int>>(6 * shape_.layers + 2);
  }

  // With fewer rows than threads can use, segments of their contexts are shared out instead.
  void plan_attention() {
    const int shares = static_cast<int>(units_.size()) * shape_.kv_heads;
    int longest = 0;
    for (const Unit& unit : units_) longest = std::max(longest, unit.start + unit.count);
    const int segments = (longest + simd::kSegment - 1) / simd::kSegment;
    split_segments_ = segments > 1 && shares < 4 * pool_.threads() ? segments : 0;
    if (split_segments_ == 0) return;
    fused_ = false;
    const size_t parts = static_cast<size_t>(shares) * segments;
    if (partials_.size() < parts) partials_.resize(parts);
  }

  // Hands out shares [first, last) of `total`, `share` at a time, until there are none.
  template <typename Work>
  void each(int ticket, int total, int share, const Work& work) {
    for (int first; (first = tickets_[ticket].fetch_add(share, std::memory_order_relaxed)) < total;) {
      work(first, std::min(first + share, total));
    }
  }

  // This thread's part of the rows, the same in every phase: what one phase leaves in its cache the next one finds.
  std::pair<int, int> rows_of(int thread) const {
    const int64_t total = static_cast<int64_t>(rows_.size());
    return {static_cast<int>(total * thread / pool_.threads()), static_cast<int>(total * (thread + 1) / pool_.threads())};
  }

  void multiply(int ticket, const Linear& linear, const Quantised& x, int rows, const Target& to) {
    const int pairs = linear.columns / 32;
    const int share = std::max(1, pairs / (pool_.threads() * 8));
    each(ticket, pairs, share, [&](int first, int last) { simd::multiply(linear, x, rows, first, last, to); });
  }

  // Quantises rows and lets every thread that multiplies see them.
  template <typename Source>
  Quantised quantise(int thread, const Linear& linear, const Source& source) {
    ThreadMemory& memory = *memory_[thread];
    const int total = static_cast<int>(rows_.size());
    Quantised to = (own_rows_ ? memory.own : shared_).view(total, memory.scratch.data());
    const auto [first, last] = own_rows_ ? std::pair<int, int>{0, total} : rows_of(thread);
    for (int row = first; row < last; ++row) simd::quantise(source(row), linear, to, row);
    if (!own_rows_) pool_.barrier();
    return to;
  }

  Quantised quantise_normed(int thread, const Linear& linear, const float* gain) {
    float* normed = memory_[thread]->normed.data();
    return quantise(thread, linear, [&](int row) -> const float* {
      simd::rms_norm(residual_.data() + static_cast<size_t>(row) * shape_.dim, gain, shape_.norm_eps, shape_.dim, normed);
      if (adapted_) {
        // Threads may prepare the same row for themselves; only its owner keeps it for the adapters.
        const auto [first, last] = rows_of(thread);
        if (first <= row && row < last) {
          std::memcpy(normed_.data() + static_cast<size_t>(row) * shape_.dim, normed, sizeof(float) * shape_.dim);
        }
      }
      return normed;
    });
  }

  // Calls work(row, the adapter's matrices of this layer) for this thread's rows with an adapter.
  template <typename Work>
  void adapt(int thread, int layer, const Work& work) {
    const auto [first, last] = rows_of(thread);
    for (int row = first; row < last; ++row) {
      if (rows_[row].adapter != nullptr) work(row, rows_[row].adapter[layer]);
    }
  }

  void work(int thread, const Step& step) {
    start_rows(thread, step);
    pool_.barrier();
    for (int layer = 0; layer < shape_.layers; ++layer) {
      attention(thread, layer);
      feed_forward(thread, layer);
    }
    head(thread, step);
  }

  void start_rows(int thread, const Step& step) {
    const auto [first, last] = rows_of(thread);
    const int half = shape_.head_dim / 2;
    for (int row = first; row < last; ++row) {
      const uint16_t* from = weights_.embedding + static_cast<int64_t>(step.ids[row]) * shape_.dim;
      float* to = residual_.data() + static_cast<size_t>(row) * shape_.dim;
      for (int i = 0; i < shape_.dim; i += 16) simd::store(to + i, simd::load_bf16(from + i));
      for (int i = 0; i < half; ++i) {
        const float angle = static_cast<float>(rows_[row].position) * weights_.frequencies[i];
        cosine_[static_cast<size_t>(row) * half + i] = std::cos(angle);
        sine_[static_cast<size_t>(row) * half + i] = std::sin(angle);
      }
    }
  }

  void attention(int thread, int index) {
    const Layer& layer = weights_.layers[index];
    const int width = q_width() + 2 * kv_width(), total = static_cast<int>(rows_.size());
    const Quantised x = quantise_normed(thread, layer.qkv, layer.attention_norm);
    multiply(6 * index, layer.qkv, x, total, {Epilogue::kStore, qkv_.data(), width});
    pool_.barrier();
    if (adapted_) {
      adapt(thread, index, [&](int row, const AdapterLayer& adapter) {
        const float* normed = normed_.data() + static_cast<size_t>(row) * shape_.dim;
        float* out = qkv_.data() + static_cast<size_t>(row) * width;
        simd::add_low_rank(adapter.q, normed, shape_.dim, out, q_width());
        simd::add_low_rank(adapter.k, normed, shape_.dim, out + q_width(), kv_width());
        simd::add_low_rank(adapter.v, normed, shape_.dim, out + q_width() + kv_width(), kv_width());
      });
      pool_.barrier();
    }
    if (!fused_) {
      // Rows read what others write: all keys are there before any is read.
      const auto [first, last] = rows_of(thread);
      for (int row = first; row < last; ++row) {
        for (int head = 0; head < shape_.kv_heads; ++head) write_row(index, row, head);
      }
      pool_.barrier();
    }
    attend(thread, index);
    pool_.barrier();
    const auto row_of = [&](int row) { return attended_.data() + static_cast<size_t>(row) * q_width(); };
    const Quantised y = quantise(thread, layer.out, row_of);
    multiply(6 * index + 2, layer.out, y, total, {Epilogue::kAdd, residual_.data(), shape_.dim});
    pool_.barrier();
    if (adapted_) {
      adapt(thread, index, [&](int row, const AdapterLayer& adapter) {
        float* out = residual_.data() + static_cast<size_t>(row) * shape_.dim;
        simd::add_low_rank(adapter.out, row_of(row), q_width(), out, shape_.dim);
      });
      pool_.barrier();
    }
  }

  simd::Attention attention_of(int layer, const Unit& unit, int head) const {
    const uint16_t* queries = query_.data() + static_cast<size_t>(unit.row) * q_width();
    return {cache_, layer, head, unit.table, unit.start, unit.count, group_, queries, q_width()};
  }

  void attend(int thread, int index) {
    simd::AttentionScratch& scratch = memory_[thread]->attention;
    const int shares = static_cast<int>(units_.size()) * shape_.kv_heads;
    const auto out = [&](const Unit& unit) { return attended_.data() + static_cast<size_t>(unit.row) * q_width(); };
    if (split_segments_ == 0) {
      each(6 * index + 1, shares, 1, [&](int share, int) {
        const Unit& unit = units_[share / shape_.kv_heads];
        const int head = share % shape_.kv_heads;
        if (fused_) write_row(index, unit.row, head);
        simd::attend(attention_of(index, unit, head), scratch, out(unit));
      });
      return;
    }
    // Few rows with long contexts: threads share out the segments of each.
    each(6 * index + 1, shares * split_segments_, 1, [&](int part, int) {
      const int share = part / split_segments_, segment = part % split_segments_;
      const simd::Attention work = attention_of(index, units_[share / shape_.kv_heads], share % shape_.kv_heads);
      if (segment < work.segments()) simd::attend_segment(work, segment, scratch, partials_[part]);
    });
    pool_.barrier();
    each(6 * index + 5, shares, 1, [&](int share, int) {
      const Unit& unit = units_[share / shape_.kv_heads];
      const simd::Attention work = attention_of(index, unit, share % shape_.kv_heads);
      for (int segment = 0; segment < work.segments(); ++segment) {
        simd::merge(work, segment, partials_[share * split_segments_ + segment], scratch.whole);
      }
      simd::finish(work, scratch.whole, out(unit));
    });
  }

  // Turns a row's queries and keys of one key head, rounds them, and writes keys and values into the cache.
  void write_row(int layer, int row, int head) {
    const int dim = shape_.head_dim, half = dim / 2;
    const float* cosine = cosine_.data() + static_cast<size_t>(row) * half;
    const float* sine = sine_.data() + static_cast<size_t>(row) * half;
    float* qkv = qkv_.data() + static_cast<size_t>(row) * (q_width() + 2 * kv_width());
    const auto scale = simd::broadcast(1.0f / std::sqrt(static_cast<float>(dim)));
    for (int i = head * group_; i < (head + 1) * group_; ++i) {
      simd::turn(qkv + i * dim, cosine, sine, dim);
      uint16_t* query = query_.data() + static_cast<size_t>(row) * q_width() + i * dim;
      for (int d = 0; d < dim; d += 16) simd::store_bf16(query + d, simd::mul(simd::load(qkv + i * dim + d), scale));
    }
    float* k = qkv + q_width() + head * dim;
    simd::turn(k, cosine, sine, dim);
    const Row& at = rows_[row];
    const int tile = at.table[at.position / simd::kTile];
    simd::write_token(cache_, layer, tile, head, at.position % simd::kTile, k, k + kv_width(), at.clears);
  }

  void feed_forward(int thread, int index) {
    const Layer& layer = weights_.layers[index];
    const int total = static_cast<int>(rows_.size());
    const Quantised x = quantise_normed(thread, layer.gate_up, layer.ffn_norm);
    if (adapted_) {
      multiply(6 * index + 3, layer.gate_up, x, total, {Epilogue::kGateUp, gate_up_.data(), 2 * shape_.ffn});
      pool_.barrier();
      finish_gate_up(thread, index);
    } else {
      multiply(6 * index + 3, layer.gate_up, x, total, {Epilogue::kSilu, inner_.data(), shape_.ffn});
    }
    pool_.barrier();
    const auto row_of = [&](int row) { return inner_.data() + static_cast<size_t>(row) * shape_.ffn; };
    const Quantised y = quantise(thread, layer.down, row_of);
    multiply(6 * index + 4, layer.down, y, total, {Epilogue::kAdd, residual_.data(), shape_.dim});
    pool_.barrier();
    if (adapted_) {
      adapt(thread, index, [&](int row, const AdapterLayer& adapter) {
        float* out = residual_.data() + static_cast<size_t>(row) * shape_.dim;
        simd::add_low_rank(adapter.down, row_of(row), shape_.ffn, out, shape_.dim);
      });
      pool_.barrier();
    }
  }

  // With adapters in the step gate and up are kept apart until the low-rank parts are added.
  void finish_gate_up(int thread, int index) {
    adapt(thread, index, [&](int row, const AdapterLayer& adapter) {
      const float* normed = normed_.data() + static_cast<size_t>(row) * shape_.dim;
      float* out = gate_up_.data() + static_cast<size_t>(row) * 2 * shape_.ffn;
      simd::add_low_rank(adapter.gate, normed, shape_.dim, out, shape_.ffn);
      simd::add_low_rank(adapter.up, normed, shape_.dim, out + shape_.ffn, shape_.ffn);
    });
    const auto [first, last] = rows_of(thread);
    for (int row = first; row < last; ++row) {
      const float* gate = gate_up_.data() + static_cast<size_t>(row) * 2 * shape_.ffn;
      float* inner = inner_.data() + static_cast<size_t>(row) * shape_.ffn;
      for (int i = 0; i < shape_.ffn; i += 16) {
        simd::store(inner + i, simd::mul(simd::silu(simd::load(gate + i)), simd::load(gate + shape_.ffn + i)));
      }
    }
  }

  void head(int thread, const Step& step) {
    const int wanted = static_cast<int>(wanted_.size());
    if (wanted == 0) return;
    ThreadMemory& memory = *memory_[thread];
    if (thread == 0) logits_rows_.reserve(wanted, most_inputs_, most_groups_);
    pool_.barrier();
    const Quantised x = logits_rows_.view(wanted, memory.scratch.data());
    for (int i = thread; i < wanted; i += pool_.threads()) {
      const float* row = residual_.data() + static_cast<size_t>(wanted_[i]) * shape_.dim;
      simd::rms_norm(row, weights_.norm, shape_.norm_eps, shape_.dim, memory.normed.data());
      simd::quantise(memory.normed.data(), weights_.head, x, i);
    }
    pool_.barrier();
    multiply(6 * shape_.layers, weights_.head, x, wanted, {Epilogue::kStore, step.logits, weights_.head.columns});
  }

  const Shape shape_;
  const Weights weights_;
  native::Pool pool_;
  const int group_;
  int most_inputs_ = 0, most_groups_ = 0;
  simd::Cache cache_;
  size_t cache_bytes_;
  std::vector<std::unique_ptr<ThreadMemory>> memory_;
  QuantisedRows shared_, logits_rows_;
  std::vector<std::atomic<int>> tickets_;
  // The step's rows.
  std::vector<Row> rows_;
  std::vector<Unit> units_;
  std::vector<int> wanted_;
  bool adapted_ = false, own_rows_ = false;
  bool fused_ = false;  // whether keys are written where they are read: every request has one row
  int split_segments_ = 0;  // how many segments threads share out per row and head; 0 when whole rows are shared out
  std::vector<simd::Partial> partials_;
  std::vector<float> residual_, qkv_, attended_, inner_, cosine_, sine_, normed_, gate_up_;
  std::vector<uint16_t> query_;
};

}  // namespace

extern "C" {

// Null when the cache cannot be reserved. The weights stay the caller's and must outlive the model.
EXPORT void* model_create(const Shape* shape, const Weights* weights, int threads) {
  try {
    return new Model(*shape, *weights, threads);
  } catch (...) {
    return nullptr;
  }
}

EXPORT void model_destroy(void* model) { delete static_cast<Model*>(model); }

// 0, or 1 when memory ran out.
EXPORT int model_step(void* model, const Step* step) {
  try {
    static_cast<Model*>(model)->step(*step);
    return 0;
  } catch (...) {
    return 1;
  }
}
}
