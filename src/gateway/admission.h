// Whether a request may go to the instances now, later, or not at all: the limits of its key, then a place among those that run.
//
// One object for all threads. Its mutex is held for the arithmetic of one arrival or one end; where neither keys nor limits are configured
// nobody takes it, and a request costs one relaxed load. A request that has to wait does so on its own executor, and is woken there; its
// client's leaving takes it out at once. Ownership: the shared state's; every Place ends before it does.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "gateway/admission_queue.h"
#include "gateway/api_keys.h"
#include "gateway/cancellation.h"
#include "gateway/io.h"
#include "gateway/latency.h"
#include "gateway/rate_limit.h"
#include "gateway/request_cost.h"
#include "gateway/settings.h"

namespace moonpool::gateway {

class Admission {
 public:
  using Clock = AdmissionQueue::Clock;
  using Time = Clock::time_point;

  Admission() : queue_(QueueLimits()) {}
  Admission(const Admission&) = delete;
  Admission& operator=(const Admission&) = delete;

  // Keys or limits are configured. Without, nobody has to enter.
  [[nodiscard]] bool active() const { return active_.load(std::memory_order_relaxed); }
  // What holds from now on. Requests inside stay; what a key has used stays used.
  void configure(const Settings& settings);
  // How many instances share the work: of meaning with --max-requests-per-instance.
  void set_instances(std::size_t usable);
  // Nobody is woken any more: before the threads whose requests wait are stopped.
  void close();

 private:
  struct Ticket;

 public:
  // A request's right to run, given back by its end. Threads: the request's.
  class Place {
   public:
    Place() = default;
    Place(Place&& other) noexcept = default;
    Place& operator=(Place&& other) noexcept = delete;
    ~Place() { end(std::nullopt); }

    // The request is over and cost so many tokens; unknown: what was estimated.
    void end(std::optional<std::uint64_t> tokens);
    [[nodiscard]] std::uint64_t prompt_tokens() const;  // as estimated
    // The key's limits at its arrival, as whole lines for the answer's head.
    [[nodiscard]] const std::string& limit_fields() const { return fields_; }

   private:
    friend class Admission;
    Place(Admission& admission, std::shared_ptr<Ticket> ticket) : admission_(&admission), ticket_(std::move(ticket)) {}
    Admission* admission_ = nullptr;
    std::shared_ptr<Ticket> ticket_;
    std::string fields_;
  };

  struct Refusal {
    Shed cause{};
    unsigned status = 503;
    std::string message;
    std::string fields;  // Retry-After and the key's limits, whole lines
  };
  // A refusal, or a place. Neither when the client is gone.
  struct Entry {
    std::optional<Refusal> refusal;
    std::unique_ptr<Place> place;
  };
  // `key` is null without keys. `deadline` is the client's own, Time{} when it named none. Returns when the request may run, or never will.
  [[nodiscard]] Task<Entry> enter(const ApiKey* key, std::string_view body, Time deadline, Cancellation& cancellation);

  struct KeyStatus {
    std::string name;  // "-": requests without a key
    std::uint64_t started = 0;
    std::uint64_t tokens = 0;        // of requests that have ended
    std::uint64_t rate_limited = 0;  // refused because of the key's own limits
    std::uint64_t shed = 0;          // refused, or given up waiting, because of the load
    std::size_t waiting = 0;
  };
  struct Snapshot {
    std::size_t running = 0;
    std::size_t running_at_most = 0;  // 0: any number
    std::size_t waiting = 0;
    std::size_t waiting_bytes = 0;
    std::optional<std::chrono::nanoseconds> estimated_wait;  // of one that comes now
    std::vector<KeyStatus> keys;
  };
  [[nodiscard]] Snapshot snapshot() const;
  [[nodiscard]] std::uint64_t shed(Shed cause) const { return shed_[static_cast<std::size_t>(cause)].load(std::memory_order_relaxed); }

  LatencyHistogram waits;  // of requests that started, those that started at once included

 private:
  struct KeyUse {
    KeyUse(const ApiKey& key, Time now) : limit(key.requests_per_minute, key.tokens_per_minute, key.burst_s, now) {}
    RateLimit limit;
    std::uint64_t started = 0;
    std::uint64_t tokens = 0;
    std::uint64_t rate_limited = 0;
    std::uint64_t shed = 0;
  };

  // All of these with the mutex held.
  [[nodiscard]] std::optional<Refusal> arrive(Ticket& ticket, Time now);
  [[nodiscard]] Refusal refuse(const Ticket& ticket, Shed cause, std::chrono::nanoseconds retry_in, Time now);
  void decide(Ticket& ticket, Shed cause, Time now);
  void wake_next(Time now);
  void apply_limits(Time now);
  [[nodiscard]] KeyUse* use_of(const std::string& key);

  // What became of one that waited; none: its client is gone.
  [[nodiscard]] std::optional<Refusal> settle(Ticket& ticket, bool client_gone);
  void end(Ticket& ticket, std::optional<std::uint64_t> tokens);

  std::atomic<bool> active_{false};
  std::array<std::atomic<std::uint64_t>, kShedCauses> shed_{};
  mutable std::mutex mutex_;  // guards all below
  AdmissionQueue queue_;
  Overload limits_;
  std::size_t instances_ = 0;
  std::map<std::string, KeyUse> keys_;  // of the clients' keys, and the one of requests without
  bool closed_ = false;
};

}  // namespace moonpool::gateway
