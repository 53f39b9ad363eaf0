// A 64-bit hash of bytes for tables and chains of this process: quick, not stable between versions, no defence against chosen input.
// Threads: a pure function.
#pragma once

#include <cstdint>
#include <string_view>

namespace moonpool::gateway {

[[nodiscard]] std::uint64_t hash_bytes(std::string_view bytes, std::uint64_t seed);

}  // namespace moonpool::gateway
