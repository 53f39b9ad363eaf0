// What all threads of one gateway share: its settings, its two groups, its counters.
//
// Threads: any; the groups lock for themselves, the counters are relaxed atomics. Ownership: the Gateway's, outlives its threads.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>

#include "gateway/group.h"
#include "gateway/latency.h"
#include "gateway/retry.h"
#include "gateway/settings.h"

namespace moonpool::gateway {

struct Counters {
  std::atomic<std::uint64_t> requests{0};            // completions received
  std::atomic<std::uint64_t> answered{0};            // answered by an instance, its 4xx included
  std::atomic<std::uint64_t> failed{0};              // answered with an error of the gateway's or an instance's 5xx
  std::atomic<std::uint64_t> cut{0};                 // streams that ended with an error event
  std::atomic<std::uint64_t> client_gone{0};         // ended by the client before its answer was whole
  std::atomic<std::uint64_t> prefill_given_up{0};    // sent to decode although no prefill instance had done its part
  std::atomic<std::uint64_t> continued{0};           // streams that went on at another instance
  std::atomic<std::uint64_t> retries{0};             // hops sent to another instance after a failure
  std::atomic<std::uint64_t> retries_refused{0};     // not sent, because the retry budget was used up
  std::atomic<std::uint64_t> bad_requests{0};        // refused before any hop
  std::atomic<std::uint64_t> client_connections{0};  // open now
  LatencyHistogram first_byte;                       // completions: from the whole request to the first byte of an answer that is no error
};

struct GatewayState {
  GatewayState(Settings the_settings, std::shared_ptr<Policy> prefill_policy, std::shared_ptr<Policy> decode_policy)
      : settings(std::move(the_settings)), prefill("prefill", std::move(prefill_policy)), decode("decode", std::move(decode_policy)) {}

  // Those that are there from the start need no slow start: all would have the same.
  [[nodiscard]] std::shared_ptr<Instance> make_first_instance(const InstanceName& name, const Group& group) const {
    return std::make_shared<Instance>(name, group.role(), settings.health.circuit);
  }
  [[nodiscard]] std::shared_ptr<Instance> make_instance(const InstanceName& name, const Group& group,
                                                        std::optional<std::chrono::milliseconds> slow_start = std::nullopt) const {
    return std::make_shared<Instance>(name, group.role(), settings.health.circuit, slow_start.value_or(settings.health.slow_start));
  }
  [[nodiscard]] Group& group_of(std::string_view role) { return role == "prefill" ? prefill : decode; }

  const Settings settings;
  Group prefill;
  Group decode;
  Counters counters;
  RetryBudget retry_budget{settings.retries.budget_share, settings.retries.budget_always};
  const std::chrono::steady_clock::time_point started = std::chrono::steady_clock::now();
  std::atomic<bool> stopping{false};  // no new requests: answers say Connection: close
};

}  // namespace moonpool::gateway
