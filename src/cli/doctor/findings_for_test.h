// Matchers of findings, and how a failed test shows one.
#pragma once

#include <gmock/gmock.h>

#include <ostream>
#include <string>

#include "cli/doctor/finding.h"

namespace moonpool::cli::doctor {

inline void PrintTo(const Finding& finding, std::ostream* out) {
  *out << name_of(finding.level) << " \"" << finding.what << "\" (" << finding.remedy << ")";
}

inline auto finds(Level level, const std::string& what) {
  return testing::AllOf(testing::Field("level", &Finding::level, level), testing::Field("what", &Finding::what, testing::HasSubstr(what)));
}
inline auto advises(Level level, const std::string& what, const std::string& remedy) {
  return testing::AllOf(finds(level, what), testing::Field("remedy", &Finding::remedy, testing::HasSubstr(remedy)));
}
inline auto no_errors() { return testing::Each(testing::Field("level", &Finding::level, testing::Ne(Level::kError))); }

}  // namespace moonpool::cli::doctor
