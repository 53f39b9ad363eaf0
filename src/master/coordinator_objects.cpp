// The object requests: put, commit, look-ups and removes.
#include <algorithm>
#include <boost/container/small_vector.hpp>
#include <utility>

#include "base/logging.h"
#include "base/sync_point.h"
#include "master/coordinator.h"
#include "master/object_key.h"

namespace moonpool::master {

namespace {

// Writes each segment of a reply once, and gives its index.
class SegmentColumn {
 public:
  explicit SegmentColumn(lean::Keys& out) : out_(out) {}
  std::uint32_t index_of(const Segment& segment) {
    if (!known_.empty() && known_[last_] == &segment) return last_;
    const auto found = std::find(known_.begin(), known_.end(), &segment);
    last_ = static_cast<std::uint32_t>(found - known_.begin());
    if (found == known_.end()) {
      known_.push_back(&segment);
      out_.push_back(segment.encoded());
    }
    return last_;
  }

 private:
  lean::Keys& out_;
  boost::container::small_vector<const Segment*, 8> known_;
  std::uint32_t last_ = 0;
};

Status bad_tenant() {
  return {ErrorCode::kInvalidParams, "the tenant has more than " + std::to_string(kMaxTenantLength) + " bytes or holds a NUL"};
}

Status bad_columns(const char* operation) {
  return {ErrorCode::kInvalidParams, std::string(operation) + ": the columns of the request have different lengths"};
}

}  // namespace

std::uint64_t PutBatch::bytes_without_room() const {
  std::uint64_t bytes = 0;
  for (const auto& item : items) {
    if (item.status == ErrorCode::kNoAvailableHandle) bytes += std::min(item.size, ~std::uint64_t{0} - bytes);
  }
  return bytes;
}

// --- put -------------------------------------------------------------------------------------------------------------------------

Result<PutBatch> Coordinator::begin_put(const lean::PutStartRequest& request, TimeMs now) {
  const SharedReign reign(reign_mutex_);
  const auto node = find_node(request.node_id, now);
  if (!node) return unregistered(request.node_id);
  if (recovering(now)) return recovering_error();
  if (!valid_tenant(request.tenant)) return bad_tenant();
  const auto count = request.key.size();
  if (request.size.size() != count || (!request.group.empty() && request.group.size() != count)) return bad_columns("put");
  if (!node->producer) node->producer = true;
  PutBatch batch;
  batch.term = term();
  batch.wish = {
      request.replica_num, {request.preferred_segment.begin(), request.preferred_segment.end()}, request.prefer_same_node, node->id};
  const auto soft_ttl = request.soft_pin_ttl_ms == 0 ? static_cast<TimeMs>(config_.soft_pin_ttl.count())
                                                     : std::min<TimeMs>(request.soft_pin_ttl_ms, config_.max_soft_pin_ttl.count());
  batch.options = {node->id,
                   std::string(request.tenant.empty() ? kDefaultTenant : request.tenant),
                   request.upsert,
                   request.hard_pin,
                   request.soft_pin ? now + soft_ttl : 0,
                   now};
  batch.keys = QualifiedKeys(request.tenant, request.key);
  batch.rejected.reserve(count);
  batch.items.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    auto verdict = ErrorCode::kOk;
    if (request.key[i].empty() || request.size[i] == 0 || request.replica_num == 0) verdict = ErrorCode::kInvalidParams;
    if (request.key[i].size() > kMaxKeyLength) verdict = ErrorCode::kInvalidKey;
    batch.rejected.push_back(verdict);
    if (verdict != ErrorCode::kOk) continue;
    batch.items.push_back({HashedKey(batch.keys[i]), request.size[i], request.group.empty() ? std::string() : std::string(request.group[i]),
                           ErrorCode::kNoAvailableHandle});
  }
  return batch;
}

Status Coordinator::try_put(PutBatch& batch, TimeMs now) {
  const SharedReign reign(reign_mutex_);
  // Its writer may have been expired while the batch waited: a put of a dead writer would sit there until its time-out.
  if (batch.term != term() || !membership_.find(batch.options.writer)) return unregistered(batch.options.writer.to_bytes());
  batch.options.now = now;
  if (auto segments = membership_.segments(); segments != batch.segments) {
    if (batch.segments) batch.kept.push_back(std::move(batch.segments));
    batch.segments = std::move(segments);
  }
  Placer placer(batch.segments, batch.wish, seed_.fetch_add(0x9E3779B97F4A7C15ULL));
  table_.start_puts(batch.items, batch.options, placer);
  return {};
}

RoomVerdict Coordinator::make_room(const PutBatch& batch, TimeMs now, bool stalled) {
  const SharedReign reign(reign_mutex_);
  std::uint64_t needed = 0;
  std::uint64_t on_its_way = 0;
  std::uint64_t soon = 0;  // the part of it that no view holds up
  std::uint64_t largest = 0;
  for (const auto& segment : *batch.segments) {
    if (!segment->ready() || !segment->reachable()) continue;
    largest = std::max(largest, segment->capacity());
    const auto quarantine = segment->quarantine();
    on_its_way += quarantine;
    soon += quarantine - std::min(quarantine, segment->viewed());
  }
  for (const auto& item : batch.items) {
    if (item.status == ErrorCode::kNoAvailableHandle && item.size <= largest) needed += item.size;
  }
  if (needed == 0) {
    if (full_log_.allow(now)) {
      log::warning("put refused: {}", largest == 0
                                          ? std::string("no segment is mounted: start a node that lends memory")
                                          : "the object is larger than the largest segment of " + std::to_string(largest) + " bytes");
    }
    return RoomVerdict::kHopeless;
  }
  if (soon >= needed && !stalled) return RoomVerdict::kWait;
  const auto evicted = table_.evict(stalled ? needed : needed - soon, now, config_.allow_evict_soft_pinned);
  counters_.evicted_objects += evicted.objects;
  counters_.evicted_bytes += evicted.bytes;
  if (evicted.objects > 0 || on_its_way > 0) return RoomVerdict::kWait;
  if (full_log_.allow(now)) {
    const auto totals = table_.totals();
    log::warning(
        "put refused: {} bytes wanted, and of {} objects ({} bytes; {} puts in flight) none can be evicted: all are leased or pinned",
        needed, totals.objects, totals.bytes, totals.pending);
  }
  return RoomVerdict::kHopeless;
}

lean::PutStartReply Coordinator::put_reply(const PutBatch& batch) {
  lean::PutStartReply reply;
  const auto count = batch.rejected.size();
  reply.status.reserve(count);
  reply.version_count.reserve(count);
  reply.replica_count.reserve(count);
  reply.replica_segment.reserve(count);
  reply.replica_offset.reserve(count);
  reply.term = batch.term.value;
  SegmentColumn segments(reply.segment);
  std::uint64_t granted = 0;
  std::uint64_t exist = 0;
  std::uint64_t busy = 0;
  std::uint64_t no_space = 0;
  std::size_t next = 0;
  for (const auto verdict : batch.rejected) {
    const PutItem* const item = verdict == ErrorCode::kOk ? &batch.items[next++] : nullptr;
    const auto status = item == nullptr ? verdict : item->status;
    reply.status.push_back(static_cast<std::int32_t>(status));
    reply.version_count.push_back(item == nullptr ? 0 : item->version.count);
    const bool has_grant = item != nullptr && status == ErrorCode::kOk;
    reply.replica_count.push_back(has_grant ? static_cast<std::uint32_t>(item->replicas.size()) : 0);
    if (item == nullptr) continue;
    granted += has_grant ? 1 : 0;
    exist += status == ErrorCode::kObjectAlreadyExists ? 1 : 0;
    busy += status == ErrorCode::kReplicaNotReady ? 1 : 0;
    no_space += status == ErrorCode::kNoAvailableHandle ? 1 : 0;
    if (!has_grant) continue;
    for (const auto& replica : item->replicas) {
      reply.replica_segment.push_back(segments.index_of(*replica.segment));
      reply.replica_offset.push_back(replica.offset);
    }
  }
  counters_.put_started += granted;
  if (exist > 0) counters_.put_exists += exist;
  if (busy > 0) counters_.put_busy += busy;
  if (no_space > 0) counters_.put_no_space += no_space;
  return reply;
}

Result<lean::StatusReply> Coordinator::commit(const lean::PutCommitRequest& request, TimeMs now) {
  const SharedReign reign(reign_mutex_);
  static_cast<void>(find_node(request.node_id, now));
  if (!valid_tenant(request.tenant)) return bad_tenant();
  const auto count = request.key.size();
  if (request.version_count.size() != count || request.checksum.size() != count || request.written.size() != count) {
    return bad_columns("commit");
  }
  const QualifiedKeys keys(request.tenant, request.key);
  std::vector<CommitItem> items;
  items.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    items.push_back(
        {HashedKey(keys[i]), Version{Term{request.term}, request.version_count[i]}, request.checksum[i].value, request.written[i]});
  }
  table_.commit(items, NodeId::from_bytes(request.node_id).value_or(NodeId()));
  lean::StatusReply reply;
  reply.status.reserve(count);
  std::vector<std::uint64_t> ended;
  ended.reserve(count);
  bool unknown = false;
  std::uint64_t committed = 0;
  for (const auto& item : items) {
    reply.status.push_back(static_cast<std::int32_t>(item.status));
    if (item.status == ErrorCode::kStaleTerm) unknown = true;
    if (item.status == ErrorCode::kOk && item.written != 0) ++committed;
    if (item.version.term == term()) ended.push_back(item.key.hash);
  }
  counters_.put_committed += committed;
  settle(ended);
  // Its owner may be about to report it.
  if (unknown && recovering(now)) return recovering_error();
  return reply;
}

Result<wire::StatusReply> Coordinator::revoke(const wire::PutRevokeRequest& request, TimeMs now) {
  const SharedReign reign(reign_mutex_);
  static_cast<void>(find_node(request.node_id(), now));
  if (!valid_tenant(request.tenant())) return bad_tenant();
  if (request.version_count_size() != request.key_size()) return bad_columns("revoke");
  if (Term{request.term()} < term() && recovering(now)) return recovering_error();
  const std::vector<std::string_view> bare(request.key().begin(), request.key().end());
  const QualifiedKeys keys(request.tenant(), bare);
  std::vector<CommitItem> items;
  items.reserve(keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    items.push_back({HashedKey(keys[i]), Version{Term{request.term()}, request.version_count(static_cast<int>(i))}});
  }
  table_.revoke(items, NodeId::from_bytes(request.node_id()).value_or(NodeId()));
  wire::StatusReply reply;
  for (const auto& item : items) {
    reply.add_status(static_cast<std::int32_t>(item.status));
    if (item.status == ErrorCode::kOk) ++counters_.put_revoked;
    settle(std::span(&item.key.hash, 1));
  }
  return reply;
}

// --- look-ups --------------------------------------------------------------------------------------------------------------------

Result<Coordinator::Whereabouts> Coordinator::get_replicas(const lean::GetReplicasRequest& request, TimeMs now) {
  const SharedReign reign(reign_mutex_);
  static_cast<void>(find_node(request.node_id, now));
  if (!valid_tenant(request.tenant)) return bad_tenant();
  const QualifiedKeys keys(request.tenant, request.key);
  const auto count = keys.size();
  std::vector<LookupItem> items;
  items.reserve(count);
  for (const auto key : keys) items.push_back({HashedKey(key)});
  Whereabouts answer;
  table_.look_up(items, now + static_cast<TimeMs>(config_.lease_ttl.count()), &answer.keeper);
  lean::GetReplicasReply& reply = answer.reply;
  reply.lease_ms = static_cast<std::uint32_t>(config_.lease_ttl.count());
  for (auto* column : {&reply.size, &reply.version_term, &reply.version_count, &reply.replica_offset}) column->reserve(count);
  reply.status.reserve(count);
  reply.checksum.reserve(count);
  reply.replica_count.reserve(count);
  reply.replica_segment.reserve(count);
  SegmentColumn column(reply.segment);
  std::uint64_t hits = 0;
  for (const auto& item : items) {
    for (const auto& replica : item.replicas) {
      reply.replica_segment.push_back(column.index_of(*replica.segment));
      reply.replica_offset.push_back(replica.offset);
    }
    hits += item.status == ErrorCode::kOk ? 1 : 0;
    reply.status.push_back(static_cast<std::int32_t>(item.status));
    reply.size.push_back(item.size);
    reply.checksum.push_back({item.checksum});
    reply.version_term.push_back(item.version.term.value);
    reply.version_count.push_back(item.version.count);
    reply.replica_count.push_back(static_cast<std::uint32_t>(item.replicas.size()));
  }
  counters_.gets += count;
  counters_.get_hits += hits;
  if (hits < count && recovering(now)) return recovering_error();
  return answer;
}

Result<Coordinator::Existence> Coordinator::exist(const lean::ExistRequest& request, TimeMs now) {
  const SharedReign reign(reign_mutex_);
  static_cast<void>(find_node(request.node_id, now));
  if (!valid_tenant(request.tenant)) return bad_tenant();
  const auto asker = NodeId::from_bytes(request.node_id).value_or(NodeId());
  Existence existence;
  existence.keys = QualifiedKeys(request.tenant, request.key);
  std::vector<LookupItem> items;
  items.reserve(existence.keys.size());
  for (const auto key : existence.keys) items.push_back({HashedKey(key)});
  table_.look_up(items, now + static_cast<TimeMs>(config_.lease_ttl.count()), nullptr);
  existence.status.reserve(items.size());
  std::uint64_t hits = 0;
  for (std::uint32_t i = 0; i < items.size(); ++i) {
    const auto& item = items[i];
    existence.status.push_back(item.status);
    if (item.status == ErrorCode::kOk) {
      ++hits;
      continue;
    }
    const auto may_put = [this](NodeId id) { return membership_.may_put(id); };
    if (request.wait_ms > 0 &&
        (item.status == ErrorCode::kReplicaNotReady || handover_.expected_by_other(item.key.hash, asker, now, may_put))) {
      existence.on_their_way.push_back(i);
    }
    handover_.missed(item.key.hash, asker, now);
  }
  counters_.lookups += items.size();
  counters_.lookup_hits += hits;
  if (hits < items.size() && recovering(now)) return recovering_error();
  return existence;
}

bool Coordinator::still_on_its_way(std::string_view key, NodeId asker, TimeMs now) {
  const SharedReign reign(reign_mutex_);
  const HashedKey hashed(key);
  const auto status = table_.peek(hashed);
  if (status != ErrorCode::kObjectNotFound) return status == ErrorCode::kReplicaNotReady;
  return handover_.expected_by_other(hashed.hash, asker, now, [this](NodeId id) { return membership_.may_put(id); });
}

void Coordinator::finish_wait(Existence& existence, NodeId asker, bool timed_out, TimeMs now) {
  const SharedReign reign(reign_mutex_);
  std::vector<LookupItem> items;
  items.reserve(existence.on_their_way.size());
  for (const auto i : existence.on_their_way) items.push_back({HashedKey(existence.keys[i])});
  table_.look_up(items, now + static_cast<TimeMs>(config_.lease_ttl.count()), nullptr);
  for (std::size_t i = 0; i < items.size(); ++i) {
    existence.status[existence.on_their_way[i]] = items[i].status;
    if (items[i].status == ErrorCode::kOk || !timed_out) continue;
    for (const NodeId node : handover_.settle(items[i].key.hash)) {
      if (node != asker) membership_.waited_in_vain(node);
    }
    handover_.missed(items[i].key.hash, asker, now);
  }
}

std::optional<Coordinator::Description> Coordinator::describe(const std::string& tenant, const std::string& key) {
  const SharedReign reign(reign_mutex_);
  if (!valid_tenant(tenant)) return std::nullopt;
  const auto qualified_key = qualify(tenant, key);
  std::array<LookupItem, 1> items{LookupItem{HashedKey(qualified_key)}};
  SegmentKeeper keeper;
  table_.look_up(items, 0, &keeper);
  if (items[0].status != ErrorCode::kOk) return std::nullopt;
  Description description{items[0].size, items[0].checksum, items[0].version, {}};
  for (const auto& replica : items[0].replicas) {
    const auto& segment = replica.segment->description();
    description.replicas.push_back({segment.name, segment.host, segment.port, replica.offset});
  }
  return description;
}

// --- removes ---------------------------------------------------------------------------------------------------------------------

Result<std::vector<RemoveItem>> Coordinator::remove(const wire::RemoveRequest& request, std::vector<std::string>& keys, TimeMs now) {
  const SharedReign reign(reign_mutex_);
  if (!valid_tenant(request.tenant())) return bad_tenant();
  if (recovering(now)) return recovering_error();
  keys.clear();
  for (const auto& key : request.key()) keys.push_back(qualify(request.tenant(), key));
  std::vector<RemoveItem> items;
  items.reserve(keys.size());
  for (const auto& key : keys) items.push_back({HashedKey(key)});
  table_.remove(items, request.force(), now);
  for (const auto& item : items) counters_.removed += item.status == ErrorCode::kOk ? 1 : 0;
  return items;
}

Result<Coordinator::Purge> Coordinator::begin_remove_matching(const wire::RemoveMatchingRequest& request, TimeMs now) {
  Purge purge;
  if (!request.all()) {
    auto pattern = KeyPattern::compile(request.regex());
    if (!pattern.ok()) return pattern.status();
    purge.pattern = *pattern;
  }
  const SharedReign reign(reign_mutex_);
  if (!valid_tenant(request.tenant())) return bad_tenant();
  if (recovering(now)) return recovering_error();
  purge.tenant = request.tenant().empty() ? std::string(kDefaultTenant) : request.tenant();
  purge.force = request.force();
  table_.mark_purged(purge.tenant, purge.pattern);
  return purge;
}

Status Coordinator::remove_matching(Purge& purge, std::size_t shard, TimeMs now) {
  const SharedReign reign(reign_mutex_);
  if (recovering(now)) return recovering_error();  // a new reign began meanwhile
  const auto removed = table_.remove_matching(shard, purge.tenant, purge.pattern.get(), purge.force, now);
  purge.removed += removed;
  counters_.removed += removed;
  return {};
}

Coordinator::Barrier Coordinator::barrier() const {
  const SharedReign reign(reign_mutex_);
  Barrier barrier{term(), {}};
  for (const auto& node : membership_.nodes()) {
    if (const auto last = node->outbox->last_sequence(); !node->outbox->all_over_up_to(last)) barrier.orders.emplace_back(node, last);
  }
  return barrier;
}

bool Coordinator::over(const Barrier& barrier) const {
  return std::all_of(barrier.orders.begin(), barrier.orders.end(),
                     [](const auto& order) { return order.first->gone || order.first->outbox->all_over_up_to(order.second); });
}

}  // namespace moonpool::master
