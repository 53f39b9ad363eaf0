#include "cli/doctor/server_checks.h"

#include <fmt/format.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>
#include <cstring>

#include "net/deadline_socket.h"
#include "net/frame.h"
#include "net/handshake_steps.h"
#include "net/lane.h"
#include "net/socket.h"
#include "transfer/shm/unix_socket.h"

namespace moonpool::cli::doctor {

namespace {

using Clock = Deadline::Clock;

double milliseconds(std::chrono::nanoseconds time) { return std::chrono::duration<double, std::milli>(time).count(); }

Status write_all(net::DeadlineSocket& socket, const std::string& frame) {
  boost::system::error_code error;
  for (std::size_t done = 0; done < frame.size() && !error;) {
    done += socket.write_some(boost::asio::buffer(frame.data() + done, frame.size() - done), error);
  }
  return error ? Status(ErrorCode::kUnavailable, error.message()) : Status();
}

Status read_all(net::DeadlineSocket& socket, std::span<std::byte> into) {
  boost::system::error_code error;
  for (std::size_t done = 0; done < into.size();) {
    done += socket.read_some(boost::asio::buffer(into.data() + done, into.size() - done), error);
    if (error == boost::asio::error::timed_out) return {ErrorCode::kRpcTimeout, "no answer within the time"};
    if (error) return {ErrorCode::kUnavailable, "the connection was closed (" + error.message() + ")"};
  }
  return {};
}

struct Frame {
  net::FrameHeader header;
  std::vector<std::byte> message;
};
Result<Frame> read_frame(net::DeadlineSocket& socket) {
  std::array<std::byte, net::kFrameHeaderSize> bytes{};
  MOONPOOL_RETURN_IF_ERROR(read_all(socket, bytes));
  const auto header = net::decode(bytes);
  if (!header) return header.status();
  if (header->payload_length != 0 || header->message_length > net::kMaxHandshakeLength)
    return {ErrorCode::kProtocol, "an oversized frame in the handshake"};
  Frame frame{*header, std::vector<std::byte>(header->message_length)};
  MOONPOOL_RETURN_IF_ERROR(read_all(socket, frame.message));
  return frame;
}

// Where packets to this server leave the host.
struct Route {
  std::string source;     // our address on it
  std::string interface;  // that has this address; empty: unknown
  int mtu = 0;            // of the path as far as the kernel knows; 0: unknown
};
Result<Route> route_to(const net::Endpoint& server, Deadline deadline) {
  const auto addresses = net::resolve(server, deadline);
  if (!addresses) return addresses.status();
  const net::SocketAddress& target = addresses->front();
  // Connecting a datagram socket sends nothing; it only looks up the route.
  net::UniqueFd fd(::socket(target.storage.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (fd.get() < 0 || ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&target.storage), target.length) != 0)
    return {ErrorCode::kUnavailable, net::errno_text(errno)};
  Route route;
  const net::SocketAddress source = net::local_address_of(fd.get());
  const std::string text = net::address_text(net::with_port(source, 0));
  route.source = text.substr(0, text.rfind(':'));
  socklen_t size = sizeof route.mtu;
  const bool v4 = target.storage.ss_family == AF_INET;
  if (::getsockopt(fd.get(), v4 ? IPPROTO_IP : IPPROTO_IPV6, v4 ? IP_MTU : IPV6_MTU, &route.mtu, &size) != 0) route.mtu = 0;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return route;
  const auto same = [&](const sockaddr* address) {
    if (address == nullptr || address->sa_family != source.storage.ss_family) return false;
    if (v4) {
      return reinterpret_cast<const sockaddr_in*>(address)->sin_addr.s_addr ==
             reinterpret_cast<const sockaddr_in*>(&source.storage)->sin_addr.s_addr;
    }
    return std::memcmp(&reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr,
                       &reinterpret_cast<const sockaddr_in6*>(&source.storage)->sin6_addr, sizeof(in6_addr)) == 0;
  };
  for (const ifaddrs* one = list; one != nullptr && route.interface.empty(); one = one->ifa_next) {
    if (same(one->ifa_addr)) route.interface = one->ifa_name;
  }
  ::freeifaddrs(list);
  return route;
}

std::string route_text(const net::Endpoint& server, Deadline deadline) {
  const auto route = route_to(server, deadline);
  if (!route) return "no route: " + route.status().message();
  std::string text = "from " + route->source;
  if (!route->interface.empty()) text += " on " + route->interface;
  if (route->mtu > 0) text += fmt::format(", path MTU {}", route->mtu);
  return text;
}

// Whether the owner's abstract socket answers here, and whose it is.
Finding shared_memory_path(const NodeId& node) {
  const auto fd = transfer::connect_to_name(transfer::socket_name(node));
  if (!fd) return ok("it is on another host, in another network namespace, or serves no shared memory");
  const auto peer = transfer::peer_of(fd->get());
  if (peer && peer->uid == ::geteuid()) return ok("the path to it from this host and user: shared memory");
  return note(fmt::format("it is on this host, but runs as another user (uid {}): the path to it is the network's", peer ? peer->uid : 0),
              "run both as one user, and data moves through shared memory");
}

Finding network_path(net::Lane& lane, bool wants_rdma, Deadline deadline) {
  wire::RdmaKeysRequest request;
  request.set_incarnation(Incarnation::generate().to_bytes());
  wire::RdmaKeysReply reply;
  const Status status = lane.call(wire::METHOD_RDMA_KEYS, request, reply, deadline);
  // Nothing is served under a random incarnation; that it says so means that it serves RDMA.
  const bool serves = status.code() != ErrorCode::kNotSupported && lane.healthy();
  if (serves) return ok("it serves RDMA: the path over the network is RDMA where the NICs reach each other, else TCP");
  if (!wants_rdma) return ok("the path over the network: TCP");
  return warning("it serves no RDMA: the path over the network is TCP, though the configuration here has \"protocol\": \"rdma\"",
                 "set \"protocol\": \"rdma\" there too, and run moonpool doctor there");
}

// Errors of sockets and handshakes begin with the server's name, and so does every finding about it.
Status without_name(const Status& status, const net::Endpoint& server) {
  std::string_view text = status.message();
  const std::string name = server.to_string();
  if (status.ok() || !text.starts_with(name)) return status;
  text.remove_prefix(name.size());
  while (!text.empty() && (text.front() == ':' || text.front() == ' ')) text.remove_prefix(1);
  return Status(status.code(), std::string(text));
}

// The handshake with one token, to its end.
Greeting greet_once(const net::Endpoint& server, const std::string& token, Deadline deadline) {
  Greeting greeting;
  net::Identity self;
  self.node_id = NodeId::generate();
  self.token = token;
  auto start = Clock::now();
  auto socket = net::DeadlineSocket::connect(server, deadline);
  greeting.connect_time = Clock::now() - start;
  if (!socket) {
    greeting.status = without_name(socket.status(), server);
    return greeting;
  }
  socket->set_deadline(deadline);
  net::ClientHandshake handshake(self, server.to_string());
  std::string outgoing = handshake.hello();
  start = Clock::now();
  while (!outgoing.empty()) {
    Status sent = write_all(*socket, outgoing);
    const auto frame = sent.ok() ? read_frame(*socket) : Result<Frame>(std::move(sent));
    if (!frame) {
      greeting.status = frame.status();
      break;
    }
    if (greeting.round_trip.count() == 0) greeting.round_trip = Clock::now() - start;
    auto next = handshake.on_frame(frame->header, frame->message);
    if (!next) {
      greeting.status = without_name(next.status(), server);
      break;
    }
    outgoing = std::move(*next);
  }
  greeting.product = handshake.peer_product();
  greeting.node = handshake.peer_node();
  return greeting;
}

}  // namespace

Greeting greet(const net::Endpoint& server, const std::string& token, Deadline deadline) {
  Greeting greeting = greet_once(server, token, deadline);
  if (greeting.status.code() == ErrorCode::kUnauthenticated && token.empty()) {
    // Without a token it tells nothing of itself. With any it introduces itself first; the handshake is not carried further.
    greeting.product = greet_once(server, "only to be introduced", deadline).product;
  }
  return greeting;
}

Findings judge_greeting(const std::string& whose, const Greeting& greeting, const std::string& own, bool has_token) {
  const ErrorCode code = greeting.status.code();
  if (code == ErrorCode::kProtocol) {
    return {error(fmt::format("{}: {}", whose, greeting.status.message()),
                  "is this its wire port (--port), and not an HTTP port? If it is, bring both to the same release")};
  }
  if (!greeting.status.ok() && code != ErrorCode::kUnauthenticated) {
    return {error(fmt::format("{}: {}", whose, greeting.status.message()),
                  "start it; let it listen on more than 127.0.0.1 (the master: --rpc_address); open its TCP port in the firewalls")};
  }
  Findings found;
  if (greeting.product.empty()) {
    // It refused before it said who it is.
  } else if (greeting.product == own) {
    found.push_back(ok(fmt::format("{}: {}, as here; connected in {:.2f} ms, round trip {:.2f} ms", whose, greeting.product,
                                   milliseconds(greeting.connect_time), milliseconds(greeting.round_trip))));
  } else {
    found.push_back(
        note(fmt::format("{}: {}, and this is {}; round trip {:.2f} ms", whose, greeting.product, own, milliseconds(greeting.round_trip)),
             "neighbouring releases work together; bring all hosts to one release when it is convenient"));
  }
  if (code == ErrorCode::kUnauthenticated) {
    found.push_back(error(fmt::format("{}: {}", whose, greeting.status.message()),
                          "set MOONPOOL_CLUSTER_TOKEN (or MOONPOOL_CLUSTER_TOKEN_FILE) to the same secret for all processes"));
  } else if (has_token) {
    found.push_back(ok(whose + ": accepts the cluster token"));
  } else {
    found.push_back(note(whose + ": asks for no cluster token: whoever reaches it may read and write the pool",
                         "set MOONPOOL_CLUSTER_TOKEN to one secret for all processes where strangers can reach this network"));
  }
  return found;
}

Findings check_master(const std::string& address, const std::string& token, bool only, Deadline deadline) {
  const std::string whose = "master " + address;
  const auto endpoint = net::Endpoint::parse(address, 50051);
  if (!endpoint) return {error(whose + ": " + endpoint.status().message(), "give the master's host:port")};
  const Greeting greeting = greet(*endpoint, token, deadline.sooner(deadline.left() * 2 / 3));
  Findings found = judge_greeting(whose, greeting, product_name(), !token.empty());
  if (greeting.status.ok()) {
    net::Identity self;
    self.node_id = NodeId::generate();
    self.token = token;
    const auto lane = net::Lane::connect(*endpoint, self, deadline);
    wire::PingReply reply;
    const auto start = Clock::now();
    const Status status = lane ? (*lane)->call(wire::METHOD_PING, wire::Empty(), reply, deadline) : lane.status();
    if (status.ok()) {
      const auto took = milliseconds(Clock::now() - start);
      found.push_back(ok(fmt::format("{}: answers in {:.2f} ms, term {}{}", whose, took, reply.term(),
                                     reply.recovering() ? ", still hearing from owners after a restart" : "")));
    } else if (status.code() == ErrorCode::kNotSupported) {
      found.push_back(
          error(whose + ": this is no master: a node or another process of the pool listens there", "give the master's own port"));
    } else {
      found.push_back(error(whose + ": " + status.message(), "look at the master's log and at `moonpool status`"));
    }
  }
  // Others may do its work; the caller says whether any does.
  for (Finding& finding : found) {
    if (!only && finding.level == Level::kError) finding.level = Level::kWarning;
  }
  return found;
}

Findings check_peer(const std::string& address, const std::string& token, bool wants_rdma, Deadline deadline) {
  const std::string whose = "peer " + address;
  const auto endpoint = net::Endpoint::parse(address);
  if (!endpoint) return {error(whose + ": " + endpoint.status().message(), "give the node's host:port (moonpool status lists them)")};
  const Greeting greeting = greet(*endpoint, token, deadline.sooner(deadline.left() * 2 / 3));
  Findings found = judge_greeting(whose, greeting, product_name(), !token.empty());
  if (!greeting.status.ok()) return found;
  const auto add = [&](Finding finding) {
    finding.what = whose + ": " + finding.what;
    found.push_back(std::move(finding));
  };
  add(ok(route_text(*endpoint, deadline)));
  add(shared_memory_path(greeting.node));
  net::Identity self;
  self.node_id = NodeId::generate();
  self.token = token;
  const auto lane = net::Lane::connect(*endpoint, self, deadline);
  if (lane) {
    add(network_path(**lane, wants_rdma, deadline));
  } else {
    add(error(lane.status().message(), "try again; it accepted the first connection"));
  }
  return found;
}

}  // namespace moonpool::cli::doctor
