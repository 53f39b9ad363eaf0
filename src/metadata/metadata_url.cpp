#include "metadata/metadata_url.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <optional>

#include "net/http_url.h"

namespace moonpool::metadata {

namespace {

using net::Endpoint;

constexpr std::string_view kForms =
    "write http://host:8080/metadata, etcd://host:2379 (several: etcd://h1:2379,h2:2379), host:2379 (etcd too), "
    "redis://[:password@]host:6379[/db], or P2PHANDSHAKE";
constexpr std::string_view kPeerToPeerText = "P2PHANDSHAKE";
constexpr std::uint16_t kEtcdPort = 2379;
constexpr std::uint16_t kRedisPort = 6379;

// Shows the text only if no password can be in it.
Status bad_url(std::string_view text, std::string_view why) {
  return {ErrorCode::kConfig,
          "the metadata server '" + net::redact_url(text) + "' is not understood: " + std::string(why) + ": " + std::string(kForms)};
}

std::string lower_case(std::string_view text) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return lower;
}

std::string_view trim(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r\n";
  const auto first = text.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlanks) - first + 1);
}

// Endpoint's own message may quote its input: in a text with an '@' that could be half of a password.
std::string reason(const Status& status, std::string_view text) {
  return text.find('@') == std::string_view::npos ? status.message() : std::string("the host or port is wrong");
}

Result<MetadataUrl> parse_etcd(std::string_view text, std::string_view list, std::uint16_t default_port) {
  if (list.find('@') != std::string_view::npos) return bad_url(text, "a user name or password for etcd is not supported");
  if (list.ends_with('/')) list.remove_suffix(1);
  MetadataUrl url{.kind = MetadataKind::kEtcd, .endpoints = {}, .path = {}, .user = {}, .password = {}};
  for (bool more = true; more;) {
    const auto comma = list.find(',');
    more = comma != std::string_view::npos;
    auto entry = trim(list.substr(0, comma));
    if (more) list.remove_prefix(comma + 1);
    if (entry.starts_with("http://")) entry.remove_prefix(7);  // as etcd's own tools write their endpoints
    if (net::is_ambiguous_ipv6(entry)) return bad_url(text, "an IPv6 address is written in brackets, as in [::1]:2379");
    auto endpoint = Endpoint::parse(entry, default_port);
    if (!endpoint) return bad_url(text, reason(endpoint.status(), text));
    url.endpoints.push_back(std::move(*endpoint));
  }
  return url;
}

Result<MetadataUrl> parse_http(std::string_view text) {
  auto parsed = net::parse_http_url(text);
  if (!parsed) return bad_url(text, reason(parsed.status(), text));
  const auto& target = parsed->target;
  if (target == "/") {
    const auto host = parsed->endpoint.to_string();
    return bad_url(text,
                   "an HTTP metadata server has a path, mostly http://" + host + "/metadata; if etcd listens there, write etcd://" + host);
  }
  if (target.find('?') != std::string::npos || text.find('#') != std::string_view::npos) return bad_url(text, "it has a '?' or '#'");
  return MetadataUrl{.kind = MetadataKind::kHttp, .endpoints = {parsed->endpoint}, .path = target, .user = {}, .password = {}};
}

std::optional<int> parse_database(std::string_view text) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number < 0) return std::nullopt;
  return number;
}

Result<MetadataUrl> parse_redis(std::string_view rest) {
  // A mistyped one ("redis://:password:6379") may have its password anywhere: nothing of it is quoted.
  constexpr std::string_view text = "redis://...";
  MetadataUrl url{.kind = MetadataKind::kRedis, .endpoints = {}, .path = {}, .user = {}, .password = {}};
  // The last '@', so that a password with one in it is forgiven.
  if (const auto at = rest.rfind('@'); at != std::string_view::npos) {
    const auto login = rest.substr(0, at);
    rest.remove_prefix(at + 1);
    const auto colon = login.find(':');
    if (colon == std::string_view::npos) return bad_url(text, "before '@' comes :password or user:password");
    auto user = net::percent_decode(login.substr(0, colon));
    auto password = net::percent_decode(login.substr(colon + 1));
    if (!user || !password) return bad_url(text, "the password has a '%' that starts no escape (write %25)");
    if (password->empty()) return bad_url(text, "the password before '@' is empty");
    url.user = std::move(*user);
    url.password = std::move(*password);
  }
  const auto slash = rest.find('/');
  if (slash != std::string_view::npos && slash + 1 < rest.size()) {
    const auto number = parse_database(rest.substr(slash + 1));
    if (!number) return bad_url(text, "after the '/' comes the number of the database");
    url.database = *number;
  }
  const auto host = rest.substr(0, slash);
  if (net::is_ambiguous_ipv6(host)) return bad_url(text, "an IPv6 address is written in brackets, or the '@' after a password is missing");
  auto endpoint = Endpoint::parse(host, kRedisPort);
  if (!endpoint) return bad_url(text, "the host or port is wrong");
  url.endpoints.push_back(std::move(*endpoint));
  return url;
}

}  // namespace

std::string MetadataUrl::to_string() const {
  if (kind == MetadataKind::kPeerToPeer) return std::string(kPeerToPeerText);
  if (kind == MetadataKind::kHttp) return "http://" + endpoints.at(0).to_string() + path;
  if (kind == MetadataKind::kRedis) return "redis://" + endpoints.at(0).to_string() + "/" + std::to_string(database);
  std::string text = "etcd://";
  for (const auto& endpoint : endpoints) {
    if (&endpoint != &endpoints.front()) text += ',';
    text += endpoint.to_string();
  }
  return text;
}

Result<MetadataUrl> parse_metadata_url(std::string_view given) {
  const auto text = trim(given);
  if (text.empty()) return bad_url(text, "it is empty");
  if (text == kPeerToPeerText) return MetadataUrl{};
  const auto colon = text.find("://");
  if (colon == std::string_view::npos) {
    if (lower_case(text) == lower_case(kPeerToPeerText)) return bad_url(text, "P2PHANDSHAKE is written in capitals");
    return parse_etcd(text, text, 0);
  }
  const auto scheme = lower_case(text.substr(0, colon));
  const auto rest = text.substr(colon + 3);
  if (scheme == "etcd") return parse_etcd(text, rest, kEtcdPort);
  if (scheme == "http") return parse_http(text);
  if (scheme == "redis") return parse_redis(rest);
  if (scheme == "https" || scheme == "rediss") return bad_url(text, "TLS to the metadata server is not supported yet");
  // "h1:2379,http://h2:2379" and the like: an etcd list whose first entry has no scheme.
  if (scheme.find(',') != std::string::npos) return parse_etcd(text, text, 0);
  return bad_url(text, "its scheme is unknown");
}

}  // namespace moonpool::metadata
