#include "gateway/policies/prefix_index.h"

#include <algorithm>

#include "gateway/hash_bytes.h"

namespace moonpool::gateway {

void make_prefix_chain(std::string_view prompt, std::uint64_t seed, std::vector<std::uint64_t>& chain) {
  chain.clear();
  const std::size_t blocks = std::min(prompt.size() / kPrefixBlockBytes, kPrefixBlocksAtMost);
  chain.reserve(blocks);
  std::uint64_t hash = seed;
  for (std::size_t i = 0; i < blocks; ++i) {
    hash = hash_bytes(prompt.substr(i * kPrefixBlockBytes, kPrefixBlockBytes), hash);
    chain.push_back(hash);
  }
}

PrefixIndex::PrefixIndex(std::size_t memory_bytes)
    // Up to two bucket heads for each node. At least one prompt of some blocks, at most what a Position can count.
    : nodes_at_most_(std::clamp<std::size_t>(memory_bytes / (sizeof(Node) + 2 * sizeof(Position)), 16, std::size_t{1} << 30)),
      buckets_(16, kNone) {}

std::size_t PrefixIndex::memory_bytes() const { return nodes_.capacity() * sizeof(Node) + buckets_.capacity() * sizeof(Position); }

std::size_t PrefixIndex::match(std::span<const std::uint64_t> chain) const {
  // A block is known only if all before it are (they are never older), so the known ones end at one place.
  std::size_t known = 0;
  std::size_t unknown = chain.size() + 1;
  if (chain.empty() || find(chain[0]) == kNone) return 0;
  known = 1;
  while (unknown - known > 1) {
    const std::size_t middle = known + (unknown - known) / 2;
    (find(chain[middle - 1]) != kNone ? known : unknown) = middle;
  }
  return known;
}

void PrefixIndex::insert(std::span<const std::uint64_t> chain) {
  if (chain.size() > nodes_at_most_) chain = chain.first(nodes_at_most_);
  // From the end, so that the first block becomes the most recent.
  for (std::size_t i = chain.size(); i-- > 0;) {
    const std::uint64_t key = chain[i];
    Position position = find(key);
    if (position != kNone) {
      unlink_from_order(position);
    } else {
      position = new_node();
      nodes_[position].key = key;
      nodes_[position].same_bucket = bucket(key);
      bucket(key) = position;
    }
    make_newest(position);
  }
}

PrefixIndex::Position PrefixIndex::find(std::uint64_t key) const {
  Position position = buckets_[key & (buckets_.size() - 1)];
  while (position != kNone && nodes_[position].key != key) position = nodes_[position].same_bucket;
  return position;
}

PrefixIndex::Position PrefixIndex::new_node() {
  if (nodes_.size() < nodes_at_most_) {
    if (nodes_.size() == nodes_.capacity()) nodes_.reserve(std::min(nodes_at_most_, std::max<std::size_t>(64, nodes_.size() * 2)));
    if (nodes_.size() == buckets_.size()) grow_buckets();
    nodes_.emplace_back();
    return static_cast<Position>(nodes_.size() - 1);
  }
  const Position position = oldest_;
  unlink_from_order(position);
  Position* link = &bucket(nodes_[position].key);
  while (*link != position) link = &nodes_[*link].same_bucket;
  *link = nodes_[position].same_bucket;
  return position;
}

void PrefixIndex::grow_buckets() {
  buckets_.assign(buckets_.size() * 2, kNone);
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    nodes_[i].same_bucket = bucket(nodes_[i].key);
    bucket(nodes_[i].key) = static_cast<Position>(i);
  }
}

void PrefixIndex::unlink_from_order(Position position) {
  const Node& node = nodes_[position];
  (node.newer == kNone ? newest_ : nodes_[node.newer].older) = node.older;
  (node.older == kNone ? oldest_ : nodes_[node.older].newer) = node.newer;
}

void PrefixIndex::make_newest(Position position) {
  Node& node = nodes_[position];
  node.newer = kNone;
  node.older = newest_;
  (newest_ == kNone ? oldest_ : nodes_[newest_].newer) = position;
  newest_ = position;
}

}  // namespace moonpool::gateway
