// Which engine is behind a prefill instance with MooncakeConnector, as its bootstrap server says (kv_transfer.h says what for).
//
// Such a server is part of a vLLM instance: GET /query answers {"<data-parallel rank>": {"engine_id": "...", ...}, ...}. An answer is used
// for kRememberedFor: a vLLM that restarts, and has another id then, is away for longer than that.
// Threads: any; a short lock, none while a server is asked. Ownership: the gateway's shared state.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "gateway/cancellation.h"
#include "gateway/io.h"
#include "gateway/kv_transfer.h"

namespace moonpool::gateway {

class UpstreamPool;

class MooncakePeers {
 public:
  static constexpr std::chrono::seconds kRememberedFor{2};

  struct Peer {
    MooncakeEngine engine;
    std::optional<std::uint32_t> rank;  // to be asked for, where the instance has several data-parallel ones
  };
  // `asked_rank`: the client's own X-data-parallel-rank, empty when it sent none; then the ranks take turns.
  [[nodiscard]] Task<Result<Peer>> find(UpstreamPool& pool, const InstanceName& prefill, std::uint16_t port, std::string_view asked_rank,
                                        Deadline deadline, Cancellation& cancellation);

 private:
  using Engines = std::vector<std::pair<std::uint32_t, std::string>>;  // rank, id as JSON text; never empty
  struct Known {
    Deadline::Clock::time_point until;
    std::shared_ptr<const Engines> engines;
  };
  [[nodiscard]] std::shared_ptr<const Engines> known(const InstanceName& server);
  [[nodiscard]] static Task<Result<std::shared_ptr<const Engines>>> ask(UpstreamPool& pool, const InstanceName& server, Deadline deadline,
                                                                        Cancellation& cancellation);

  std::atomic<std::size_t> turn_{0};
  std::mutex mutex_;                              // guards the map
  std::unordered_map<std::string, Known> known_;  // by the server's host:port; old ones go when it grows
};

}  // namespace moonpool::gateway
