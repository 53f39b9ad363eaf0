#include "master/object_shard.h"

#include <algorithm>
#include <utility>

namespace moonpool::master {

Entry& ObjectShard::find_or_make(const HashedKey& key) {
  if (Entry* entry = entries_.find(key)) return *entry;
  Entry& made = *Entry::make(key);
  entries_.insert(made);
  return made;
}

void ObjectShard::erase_if_empty(Entry& entry) {
  if (entry.committed() || entry.pending) return;
  entries_.erase(entry);
  Entry::destroy(&entry);
}

bool ObjectShard::alive(const Entry& entry) {
  return entry.committed() && entry.any_replica([](const Replica& replica) { return replica.segment->alive(); });
}

bool ObjectShard::readable(const Entry& entry) {
  return entry.committed() && entry.any_replica([](const Replica& replica) { return replica.segment->reachable(); });
}

Version ObjectShard::newest_version() const { return {Term{context_.term.load()}, context_.count.load()}; }

// --- extents leaving -------------------------------------------------------------------------------------------------------------

std::shared_ptr<RetirementTicket> ObjectShard::ticket_of(std::uint64_t hash) {
  if (retiring_.size() > 2 * retiring_swept_at_ + 64) {
    std::erase_if(retiring_, [](const auto& entry) { return entry.second->state() != RetirementTicket::State::kOutstanding; });
    retiring_swept_at_ = retiring_.size();
  }
  auto& ticket = retiring_[hash];
  if (!ticket || ticket->state() != RetirementTicket::State::kOutstanding) ticket = std::make_shared<RetirementTicket>();
  return ticket;
}

void ObjectShard::retire(std::uint64_t hash, const Replica& replica, std::uint64_t size, Version version) {
  replica.segment->retire(replica.offset, size, version, ticket_of(hash));
}

void ObjectShard::retire_unwanted(const ReportedExtent& extent, Segment& segment) {
  const bool holds_space = segment.allocate_at(extent.offset, extent.length);
  segment.retire(extent.offset, extent.length, extent.version, ticket_of(extent.key.hash), holds_space);
}

void ObjectShard::drop_value(Entry& entry, std::uint64_t hash) {
  if (!entry.committed()) return;
  entry.for_each_replica([&](const Replica& replica) { retire(hash, replica, entry.size, entry.version); });
  dropped_.add(hash, entry.version);
  queue_.remove(entry);
  if (entry.group()) entry.group()->leave(std::string(entry.key()), entry.hard_pin);
  --objects_;
  bytes_ -= entry.size;
  entry.forget_value();
}

void ObjectShard::drop_pending(Entry& entry, std::uint64_t hash) {
  if (!entry.pending) return;
  for (const auto& replica : entry.pending->replicas) {
    if (replica.segment != nullptr) retire(hash, replica, entry.pending->size, entry.pending->version);
  }
  pending_.erase(pending_.iterator_to(*entry.pending));
  entry.pending.reset();
}

// --- put -------------------------------------------------------------------------------------------------------------------------

void ObjectShard::start_put(PutItem& item, const PutOptions& options, Placer& placer) {
  Entry* entry = entries_.find(item.key);
  if (entry != nullptr && entry->pending) {
    item.status = ErrorCode::kReplicaNotReady;
    return;
  }
  if (entry != nullptr && !options.upsert && readable(*entry)) {
    item.status = ErrorCode::kObjectAlreadyExists;
    return;
  }
  item.replicas = placer.place(item.size);
  if (item.replicas.empty()) {
    item.status = ErrorCode::kNoAvailableHandle;
    return;
  }
  item.version = {Term{context_.term.load()}, ++context_.count};
  item.status = ErrorCode::kOk;
  if (entry == nullptr) entry = &find_or_make(item.key);
  entry->pending = std::make_unique<PendingPut>();
  PendingPut& put = *entry->pending;
  put.entry = entry;
  put.version = item.version;
  put.size = item.size;
  put.replicas = item.replicas;
  put.writer = options.writer;
  put.started = options.now;
  put.soft_pin_until = options.soft_pin_until;
  put.hard_pin = options.hard_pin;
  if (!item.group.empty()) put.group = context_.groups.find_or_make(options.tenant + '\0' + item.group);
  pending_.push_back(put);
}

ErrorCode ObjectShard::commit(const CommitItem& item, NodeId writer) {
  Entry* entry = entries_.find(item.key);
  if (entry != nullptr && entry->committed() && entry->version == item.version) return ErrorCode::kOk;
  if (entry == nullptr || !entry->pending || entry->pending->version != item.version) {
    return item.version.term.value < context_.term ? ErrorCode::kStaleTerm : ErrorCode::kInvalidVersion;
  }
  PendingPut& put = *entry->pending;
  if (put.writer != writer) return ErrorCode::kIllegalClient;
  Replicas held;
  for (std::size_t i = 0; i < put.replicas.size(); ++i) {
    Replica& replica = put.replicas[i];
    if (((item.written >> i) & 1U) == 0 || replica.segment == nullptr || !replica.segment->alive()) continue;
    held.push_back(replica);
    replica.segment = nullptr;  // it is the value's now, not to be retired with the rest
  }
  const auto version = put.version;
  const auto size = put.size;
  const auto soft_pin_until = put.soft_pin_until;
  const auto hard_pin = put.hard_pin;
  const auto group = put.group;
  drop_pending(*entry, item.key.hash);
  if (held.empty()) {
    erase_if_empty(*entry);
    return item.written == 0 ? ErrorCode::kOk : ErrorCode::kReplicaNotFound;
  }
  drop_value(*entry, item.key.hash);
  entry->hard_pin = hard_pin;
  entry->set_group(group);
  if (group) {
    group->join(std::string(entry->key()), hard_pin);
    group->extend_soft_pin(soft_pin_until);
  }
  install(*entry, version, size, item.checksum, held);
  enqueue(*entry, soft_pin_until);
  return ErrorCode::kOk;
}

void ObjectShard::install(Entry& entry, Version version, std::uint64_t size, std::uint64_t checksum, const Replicas& replicas) {
  entry.version = version;
  entry.size = size;
  entry.checksum = checksum;
  for (const auto& replica : replicas) entry.add_replica(replica);
  ++objects_;
  bytes_ += size;
}

void ObjectShard::enqueue(Entry& entry, TimeMs soft_pin_until) {
  entry.set_soft_pin(soft_pin_until);
  ++context_.inserted;
  if (!entry.hard_pin) queue_.push_back(entry, soft_pin_until > 0 ? QueueKind::kSoft : QueueKind::kNormal);
}

ErrorCode ObjectShard::revoke(const HashedKey& key, Version version, NodeId writer) {
  Entry* entry = entries_.find(key);
  if (entry == nullptr) return ErrorCode::kOk;
  if (entry->pending && entry->pending->version == version) {
    if (entry->pending->writer != writer) return ErrorCode::kIllegalClient;
    drop_pending(*entry, key.hash);
  } else if (entry->version == version) {
    // Complete and reported by its owner to this reign, while its writer gave it up in the last one.
    if (version.term.value >= context_.term) return ErrorCode::kInvalidVersion;
    drop_value(*entry, key.hash);
  }
  erase_if_empty(*entry);
  return ErrorCode::kOk;
}

// --- look-ups --------------------------------------------------------------------------------------------------------------------

void ObjectShard::look_up(LookupItem& item, TimeMs lease_until, SegmentKeeper* keeper) {
  Entry* entry = entries_.find(item.key);
  if (entry == nullptr || !readable(*entry)) {
    item.status = entry != nullptr && entry->pending ? ErrorCode::kReplicaNotReady : ErrorCode::kObjectNotFound;
    return;
  }
  entry->lease_until = std::max(entry->lease_until, lease_until);
  if (entry->group()) entry->group()->extend_lease(lease_until);
  entry->hits = std::min<std::uint8_t>(EvictionQueue::kMaxHits, entry->hits + 1);
  item.status = ErrorCode::kOk;
  if (keeper == nullptr) return;
  item.size = entry->size;
  item.checksum = entry->checksum;
  item.version = entry->version;
  entry->for_each_replica([&](const Replica& replica) {
    if (!replica.segment->reachable()) return;
    keeper->keep(*replica.segment);
    item.replicas.push_back(replica);
  });
  if (item.replicas.empty()) item.status = ErrorCode::kObjectNotFound;  // lost since we asked
}

ErrorCode ObjectShard::peek(const HashedKey& key) const {
  const Entry* entry = entries_.find(key);
  if (entry != nullptr && readable(*entry)) return ErrorCode::kOk;
  return entry != nullptr && entry->pending ? ErrorCode::kReplicaNotReady : ErrorCode::kObjectNotFound;
}

void ObjectShard::remove(RemoveItem& item, bool force, TimeMs now) {
  Entry* entry = entries_.find(item.key);
  if (entry != nullptr && entry->committed() && !force && entry->lease_until > now && alive(*entry)) {
    item.status = ErrorCode::kObjectHasLease;
    return;
  }
  item.status = entry != nullptr && alive(*entry) ? ErrorCode::kOk : ErrorCode::kObjectNotFound;
  // An older copy may sit with an owner that has not reported yet. A put in flight is not covered: it was not there to be removed.
  Version removed = newest_version();
  if (entry != nullptr && entry->pending) removed.count = entry->pending->version.count - 1;
  dropped_.add(item.key.hash, removed);
  if (entry != nullptr) {
    drop_value(*entry, item.key.hash);
    erase_if_empty(*entry);
  }
  // Also when it was not found: it may have been evicted a moment ago, and its owner still have to hear of that.
  if (const auto found = retiring_.find(item.key.hash);
      found != retiring_.end() && found->second->state() != RetirementTicket::State::kDone) {
    item.ticket = found->second;
  } else if (found != retiring_.end() && found->second->fenced()) {
    item.ticket = found->second;
  }
}

// --- recovery --------------------------------------------------------------------------------------------------------------------

ReportOutcome ObjectShard::restore(const ReportedExtent& extent, Segment& segment) {
  Entry* entry = entries_.find(extent.key);
  const auto is_this = [&](const Replica& replica) { return replica.segment == &segment && replica.offset == extent.offset; };
  if (entry != nullptr && entry->pending && entry->pending->version == extent.version &&
      std::any_of(entry->pending->replicas.begin(), entry->pending->replicas.end(), is_this)) {
    return ReportOutcome::kKnown;
  }
  const bool same_version = entry != nullptr && entry->committed() && entry->version == extent.version;
  if (same_version && entry->any_replica(is_this)) return ReportOutcome::kKnown;

  // What this reign granted and does not know any more, it has retired itself.
  const bool wanted = extent.version.term.value < context_.term && extent.version.count != 0 &&
                      !dropped_.covers(extent.key.hash, extent.version) && !context_.purges.covers(extent.key.key, extent.version);
  const bool loses = entry != nullptr && entry->committed() && entry->version > extent.version;
  const bool differs = same_version && (entry->size != extent.length || entry->checksum != extent.checksum);
  if (!wanted || loses || differs) {
    retire_unwanted(extent, segment);
    return ReportOutcome::kUnwanted;
  }
  if (!segment.allocate_at(extent.offset, extent.length)) {
    segment.retire(extent.offset, extent.length, extent.version, ticket_of(extent.key.hash), false);
    return ReportOutcome::kOverlap;
  }
  if (entry == nullptr) entry = &find_or_make(extent.key);
  if (same_version) {
    entry->add_replica({&segment, extent.offset});
    return ReportOutcome::kAccepted;
  }
  drop_value(*entry, extent.key.hash);
  install(*entry, extent.version, extent.length, extent.checksum, {Replica{&segment, extent.offset}});
  enqueue(*entry, 0);
  return ReportOutcome::kAccepted;
}

// --- eviction and expiry ---------------------------------------------------------------------------------------------------------

EvictionStep ObjectShard::evict_front(QueueKind kind, TimeMs now, bool allow_soft_pinned, Victim& victim) {
  Entry* entry = queue_.front(kind);
  if (entry == nullptr) return EvictionStep::kEmpty;
  const auto leased_until = entry->leased_until();
  const bool soft = entry->soft_pinned_until() > now;
  const auto held_until = std::max(leased_until, soft && !allow_soft_pinned ? entry->soft_pinned_until() : 0);
  if (held_until > now) {
    victim.kept_until = held_until;
    if (entry->hits > 0) --entry->hits;
    queue_.push_back(*entry, soft ? QueueKind::kSoft : QueueKind::kNormal);
    return EvictionStep::kKept;
  }
  if (kind == QueueKind::kNormal && soft) {
    queue_.push_back(*entry, QueueKind::kSoft);
    return EvictionStep::kKept;
  }
  if (entry->hits > 0) {
    --entry->hits;
    queue_.push_back(*entry, soft ? QueueKind::kSoft : QueueKind::kNormal);
    return EvictionStep::kKept;
  }
  victim.bytes = entry->size * entry->replica_count();
  victim.group = entry->group();
  drop_value(*entry, entry->hash);
  erase_if_empty(*entry);
  return EvictionStep::kEvicted;
}

std::uint64_t ObjectShard::evict_member(const HashedKey& key, TimeMs now) {
  Entry* entry = entries_.find(key);
  if (entry == nullptr || !entry->committed() || entry->hard_pin || entry->lease_until > now) return 0;
  const auto bytes = entry->size * entry->replica_count();
  drop_value(*entry, key.hash);
  erase_if_empty(*entry);
  return bytes;
}

void ObjectShard::drop_dead_replicas(std::vector<std::uint64_t>& settled) {
  const auto dead = [](const Replica& replica) { return replica.segment == nullptr || !replica.segment->alive(); };
  entries_.for_each([&](Entry& entry) {
    if (entry.committed()) {
      entry.drop_replicas(dead);
      if (entry.replica_count() == 0) drop_value(entry, entry.hash);
    }
    if (entry.pending) {
      auto& replicas = entry.pending->replicas;
      for (auto& replica : replicas) {
        if (dead(replica)) replica.segment = nullptr;
      }
      if (std::all_of(replicas.begin(), replicas.end(), dead)) {
        settled.push_back(entry.hash);
        drop_pending(entry, settled.back());
      }
    }
    erase_if_empty(entry);
  });
}

void ObjectShard::revoke_older_than(TimeMs started_before, std::vector<std::uint64_t>& settled) {
  while (!pending_.empty() && pending_.front().started < started_before) {
    Entry& entry = *pending_.front().entry;
    settled.push_back(entry.hash);
    drop_pending(entry, settled.back());
    erase_if_empty(entry);
  }
}

void ObjectShard::revoke_of_writer(NodeId writer, std::vector<std::uint64_t>& settled) {
  for (auto it = pending_.begin(); it != pending_.end();) {
    PendingPut& put = *it;
    ++it;
    if (put.writer != writer) continue;
    Entry& entry = *put.entry;
    settled.push_back(entry.hash);
    drop_pending(entry, settled.back());
    erase_if_empty(entry);
  }
}

void ObjectShard::clear() {
  pending_.clear();
  entries_.for_each([&](Entry& entry) {
    queue_.remove(entry);
    if (entry.group()) entry.group()->leave(std::string(entry.key()), entry.hard_pin);
    Entry::destroy(&entry);
  });
  entries_.clear();
  retiring_.clear();
  objects_ = 0;
  bytes_ = 0;
}

}  // namespace moonpool::master
