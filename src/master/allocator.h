// Space within one segment, as offsets: the master never touches the memory it hands out.
//
// Algorithm: two-level segregated fit (TLSF, Masmano et al. 2004), kept beside the memory instead of inside it. allocate() and free() are
// O(1): two bitmap look-ups find a list of free blocks that are surely large enough; neighbours coalesce at once. Nearly the best fit: 64
// classes an octave, and the first kScan blocks of the request's own class are tried before a larger class, so that a hole of about the
// right size is used and a large one is left whole. With sizes log-uniform from 4 KiB to 16 MiB and random victims 4.5% of a full segment
// of 64 GiB are lost to fragmentation, against 8.2% with 16 classes of which a larger one goes first (bench/allocator_churn.cpp).
// Holes are used from the front, always: with the oldest evicted first, what is left of one then grows into the next victim's place, and
// nothing is lost. (Beside the larger neighbour instead: 4.0% with random victims, but 5% instead of none with the oldest.)
// Granule: 256 bytes up to 1 TiB (doubling beyond, so that 32-bit block numbers suffice). 4 KiB objects waste nothing, the worst case
// is 255 bytes an object; a page-sized granule would double the cost of a 4 KiB + 1 byte object. About 45 bytes a block.
// Before seal(), blocks can be taken at given offsets in any order: a restarted master rebuilds the segment from its owner's catalogue.
// Threads: none of its own; the segment's mutex guards it.
#pragma once

#include <array>
#include <boost/unordered/unordered_flat_map.hpp>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <vector>

namespace moonpool::master {

class ExtentAllocator {
 public:
  explicit ExtentAllocator(std::uint64_t capacity);

  [[nodiscard]] std::optional<std::uint64_t> allocate(std::uint64_t length);
  // Takes exactly [offset, offset + length), rounded up to granules. False if any of it is taken, outside, or not at a granule. Before
  // seal().
  [[nodiscard]] bool allocate_at(std::uint64_t offset, std::uint64_t length);
  void seal();
  // False when no block was allocated at this offset.
  bool free(std::uint64_t offset);

  [[nodiscard]] std::uint64_t capacity() const { return std::uint64_t{units_} * granule_; }
  [[nodiscard]] std::uint64_t used() const { return std::uint64_t{used_units_} * granule_; }
  [[nodiscard]] std::uint64_t free_bytes() const { return capacity() - used(); }
  [[nodiscard]] std::size_t allocations() const { return allocations_; }
  [[nodiscard]] std::uint64_t granule() const { return granule_; }
  // What `length` costs: whole granules.
  [[nodiscard]] std::uint64_t rounded(std::uint64_t length) const;
  // Walks all blocks: they tile the segment, no two free ones touch, every list and counter agrees. For tests.
  [[nodiscard]] bool consistent() const;

 private:
  static constexpr std::uint32_t kNone = ~0U;
  static constexpr unsigned kSecondBits = 6;
  static constexpr unsigned kSecond = 1U << kSecondBits;
  static constexpr unsigned kFirst = 32 - kSecondBits + 1;
  static constexpr int kScan = 8;
  static constexpr int kLastScan = 64;  // of the request's own class, when nothing else is left
  struct Block {
    std::uint32_t start = 0;
    std::uint32_t units = 0;
    std::uint32_t before = kNone;  // neighbours in the segment
    std::uint32_t after = kNone;
    std::uint32_t list_previous = kNone;  // in its free list
    std::uint32_t list_next = kNone;
    bool free = false;
  };
  // Start of each used block -> its index. In parts, because a table that grows is copied within one call: of seven million
  // blocks in one table that held every put up for 0.1 s. Chosen by a hash that scatters, so that they do not all grow at once.
  using Index = boost::unordered_flat_map<std::uint32_t, std::uint32_t>;
  static constexpr unsigned kIndexPartBits = 7;
  static constexpr std::size_t kIndexParts = 1U << kIndexPartBits;
  struct Class {
    unsigned first;
    unsigned second;
  };
  [[nodiscard]] Index& index_of(std::uint32_t start) { return by_offset_[index_part(start)]; }
  [[nodiscard]] const Index& index_of(std::uint32_t start) const { return by_offset_[index_part(start)]; }
  [[nodiscard]] static std::size_t index_part(std::uint32_t start);
  [[nodiscard]] static Class class_of(std::uint32_t units);
  // The smallest block that fits among the first `limit` of a list.
  [[nodiscard]] std::uint32_t scan(std::uint32_t head, std::uint32_t units, int limit) const;
  [[nodiscard]] std::uint32_t find(std::uint32_t units) const;
  // The head of the first list whose blocks are all large enough.
  [[nodiscard]] std::uint32_t first_of_larger_class(std::uint32_t units) const;
  std::uint32_t new_block(std::uint32_t start, std::uint32_t units, std::uint32_t before, std::uint32_t after);
  void drop_block(std::uint32_t index);
  void list_insert(std::uint32_t index);
  void list_remove(std::uint32_t index);
  // Cuts [start, start + units) out of the free block and marks it used; the rests stay free.
  void take(std::uint32_t index, std::uint32_t start, std::uint32_t units);

  std::uint64_t granule_;
  std::uint32_t units_;
  std::uint32_t used_units_ = 0;
  std::deque<Block> blocks_;          // grows without copying, and without a second half that is never used
  std::vector<std::uint32_t> spare_;  // unused places in blocks_
  std::uint32_t first_bitmap_ = 0;
  std::array<std::uint64_t, kFirst> second_bitmap_{};
  std::array<std::array<std::uint32_t, kSecond>, kFirst> lists_{};
  std::array<Index, kIndexParts> by_offset_;
  std::size_t allocations_ = 0;
  std::map<std::uint32_t, std::uint32_t> free_by_start_;  // only until seal()
  bool sealed_ = false;
};

}  // namespace moonpool::master
