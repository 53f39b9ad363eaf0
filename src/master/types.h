// Small values that all parts of the master share.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/ids.h"

namespace moonpool::master {

// Monotonic milliseconds. Passed in by the caller, so that tests own the time.
using TimeMs = std::uint64_t;

[[nodiscard]] inline TimeMs now_ms() {
  return static_cast<TimeMs>(
      std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now().time_since_epoch()).count());
}

[[nodiscard]] std::uint64_t hash_of(std::string_view key);

// A qualified key (object_key.h) with its hash, computed once per request. Refers to the caller's bytes.
struct HashedKey {
  explicit HashedKey(std::string_view k) : key(k), hash(hash_of(k)) {}
  std::string_view key;
  std::uint64_t hash;
};

}  // namespace moonpool::master
