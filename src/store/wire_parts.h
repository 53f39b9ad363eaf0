// What the put and the get path share: segments out of replies, the work per owner, keys and codes as the wire wants them.
//
// Threads: pure functions; any.
#pragma once

#include <cstdint>
#include <functional>
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
// kProtocol when an id or an endpoint in it is malformed.
[[nodiscard]] Result<std::vector<Segment>> parse_segments(const google::protobuf::RepeatedPtrField<wire::SegmentInfo>& infos);

// Runs all jobs to their end, each on a thread of its own but the last, which runs on the caller's.
void run_together(const std::vector<std::function<void()>>& jobs);

// The tenant as the master wants it: empty for "default".
[[nodiscard]] std::string tenant_on_wire(std::string_view tenant);
// A key as the owner's catalogue holds it, spelled as the master spells it (master/object_key.h): the bare key for the default tenant, else
// tenant | 0x00 | key. A default tenant's key that holds a 0x00 itself has its tenant in front, so that it cannot be read as another
// tenant's.
[[nodiscard]] std::string catalogue_key(std::string_view wire_tenant, std::string_view key);

// Ok, or why this key can be no object's.
[[nodiscard]] ErrorCode check_key(std::string_view key);
// What a caller written for Mooncake sees in place of codes that only Moonpool has.
[[nodiscard]] std::int32_t public_code(ErrorCode code);

}  // namespace moonpool::store
