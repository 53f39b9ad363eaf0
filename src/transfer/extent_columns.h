// The extents that a batch names on the wire, as columns (proto/wire.proto): checked, then taken entry by entry. For the messages of every
// path that have `incarnation`, `segment`, `offset`, `version_term` and `version_count`.
#pragma once

#include <google/protobuf/repeated_ptr_field.h>

#include <cstddef>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "transfer/transport.h"

namespace moonpool::transfer {

// Bounds of one frame. Clients stay below; a server refuses more with kInvalidParams.
inline constexpr std::size_t kMaxEntriesPerFrame = 65536;

// The columns have one entry each, the indexes are in range. kProtocol, kInvalidParams.
template <typename Message>
[[nodiscard]] Status check_columns(const Message& message) {
  const int entries = message.segment_size();
  if (static_cast<std::size_t>(entries) > kMaxEntriesPerFrame) {
    return {ErrorCode::kInvalidParams, "a frame of " + std::to_string(entries) + " entries is too large: split the batch"};
  }
  if (message.offset_size() != entries || message.version_term_size() != entries || message.version_count_size() != entries) {
    return {ErrorCode::kProtocol, "its columns differ in length"};
  }
  for (const auto index : message.segment()) {
    if (index >= static_cast<std::uint32_t>(message.incarnation_size())) return {ErrorCode::kProtocol, "an entry refers to no segment"};
  }
  return {};
}

// The segments named by a request, parsed once.
[[nodiscard]] inline Result<std::vector<Incarnation>> incarnations_of(const google::protobuf::RepeatedPtrField<std::string>& column) {
  std::vector<Incarnation> list;
  list.reserve(static_cast<std::size_t>(column.size()));
  for (const auto& bytes : column) {
    const auto incarnation = Incarnation::from_bytes(bytes);
    if (!incarnation) return Status(ErrorCode::kProtocol, "an incarnation is not 16 bytes long");
    list.push_back(*incarnation);
  }
  return list;
}

// Without a length: not all messages have one.
template <typename Message>
[[nodiscard]] ExtentRef extent_of(const Message& message, const std::vector<Incarnation>& incarnations, int i) {
  ExtentRef ref;
  ref.incarnation = incarnations[message.segment(i)];
  ref.offset = message.offset(i);
  ref.version = Version{Term{message.version_term(i)}, message.version_count(i)};
  return ref;
}

}  // namespace moonpool::transfer
