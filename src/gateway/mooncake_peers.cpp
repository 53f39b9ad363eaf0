#include "gateway/mooncake_peers.h"

#include <algorithm>
#include <charconv>

#include "gateway/instance_check.h"
#include "gateway/json_member.h"
#include "gateway/request_edit.h"

namespace moonpool::gateway {

namespace {

constexpr std::size_t kKnownAtMost = 4096;

std::optional<std::uint32_t> rank_of(std::string_view text) {
  std::uint32_t rank = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), rank);
  return error == std::errc() && end == text.data() + text.size() ? std::optional(rank) : std::nullopt;
}

}  // namespace

Task<Result<MooncakePeers::Peer>> MooncakePeers::find(UpstreamPool& pool, const InstanceName& prefill, std::uint16_t port,
                                                      std::string_view asked_rank, Deadline deadline, Cancellation& cancellation) {
  const std::string host = prefill.host().find(':') == std::string::npos ? prefill.host() : "[" + prefill.host() + "]";
  const auto server = InstanceName::parse(host + ":" + std::to_string(port));
  if (!server.ok()) co_return server.status();
  auto engines = known(*server);
  if (engines == nullptr) {
    auto asked = co_await ask(pool, *server, deadline, cancellation);
    if (!asked.ok()) {
      co_return Status(asked.code(), "asking its Mooncake bootstrap server (--mooncake-bootstrap): " + asked.status().message());
    }
    engines = std::move(asked).value();
    const std::lock_guard lock(mutex_);
    if (known_.size() >= kKnownAtMost) known_.clear();
    known_.insert_or_assign(server->to_string(), Known{Deadline::Clock::now() + kRememberedFor, engines});
  }
  const auto wanted = rank_of(asked_rank);
  const auto found = std::find_if(engines->begin(), engines->end(), [&](const auto& one) { return wanted && one.first == *wanted; });
  // A rank that is not there is the instance's to refuse.
  std::size_t chosen = found == engines->end() ? 0 : static_cast<std::size_t>(found - engines->begin());
  if (!wanted) chosen = turn_.fetch_add(1, std::memory_order_relaxed) % engines->size();
  const auto& [rank, id] = (*engines)[chosen];
  Peer peer{{id, "http://" + server->to_string()}, std::nullopt};
  if (engines->size() > 1 && !wanted) peer.rank = rank;
  co_return peer;
}

std::shared_ptr<const MooncakePeers::Engines> MooncakePeers::known(const InstanceName& server) {
  const std::lock_guard lock(mutex_);
  const auto found = known_.find(server.to_string());
  return found == known_.end() || found->second.until < Deadline::Clock::now() ? nullptr : found->second.engines;
}

Task<Result<std::shared_ptr<const MooncakePeers::Engines>>> MooncakePeers::ask(UpstreamPool& pool, const InstanceName& server,
                                                                               Deadline deadline, Cancellation& cancellation) {
  const auto answer = co_await get_from_instance(pool, server, "/query", {}, deadline, cancellation);
  if (!answer.ok()) co_return answer.status();
  if (answer->status != 200) {
    co_return Status(ErrorCode::kRpcFail, server.to_string() + " answered GET /query with HTTP " + std::to_string(answer->status));
  }
  auto engines = std::make_shared<Engines>();
  JsonMembers members(answer->body);
  while (members.next()) {
    const auto rank = rank_of(members.key());
    const std::string_view id = json_member(members.value(), "engine_id");
    if (rank && id.starts_with('"') && is_whole_json(id)) engines->emplace_back(*rank, id);
  }
  if (engines->empty()) {
    co_return Status(ErrorCode::kProtocol, server.to_string() + " names no engine: is it the bootstrap port of a prefill instance?");
  }
  co_return std::shared_ptr<const Engines>(std::move(engines));
}

}  // namespace moonpool::gateway
