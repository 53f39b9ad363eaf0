#include "master/placement.h"

#include <algorithm>
#include <utility>

namespace moonpool::master {

namespace {
constexpr int kAnywhere = 1'000'000;
}

Placer::Placer(std::shared_ptr<const Segments> segments, PlacementWish wish, std::uint64_t seed)
    : segments_(std::move(segments)),
      wanted_(std::min(wish.replicas, kMaxReplicas)),
      random_(static_cast<std::minstd_rand::result_type>(seed ^ (seed >> 32))) {
  for (const auto& segment : *segments_) {
    if (!segment->ready() || !segment->reachable()) continue;
    int preference = kAnywhere;
    const auto& name = segment->description().name;
    if (wish.prefer_same_node && segment->description().node == wish.node) preference = kAnywhere - 1;
    const auto named = std::find(wish.preferred_segments.begin(), wish.preferred_segments.end(), name);
    if (named != wish.preferred_segments.end()) preference = static_cast<int>(named - wish.preferred_segments.begin());
    candidates_.push_back({segment.get(), preference});
  }
}

bool Placer::can_ever_fit(std::uint64_t size) const {
  return std::any_of(candidates_.begin(), candidates_.end(), [&](const Candidate& c) { return c.segment->capacity() >= size; });
}

Replicas Placer::place(std::uint64_t size) {
  Replicas placed;
  while (placed.size() < wanted_ && place_one(size, placed)) {
  }
  return placed;
}

// How undesirable it is to put another replica there: 0 another host, 1 another node of the host, 2 another segment of the node, 3 no.
int Placer::nearness(const Segment& segment, const Replicas& placed) const {
  int nearest = 0;
  for (const auto& replica : placed) {
    const auto& other = replica.segment->description();
    int near = 0;
    if (other.host == segment.description().host) near = 1;
    if (other.node == segment.description().node) near = 2;
    if (replica.segment == &segment) near = 3;
    nearest = std::max(nearest, near);
  }
  return nearest;
}

bool Placer::place_one(std::uint64_t size, Replicas& placed) {
  for (;;) {
    // The best rank that has candidates, then a draw among its members in proportion to their free space.
    std::pair<int, int> best{4, 0};
    std::uint64_t weight = 0;
    Candidate* chosen = nullptr;
    for (auto& candidate : candidates_) {
      if (size >= candidate.too_large || !candidate.segment->reachable()) continue;
      const auto free = candidate.segment->free_bytes();
      if (free < size) continue;
      const std::pair<int, int> rank{nearness(*candidate.segment, placed), candidate.preference};
      if (rank.first == 3 || rank > best) continue;
      if (rank < best) {
        best = rank;
        weight = 0;
      }
      weight += free;
      // Reservoir sampling: each member ends up chosen with probability free / weight.
      if (std::uniform_int_distribution<std::uint64_t>(0, weight - 1)(random_) < free) chosen = &candidate;
    }
    if (chosen == nullptr) return false;
    if (const auto offset = chosen->segment->allocate(size)) {
      placed.push_back({chosen->segment, *offset});
      return true;
    }
    chosen->too_large = std::min(chosen->too_large, size);
  }
}

}  // namespace moonpool::master
