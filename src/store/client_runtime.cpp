#include "store/client_runtime.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/logging.h"
#include "metadata/metadata_url.h"
#include "metadata/open_metadata_store.h"
#include "transfer/cuda/recognise.h"
#include "transfer/local/local_transport.h"
#include "transfer/path_names.h"
#include "transfer/segment_memory.h"
#include "transfer/shm/shm_transport.h"
#include "transfer/tcp/tcp_transport.h"
#include "wire.pb.h"

namespace moonpool::store {

namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kPatienceWithCalls{2};  // that are inside when close() begins, before they are aborted
constexpr seconds kLeaveTimeout{2};       // for telling the master and the metadata server
constexpr seconds kUnmountTimeout{5};
constexpr seconds kRepublishTimeout{1};
constexpr seconds kStagingPatience{1};  // with other users of the ring, while it is registered on the NICs

std::string metadata_key(const std::string& name) { return "moonpool/segment/" + name; }

Status check_protocol(const std::string& protocol) {
  if (protocol == "tcp" || protocol == "rdma") return {};
  return {ErrorCode::kInvalidParams, fmt::format("protocol \"{}\" is unknown; set \"protocol\": \"tcp\" or \"rdma\"", protocol)};
}

constexpr std::string_view kPaths[] = {"local", "shm", "rdma", "tcp"};

using transfer::lists;

Status check_paths(std::string_view paths, std::string_view protocol) {
  if (paths == "rdma" && protocol != "rdma") {
    return {
        ErrorCode::kInvalidParams,
        "paths \"rdma\" (MOONPOOL_PATHS, --paths) leave nothing that protocol \"tcp\" has; set \"protocol\": \"rdma\", or name more paths"};
  }
  std::size_t known = 0;
  for (const auto path : kPaths) known += lists(paths, path) ? path.size() + 1 : 0;
  if (paths.empty() || known == paths.size() + 1) return {};
  return {ErrorCode::kInvalidParams,
          fmt::format("paths \"{}\": give some of local, shm, rdma and tcp with commas between, each once", paths)};
}

}  // namespace

void ClientRuntime::add_real_paths(transfer::PathSelector& paths, ClientRuntime& runtime) {
  const bool verify = runtime.options().checksums;
  const std::string& allowed = runtime.options().paths;
  if (lists(allowed, "local")) paths.add(std::make_unique<transfer::LocalTransport>(runtime.owner(), runtime.node(), verify));
  if (lists(allowed, "shm")) {
    paths.add(std::make_unique<transfer::ShmTransport>(runtime.identity(), verify));
  } else {
    paths.rule_out("shm disabled by MOONPOOL_PATHS or --paths");
  }
  if (runtime.rdma() != nullptr && lists(allowed, "rdma")) paths.add(runtime.rdma()->transport(verify));
  if (lists(allowed, "tcp")) paths.add(std::make_unique<transfer::TcpTransport>(runtime.lanes(), verify));
}

ClientRuntime::ClientRuntime(ClientOptions options, AddPaths add_paths, OpenDevices open_devices)
    : options_(std::move(options)), add_paths_(std::move(add_paths)), open_devices_(std::move(open_devices)) {}

ClientRuntime::~ClientRuntime() { close(); }

Status ClientRuntime::open() {
  const Deadline deadline = Deadline::after(options_.setup_timeout);
  Status status = check_options();
  if (status.ok()) status = open_metadata(deadline);
  if (status.ok()) status = open_rdma();
  if (status.ok()) status = start_server(deadline);
  if (status.ok()) status = join(deadline);
  if (status.ok()) status = publish(deadline);
  published_ = status.ok() && metadata_ != nullptr;
  if (!status.ok()) close();
  return status;
}

Status ClientRuntime::check_options() {
  MOONPOOL_RETURN_IF_ERROR(check_protocol(options_.protocol));
  MOONPOOL_RETURN_IF_ERROR(check_paths(options_.paths, options_.protocol));
  auto address = parse_node_address(options_.local_hostname);
  if (!address) return address.status();
  address_ = std::move(*address);
  auto masters = parse_master_addresses(options_.master_address);
  if (!masters) return masters.status();
  masters_ = std::move(*masters);
  if (options_.tenant.size() > 256 || options_.tenant.find('\0') != std::string::npos) {
    return {ErrorCode::kInvalidParams, "the tenant's name has to be at most 256 bytes without a zero byte"};
  }
  identity_.node_id = NodeId::generate();
  identity_.token = options_.cluster_token;
  return {};
}

Status ClientRuntime::open_metadata(Deadline deadline) {
  if (options_.metadata_server.empty()) return {};
  const auto url = metadata::parse_metadata_url(options_.metadata_server);
  if (!url) return url.status();
  if (url->kind == metadata::MetadataKind::kPeerToPeer) return {};
  auto store = metadata::open_metadata_store(*url);
  if (!store) return store.status();
  MOONPOOL_RETURN_IF_ERROR(metadata::check_reachable(**store, deadline));
  metadata_ = std::move(*store);
  return {};
}

Status ClientRuntime::open_rdma() {
  if (options_.protocol != "rdma") return {};
  if (!lists(options_.paths, "rdma")) {
    log::warning("protocol \"rdma\" is asked for, but the paths \"{}\" leave it out", options_.paths);
    return {};
  }
  auto devices = open_devices_(options_.rdma);
  if (!devices) return {devices.code(), fmt::format("protocol \"rdma\": {}", devices.status().message())};
  rdma_ = std::make_unique<transfer::rdma::Node>(owner_, identity_, std::move(*devices), options_.rdma);
  device_paths_.use_nics(rdma_->memory());
  return {};
}

Status ClientRuntime::register_buffer(transfer::MutableBytes memory) {
  const auto pass = enter();
  if (!pass) return {ErrorCode::kInvalidParams, "the store client is closed; call setup() again"};
  auto* const cuda = transfer::cuda::Runtime::of_process();
  const auto device = transfer::cuda::recognise(memory, cuda, cuda == nullptr ? transfer::cuda::Runtime::why() : std::string());
  const bool on_device = device.ok() && device->has_value();
  Status registered = device.ok() && !on_device ? register_host_buffer(memory) : device.status();
  if (!registered.ok()) {
    log::error("register_buffer: {}", registered.message());
    return registered;
  }
  if (cuda == nullptr) return {};
  cuda->remember(memory);
  {
    const std::scoped_lock lock(buffers_mutex_);
    remembered_[memory.data()] = on_device;
  }
  if (on_device) expect_device_memory(*cuda, **device);
  return {};
}

Status ClientRuntime::register_host_buffer(transfer::MutableBytes memory) {
  if (!rdma_) return {};
  const auto known = rdma_->memory().local(memory);
  if (known != nullptr && known->memory.data() == memory.data()) return {};
  return rdma_->memory().add_local(memory);
}

// What puts and gets of device memory need is made ready now.
void ClientRuntime::expect_device_memory(transfer::cuda::Runtime& cuda, int device) {
  for (const auto& segment : owner_.segments()) {
    const auto mapped = owner_.memory_of(segment.incarnation);
    if (mapped != nullptr) cuda.regions().want(mapped->bytes(), mapped, "the segment of " + name_);
  }
  if (rdma_ && !device_paths_.prepare_nics(device) && !staging_for_nics_.exchange(true)) stage_for_nics(cuda);
}

// NICs that do not reach a device take its data from the staging ring: registered there, nothing is copied on its way to the wire.
void ClientRuntime::stage_for_nics(transfer::cuda::Runtime& cuda) {
  const auto ring = cuda.staging().acquire(cuda.staging().capacity(), Deadline::after(kStagingPatience));
  const Status status = ring.ok() ? rdma_->memory().add_local(ring->memory()) : ring.status();
  if (!status.ok())
    log::warning("the NICs cannot be given the {} bytes of pinned host memory by which device data goes: {}", cuda.staging().capacity(),
                 status.message());
}

Status ClientRuntime::unregister_buffer(const void* address, Deadline deadline) {
  bool on_device = false;
  {
    const std::scoped_lock lock(buffers_mutex_);
    if (const auto found = remembered_.find(address); found != remembered_.end()) {
      on_device = found->second;
      remembered_.erase(found);
      if (auto* const cuda = transfer::cuda::Runtime::of_process(); cuda != nullptr) cuda->forget(address);
    }
  }
  return rdma_ && !on_device ? rdma_->memory().remove_local(address, deadline) : Status();
}

// Who has these addresses after this client may have other memory there.
void ClientRuntime::forget_buffers() {
  const std::scoped_lock lock(buffers_mutex_);
  auto* const cuda = transfer::cuda::Runtime::of_process();
  for (const auto& [address, on_device] : std::exchange(remembered_, {})) {
    if (cuda != nullptr) cuda->forget(address);
  }
}

Status ClientRuntime::start_server(Deadline deadline) {
  MOONPOOL_RETURN_IF_ERROR(check_is_ours(address_, deadline));
  if (options_.segment_size > 0) {
    const bool huge = rdma_ && options_.rdma.huge_pages;
    const auto pages = huge ? transfer::HugePages::kIfReserved : transfer::HugePages::kNever;
    if (const auto mounted = owner_.mount(options_.segment_size, pages); !mounted) return mounted.status();
    share();
  }
  net::ServerOptions server;
  server.host = address_.host;
  server.port = address_.port;
  server.first_port = kFirstNodePort;
  server.last_port = kLastNodePort;
  server_ = std::make_unique<net::Server>(identity_, server);
  owner_.serve(*server_);
  if (rdma_) rdma_->serve(*server_);
  MOONPOOL_RETURN_IF_ERROR(server_->start());
  address_.port = server_->port();
  name_ = net::Endpoint{address_.host, address_.port}.to_string();
  return wait_served(deadline);
}

// Memory that the NICs may not have is an error of the configuration, which its user asked to hear of. Registering that takes long is none.
Status ClientRuntime::wait_served(Deadline deadline) {
  if (!rdma_) return {};
  for (const auto& segment : owner_.segments()) {
    const Status status = rdma_->wait_served(segment.incarnation, deadline.sooner(deadline.left() / 2));
    if (status.code() == ErrorCode::kRpcTimeout) {
      log::info("the NICs are still registering this node's segment of {} bytes; peers use tcp until they have", segment.size);
    } else if (!status.ok()) {
      return status;
    }
  }
  return {};
}

// Whoever cannot share uses tcp, so this is no reason not to start.
void ClientRuntime::share() {
  if (!lists(options_.paths, "shm")) return;
  auto sharing = std::make_unique<transfer::OwnerServer>(owner_, identity_);
  if (const Status status = sharing->start(); status.ok()) {
    sharing_ = std::move(sharing);
  } else {
    log::info("this node's memory is not shared with other processes of this host, which will use tcp: {}", status.message());
  }
}

Status ClientRuntime::join(Deadline deadline) {
  lanes_ = std::make_unique<net::LanePool>(identity_);
  add_paths_(paths_, *this);
  master_ = std::make_unique<MasterClient>(masters_, identity_, standing_);
  puts_ = std::make_unique<PutPath>(identity_.node_id, options_.tenant, *master_, device_paths_, standing_);
  gets_ = std::make_unique<GetPath>(identity_.node_id, options_.tenant, *master_, device_paths_, standing_);
  views_ = std::make_unique<ViewPath>(identity_.node_id, *gets_, paths_);
  MembershipOptions membership;
  membership.identity = identity_;
  membership.name = name_;
  membership.listen = {address_.host, address_.port};
  membership.protocol = options_.protocol;
  membership.masters = masters_;
  membership.path_use = [this] { return paths_.use(); };
  membership.device_use = [this]() -> MembershipOptions::DeviceUse {
    return {device_paths_.counters().in_place_bytes, device_paths_.counters().by_nic_bytes, device_paths_.counters().staged_bytes};
  };
  membership.registered_again = [this] {
    // The metadata server may be the master's own, which forgot everything with it.
    if (const Status status = publish(Deadline::after(kRepublishTimeout)); !status.ok())
      log::info("could not publish this node again: {}", status.to_string());
  };
  membership_ = std::make_unique<Membership>(std::move(membership), owner_, standing_);
  membership_->start();
  return standing_.wait_registered(deadline);
}

Status ClientRuntime::publish(Deadline deadline) const {
  if (!metadata_) return {};
  wire::EngineDescriptor descriptor;
  descriptor.set_incarnation(identity_.node_id.to_bytes());
  descriptor.set_name(name_);
  descriptor.set_host(address_.host);
  descriptor.set_port(address_.port);
  descriptor.set_protocol(options_.protocol);
  for (const auto& segment : owner_.segments()) {
    descriptor.add_buffer_address(segment.base);
    descriptor.add_buffer_length(segment.size);
    descriptor.add_buffer_location("cpu");
  }
  return metadata_->put(metadata_key(name_), descriptor.SerializeAsString(), deadline);
}

void ClientRuntime::close() {
  const std::scoped_lock lock(close_mutex_);
  if (std::exchange(closed_, true)) return;
  gate_.close();
  if (!gate_.wait_empty(Deadline::after(kPatienceWithCalls))) {
    // Whatever these calls wait for, they need not: their waits end with kCancelled now.
    standing_.stop();
    if (master_) master_->close();
    if (lanes_) lanes_->close();
    if (rdma_) rdma_->close_sessions();
    if (!gate_.wait_empty(Deadline::after(options_.operation_timeout + milliseconds(5000))))
      log::error("calls are still inside a closing store client");
  }
  take_down();
}

// In reverse order of open(); each step holds for a half-open client too.
void ClientRuntime::take_down() {
  const Deadline deadline = Deadline::after(kLeaveTimeout);
  forget_buffers();
  if (membership_) membership_->stop(deadline);
  if (published_) {
    if (const Status status = metadata_->remove(metadata_key(name_), deadline); !status.ok()) {
      log::info("could not take this node out of the metadata server: {}", status.to_string());
    }
  }
  if (master_) master_->close();
  if (lanes_) lanes_->close();
  if (server_) server_->stop();
  device_paths_.release_nics();
  if (rdma_) rdma_->stop();
  // Before the memory goes: other processes keep their own mappings, so views there stay valid, and writers hurt nobody any more.
  if (sharing_) sharing_->stop();
  for (const auto& segment : owner_.segments()) {
    if (const Status status = owner_.unmount(segment.incarnation, Deadline::after(kUnmountTimeout)); !status.ok()) {
      log::warning("unmounting this node's segment: {}", status.to_string());
    }
  }
}

}  // namespace moonpool::store
