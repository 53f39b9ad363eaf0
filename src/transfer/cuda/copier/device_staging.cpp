#include "transfer/cuda/copier/device_staging.h"

#include "base/logging.h"

namespace moonpool::transfer::cuda {

DeviceStaging::~DeviceStaging() {
  for (const auto buffer : free_) driver_.free(device_, buffer);
}

std::uint64_t DeviceStaging::take() {
  {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      const auto buffer = free_.back();
      free_.pop_back();
      return buffer;
    }
    if (made_ >= most_ || Deadline::Clock::now() < next_try_) return 0;
    ++made_;
  }
  const auto memory = driver_.allocate(device_, kBufferBytes);
  if (memory) return *memory;
  const std::lock_guard lock(mutex_);
  --made_;
  next_try_ = Deadline::Clock::now() + kTryAgain;
  log::info("cuda: no memory on GPU {} to stage copies of it, so that kernels reach the host's, which is slower: {}", device_,
            memory.status().message());
  return 0;
}

void DeviceStaging::give_back(std::uint64_t buffer, bool ended) {
  if (buffer == 0) return;
  if (!ended) driver_.free(device_, buffer);
  const std::lock_guard lock(mutex_);
  if (ended) {
    free_.push_back(buffer);
  } else {
    --made_;
  }
}

}  // namespace moonpool::transfer::cuda
