// The instances behind a Kubernetes service, as its EndpointSlices (discovery.k8s.io/v1) say: a list, then the events of a watch.
//
// An instance is a ready endpoint's first address with the service's port; a pod that ends is not ready any more. Where a service has
// slices of both address families, a pod is listed by its IPv4 address alone. Bytes from outside: any text gives instances or an error
// (tests/fuzz/gateway_kubernetes_fuzz.cpp). Threads: a value, one at a time.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "gateway/instance_name.h"

namespace moonpool::gateway {

class EndpointSlices {
 public:
  // `port`: name or number of the service's port; empty: the only one.
  explicit EndpointSlices(std::string port) : port_(std::move(port)) {}

  // Takes an EndpointSliceList instead of all that was known. kProtocol when the text is none; nothing changes then.
  [[nodiscard]] Status replace(std::string_view list);
  // One event of a watch, as its line has it. True when the instances may have changed. kInvalidVersion: the server no longer knows the
  // version that the watch began with, so the list has to be read again (410 Gone); kProtocol: no such event; kRpcFail: another error of
  // the server's.
  [[nodiscard]] Result<bool> apply(std::string_view event);

  // None twice, in the order of the slices' names.
  [[nodiscard]] std::vector<InstanceName> names() const;
  // Where a watch goes on.
  [[nodiscard]] const std::string& resource_version() const { return resource_version_; }

 private:
  struct Endpoint {
    InstanceName name;
    std::string target;  // the pod's uid; empty when the slice names none
    bool ipv6 = false;
  };
  using Slice = std::vector<Endpoint>;
  struct Parsed;

  const std::string port_;
  std::map<std::string, Slice> slices_;
  std::string resource_version_;
};

}  // namespace moonpool::gateway
