#include "metadata/metadata_http_service.h"

#include <string>

namespace moonpool::metadata {

namespace {

net::HttpResponse text(int status, std::string body) { return {.status = status, .body = std::move(body)}; }

net::HttpResponse failure(const Status& status) {
  switch (status.code()) {
    case ErrorCode::kObjectNotFound:
      return text(404, "metadata not found");
    case ErrorCode::kInvalidKey:
    case ErrorCode::kInvalidParams:
      return text(400, status.message());
    default:
      return text(503, status.message());
  }
}

}  // namespace

bool MetadataHttpService::handles(const net::HttpRequest& request) { return request.path == "/metadata" || request.path == "/health"; }

net::HttpResponse MetadataHttpService::operator()(const net::HttpRequest& request) const {
  if (request.path == "/metadata") return serve_key(request);
  if (request.path == "/health") return text(200, "OK");
  return text(404, "no such path: this server has /metadata?key= and /health");
}

net::HttpResponse MetadataHttpService::serve_key(const net::HttpRequest& request) const {
  const auto key = net::find_param(request.query, "key");
  if (!key || key->empty()) return text(400, "the parameter 'key' is missing: ask for /metadata?key=NAME");
  const auto deadline = Deadline::after(timeout_);
  if (request.method == "GET" || request.method == "HEAD") {
    auto value = store_.get(*key, deadline);
    if (!value) return failure(value.status());
    return {.status = 200, .content_type = "application/octet-stream", .body = std::move(*value)};
  }
  if (request.method == "PUT") {
    const auto status = store_.put(*key, request.body, deadline);
    return status.ok() ? text(200, "metadata updated") : failure(status);
  }
  if (request.method == "DELETE") {
    const auto status = store_.remove(*key, deadline);
    return status.ok() ? text(200, "metadata deleted") : failure(status);
  }
  auto refused = text(405, "use GET, PUT or DELETE");
  refused.headers.emplace_back("Allow", "GET, HEAD, PUT, DELETE");
  return refused;
}

}  // namespace moonpool::metadata
