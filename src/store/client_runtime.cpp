#include "store/client_runtime.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/logging.h"
#include "metadata/metadata_url.h"
#include "metadata/open_metadata_store.h"
#include "transfer/local/local_transport.h"
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

std::string metadata_key(const std::string& name) { return "moonpool/segment/" + name; }

Status check_protocol(const std::string& protocol) {
  if (protocol == "tcp") return {};
  if (protocol == "rdma") {
    return {ErrorCode::kNotSupported,
            "protocol \"rdma\": this build moves data over tcp only, and would be slower than asked for; set \"protocol\": \"tcp\""};
  }
  return {ErrorCode::kInvalidParams, fmt::format("protocol \"{}\" is unknown; set \"protocol\": \"tcp\"", protocol)};
}

constexpr std::string_view kPaths[] = {"local", "shm", "tcp"};

// Of a comma-separated list; an empty one has all.
bool lists(std::string_view paths, std::string_view wanted) {
  if (paths.empty()) return true;
  while (!paths.empty()) {
    const auto comma = std::min(paths.find(','), paths.size());
    if (paths.substr(0, comma) == wanted) return true;
    paths.remove_prefix(std::min(comma + 1, paths.size()));
  }
  return false;
}

Status check_paths(std::string_view paths) {
  std::size_t known = 0;
  for (const auto path : kPaths) known += lists(paths, path) ? path.size() + 1 : 0;
  if (paths.empty() || known == paths.size() + 1) return {};
  return {ErrorCode::kInvalidParams, fmt::format("paths \"{}\": give some of local, shm and tcp with commas between, each once", paths)};
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
  if (lists(allowed, "tcp")) paths.add(std::make_unique<transfer::TcpTransport>(runtime.lanes(), verify));
}

ClientRuntime::ClientRuntime(ClientOptions options, AddPaths add_paths) : options_(std::move(options)), add_paths_(std::move(add_paths)) {}

ClientRuntime::~ClientRuntime() { close(); }

Status ClientRuntime::open() {
  const Deadline deadline = Deadline::after(options_.setup_timeout);
  Status status = check_options();
  if (status.ok()) status = open_metadata(deadline);
  if (status.ok()) status = start_server(deadline);
  if (status.ok()) status = join(deadline);
  if (status.ok()) status = publish(deadline);
  published_ = status.ok() && metadata_ != nullptr;
  if (!status.ok()) close();
  return status;
}

Status ClientRuntime::check_options() {
  MOONPOOL_RETURN_IF_ERROR(check_protocol(options_.protocol));
  MOONPOOL_RETURN_IF_ERROR(check_paths(options_.paths));
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

Status ClientRuntime::start_server(Deadline deadline) {
  MOONPOOL_RETURN_IF_ERROR(check_is_ours(address_, deadline));
  if (options_.segment_size > 0) {
    if (const auto mounted = owner_.mount(options_.segment_size); !mounted) return mounted.status();
    share();
  }
  net::ServerOptions server;
  server.host = address_.host;
  server.port = address_.port;
  server.first_port = kFirstNodePort;
  server.last_port = kLastNodePort;
  server_ = std::make_unique<net::Server>(identity_, server);
  owner_.serve(*server_);
  MOONPOOL_RETURN_IF_ERROR(server_->start());
  address_.port = server_->port();
  name_ = net::Endpoint{address_.host, address_.port}.to_string();
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
  puts_ = std::make_unique<PutPath>(identity_.node_id, options_.tenant, *master_, paths_, standing_);
  gets_ = std::make_unique<GetPath>(identity_.node_id, options_.tenant, *master_, paths_, standing_);
  views_ = std::make_unique<ViewPath>(identity_.node_id, *gets_, paths_);
  MembershipOptions membership;
  membership.identity = identity_;
  membership.name = name_;
  membership.listen = {address_.host, address_.port};
  membership.protocol = options_.protocol;
  membership.masters = masters_;
  membership.path_use = [this] { return paths_.use(); };
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
    if (!gate_.wait_empty(Deadline::after(options_.operation_timeout + milliseconds(5000))))
      log::error("calls are still inside a closing store client");
  }
  take_down();
}

// In reverse order of open(); each step holds for a half-open client too.
void ClientRuntime::take_down() {
  const Deadline deadline = Deadline::after(kLeaveTimeout);
  if (membership_) membership_->stop(deadline);
  if (published_) {
    if (const Status status = metadata_->remove(metadata_key(name_), deadline); !status.ok()) {
      log::info("could not take this node out of the metadata server: {}", status.to_string());
    }
  }
  if (master_) master_->close();
  if (lanes_) lanes_->close();
  if (server_) server_->stop();
  // Before the memory goes: other processes keep their own mappings, so views there stay valid, and writers hurt nobody any more.
  if (sharing_) sharing_->stop();
  for (const auto& segment : owner_.segments()) {
    if (const Status status = owner_.unmount(segment.incarnation, Deadline::after(kUnmountTimeout)); !status.ok()) {
      log::warning("unmounting this node's segment: {}", status.to_string());
    }
  }
}

}  // namespace moonpool::store
