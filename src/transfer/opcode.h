// What a transfer engine's transfer is made of.
#pragma once

#include <cstdint>

namespace moonpool::transfer {

enum class Opcode : std::uint8_t { kRead = 0, kWrite = 1 };  // seen from the caller

struct Piece {
  std::uint64_t local = 0;   // address in this process
  std::uint64_t remote = 0;  // address in the peer
  std::uint64_t length = 0;
};

}  // namespace moonpool::transfer
