// What must not come back when an owner reports its catalogue late: keys that were dropped in this reign, and everything that a
// remove-all or remove-by-regex has covered.
//
// A restarted master rebuilds from reports, and an owner that was unreachable then reports later. If a key (or a newer version of it)
// has been dropped meanwhile, that owner's old extent must not make it visible again. Bounded: beyond kLimit keys the floor rises, and late
// reports of unknown keys below it are refused altogether. A miss is always acceptable, a removed value never is.
// Threads: DroppedKeys: its shard's mutex; PurgeMarks: any.
#pragma once

#include <boost/unordered/unordered_flat_map.hpp>
#include <cstdint>
#include <memory>
#include <mutex>
#include <regex>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/result.h"

namespace moonpool::master {

class DroppedKeys {
 public:
  static constexpr std::size_t kLimit = 4096;

  void add(std::uint64_t hash, Version version) {
    if (dropped_.size() >= kLimit) {
      for (const auto& [key, dropped] : dropped_) floor_ = std::max(floor_, dropped);
      dropped_.clear();
    }
    auto& known = dropped_[hash];
    known = std::max(known, version);
  }
  [[nodiscard]] bool covers(std::uint64_t hash, Version version) const {
    if (version <= floor_) return true;
    const auto found = dropped_.find(hash);
    return found != dropped_.end() && version <= found->second;
  }

 private:
  boost::unordered_flat_map<std::uint64_t, Version> dropped_;
  Version floor_;
};

// Searches with time linear in the key and no recursion over it, whatever the expression: nobody can stop the master with one.
class KeyPattern {
 public:
  static constexpr std::size_t kMaxLength = 1024;
  // kInvalidParams with the reason when it does not compile (back references are not supported).
  [[nodiscard]] static Result<std::shared_ptr<const KeyPattern>> compile(const std::string& expression);
  [[nodiscard]] bool matches(std::string_view key) const;

 private:
  explicit KeyPattern(std::regex regex) : regex_(std::move(regex)) {}
  std::regex regex_;
};

class PurgeMarks {
 public:
  static constexpr std::size_t kLimit = 64;

  // All of the tenant's keys (pattern null), or those that match, up to this version.
  void add(std::string_view tenant, std::shared_ptr<const KeyPattern> pattern, Version up_to);
  [[nodiscard]] bool covers(std::string_view qualified_key, Version version) const;

 private:
  struct Mark {
    std::string tenant;
    std::shared_ptr<const KeyPattern> pattern;
    Version up_to;
  };
  mutable std::mutex mutex_;  // guards marks_
  std::vector<Mark> marks_;
};

}  // namespace moonpool::master
