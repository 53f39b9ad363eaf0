// The contract of a check, and how all of them run.
//
// A check looks at one thing and gives findings; it never throws, changes nothing but what it cleans up itself, and ends by its deadline.
// Checks run side by side, each on a thread of its own, so that the whole takes as long as the slowest. One that does not end in time is
// reported as such and left behind: the caller must then leave the process without waiting for its threads (Outcome::all_ended).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "cli/doctor/finding.h"

namespace moonpool::cli::doctor {

struct Check {
  std::string name;  // a word or two: "memory lock"
  std::function<Findings(Deadline)> run;
};

struct Outcome {
  std::vector<Section> sections;  // in the order of the checks
  bool all_ended = true;
};

// Returns by the deadline. Checks get a slightly earlier one, so that they can say themselves what took so long.
[[nodiscard]] Outcome run_checks(std::vector<Check> checks, Deadline deadline);

}  // namespace moonpool::cli::doctor
