// Tells a forked child that what its parent set up is not usable here: the threads behind it do not exist in the child, and its
// sockets belong to the parent. Cost: one atomic load. Threads: any.
#pragma once

#include <cstdint>

namespace moonpool::python {

// Grows by one in every child of fork().
[[nodiscard]] std::uint64_t fork_generation();

}  // namespace moonpool::python
