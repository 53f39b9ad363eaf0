#include "transfer/transfer_engine.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "base/logging.h"
#include "metadata/open_metadata_store.h"
#include "net/server.h"
#include "transfer/async_transfers.h"
#include "transfer/cuda/engine/engine_moves.h"
#include "transfer/cuda/engine/served_moves.h"
#include "transfer/fall_back_log.h"
#include "transfer/notification_queue.h"
#include "transfer/path_names.h"
#include "transfer/range_memo.h"
#include "transfer/rdma/raw_path.h"
#include "transfer/registered_memory.h"
#include "transfer/segment_directory.h"
#include "transfer/tcp/raw_client.h"
#include "transfer/tcp/raw_service.h"

namespace moonpool::transfer {

namespace {

constexpr std::uint16_t kFirstPort = 12300;
constexpr std::uint16_t kLastPort = 14300;
constexpr std::chrono::seconds kMetadataTime{5};
constexpr std::chrono::seconds kFarewellTime{2};  // for taking our entries out of the metadata server at the end
constexpr std::chrono::seconds kHoldsTime{5};     // for peers' GPUs to leave our device memory at the end

// Port 0: none was given.
Result<net::Endpoint> parse_name(const std::string& name) {
  if (auto with_port = net::Endpoint::parse(name); with_port.ok()) return with_port;
  auto host = net::Endpoint::parse(name, 1);
  if (!host.ok()) return Status(ErrorCode::kInvalidParams, "bad engine name: " + host.status().message());
  host->port = 0;
  return host;
}

Status check_protocol(const std::string& protocol) {
  if (protocol == "tcp" || protocol == "rdma") return {};
  return {ErrorCode::kNotSupported, "protocol \"" + protocol + "\" is unknown: use \"tcp\" or \"rdma\""};
}

}  // namespace

class TransferEngine::Impl {
 public:
  Impl(EngineOptions options, const FindCuda& find_cuda)
      : options_(std::move(options)),
        identity_{NodeId::generate(), options_.cluster_token, "moonpool transfer engine"},
        incarnation_(Incarnation::generate()),
        lanes_(identity_),
        moves_(find_cuda, identity_, lanes_),
        served_moves_(memory_, incarnation_, find_cuda),
        service_{memory_, notifications_, incarnation_, [this] { return descriptor(); }, &served_moves_} {}

  ~Impl() {
    lanes_.close();
    moves_.cancel();
    if (rdma_) rdma_->cancel();
    async_.stop();
    withdraw();
    served_moves_.end_holds(Deadline::after(kHoldsTime));
    if (server_) server_->stop();
    served_moves_.stop();
    if (rdma_) rdma_->stop();
  }

  Status open(const OpenDevices& open_devices);
  [[nodiscard]] std::string session() const { return endpoint_.to_string(); }
  [[nodiscard]] std::uint16_t port() const { return endpoint_.port; }

  Status register_memory(const AddressRange& range, std::string_view location);
  Status unregister_memory(std::uint64_t address);
  // `after`: the stream whose work comes first.
  Status transfer(std::string_view peer, Opcode opcode, std::span<const Piece> pieces, Deadline deadline,
                  std::optional<cuda::Stream> after = std::nullopt);
  Status notify(std::string_view peer, const Notification& notification, Deadline deadline);
  Status probe(std::string_view peer);
  Result<std::uint64_t> first_buffer(std::string_view peer);

  [[nodiscard]] Deadline deadline() const { return Deadline::after(options_.timeout); }
  AsyncTransfers& async() { return async_; }
  NotificationQueue& notifications() { return notifications_; }
  [[nodiscard]] const rdma::RawPath* rdma() const { return rdma_.get(); }
  [[nodiscard]] const cuda::MoveCounters& device_counters() const { return moves_.counters(); }

 private:
  Status open_rdma(const OpenDevices& open_devices);
  Status open_store();
  Status listen();
  Status start(net::ServerOptions options);
  wire::EngineDescriptor descriptor() const;
  Status publish();
  void withdraw();
  Result<std::shared_ptr<const RemoteSegment>> find_checked(std::string_view peer, std::span<const Piece> pieces, Deadline deadline);
  Status move(const RemoteSegment& target, const cuda::EngineMoves::Transfer& transfer);
  Status move_host(const RemoteSegment& target, Opcode opcode, std::span<const Piece> pieces, Deadline deadline);
  Status move_one_sided(const RemoteSegment& target, Opcode opcode, std::span<const Piece> pieces, Deadline deadline);
  Status move_within(const cuda::EngineMoves::Transfer& transfer);

  const EngineOptions options_;
  const net::Identity identity_;
  const Incarnation incarnation_;
  RegisteredMemory memory_;
  NotificationQueue notifications_;
  net::LanePool lanes_;
  cuda::EngineMoves moves_;
  cuda::ServedMoves served_moves_;
  RawService service_;
  std::unique_ptr<metadata::MetadataStore> store_;  // empty with P2PHANDSHAKE
  std::optional<SegmentDirectory> directory_;
  std::unique_ptr<rdma::RawPath> rdma_;  // null: protocol "tcp"
  bool tcp_allowed_ = true;
  FallBackLog fall_back_;
  std::optional<net::Server> server_;
  net::Endpoint endpoint_;  // set by listen(), constant afterwards
  bool given_port_taken_ = false;
  std::mutex publishing_;               // one publication at a time, so that the last one stored is the newest; guards published_
  std::vector<std::string> published_;  // keys
  AsyncTransfers async_;
};

// ---------------------------------------------------------------- opening and publishing

Status TransferEngine::Impl::open(const OpenDevices& open_devices) {
  MOONPOOL_RETURN_IF_ERROR(check_protocol(options_.protocol));
  MOONPOOL_RETURN_IF_ERROR(open_rdma(open_devices));
  MOONPOOL_RETURN_IF_ERROR(open_store());
  directory_.emplace(store_.get(), lanes_);
  MOONPOOL_RETURN_IF_ERROR(listen());
  return publish();
}

Status TransferEngine::Impl::open_rdma(const OpenDevices& open_devices) {
  if (options_.protocol != "rdma") return {};
  tcp_allowed_ = lists(options_.paths, "tcp");
  if (!lists(options_.paths, "rdma")) {
    if (!tcp_allowed_) {
      return {ErrorCode::kInvalidParams, "protocol \"rdma\", but the paths \"" + options_.paths + "\" name neither rdma nor tcp: add one"};
    }
    log::warning("transfer engine: protocol \"rdma\" is asked for, but the paths \"{}\" leave it out: using tcp", options_.paths);
    return {};
  }
  auto devices = open_devices ? open_devices(options_.rdma) : rdma::Devices::open(options_.rdma);
  if (!devices.ok()) return {devices.code(), "protocol \"rdma\": " + devices.status().message()};
  rdma_ = std::make_unique<rdma::RawPath>(std::move(*devices), identity_, incarnation_, options_.rdma);
  return {};
}

Status TransferEngine::Impl::open_store() {
  const auto url = metadata::parse_metadata_url(options_.metadata_url);
  if (!url.ok()) return url.status();
  if (url->kind == metadata::MetadataKind::kPeerToPeer) return {};
  auto store = metadata::open_metadata_store(*url);
  if (!store.ok()) return store.status();
  store_ = std::move(*store);
  return metadata::check_reachable(*store_, Deadline::after(kMetadataTime));
}

Status TransferEngine::Impl::listen() {
  const auto name = parse_name(options_.name);
  if (!name.ok()) return name.status();
  endpoint_ = *name;
  net::ServerOptions server;
  server.host = endpoint_.host;
  server.port = endpoint_.port;
  if (server.port != 0) {
    const Status started = start(server);
    if (started.ok()) return {};
    // Users give a "host:port" of their own and ask for the real port afterwards, so another port is as good.
    log::warning("transfer engine: {}; taking another port", started.message());
    given_port_taken_ = true;
  }
  server.port = 0;
  server.first_port = kFirstPort;
  server.last_port = kLastPort;
  if (Status started = start(server); !started.ok()) {
    return {started.code(), "transfer engine '" + options_.name + "': " + started.message()};
  }
  endpoint_.port = server_->port();
  return {};
}

Status TransferEngine::Impl::start(net::ServerOptions options) {
  server_.emplace(identity_, std::move(options));
  serve(service_, *server_);
  if (rdma_) rdma_->serve(*server_);
  return server_->start();
}

wire::EngineDescriptor TransferEngine::Impl::descriptor() const {
  wire::EngineDescriptor descriptor;
  descriptor.set_incarnation(incarnation_.to_bytes());
  descriptor.set_name(options_.name);
  descriptor.set_host(endpoint_.host);
  descriptor.set_port(endpoint_.port);
  descriptor.set_protocol(options_.protocol);
  const auto regions = memory_.regions();
  for (const auto& region : regions) {
    descriptor.add_buffer_address(region.address);
    descriptor.add_buffer_length(region.length);
    descriptor.add_buffer_location(region.location);
  }
  moves_.describe(regions, descriptor);
  return descriptor;
}

Status TransferEngine::Impl::publish() {
  if (store_ == nullptr) return {};
  std::vector<std::string> keys{std::string(kSegmentKeyPrefix) + session()};
  // A name whose port another process has is that process's name.
  if (options_.name != session() && !given_port_taken_) keys.push_back(std::string(kSegmentKeyPrefix) + options_.name);
  const std::scoped_lock lock(publishing_);
  const std::string value = descriptor().SerializeAsString();
  for (const auto& key : keys) MOONPOOL_RETURN_IF_ERROR(store_->put(key, value, Deadline::after(kMetadataTime)));
  published_ = std::move(keys);
  return {};
}

void TransferEngine::Impl::withdraw() {
  if (store_ == nullptr) return;
  const std::scoped_lock lock(publishing_);
  const auto deadline = Deadline::after(kFarewellTime);
  for (const auto& key : published_) {
    // Another engine may have taken the name since.
    const auto value = store_->get(key, deadline);
    wire::EngineDescriptor stored;
    const bool ours = value.ok() && stored.ParseFromString(*value) && stored.incarnation() == incarnation_.to_bytes();
    if (!ours) continue;
    if (const Status removed = store_->remove(key, deadline); !removed.ok()) {
      log::warning("transfer engine: its entry stays behind: {}", removed.message());
    }
  }
}

Status TransferEngine::Impl::register_memory(const AddressRange& range, std::string_view location) {
  auto place = moves_.place(range);
  if (!place.ok()) return place.status();
  const bool on_device = *place != nullptr;
  const MutableBytes memory = bytes_at(range);
  // A device's memory goes by way of the host's where NICs do not reach it; that of the host has to be theirs.
  if (on_device && rdma_) {
    const auto add = [&](const DmaBuf& buffer) { return rdma_->add(memory, &buffer); };
    (*place)->by_nic = moves_.give_to_nics(range, (*place)->device, add);
  }
  bool pinned = on_device && (*place)->by_nic;
  const std::string where = on_device && location == "*" ? "cuda:" + std::to_string((*place)->device) : std::string(location);
  Status status = memory_.add(range.address, range.length, where, std::move(*place));
  const bool added = status.ok();
  if (added && on_device) served_moves_.prepare();
  if (added && !on_device && rdma_) {
    status = rdma_->add(memory);
    pinned = status.ok();
  }
  if (status.ok()) status = publish();
  if (status.ok()) return {};
  // Not registered, then: the caller sees why.
  if (pinned) (void)rdma_->remove(memory.data(), deadline());
  if (!added) return status;
  (void)memory_.remove(range.address, deadline());
  if (on_device) moves_.forget(range.address);
  return status;
}

Status TransferEngine::Impl::unregister_memory(std::uint64_t address) {
  const auto until = deadline();
  const void* const begin = bytes_at({address, 1}).data();
  const auto place = memory_.place_of(address);
  const bool on_device = place != nullptr;
  const bool one_sided = rdma_ && (!on_device || place->by_nic);
  if (one_sided) rdma_->revoke(begin);  // peers do not ask this engine before they touch its memory
  Status removed = memory_.remove(address, until);
  if (removed.code() == ErrorCode::kInvalidParams) return removed;
  if (on_device) moves_.forget(address);
  if (one_sided) {
    Status unpinned = rdma_->remove(begin, until);
    if (removed.ok()) removed = std::move(unpinned);
  }
  MOONPOOL_RETURN_IF_ERROR(std::move(removed));
  return publish();
}

// ---------------------------------------------------------------- transfers

Result<std::shared_ptr<const RemoteSegment>> TransferEngine::Impl::find_checked(std::string_view peer, std::span<const Piece> pieces,
                                                                                Deadline deadline) {
  for (const bool again : {true, false}) {
    auto target = directory_->find(peer, deadline);
    if (!target.ok()) return target.status();
    RangeMemo<const RemoteRange> memo;
    const auto outside = std::ranges::find_if(pieces, [&](const Piece& piece) {
      if (piece.length == 0) return false;
      return memo.find(piece.remote, piece.length, [&] { return (*target)->range_of({piece.remote, piece.length}); }) == nullptr;
    });
    if (outside == pieces.end()) return target;
    directory_->forget(peer);  // it may have registered more since
    if (!again) {
      return Status(ErrorCode::kInvalidParams, std::to_string(outside->length) + " bytes at " + std::to_string(outside->remote) +
                                                   " are not inside the memory that '" + std::string(peer) + "' has registered");
    }
  }
  return Status(ErrorCode::kInternal, "not reached");
}

Status TransferEngine::Impl::transfer(std::string_view peer, Opcode opcode, std::span<const Piece> pieces, Deadline deadline,
                                      std::optional<cuda::Stream> after) {
  const auto hold = memory_.hold(pieces, RegisteredMemory::End::kLocal);
  if (!hold.ok()) return {hold.code(), "local memory: " + hold.status().message()};
  const cuda::EngineMoves::Transfer transfer{opcode, pieces, hold->with_devices(), after, deadline};

  auto target = find_checked(peer, pieces, deadline);
  if (!target.ok()) return target.status();
  Status moved = move(**target, transfer);
  const bool outdated = moved.code() == ErrorCode::kStaleIncarnation || moved.code() == ErrorCode::kUnavailable;
  if (!outdated) return moved;
  // The engine was restarted, perhaps elsewhere, or registered its memory anew: what we know of it is asked again, and tried if it is news.
  directory_->forget(peer);
  auto newer = find_checked(peer, pieces, deadline);
  if (!newer.ok() || (moved.code() == ErrorCode::kUnavailable && (*newer)->incarnation == (*target)->incarnation)) return moved;
  return move(**newer, transfer);
}

Status TransferEngine::Impl::move(const RemoteSegment& target, const cuda::EngineMoves::Transfer& transfer) {
  if (target.incarnation == incarnation_) return move_within(transfer);
  const auto host_to_host = [&](std::span<const Piece> pieces) { return move_host(target, transfer.opcode, pieces, transfer.deadline); };
  if (cuda::EngineMoves::concerns(target, transfer.pieces, transfer.local)) {
    cuda::EngineMoves::Network network{host_to_host, {}, tcp_allowed_};
    if (rdma_) {
      network.one_sided = [&](std::span<const Piece> pieces) { return move_one_sided(target, transfer.opcode, pieces, transfer.deadline); };
    }
    return moves_.move(target, transfer, network);
  }
  if (transfer.after) MOONPOOL_RETURN_IF_ERROR(moves_.wait_for_stream(*transfer.after, transfer.deadline));
  return host_to_host(transfer.pieces);
}

Status TransferEngine::Impl::move_host(const RemoteSegment& target, Opcode opcode, std::span<const Piece> pieces, Deadline deadline) {
  if (rdma_) {
    Status moved = move_one_sided(target, opcode, pieces, deadline);
    if (moved.code() != ErrorCode::kUnavailable || !tcp_allowed_) return moved;
    fall_back_.report(target.endpoint, moved.message());
  }
  return move_raw(lanes_, target, opcode, pieces, deadline);
}

// kUnavailable: another path may do it.
Status TransferEngine::Impl::move_one_sided(const RemoteSegment& target, Opcode opcode, std::span<const Piece> pieces, Deadline deadline) {
  if (!rdma_->promising(target.endpoint)) return {ErrorCode::kUnavailable, rdma_->why_not(target.endpoint)};
  Status moved = rdma_->move(target, opcode, pieces, deadline);
  if (moved.ok()) return moved;
  return {moved.code(), std::string("rdma ") + (opcode == Opcode::kWrite ? "write to " : "read from ") + target.endpoint.to_string() +
                            ": " + moved.message()};
}

Status TransferEngine::Impl::move_within(const cuda::EngineMoves::Transfer& transfer) {
  const auto hold = memory_.hold(transfer.pieces, RegisteredMemory::End::kRemote);
  if (!hold.ok()) return hold.status();
  if (!transfer.local.empty() || !hold->with_devices().empty() || transfer.after) {
    return moves_.move_within(transfer, hold->with_devices());
  }
  for (const auto& piece : transfer.pieces) {
    const auto near = bytes_at({piece.local, piece.length});
    const auto far = bytes_at({piece.remote, piece.length});
    const auto [to, from] = transfer.opcode == Opcode::kWrite ? std::pair(far, near) : std::pair(near, far);
    if (!to.empty()) std::memmove(to.data(), from.data(), to.size());
  }
  return {};
}

Status TransferEngine::Impl::notify(std::string_view peer, const Notification& notification, Deadline deadline) {
  const auto target = directory_->find(peer, deadline);
  if (!target.ok()) return target.status();
  wire::NotifyRequest request;
  request.set_name(notification.name);
  request.set_text(notification.message);
  wire::Empty reply;
  Status status = lanes_.call((*target)->endpoint, wire::METHOD_NOTIFY, request, reply, deadline);
  if (!status.ok()) directory_->forget(peer);
  return status;
}

Status TransferEngine::Impl::probe(std::string_view peer) {
  const auto bound = deadline();
  const auto target = directory_->find(peer, bound);
  if (!target.ok()) return target.status();
  wire::Empty reply;
  Status status = lanes_.call((*target)->endpoint, wire::METHOD_PROBE, wire::Empty(), reply, bound);
  if (!status.ok()) directory_->forget(peer);
  return status;
}

Result<std::uint64_t> TransferEngine::Impl::first_buffer(std::string_view peer) {
  for (const bool again : {true, false}) {
    const auto target = directory_->find(peer, deadline());
    if (!target.ok()) return target.status();
    if (!(*target)->ranges.empty()) return (*target)->ranges.front().address;
    if (again) directory_->forget(peer);  // it may have registered some since
  }
  return Status(ErrorCode::kSegmentNotFound, "'" + std::string(peer) + "' has not registered any memory");
}

// ---------------------------------------------------------------- the public face

TransferEngine::TransferEngine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
TransferEngine::~TransferEngine() = default;

Result<std::unique_ptr<TransferEngine>> TransferEngine::create(EngineOptions options, const OpenDevices& open_devices, FindCuda find_cuda) {
  if (!find_cuda) find_cuda = cuda::Runtime::of_process;
  auto impl = std::make_unique<Impl>(std::move(options), find_cuda);
  MOONPOOL_RETURN_IF_ERROR(impl->open(open_devices));
  return std::unique_ptr<TransferEngine>(new TransferEngine(std::move(impl)));
}

std::string TransferEngine::session() const { return impl_->session(); }
std::uint16_t TransferEngine::port() const { return impl_->port(); }

Status TransferEngine::register_memory(std::uint64_t address, std::uint64_t length, std::string_view location) {
  return impl_->register_memory({address, length}, location);
}
Status TransferEngine::unregister_memory(std::uint64_t address) { return impl_->unregister_memory(address); }

Status TransferEngine::transfer(std::string_view peer, Opcode opcode, const std::vector<Piece>& pieces, const Notification* notify) {
  const auto deadline = impl_->deadline();
  MOONPOOL_RETURN_IF_ERROR(impl_->transfer(peer, opcode, pieces, deadline));
  return notify == nullptr ? Status() : impl_->notify(peer, *notify, deadline);
}

Status TransferEngine::transfer_after(cuda::Stream stream, std::string_view peer, Opcode opcode, const std::vector<Piece>& pieces) {
  return impl_->transfer(peer, opcode, pieces, impl_->deadline(), stream);
}

Result<std::uint64_t> TransferEngine::submit(std::string_view peer, Opcode opcode, std::vector<Piece> pieces) {
  auto work = [impl = impl_.get(), name = std::string(peer), opcode, list = std::move(pieces)](Deadline deadline) {
    return impl->transfer(name, opcode, list, deadline);
  };
  return impl_->async().submit(std::move(work), impl_->deadline());
}

Result<TransferState> TransferEngine::state(std::uint64_t id) const { return impl_->async().state(id); }
Status TransferEngine::wait(std::uint64_t id) { return impl_->async().wait(id); }
void TransferEngine::forget(std::uint64_t id) { impl_->async().forget(id); }
Result<std::uint64_t> TransferEngine::first_buffer(std::string_view peer) { return impl_->first_buffer(peer); }
Status TransferEngine::probe(std::string_view peer) { return impl_->probe(peer); }
Status TransferEngine::notify(std::string_view peer, const Notification& notification) {
  return impl_->notify(peer, notification, impl_->deadline());
}
std::vector<Notification> TransferEngine::take_notifications() { return impl_->notifications().take(); }

std::vector<NicPlace> TransferEngine::nics() const {
  std::vector<NicPlace> places;
  if (impl_->rdma() == nullptr) return places;
  const auto& devices = impl_->rdma()->devices();
  for (std::size_t i = 0; i < devices.size(); ++i) places.push_back({devices[i].info().name, devices[i].info().numa_node});
  return places;
}

const rdma::Counters* TransferEngine::rdma_counters() const { return impl_->rdma() == nullptr ? nullptr : &impl_->rdma()->counters(); }

const cuda::MoveCounters& TransferEngine::device_counters() const { return impl_->device_counters(); }

}  // namespace moonpool::transfer
