#include "cli/doctor/check.h"

#include <fmt/format.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

namespace moonpool::cli::doctor {

namespace {

// What the checks' threads and the one that waits for them share; the last of them frees it.
struct Board {
  explicit Board(std::vector<Check> all) : checks(std::move(all)), results(checks.size()), left(checks.size()) {}

  const std::vector<Check> checks;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::optional<Findings>> results;  // guarded by mutex
  std::size_t left;                              // guarded by mutex
};

void run_one(Board& board, std::size_t i, Deadline deadline) {
  Findings found = board.checks[i].run(deadline);
  const std::lock_guard lock(board.mutex);
  board.results[i] = std::move(found);
  --board.left;
  board.changed.notify_all();
}

}  // namespace

Outcome run_checks(std::vector<Check> checks, Deadline deadline) {
  const auto started = Deadline::Clock::now();
  const Deadline for_checks = deadline.sooner(deadline.left() * 9 / 10);
  const auto board = std::make_shared<Board>(std::move(checks));
  for (std::size_t i = 0; i < board->checks.size(); ++i) {
    try {
      std::thread([board, i, for_checks] { run_one(*board, i, for_checks); }).detach();
    } catch (const std::system_error&) {
      run_one(*board, i, for_checks);  // no thread to be had: one after the other is slower, not wrong
    }
  }
  std::unique_lock lock(board->mutex);
  // wait_until on the system clock: g++ 12's TSan does not know pthread_cond_clockwait, and a clock step only costs a re-check.
  while (board->left > 0 && !deadline.expired()) board->changed.wait_until(lock, std::chrono::system_clock::now() + deadline.left());
  const auto waited = std::chrono::duration_cast<std::chrono::milliseconds>(Deadline::Clock::now() - started).count();
  Outcome outcome;
  outcome.all_ended = board->left == 0;
  for (std::size_t i = 0; i < board->checks.size(); ++i) {
    Findings findings = board->results[i] ? std::move(*board->results[i])
                                          : Findings{error(fmt::format("did not end within {} ms", waited),
                                                           "give it more time with --timeout; if that does not help, this part hangs")};
    outcome.sections.push_back({board->checks[i].name, std::move(findings)});
  }
  return outcome;
}

}  // namespace moonpool::cli::doctor
