// A few jobs at the same time, each blocking: what one caller has for several peers, or for several lanes of one.
//
// Cost: a thread a job but one, some 20 us each. Threads: any; the caller's runs the last job and waits for the others.
#pragma once

#include <functional>
#include <span>
#include <system_error>
#include <thread>
#include <vector>

namespace moonpool {

// Runs all jobs to their end. They must not throw.
inline void run_together(std::span<const std::function<void()>> jobs) {
  if (jobs.empty()) return;
  std::vector<std::jthread> others;
  others.reserve(jobs.size() - 1);
  for (const auto& job : jobs.first(jobs.size() - 1)) {
    try {
      others.emplace_back(job);
    } catch (const std::system_error&) {
      job();  // no thread to be had: one after the other is slower, not wrong
    }
  }
  jobs.back()();
}

}  // namespace moonpool
