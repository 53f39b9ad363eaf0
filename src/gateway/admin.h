// What the gateway answers by itself: its health, its status, and the adding of instances.
//
// Adding needs the key of ADMIN_API_KEY in X-API-Key, compared in constant time; every accepted or refused attempt is one log line, which
// never has the key in it. Threads: any executor. Ownership: functions over the shared state.
#pragma once

#include <string>
#include <string_view>

#include "gateway/cancellation.h"
#include "gateway/gateway_state.h"
#include "gateway/http_message.h"
#include "gateway/upstream.h"

namespace moonpool::gateway {

struct Reply {
  unsigned status = 200;
  std::string body;  // JSON
};

// The process is alive: always 200, with what it can do now.
[[nodiscard]] Reply health_reply(const GatewayState& state);
// 200 when a decode instance is healthy, else 503.
[[nodiscard]] Reply ready_reply(const GatewayState& state);
[[nodiscard]] Reply status_reply(const GatewayState& state);
[[nodiscard]] Task<Reply> add_instance(GatewayState& state, UpstreamPool& pool, const RequestParser& request, std::string peer,
                                       Cancellation& cancellation);

// Takes the same time wherever the first difference is.
[[nodiscard]] bool same_secret(std::string_view given, std::string_view expected);

}  // namespace moonpool::gateway
