// Which segments a new object goes to.
//
// In this order: the preferred segments by name, the asking node's own (if it asks for that), then by chance in proportion to
// free space, which fills segments evenly without everyone running to the emptiest one. Replicas go to different hosts if possible,
// else to different nodes, else to different segments, never twice into one. Best effort: one replica placed is success.
// Cost: a pass over the segments a replica. One Placer serves one batch, on one thread.
#pragma once

#include <boost/container/small_vector.hpp>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "master/membership.h"
#include "master/segment.h"

namespace moonpool::master {

// Good while the segment has not been swept from the object table (segment.h).
struct Replica {
  Segment* segment = nullptr;  // null: this replica of a grant is lost
  std::uint64_t offset = 0;
};
using Replicas = boost::container::small_vector<Replica, 1>;

struct PlacementWish {
  std::uint32_t replicas = 1;
  std::vector<std::string> preferred_segments;
  bool prefer_same_node = false;
  NodeId node;
};

class Placer {
 public:
  static constexpr std::uint32_t kMaxReplicas = 32;

  Placer(std::shared_ptr<const Segments> segments, PlacementWish wish, std::uint64_t seed);
  // Empty when no segment has room.
  [[nodiscard]] Replicas place(std::uint64_t size);
  // Whether some ready segment could hold it if it were empty.
  [[nodiscard]] bool can_ever_fit(std::uint64_t size) const;

 private:
  struct Candidate {
    Segment* segment;
    int preference;                   // lower is better
    std::uint64_t too_large = ~0ULL;  // an allocation of this size has just failed here
  };
  bool place_one(std::uint64_t size, Replicas& placed);
  [[nodiscard]] int nearness(const Segment& segment, const Replicas& placed) const;

  const std::shared_ptr<const Segments> segments_;
  const std::uint32_t wanted_;
  std::vector<Candidate> candidates_;
  std::minstd_rand random_;
};

}  // namespace moonpool::master
