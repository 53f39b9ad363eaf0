// What the NICs and queue pairs of a simulated fabric share: its state, and who may touch what when. Inside of simulated_nic.h; nothing
// else includes it.
//
// Order of locks: a Step or Alone, then the fabric's mutex, then a queue pair's own. Ownership: shared by the fabric, its NICs and what was
// made of them.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <shared_mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "transfer/rdma/simulated_nic.h"

namespace moonpool::transfer::rdma {

class SimulatedQueuePair;

namespace simulated {

inline constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();

inline std::uint32_t random_number() {
  thread_local std::mt19937 generator{std::random_device{}()};
  return generator();
}

class Gate final : public SimulatedGate {
 public:
  [[nodiscard]] bool await_reached(Deadline deadline) override {
    std::unique_lock lock(mutex_);
    return changed_.wait_until(lock, std::chrono::system_clock::now() + deadline.left(), [this] { return reached_; });
  }
  void open() override {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  // `stop` is asked now and then: whoever breaks the queue pair off calls wake().
  template <typename Stop>
  void pass(const Stop& stop) {
    std::unique_lock lock(mutex_);
    reached_ = true;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_ || stop(); });
  }
  void wake() {
    const std::lock_guard lock(mutex_);
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool reached_ = false;
  bool open_ = false;
};

struct NicState {
  NicInfo info;
  std::uint8_t network = 0;
  std::atomic<bool> up{true};
  std::function<void()> changed;  // set before use

  // Guarded by the fabric's mutex.
  bool dead = false;
  std::uint64_t requests_until_death = kNever;
  std::uint64_t bytes_until_death = kNever;
  bool refuses_registrations = false;
  bool refuses_queue_pairs = false;
  bool takes_dma_bufs = true;
  struct Hold {
    std::uint64_t requests_left = 0;  // before the one that is held
    std::uint64_t bytes = 0;
    std::shared_ptr<Gate> gate;
  };
  std::vector<Hold> holds;
  SimulatedFabric::Counts counts;
};

struct RegisteredPart {
  NicState* nic = nullptr;
  MutableBytes memory;
  Access access = Access::kLocal;
  std::byte* bytes = nullptr;  // where they are to be found in this process: `memory` itself, unless it is a device's

  [[nodiscard]] bool holds(std::uint64_t address, std::uint64_t length) const {
    const auto begin = reinterpret_cast<std::uint64_t>(memory.data());
    return address >= begin && length <= memory.size() && address - begin <= memory.size() - length;
  }
  [[nodiscard]] std::byte* at(std::uint64_t address) const { return bytes + (address - reinterpret_cast<std::uint64_t>(memory.data())); }
};

}  // namespace simulated

class SimulatedFabric::State {
 public:
  // Held shared while a step's bytes are copied; whoever takes away what a step may use holds it alone.
  class Step {
   public:
    explicit Step(State& state) {
      // Readers would starve the one who wants to be alone.
      while (state.leaving_.load() > 0) std::this_thread::yield();
      lock_ = std::shared_lock(state.moving_);
    }

   private:
    std::shared_lock<std::shared_mutex> lock_;
  };
  class Alone {
   public:
    explicit Alone(State& state) : state_(state) {
      state_.leaving_.fetch_add(1);
      state_.moving_.lock();
    }
    ~Alone() {
      state_.moving_.unlock();
      state_.leaving_.fetch_sub(1);
    }
    Alone(const Alone&) = delete;
    Alone& operator=(const Alone&) = delete;

   private:
    State& state_;
  };

  simulated::NicState& nic(const std::string& name) { return *nics.at(name); }
  [[nodiscard]] bool joined(const simulated::NicState& one, const simulated::NicState& other) const {
    const auto [low, high] = std::minmax(one.info.name, other.info.name);
    return one.network == other.network && !cuts.contains({low, high});
  }

  std::mutex mutex;  // guards what follows; taken after a Step or Alone
  std::map<std::string, std::unique_ptr<simulated::NicState>> nics;
  std::vector<std::unique_ptr<simulated::NicState>> replaced;
  std::set<std::pair<std::string, std::string>> cuts;
  std::map<std::uint32_t, simulated::RegisteredPart> by_local_key;
  std::map<std::uint32_t, simulated::RegisteredPart> by_remote_key;
  std::map<std::uint32_t, SimulatedQueuePair*> queue_pairs;  // by number
  std::uint32_t next_key = simulated::random_number();
  std::uint32_t next_number = simulated::random_number();
  std::uint8_t next_host = 1;

 private:
  std::shared_mutex moving_;
  std::atomic<int> leaving_{0};
};

namespace simulated {

// simulated_queue_pair.cpp
[[nodiscard]] std::unique_ptr<QueuePair> make_queue_pair(std::shared_ptr<SimulatedFabric::State> state, NicState& nic,
                                                         const QueuePairOptions& options);

}  // namespace simulated
}  // namespace moonpool::transfer::rdma
