// One shard's entries by key: a hash set of pointers, in parts, so that none of them is large when it grows.
//
// A flat table that is full is copied within the insertion that meets it, which reads every entry for its hash: milliseconds for 100,000
// entries, under the shard's lock, and all shards come to that point at about the same time, so that one batch meets many. Parts are small,
// and the more of them there are, the wider is the time over which they grow.
// Cost: 9 bytes a slot, 10 to 21 bytes an entry. Threads: the shard's mutex. Owns nothing: its user destroys the entries.
#pragma once

#include <array>
#include <boost/unordered/unordered_flat_set.hpp>
#include <cstddef>
#include <cstdint>

#include "master/object_entry.h"
#include "master/types.h"

namespace moonpool::master {

class EntryTable {
 public:
  // Of a hash's 64 bits the highest six choose the shard (object_table.h), the next ones the part.
  static constexpr unsigned kPartBits = 5;
  static constexpr std::size_t kParts = 1U << kPartBits;

  [[nodiscard]] Entry* find(const HashedKey& key) const {
    const auto& part = part_of(key.hash);
    const auto found = part.find(key);
    return found == part.end() ? nullptr : *found;
  }
  // Starts to load what find() will read of this key's entry: the three cache lines of an entry with a key of 64 bytes.
  void prefetch(const HashedKey& key) const {
    const auto& part = part_of(key.hash);
    const auto probable = part.find(Probable{key.hash});
    if (probable == part.end()) return;
    for (std::size_t line = 0; line < 3; ++line) __builtin_prefetch(reinterpret_cast<const char*>(*probable) + 64 * line);
  }
  // Its key must not be there yet.
  void insert(Entry& entry) { part_of(entry.hash).insert(&entry); }
  void erase(Entry& entry) { part_of(entry.hash).erase(&entry); }
  void clear() {
    for (auto& part : parts_) part.clear();
  }
  // The visited entry may be erased meanwhile, no other.
  template <typename Visit>
  void for_each(const Visit& visit) const {
    for (const auto& part : parts_) {
      for (auto it = part.begin(); it != part.end();) {
        Entry& entry = **it;
        ++it;
        visit(entry);
      }
    }
  }

 private:
  // Equals the first entry that the table's own few bits of the hash admit, without a look at it.
  struct Probable {
    std::uint64_t hash;
  };
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(const Probable& key) const { return key.hash; }
    std::size_t operator()(const Entry* entry) const { return entry->hash; }
    std::size_t operator()(const HashedKey& key) const { return key.hash; }
  };
  struct Equal {
    using is_transparent = void;
    bool operator()(const Probable&, const Entry*) const { return true; }
    bool operator()(const Entry* a, const Entry* b) const { return a == b; }
    bool operator()(const HashedKey& a, const Entry* b) const { return a.hash == b->hash && a.key == b->key(); }
    bool operator()(const Entry* a, const HashedKey& b) const { return (*this)(b, a); }
  };
  using Part = boost::unordered_flat_set<Entry*, Hash, Equal>;

  [[nodiscard]] static std::size_t index_of(std::uint64_t hash) { return (hash << 6) >> (64 - kPartBits); }
  [[nodiscard]] Part& part_of(std::uint64_t hash) { return parts_[index_of(hash)]; }
  [[nodiscard]] const Part& part_of(std::uint64_t hash) const { return parts_[index_of(hash)]; }

  std::array<Part, kParts> parts_;
};

}  // namespace moonpool::master
