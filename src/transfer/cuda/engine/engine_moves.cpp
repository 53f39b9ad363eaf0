#include "transfer/cuda/engine/engine_moves.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/logging.h"
#include "base/sync_point.h"
#include "transfer/cuda/engine/frame_carriers.h"
#include "transfer/cuda/engine/host_identity.h"
#include "transfer/cuda/exported_memory.h"
#include "transfer/range_memo.h"

namespace moonpool::transfer::cuda {

namespace {

constexpr std::size_t kMostSaid = 4096;

// The legacy default stream, by its three names, and the one of each thread belong to whatever device is current.
bool is_default(Stream stream) { return static_cast<std::uintptr_t>(stream) <= 2; }

// Of a piece that is known to be in one.
const RemoteRange& range_of(const RemoteSegment& peer, RangeMemo<const RemoteRange>& memo, const Piece& piece) {
  return *memo.find(piece.remote, piece.length, [&] { return peer.range_of({piece.remote, piece.length}); });
}

}  // namespace

// ---------------------------------------------------------------- registered memory

EngineMoves::EngineMoves(FindRuntime find, const net::Identity& identity, net::LanePool& lanes)
    : find_(std::move(find)), lanes_of_all_(lanes), lanes_(identity, {.lanes_per_peer = 8}) {}

EngineMoves::~EngineMoves() = default;

Status EngineMoves::no_cuda() { return {ErrorCode::kNotSupported, "CUDA cannot be used in this process: " + Runtime::why()}; }

Status EngineMoves::wrapped(const char* what, const Status& status) {
  return status.ok() ? status : Status(status.code(), std::string(what) + ": " + status.message());
}

int EngineMoves::device_of(const RegisteredMemory::Region* region) {
  return region == nullptr || region->place == nullptr ? kHost : region->place->device;
}

Result<std::shared_ptr<DevicePlace>> EngineMoves::place(const AddressRange& range) {
  const std::shared_ptr<DevicePlace> host;
  Runtime* const runtime = find_();
  if (runtime == nullptr || range.address == 0 || range.length == 0) return host;
  const auto memory = bytes_at(range);
  const auto device = runtime->device_of(memory.data());
  const auto end = runtime->device_of(&memory.back());
  if (device != end) {
    return Status(ErrorCode::kInvalidParams, "the range begins and ends in different memories: register them one by one");
  }
  if (!device) return host;

  Driver& driver = runtime->driver();
  auto facts = driver.facts(*device);
  if (!facts.ok()) return facts.status();
  DevicePlace place;
  place.device = *device;
  place.uuid = std::move(facts->uuid);
  const auto allocation = driver.locate(range.address);
  if (!allocation) return Status(ErrorCode::kInvalidParams, "the device memory is gone: register it while it is allocated");
  const std::uint64_t offset = range.address - allocation->base;
  if (offset > allocation->size || range.length > allocation->size - offset) {
    place.no_ipc = "it consists of several allocations";
  } else if (const auto handle = driver.export_ipc(*device, allocation->base); handle.ok()) {
    place.ipc_handle.assign(reinterpret_cast<const char*>(handle->data()), handle->size());
    place.ipc_offset = offset;
  } else {
    place.no_ipc = handle.status().message();
  }
  runtime->remember(memory);
  const std::scoped_lock lock(mutex_);
  devices_.insert(*device);
  return std::make_shared<DevicePlace>(std::move(place));
}

bool EngineMoves::give_to_nics(const AddressRange& range, int device, const std::function<Status(const DmaBuf&)>& add) {
  Runtime* const runtime = find_();
  if (runtime == nullptr || runtime->settings().nic_ring_bytes == 0) return false;
  auto exported = export_memory(runtime->driver(), device, range);
  const Status status = exported.ok() ? add(exported->buffer) : exported.status();
  if (status.code() == ErrorCode::kSegmentAlreadyExists) return false;  // said to who asked for it
  bool first = false;
  {
    const std::scoped_lock lock(mutex_);
    first = (status.ok() ? said_nics_ : said_no_nics_).insert(device).second;
  }
  if (first && status.ok()) log::info("transfer engine: NICs reach memory of GPU {} directly (GPUDirect RDMA)", device);
  if (first && !status.ok()) {
    log::warning("transfer engine: memory of GPU {} goes to and from NICs by way of pinned host memory, without GPUDirect RDMA: {}", device,
                 status.message());
  }
  return status.ok();
}

void EngineMoves::forget(std::uint64_t address) {
  if (Runtime* const runtime = find_(); runtime != nullptr) runtime->forget(bytes_at({address, 1}).data());
}

void EngineMoves::describe(std::span<const RegisteredMemory::Region> regions, wire::EngineDescriptor& descriptor) const {
  for (std::size_t i = 0; i < regions.size(); ++i) {
    if (regions[i].place == nullptr) continue;
    const auto& place = *regions[i].place;
    auto& buffer = *descriptor.add_device_buffer();
    buffer.set_buffer(static_cast<std::uint32_t>(i));
    buffer.set_registration(regions[i].order);
    buffer.set_device(place.uuid);
    buffer.set_ipc_handle(place.ipc_handle);
    buffer.set_ipc_offset(place.ipc_offset);
    buffer.set_no_ipc(place.no_ipc);
    buffer.set_by_nic(place.by_nic);
  }
  if (descriptor.device_buffer_size() == 0) return;
  descriptor.set_cuda_host(host_identity());
  descriptor.set_cuda_process(process_identity(find_()));
}

// ---------------------------------------------------------------- order

Result<Stream> EngineMoves::order(Runtime* runtime, const Transfer& transfer) {
  if (!transfer.after) return Stream::kLegacyDefault;
  if (runtime == nullptr) return no_cuda();
  const Stream stream = *transfer.after;
  std::set<int> devices;
  bool host = transfer.local.empty() && std::ranges::any_of(transfer.pieces, [](const Piece& piece) { return piece.length > 0; });
  for (const auto& run : transfer.local) {
    const int device = device_of(run.region);
    if (device == kHost) {
      host = true;
    } else {
      devices.insert(device);
    }
  }
  // Without a wait where the copier can put its work behind the stream's.
  if (!host && is_default(stream) && runtime->settings().after_default_stream) return stream;
  if (!host && !is_default(stream) && devices.size() == 1) {
    auto pair = streams_.take(runtime->driver(), *devices.begin());
    if (!pair.ok()) return pair.status();
    const bool of_device = runtime->driver().record(*devices.begin(), pair->event, stream).ok();
    streams_.give_back(*devices.begin(), *pair);
    if (of_device) return stream;
  }
  Status waited = wait_for_stream(*runtime, stream, devices, transfer.deadline);
  if (!waited.ok()) return waited;
  return Stream::kLegacyDefault;
}

Status EngineMoves::wait_for_stream(Stream stream, Deadline deadline) {
  Runtime* const runtime = find_();
  return runtime == nullptr ? no_cuda() : wait_for_stream(*runtime, stream, {}, deadline);
}

Status EngineMoves::wait_for_stream(Runtime& runtime, Stream stream, const std::set<int>& devices, Deadline deadline) {
  std::set<int> candidates = devices;
  if (candidates.empty() || !is_default(stream)) {
    const std::scoped_lock lock(mutex_);
    candidates.insert(devices_.begin(), devices_.end());
  }
  if (candidates.empty() || !is_default(stream)) {
    const int count = is_default(stream) ? 1 : runtime.driver().device_count();
    for (int device = 0; device < count; ++device) candidates.insert(device);
  }
  Status last(ErrorCode::kInvalidParams, "there is no device");
  for (const int device : candidates) {
    auto pair = streams_.take(runtime.driver(), device);
    if (!pair.ok()) return pair.status();
    last = runtime.driver().record(device, pair->event, stream);
    const bool recorded = last.ok();
    if (recorded) last = wait_for(runtime.driver(), device, pair->event, deadline);
    streams_.give_back(device, *pair);
    if (recorded && (!last.ok() || !is_default(stream))) break;
  }
  return wrapped("waiting for the stream that the transfer comes after", last);
}

// ---------------------------------------------------------------- transfers

bool EngineMoves::concerns(const RemoteSegment& peer, std::span<const Piece> pieces, Regions local) {
  if (!local.empty()) return true;
  if (!peer.has_devices) return false;
  RangeMemo<const RemoteRange> memo;
  return std::ranges::any_of(pieces, [&](const Piece& piece) { return piece.length > 0 && range_of(peer, memo, piece).place; });
}

// Neighbours are one piece.
void EngineMoves::append(LocatedPieces& pieces, const Located& next) {
  if (!pieces.empty()) {
    auto& last = pieces.back();
    const bool follows = last.device == next.device && last.local == next.local && last.remote == next.remote &&
                         last.piece.local + last.piece.length == next.piece.local &&
                         last.piece.remote + last.piece.length == next.piece.remote;
    if (follows) {
      last.piece.length += next.piece.length;
      return;
    }
  }
  pieces.push_back(next);
}

Status EngineMoves::move(const RemoteSegment& peer, const Transfer& transfer, const Network& network) {
  Runtime* const runtime = transfer.local.empty() && !transfer.after ? nullptr : find_();
  const auto after = order(runtime, transfer);
  if (!after.ok()) return after.status();
  std::vector<Piece> plain;
  PieceGroups<RemoteRange> between_devices;
  LocatedPieces by_nics, to_host, by_tcp;
  // The first of the ways that there is.
  const auto add_to_network = [&](const Located& next, bool for_nics) {
    const auto* const region = static_cast<const RegisteredMemory::Region*>(next.local);
    const auto* const range = static_cast<const RemoteRange*>(next.remote);
    const bool nics_reach_it =
        network.one_sided && (next.device == kHost || region->place->by_nic) && (!range->place || range->place->by_nic);
    append(for_nics && nics_reach_it ? by_nics : range->place ? by_tcp : to_host, next);
  };
  RegisteredMemory::Walk regions(transfer.local);
  RangeMemo<const RemoteRange> memo;
  for (std::size_t i = 0; i < transfer.pieces.size(); ++i) {
    const Piece& piece = transfer.pieces[i];
    if (piece.length == 0) continue;
    const auto* const region = regions.at(i);
    const bool device_here = region != nullptr && region->place != nullptr;
    const RemoteRange& range = range_of(peer, memo, piece);
    if (device_here && range.place) {
      between_devices.add(region, &range, piece);
    } else if (!device_here && !range.place) {
      plain.push_back(piece);
    } else {
      add_to_network({piece, device_of(region), region, &range}, true);
    }
  }
  if (!plain.empty()) MOONPOOL_RETURN_IF_ERROR(network.host_to_host(plain));
  if (!between_devices.empty()) {
    if (runtime == nullptr) return no_cuda();
    Status copied = direct(*runtime, peer, transfer, between_devices, *after);
    if (copied.code() != ErrorCode::kUnavailable) {
      if (!copied.ok()) return copied;
    } else {
      say_once(peer, copied.message());
      for (const auto& [local, remote, pieces, follower] : between_devices) {
        for (const auto& piece : pieces) add_to_network({piece, device_of(local), local, remote}, true);
      }
    }
  }
  if (!by_nics.empty()) {
    const Status moved = by_nic(runtime, transfer, network, by_nics, *after);
    if (!moved.ok() && moved.code() != ErrorCode::kUnavailable) return moved;
    if (!moved.ok()) {
      say_once(peer, moved.message());
      for (const auto& located : by_nics) add_to_network(located, false);
    }
  }
  if (!network.one_sided) {
    by_tcp.insert(by_tcp.end(), to_host.begin(), to_host.end());
  } else if (!to_host.empty()) {
    HostCarrier carrier(network.host_to_host);
    MOONPOOL_RETURN_IF_ERROR(staged(transfer.opcode, to_host, *after, carrier, transfer.deadline));
  }
  if (by_tcp.empty()) return {};
  if (!network.tcp) {
    return {ErrorCode::kNotSupported, "the device memory of " + peer.endpoint.to_string() +
                                          " can be reached over TCP alone, which the paths of this engine leave out: add tcp"};
  }
  LaneCarrier carrier(lanes_of_all_, lanes_, peer, transfer.opcode, transfer.deadline);
  return staged(transfer.opcode, by_tcp, *after, carrier, transfer.deadline);
}

Status EngineMoves::by_nic(Runtime* runtime, const Transfer& transfer, const Network& network, const LocatedPieces& pieces, Stream after) {
  std::set<int> devices;
  std::vector<Piece> wire;
  wire.reserve(pieces.size());
  std::uint64_t device_bytes = 0;
  for (const auto& [piece, device, local, remote] : pieces) {
    wire.push_back(piece);
    device_bytes += piece.length;
    if (device != kHost) devices.insert(device);
  }
  if (!devices.empty()) {
    if (runtime == nullptr) return no_cuda();
    if (after != Stream::kLegacyDefault || runtime->settings().after_default_stream) {
      MOONPOOL_RETURN_IF_ERROR(wait_for_stream(*runtime, after, devices, transfer.deadline));
    }
  }
  MOONPOOL_RETURN_IF_ERROR(network.one_sided(wire));
  counters_.gpudirect_bytes += device_bytes;
  return {};
}

Status EngineMoves::move_within(const Transfer& transfer, Regions remote) {
  Runtime* const runtime = find_();
  if (runtime == nullptr) return no_cuda();
  const auto after = order(runtime, transfer);
  if (!after.ok()) return after.status();
  PieceGroups<RegisteredMemory::Region> between_devices;
  std::array<LocatedPieces, 2> with_host;  // read, and written
  const auto opposite = [](Opcode opcode) { return opcode == Opcode::kWrite ? Opcode::kRead : Opcode::kWrite; };
  RegisteredMemory::Walk near_regions(transfer.local);
  RegisteredMemory::Walk far_regions(remote);
  for (std::size_t i = 0; i < transfer.pieces.size(); ++i) {
    const Piece& piece = transfer.pieces[i];
    if (piece.length == 0) continue;
    const auto* const near = near_regions.at(i);
    const auto* const far = far_regions.at(i);
    const int here = device_of(near);
    const int there = device_of(far);
    if (here == kHost && there == kHost) {
      (void)MemoryCarrier(transfer.opcode).begin({&piece, 1});
    } else if (there == kHost) {
      append(with_host[static_cast<std::size_t>(transfer.opcode)], {piece, here, near, far});
    } else if (here == kHost) {
      const Piece turned{piece.remote, piece.local, piece.length};
      append(with_host[static_cast<std::size_t>(opposite(transfer.opcode))], {turned, there, far, near});
    } else {
      between_devices.add(near, far, piece);
    }
  }
  std::array<Batches, 2> by_device;  // out of reach of each other, and within
  for (const auto& group : between_devices) {
    const int here = device_of(group.local);
    const bool reachable = allow(*runtime, here, device_of(group.remote)).ok();
    by_device[reachable ? 1 : 0][here].push_back({group.pieces, 0});
  }
  for (const bool reachable : {false, true}) {
    MOONPOOL_RETURN_IF_ERROR(copy(*runtime, transfer.opcode, by_device[reachable ? 1 : 0], *after, reachable, transfer.deadline));
  }
  for (const Opcode opcode : {Opcode::kRead, Opcode::kWrite}) {
    const auto& pieces = with_host[static_cast<std::size_t>(opcode)];
    if (pieces.empty()) continue;
    MemoryCarrier carrier(opcode);
    MOONPOOL_RETURN_IF_ERROR(staged(opcode, pieces, *after, carrier, transfer.deadline));
  }
  return {};
}

// ---------------------------------------------------------------- direct

std::optional<int> EngineMoves::device_with(Runtime& runtime, const std::string& uuid) {
  const std::scoped_lock lock(mutex_);
  if (by_uuid_.empty()) {
    for (int device = 0; device < runtime.driver().device_count(); ++device) {
      if (const auto facts = runtime.driver().facts(device); facts.ok()) by_uuid_[facts->uuid] = device;
    }
  }
  const auto found = by_uuid_.find(uuid);
  return found == by_uuid_.end() ? std::nullopt : std::optional(found->second);
}

Status EngineMoves::allow(Runtime& runtime, int device, int peer) {
  if (device == peer) return {};
  const std::scoped_lock lock(mutex_);
  const auto [found, first] = access_.try_emplace({device, peer});
  if (first) found->second = runtime.driver().enable_peer_access(device, peer);
  return found->second;
}

void EngineMoves::say_once(const RemoteSegment& peer, const std::string& why) {
  {
    const std::scoped_lock lock(mutex_);
    if (said_.size() >= kMostSaid) said_.clear();
    if (!said_.insert(peer.incarnation).second) return;
  }
  log::info("transfers between device memory here and at {} go by way of the host: {}", peer.endpoint.to_string(), why);
}

// What to add to an address of the range for this process to reach it. kUnavailable: it cannot.
Result<std::uint64_t> EngineMoves::reach(Runtime& runtime, const RemoteSegment& peer, const RemoteRange& range, int device,
                                         std::vector<IpcMappings::Use>& uses) {
  if (peer.cuda_process == process_identity(&runtime)) return std::uint64_t{0};
  const DevicePlace& place = *range.place;
  if (place.ipc_handle.empty()) return Status(ErrorCode::kUnavailable, "its memory cannot be exported: " + place.no_ipc);
  // Opened on the device that has it, where this process sees that, so that all of ours share one mapping; else the driver has to find a
  // way for the device that copies.
  auto use = mappings_.open(runtime.driver(), peer, place.ipc_handle, device_with(runtime, place.uuid).value_or(device));
  if (!use.ok()) return Status(ErrorCode::kUnavailable, "its memory cannot be opened: " + use.status().message());
  const std::uint64_t base = (*use)->address();
  if (const auto mapped = runtime.driver().locate(base); mapped) {
    const std::uint64_t size = mapped->size - (base - mapped->base);
    if (place.ipc_offset > size || range.length > size - place.ipc_offset) {
      return Status(ErrorCode::kUnavailable, "its handle names a smaller allocation than it says");
    }
  }
  uses.push_back(std::move(*use));
  return base + place.ipc_offset - range.address;
}

// Holds what the pieces of each group span: the peer keeps registered ranges as a whole.
Result<PeerHold> EngineMoves::take_hold(const RemoteSegment& peer, const PieceGroups<RemoteRange>& groups, Deadline deadline) {
  std::vector<PeerHold::Part> parts;
  for (const auto& group : groups) {
    std::uint64_t begin = group.pieces.front().remote;
    std::uint64_t end = begin;
    for (const auto& piece : group.pieces) {
      begin = std::min(begin, piece.remote);
      end = std::max(end, piece.remote + piece.length);
    }
    parts.push_back({group.remote->registration, {begin, end - begin}});
  }
  auto hold = PeerHold::take(lanes_, peer, parts, deadline);
  if (hold.code() != ErrorCode::kInvalidParams) return hold;
  // The peer's memory is registered otherwise now: what it is to the pieces themselves is the answer.
  parts.clear();
  for (const auto& group : groups) {
    for (const auto& piece : group.pieces) parts.push_back({group.remote->registration, {piece.remote, piece.length}});
  }
  return PeerHold::take(lanes_, peer, parts, deadline);
}

// kUnavailable: the way by the host remains.
Status EngineMoves::direct(Runtime& runtime, const RemoteSegment& peer, const Transfer& transfer, const PieceGroups<RemoteRange>& groups,
                           Stream after) {
  const bool same_process = peer.cuda_process == process_identity(&runtime);
  if (!same_process && (peer.cuda_host.empty() || peer.cuda_host != host_identity())) {
    return {ErrorCode::kUnavailable, "it is on another host, or belongs to another user or container"};
  }
  std::uint64_t total = 0;
  for (const auto& group : groups) {
    const auto owner = device_with(runtime, group.remote->place->uuid);
    if (owner) {
      const Status allowed = allow(runtime, device_of(group.local), *owner);
      if (!allowed.ok()) return {ErrorCode::kUnavailable, allowed.message()};
    }
    for (const auto& piece : group.pieces) total += piece.length;
  }
  // Before anything is opened: what we know of the peer's memory may be old.
  auto hold = take_hold(peer, groups, transfer.deadline);
  if (!hold.ok()) {
    if (hold.code() == ErrorCode::kUnavailable) mappings_.forget(peer.incarnation);
    return hold.code() == ErrorCode::kNotSupported ? Status(ErrorCode::kUnavailable, hold.status().message()) : hold.status();
  }
  std::vector<IpcMappings::Use> uses;
  std::map<std::pair<const RemoteRange*, int>, std::uint64_t> offsets;
  Batches by_device;
  for (const auto& group : groups) {
    const int device = device_of(group.local);
    auto found = offsets.find({group.remote, device});
    if (found == offsets.end()) {
      const auto offset = reach(runtime, peer, *group.remote, device, uses);
      if (!offset.ok()) {
        (void)hold->release();  // nothing was touched under it
        return offset.status();
      }
      found = offsets.emplace(std::pair(group.remote, device), *offset).first;
    }
    by_device[device].push_back({group.pieces, found->second});
  }
  MOONPOOL_SYNC_POINT("engine_moves.direct.held");
  Status copied = copy(runtime, transfer.opcode, by_device, after, true, transfer.deadline);
  Status released = hold->release();
  if (copied.ok()) copied = std::move(released);
  if (copied.ok()) counters_.direct_bytes += total;
  return copied.code() == ErrorCode::kUnavailable ? Status(ErrorCode::kTransferFail, copied.message()) : copied;
}

Status EngineMoves::copy(Runtime& runtime, Opcode opcode, const Batches& by_device, Stream after, bool reachable, Deadline deadline) {
  std::vector<std::unique_ptr<DirectCopy>> copies;
  Status status;
  for (const auto& [device, batches] : by_device) {
    copies.push_back(std::make_unique<DirectCopy>(runtime, streams_, device));
    status = copies.back()->start(opcode, batches, after, reachable, deadline);
    if (!status.ok()) break;
  }
  for (const auto& copy : copies) {
    Status ended = copy->wait(deadline);
    if (status.ok()) status = std::move(ended);
  }
  return wrapped("copy between devices", status);
}

}  // namespace moonpool::transfer::cuda
