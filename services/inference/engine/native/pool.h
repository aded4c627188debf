// A few threads that work on one step together: they spin for some microseconds at a barrier, then sleep.
//
// Not OpenMP: PyTorch's wheels bring a runtime of their own, and a second one would be a second set of spinning threads.
#pragma once
#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace native {

constexpr int kSpins = 2000;

// Waits until `value` is no longer `old`.
inline void wait_change(std::atomic<int>& value, int old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (value.load(std::memory_order_acquire) != old) return;
    _mm_pause();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

class Pool {
 public:
  explicit Pool(int threads) : threads_(threads) {
    for (int thread = 1; thread < threads; ++thread) {
      workers_.emplace_back([this, thread] { serve(thread); });
    }
  }

  ~Pool() {
    stopping_ = true;
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  int threads() const { return threads_; }

  // Calls work(0) here and work(1), ... in the other threads; returns when all have returned.
  void run(const std::function<void(int)>& work) {
    work_ = &work;
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    work(0);
    barrier();
  }

  // Every thread of `run` must come here before any of them goes on.
  void barrier() {
    const int phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      phase_.notify_all();
    } else {
      wait_change(phase_, phase);
    }
  }

 private:
  void serve(int thread) {
    for (int seen = 0;; ++seen) {
      wait_change(round_, seen);
      if (stopping_) return;
      (*work_)(thread);
      barrier();
    }
  }

  const int threads_;
  std::vector<std::thread> workers_;
  const std::function<void(int)>* work_ = nullptr;
  std::atomic<bool> stopping_{false};
  alignas(64) std::atomic<int> round_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> phase_{0};
};

}  // namespace native
