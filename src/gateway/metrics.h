// GET /metrics: what /status shows, as Prometheus text (exposition format 0.0.4).
//
// Counters and histograms start at zero with the gateway, an instance's with its joining. Of a histogram's buckets those from about 1 ms to
// 7 minutes are shown, at their exact edges, which are the same for all. Each number is read on its own, so those of a request that ends
// meanwhile may be there in part. Cost: nothing on a request's path, some 150 lines of text an instance. Threads: any.
#pragma once

#include <string>
#include <string_view>

#include "gateway/gateway_state.h"

namespace moonpool::gateway {

inline constexpr std::string_view kMetricsContentType = "text/plain; version=0.0.4; charset=utf-8";

[[nodiscard]] std::string metrics_text(const GatewayState& state);

}  // namespace moonpool::gateway
