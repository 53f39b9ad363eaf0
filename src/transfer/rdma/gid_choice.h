// Which of two ports' addresses a connection uses: a pure choice, made by the owner of memory out of both sides' lists.
//
// A port has several GIDs: for each address of its interface one of RoCE v1 and one of RoCE v2, among them link-local ones that look alike
// on every network. A wrong pair connects two queue pairs that never hear of each other, and what one sees of it is a time-out. The rule,
// the first difference decides:
//   1. both of one kind, and of one address family and scope: others never meet;
//   2. the same network, told by the prefix length of the interfaces (InfiniBand: the same subnet prefix). Link-local addresses prove
//      nothing about that, so they do not count;
//   3. RoCE v2 (which routers forward) before v1;
//   4. IPv4 before IPv6, and both before link-local;
//   5. the longer common prefix, then the lower index in our table, then in theirs.
//
// Threads: pure functions; interface_addresses() reads the kernel's list of the moment.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "transfer/rdma/nic.h"

namespace moonpool::transfer::rdma {

// Orders pairs of GIDs, and so pairs of NICs: the greater one is the better path.
struct PathRank {
  bool same_network = false;
  bool routable = false;            // RoCE v2, InfiniBand, iWARP
  std::uint8_t scope = 0;           // 2: IPv4, 1: IPv6 (or InfiniBand), 0: link-local
  std::uint32_t common_prefix = 0;  // bits
  auto operator<=>(const PathRank&) const = default;
};

struct GidPair {
  Gid ours;
  Gid theirs;
  std::size_t their_position = 0;  // in the list that was given
  PathRank rank;
};

// None when no two of them can meet.
[[nodiscard]] std::optional<GidPair> choose_gids(std::span<const Gid> ours, std::span<const Gid> theirs);

// Those a user's setting leaves: the one with this index in the port's table, or all for -1. Empty when the table has no such entry.
[[nodiscard]] std::vector<Gid> with_index(std::span<const Gid> gids, std::int32_t index);

// "10.0.0.1", "fe80::1".
[[nodiscard]] std::string text_of(const Gid& gid);
[[nodiscard]] bool is_ipv4(const Gid& gid);        // "::ffff:a.b.c.d"
[[nodiscard]] bool is_link_local(const Gid& gid);  // fe80::/10 or 169.254.0.0/16, but not InfiniBand's (where it is the default subnet)

// An address of a network interface as a GID has it.
struct InterfaceAddress {
  std::string interface;
  std::array<std::uint8_t, 16> bytes{};
  std::uint32_t prefix_length = 0;  // of 128: IPv4's "/24" is 120
};
[[nodiscard]] std::vector<InterfaceAddress> interface_addresses();
// Sets prefix_length of those that are an address of the interface (of any, when its name is empty). InfiniBand's is 64.
void fill_prefix_lengths(std::span<Gid> gids, std::string_view interface, std::span<const InterfaceAddress> addresses);

}  // namespace moonpool::transfer::rdma
