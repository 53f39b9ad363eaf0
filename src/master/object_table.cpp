#include "master/object_table.h"

#include <algorithm>

#include "master/object_key.h"

namespace moonpool::master {

namespace {
// How long a fruitless pass is believed at most: look-ups go on meanwhile.
constexpr TimeMs kFruitlessMs = 100;
}  // namespace

ObjectTable::ObjectTable() {
  for (auto& shard : shards_) shard = std::make_unique<ObjectShard>(context_);
}

void ObjectTable::start_reign(Term term) {
  for (auto& shard : shards_) {
    const std::scoped_lock lock(shard->mutex);
    shard->clear();
  }
  context_.term = term.value;
  context_.count = 0;
}

// Counting sort by shard. Then the shards twice: all that a batch will read is on its way to the cache before the first of it is used. With
// millions of objects a look-up is nothing but three reads of memory that wait for each other; this takes a fifth off it, and costs a
// second, uncontended lock.
template <typename Item, typename Apply>
void ObjectTable::by_shard(std::span<Item> items, Apply apply) {
  if (items.size() == 1) {
    ObjectShard& shard = shard_of(items[0].key.hash);
    const std::scoped_lock lock(shard.mutex);
    apply(shard, items[0]);
    return;
  }
  std::array<std::uint32_t, kShards + 1> starts{};
  for (const auto& item : items) ++starts[(item.key.hash >> 58) + 1];
  for (std::size_t s = 0; s < kShards; ++s) starts[s + 1] += starts[s];
  std::vector<std::uint32_t> order(items.size());
  auto next = starts;
  for (std::uint32_t i = 0; i < items.size(); ++i) order[next[items[i].key.hash >> 58]++] = i;
  for (std::size_t s = 0; s < kShards; ++s) {
    if (starts[s] == starts[s + 1]) continue;
    const std::scoped_lock lock(shards_[s]->mutex);  // what is prefetched may go again meanwhile: then it was in vain
    for (auto i = starts[s]; i < starts[s + 1]; ++i) shards_[s]->prefetch(items[order[i]].key);
  }
  for (std::size_t s = 0; s < kShards; ++s) {
    if (starts[s] == starts[s + 1]) continue;
    const std::scoped_lock lock(shards_[s]->mutex);
    for (auto i = starts[s]; i < starts[s + 1]; ++i) apply(*shards_[s], items[order[i]]);
  }
}

void ObjectTable::start_puts(std::span<PutItem> items, const PutOptions& options, Placer& placer) {
  by_shard(items, [&](ObjectShard& shard, PutItem& item) {
    if (item.status == ErrorCode::kNoAvailableHandle) shard.start_put(item, options, placer);
  });
}

void ObjectTable::commit(std::span<CommitItem> items, NodeId writer) {
  by_shard(items, [&](ObjectShard& shard, CommitItem& item) { item.status = shard.commit(item, writer); });
}

void ObjectTable::revoke(std::span<CommitItem> items, NodeId writer) {
  by_shard(items, [&](ObjectShard& shard, CommitItem& item) { item.status = shard.revoke(item.key, item.version, writer); });
}

void ObjectTable::look_up(std::span<LookupItem> items, TimeMs lease_until, SegmentKeeper* keeper) {
  by_shard(items, [&](ObjectShard& shard, LookupItem& item) { shard.look_up(item, lease_until, keeper); });
}

void ObjectTable::remove(std::span<RemoveItem> items, bool force, TimeMs now) {
  by_shard(items, [&](ObjectShard& shard, RemoveItem& item) { shard.remove(item, force, now); });
}

std::size_t ObjectTable::remove_matching(std::size_t index, std::string_view tenant, const KeyPattern* pattern, bool force, TimeMs now) {
  ObjectShard& shard = *shards_[index];
  std::vector<std::string> candidates;
  {
    const std::scoped_lock lock(shard.mutex);
    shard.for_each_committed([&](const Entry& entry) {
      if (split_qualified(entry.key()).first == tenant) candidates.emplace_back(entry.key());
    });
  }
  // Matching is slow work: done on copies, without the lock.
  if (pattern != nullptr) std::erase_if(candidates, [&](const std::string& key) { return !pattern->matches(split_qualified(key).second); });
  std::size_t removed = 0;
  const std::scoped_lock lock(shard.mutex);
  for (const auto& key : candidates) {
    RemoveItem item{HashedKey(key)};
    shard.remove(item, force, now);
    if (item.status == ErrorCode::kOk) ++removed;
  }
  return removed;
}

void ObjectTable::mark_purged(std::string_view tenant, std::shared_ptr<const KeyPattern> pattern) {
  context_.purges.add(tenant, std::move(pattern), Version{term(), context_.count.load()});
}

ReportOutcome ObjectTable::restore(const ReportedExtent& extent, Segment& segment) {
  ObjectShard& shard = shard_of(extent.key.hash);
  const std::scoped_lock lock(shard.mutex);
  return shard.restore(extent, segment);
}

ObjectShard* ObjectTable::oldest_shard(QueueKind kind) {
  ObjectShard* oldest = nullptr;
  std::uint64_t lowest = EvictionQueue::kEmpty;
  for (const auto& shard : shards_) {
    if (const auto head = shard->head(kind); head < lowest) {
      lowest = head;
      oldest = shard.get();
    }
  }
  return oldest;
}

ObjectTable::EvictionResult ObjectTable::evict_queue(QueueKind kind, std::uint64_t bytes, TimeMs now, bool allow_soft_pinned,
                                                     TimeMs& earliest_lease) {
  EvictionResult result;
  // Enough to bring every object's hits down to none, and then to see each once more. What is pushed back meanwhile gets a later stamp.
  const auto objects = totals().objects + kShards;
  std::uint64_t visits = (EvictionQueue::kMaxHits + 2) * objects;
  std::uint64_t held_in_a_row = 0;
  while (result.bytes < bytes && visits-- > 0) {
    ObjectShard* shard = oldest_shard(kind);
    if (shard == nullptr) break;
    Victim victim;
    EvictionStep step{};
    {
      const std::scoped_lock lock(shard->mutex);
      step = shard->evict_front(kind, now, allow_soft_pinned, victim);
    }
    if (step == EvictionStep::kEmpty) continue;
    if (step == EvictionStep::kKept) {
      if (victim.kept_until > 0) {
        earliest_lease = std::min(earliest_lease, victim.kept_until);
        // Everything in the queue is leased or pinned: no need to go round until the hits are gone.
        if (++held_in_a_row > objects) break;
      } else {
        held_in_a_row = 0;
      }
      continue;
    }
    held_in_a_row = 0;
    ++result.objects;
    result.bytes += victim.bytes;
    if (!victim.group) continue;
    for (const auto& member : victim.group->members()) {
      const HashedKey key(member);
      ObjectShard& home = shard_of(key.hash);
      const std::scoped_lock lock(home.mutex);
      const auto freed = home.evict_member(key, now);
      result.objects += freed > 0 ? 1 : 0;
      result.bytes += freed;
    }
  }
  return result;
}

ObjectTable::EvictionResult ObjectTable::evict(std::uint64_t bytes, TimeMs now, bool allow_soft_pinned) {
  const std::scoped_lock lock(eviction_mutex_);
  const auto inserted = context_.inserted.load();
  if (fruitless_.inserted == inserted && now < fruitless_.until && (fruitless_.with_soft || !allow_soft_pinned)) return {};
  TimeMs earliest_lease = ~TimeMs{0};
  auto result = evict_queue(QueueKind::kNormal, bytes, now, allow_soft_pinned, earliest_lease);
  if (result.bytes < bytes) {
    // Without leave to evict what is pinned it is still worth a look: pins run out.
    const auto more = evict_queue(QueueKind::kSoft, bytes - result.bytes, now, allow_soft_pinned, earliest_lease);
    result.objects += more.objects;
    result.bytes += more.bytes;
  }
  if (result.objects == 0) fruitless_ = {inserted, std::min(earliest_lease, now + kFruitlessMs), allow_soft_pinned};
  return result;
}

ObjectTable::Settled ObjectTable::drop_dead_replicas() {
  Settled settled;
  for (auto& shard : shards_) {
    const std::scoped_lock lock(shard->mutex);
    shard->drop_dead_replicas(settled);
  }
  return settled;
}

ObjectTable::Settled ObjectTable::revoke_older_than(TimeMs started_before) {
  Settled settled;
  for (auto& shard : shards_) {
    const std::scoped_lock lock(shard->mutex);
    shard->revoke_older_than(started_before, settled);
  }
  return settled;
}

ObjectTable::Settled ObjectTable::revoke_of_writer(NodeId writer) {
  Settled settled;
  for (auto& shard : shards_) {
    const std::scoped_lock lock(shard->mutex);
    shard->revoke_of_writer(writer, settled);
  }
  return settled;
}

Version ObjectTable::oldest_grant() {
  // Counts are drawn under a shard's lock and its put listed before that lock is released. So a count up to the one read here is either
  // listed when we look into its shard, or over; later ones are higher.
  auto oldest = context_.count.load() + 1;
  for (auto& shard : shards_) {
    const std::scoped_lock lock(shard->mutex);
    oldest = std::min(oldest, shard->oldest_pending());
  }
  return {term(), oldest};
}

ObjectTable::Totals ObjectTable::totals() {
  Totals totals;
  for (auto& shard : shards_) {
    const std::scoped_lock lock(shard->mutex);
    totals.objects += shard->object_count();
    totals.bytes += shard->object_bytes();
    totals.pending += shard->pending_count();
  }
  return totals;
}

std::vector<std::string> ObjectTable::keys(std::size_t limit) {
  std::vector<std::string> all;
  for (auto& shard : shards_) {
    const std::scoped_lock lock(shard->mutex);
    shard->for_each_committed([&](const Entry& entry) {
      if (all.size() < limit) all.emplace_back(entry.key());
    });
  }
  return all;
}

ErrorCode ObjectTable::peek(const HashedKey& key) {
  ObjectShard& shard = shard_of(key.hash);
  const std::scoped_lock lock(shard.mutex);
  return shard.peek(key);
}

void ObjectTable::for_each_extent(const std::function<void(const Segment&, std::uint64_t, std::uint64_t)>& visit) {
  for (auto& shard : shards_) {
    const std::scoped_lock lock(shard->mutex);
    shard->for_each_extent([&](const Replica& replica, std::uint64_t size) { visit(*replica.segment, replica.offset, size); });
  }
}

}  // namespace moonpool::master
