#include "metadata/etcd_reply.h"

#include <boost/json.hpp>

#include "metadata/base64.h"
#include "metadata/metadata_store.h"

namespace moonpool::metadata {

namespace {

namespace json = boost::json;

Status not_etcd(std::string_view body) {
  return {ErrorCode::kProtocol,
          "the answer is not one of etcd's v3 JSON gateway ('" + shown_key(body) + "'): check that etcd 3.4 or later listens there"};
}

// Boost.JSON's parser bounds the depth of nesting itself (32).
std::optional<json::object> parse_object(std::string_view body) {
  boost::system::error_code error;
  auto value = json::parse(body, error);
  if (error || !value.is_object()) return std::nullopt;
  return std::move(value.get_object());
}

}  // namespace

Result<std::optional<std::string>> parse_etcd_range(std::string_view body) {
  const auto answer = parse_object(body);
  if (!answer || !answer->contains("header")) return not_etcd(body);
  const auto* found = answer->if_contains("kvs");
  if (found == nullptr) return std::optional<std::string>();
  const auto* list = found->if_array();
  if (list == nullptr) return not_etcd(body);
  if (list->empty()) return std::optional<std::string>();
  const auto* entry = list->front().if_object();
  if (entry == nullptr) return not_etcd(body);
  const auto* value = entry->if_contains("value");
  if (value == nullptr) return std::optional<std::string>("");
  const auto* text = value->if_string();
  auto bytes = text != nullptr ? base64_decode({text->data(), text->size()}) : std::nullopt;
  if (!bytes) return not_etcd(body);
  return bytes;
}

Result<bool> parse_etcd_delete(std::string_view body) {
  const auto answer = parse_object(body);
  if (!answer || !answer->contains("header")) return not_etcd(body);
  const auto* deleted = answer->if_contains("deleted");
  if (deleted == nullptr) return false;
  if (const auto* text = deleted->if_string()) return *text != "0";
  if (const auto* number = deleted->if_int64()) return *number != 0;
  return not_etcd(body);
}

std::string etcd_error_text(std::string_view body) {
  if (const auto answer = parse_object(body)) {
    for (const char* name : {"message", "error"}) {
      const auto* text = answer->if_contains(name);
      if (text != nullptr && text->is_string()) return shown_key({text->get_string().data(), text->get_string().size()});
    }
  }
  return shown_key(body);
}

}  // namespace moonpool::metadata
