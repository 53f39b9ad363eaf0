#include "transfer/rdma/served_rails.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "transfer/rdma/gid_choice.h"

namespace moonpool::transfer::rdma {

namespace {

constexpr std::uint32_t kPassiveWorkRequests = 16;  // none is ever posted on the owner's end

Status check(const wire::RdmaOpenRequest& request) {
  const auto count = request.rail_size();
  if (count != request.end_size() || (request.avoid_size() != count && request.avoid_size() != 0)) {
    return {ErrorCode::kProtocol, "RDMA: the columns of an opening differ in length"};
  }
  if (static_cast<std::size_t>(count) > kMaxRailsPerSession) {
    return {ErrorCode::kInvalidParams, "RDMA: " + std::to_string(count) + " rails at once are more than the " +
                                           std::to_string(kMaxRailsPerSession) + " that a session may have"};
  }
  return {};
}

}  // namespace

ServedRails::ServedRails(std::shared_ptr<MemoryMap> memory, Options options, std::shared_ptr<net::Session> connection)
    : memory_(std::move(memory)), options_(std::move(options)), connection_(std::move(connection)) {}

ServedRails::~ServedRails() { end(); }

void ServedRails::destroy(std::span<const std::uint32_t> rails) {
  const std::lock_guard lock(mutex_);
  for (const auto number : rails) rails_.erase(number);
}

// The connection goes first: a user whose rail breaks looks at it, to know a fence from a fault of the path.
void ServedRails::fence() {
  if (connection_) connection_->abort();
  end();
}

void ServedRails::end() {
  std::vector<std::function<void()>> releases;
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    rails_.clear();
    releases.swap(releases_);
  }
  for (const auto& release : releases) release();
}

void ServedRails::at_end(std::function<void()> release) {
  {
    const std::lock_guard lock(mutex_);
    if (!ended_) {
      releases_.push_back(std::move(release));
      return;
    }
  }
  release();
}

std::size_t ServedRails::rails() const {
  const std::lock_guard lock(mutex_);
  return rails_.size();
}

// The user's own network first, then any NIC but the one to avoid, then the best address and the NIC with the fewest of this session's
// rails. Another network is no way around a NIC to avoid: most hosts' networks have no route between them.
Result<ServedRails::Choice> ServedRails::choose(const End& end, const std::string& avoid) const {
  const Devices& devices = memory_->devices();
  std::vector<std::size_t> used(devices.size());
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [number, rail] : rails_) ++used[rail.nic];
  }
  std::optional<Choice> best;
  std::tuple<bool, bool, bool, std::uint8_t, std::int64_t, std::uint32_t> best_rank;
  std::string reason = "none of the owner's NICs has its port up";
  for (std::size_t i = 0; i < devices.size(); ++i) {
    Nic& nic = devices[i];
    if (!nic.up()) continue;
    if (nic.info().infiniband != end.infiniband || nic.info().iwarp != end.iwarp) {
      if (!best) reason = "its kind of fabric is not that of " + nic.info().name + " of the owner";
      continue;
    }
    const auto ours = with_index(nic.gids(), options_.gid_index);
    const auto pair = choose_gids(ours, end.gids);
    if (!pair) {
      if (!best) reason = "no address of it can meet one of " + nic.info().name + " of the owner";
      continue;
    }
    const PathRank& path = pair->rank;
    const auto least_used = -static_cast<std::int64_t>(used[i]);
    const std::tuple rank{path.same_network, nic.info().name != avoid, path.routable, path.scope, least_used, path.common_prefix};
    if (best && rank <= best_rank) continue;
    best_rank = rank;
    best = Choice{i, pair->ours, static_cast<std::uint32_t>(pair->their_position), pair->theirs};
  }
  if (!best) return Status(ErrorCode::kUnavailable, end.nic + ": " + reason);
  if (!avoid.empty() && devices[best->nic].info().name == avoid) {
    return Status(ErrorCode::kUnavailable, end.nic + ": the owner has no other NIC than " + avoid + " for it");
  }
  return *best;
}

Result<ServedRails::Opened> ServedRails::open_one(std::uint32_t number, const End& end, const std::string& avoid) {
  const auto choice = choose(end, avoid);
  if (!choice.ok()) return choice.status();
  Nic& nic = memory_->devices()[choice->nic];
  const bool by_manager = end.connection_manager || nic.info().iwarp;  // as the user's end was made
  QueuePairOptions options = queue_pair_options(options_, Role::kPassive, choice->ours);
  options.work_requests = kPassiveWorkRequests;
  options.connection_manager = by_manager;
  auto queue_pair = nic.make_queue_pair(options);
  if (!queue_pair.ok()) return queue_pair.status();
  QueuePairAddress peer = end.address;
  peer.gid = choice->theirs;
  MOONPOOL_RETURN_IF_ERROR((*queue_pair)->connect(peer, choice->ours));
  Opened opened{*choice, (*queue_pair)->address(), by_manager};
  opened.address.gid = choice->ours;

  std::unique_ptr<QueuePair> refused;  // destroyed without the mutex
  const std::lock_guard lock(mutex_);
  const bool full = rails_.size() >= kMaxRailsPerSession;
  if (ended_ || full || rails_.contains(number)) {
    refused = std::move(*queue_pair);
    if (ended_) return Status(ErrorCode::kCancelled, "the session has ended");
    return Status(ErrorCode::kInvalidParams, full ? "the session has its most rails" : "the session has a rail of this number");
  }
  rails_.emplace(number, Rail{choice->nic, std::move(*queue_pair)});
  return opened;
}

Result<wire::RdmaOpenReply> ServedRails::open(const wire::RdmaOpenRequest& request) {
  MOONPOOL_RETURN_IF_ERROR(check(request));
  std::vector<End> ends;
  for (const auto& message : request.end()) {
    auto end = from_wire(message);
    if (!end.ok()) return end.status();
    ends.push_back(std::move(*end));
  }
  for (const auto& avoid : request.avoid()) {
    if (avoid.size() > kMaxNicName) return Status(ErrorCode::kProtocol, "RDMA: the name of a NIC to avoid is too long");
  }
  destroy(std::span(request.closed().data(), static_cast<std::size_t>(request.closed_size())));

  wire::RdmaOpenReply reply;
  for (int i = 0; i < request.rail_size(); ++i) {
    const auto opened = open_one(request.rail(i), ends[static_cast<std::size_t>(i)], request.avoid_size() > 0 ? request.avoid(i) : "");
    reply.add_status(opened.status().number());
    reply.add_reason(opened.status().message());
    auto& end = *reply.add_end();
    reply.add_gid(opened.ok() ? opened->choice.their_position : 0);
    reply.add_nic(opened.ok() ? static_cast<std::uint32_t>(opened->choice.nic) : 0);
    if (!opened.ok()) continue;
    const NicInfo& info = memory_->devices()[opened->choice.nic].info();
    end = to_wire({info.name, {opened->choice.ours}, opened->address, info.infiniband, info.iwarp, opened->connection_manager});
  }
  return reply;
}

Result<wire::RdmaKeysReply> keys_of(const MemoryMap& memory, const wire::RdmaKeysRequest& request) {
  const auto incarnation = Incarnation::from_bytes(request.incarnation());
  if (!incarnation) return Status(ErrorCode::kProtocol, "RDMA: an incarnation has 16 bytes");
  const auto ranges = memory.served(*incarnation);
  if (ranges.empty()) {
    return Status(ErrorCode::kStaleIncarnation, "nothing is served by RDMA under the incarnation " + incarnation->to_string());
  }
  wire::RdmaKeysReply reply;
  for (const auto& range : ranges) {
    auto& message = *reply.add_range();
    message.set_address(range.address);
    message.set_length(range.length);
    message.mutable_remote_key()->Add(range.remote_keys.begin(), range.remote_keys.end());
  }
  return reply;
}

}  // namespace moonpool::transfer::rdma
