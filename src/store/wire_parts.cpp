#include "store/wire_parts.h"

#include <fmt/format.h>

#include <limits>
#include <utility>

#include "net/object_messages.h"

namespace moonpool::store {

Result<Segments> parse_segments(std::span<const std::string_view> encoded) {
  Segments segments;
  segments.reserve(encoded.size());
  for (const auto bytes : encoded) {
    net::lean::SegmentInfo info;
    const bool parsed = net::lean::parse(std::as_bytes(std::span(bytes)), info);
    const auto incarnation = Incarnation::from_bytes(info.incarnation);
    const auto node = NodeId::from_bytes(info.node_id);
    if (!parsed || !incarnation || !node || info.port == 0 || info.port > std::numeric_limits<std::uint16_t>::max()) {
      return {ErrorCode::kProtocol,
              fmt::format("the master described segment \"{}\" without a valid id or port; do master and client have the same release?",
                          info.name)};
    }
    Segment segment;
    segment.peer.node = *node;
    segment.peer.endpoint = {std::string(info.host), static_cast<std::uint16_t>(info.port)};
    segment.incarnation = *incarnation;
    segment.name = info.name;
    segment.base = info.base;
    segments.push_back(std::make_shared<const Segment>(std::move(segment)));
  }
  return segments;
}

std::string tenant_on_wire(std::string_view tenant) { return tenant == "default" ? std::string() : std::string(tenant); }

std::string catalogue_key(std::string_view wire_tenant, std::string_view key) {
  if (stands_bare(wire_tenant, key)) return std::string(key);
  std::string qualified(wire_tenant.empty() ? std::string_view("default") : wire_tenant);
  qualified.push_back('\0');
  qualified.append(key);
  return qualified;
}

ErrorCode check_key(std::string_view key) {
  if (key.empty()) return ErrorCode::kInvalidParams;
  return key.size() > kMaxKeyLength ? ErrorCode::kInvalidKey : ErrorCode::kOk;
}

std::int32_t public_code(ErrorCode code) {
  switch (code) {
    case ErrorCode::kStaleTerm:
    case ErrorCode::kStaleIncarnation:
    case ErrorCode::kUnavailable:
    case ErrorCode::kProtocol:
      code = ErrorCode::kTransferFail;
      break;
    case ErrorCode::kNotRegistered:
    case ErrorCode::kRecovering:
    case ErrorCode::kUnauthenticated:
      code = ErrorCode::kRpcFail;
      break;
    case ErrorCode::kConfig:
      code = ErrorCode::kInvalidParams;
      break;
    case ErrorCode::kCancelled:
      code = ErrorCode::kIllegalClient;
      break;
    default:
      break;
  }
  return static_cast<std::int32_t>(code);
}

}  // namespace moonpool::store
