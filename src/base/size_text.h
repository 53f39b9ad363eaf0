// Sizes as people write them in flags, config files and the environment.
//
// Pure functions. Threads: any.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/result.h"

namespace moonpool {

// "4 GB", "16mb", "512 KiB", "1073741824": 1024-based, as the incumbent counts. kConfig for anything else.
[[nodiscard]] Result<std::uint64_t> parse_size(std::string_view text);

}  // namespace moonpool
