#include "transfer/shm/shm_transport.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <unistd.h>

#include <array>
#include <cstring>

#include "base/logging.h"
#include "transfer/pieces.h"
#include "transfer/shm/shm_copy.h"

namespace moonpool::transfer {

namespace {

constexpr std::size_t kMostKnown = 65536;  // peers; beyond it those that are not reached are forgotten

bool same_address(const sockaddr* address, int family, const void* wanted) {
  if (address == nullptr || address->sa_family != family) return false;
  if (family == AF_INET) return std::memcmp(&reinterpret_cast<const sockaddr_in*>(address)->sin_addr, wanted, sizeof(in_addr)) == 0;
  return std::memcmp(&reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr, wanted, sizeof(in6_addr)) == 0;
}

// For the reason alone. A name counts as ours only when it is this host's own.
bool is_this_host(const std::string& host) {
  std::array<unsigned char, sizeof(in6_addr)> address{};
  int family = AF_INET;
  if (::inet_pton(AF_INET, host.c_str(), address.data()) != 1) {
    family = AF_INET6;
    if (::inet_pton(AF_INET6, host.c_str(), address.data()) != 1) {
      std::array<char, 256> own{};
      return host == "localhost" || (::gethostname(own.data(), own.size() - 1) == 0 && host == own.data());
    }
  }
  if (family == AF_INET && address[0] == 127) return true;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return false;
  bool found = false;
  for (const ifaddrs* one = list; one != nullptr; one = one->ifa_next) found = found || same_address(one->ifa_addr, family, address.data());
  ::freeifaddrs(list);
  return found;
}

template <typename Operation>
void fail_all(std::span<Operation> operations, const Status& status) {
  for (auto& operation : operations) operation.status = status;
}

Status not_reached(const Peer& peer) {
  return {ErrorCode::kUnavailable, "no shared memory with the node " + peer.node.to_string() + " at " + peer.endpoint.to_string()};
}

}  // namespace

ShmTransport::Known ShmTransport::connect(const Peer& peer) const {
  Known known;
  auto link = PeerLink::connect(peer.node, self_, Deadline::after(kConnectTimeout));
  if (link.ok()) {
    known.link = std::move(*link);
    log::debug("shared memory with the node {} at {}", peer.node.to_string(), peer.endpoint.to_string());
    return known;
  }
  known.ask_again = Deadline::after(kAskAgain);
  const bool nobody = link.code() == ErrorCode::kUnavailable;
  known.reason =
      !nobody ? link.status().message()
              : (is_this_host(peer.endpoint.host) ? "no common Unix socket namespace, or the node does not share its memory or has gone"
                                                  : "other host");
  log::debug("no shared memory with the node {} at {}: {} ({})", peer.node.to_string(), peer.endpoint.to_string(), known.reason,
             link.status().message());
  return known;
}

std::shared_ptr<PeerLink> ShmTransport::link_to(const Peer& peer) const {
  const auto usable = [](const Known& known) { return known.link == nullptr ? !known.ask_again.expired() : known.link->alive(); };
  {
    const std::shared_lock lock(mutex_);
    if (const auto found = known_.find(peer.node); found != known_.end() && usable(found->second)) return found->second.link;
  }
  const std::scoped_lock connecting(connect_mutex_);
  {
    const std::shared_lock lock(mutex_);
    if (const auto found = known_.find(peer.node); found != known_.end() && usable(found->second)) return found->second.link;
  }
  Known known = connect(peer);
  const std::unique_lock lock(mutex_);
  if (known_.size() >= kMostKnown) std::erase_if(known_, [](const auto& item) { return item.second.link == nullptr; });
  return (known_[peer.node] = std::move(known)).link;
}

std::string ShmTransport::why_not(const Peer& peer) const {
  const std::shared_lock lock(mutex_);
  const auto found = known_.find(peer.node);
  return found == known_.end() ? std::string() : found->second.reason;
}

void ShmTransport::write(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) {
  const auto link = link_to(peer);
  if (link == nullptr) return fail_all(operations, not_reached(peer));
  shm_write(*link, operations, deadline);
}

void ShmTransport::write_in_place(const Peer& peer, std::span<WriteOperation> operations, const Fill& fill, Deadline deadline) {
  const auto link = link_to(peer);
  if (link == nullptr) return fail_all(operations, not_reached(peer));
  shm_write_in_place(*link, operations, fill, deadline);
}

void ShmTransport::read(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline) {
  const auto link = link_to(peer);
  if (link == nullptr) return fail_all(operations, not_reached(peer));
  shm_read(link, operations, verify_, deadline);
}

void ShmTransport::view(const Peer& peer, std::span<ViewOperation> operations, Deadline deadline) {
  const auto link = link_to(peer);
  if (link == nullptr) return fail_all(operations, not_reached(peer));
  shm_view(link, operations, verify_, deadline);
}

}  // namespace moonpool::transfer
