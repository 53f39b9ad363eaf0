// The root of an HTTP API as settings name it: "http://host:4318" or https://, perhaps with a path. Threads: values.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "gateway/instance_name.h"

namespace moonpool::gateway {

struct HttpEndpoint {
  InstanceName name;  // secure for https://
  std::string path;   // without a slash at its end; often empty
};

// kConfig when `url` is none. Without a port: 80, or 443 for https.
[[nodiscard]] Result<HttpEndpoint> parse_http_endpoint(std::string_view url);

}  // namespace moonpool::gateway
