#include "gateway/etcd_instances.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <optional>

namespace moonpool::gateway {

namespace {

namespace json = boost::json;

constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

std::string to_base64(std::string_view bytes) {
  std::string text;
  for (std::size_t at = 0; at < bytes.size(); at += 3) {
    std::uint32_t group = 0;
    for (std::size_t i = 0; i < 3; ++i) group = group << 8 | (at + i < bytes.size() ? static_cast<unsigned char>(bytes[at + i]) : 0U);
    for (std::size_t i = 0; i < 4; ++i) text += at + i > bytes.size() ? '=' : kAlphabet[group >> (18 - 6 * i) & 63];
  }
  return text;
}

std::optional<std::string> from_base64(std::string_view text) {
  std::string bytes;
  std::uint32_t bits = 0;
  int count = 0;
  while (text.ends_with('=')) text.remove_suffix(1);
  for (const char c : text) {
    const std::size_t digit = kAlphabet.find(c);
    if (digit == std::string_view::npos) return std::nullopt;
    bits = bits << 6 | static_cast<std::uint32_t>(digit);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes += static_cast<char>(bits >> count & 255);
  }
  return bytes;
}

// Empty where there is none: the gateway leaves empty fields out.
std::optional<std::string> decoded(const json::object& pair, const char* field) {
  const auto* value = pair.if_contains(field);
  if (value == nullptr) return std::string();
  if (!value->is_string()) return std::nullopt;
  return from_base64({value->get_string().data(), value->get_string().size()});
}

}  // namespace

std::string etcd_range_request(std::string_view prefix) {
  // The first key that no longer begins with the prefix.
  std::string end(prefix);
  while (!end.empty() && static_cast<unsigned char>(end.back()) == 255) end.pop_back();
  if (end.empty()) {
    end = std::string(1, '\0');  // to the last key of all
  } else {
    end.back() = static_cast<char>(static_cast<unsigned char>(end.back()) + 1);
  }
  return R"({"key":")" + to_base64(prefix) + R"(","range_end":")" + to_base64(end) + "\"}";
}

Result<EtcdInstances> parse_etcd_instances(std::string_view body, std::string_view prefix) {
  const auto wrong = [](const std::string& what) { return Status(ErrorCode::kProtocol, "etcd's answer " + what); };
  boost::system::error_code error;
  const json::value document = json::parse(json::string_view(body.data(), body.size()), error);
  if (error || !document.is_object()) return wrong("is no JSON object");
  const auto& answer = document.get_object();
  if (!answer.contains("header")) return wrong("has no header: is it etcd's client port?");
  EtcdInstances found;
  const auto* pairs = answer.if_contains("kvs");
  if (pairs == nullptr) return found;
  if (!pairs->is_array()) return wrong("has keys that are no list");
  for (const auto& pair : pairs->get_array()) {
    if (!pair.is_object()) return wrong("has a key that is no object");
    const auto key = decoded(pair.get_object(), "key");
    const auto value = decoded(pair.get_object(), "value");
    if (!key || !value) return wrong("has a key or value that is no base64");
    auto name = InstanceName::parse(*value);
    if (!name.ok() && key->starts_with(prefix)) name = InstanceName::parse(std::string_view(*key).substr(prefix.size()));
    if (!name.ok()) {
      ++found.unusable;
    } else if (std::find(found.names.begin(), found.names.end(), *name) == found.names.end()) {
      found.names.push_back(std::move(name).value());
    }
  }
  return found;
}

}  // namespace moonpool::gateway
