#include "cli/doctor/finding.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <cmath>

#include "base/version.h"

namespace moonpool::cli::doctor {

namespace {

constexpr std::array kLevels = {Level::kOk, Level::kNote, Level::kWarning, Level::kError};
constexpr std::string_view kAsBefore = "\033[0m";

std::string_view colour_of(Level level) {
  switch (level) {
    case Level::kOk:
      return "\033[32m";
    case Level::kNote:
      return "\033[36m";
    case Level::kWarning:
      return "\033[33m";
    case Level::kError:
      return "\033[1;31m";
  }
  return "";
}

std::string printable(std::string_view text) {
  std::string result(text);
  std::replace_if(
      result.begin(), result.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F; }, '?');
  return result;
}

std::size_t count_of(std::span<const Section> sections, Level level) {
  std::size_t count = 0;
  for (const Section& section : sections) {
    count += static_cast<std::size_t>(
        std::count_if(section.findings.begin(), section.findings.end(), [&](const Finding& one) { return one.level == level; }));
  }
  return count;
}

std::string counted(std::size_t count, std::string_view singular) { return fmt::format("{} {}{}", count, singular, count == 1 ? "" : "s"); }

}  // namespace

std::string_view name_of(Level level) {
  switch (level) {
    case Level::kOk:
      return "ok";
    case Level::kNote:
      return "note";
    case Level::kWarning:
      return "warning";
    case Level::kError:
      return "error";
  }
  return "error";
}

Level gravest(std::span<const Section> sections) {
  Level found = Level::kOk;
  for (const Section& section : sections) {
    for (const Finding& finding : section.findings) found = std::max(found, finding.level);
  }
  return found;
}

std::string as_text(std::span<const Section> sections, bool colour) {
  std::size_t width = 0;
  for (const Section& section : sections) width = std::max(width, section.check.size());
  std::string text;
  for (const Section& section : sections) {
    for (const Finding& finding : section.findings) {
      const std::string level = fmt::format("{:<7}", name_of(finding.level));
      text += colour ? fmt::format("{}{}{}", colour_of(finding.level), level, kAsBefore) : level;
      text += fmt::format("  {:<{}}  {}\n", section.check, width, printable(finding.what));
      if (!finding.remedy.empty()) text += fmt::format("{:11}what to do: {}\n", "", printable(finding.remedy));
    }
  }
  return text + fmt::format("doctor: {}, {}, {}, {} ok\n", counted(count_of(sections, Level::kError), "error"),
                            counted(count_of(sections, Level::kWarning), "warning"), counted(count_of(sections, Level::kNote), "note"),
                            count_of(sections, Level::kOk));
}

std::string as_json(std::span<const Section> sections, std::chrono::duration<double> took) {
  namespace json = boost::json;
  json::object counts;
  for (const Level level : kLevels) counts[name_of(level)] = count_of(sections, level);
  json::array findings;
  for (const Section& section : sections) {
    for (const Finding& finding : section.findings) {
      json::object one{{"check", section.check}, {"level", name_of(finding.level)}, {"what", finding.what}};
      if (!finding.remedy.empty()) one["remedy"] = finding.remedy;
      findings.push_back(std::move(one));
    }
  }
  const json::object document{{"version", version()},
                              {"status", name_of(gravest(sections))},
                              {"seconds", std::round(took.count() * 1000) / 1000},
                              {"counts", std::move(counts)},
                              {"findings", std::move(findings)}};
  return json::serialize(document);
}

std::string in_units(double bytes) {
  constexpr std::array kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  std::size_t unit = 0;
  while (std::abs(bytes) >= 1024 && unit + 1 < kUnits.size()) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", bytes, unit == 0 ? 0 : 2, kUnits[unit]);
}

}  // namespace moonpool::cli::doctor
