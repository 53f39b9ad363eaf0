// One thread for what may block for milliseconds and must not on a server's: making and destroying queue pairs. Jobs run in order.
//
// Threads: any. After stop() a job runs on the thread that brings it, so that none is lost.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "base/deadline.h"
#include "net/server.h"

namespace moonpool::transfer::rdma {

class JobThread {
 public:
  JobThread();
  ~JobThread();  // as stop()

  void post(std::function<void()> job);
  // For handlers: true when the job has run, false at the deadline, and then it still will. What the job refers to must not be the
  // handler's own, which may be destroyed while it waits.
  [[nodiscard]] net::Task<bool> run(std::function<void()> job, Deadline deadline);
  // Carries out what was posted before.
  void stop();

 private:
  void work();

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace moonpool::transfer::rdma
