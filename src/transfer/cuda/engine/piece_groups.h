// The pieces of a transfer, grouped by the registered memory that they are in at both ends; neighbours at both ends are one piece, which
// never reaches from one registered range into the next.
//
// What has to be found or checked for memory is so done once a group, and not for each piece. Cost: some 2 ns a piece when groups follow
// each other in a pattern that comes again, else the search of a tree where the group changes. Threads: one.
#pragma once

#include <deque>
#include <map>
#include <utility>
#include <vector>

#include "transfer/opcode.h"
#include "transfer/registered_memory.h"

namespace moonpool::transfer::cuda {

// Remote: what describes the memory at the other end.
template <typename Remote>
class PieceGroups {
 public:
  struct Group {
    const RegisteredMemory::Region* local = nullptr;
    const Remote* remote = nullptr;
    std::vector<Piece> pieces;
    Group* follower = nullptr;  // the group of the pieces that came after this one's, the last time
  };

  void add(const RegisteredMemory::Region* local, const Remote* remote, const Piece& piece) {
    if (last_ == nullptr || !of(*last_, local, remote)) last_ = next(local, remote);
    auto& pieces = last_->pieces;
    if (!pieces.empty() && follows(pieces.back(), piece)) {
      pieces.back().length += piece.length;
    } else {
      pieces.push_back(piece);
    }
  }
  [[nodiscard]] bool empty() const { return groups_.empty(); }
  [[nodiscard]] auto begin() const { return groups_.begin(); }
  [[nodiscard]] auto end() const { return groups_.end(); }

 private:
  static bool of(const Group& group, const RegisteredMemory::Region* local, const Remote* remote) {
    return group.local == local && group.remote == remote;
  }
  static bool follows(const Piece& last, const Piece& piece) {
    return last.local + last.length == piece.local && last.remote + last.length == piece.remote;
  }
  Group* next(const RegisteredMemory::Region* local, const Remote* remote) {
    if (last_ != nullptr && last_->follower != nullptr && of(*last_->follower, local, remote)) return last_->follower;
    auto& known = known_[{local, remote}];
    if (known == nullptr) known = &groups_.emplace_back(Group{local, remote, {}, nullptr});
    if (last_ != nullptr) last_->follower = known;
    return known;
  }

  std::deque<Group> groups_;
  std::map<std::pair<const RegisteredMemory::Region*, const Remote*>, Group*> known_;
  Group* last_ = nullptr;
};

}  // namespace moonpool::transfer::cuda
