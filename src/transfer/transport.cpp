#include "transfer/transport.h"

namespace moonpool::transfer {

namespace {

template <typename Operation>
void no_common_memory(std::span<Operation> operations) {
  for (auto& operation : operations)
    operation.status = Status(ErrorCode::kNotSupported, "this path has no memory in common with its peers");
}

}  // namespace

void Transport::view(const Peer&, std::span<ViewOperation> operations, Deadline) { no_common_memory(operations); }

void Transport::write_in_place(const Peer&, std::span<WriteOperation> operations, const Fill&, Deadline) { no_common_memory(operations); }

}  // namespace moonpool::transfer
