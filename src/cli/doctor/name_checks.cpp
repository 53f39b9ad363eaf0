#include "cli/doctor/name_checks.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <netdb.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "net/endpoint.h"

namespace moonpool::cli::doctor {

bool is_loopback(const std::string& address) { return address.starts_with("127.") || address == "::1"; }

bool Resolved::only_loopback() const { return std::all_of(addresses.begin(), addresses.end(), is_loopback); }

Result<Resolved> resolve_name(const std::string& host, Deadline deadline) {
  const auto found = net::resolve({host, 0}, deadline);
  if (!found) return found.status();
  Resolved resolved;
  for (const net::SocketAddress& address : *found) {
    std::array<char, NI_MAXHOST> text{};
    if (::getnameinfo(reinterpret_cast<const sockaddr*>(&address.storage), address.length, text.data(), text.size(), nullptr, 0,
                      NI_NUMERICHOST) != 0)
      continue;
    if (std::find(resolved.addresses.begin(), resolved.addresses.end(), text.data()) == resolved.addresses.end())
      resolved.addresses.emplace_back(text.data());
  }
  return resolved;
}

std::string own_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? std::string(name.data()) : std::string();
}

Findings judge_local_hostname(const std::string& name, const Result<Resolved>& resolved, const Status& ours, bool servers_elsewhere) {
  if (!resolved) {
    return {error(fmt::format("local_hostname: {}", resolved.status().message()),
                  "put this host's own address into local_hostname (`ip address` lists it)")};
  }
  const std::string text = fmt::format("local_hostname {} is {}", name, fmt::join(resolved->addresses, ", "));
  if (!ours.ok()) return {error(ours.message(), "put this host's own address into local_hostname")};
  if (!resolved->only_loopback()) return {ok(text)};
  if (!servers_elsewhere) return {ok(text + ": for processes of this host alone")};
  return {error(text + ": peers on other hosts would connect to themselves, and the configured servers are on other hosts",
                "put this host's own address into local_hostname (`ip address` lists it), or mend its line in /etc/hosts")};
}

Findings judge_own_name(const std::string& name, const Result<Resolved>& resolved) {
  if (!resolved) {
    return {note(fmt::format("this host's own name, {}, does not resolve", name),
                 "add it to /etc/hosts with the host's address; do not use it as local_hostname")};
  }
  const std::string text = fmt::format("this host's own name, {}, is {}", name, fmt::join(resolved->addresses, ", "));
  if (!resolved->only_loopback()) return {ok(text)};
  return {note(text + ": as local_hostname it would send peers to themselves",
               "use the host's address as local_hostname, or give the name its address in /etc/hosts")};
}

Findings judge_server_name(const std::string& whose, const std::string& name, const Result<Resolved>& resolved) {
  if (!resolved) {
    return {error(fmt::format("{}: {}", whose, resolved.status().message()), "mend the name in the configuration, DNS or /etc/hosts")};
  }
  return {ok(fmt::format("{}: {} is {}", whose, name, fmt::join(resolved->addresses, ", ")))};
}

}  // namespace moonpool::cli::doctor
