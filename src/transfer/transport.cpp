#include "transfer/transport.h"

namespace moonpool::transfer {

void Transport::view(const Peer&, std::span<ViewOperation> operations, Deadline) {
  for (auto& operation : operations)
    operation.status = Status(ErrorCode::kNotSupported, "this path has no memory in common with its peers");
}

}  // namespace moonpool::transfer
