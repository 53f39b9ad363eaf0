#include "transfer/rdma/verbs/connection_manager.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <spdlog/fmt/fmt.h>
#include <sys/random.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "base/logging.h"
#include "transfer/rdma/gid_choice.h"
#include "transfer/rdma/verbs/error_text.h"
#include "transfer/rdma/verbs/mtu.h"

namespace moonpool::transfer::rdma {
namespace {

constexpr int kBacklog = 128;
constexpr int kResolveAttemptMs = 300;
constexpr std::uint8_t kReceiverNotReadyRetries = 6;
// Attributes that rdma_cm may give for a transition; the kernel's own, for the Ethernet address of RoCE, are not for user space.
constexpr int kKnownAttributes = (1 << 21) - 1;

// The private data of a request.
struct Ticket {
  std::array<char, 8> magic{'m', 'o', 'o', 'n', 'p', 'o', 'o', 'l'};
  std::uint64_t number = 0;  // both sides read and write it as it lies in memory, big endian

  [[nodiscard]] static Ticket of(std::uint64_t number) {
    Ticket ticket;
    ticket.number = htobe64(number);
    return ticket;
  }
  [[nodiscard]] static std::optional<std::uint64_t> read(const rdma_conn_param& parameters) {
    Ticket ticket;
    const auto magic = ticket.magic;
    if (parameters.private_data == nullptr || parameters.private_data_len < sizeof ticket) return std::nullopt;
    std::memcpy(&ticket, parameters.private_data, sizeof ticket);
    if (ticket.magic != magic) return std::nullopt;
    return be64toh(ticket.number);
  }
};

union SocketAddress {
  sockaddr any;
  sockaddr_in v4;
  sockaddr_in6 v6;
};

// `interface`: for link-local addresses.
std::optional<SocketAddress> socket_address(const std::string& text, std::uint32_t port, const std::string& interface) {
  SocketAddress address{};
  if (::inet_pton(AF_INET, text.c_str(), &address.v4.sin_addr) == 1) {
    address.v4.sin_family = AF_INET;
    address.v4.sin_port = htons(static_cast<std::uint16_t>(port));
    return address;
  }
  address = {};
  if (::inet_pton(AF_INET6, text.c_str(), &address.v6.sin6_addr) != 1) return std::nullopt;
  address.v6.sin6_family = AF_INET6;
  address.v6.sin6_port = htons(static_cast<std::uint16_t>(port));
  if (IN6_IS_ADDR_LINKLOCAL(&address.v6.sin6_addr)) address.v6.sin6_scope_id = ::if_nametoindex(interface.c_str());
  return address;
}

// The IP address at which rdma_cm knows the port: the GID's own, or for InfiniBand that of its IPoIB interface.
std::string cm_address(const Gid& gid, const NicInfo& nic) {
  if (gid.kind != Gid::Kind::kInfiniBand) return text_of(gid);
  for (const InterfaceAddress& address : interface_addresses()) {
    if (address.interface == nic.interface) return text_of({address.bytes, Gid::Kind::kIwarp, 0, address.prefix_length});
  }
  return {};
}

std::uint64_t random_ticket() {
  std::uint64_t number = 0;
  if (::getrandom(&number, sizeof number, 0) != sizeof number) return 0;
  return number;
}

std::uint8_t at_most(std::uint32_t wanted, std::uint32_t limit) {
  return static_cast<std::uint8_t>(std::min({wanted == 0 ? limit : wanted, limit, 255U}));
}

Status failed(const NicInfo& nic, const std::string& what, int error) {
  return {ErrorCode::kUnavailable, fmt::format("{}: {}: {}", nic.name, what, error_text(error))};
}

// Takes one queue pair through its states as the id of its connection says.
class Transitions {
 public:
  Transitions(const ConnectionManagerLibrary& library, const Port& port, const ManagedQueuePair& queue_pair, rdma_cm_id* id)
      : library_(library), port_(port), queue_pair_(queue_pair), id_(id) {}

  Status initialise() {
    MOONPOOL_RETURN_IF_ERROR(ask(IBV_QPS_INIT));
    // A user of memory serves none; an iWARP connection may need the right for its own set-up, and the answers to its reads are writes.
    const bool serves = queue_pair_.options->role == Role::kPassive || port_.info.iwarp;
    attributes_.qp_access_flags = serves ? IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE : 0;
    mask_ |= IBV_QP_ACCESS_FLAGS;
    return modify("ready to be connected");
  }
  // Not for iWARP, where the kernel does it. Zero: as agreed by the connection.
  Status make_ready(std::uint8_t reads_in, std::uint8_t reads_out) {
    const QueuePairOptions& options = *queue_pair_.options;
    MOONPOOL_RETURN_IF_ERROR(ask(IBV_QPS_RTR));
    if (reads_in != 0) attributes_.max_dest_rd_atomic = reads_in;
    if (options.mtu != 0) attributes_.path_mtu = std::min(attributes_.path_mtu, mtu_of_bytes(options.mtu));
    if (options.service_level != 0) attributes_.ah_attr.sl = static_cast<std::uint8_t>(options.service_level);
    MOONPOOL_RETURN_IF_ERROR(modify("ready to receive"));
    MOONPOOL_RETURN_IF_ERROR(ask(IBV_QPS_RTS));
    if (reads_out != 0) attributes_.max_rd_atomic = reads_out;
    attributes_.timeout = static_cast<std::uint8_t>(options.ack_timeout);
    attributes_.retry_cnt = static_cast<std::uint8_t>(options.retries);
    attributes_.rnr_retry = kReceiverNotReadyRetries;
    return modify("ready to send");
  }

 private:
  Status ask(ibv_qp_state state) {
    attributes_ = {};
    attributes_.qp_state = state;
    mask_ = 0;
    if (library_.init_qp_attr(id_, &attributes_, &mask_) != 0) return failed(port_.info, "rdma_init_qp_attr", errno);
    mask_ &= kKnownAttributes;
    return {};
  }
  Status modify(const char* step) {
    const int error = port_.verbs->modify_qp(queue_pair_.queue_pair, &attributes_, mask_);
    if (error == 0) return {};
    return failed(port_.info, fmt::format("a queue pair cannot become {}", step), error);
  }

  const ConnectionManagerLibrary& library_;
  const Port& port_;
  const ManagedQueuePair& queue_pair_;
  rdma_cm_id* const id_;
  ibv_qp_attr attributes_{};
  int mask_ = 0;
};

Status no_connection_manager(const NicInfo& nic, int error) {
  return {ErrorCode::kNotSupported,
          fmt::format("{}: rdma_cm cannot be used ({}): load the kernel module rdma_ucm, and give a container /dev/infiniband/rdma_cm",
                      nic.name, error_text(error))};
}

// Of a connection that has been made, or is being accepted: the peer has disconnected or never came, or the device is gone.
bool ends_connection(rdma_cm_event_type event) { return event != RDMA_CM_EVENT_ESTABLISHED && event != RDMA_CM_EVENT_TIMEWAIT_EXIT; }

}  // namespace

// ---------------------------------------------------------------- the passive side

class ConnectionManager::Passive final : public ManagedConnection {
 public:
  Passive(ConnectionManager& manager, const ManagedQueuePair& queue_pair, std::string host, std::uint16_t port, std::uint64_t ticket)
      : manager_(manager), queue_pair_(queue_pair), host_(std::move(host)), port_(port), ticket_(ticket) {}
  ~Passive() override {
    let_go();
    if (id_ != nullptr) manager_.library_.destroy_id(id_);
  }
  Passive(const Passive&) = delete;
  Passive& operator=(const Passive&) = delete;

  void describe(QueuePairAddress& address) const override {
    address.cm_host = host_;
    address.cm_port = port_;
    address.cm_ticket = ticket_;
  }
  void let_go() override {
    const std::lock_guard lock(manager_.mutex_);
    manager_.by_ticket_.erase(ticket_);
    if (id_ != nullptr) manager_.connected_.erase(id_);
  }
  Status connect(const QueuePairAddress&, const Gid&) override { return {}; }

  // Under the manager's mutex.
  Status accept(rdma_cm_event& event) {
    const rdma_conn_param& wanted = event.param.conn;
    const NicInfo& nic = manager_.port_.info;
    const std::uint8_t reads_in = at_most(wanted.responder_resources, nic.max_reads_in);
    const std::uint8_t reads_out = at_most(wanted.initiator_depth, nic.max_reads_out);
    Transitions transitions(manager_.library_, manager_.port_, queue_pair_, event.id);
    MOONPOOL_RETURN_IF_ERROR(transitions.initialise());
    if (!nic.iwarp) MOONPOOL_RETURN_IF_ERROR(transitions.make_ready(reads_in, reads_out));
    rdma_conn_param parameters{};
    parameters.responder_resources = reads_in;
    parameters.initiator_depth = reads_out;
    parameters.rnr_retry_count = kReceiverNotReadyRetries;
    parameters.qp_num = queue_pair_.queue_pair->qp_num;
    if (manager_.library_.accept(event.id, &parameters) != 0) return failed(nic, "rdma_accept", errno);
    id_ = event.id;
    return {};
  }
  void connected() { queue_pair_.connected->store(true); }
  void ended() { queue_pair_.ended(); }

 private:
  ConnectionManager& manager_;
  const ManagedQueuePair queue_pair_;
  const std::string host_;
  const std::uint16_t port_;
  const std::uint64_t ticket_;
  rdma_cm_id* id_ = nullptr;
};

ConnectionManager::ConnectionManager(const ConnectionManagerLibrary& library, Port& port, std::shared_ptr<EventThread> events)
    : library_(library), port_(port), events_(std::move(events)) {}

ConnectionManager::~ConnectionManager() {
  if (channel_ == nullptr) return;
  events_->remove(channel_->fd);
  for (const auto& [address, listener] : listeners_) library_.destroy_id(listener.id);
  library_.destroy_event_channel(channel_);
}

// Under the mutex.
Status ConnectionManager::start() {
  if (channel_ != nullptr) return {};
  channel_ = library_.create_event_channel();
  if (channel_ == nullptr) return no_connection_manager(port_.info, errno);
  ::fcntl(channel_->fd, F_SETFL, ::fcntl(channel_->fd, F_GETFL) | O_NONBLOCK);
  events_->add(channel_->fd, [this] { return handle_event(); });
  return {};
}

// Under the mutex.
Result<std::uint16_t> ConnectionManager::listen_on(const Gid& gid) {
  const std::string text = cm_address(gid, port_.info);
  if (const auto known = listeners_.find(text); known != listeners_.end()) return known->second.port;
  auto address = socket_address(text, 0, port_.info.interface);
  if (!address) {
    return Status(ErrorCode::kUnavailable,
                  fmt::format("{}: rdma_cm needs an IP address on its interface {}; give it one (InfiniBand: IPoIB)", port_.info.name,
                              port_.info.interface));
  }
  Listener listener;
  if (library_.create_id(channel_, &listener.id, nullptr, RDMA_PS_TCP) != 0) return no_connection_manager(port_.info, errno);
  if (library_.bind_addr(listener.id, &address->any) != 0 || library_.listen(listener.id, kBacklog) != 0) {
    const int error = errno;
    library_.destroy_id(listener.id);
    return failed(port_.info, fmt::format("rdma_cm cannot listen on {}", text), error);
  }
  listener.port = ntohs(library_.get_src_port(listener.id));
  listeners_[text] = listener;
  return listener.port;
}

Result<std::unique_ptr<ManagedConnection>> ConnectionManager::expect(const ManagedQueuePair& queue_pair, const Gid& address) {
  const std::lock_guard lock(mutex_);
  MOONPOOL_RETURN_IF_ERROR(start());
  const auto port = listen_on(address);
  if (!port.ok()) return port.status();
  const std::uint64_t ticket = random_ticket();
  if (ticket == 0) return Status(ErrorCode::kUnavailable, port_.info.name + ": no random number for a ticket");
  auto passive = std::make_unique<Passive>(*this, queue_pair, cm_address(address, port_.info), *port, ticket);
  if (!by_ticket_.emplace(ticket, passive.get()).second) return Status(ErrorCode::kUnavailable, "the same ticket twice");
  return std::unique_ptr<ManagedConnection>(std::move(passive));
}

bool ConnectionManager::handle_event() {
  rdma_cm_event* event = nullptr;
  while (library_.get_cm_event(channel_, &event) == 0) {
    rdma_cm_id* useless = nullptr;  // can be destroyed only once the event is acknowledged
    if (event->event == RDMA_CM_EVENT_CONNECT_REQUEST) {
      if (!accept(*event)) {
        library_.reject(event->id, nullptr, 0);
        useless = event->id;
      }
    } else {
      const std::lock_guard lock(mutex_);
      const auto listener = std::ranges::find_if(listeners_, [&](const auto& entry) { return entry.second.id == event->id; });
      const auto passive = connected_.find(event->id);
      if (listener != listeners_.end()) {  // its device or address is gone: the next queue pair listens anew
        useless = listener->second.id;
        listeners_.erase(listener);
      } else if (passive != connected_.end()) {
        if (event->event == RDMA_CM_EVENT_ESTABLISHED) {
          passive->second->connected();
        } else if (ends_connection(event->event)) {
          passive->second->ended();
        }
      }
    }
    library_.ack_cm_event(event);
    if (useless != nullptr) library_.destroy_id(useless);
  }
  return errno == EAGAIN || errno == EINTR;
}

bool ConnectionManager::accept(rdma_cm_event& event) {
  const auto ticket = Ticket::read(event.param.conn);
  const std::lock_guard lock(mutex_);
  const auto found = ticket ? by_ticket_.find(*ticket) : by_ticket_.end();
  if (found == by_ticket_.end()) {
    log::warning("{}: a connection without a valid ticket was rejected", port_.info.name);
    return false;
  }
  Passive* passive = found->second;
  by_ticket_.erase(found);
  if (const Status status = passive->accept(event); !status.ok()) {
    log::warning("a connection through rdma_cm failed: {}", status.message());
    passive->ended();
    return false;
  }
  connected_[event.id] = passive;
  return true;
}

// ---------------------------------------------------------------- the active side

class ConnectionManager::Active final : public ManagedConnection {
 public:
  Active(const ConnectionManagerLibrary& library, const Port& port, EventThread& events, const ManagedQueuePair& queue_pair)
      : library_(library), port_(port), events_(events), queue_pair_(queue_pair) {}
  ~Active() override {
    let_go();
    if (id_ != nullptr) library_.destroy_id(id_);
    if (channel_ != nullptr) library_.destroy_event_channel(channel_);
  }
  Active(const Active&) = delete;
  Active& operator=(const Active&) = delete;

  void describe(QueuePairAddress&) const override {}
  void let_go() override {
    if (std::exchange(heard_, false)) events_.remove(channel_->fd);
  }
  Status connect(const QueuePairAddress& peer, const Gid& from) override {
    const Deadline deadline = Deadline::after(queue_pair_.options->connect_timeout);
    Status status = open();
    if (status.ok()) status = resolve(peer, from, deadline);
    if (status.ok()) status = finish(peer, deadline);
    if (status.ok()) {
      queue_pair_.connected->store(true);
      heard_ = true;
      events_.add(channel_->fd, [this] { return handle_event(); });
      return {};
    }
    queue_pair_.ended();
    return {status.code(), fmt::format("{} (to {} port {} through rdma_cm)", status.message(), peer.cm_host, peer.cm_port)};
  }

 private:
  Status open() {
    channel_ = library_.create_event_channel();
    if (channel_ == nullptr) return no_connection_manager(port_.info, errno);
    ::fcntl(channel_->fd, F_SETFL, ::fcntl(channel_->fd, F_GETFL) | O_NONBLOCK);
    if (library_.create_id(channel_, &id_, nullptr, RDMA_PS_TCP) != 0) return no_connection_manager(port_.info, errno);
    if (auto class_of_service = static_cast<std::uint8_t>(queue_pair_.options->traffic_class); class_of_service != 0) {
      if (library_.set_option(id_, RDMA_OPTION_ID, RDMA_OPTION_ID_TOS, &class_of_service, sizeof class_of_service) != 0) {
        return failed(port_.info, "the traffic class cannot be set", errno);
      }
    }
    return {};
  }

  Status resolve(const QueuePairAddress& peer, const Gid& from, Deadline deadline) {
    auto destination = socket_address(peer.cm_host, peer.cm_port, port_.info.interface);
    if (!destination || peer.cm_port == 0) {
      return {ErrorCode::kUnavailable, port_.info.name + ": the peer's NIC does not listen for connections through rdma_cm"};
    }
    auto source = socket_address(cm_address(from, port_.info), 0, port_.info.interface);
    // Asked again and again: what is lost on the first contact with a neighbour is repeated by nobody else in time.
    for (;;) {
      const int attempt_ms = std::min(deadline.left_ms(), kResolveAttemptMs);
      if (library_.resolve_addr(id_, source ? &source->any : nullptr, &destination->any, attempt_ms) != 0) {
        return failed(port_.info, "its address cannot be resolved", errno);
      }
      Status resolved = wait_for(RDMA_CM_EVENT_ADDR_RESOLVED, deadline);
      if (resolved.ok()) break;
      if (last_event_status_ != -ETIMEDOUT || deadline.expired()) return resolved;
    }
    if (id_->verbs == nullptr || port_.info.name != port_.verbs->get_device_name(id_->verbs->device)) {
      return {ErrorCode::kUnavailable,
              fmt::format("{}: the way there leads over {}", port_.info.name,
                          id_->verbs == nullptr ? "no RDMA device" : port_.verbs->get_device_name(id_->verbs->device))};
    }
    if (library_.resolve_route(id_, deadline.left_ms()) != 0) return failed(port_.info, "no route", errno);
    return wait_for(RDMA_CM_EVENT_ROUTE_RESOLVED, deadline);
  }

  Status finish(const QueuePairAddress& peer, Deadline deadline) {
    Transitions transitions(library_, port_, queue_pair_, id_);
    MOONPOOL_RETURN_IF_ERROR(transitions.initialise());
    const Ticket ticket = Ticket::of(peer.cm_ticket);
    rdma_conn_param parameters{};
    parameters.private_data = &ticket;
    parameters.private_data_len = sizeof ticket;
    parameters.responder_resources = 1;  // the peer reads nothing of ours; iWARP may start with an empty read
    parameters.initiator_depth = at_most(peer.reads_in, port_.info.max_reads_out);
    parameters.retry_count = static_cast<std::uint8_t>(queue_pair_.options->retries);
    parameters.rnr_retry_count = kReceiverNotReadyRetries;
    parameters.qp_num = queue_pair_.queue_pair->qp_num;
    if (library_.connect(id_, &parameters) != 0) return failed(port_.info, "rdma_connect", errno);
    if (port_.info.iwarp) return wait_for(RDMA_CM_EVENT_ESTABLISHED, deadline);
    MOONPOOL_RETURN_IF_ERROR(wait_for(RDMA_CM_EVENT_CONNECT_RESPONSE, deadline));
    MOONPOOL_RETURN_IF_ERROR(transitions.make_ready(0, 0));
    if (library_.establish(id_) != 0) return failed(port_.info, "rdma_establish", errno);
    return {};
  }

  // On the event thread, once connected: a peer that goes says so before retries or the caller's deadline would tell.
  bool handle_event() {
    rdma_cm_event* event = nullptr;
    while (library_.get_cm_event(channel_, &event) == 0) {
      const bool ended = ends_connection(event->event);
      library_.ack_cm_event(event);
      if (ended) queue_pair_.ended();
    }
    return errno == EAGAIN || errno == EINTR;
  }

  Status wait_for(rdma_cm_event_type wanted, Deadline deadline) {
    for (;;) {
      rdma_cm_event* event = nullptr;
      if (library_.get_cm_event(channel_, &event) == 0) {
        const rdma_cm_event_type got = event->event;
        const int status = event->status;
        library_.ack_cm_event(event);
        last_event_status_ = status;
        if (got == wanted && status == 0) return {};
        if (got == RDMA_CM_EVENT_REJECTED) {
          return {ErrorCode::kUnavailable, port_.info.name + ": the peer rejected the connection (nothing listens, or the ticket is old)"};
        }
        return {ErrorCode::kUnavailable, fmt::format("{}: {} while waiting for {} (status {})", port_.info.name, library_.event_str(got),
                                                     library_.event_str(wanted), status)};
      }
      if (errno != EAGAIN && errno != EINTR) return failed(port_.info, "rdma_get_cm_event", errno);
      pollfd readable{channel_->fd, POLLIN, 0};
      if (::poll(&readable, 1, deadline.left_ms()) == 0) {
        return {ErrorCode::kUnavailable, fmt::format("{}: no {} within {} ms", port_.info.name, library_.event_str(wanted),
                                                     queue_pair_.options->connect_timeout.count())};
      }
    }
  }

  const ConnectionManagerLibrary& library_;
  const Port& port_;
  EventThread& events_;
  const ManagedQueuePair queue_pair_;
  rdma_event_channel* channel_ = nullptr;
  rdma_cm_id* id_ = nullptr;
  bool heard_ = false;  // the event thread reads the channel
  int last_event_status_ = 0;
};

std::unique_ptr<ManagedConnection> ConnectionManager::prepare(const ManagedQueuePair& queue_pair) {
  return std::make_unique<Active>(library_, port_, *events_, queue_pair);
}

}  // namespace moonpool::transfer::rdma
