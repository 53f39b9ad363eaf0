#include "gateway/instance_name.h"

#include <arpa/inet.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

namespace moonpool::gateway {

namespace {

constexpr std::size_t kLongestHostName = 253;
constexpr std::string_view kHttp = "http://";
constexpr std::string_view kHttps = "https://";

Status wrong(std::string_view text, std::string_view reason) {
  std::string shown;
  for (const char c : text.substr(0, 80)) shown += (c >= 0x20 && c < 0x7F) ? c : '?';
  return Status(ErrorCode::kInvalidParams, "'" + shown + "' is not the address of an instance: " + std::string(reason) +
                                               ". Write host:port, 10.0.0.2:8100 or [fd00::2]:8100, with https:// before it for TLS");
}

bool is_host_name(std::string_view host) {
  if (host.empty() || host.size() > kLongestHostName || host.front() == '-' || host.front() == '.') return false;
  char before = 'a';
  for (const char c : host) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
    if (!letter && (c != '.' || before == '.')) return false;
    before = c;
  }
  return true;
}

// Digits and dots only: meant as an IPv4 address, so it must be one (no resolver gets to guess what 10.1 means).
bool looks_like_ipv4(std::string_view host) { return host.find_first_not_of("0123456789.") == std::string_view::npos; }

std::string canonical_ipv6(const std::string& host) {
  in6_addr address{};
  if (::inet_pton(AF_INET6, host.c_str(), &address) != 1) return {};
  std::array<char, INET6_ADDRSTRLEN> text{};
  return ::inet_ntop(AF_INET6, &address, text.data(), text.size()) != nullptr ? std::string(text.data()) : std::string();
}

}  // namespace

Result<InstanceName> InstanceName::parse(std::string_view text) {
  for (const auto& [prefix, scheme] : {std::pair(kHttp, Scheme::kHttp), std::pair(kHttps, Scheme::kHttps)}) {
    if (!text.starts_with(prefix)) continue;
    text.remove_prefix(prefix.size());
    if (text.ends_with('/')) text.remove_suffix(1);
    if (text.find("://") != std::string_view::npos) return wrong(text, "it has two schemes");
    auto name = parse(text);
    if (!name.ok()) return name;
    name->scheme_ = scheme;
    if (scheme == Scheme::kHttps) name->text_.insert(0, kHttps);
    return name;
  }
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return wrong(text, "it has no port");
  std::string_view host = text.substr(0, colon);
  const std::string_view port = text.substr(colon + 1);

  unsigned number = 0;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
  if (port.empty() || error != std::errc() || end != port.data() + port.size() || number == 0 || number > 65535) {
    return wrong(text, "the port has to be a number from 1 to 65535");
  }
  InstanceName name;
  name.port_ = static_cast<std::uint16_t>(number);

  if (!host.empty() && host.front() == '[') {
    if (host.back() != ']') return wrong(text, "the bracket around the IPv6 address is not closed");
    name.host_ = canonical_ipv6(std::string(host.substr(1, host.size() - 2)));
    if (name.host_.empty()) return wrong(text, "the text in brackets is no IPv6 address");
    name.literal_ = true;
    name.text_ = "[" + name.host_ + "]:" + std::to_string(number);
    return name;
  }
  if (host.find(':') != std::string_view::npos) return wrong(text, "an IPv6 address needs brackets");
  name.host_ = std::string(host);
  std::transform(name.host_.begin(), name.host_.end(), name.host_.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  if (!is_host_name(name.host_)) return wrong(text, "the host is no host name and no IPv4 address");
  if (looks_like_ipv4(name.host_)) {
    in_addr address{};
    if (::inet_pton(AF_INET, name.host_.c_str(), &address) != 1) return wrong(text, "the host is no IPv4 address");
    name.literal_ = true;
  }
  name.text_ = name.host_ + ":" + std::to_string(number);
  return name;
}

InstanceName InstanceName::secured() const {
  InstanceName other = *this;
  if (scheme_ != Scheme::kUnsaid) return other;
  other.scheme_ = Scheme::kHttps;
  other.text_.insert(0, kHttps);
  return other;
}

std::string_view InstanceName::authority() const { return std::string_view(text_).substr(is_secure() ? kHttps.size() : 0); }

}  // namespace moonpool::gateway
