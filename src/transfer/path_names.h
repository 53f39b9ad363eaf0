// The names of paths in a user's list ("local,shm,rdma,tcp"). Pure functions.
#pragma once

#include <algorithm>
#include <string_view>

namespace moonpool::transfer {

// Whether a comma-separated list has the name; an empty one has all.
[[nodiscard]] inline bool lists(std::string_view paths, std::string_view wanted) {
  if (paths.empty()) return true;
  while (!paths.empty()) {
    const auto comma = std::min(paths.find(','), paths.size());
    if (paths.substr(0, comma) == wanted) return true;
    paths.remove_prefix(std::min(comma + 1, paths.size()));
  }
  return false;
}

}  // namespace moonpool::transfer
