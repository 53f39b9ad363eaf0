#include "gateway/watchdog.h"

namespace moonpool::gateway {

namespace {
constexpr auto kNever = Deadline::Clock::time_point::max();
}

Watchdog::Watchdog(const Executor& executor, std::function<void()> on_expiry)
    : state_(std::make_shared<State>(executor, std::move(on_expiry))) {}

Watchdog::~Watchdog() {
  state_->on_expiry = nullptr;
  state_->deadline = kNever;
  state_->timer.cancel();
}

void Watchdog::arm(Deadline deadline) {
  state_->deadline = deadline.time();
  if (deadline.time() < state_->timer_at) sleep(state_, deadline.time());
}

void Watchdog::disarm() { state_->deadline = kNever; }

void Watchdog::sleep(const std::shared_ptr<State>& state, Deadline::Clock::time_point until) {
  state->timer_at = until;
  state->timer.expires_at(until);  // cancels a sleep that was longer: its handler sees the error and leaves
  state->timer.async_wait([state](const boost::system::error_code& error) {
    if (error || state->on_expiry == nullptr) return;
    state->timer_at = kNever;
    if (state->deadline == kNever) return;
    if (state->deadline > Deadline::Clock::now()) {
      sleep(state, state->deadline);
      return;
    }
    state->deadline = kNever;
    state->on_expiry();
  });
}

}  // namespace moonpool::gateway
