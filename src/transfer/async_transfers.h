// Transfers in the background: a bounded queue, a few threads, and what became of each transfer until somebody asks.
//
// Ended transfers that nobody asks for are forgotten, oldest first, beyond kMostEnded. Threads: any; destruction runs what has begun to its
// end (the owner aborts its lanes first) and fails what has not.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "transfer/transfer_engine.h"

namespace moonpool::transfer {

class AsyncTransfers {
 public:
  static constexpr std::size_t kThreads = 4;
  static constexpr std::size_t kMostQueued = 65536;
  static constexpr std::size_t kMostEnded = 65536;
  using Work = std::function<Status(Deadline)>;

  ~AsyncTransfers() { stop(); }
  // The deadline counts from now: time in the queue is the caller's time. kUnavailable when the queue is full or stopped.
  [[nodiscard]] Result<std::uint64_t> submit(Work work, Deadline deadline);
  [[nodiscard]] Result<TransferState> state(std::uint64_t id) const;
  Status wait(std::uint64_t id);
  void forget(std::uint64_t id);
  void stop();

 private:
  struct Job {
    std::uint64_t id = 0;
    Work work;
    Deadline deadline = Deadline::after(std::chrono::nanoseconds(0));
    bool ended = false;
    Status outcome;
  };
  void run();
  void end(Job& job, Status outcome);
  std::shared_ptr<Job> find(std::uint64_t id) const;

  mutable std::mutex mutex_;  // guards all below, and the jobs' ended and outcome
  std::condition_variable queued_;
  std::condition_variable ended_;
  bool stopping_ = false;
  std::uint64_t last_id_ = 0;
  std::deque<std::shared_ptr<Job>> queue_;
  std::deque<std::uint64_t> ended_ids_;
  std::unordered_map<std::uint64_t, std::shared_ptr<Job>> jobs_;
  std::vector<std::thread> threads_;  // started by the first submit
};

}  // namespace moonpool::transfer
