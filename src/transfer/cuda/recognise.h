// What a pointer is that somebody registers: host memory, a device's, or neither.
//
// Nothing is touched, so a wrong pointer is an error and not a crash. Cost: a few system calls; for registration, not for the data path.
// Threads: any.
#pragma once

#include <optional>
#include <string_view>

#include "base/result.h"
#include "transfer/cuda/runtime.h"
#include "transfer/transport.h"

namespace moonpool::transfer::cuda {

// The device; nullopt for host memory. `runtime` may be null: then `why` says so to whoever registers something else. kInvalidParams when
// first and last byte are not in one memory, or in none that this process can reach.
[[nodiscard]] Result<std::optional<int>> recognise(ConstBytes memory, const Runtime* runtime, std::string_view why);

}  // namespace moonpool::transfer::cuda
