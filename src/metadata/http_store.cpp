#include "metadata/http_store.h"

#include "net/http_url.h"

namespace moonpool::metadata {

namespace {
// In a 404 it tells a missing key from a missing path.
constexpr std::string_view kNotFoundText = "metadata not found";
}  // namespace

HttpStore::HttpStore(const MetadataUrl& url, const MetadataStoreOptions& options)
    : url_(url.to_string()),
      client_({.max_idle_connections = options.max_idle_connections, .max_body_bytes = kMaxValueBytes * 2, .repeat_posts = false}) {}

Result<std::string> HttpStore::call(std::string_view operation, std::string_view method, std::string_view key, std::string_view value,
                                    Deadline deadline) {
  const auto start = Deadline::Clock::now();
  net::HttpHeaders headers;
  if (method == "PUT") headers.emplace_back("Content-Type", "application/octet-stream");
  auto response = client_.request(method, url_ + "?key=" + net::percent_encode(key), value, headers, deadline);
  if (!response) return metadata_error(*this, operation, key, start, response.status().message());
  if (response->status >= 200 && response->status < 300) return std::move(response->body);
  if (response->status == 404 && response->body.find(kNotFoundText) != std::string::npos) return key_not_found(*this, key);
  std::string why = "the server answered " + std::to_string(response->status) + " '" + shown_key(response->body) + "'";
  why += response->status == 404 ? ": check the path of the URL, mostly /metadata" : ": see the server's log";
  return metadata_error(*this, operation, key, start, why);
}

Result<std::string> HttpStore::get(std::string_view key, Deadline deadline) {
  MOONPOOL_RETURN_IF_ERROR(check_key(key));
  return call("get", "GET", key, {}, deadline);
}

Status HttpStore::put(std::string_view key, std::string_view value, Deadline deadline) {
  MOONPOOL_RETURN_IF_ERROR(check_key_and_value(key, value));
  return call("put", "PUT", key, value, deadline).status();
}

Status HttpStore::remove(std::string_view key, Deadline deadline) {
  MOONPOOL_RETURN_IF_ERROR(check_key(key));
  return call("remove", "DELETE", key, {}, deadline).status();
}

}  // namespace moonpool::metadata
