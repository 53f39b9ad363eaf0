#include "net/endpoint.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "net/socket.h"

namespace moonpool::net {
namespace {

Status bad_endpoint(std::string_view text, const char* why) {
  std::string shown(text.substr(0, 200));
  std::replace_if(
      shown.begin(), shown.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; }, '?');
  return Status(ErrorCode::kInvalidParams,
                "\"" + shown + "\" is not an endpoint: " + why + "; write host:port, 1.2.3.4:port or [ipv6]:port");
}

bool is_host_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '_';
}

// An IPv6 address without its "%zone".
bool is_ipv6(const std::string& host) {
  in6_addr ignored;
  const auto zone = host.find('%');
  return ::inet_pton(AF_INET6, host.substr(0, zone).c_str(), &ignored) == 1 && (zone == std::string::npos || zone + 1 < host.size());
}

std::optional<std::uint16_t> parse_port(std::string_view text) {
  unsigned value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value == 0 || value > 65535) return std::nullopt;
  return static_cast<std::uint16_t>(value);
}

struct Lookup {
  int error = 0;
  std::vector<SocketAddress> addresses;
};

Lookup look_up(const Endpoint& endpoint, int flags) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  Lookup found;
  found.error = ::getaddrinfo(endpoint.host.c_str(), std::to_string(endpoint.port).c_str(), &hints, &list);
  if (found.error != 0) return found;
  for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
    if (entry->ai_addrlen > sizeof(sockaddr_storage)) continue;
    SocketAddress address;
    std::copy_n(reinterpret_cast<const char*>(entry->ai_addr), entry->ai_addrlen, reinterpret_cast<char*>(&address.storage));
    address.length = entry->ai_addrlen;
    found.addresses.push_back(address);
  }
  ::freeaddrinfo(list);
  return found;
}

// What the asking thread and the looking-up thread share; the last of them frees it, so either may leave first.
struct PendingLookup {
  std::mutex mutex;
  std::condition_variable ready;
  std::optional<Lookup> result;  // guarded by mutex
};

// getaddrinfo(3) cannot be interrupted: it runs on a thread of its own, which is left behind when the deadline comes first.
std::optional<Lookup> look_up_by(const Endpoint& endpoint, Deadline deadline) {
  auto pending = std::make_shared<PendingLookup>();
  try {
    std::thread([pending, endpoint] {
      Lookup found = look_up(endpoint, 0);
      const std::lock_guard lock(pending->mutex);
      pending->result = std::move(found);
      pending->ready.notify_all();
    }).detach();
  } catch (const std::system_error&) {
    return Lookup{EAI_MEMORY, {}};
  }
  std::unique_lock lock(pending->mutex);
  // wait_until on the system clock: g++ 12's TSan does not know pthread_cond_clockwait, and a clock step only costs a re-check.
  while (!pending->result && !deadline.expired()) pending->ready.wait_until(lock, std::chrono::system_clock::now() + deadline.left());
  return std::move(pending->result);
}

}  // namespace

Result<Endpoint> Endpoint::parse(std::string_view text, std::uint16_t default_port) {
  std::string_view host = text;
  std::optional<std::string_view> port;
  if (text.starts_with('[')) {
    const auto close = text.find(']');
    if (close == std::string_view::npos) return bad_endpoint(text, "\"]\" is missing");
    host = text.substr(1, close - 1);
    const std::string_view rest = text.substr(close + 1);
    if (!rest.empty() && rest.front() != ':') return bad_endpoint(text, "after \"]\" comes \":port\" or nothing");
    if (!rest.empty()) port = rest.substr(1);
    if (!is_ipv6(std::string(host))) return bad_endpoint(text, "an IPv6 address is expected between the brackets");
  } else if (std::count(text.begin(), text.end(), ':') > 1) {
    if (!is_ipv6(std::string(text))) return bad_endpoint(text, "there is more than one colon");
    if (default_port == 0) return bad_endpoint(text, "an IPv6 address with a port needs brackets");
  } else if (const auto colon = text.find(':'); colon != std::string_view::npos) {
    host = text.substr(0, colon);
    port = text.substr(colon + 1);
  }
  if (host.empty()) return bad_endpoint(text, "the host is missing");
  if (host.size() > 255) return bad_endpoint(text, "the host is longer than 255 characters");
  if (host.find(':') == std::string_view::npos && !std::all_of(host.begin(), host.end(), is_host_character)) {
    return bad_endpoint(text, "the host has a character that host names do not have");
  }
  Endpoint endpoint{std::string(host), default_port};
  if (port) {
    const auto number = parse_port(*port);
    if (!number) return bad_endpoint(text, "the port is a number from 1 to 65535");
    endpoint.port = *number;
  } else if (default_port == 0) {
    return bad_endpoint(text, "the port is missing");
  }
  return endpoint;
}

std::string Endpoint::to_string() const {
  return (host.find(':') == std::string::npos ? host : "[" + host + "]") + ":" + std::to_string(port);
}

Result<std::vector<SocketAddress>> resolve(const Endpoint& endpoint, Deadline deadline) {
  if (Lookup numeric = look_up(endpoint, AI_NUMERICHOST); numeric.error == 0 && !numeric.addresses.empty()) {
    return std::move(numeric.addresses);
  }
  const auto started = Deadline::Clock::now();
  std::optional<Lookup> found = look_up_by(endpoint, deadline);
  const auto waited = std::chrono::duration_cast<std::chrono::milliseconds>(Deadline::Clock::now() - started).count();
  if (!found) {
    return Status(ErrorCode::kUnavailable, "the name " + endpoint.host + " did not resolve within " + std::to_string(waited) +
                                               " ms: check the host name and the DNS server (/etc/resolv.conf), or use an address");
  }
  if (found->error != 0 || found->addresses.empty()) {
    const std::string reason = found->error != 0 ? ::gai_strerror(found->error) : "no address";
    return Status(ErrorCode::kUnavailable, "the name " + endpoint.host + " does not resolve (" + reason +
                                               "): check the host name, DNS and /etc/hosts, or use an address");
  }
  return std::move(found->addresses);
}

}  // namespace moonpool::net
