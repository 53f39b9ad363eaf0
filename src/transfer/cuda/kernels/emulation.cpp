#include "transfer/cuda/kernels/emulation.h"

#include <atomic>
#include <barrier>
#include <condition_variable>
#include <cstddef>
#include <cstdio>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "transfer/cuda/kernels/piece_kernels.cu"

namespace moonpool::transfer::cuda {
namespace {

constexpr std::uint32_t kWarp = 32;
constexpr std::size_t kBlockMemory = 48 * 1024;  // what a device gives a block without being asked

// Ends an emulated thread: it, or another one of the launch, touched what is not there.
struct Ended {};

class Launch {
 public:
  Launch(const LaunchShape& shape, const Translate& translate)
      : shape_(shape), translate_(translate), block_barrier_(shape.threads), block_memory_(shape.blocks) {
    for (std::uint32_t warp = 0; warp < shape.threads / kWarp; ++warp) {
      warp_barriers_.push_back(std::make_unique<std::barrier<>>(kWarp));
    }
  }

  [[nodiscard]] const LaunchShape& shape() const { return shape_; }

  std::uint64_t reach(std::uint64_t address, std::uint64_t length) {
    if (length == 0) {
      return address;
    }
    std::byte* memory = translate_(address, length);
    if (memory == nullptr) {
      fail(address, length);
      throw Ended();
    }
    return reinterpret_cast<std::uint64_t>(memory);
  }

  void synchronize_block() { meet(block_barrier_); }
  void synchronize_warp(std::uint32_t thread) { meet(*warp_barriers_[thread / kWarp]); }

  // Later meetings go without this thread.
  void leave(std::uint32_t thread) {
    block_barrier_.arrive_and_drop();
    warp_barriers_[thread / kWarp]->arrive_and_drop();
  }

  // Each block has memory of its own, so that its threads need not wait for the last of the block before.
  void* block_memory(std::uint32_t block) {
    const std::lock_guard lock(mutex_);
    std::unique_ptr<Memory>& memory = block_memory_[block];
    if (!memory) {
      memory = std::make_unique<Memory>();
    }
    return memory->bytes;
  }

  [[nodiscard]] Status outcome() {
    const std::lock_guard lock(mutex_);
    return error_ ? Status(ErrorCode::kInternal, *error_) : Status();
  }

 private:
  struct alignas(16) Memory {
    std::byte bytes[kBlockMemory] = {};
  };

  void fail(std::uint64_t address, std::uint64_t length) {
    const std::lock_guard lock(mutex_);
    if (!error_) {
      char text[80];
      std::snprintf(text, sizeof(text), "illegal address 0x%llx, %llu bytes", static_cast<unsigned long long>(address),
                    static_cast<unsigned long long>(length));
      error_ = text;
    }
    ended_.store(true);
  }

  void meet(std::barrier<>& barrier) {
    barrier.arrive_and_wait();
    if (ended_.load()) {
      throw Ended();
    }
  }

  const LaunchShape shape_;
  const Translate& translate_;
  std::barrier<> block_barrier_;
  std::vector<std::unique_ptr<std::barrier<>>> warp_barriers_;
  std::atomic<bool> ended_ = false;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Memory>> block_memory_;
  std::optional<std::string> error_;
};

// The emulated thread that runs on this host thread.
struct Place {
  Launch* launch = nullptr;
  std::uint32_t thread = 0;
  std::uint32_t block = 0;
};
thread_local Place place;

using Function = void (*)(const MoveArguments&);

Function function_of(Kernel kernel) {
  switch (kernel) {
    case Kernel::kGather:
      return moonpool_gather;
    case Kernel::kScatter:
      return moonpool_scatter;
    case Kernel::kGatherHash:
      return moonpool_gather_hash;
    case Kernel::kScatterHash:
      return moonpool_scatter_hash;
  }
  return nullptr;
}

// All blocks' threads of this number, one block after the other.
void run_thread(Launch& launch, std::uint32_t thread, Function function, const MoveArguments& arguments) {
  try {
    for (std::uint32_t block = 0; block < launch.shape().blocks && block < arguments.chunk_count; ++block) {
      place = {&launch, thread, block};
      function(arguments);
    }
  } catch (const Ended&) {
    launch.leave(thread);
  }
}

// Host threads that run launch after launch: starting them anew costs more than most launches, above all under ASan.
class Team {
 public:
  explicit Team(std::uint32_t size) {
    for (std::uint32_t thread = 0; thread < size; ++thread) threads_.emplace_back([this, thread] { serve(thread); });
  }
  ~Team() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
  }

  // Calls job(thread) on each of the threads at once; returns when all have returned. One caller at a time.
  void run(const std::function<void(std::uint32_t)>& job) {
    std::unique_lock lock(mutex_);
    job_ = &job;
    left_ = threads_.size();
    ++jobs_;
    changed_.notify_all();
    ended_.wait(lock, [this] { return left_ == 0; });
  }

 private:
  void serve(std::uint32_t thread) {
    std::unique_lock lock(mutex_);
    for (std::uint64_t served = 0;; ++served) {
      changed_.wait(lock, [&] { return stopping_ || jobs_ != served; });
      if (stopping_) return;
      const auto* const job = job_;
      lock.unlock();
      (*job)(thread);
      lock.lock();
      if (--left_ == 0) ended_.notify_one();
    }
  }

  std::mutex mutex_;  // guards all below but the threads
  std::condition_variable changed_;
  std::condition_variable ended_;
  const std::function<void(std::uint32_t)>* job_ = nullptr;
  std::uint64_t jobs_ = 0;
  std::size_t left_ = 0;
  bool stopping_ = false;
  std::vector<std::jthread> threads_;  // the last member: joined first
};

// Idle teams of kEmulatedThreads; as many as there were launches at once. Other sizes are made for their launch.
class Teams {
 public:
  void run(std::uint32_t size, const std::function<void(std::uint32_t)>& job) {
    auto team = take(size);
    team->run(job);
    const std::lock_guard lock(mutex_);
    if (size == kEmulatedThreads) idle_.push_back(std::move(team));
  }

 private:
  std::unique_ptr<Team> take(std::uint32_t size) {
    const std::lock_guard lock(mutex_);
    if (size != kEmulatedThreads || idle_.empty()) return std::make_unique<Team>(size);
    auto team = std::move(idle_.back());
    idle_.pop_back();
    return team;
  }

  std::mutex mutex_;  // guards idle_
  std::vector<std::unique_ptr<Team>> idle_;
};

Teams& teams() {
  static Teams all;
  return all;
}

}  // namespace

namespace kernels {
std::uint32_t thread_index() { return place.thread; }
std::uint32_t thread_count() { return place.launch->shape().threads; }
std::uint32_t block_index() { return place.block; }
std::uint32_t block_count() { return place.launch->shape().blocks; }
void synchronize_block() { place.launch->synchronize_block(); }
void synchronize_warp() { place.launch->synchronize_warp(place.thread); }
std::uint64_t reach(std::uint64_t address, std::uint64_t length) { return place.launch->reach(address, length); }
void* emulated_block_memory(std::size_t) { return place.launch->block_memory(place.block); }
}  // namespace kernels

Status emulate(Kernel kernel, const LaunchShape& shape, const MoveArguments& arguments, const Translate& translate) {
  static_assert(sizeof(kernels::BlockMemory) <= kBlockMemory);
  const Function function = function_of(kernel);
  if (function == nullptr || shape.blocks == 0 || shape.threads == 0 || shape.threads > kThreads || shape.threads % kWarp != 0) {
    return {ErrorCode::kInternal, "invalid launch: " + std::to_string(shape.blocks) + " blocks of " + std::to_string(shape.threads) +
                                      " threads of kernel " + std::to_string(static_cast<std::uint32_t>(kernel))};
  }
  Launch launch(shape, translate);
  teams().run(shape.threads, [&](std::uint32_t thread) { run_thread(launch, thread, function, arguments); });
  return launch.outcome();
}

}  // namespace moonpool::transfer::cuda
