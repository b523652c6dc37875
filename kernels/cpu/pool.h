// Owns: the threads. A job is a row of stages, each of some chunks; a chunk is run by whichever thread takes it. The
// caller is thread 0. A stage is over when its chunks are done, not when every thread has been seen: a thread that the
// system has put aside holds nobody up unless it holds a chunk, and one thread alone can run a whole job.
//
//   state:  | stage number (32) | chunks not yet taken (32) |     one word, taken from by compare and swap
//   left:   chunks not yet done                                   whoever takes it to zero opens the next stage
//
// Stage numbers only grow, across jobs too; between jobs the lower half says `over`. A waiting thread spins at most 50 µs and then sleeps on the upper half of
// the word.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace mr {

struct Job {
  virtual ~Job() = default;
  // Called by one thread at a time, before the first stage and after each: does what one thread had better do alone
  // and returns the number of chunks of the next stage; 0: the job is over.
  virtual int next_stage(int thread) = 0;
  virtual void run_chunk(int chunk, int thread) = 0;
};

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  int threads() const { return int(workers_.size()) + 1; }
  // How many of them work from the next job on; the others sleep.
  int granted() const { return granted_.load(std::memory_order_relaxed); }
  void grant(int threads);
  void run(Job& job);

 private:
  void work(int thread, bool until_over);
  uint64_t wait(uint32_t stage);
  void park(int thread);
  void open(uint32_t stage, uint32_t chunks);

  alignas(64) std::atomic<uint64_t> state_;
  alignas(64) std::atomic<int32_t> left_{0};
  alignas(64) std::atomic<int32_t> sleepers_{0};
  std::atomic<int32_t> granted_;
  alignas(64) Job* job_ = nullptr;
  std::atomic<bool> closing_{false};
  std::vector<std::thread> workers_;
};

}  // namespace mr
