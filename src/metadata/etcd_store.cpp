#include "metadata/etcd_store.h"

#include <boost/json.hpp>

#include "metadata/base64.h"
#include "metadata/etcd_reply.h"

namespace moonpool::metadata {

namespace json = boost::json;

EtcdStore::EtcdStore(const MetadataUrl& url, const MetadataStoreOptions& options)
    : endpoints_(url.endpoints),
      client_({.max_idle_connections = options.max_idle_connections, .max_body_bytes = kMaxValueBytes * 4, .repeat_posts = true}) {}

std::string EtcdStore::describe() const {
  std::string text = "etcd at ";
  for (const auto& endpoint : endpoints_) {
    if (&endpoint != &endpoints_.front()) text += ',';
    text += endpoint.to_string();
  }
  return text;
}

Result<std::string> EtcdStore::call_one(std::size_t index, std::string_view path, const std::string& body, Deadline deadline) {
  const auto where = endpoints_[index].to_string();
  auto response = client_.request("POST", "http://" + where + std::string(path), body, {{"Content-Type", "application/json"}}, deadline);
  if (!response) return response.status();
  if (response->status == 200) return std::move(response->body);
  return Status(ErrorCode::kMetadataFail, where + " answered " + std::to_string(response->status) + " (" + etcd_error_text(response->body) +
                                              ")" +
                                              (response->status == 404 ? ": check that it is etcd 3.4 or later" : ": see etcd's log"));
}

Result<std::string> EtcdStore::call(std::string_view path, const std::string& body, Deadline deadline) {
  const auto first = preferred_.load();
  std::vector<std::size_t> to_ask;
  for (std::size_t i = 0; i < endpoints_.size(); ++i) to_ask.push_back((first + i) % endpoints_.size());
  std::string problems;
  for (int round = 0; round < 2 && !to_ask.empty() && !(round > 0 && deadline.expired()); ++round) {
    std::vector<std::size_t> slow;
    problems.clear();
    for (std::size_t i = 0; i < to_ask.size(); ++i) {
      const auto others = static_cast<std::int64_t>(to_ask.size() - i);
      const auto share = deadline.left() / others;
      auto answer =
          call_one(to_ask[i], path, body, deadline.sooner(others > 1 ? std::min<std::chrono::nanoseconds>(share, kEndpointShare) : share));
      if (answer) {
        preferred_ = to_ask[i];
        return answer;
      }
      if (answer.code() == ErrorCode::kRpcTimeout) slow.push_back(to_ask[i]);
      if (!problems.empty()) problems += "; ";
      problems += answer.status().message();
    }
    to_ask = std::move(slow);
  }
  return Status(ErrorCode::kMetadataFail, problems);
}

Result<std::string> EtcdStore::get(std::string_view key, Deadline deadline) {
  MOONPOOL_RETURN_IF_ERROR(check_key(key));
  const auto start = Deadline::Clock::now();
  const auto answer = call("/v3/kv/range", json::serialize(json::object{{"key", base64_encode(key)}}), deadline);
  if (!answer) return metadata_error(*this, "get", key, start, answer.status().message());
  auto found = parse_etcd_range(*answer);
  if (!found) return metadata_error(*this, "get", key, start, found.status().message());
  if (!found->has_value()) return key_not_found(*this, key);
  return std::move(**found);
}

Status EtcdStore::put(std::string_view key, std::string_view value, Deadline deadline) {
  MOONPOOL_RETURN_IF_ERROR(check_key_and_value(key, value));
  const auto start = Deadline::Clock::now();
  const json::object request{{"key", base64_encode(key)}, {"value", base64_encode(value)}};
  const auto answer = call("/v3/kv/put", json::serialize(request), deadline);
  return answer ? Status() : metadata_error(*this, "put", key, start, answer.status().message());
}

Status EtcdStore::remove(std::string_view key, Deadline deadline) {
  MOONPOOL_RETURN_IF_ERROR(check_key(key));
  const auto start = Deadline::Clock::now();
  const auto answer = call("/v3/kv/deleterange", json::serialize(json::object{{"key", base64_encode(key)}}), deadline);
  if (!answer) return metadata_error(*this, "remove", key, start, answer.status().message());
  const auto removed = parse_etcd_delete(*answer);
  if (!removed) return metadata_error(*this, "remove", key, start, removed.status().message());
  return *removed ? Status() : key_not_found(*this, key);
}

}  // namespace moonpool::metadata
