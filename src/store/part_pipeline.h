// A large batch as a few smaller ones, several of them under way at the same time: while the bytes of one part move, the memory of the next
// is looked up, and the master is asked about a third.
//
// It pays where moving bytes keeps nobody's CPU busy, as with device memory: the host's work for hundreds of small pieces a key is then
// hidden behind the link. Cost: a hand-over to a thread a part (seen: 10 to 60 us, the more when it sleeps).
// Threads: kThreads of the pipeline's own, from the first part on; a Batch belongs to one thread. Lifetime: the pipeline outlives its
// batches. Waits end with the parts, each of which has a deadline of its own.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>

namespace boost::asio {
class thread_pool;
}

namespace moonpool::store {

class PartPipeline {
 public:
  static constexpr std::size_t kAtOnce = 5;             // parts of one batch
  static constexpr std::size_t kThreads = 2 * kAtOnce;  // a put and a get at the same time do not wait for each other

  // The parts of one call.
  class Batch {
   public:
    explicit Batch(PartPipeline& pipeline) : pipeline_(pipeline) {}
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;
    ~Batch() { wait(); }

    // Starts a part on another thread, or runs it on this one while all kThreads are taken. It must not throw.
    void add(std::function<void()> part);
    [[nodiscard]] bool full() const;  // kAtOnce parts are under way
    void wait_for_room();             // until full() is over
    void wait();                      // until all parts have ended

   private:
    void wait_until_fewer(std::size_t parts);

    PartPipeline& pipeline_;
    mutable std::mutex mutex_;  // guards running_
    std::condition_variable ended_;
    std::size_t running_ = 0;
  };

  PartPipeline();
  ~PartPipeline();  // no batch is left
  PartPipeline(const PartPipeline&) = delete;
  PartPipeline& operator=(const PartPipeline&) = delete;

 private:
  boost::asio::thread_pool& pool();

  std::atomic<std::size_t> busy_{0};  // threads
  std::once_flag started_;
  std::unique_ptr<boost::asio::thread_pool> pool_;
};

}  // namespace moonpool::store
