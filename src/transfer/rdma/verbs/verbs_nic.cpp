#include "transfer/rdma/verbs/verbs_nic.h"

#include <endian.h>
#include <fcntl.h>
#include <net/if.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/logging.h"
#include "transfer/rdma/gid_choice.h"
#include "transfer/rdma/verbs/error_text.h"
#include "transfer/rdma/verbs/mtu.h"
#include "transfer/rdma/verbs/registration.h"
#include "transfer/rdma/verbs/sysfs.h"
#include "transfer/rdma/verbs/verbs_queue_pair.h"

namespace moonpool::transfer::rdma {
namespace {

// A vLLM block has 30 pieces; more in one work request make all entries of the queue larger.
constexpr std::uint32_t kMostPieces = 30;
constexpr std::uint32_t kFewestWorkRequests = 16;

const char* name_of(ibv_port_state state) {
  switch (state) {
    case IBV_PORT_NOP:
      return "unknown";
    case IBV_PORT_DOWN:
      return "down";
    case IBV_PORT_INIT:
      return "init";
    case IBV_PORT_ARMED:
      return "armed";
    case IBV_PORT_ACTIVE:
      return "active";
    case IBV_PORT_ACTIVE_DEFER:
      return "defer";
  }
  return "unknown";
}

Gid::Kind kind_of(std::uint32_t type, bool infiniband) {
  if (type == IBV_GID_TYPE_ROCE_V2) return Gid::Kind::kRoceV2;
  if (type == IBV_GID_TYPE_ROCE_V1 || !infiniband) return Gid::Kind::kRoceV1;
  return Gid::Kind::kInfiniBand;
}

std::string interface_name(std::uint32_t index) {
  char name[IF_NAMESIZE] = {};
  return index != 0 && ::if_indextoname(index, name) != nullptr ? name : "";
}

std::uint32_t positive(int value) { return static_cast<std::uint32_t>(std::max(value, 0)); }

}  // namespace

// ---------------------------------------------------------------- the device

Result<std::unique_ptr<OpenDevice>> OpenDevice::open(const Verbs& verbs, ibv_device* device, std::uint32_t port) {
  std::unique_ptr<OpenDevice> opened(new OpenDevice(verbs));
  Port& made = opened->port_;
  made.info.name = verbs.get_device_name(device);
  made.info.iwarp = device->transport_type == IBV_TRANSPORT_IWARP;
  made.info.read_needs_remote_write = made.info.iwarp;
  made.info.guid = be64toh(verbs.get_device_guid(device));
  made.context = verbs.open_device(device);
  if (made.context == nullptr) {
    return Status(ErrorCode::kUnavailable,
                  fmt::format("{} cannot be opened: {} (a container needs /dev/infiniband/{}, readable and writable)", made.info.name,
                              error_text(errno), device->dev_name));
  }
  MOONPOOL_RETURN_IF_ERROR(opened->describe(port));
  return opened;
}

OpenDevice::~OpenDevice() {
  port_.sink_registration.reset();
  if (port_.domain != nullptr) port_.verbs->dealloc_pd(port_.domain);
  if (port_.context != nullptr) port_.verbs->close_device(port_.context);
}

Status OpenDevice::describe(std::uint32_t port) {
  NicInfo& info = port_.info;
  ibv_device_attr device{};
  if (const int error = port_.verbs->query_device(port_.context, &device); error != 0) {
    return {ErrorCode::kUnavailable, fmt::format("{} does not answer: {}", info.name, error_text(error))};
  }
  if (port == 0 || port > device.phys_port_cnt) {
    return {ErrorCode::kInvalidParams, fmt::format("{} has no port {}: its ports are 1 to {}", info.name, port, device.phys_port_cnt)};
  }
  ibv_port_attr attributes{};
  if (const int error = port_.verbs->query_port(port_.context, static_cast<std::uint8_t>(port), &attributes); error != 0) {
    return {ErrorCode::kUnavailable, fmt::format("{} does not tell of its port {}: {}", info.name, port, error_text(error))};
  }
  port_count_ = device.phys_port_cnt;
  const DeviceFacts facts = device_facts(info.name, port, info.guid, info.iwarp);
  info.port = port;
  info.infiniband = attributes.link_layer != IBV_LINK_LAYER_ETHERNET && !info.iwarp;
  info.interface = facts.interface;
  info.driver = facts.driver;
  info.numa_node = facts.numa_node;
  info.pci_address = facts.pci_address;
  port_.lid = info.lid = attributes.lid;
  info.mtu = bytes_of_mtu(attributes.active_mtu);
  info.max_message = attributes.max_msg_sz;
  info.max_work_requests = positive(device.max_qp_wr);
  info.max_pieces = std::clamp<std::uint32_t>(positive(device.max_sge), 1, kMostPieces);
  const std::uint32_t read_pieces = device.max_sge_rd > 0 ? positive(device.max_sge_rd) : info.iwarp ? 1U : info.max_pieces;
  info.max_read_pieces = std::clamp<std::uint32_t>(read_pieces, 1, info.max_pieces);
  info.max_reads_out = std::clamp<std::uint32_t>(positive(device.max_qp_init_rd_atom), 1, 255);
  info.max_reads_in = std::clamp<std::uint32_t>(positive(device.max_qp_rd_atom), 1, 255);
  info.gids = gids();
  port_.needs_global_route = (attributes.flags & IBV_QPF_GRH_REQUIRED) != 0;
  firmware = device.fw_ver;
  state = name_of(attributes.state);
  rate = facts.rate;
  return {};
}

bool OpenDevice::active() const {
  ibv_port_attr attributes{};
  return port_.verbs->query_port(port_.context, static_cast<std::uint8_t>(port_.info.port), &attributes) == 0 &&
         attributes.state == IBV_PORT_ACTIVE;
}

std::vector<Gid> OpenDevice::gids() const {
  const NicInfo& info = port_.info;
  const std::vector<InterfaceAddress> addresses = interface_addresses();
  std::vector<Gid> gids;
  if (info.iwarp) {  // rdma_cm connects by IP address; the device's own GID says nothing
    for (const InterfaceAddress& address : addresses) {
      if (address.interface != info.interface) continue;
      gids.push_back({address.bytes, Gid::Kind::kIwarp, static_cast<std::uint32_t>(gids.size()), address.prefix_length});
    }
    return gids;
  }
  ibv_port_attr attributes{};
  if (port_.verbs->query_port(port_.context, static_cast<std::uint8_t>(info.port), &attributes) != 0) return gids;
  std::vector<ibv_gid_entry> entries(positive(attributes.gid_tbl_len) * port_count_);  // of all ports
  const ssize_t count = port_.verbs->query_gid_table(port_.context, entries.data(), entries.size(), 0, sizeof(ibv_gid_entry));
  for (ssize_t i = 0; i < count; ++i) {
    const ibv_gid_entry& entry = entries[static_cast<std::size_t>(i)];
    if (entry.port_num != info.port) continue;
    Gid gid;
    std::copy(std::begin(entry.gid.raw), std::end(entry.gid.raw), gid.bytes.begin());
    gid.kind = kind_of(entry.gid_type, info.infiniband);
    gid.index = entry.gid_index;
    fill_prefix_lengths({&gid, 1}, interface_name(entry.ndev_ifindex), addresses);
    gids.push_back(gid);
  }
  return gids;
}

Status OpenDevice::prepare(std::uint32_t work_requests) {
  port_.domain = port_.verbs->alloc_pd(port_.context);
  if (port_.domain == nullptr) {
    return {ErrorCode::kUnavailable, fmt::format("{}: no protection domain: {}", port_.info.name, error_text(errno))};
  }
  MOONPOOL_RETURN_IF_ERROR(find_queue_pair_limits(work_requests));
  if (!port_.info.iwarp) return {};
  auto sink = register_with(*port_.verbs, port_.domain, port_.info, port_.sink, Access::kLocal);
  if (!sink.ok()) return sink.status();
  port_.sink_registration = std::move(*sink);
  return {};
}

bool OpenDevice::try_queue_pair(std::uint32_t work_requests, std::uint32_t pieces) const {
  ibv_cq* queue = port_.verbs->create_cq(port_.context, static_cast<int>(work_requests) + 1, nullptr, nullptr, 0);
  if (queue == nullptr) return false;
  ibv_qp_init_attr attributes{};
  attributes.send_cq = queue;
  attributes.recv_cq = queue;
  attributes.cap = {work_requests, 1, pieces, 1, 0};
  attributes.qp_type = IBV_QPT_RC;
  ibv_qp* made = port_.verbs->create_qp(port_.domain, &attributes);
  const int error = errno;
  if (made != nullptr) port_.verbs->destroy_qp(made);
  port_.verbs->destroy_cq(queue);
  errno = error;
  return made != nullptr;
}

// The limits that a device states hold one by one, not together (many pieces make a queue's entries large): so they are tried, once.
Status OpenDevice::find_queue_pair_limits(std::uint32_t work_requests) {
  NicInfo& info = port_.info;
  const std::uint32_t per_request = info.iwarp ? 2 : 1;  // room for the reads that follow writes (verbs_queue_pair.h)
  const std::uint32_t most = std::min(work_requests, std::max(info.max_work_requests / per_request, 1U));
  for (std::uint32_t requests = std::max(most, 1U);; requests = std::max(requests / 2, 1U)) {
    for (std::uint32_t pieces = info.max_pieces;; pieces = std::max(pieces / 2, 1U)) {
      if (try_queue_pair(requests * per_request, pieces)) {
        info.max_work_requests = requests;
        info.max_pieces = pieces;
        info.max_read_pieces = std::min(info.max_read_pieces, pieces);
        return {};
      }
      if (pieces == 1) break;
    }
    if (requests <= std::min(kFewestWorkRequests, most)) break;
  }
  const int error = errno;
  if (error == EOPNOTSUPP || error == EINVAL) {
    return {ErrorCode::kNotSupported,
            fmt::format("{} ({}) has no reliable connections with one-sided reads and writes", info.name, info.driver)};
  }
  return {ErrorCode::kUnavailable, fmt::format("{} makes no queue pair: {} ({})", info.name, error_text(error),
                                               why_not_registered(error, info.name, 0, pinning_limits()))};
}

// ---------------------------------------------------------------- the NIC

VerbsNic::VerbsNic(std::unique_ptr<OpenDevice> device) : device_(std::move(device)) {
  const int descriptor = device_->port().context->async_fd;
  ::fcntl(descriptor, F_SETFL, ::fcntl(descriptor, F_GETFL) | O_NONBLOCK);
  up_ = device_->active();
  events_->add(descriptor, [this] { return handle_events(); });
  refresh();  // what happened before the thread listened
}

VerbsNic::~VerbsNic() {
  manager_.reset();
  events_->remove(device_->port().context->async_fd);
}

void VerbsNic::watch(std::function<void()> changed) {
  const std::lock_guard lock(watch_mutex_);
  changed_ = std::move(changed);
}

void VerbsNic::refresh() {
  const bool now = !dead_ && device_->active();
  if (up_.exchange(now, std::memory_order_acq_rel) == now) return;
  log::info("{}: port {} is {}", info().name, info().port, now ? "up" : "down");
  std::function<void()> changed;
  {
    const std::lock_guard lock(watch_mutex_);
    changed = changed_;
  }
  if (changed) changed();
}

bool VerbsNic::handle_events() {
  Port& port = device_->port();
  ibv_async_event event{};
  bool ports_changed = false;
  while (port.verbs->get_async_event(port.context, &event) == 0) {
    switch (event.event_type) {
      case IBV_EVENT_QP_FATAL:
      case IBV_EVENT_QP_REQ_ERR:
      case IBV_EVENT_QP_ACCESS_ERR:
        // Destroying it waits until the event is acknowledged, so the object is still there.
        if (event.element.qp->qp_context != nullptr) static_cast<VerbsQueuePair*>(event.element.qp->qp_context)->mark_broken();
        break;
      case IBV_EVENT_DEVICE_FATAL:
        log::error("{}: fatal error of the device; it is not used again before this process starts anew", info().name);
        dead_ = true;
        ports_changed = true;
        break;
      case IBV_EVENT_PORT_ACTIVE:
      case IBV_EVENT_PORT_ERR:
      case IBV_EVENT_LID_CHANGE:
      case IBV_EVENT_GID_CHANGE:
      case IBV_EVENT_CLIENT_REREGISTER:
        ports_changed = true;
        break;
      default:
        log::debug("{}: {}", info().name, port.verbs->event_type_str(event.event_type));
    }
    port.verbs->ack_async_event(&event);
  }
  const bool alive = errno == EAGAIN || errno == EINTR;
  if (!alive) dead_ = true;
  if (ports_changed || !alive) {
    ibv_port_attr attributes{};
    if (!dead_ && port.verbs->query_port(port.context, static_cast<std::uint8_t>(port.info.port), &attributes) == 0)
      port.lid = attributes.lid;
    refresh();
  }
  return alive;
}

Result<std::unique_ptr<Registration>> VerbsNic::register_memory(MutableBytes memory, Access access) {
  const Port& port = device_->port();
  return register_with(*port.verbs, port.domain, port.info, memory, access);
}

Result<std::unique_ptr<Registration>> VerbsNic::register_dma_buf(MutableBytes memory, const DmaBuf& buffer, Access access) {
  return register_with(*device_->port().verbs, device_->port().domain, info(), memory, buffer, access);
}

Result<ConnectionManager*> VerbsNic::connection_manager() {
  const std::lock_guard lock(manager_mutex_);
  if (!manager_) {
    const auto library = connection_manager_library();
    if (!library.ok()) return library.status();
    manager_ = std::make_unique<ConnectionManager>(**library, device_->port(), events_);
  }
  return manager_.get();
}

Result<std::unique_ptr<QueuePair>> VerbsNic::make_queue_pair(const QueuePairOptions& options) {
  ConnectionManager* manager = nullptr;
  if (options.connection_manager || info().iwarp) {
    const auto needed = connection_manager();
    if (!needed.ok()) return needed.status();
    manager = *needed;
  }
  return VerbsQueuePair::make(device_->port(), options, manager);
}

}  // namespace moonpool::transfer::rdma
