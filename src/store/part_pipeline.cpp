#include "store/part_pipeline.h"

#include <utility>

#include "base/deadline.h"
#include "base/pauses.h"
#include "net/spin_policy.h"

namespace moonpool::store {

PartPipeline::~PartPipeline() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void PartPipeline::expect() {
  std::call_once(started_, [this] {
    for (std::size_t i = 0; i < kThreads; ++i) threads_.emplace_back([this] { work(); });
  });
  {
    const std::lock_guard lock(mutex_);
    expected_ = true;
  }
  changed_.notify_one();
}

void PartPipeline::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return !queue_.empty() || expected_ || ending_; });
    if (ending_) return;
    expected_ = false;
    while (true) {
      if (queue_.empty()) {
        lock.unlock();
        look();
        lock.lock();
        if (queue_.empty()) break;
      }
      auto part = std::move(queue_.front());
      queue_.pop_front();
      waiting_.fetch_sub(1, std::memory_order_relaxed);
      lock.unlock();
      part();
      lock.lock();
    }
  }
}

// Returns when there may be a part, or it is time to sleep.
void PartPipeline::look() const {
  const net::SpinPolicy::Turn turn;
  if (!turn.granted()) return;
  const auto end = Deadline::Clock::now() + kLook;
  while (waiting_.load(std::memory_order_relaxed) == 0 && Deadline::Clock::now() < end) net::SpinPolicy::relax();
}

void PartPipeline::run(std::function<void()> part) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(part));
    waiting_.fetch_add(1, std::memory_order_relaxed);
  }
  changed_.notify_one();
}

void PartPipeline::Batch::add(std::function<void()> part) {
  if (pipeline_.busy_.fetch_add(1) >= kThreads) {
    pipeline_.busy_.fetch_sub(1);
    part();
    return;
  }
  running_.fetch_add(1, std::memory_order_relaxed);
  pipeline_.run([this, part = std::move(part)]() mutable {
    part();
    part = nullptr;
    pipeline_.busy_.fetch_sub(1);
    running_.fetch_sub(1, std::memory_order_release);  // the last of it: the batch may be gone now
  });
}

void PartPipeline::Batch::wait_for_room() { wait_until_fewer(kAtOnce); }
void PartPipeline::Batch::wait() { wait_until_fewer(1); }

void PartPipeline::Batch::wait_until_fewer(std::size_t parts) const {
  for (Pauses pauses; running_.load(std::memory_order_acquire) >= parts;) pauses.next();
}

}  // namespace moonpool::store
