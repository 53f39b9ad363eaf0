// The master's numbers as Prometheus text, as a one-line summary for people, and as JSON (/status).
//
// Reading them takes each shard's lock once. Threads: any.
#pragma once

#include <string>

#include "master/coordinator.h"

namespace moonpool::master {

[[nodiscard]] std::string prometheus_text(Coordinator& coordinator);
[[nodiscard]] std::string summary_text(Coordinator& coordinator);
[[nodiscard]] std::string status_json(Coordinator& coordinator, TimeMs now);

}  // namespace moonpool::master
