// One instance of a group: its name, and what the gateway knows of its health, load and speed.
//
// Health is its circuit's (circuit_breaker.h): what requests and active checks saw of it, its own failures only (no connection, 5xx,
// deadline, an answer cut short), never a client's 4xx or departure. An unhealthy one is passed over while others are healthy.
// Slow start: an instance that joins a running gateway gets a share of the load that grows to a full one (weight(), which the policies
// respect), so that its first requests find compiled kernels and warm caches growing, not a full load.
// Draining: it finishes what it has and is given nothing new, until it leaves the group or the draining is called off.
// Threads: any; counters are relaxed atomics, the texts are behind a lock that no request takes unless it fails.
// Ownership: shared; a request keeps its instance alive, even when it leaves the group meanwhile.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "base/result.h"
#include "gateway/circuit_breaker.h"
#include "gateway/instance_name.h"
#include "gateway/latency.h"

namespace moonpool::gateway {

class LiveBlocks;

class Instance {
 public:
  Instance(InstanceName name, std::string role, CircuitSettings circuit, std::chrono::nanoseconds slow_start = {})
      : name_(std::move(name)),
        role_(std::move(role)),
        name_hash_(std::hash<std::string>{}(name_.to_string())),
        slow_start_(slow_start),
        circuit_(circuit) {}

  [[nodiscard]] const InstanceName& name() const { return name_; }
  [[nodiscard]] const std::string& role() const { return role_; }  // "prefill" or "decode"
  // What its KV events tell of its cache; null where these are not followed. Set before it joins a group.
  [[nodiscard]] const std::shared_ptr<LiveBlocks>& live_blocks() const { return live_blocks_; }
  void set_live_blocks(std::shared_ptr<LiveBlocks> live_blocks) { live_blocks_ = std::move(live_blocks); }
  [[nodiscard]] bool healthy() const { return circuit_.admits(); }
  [[nodiscard]] std::string_view circuit() const { return circuit_.name(); }
  [[nodiscard]] std::uint64_t in_flight() const { return in_flight_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t requests() const { return requests_.load(std::memory_order_relaxed); }
  // Its own failures by cause.
  enum class Cause { kUnreachable, kServerError, kTimeout, kProtocol, kOther };
  static constexpr std::array<std::string_view, 5> kCauseNames{"unreachable", "server_error", "timeout", "protocol", "other"};
  [[nodiscard]] std::uint64_t errors_by(Cause cause) const {
    return errors_by_cause_[static_cast<std::size_t>(cause)].load(std::memory_order_relaxed);
  }
  [[nodiscard]] std::uint64_t errors() const { return errors_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t consecutive_failures() const { return circuit_.failures(); }
  [[nodiscard]] std::uint64_t name_hash() const { return name_hash_; }
  // The share of a full load that it should get now: from 0.1 up to 1 within its slow start, 1 afterwards.
  [[nodiscard]] double weight() const;
  [[nodiscard]] bool draining() const { return draining_.load(std::memory_order_relaxed); }
  // One of these; "starting": nothing was heard of it yet.
  static constexpr std::array<std::string_view, 5> kStateNames{"starting", "slow-start", "healthy", "unhealthy", "draining"};
  [[nodiscard]] std::string_view state() const;
  void set_circuit(CircuitSettings settings) { circuit_.set(settings); }
  void set_draining(bool draining) { draining_.store(draining, std::memory_order_relaxed); }
  [[nodiscard]] std::string last_error() const;
  // Seconds since the last failure, negative when there was none.
  [[nodiscard]] double last_error_age_s() const;

  // What a request saw; changes of state are logged, once.
  void answering();  // the first byte of an answer
  void succeeded();  // a whole answer, a 4xx included
  void failed(const Status& reason);
  // What an active check saw: no request's error.
  void probe_succeeded();
  void probe_failed(const Status& reason, bool first_look);

  LatencyHistogram first_byte;      // from sending a request to the first byte of its answer
  LatencyHistogram total;           // to its last
  LatencyHistogram between_events;  // of a stream, as the gateway reads them: inter-token latency

  // Counts a request for as long as it exists.
  class InFlight {
   public:
    explicit InFlight(std::shared_ptr<Instance> instance) : instance_(std::move(instance)) {
      instance_->requests_.fetch_add(1, std::memory_order_relaxed);
      instance_->in_flight_.fetch_add(1, std::memory_order_relaxed);
      trial_ = instance_->circuit_.begin_trial();
    }
    ~InFlight() {
      instance_->in_flight_.fetch_sub(1, std::memory_order_relaxed);
      if (trial_) instance_->circuit_.end_trial();
    }
    InFlight(const InFlight&) = delete;
    InFlight& operator=(const InFlight&) = delete;

   private:
    std::shared_ptr<Instance> instance_;
    bool trial_ = false;  // it is the one request that a half-open circuit lets in
  };

 private:
  void remember(const Status& reason);

  const InstanceName name_;
  const std::string role_;
  const std::uint64_t name_hash_;  // the same in every gateway of one build
  const std::chrono::nanoseconds slow_start_;
  std::shared_ptr<LiveBlocks> live_blocks_;
  const std::chrono::steady_clock::time_point created_ = std::chrono::steady_clock::now();
  CircuitBreaker circuit_;
  mutable std::atomic<bool> slow_{slow_start_.count() > 0};
  std::atomic<bool> draining_{false};
  std::atomic<std::uint64_t> in_flight_{0};
  std::atomic<std::uint64_t> requests_{0};
  std::atomic<std::uint64_t> errors_{0};
  std::array<std::atomic<std::uint64_t>, kCauseNames.size()> errors_by_cause_{};
  std::atomic<bool> heard_of_{false};  // it has answered or failed once
  mutable std::mutex mutex_;           // guards the two below
  std::string last_error_;
  std::chrono::steady_clock::time_point last_error_at_;
};

}  // namespace moonpool::gateway
