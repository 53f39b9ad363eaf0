// `moonpool doctor`: what is wrong with this host, its configuration, and what it can reach of the pool; and what to do about it.
//
// Reads, asks and writes one probe key that it removes again; changes nothing else. See docs/doctor.md for the checks.
#pragma once

#include <memory>
#include <vector>

#include "cli/doctor/check.h"
#include "cli/doctor/host_files.h"
#include "cli/doctor/settings.h"

namespace moonpool::cli::doctor {

// All that make sense with these settings, in the order in which they are shown.
[[nodiscard]] std::vector<Check> make_checks(std::shared_ptr<const Settings> settings, HostFiles host);

// The settings' own findings: the configuration file and the cluster token.
[[nodiscard]] Findings check_configuration(const Settings& settings);

}  // namespace moonpool::cli::doctor

namespace moonpool::cli {

// The exit status: 0 without errors, 1 with, 2 for a wrong command line. Does not return when a check hung: it ends the process.
int run_doctor(int argc, char** argv);

}  // namespace moonpool::cli
