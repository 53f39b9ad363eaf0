#include "transfer/rdma/rails.h"

#include <algorithm>
#include <utility>

#include "base/logging.h"
#include "base/sync_point.h"
#include "transfer/rdma/gid_choice.h"
#include "transfer/rdma/wire_ends.h"

namespace moonpool::transfer::rdma {

namespace {

constexpr std::uint32_t kMaxDoublings = 4;            // of the time after which a failed path is tried again
constexpr std::size_t kMaxRemembered = 1024;          // incarnations of one peer
constexpr std::chrono::milliseconds kOpenTime{5000};  // one opening

}  // namespace

std::chrono::milliseconds pause_after(std::chrono::milliseconds first, std::uint32_t failures) {
  return first * (1U << std::min(failures > 0 ? failures - 1 : 0, kMaxDoublings));
}

// ---------------------------------------------------------------- what is known of a peer

PeerPaths::PeerPaths(std::string peer, std::size_t nics, std::chrono::milliseconds come_back_after)
    : peer_(std::move(peer)), come_back_after_(come_back_after), by_nic_(nics) {}

bool PeerPaths::may_try(std::size_t nic, std::uint64_t generation) const {
  const std::lock_guard lock(mutex_);
  const Trouble& trouble = by_nic_[nic];
  return trouble.failures == 0 || trouble.generation != generation || Deadline::Clock::now() >= trouble.again;
}

void PeerPaths::failed(std::size_t nic, std::uint64_t generation, const std::string& reason) {
  const std::lock_guard lock(mutex_);
  Trouble& trouble = by_nic_[nic];
  ++trouble.failures;
  trouble.generation = generation;
  trouble.again = Deadline::Clock::now() + pause_after(come_back_after_, trouble.failures);
  trouble.reason = reason;
}

void PeerPaths::works(std::size_t nic) {
  const std::lock_guard lock(mutex_);
  by_nic_[nic] = {};
}

std::string PeerPaths::trouble(const Devices& devices) const {
  const std::lock_guard lock(mutex_);
  std::string text;
  for (std::size_t i = 0; i < by_nic_.size(); ++i) {
    const bool down = !devices[i].up();
    if (!down && by_nic_[i].failures == 0) continue;
    text += (text.empty() ? "" : "; ") + devices[i].info().name + ": " + (down ? "its port is down" : by_nic_[i].reason);
  }
  return text;
}

std::shared_ptr<const ServedRanges> PeerPaths::served(const Incarnation& incarnation) const {
  const std::lock_guard lock(mutex_);
  const auto found = served_.find(incarnation);
  return found == served_.end() ? nullptr : found->second;
}

void PeerPaths::remember(const Incarnation& incarnation, std::shared_ptr<const ServedRanges> ranges) {
  const std::lock_guard lock(mutex_);
  if (served_.size() >= kMaxRemembered) served_.clear();
  served_.insert_or_assign(incarnation, std::move(ranges));
}

void PeerPaths::forget(const Incarnation& incarnation) {
  const std::lock_guard lock(mutex_);
  served_.erase(incarnation);
}

void PeerPaths::forget_all_served() {
  const std::lock_guard lock(mutex_);
  served_.clear();
}

// ---------------------------------------------------------------- rails

Rails::Rails(std::shared_ptr<MemoryMap> memory, const Options& options, std::shared_ptr<PeerPaths> paths, Counters& counters)
    : memory_(std::move(memory)), options_(options), paths_(std::move(paths)), counters_(counters) {}

Rails::~Rails() { destroy_all(); }

bool Rails::has_rail(std::size_t nic) const {
  return std::ranges::any_of(rails_, [&](const auto& rail) { return rail->nic == nic; });
}

bool Rails::shares_peer_nic(const Rail& rail) const {
  return std::ranges::any_of(rails_, [&](const auto& other) { return other.get() != &rail && other->peer_nic == rail.peer_nic; });
}

void Rails::adopt(std::unique_ptr<Rail> rail) {
  std::unique_ptr<Rail> unwanted;  // destroyed without the mutex
  const std::lock_guard lock(mutex_);
  if (broken_off_) {
    unwanted = std::move(rail);
    return;
  }
  rails_.push_back(std::move(rail));
  counters_.rails_opened.fetch_add(1, std::memory_order_relaxed);
}

void Rails::retire(std::unique_ptr<Rail> rail) {
  closed_.push_back(rail->number);
  rail->queue_pair.reset();
}

void Rails::lose(const Rail* lost, Cause cause, const std::string& reason) {
  std::unique_ptr<Rail> rail;
  {
    const std::lock_guard lock(mutex_);
    const auto found = std::ranges::find(rails_, lost, &std::unique_ptr<Rail>::get);
    rail = std::move(*found);
    rails_.erase(found);
  }
  const std::string name = memory_->devices()[rail->nic].info().name;
  if (cause == Cause::kPath) {
    log::warning("rdma: the path from {} to {} of {} failed: {}", name, rail->peer_nic_name, paths_->peer(), reason);
    paths_->failed(rail->nic, memory_->devices().generation(), reason + " (to " + rail->peer_nic_name + ")");
    avoid_[rail->nic] = rail->peer_nic_name;
    // With iWARP a dead key looks like this (nic.h): were it remembered, every transfer from now on would cost all paths.
    if (memory_->devices()[rail->nic].info().iwarp) paths_->forget_all_served();
  }
  if (cause == Cause::kPortDown) log::warning("rdma: {} is not used for {}: its port is down", name, paths_->peer());
  broken_.push_back(rail->number);
  counters_.rails_lost.fetch_add(1, std::memory_order_relaxed);
  retire(std::move(rail));
}

void Rails::lose_those_down() {
  for (;;) {
    const auto down = std::ranges::find_if(rails_, [&](const auto& rail) { return !memory_->devices()[rail->nic].up(); });
    if (down == rails_.end()) return;
    lose(down->get(), Cause::kPortDown, "its port is down");
  }
}

void Rails::works(Rail& rail) {
  if (rail.proven) return;
  rail.proven = true;
  avoid_.erase(rail.nic);
  paths_->works(rail.nic);
}

void Rails::destroy_all() {
  std::vector<std::unique_ptr<Rail>> rails;
  {
    const std::lock_guard lock(mutex_);
    rails.swap(rails_);
  }
  for (auto& rail : rails) retire(std::move(rail));
}

void Rails::break_off_all() {
  const std::lock_guard lock(mutex_);
  broken_off_ = true;
  for (const auto& rail : rails_) rail->queue_pair->break_off();
}

// ---------------------------------------------------------------- opening

void Rails::add_candidate(std::vector<Candidate>& candidates, std::size_t nic, std::string avoid) {
  const Devices& devices = memory_->devices();
  Nic& device = devices[nic];
  Candidate candidate;
  candidate.gids = with_index(device.gids(), options_.gid_index);
  candidate.avoid = std::move(avoid);
  if (candidate.gids.empty()) {
    paths_->failed(nic, devices.generation(),
                   options_.gid_index < 0 ? "its port has no GID" : "its port has no GID of index " + std::to_string(options_.gid_index));
    return;
  }
  if (candidate.gids.size() > kMaxGidsPerEnd) candidate.gids.resize(kMaxGidsPerEnd);
  QueuePairOptions queue_pair = queue_pair_options(options_, Role::kActive, candidate.gids.front());
  queue_pair.work_requests = options_.work_requests;
  queue_pair.connection_manager = options_.connection_manager;
  auto made = device.make_queue_pair(queue_pair);
  if (!made.ok()) {
    paths_->failed(nic, devices.generation(), made.status().message());
    return;
  }
  candidate.rail = std::make_unique<Rail>();
  candidate.rail->number = next_number_++;
  candidate.rail->nic = nic;
  candidate.rail->capacity = std::max(1U, std::min(options_.work_requests, device.info().max_work_requests));
  candidate.rail->queue_pair = std::move(*made);
  candidates.push_back(std::move(candidate));
}

Status Rails::open_missing(net::Lane& lane, Deadline deadline) {
  const Devices& devices = memory_->devices();
  const std::uint64_t generation = devices.generation();
  std::vector<Candidate> candidates;
  for (std::size_t i = 0; i < std::min(devices.size(), kMaxRailsPerSession / 2); ++i) {
    if (!has_rail(i) && devices[i].up() && paths_->may_try(i, generation)) add_candidate(candidates, i, {});
  }
  // Two rails that met in one NIC of the peer, because its other one was away: it may be back.
  if (candidates.empty() && Deadline::Clock::now() >= share_again_) {
    const auto sharing = std::ranges::find_if(rails_, [&](const auto& rail) { return shares_peer_nic(*rail); });
    if (sharing != rails_.end()) {
      ++shared_tries_;
      share_again_ = Deadline::Clock::now() + pause_after(options_.come_back_after, shared_tries_);
      add_candidate(candidates, (*sharing)->nic, (*sharing)->peer_nic_name);
    }
  }
  // Without any, the peer may still have to be told which ends are gone.
  return candidates.empty() && closed_.empty() ? Status() : open(std::move(candidates), lane, deadline);
}

// When the control connection turns out to be dead as well, it was the session's end and no fault of the paths'.
Status Rails::open_elsewhere(net::Lane& lane, Deadline deadline) {
  const Devices& devices = memory_->devices();
  std::vector<Candidate> candidates;
  for (std::size_t i = 0; i < std::min(devices.size(), kMaxRailsPerSession / 2); ++i) {
    if (has_rail(i) || !devices[i].up()) continue;
    const auto failed = avoid_.find(i);
    add_candidate(candidates, i, failed == avoid_.end() ? std::string() : failed->second);
  }
  Status status = open(std::move(candidates), lane, deadline);
  if (!status.ok() && !lane.healthy()) {
    for (const auto& [nic, peer_nic] : avoid_) paths_->works(nic);
  }
  return status;
}

Status Rails::open(std::vector<Candidate> candidates, net::Lane& lane, Deadline deadline) {
  const Devices& devices = memory_->devices();
  wire::RdmaOpenRequest request;
  for (const auto& candidate : candidates) {
    const NicInfo& info = devices[candidate.rail->nic].info();
    request.add_rail(candidate.rail->number);
    *request.add_end() = to_wire({info.name, candidate.gids, candidate.rail->queue_pair->address(), info.infiniband, info.iwarp,
                                  options_.connection_manager || info.iwarp});
    request.add_avoid(candidate.avoid);
  }
  request.mutable_closed()->Add(closed_.begin(), closed_.end());
  wire::RdmaOpenReply reply;
  MOONPOOL_RETURN_IF_ERROR(lane.call(wire::METHOD_RDMA_OPEN, request, reply, deadline.sooner(kOpenTime)));
  closed_.clear();
  const auto count = static_cast<int>(candidates.size());
  if (reply.status_size() != count || reply.reason_size() != count || reply.end_size() != count || reply.gid_size() != count ||
      reply.nic_size() != count) {
    return {ErrorCode::kProtocol, "RDMA: the answer of " + paths_->peer() + " to an opening makes no sense"};
  }
  MOONPOOL_SYNC_POINT("rdma.rails.opened");
  for (int i = 0; i < count; ++i) {
    auto& candidate = candidates[static_cast<std::size_t>(i)];
    const Status status = connect(candidate, reply, i);
    if (!status.ok()) {
      if (!has_rail(candidate.rail->nic)) paths_->failed(candidate.rail->nic, devices.generation(), status.message());
      retire(std::move(candidate.rail));
      continue;
    }
    // One that is to take over from a rail that shares a NIC of the peer's with another.
    const auto old = std::ranges::find_if(rails_, [&](const auto& rail) { return rail->nic == candidate.rail->nic; });
    if (old != rails_.end()) {
      if (shares_peer_nic(*candidate.rail)) {
        retire(std::move(candidate.rail));
        continue;
      }
      shared_tries_ = 0;
      std::unique_ptr<Rail> replaced;
      {
        const std::lock_guard lock(mutex_);
        replaced = std::move(*old);
        rails_.erase(old);
      }
      retire(std::move(replaced));
    }
    adopt(std::move(candidate.rail));
  }
  return {};
}

Status Rails::connect(Candidate& candidate, const wire::RdmaOpenReply& reply, int index) {
  if (reply.status(index) != 0) return {static_cast<ErrorCode>(reply.status(index)), reply.reason(index)};
  const auto end = from_wire(reply.end(index));
  if (!end.ok()) return end.status();
  if (end->gids.size() != 1 || reply.gid(index) >= candidate.gids.size()) {
    return {ErrorCode::kProtocol, "the peer chose a GID that was not offered"};
  }
  QueuePairAddress address = end->address;
  address.gid = end->gids.front();
  candidate.rail->peer_nic = reply.nic(index);
  candidate.rail->peer_nic_name = end->nic;
  return candidate.rail->queue_pair->connect(address, candidate.gids[reply.gid(index)]);
}

}  // namespace moonpool::transfer::rdma
