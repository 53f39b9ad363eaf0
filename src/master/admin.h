// The master's pages over HTTP, under the paths that engines and scripts written for Mooncake ask for, and /status of our own.
//
// A plain function of the request, mounted on a net::HttpServer. Looking at a key here grants no lease.
// Threads: any. The coordinator outlives it.
#pragma once

#include <string>

#include "master/coordinator.h"
#include "net/http_message.h"

namespace moonpool::master {

class Admin {
 public:
  explicit Admin(Coordinator& coordinator) : coordinator_(coordinator) {}

  [[nodiscard]] net::HttpResponse serve(const net::HttpRequest& request);
  [[nodiscard]] std::string summary_line() const;

 private:
  [[nodiscard]] net::HttpResponse query_keys(const net::HttpRequest& request, bool batch);
  [[nodiscard]] net::HttpResponse all_segments() const;
  [[nodiscard]] net::HttpResponse query_segment(const net::HttpRequest& request) const;
  [[nodiscard]] net::HttpResponse remove_all(const net::HttpRequest& request);

  Coordinator& coordinator_;
};

}  // namespace moonpool::master
