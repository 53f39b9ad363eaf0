// What the put and the get path share: segments out of replies, the work per owner, keys and codes as the wire wants them.
//
// Threads: pure functions; any.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "transfer/transport.h"
#include "wire.pb.h"

namespace moonpool::store {

inline constexpr std::size_t kMaxKeyLength = 64 * 1024;

// A segment as a reply describes it, with its ids parsed.
struct Segment {
  transfer::Peer peer;
  Incarnation incarnation;
  std::string name;
  std::uint64_t base = 0;
};
// From a reply's column of encoded SegmentInfo. kProtocol when one does not parse, or an id or an endpoint in it is malformed.
using Segments = std::vector<std::shared_ptr<const Segment>>;
[[nodiscard]] Result<Segments> parse_segments(std::span<const std::string_view> encoded);

// An operation's outcome, with a text where a transport left it as it came (kInternal without one).
[[nodiscard]] inline Status explained(Status status) {
  if (status.code() != ErrorCode::kInternal || !status.message().empty()) return status;
  return {ErrorCode::kInternal, "the transport did not report on it"};
}

// The tenant as the master wants it: empty for "default".
[[nodiscard]] std::string tenant_on_wire(std::string_view tenant);
// A key as the owner's catalogue holds it, spelled as the master spells it (master/object_key.h): the bare key for the default tenant, else
// tenant | 0x00 | key. A default tenant's key that holds a 0x00 itself has its tenant in front, so that it cannot be read as another
// tenant's.
[[nodiscard]] std::string catalogue_key(std::string_view wire_tenant, std::string_view key);
// Whether that is the key itself.
[[nodiscard]] inline bool stands_bare(std::string_view wire_tenant, std::string_view key) {
  return wire_tenant.empty() && key.find('\0') == std::string_view::npos;
}

// Ok, or why this key can be no object's.
[[nodiscard]] ErrorCode check_key(std::string_view key);
// What a caller written for Mooncake sees in place of codes that only Moonpool has.
[[nodiscard]] std::int32_t public_code(ErrorCode code);

}  // namespace moonpool::store
