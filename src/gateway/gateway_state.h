// What all threads of one gateway share: its settings, its two groups, its counters.
//
// Threads: any; the groups lock for themselves, the counters are relaxed atomics. Ownership: the Gateway's, outlives its threads.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "gateway/admission.h"
#include "gateway/group.h"
#include "gateway/kv_events/live_blocks.h"
#include "gateway/latency.h"
#include "gateway/mooncake_peers.h"
#include "gateway/retry.h"
#include "gateway/settings.h"
#include "gateway/tls.h"

namespace moonpool::gateway {

struct Counters {
  std::atomic<std::uint64_t> requests{0};            // completions received
  std::atomic<std::uint64_t> answered{0};            // answered by an instance, its 4xx included
  std::atomic<std::uint64_t> failed{0};              // answered with an error of the gateway's or an instance's 5xx
  std::atomic<std::uint64_t> cut{0};                 // streams that ended with an error event
  std::atomic<std::uint64_t> client_gone{0};         // ended by the client before its answer was whole
  std::atomic<std::uint64_t> prefill_given_up{0};    // sent to decode although no prefill instance had done its part
  std::atomic<std::uint64_t> decode_first{0};        // sent to decode alone, because there was little to prefill
  std::atomic<std::uint64_t> kv_handed_over{0};      // whose decode was told where a prefill instance keeps their KV
  std::atomic<std::uint64_t> kv_not_taken{0};        // of these, whose decode then answered with an error and was asked again without it
  std::atomic<std::uint64_t> continued{0};           // streams that went on at another instance
  std::atomic<std::uint64_t> retries{0};             // hops sent to another instance after a failure
  std::atomic<std::uint64_t> retries_refused{0};     // not sent, because the retry budget was used up
  std::atomic<std::uint64_t> bad_requests{0};        // refused before any hop
  std::atomic<std::uint64_t> unauthorized{0};        // refused for their key, or for the lack of one
  std::atomic<std::uint64_t> client_connections{0};  // open now
  std::atomic<std::uint64_t> spans_exported{0};      // taken by the collector
  std::atomic<std::uint64_t> spans_dropped{0};       // not
  LatencyHistogram first_byte;                       // completions: from the whole request to the first byte of an answer that is no error
};

class OtlpExporter;

struct GatewayState {
  GatewayState(Settings the_settings, std::shared_ptr<Policy> prefill_policy, std::shared_ptr<Policy> decode_policy)
      : prefill("prefill", std::move(prefill_policy)), decode("decode", std::move(decode_policy)) {
    replace_settings(std::move(the_settings));
    admission.configure(settings());
    retry_budget.set(settings().retries.budget_share, settings().retries.budget_always);
    if (settings().prefill_events.is_on()) prefill_prompts = std::make_shared<LearnedPrompts>();
    if (settings().decode_events.is_on()) decode_prompts = std::make_shared<LearnedPrompts>();
  }

  // What holds now. The reference stays good for the gateway's life, though not the latest: who lives longer than a request asks again.
  [[nodiscard]] const Settings& settings() const { return *current_.load(std::memory_order_acquire); }
  // From one thread at a time. Older settings are kept, a few KB for each change that somebody made, so that readers need no count.
  void replace_settings(Settings newer) {
    versions_.push_back(std::make_unique<const Settings>(std::move(newer)));
    current_.store(versions_.back().get(), std::memory_order_release);
  }

  // Those that are there from the start need no slow start: all would have the same.
  [[nodiscard]] std::shared_ptr<Instance> make_first_instance(const InstanceName& name, const Group& group) const {
    return with_events(std::make_shared<Instance>(name, group.role(), settings().health.circuit), group);
  }
  [[nodiscard]] std::shared_ptr<Instance> make_instance(const InstanceName& name, const Group& group,
                                                        std::optional<std::chrono::milliseconds> slow_start = std::nullopt) const {
    return with_events(
        std::make_shared<Instance>(name, group.role(), settings().health.circuit, slow_start.value_or(settings().health.slow_start)),
        group);
  }
  [[nodiscard]] Group& group_of(std::string_view role) { return role == "prefill" ? prefill : decode; }

  // What the instances want of the gateway itself; empty: nothing.
  [[nodiscard]] std::string upstream_authorization() const {
    const std::string& key = settings().upstream_api_key;
    return key.empty() ? key : "Bearer " + key;
  }
  // What stands in the place of a client's Authorization on the way to an instance (http_message.h).
  [[nodiscard]] std::optional<std::string> authorization_for_instances() const {
    const Settings& now = settings();
    if (!now.upstream_api_key.empty()) return upstream_authorization();
    if (now.keys.has(KeyRole::kClient) && !now.forward_authorization) return std::string();
    return std::nullopt;
  }

  // What each group's KV events and prefill's answers tell of prompts and tokens; null where events are not followed. Set at the start
  // alone.
  std::shared_ptr<LearnedPrompts> prefill_prompts;
  std::shared_ptr<LearnedPrompts> decode_prompts;
  Group prefill;
  Group decode;
  Counters counters;
  RetryBudget retry_budget;
  Admission admission;
  MooncakePeers mooncake_peers;
  TlsKeeper tls;
  const std::chrono::steady_clock::time_point started = std::chrono::steady_clock::now();
  OtlpExporter* otlp = nullptr;       // where spans go, set before the first request; null: nowhere
  std::atomic<bool> stopping{false};  // no new requests: answers say Connection: close

 private:
  [[nodiscard]] std::shared_ptr<Instance> with_events(std::shared_ptr<Instance> instance, const Group& group) const {
    if (const auto& prompts = group.role() == "prefill" ? prefill_prompts : decode_prompts; prompts != nullptr) {
      instance->set_live_blocks(std::make_shared<LiveBlocks>(prompts));
    }
    return instance;
  }
  std::vector<std::unique_ptr<const Settings>> versions_;
  std::atomic<const Settings*> current_{nullptr};
};

}  // namespace moonpool::gateway
