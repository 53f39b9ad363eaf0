#include "net/server_loop.h"

#include <boost/asio/executor_work_guard.hpp>

#include <exception>

#include "base/logging.h"
#include "net/server_connection.h"

namespace moonpool::net {

ServerLoop::ServerLoop(std::chrono::milliseconds tick)
    : tick_(tick), context_(std::make_unique<boost::asio::io_context>(1)), timer_(std::in_place, *context_) {}

void ServerLoop::run() {
  const auto work = boost::asio::make_work_guard(*context_);
  arm_tick();
  while (!context_->stopped()) {
    try {
      run_next();
    } catch (const std::exception& e) {
      log::error("net: a server thread caught {}; its other connections go on", e.what());
    }
  }
}

// What is ready, or will be in a moment, or else the next thing that comes.
void ServerLoop::run_next() {
  const auto began = Deadline::Clock::now();
  std::size_t done = 0;
  if (const auto budget = spin_.budget(); budget > SpinPolicy::Duration::zero()) {
    const SpinPolicy::Turn turn;
    const auto end = began + budget;
    done = context_->poll();
    while (done == 0 && turn.granted() && Deadline::Clock::now() < end && !context_->stopped()) {
      SpinPolicy::relax();
      done = context_->poll();
    }
  }
  if (done == 0) context_->run_one();
  spin_.record(Deadline::Clock::now() - began);
}

void ServerLoop::destroy() {
  timer_.reset();
  context_.reset();
}

void ServerLoop::arm_tick() {
  timer_->expires_after(tick_);
  timer_->async_wait([this](const boost::system::error_code& error) {
    if (error) return;
    const auto now = Deadline::Clock::now();
    for (Connection* connection : connections_) connection->drop_if_expired(now);
    arm_tick();
  });
}

}  // namespace moonpool::net
