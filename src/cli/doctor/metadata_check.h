// The metadata server: reachable, how far away, and whether a key of our own can be written, read back and removed.
#pragma once

#include <string>

#include "base/deadline.h"
#include "cli/doctor/finding.h"

namespace moonpool::cli::doctor {

// `url` as in a configuration. The probe's key is random and removed again, also when reading it failed. Each endpoint of several is asked.
// No password is ever shown.
[[nodiscard]] Findings check_metadata_server(const std::string& url, Deadline deadline);

}  // namespace moonpool::cli::doctor
