// Owns: the pool's protocol; see pool.h.
#include "pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>

namespace mr {

namespace {

constexpr uint32_t over = 0x80000000u;  // no chunk to take, and no stage coming
constexpr auto spin_time = std::chrono::microseconds(50);

uint64_t pack(uint32_t stage, uint32_t chunks) { return uint64_t(stage) << 32 | chunks; }

// The upper half of a little-endian word.
uint32_t* stage_word(std::atomic<uint64_t>& state) { return reinterpret_cast<uint32_t*>(&state) + 1; }

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
  if (sleepers_.load(std::memory_order_seq_cst) > 0)
    syscall(SYS_futex, stage_word(state_), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

void Pool::grant(int threads) {
  granted_.store(std::clamp(threads, 1, this->threads()), std::memory_order_seq_cst);
  syscall(SYS_futex, &granted_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// Until the thread is granted, or the pool ends. One that is let go by a raised grant finds the stage that is open.
void Pool::park(int thread) {
  for (;;) {
    const int32_t granted = granted_.load(std::memory_order_acquire);
    if (thread < granted) return;
    syscall(SYS_futex, &granted_, FUTEX_WAIT_PRIVATE, granted, nullptr, nullptr, 0);
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
      __builtin_ia32_pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  for (;;) {
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    const uint64_t s = state_.load(std::memory_order_seq_cst);
    if (uint32_t(s >> 32) == stage)
      syscall(SYS_futex, stage_word(state_), FUTEX_WAIT_PRIVATE, stage, nullptr, nullptr, 0);
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    const uint64_t now = state_.load(std::memory_order_acquire);
    if (uint32_t(now >> 32) != stage) return now;
  }
}

}  // namespace mr
