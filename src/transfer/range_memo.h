// Finds the registered ranges that many pieces are in, one after the other, mostly without a search: a piece is in the range of the one
// before it, or in the range that followed that one the last time (blocks of many layers come layer by layer, in the same order again and
// again).
//
// Cost: a few comparisons for a piece that was foreseen, else what `search` costs. Threads: one. Lifetime: not beyond that of the ranges.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace moonpool::transfer {

// A Range has an address, a length, and an order in which neighbouring numbers make for the fewest clashes.
template <typename Range>
class RangeMemo {
 public:
  // The range that all of the piece is inside of; `search` finds it anew, or gives null.
  template <typename Search>
  [[nodiscard]] Range* find(std::uint64_t address, std::uint64_t length, Search search) {
    if (last_ != nullptr && inside(*last_, address, length)) return last_;
    Range*& follower = last_ == nullptr ? first_ : followers_[last_->order % kFollowers];
    if (follower == nullptr || !inside(*follower, address, length)) {
      Range* const found = search();
      if (found == nullptr) return nullptr;
      follower = found;
    }
    return last_ = follower;
  }

 private:
  static constexpr std::size_t kFollowers = 256;

  static bool inside(const Range& range, std::uint64_t address, std::uint64_t length) {
    const std::uint64_t offset = address - range.address;
    return offset <= range.length && length <= range.length - offset;
  }

  Range* last_ = nullptr;
  Range* first_ = nullptr;
  std::array<Range*, kFollowers> followers_{};
};

}  // namespace moonpool::transfer
