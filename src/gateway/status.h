// What the gateway says of itself: alive, ready, and the state of every instance, for machines (JSON) and for people (text, HTML).
// Threads: any. Ownership: functions over the shared state.
#pragma once

#include <string>
#include <string_view>

#include "gateway/gateway_state.h"
#include "gateway/http_message.h"

namespace moonpool::gateway {

struct Reply {
  unsigned status = 200;
  std::string body;
  std::string_view content_type = "application/json";
  std::string fields = {};  // whole lines of its head
};

// The process is alive: always 200, with what it can do now.
[[nodiscard]] Reply health_reply(const GatewayState& state);
// 200 when a decode instance is healthy, else 503.
[[nodiscard]] Reply ready_reply(const GatewayState& state);
// JSON, as the demo proxy's users expect, unless ?format=text or ?format=html asks for another form or a browser asks (Accept: text/html).
[[nodiscard]] Reply status_reply(const GatewayState& state, const RequestParser& request);
// {"instances": [...]} alone.
[[nodiscard]] Reply instances_reply(const GatewayState& state);

}  // namespace moonpool::gateway
