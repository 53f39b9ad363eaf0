// Membership, reigns, recovery and the background work. The object requests are in coordinator_objects.cpp.
#include "master/coordinator.h"

#include <algorithm>
#include <utility>

#include "base/logging.h"
#include "base/sync_point.h"
#include "master/object_key.h"

namespace moonpool::master {

namespace {
constexpr std::uint64_t kHighestBelievableTerm = 1ULL << 62;
constexpr std::size_t kOrdersPerAnswer = 4096;
// A sweep that comes this much later than the one before means that this process stood still.
constexpr TimeMs kStallMs = 1500;

std::chrono::milliseconds sync_interval_for(std::chrono::milliseconds client_ttl) {
  return std::clamp(client_ttl / 5, std::chrono::milliseconds(20), std::chrono::milliseconds(1000));
}

std::string short_hex(std::string_view bytes) {
  const auto id = NodeId::from_bytes(bytes);
  return id ? id->to_string().substr(0, 8) : "of " + std::to_string(bytes.size()) + " bytes";
}
}  // namespace

Coordinator::Coordinator(const MasterConfig& config, TimeMs now, std::uint64_t wall_ms)
    : config_(config), sync_interval_(sync_interval_for(config.client_ttl)), reign_started_(now), seed_(wall_ms) {
  start_reign(Term{std::max<std::uint64_t>(wall_ms, 1)}, now);
}

// --- reigns ----------------------------------------------------------------------------------------------------------------------

void Coordinator::start_reign(Term term, TimeMs now) {
  const auto segments = membership_.forget_all();  // kept until the table has forgotten them
  table_.start_reign(term);
  reign_started_ = now;
  recovered_ = false;
  ++counters_.reigns;
  progress_.notify_all();
  for (auto& event : settled_) event.notify_all();
}

bool Coordinator::recovering(TimeMs now) const {
  if (recovered_ || config_.recovery_window.count() == 0) return false;
  const auto age = now - reign_started_;
  if (age < static_cast<TimeMs>(config_.recovery_window.count())) return true;
  if (age < static_cast<TimeMs>(config_.longest_recovery.count()) && membership_.mounts_in_progress(now)) return true;
  recovered_ = true;
  return false;
}

Status Coordinator::recovering_error() const {
  return {ErrorCode::kRecovering, "the master has just started and is still hearing from the owners: ask again"};
}

Status Coordinator::unregistered(std::string_view id_bytes) const {
  return {ErrorCode::kNotRegistered, "node " + short_hex(id_bytes) + " is not registered in term " + std::to_string(term().value) +
                                         ": register, mount the segments again, then go on"};
}

// --- membership ------------------------------------------------------------------------------------------------------------------

std::shared_ptr<Node> Coordinator::find_node(std::string_view id_bytes, TimeMs now) const {
  const auto id = NodeId::from_bytes(id_bytes);
  if (!id || !*id) return nullptr;
  auto node = membership_.find(*id);
  if (node) node->last_seen = now;
  return node;
}

Result<wire::RegisterNodeReply> Coordinator::register_node(const wire::RegisterNodeRequest& request, TimeMs now) {
  const auto id = NodeId::from_bytes(request.node_id());
  if (!id || !*id) return Status(ErrorCode::kInvalidParams, "register: a node id has 16 bytes that are not all zero");
  if (request.highest_term() >= kHighestBelievableTerm) {
    return Status(ErrorCode::kInvalidParams, "register: term " + std::to_string(request.highest_term()) + " is not one of a master's");
  }
  if (Term{request.highest_term()} > term()) {
    const std::unique_lock reign(reign_mutex_);
    if (Term{request.highest_term()} > term()) {
      log::warning("node {} has seen term {}, ours is {}: starting a new reign above it; all nodes report again", request.name(),
                   request.highest_term(), term().value);
      start_reign(Term{request.highest_term() + 1}, now);
    }
  }
  const SharedReign reign(reign_mutex_);
  std::vector<std::shared_ptr<Node>> disproved;
  for (const auto& bytes : request.fenced()) {
    const auto incarnation = Incarnation::from_bytes(bytes);
    if (!incarnation || !membership_.fenced().add(*incarnation)) continue;
    // It mounted before we heard that the last master had fenced it. Its owner has to come again, and will be refused.
    if (const auto segment = membership_.find_segment(*incarnation)) {
      if (auto owner = membership_.find(segment->description().node)) disproved.push_back(std::move(owner));
    }
  }
  if (!disproved.empty()) remove_nodes(disproved, "one of its segments was fenced in the last reign");
  auto registration = membership_.register_node(*id, request.name(), request.host(), request.port(), now);
  if (!registration.predecessors.empty()) {
    remove_nodes(registration.predecessors, "another process, " + id->to_string().substr(0, 8) + ", runs on its address now");
  }
  ++counters_.nodes_registered;
  log::info("node {} ({}) registered", request.name(), id->to_string().substr(0, 8));
  wire::RegisterNodeReply reply;
  reply.set_term(term().value);
  reply.set_sync_interval_ms(static_cast<std::uint32_t>(sync_interval_.count()));
  reply.set_client_ttl_ms(static_cast<std::uint32_t>(config_.client_ttl.count()));
  reply.set_lease_ttl_ms(static_cast<std::uint32_t>(config_.lease_ttl.count()));
  for (auto& bytes : membership_.fenced().all()) *reply.add_fenced() = std::move(bytes);
  return reply;
}

Result<wire::MountSegmentReply> Coordinator::mount(const wire::MountSegmentRequest& request, TimeMs now) {
  const SharedReign reign(reign_mutex_);
  const auto node = find_node(request.node_id(), now);
  if (!node) return unregistered(request.node_id());
  if (Term{request.term()} != term()) {
    return Status(ErrorCode::kStaleTerm,
                  "mount: term " + std::to_string(request.term()) + ", the master's is " + std::to_string(term().value));
  }
  const auto incarnation = Incarnation::from_bytes(request.segment().incarnation());
  const auto count = request.key_size();
  if (!incarnation || !*incarnation || request.segment().size() == 0 || request.offset_size() != count || request.length_size() != count ||
      request.version_term_size() != count || request.version_count_size() != count || request.checksum_size() != count) {
    return Status(ErrorCode::kInvalidParams, "mount: needs an incarnation, a size, and catalogue columns of one length");
  }
  const auto& info = request.segment();
  auto mounted =
      membership_.mount(node, {*incarnation, info.name(), info.host(), info.port(), info.size(), info.base(), info.protocol(), node->id});
  if (!mounted.ok()) return mounted.status();
  const auto segment = *mounted;
  wire::MountSegmentReply reply;
  for (int i = 0; i < count; ++i) {
    const ReportedExtent extent{HashedKey(request.key(i)), request.offset(i), request.length(i),
                                Version{Term{request.version_term(i)}, request.version_count(i)}, request.checksum(i)};
    const bool inside = extent.length > 0 && extent.offset <= info.size() && extent.length <= info.size() - extent.offset;
    if (inside && request.key(i).empty()) {
      // Within a reign the order that retired it still stands.
      if (!segment->ready()) segment->retire_again(extent.offset, extent.length, extent.version);
      continue;
    }
    if (!inside || request.key(i).empty() || request.key(i).size() > kMaxKeyLength + kMaxTenantLength + 1) {
      ++counters_.extents_rejected;
      reply.set_rejected(reply.rejected() + 1);
      if (reject_log_.allow(now)) {
        log::warning("segment {}: reported extent [{}, +{}) is outside the segment of {} bytes, or its key has a wrong length; ignored",
                     info.name(), extent.offset, extent.length, info.size());
      }
      continue;
    }
    const auto outcome = table_.restore(extent, *segment);
    if (outcome == ReportOutcome::kAccepted) ++counters_.extents_restored;
    if (outcome == ReportOutcome::kAccepted) settle(std::span(&extent.key.hash, 1));
    if (outcome == ReportOutcome::kAccepted || outcome == ReportOutcome::kKnown) continue;
    ++counters_.extents_rejected;
    reply.set_rejected(reply.rejected() + 1);
    log_rejected(*segment, extent, outcome, now);
  }
  if (request.last() && !segment->ready()) {
    segment->set_ready();
    ++counters_.segments_mounted;
    log::info("segment {} mounted: {} bytes, {} in use, incarnation {}", info.name(), info.size(), segment->used(),
              incarnation->to_string().substr(0, 8));
    progress_.notify_all();
  }
  return reply;
}

void Coordinator::log_rejected(const Segment& segment, const ReportedExtent& extent, ReportOutcome outcome, TimeMs now) {
  if (outcome == ReportOutcome::kOverlap) {
    if (!reject_log_.allow(now)) return;
    log::warning("segment {}: reported extent [{}, +{}) overlaps another one or is not aligned; its owner is told to drop it",
                 segment.description().name, extent.offset, extent.length);
    return;
  }
  log::debug("segment {}: reported extent [{}, +{}) of version {}.{} is not wanted any more", segment.description().name, extent.offset,
             extent.length, extent.version.term.value, extent.version.count);
}

Result<std::shared_ptr<Node>> Coordinator::sync(const wire::NodeSyncRequest& request, const std::shared_ptr<void>& session, TimeMs now) {
  const SharedReign reign(reign_mutex_);
  auto node = find_node(request.node_id(), now);
  if (!node) return unregistered(request.node_id());
  if (Term{request.term()} != term()) {
    return Status(ErrorCode::kStaleTerm, "sync: term " + std::to_string(request.term()) + ", the master's is " +
                                             std::to_string(term().value) + ": register again");
  }
  node->synced = true;
  if (request.path_size() > 0) {
    const std::scoped_lock lock(node->paths_mutex);
    node->paths.assign(request.path().begin(), request.path().end());
    node->device_bytes_in_place = request.device_bytes_in_place();
    node->device_bytes_by_nic = request.device_bytes_by_nic();
    node->device_bytes_staged = request.device_bytes_staged();
  }
  {
    const std::scoped_lock lock(node->sync_mutex);
    // Answers on one connection arrive in order: this request proves that the last answer did.
    if (session && node->sync_session.lock() == session) node->fenced_told = node->fenced_sent;
  }
  if (request.acknowledged_size() > 0) {
    const auto over = node->outbox->acknowledge({request.acknowledged().data(), static_cast<std::size_t>(request.acknowledged_size())});
    counters_.retirements_acknowledged += over;
    MOONPOOL_SYNC_POINT("master.sync.acknowledged");
    if (over > 0) progress_.notify_all();
  }
  if (request.withdrawn_size() > 0 &&
      node->outbox->withdraw({request.withdrawn().data(), static_cast<std::size_t>(request.withdrawn_size())}) > 0) {
    progress_.notify_all();
  }
  return node;
}

Result<wire::NodeSyncReply> Coordinator::sync_reply(Node& node, const std::shared_ptr<void>& session, TimeMs now) {
  const SharedReign reign(reign_mutex_);
  if (node.gone) return unregistered(node.id.to_bytes());
  wire::NodeSyncReply reply;
  reply.set_term(term().value);
  for (const auto& order : node.outbox->collect(now, static_cast<TimeMs>(sync_interval_.count()), kOrdersPerAnswer)) {
    auto* out = reply.add_retirements();
    out->set_sequence(order.sequence);
    out->set_incarnation(order.segment->description().incarnation.to_bytes());
    out->set_offset(order.offset);
    out->set_length(order.length);
    out->mutable_version()->set_term(order.version.term.value);
    out->mutable_version()->set_count(order.version.count);
  }
  const auto oldest = table_.oldest_grant();
  reply.mutable_oldest_grant()->set_term(oldest.term.value);
  reply.mutable_oldest_grant()->set_count(oldest.count);
  const std::scoped_lock lock(node.sync_mutex);
  const auto changes = membership_.fenced().changes();
  if (node.fenced_told != changes) {
    for (auto& bytes : membership_.fenced().all()) *reply.add_fenced() = std::move(bytes);
  }
  node.fenced_sent = changes;
  node.sync_session = session;
  return reply;
}

Status Coordinator::attend(const wire::AttendRequest& request, const void* session, TimeMs now) {
  const SharedReign reign(reign_mutex_);
  const auto node = find_node(request.node_id(), now);
  if (!node) return unregistered(request.node_id());
  if (Term{request.term()} != term()) {
    return {ErrorCode::kStaleTerm, "attend: term " + std::to_string(request.term()) + ", the master's is " + std::to_string(term().value)};
  }
  if (!node->present) log::info("node {} ({}) is back", node->name, node->id.to_string().substr(0, 8));
  MOONPOOL_RETURN_IF_ERROR(membership_.attend(node, session));
  progress_.notify_all();
  return {};
}

void Coordinator::session_ended(const void* session) {
  const SharedReign reign(reign_mutex_);
  const auto node = membership_.leave(session);
  if (!node) return;
  ++counters_.nodes_lost;
  auto revoked = table_.revoke_of_writer(node->id);
  counters_.put_abandoned += revoked.size();
  settle(revoked);
  // Nobody is to wait for what this node was expected to put.
  for (auto& event : settled_) event.notify_all();
  log::warning("node {} ({}) lost its connection: its objects are hidden until it is back, or expired after {} ms of silence", node->name,
               node->id.to_string().substr(0, 8), config_.client_ttl.count());
}

Status Coordinator::unmount(const wire::UnmountSegmentRequest& request) {
  const SharedReign reign(reign_mutex_);
  const auto incarnation = Incarnation::from_bytes(request.incarnation());
  const auto node = NodeId::from_bytes(request.node_id());
  if (!incarnation || !node) return {ErrorCode::kInvalidParams, "unmount: needs a node id and an incarnation of 16 bytes each"};
  const auto segment = membership_.find_segment(*incarnation);
  if (!segment) return membership_.find(*node) ? Status() : unregistered(request.node_id());
  if (segment->description().node != *node) return {ErrorCode::kIllegalClient, "unmount: the segment belongs to another node"};
  const auto removed = membership_.remove_segment(*incarnation);
  settle(table_.drop_dead_replicas());
  progress_.notify_all();
  log::info("segment {} unmounted by its owner", segment->description().name);
  return {};
}

Status Coordinator::deregister(const wire::DeregisterNodeRequest& request) {
  const SharedReign reign(reign_mutex_);
  const auto id = NodeId::from_bytes(request.node_id());
  if (!id) return {ErrorCode::kInvalidParams, "deregister: a node id has 16 bytes"};
  if (const auto node = membership_.find(*id)) remove_nodes({node}, "it said good-bye");
  return {};
}

void Coordinator::remove_nodes(const std::vector<std::shared_ptr<Node>>& nodes, const std::string& why) {
  Segments removed;  // kept until the table has been swept
  for (const auto& node : nodes) {
    const auto segments = membership_.remove_node(node->id);
    removed.insert(removed.end(), segments.begin(), segments.end());
    auto revoked = table_.revoke_of_writer(node->id);
    counters_.put_abandoned += revoked.size();
    settle(revoked);
    log::info("node {} ({}) left with {} segments: {}", node->name, node->id.to_string().substr(0, 8), segments.size(), why);
  }
  if (!removed.empty()) {
    auto lost = table_.drop_dead_replicas();
    counters_.put_abandoned += lost.size();
    settle(lost);
  }
  for (const auto& node : nodes) node->wake->notify_all();
  progress_.notify_all();
}

// --- in the background -----------------------------------------------------------------------------------------------------------

void Coordinator::settle(std::span<const std::uint64_t> hashes) {
  for (const auto hash : hashes) {
    static_cast<void>(handover_.settle(hash));
    settled(hash).notify_all();
  }
}

void Coordinator::sweep(TimeMs now) {
  const SharedReign reign(reign_mutex_);
  const auto previous = last_sweep_.exchange(now);
  if (previous != 0 && now > previous + kStallMs) {
    log::warning("this process stood still for {} ms: no node is expired for that time", now - previous);
    membership_.forgive(now - previous);
  }
  const auto ttl = static_cast<TimeMs>(config_.client_ttl.count());
  if (now > ttl) {
    if (const auto silent = membership_.silent_since(now - ttl); !silent.empty()) {
      counters_.nodes_expired += silent.size();
      remove_nodes(silent, "not heard of for " + std::to_string(ttl) + " ms; its segments are fenced");
    }
  }
  const auto put_timeout = static_cast<TimeMs>(config_.put_timeout.count());
  if (now > put_timeout) {
    const auto abandoned = table_.revoke_older_than(now - put_timeout);
    counters_.put_abandoned += abandoned.size();
    settle(abandoned);
    if (!abandoned.empty()) log::warning("{} puts were not finished within {} ms and are revoked", abandoned.size(), put_timeout);
  }
  evict_above_watermark(now);
  static_cast<void>(recovering(now));
}

namespace {
struct Space {
  std::uint64_t capacity = 0;
  std::uint64_t used = 0;
  std::uint64_t quarantine = 0;
};
Space space_of(const Segments& segments) {
  Space space;
  for (const auto& segment : segments) {
    if (!segment->ready()) continue;
    space.capacity += segment->capacity();
    space.used += segment->used();
    space.quarantine += segment->quarantine();
  }
  return space;
}
}  // namespace

bool Coordinator::above_watermark() const {
  const auto space = space_of(*membership_.segments());
  const auto held = space.used - std::min(space.used, space.quarantine);
  return static_cast<double>(held) > config_.eviction_high_watermark_ratio * static_cast<double>(space.capacity);
}

void Coordinator::evict_above_watermark(TimeMs now) {
  if (!above_watermark()) return;
  const auto space = space_of(*membership_.segments());
  // What is in quarantine is on its way back already.
  const auto held = static_cast<double>(space.used - std::min(space.used, space.quarantine));
  const auto target = std::max(0.0, config_.eviction_high_watermark_ratio - config_.eviction_ratio) * static_cast<double>(space.capacity);
  const auto evicted = table_.evict(static_cast<std::uint64_t>(held - target), now, config_.allow_evict_soft_pinned);
  counters_.evicted_objects += evicted.objects;
  counters_.evicted_bytes += evicted.bytes;
}

}  // namespace moonpool::master
