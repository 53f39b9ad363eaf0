// What a work completion's status means for whoever posted the work (InfiniBand Architecture Specification, volume 1, section 11.6.2).
#pragma once

#include <infiniband/verbs.h>

#include "transfer/rdma/nic.h"

namespace moonpool::transfer::rdma {

[[nodiscard]] Completion::Outcome outcome_of(ibv_wc_status status);

}  // namespace moonpool::transfer::rdma
