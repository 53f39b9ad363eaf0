// Levenshtein distance between two names (insert, delete, replace: one each), for errors that name what was probably meant.
//
// Cost: |a| * |b| steps, one row of |b| + 1 numbers. Threads: none of its own.
#pragma once

#include <cstddef>
#include <string_view>

namespace moonpool {

[[nodiscard]] std::size_t edit_distance(std::string_view a, std::string_view b);

}  // namespace moonpool
