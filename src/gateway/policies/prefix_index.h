// Which prompt prefixes were sent somewhere: a radix index over blocks of 256 bytes, bounded in memory, the least recently used go first.
//
// A prompt becomes the chain of its whole blocks' hashes, each hash covering all bytes from the start of the prompt. So a node needs
// neither the text nor a pointer to its parent: 28 bytes for 256 bytes of prompt, a match is a binary search of look-ups, and two prompts
// share exactly the nodes of their common blocks. A prefix is always more recent than what continues it, so eviction takes leaves first.
// Wins: no byte of a prompt is kept, memory is fixed. Gives up: matches are counted in whole blocks, and a collision of 64-bit hashes makes
// one estimate wrong. Cost: match O(log blocks), insert O(blocks), no allocation once full.
// Threads: its owner's lock. Ownership: values.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace moonpool::gateway {

inline constexpr std::size_t kPrefixBlockBytes = 256;
inline constexpr std::size_t kPrefixBlocksAtMost = 4096;  // of one prompt: the rest of a longer one does not count

// Replaces `chain` by that of `prompt`; chains of different seeds have nothing in common.
void make_prefix_chain(std::string_view prompt, std::uint64_t seed, std::vector<std::uint64_t>& chain);

class PrefixIndex {
 public:
  explicit PrefixIndex(std::size_t memory_bytes);

  // How many leading blocks of the chain are known.
  [[nodiscard]] std::size_t match(std::span<const std::uint64_t> chain) const;
  // Makes all of it known and recent; what does not fit pushes out what was used longest ago.
  void insert(std::span<const std::uint64_t> chain);
  [[nodiscard]] std::size_t blocks() const { return nodes_.size(); }
  [[nodiscard]] std::size_t memory_bytes() const;

 private:
  using Position = std::uint32_t;
  static constexpr Position kNone = ~Position{0};
  struct Node {
    std::uint64_t key = 0;
    Position newer = kNone;  // the order of use
    Position older = kNone;
    Position same_bucket = kNone;
  };

  [[nodiscard]] Position find(std::uint64_t key) const;
  [[nodiscard]] Position& bucket(std::uint64_t key) { return buckets_[key & (buckets_.size() - 1)]; }
  Position new_node();
  void grow_buckets();
  void unlink_from_order(Position position);
  void make_newest(Position position);

  const std::size_t nodes_at_most_;
  std::vector<Node> nodes_;
  std::vector<Position> buckets_;
  Position newest_ = kNone;
  Position oldest_ = kNone;
};

}  // namespace moonpool::gateway
