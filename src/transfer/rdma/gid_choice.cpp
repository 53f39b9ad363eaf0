#include "transfer/rdma/gid_choice.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>

#include <algorithm>
#include <bit>
#include <cstring>

namespace moonpool::transfer::rdma {
namespace {

using Bytes = std::array<std::uint8_t, 16>;

constexpr Bytes kIpv4Prefix{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
constexpr std::size_t kIpv4PrefixBytes = 12;

bool is_zero(const Gid& gid) { return gid.bytes == Bytes{}; }

std::uint32_t common_bits(const Bytes& a, const Bytes& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    const auto differ = static_cast<std::uint8_t>(a[i] ^ b[i]);
    if (differ != 0) return static_cast<std::uint32_t>(i * 8) + static_cast<std::uint32_t>(std::countl_zero(differ));
  }
  return 128;
}

std::uint8_t scope_of(const Gid& gid) {
  if (is_link_local(gid)) return 0;
  return is_ipv4(gid) ? 2 : 1;
}

// Of two interfaces the one with the longer prefix has to agree: it is the smaller network. An unknown length takes the other's word.
bool in_one_network(const Gid& ours, const Gid& theirs, std::uint32_t common) {
  if (ours.kind == Gid::Kind::kInfiniBand) return common >= 64;
  const std::uint32_t needed = std::max(ours.prefix_length, theirs.prefix_length);
  return needed != 0 && common >= needed;
}

std::optional<PathRank> rank_of(const Gid& ours, const Gid& theirs) {
  if (ours.kind != theirs.kind || is_zero(ours) || is_zero(theirs)) return std::nullopt;
  const std::uint8_t scope = scope_of(ours);
  if (scope != scope_of(theirs) || is_ipv4(ours) != is_ipv4(theirs)) return std::nullopt;
  PathRank rank;
  rank.common_prefix = common_bits(ours.bytes, theirs.bytes);
  rank.same_network = scope != 0 && in_one_network(ours, theirs, rank.common_prefix);
  rank.routable = ours.kind != Gid::Kind::kRoceV1;
  rank.scope = scope;
  return rank;
}

Bytes mapped(const in_addr& address) {
  Bytes bytes = kIpv4Prefix;
  std::memcpy(bytes.data() + kIpv4PrefixBytes, &address, sizeof address);
  return bytes;
}

std::uint32_t ones(std::span<const std::uint8_t> mask) {
  std::uint32_t count = 0;
  for (const std::uint8_t byte : mask) count += static_cast<std::uint32_t>(std::popcount(byte));
  return count;
}

}  // namespace

bool is_ipv4(const Gid& gid) {
  return gid.kind != Gid::Kind::kInfiniBand && std::equal(kIpv4Prefix.begin(), kIpv4Prefix.begin() + kIpv4PrefixBytes, gid.bytes.begin());
}

bool is_link_local(const Gid& gid) {
  if (gid.kind == Gid::Kind::kInfiniBand) return false;
  if (is_ipv4(gid)) return gid.bytes[12] == 169 && gid.bytes[13] == 254;
  return gid.bytes[0] == 0xfe && (gid.bytes[1] & 0xc0) == 0x80;
}

std::optional<GidPair> choose_gids(std::span<const Gid> ours, std::span<const Gid> theirs) {
  std::optional<GidPair> best;
  for (const Gid& mine : ours) {
    for (std::size_t i = 0; i < theirs.size(); ++i) {
      const auto rank = rank_of(mine, theirs[i]);
      if (!rank) continue;
      const auto indices = [](const GidPair& pair) { return std::pair(pair.ours.index, pair.theirs.index); };
      const GidPair pair{mine, theirs[i], i, *rank};
      if (!best || best->rank < pair.rank || (best->rank == pair.rank && indices(pair) < indices(*best))) best = pair;
    }
  }
  return best;
}

std::vector<Gid> with_index(std::span<const Gid> gids, std::int32_t index) {
  std::vector<Gid> left;
  std::ranges::copy_if(gids, std::back_inserter(left),
                       [&](const Gid& gid) { return index < 0 || gid.index == static_cast<std::uint32_t>(index); });
  return left;
}

std::string text_of(const Gid& gid) {
  char text[INET6_ADDRSTRLEN] = {};
  if (is_ipv4(gid)) {
    ::inet_ntop(AF_INET, gid.bytes.data() + kIpv4PrefixBytes, text, sizeof text);
  } else {
    ::inet_ntop(AF_INET6, gid.bytes.data(), text, sizeof text);
  }
  return text;
}

std::vector<InterfaceAddress> interface_addresses() {
  std::vector<InterfaceAddress> addresses;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return addresses;
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owned(list, ::freeifaddrs);
  for (const ifaddrs* at = list; at != nullptr; at = at->ifa_next) {
    if (at->ifa_addr == nullptr || at->ifa_netmask == nullptr) continue;
    if (at->ifa_addr->sa_family == AF_INET) {
      sockaddr_in address{};
      sockaddr_in mask{};
      std::memcpy(&address, at->ifa_addr, sizeof address);
      std::memcpy(&mask, at->ifa_netmask, sizeof mask);
      const auto bits = static_cast<std::uint32_t>(std::popcount(mask.sin_addr.s_addr));
      addresses.push_back({at->ifa_name, mapped(address.sin_addr), 96 + bits});
    } else if (at->ifa_addr->sa_family == AF_INET6) {
      sockaddr_in6 address{};
      sockaddr_in6 mask{};
      std::memcpy(&address, at->ifa_addr, sizeof address);
      std::memcpy(&mask, at->ifa_netmask, sizeof mask);
      InterfaceAddress one{at->ifa_name, {}, ones(mask.sin6_addr.s6_addr)};
      std::memcpy(one.bytes.data(), &address.sin6_addr, one.bytes.size());
      addresses.push_back(std::move(one));
    }
  }
  return addresses;
}

void fill_prefix_lengths(std::span<Gid> gids, std::string_view interface, std::span<const InterfaceAddress> addresses) {
  for (Gid& gid : gids) {
    if (gid.kind == Gid::Kind::kInfiniBand) {
      gid.prefix_length = 64;
      continue;
    }
    const auto found = std::ranges::find_if(addresses, [&](const InterfaceAddress& address) {
      return address.bytes == gid.bytes && (interface.empty() || address.interface == interface);
    });
    if (found != addresses.end()) gid.prefix_length = found->prefix_length;
  }
}

}  // namespace moonpool::transfer::rdma
