#include "transfer/segment_directory.h"

#include <utility>

namespace moonpool::transfer {

const RemoteRange* RemoteSegment::range_of(const AddressRange& piece) const {
  const auto after = by_address.upper_bound(piece.address);
  if (after == by_address.begin()) return nullptr;
  const auto& range = std::prev(after)->second;
  const std::uint64_t offset = piece.address - range.address;
  return offset <= range.length && piece.length <= range.length - offset ? &range : nullptr;
}

Result<RemoteSegment> parse_descriptor(const wire::EngineDescriptor& descriptor, std::string_view peer) {
  const auto incarnation = Incarnation::from_bytes(descriptor.incarnation());
  const bool sane = incarnation && descriptor.port() > 0 && descriptor.port() <= 65535 && !descriptor.host().empty() &&
                    descriptor.buffer_address_size() == descriptor.buffer_length_size();
  if (!sane) {
    return Status(ErrorCode::kProtocol,
                  "what is known of the engine '" + std::string(peer) + "' is no engine's description: is it another program's entry?");
  }
  RemoteSegment segment;
  segment.incarnation = *incarnation;
  segment.endpoint = {descriptor.host(), static_cast<std::uint16_t>(descriptor.port())};
  for (int i = 0; i < descriptor.buffer_address_size(); ++i) {
    segment.ranges.push_back({descriptor.buffer_address(i), descriptor.buffer_length(i)});
    const auto& [address, length] = segment.ranges.back();
    segment.by_address.emplace(address, RemoteRange{address, length, static_cast<std::size_t>(i), 0, std::nullopt});
  }
  segment.cuda_host = descriptor.cuda_host();
  segment.cuda_process = descriptor.cuda_process();
  for (const auto& buffer : descriptor.device_buffer()) {
    if (buffer.buffer() >= segment.ranges.size()) {
      return Status(ErrorCode::kProtocol, "the engine '" + std::string(peer) + "' describes device memory that it has not registered");
    }
    auto& range = segment.by_address.at(segment.ranges[buffer.buffer()].address);
    range.registration = buffer.registration();
    range.place = DevicePlace{-1, buffer.device(), buffer.ipc_handle(), buffer.ipc_offset(), buffer.no_ipc(), buffer.by_nic()};
    segment.has_devices = true;
  }
  return segment;
}

Result<std::shared_ptr<const RemoteSegment>> SegmentDirectory::find(std::string_view peer, Deadline deadline) {
  {
    const std::scoped_lock lock(mutex_);
    if (const auto found = known_.find(peer); found != known_.end()) return found->second;
  }
  const std::string name(peer);
  auto descriptor = store_ != nullptr ? look_up(name, deadline) : ask(name, deadline);
  if (!descriptor.ok()) return descriptor.status();
  auto segment = parse_descriptor(*descriptor, peer);
  if (!segment.ok()) return segment.status();
  auto shared = std::make_shared<const RemoteSegment>(std::move(*segment));
  const std::scoped_lock lock(mutex_);
  known_.insert_or_assign(name, shared);
  return shared;
}

void SegmentDirectory::forget(std::string_view peer) {
  const std::scoped_lock lock(mutex_);
  if (const auto found = known_.find(peer); found != known_.end()) known_.erase(found);
}

Result<wire::EngineDescriptor> SegmentDirectory::look_up(const std::string& peer, Deadline deadline) {
  const auto value = store_->get(std::string(kSegmentKeyPrefix) + peer, deadline);
  if (value.code() == ErrorCode::kObjectNotFound) {
    return Status(ErrorCode::kSegmentNotFound, "no engine has published the name '" + peer + "' in " + store_->describe() +
                                                   ": check the name, and that the engine runs");
  }
  if (!value.ok()) return value.status();
  wire::EngineDescriptor descriptor;
  if (!descriptor.ParseFromString(*value)) {
    return Status(ErrorCode::kProtocol, "the entry of engine '" + peer + "' in " + store_->describe() + " does not parse");
  }
  return descriptor;
}

Result<wire::EngineDescriptor> SegmentDirectory::ask(const std::string& peer, Deadline deadline) {
  const auto endpoint = net::Endpoint::parse(peer);
  if (!endpoint.ok()) {
    return Status(ErrorCode::kInvalidParams,
                  "'" + peer + "' is no host:port, which a peer's name has to be with P2PHANDSHAKE (" + endpoint.status().message() + ")");
  }
  wire::EngineDescriptor descriptor;
  MOONPOOL_RETURN_IF_ERROR(lanes_.call(*endpoint, wire::METHOD_DESCRIBE, wire::Empty(), descriptor, deadline));
  // It is reached as it was named, whatever it calls itself (its host name may mean nothing here).
  descriptor.set_host(endpoint->host);
  descriptor.set_port(endpoint->port);
  return descriptor;
}

}  // namespace moonpool::transfer
