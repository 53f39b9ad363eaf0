// What policies share: cheap random numbers, fair ties, what a slow-starting instance gets.
// Threads: any; the random state is the thread's own.
#pragma once

#include <cstdint>
#include <random>
#include <span>

#include "gateway/instance.h"

namespace moonpool::gateway {

// xorshift64*: some nanoseconds, good enough to spread load.
inline std::uint64_t random_bits() {
  static thread_local std::uint64_t state = (std::uint64_t{std::random_device{}()} << 32 | std::random_device{}()) | 1;
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return state * 0x2545F4914F6CDD1DULL;
}

// Uniform in [0, count), count > 0: by multiplication, whose bias is below count / 2^32.
inline std::size_t random_below(std::size_t count) {
  return static_cast<std::size_t>(((random_bits() >> 32) * static_cast<std::uint64_t>(count)) >> 32);
}

// Uniform in [0, 1).
inline double random_share() { return static_cast<double>(random_bits() >> 11) * 0x1p-53; }

inline std::uint64_t mix_bits(std::uint64_t value) {
  value = (value ^ (value >> 33)) * 0xFF51AFD7ED558CCDULL;
  value = (value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53ULL;
  return value ^ (value >> 33);
}

// Whether a slow-starting instance may take this turn: when it has nothing to do, else with the chance of its weight.
inline bool takes_its_turn(const Instance& instance) {
  const double weight = instance.weight();
  return weight >= 1 || instance.in_flight() == 0 || random_share() < weight;
}

// Requests at work and this one; those at work count for more in an instance that is to have `weight` of a full share.
inline double load_of(const Instance& instance) { return 1 + static_cast<double>(instance.in_flight()) / instance.weight(); }

// The index with the lowest cost(i); equal ones with equal chance.
template <typename Cost>
std::size_t cheapest(std::size_t count, const Cost& cost) {
  std::size_t best = 0;
  std::size_t equals = 1;
  double lowest = cost(0);
  for (std::size_t i = 1; i < count; ++i) {
    const double candidate = cost(i);
    if (candidate > lowest) continue;
    equals = candidate < lowest ? 1 : equals + 1;
    if (equals == 1 || random_below(equals) == 0) best = i;
    lowest = candidate;
  }
  return best;
}

}  // namespace moonpool::gateway
