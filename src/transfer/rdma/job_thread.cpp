#include "transfer/rdma/job_thread.h"

#include <atomic>
#include <memory>
#include <utility>

namespace moonpool::transfer::rdma {

JobThread::JobThread() : thread_([this] { work(); }) {}

JobThread::~JobThread() { stop(); }

void JobThread::post(std::function<void()> job) {
  {
    const std::scoped_lock lock(mutex_);
    if (!stopping_) {
      jobs_.push_back(std::move(job));
      job = nullptr;
    }
  }
  changed_.notify_all();
  if (job) job();
}

net::Task<bool> JobThread::run(std::function<void()> job, Deadline deadline) {
  struct Outcome {
    net::AsyncEvent changed;
    std::atomic<bool> done{false};
  };
  auto outcome = std::make_shared<Outcome>();
  post([outcome, job = std::move(job)] {
    job();
    outcome->done = true;
    outcome->changed.notify_all();
  });
  for (;;) {
    const auto seen = outcome->changed.epoch();
    if (outcome->done) co_return true;
    if (!co_await outcome->changed.wait(seen, deadline) && deadline.expired()) co_return outcome->done;
  }
}

void JobThread::stop() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void JobThread::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stopping_ || !jobs_.empty(); });
    if (jobs_.empty()) return;
    auto job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    job();
    job = nullptr;
    lock.lock();
  }
}

}  // namespace moonpool::transfer::rdma
