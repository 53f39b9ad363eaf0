// GET /v1/models over several instances: one list of all that they serve, each model once.
//
// All instances are asked at once, each under the check deadline; one that does not answer in time is left out. Cost: one short exchange
// with each. Threads: the executor of the pool.
#pragma once

#include "gateway/gateway_state.h"
#include "gateway/http_message.h"
#include "gateway/status.h"
#include "gateway/trace_context.h"
#include "gateway/upstream.h"

namespace moonpool::gateway {

// `fields` are the request's forwarded fields (an API key of the instances, say), as whole lines; each instance is a hop of `trace`.
[[nodiscard]] Task<Reply> merged_models(GatewayState& state, UpstreamPool& pool, const Group& group, std::string fields,
                                        const TraceContext& trace, Cancellation& cancellation);

// The lists of several /v1/models answers as one: entries in order, the first of each id. Texts that are no such list are passed over.
[[nodiscard]] std::string merge_model_lists(const std::vector<std::string>& bodies);

}  // namespace moonpool::gateway
