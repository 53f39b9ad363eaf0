#include "cli/doctor/port_checks.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <set>
#include <sstream>
#include <unordered_map>

namespace moonpool::cli::doctor {

namespace {

std::optional<std::uint64_t> number(std::string_view text, int base) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// "0100007F" or 32 digits: groups of four bytes, each in the host's order.
std::string address_of(std::string_view digits) {
  std::array<std::uint32_t, 4> words{};
  const std::size_t count = digits.size() / 8;
  if (digits.size() % 8 != 0 || (count != 1 && count != 4)) return {};
  for (std::size_t i = 0; i < count; ++i) words[i] = static_cast<std::uint32_t>(number(digits.substr(i * 8, 8), 16).value_or(0));
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (::inet_ntop(count == 1 ? AF_INET : AF_INET6, words.data(), text.data(), text.size()) == nullptr) return {};
  return text.data();
}

void read_table(const HostFiles& host, const char* path, std::vector<Listener>& into) {
  std::istringstream lines(host.read(path).value_or(""));
  std::string line;
  std::getline(lines, line);  // the columns' names
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    std::string slot, local, remote, state, queues, timer, retransmits, uid, timeout, inode;
    if (!(words >> slot >> local >> remote >> state >> queues >> timer >> retransmits >> uid >> timeout >> inode) || state != "0A")
      continue;
    const auto colon = local.find(':');
    if (colon == std::string::npos) continue;
    Listener listener;
    listener.address = address_of(std::string_view(local).substr(0, colon));
    listener.port = static_cast<std::uint16_t>(number(std::string_view(local).substr(colon + 1), 16).value_or(0));
    listener.inode = number(inode, 10).value_or(0);
    into.push_back(std::move(listener));
  }
}

// The processes that hold these sockets, as far as they can be seen.
void name_processes(const HostFiles& host, std::vector<Listener>& listeners) {
  std::unordered_map<std::string, std::vector<Listener*>> by_link;
  for (Listener& listener : listeners) by_link[fmt::format("socket:[{}]", listener.inode)].push_back(&listener);
  for (const std::string& pid : host.names("/proc")) {
    if (!number(pid, 10)) continue;
    for (const std::string& fd : host.names("/proc/" + pid + "/fd")) {
      const auto link = host.link_name("/proc/" + pid + "/fd/" + fd);
      const auto found = link ? by_link.find(*link) : by_link.end();
      if (found == by_link.end()) continue;
      for (Listener* listener : found->second) {
        if (listener->process.empty())
          listener->process = fmt::format("{} (pid {})", host.read("/proc/" + pid + "/comm").value_or("a process"), pid);
      }
    }
  }
}

bool same_address(const Listener& listener, const std::string& address) {
  return address.empty() || listener.any_address() || listener.address == address;
}

std::string who(const Listener& listener) {
  return fmt::format("{} on {}", listener.process.empty() ? "a process that this user may not look at" : listener.process,
                     listener.address);
}

Finding judge(const std::vector<Listener>& listeners, const WantedPort& wanted) {
  std::set<std::string> found;
  for (const Listener& listener : listeners) {
    if (listener.port == wanted.port && same_address(listener, wanted.address)) found.insert(who(listener));
  }
  const std::string text = fmt::format("{} ({})", wanted.port, wanted.whose);
  if (wanted.served) {
    if (!found.empty()) return ok(fmt::format("{}: {} listens", text, fmt::join(found, ", ")));
    return warning(text + ": nobody on this host listens, and the configuration names this host",
                   "start it, or name the host where it runs");
  }
  if (found.empty()) return ok(text + ": free");
  if (!wanted.product.empty()) return ok(fmt::format("{}: {} listens, {}", text, fmt::join(found, ", "), wanted.product));
  return error(fmt::format("{}: taken by {}", text, fmt::join(found, ", ")), "end that process, or give another port");
}

}  // namespace

std::vector<Listener> read_listeners(const HostFiles& host) {
  std::vector<Listener> found;
  read_table(host, "/proc/net/tcp", found);
  read_table(host, "/proc/net/tcp6", found);
  name_processes(host, found);
  return found;
}

PortRange read_outgoing_ports(const HostFiles& host) {
  std::istringstream text(host.read("/proc/sys/net/ipv4/ip_local_port_range").value_or(""));
  PortRange range;
  if (!(text >> range.first >> range.last)) return {};
  return range;
}

Findings check_ports(const std::vector<Listener>& listeners, const std::vector<WantedPort>& wanted, PortRange range, PortRange outgoing) {
  Findings found;
  for (const WantedPort& one : wanted) found.push_back(judge(listeners, one));
  std::set<std::uint16_t> taken;
  for (const Listener& listener : listeners) {
    if (listener.port >= range.first && listener.port <= range.last) taken.insert(listener.port);
  }
  const std::size_t all = static_cast<std::size_t>(range.last - range.first) + 1;
  const std::string text =
      fmt::format("{}-{}, from which nodes take theirs: {} of {} free", range.first, range.last, all - taken.size(), all);
  if (taken.size() == all) {
    found.push_back(error(text, "end what listens there, or give local_hostname a port"));
  } else {
    found.push_back(ok(text));
  }
  if (outgoing.last >= range.first && outgoing.first <= range.last && outgoing.last != 0) {
    found.push_back(note(
        fmt::format("outgoing connections take ports from {}-{}, some of which nodes listen on", outgoing.first, outgoing.last),
        fmt::format("sysctl net.ipv4.ip_local_port_range=\"{} 60999\", or ip_local_reserved_ports={}-{}", 32768, range.first, range.last)));
  }
  return found;
}

}  // namespace moonpool::cli::doctor
