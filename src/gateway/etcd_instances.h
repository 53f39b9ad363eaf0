// The instances that are registered below a prefix in etcd, by its v3 JSON gateway.
//
// Each key below the prefix is an instance: its value is "host:port", or else what follows the prefix in the key is. Bytes from outside:
// any answer gives instances or an error (tests/fuzz/gateway_etcd_fuzz.cpp). Threads: pure functions.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "gateway/instance_name.h"

namespace moonpool::gateway {

// The body of a POST to /v3/kv/range that asks for all keys below `prefix`.
[[nodiscard]] std::string etcd_range_request(std::string_view prefix);

struct EtcdInstances {
  std::vector<InstanceName> names;
  std::size_t unusable = 0;  // keys that name no instance
};
// kProtocol when the text is no such answer.
[[nodiscard]] Result<EtcdInstances> parse_etcd_instances(std::string_view body, std::string_view prefix);

}  // namespace moonpool::gateway
