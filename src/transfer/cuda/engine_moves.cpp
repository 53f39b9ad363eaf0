#include "transfer/cuda/engine_moves.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/logging.h"
#include "base/sync_point.h"
#include "transfer/cuda/host_identity.h"
#include "transfer/cuda/peer_hold.h"
#include "transfer/tcp/raw_client.h"
#include "transfer/tcp/raw_lanes.h"

namespace moonpool::transfer::cuda {

namespace {

constexpr int kHost = -1;
constexpr std::size_t kMostSaid = 4096;
constexpr std::uint64_t kPage = 4096;  // windows begin and end well aligned

Status no_cuda() { return {ErrorCode::kNotSupported, "CUDA cannot be used in this process: " + Runtime::why()}; }

const RegisteredMemory::Region* region_of(EngineMoves::Regions regions, std::size_t index) {
  return regions.empty() ? nullptr : regions[index];
}

int device_of(const RegisteredMemory::Region* region) {
  return region == nullptr || region->place == nullptr ? kHost : region->place->device;
}

// The legacy default stream, by its three names, and the one of each thread belong to whatever device is current.
bool is_default(Stream stream) { return static_cast<std::uintptr_t>(stream) <= 2; }

Status wrapped(const char* what, const Status& status) {
  return status.ok() ? status : Status(status.code(), std::string(what) + ": " + status.message());
}

}  // namespace

// ---------------------------------------------------------------- how windows travel

// Brings frames of host memory to the other end or from there. At most two are under way.
class EngineMoves::Carrier {
 public:
  virtual ~Carrier() = default;
  [[nodiscard]] virtual Status begin(std::span<const Piece> frame) = 0;
  // Of the oldest.
  [[nodiscard]] virtual Status finish() = 0;
};

class EngineMoves::LaneCarrier final : public Carrier {
 public:
  LaneCarrier(net::LanePool& first, net::LanePool& second, const RemoteSegment& peer, Opcode opcode, Deadline deadline)
      : lanes_(first, second, peer, opcode, deadline) {}
  Status begin(std::span<const Piece> frame) override { return lanes_.begin(frame); }
  Status finish() override { return lanes_.finish(); }

 private:
  RawLanes lanes_;
};

class EngineMoves::HostCarrier final : public Carrier {
 public:
  explicit HostCarrier(const std::function<Status(std::span<const Piece>)>& move) : move_(move) {}
  Status begin(std::span<const Piece> frame) override {
    frames_[begun_++ % frames_.size()] = frame;
    return {};
  }
  Status finish() override { return move_(frames_[finished_++ % frames_.size()]); }

 private:
  const std::function<Status(std::span<const Piece>)>& move_;
  std::array<std::span<const Piece>, 2> frames_;
  std::size_t begun_ = 0;
  std::size_t finished_ = 0;
};

class EngineMoves::MemoryCarrier final : public Carrier {
 public:
  explicit MemoryCarrier(Opcode opcode) : opcode_(opcode) {}
  Status begin(std::span<const Piece> frame) override {
    for (const auto& piece : frame) {
      const auto near = bytes_at({piece.local, piece.length});
      const auto far = bytes_at({piece.remote, piece.length});
      const auto [to, from] = opcode_ == Opcode::kWrite ? std::pair(far, near) : std::pair(near, far);
      std::memmove(to.data(), from.data(), to.size());
    }
    return {};
  }
  Status finish() override { return {}; }

 private:
  const Opcode opcode_;
};

// ---------------------------------------------------------------- windows

// Cuts pieces into frames, each of at most `bytes`; what is device memory is replaced by its place in a window.
class EngineMoves::Frames {
 public:
  Frames(const LocatedPieces& pieces, std::uint64_t bytes) : pieces_(pieces), bytes_(bytes) {}

  // False: there is none any more.
  bool fill(StagedWindow& window, std::vector<Piece>& frame) {
    window.clear();
    frame.clear();
    std::uint64_t left = bytes_;
    while (index_ < pieces_.size() && left > 0 && frame.size() < kRawFramePieces) {
      const auto& [piece, device, local, remote] = pieces_[index_];
      const std::uint64_t part = std::min(piece.length - used_, left);
      std::uint64_t address = piece.local + used_;
      if (device != kHost) address = reinterpret_cast<std::uint64_t>(window.put(device, {address, part}).data());
      append(frame, {address, piece.remote + used_, part}, remote);
      left -= part;
      used_ += part;
      if (used_ < piece.length) continue;
      ++index_;
      used_ = 0;
    }
    return !frame.empty();
  }

 private:
  // Neighbours at both ends are one piece on the wire.
  void append(std::vector<Piece>& frame, const Piece& next, const void* remote) {
    Piece* const last = frame.empty() || last_remote_ != remote ? nullptr : &frame.back();
    if (last != nullptr && last->local + last->length == next.local && last->remote + last->length == next.remote) {
      last->length += next.length;
    } else {
      frame.push_back(next);
    }
    last_remote_ = remote;
  }

  const LocatedPieces& pieces_;
  const std::uint64_t bytes_;
  std::size_t index_ = 0;
  std::uint64_t used_ = 0;  // of the piece at index_
  const void* last_remote_ = nullptr;
};

// Three: one is copied, one on its way, one answered.
class EngineMoves::Windows {
 public:
  struct Window {
    StagedWindow staged;
    std::vector<Piece> frame;
    std::unique_ptr<Copier::Ticket> ticket;  // goes first, and waits
  };
  static constexpr std::size_t kCount = 3;

  void use(Staging::Lease lease, std::uint64_t bytes) {
    lease_ = std::move(lease);
    const auto memory = lease_.memory();
    for (std::size_t i = 0; i < kCount && i * bytes < memory.size(); ++i) {
      windows_[i].staged = StagedWindow(memory.subspan(i * bytes, std::min<std::uint64_t>(bytes, memory.size() - i * bytes)));
    }
  }
  Window& operator[](std::size_t index) { return windows_[index % kCount]; }

  static Status wait(Runtime* runtime, Window& window, Deadline deadline) {
    if (window.ticket == nullptr) return {};
    Status status = runtime->copier().wait(*window.ticket, deadline);
    window.ticket.reset();
    return wrapped("copy between device and staging memory", status);
  }
  static Status submit(Runtime* runtime, Window& window, Direction direction, Stream after) {
    if (window.staged.empty()) return {};
    auto ticket = window.staged.submit(runtime->copier(), direction, after);
    if (!ticket.ok()) return wrapped("copy between device and staging memory", ticket.status());
    window.ticket = std::move(*ticket);
    return {};
  }

 private:
  Staging::Lease lease_;
  std::array<Window, kCount> windows_;
};

// ---------------------------------------------------------------- registered memory

EngineMoves::EngineMoves(FindRuntime find, const net::Identity& identity, net::LanePool& lanes)
    : find_(std::move(find)), lanes_of_all_(lanes), lanes_(identity, {.lanes_per_peer = 8}) {}

EngineMoves::~EngineMoves() = default;

Result<std::shared_ptr<const DevicePlace>> EngineMoves::place(const AddressRange& range) {
  const std::shared_ptr<const DevicePlace> host;
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
  return std::shared_ptr<const DevicePlace>(std::make_shared<DevicePlace>(std::move(place)));
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
  bool host = false;
  for (std::size_t i = 0; i < transfer.pieces.size(); ++i) {
    if (transfer.pieces[i].length == 0) continue;
    const int device = device_of(region_of(transfer.local, i));
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
  if (peer.device_ranges.empty()) return false;
  return std::ranges::any_of(pieces, [&](const Piece& piece) {
    return piece.length > 0 && peer.device_range({piece.remote, piece.length}) != nullptr;
  });
}

EngineMoves::LocatedPieces EngineMoves::join(LocatedPieces pieces) {
  LocatedPieces joined;
  for (auto& next : pieces) {
    if (!joined.empty()) {
      auto& last = joined.back();
      const bool follows = last.device == next.device && last.local == next.local && last.remote == next.remote &&
                           last.piece.local + last.piece.length == next.piece.local &&
                           last.piece.remote + last.piece.length == next.piece.remote;
      if (follows) {
        last.piece.length += next.piece.length;
        continue;
      }
    }
    joined.push_back(next);
  }
  return joined;
}

Status EngineMoves::move(const RemoteSegment& peer, const Transfer& transfer, const Network& network) {
  Runtime* const runtime = transfer.local.empty() && !transfer.after ? nullptr : find_();
  const auto after = order(runtime, transfer);
  if (!after.ok()) return after.status();
  std::vector<Piece> plain;
  LocatedPieces between_devices, to_host, by_tcp;
  for (std::size_t i = 0; i < transfer.pieces.size(); ++i) {
    const Piece& piece = transfer.pieces[i];
    if (piece.length == 0) continue;
    const auto* const region = region_of(transfer.local, i);
    const int device = device_of(region);
    const auto* const remote = peer.device_range({piece.remote, piece.length});
    if (device == kHost && remote == nullptr) {
      plain.push_back(piece);
      continue;
    }
    auto& list = remote == nullptr ? to_host : device == kHost ? by_tcp : between_devices;
    list.push_back({piece, device, region, &*std::prev(peer.by_address.upper_bound(piece.remote))});
  }
  if (!plain.empty()) MOONPOOL_RETURN_IF_ERROR(network.host_to_host(plain));
  if (!between_devices.empty()) {
    if (runtime == nullptr) return no_cuda();
    between_devices = join(std::move(between_devices));
    Status copied = direct(*runtime, peer, transfer, between_devices, *after);
    if (copied.code() != ErrorCode::kUnavailable) {
      if (!copied.ok()) return copied;
    } else {
      say_once(peer, copied.message());
      by_tcp.insert(by_tcp.end(), between_devices.begin(), between_devices.end());
    }
  }
  if (!network.one_sided) {
    by_tcp.insert(by_tcp.end(), to_host.begin(), to_host.end());
  } else if (!to_host.empty()) {
    HostCarrier carrier(network.host_to_host);
    MOONPOOL_RETURN_IF_ERROR(staged(transfer.opcode, join(std::move(to_host)), *after, carrier, transfer.deadline));
  }
  if (by_tcp.empty()) return {};
  if (!network.tcp) {
    return {ErrorCode::kNotSupported, "the device memory of " + peer.endpoint.to_string() +
                                          " can be reached over TCP alone, which the paths of this engine leave out: add tcp"};
  }
  LaneCarrier carrier(lanes_of_all_, lanes_, peer, transfer.opcode, transfer.deadline);
  return staged(transfer.opcode, join(std::move(by_tcp)), *after, carrier, transfer.deadline);
}

Status EngineMoves::move_within(const Transfer& transfer, Regions remote) {
  Runtime* const runtime = find_();
  if (runtime == nullptr) return no_cuda();
  const auto after = order(runtime, transfer);
  if (!after.ok()) return after.status();
  std::array<std::map<int, std::vector<Piece>>, 2> by_device;  // out of reach of each other, and within
  std::array<LocatedPieces, 2> with_host;                      // read, and written
  const auto opposite = [](Opcode opcode) { return opcode == Opcode::kWrite ? Opcode::kRead : Opcode::kWrite; };
  for (std::size_t i = 0; i < transfer.pieces.size(); ++i) {
    const Piece& piece = transfer.pieces[i];
    if (piece.length == 0) continue;
    const auto* const near = region_of(transfer.local, i);
    const auto* const far = region_of(remote, i);
    const int here = device_of(near);
    const int there = device_of(far);
    if (here == kHost && there == kHost) {
      (void)MemoryCarrier(transfer.opcode).begin({&piece, 1});
    } else if (there == kHost) {
      with_host[static_cast<std::size_t>(transfer.opcode)].push_back({piece, here, near, far});
    } else if (here == kHost) {
      const Piece turned{piece.remote, piece.local, piece.length};
      with_host[static_cast<std::size_t>(opposite(transfer.opcode))].push_back({turned, there, far, near});
    } else {
      by_device[allow(*runtime, here, there).ok() ? 1 : 0][here].push_back(piece);
    }
  }
  for (const bool reachable : {false, true}) {
    MOONPOOL_RETURN_IF_ERROR(copy(*runtime, transfer.opcode, by_device[reachable ? 1 : 0], *after, reachable, transfer.deadline));
  }
  for (const Opcode opcode : {Opcode::kRead, Opcode::kWrite}) {
    const auto& pieces = with_host[static_cast<std::size_t>(opcode)];
    if (pieces.empty()) continue;
    MemoryCarrier carrier(opcode);
    MOONPOOL_RETURN_IF_ERROR(staged(opcode, join(pieces), *after, carrier, transfer.deadline));
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
Result<std::uint64_t> EngineMoves::reach(Runtime& runtime, const RemoteSegment& peer, const RemoteDeviceRange& range, int device,
                                         std::vector<IpcMappings::Use>& uses) {
  // Opened on the device that has it, where this process sees that, so that all of ours share one mapping; else the driver has to find a
  // way for the device that copies.
  const auto owner = device_with(runtime, range.place.uuid);
  if (peer.cuda_process == process_identity(&runtime)) return std::uint64_t{0};
  if (range.place.ipc_handle.empty()) return Status(ErrorCode::kUnavailable, "its memory cannot be exported: " + range.place.no_ipc);
  auto use = mappings_.open(runtime.driver(), peer, range, owner.value_or(device));
  if (!use.ok()) return Status(ErrorCode::kUnavailable, "its memory cannot be opened: " + use.status().message());
  const std::uint64_t base = (*use)->address();
  const std::uint64_t length = peer.by_address.at(range.address);
  if (const auto mapped = runtime.driver().locate(base); mapped) {
    const std::uint64_t size = mapped->size - (base - mapped->base);
    if (range.place.ipc_offset > size || length > size - range.place.ipc_offset) {
      return Status(ErrorCode::kUnavailable, "its handle names a smaller allocation than it says");
    }
  }
  uses.push_back(std::move(*use));
  return base + range.place.ipc_offset - range.address;
}

// kUnavailable: the way by the host remains.
Status EngineMoves::direct(Runtime& runtime, const RemoteSegment& peer, const Transfer& transfer, const LocatedPieces& pieces,
                           Stream after) {
  const bool same_process = peer.cuda_process == process_identity(&runtime);
  if (!same_process && (peer.cuda_host.empty() || peer.cuda_host != host_identity())) {
    return {ErrorCode::kUnavailable, "it is on another host, or belongs to another user or container"};
  }
  std::vector<Piece> held;
  std::uint64_t total = 0;
  for (const auto& [piece, device, local, remote] : pieces) {
    const auto owner = device_with(runtime, peer.device_range({piece.remote, piece.length})->place.uuid);
    if (owner) {
      if (const Status allowed = allow(runtime, device, *owner); !allowed.ok()) return {ErrorCode::kUnavailable, allowed.message()};
    }
    held.push_back(piece);
    total += piece.length;
  }
  // Before anything is opened: what we know of the peer's memory may be old.
  auto hold = PeerHold::take(lanes_, peer, held, transfer.deadline);
  if (!hold.ok()) {
    if (hold.code() == ErrorCode::kUnavailable) mappings_.forget(peer.incarnation);
    return hold.code() == ErrorCode::kNotSupported ? Status(ErrorCode::kUnavailable, hold.status().message()) : hold.status();
  }
  std::vector<IpcMappings::Use> uses;
  std::map<std::pair<const RemoteDeviceRange*, int>, std::uint64_t> offsets;
  std::map<int, std::vector<Piece>> by_device;
  for (const auto& [piece, device, local, remote] : pieces) {
    const auto* const range = peer.device_range({piece.remote, piece.length});
    auto found = offsets.find({range, device});
    if (found == offsets.end()) {
      const auto offset = reach(runtime, peer, *range, device, uses);
      if (!offset.ok()) {
        (void)hold->release();  // nothing was touched under it
        return offset.status();
      }
      found = offsets.emplace(std::pair(range, device), *offset).first;
    }
    by_device[device].push_back({piece.local, piece.remote + found->second, piece.length});
  }
  MOONPOOL_SYNC_POINT("engine_moves.direct.held");
  Status copied = copy(runtime, transfer.opcode, by_device, after, true, transfer.deadline);
  Status released = hold->release();
  if (copied.ok()) copied = std::move(released);
  if (copied.ok()) counters_.direct_bytes += total;
  return copied.code() == ErrorCode::kUnavailable ? Status(ErrorCode::kTransferFail, copied.message()) : copied;
}

Status EngineMoves::copy(Runtime& runtime, Opcode opcode, const std::map<int, std::vector<Piece>>& by_device, Stream after, bool reachable,
                         Deadline deadline) {
  std::vector<std::unique_ptr<DirectCopy>> copies;
  Status status;
  for (const auto& [device, pieces] : by_device) {
    copies.push_back(std::make_unique<DirectCopy>(runtime, streams_, device));
    status = copies.back()->start(opcode, pieces, after, reachable);
    if (!status.ok()) break;
  }
  for (const auto& copy : copies) {
    Status ended = copy->wait(deadline);
    if (status.ok()) status = std::move(ended);
  }
  return wrapped("copy between devices", status);
}

// ---------------------------------------------------------------- staged

Status EngineMoves::staged(Opcode opcode, const LocatedPieces& pieces, Stream after, Carrier& carrier, Deadline deadline) {
  std::uint64_t total = 0;
  std::uint64_t on_devices = 0;
  for (const auto& piece : pieces) {
    total += piece.piece.length;
    if (piece.device != kHost) on_devices += piece.piece.length;
  }
  std::uint64_t window = kWindowBytes;
  Runtime* const runtime = on_devices == 0 ? nullptr : find_();
  Windows windows;
  if (on_devices > 0) {
    if (runtime == nullptr) return no_cuda();
    Staging& staging = runtime->staging();
    window = std::min(window, std::max<std::uint64_t>(kPage, staging.capacity() / Windows::kCount / kPage * kPage));
    const bool one = total <= window && pieces.size() <= kRawFramePieces;
    auto lease = staging.acquire(one ? on_devices : Windows::kCount * window, deadline);
    if (!lease.ok()) return wrapped("staging memory for device data", lease.status());
    windows.use(std::move(*lease), one ? on_devices : window);
  }
  Frames frames(pieces, window);
  Status moved = opcode == Opcode::kWrite ? write_staged(runtime, frames, windows, after, carrier, deadline)
                                          : read_staged(runtime, frames, windows, after, carrier, deadline);
  if (moved.ok()) counters_.staged_bytes += on_devices;
  return moved;
}

Status EngineMoves::write_staged(Runtime* runtime, Frames& frames, Windows& windows, Stream after, Carrier& carrier, Deadline deadline) {
  const auto gather = [&](Windows::Window& window) { return Windows::submit(runtime, window, Direction::kGather, after); };
  if (!frames.fill(windows[0].staged, windows[0].frame)) return {};
  MOONPOOL_RETURN_IF_ERROR(gather(windows[0]));
  std::size_t under_way = 0;
  bool more = true;
  for (std::size_t i = 0; more; ++i) {
    if (under_way == 2) {
      MOONPOOL_RETURN_IF_ERROR(carrier.finish());
      --under_way;
    }
    auto& next = windows[i + 1];
    more = frames.fill(next.staged, next.frame);
    if (more) MOONPOOL_RETURN_IF_ERROR(gather(next));
    MOONPOOL_RETURN_IF_ERROR(Windows::wait(runtime, windows[i], deadline));
    MOONPOOL_RETURN_IF_ERROR(carrier.begin(windows[i].frame));
    ++under_way;
  }
  for (; under_way > 0; --under_way) MOONPOOL_RETURN_IF_ERROR(carrier.finish());
  return {};
}

Status EngineMoves::read_staged(Runtime* runtime, Frames& frames, Windows& windows, Stream after, Carrier& carrier, Deadline deadline) {
  if (!frames.fill(windows[0].staged, windows[0].frame)) return {};
  MOONPOOL_RETURN_IF_ERROR(carrier.begin(windows[0].frame));
  bool more = true;
  for (std::size_t i = 0; more; ++i) {
    auto& next = windows[i + 1];
    MOONPOOL_RETURN_IF_ERROR(Windows::wait(runtime, next, deadline));
    more = frames.fill(next.staged, next.frame);
    if (more) MOONPOOL_RETURN_IF_ERROR(carrier.begin(next.frame));
    MOONPOOL_RETURN_IF_ERROR(carrier.finish());
    MOONPOOL_RETURN_IF_ERROR(Windows::submit(runtime, windows[i], Direction::kScatter, after));
  }
  for (std::size_t i = 0; i < Windows::kCount; ++i) MOONPOOL_RETURN_IF_ERROR(Windows::wait(runtime, windows[i], deadline));
  return {};
}

}  // namespace moonpool::transfer::cuda
