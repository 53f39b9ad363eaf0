// A large batch as a few smaller ones, several of them under way at the same time: while the bytes of one part move, the memory of the next
// is looked up, and the master is asked about a third.
//
// It pays where moving bytes keeps nobody's CPU busy, as with device memory: the host's work for hundreds of small pieces a key is then
// hidden behind the link. Cost: a hand-over to a thread a part. A thread that sleeps takes 50 us to wake, so one is woken when a batch
// begins, threads look for the next part for kLook before they sleep, and whoever waits for parts looks for their end (base/pauses.h).
// Threads: kThreads of the pipeline's own, from the first batch on; a Batch belongs to one thread. Lifetime: the pipeline outlives its
// batches. Waits end with the parts, each of which has a deadline of its own.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace moonpool::store {

class PartPipeline {
 public:
  static constexpr std::size_t kAtOnce = 8;             // parts of one batch
  static constexpr std::size_t kThreads = 2 * kAtOnce;  // a put and a get at the same time do not wait for each other
  static constexpr std::chrono::microseconds kLook{200};

  // The parts of one call.
  class Batch {
   public:
    explicit Batch(PartPipeline& pipeline) : pipeline_(pipeline) { pipeline.expect(); }
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;
    ~Batch() { wait(); }

    // Starts a part on another thread, or runs it on this one while all kThreads are taken. It must not throw.
    void add(std::function<void()> part);
    void wait_for_room();  // until fewer than kAtOnce parts are under way
    void wait();           // until all parts have ended

   private:
    void wait_until_fewer(std::size_t parts) const;

    PartPipeline& pipeline_;
    std::atomic<std::size_t> running_{0};
  };

  PartPipeline() = default;
  ~PartPipeline();  // no batch is left
  PartPipeline(const PartPipeline&) = delete;
  PartPipeline& operator=(const PartPipeline&) = delete;

 private:
  void expect();  // a part, soon
  void work();
  void look() const;
  void run(std::function<void()> part);

  std::atomic<std::size_t> busy_{0};     // threads that have a part, or will
  std::atomic<std::size_t> waiting_{0};  // parts in queue_
  std::once_flag started_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  bool expected_ = false;
  bool ending_ = false;
  std::vector<std::thread> threads_;  // guarded by started_
};

}  // namespace moonpool::store
