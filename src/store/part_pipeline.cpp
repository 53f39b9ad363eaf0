#include "store/part_pipeline.h"

#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <utility>

namespace moonpool::store {

PartPipeline::PartPipeline() = default;
PartPipeline::~PartPipeline() {
  if (pool_ != nullptr) pool_->join();
}

boost::asio::thread_pool& PartPipeline::pool() {
  std::call_once(started_, [this] { pool_ = std::make_unique<boost::asio::thread_pool>(kThreads); });
  return *pool_;
}

void PartPipeline::Batch::add(std::function<void()> part) {
  if (pipeline_.busy_.fetch_add(1) >= kThreads) {
    pipeline_.busy_.fetch_sub(1);
    part();
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    ++running_;
  }
  boost::asio::post(pipeline_.pool(), [this, part = std::move(part)]() mutable {
    part();
    part = nullptr;
    pipeline_.busy_.fetch_sub(1);
    // Told with the lock: the batch may be gone as soon as its owner sees that nothing runs any more.
    const std::lock_guard lock(mutex_);
    --running_;
    ended_.notify_one();
  });
}

bool PartPipeline::Batch::full() const {
  const std::lock_guard lock(mutex_);
  return running_ >= kAtOnce;
}

void PartPipeline::Batch::wait_for_room() { wait_until_fewer(kAtOnce); }
void PartPipeline::Batch::wait() { wait_until_fewer(1); }

void PartPipeline::Batch::wait_until_fewer(std::size_t parts) {
  std::unique_lock lock(mutex_);
  ended_.wait(lock, [&] { return running_ < parts; });
}

}  // namespace moonpool::store
