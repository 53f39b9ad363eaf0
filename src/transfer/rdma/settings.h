// The texts by which users set rdma::Options: variables of the environment, ours (MOONPOOL_RDMA_...) and those that Mooncake's users have
// set already (MC_GID_INDEX, MC_MTU, ...). options.h has the table.
//
// One place says which there are, what they may be and what would be right. A program's own settings read the environment
// (node_process.cpp, python/mooncake/_settings.py) and hand it over. Pure functions.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "base/result.h"
#include "transfer/rdma/options.h"

namespace moonpool::transfer::rdma {

// By name. Names that are not about RDMA may be among them.
using Variables = std::map<std::string, std::string, std::less<>>;

// `options` with what the variables say. Empty texts say nothing; where both are there, MOONPOOL_RDMA_MTU beats MC_MTU. kConfig naming the
// variable and what would be right, also for a MOONPOOL_RDMA_ name that does not exist.
[[nodiscard]] Result<Options> with_variables(Options options, const Variables& variables);
// Those of an environment (environ(7)) that with_variables() looks at.
[[nodiscard]] Variables variables_of(const char* const* environment);
// Whether with_variables() looks at a variable of that name.
[[nodiscard]] bool is_rdma_variable(std::string_view name);

}  // namespace moonpool::transfer::rdma
