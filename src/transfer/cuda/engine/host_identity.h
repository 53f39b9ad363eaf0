// Who may open whose CUDA IPC handles, and use whose addresses, as far as can be told without trying.
#pragma once

#include <string>

namespace moonpool::transfer::cuda {

// Equal in two processes of one boot of one host that share user, IPC and process namespaces. Empty when it cannot be told.
[[nodiscard]] const std::string& host_identity();
// Equal only within this process and for the same `runtime`.
[[nodiscard]] std::string process_identity(const void* runtime);

}  // namespace moonpool::transfer::cuda
