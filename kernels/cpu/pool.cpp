// Owns: the pool's protocol; see pool.h.
#include "pool.h"

#include <pthread.h>
#include <signal.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <chrono>
#include <climits>

namespace mr {

namespace {

constexpr uint32_t over = 0x80000000u;  // no chunk to take, and no stage coming
constexpr auto spin_time = std::chrono::microseconds(50);

uint64_t pack(uint32_t stage, uint32_t chunks) { return uint64_t(stage) << 32 | chunks; }

#if defined(__linux__)
// The upper half of a little-endian word: chunks that are taken wake nobody.
uint32_t* stage_word(std::atomic<uint64_t>& state) { return reinterpret_cast<uint32_t*>(&state) + 1; }
void sleep_in_stage(std::atomic<uint64_t>& state, uint64_t seen) {
  syscall(SYS_futex, stage_word(state), FUTEX_WAIT_PRIVATE, uint32_t(seen >> 32), nullptr, nullptr, 0);
}
void wake_all(std::atomic<uint64_t>& state) {
  syscall(SYS_futex, stage_word(state), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}
void sleep_while(std::atomic<int32_t>& word, int32_t seen) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}
void wake_all(std::atomic<int32_t>& word) { syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0); }
#else
// The library's own waiting: it may return for nothing, and the callers look again.
void sleep_in_stage(std::atomic<uint64_t>& state, uint64_t seen) { state.wait(seen); }
void wake_all(std::atomic<uint64_t>& state) { state.notify_all(); }
void sleep_while(std::atomic<int32_t>& word, int32_t seen) { word.wait(seen); }
void wake_all(std::atomic<int32_t>& word) { word.notify_all(); }
#endif

// While spinning.
void pause() {
#if defined(__aarch64__)
  asm volatile("yield");
#else
  __builtin_ia32_pause();
#endif
}

}  // namespace

Pool::Pool(int threads) : state_(pack(0, over)), granted_(threads) {
  // Signals are the host's to handle.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { work(i, false); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Pool::~Pool() {
  closing_.store(true);
  grant(threads());
  open(uint32_t(state_.load() >> 32) + 1, over);
  for (auto& w : workers_) w.join();
}

void Pool::run(Job& job) {
  const int chunks = job.next_stage(0);
  if (chunks == 0) return;
  job_ = &job;
  open(uint32_t(state_.load(std::memory_order_relaxed) >> 32) + 1, uint32_t(chunks));
  work(0, true);
}

void Pool::open(uint32_t stage, uint32_t chunks) {
  if (chunks != over) left_.store(int32_t(chunks), std::memory_order_relaxed);
  state_.store(pack(stage, chunks), std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) wake_all(state_);
}

void Pool::grant(int threads) {
  granted_.store(std::clamp(threads, 1, this->threads()), std::memory_order_seq_cst);
  wake_all(granted_);
}

// Until the thread is granted, or the pool ends. One that is let go by a raised grant finds the stage that is open.
void Pool::park(int thread) {
  for (;;) {
    const int32_t granted = granted_.load(std::memory_order_acquire);
    if (thread < granted) return;
    sleep_while(granted_, granted);
  }
}

void Pool::work(int thread, bool until_over) {
  uint64_t s = state_.load(std::memory_order_acquire);
  for (;;) {
    if (thread >= granted_.load(std::memory_order_relaxed)) {
      park(thread);
      s = state_.load(std::memory_order_acquire);
    }
    const uint32_t stage = uint32_t(s >> 32), chunks = uint32_t(s);
    if (chunks == 0 || chunks == over) {
      if (chunks == over && until_over) return;
      if (closing_.load(std::memory_order_relaxed)) return;
      s = wait(stage);
      continue;
    }
    if (!state_.compare_exchange_weak(s, s - 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
    Job* job = job_;
    job->run_chunk(int(chunks) - 1, thread);
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      const int next = job->next_stage(thread);
      open(stage + 1, next == 0 ? over : uint32_t(next));
    }
    s = state_.load(std::memory_order_acquire);
  }
}

// Until the stage is another one; returns the new state.
uint64_t Pool::wait(uint32_t stage) {
  const auto end = std::chrono::steady_clock::now() + spin_time;
  do {
    for (int i = 0; i < 16; i++) {
      const uint64_t s = state_.load(std::memory_order_acquire);
      if (uint32_t(s >> 32) != stage) return s;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  for (;;) {
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    const uint64_t s = state_.load(std::memory_order_seq_cst);
    if (uint32_t(s >> 32) == stage) sleep_in_stage(state_, s);
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    const uint64_t now = state_.load(std::memory_order_acquire);
    if (uint32_t(now >> 32) != stage) return now;
  }
}

}  // namespace mr
