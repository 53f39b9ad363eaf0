// MTUs in bytes and as verbs count them.
#pragma once

#include <infiniband/verbs.h>

#include <cstdint>

namespace moonpool::transfer::rdma {

[[nodiscard]] constexpr std::uint32_t bytes_of_mtu(ibv_mtu mtu) { return 128U << static_cast<unsigned>(mtu); }

// The largest that is not greater; at least 256.
[[nodiscard]] constexpr ibv_mtu mtu_of_bytes(std::uint32_t bytes) {
  unsigned mtu = IBV_MTU_256;
  while (mtu < IBV_MTU_4096 && (128U << (mtu + 1)) <= bytes) ++mtu;
  return static_cast<ibv_mtu>(mtu);
}

}  // namespace moonpool::transfer::rdma
