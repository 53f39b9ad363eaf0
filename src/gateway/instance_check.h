// Is this address an instance that can work for this gateway? Asked before one is added, and by the health monitor.
//
// GET /health has to answer without a server error, then GET /v1/models has to list the model. A server that does not offer /v1/models, or
// wants an API key for it, counts as alive but `unverified`. Cost: two requests on one fresh connection.
// Threads: the executor of the pool. One deadline covers all of it.
#pragma once

#include <string>

#include "gateway/upstream.h"

namespace moonpool::gateway {

struct InstanceAnswer {
  unsigned status = 0;
  std::string body;
};
// One GET, its answer whole (4 MiB at most). `fields` are whole lines.
[[nodiscard]] Task<Result<InstanceAnswer>> get_from_instance(UpstreamPool& pool, const InstanceName& name, std::string_view target,
                                                             std::string_view fields, Deadline deadline, Cancellation& cancellation);

struct CheckedInstance {
  bool verified = false;  // it lists the model
  std::string remark;     // why not verified
};

// kUnavailable or kRpcTimeout when it does not answer, kInvalidParams when it serves other models (they are named).
// `authorization` is the value of an Authorization field to send along, or empty.
[[nodiscard]] Task<Result<CheckedInstance>> check_instance(UpstreamPool& pool, const InstanceName& name, const std::string& model,
                                                           std::string_view authorization, Deadline deadline, Cancellation& cancellation);

}  // namespace moonpool::gateway
