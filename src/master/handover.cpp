#include "master/handover.h"

#include <algorithm>

namespace moonpool::master {

void Handover::missed(std::uint64_t hash, NodeId by, TimeMs now) {
  if (!by) return;
  Shard& shard = shards_[shard_of(hash)];
  const std::scoped_lock lock(shard.mutex);
  while (!shard.order.empty() && (shard.order.size() >= kPerShard || shard.order.front().second + kExpectMs < now)) {
    shard.expected.erase(shard.order.front().first);
    shard.order.pop_front();
  }
  auto [place, made] = shard.expected.try_emplace(hash);
  if (made) shard.order.emplace_back(hash, now);
  auto& nodes = place->second.by;
  auto here = std::find_if(nodes.begin(), nodes.end(), [&](const auto& entry) { return entry.first == by; });
  if (here == nodes.end()) here = nodes.end() - 1;
  *here = {by, now};
  std::rotate(nodes.begin(), here, here + 1);
}

bool Handover::expected_by_other(std::uint64_t hash, NodeId asker, TimeMs now, const std::function<bool(NodeId)>& may_put) const {
  Expectation expectation;
  {
    const Shard& shard = shards_[shard_of(hash)];
    const std::scoped_lock lock(shard.mutex);
    const auto found = shard.expected.find(hash);
    if (found == shard.expected.end()) return false;
    expectation = found->second;
  }
  return std::any_of(expectation.by.begin(), expectation.by.end(), [&](const auto& entry) {
    return entry.first && entry.first != asker && entry.second + kExpectMs >= now && may_put(entry.first);
  });
}

std::vector<NodeId> Handover::settle(std::uint64_t hash) {
  std::vector<NodeId> nodes;
  Shard& shard = shards_[shard_of(hash)];
  const std::scoped_lock lock(shard.mutex);
  const auto found = shard.expected.find(hash);
  if (found == shard.expected.end()) return nodes;
  for (const auto& [node, time] : found->second.by) {
    if (node) nodes.push_back(node);
  }
  shard.expected.erase(found);
  return nodes;
}

std::size_t Handover::size() const {
  std::size_t size = 0;
  for (const auto& shard : shards_) {
    const std::scoped_lock lock(shard.mutex);
    size += shard.expected.size();
  }
  return size;
}

void Handover::count_wait(TimeMs waited, bool satisfied) {
  ++counters.waits;
  ++(satisfied ? counters.satisfied : counters.timed_out);
  counters.waited_ms += waited;
  const auto bucket = std::lower_bound(kBucketMs.begin(), kBucketMs.end(), waited) - kBucketMs.begin();
  ++counters.buckets[static_cast<std::size_t>(bucket)];
}

}  // namespace moonpool::master
