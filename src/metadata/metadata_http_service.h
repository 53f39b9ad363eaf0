// The HTTP front of a MetadataStore, as engines written for Mooncake expect it.
//
//   GET    /metadata?key=K   200 and the value; 404 "metadata not found"
//   PUT    /metadata?key=K   the body is the value; 200 "metadata updated"
//   DELETE /metadata?key=K   200 "metadata deleted"; 404 "metadata not found"
//   GET    /health           200 "OK"
// A missing or bad key is a 400, another method 405, another path 404, a store that fails 503; each body says why.
//
// A plain function of request and store, to be mounted on an HttpServer (alone, or as part of a larger handler: handles() tells).
// Threads: those of the server; the store outlives the service.
#pragma once

#include <chrono>

#include "metadata/metadata_store.h"
#include "net/http_message.h"

namespace moonpool::metadata {

class MetadataHttpService {
 public:
  // `timeout` bounds each call to the store.
  explicit MetadataHttpService(MetadataStore& store, std::chrono::milliseconds timeout = std::chrono::seconds(5))
      : store_(store), timeout_(timeout) {}

  [[nodiscard]] static bool handles(const net::HttpRequest& request);
  [[nodiscard]] net::HttpResponse operator()(const net::HttpRequest& request) const;

 private:
  [[nodiscard]] net::HttpResponse serve_key(const net::HttpRequest& request) const;

  MetadataStore& store_;
  std::chrono::milliseconds timeout_;
};

}  // namespace moonpool::metadata
