// What a check of `moonpool doctor` says: how grave, what was found, and what to do about it.
//
// A finding is one line for people and one object for machines. Errors are what keeps the pool from working as it is configured; warnings
// cost speed or will bite later; notes are worth knowing; the rest is well. Every error and warning has a remedy. Threads: values.
#pragma once

#include <chrono>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moonpool::cli::doctor {

enum class Level { kOk, kNote, kWarning, kError };

struct Finding {
  Level level = Level::kOk;
  std::string what;
  std::string remedy;  // empty for what is well
};

[[nodiscard]] inline Finding ok(std::string what) { return {Level::kOk, std::move(what), {}}; }
[[nodiscard]] inline Finding note(std::string what, std::string remedy = {}) { return {Level::kNote, std::move(what), std::move(remedy)}; }
[[nodiscard]] inline Finding warning(std::string what, std::string remedy) { return {Level::kWarning, std::move(what), std::move(remedy)}; }
[[nodiscard]] inline Finding error(std::string what, std::string remedy) { return {Level::kError, std::move(what), std::move(remedy)}; }

using Findings = std::vector<Finding>;

// What one check found, under its name.
struct Section {
  std::string check;
  Findings findings;
};

[[nodiscard]] std::string_view name_of(Level level);  // "ok", "note", "warning", "error"
[[nodiscard]] Level gravest(std::span<const Section> sections);

// One line a finding: level, check, what was found; the remedy on the next, indented. Then a line of counts. Control characters, which
// names and texts of peers may have, become '?'.
[[nodiscard]] std::string as_text(std::span<const Section> sections, bool colour);
// {"version", "status": the gravest level, "seconds", "counts": {level: n}, "findings": [{"check", "level", "what", "remedy"?}]}.
[[nodiscard]] std::string as_json(std::span<const Section> sections, std::chrono::duration<double> took);

// "1.50 GiB".
[[nodiscard]] std::string in_units(double bytes);

}  // namespace moonpool::cli::doctor
