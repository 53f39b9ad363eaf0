// Whether to spin before sleeping, and for how long: on two cores a round trip costs 21 us when the caller spins and 60 us when it sleeps,
// but a spin that ends in a sleep anyway only takes the core from whoever it waits for.
//
// Learned from recent waits: spinning goes on while they end within about the spin's length, stops when they do not, and is tried again now
// and then. Never with a single CPU, never with more spinners in this process than CPUs less one, never while more threads are runnable
// than there are CPUs. Threads: one object per waiting thread or connection; what they share (spinners, load) is atomic.
#pragma once

#include <chrono>
#include <cstdint>

namespace moonpool::net {

class SpinPolicy {
 public:
  using Duration = std::chrono::nanoseconds;
  // Longer than a round trip to a server that spins, too; with eight CPUs and more, than one to a server that has to be woken first (120 us
  // seen from call to answer where both sides sleep, 70 where the caller does not).
  [[nodiscard]] static Duration default_limit();

  // `limit` zero: never spins.
  explicit SpinPolicy(Duration limit = default_limit());

  // How long the wait that begins now may spin; zero for not at all.
  [[nodiscard]] Duration budget();
  // The wait has ended after `waited`, spun or slept.
  void record(Duration waited);

  // Counts this thread among the process's spinners while it lives; ask granted() before spinning.
  class Turn {
   public:
    Turn();
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    [[nodiscard]] bool granted() const { return granted_; }

   private:
    bool granted_;
  };

  // One iteration's pause, kind to the sibling hyper-thread.
  static void relax();

 private:
  Duration limit_;
  int score_ = 0;              // recent waits: short ones raise it, long ones lower it; spinning while it is not negative
  std::uint32_t skipped_ = 0;  // waits since the last one that spun
};

}  // namespace moonpool::net
