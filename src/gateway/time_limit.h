// A deadline that remembers what it was for, so that a wait which ran out of time says which setting bounded it and by how much.
//
// Cost: two words more than a Deadline, copied once a wait; the text is made only when it is needed. Threads: values.
#pragma once

#include <chrono>
#include <string>

#include "base/deadline.h"

namespace moonpool::gateway {

// How long one kind of wait may last, and the flag that says so.
struct Patience {
  Patience(std::chrono::nanoseconds the_allowed, const char* the_flag = nullptr)  // NOLINT(google-explicit-constructor)
      : allowed(the_allowed), flag(the_flag) {}

  std::chrono::nanoseconds allowed;
  const char* flag;  // "--connect-timeout"; null: the caller's own bound
};

struct TimeLimit {
  TimeLimit(Deadline the_deadline)  // NOLINT(google-explicit-constructor)
      : deadline(the_deadline), patience(the_deadline.left()) {}
  TimeLimit(Deadline the_deadline, Patience the_patience) : deadline(the_deadline), patience(the_patience) {}
  static TimeLimit after(Patience patience) { return {Deadline::after(patience.allowed), patience}; }

  // The earlier of this one and `patience` from now.
  [[nodiscard]] TimeLimit sooner(Patience other) const {
    const Deadline step = Deadline::after(other.allowed);
    return step.time() < deadline.time() ? TimeLimit(step, other) : *this;
  }
  [[nodiscard]] bool expired() const { return deadline.expired(); }
  // "0.300 s (--first-byte-timeout)"
  [[nodiscard]] std::string text() const;

  Deadline deadline;
  Patience patience;
};

}  // namespace moonpool::gateway
